// `npm start` in memory: a relay, an agent and the page, asked by curl with the very line that is shown.
// needs: curl
import { spawn } from 'node:child_process'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { readFile, stat } from 'node:fs/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import fc from 'fast-check'
import { parseHead, servePage } from '../../agent/cli/demo_page.ts'
import { ManualClock } from '../../core/clock.ts'
import { utf8 } from '../../core/bytes.ts'
import { memoryConns } from '../../core/socket.ts'
import { Collector } from '../support/agent_world.ts'
import { Place } from '../support/cli.ts'
import { freePort } from '../support/port.ts'

const test = suite('agent/demo')
let place: Place

test.before.each(async () => void (place = await Place.make()))
test.after.each(() => place.close())

/** As a person would paste it. Not spawnSync: the page is served by this very process. */
function shell(line: string): Promise<{ code: number | null; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = spawn('sh', ['-c', line], { stdio: ['ignore', 'pipe', 'pipe'] })
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (bytes) => stdout += bytes)
    child.stderr.on('data', (bytes) => stderr += bytes)
    child.on('close', (code) => resolve({ code, stdout, stderr }))
  })
}

async function occupied(): Promise<{ port: number; free(): Promise<void> }> {
  const server = createServer((socket) => socket.destroy())
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return { port, free: () => new Promise((resolve) => server.close(() => resolve())) }
}

test('the curl line that is shown works, and shows both sides of this very connection', async () => {
  const port = await freePort()
  const state = place.home("it's a state")
  const demo = await place.start('ana', ['demo', '--port', `${port}`, '--state', state, '--json'])
  await demo.stdout.until(/"event":"up".*\n/)
  const up = demo.stdout.objects[0]!
  assert.is(up['url'], `https://demo.secure.localhost:${port}/`)
  assert.is(up['mode'], 'verified')
  assert.match(up['certificate'], /^([0-9A-F]{2}:){31}[0-9A-F]{2}$/)
  const { code, stdout, stderr } = await shell(`${up['curl']} -sS -H 'X-Mine: 42'`)
  assert.is(code, 0, stderr)
  assert.match(stdout, /What the agent saw:\n {2}request: GET \/ HTTP\/1\.1\n/)
  assert.match(stdout, / {2}X-Mine: 42\n/)
  assert.match(stdout, /What the relay saw[^]* {2}server name: demo\.secure\.localhost\n/)
  assert.match(stdout, / {2}your address: 127\.0\.0\.1 port \d+\n/)
  const fromYou = Number(/sealed bytes from you: (\d+)/.exec(stdout)?.[1])
  assert.ok(fromYou > 300, 'a ClientHello at least')
  // The relay's half of the page holds nothing that was inside of TLS.
  assert.not.match(stdout.slice(stdout.indexOf('What the relay saw')), /X-Mine|GET|42\n/)
  assert.is(await demo.stop(), 130)
})

test('a browser gets the same as a page that loads nothing from anywhere', async () => {
  const port = await freePort()
  const demo = await place.start('ana', ['demo', '--port', `${port}`, '--json'])
  await demo.stdout.until(/"event":"up".*\n/)
  const { curl } = demo.stdout.objects[0]!
  const { stdout } = await shell(
    `${curl} -sSi -H 'Accept: text/html' -H 'X-Evil: <script>alert(1)</script>'`,
  )
  assert.match(stdout, /Content-Type: text\/html/)
  assert.match(stdout, /default-src 'none'/)
  assert.match(stdout, /<h2>What the relay saw of this very connection<\/h2>/)
  assert.not.match(stdout, /<script|src=|href=/)
  assert.is(await demo.stop(), 130)
})

test('an upstream of our own takes the place of the page', async () => {
  const port = await freePort()
  const demo = await place.start('ana', ['demo', '1', '--port', `${port}`, '--json'])
  await demo.stdout.until(/"event":"up".*\n/)
  const { curl } = demo.stdout.objects[0]!
  const { stdout } = await shell(`${curl} -sS -o /dev/null -w '%{http_code}'`)
  assert.is(stdout, '502')
  await demo.stderr.until(/Cannot connect to 127\.0\.0\.1:1/)
  await shell(`${curl} -sS`)
  assert.is(demo.stderr.lines.length, 1, 'it is said once')
  assert.is(await demo.stop(), 130)
})

test('a port that is taken and was asked for is refused; Ctrl-C frees what was taken', async () => {
  const taken = await occupied()
  const { code, stderr } = await place.run('ana', ['demo', '--port', `${taken.port}`])
  await taken.free()
  assert.is(code, 1)
  assert.match(stderr.text, new RegExp(`${taken.port}`))
  for (let round = 0; round < 2; round++) {
    const demo = await place.start('ana', ['demo', '--port', `${taken.port}`, '--json'])
    await demo.stdout.until(/"event":"up".*\n/)
    assert.is(await demo.stop(), 130)
  }
})

test('without a port it takes the next free one, and two at once do not meet', async () => {
  const first = await place.start('ana', ['demo', '--json'])
  await first.stdout.until(/"event":"up".*\n/)
  const second = await place.start('ana', ['demo', '--json'])
  await second.stdout.until(/"event":"up".*\n/)
  const ports = [first, second].map(({ stdout }) => Number(new URL(stdout.objects[0]!['url']).port))
  assert.ok(ports[0]! >= 8443 && ports[1]! > ports[0]!, ports.join())
  for (const { stdout } of [first, second]) {
    const page = await shell(`${stdout.objects[0]!['curl']} -sS`)
    assert.match(page.stdout, /server name: demo\.secure\.localhost/)
  }
  assert.equal([await first.stop(), await second.stop()], [130, 130])
})

test('its identity, key and certificate stay from one start to the next, none readable by others', async () => {
  const shown: Record<string, string>[] = []
  for (let round = 0; round < 2; round++) {
    const demo = await place.start('ana', ['demo', '--port', `${await freePort()}`, '--json'])
    await demo.stdout.until(/"event":"up".*\n/)
    shown.push(demo.stdout.objects[0]!)
    await demo.stop()
  }
  for (const field of ['certificate', 'key', 'relay']) assert.is(shown[0]![field], shown[1]![field])
  const path = /--cacert (\S+)/.exec(shown[0]!['curl']!)![1]!
  assert.not.match(await readFile(path, 'utf8'), /PRIVATE KEY/)
  assert.is((await stat(path)).mode & 0o077, 0)
})

test('parseHead() wants a whole head, however it is cut', () => {
  const whole = utf8(
    'PROXY TCP4 192.0.2.7 0.0.0.0 4711 8443\r\nGET /?q=1 HTTP/1.1\r\nHost: a:b\r\nX: \r\n\r\n',
  )
  for (let cut = 0; cut < whole.length; cut++) assert.is(parseHead(whole.subarray(0, cut)), 'more')
  assert.equal(parseHead(whole), {
    visitor: { address: '192.0.2.7', port: 4711 },
    line: 'GET /?q=1 HTTP/1.1',
    headers: [['Host', 'a:b'], ['X', '']],
  })
  assert.is(parseHead(utf8('PROXY nonsense\r\nGET / HTTP/1.1\r\n\r\n')), 'wrong')
  assert.is(parseHead(utf8('hello\r\n\r\n')), 'wrong')
  assert.is(parseHead(new Uint8Array([0xff, 0xfe])), 'wrong')
})

async function asked(bytes: Uint8Array): Promise<string> {
  const [near, far] = memoryConns()
  servePage(far, { clock: new ManualClock(), relaySaw: () => undefined })
  const collector = new Collector(near)
  near.write(bytes)
  near.end()
  await collector.ended
  return collector.text
}

test('whatever is sent, the page answers with HTTP or nothing, and ends', async () => {
  const known = ['GET / HTTP/1.1\r\n\r\n', 'PROXY UNKNOWN\r\n', 'Accept: text/html\r\n', '\r\n\r\n']
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.oneof(fc.constantFrom(...known), fc.string()), { maxLength: 6 }),
      async (parts) => {
        const answer = await asked(utf8(parts.join('')))
        assert.ok(answer === '' || /^HTTP\/1\.1 (200|400|404) /.test(answer), answer)
      },
    ),
    { numRuns: 300 },
  )
})

test('a head without end is cut off at its limit', async () => {
  assert.match(
    await asked(utf8(`GET / HTTP/1.1\r\n${'X: y\r\n'.repeat(10_000)}`)),
    /^HTTP\/1\.1 400 /,
  )
})

test('HEAD and unknown paths get their heads', async () => {
  const head = await asked(utf8('HEAD / HTTP/1.1\r\n\r\n'))
  assert.match(head, /^HTTP\/1\.1 200 OK\r\n[^]*\r\n\r\n$/)
  assert.match(await asked(utf8('GET /favicon.ico HTTP/1.1\r\n\r\n')), /^HTTP\/1\.1 404 /)
})

test.run()
