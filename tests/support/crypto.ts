/**
 * Cryptography for tests: both implementations by name, and one whose random bytes repeat, so that
 * golden bytes stay golden.
 */
import * as nodeCrypto from 'node:crypto'
import type { Crypto } from '../../core/crypto.ts'
import { fastCrypto, nobleCrypto } from '../../core/crypto.ts'
import { utf8 } from '../../core/bytes.ts'

export const fast: Crypto = fastCrypto(nodeCrypto)

export const CRYPTOS: readonly (readonly [name: string, crypto: Crypto])[] = [
  ['noble', nobleCrypto],
  ['fast', fast],
]

/** `fast` with bytes that depend on `seed` and the order of calls alone. */
export function seededCrypto(seed: string): Crypto {
  let calls = 0
  return {
    ...fast,
    randomBytes: (count) =>
      fast.hkdfSha256({ key: utf8(seed), salt: utf8('test'), info: `${calls++}`, bytes: count }),
  }
}

/** An array of `length` times `byte`. */
export function filled(byte: number, length = 32): Uint8Array {
  return new Uint8Array(length).fill(byte)
}

/** The code of what `run` throws; undefined when it returns. Anything but a TunnelError is thrown on. */
export function codeOf(run: () => unknown): string | undefined {
  try {
    run()
  } catch (error) {
    const code = (error as { code?: unknown }).code
    if ((error as Error).name !== 'TunnelError' || typeof code !== 'string') throw error
    return code
  }
  return undefined
}
