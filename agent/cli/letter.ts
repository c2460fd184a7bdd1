/**
 * Messages of others on a terminal, in a pipe and in JSON. What somebody sends must not move a
 * person's cursor, and must reach a program as it was sent.
 */
import { text as decodeText } from '../../core/bytes.ts'
import { toBase64 } from '../agent.ts'
import type { TerminalOutput } from '../world.ts'
import { printableLines } from './screen.ts'

/** `btoa` takes a text, which is made in steps of so many bytes. */
const STEP_BYTES = 24_576

/** Writes bytes that come in pieces, and waits while nobody takes them. */
export class BodyOutput {
  readonly #to: TerminalOutput
  readonly #decoder = new TextDecoder()
  #last = '\n'

  constructor(to: TerminalOutput) {
    this.#to = to
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#to.isTTY) this.#show(this.#decoder.decode(bytes, { stream: true }))
    // The runtime may hold on to it after this call.
    else this.#to.write(bytes.slice())
    await this.#to.taken?.()
  }

  /** At the end of one message: on a terminal the next begins on a line of its own. */
  end(): void {
    if (!this.#to.isTTY) return
    this.#show(this.#decoder.decode())
    if (this.#last !== '\n') this.#to.write('\n')
    this.#last = '\n'
  }

  #show(words: string): void {
    if (words === '') return
    const shown = printableLines(words)
    this.#to.write(shown)
    this.#last = shown.at(-1)!
  }
}

/** Bytes for JSON: `text` where they are UTF-8, else `base64`. */
export function bodyFields(bytes: Uint8Array): { text: string } | { base64: string } {
  try {
    return { text: decodeText(bytes) }
  } catch {
    return { base64: base64Of(bytes) }
  }
}

function base64Of(bytes: Uint8Array): string {
  const parts: string[] = []
  // Steps of whole groups of three bytes, so that the parts can be joined.
  for (let at = 0; at < bytes.length; at += STEP_BYTES) {
    parts.push(toBase64(bytes.subarray(at, at + STEP_BYTES)))
  }
  return parts.join('')
}

/** Cuts a stream of bytes so that no character of UTF-8 is divided between two pieces. */
export class Characters {
  #held: Uint8Array<ArrayBufferLike> = new Uint8Array(0)

  /** What can be passed on now; at most 3 bytes are kept for the next. */
  push(bytes: Uint8Array): Uint8Array {
    const all = new Uint8Array(this.#held.length + bytes.length)
    all.set(this.#held)
    all.set(bytes, this.#held.length)
    const whole = all.length - unfinished(all)
    this.#held = all.slice(whole)
    return all.subarray(0, whole)
  }

  end(): Uint8Array {
    const last = this.#held
    this.#held = new Uint8Array(0)
    return last
  }
}

/** Bytes at the end that begin a character and do not finish it. */
function unfinished(bytes: Uint8Array): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back]!
    if (byte < 0x80) return 0
    if (byte < 0xc0) continue
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2
    return length > back ? back : 0
  }
  return 0
}
