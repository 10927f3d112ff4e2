'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { Line } = require('../lib/line');
const { connected, subscribed, expect, eachBuild } = require('../lib/sdk');

const read = { allow_subscribe_for_client: true };
const kept = { ...read, history_size: 20, history_ttl: '60s' };
const range = (from, to) => Array.from({ length: to - from }, (_, i) => ({ n: from + i }));

suite('history', () => {
  const s = scope();
  let perch;
  before(async () => {
    perch = await Perch.start(s, {
      topics: {
        history_limit: 15,
        namespaces: [
          { name: 'sub', ...kept, allow_history_for_subscriber: true, allow_publish_for_subscriber: true },
          { name: 'open', ...kept, allow_history_for_client: true },
          { name: 'secret', ...kept },
          { name: 'back', ...kept, allow_history_for_subscriber: true, force_recovery: true },
        ],
      },
    });
  });
  const connect = (t, build) => connected(t, build, perch.url, { token: sign({ sub: 'alice', info: { name: 'Alice' } }) });
  const push = async (topic, values) => { for (const v of values) await perch.push(topic, v); };
  const values = (c, { publications }) => publications.map((p) => c.decode(p.data).n);

  eachBuild(test, 'is read by limit, from a position, and backwards', async (t, build) => {
    const c = await connect(t, build);
    const topic = `sub:read-${build}`;
    const sub = await subscribed(c, topic);
    const empty = await sub.history({ limit: -1 });
    assert.deepEqual([empty.publications, empty.offset], [[], 0]);
    await push(topic, range(1, 11)); // offset n has { n }
    const { publications, offset, epoch } = await sub.history();
    assert.deepEqual([publications, offset, epoch], [[], 10, empty.epoch], 'no limit: the position alone');
    const at = (n) => ({ offset: n, epoch });
    const all = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    for (const [name, options, want] of [
      ['none', { limit: 0 }, []],
      ['some', { limit: 3 }, [1, 2, 3]],
      ['all', { limit: -1 }, all],
      ['more than there are', { limit: 14 }, all],
      ['from a position', { limit: -1, since: at(7) }, [8, 9, 10]],
      ['some from a position', { limit: 2, since: at(7) }, [8, 9]],
      ['from the beginning', { limit: -1, since: { offset: 0, epoch: '' } }, all],
      ['from the end', { limit: -1, since: at(10) }, []],
      ['backwards', { limit: -1, reverse: true }, [...all].reverse()],
      ['some backwards', { limit: 3, reverse: true }, [10, 9, 8]],
      ['backwards from a position', { limit: -1, since: at(4), reverse: true }, [3, 2, 1]],
      ['some backwards from a position', { limit: 2, since: at(4), reverse: true }, [3, 2]],
    ]) {
      const got = await sub.history(options);
      assert.deepEqual(values(c, got), want, name);
      assert.deepEqual(got.publications.map((p) => p.offset), want, `${name}: offsets`);
      assert.deepEqual([got.offset, got.epoch], [10, epoch], `${name}: position`);
    }
    await assert.rejects(sub.history({ limit: 1, since: { offset: 4, epoch: 'another' } }), { code: 112 });
    await assert.rejects(sub.history({ limit: 1, since: { offset: 0, epoch }, reverse: true }), { code: 107 });
    assert.equal(c.state, 'connected');
  });

  eachBuild(test, 'keeps its size, and answers with the limit of the server at most', async (t, build) => {
    const c = await connect(t, build);
    const topic = `sub:size-${build}`;
    const sub = await subscribed(c, topic);
    await push(topic, range(1, 31));
    assert.deepEqual(values(c, await sub.history({ limit: -1 })), range(11, 26).map((v) => v.n), 'the oldest 15 of 20');
    assert.deepEqual(values(c, await sub.history({ limit: 100, reverse: true })), range(16, 31).map((v) => v.n).reverse());
    assert.deepEqual(values(c, await sub.history({ limit: 2, since: { offset: 3, epoch: '' } })), [11, 12]);
  });

  eachBuild(test, 'has who published, and the tags', async (t, build) => {
    const c = await connect(t, build);
    const topic = `sub:info-${build}`;
    const sub = await subscribed(c, topic);
    await sub.publish(c.encode({ n: 1 }));
    await perch.api('publish', { channel: topic, data: { n: 2 }, tags: { kind: 'test', 'ключ': '☃' } });
    const live = await expect(c, sub, range(1, 3));
    const { publications } = await sub.history({ limit: -1 });
    for (const [mine, theirs] of [live, publications]) {
      assert.deepEqual([mine.info.user, mine.info.client, c.decode(mine.info.connInfo)], ['alice', c.welcome.client, { name: 'Alice' }]);
      assert.deepEqual([Object.keys(mine.tags ?? {}), mine.offset], [[], 1]);
      assert.equal(theirs.info, undefined);
      assert.deepEqual([{ ...theirs.tags }, theirs.offset], [{ kind: 'test', 'ключ': '☃' }, 2]);
    }
    const api = await perch.api('history', { channel: topic, limit: -1 });
    assert.deepEqual(api.publications.map((p) => [p.data, p.offset, p.info?.user, p.tags?.kind]),
      [[{ n: 1 }, 1, 'alice', undefined], [{ n: 2 }, 2, undefined, 'test']]);
  });

  eachBuild(test, 'is for whom the namespace lets', async (t, build) => {
    const c = await connect(t, build);
    const history = (topic) => c.history(topic, { limit: 1 });
    await assert.rejects(history(`sub:other-${build}`), { code: 103 }, 'not a subscriber');
    assert.deepEqual((await history(`open:other-${build}`)).publications, []);
    const sub = await subscribed(c, `secret:x-${build}`);
    await assert.rejects(sub.history({ limit: 1 }), { code: 103 });
    await assert.rejects(history('nowhere:x'), { code: 102 });
    await assert.rejects(perch.api('history', { channel: 'plain' }), /"code":108/);
  });

  eachBuild(test, 'is removed by the backend; offsets go on', async (t, build) => {
    const c = await connect(t, build);
    const topic = `sub:removed-${build}`;
    const sub = await subscribed(c, topic);
    await push(topic, range(1, 4));
    const { epoch } = await sub.history();
    await perch.api('history_remove', { channel: topic });
    const got = await sub.history({ limit: -1 });
    assert.deepEqual([got.publications, got.offset, got.epoch], [[], 3, epoch]);
    await push(topic, range(4, 5));
    assert.deepEqual(values(c, await sub.history({ limit: -1 })), [4]);
    assert.deepEqual((await expect(c, sub, range(1, 5)))[3].offset, 4);
  });

  eachBuild(test, 'skip_history reaches who is there, and is kept nowhere', async (t, build) => {
    const line = await Line.start(t, perch);
    const c = await connected(t, build, line.url, { token: sign({ sub: 'alice' }) });
    const topic = `back:skip-${build}`;
    const sub = await subscribed(c, topic);
    const skip = (n) => perch.api('publish', { channel: topic, data: { n }, skip_history: true });
    await push(topic, range(1, 2));
    assert.deepEqual(await skip(2), {});
    await push(topic, range(3, 4));
    const live = await expect(c, sub, range(1, 4));
    assert.deepEqual(live.map((p) => p.offset ?? 0), [1, 0, 2]);
    await line.without(c, async () => { await push(topic, range(4, 5)); await skip(5); await push(topic, range(6, 7)); });
    assert.equal((await sub.events.next('subscribed')).recovered, true);
    assert.deepEqual((await expect(c, sub, [{ n: 4 }, { n: 6 }])).map((p) => p.offset), [3, 4]);
    assert.deepEqual(values(c, await sub.history({ limit: -1 })), [1, 3, 4, 6]);
  });

  eachBuild(test, 'an idempotency key makes a publication once', async (t, build) => {
    const c = await connect(t, build);
    const names = [`sub:once-${build}`, `sub:twice-${build}`];
    const subs = [];
    for (const name of names) subs.push(await subscribed(c, name));
    const publish = (n, idempotency_key) => perch.api('publish', { channel: names[0], data: { n }, idempotency_key });
    const first = await publish(1, 'a');
    assert.deepEqual([first.offset, first.epoch], [1, (await subs[0].history()).epoch]);
    assert.deepEqual(await publish(2, 'a'), first, 'answered as the first was');
    assert.equal((await publish(3, 'b')).offset, 2);
    // Keys are of a topic: here the first is known to one of two.
    const { responses } = await perch.api('broadcast', { channels: names, data: { n: 4 }, idempotency_key: 'a' });
    assert.deepEqual(responses.map((r) => r.result.offset), [1, 1]);
    await perch.api('broadcast', { channels: names, data: { n: 5 } });
    await expect(c, subs[0], [{ n: 1 }, { n: 3 }, { n: 5 }]);
    await expect(c, subs[1], [{ n: 4 }, { n: 5 }]);
    assert.deepEqual(values(c, await subs[0].history({ limit: -1 })), [1, 3, 5]);
  });

  eachBuild(test, 'a version keeps an older state from taking the place of a newer one', async (t, build) => {
    const c = await connect(t, build);
    const topic = `sub:version-${build}`;
    const sub = await subscribed(c, topic);
    const publish = async (n, version, version_epoch) => (await perch.api('publish', { channel: topic, data: { n }, version, version_epoch })).offset;
    assert.equal(await publish(1, 5, 'x'), 1);
    assert.equal(await publish(2, 4, 'x'), 1, 'older');
    assert.equal(await publish(3, 5, 'x'), 1, 'the same');
    assert.equal(await publish(4, 4), 1, 'of no epoch: compared with what is there');
    assert.equal(await publish(5, 6, 'x'), 2);
    assert.equal(await publish(6, 1, 'y'), 3, 'of another epoch');
    assert.equal(await publish(7), 4, 'of no version');
    await expect(c, sub, [{ n: 1 }, { n: 5 }, { n: 6 }, { n: 7 }]);
    await assert.rejects(perch.api('publish', { channel: 'plain', data: 1, version: 1 }), /"code":108/);
  });

  eachBuild(test, 'a batch in order is one history', async (t, build) => {
    const c = await connect(t, build);
    const topic = `sub:batch-${build}`;
    const sub = await subscribed(c, topic);
    const { replies } = await perch.api('batch', {
      commands: [
        ...range(1, 6).map((data) => ({ publish: { channel: topic, data } })),
        { history: { channel: topic, limit: 2, reverse: true } },
      ],
    });
    assert.deepEqual(replies.slice(0, 5).map((r) => r.publish.offset), [1, 2, 3, 4, 5]);
    assert.deepEqual(replies[5].history.publications.map((p) => p.data.n), [5, 4]);
    await expect(c, sub, range(1, 6));
  });
});
