/**
 * Reading and writing bytes: one reader that refuses to run past the end, one writer that grows
 * within a stated limit. Big-endian throughout (network order), as docs/protocol.md says once.
 */
import { TunnelError } from './errors.ts'

const encoder = new TextEncoder()
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export const EMPTY: Uint8Array = new Uint8Array(0)

/** UTF-8 bytes of `text`. */
export function utf8(text: string): Uint8Array {
  return encoder.encode(text)
}

/** Text of UTF-8 `bytes`. Throws `bytes/utf8` when they are not well-formed. */
export function text(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes)
  } catch (cause) {
    throw new TunnelError(
      'bytes/utf8',
      `Cannot decode text: found malformed UTF-8 in ${bytes.length} bytes`,
      { cause },
    )
  }
}

/** Lower-case hexadecimal, two digits a byte. */
export function hex(bytes: Uint8Array): string {
  // Joined at once: a string that grew by += stays the tree of its parts, ten times as large.
  const pairs: string[] = []
  for (const byte of bytes) pairs.push(HEX[byte]!)
  return pairs.join('')
}

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'))

/** Bytes of hexadecimal text; blanks are skipped. Throws `bytes/hex` on anything else. */
export function fromHex(digits: string): Uint8Array {
  const dense = digits.replace(/\s+/g, '')
  if (dense.length % 2 !== 0 || /[^0-9a-fA-F]/.test(dense)) {
    throw new TunnelError('bytes/hex', 'Cannot decode hex: expected pairs of digits 0-9 a-f')
  }
  const out = new Uint8Array(dense.length / 2)
  for (let i = 0; i < out.length; i++) out[i] = Number.parseInt(dense.slice(2 * i, 2 * i + 2), 16)
  return out
}

/** One array holding all parts in order. */
export function concat(...parts: Uint8Array[]): Uint8Array {
  let length = 0
  for (const part of parts) length += part.length
  const out = new Uint8Array(length)
  let at = 0
  for (const part of parts) {
    out.set(part, at)
    at += part.length
  }
  return out
}

/** Compares in time that depends on the lengths alone; for anything that is secret or derived from one. */
export function equal(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false
  let difference = 0
  for (let i = 0; i < a.length; i++) difference |= a[i]! ^ b[i]!
  return difference === 0
}

/**
 * Reads fields one after the other. Returned arrays are views into the input. Each read past the
 * end throws `MODULE/truncated`, where MODULE and the subject are those given to the constructor.
 */
export class ByteReader {
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #module: string
  readonly #subject: string
  #at = 0

  constructor(bytes: Uint8Array, module: string, subject: string) {
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#module = module
    this.#subject = subject
  }

  get remaining(): number {
    return this.#bytes.length - this.#at
  }

  #need(count: number): number {
    const at = this.#at
    if (count > this.#bytes.length - at) {
      throw new TunnelError(
        `${this.#module}/truncated`,
        `Cannot decode ${this.#subject}: found ${this.#bytes.length} bytes, expected at least ${
          at + count
        }`,
      )
    }
    this.#at = at + count
    return at
  }

  u8(): number {
    return this.#view.getUint8(this.#need(1))
  }

  u16(): number {
    return this.#view.getUint16(this.#need(2))
  }

  u32(): number {
    return this.#view.getUint32(this.#need(4))
  }

  /** An unsigned 64-bit number; throws `MODULE/range` above 2^53 - 1. */
  u64(): number {
    const at = this.#need(8)
    const value = this.#view.getUint32(at) * 2 ** 32 + this.#view.getUint32(at + 4)
    if (!Number.isSafeInteger(value)) {
      throw new TunnelError(
        `${this.#module}/range`,
        `Cannot decode ${this.#subject}: found a number above 2^53 - 1`,
      )
    }
    return value
  }

  bytes(count: number): Uint8Array {
    const at = this.#need(count)
    return this.#bytes.subarray(at, at + count)
  }

  /** Text with its length in one byte before it. */
  text8(): string {
    return text(this.bytes(this.u8()))
  }

  /** Bytes with their length in two bytes before them. */
  bytes16(): Uint8Array {
    return this.bytes(this.u16())
  }

  rest(): Uint8Array {
    return this.bytes(this.remaining)
  }

  /** Throws `MODULE/trailing` when bytes are left: formats that are signed are read exactly. */
  end(): void {
    if (this.remaining === 0) return
    throw new TunnelError(
      `${this.#module}/trailing`,
      `Cannot decode ${this.#subject}: found ${this.remaining} bytes after its end, expected none`,
    )
  }
}

/** Writes fields one after the other into an array that doubles as needed. */
export class ByteWriter {
  #bytes: Uint8Array
  #view: DataView
  #at = 0

  constructor(capacity = 256) {
    this.#bytes = new Uint8Array(capacity)
    this.#view = new DataView(this.#bytes.buffer)
  }

  #grow(count: number): number {
    const at = this.#at
    if (at + count > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(at + count, this.#bytes.length * 2))
      grown.set(this.#bytes.subarray(0, at))
      this.#bytes = grown
      this.#view = new DataView(grown.buffer)
    }
    this.#at = at + count
    return at
  }

  u8(value: number): this {
    const at = this.#grow(1)
    this.#view.setUint8(at, value)
    return this
  }

  u16(value: number): this {
    const at = this.#grow(2)
    this.#view.setUint16(at, value)
    return this
  }

  u32(value: number): this {
    const at = this.#grow(4)
    this.#view.setUint32(at, value)
    return this
  }

  u64(value: number): this {
    const at = this.#grow(8)
    this.#view.setUint32(at, Math.floor(value / 2 ** 32))
    this.#view.setUint32(at + 4, value >>> 0)
    return this
  }

  bytes(value: Uint8Array): this {
    const at = this.#grow(value.length)
    this.#bytes.set(value, at)
    return this
  }

  /** Text of at most 255 bytes with its length in one byte. Throws `bytes/range` when longer. */
  text8(value: string): this {
    const encoded = utf8(value)
    if (encoded.length > 255) {
      throw new TunnelError(
        'bytes/range',
        `Cannot encode text: found ${encoded.length} bytes, expected at most 255`,
      )
    }
    return this.u8(encoded.length).bytes(encoded)
  }

  /** At most 65,535 bytes with their length in two. Throws `bytes/range` when longer. */
  bytes16(value: Uint8Array): this {
    if (value.length > 65_535) {
      throw new TunnelError(
        'bytes/range',
        `Cannot encode bytes: found ${value.length}, expected at most 65535`,
      )
    }
    return this.u16(value.length).bytes(value)
  }

  /** A view of what was written; valid until the next write. */
  done(): Uint8Array {
    return this.#bytes.subarray(0, this.#at)
  }
}
