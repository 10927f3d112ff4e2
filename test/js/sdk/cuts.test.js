'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { Line } = require('../lib/line');
const { connected, subscribed, eachBuild } = require('../lib/sdk');

const cuts = 30;
const publishers = 2;
const burst = 10; // publications of each topic in one call of a publisher

// random is a generator of integers below n, the same in each run.
function random(seed) {
  let x = seed;
  return (n) => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return Math.floor(x / 2 ** 32 * n);
  };
}

suite('cuts', () => {
  const s = scope();
  let perch;
  before(async () => {
    const kept = { allow_subscribe_for_client: true, history_size: 50_000, history_ttl: '60s', force_recovery: true };
    perch = await Perch.start(s, {
      topics: {
        history_limit: 50_000,
        recovery_limit: 50_000,
        history_topic_bytes: 64 << 20,
        namespaces: [
          { name: 'all', ...kept }, { name: 'server', ...kept },
          { name: 'delta', ...kept, allowed_delta_types: ['fossil'], delta_publish: true },
        ],
      },
    });
  });

  eachBuild(test, 'over a line that is cut at any byte each publication comes once, in order', async (t, build) => {
    const below = random(build.length);
    const line = await Line.start(t, perch);
    const names = ['delta', 'all', 'server'].map((ns) => `${ns}:cuts-${build}`);
    const c = await connected(t, build, line.url, {
      token: sign({ sub: 'alice', channels: [names[2]] }), minReconnectDelay: 1, maxReconnectDelay: 10,
    });
    // The loop is a while at the patches of the first, so that the second is
    // published to while it waits for its recovery.
    const subs = [await subscribed(c, names[0], { delta: 'fossil' }), await subscribed(c, names[1])];
    assert.equal(c.events.seen.subscribed[0].recoverable, true);
    // Others stay on the topics, on each loop: so publications are on their way to
    // the loop while the client recovers there, and are in the history already.
    for (let i = 0; i < 8; i++) {
      const other = await connected(t, build, perch.url, { token: sign({ sub: 'bob', channels: [names[2]] }) });
      for (const name of names.slice(0, 2)) await subscribed(other, name);
    }

    let n = 0;
    let going = true;
    const publish = async () => {
      while (going) {
        await perch.api('batch', {
          commands: Array.from({ length: burst }, () => ({ broadcast: { channels: names, data: { n: n++, text: 'x'.repeat(300) } } })),
        });
      }
    };
    const all = Array.from({ length: publishers }, publish);
    let back = Promise.resolve();
    for (let i = 0; i < cuts; i++) {
      // Every other cut meets the client when it is back, those between while it
      // comes back: in the handshake, the connect reply, the recovery.
      if (i % 2 === 0) await back;
      await line.cutAfter(1 + below(4000));
      back = new Promise((resolve) => { subs[1].once('subscribed', resolve); });
    }
    await back;
    going = false;
    await Promise.all(all);

    for (const [i, source] of [...subs, c].entries()) {
      const { publications } = await perch.api('history', { channel: names[i], limit: -1 });
      assert.equal(publications.length, n);
      for (const want of publications) {
        const p = await source.events.next('publication');
        assert.deepEqual([p.offset, c.decode(p.data).n], [want.offset, want.data.n], names[i]);
      }
      assert.equal(source.events.count('publication'), 0);
      const again = i < 2 ? source.events.seen.subscribed : source.events.seen.subscribed.slice(1);
      assert.ok(again.length >= cuts / 4 && again.length <= cuts, `${names[i]}: subscribed ${again.length} times again`);
      for (const e of again) assert.deepEqual([e.wasRecovering, e.recovered], [true, true], names[i]);
    }
    assert.ok(subs[0].deltaStats().numDeltaPayloads > n / 10, 'deltas');
  });
});
