'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { Line } = require('../lib/line');
const { connected, subscribed, expect, eachBuild } = require('../lib/sdk');

// document is a big value of which little changes from one n to the next.
function document(n, items = 400) {
  return {
    n,
    title: 'Straße ☃ \u{1F426}',
    items: Array.from({ length: items }, (_, i) => ({ id: i, name: `item number ${i}`, value: i === n % items ? n : 0 })),
  };
}
const documents = (from, to, items) => Array.from({ length: to - from }, (_, i) => document(from + i, items));
const size = (v) => Buffer.byteLength(JSON.stringify(v));

suite('deltas', () => {
  const s = scope();
  let perch;
  before(async () => {
    const open = { allow_subscribe_for_client: true, allow_publish_for_subscriber: true, allowed_delta_types: ['fossil'] };
    const kept = { history_size: 100, history_ttl: '60s', force_recovery: true };
    perch = await Perch.start(s, {
      topics: {
        namespaces: [
          { name: 'plain', ...open },
          { name: 'all', ...open, delta_publish: true },
          { name: 'kept', ...open, ...kept, delta_publish: true },
          { name: 'value', ...open, ...kept, history_size: 1, force_recovery_mode: 'cache', auto_cache_recover: true, delta_publish: true },
          { name: 'none', allow_subscribe_for_client: true },
        ],
      },
    });
  });
  const connect = async (t, build) => {
    const line = await Line.start(t, perch);
    return [await connected(t, build, line.url, { token: sign({ sub: 'alice' }) }), line];
  };
  const push = async (topic, values, more) => { for (const data of values) await perch.api('publish', { channel: topic, data, ...more }); };
  const counts = (sub) => {
    const { numFullPayloads, numDeltaPayloads } = sub.deltaStats();
    return [numFullPayloads, numDeltaPayloads];
  };

  // stay keeps a subscriber on a topic: without any, the first live publication
  // has nothing to be compared with.
  const stay = async (t, topic) => {
    const [c] = await connect(t, 'JSON');
    await subscribed(c, topic);
  };

  for (const [ns, more] of [['plain', { delta: true }], ['all', {}], ['kept', {}]]) {
    eachBuild(test, `many documents, few bytes (${ns})`, async (t, build) => {
      const [c, line] = await connect(t, build);
      const topic = `${ns}:bytes-${build}`;
      const sub = await subscribed(c, topic, { delta: 'fossil' });
      // Who does not ask gets the same documents whole.
      const [other, otherLine] = await connect(t, build);
      const whole = await subscribed(other, topic);
      const all = documents(0, 60);
      const before = [line.received, otherLine.received];
      await push(topic, all, more);
      await expect(c, sub, all);
      await expect(other, whole, all);
      const bytes = all.reduce((sum, v) => sum + size(v), 0);
      const [few, many] = [line.received - before[0], otherLine.received - before[1]];
      assert.ok(many >= bytes, `${many} bytes without deltas of ${bytes}`);
      // The first document is whole, the 59 others some hundred bytes each.
      assert.ok(few < size(all[0]) * 1.3 + 59 * 400, `${few} bytes with deltas instead of ${many}`);
      assert.ok(few * 10 < many, `${few} bytes with deltas instead of ${many}`);
      assert.deepEqual(counts(sub), [1, 59]);
    });
  }

  eachBuild(test, 'only where the publication is for it, and where it is shorter', async (t, build) => {
    const [c] = await connect(t, build);
    const topic = `plain:some-${build}`;
    const sub = await subscribed(c, topic, { delta: 'fossil' });
    const all = documents(0, 6);
    await push(topic, all.slice(0, 2), { delta: true });
    await push(topic, all.slice(2, 4));
    await push(topic, all.slice(4, 6), { delta: true });
    await push(topic, [{ short: 1 }, { other: 2 }], { delta: true });
    await expect(c, sub, [...all, { short: 1 }, { other: 2 }]);
    assert.deepEqual(counts(sub), [5, 3], 'whole: the first, those not for it, those that are not like the one before');
  });

  eachBuild(test, 'characters of more than one byte that change come whole or right', async (t, build) => {
    const [c] = await connect(t, build);
    const topic = `all:characters-${build}`;
    const sub = await subscribed(c, topic, { delta: 'fossil' });
    // Each two neighbours have a first byte in common: a patch may begin in the
    // middle of a character.
    const all = ['é', 'è', 'ê', '☃', '☂', '\u{1F426}', '\u{1F427}', 'e', '"', '\\', '\u2028', '\u0000', '<', '&'].map((ch, n) => (
      { n, text: `${'x'.repeat(300)}${ch}${'y'.repeat(300)}${ch}` }));
    await push(topic, all);
    await expect(c, sub, all);
    const [, deltas] = counts(sub);
    assert.ok(deltas > 5, `${deltas} deltas`);
  });

  eachBuild(test, 'clients publish too', async (t, build) => {
    const [c] = await connect(t, build);
    const sub = await subscribed(c, `all:clients-${build}`, { delta: 'fossil' });
    const all = documents(0, 5);
    for (const v of all) await sub.publish(c.encode(v));
    for (const p of await expect(c, sub, all)) assert.equal(p.info.client, c.welcome.client);
    assert.deepEqual(counts(sub), [1, 4]);
  });

  eachBuild(test, 'who comes later begins with a whole document', async (t, build) => {
    const topic = `kept:late-${build}`;
    const [early] = await connect(t, build);
    const first = await subscribed(early, topic, { delta: 'fossil' });
    await push(topic, documents(0, 3));
    const [late] = await connect(t, build);
    const second = await subscribed(late, topic, { delta: 'fossil' });
    await push(topic, documents(3, 6));
    await expect(early, first, documents(0, 6));
    await expect(late, second, documents(3, 6));
    assert.deepEqual([counts(first), counts(second)], [[1, 5], [1, 2]]);
    // Again, on the same connection.
    second.unsubscribe();
    await push(topic, documents(6, 8));
    second.subscribe();
    await second.events.next('subscribed', (e) => e.wasRecovering);
    await push(topic, documents(8, 9));
    await expect(late, second, documents(6, 9));
  });

  eachBuild(test, 'what was missed comes as deltas, and live ones follow it', async (t, build) => {
    const [c, line] = await connect(t, build);
    const small = (from, to) => documents(from, to, 40); // a recovery makes patches of 64 KiB at most
    const topic = `kept:missed-${build}`;
    await stay(t, topic);
    const sub = await subscribed(c, topic, { delta: 'fossil' });
    await push(topic, small(0, 2));
    await expect(c, sub, small(0, 2));
    const before = line.received;
    await line.without(c, () => push(topic, small(2, 22)));
    assert.equal((await sub.events.next('subscribed')).recovered, true);
    await push(topic, small(22, 25));
    await expect(c, sub, small(2, 25));
    const [bytes, one] = [line.received - before, size(small(0, 1)[0])];
    assert.ok(bytes < one * 10, `${bytes} bytes for 23 documents of ${one}`);
    assert.deepEqual(counts(sub), [2, 23], 'whole: the first of each connection');
  });

  eachBuild(test, 'a cached value is the base of what follows', async (t, build) => {
    const topic = `value:base-${build}`;
    await stay(t, topic);
    await push(topic, documents(0, 3));
    const [c] = await connect(t, build);
    const sub = await subscribed(c, topic, { delta: 'fossil' });
    await push(topic, documents(3, 6));
    await expect(c, sub, documents(2, 6));
    assert.deepEqual(counts(sub), [1, 3]);
  });

  eachBuild(test, 'a namespace that does not know them sends whole documents', async (t, build) => {
    const [c] = await connect(t, build);
    const topic = `none:x-${build}`;
    const sub = await subscribed(c, topic, { delta: 'fossil' });
    await push(topic, documents(0, 3), { delta: true });
    await expect(c, sub, documents(0, 3));
    assert.deepEqual(counts(sub), [0, 0]);
  });

  test('JSON and Protobuf at once', { timeout: 60_000 }, async (t) => {
    const builds = ['JSON', 'Protobuf', 'JSON', 'Protobuf'];
    const subs = [];
    for (const [i, build] of builds.entries()) {
      const [c] = await connect(t, build);
      subs.push([c, await subscribed(c, 'kept:mixed', i < 2 ? { delta: 'fossil' } : {})]);
    }
    await push('kept:mixed', documents(0, 10));
    for (const [c, sub] of subs) await expect(c, sub, documents(0, 10));
    assert.deepEqual(subs.map(([, sub]) => counts(sub)), [[1, 9], [1, 9], [0, 0], [0, 0]]);
  });
});
