// The demo page: a token from POST /v1/token, one WebSocket by the published
// JavaScript SDK, one subscription. Text from the network enters the page as
// text only.
(() => {
  'use strict';

  const maxRows = 200;
  const $ = (id) => document.getElementById(id);
  const picked = (name) => document.querySelector(`input[name=${name}]:checked`).value;
  // The page stands at <prefix>/demo; the endpoints stand beside it.
  const base = location.origin + location.pathname.replace(/\/demo\/?$/, '');

  const sdks = { json: globalThis.Centrifuge };
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();

  let config;
  let client = null;
  let subscription = null;
  let protobuf = false;
  let generation = 0; // of connect(): a slow load must not revive an older wish
  let pushed = 0;

  // The two builds of the SDK take the same global name, so each is kept when
  // its script has run.
  function sdk(encoding) {
    sdks[encoding] ??= new Promise((resolve, reject) => {
      const script = document.createElement('script');
      script.src = 'demo/vendor/centrifuge.protobuf.js';
      script.onload = () => resolve(globalThis.Centrifuge);
      script.onerror = () => {
        delete sdks[encoding];
        reject(new Error('the Protobuf build of the SDK could not be loaded'));
      };
      document.head.append(script);
    });
    return sdks[encoding];
  }

  function showError(text) {
    $('alert-text').textContent = text;
    $('alert').hidden = false;
  }

  function clearError() {
    $('alert').hidden = true;
  }

  function element(name, className, text) {
    const e = document.createElement(name);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  }

  function clock() {
    const now = new Date();
    const t = element('time', '', now.toLocaleTimeString());
    t.dateTime = now.toISOString();
    return t;
  }

  function prepend(list, row) {
    list.prepend(row);
    while (list.children.length > maxRows) list.lastElementChild.remove();
  }

  function note(state, label, detail) {
    const row = element('li');
    row.dataset.state = state;
    row.append(element('span', '', label), clock());
    if (detail) row.append(element('small', '', detail));
    prepend($('timeline'), row);
  }

  const because = (ctx) => [ctx.code, ctx.reason].filter(Boolean).join(': ');
  const failure = (err) => (err?.code ? `${err.message} (${err.code})` : err?.message ?? String(err));

  function setState(state) {
    $('state').dataset.state = state;
    $('state').textContent = state;
    $('connect').textContent = state === 'disconnected' ? 'Connect' : 'Reconnect';
    $('disconnect').disabled = state === 'disconnected';
    if (state !== 'connected') $('client').textContent = '–';
  }

  function setSubscription(state, topic) {
    $('subscription').dataset.state = state;
    $('subscription').textContent = state === 'subscribed' ? `subscribed to ${topic}` : state;
    $('text').disabled = $('send').disabled = state !== 'subscribed';
  }

  function showPush(topic, ctx) {
    let data = ctx.data;
    if (data instanceof Uint8Array) {
      data = decoder.decode(data);
      try { data = JSON.parse(data); } catch { /* any bytes may be published */ }
    }
    const said = data !== null && typeof data === 'object' && typeof data.text === 'string';
    const text = said ? data.text : typeof data === 'string' ? data : JSON.stringify(data, null, 2);
    const from = ctx.info?.user || (ctx.info ? 'anonymous' : 'server');
    const meta = element('div', 'meta');
    meta.append(element('b', '', from), element('span', '', topic), clock());
    const row = element('li');
    row.append(meta, element('pre', said ? 'body' : 'body raw', text));
    prepend($('pushes'), row);
    $('count').textContent = String(++pushed);
    $('empty').hidden = true;
  }

  function showExpiry(token) {
    let until = '–';
    try {
      const part = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
      const claims = JSON.parse(atob(part));
      if (claims.exp) until = new Date(claims.exp * 1000).toLocaleTimeString();
    } catch { /* the server will say what is wrong with it */ }
    $('expiry').textContent = until;
  }

  // fetchToken answers null where another try would fare no better: the SDK
  // stops then. Thrown errors make it try again.
  async function fetchToken(credentials) {
    const form = new URLSearchParams({
      grant_type: 'client_credentials',
      client_id: credentials.id,
      client_secret: credentials.secret,
    });
    if (credentials.sub) form.set('sub', credentials.sub);
    const response = await fetch(`${base}/v1/token`, { method: 'POST', body: form });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) {
      showExpiry(answer.access_token);
      return answer.access_token;
    }
    const why = `no token: ${answer.error_description || answer.error || `status ${response.status}`}`;
    showError(why);
    if (response.status === 429 || response.status >= 500) throw new Error(why);
    return null;
  }

  function authOptions() {
    if (config.client) {
      const credentials = { ...config.client, sub: $('name').value.trim() };
      return { getToken: () => fetchToken(credentials) };
    }
    switch (picked('auth')) {
      case 'token': {
        const token = $('token').value.trim();
        if (!token) throw new Error('paste a token, or choose another way to sign in');
        showExpiry(token);
        return { token };
      }
      case 'client': {
        const credentials = { id: $('client-id').value.trim(), secret: $('client-secret').value };
        if (!credentials.id || !credentials.secret) throw new Error('client id and secret are needed');
        return { getToken: () => fetchToken(credentials) };
      }
      default:
        return {};
    }
  }

  function drop() {
    generation++;
    const old = client;
    client = subscription = null;
    old?.disconnect();
  }

  async function connect() {
    drop();
    const mine = generation;
    clearError();
    $('expiry').textContent = '–';
    const topic = $('topic').value.trim();
    const encoding = picked('encoding');
    try {
      const options = authOptions();
      const Centrifuge = await sdk(encoding);
      if (mine !== generation) return;
      start(new Centrifuge(base.replace(/^http/, 'ws') + config.path, options), topic, encoding);
    } catch (err) {
      showError(failure(err));
    }
  }

  function start(c, topic, encoding) {
    client = c;
    protobuf = encoding === 'protobuf';
    // An ended client still reports its end, after the next one has begun.
    const current = (f) => (ctx) => { if (client === c) f(ctx); };
    const closed = (ctx) => {
      setState('disconnected');
      setSubscription('unsubscribed');
      note('disconnected', 'disconnected', because(ctx));
      // fetchToken has said more already.
      if (ctx.code > 0 && $('alert').hidden) showError(`disconnected for good: ${because(ctx)}`);
    };
    c.on('connecting', current((ctx) => {
      setState('connecting');
      note('connecting', 'connecting', because(ctx));
    }));
    c.on('connected', current((ctx) => {
      setState('connected');
      clearError();
      $('client').textContent = ctx.client;
      note('connected', 'connected', `${ctx.transport}, ${encoding}`);
    }));
    c.on('disconnected', (ctx) => { if (client === c || client === null) closed(ctx); });
    c.on('error', current((ctx) => note('error', 'error', failure(ctx.error))));
    // Topics that the token or the server subscribed us to.
    c.on('subscribed', current((ctx) => note('subscribed', 'subscribed', `${ctx.channel}, by the server`)));
    c.on('publication', current((ctx) => showPush(ctx.channel, ctx)));
    c.on('message', current((ctx) => showPush('message', ctx)));

    const s = c.newSubscription(topic);
    subscription = s;
    s.on('subscribing', current(() => setSubscription('subscribing')));
    s.on('subscribed', current(() => {
      setSubscription('subscribed', topic);
      note('subscribed', 'subscribed', topic);
    }));
    s.on('unsubscribed', current((ctx) => {
      setSubscription('unsubscribed');
      note('unsubscribed', 'unsubscribed', because(ctx));
      if (ctx.code > 0) showError(`not subscribed to ${topic}: ${ctx.reason} (${ctx.code})`);
    }));
    s.on('error', current((ctx) => note('error', 'subscription error', failure(ctx.error))));
    s.on('publication', current((ctx) => showPush(topic, ctx)));
    s.subscribe();
    c.connect();
  }

  async function publish() {
    const text = $('text').value;
    if (!text || !subscription) return;
    const data = { text };
    try {
      await subscription.publish(protobuf ? encoder.encode(JSON.stringify(data)) : data);
      $('text').value = '';
      clearError();
    } catch (err) {
      showError(`not published: ${failure(err)}`);
    }
  }

  function showAuth() {
    const way = picked('auth');
    for (const e of document.querySelectorAll('[data-auth]')) e.hidden = e.dataset.auth !== way;
  }

  function randomName() {
    const birds = ['wren', 'robin', 'finch', 'heron', 'swift', 'plover', 'linnet', 'osprey'];
    const [a, b] = crypto.getRandomValues(new Uint16Array(2));
    return `${birds[a % birds.length]}-${b % 10000}`;
  }

  async function begin() {
    $('session').addEventListener('submit', (e) => { e.preventDefault(); connect(); });
    $('publish').addEventListener('submit', (e) => { e.preventDefault(); publish(); });
    $('disconnect').addEventListener('click', drop);
    $('alert-close').addEventListener('click', clearError);
    $('clear').addEventListener('click', () => {
      $('pushes').replaceChildren();
      $('count').textContent = String(pushed = 0);
      $('empty').hidden = false;
    });
    for (const e of document.querySelectorAll('input[name=auth]')) e.addEventListener('change', showAuth);
    for (const e of document.querySelectorAll('input[name=encoding]')) {
      e.addEventListener('change', () => { if (client) connect(); });
    }
    try {
      const response = await fetch('demo/config.json');
      if (!response.ok) throw new Error(`the page's settings: status ${response.status}`);
      config = await response.json();
    } catch (err) {
      $('connect').disabled = true;
      showError(failure(err));
      return;
    }
    $('topic').value = config.topic;
    $('auth-name').hidden = !config.client;
    $('auth-ask').hidden = !!config.client;
    if (config.client) {
      $('name').value = randomName();
      connect();
    } else {
      showAuth();
    }
  }

  begin();
})();
