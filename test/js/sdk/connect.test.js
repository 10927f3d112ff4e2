'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { client, connected, subscription, subscribed, open, sleep, eachBuild, Tokens } = require('../lib/sdk');

suite('connecting', () => {
  const s = scope();
  let perch;
  before(async () => { perch = await Perch.start(s, { topics: { user_personal: true } }); });

  eachBuild(test, 'a token opens a session', async (t, build) => {
    const c = await connected(t, build, perch.url, { token: sign({ sub: 'alice' }) });
    assert.equal(c.welcome.transport, 'websocket');
    assert.match(c.welcome.client, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    assert.equal(c.events.count('error'), 0);
  });

  eachBuild(test, 'a bad signature ends it with 3500, for good', async (t, build) => {
    const c = client(t, build, perch.url, { token: sign({ sub: 'alice' }, { key: 'not the key of this server, but long' }) });
    c.connect();
    const { code, reason } = await c.events.next('disconnected');
    assert.deepEqual([code, reason], [3500, 'invalid token']);
    await sleep(700); // longer than the longest pause before a reconnect
    assert.equal(c.state, 'disconnected');
    assert.equal(c.events.count('connecting'), 1);
  });

  eachBuild(test, 'no token, where one is required', async (t, build) => {
    const c = client(t, build, perch.url);
    c.connect();
    assert.equal((await c.events.next('disconnected')).code, 3501);
  });

  eachBuild(test, 'an expired token is replaced by getToken', async (t, build) => {
    let asked = 0;
    const c = await connected(t, build, perch.url, {
      token: sign({ sub: 'alice' }, { ttl: -5 }),
      getToken: async () => { asked++; return sign({ sub: 'alice' }); },
    });
    assert.equal(asked, 1);
    assert.equal(c.events.seen.error[0].error.code, 109);
  });

  eachBuild(test, 'an expired token without getToken is the end', async (t, build) => {
    const c = client(t, build, perch.url, { token: sign({ sub: 'alice' }, { ttl: -5 }) });
    c.connect();
    assert.equal((await c.events.next('disconnected')).code, 1); // the SDK's own: unauthorized
  });

  eachBuild(test, 'a short token is refreshed while the session lives', async (t, build) => {
    const tokens = new Tokens(() => sign({ sub: 'alice' }, { ttl: 2 }));
    const c = await connected(t, build, perch.url, { getToken: tokens.get });
    await tokens.times(4); // three lives
    await assert.rejects(c.presence('news'), { code: 108 }, 'the session answers');
    assert.equal(c.state, 'connected');
    assert.equal(c.events.count('connecting'), 1, 'the session was kept');
  });

  eachBuild(test, 'topics of the token are subscribed by the server', async (t, build) => {
    const c = client(t, build, perch.url, {
      token: sign({ sub: 'bob', channels: ['locked:a'], subs: { 'locked:b': { data: { hello: 'b' } } } }),
    });
    c.connect();
    await c.events.next('connected');
    const topics = c.events.seen.subscribed.map((e) => e.channel).sort();
    assert.deepEqual(topics, ['#bob', 'locked:a', 'locked:b']);
    const b = c.events.seen.subscribed.find((e) => e.channel === 'locked:b');
    assert.deepEqual(c.decode(b.data), { hello: 'b' });
    for (const topic of topics) {
      await perch.push(topic, { to: topic });
      const p = await c.events.next('publication');
      assert.equal(p.channel, topic);
      assert.deepEqual(c.decode(p.data), { to: topic });
    }
  });

  eachBuild(test, 'the personal topic reaches all devices of its user, and nobody else', async (t, build) => {
    const user = `carol-${build}`;
    const [one, two, other] = await Promise.all([user, user, `not-${user}`].map(
      (sub) => connected(t, build, perch.url, { token: sign({ sub }) })));
    await perch.push(`#${user}`, { n: 1 });
    await perch.push(`#not-${user}`, { n: 2 });
    for (const c of [one, two]) assert.deepEqual(c.decode((await c.events.next('publication')).data), { n: 1 });
    assert.deepEqual(other.decode((await other.events.next('publication')).data), { n: 2 });
    // A stranger may not listen in.
    const s = subscription(other, `#${user}`);
    s.subscribe();
    assert.equal((await s.events.next('unsubscribed')).code, 103);
  });

  test('a token in the handshake is verified before the upgrade', { timeout: 60_000 }, async (t) => {
    const refused = open(t, perch.url, { headers: { Authorization: 'Bearer not.a.token' } });
    assert.equal((await refused.events.next('unexpected-response')).status, 401);
    const token = sign({ sub: 'dave' });
    for (const ws of [
      open(t, perch.url, { headers: { Authorization: `Bearer ${token}` } }),
      open(t, `${perch.url}?token=${token}`),
      open(t, perch.url, [`bearer.${token}`]),
    ]) {
      await ws.events.next('open');
      ws.send('{"id":1,"connect":{}}');
      const reply = JSON.parse(await ws.events.next('message'));
      assert.ok(reply.connect.client);
      assert.ok(reply.connect.subs['#dave']);
    }
  });
});

suite('heartbeat', () => {
  const s = scope();
  let perch;
  before(async () => { perch = await Perch.start(s, { heartbeat: { interval: '1s', timeout: '500ms' } }); });

  eachBuild(test, 'an idle session outlives several pings', async (t, build) => {
    const c = await connected(t, build, perch.url, { token: sign({ sub: 'alice' }), maxServerPingDelay: 1000 });
    // The SDK ends a session whose pings fail to come, the server one whose pongs do.
    await sleep(5000);
    assert.equal(c.state, 'connected');
    assert.equal(c.events.count('connecting'), 1);
  });

  test('a peer that answers no ping is closed with 3012', { timeout: 60_000 }, async (t) => {
    const ws = open(t, perch.url);
    await ws.events.next('open');
    ws.send(JSON.stringify({ id: 1, connect: { token: sign({ sub: 'mute' }) } }));
    const reply = JSON.parse(await ws.events.next('message'));
    assert.deepEqual([reply.connect.ping, reply.connect.pong], [1, true]);
    await ws.events.next('message', (m) => m === '{}');
    assert.equal((await ws.events.next('close')).code, 3012);
  });
});

suite('requirements of auth', () => {
  eachBuild(test, 'insecure mode needs no token and allows every topic', async (t, build) => {
    const perch = await Perch.start(t, { insecure: true });
    const c = await connected(t, build, perch.url);
    const sub = await subscribed(c, 'locked:anything');
    await sub.publish(c.encode({ n: 1 }));
    assert.deepEqual(c.decode((await sub.events.next('publication')).data), { n: 1 });
  });

  eachBuild(test, 'require: none lets anonymous peers in, but not further', async (t, build) => {
    const perch = await Perch.start(t, { auth: { require: 'none' } });
    const c = await connected(t, build, perch.url);
    const sub = subscription(c, 'news');
    sub.subscribe();
    assert.equal((await sub.events.next('unsubscribed')).code, 103);
  });

  test('require: handshake refuses an upgrade without a token', { timeout: 60_000 }, async (t) => {
    const perch = await Perch.start(t, { auth: { require: 'handshake' } });
    const ws = open(t, perch.url);
    assert.equal((await ws.events.next('unexpected-response')).status, 401);
    const c = await connected(t, 'JSON', `${perch.url}?token=${sign({ sub: 'alice' })}`);
    assert.ok(c.welcome.client);
  });
});
