'use strict';

// The demo page in a real browser, against the real server.

const assert = require('node:assert/strict');
const { after, before, suite, test } = require('node:test');
const { launch, options, timeout } = require('../lib/browser');
const { Perch, scope, sign } = require('../lib/perch');

let browser;

// openPage opens the page in a context of its own, and fails the test for
// whatever the browser complains about: an error of a script, a refusal by the
// page's policy, a request to another host.
async function openPage(t, perch, context = {}) {
  const c = await browser.newContext({ viewport: { width: 1100, height: 800 }, ...context });
  const page = await c.newPage();
  page.complaints = [];
  page.on('pageerror', (err) => page.complaints.push(err.message));
  page.on('console', (m) => {
    // A dropped connection is the point of some tests.
    if (m.type() === 'error' && !/ERR_CONNECTION_REFUSED|status of 40[01]/.test(m.text())) page.complaints.push(m.text());
  });
  page.on('request', (r) => {
    if (!r.url().startsWith(`http://${perch.public}/`)) page.complaints.push(`request to ${r.url()}`);
  });
  t.after(async () => {
    await c.close();
    assert.deepEqual(page.complaints, []);
  });
  await page.goto(`http://${perch.public}/demo`);
  return page;
}

const state = (page, s) => page.waitForSelector(`#state[data-state=${s}]`);
const subscribed = (page) => page.waitForSelector('#subscription[data-state=subscribed]');
const pushed = (page, text) => page.locator('#pushes li', { hasText: text }).first().waitFor();
const timeline = (page) => page.locator('#timeline li > span').allTextContents();

async function publish(page, text) {
  await page.fill('#text', text);
  await page.click('#send');
}

async function live(page) {
  await state(page, 'connected');
  await subscribed(page);
}

suite('the demo page', options, () => {
  const s = scope();
  let perch;
  before(async () => {
    browser = await launch();
    perch = await Perch.start(s, { dev: true });
  });
  after(() => browser?.close());

  test('connects by itself in dev mode and shows a push of the server API', { timeout }, async (t) => {
    const page = await openPage(t, perch);
    await live(page);
    assert.match(await page.textContent('#client'), /^[0-9a-f-]{36}$/);
    assert.match(await page.textContent('#expiry'), /\d/);
    assert.deepEqual(await timeline(page), ['subscribed', 'connected', 'connecting']);
    await perch.push('news', { device: 'sensor-7', temperature: 21.5 });
    await pushed(page, '"temperature": 21.5');
    await perch.push('news', { text: '<b>not markup</b>' });
    await pushed(page, '<b>not markup</b>');
    assert.equal(await page.textContent('#count'), '2');
    assert.equal(await page.locator('#empty').isVisible(), false);
    await page.click('#clear');
    assert.equal(await page.locator('#pushes li').count(), 0);
  });

  test('what one page publishes, both show, whatever their encoding', { timeout }, async (t) => {
    const [a, b] = [await openPage(t, perch), await openPage(t, perch)];
    await Promise.all([live(a), live(b)]);
    const name = await a.inputValue('#name');
    await b.check('input[value=protobuf]');
    await b.locator('#timeline li', { hasText: 'protobuf' }).waitFor();
    await live(b);
    await publish(a, 'hello from JSON');
    await publish(b, 'hello from Protobuf');
    for (const page of [a, b]) {
      await pushed(page, 'hello from JSON');
      await pushed(page, 'hello from Protobuf');
      assert.equal(await page.locator('#pushes li', { hasText: 'hello from JSON' }).locator('.meta b').textContent(), name);
    }
    assert.equal(await a.inputValue('#text'), '', 'the field is ready for the next');
  });

  test('disconnects, and connects to another topic', { timeout }, async (t) => {
    const page = await openPage(t, perch);
    await live(page);
    await page.click('#disconnect');
    await state(page, 'disconnected');
    assert.equal(await page.isDisabled('#send'), true);
    await page.fill('#topic', 'weather');
    await page.click('#connect');
    await live(page);
    assert.equal(await page.textContent('#subscription'), 'subscribed to weather');
    await perch.push('weather', { text: 'rain' });
    await pushed(page, 'rain');
  });

  test('says why a subscription is refused', { timeout }, async (t) => {
    const page = await openPage(t, perch);
    await live(page);
    await page.fill('#topic', 'locked:x');
    await page.click('#connect');
    const alert = page.locator('#alert', { hasText: 'permission denied (103)' });
    await alert.waitFor();
    await page.click('#alert-close');
    await alert.waitFor({ state: 'hidden' });
  });

  test('reconnects when the server has restarted', { timeout }, async (t) => {
    const page = await openPage(t, perch);
    await live(page);
    assert.equal(await perch.stop(), 0);
    await page.locator('#timeline li', { hasText: '3001: shutdown' }).waitFor();
    await state(page, 'connecting');
    await perch.run();
    await live(page);
    await perch.push('news', { text: 'back again' });
    await pushed(page, 'back again');
  });

  for (const colorScheme of ['light', 'dark']) {
    test(`is readable in ${colorScheme}, and on a phone`, { timeout }, async (t) => {
      const page = await openPage(t, perch, { colorScheme, viewport: { width: 360, height: 740 } });
      await live(page);
      await publish(page, `${'a word '.repeat(60)}${'x'.repeat(300)}`);
      await pushed(page, 'a word');
      const found = await page.evaluate(() => {
        const channels = (c) => c.match(/[\d.]+/g).map(Number);
        const light = (c) => channels(c).slice(0, 3).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (e) => {
          for (let p = e; p; p = p.parentElement) {
            const c = getComputedStyle(p).backgroundColor;
            if ((channels(c)[3] ?? 1) > 0) return c;
          }
          return 'rgb(255, 255, 255)';
        };
        const low = [];
        for (const e of document.querySelectorAll('h1, h2, label, small, dt, dd, input, button, legend, time, .state, .meta *, .body')) {
          if (!e.checkVisibility() || e.disabled || e.classList.contains('hidden')) continue;
          const [a, b] = [getComputedStyle(e).color, behind(e)].map(light).sort((x, y) => y - x);
          const ratio = (a + 0.05) / (b + 0.05);
          if (ratio < 4.5) low.push(`${e.tagName} ${e.id || e.className}: ${ratio.toFixed(2)}`);
        }
        const unnamed = [...document.querySelectorAll('input, button')]
          .filter((e) => e.checkVisibility() && !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).map((e) => e.id);
        return { low, unnamed, width: document.documentElement.scrollWidth, background: light(getComputedStyle(document.body).backgroundColor) };
      });
      assert.deepEqual(found.low, [], 'contrast under 4.5 (WCAG 2, AA)');
      assert.deepEqual(found.unnamed, [], 'controls without a name');
      assert.ok(found.width <= 360, `the page is ${found.width} px wide`);
      assert.equal(found.background > 0.5, colorScheme === 'light');
    });
  }
});

suite('the demo page without dev mode', options, () => {
  const s = scope();
  let perch;
  before(async () => {
    browser = await launch();
    perch = await Perch.start(s, { demo: true });
  });
  after(() => browser?.close());

  test('asks for a token and takes it', { timeout }, async (t) => {
    const page = await openPage(t, perch);
    await page.waitForSelector('#token');
    assert.equal(await page.locator('#name').isVisible(), false);
    await page.click('#connect');
    await page.locator('#alert', { hasText: 'paste a token' }).waitFor();
    await page.fill('#token', sign({ sub: 'alice' }));
    await page.click('#connect');
    await live(page);
    await publish(page, 'with a token');
    await page.locator('#pushes li', { hasText: 'with a token' }).locator('.meta b', { hasText: 'alice' }).waitFor();
  });

  test('shows that a token is refused, and stays', { timeout }, async (t) => {
    const page = await openPage(t, perch);
    await page.waitForSelector('#token');
    await page.fill('#token', 'not.a.token');
    await page.click('#connect');
    await page.locator('#alert', { hasText: '3500: invalid token' }).waitFor();
    await state(page, 'disconnected');
    await page.check('input[value=client]');
    await page.fill('#client-id', 'nobody');
    await page.fill('#client-secret', 'wrong');
    await page.click('#connect');
    await page.locator('#alert', { hasText: 'no token:' }).waitFor();
    await state(page, 'disconnected');
  });

  test('the line for the console works on the server\'s own pages', { timeout }, async (t) => {
    const c = await browser.newContext();
    t.after(() => c.close());
    const page = await c.newPage();
    const pushes = [];
    page.on('console', (m) => pushes.push(m.text()));
    await page.goto(`http://${perch.public}/nothing-is-here`);
    const line = perch.log.match(/^ *(ws = new WebSocket\(.*)$/m);
    assert.ok(line, perch.log);
    // A configured server prints no token of its own.
    assert.ok(line[1].includes('"TOKEN"'), line[1]);
    await page.evaluate(line[1].replace('TOKEN', sign({ sub: 'alice' })));
    const seen = async (what) => {
      const deadline = Date.now() + 15_000;
      while (!pushes.some((p) => p.includes(what))) {
        assert.ok(Date.now() < deadline, `no ${what} in ${JSON.stringify(pushes)}`);
        await page.waitForTimeout(50);
      }
    };
    await seen('"subscribe":{}');
    await perch.push('news', { text: 'to the console' });
    await seen('to the console');
  });
});
