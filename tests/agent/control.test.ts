/** The local socket of "sotto up", and what programs do to it that mean it ill. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { once } from 'node:events'
import { mkdirSync, statSync, writeFileSync } from 'node:fs'
import { askControl, controlId, controlIds, openControl } from '../../agent/control.ts'
import type { ControlHandler } from '../../agent/control.ts'
import { EventLog, EVENTS_MAX } from '../../agent/event_log.ts'
import { isTunnelError } from '../../core/errors.ts'
import { testWorld } from '../support/agent_world.ts'
import type { TestWorld } from '../support/agent_world.ts'

const CLIENTS_MAX = 16
const PATH = '/etc/sotto/sotto.yaml'

let bench: TestWorld
let stateDir: string
let id: string
let socketPath: string
let close: () => Promise<void>
let waiting: (() => void)[] = []

const handler: ControlHandler = async (request, answer) => {
  if (request['do'] === 'wait') {
    answer.line({ event: 'waiting' })
    for (const run of waiting.splice(0)) run()
    return await answer.left
  }
  if (request['do'] === 'flood') {
    for (let i = 0; i < 1000; i++) answer.line({ event: 'x', words: 'x'.repeat(10_000) })
    return answer.end()
  }
  answer.line({ event: 'heard', request })
  answer.end()
}

const test = suite('agent/control')

test.before.each(async () => {
  bench = await testWorld()
  stateDir = `${bench.dir}/state`
  id = controlId(bench.world, PATH)
  socketPath = `${stateDir}/run/${id}.sock`
  waiting = []
  ;({ close } = await openControl(bench.world, { stateDir, path: PATH, handler }))
})

test.after.each(async () => {
  await close()
  await bench.close()
})

async function ask(request: object): Promise<Record<string, unknown>[]> {
  const lines: Record<string, unknown>[] = []
  const answered = await askControl(bench.world, { stateDir, id, request }, (line) => {
    lines.push(line)
  })
  assert.ok(answered)
  return lines
}

/** `once` would give up at an error before it. */
function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => void socket.on('close', () => resolve()))
}

/** Writes bytes as they are, and gives all that came back until the end. */
async function raw(bytes: string | Uint8Array): Promise<string> {
  const socket = connect(socketPath)
  socket.on('error', () => {})
  let heard = ''
  socket.setEncoding('utf8').on('data', (words: string) => void (heard += words))
  socket.write(bytes)
  await closed(socket)
  return heard
}

test('a request is answered; the socket is 0600 in a folder of 0700', async () => {
  assert.equal(await ask({ do: 'x' }), [{ event: 'heard', request: { do: 'x' } }])
  assert.is(statSync(socketPath).mode & 0o777, 0o600)
  assert.is(statSync(`${stateDir}/run`).mode & 0o777, 0o700)
  assert.equal(await controlIds(bench.world, stateDir), [id])
})

test('one configuration has one process: the second is told', async () => {
  const error = await openControl(bench.world, { stateDir, path: PATH, handler }).catch((e) => e)
  assert.ok(isTunnelError(error, 'config/running'))
  assert.match(error.hint ?? '', /sotto down/)
  assert.equal(await ask({ do: 'x' }), [{ event: 'heard', request: { do: 'x' } }])
})

test('a socket that a killed process left behind is replaced; where nobody listens, nobody answers', async () => {
  await close()
  assert.is(await askControl(bench.world, { stateDir, id, request: {} }, () => {}), false)
  mkdirSync(`${stateDir}/run`, { recursive: true })
  ;({ close } = await openControl(bench.world, { stateDir, path: PATH, handler }))
  assert.is((await ask({ do: 'x' })).length, 1)
})

test('a file that is no socket is not removed for one', async () => {
  await close()
  writeFileSync(socketPath, 'mine')
  const error = await openControl(bench.world, { stateDir, path: PATH, handler }).catch((e) => e)
  assert.ok(isTunnelError(error, 'net/in-use'), String(error))
  assert.is(statSync(socketPath).size, 4)
})

for (
  const [what, bytes] of [
    ['no JSON', 'status\n'],
    ['a list', '[]\n'],
    ['null', 'null\n'],
    ['bytes that are no text', new Uint8Array([0xff, 0xfe, 0x0a])],
    ['a line without an end', 'x'.repeat(5000)],
    ['a line that is too long', `{"do":"${'x'.repeat(5000)}"}\n`],
  ] as const
) {
  test(`${what} is refused with words, and others are served on`, async () => {
    assert.match(await raw(bytes), /"code":"control\/request"/)
    assert.is((await ask({ do: 'x' })).length, 1)
  })
}

test('attack: in a folder of another user nobody listens, since he could take the place of the socket', async () => {
  await close()
  const { files } = bench.world
  const world = {
    ...bench.world,
    files: {
      ...files,
      info: async (path: string) => {
        const info = await files.info(path)
        return info && path.endsWith('/run') ? { ...info, own: false } : info
      },
    },
  }
  const error = await openControl(world, { stateDir, path: PATH, handler }).catch((e) => e)
  assert.ok(isTunnelError(error, 'profile/permissions'), String(error)) // The lock is free again.
  ;({ close } = await openControl(bench.world, { stateDir, path: PATH, handler }))
})

test('what comes after the request changes nothing', async () => {
  assert.match(await raw(`{"do":"x"}\n${'y'.repeat(100_000)}`), /"event":"heard"/)
})

test('of many who connect and wait, the seventeenth is closed; then there is room again', async () => {
  const stops: (() => void)[] = []
  for (let i = 0; i < CLIENTS_MAX; i++) {
    const socket = connect(socketPath)
    socket.on('error', () => {})
    const heard = new Promise<void>((resolve) => void waiting.push(resolve))
    socket.write('{"do":"wait"}\n')
    await heard
    stops.push(() => socket.destroy())
  }
  assert.is(await raw('{"do":"x"}\n'), '')
  for (const stop of stops) stop()
  for (;;) if ((await raw('{"do":"x"}\n')).includes('heard')) break
})

test('whoever does not read is left, with a bounded backlog', async () => {
  const socket = connect(socketPath)
  socket.on('error', () => {})
  await once(socket, 'connect')
  socket.pause()
  socket.write('{"do":"flood"}\n')
  assert.is((await ask({ do: 'x' })).length, 1)
  let bytes = 0
  socket.on('data', (chunk: Uint8Array) => void (bytes += chunk.length))
  socket.resume()
  await closed(socket)
  assert.ok(bytes < 10_000_000, `${bytes} bytes came`)
})

test('the log keeps the last thousand, and a reader sees what comes', () => {
  const log = new EventLog(bench.world.clock)
  const seen: number[] = []
  for (let i = 0; i < EVENTS_MAX + 10; i++) {
    log.add('visitor', 'a visitor', { tunnel: i % 2 ? 'odd' : 'even' })
  }
  const stop = log.follow(({ number }) => void seen.push(number))
  log.add('visitor', 'one more', { tunnel: 'odd' })
  stop()
  log.add('visitor', 'unseen')
  assert.is(log.last(5000).length, EVENTS_MAX)
  assert.is(log.last(5000).at(-1)!.number, EVENTS_MAX + 12)
  assert.is(log.last(5000, 'even').length, EVENTS_MAX / 2 - 1)
  assert.equal(seen, [EVENTS_MAX + 11])
})

test.run()
