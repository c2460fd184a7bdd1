/**
 * Noise handshakes (The Noise Protocol Framework, revision 34) with the hybrid forward secrecy
 * extension (KEM-based Hybrid Forward Secrecy for Noise, revision 1) over ML-KEM-768: two parties
 * prove their static keys to each other and agree on keys that neither a later theft of these nor
 * a machine that breaks X25519 gives away. Bytes in, bytes out; nothing here waits or sends.
 *
 * A read or write that throws leaves the state as it was before, so that forged messages cost the
 * true peer nothing.
 */
import { concat, EMPTY, utf8 } from './bytes.ts'
import type { Suite } from './cipher.ts'
import { CipherState, MESSAGE_BYTES_MAX, needKey, wrongKeys, wrongSize } from './cipher.ts'
import type { Crypto, MlkemKey } from './crypto.ts'
import {
  AEAD_TAG_BYTES,
  HASH_BYTES,
  KEY_BYTES,
  MLKEM_CIPHERTEXT_BYTES,
  MLKEM_PUBLIC_BYTES,
  MLKEM_SEED_BYTES,
} from './crypto.ts'
import { isTunnelError, TunnelError } from './errors.ts'

export type { Suite } from './cipher.ts'
export { CipherState, COUNTER_LIMIT, MESSAGE_BYTES_MAX } from './cipher.ts'

const EXPORTER_LABEL = utf8('sotto session v1 exporter\0')

export type Role = 'initiator' | 'responder'
export type Token = 'e' | 's' | 'ee' | 'es' | 'se' | 'ss' | 'psk' | 'e1' | 'ekem1'

/** One handshake pattern (Noise §7): who knows which static key before, and the messages' tokens. */
export interface Pattern {
  /** As in the protocol name, modifiers included. */
  readonly name: string
  /** Whose static key the other side knows beforehand. */
  readonly known: readonly Role[]
  /** The initiator writes the first, then they take turns. */
  readonly messages: readonly (readonly Token[])[]
}

export type PatternName = 'IK' | 'IKhfs' | 'XX' | 'XXhfs'

/** The patterns that sotto uses by name; any other is given as a {@link Pattern}. */
export const PATTERNS: Readonly<Record<PatternName, Pattern>> = Object.freeze({
  IK: {
    name: 'IK',
    known: ['responder'],
    messages: [['e', 'es', 's', 'ss'], ['e', 'ee', 'se']],
  },
  IKhfs: {
    name: 'IKhfs',
    known: ['responder'],
    messages: [['e', 'es', 'e1', 's', 'ss'], ['e', 'ee', 'ekem1', 'se']],
  },
  XX: {
    name: 'XX',
    known: [],
    messages: [['e'], ['e', 'ee', 's', 'es'], ['s', 'se']],
  },
  XXhfs: {
    name: 'XXhfs',
    known: [],
    messages: [['e', 'e1'], ['e', 'ee', 'ekem1', 's', 'es'], ['s', 'se']],
  },
})

/** An X25519 key pair that outlives handshakes. */
export interface StaticKey {
  private32: Uint8Array
  public32: Uint8Array
}

/** What makes a handshake's random values; for tests that need the same bytes twice. */
export interface Ephemeral {
  /** 32 bytes. */
  private32: Uint8Array
  /** 64 bytes: d and z of FIPS 203, algorithm 16. */
  kemSeed64?: Uint8Array
  /** 32 bytes: m of FIPS 203, algorithm 17. */
  kemMessage32?: Uint8Array
}

export interface HandshakeOptions {
  crypto: Crypto
  pattern: PatternName | Pattern
  suite: Suite
  role: Role
  /** What both sides must agree on; any length. */
  prologue: Uint8Array
  /** One's own static key, where the pattern has one. */
  local?: StaticKey | undefined
  /** The other's static key, 32 bytes, where the pattern knows it beforehand. */
  remoteStatic?: Uint8Array | undefined
  /** Pre-shared keys of 32 bytes, one for each `psk` token in order (Noise §9). */
  psks?: readonly Uint8Array[] | undefined
  /** Tests only. */
  ephemeral?: Ephemeral | undefined
}

export interface Split {
  send: CipherState
  receive: CipherState
  /** 32 bytes: the handshake hash, the same on both sides (Noise §11.2). */
  hash: Uint8Array
  /** 32 bytes: HMAC-SHA256(ck, "sotto session v1 exporter" 0x00 ‖ hash). */
  exporterSecret: Uint8Array
}

const CIPHER_NAME: Readonly<Record<Suite, string>> = { aesgcm: 'AESGCM', chachapoly: 'ChaChaPoly' }

/** The name that the handshake hashes first (Noise §8), such as `Noise_XX_25519_AESGCM_SHA256`. */
export function protocolName(pattern: PatternName | Pattern, suite: Suite): string {
  const { name, messages } = patternOf(pattern)
  const kem = messages.some((tokens) => tokens.includes('e1')) ? '+MLKEM768' : ''
  return `Noise_${name}_25519${kem}_${CIPHER_NAME[suite]}_SHA256`
}

function patternOf(pattern: PatternName | Pattern): Pattern {
  return typeof pattern === 'string' ? PATTERNS[pattern] : pattern
}

/**
 * What a message may change. No array in it is ever written to, so that a shallow copy is a
 * snapshot.
 */
interface Symmetric {
  chainingKey: Uint8Array
  hash: Uint8Array
  /** Undefined until the first key was mixed in. */
  cipherKey: Uint8Array | undefined
  counter: number
  remoteStatic: Uint8Array | undefined
  remoteEphemeral: Uint8Array | undefined
  remoteKem: Uint8Array | undefined
  ephemeral: StaticKey | undefined
  kem: MlkemKey | undefined
  psksUsed: number
}

/** One side of one handshake (Noise §5.3). */
export class Handshake {
  readonly #crypto: Crypto
  readonly #suite: Suite
  readonly #role: Role
  readonly #pattern: Pattern
  readonly #local: StaticKey | undefined
  readonly #psks: readonly Uint8Array[]
  readonly #given: Ephemeral | undefined
  #state: Symmetric
  #next = 0
  #isSplit = false

  /** Throws `noise/keys` when the pattern needs a key that is missing or not of 32 bytes. */
  constructor(options: HandshakeOptions) {
    this.#crypto = options.crypto
    this.#suite = options.suite
    this.#role = options.role
    this.#pattern = patternOf(options.pattern)
    this.#local = options.local
    this.#psks = options.psks ?? []
    this.#given = options.ephemeral
    this.#needKeys(options)
    const name = utf8(protocolName(this.#pattern, this.#suite))
    const hash = name.length > HASH_BYTES
      ? this.#crypto.sha256(name)
      : concat(name, new Uint8Array(HASH_BYTES - name.length))
    this.#state = {
      chainingKey: hash,
      hash,
      cipherKey: undefined,
      counter: 0,
      remoteStatic: options.remoteStatic && Uint8Array.from(options.remoteStatic),
      remoteEphemeral: undefined,
      remoteKem: undefined,
      ephemeral: undefined,
      kem: undefined,
      psksUsed: 0,
    }
    this.#mixHash(options.prologue)
    for (const owner of ['initiator', 'responder'] as const) {
      if (!this.#pattern.known.includes(owner)) continue
      this.#mixHash(owner === this.#role ? this.#local!.public32 : options.remoteStatic!)
    }
  }

  #needKeys(options: HandshakeOptions): void {
    const { known, messages } = this.#pattern
    const writes = (role: Role): boolean =>
      messages.some((tokens, i) => writerOf(i) === role && tokens.includes('s'))
    if (known.includes(this.#role) || writes(this.#role)) {
      needKey("one's own static private key", options.local?.private32)
      needKey("one's own static public key", options.local?.public32)
    }
    const other = otherOf(this.#role)
    if (known.includes(other)) needKey("the other's static key", options.remoteStatic)
    else if (options.remoteStatic !== undefined) {
      throw wrongKeys("the other's static key", 'one that the pattern does not know beforehand')
    }
    const psks = messages.flat().filter((token) => token === 'psk').length
    if (this.#psks.length !== psks) {
      throw wrongKeys('pre-shared keys', `${this.#psks.length}, expected ${psks}`)
    }
    for (const psk of this.#psks) needKey('a pre-shared key', psk)
  }

  /** The other's static key, once a message has proven who holds it or it was given. */
  get remoteStatic(): Uint8Array | undefined {
    return this.#state.remoteStatic
  }

  /** Every message was written or read: split() may be called. */
  get isDone(): boolean {
    return this.#next === this.#pattern.messages.length
  }

  /**
   * The next message, at most 65,535 bytes. Throws `noise/order` when it is the other's turn,
   * `noise/size` when the payload does not fit, `noise/point` or `noise/kem` when a key of the
   * other's is unusable.
   */
  write(payload: Uint8Array): Uint8Array {
    const tokens = this.#turn(this.#role, 'write')
    return this.#atomically(() => {
      const parts: Uint8Array[] = []
      for (const token of tokens) this.#writeToken(token, parts)
      const room = MESSAGE_BYTES_MAX - parts.reduce((sum, part) => sum + part.length, 0) -
        (this.#state.cipherKey === undefined ? 0 : AEAD_TAG_BYTES)
      if (payload.length > room) throw wrongSize('write a payload', payload.length, room)
      return concat(...parts, this.#encryptAndHash(payload))
    })
  }

  /**
   * The payload of the other's message. Throws `noise/order` when it is one's own turn,
   * `noise/size` on a message too short or too long, `noise/forged` on one that does not open,
   * `noise/point` and `noise/kem` on unusable keys.
   */
  read(message: Uint8Array): Uint8Array {
    const tokens = this.#turn(otherOf(this.#role), 'read')
    if (message.length > MESSAGE_BYTES_MAX) {
      throw wrongSize('read a message', message.length, MESSAGE_BYTES_MAX)
    }
    return this.#atomically(() => {
      let rest = message
      const take = (length: number): Uint8Array => {
        if (rest.length < length) throw truncated(message.length, length - rest.length)
        // Not slice(), which of a Buffer is a view.
        const part = Uint8Array.from(rest.subarray(0, length))
        rest = rest.subarray(length)
        return part
      }
      for (const token of tokens) this.#readToken(token, take)
      if (this.#state.cipherKey !== undefined && rest.length < AEAD_TAG_BYTES) {
        throw truncated(message.length, AEAD_TAG_BYTES - rest.length)
      }
      return this.#decryptAndHash(rest)
    })
  }

  /** The keys of the two directions; once, after the last message. Erases what made them. */
  split(): Split {
    if (!this.isDone || this.#isSplit) {
      throw outOfOrder('split a handshake', this.#isSplit ? 'one that was split' : 'one under way')
    }
    this.#isSplit = true
    const { chainingKey, hash, ephemeral, kem } = this.#state
    const keys = this.#hkdf(EMPTY, 2)
    const [first, second] = keys.map((key32) =>
      new CipherState({ crypto: this.#crypto, suite: this.#suite, key32 })
    ) as [CipherState, CipherState]
    const exporterSecret = this.#crypto.hmacSha256(chainingKey, EXPORTER_LABEL, hash)
    for (const secret of [...keys, chainingKey, this.#state.cipherKey]) secret?.fill(0)
    ephemeral?.private32.fill(0)
    kem?.erase()
    return this.#role === 'initiator'
      ? { send: first, receive: second, hash, exporterSecret }
      : { send: second, receive: first, hash, exporterSecret }
  }

  #turn(writer: Role, action: string): readonly Token[] {
    const tokens = this.#pattern.messages[this.#next]
    if (tokens === undefined) throw outOfOrder(`${action} a message`, 'a handshake that is done')
    if (writerOf(this.#next) !== writer) {
      throw outOfOrder(`${action} a message`, `the turn of the ${writerOf(this.#next)}`)
    }
    return tokens
  }

  /** Runs one message; on any error all is as before. */
  #atomically(run: () => Uint8Array): Uint8Array {
    const before = this.#state
    this.#state = { ...before }
    try {
      const result = run()
      this.#next++
      return result
    } catch (error) {
      this.#state = before
      throw error
    }
  }

  #writeToken(token: Token, parts: Uint8Array[]): void {
    const state = this.#state
    switch (token) {
      case 'e': {
        const private32 = this.#given === undefined
          ? this.#crypto.randomBytes(KEY_BYTES)
          : Uint8Array.from(this.#given.private32)
        state.ephemeral = { private32, public32: this.#crypto.x25519Public(private32) }
        parts.push(state.ephemeral.public32)
        this.#mixEphemeral(state.ephemeral.public32)
        break
      }
      case 's':
        parts.push(this.#encryptAndHash(this.#local!.public32))
        break
      case 'e1':
        state.kem = this.#crypto.mlkemKey(
          this.#given?.kemSeed64 ?? this.#crypto.randomBytes(MLKEM_SEED_BYTES),
        )
        parts.push(this.#encryptAndHash(state.kem.public1184))
        break
      case 'ekem1': {
        const message32 = this.#given?.kemMessage32 ?? this.#crypto.randomBytes(KEY_BYTES)
        const { ciphertext1088, shared32 } = unusable(
          () => this.#crypto.mlkemEncapsulate(state.remoteKem!, message32),
        )
        parts.push(this.#encryptAndHash(ciphertext1088))
        this.#mixKey(shared32)
        break
      }
      default:
        this.#mixToken(token)
    }
  }

  #readToken(token: Token, take: (length: number) => Uint8Array): void {
    const state = this.#state
    const sealed = state.cipherKey === undefined ? 0 : AEAD_TAG_BYTES
    switch (token) {
      case 'e':
        state.remoteEphemeral = take(KEY_BYTES)
        this.#mixEphemeral(state.remoteEphemeral)
        break
      case 's':
        state.remoteStatic = this.#decryptAndHash(take(KEY_BYTES + sealed))
        break
      case 'e1':
        state.remoteKem = this.#decryptAndHash(take(MLKEM_PUBLIC_BYTES + sealed))
        break
      case 'ekem1': {
        const ciphertext = this.#decryptAndHash(take(MLKEM_CIPHERTEXT_BYTES + sealed))
        this.#mixKey(state.kem!.decapsulate(ciphertext))
        break
      }
      default:
        this.#mixToken(token)
    }
  }

  #mixToken(token: 'ee' | 'es' | 'se' | 'ss' | 'psk'): void {
    const state = this.#state
    if (token === 'psk') {
      this.#mixKeyAndHash(this.#psks[state.psksUsed++]!)
      return
    }
    // The first letter is the initiator's key, the second the responder's.
    const letters = this.#role === 'initiator' ? token : token[1]! + token[0]!
    const own = letters[0] === 'e' ? state.ephemeral : this.#local
    const other = letters[1] === 'e' ? state.remoteEphemeral : state.remoteStatic
    this.#mixKey(unusable(() => this.#crypto.x25519Shared(own!.private32, other!)))
  }

  /** Where pre-shared keys are used, ephemeral keys are mixed into the key as well (Noise §9.2). */
  #mixEphemeral(public32: Uint8Array): void {
    this.#mixHash(public32)
    if (this.#psks.length > 0) this.#mixKey(public32)
  }

  #mixHash(bytes: Uint8Array): void {
    this.#state.hash = this.#crypto.sha256(this.#state.hash, bytes)
  }

  #mixKey(material: Uint8Array): void {
    const [chainingKey, cipherKey] = this.#hkdf(material, 2)
    this.#state.chainingKey = chainingKey!
    this.#state.cipherKey = cipherKey!
    this.#state.counter = 0
  }

  #mixKeyAndHash(material: Uint8Array): void {
    const [chainingKey, hash, cipherKey] = this.#hkdf(material, 3)
    this.#state.chainingKey = chainingKey!
    this.#mixHash(hash!)
    this.#state.cipherKey = cipherKey!
    this.#state.counter = 0
  }

  #encryptAndHash(plaintext: Uint8Array): Uint8Array {
    const out = this.#cipher()?.sealAt(this.#state.counter++, this.#state.hash, plaintext) ??
      Uint8Array.from(plaintext)
    this.#mixHash(out)
    return out
  }

  #decryptAndHash(bytes: Uint8Array): Uint8Array {
    const out = this.#cipher()?.openAt(this.#state.counter++, this.#state.hash, bytes) ??
      Uint8Array.from(bytes)
    this.#mixHash(bytes)
    return out
  }

  #cipher(): CipherState | undefined {
    const key32 = this.#state.cipherKey
    if (key32 === undefined) return undefined
    return new CipherState({ crypto: this.#crypto, suite: this.#suite, key32 })
  }

  /** HKDF of Noise §4.3: that of RFC 5869 with the chaining key as salt and no info. */
  #hkdf(key: Uint8Array, outputs: number): Uint8Array[] {
    const salt = this.#state.chainingKey
    const all = this.#crypto.hkdfSha256({ key, salt, info: EMPTY, bytes: outputs * HASH_BYTES })
    return Array.from(
      { length: outputs },
      (_, i) => all.slice(i * HASH_BYTES, (i + 1) * HASH_BYTES),
    )
  }
}

function writerOf(index: number): Role {
  return index % 2 === 0 ? 'initiator' : 'responder'
}

function otherOf(role: Role): Role {
  return role === 'initiator' ? 'responder' : 'initiator'
}

/** Runs arithmetic on a key of the other's, and names what is wrong with that key. */
function unusable<T>(run: () => T): T {
  try {
    return run()
  } catch (cause) {
    if (isTunnelError(cause, 'crypto/zero')) {
      throw new TunnelError(
        'noise/point',
        'Cannot agree on a key: found a public key of small order, expected one of full order',
        { cause },
      )
    }
    if (isTunnelError(cause, 'crypto/kem')) {
      throw new TunnelError(
        'noise/kem',
        'Cannot agree on a key: found an ML-KEM key that is not encoded as it must be',
        { cause },
      )
    }
    throw cause
  }
}

function truncated(found: number, missing: number): TunnelError {
  return new TunnelError(
    'noise/size',
    `Cannot read a message: found ${found} bytes, expected at least ${missing} more`,
  )
}

function outOfOrder(action: string, found: string): TunnelError {
  return new TunnelError('noise/order', `Cannot ${action}: found ${found}`)
}
