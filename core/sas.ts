/**
 * Comparing by eye: two people see seven emoji each and say whether they are the same. They are when
 * both ends hold one session; a relay that held two sessions would have to hit 42 bits, with one try,
 * since A commits to its nonce before it sees B's.
 *
 *   A  commitment 32, then after B's nonce: nonce 32, then answer 1
 *   B  nonce 32, then answer 1
 *
 *   commitment = SHA-256("sotto sas commit v1" 0 ‖ nonce of A)
 *   emoji      = HKDF-SHA256(secret, salt nonce A ‖ nonce B, info "sotto sas v1", 6 bytes), 7 × 6 bits
 *
 * An answer is 1 for yes, 0 for no. docs/protocol.md §15.
 */
import { concat, EMPTY, equal, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { HASH_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'

// Specification constants.
export const SAS_NONCE_BYTES = 32
export const SAS_EMOJI = 7
const SAS_BYTES = 6
const COMMIT_LABEL = utf8('sotto sas commit v1\0')
const YES = 1
const NO = 0

export interface Emoji {
  symbol: string
  name: string
}

/** The 64 of the Matrix specification, "SAS method: emoji"; the order never changes. */
export const EMOJI: readonly Emoji[] = Object.freeze(
  [
    '🐶 Dog,🐱 Cat,🦁 Lion,🐎 Horse,🦄 Unicorn,🐷 Pig,🐘 Elephant,🐰 Rabbit',
    '🐼 Panda,🐓 Rooster,🐧 Penguin,🐢 Turtle,🐟 Fish,🐙 Octopus,🦋 Butterfly,🌷 Flower',
    '🌳 Tree,🌵 Cactus,🍄 Mushroom,🌏 Globe,🌙 Moon,☁️ Cloud,🔥 Fire,🍌 Banana',
    '🍎 Apple,🍓 Strawberry,🌽 Corn,🍕 Pizza,🎂 Cake,❤️ Heart,😀 Smiley,🤖 Robot',
    '🎩 Hat,👓 Glasses,🔧 Spanner,🎅 Santa,👍 Thumbs Up,☂️ Umbrella,⌛ Hourglass,⏰ Clock',
    '🎁 Gift,💡 Light Bulb,📕 Book,✏️ Pencil,📎 Paperclip,✂️ Scissors,🔒 Lock,🔑 Key',
    '🔨 Hammer,☎️ Telephone,🏁 Flag,🚂 Train,🚲 Bicycle,✈️ Aeroplane,🚀 Rocket,🏆 Trophy',
    '⚽ Ball,🎸 Guitar,🎺 Trumpet,🔔 Bell,⚓ Anchor,🎧 Headphones,📁 Folder,📌 Pin',
  ].join(',').split(',').map((entry) => {
    const blank = entry.indexOf(' ')
    return Object.freeze({ symbol: entry.slice(0, blank), name: entry.slice(blank + 1) })
  }),
)

export interface SasOptions {
  crypto: Crypto
  role: 'initiator' | 'responder'
  /** 32 bytes of the session: `export("sas", "", 32)`. */
  secret: Uint8Array
}

export interface SasStep {
  /** Bytes to send; empty for none. */
  send: Uint8Array
  /** Set once: what to show the person. */
  emoji?: readonly Emoji[]
  /** The peer's answer, set once. */
  peerAnswer?: boolean
}

type Expected = 'commitment' | 'nonce' | 'reveal' | 'answer' | 'nothing'
const LENGTHS: Readonly<Record<Expected, number>> = {
  commitment: HASH_BYTES,
  nonce: SAS_NONCE_BYTES,
  reveal: SAS_NONCE_BYTES,
  answer: 1,
  nothing: 0,
}

/** One comparison on one stream, at one of its ends. */
export class Sas {
  readonly #options: SasOptions
  readonly #nonce: Uint8Array
  #expected: Expected
  #pending: Uint8Array = EMPTY
  #commitment: Uint8Array = EMPTY
  #emoji: readonly Emoji[] | undefined
  #own: boolean | undefined
  #peer: boolean | undefined

  constructor(options: SasOptions) {
    this.#options = options
    this.#nonce = options.crypto.randomBytes(SAS_NONCE_BYTES)
    this.#expected = options.role === 'initiator' ? 'nonce' : 'commitment'
  }

  /** What both people said: true only when both said yes. Undefined while one has not answered. */
  get verified(): boolean | undefined {
    if (this.#own === false || this.#peer === false) return false
    return this.#own && this.#peer ? true : undefined
  }

  /** What the initiator sends first, and the responder nothing. */
  start(): Uint8Array {
    return this.#options.role === 'initiator' ? commit(this.#options.crypto, this.#nonce) : EMPTY
  }

  /**
   * Takes bytes of the stream in any pieces. Throws `sas/commitment` when the revealed nonce is not
   * the one that was committed to, `sas/reflected` when both nonces are one, `sas/answer` on an
   * answer that is neither, `sas/trailing` on bytes after it. Nothing was verified then.
   */
  receive(chunk: Uint8Array): SasStep {
    this.#pending = concat(this.#pending, chunk)
    const send: Uint8Array[] = []
    const step: Partial<SasStep> = {}
    while (this.#expected !== 'nothing' && this.#pending.length >= LENGTHS[this.#expected]) {
      const length = LENGTHS[this.#expected]
      const body = this.#pending.slice(0, length)
      this.#pending = this.#pending.subarray(length)
      const taken = this.#take(body)
      send.push(taken.send)
      if (taken.emoji) step.emoji = taken.emoji
      if (taken.peerAnswer !== undefined) step.peerAnswer = taken.peerAnswer
    }
    if (this.#expected === 'nothing' && this.#pending.length > 0) {
      this.#peer = false
      throw sasError('trailing', 'found bytes after the answer')
    }
    return { ...step, send: concat(...send) }
  }

  /** What the own person said, as bytes to send. Throws `sas/early` before there is what to compare. */
  answer(yes: boolean): Uint8Array {
    if (!this.#emoji || this.#own !== undefined) {
      throw sasError('early', 'found an answer before the emoji, or a second one')
    }
    this.#own = yes
    return Uint8Array.of(yes ? YES : NO)
  }

  /** The stream ended: `sas/truncated` unless the peer has answered. It counts as a no. */
  ended(): TunnelError | undefined {
    if (this.#expected === 'nothing') return undefined
    this.#peer = false
    return sasError(
      'truncated',
      `found the end of the stream, expected the peer's ${this.#expected}`,
    )
  }

  #take(body: Uint8Array): SasStep {
    if (this.#expected === 'commitment') {
      this.#commitment = body
      this.#expected = 'reveal'
      return { send: this.#nonce }
    }
    if (this.#expected === 'nonce') {
      this.#expected = 'answer'
      return { send: this.#nonce, emoji: this.#show(this.#nonce, body) }
    }
    if (this.#expected === 'reveal') {
      if (!equal(commit(this.#options.crypto, body), this.#commitment)) {
        this.#fail()
        throw sasError('commitment', 'found another nonce than the one that was committed to', {
          hint: 'Somebody may sit between the two of you. Do not trust this peer.',
        })
      }
      this.#expected = 'answer'
      return { send: EMPTY, emoji: this.#show(body, this.#nonce) }
    }
    const answer = body[0]!
    this.#expected = 'nothing'
    if (answer !== YES && answer !== NO) {
      this.#peer = false
      throw sasError('answer', `found the answer ${answer}`)
    }
    this.#peer = answer === YES
    return { send: EMPTY, peerAnswer: this.#peer }
  }

  #show(nonceA: Uint8Array, nonceB: Uint8Array): readonly Emoji[] {
    if (equal(nonceA, nonceB)) {
      this.#fail()
      throw sasError('reflected', 'found the own nonce come back')
    }
    const { crypto, secret } = this.#options
    this.#emoji = sasEmoji(crypto, { secret, nonceA, nonceB })
    return this.#emoji
  }

  #fail(): void {
    this.#expected = 'nothing'
    this.#pending = EMPTY
    this.#peer = false
  }
}

/** The seven emoji of two nonces. */
export function sasEmoji(
  crypto: Crypto,
  { secret, nonceA, nonceB }: { secret: Uint8Array; nonceA: Uint8Array; nonceB: Uint8Array },
): readonly Emoji[] {
  const salt = concat(nonceA, nonceB)
  const bytes = crypto.hkdfSha256({ key: secret, salt, info: 'sotto sas v1', bytes: SAS_BYTES })
  const out: Emoji[] = []
  let bits = 0
  let count = 0
  for (const byte of bytes) {
    bits = bits << 8 | byte
    count += 8
    while (count >= 6 && out.length < SAS_EMOJI) {
      count -= 6
      out.push(EMOJI[bits >>> count & 0x3f]!)
    }
    bits &= (1 << count) - 1
  }
  return out
}

/**
 * Seven lines of two columns: the name padded, then the emoji. Terminals disagree on how wide an
 * emoji is, so nothing stands behind one.
 */
export function formatSas(emoji: readonly Emoji[]): string {
  const width = Math.max(...EMOJI.map(({ name }) => name.length))
  return emoji.map(({ symbol, name }, i) => `${i + 1}  ${name.padEnd(width)}  ${symbol}`).join('\n')
}

function commit(crypto: Crypto, nonce: Uint8Array): Uint8Array {
  return crypto.sha256(COMMIT_LABEL, nonce)
}

function sasError(reason: string, found: string, options: { hint?: string } = {}): TunnelError {
  return new TunnelError(`sas/${reason}`, `Cannot compare: ${found}`, options)
}
