/** Base64, RFC 4648 §4, as passports and statements pass in JSON and lie in files. */
import { TunnelError } from '../core/errors.ts'

export function toBase64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
}

/** Throws `agent/base64`. */
export function fromBase64(text: string): Uint8Array {
  try {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
  } catch (cause) {
    throw new TunnelError('agent/base64', "Cannot read the relay's answer: expected base64", {
      cause,
    })
  }
}

/** RFC 4648 §5, without padding: as forms carry bytes. */
export function base64url(bytes: Uint8Array): string {
  return toBase64(bytes).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '')
}

/** Throws `agent/base64`. */
export function fromBase64url(text: string): Uint8Array {
  return fromBase64(text.replaceAll('-', '+').replaceAll('_', '/'))
}
