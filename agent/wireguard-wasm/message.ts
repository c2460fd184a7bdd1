/**
 * What passes a tunnel beside TCP: datagrams, echoes, and errors about them, as records of 64 bytes
 * (ABI.md) and as objects.
 */
import { formatIp, parseIp } from './address.ts'

export const MESSAGE_BYTES = 64

const KINDS = ['datagram', 'echo-request', 'echo-reply', 'unreachable'] as const
const REASONS = ['net', 'host', 'port', 'prohibited', 'too-big', 'other'] as const

export type MessageKind = (typeof KINDS)[number]
/** Why something did not come there. */
export type Unreachable = (typeof REASONS)[number]

export interface Message {
  /** `unreachable`: what went from source to destination did not come there. */
  kind: MessageKind
  /** IP addresses. */
  source: string
  destination: string
  /** Of an echo: its identifier. */
  sourcePort: number
  /** Of an echo: its sequence number. */
  destinationPort: number
  payload: Uint8Array
  reason?: Unreachable | undefined
  /** With `too-big`: what the next hop takes. */
  mtu?: number | undefined
  /** Of the peer that it came from, -1 for none. */
  peer?: number
}

/** `reset` ends a flow without a word about why. */
export function reasonCode(reason: Unreachable | 'reset'): number {
  return reason === 'reset' ? 0 : REASONS.indexOf(reason) + 1
}

/** Writes all but the place of the payload. Throws `wireguard/address`. */
export function writeMessage(view: DataView, at: number, message: Omit<Message, 'payload'>): void {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + at, MESSAGE_BYTES)
  const [source, destination] = [ipOf(message.source), ipOf(message.destination)]
  bytes.fill(0)
  bytes[0] = KINDS.indexOf(message.kind) + 1
  // Ends of two families are no ends: the module refuses them.
  bytes[1] = source.length !== destination.length ? 0 : source.length === 4 ? 4 : 6
  bytes.set(source, 16)
  bytes.set(destination, 32)
  if (message.reason) view.setUint16(at + 2, reasonCode(message.reason), true)
  view.setUint16(at + 48, message.sourcePort, true)
  view.setUint16(at + 50, message.destinationPort, true)
  view.setUint32(at + 52, message.mtu ?? 0, true)
}

/** The payload is the caller's to add. */
export function readMessage(
  view: DataView,
  at: number,
): Message & { offset: number; length: number } {
  const isFour = view.getUint8(at + 1) === 4
  const ip = (from: number): string => {
    if (isFour) return textOf(view.getUint32(at + from))
    return formatIp(new Uint8Array(view.buffer, view.byteOffset + at + from, 16))
  }
  const mtu = view.getUint32(at + 52, true)
  return {
    kind: KINDS[view.getUint8(at) - 1] ?? 'datagram',
    source: ip(16),
    destination: ip(32),
    sourcePort: view.getUint16(at + 48, true),
    destinationPort: view.getUint16(at + 50, true),
    payload: NONE,
    reason: REASONS[view.getUint16(at + 2, true) - 1],
    mtu: mtu === 0 ? undefined : mtu,
    peer: view.getInt32(at + 4, true),
    offset: view.getUint32(at + 8, true),
    length: view.getUint32(at + 12, true),
  }
}

const NONE = new Uint8Array(0)

// Most messages are between the same few ends, and reading or writing an address as text costs more than the rest.

/** Addresses that are remembered; then all are forgotten. */
const KNOWN_MAX = 4_096
const bytesByText = new Map<string, Uint8Array>()
const textByWord = new Map<number, string>()

function ipOf(text: string): Uint8Array {
  let bytes = bytesByText.get(text)
  if (bytes) return bytes
  bytes = parseIp(text)
  if (bytesByText.size >= KNOWN_MAX) bytesByText.clear()
  bytesByText.set(text, bytes)
  return bytes
}

function textOf(word: number): string {
  let text = textByWord.get(word)
  if (text !== undefined) return text
  text = formatIp(Uint8Array.of(word >>> 24, word >>> 16, word >>> 8, word))
  if (textByWord.size >= KNOWN_MAX) textByWord.clear()
  textByWord.set(word, text)
  return text
}
