// seconds: 90
// needs: chromium curl openssl
/**
 * `--host-header rewrite`: a development server that refuses names it does not know, and tells its
 * page of changed files over a WebSocket, works at a name that is not localhost. By default the server
 * is tests/support/dev_server.ts, which does what Vite 8 does; SOTTO_VITE=FOLDER, where Vite is
 * installed, runs the real one instead.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openBrowser, spkiOf } from '../support/browser.ts'
import { freePort } from '../support/port.ts'
import { E2eWorld, ROOT } from '../support/world.ts'
import type { Program, Relay } from '../support/world.ts'

const NODE = join(ROOT, 'node_modules', '.bin', 'node')
const DOMAIN = 'secure.example.test'
const VITE = process.env['SOTTO_VITE']

let world: E2eWorld
let relay: Relay
let folder: string
let port: number

const test = suite('e2e/vite')

/** What the page shows; accepted by hot replacement, so that a change does not load the page anew. */
function writeModule(words: string): void {
  writeFileSync(
    join(folder, 'main.js'),
    `document.querySelector('h1').textContent = ${JSON.stringify(words)}\n` +
      'if (import.meta.hot) import.meta.hot.accept()\n',
  )
}

test.before(async () => {
  world = new E2eWorld()
  folder = world.path('project')
  mkdirSync(folder)
  writeFileSync(
    join(folder, 'index.html'),
    '<!doctype html><title>dev</title><h1></h1><script type="module" src="/main.js"></script>',
  )
  writeModule('one')
  port = await freePort()
  const server = VITE ? startVite(VITE) : world.start(NODE, [
    '--experimental-strip-types',
    '--no-warnings',
    join(ROOT, 'tests/support/dev_server.ts'),
    folder,
    String(port),
  ])
  await server.says(/Local:/)
  relay = await world.relay(['--secure-domain', DOMAIN])
})

test.after(() => world.close())

function startVite(installed: string): Program {
  writeFileSync(join(folder, 'package.json'), '{"type":"module","private":true}')
  symlinkSync(join(installed, 'node_modules'), join(folder, 'node_modules'))
  const vite = join(installed, 'node_modules', 'vite', 'bin', 'vite.js')
  const place = ['--port', String(port), '--strictPort', '--host', '127.0.0.1']
  return world.start(NODE, [vite, ...place, '--logLevel', 'info'], { cwd: folder })
}

async function open(name: string, ...flags: string[]) {
  const agent = await world.tunnel(relay, ['http', String(port), '--name', name, ...flags])
  assert.is(agent.up['url'], `https://${name}.${DOMAIN}:${relay.port}/`)
  return agent
}

function curl(url: string, ...more: string[]) {
  const to = `::127.0.0.1:${relay.port}`
  return world.run('curl', ['-sSk', '--noproxy', '*', '--connect-to', to, ...more, url])
}

test('without it the server refuses the name', async () => {
  const agent = await open('plain')
  const got = await curl(agent.up['url'])
  assert.match(
    got.stdout,
    /Blocked request\. This host \("plain\.secure\.example\.test/,
    got.stderr,
  )
  await agent.stop()
})

test('with a value of one’s own, and with rewrite, the page is served', async () => {
  for (const [name, value] of [['own', 'localhost:1234'], ['rewritten', 'rewrite']] as const) {
    const agent = await open(name, '--host-header', value)
    const got = await curl(agent.up['url'], '-w', '%{http_code}')
    assert.match(got.stdout, /<h1><\/h1>[^]*200$/, got.stderr)
    await agent.stop()
  }
})

test('Chromium: the page, and a changed file shown without loading it again', async () => {
  const agent = await open('hot', '--host-header', 'rewrite')
  const received = await world.run('bash', [
    '-c',
    `openssl s_client -connect 127.0.0.1:${relay.port} -servername hot.${DOMAIN} </dev/null ` +
    '2>/dev/null | openssl x509',
  ])
  const browser = await openBrowser([spkiOf(received.stdout)], { local: '*.example.test' })
  try {
    const page = await browser.newPage()
    const sockets: string[] = []
    const connected = new Promise<void>((resolve) =>
      page.on('websocket', (socket) => {
        sockets.push(socket.url())
        socket.on(
          'framereceived',
          ({ payload }) => String(payload).includes('"connected"') && resolve(),
        )
      })
    )
    await page.goto(agent.up['url'], { timeout: 20_000 })
    await page.waitForFunction(() => document.querySelector('h1')?.textContent === 'one')
    await page.evaluate(() => Object.assign(globalThis, { kept: 'still here' }))
    await connected
    assert.match(sockets[0]!, `wss://hot.${DOMAIN}:${relay.port}/?token=`)
    writeModule('two')
    await page.waitForFunction(() => document.querySelector('h1')?.textContent === 'two', null, {
      timeout: 15_000,
    })
    assert.is(await page.evaluate(() => (globalThis as { kept?: string }).kept), 'still here')
    assert.is(sockets.length, 1)
  } finally {
    await browser.close()
  }
  await agent.stop()
})

test('a server that starts later, or again, is found', async () => {
  const later = await freePort()
  const agent = await world.tunnel(relay, [
    ...['http', String(later), '--name', 'later', '--host-header', 'rewrite'],
  ])
  const down = await curl(agent.up['url'], '-w', '%{http_code}')
  assert.match(down.stdout, /502$/, down.stderr)
  const server = Bun.serve({
    port: later,
    hostname: '127.0.0.1',
    fetch: ({ headers }) => new Response(`I am ${headers.get('host')}\n`),
  })
  try {
    assert.is((await curl(agent.up['url'])).stdout, `I am localhost:${later}\n`)
  } finally {
    await server.stop(true)
  }
  await agent.stop()
})

test.run()
