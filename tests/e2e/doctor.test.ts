// seconds: 240
// needs: ip nft turnserver root
/**
 * `sotto doctor` before things that are really broken: name spaces with a router between, whose kernel
 * translates addresses in one way or another, coturn with two addresses in the open, packets that
 * vanish by their size, and UDP that is dropped.
 */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { NatBench } from '../support/nat.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const SOTTO = [join(ROOT, 'node_modules/.bin/bun'), join(ROOT, 'agent/main.ts')]

const test = suite('e2e/doctor')
let bench: NatBench
let dir: string
const children: ChildProcess[] = []

test.before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'sotto-doctor-'))
  bench = new NatBench('relay.test')
  const [first, second] = bench.servers
  const flags = ['-n', '-v', '--no-tls', '--no-dtls', '--no-auth', '--no-cli', '--log-file=stdout']
  const here = [`--listening-ip=${first}`, `--listening-ip=${second}`, `--pidfile=${dir}/turn.pid`]
  await start(
    ['turnserver', ...flags, ...here, `--userdb=${dir}/turn.db`],
    /Total General servers/,
  )
  const relay = [...SOTTO, 'relay', '--domain', 'relay.test', '--host', first, '--port', '8443']
  await start([...relay, '--json'], /"event":"listening"/)
})
test.after(() => {
  for (const child of children) child.kill('SIGKILL')
  bench?.close()
  rmSync(dir, { recursive: true, force: true })
})
test.after.each(() => bench.clear())

/** In the open; until it says so. */
function start(command: string[], ready: RegExp): Promise<void> {
  return new Promise((resolve, reject) => {
    const [program, ...args] = [...bench.within('open'), ...command]
    const child = spawn(program!, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, SOTTO_HOME: `${dir}/open` },
    })
    children.push(child)
    let said = ''
    const late = setTimeout(() => reject(new Error(`${command[0]} says only: ${said}`)), 20_000)
    const look = (bytes: unknown): void => {
      said += String(bytes)
      if (!ready.test(said)) return
      clearTimeout(late)
      resolve()
    }
    child.stdout!.on('data', look)
    child.stderr!.on('data', look)
    child.once('exit', (code) => reject(new Error(`${command[0]} ended with ${code}: ${said}`)))
  })
}

function doctor(where: 'open' | 'inner', ...flags: string[]) {
  const [program, ...args] = [...bench.within(where), ...SOTTO, 'doctor', '--json', ...flags]
  const { status, stdout, stderr } = spawnSync(program!, args, {
    encoding: 'utf8',
    timeout: 60_000,
    env: { PATH: process.env['PATH'], SOTTO_HOME: `${dir}/inner` },
  })
  assert.ok(stdout, stderr)
  const events = stdout.trim().split('\n').map((line) => JSON.parse(line))
  // deno-lint-ignore no-explicit-any
  const found: Record<string, any> = Object.fromEntries(
    events.filter(({ event }) => event === 'check').map((one) => [one.check, one]),
  )
  return { code: status, found }
}

test('in the open: UDP passes, and there is no NAT', () => {
  const { found } = doctor('open', '--stun', bench.servers[0])
  assert.is(found['udp'].level, 'ok')
  assert.is(found['udp'].facts.nat, false)
  assert.is(found['udp'].facts.filtering, 'endpoint')
})

test('behind a NAT that keeps its port, which lets nobody else in', () => {
  bench.translate('keeps')
  const { found } = doctor('inner', '--stun', bench.servers[0])
  const { level, facts } = found['udp']
  assert.is(level, 'ok')
  assert.is(facts.nat, true)
  assert.is(facts.mapped.address, '203.0.113.100')
  assert.is(facts.mapping, 'endpoint')
  assert.is(facts.filtering, 'address and port')
})

test('behind a NAT with another port for each far end', () => {
  bench.translate('symmetric')
  const { found, code } = doctor('inner', '--stun', bench.servers[0])
  const { level, facts, remedy } = found['udp']
  assert.is(code, 0)
  assert.is(level, 'warning')
  assert.is(facts.mapping, 'address and port')
  assert.match(remedy, /the relay carries them/)
})

test('where UDP is dropped, in words', () => {
  bench.translate('keeps')
  bench.blockUdp()
  const { found, code } = doctor('inner', '--stun', bench.servers[0])
  assert.is(code, 1)
  assert.is(found['udp'].level, 'fail')
  assert.match(found['udp'].remedy, /UDP is blocked/)
})

test('a path that carries all is ok; one that swallows large packets is found', () => {
  bench.translate('keeps')
  const relay = ['--relay', 'https://relay.test:8443']
  const good = doctor('inner', ...relay).found
  assert.is(good['tcp'].level, 'ok')
  assert.is(good['http'].level, 'ok', good['http'].words)
  assert.is(good['websocket'].level, 'ok', good['websocket'].words)
  assert.is(good['clock'].level, 'ok')
  assert.is(good['mtu'].level, 'ok', good['mtu'].words)
  assert.is(good['mtu'].facts.mtu, 1500)
  // Nobody vouches for a self-signed certificate of a relay that was never met.
  assert.is(good['tls'].level, 'fail')
  assert.match(good['tls'].remedy, /--relay-fingerprint/)
  bench.swallow(1400)
  const bad = doctor('inner', ...relay).found
  assert.is(bad['tcp'].level, 'ok')
  assert.is(bad['mtu'].level, 'fail')
  assert.match(bad['mtu'].words, /large ones vanish/, JSON.stringify(bad['mtu']))
})

test.run()
