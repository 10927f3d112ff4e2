'use strict';

// Finds and starts a browser.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { chromium } = require('playwright-core');

const timeout = 60_000;

// findChromium looks where distributions put it; CHROMIUM goes first.
function findChromium() {
  const names = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome'];
  const candidates = (process.env.PATH ?? '').split(path.delimiter)
    .flatMap((dir) => names.map((name) => path.join(dir, name)));
  if (process.env.CHROMIUM) candidates.unshift(process.env.CHROMIUM);
  return candidates.find((f) => {
    try { fs.accessSync(f, fs.constants.X_OK); return true; } catch { return false; }
  });
}

const executablePath = findChromium();
const mustRun = process.env.PERCH_TEST_NOSKIP === '1' || process.env.CI === 'true';
const options = { skip: !executablePath && !mustRun && 'no chromium found' };

function launch() {
  assert.ok(executablePath, 'no chromium found, and nothing may be skipped');
  return chromium.launch({
    executablePath,
    timeout,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage'],
  });
}

module.exports = { launch, options, timeout };
