'use strict';

// A real browser negotiates permessage-deflate by itself.

const assert = require('node:assert/strict');
const { after, before, suite, test } = require('node:test');
const { launch, options, timeout } = require('../lib/browser');
const { Perch, scope } = require('../lib/perch');

const answer = 'permessage-deflate; server_no_context_takeover; client_no_context_takeover';

let browser;

suite('compression in a browser', options, () => {
  const s = scope();
  let perch;
  before(async () => {
    browser = await launch();
    perch = await Perch.start(s, { echo: true, insecure: true, websocket: { compression: true } });
  });
  after(() => browser?.close());

  test('messages of all sizes come back as they were', { timeout }, async (t) => {
    const context = await browser.newContext();
    t.after(() => context.close());
    const page = await context.newPage();
    await page.goto(`http://${perch.public}/nowhere`);
    const got = await page.evaluate(() => new Promise((resolve) => {
      const socket = new WebSocket(`ws://${location.host}/echo`);
      const sent = [];
      for (let i = 0; i < 60; i++) sent.push(`${i} ${'naïve €uro 🙂 '.repeat((i * i * i) % 9973)}`);
      sent.push('');
      const back = [];
      socket.onopen = () => sent.forEach((m) => socket.send(m));
      socket.onmessage = (e) => {
        back.push(e.data);
        if (back.length < sent.length) return;
        resolve({ extensions: socket.extensions, same: back.every((m, i) => m === sent[i]) });
      };
      socket.onclose = (e) => resolve({ closed: e.code, reason: e.reason, after: back.length });
    }));
    assert.deepEqual(got, { extensions: answer, same: true });
  });
});
