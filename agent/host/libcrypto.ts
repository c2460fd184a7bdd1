/**
 * ChaCha20-Poly1305 of OpenSSL's libcrypto, by `bun:ffi`, for packets of private networks: 1.6 times as fast as
 * the module's own where packets are long. It works on the module's memory. Where it is missing, is another
 * library than expected, or fails its test, the module's own code goes on.
 *
 * Keys are in the module's memory; libcrypto holds a copy of the last one, for the turn of the event
 * loop in which it was used.
 */
import { fromHex } from '../../core/bytes.ts'
import { Instance } from '../wireguard-wasm/instance.ts'
import { lendAead } from '../wireguard-wasm/lent_aead.ts'
import type { AeadLender, LentAead } from '../wireguard-wasm/lent_aead.ts'

const LIBRARY = 'libcrypto.so.3'
/** Below this the calls cost more than the cipher gains. */
const TEXT_BYTES_MIN = 512
const TAG_BYTES = 16
/** EVP_CTRL_AEAD_GET_TAG and _SET_TAG of openssl/evp.h. */
const GET_TAG = 0x10
const SET_TAG = 0x11

type Pointer = import('bun:ffi').Pointer

const TEST_POOL_BYTES = 4096
/** RFC 8439 §2.8.2, and its additional data. */
const RFC = {
  key: fromHex('808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f'),
  nonce: fromHex('070000004041424344454647'),
  ad: fromHex('50515253c0c1c2c3c4c5c6c7'),
  text: "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the " +
    'future, sunscreen would be it.',
  tag: fromHex('1ae10b594f09e26a7e902ecbd0600691'),
  sealed: fromHex('d31a8d34648e60db7b86afbc53ef7ec2'),
}

const FUNCTIONS = {
  EVP_chacha20_poly1305: { args: [], returns: 'ptr' },
  EVP_CIPHER_CTX_new: { args: [], returns: 'ptr' },
  EVP_CIPHER_CTX_ctrl: { args: ['ptr', 'i32', 'i32', 'ptr'], returns: 'i32' },
  EVP_EncryptInit_ex: { args: ['ptr', 'ptr', 'ptr', 'ptr', 'ptr'], returns: 'i32' },
  EVP_EncryptUpdate: { args: ['ptr', 'ptr', 'ptr', 'ptr', 'i32'], returns: 'i32' },
  EVP_EncryptFinal_ex: { args: ['ptr', 'ptr', 'ptr'], returns: 'i32' },
  EVP_DecryptInit_ex: { args: ['ptr', 'ptr', 'ptr', 'ptr', 'ptr'], returns: 'i32' },
  EVP_DecryptUpdate: { args: ['ptr', 'ptr', 'ptr', 'ptr', 'i32'], returns: 'i32' },
  EVP_DecryptFinal_ex: { args: ['ptr', 'ptr', 'ptr'], returns: 'i32' },
} as const

export class Libcrypto {
  readonly #c
  readonly #ptr
  readonly #sealing: Pointer
  readonly #opening: Pointer
  /** How much was written, which nobody reads; and a key of zeros. */
  readonly #aside = new Int32Array(4)
  readonly #zeros = new Uint8Array(32)
  #holdsKey = false
  #isBroken = false

  private constructor(c: Library['symbols'], ptr: typeof import('bun:ffi').ptr) {
    this.#c = c
    this.#ptr = ptr
    const cipher = c.EVP_chacha20_poly1305()
    const contexts = [c.EVP_CIPHER_CTX_new(), c.EVP_CIPHER_CTX_new()]
    const [sealing, opening] = contexts
    if (!cipher || !sealing || !opening) throw new Error('no memory')
    this.#sealing = sealing as Pointer
    this.#opening = opening as Pointer
    const zeros = ptr(this.#zeros)
    if (
      c.EVP_EncryptInit_ex(sealing, cipher, null, zeros, zeros) !== 1 ||
      c.EVP_DecryptInit_ex(opening, cipher, null, zeros, zeros) !== 1
    ) throw new Error('no ChaCha20-Poly1305')
  }

  /** Undefined where there is no such library, or not all of it. */
  static async open(name = LIBRARY): Promise<Libcrypto | undefined> {
    try {
      const { dlopen, ptr } = await import('bun:ffi')
      return new Libcrypto(dlopen(name, FUNCTIONS).symbols, ptr)
    } catch {
      return undefined
    }
  }

  /** Lends itself to all devices of the module, where both agree. False: they use their own. */
  lendTo(module: WebAssembly.Module): boolean {
    try {
      lendAead(module, this.lend)
      const sizes = { rxBytes: TEST_POOL_BYTES, txBytes: TEST_POOL_BYTES, reserveBytes: 0 }
      const { call, aead } = new Instance(module, sizes)
      // The module compares with its portable code, wrong tags included, at each second length to 2,048.
      if (aead === LIBRARY && this.#isRfc8439() && call['wg_self_test']!() === 1) return true
    } catch {
      // As if there was no library.
    }
    this.#isBroken = true
    lendAead(module, undefined)
    return false
  }

  /** For one memory. */
  readonly lend: AeadLender = (memory): LentAead | undefined => {
    if (this.#isBroken) return undefined
    const c = this.#c
    const [sealing, opening, aside] = [this.#sealing, this.#opening, this.#ptr(this.#aside)]
    let view = new Uint8Array(0)
    let base = 0
    const at = (address: number): Pointer => (base + (address >>> 0)) as Pointer
    // Growth detaches the view, and may move the memory.
    const find = (): void => {
      if (view.length !== 0) return
      view = new Uint8Array(memory.buffer as ArrayBuffer)
      base = this.#ptr(view)
    }
    return {
      name: LIBRARY,
      bytesMin: TEXT_BYTES_MIN,
      seal: (key, nonce, tag, text, bytes) => {
        find()
        this.#used()
        const place = at(text)
        if (c.EVP_EncryptInit_ex(sealing, null, null, at(key), at(nonce)) !== 1) return 0
        if (
          c.EVP_EncryptUpdate(sealing, place, aside, place, bytes) !== 1 ||
          c.EVP_EncryptFinal_ex(sealing, place, aside) !== 1 ||
          c.EVP_CIPHER_CTX_ctrl(sealing, GET_TAG, TAG_BYTES, at(tag)) !== 1
        ) throw this.#broken()
        return 1
      },
      open: (key, nonce, tag, text, bytes) => {
        find()
        this.#used()
        const place = at(text)
        if (
          c.EVP_DecryptInit_ex(opening, null, null, at(key), at(nonce)) !== 1 ||
          c.EVP_CIPHER_CTX_ctrl(opening, SET_TAG, TAG_BYTES, at(tag)) !== 1 ||
          c.EVP_DecryptUpdate(opening, place, aside, place, bytes) !== 1
        ) throw this.#broken()
        if (c.EVP_DecryptFinal_ex(opening, place, aside) === 1) return 1
        // Once more gives back what came in.
        if (
          c.EVP_EncryptInit_ex(sealing, null, null, at(key), at(nonce)) !== 1 ||
          c.EVP_EncryptUpdate(sealing, place, aside, place, bytes) !== 1
        ) throw this.#broken()
        return 0
      },
    }
  }

  #isRfc8439(): boolean {
    const c = this.#c
    const text = new TextEncoder().encode(RFC.text)
    const tag = new Uint8Array(TAG_BYTES)
    const [place, aside] = [this.#ptr(text), this.#ptr(this.#aside)]
    const [key, nonce] = [this.#ptr(RFC.key), this.#ptr(RFC.nonce)]
    const done = c.EVP_EncryptInit_ex(this.#sealing, null, null, key, nonce) === 1 &&
      c.EVP_EncryptUpdate(this.#sealing, null, aside, this.#ptr(RFC.ad), RFC.ad.length) === 1 &&
      c.EVP_EncryptUpdate(this.#sealing, place, aside, place, text.length) === 1 &&
      c.EVP_EncryptFinal_ex(this.#sealing, place, aside) === 1 &&
      c.EVP_CIPHER_CTX_ctrl(this.#sealing, GET_TAG, TAG_BYTES, this.#ptr(tag)) === 1
    return done && equal(tag, RFC.tag) && equal(text.subarray(0, RFC.sealed.length), RFC.sealed)
  }

  /** The text is in no good state: the instance is given up, as one that trapped is, and the next is lent nothing. */
  #broken(): WebAssembly.RuntimeError {
    this.#isBroken = true
    return new WebAssembly.RuntimeError(`${LIBRARY} failed`)
  }

  #used(): void {
    if (this.#holdsKey) return
    this.#holdsKey = true
    queueMicrotask(() => this.#forget())
  }

  #forget(): void {
    this.#holdsKey = false
    const zeros = this.#ptr(this.#zeros)
    this.#c.EVP_EncryptInit_ex(this.#sealing, null, null, zeros, zeros)
    this.#c.EVP_DecryptInit_ex(this.#opening, null, null, zeros, zeros)
  }
}

function equal(one: Uint8Array, other: Uint8Array): boolean {
  return one.every((byte, at) => byte === other[at])
}

type Library = ReturnType<typeof import('bun:ffi').dlopen<typeof FUNCTIONS>>
