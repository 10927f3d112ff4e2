'use strict';

// A line between clients and the server that the test can cut, as a radio does:
// the peers see no close frame.

const net = require('node:net');

class Line {
  // start opens a line to the public port of a server; it ends with test t.
  static async start(t, perch) {
    const line = new Line();
    [line.host, line.port] = perch.public.split(':');
    line.pairs = new Set();
    line.waiting = [];
    line.isUp = true;
    line.received = 0; // bytes that came from the server, of all connections
    line.left = Infinity; // how many may still come
    line.server = net.createServer((client) => line.accept(client));
    await new Promise((resolve, reject) => {
      line.server.on('error', reject);
      line.server.listen(0, '127.0.0.1', resolve);
    });
    t.after(() => { line.down(); for (const c of line.waiting.splice(0)) c.destroy(); line.server.close(); });
    return line;
  }

  get url() { return `ws://127.0.0.1:${this.server.address().port}/connection/websocket`; }

  accept(client) {
    client.on('error', () => {}); // the other end may be cut at any time
    if (this.isUp) this.join(client);
    else this.waiting.push(client);
  }

  join(client) {
    const server = net.connect(this.port, this.host);
    const pair = [client, server];
    this.pairs.add(pair);
    server.on('error', () => {});
    const end = () => { this.pairs.delete(pair); client.destroy(); server.destroy(); };
    client.on('close', end);
    server.on('close', end);
    client.pipe(server);
    server.on('data', (b) => {
      const part = b.subarray(0, this.left);
      this.received += part.length;
      this.left -= part.length;
      if (this.left > 0) {
        client.write(part);
        return;
      }
      this.left = Infinity;
      // What has been written still goes out, and nothing behind it.
      client.end(part, () => { this.cut(); this.onCut(); });
      server.destroy();
    });
  }

  // cut ends all connections; the next ones pass.
  cut() { for (const pair of [...this.pairs]) for (const socket of pair) socket.destroy(); }

  // cutAfter lets n more bytes of the server pass, wherever in a frame they end,
  // and resolves when the line has been cut.
  cutAfter(n) {
    return new Promise((resolve) => { this.onCut = resolve; this.left = n; });
  }

  // down cuts the line; whoever connects waits until it is up.
  down() { this.isUp = false; this.cut(); }

  up() {
    this.isUp = true;
    for (const client of this.waiting.splice(0)) if (!client.destroyed) this.join(client);
  }

  // without runs f while client c is away, and lets it come back.
  async without(c, f) {
    this.down();
    await c.events.next('connecting', (e) => e.code !== 0); // 0: connect was called
    await f();
    this.up();
  }
}

module.exports = { Line };
