'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { Line } = require('../lib/line');
const { client, connected, subscribed, expect, eachBuild } = require('../lib/sdk');

suite('presence', () => {
  const s = scope();
  let perch;
  before(async () => {
    const here = { allow_subscribe_for_client: true, presence: true };
    perch = await Perch.start(s, {
      topics: {
        join_leave_interval: '20ms',
        namespaces: [
          { name: 'team', ...here, allow_presence_for_subscriber: true, join_leave: true },
          { name: 'open', ...here, allow_presence_for_client: true },
          { name: 'secret', ...here, join_leave: true },
          { name: 'loud', ...here, join_leave: true, force_push_join_leave: true },
        ],
      },
    });
  });
  const connect = (t, build, user, url = perch.url) => (
    connected(t, build, url, { token: sign({ sub: user, info: { name: user } }) }));
  // In Protobuf what is not there is empty.
  const info = (c, v) => (v === undefined || v.length === 0 ? null : c.decode(v));
  // users lists who is there, with what others see of them.
  const users = (c, { clients }) => Object.entries(clients).map(([id, i]) => {
    assert.equal(id, i.client);
    return [i.user, i.client, info(c, i.connInfo), info(c, i.chanInfo)];
  }).sort();

  eachBuild(test, 'says who is there', async (t, build) => {
    const topic = `team:who-${build}`;
    const [ann, phone, bob] = [await connect(t, build, 'ann'), await connect(t, build, 'ann'), await connect(t, build, 'bob')];
    const sub = await subscribed(ann, topic);
    await subscribed(phone, topic);
    const left = await subscribed(bob, topic, {
      token: sign({ sub: 'bob', channel: topic, info: { role: 'guest' } }),
    });
    const want = [
      ['ann', ann.welcome.client, { name: 'ann' }, null], ['ann', phone.welcome.client, { name: 'ann' }, null],
      ['bob', bob.welcome.client, { name: 'bob' }, { role: 'guest' }],
    ].sort();
    assert.deepEqual(users(ann, await sub.presence()), want);
    assert.deepEqual(await sub.presenceStats(), { numClients: 3, numUsers: 2 });
    const api = await perch.api('presence', { channel: topic });
    assert.deepEqual(Object.values(api.presence).map((i) => [i.user, i.client, i.conn_info, i.chan_info ?? null]).sort(), want);
    assert.deepEqual(await perch.api('presence_stats', { channel: topic }), { num_clients: 3, num_users: 2 });

    // Commands of one session are done in order: bob has left when he is answered.
    left.unsubscribe();
    await assert.rejects(bob.presence(topic), { code: 103 });
    assert.deepEqual(await sub.presenceStats(), { numClients: 2, numUsers: 1 });
    assert.deepEqual(users(ann, await sub.presence()), want.slice(0, 2));
  });

  eachBuild(test, 'is for whom the namespace lets', async (t, build) => {
    const c = await connect(t, build, 'ann');
    for (const [topic, code] of [[`team:none-${build}`, 103], [`secret:x-${build}`, 103], ['nowhere:x', 102]]) {
      await assert.rejects(c.presence(topic), { code }, topic);
      await assert.rejects(c.presenceStats(topic), { code }, topic);
    }
    const sub = await subscribed(c, `secret:x-${build}`);
    await assert.rejects(sub.presence(), { code: 103 });
    assert.deepEqual(await c.presenceStats(`open:empty-${build}`), { numClients: 0, numUsers: 0 });
    assert.deepEqual((await c.presence(`open:empty-${build}`)).clients, {});
    const all = await perch.api('presence', { channel: `secret:x-${build}` });
    assert.deepEqual(Object.keys(all.presence), [c.welcome.client], 'the backend may');
    await assert.rejects(perch.api('presence', { channel: 'plain' }), /"code":108/);
  });

  eachBuild(test, 'who comes and goes is told to who asks', async (t, build) => {
    const topic = `team:news-${build}`;
    const [ann, eve] = [await connect(t, build, 'ann'), await connect(t, build, 'eve')];
    const asking = await subscribed(ann, topic, { joinLeave: true });
    const silent = await subscribed(eve, topic);
    const line = await Line.start(t, perch);
    const bob = await connect(t, build, 'bob', line.url);
    const of = (c, kind) => asking.events.next(kind, (e) => e.info.client === c.welcome.client);
    await of(eve, 'join');
    const there = await subscribed(bob, topic, { token: sign({ sub: 'bob', channel: topic, info: { role: 'guest' } }) });
    const { info } = await of(bob, 'join');
    assert.deepEqual([info.user, ann.decode(info.connInfo), ann.decode(info.chanInfo)], ['bob', { name: 'bob' }, { role: 'guest' }]);
    // By leaving, and by a socket that breaks.
    there.unsubscribe();
    assert.equal((await of(bob, 'leave')).info.user, 'bob');
    there.subscribe();
    await of(bob, 'join');
    line.down();
    const gone = await of(bob, 'leave');
    assert.deepEqual([gone.info.user, ann.decode(gone.info.chanInfo)], ['bob', { role: 'guest' }]);
    assert.deepEqual(await asking.presenceStats(), { numClients: 2, numUsers: 2 });
    // What went to the topic before the fence came before it.
    await perch.push(topic, 'fence');
    await expect(eve, silent, ['fence']);
    assert.deepEqual([silent.events.count('join'), silent.events.count('leave')], [0, 0]);
  });

  eachBuild(test, 'not to who may not know it, but to all where the namespace says so', async (t, build) => {
    const [ann, bob] = [await connect(t, build, 'ann'), await connect(t, build, 'bob')];
    const [secret, loud] = [`secret:news-${build}`, `loud:news-${build}`];
    const curious = await subscribed(ann, secret, { joinLeave: true });
    const told = await subscribed(ann, loud);
    await subscribed(bob, secret);
    await subscribed(bob, loud);
    const { info } = await told.events.next('join', (e) => e.info.user === 'bob');
    assert.equal(info.client, bob.welcome.client);
    bob.disconnect();
    await told.events.next('leave', (e) => e.info.user === 'bob');
    await perch.push(secret, 'fence');
    await expect(ann, curious, ['fence']);
    assert.deepEqual([curious.events.count('join'), curious.events.count('leave')], [0, 0]);
  });

  eachBuild(test, 'subscriptions of the server are there, unless they are hidden', async (t, build) => {
    const topic = `loud:server-${build}`;
    const ann = await connect(t, build, 'ann');
    const sub = await subscribed(ann, topic);
    const subs = (o) => ({ [topic]: { override: o } });
    const seen = client(t, build, perch.url, { token: sign({ sub: 'seen', subs: subs({}) }) });
    const hidden = client(t, build, perch.url, {
      token: sign({ sub: 'hidden', subs: subs({ presence: { value: false }, join_leave: { value: false } }) }),
    });
    hidden.connect();
    await hidden.events.next('connected');
    seen.connect();
    const { client: id } = await seen.events.next('connected');
    const first = await sub.events.next('join', (e) => e.info.user !== 'ann');
    assert.deepEqual([first.info.user, first.info.client], ['seen', id]);
    const api = await perch.api('presence', { channel: topic });
    assert.deepEqual(Object.values(api.presence).map((i) => i.user).sort(), ['ann', 'seen']);
    // The server's subscription is told of others by the client's own events.
    await subscribed(await connect(t, build, 'bob'), topic);
    const join = await seen.events.next('join', (e) => e.info.user === 'bob');
    assert.equal(join.channel, topic);
  });

  eachBuild(test, 'many are told of at once', async (t, build) => {
    const topic = `loud:many-${build}`;
    const ann = await connect(t, build, 'ann');
    const sub = await subscribed(ann, topic);
    const crowd = await Promise.all(Array.from({ length: 300 }, (_, i) => connect(t, 'JSON', `user-${i}`)));
    await Promise.all(crowd.map((c) => subscribed(c, topic)));
    const told = new Set();
    while (told.size < crowd.length) {
      const e = await sub.events.next('join', (j) => j.info.client !== ann.welcome.client);
      assert.ok(!told.has(e.info.client), 'told twice');
      told.add(e.info.client);
    }
    assert.deepEqual([...told].sort(), crowd.map((c) => c.welcome.client).sort());
    assert.deepEqual(await perch.api('presence_stats', { channel: topic }), { num_clients: 301, num_users: 301 });
  });
});
