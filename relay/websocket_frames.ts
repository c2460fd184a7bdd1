/**
 * The client's side of WebSocket framing (RFC 6455 §5), for runtimes that end a visitor's WebSocket
 * themselves and hand over messages: towards the service they have to become frames again.
 *
 *   fin 1 bit, reserved 3, opcode 4 | masked 1, length 7 | length 16 or 64 | mask 4 | payload
 *
 * A client masks, a server does not; no extension is ever agreed on, so the reserved bits are 0.
 */
import { ByteWriter, concat, EMPTY, text, utf8 } from '../core/bytes.ts'
import { TunnelError } from '../core/errors.ts'

/** A message of several frames is put together up to this. */
export const MESSAGE_BYTES_MAX = 16_777_216
const HELD_BYTES_MIN = 4096
/** RFC 6455 §5.5. */
const CONTROL_BYTES_MAX = 125

export const OPCODE = Object.freeze({
  continuation: 0x0,
  text: 0x1,
  binary: 0x2,
  close: 0x8,
  ping: 0x9,
  pong: 0xa,
})

/** One whole frame as a client sends it; `mask` is 4 fresh random bytes. */
export function encodeClientFrame(
  opcode: number,
  payload: Uint8Array,
  mask: Uint8Array,
): Uint8Array {
  const { length } = payload
  const writer = new ByteWriter(14 + length).u8(0x80 | opcode)
  if (length < 126) writer.u8(0x80 | length)
  else if (length < 65_536) writer.u8(0x80 | 126).u16(length)
  else writer.u8(0x80 | 127).u64(length)
  const head = writer.bytes(mask).done()
  const frame = new Uint8Array(head.length + length)
  frame.set(head)
  for (let i = 0; i < length; i++) frame[head.length + i] = payload[i]! ^ mask[i & 3]!
  return frame
}

/** Payload of a close frame; without a code it is empty. */
export function encodeClose(code: number | undefined, reason: string): Uint8Array {
  if (code === undefined) return EMPTY
  const words = utf8(reason).subarray(0, CONTROL_BYTES_MAX - 2)
  return new ByteWriter(CONTROL_BYTES_MAX).u16(code).bytes(words).done()
}

export interface FrameEvents {
  message(message: string | Uint8Array): void
  ping(payload: Uint8Array): void
  /** `code` is undefined when none was given. The last event. */
  close(code: number | undefined, reason: string): void
}

/**
 * Reads what a server sends, in whatever pieces. Throws `websocket/frame` on what RFC 6455 forbids
 * and `websocket/size` on a message that is too long; it is of no use after that.
 */
export class ServerFrames {
  readonly #events: FrameEvents
  /** What came and is not read yet lies between the two marks. */
  #held = new Uint8Array(HELD_BYTES_MIN)
  #start = 0
  #end = 0
  /** Frames of the message that is being put together, and its opcode; 0 when there is none. */
  #parts: Uint8Array[] = []
  #partsBytes = 0
  #opcode = 0
  #closed = false

  constructor(events: FrameEvents) {
    this.#events = events
  }

  push(bytes: Uint8Array): void {
    if (this.#closed) return
    this.#append(bytes)
    while (!this.#closed) {
      const held = this.#held.subarray(this.#start, this.#end)
      const frame = readHeader(held)
      if (!frame) return
      if (this.#partsBytes + frame.length > MESSAGE_BYTES_MAX) {
        throw new TunnelError(
          'websocket/size',
          `Cannot read message: found more than ${MESSAGE_BYTES_MAX} bytes`,
        )
      }
      const end = frame.headerBytes + frame.length
      if (held.length < end) return
      this.#start += end
      this.#frame(frame, held.slice(frame.headerBytes, end))
    }
  }

  /** Grows by doubling, so that a message in many pieces is moved a few times only. */
  #append(bytes: Uint8Array): void {
    const live = this.#end - this.#start
    if (this.#end + bytes.length > this.#held.length) {
      const size = Math.max(HELD_BYTES_MIN, live + bytes.length)
      const grown = size <= this.#held.length / 2
        ? this.#held
        : new Uint8Array(live === 0 ? size : 2 * size)
      grown.set(this.#held.subarray(this.#start, this.#end))
      this.#held = grown
      this.#start = 0
      this.#end = live
    }
    this.#held.set(bytes, this.#end)
    this.#end += bytes.length
  }

  #frame({ opcode, fin }: { opcode: number; fin: boolean }, payload: Uint8Array): void {
    switch (opcode) {
      case OPCODE.close: {
        this.#closed = true
        if (payload.length === 0) return this.#events.close(undefined, '')
        if (payload.length === 1) throw wrong('a close of 1 byte')
        return this.#events.close(payload[0]! * 256 + payload[1]!, text(payload.subarray(2)))
      }
      case OPCODE.ping:
        return this.#events.ping(payload)
      case OPCODE.pong:
        return
    }
    if ((opcode === OPCODE.continuation) !== (this.#opcode !== 0)) {
      throw wrong('a message inside another, or a rest without a beginning')
    }
    if (opcode !== OPCODE.continuation) this.#opcode = opcode
    this.#parts.push(payload)
    // An empty frame costs memory as well.
    this.#partsBytes += payload.length + 16
    if (!fin) return
    const whole = this.#parts.length === 1 ? payload : concat(...this.#parts)
    const kind = this.#opcode
    this.#parts = []
    this.#partsBytes = 0
    this.#opcode = 0
    this.#events.message(kind === OPCODE.text ? text(whole) : whole)
  }
}

interface Header {
  opcode: number
  fin: boolean
  length: number
  headerBytes: number
}

/** Undefined while it is not whole. */
function readHeader(bytes: Uint8Array): Header | undefined {
  if (bytes.length < 2) return undefined
  const first = bytes[0]!
  const opcode = first & 0x0f
  const fin = (first & 0x80) !== 0
  if ((first & 0x70) !== 0) throw wrong('reserved bits')
  if (opcode > 0x2 && opcode < 0x8 || opcode > 0xa) throw wrong(`the opcode ${opcode}`)
  if ((bytes[1]! & 0x80) !== 0) throw wrong('a mask')
  const short = bytes[1]! & 0x7f
  if (opcode >= 0x8 && (!fin || short > CONTROL_BYTES_MAX)) throw wrong('a long control frame')
  const lengthBytes = short === 126 ? 2 : short === 127 ? 8 : 0
  if (bytes.length < 2 + lengthBytes) return undefined
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const length = short === 126
    ? view.getUint16(2)
    : short === 127
    ? view.getUint32(2) * 2 ** 32 + view.getUint32(6)
    : short
  if (short === 126 && length < 126 || short === 127 && length < 65_536) {
    throw wrong('a length in more bytes than it needs')
  }
  return { opcode, fin, length, headerBytes: 2 + lengthBytes }
}

function wrong(found: string): TunnelError {
  return new TunnelError('websocket/frame', `Cannot read WebSocket frame: found ${found}`)
}
