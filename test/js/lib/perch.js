'use strict';

// Starts the real binary on free ports of 127.0.0.1, and talks to it as a
// backend does.

const { spawn } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { after } = require('node:test');

const secret = 'perch-js-test-secret-0123456789abcdef';
const apiKey = 'perch-js-test-api-key';
const startTimeout = 20_000; // ms; a race-detector build on a busy machine

function freePort() {
  return new Promise((resolve, reject) => {
    const probe = net.createServer();
    probe.on('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

function merge(into, from) {
  for (const [k, v] of Object.entries(from)) {
    if (v !== null && typeof v === 'object' && !Array.isArray(v)) into[k] = merge({ ...into[k] }, v);
    else into[k] = v;
  }
  return into;
}

// binary is the server under test. A missing one is a fault of the run, not a
// reason to skip.
function binary() {
  const bin = process.env.PERCH_BIN;
  if (!bin) throw new Error('PERCH_BIN must name the perch binary: test/run builds it');
  return path.resolve(bin);
}

// cleanEnvironment has no PERCH_ variables: the server takes them for its
// configuration.
function cleanEnvironment() {
  return Object.fromEntries(Object.entries(process.env).filter(([k]) => !k.startsWith('PERCH_')));
}

class Perch {
  // start runs a server with change merged into the tests' configuration, and
  // stops it when test t (or its suite) ends.
  static async start(t, change = {}) {
    const p = new Perch();
    p.dir = fs.mkdtempSync(path.join(os.tmpdir(), 'perch-js-'));
    const [listen, admin] = [await freePort(), await freePort()];
    p.public = `127.0.0.1:${listen}`;
    p.admin = `127.0.0.1:${admin}`;
    p.log = '';
    const config = merge({
      listen: p.public,
      admin: p.admin,
      data_dir: path.join(p.dir, 'data'),
      api: { key: apiKey },
      auth: { hmac_secret: secret },
      topics: {
        default: { allow_subscribe_for_client: true, allow_publish_for_subscriber: true },
        namespaces: [{ name: 'locked' }, { name: 'read', allow_subscribe_for_client: true }],
      },
      drain: { budget: '1s' },
    }, change);
    // YAML takes JSON as it is.
    fs.writeFileSync(path.join(p.dir, 'perch.yaml'), JSON.stringify(config), { mode: 0o600 });
    t.after(async () => {
      const code = await p.stop();
      fs.rmSync(p.dir, { recursive: true, force: true });
      if (/DATA RACE|panic:/.test(p.log)) throw new Error(`the server's log:\n${p.log}`);
      if (code !== 0) throw new Error(`the server ended with ${code}:\n${p.log}`);
    });
    await p.run();
    return p;
  }

  get url() { return `ws://${this.public}/connection/websocket`; }

  // run starts the process, also again after stop.
  async run() {
    const child = spawn(binary(), ['serve', '--config', path.join(this.dir, 'perch.yaml')], {
      cwd: this.dir, env: cleanEnvironment(), stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.child = child;
    const take = (b) => { this.log += b; };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    this.ended = new Promise((resolve) => {
      child.on('error', (err) => { this.log += String(err); resolve(-1); });
      child.on('close', (code, signal) => resolve(code ?? signal));
    });
    const deadline = Date.now() + startTimeout;
    let over = false;
    this.ended.then(() => { over = true; });
    for (;;) {
      if (over) throw new Error(`the server did not start:\n${this.log}`);
      const ready = await fetch(`http://${this.admin}/readyz`).then((r) => r.ok, () => false);
      if (ready) return;
      if (Date.now() > deadline) throw new Error(`the server is not ready:\n${this.log}`);
      await new Promise((resolve) => { setTimeout(resolve, 50); });
    }
  }

  // stop drains the server and resolves with its exit code.
  async stop() {
    if (this.child.exitCode === null) this.child.kill('SIGTERM');
    const kill = setTimeout(() => this.child.kill('SIGKILL'), startTimeout);
    const code = await this.ended;
    clearTimeout(kill);
    return code;
  }

  // api calls the server API and resolves with the result.
  async api(method, params) {
    const response = await fetch(`http://${this.admin}/api/${method}`, {
      method: 'POST', headers: { 'X-API-Key': apiKey }, body: JSON.stringify(params),
    });
    const answer = await response.json();
    if (!response.ok || answer.error) {
      throw new Error(`${method}: status ${response.status}, ${JSON.stringify(answer.error)}`);
    }
    return answer.result;
  }

  push(topic, data) { return this.api('publish', { channel: topic, data }); }

  // post sends a form to the public port.
  async post(where, form) {
    const response = await fetch(`http://${this.public}${where}`, { method: 'POST', body: new URLSearchParams(form) });
    return { status: response.status, body: await response.json().catch(() => null) };
  }
}

// scope is the part of a test's context that Perch.start needs, for the server
// of a whole suite: what it is given runs when the suite is over.
function scope() {
  const cleanups = [];
  after(async () => { for (const f of cleanups) await f(); });
  return { after: (f) => cleanups.push(f) };
}

// sign makes an HS256 token. ttl is in seconds, may be below zero, and 0 means
// a token without end.
function sign(claims, { ttl = 60, key = secret } = {}) {
  const part = (v) => Buffer.from(JSON.stringify(v)).toString('base64url');
  const now = Math.floor(Date.now() / 1000);
  const body = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ ...(ttl ? { exp: now + ttl } : {}), ...claims })}`;
  return `${body}.${crypto.createHmac('sha256', key).update(body).digest('base64url')}`;
}

module.exports = { Perch, scope, sign };
