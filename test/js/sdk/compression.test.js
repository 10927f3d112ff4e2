'use strict';

// ws inflates by zlib with just the window that was agreed on: a reference that
// goes further back is an error there.

const assert = require('node:assert/strict');
const { before, suite, test } = require('node:test');
const WebSocket = require('ws');
const { Perch, scope } = require('../lib/perch');

suite('compression with ws', () => {
  const s = scope();
  let perch;
  before(async () => {
    perch = await Perch.start(s, { echo: true, insecure: true, websocket: { compression: true } });
  });

  for (let bits = 8; bits <= 15; bits++) {
    test(`a window of ${bits} bits at the server`, { timeout: 20_000 }, async () => {
      const socket = new WebSocket(`ws://${perch.public}/echo`, {
        perMessageDeflate: { serverMaxWindowBits: bits, clientMaxWindowBits: true, threshold: 0 },
      });
      const sent = [];
      for (let i = 0; i < 20; i++) {
        let m = `${i}`;
        while (m.length < i * 4000) m += ` sensor-${Math.trunc(Math.random() * 3000)}`;
        sent.push(m);
      }
      const back = await new Promise((resolve, reject) => {
        const got = [];
        socket.on('open', () => sent.forEach((m) => socket.send(m)));
        socket.on('message', (data) => {
          got.push(data.toString());
          if (got.length === sent.length) resolve(got);
        });
        socket.on('error', reject);
        socket.on('close', (code) => reject(new Error(`closed with ${code}`)));
      });
      assert.match(socket.extensions, /permessage-deflate/);
      assert.ok(back.every((m, i) => m === sent[i]));
      socket.terminate();
    });
  }
});
