'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { connected, subscription, subscribed, eachBuild, encoder, Tokens } = require('../lib/sdk');

suite('topics', () => {
  const s = scope();
  let perch;
  before(async () => { perch = await Perch.start(s); });
  const connect = (t, build, claims = { sub: 'alice' }, options = {}) => (
    connected(t, build, perch.url, { token: sign(claims), ...options }));

  eachBuild(test, 'a push of the server API arrives', async (t, build) => {
    const c = await connect(t, build);
    const sub = await subscribed(c, `news-${build}`);
    const data = { text: 'hëllo ☃', list: [1, 2.5, null, true], deep: { a: { b: 'c' } } };
    await perch.api('publish', { channel: `news-${build}`, data, tags: { kind: 'test' } });
    const p = await sub.events.next('publication');
    assert.deepEqual(c.decode(p.data), data);
    assert.deepEqual({ ...p.tags }, { kind: 'test' });
    assert.equal(p.info, undefined, 'a push of the backend has no publisher');
  });

  eachBuild(test, 'a client publishes to all subscribers, itself included', async (t, build) => {
    const [alice, bob] = [await connect(t, build), await connect(t, build, { sub: 'bob' })];
    const topic = `chat-${build}`;
    const subs = [await subscribed(alice, topic), await subscribed(bob, topic)];
    for (let n = 0; n < 20; n++) await subs[0].publish(alice.encode({ n }));
    for (const [i, c] of [alice, bob].entries()) {
      for (let n = 0; n < 20; n++) {
        const p = await subs[i].events.next('publication');
        assert.deepEqual(c.decode(p.data), { n });
        assert.deepEqual([p.info.user, p.info.client], ['alice', alice.welcome.client]);
      }
    }
  });

  test('one publication reaches both encodings', { timeout: 60_000 }, async (t) => {
    const [json, protobuf] = [await connect(t, 'JSON'), await connect(t, 'Protobuf')];
    const subs = [await subscribed(json, 'mixed'), await subscribed(protobuf, 'mixed')];
    await subs[0].publish({ from: 'JSON' });
    await subs[1].publish(encoder.encode('{"from":"Protobuf"}'));
    for (const [i, c] of [json, protobuf].entries()) {
      for (const from of ['JSON', 'Protobuf']) {
        assert.deepEqual(c.decode((await subs[i].events.next('publication')).data), { from });
      }
    }
  });

  test('bytes that are no JSON reach Protobuf subscribers as they are', { timeout: 60_000 }, async (t) => {
    const c = await connect(t, 'Protobuf');
    const sub = await subscribed(c, 'bytes');
    const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
    await sub.publish(bytes);
    assert.deepEqual(Uint8Array.from((await sub.events.next('publication')).data), bytes);
  });

  eachBuild(test, 'after unsubscribe nothing arrives', async (t, build) => {
    const c = await connect(t, build);
    const topic = `left-${build}`;
    const [left, fence] = [await subscribed(c, topic), await subscribed(c, `fence-${build}`)];
    left.unsubscribe();
    await left.events.next('unsubscribed');
    // Commands of one session, and posts to its loop, keep their order.
    await fence.publish(c.encode('fence'));
    await fence.events.next('publication');
    await perch.push(topic, { late: true });
    await perch.push(`fence-${build}`, 'fence');
    await fence.events.next('publication');
    assert.equal(left.events.count('publication'), 0);
    assert.equal((await perch.api('channels', { pattern: topic })).channels[topic], undefined);
    // And it can come back.
    left.subscribe();
    await left.events.next('subscribed');
    await perch.push(topic, { again: true });
    assert.deepEqual(c.decode((await left.events.next('publication')).data), { again: true });
  });

  eachBuild(test, 'permission denied is 103, an unknown namespace 102', async (t, build) => {
    const c = await connect(t, build);
    for (const [topic, code] of [['locked:x', 103], ['$private', 103], ['nowhere:x', 102]]) {
      const sub = subscription(c, topic);
      sub.subscribe();
      assert.equal((await sub.events.next('unsubscribed')).code, code, topic);
    }
    const sub = await subscribed(c, 'read:x');
    await assert.rejects(sub.publish(c.encode({})), { code: 103 });
    await assert.rejects(c.publish('news', c.encode({})), { code: 103 }, 'not a subscriber');
    assert.equal(c.state, 'connected');
  });

  eachBuild(test, 'what is not there yet is 108', async (t, build) => {
    const c = await connect(t, build);
    const sub = await subscribed(c, 'plain');
    for (const call of [() => sub.history({ limit: 1 }), () => sub.presence(), () => sub.presenceStats(), () => c.rpc('echo', c.encode({}))]) {
      await assert.rejects(call(), { code: 108 });
    }
  });

  eachBuild(test, 'a subscription token opens its topic', async (t, build) => {
    const c = await connect(t, build);
    const tokens = new Tokens(({ channel }) => sign({ sub: 'alice', channel }, { ttl: 2 }));
    const sub = await subscribed(c, 'locked:mine', { getToken: tokens.get });
    await tokens.times(3); // two lives
    assert.equal(sub.state, 'subscribed');
    assert.equal(sub.events.count('subscribing'), 1, 'the subscription was kept');
    await perch.push('locked:mine', { n: 1 });
    assert.deepEqual(c.decode((await sub.events.next('publication')).data), { n: 1 });
  });

  eachBuild(test, 'a subscription token with a bad signature is 103', async (t, build) => {
    const c = await connect(t, build);
    const sub = subscription(c, 'locked:x', {
      token: sign({ sub: 'alice', channel: 'locked:x' }, { key: 'some other key, which is long enough too' }),
    });
    sub.subscribe();
    assert.equal((await sub.events.next('unsubscribed')).code, 103);
    assert.equal(c.state, 'connected');
  });

  eachBuild(test, 'an expired subscription token is asked for anew', async (t, build) => {
    const c = await connect(t, build);
    const sub = await subscribed(c, 'locked:x', {
      token: sign({ sub: 'alice', channel: 'locked:x' }, { ttl: -5 }),
      getToken: async () => sign({ sub: 'alice', channel: 'locked:x' }),
    });
    assert.equal(sub.events.seen.error[0].error.code, 109);
  });

  for (const [name, claims] of [['topic', { sub: 'alice', channel: 'locked:other' }], ['user', { sub: 'bob', channel: 'locked:x' }]]) {
    eachBuild(test, `a subscription token of another ${name} ends the session`, async (t, build) => {
      const c = await connect(t, build);
      subscription(c, 'locked:x', { token: sign(claims) }).subscribe();
      assert.equal((await c.events.next('disconnected')).code, 3500);
    });
  }

  eachBuild(test, 'the backend subscribes and unsubscribes a live session', async (t, build) => {
    const c = await connect(t, build, { sub: `erin-${build}` });
    await perch.api('subscribe', { user: `erin-${build}`, channel: 'locked:given' });
    assert.equal((await c.events.next('subscribed')).channel, 'locked:given');
    await perch.push('locked:given', { n: 1 });
    assert.deepEqual(c.decode((await c.events.next('publication')).data), { n: 1 });
    await perch.api('unsubscribe', { user: `erin-${build}`, channel: 'locked:given' });
    assert.equal((await c.events.next('unsubscribed')).channel, 'locked:given');
    const sub = await subscribed(c, 'own');
    await perch.api('unsubscribe', { client: c.welcome.client, channel: 'own' });
    assert.equal((await sub.events.next('unsubscribed')).code, 2000);
  });

  eachBuild(test, 'broadcast and batch', async (t, build) => {
    const c = await connect(t, build);
    const names = ['b1', 'b2', 'b3'].map((n) => `${n}-${build}`);
    const subs = [];
    for (const n of names) subs.push(await subscribed(c, n));
    const { responses } = await perch.api('broadcast', { channels: [...names, 'nowhere:x'], data: { n: 1 } });
    assert.deepEqual(responses.map((r) => r.error?.code), [undefined, undefined, undefined, 102]);
    const { replies } = await perch.api('batch', {
      commands: names.map((channel) => ({ publish: { channel, data: { n: 2 } } })),
    });
    assert.equal(replies.length, 3);
    for (const sub of subs) {
      for (const n of [1, 2]) assert.deepEqual(c.decode((await sub.events.next('publication')).data), { n });
    }
  });
});

suite('rpc', () => {
  const s = scope();
  let perch;
  before(async () => { perch = await Perch.start(s, { dev: true }); });

  eachBuild(test, 'echo and time answer in dev mode, unknown methods are 104', async (t, build) => {
    const c = await connected(t, build, perch.url, { token: sign({ sub: 'alice' }) });
    const calls = Array.from({ length: 50 }, (_, n) => c.rpc('echo', c.encode({ n })));
    for (const [n, { data }] of (await Promise.all(calls)).entries()) assert.deepEqual(c.decode(data), { n });
    const { data } = await c.rpc('time', c.encode({}));
    const text = JSON.stringify(c.decode(data));
    assert.ok(text.includes(String(new Date().getUTCFullYear())) || /\d{10}/.test(text), text);
    await assert.rejects(c.rpc('nothing', c.encode({})), { code: 104 });
  });
});
