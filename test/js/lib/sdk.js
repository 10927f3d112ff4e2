'use strict';

// The published SDK in its two builds, with events as promises.

const assert = require('node:assert/strict');
const WebSocket = require('ws');
const builds = {
  JSON: require('centrifuge').Centrifuge,
  Protobuf: require('centrifuge/build/protobuf').Centrifuge,
};

const timeout = 15_000; // ms for anything that should happen at once

const decoder = new TextDecoder();
const encoder = new TextEncoder();

// Events records the events of a client or a subscription from the start, so
// that none is missed between two awaits.
class Events {
  constructor(source, names) {
    this.seen = Object.fromEntries(names.map((n) => [n, []]));
    this.waiting = [];
    for (const name of names) {
      source.on(name, (ctx) => {
        this.seen[name].push(ctx);
        for (const wake of this.waiting.splice(0)) wake();
      });
    }
  }

  count(name) { return this.seen[name].length; }

  // next resolves with the first event of the name that has not been taken and
  // matches; it is taken then, and those before it with it.
  async next(name, match = () => true, ms = timeout) {
    const deadline = Date.now() + ms;
    for (;;) {
      const queue = this.seen[name];
      const i = queue.findIndex(match);
      if (i >= 0) return queue.splice(0, i + 1)[i];
      const left = deadline - Date.now();
      if (left <= 0) {
        throw new Error(`no ${name} within ${ms} ms; seen: ${JSON.stringify(this.seen)}`);
      }
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.waiting.push(() => { clearTimeout(timer); resolve(); });
      });
    }
  }
}

const clientEvents = ['connecting', 'connected', 'disconnected', 'error', 'message', 'publication',
  'subscribing', 'subscribed', 'unsubscribed', 'join', 'leave'];
const subscriptionEvents = ['subscribing', 'subscribed', 'unsubscribed', 'publication', 'error', 'join', 'leave'];

// client makes a client of one build that ends with the test. It is not
// connected yet.
function client(t, build, url, options = {}) {
  const c = new builds[build](url, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 500, ...options });
  c.events = new Events(c, clientEvents);
  c.encode = (v) => (build === 'Protobuf' ? encoder.encode(JSON.stringify(v)) : v);
  c.decode = (v) => (build === 'Protobuf' ? JSON.parse(decoder.decode(v)) : v);
  t.after(() => c.disconnect());
  return c;
}

async function connected(t, build, url, options) {
  const c = client(t, build, url, options);
  c.connect();
  c.welcome = await c.events.next('connected');
  return c;
}

// subscription makes one and records its events; it is not subscribed yet.
function subscription(c, topic, options) {
  const s = c.newSubscription(topic, options);
  s.events = new Events(s, subscriptionEvents);
  return s;
}

async function subscribed(c, topic, options) {
  const s = subscription(c, topic, options);
  s.subscribe();
  s.welcome = await s.events.next('subscribed');
  return s;
}

// Tokens counts how often an SDK asks for a token, and lets a test wait for it.
class Tokens {
  constructor(make) {
    this.asked = 0;
    this.waiting = [];
    this.get = async (ctx) => {
      this.asked++;
      this.waiting = this.waiting.filter(({ n, resolve }) => this.asked < n || resolve());
      return make(ctx);
    };
  }

  // times resolves when the SDK has asked n times.
  times(n) {
    return new Promise((resolve, reject) => {
      if (this.asked >= n) return resolve();
      const late = setTimeout(() => reject(new Error(`asked for a token ${this.asked} times, want ${n}`)), timeout);
      this.waiting.push({ n, resolve: () => { clearTimeout(late); resolve(); } });
    });
  }
}

// expect checks that the next publications are of these values, in this order,
// and resolves with them.
async function expect(c, source, values) {
  const got = [];
  for (const want of values) {
    const p = await source.events.next('publication');
    assert.deepEqual(c.decode(p.data), want);
    got.push(p);
  }
  return got;
}

// open makes a bare WebSocket that keeps what it receives.
function open(t, url, ...args) {
  const ws = new WebSocket(url, ...args);
  t.after(() => ws.terminate());
  ws.events = new Events({
    on: (name, f) => ws.on(name, (a, b) => f({
      message: () => String(a),
      close: () => ({ code: a, reason: String(b) }),
      'unexpected-response': () => ({ status: b?.statusCode }),
    }[name]?.())),
  }, ['open', 'message', 'close', 'error', 'unexpected-response']);
  return ws;
}

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// eachBuild runs a test with the JSON and with the Protobuf build.
function eachBuild(test, name, f) {
  for (const build of Object.keys(builds)) test(`${name} (${build})`, { timeout: 60_000 }, (t) => f(t, build));
}

module.exports = { client, connected, subscription, subscribed, expect, open, sleep, eachBuild, encoder, Tokens };
