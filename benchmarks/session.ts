/**
 * What does a session cost? Handshakes and sealing on one core, in this process; a sealed stream, its latency and
 * its datagrams over a real relay, each beside the same without sealing; datagrams beside derper and iroh-relay.
 */
import * as nodeCrypto from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { BenchOptions } from './bench.ts'
import { SESSION_SUITES } from '../agent/agent.ts'
import { ChainInput, chainStart } from '../core/chain.ts'
import { fastCrypto } from '../core/crypto.ts'
import { generateIdentity } from '../core/key.ts'
import type { Identity } from '../core/key.ts'
import { CipherState } from '../core/noise.ts'
import type { Suite } from '../core/noise.ts'
import { decodeOpening, InitiatorHello, ResponderHello } from '../core/opening.ts'
import { encodePassport, openPassport } from '../core/passport.ts'
import { RecordReceiver, RecordSender } from '../core/records.ts'
import type { OnRecord } from '../core/records.ts'
import { EnvelopeReader, SESSION_SIZES } from '../core/envelope.ts'
import { Lab, type Spawned, which } from './lab.ts'
import { checkGoals, Columns, emptyReport, type Goal, markdown, save } from './report.ts'
import { startRelay } from './sotto.ts'

const PEER = fileURLToPath(new URL('session_peer.ts', import.meta.url))
const RECORD_SIZES = [64, 1024, 16_384, 65_511]
const CPU_MS = 1000
const RACE_MS = 2000
const crypto = fastCrypto(nodeCrypto)

const GOALS: Goal[] = [
  {
    says: 'seal and open at 64 KiB, one core, GB/s',
    race: 'seal + open 65511 B',
    ours: 'aesgcm',
    theirs: 2,
    factor: 1,
  },
  {
    says: 'handshakes a second, both ends on one core',
    race: 'handshakes',
    ours: 'aesgcm',
    theirs: 300,
    factor: 1,
  },
  {
    says: 'sealed stream through the relay ÷ the same unsealed',
    race: 'stream',
    ours: 'sotto sealed',
    theirs: 'sotto plain',
    factor: 0.7,
  },
  {
    says: 'one-way latency that sealing adds, µs',
    race: 'added latency',
    ours: 'sotto sealed',
    theirs: 100,
    factor: 1,
  },
]

interface Party {
  identity: Identity
  staticKey: { private32: Uint8Array; public32: Uint8Array }
  passport: Uint8Array
}

function party(): Party {
  const identity = generateIdentity(crypto)
  const private32 = crypto.randomBytes(32)
  const staticKey = { private32, public32: crypto.x25519Public(private32) }
  const notBefore = Date.now()
  const passport = encodePassport({
    identity: identity.public,
    sequence: 1,
    notBefore,
    notAfter: notBefore + 86_400_000,
    staticKey: staticKey.public32,
    certificates: [],
    names: ['bench'],
    ciphers: [...SESSION_SUITES],
  }, (message) => crypto.ed25519Sign(identity.seed, message))
  return { identity, staticKey, passport }
}

/** Both ends of one whole handshake, passports verified as in life. */
function handshake(a: Party, b: Party, suite: Suite): void {
  const peer = openPassport(crypto, b.passport, { now: Date.now() })
  const opening = {
    suite,
    initiator: a.identity.public,
    responder: b.identity.public,
    service: 'bench',
  }
  const hello = new InitiatorHello({ crypto, opening, ...a, peer })
  const read = decodeOpening(hello.body)
  const answer = new ResponderHello({ crypto, ...b, ...read, now: Date.now() })
    .answer(b.passport, new Uint8Array(16))
  hello.answer(answer.body, Date.now())
}

/** How often `run` runs in a second. */
function rate(run: () => void): number {
  for (let i = 0; i < 20; i++) run()
  const started = performance.now()
  let count = 0
  while (performance.now() - started < CPU_MS) {
    run()
    count++
  }
  return count / ((performance.now() - started) / 1000)
}

/** GB/s through one sender and one receiver, with the hash chains that every session keeps. */
function sealing(suite: Suite, bytes: number): number {
  const key32 = crypto.randomBytes(32)
  const clock = {
    now: Date.now,
    monotonic: () => performance.now(),
    after: () => ({ cancel() {} }),
  }
  // Each end chains each record, as in life.
  const chained = (): OnRecord => {
    const input = new ChainInput(crypto)
    let chain = chainStart(crypto, key32.subarray(16), 1)
    return (record) => void (chain = input.next(chain, record))
  }
  const cipher = (): CipherState => new CipherState({ crypto, suite, key32 })
  const sender = new RecordSender({ cipher: cipher(), clock, onRecord: chained() })
  const receiver = new RecordReceiver({ cipher: cipher(), clock, onRecord: chained() })
  const reader = new EnvelopeReader(SESSION_SIZES)
  const frame = new Uint8Array(5 + bytes)
  const perSecond = rate(() => {
    sender.refresh()
    sender.seal('data', frame)
    for (let next = sender.take(); next; next = sender.take()) {
      reader.push(next)
      for (let envelope = reader.next(); envelope; envelope = reader.next()) receiver.open(envelope)
    }
    sender.acknowledge(receiver.opened)
  })
  return (perSecond * bytes) / 1e9
}

interface Figures {
  [race: string]: number
}

async function figuresOf(lab: Lab, name: string, command: string[], env = {}): Promise<Figures> {
  const peer = lab.spawn(name, [process.execPath, PEER, ...command], { env })
  const said = () => /\{"figures":(\{.*\})\}/.exec(peer.log())?.[1]
  await lab.until(peer, 'finish', () => said() !== undefined, { msMax: 60_000 })
  await peer.stop()
  return JSON.parse(said()!) as Figures
}

/** Two agents who know each other, over a relay of ours. */
async function ourFigures(lab: Lab, ms: number): Promise<Figures> {
  const { relay, port, fingerprint, apiKey } = await startRelay(lab, {
    name: `session ${Date.now()}`,
  })
  try {
    const at = [`https://localhost:${port}`, fingerprint]
    const homes = ['answer', 'ask'].map((role) => ({
      SOTTO_HOME: lab.path(`${role} home`),
      SOTTO_API_KEY: apiKey,
    }))
    for (const { SOTTO_HOME } of homes) mkdirSync(SOTTO_HOME, { recursive: true })
    // Everybody of this benchmark may: what is measured is no access table.
    const asker = await keyOf(lab, homes[1]!)
    writeFileSync(
      `${homes[0]!.SOTTO_HOME}/settings.json`,
      JSON.stringify({ access: [{ peer: asker, services: ['a2a'] }] }),
      { mode: 0o600 },
    )
    const answer = lab.spawn('answer', [process.execPath, PEER, 'sotto', ...at, 'answer'], {
      env: homes[0]!,
    })
    const ready = () => /\{"ready":"([a-z2-7]+)"\}/.exec(answer.log())?.[1]
    await lab.until(answer, 'be ready', () => ready() !== undefined)
    const figures = await figuresOf(
      lab,
      'ask',
      ['sotto', ...at, 'ask', ready()!, `${ms}`],
      homes[1]!,
    )
    await answer.stop()
    return figures
  } finally {
    await relay.stop()
  }
}

async function keyOf(lab: Lab, env: { SOTTO_HOME: string }): Promise<string> {
  const main = fileURLToPath(new URL('../agent/main.ts', import.meta.url))
  const said = lab.spawn('identity', [process.execPath, main, 'identity', '--json'], { env })
  const key = () => /"key":"([a-z2-7]{52})"/.exec(said.log())?.[1]
  await lab.until(said, 'say its key', () => key() !== undefined)
  return key()!
}

async function derper(lab: Lab): Promise<{ relay: Spawned; port: number }> {
  const port = await lab.freePort()
  const folder = lab.path('derper')
  mkdirSync(folder, { recursive: true })
  const relay = lab.spawn('derper', [
    ...[which('derper')!, '-a', `127.0.0.1:${port}`, '-http-port', '-1', '-stun=false'],
    ...['-c', `${folder}/derper.json`, '-hostname', 'localhost'],
  ])
  await lab.listens(port, relay)
  return { relay, port }
}

async function irohRelay(lab: Lab): Promise<{ relay: Spawned; port: number }> {
  const port = await lab.freePort()
  const file = lab.path('iroh-session.toml')
  writeFileSync(file, `enable_relay = true\nhttp_bind_addr = "127.0.0.1:${port}"\n`)
  const relay = lab.spawn('iroh-relay', [which('iroh-relay')!, '--dev', '--config-path', file])
  await lab.listens(port, relay)
  return { relay, port }
}

export async function session(options: BenchOptions): Promise<void> {
  const lab = new Lab()
  const report = emptyReport('session', options)
  const columns = new Columns()
  const ms = options.ms ?? (options.quick ? 500 : RACE_MS)
  const more = (race: string, unit: string, digits: number) =>
    ({ race, unit, digits, better: 'more' }) as const
  const less = (race: string, unit: string, digits: number) =>
    ({ race, unit, digits, better: 'less' }) as const
  const [a, b] = [party(), party()]
  try {
    for (let round = 0; round < options.rounds; round++) {
      lab.goOn()
      for (const suite of ['aesgcm', 'chachapoly'] as const) {
        columns.add(more('handshakes', '/s', 0), suite, rate(() => handshake(a, b, suite)))
        for (const bytes of RECORD_SIZES) {
          columns.add(more(`seal + open ${bytes} B`, 'GB/s', 3), suite, sealing(suite, bytes))
        }
      }
      const ours = await ourFigures(lab, ms)
      for (
        const [contender, kind] of [['sotto plain', 'plain'], ['sotto sealed', 'sealed']] as const
      ) {
        columns.add(more('stream', 'MB/s', 0), contender, ours[`${kind} stream`]!)
        columns.add(less('one-way latency', 'µs', 1), contender, ours[`${kind} latency`]!)
      }
      const added = ours['sealed latency']! - ours['plain latency']!
      columns.add(less('added latency', 'µs', 1), 'sotto sealed', added)
      columns.add(less('open a session', 'ms', 1), 'sotto sealed', ours['openMs']!)
      columns.add(more('datagrams', '/s', 0), 'sotto sealed', ours['datagrams']!)
      for (const [name, start] of [['derper', derper], ['iroh-relay', irohRelay]] as const) {
        if (!which(name)) {
          report.missing[name] = `no ${name} here`
          continue
        }
        const { relay, port } = await start(lab)
        try {
          const figures = await figuresOf(lab, `${name} clients`, [name, `${port}`, `${ms}`])
          columns.add(more('datagrams', '/s', 0), name, figures['datagrams']!)
        } catch (error) {
          report.failures.push(`${name}: ${(error as Error).message.split('\n')[0]}`)
        } finally {
          await relay.stop()
        }
      }
      console.error(`  round ${round + 1} of ${options.rounds}`)
    }
    report.columns = columns.all
    report.goals = checkGoals(report.columns, GOALS)
    report.notes.push(
      'Handshakes: both ends in one process, four passport checks included. Sealing: sender and receiver in one process, with the hash chains.',
      'Streams, latency, datagrams: two agent processes and a relay over TLS on loopback; the plain stream is of the kind that carries a session, without it. Counted where it arrives.',
      'Datagrams hold 1,200 bytes. Ours are sealed and opened, over TLS links; those of derper and iroh-relay are not sealed and their links are plain, both clients in one process.',
    )
    const text = markdown(report, [
      {
        title: 'On one core',
        races: ['handshakes', ...RECORD_SIZES.map((bytes) => `seal + open ${bytes} B`)],
      },
      {
        title: 'Over the relay',
        races: ['stream', 'one-way latency', 'added latency', 'open a session', 'datagrams'],
      },
    ], ['aesgcm', 'chachapoly', 'sotto plain', 'sotto sealed', 'derper', 'iroh-relay'])
    console.log(text)
    console.error(`written to ${save(report, text)}`)
  } finally {
    await lab.close()
  }
}
