/**
 * Mutated messages through every decoder that reads a network: whatever comes in, the answer is a
 * value or an error of the family, never another exception, and no decoder takes more than it was
 * given. Seeded, so that a finding can be had again.
 */
import { AgreementReader, encodeAgreement } from '../../core/agreement.ts'
import { RelayAdmission } from '../../core/admit.ts'
import { encodeFrame, FRAME } from '../../core/frame.ts'
import * as frames from '../../core/frame.ts'
import { readClientHello } from '../../core/client_hello.ts'
import * as exchanges from '../../core/exchange.ts'
import { ManualClock } from '../../core/clock.ts'
import { isTunnelError } from '../../core/errors.ts'
import { Mux } from '../../core/mux.ts'
import { encodePassport, openPassport } from '../../core/passport.ts'
import { encodePrelude, encodeTicket, readPrelude, readTicket } from '../../core/ticket.ts'
import { AGENT, agentSide, RELAY, upToAnswer } from './admission.ts'
import { fast, filled } from './crypto.ts'
import { hello } from './hello.ts'

export interface Target {
  name: string
  seeds: Uint8Array[]
  run(bytes: Uint8Array): void
}

/** xorshift128: fast, seeded, good enough to flip bits. */
class Dice {
  #a: number
  #b = 0x9e3779b9
  #c = 0x243f6a88
  #d = 0xb7e15162

  constructor(seed: number) {
    this.#a = seed >>> 0
    for (let i = 0; i < 20; i++) this.next()
  }

  next(): number {
    let t = this.#d
    const s = this.#a
    this.#d = this.#c
    this.#c = this.#b
    this.#b = s
    t ^= t << 11
    t ^= t >>> 8
    this.#a = (t ^ s ^ (s >>> 19)) >>> 0
    return this.#a
  }

  below(limit: number): number {
    return limit === 0 ? 0 : this.next() % limit
  }
}

const INTERESTING = [0, 1, 2, 4, 5, 0x7f, 0x80, 0xfe, 0xff]

function mutate(seed: Uint8Array, dice: Dice): Uint8Array {
  let bytes = Uint8Array.from(seed)
  for (let changes = 1 + dice.below(4); changes > 0; changes--) {
    const at = dice.below(bytes.length)
    switch (dice.below(6)) {
      case 0:
        if (bytes.length > 0) bytes[at]! ^= 1 << dice.below(8)
        break
      case 1:
        if (bytes.length > 0) bytes[at] = INTERESTING[dice.below(INTERESTING.length)]!
        break
      case 2:
        bytes = bytes.slice(0, at)
        break
      case 3: {
        const grown = new Uint8Array(bytes.length + 1 + dice.below(16))
        grown.set(bytes.subarray(0, at))
        grown.set(bytes.subarray(at), grown.length - (bytes.length - at))
        bytes = grown
        break
      }
      case 4: {
        const length = dice.below(bytes.length - at + 1)
        bytes.copyWithin(dice.below(bytes.length), at, at + length)
        break
      }
      default:
        if (bytes.length > 0) bytes[at] = dice.next()
    }
  }
  return bytes
}

function frameSeeds(): Uint8Array[] {
  const visit = frames.encodeVisit({
    kind: 'http',
    windowBytes: 262_144,
    address: '2001:db8::1',
    port: 443,
    endpoint: 'web',
    tail: new TextEncoder().encode('{"method":"GET"}'),
  })
  const payloads: Partial<Record<frames.FrameName, Uint8Array>> = {
    open: visit,
    data: filled(7, 100),
    credit: frames.encodeCredit(65_536),
    reset: frames.encodeReset(3, 'overdrawn'),
    packet: frames.encodePackets([filled(1, 20), filled(2, 1)]),
    ping: filled(9, 8),
    pong: filled(9, 8),
    restarting: frames.encodeRestarting(1000, 60_000),
    notice: frames.encodeNotice('relay/test', 'words'),
    request: frames.encodeJson({ do: 'claim', name: 'web' }),
    reply: frames.encodeJson({ ok: true }),
    hello: agentSide().hello(),
    challenge: filled(3, 200),
    admit: filled(4, 200),
    welcome: filled(5, 200),
  }
  return (Object.keys(FRAME) as frames.FrameName[]).map((name) =>
    encodeFrame(
      name,
      /^(open|data|credit|fin|reset|packet|request|reply)$/.test(name) ? 1 : 0,
      payloads[name],
    )
  )
}

function readFrame(bytes: Uint8Array): void {
  const { type, payload } = frames.decodeFrame(bytes)
  if (type === FRAME.open) frames.decodeVisit(payload)
  else if (type === FRAME.credit) frames.decodeCredit(payload)
  else if (type === FRAME.reset) frames.decodeReset(payload)
  else if (type === FRAME.packet) frames.decodePackets(payload)
  else if (type === FRAME.restarting) frames.decodeRestarting(payload)
  else if (type === FRAME.notice) frames.decodeNotice(payload)
  else if (type === FRAME.request || type === FRAME.reply) frames.decodeJson(payload)
}

const HEAD: exchanges.RequestHead = {
  method: 'GET',
  target: '/x',
  authority: 'web.apps.example',
  scheme: 'https',
  headers: [['Accept', '*/*']],
}
const RESPONSE = Uint8Array.from([
  ...exchanges.encodeInfo({ status: 103, headers: [['Link', '</a>']] }),
  ...exchanges.encodeHead({ status: 200, headers: [['Trailer', 'X']] }),
  ...exchanges.encodeRecord(exchanges.RECORD.body, filled(7, 40)),
  ...exchanges.encodeTrailers([['X', 'y']]),
])

function targets(): Target[] {
  const context = { crypto: fast, linkId: filled(1, 16), counter: 1, bulkKey: filled(2) }
  const prelude = encodePrelude({
    kind: 'tls',
    windowBytes: 0,
    address: '192.0.2.1',
    port: 1,
    endpoint: 'web',
    tail: new Uint8Array(0),
  }, context)
  const passport = encodePassport(
    {
      identity: AGENT.public,
      sequence: 1,
      notBefore: 0,
      notAfter: 1e12,
      certificates: [filled(1), filled(2)],
      names: ['db', 'web'],
      ciphers: ['x'],
    },
    (message) => fast.ed25519Sign(AGENT.seed, message),
  )
  const exchange = upToAnswer()
  let mux = newMux()
  let fed = 0
  return [
    { name: 'frame', seeds: frameSeeds(), run: readFrame },
    {
      name: 'mux',
      seeds: frameSeeds().slice(4, 10),
      run(bytes) {
        if (++fed % 50 === 0) mux = newMux()
        mux.receive(frames.decodeFrame(bytes))
      },
    },
    {
      name: 'client_hello',
      seeds: [hello(), hello({}, [1]), hello({}, [5, 100])],
      run: (bytes) => void readClientHello(bytes),
    },
    {
      name: 'ticket',
      seeds: [
        encodeTicket(fast, { linkId: filled(1, 16), counter: 7, class: 'verified' }, filled(2)),
      ],
      run: (bytes) => void readTicket(bytes),
    },
    { name: 'prelude', seeds: [prelude], run: (bytes) => void readPrelude(bytes, context) },
    {
      name: 'agreement',
      seeds: agreements(),
      run: (bytes) => void new AgreementReader().push(bytes),
    },
    {
      name: 'passport',
      seeds: [passport],
      run: (bytes) => void openPassport(fast, bytes, { now: 1000 }),
    },
    {
      name: 'hello',
      seeds: [exchange.hello],
      run: (bytes) =>
        void new RelayAdmission({ crypto: CHEAP, identity: RELAY, target: AGENT.public }).challenge(
          bytes,
        ),
    },
    {
      name: 'exchange_head',
      seeds: [exchanges.encodeRequestHead(HEAD)],
      run: (bytes) => void exchanges.decodeRequestHead(bytes),
    },
    {
      name: 'exchange',
      seeds: [RESPONSE],
      run(bytes) {
        const reader = exchanges.ExchangeReader.ofResponse('GET', { body() {}, end() {} })
        reader.push(bytes)
      },
    },
    {
      name: 'challenge',
      seeds: [exchange.challenge],
      run(bytes) {
        const agent = agentSide({ crypto: CHEAP })
        agent.hello()
        agent.answer(bytes)
      },
    },
  ]
}

/** Signing is not what is fuzzed here, and takes most of the time. */
const CHEAP = {
  ...fast,
  ed25519Sign: () => new Uint8Array(64),
  x25519Public: () => filled(9),
  x25519Shared: () => filled(8),
}

function agreements(): Uint8Array[] {
  const [key, nonce, channel] = [filled(1), filled(2), filled(3, 16)]
  const network = { bytes: Uint8Array.of(10, 0, 0, 0), bits: 8 }
  const endpoints = [{ address: Uint8Array.of(192, 168, 1, 9), port: 51_820 }]
  return [
    encodeAgreement({ kind: 'propose', key, nonce, channel, taken: [network], endpoints }),
    encodeAgreement({
      kind: 'agreed',
      key,
      nonce,
      address4: { bytes: Uint8Array.of(100, 80, 1, 2), bits: 24 },
      address6: { bytes: Uint8Array.from({ length: 16 }, (_, i) => i === 0 ? 0xfd : i), bits: 64 },
      relayMtu: 16_384,
      directMtu: 1420,
      dns: [Uint8Array.of(100, 80, 1, 1)],
      routes: [network],
      endpoints,
    }),
    encodeAgreement({ kind: 'refused', reason: 'full', words: 'no' }),
    encodeAgreement({ kind: 'renew', nonce }),
  ]
}

function newMux(): Mux {
  return new Mux({
    side: 'relay',
    clock: new ManualClock(),
    send: () => 'ok',
    buffered: () => 0,
    onOpen: (stream) => stream.accept(),
    onProtocolError() {},
  })
}

/** How often each decoder is driven, of every 100 runs: frames most, signatures least. */
const SHARES: Record<string, number> = {
  frame: 42,
  mux: 16,
  exchange_head: 3,
  exchange: 3,
  client_hello: 16,
  ticket: 8,
  prelude: 4,
  passport: 2,
  hello: 4,
  challenge: 2,
}

export interface Finding {
  target: string
  run: number
  bytes: string
  error: string
}

/** Drives `runs` messages; gives back what did not behave. */
export function fuzz(
  seed: number,
  runs: number,
  planted: Target[] = [],
): { findings: Finding[]; byTarget: Record<string, { runs: number; taken: number }> } {
  const dice = new Dice(seed)
  const all = [...targets(), ...planted]
  const wheel = all.flatMap((target) => Array<Target>(SHARES[target.name] ?? 10).fill(target))
  const findings: Finding[] = []
  const byTarget: Record<string, { runs: number; taken: number }> = Object.fromEntries(
    all.map(({ name }) => [name, { runs: 0, taken: 0 }]),
  )
  for (let run = 0; run < runs && findings.length < 10; run++) {
    const target = wheel[dice.below(wheel.length)]!
    const bytes = mutate(target.seeds[dice.below(target.seeds.length)]!, dice)
    const count = byTarget[target.name]!
    count.runs++
    try {
      target.run(bytes)
      count.taken++
    } catch (error) {
      if (isTunnelError(error)) continue
      findings.push({
        target: target.name,
        run,
        bytes: Buffer.from(bytes).toString('hex'),
        error: String(error),
      })
    }
  }
  return { findings, byTarget }
}
