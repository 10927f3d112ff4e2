'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { Line } = require('../lib/line');
const { connected, subscribed, expect, eachBuild } = require('../lib/sdk');

const read = { allow_subscribe_for_client: true };
const kept = { ...read, history_size: 100, history_ttl: '60s' };
const range = (from, to) => Array.from({ length: to - from }, (_, i) => ({ n: from + i }));

suite('recovery', () => {
  const s = scope();
  let perch;
  before(async () => {
    perch = await Perch.start(s, {
      topics: {
        recovery_limit: 20,
        namespaces: [
          { name: 'all', ...kept, force_recovery: true },
          { name: 'short', ...kept, history_size: 3, force_recovery: true },
          { name: 'brief', ...kept, history_ttl: '1s', force_recovery: true },
          { name: 'asked', ...kept, allow_recovery: true, allow_positioning: true },
          { name: 'value', ...kept, history_size: 1, force_recovery: true, force_recovery_mode: 'cache' },
          { name: 'auto', ...kept, history_size: 1, force_recovery: true, force_recovery_mode: 'cache', auto_cache_recover: true },
        ],
      },
    });
  });

  const connect = async (t, build, options) => {
    const line = await Line.start(t, perch);
    const c = await connected(t, build, line.url, { token: sign({ sub: 'alice' }), ...options });
    return [c, line];
  };
  const push = async (topic, values) => { for (const v of values) await perch.push(topic, v); };

  eachBuild(test, 'after a cut the missed publications come, once and in order', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `all:missed-${build}`;
    const sub = await subscribed(c, topic);
    assert.deepEqual([sub.welcome.recoverable, sub.welcome.positioned, sub.welcome.wasRecovering], [true, true, false]);
    await push(topic, range(0, 3));
    await expect(c, sub, range(0, 3));

    await line.without(c, () => push(topic, range(3, 8)));
    const again = await sub.events.next('subscribed');
    assert.deepEqual([again.wasRecovering, again.recovered, again.hasRecoveredPublications], [true, true, true]);
    assert.equal(again.streamPosition.epoch, sub.welcome.streamPosition.epoch);
    await push(topic, [{ n: 8 }]);
    const pubs = await expect(c, sub, range(3, 9));
    assert.deepEqual(pubs.map((p) => p.offset), [4, 5, 6, 7, 8, 9]);

    // Nothing was missed: recovered, with nothing.
    await line.without(c, async () => {});
    const third = await sub.events.next('subscribed');
    assert.deepEqual([third.recovered, third.hasRecoveredPublications], [true, false]);
    await push(topic, [{ n: 9 }]);
    await expect(c, sub, [{ n: 9 }]);
  });

  eachBuild(test, 'what is published while the client comes back has its place', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `all:live-${build}`;
    const sub = await subscribed(c, topic);
    let live;
    for (let from = 0; from < 45; from += 15) {
      await line.without(c, async () => {
        await push(topic, range(from, from + 5));
        live = push(topic, range(from + 5, from + 15));
      });
      assert.equal((await sub.events.next('subscribed')).recovered, true);
      await live;
      await expect(c, sub, range(from, from + 15));
    }
  });

  eachBuild(test, 'a history that is too short is said', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `short:missed-${build}`;
    const sub = await subscribed(c, topic);
    await push(topic, range(0, 1));
    await expect(c, sub, range(0, 1));

    await line.without(c, () => push(topic, range(1, 4)));
    assert.equal((await sub.events.next('subscribed')).recovered, true, 'three missed, three kept');
    await expect(c, sub, range(1, 4));

    await line.without(c, () => push(topic, range(4, 8)));
    const again = await sub.events.next('subscribed');
    assert.deepEqual([again.wasRecovering, again.recovered, again.hasRecoveredPublications], [true, false, false]);
    assert.equal(again.streamPosition.offset, 8);
    await push(topic, [{ n: 8 }]);
    assert.equal((await expect(c, sub, [{ n: 8 }]))[0].offset, 9, 'goes on from the position that was told');
  });

  eachBuild(test, 'so are more publications than one recovery brings, and a history that was removed', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `all:many-${build}`;
    const sub = await subscribed(c, topic);
    await line.without(c, () => push(topic, range(0, 20)));
    assert.equal((await sub.events.next('subscribed')).recovered, true);
    await expect(c, sub, range(0, 20));

    await line.without(c, () => push(topic, range(20, 41)));
    assert.equal((await sub.events.next('subscribed')).recovered, false, '21 missed, 20 at most');

    await line.without(c, async () => {
      await push(topic, [{ n: 41 }]);
      await perch.api('history_remove', { channel: topic });
    });
    const again = await sub.events.next('subscribed');
    assert.deepEqual([again.recovered, again.streamPosition.offset], [false, 42]);
    await push(topic, [{ n: 42 }]);
    await expect(c, sub, [{ n: 42 }]);
  });

  eachBuild(test, 'and a history that is over, unless nothing was missed of it', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `brief:over-${build}`;
    const over = async () => { while ((await perch.api('history', { channel: topic, limit: 1 })).publications.length > 0); };
    const sub = await subscribed(c, topic);
    await push(topic, range(0, 1));
    await expect(c, sub, range(0, 1));
    await line.without(c, over);
    assert.equal((await sub.events.next('subscribed')).recovered, true);
    await line.without(c, async () => { await push(topic, range(1, 2)); await over(); });
    const again = await sub.events.next('subscribed');
    assert.deepEqual([again.recovered, again.streamPosition], [false, { offset: 2, epoch: sub.welcome.streamPosition.epoch }]);
    await push(topic, range(2, 3));
    await expect(c, sub, range(2, 3));
  });

  eachBuild(test, 'a client that loads its state by itself does so where it can not recover', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `short:state-${build}`;
    const states = [];
    // The SDK asks for error 112 instead of a subscription, and then for the state.
    const sub = await subscribed(c, topic, {
      minResubscribeDelay: 1,
      getState: async () => {
        const { offset, epoch } = await perch.api('history', { channel: topic, limit: 0 });
        states.push(offset);
        return { offset, epoch };
      },
    });
    await push(topic, range(0, 1));
    await expect(c, sub, range(0, 1));
    await line.without(c, () => push(topic, range(1, 9)));
    assert.equal((await sub.events.next('subscribed')).recovered, true);
    assert.deepEqual(states, [0, 9]);
    await push(topic, [{ n: 9 }]);
    await expect(c, sub, [{ n: 9 }]);
  });

  eachBuild(test, 'where it is allowed, it is for who asks', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `asked:for-${build}`;
    const recoverable = await subscribed(c, topic, { recoverable: true });
    assert.deepEqual([recoverable.welcome.recoverable, recoverable.welcome.positioned], [true, true]);
    const [other, otherLine] = await connect(t, build);
    const plain = await subscribed(other, topic);
    assert.deepEqual([plain.welcome.recoverable, plain.welcome.positioned], [false, false]);
    await otherLine.without(other, () => line.without(c, () => push(topic, range(0, 2))));
    assert.equal((await recoverable.events.next('subscribed')).recovered, true);
    assert.equal((await plain.events.next('subscribed')).wasRecovering, false);
    await push(topic, [{ n: 2 }]);
    await expect(c, recoverable, range(0, 3));
    await expect(other, plain, range(2, 3));
  });

  eachBuild(test, 'a positioned subscription knows its place, and recovers nothing', async (t, build) => {
    const [c, line] = await connect(t, build);
    const topic = `asked:place-${build}`;
    await push(topic, range(0, 2));
    const sub = await subscribed(c, topic, { positioned: true });
    assert.deepEqual([sub.welcome.positioned, sub.welcome.recoverable], [true, false]);
    assert.equal(sub.welcome.streamPosition.offset, 2);
    assert.ok(sub.welcome.streamPosition.epoch);
    await line.without(c, () => push(topic, range(2, 3)));
    const again = await sub.events.next('subscribed');
    assert.deepEqual([again.positioned, again.wasRecovering, again.streamPosition.offset], [true, false, 3]);
    await push(topic, range(3, 4));
    await expect(c, sub, range(3, 4));
  });

  eachBuild(test, 'a position of an earlier run is asked for by hand', async (t, build) => {
    const [c] = await connect(t, build);
    const topic = `all:since-${build}`;
    await push(topic, range(0, 4));
    const { epoch } = await perch.api('history', { channel: topic });
    const sub = await subscribed(c, topic, { since: { offset: 2, epoch } });
    assert.deepEqual([sub.welcome.wasRecovering, sub.welcome.recovered], [true, true]);
    await expect(c, sub, range(2, 4));
    sub.unsubscribe();
    c.removeSubscription(sub);

    const wrong = await subscribed(c, topic, { since: { offset: 2, epoch: 'another' } });
    assert.deepEqual([wrong.welcome.wasRecovering, wrong.welcome.recovered], [true, false]);
    assert.deepEqual(wrong.welcome.streamPosition, { offset: 4, epoch });
    await push(topic, range(4, 5));
    await expect(c, wrong, range(4, 5));
  });

  eachBuild(test, 'a cached topic hands its value to who asks for it', async (t, build) => {
    const topic = `value:asked-${build}`;
    const since = { offset: 0, epoch: '' };
    const [early, line] = await connect(t, build);
    const first = await subscribed(early, topic, { since });
    assert.deepEqual([first.welcome.wasRecovering, first.welcome.recovered], [true, false], 'there is none yet');
    await push(topic, range(0, 3));
    await expect(early, first, range(0, 3));

    const [late] = await connect(t, build);
    const second = await subscribed(late, topic, { since });
    assert.equal(second.welcome.recovered, true);
    await expect(late, second, range(2, 3));
    // Not for who does not ask.
    const [other] = await connect(t, build);
    const third = await subscribed(other, topic);
    assert.deepEqual([third.welcome.wasRecovering, third.welcome.hasRecoveredPublications], [false, false]);

    // However many were missed, the last one is the state.
    await line.without(early, () => push(topic, range(3, 30)));
    assert.equal((await first.events.next('subscribed')).recovered, true);
    await expect(early, first, range(29, 30));
    await line.without(early, async () => {});
    const same = await first.events.next('subscribed');
    assert.deepEqual([same.recovered, same.hasRecoveredPublications], [true, false], 'it has the value already');
    await push(topic, range(30, 31));
    await expect(early, first, range(30, 31));
    await expect(late, second, range(3, 31));
    await expect(other, third, range(3, 31));
  });

  eachBuild(test, 'auto_cache_recover hands it to everybody', async (t, build) => {
    const topic = `auto:all-${build}`;
    await push(topic, range(0, 3));
    const [c, line] = await connect(t, build);
    const sub = await subscribed(c, topic);
    assert.equal(sub.welcome.recovered, true);
    await expect(c, sub, range(2, 3));
    await line.without(c, () => push(topic, range(3, 5)));
    assert.equal((await sub.events.next('subscribed')).recovered, true);
    await push(topic, range(5, 6));
    await expect(c, sub, range(4, 6));
  });

  eachBuild(test, 'a restarted server has another epoch', async (t, build) => {
    const own = await Perch.start(t, { topics: { namespaces: [{ name: 'all', ...kept, force_recovery: true }] } });
    const c = await connected(t, build, own.url, { token: sign({ sub: 'alice' }) });
    const sub = await subscribed(c, 'all:x');
    await own.push('all:x', { n: 0 });
    await expect(c, sub, range(0, 1));
    assert.equal(await own.stop(), 0);
    await own.run();
    const again = await sub.events.next('subscribed');
    assert.deepEqual([again.wasRecovering, again.recovered, again.streamPosition.offset], [true, false, 0]);
    assert.notEqual(again.streamPosition.epoch, sub.welcome.streamPosition.epoch);
    await own.push('all:x', { n: 1 });
    await expect(c, sub, range(1, 2));
  });
});
