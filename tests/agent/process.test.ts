/** Signals and the standard streams, in real processes. */
import { spawn } from 'node:child_process'
import type { ChildProcessWithoutNullStreams } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hostClock } from '../../agent/host/process.ts'
import { pattern } from '../support/agent_world.ts'

const test = suite('agent/process')
const ROOT = join(import.meta.dirname, '../..')

function run(code: string): ChildProcessWithoutNullStreams {
  const child = spawn(process.execPath, ['-e', code], { cwd: ROOT })
  child.stderr.on('data', () => {})
  return child
}

const PATIENT = `
import { stopSignal } from './agent/host/process.ts'
const signal = stopSignal()
signal.addEventListener('abort', () => console.log(JSON.stringify(signal.reason)))
setInterval(() => {}, 1000)
console.log('ready')
`

for (
  const [signal, name, exitCode] of [
    ['SIGINT', 'interrupt', 130],
    ['SIGTERM', 'terminate', 143],
    ['SIGHUP', 'hangup', 129],
  ] as const
) {
  test(`${signal} asks once, and ends a process that does not follow at the second`, async () => {
    const child = run(PATIENT)
    assert.is(String((await once(child.stdout, 'data'))[0]), 'ready\n')
    child.kill(signal)
    assert.equal(JSON.parse(String((await once(child.stdout, 'data'))[0])), { name, exitCode })
    assert.is(child.exitCode, null)
    child.kill(signal)
    const [code] = await once(child, 'close')
    assert.is(code, exitCode)
  })
}

const ECHO = `
import { hostTerminal } from './agent/host/process.ts'
const conn = hostTerminal().stdio()
let ended = false
conn.handle({
  data(bytes) { if (conn.write(bytes) === 'queued') conn.pause() },
  drain() { conn.resume() },
  end() { conn.write(new TextEncoder().encode('END')); conn.end() },
  closed() {},
})
`

test('stdio() is one connection: 4 MiB come back whole, then what was said after the end', async () => {
  const child = run(ECHO)
  const body = pattern(4_194_304, 9)
  const hash = createHash('sha256')
  let length = 0
  let tail = Buffer.alloc(0)
  child.stdout.on('data', (chunk: Buffer) => {
    length += chunk.length
    hash.update(chunk)
    tail = Buffer.concat([tail.subarray(-8), chunk.subarray(-8)])
  })
  child.stdin.end(Buffer.from(body))
  const [code] = await once(child, 'close')
  assert.is(code, 0)
  assert.is(length, body.length + 3)
  assert.is(tail.subarray(-3).toString(), 'END')
  assert.is(hash.digest('hex'), createHash('sha256').update(body).update('END').digest('hex'))
})

test('a reader that goes away does not end the program with a trace', async () => {
  const child = run(`
import { hostTerminal } from './agent/host/process.ts'
const { stdout, stderr } = hostTerminal()
process.stdin.once('data', () => {
  for (let i = 0; i < 100; i++) stdout.write('x'.repeat(10_000))
  setTimeout(() => process.exit(7), 100)
})
stdout.write('ready')
`)
  let said = ''
  child.stderr.on('data', (chunk) => (said += chunk))
  await once(child.stdout, 'data')
  child.stdout.destroy()
  child.stdin.write('go')
  const [code] = await once(child, 'close')
  assert.is(code, 7, said)
  assert.is(said, '')
})

test('the clock runs what is due, and not what was cancelled', async () => {
  const order: string[] = []
  const alive = setInterval(() => {}, 1000)
  await new Promise<void>((resolve) => {
    hostClock.after(30, () => {
      order.push('late')
      resolve()
    })
    hostClock.after(-1, () => void order.push('now'))
    hostClock.after(10, () => void order.push('never')).cancel()
  })
  clearInterval(alive)
  assert.equal(order, ['now', 'late'])
  assert.ok(Math.abs(hostClock.now() - Date.now()) < 5000)
  assert.ok(hostClock.monotonic() <= hostClock.monotonic())
})

test.run()
