/**
 * Programs that answer messages: real ones, started without a shell. What they are given, what ends
 * them, and that nothing of them stays.
 */
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Incoming, sendMessage } from '../../agent/a2a.ts'
import type { MessageResult } from '../../agent/a2a.ts'
import { EXEC_DEFAULTS, Runner } from '../../agent/exec.ts'
import type { ExecOptions } from '../../agent/exec.ts'
import { hostWorld } from '../../agent/host/world.ts'
import { text, utf8 } from '../../core/bytes.ts'
import { joined, Sink } from '../support/message_link.ts'

const test = suite('agent/exec')
const world = hostWorld({ signal: new AbortController().signal })
const PEER = { name: 'alice', key: 'k' }

interface Ran {
  result: MessageResult
  out: string
  err: string
}

let ids = 0
const nextId = (): string => String(++ids).padStart(32, '0')

async function ask(
  runner: Runner,
  body: Iterable<Uint8Array> | AsyncIterable<Uint8Array> = [],
): Promise<Ran> {
  const link = joined()
  const next = link.next()
  const sink = new Sink()
  const sent = sendMessage(link.open({ id: nextId(), exec: true }), body, sink, link.near)
  const stream = await next
  const incoming = new Incoming(stream, stream.visit.tail, link.far)
  await incoming.finish(await runner.run(incoming, PEER))
  return { result: await sent, out: text(sink.out), err: text(sink.err) }
}

const runs = (argv: string[], more: Partial<ExecOptions> = {}, env = world.env): Runner =>
  new Runner({ ...world, env }, { ...EXEC_DEFAULTS, ...more, argv })

test('the message is its input; output, errors and exit code come back apart', async () => {
  const ran = await ask(runs(['sh', '-c', 'cat; echo bad >&2; exit 3']), [utf8('hello')])
  assert.equal(ran, { result: { status: 'failed', exit: 3 }, out: 'hello', err: 'bad\n' })
  assert.is((await ask(runs(['true']))).result.status, 'delivered')
})

test('arguments are words, and no shell reads them', async () => {
  const ran = await ask(runs(['printf', '%s|', '$HOME', ';touch /tmp/no', '*']))
  assert.is(ran.out, '$HOME|;touch /tmp/no|*|')
})

test('secrets of ours and what changes programs are not in its environment', async () => {
  const env = {
    PATH: world.env['PATH'],
    SOTTO_API_KEY: 'sk_secret',
    LD_PRELOAD: '/nowhere.so',
    NODE_OPTIONS: '--inspect',
    LC_ALL: 'C',
  }
  const { out } = await ask(runs(['env'], {}, env))
  const names = out.trim().split('\n').map((line) => line.split('=')[0]).sort()
  assert.equal(
    names.filter((name) => !['PWD', '_', 'SHLVL'].includes(name!)),
    ['LC_ALL', 'PATH', 'SOTTO_MESSAGE_ID', 'SOTTO_PEER', 'SOTTO_PEER_KEY'],
  )
  assert.match(out, 'SOTTO_PEER=alice')
})

test('a program that is not there is named, with a remedy', async () => {
  const { result } = await ask(runs(['no-such-program-here']))
  assert.is(result.status, 'failed')
  assert.is(result.code, 'program/start')
  assert.match(result.message!, 'no-such-program-here')
})

test('one that runs too long is ended with all that it started', async () => {
  const { result, out } = await ask(
    runs(['sh', '-c', 'sleep 600 & echo $!; wait'], { timeMs: 300 }),
  )
  assert.is(result.status, 'timeout')
  assert.is(result.code, 'a2a/time')
  assert.not(isRunning(Number(out)), 'its child runs on')
})

test('one that writes without end is ended at the limit', async () => {
  const { result, out } = await ask(runs(['yes'], { outputBytesMax: 1_000_000 }))
  assert.is(result.code, 'a2a/output')
  assert.ok(out.length <= 1_000_000)
})

test('one that ignores a polite end gets the other', async () => {
  const { result, out } = await ask(
    runs(['sh', '-c', 'trap "" TERM; echo $$; while :; do sleep 0.1; done'], { timeMs: 300 }),
  )
  assert.is(result.status, 'timeout')
  assert.not(isRunning(Number(out)))
})

test('no more than so many run at once', async () => {
  const runner = runs(['cat'], { runsMax: 1 })
  let release = (): void => {}
  const held = new Promise<void>((resolve) => void (release = resolve))
  const first = ask(
    runner,
    (async function* () {
      await held
      yield utf8('late')
    })(),
  )
  while (runner.size === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  const second = await ask(runner)
  assert.is(second.result.status, 'refused')
  assert.is(second.result.code, 'a2a/busy')
  release()
  assert.is((await first).out, 'late')
  assert.is(runner.size, 0)
})

test('when the sender goes, the program goes', async () => {
  const link = joined()
  const next = link.next()
  const sink = new Sink()
  const stream = link.open({ id: nextId() })
  const never = (async function* () {
    yield utf8('x')
    await new Promise(() => {})
  })()
  const sent = sendMessage(stream, never, sink, link.near).catch(() => {})
  const far = await next
  const incoming = new Incoming(far, far.visit.tail, link.far)
  const running = runs(['sh', '-c', 'echo $$; exec sleep 600']).run(incoming, PEER)
  while (sink.out.length === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  stream.reset(6)
  assert.is((await running).code, 'a2a/gone')
  assert.not(isRunning(Number(text(sink.out))))
  await sent
})

/** A process that has ended and that nobody has buried yet does not run. */
function isRunning(pid: number): boolean {
  assert.ok(pid > 1)
  try {
    return !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}

test.run()
