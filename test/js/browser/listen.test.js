'use strict';

// A plain WebSocket and a plain EventSource in a real browser, without any SDK.

const assert = require('node:assert/strict');
const { after, before, suite, test } = require('node:test');
const { launch, options, timeout } = require('../lib/browser');
const { Perch, scope, sign } = require('../lib/perch');

let browser;

// listener is a page of the server's own origin. What its scripts tell is awaited
// with next, in its order.
async function listener(t, perch) {
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  const told = [];
  let wake = () => {};
  await page.exposeFunction('tell', (what) => { told.push(what); wake(); });
  await page.goto(`http://${perch.public}/nowhere`);
  return {
    page,
    async next() {
      while (told.length === 0) await new Promise((resolve) => { wake = resolve; });
      return told.shift();
    },
  };
}

const token = (claims = {}) => sign({ sub: 'alice', channels: ['kept:a', 'news'], ...claims });

suite('listening without an SDK', options, () => {
  const s = scope();
  let perch;
  before(async () => {
    browser = await launch();
    perch = await Perch.start(s, {
      topics: { namespaces: [{ name: 'kept', history_size: 100, history_ttl: '1h', allow_recovery: true }] },
    });
  });
  after(() => browser?.close());

  test('a WebSocket hears pushes and why it ends', { timeout }, async (t) => {
    const l = await listener(t, perch);
    await l.page.evaluate((bearer) => {
      const socket = new WebSocket(`ws://${location.host}/connection/uni_websocket`, [bearer]);
      socket.onmessage = (e) => window.tell(JSON.parse(e.data));
      socket.onclose = (e) => window.tell({ closed: e.code, reason: e.reason });
    }, `bearer.${token()}`);
    const hello = await l.next();
    assert.deepEqual(Object.keys(hello.connect.subs).sort(), ['kept:a', 'news']);
    await perch.push('news', { text: 'line\nline', spread: [1, 2] });
    assert.deepEqual(await l.next(), { channel: 'news', pub: { data: { text: 'line\nline', spread: [1, 2] } } });
    await perch.api('disconnect', { user: 'alice', client: hello.connect.client });
    assert.deepEqual(await l.next(), { closed: 3503, reason: 'force disconnect' });
  });

  test('a WebSocket names itself by its first message', { timeout }, async (t) => {
    const l = await listener(t, perch);
    const open = (first) => l.page.evaluate((message) => {
      const socket = new WebSocket(`ws://${location.host}/connection/uni_websocket`);
      socket.onopen = () => socket.send(message);
      socket.onmessage = (e) => { window.tell(JSON.parse(e.data)); };
      socket.onclose = (e) => window.tell({ closed: e.code });
    }, JSON.stringify(first));
    await open({ token: token() });
    assert.ok((await l.next()).connect.client);
    await open({ token: sign({ sub: 'alice' }, { ttl: -60 }) });
    assert.deepEqual(await l.next(), { closed: 3005 });
    await open({ token: 'x.y.z' });
    assert.deepEqual(await l.next(), { closed: 3500 });
  });

  test('an EventSource comes back for what it missed', { timeout }, async (t) => {
    const l = await listener(t, perch);
    await l.page.evaluate((bearer) => {
      const source = new EventSource(`/connection/uni_sse?token=${bearer}`);
      source.onmessage = (e) => window.tell(JSON.parse(e.data));
    }, token({ sub: 'bob' }));
    const hello = await l.next();
    assert.equal(hello.connect.subs['kept:a'].recoverable, true);
    await perch.push('kept:a', 'first');
    assert.equal((await l.next()).pub.data, 'first');
    const from = hello.connect.subs['kept:a'].offset ?? 0;

    await perch.api('disconnect', { user: 'bob', disconnect: { code: 3011, reason: 'force reconnect' } });
    assert.deepEqual(await l.next(), { disconnect: { code: 3011, reason: 'force reconnect' } });
    await perch.push('kept:a', 'second');
    await perch.push('news', 'for those who are there');
    await perch.push('kept:a', 'third');

    const again = (await l.next()).connect;
    assert.notEqual(again.client, hello.connect.client);
    const sub = again.subs['kept:a'];
    assert.equal(sub.recovered, true);
    assert.deepEqual(sub.publications, [{ data: 'second', offset: from + 2 }, { data: 'third', offset: from + 3 }]);
    await perch.push('kept:a', 'fourth');
    assert.deepEqual(await l.next(), { channel: 'kept:a', pub: { data: 'fourth', offset: from + 4 } });
  });

  test('an EventSource is refused for good', { timeout }, async (t) => {
    const l = await listener(t, perch);
    await l.page.evaluate(() => {
      const source = new EventSource('/connection/uni_sse?token=x.y.z');
      source.onerror = () => window.tell({ state: source.readyState });
    });
    assert.deepEqual(await l.next(), { state: 2 });
  });

  test('fetch reads the stream with the token in a header', { timeout }, async (t) => {
    const l = await listener(t, perch);
    await l.page.evaluate(async (bearer) => {
      const r = await fetch('/connection/uni_sse', { headers: { Authorization: `Bearer ${bearer}` } });
      const { value } = await r.body.getReader().read();
      window.tell({ status: r.status, type: r.headers.get('Content-Type'), text: new TextDecoder().decode(value) });
      const refused = await fetch('/connection/uni_sse', { headers: { Authorization: 'Bearer x' } });
      window.tell({ status: refused.status, body: await refused.json() });
    }, token());
    const got = await l.next();
    assert.equal(got.status, 200);
    assert.equal(got.type, 'text/event-stream');
    assert.match(got.text, /^retry: \d+\n\nid: \S+\ndata: {"connect":{.*}}\n\n$/);
    assert.deepEqual(await l.next(), { status: 401, body: { error: 'unauthorized', error_description: 'invalid token' } });
  });
});
