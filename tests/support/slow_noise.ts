/**
 * Noise a second time, written from the text for clarity alone: one function that knows the
 * secrets of both sides and computes what each message must be. It shares nothing with core/ but
 * the token names; HMAC and HKDF are spelled out over SHA-256.
 */
import { gcm } from '@noble/ciphers/aes.js'
import { chacha20poly1305 } from '@noble/ciphers/chacha.js'
import { x25519 } from '@noble/curves/ed25519.js'
import { sha256 } from '@noble/hashes/sha2.js'
import { ml_kem768 } from '@noble/post-quantum/ml-kem.js'
import type { Pattern } from '../../core/noise.ts'

export interface SlowSide {
  /** Private X25519 keys. */
  static32: Uint8Array
  ephemeral32: Uint8Array
}

export interface SlowInput {
  pattern: Pattern
  suite: 'aesgcm' | 'chachapoly'
  prologue: Uint8Array
  initiator: SlowSide
  responder: SlowSide
  kemSeed64: Uint8Array
  kemMessage32: Uint8Array
  /** One for each message. */
  payloads: Uint8Array[]
}

export interface SlowOutput {
  messages: Uint8Array[]
  hash: Uint8Array
  chainingKey: Uint8Array
  /** Of the initiator's and of the responder's records. */
  keys: [Uint8Array, Uint8Array]
}

const join = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(parts.flatMap((p) => [...p]))

/** RFC 2104, with B = 64. */
function mac(key: Uint8Array, data: Uint8Array): Uint8Array {
  const padded = join(key.length > 64 ? sha256(key) : key)
  const block = join(padded, new Uint8Array(64 - padded.length))
  return sha256(join(block.map((b) => b ^ 0x5c), sha256(join(block.map((b) => b ^ 0x36), data))))
}

/** Noise §4.3. */
function derive(chainingKey: Uint8Array, material: Uint8Array): [Uint8Array, Uint8Array] {
  const temporary = mac(chainingKey, material)
  const first = mac(temporary, Uint8Array.of(1))
  return [first, mac(temporary, join(first, Uint8Array.of(2)))]
}

/** Noise §12.3, §12.4, with a bigint where core counts in numbers. */
export function slowSeal(
  suite: 'aesgcm' | 'chachapoly',
  key: Uint8Array,
  counter: bigint,
  associated: Uint8Array,
  plaintext: Uint8Array,
): Uint8Array {
  const digits = Array.from({ length: 8 }, (_, i) => Number((counter >> BigInt(8 * i)) & 0xffn))
  const tail = suite === 'aesgcm' ? digits.reverse() : digits
  const cipher = suite === 'aesgcm' ? gcm : chacha20poly1305
  return cipher(key, Uint8Array.of(0, 0, 0, 0, ...tail), associated).encrypt(plaintext)
}

export function slowNoise(input: SlowInput): SlowOutput {
  const { pattern, suite, initiator, responder } = input
  const secret = {
    initiator: { e: initiator.ephemeral32, s: initiator.static32 },
    responder: { e: responder.ephemeral32, s: responder.static32 },
  }
  const kem = ml_kem768.keygen(input.kemSeed64)
  const kemName = pattern.name.includes('hfs') ? '+MLKEM768' : ''
  const suiteName = suite === 'aesgcm' ? 'AESGCM' : 'ChaChaPoly'
  const name = new TextEncoder().encode(`Noise_${pattern.name}_25519${kemName}_${suiteName}_SHA256`)
  let h: Uint8Array = name.length <= 32
    ? join(name, new Uint8Array(32 - name.length))
    : sha256(name)
  let ck = h
  let k: Uint8Array | undefined
  let n = 0n
  const mixHash = (data: Uint8Array): void => void (h = sha256(join(h, data)))
  const mixKey = (data: Uint8Array): void => {
    ;[ck, k] = derive(ck, data)
    n = 0n
  }
  const sealAndHash = (data: Uint8Array): Uint8Array => {
    const sealed = k === undefined ? data : slowSeal(suite, k, n++, h, data)
    mixHash(sealed)
    return sealed
  }
  mixHash(input.prologue)
  for (const who of pattern.known) mixHash(x25519.getPublicKey(secret[who].s))

  const messages = pattern.messages.map((tokens, i) => {
    const own = secret[i % 2 === 0 ? 'initiator' : 'responder']
    let message = new Uint8Array(0) as Uint8Array
    for (const token of tokens) {
      if (token === 'e') {
        const key = x25519.getPublicKey(own.e)
        mixHash(key)
        message = join(message, key)
      } else if (token === 's') {
        message = join(message, sealAndHash(x25519.getPublicKey(own.s)))
      } else if (token === 'e1') {
        message = join(message, sealAndHash(kem.publicKey))
      } else if (token === 'ekem1') {
        const made = ml_kem768.encapsulate(kem.publicKey, input.kemMessage32)
        message = join(message, sealAndHash(made.cipherText))
        mixKey(made.sharedSecret)
      } else {
        const [a, b] = token as unknown as ['e' | 's', 'e' | 's']
        mixKey(x25519.getSharedSecret(
          secret.initiator[a],
          x25519.getPublicKey(secret.responder[b]),
        ))
      }
    }
    return join(message, sealAndHash(input.payloads[i]!))
  })
  return { messages, hash: h, chainingKey: ck, keys: derive(ck, new Uint8Array(0)) }
}
