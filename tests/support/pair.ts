/** Two agents that pair, and the wire between them as a list of messages that a test may change. */
import { encodePassport } from '../../core/passport.ts'
import type { PairingOptions } from '../../core/pairing.ts'
import { fast, filled } from './crypto.ts'

export const PAIR_NOW = 1_700_000_000_000

export interface PairAgent {
  seed: Uint8Array
  identity: Uint8Array
  passport: Uint8Array
}

export function pairAgent(byte: number): PairAgent {
  const seed = filled(byte)
  const identity = fast.ed25519Public(seed)
  const passport = encodePassport({
    identity,
    sequence: byte,
    notBefore: PAIR_NOW - 1000,
    notAfter: PAIR_NOW + 86_400_000,
    staticKey: filled(byte + 1),
    certificates: [],
    names: [],
    ciphers: [],
  }, (message) => fast.ed25519Sign(seed, message))
  return { seed, identity, passport }
}

export function pairOptions(
  agent: PairAgent,
  name: string,
  changes: Partial<PairingOptions> = {},
): PairingOptions {
  return {
    crypto: fast,
    room: 7,
    words: 'crop-lamp-vivid',
    relay: filled(0x77),
    identity: agent.identity,
    passport: agent.passport,
    name,
    now: PAIR_NOW,
    ...changes,
  }
}

/** The envelopes in `bytes`, whole. */
export function splitEnvelopes(bytes: Uint8Array): Uint8Array[] {
  const out: Uint8Array[] = []
  for (let at = 0; at < bytes.length;) {
    const length = 4 + (bytes[at + 1]! << 16 | bytes[at + 2]! << 8 | bytes[at + 3]!)
    out.push(bytes.subarray(at, at + length))
    at += length
  }
  return out
}
