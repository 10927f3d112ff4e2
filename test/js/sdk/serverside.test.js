'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { Line } = require('../lib/line');
const { client, connected, subscription, subscribed, expect, eachBuild, Tokens } = require('../lib/sdk');

const kept = { history_size: 100, history_ttl: '60s' };
const range = (from, to) => Array.from({ length: to - from }, (_, i) => ({ n: from + i }));

suite('subscriptions of the server', () => {
  const s = scope();
  let perch;
  before(async () => {
    perch = await Perch.start(s, {
      topics: {
        namespaces: [
          { name: 'all', ...kept, force_recovery: true },
          { name: 'short', ...kept, history_size: 1, force_recovery: true },
          { name: 'plain', ...kept, allow_recovery: true },
          { name: 'auto', ...kept, force_recovery: true, force_recovery_mode: 'cache', auto_cache_recover: true },
          { name: 'mine', ...kept, force_recovery: true },
          { name: 'named', allow_user_limited_channels: true },
        ],
        user_personal: true,
        personal_namespace: 'mine',
      },
    });
  });

  const connect = async (t, build, claims) => {
    const line = await Line.start(t, perch);
    const c = client(t, build, line.url, { token: sign(claims) });
    c.connect();
    c.welcome = await c.events.next('connected');
    return [c, line];
  };
  const push = async (topic, values) => { for (const v of values) await perch.push(topic, v); };
  // given is the subscription of a topic that the client is told of next.
  const given = (c, topic) => {
    const i = c.events.seen.subscribed.findIndex((e) => e.channel === topic);
    return i >= 0 ? c.events.seen.subscribed.splice(i, 1)[0] : null;
  };
  const back = async (c) => { await c.events.next('connected'); };

  eachBuild(test, 'those of the token and of the user recover', async (t, build) => {
    const user = `ann-${build}`;
    const [topic, short, personal] = [`all:${user}`, `short:${user}`, `mine:#${user}`];
    const [c, line] = await connect(t, build, { sub: user, channels: [topic, short] });
    for (const name of [topic, short, personal]) {
      const e = given(c, name);
      assert.deepEqual([e.recoverable, e.positioned, e.wasRecovering], [true, true, false], name);
    }
    await push(topic, range(0, 2));
    await push(short, range(2, 3));
    await push(personal, range(3, 4));
    await expect(c, c, range(0, 4));

    await line.without(c, async () => {
      await push(topic, range(4, 7));
      await push(short, range(100, 102)); // of which it keeps one
      await push(personal, range(7, 8));
    });
    await back(c);
    for (const [name, recovered] of [[topic, true], [short, false], [personal, true]]) {
      const e = given(c, name);
      assert.deepEqual([e.wasRecovering, e.recovered], [true, recovered], name);
    }
    await push(topic, range(8, 9));
    await push(short, range(9, 10));
    const seen = { [topic]: [], [short]: [], [personal]: [] };
    for (let i = 0; i < 6; i++) {
      const p = await c.events.next('publication');
      seen[p.channel].push(c.decode(p.data).n);
    }
    assert.deepEqual(seen, { [topic]: [4, 5, 6, 8], [short]: [9], [personal]: [7] });
    assert.equal(c.events.count('publication'), 0);
  });

  eachBuild(test, 'a token may turn recovery on', async (t, build) => {
    const topic = `plain:${build}`;
    const [c, line] = await connect(t, build, { sub: 'bea', subs: { [topic]: { override: { force_recovery: { value: true } } } } });
    assert.equal(given(c, topic).recoverable, true);
    const [other] = await connect(t, build, { sub: 'cid', channels: [topic] });
    assert.equal(given(other, topic).recoverable, false);
    await line.without(c, () => push(topic, range(0, 2)));
    await back(c);
    assert.equal(given(c, topic).recovered, true);
    await expect(c, c, range(0, 2));
  });

  eachBuild(test, 'a cached value comes with the connection', async (t, build) => {
    const topic = `auto:${build}`;
    await push(topic, range(0, 3));
    const [c, line] = await connect(t, build, { sub: 'dot', channels: [topic] });
    assert.equal(given(c, topic).recovered, true);
    await expect(c, c, range(2, 3));
    await line.without(c, () => push(topic, range(3, 6)));
    await back(c);
    await push(topic, range(6, 7));
    await expect(c, c, range(5, 7));
  });

  eachBuild(test, 'one that the backend made goes with the connection, and comes back from where it was', async (t, build) => {
    const user = `eve-${build}`;
    const topic = `all:${user}`;
    const [c, line] = await connect(t, build, { sub: user });
    await push(topic, range(0, 2));
    await perch.api('subscribe', { user, channel: topic, data: { welcome: 1 } });
    const e = await c.events.next('subscribed', (x) => x.channel === topic);
    assert.deepEqual([e.recoverable, e.positioned, e.streamPosition.offset, c.decode(e.data)], [true, true, 2, { welcome: 1 }]);
    await push(topic, range(2, 3));
    const [last] = await expect(c, c, range(2, 3));

    await line.without(c, () => push(topic, range(3, 5)));
    assert.equal((await c.events.next('unsubscribed')).channel, topic);
    await perch.api('subscribe', { user, channel: topic, recover_since: { offset: last.offset, epoch: e.streamPosition.epoch } });
    assert.equal((await c.events.next('subscribed', (x) => x.channel === topic)).recoverable, true);
    await push(topic, range(5, 6));
    await expect(c, c, range(3, 6));

    await perch.api('unsubscribe', { user, channel: topic });
    assert.equal((await c.events.next('unsubscribed')).channel, topic);
    await push(topic, range(6, 7));
    await push(`mine:#${user}`, range(7, 8));
    await expect(c, c, range(7, 8));
  });

  eachBuild(test, 'a name may say for whom it is', async (t, build) => {
    const [ann] = await connect(t, build, { sub: 'ann' });
    const [bob] = await connect(t, build, { sub: 'bob' });
    const topic = `named:${build}#ann,eve`;
    const sub = await subscribed(ann, topic);
    const other = subscription(bob, topic);
    other.subscribe();
    assert.equal((await other.events.next('unsubscribed')).code, 103);
    await push(topic, range(0, 1));
    await expect(ann, sub, range(0, 1));
  });

  eachBuild(test, 'a token-only topic keeps its place while its token is renewed', async (t, build) => {
    const [c, line] = await connect(t, build, { sub: 'fay' });
    const topic = `$all:${build}`;
    const tokens = new Tokens(({ channel }) => sign({ sub: 'fay', channel }, { ttl: 1 }));
    const sub = await subscribed(c, topic, { getToken: tokens.get });
    assert.equal(sub.welcome.recoverable, true);
    await tokens.times(3);
    await push(topic, range(0, 1));
    await expect(c, sub, range(0, 1));
    assert.equal(sub.events.count('subscribing'), 1, 'the subscription was kept');
    await line.without(c, () => push(topic, range(1, 3)));
    assert.equal((await sub.events.next('subscribed')).recovered, true);
    await expect(c, sub, range(1, 3));
  });

  eachBuild(test, 'a session with a token that is renewed recovers as well', async (t, build) => {
    const line = await Line.start(t, perch);
    const topic = `all:renewed-${build}`;
    const tokens = new Tokens(() => sign({ sub: 'gus', channels: [topic] }, { ttl: 1 }));
    const c = await connected(t, build, line.url, { getToken: tokens.get });
    await tokens.times(3);
    assert.equal(c.events.count('connecting'), 1, 'the session was kept');
    await line.without(c, () => push(topic, range(0, 2)));
    await expect(c, c, range(0, 2));
  });
});
