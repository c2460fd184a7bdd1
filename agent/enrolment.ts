/**
 * Enrolment: a machine proves to an authority's agent that it was invited, and takes home a vouch.
 * By a code it has paired with that agent (agent/pairing.ts) a moment before; by a secret, which may
 * serve many machines, each proves to the other inside the sealed session that it has it.
 * docs/protocol.md §14, "Enrolment".
 *
 *   request  {"names": [NAME…], "proof"?: hex}            the tail of a stream of service enroll
 *   answer   {"authority", "name", "vouch", "proof"?}     JSON, then the end; or {"error": CODE}
 */
import { base32nopad } from '@scure/base'
import type { Authority } from './authority.ts'
import { fromBase64, toBase64 } from './base64.ts'
import { EMPTY, equal, fromHex, hex, text, utf8 } from '../core/bytes.ts'
import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../core/errors.ts'
import { globMatches } from '../core/glob.ts'
import { formatKey, isName, parseFingerprint, parseKey } from '../core/key.ts'
import type { Labels } from '../core/labels.ts'
import type { Stream } from '../core/mux.ts'
import type { Session } from '../core/session.ts'
import { checkVouch, openStatement, VOUCH_NAMES_MAX } from '../core/statement.ts'
import type { Vouch } from '../core/statement.ts'
import type { EnrolmentBook } from './enrolment_book.ts'

export const ENROLL_SERVICE = 'enroll'
const SECRET_MARK = 'en_'
const SECRET_BYTES = 20
const PROOF_BYTES = 32
const NAME_BYTES = 8
const REQUEST_BYTES_MAX = 4096
const ANSWER_BYTES_MAX = 16_384
const ANSWER_MS_MAX = 20_000
/** A session in which nothing is asked for so long is closed. */
const IDLE_MS_MAX = 15_000
const MACHINE_LABEL = utf8('sotto enroll v1 machine\0')
const AUTHORITY_LABEL = utf8('sotto enroll v1 authority\0')

/** Why an authority's agent says no, and the words for it. */
const REFUSALS: Readonly<Record<string, string>> = {
  proof: 'it does not know this code',
  names: 'it does not give those names',
  taken: 'another machine has one of those names',
  count: 'as many machines as it takes have enrolled',
  expired: 'it has expired',
  request: 'it could not read the request',
  fault: 'it could not sign',
}

/** A secret that machines enroll by: 160 bits. */
export interface EnrolmentSecret {
  /** What machines are given: `en_` and 32 characters of base32. */
  words: string
  /** The endpoint where its authority's agent waits; says nothing of the secret. */
  at: string
  /** 32 bytes. */
  key: Uint8Array
}

export function makeSecret(crypto: Crypto): EnrolmentSecret {
  const bytes = crypto.randomBytes(SECRET_BYTES)
  return readSecret(crypto, `${SECRET_MARK}${base32nopad.encode(bytes).toLowerCase()}`)
}

export function isSecret(words: string): boolean {
  return words.trim().toLowerCase().startsWith(SECRET_MARK)
}

/** Throws `enroll/secret`. */
export function readSecret(crypto: Crypto, words: string): EnrolmentSecret {
  const bare = words.trim().toLowerCase()
  try {
    const secret = base32nopad.decode(bare.slice(SECRET_MARK.length).toUpperCase())
    if (!bare.startsWith(SECRET_MARK) || secret.length !== SECRET_BYTES) throw new Error('length')
    const derive = (info: string, bytes: number): Uint8Array =>
      crypto.hkdfSha256({ key: secret, salt: EMPTY, info, bytes })
    return {
      words: bare,
      at: `${ENROLL_SERVICE}-${hex(derive('sotto enroll v1 name', NAME_BYTES))}`,
      key: derive('sotto enroll v1 proof', PROOF_BYTES),
    }
  } catch (cause) {
    throw new TunnelError(
      'enroll/secret',
      'Cannot read the secret: expected "en_" and 32 letters and digits',
      { hint: 'It is in the file of --secret-file, as a whole.', cause },
    )
  }
}

/** Where the agent of an authority waits for whoever has just paired with it. */
export function enrolmentName(print: string): string {
  return `${ENROLL_SERVICE}-${hex(parseFingerprint(print).subarray(0, NAME_BYTES))}`
}

/** What each enrolled machine gets. */
export interface EnrolmentTerms {
  /** Patterns over the names that machines may ask for; none: no names. */
  names: readonly string[]
  scope: string
  labels: Labels
  days: number
}

export interface Enrolled {
  /** KEY. */
  key: string
  names: readonly string[]
  serial: number
}

export interface RegistrarPorts {
  clock: Clock
  crypto: Crypto
  authority: Pick<Authority, 'identity' | 'key' | 'name' | 'register' | 'sign'>
  terms: EnrolmentTerms
  /** With it whoever proves it is let in, as often as the book says. */
  secret?: { key: Uint8Array; book: EnrolmentBook }
  enrolled(machine: Enrolled): void
  refused(key: string, reason: string): void
}

/** The authority's side. */
export class Registrar {
  readonly #ports: RegistrarPorts
  /** KEYs that have paired. */
  readonly #invited = new Set<string>()
  /** One after the other: counts and names are looked at and written in turn. */
  #turn: Promise<void> = Promise.resolve()

  constructor(ports: RegistrarPorts) {
    this.#ports = ports
  }

  /** This identity typed the code: it may enroll, once. */
  invite(key: string): void {
    this.#invited.add(key)
  }

  /** Takes a session of whoever came; nothing is believed of them yet. */
  take(session: Session, key: string): { onOpen(stream: Stream): void; closed(): void } {
    const idle = this.#ports.clock.after(IDLE_MS_MAX, () => session.close())
    let asked = false
    return {
      onOpen: (stream) => {
        stream.accept()
        // One question a session: whoever guesses pays a handshake for each.
        if (asked) return stream.reset(1)
        asked = true
        idle.cancel()
        stream.handle({ data: () => {}, end: () => {}, closed: () => {} })
        this.#turn = this.#turn.then(async () => {
          const answer = await this.#answer(session, { key, tail: stream.visit.tail })
          stream.write(utf8(JSON.stringify(answer)))
          stream.end()
        }).catch(() => stream.reset(1))
      },
      closed: () => idle.cancel(),
    }
  }

  async #answer(
    session: Session,
    { key, tail }: { key: string; tail: Uint8Array },
  ): Promise<Record<string, string>> {
    const { authority, secret, terms } = this.#ports
    try {
      const { names, proof } = readRequest(tail)
      let own: { proof: string } | undefined
      if (secret) {
        const expected = prove(this.#ports.crypto, { session, key: secret.key, by: MACHINE_LABEL })
        if (!proof || !equal(proof, expected)) throw refusal('proof')
        const { crypto } = this.#ports
        own = { proof: hex(prove(crypto, { session, key: secret.key, by: AUTHORITY_LABEL })) }
      } else if (!this.#invited.has(key)) throw refusal('proof')
      const given = terms.names.length === 0 ? [] : names
      if (!given.every((name) => terms.names.some((glob) => globMatches(glob, name)))) {
        throw refusal('names')
      }
      await this.#needFree(given, key)
      // Counted, on disk, before anything is signed.
      if (secret) await secret.book.enter(key)
      else this.#invited.delete(key)
      const { scope, labels, days } = terms
      const [signed] = await authority.sign([{ key, names: given, scope, labels, days }])
      this.#ports.enrolled({ key, names: given, serial: signed!.serial })
      return {
        authority: authority.key,
        name: authority.name,
        vouch: toBase64(signed!.statement),
        ...own,
      }
    } catch (error) {
      const { code } = asTunnelError(error, 'enroll/fault')
      const reason = code.startsWith('enroll/') ? code.slice('enroll/'.length) : 'fault'
      this.#ports.refused(key, isTunnelError(error) ? error.message : String(error))
      return { error: Object.hasOwn(REFUSALS, reason) ? reason : 'fault' }
    }
  }

  /** A name that was given to one machine is not given to another while that vouch holds. */
  async #needFree(names: readonly string[], key: string): Promise<void> {
    if (names.length === 0) return
    const now = this.#ports.clock.now()
    const lines = await this.#ports.authority.register()
    const gone = new Set(lines.flatMap((line) => line.do === 'revoke' ? line.serials : []))
    for (const line of lines) {
      if (line.do !== 'sign' || line.key === key || gone.has(line.serial)) continue
      if (Date.parse(line.until) < now) continue
      if (names.some((name) => line.names.includes(name))) throw refusal('taken')
    }
  }
}

/** What a machine takes home. */
export interface Enrolment {
  /** KEY. */
  authority: string
  /** What the authority calls itself: a proposal. */
  name: string
  vouch: Vouch
  vouchBytes: Uint8Array
}

/**
 * The machine's side, in a session with the authority's agent. With a `secret` the agent has to prove
 * it too; without one the session must be with whom the code proved. Throws `enroll/refused`,
 * `enroll/answer`, `enroll/proof`, `enroll/timeout`.
 */
export async function enroll(
  { clock, crypto }: { clock: Clock; crypto: Crypto },
  session: Session,
  { identity, names, secret }: {
    identity: Uint8Array
    names: readonly string[]
    secret?: Uint8Array | undefined
  },
): Promise<Enrolment> {
  const proof = secret && prove(crypto, { session, key: secret, by: MACHINE_LABEL })
  const stream = session.open(utf8(JSON.stringify({ names, ...(proof && { proof: hex(proof) }) })))
  stream.end()
  const answer = parseObject(await readAll(stream, clock))
  const { error, authority, name, vouch } = answer
  if (typeof error === 'string') throw saidNo(error)
  if (secret) {
    const expected = prove(crypto, { session, key: secret, by: AUTHORITY_LABEL })
    if (!equal(readProof(answer['proof']) ?? EMPTY, expected)) {
      throw new TunnelError(
        'enroll/proof',
        'Cannot enroll: found that the other end does not know the secret',
        { hint: 'Somebody else has taken its place. Tell whoever gave you the secret.' },
      )
    }
  }
  try {
    if (typeof authority !== 'string' || typeof name !== 'string' || !isName(name)) {
      throw new Error('no authority')
    }
    const vouchBytes = fromBase64(String(vouch))
    const opened = openStatement(crypto, vouchBytes)
    if (opened.kind !== 'vouch') throw new Error(`a ${opened.kind}`)
    if (!equal(opened.authority, parseKey(authority)) || !equal(opened.identity, identity)) {
      throw new Error('a vouch of others')
    }
    checkVouch(opened, { now: clock.now() })
    return { authority: formatKey(opened.authority), name, vouch: opened, vouchBytes }
  } catch (cause) {
    throw wrongAnswer(cause)
  }
}

/** HMAC over the session's exporter: good in this very session alone, and for one side. */
function prove(
  crypto: Crypto,
  { session, key, by }: { session: Session; key: Uint8Array; by: Uint8Array },
): Uint8Array {
  return crypto.hmacSha256(key, by, session.exporter('enroll', EMPTY, PROOF_BYTES))
}

function readRequest(tail: Uint8Array): { names: string[]; proof: Uint8Array | undefined } {
  try {
    if (tail.length > REQUEST_BYTES_MAX) throw new Error('too long')
    const { names, proof } = parseObject(tail)
    if (!Array.isArray(names) || names.length > VOUCH_NAMES_MAX) throw new Error('no names')
    if (!names.every((name) => typeof name === 'string' && isName(name))) throw new Error('names')
    return { names: [...new Set(names as string[])], proof: readProof(proof) }
  } catch (cause) {
    throw refusal('request', cause)
  }
}

function readProof(value: unknown): Uint8Array | undefined {
  return typeof value === 'string' && /^[0-9a-f]{64}$/.test(value) ? fromHex(value) : undefined
}

/** Throws `enroll/answer`. */
function parseObject(bytes: Uint8Array): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text(bytes))
    if (typeof value !== 'object' || value === null) throw new Error('no object')
    return value as Record<string, unknown>
  } catch (cause) {
    throw wrongAnswer(cause)
  }
}

function readAll(stream: Stream, clock: Clock): Promise<Uint8Array> {
  let late: Timer | undefined
  return new Promise<Uint8Array>((resolve, reject) => {
    const parts: Uint8Array[] = []
    let length = 0
    late = clock.after(ANSWER_MS_MAX, () => {
      reject(new TunnelError('enroll/timeout', 'Cannot enroll: found no answer in time'))
      stream.reset(1)
    })
    stream.handle({
      data: (bytes) => {
        length += bytes.length
        if (length > ANSWER_BYTES_MAX) {
          reject(wrongAnswer())
          stream.reset(1)
        } else parts.push(bytes)
      },
      end: () => resolve(join(parts, length)),
      closed: (error) => reject(asTunnelError(error ?? wrongAnswer(), 'enroll/answer')),
    })
  }).finally(() => late?.cancel())
}

function join(parts: readonly Uint8Array[], length: number): Uint8Array {
  const whole = new Uint8Array(length)
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

function refusal(reason: string, cause?: unknown): TunnelError {
  return new TunnelError(
    `enroll/${reason}`,
    `Cannot enroll that machine: ${REFUSALS[reason]}`,
    { cause },
  )
}

function saidNo(reason: string): TunnelError {
  const known = Object.hasOwn(REFUSALS, reason)
  const why = known ? REFUSALS[reason] : 'for a reason that this version does not know'
  return new TunnelError('enroll/refused', `Cannot enroll: the authority says no, ${why}`, {
    hint: 'Ask whoever runs the authority.',
  })
}

function wrongAnswer(cause?: unknown): TunnelError {
  return new TunnelError('enroll/answer', 'Cannot enroll: found an answer that is none', { cause })
}
