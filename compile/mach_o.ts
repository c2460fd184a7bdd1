/**
 * Signatures of macOS programs, as far as a build needs them. A cross build appends to a runtime that its
 * makers signed, and for x64 Bun leaves that signature as it was: it no longer fits, names a hardened
 * runtime, and macOS ends such a program when it reaches a changed page. An ad hoc signature, which
 * says that the file is whole and nothing of who made it, is what a linker writes too.
 *
 * Mach-O 64, little-endian: header 32; load commands (type 4, size 4, …). LC_CODE_SIGNATURE names where
 * the signature is, at the end of the last segment, __LINKEDIT. The signature is big-endian: a
 * super blob (magic 4, length 4, count 4, then type 4 and offset 4 for each), in it a code directory:
 * header 88, identifier, and the SHA-256 of each page of 4,096 bytes before the signature.
 */
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'

// Specification constants (mach-o/loader.h, cs_blobs.h of XNU).
const MAGIC_64 = 0xfeedfacf
const HEADER_BYTES = 32
const LC_SEGMENT_64 = 0x19
const LC_CODE_SIGNATURE = 0x1d
const SUPER_BLOB = 0xfade0cc0
const CODE_DIRECTORY = 0xfade0c02
const DIRECTORY_SLOT = 0
const DIRECTORY_VERSION = 0x20400
const DIRECTORY_BYTES = 88
const HASH_SHA256 = 2
const HASH_BYTES = 32
const PAGE_BITS = 12
const PAGE_BYTES = 1 << PAGE_BITS
/** Ad hoc, as a linker signs. */
const FLAGS_ADHOC = 0x2 | 0x20000
const MAIN_BINARY = 1n
/** Segments end on pages of the largest kind. */
const SEGMENT_BYTES = 16_384
const IDENTIFIER = 'sotto'

interface Layout {
  view: DataView
  bytes: Uint8Array
  /** Offsets of the two commands. */
  signature: number
  linkedit: number
  /** File range of __TEXT, which holds the code that runs. */
  text: { offset: bigint; size: bigint }
}

/** Whether the signature of the program fits its bytes: every page has the hash that it names. */
export function signatureHolds(path: string): boolean {
  const { bytes, view, signature } = readLayout(path)
  const start = view.getUint32(signature + 8, true)
  const blob = new DataView(bytes.buffer, bytes.byteOffset + start)
  if (blob.getUint32(0) !== SUPER_BLOB) return false
  for (let i = 0; i < blob.getUint32(8); i++) {
    if (blob.getUint32(12 + 8 * i) === DIRECTORY_SLOT) {
      return directoryHolds(bytes, start, start + blob.getUint32(16 + 8 * i))
    }
  }
  return false
}

function directoryHolds(bytes: Uint8Array, limit: number, at: number): boolean {
  const directory = new DataView(bytes.buffer, bytes.byteOffset + at)
  const slots = directory.getUint32(28)
  const hashes = at + directory.getUint32(16)
  if (directory.getUint32(0) !== CODE_DIRECTORY || directory.getUint32(32) !== limit) return false
  if (directory.getUint8(36) !== HASH_BYTES || directory.getUint8(37) !== HASH_SHA256) return false
  if (directory.getUint8(39) !== PAGE_BITS || slots !== Math.ceil(limit / PAGE_BYTES)) return false
  return pageHashes(bytes.subarray(0, limit))
    .equals(bytes.subarray(hashes, hashes + slots * HASH_BYTES))
}

/** Puts an ad hoc signature in place of the one that is there. */
export function signAdHoc(path: string): void {
  const { bytes, view, signature, linkedit, text } = readLayout(path)
  const limit = view.getUint32(signature + 8, true)
  const slots = Math.ceil(limit / PAGE_BYTES)
  const identifier = new TextEncoder().encode(`${IDENTIFIER}\0`)
  const directoryBytes = DIRECTORY_BYTES + identifier.length + slots * HASH_BYTES
  const blobBytes = 20 + directoryBytes
  const size = Math.ceil(blobBytes / 16) * 16
  const segmentStart = view.getBigUint64(linkedit + 40, true)
  const segmentSize = BigInt(limit + size) - segmentStart
  // The commands are part of the first page, so they change before it is hashed.
  view.setUint32(signature + 12, size, true)
  view.setBigUint64(linkedit + 48, segmentSize, true)
  view.setBigUint64(linkedit + 32, roundUp(segmentSize), true)

  const out = new Uint8Array(limit + size)
  out.set(bytes.subarray(0, limit))
  const blob = new DataView(out.buffer, limit)
  for (const [i, value] of [SUPER_BLOB, blobBytes, 1, DIRECTORY_SLOT, 20].entries()) {
    blob.setUint32(4 * i, value)
  }
  const directory = new DataView(out.buffer, limit + 20)
  const hashOffset = DIRECTORY_BYTES + identifier.length
  const fields = [
    CODE_DIRECTORY,
    directoryBytes,
    DIRECTORY_VERSION,
    FLAGS_ADHOC,
    hashOffset,
    DIRECTORY_BYTES,
    0, // special slots
    slots,
    limit,
  ]
  for (const [i, value] of fields.entries()) directory.setUint32(4 * i, value)
  directory.setUint8(36, HASH_BYTES)
  directory.setUint8(37, HASH_SHA256)
  directory.setUint8(39, PAGE_BITS)
  directory.setBigUint64(64, text.offset)
  directory.setBigUint64(72, text.size)
  directory.setBigUint64(80, MAIN_BINARY)
  out.set(identifier, limit + 20 + DIRECTORY_BYTES)
  out.set(pageHashes(out.subarray(0, limit)), limit + 20 + hashOffset)
  writeFileSync(path, out)
}

function readLayout(path: string): Layout {
  const bytes = readFileSync(path)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (view.getUint32(0, true) !== MAGIC_64) throw new Error(`${path}: no 64-bit Mach-O`)
  let signature = 0
  let linkedit = 0
  let text = { offset: 0n, size: 0n }
  let at = HEADER_BYTES
  for (let i = 0; i < view.getUint32(16, true); i++) {
    const command = view.getUint32(at, true)
    if (command === LC_CODE_SIGNATURE) signature = at
    if (command === LC_SEGMENT_64) {
      const name = new TextDecoder().decode(bytes.subarray(at + 8, at + 24)).replace(/\0+$/, '')
      if (name === '__LINKEDIT') linkedit = at
      if (name === '__TEXT') {
        text = { offset: view.getBigUint64(at + 40, true), size: view.getBigUint64(at + 48, true) }
      }
    }
    at += view.getUint32(at + 4, true)
  }
  if (signature === 0 || linkedit === 0) throw new Error(`${path}: no place for a signature`)
  return { bytes, view, signature, linkedit, text }
}

function pageHashes(bytes: Uint8Array): Buffer {
  const hashes: Uint8Array[] = []
  for (let at = 0; at < bytes.length; at += PAGE_BYTES) {
    hashes.push(createHash('sha256').update(bytes.subarray(at, at + PAGE_BYTES)).digest())
  }
  return Buffer.concat(hashes)
}

function roundUp(size: bigint): bigint {
  const page = BigInt(SEGMENT_BYTES)
  return (size + page - 1n) / page * page
}
