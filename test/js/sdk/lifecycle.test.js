'use strict';

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const { Perch, scope, sign } = require('../lib/perch');
const { connected, subscribed, open, sleep, eachBuild } = require('../lib/sdk');

suite('the end of a session', () => {
  const s = scope();
  let perch;
  before(async () => { perch = await Perch.start(s); });

  eachBuild(test, 'the backend disconnects a user for good', async (t, build) => {
    const user = `gone-${build}`;
    const c = await connected(t, build, perch.url, { token: sign({ sub: user }) });
    await perch.api('disconnect', { user });
    const { code, reason } = await c.events.next('disconnected');
    assert.deepEqual([code, reason], [3503, 'force disconnect']);
    await sleep(700); // longer than the longest pause before a reconnect
    assert.equal(c.state, 'disconnected');
  });

  eachBuild(test, 'a code of the backend tells whether to come back', async (t, build) => {
    const user = `told-${build}`;
    const c = await connected(t, build, perch.url, { token: sign({ sub: user }) });
    const sub = await subscribed(c, `kept-${build}`);
    await perch.api('disconnect', { user, disconnect: { code: 4001, reason: 'come again' } });
    const again = await c.events.next('connecting', (e) => e.code === 4001);
    assert.equal(again.reason, 'come again');
    const second = await c.events.next('connected');
    assert.notEqual(second.client, c.welcome.client);
    await sub.events.next('subscribed');
    await perch.push(`kept-${build}`, { n: 1 });
    assert.deepEqual(c.decode((await sub.events.next('publication')).data), { n: 1 });

    await perch.api('disconnect', { client: second.client, disconnect: { code: 4501, reason: 'stay away' } });
    const end = await c.events.next('disconnected');
    assert.deepEqual([end.code, end.reason], [4501, 'stay away']);
  });

  eachBuild(test, 'the backend lets a session expire and come back', async (t, build) => {
    const user = `old-${build}`;
    const c = await connected(t, build, perch.url, { token: sign({ sub: user }) });
    await perch.api('refresh', { user, expired: true });
    await c.events.next('connecting', (e) => e.code === 3005);
    await c.events.next('connected');
  });

  test('a session that nobody refreshes is closed with 3005, after a time of grace', { timeout: 60_000 }, async (t) => {
    // The SDK would leave by itself when its token's time is over.
    const ws = open(t, perch.url);
    await ws.events.next('open');
    ws.on('message', (m) => { if (String(m) === '{}') ws.send('{}'); });
    ws.send(JSON.stringify({ id: 1, connect: { token: sign({ sub: 'late' }, { ttl: 2 }) } }));
    const { connect } = JSON.parse(await ws.events.next('message'));
    assert.equal(connect.expires, true);
    assert.ok(connect.ttl === 1 || connect.ttl === 2, `ttl ${connect.ttl}`);
    assert.deepEqual(await ws.events.next('close', () => true, 40_000), { code: 3005, reason: 'connection expired' });
  });

  test('garbage is a bad request, and only for who sent it', { timeout: 60_000 }, async (t) => {
    const c = await connected(t, 'JSON', perch.url, { token: sign({ sub: 'bystander' }) });
    const ws = open(t, perch.url);
    await ws.events.next('open');
    ws.send('{"id":1,');
    assert.deepEqual(await ws.events.next('close'), { code: 3501, reason: 'bad request' });
    await subscribed(c, 'still-here');
  });
});

suite('restart', () => {
  eachBuild(test, 'clients come back to a restarted server', async (t, build) => {
    const perch = await Perch.start(t);
    const c = await connected(t, build, perch.url, { token: sign({ sub: 'alice' }) });
    const sub = await subscribed(c, 'news');
    assert.equal(await perch.stop(), 0);
    const { code, reason } = await c.events.next('connecting', (e) => e.code > 1);
    assert.deepEqual([code, reason], [3001, 'shutdown']);
    await perch.run();
    await c.events.next('connected');
    await sub.events.next('subscribed');
    await perch.push('news', { n: 1 });
    assert.deepEqual(c.decode((await sub.events.next('publication')).data), { n: 1 });
  });
});
