'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { before, suite, test } = require('node:test');
const { Perch, scope } = require('../lib/perch');
const { client, connected, subscribed, eachBuild } = require('../lib/sdk');

// htpasswd -nbBC 10 x sensor-secret | cut -d: -f2
const hash = '$2a$10$rFAgyBYUFFUgS00OApwf9OQiGc3TP3ccmK408sobUfIYDwcGsMWzS';
const device = { client_id: 'sensor-7', client_secret: 'sensor-secret' };

suite('tokens over HTTP', () => {
  const s = scope();
  let perch;
  before(async () => {
    perch = await Perch.start(s, {
      auth: {
        hmac_secret: '', // the server makes a key of its own
        token_ttl: '2s',
        clients: [
          { id: device.client_id, secret_hash: hash, channels: ['locked:commands'] },
          { id: 'gateway', secret_hash: hash, any_user: true, token_ttl: '1h' },
        ],
      },
    });
  });
  const token = (form) => perch.post('/v1/token', form);

  eachBuild(test, 'a device gets a token and what is pushed to it', async (t, build) => {
    const { status, body } = await token({ grant_type: 'client_credentials', ...device });
    assert.equal(status, 200);
    assert.deepEqual([body.token_type, body.expires_in], ['Bearer', 2]);
    const c = await connected(t, build, perch.url, { token: body.access_token, getToken: async () => body.access_token });
    assert.deepEqual(c.events.seen.subscribed.map((e) => e.channel), ['locked:commands']);
    await perch.push('locked:commands', { cmd: 'reboot' });
    assert.deepEqual(c.decode((await c.events.next('publication')).data), { cmd: 'reboot' });
  });

  eachBuild(test, 'refresh tokens keep a session alive, each works once', async (t, build) => {
    let { body } = await token({ grant_type: 'client_credentials', ...device });
    const first = body.refresh_token;
    let refreshed = 0;
    const c = await connected(t, build, perch.url, {
      token: body.access_token,
      getToken: async () => {
        const answer = await token({ grant_type: 'refresh_token', refresh_token: body.refresh_token, ...device });
        assert.equal(answer.status, 200, JSON.stringify(answer.body));
        ({ body } = answer);
        refreshed++;
        return body.access_token;
      },
    });
    const deadline = Date.now() + 15_000;
    while (refreshed < 2 && Date.now() < deadline) await new Promise((r) => { setTimeout(r, 50); });
    assert.ok(refreshed >= 2);
    assert.equal(c.events.count('connecting'), 1, 'the session was kept');
    // The first one again: stolen, so the whole family ends, the session with it.
    const again = await token({ grant_type: 'refresh_token', refresh_token: first, ...device });
    assert.deepEqual([again.status, again.body.error], [400, 'invalid_grant']);
    assert.equal((await c.events.next('disconnected')).code, 3500);
  });

  eachBuild(test, 'revocation ends the live session', async (t, build) => {
    const gateway = { client_id: 'gateway', client_secret: device.client_secret };
    const { body } = await token({ grant_type: 'client_credentials', sub: 'alice', ...gateway });
    const c = await connected(t, build, perch.url, { token: body.access_token });
    await subscribed(c, 'news');
    const live = await perch.post('/v1/token/introspect', { token: body.access_token, ...gateway });
    assert.deepEqual([live.body.active, live.body.sub], [true, 'alice']);
    assert.equal((await perch.post('/v1/token/revoke', { token: body.access_token, ...gateway })).status, 200);
    assert.equal((await c.events.next('disconnected')).code, 3500);
    const dead = await perch.post('/v1/token/introspect', { token: body.access_token, ...gateway });
    assert.equal(dead.body.active, false);
    const late = client(t, build, perch.url, { token: body.access_token });
    late.connect();
    assert.equal((await late.events.next('disconnected')).code, 3500);
  });

  test('wrong credentials are refused', { timeout: 60_000 }, async () => {
    const { status, body } = await token({ grant_type: 'client_credentials', client_id: 'sensor-7', client_secret: 'guess' });
    assert.deepEqual([status, body.error], [401, 'invalid_client']);
  });

  test('a plain request for the socket is told to upgrade', { timeout: 60_000 }, async () => {
    const response = await fetch(`http://${perch.public}/connection/websocket`);
    assert.equal(response.status, 426);
    assert.equal(response.headers.get('upgrade'), 'websocket');
    assert.equal(response.headers.get('sec-websocket-version'), '13');
    assert.equal((await response.json()).error, 'upgrade_required');
  });
});

test('the demo page carries the SDK as it is published', () => {
  const from = path.join(path.dirname(require.resolve('centrifuge')), '../dist');
  const to = path.join(__dirname, '../../../handler/demo/vendor');
  for (const name of ['centrifuge.js', 'centrifuge.protobuf.js']) {
    assert.ok(fs.readFileSync(path.join(from, name)).equals(fs.readFileSync(path.join(to, name))), name);
  }
});
