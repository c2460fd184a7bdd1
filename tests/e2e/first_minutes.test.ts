// seconds: 120
// alone
// needs: chromium curl git npm openssl script
/**
 * The first minutes with a clone and an empty home: `npm start` prints a URL, a fingerprint and a curl
 * line that works; curl, openssl and Chromium all receive that certificate; a taken port is passed
 * over; Ctrl-C leaves no process and no listening port behind. What is installed is linked in.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { createHash, X509Certificate } from 'node:crypto'
import { readdirSync, readFileSync, readlinkSync, symlinkSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { Server } from 'node:net'
import { constants } from 'node:os'
import { join } from 'node:path'
import { openBrowser, spkiOf } from '../support/browser.ts'
import { E2eWorld, ROOT } from '../support/world.ts'
import type { Program } from '../support/world.ts'

const PORT_FIRST = 8443
const END_MS_MAX = 10_000

let world: E2eWorld
let clone: string

const test = suite('e2e/first_minutes')

test.before(async () => {
  world = new E2eWorld()
  clone = world.path('clone')
  const cloned = await world.run('git', ['clone', '-q', '--local', ROOT, clone])
  assert.is(cloned.code, 0, cloned.stderr)
  symlinkSync(join(ROOT, 'node_modules'), join(clone, 'node_modules'))
})

test.after(() => world.close())

interface Started {
  program: Program
  url: string
  port: number
  fingerprint: string
  curl: string
}

/** What a person reads from the screen. */
async function read(program: Program): Promise<Started> {
  const [curl] = await program.says(/^ *curl .*https:\S+/m)
  const [url] = await program.says(/^ *https:\/\/demo\.secure\.localhost:\d+\/\r?$/m)
  // Folded at a colon where the terminal is narrow.
  const [, fingerprint] = await program.says(
    /^ *certificate ((?:[0-9A-F]{2}:(?:\r?\n +)?){31}[0-9A-F]{2})\r?$/m,
  )
  await program.says(/verified: TLS ends in this agent/)
  const address = url.trim()
  const port = Number(new URL(address).port)
  return {
    program,
    url: address,
    port,
    fingerprint: fingerprint!.replace(/\s+/g, ''),
    curl: curl.trim(),
  }
}

function npmStart(...more: string[]): Promise<Started> {
  return read(world.start('npm', ['start', ...more], { cwd: clone, home: 'person' }))
}

/** Ends it as Ctrl-C does, and sees that nothing of it is left. */
async function interrupt({ program, port }: Started): Promise<void> {
  program.signal('SIGINT')
  await over(program, port)
}

async function over(program: Program, port: number): Promise<void> {
  const { code, signal } = await program.ended
  // npm ends itself by the signal then; to a shell that is 130 as well.
  assert.is(signal === null ? code : 128 + constants.signals[signal], 130, program.stderr)
  assert.not.match(program.stderr, /fault|error|Error:/)
  const late = Date.now() + END_MS_MAX
  while (processes().length > 0 && Date.now() < late) await Bun.sleep(20)
  assert.equal(processes(), [])
  assert.is(await listens(port), false)
}

/** Every process that runs in the clone, or names it. */
function processes(): string[] {
  return readdirSync('/proc').filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
      const inside = readlinkSync(`/proc/${pid}/cwd`).startsWith(clone) || words.includes(clone)
      return inside ? [`${pid} ${words}`] : []
    } catch {
      return []
    }
  })
}

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port })
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false))
    socket.on('close', () => socket.destroy())
    socket.on('connect', () => socket.end())
  })
}

/** Holds a port; undefined when somebody else has it. */
function hold(port: number): Promise<Server | undefined> {
  return new Promise((resolve) => {
    const server = createServer((socket) => socket.destroy())
    server.on('error', () => resolve(undefined))
    server.listen(port, '127.0.0.1', () => resolve(server))
  })
}

function close(server: Server | undefined): Promise<void> {
  return new Promise((resolve) => server ? server.close(() => resolve()) : resolve())
}

test('npm start: the curl line works when pasted, three clients get the printed certificate', async () => {
  const probe = await hold(PORT_FIRST)
  await close(probe)
  const started = await npmStart()
  const { url, port, fingerprint, curl } = started
  if (probe) assert.is(port, PORT_FIRST)

  const pasted = await world.run('sh', ['-c', curl], { cwd: '/' })
  assert.is(pasted.code, 0, pasted.stderr)
  assert.match(pasted.stdout, /^This page came through a relay that cannot read it\./)
  assert.match(pasted.stdout, /request: GET \/ HTTP\/1\.1/)
  assert.match(pasted.stdout, /server name: demo\.secure\.localhost/)
  assert.match(pasted.stdout, /sealed bytes from you: [1-9]\d+/)

  // Without the certificate nothing is trusted: no authority has vouched for it.
  const blind = await world.run('curl', ['-sS', '--noproxy', '*', url])
  assert.is(blind.code, 60, blind.stderr)

  const received = await world.run('bash', [
    '-c',
    `openssl s_client -connect 127.0.0.1:${port} -servername demo.secure.localhost </dev/null ` +
    '2>/dev/null | openssl x509',
  ])
  const certificate = new X509Certificate(received.stdout)
  assert.is(certificate.fingerprint256, fingerprint)
  assert.ok(certificate.checkHost('demo.secure.localhost'))

  await inChromium(started, received.stdout)
  await interrupt(started)
})

async function inChromium({ url, fingerprint }: Started, pem: string): Promise<void> {
  const browser = await openBrowser([spkiOf(pem)])
  try {
    const page = await browser.newPage()
    const session = await page.context().newCDPSession(page)
    await session.send('Network.enable')
    const answer = await page.goto(url, { timeout: 20_000 })
    assert.is(answer?.status(), 200)
    assert.is(await page.textContent('h1'), 'This page came through a relay that cannot read it')
    assert.match((await page.textContent('main'))!, /server name\s*demo\.secure\.localhost/)
    const folder = process.env['SOTTO_SCREENSHOTS'] ?? world.dir
    await page.screenshot({ path: join(folder, 'first_minutes.png') })
    const { tableNames } = await session.send('Network.getCertificate', {
      origin: new URL(url).origin,
    })
    const der = Buffer.from(tableNames[0]!, 'base64')
    const hash = createHash('sha256').update(der).digest('hex').toUpperCase()
    assert.is(hash, fingerprint.replaceAll(':', ''))
  } finally {
    await browser.close()
  }
}

test('the next free port is taken when the first is not free', async () => {
  const held = await hold(PORT_FIRST)
  try {
    const started = await npmStart()
    assert.ok(started.port > PORT_FIRST && started.port <= PORT_FIRST + 50, `${started.port}`)
    assert.is((await world.run('sh', ['-c', started.curl])).code, 0)
    await interrupt(started)
  } finally {
    await close(held)
  }
})

test('npm start -- PORT: a service of one’s own', async () => {
  const service = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response('mine\n') })
  try {
    const started = await npmStart('--', String(service.port))
    assert.is((await world.run('sh', ['-c', started.curl])).stdout, 'mine\n')
    await interrupt(started)
  } finally {
    await service.stop(true)
  }
})

test('Ctrl-C at a terminal: exit 130, with a visitor in the middle of a download', async () => {
  let cut = false
  const service = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch: () =>
      new Response(
        new ReadableStream({
          start: (to) => to.enqueue('begun\n'),
          cancel: () => void (cut = true),
        }),
      ),
  })
  try {
    const words = `npm start -- ${service.port}`
    const terminal = world.start('script', ['-qefc', words, '/dev/null'], {
      cwd: clone,
      home: 'person',
      input: '',
      env: { TERM: 'xterm' },
    })
    const started = await read(terminal)
    const visitor = world.start('sh', ['-c', started.curl.replace('curl', 'exec curl -sSN')])
    await visitor.says(/begun/)
    terminal.child.stdin!.write('\x03')
    await over(terminal, started.port)
    assert.is.not((await visitor.ended).code, 0)
    assert.ok(cut)
  } finally {
    await service.stop(true)
  }
})

test('the same URL and certificate the next time', async () => {
  const first = await npmStart()
  await interrupt(first)
  const second = await npmStart()
  await interrupt(second)
  assert.is(second.fingerprint, first.fingerprint)
  assert.is(second.url, first.url)
})

test.run()
