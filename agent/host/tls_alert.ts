/**
 * A TLS 1.3 alert of our own. The stack judges client certificates only against CAs and closes without
 * a word on those it does not like; ours are judged by fingerprint, after the handshake, and the other
 * end should learn why it was refused. So the one record that it still gets is sealed here, with the
 * session's own server key (RFC 8446 §5.2, §6, §7.3), which the stack hands out by its key log.
 *
 * Only right for the first record after the handshake: session tickets must be off.
 */
import { createCipheriv, createHmac } from 'node:crypto'

// RFC 8446 §6.
export const ALERT = Object.freeze({ access_denied: 49, certificate_required: 116 })

const RECORD_APPLICATION_DATA = 23
const CONTENT_ALERT = 21
const LEVEL_FATAL = 2
const IV_BYTES = 12
const TAG_BYTES = 16

/** Suites that the runtime's `node:crypto` can seal; key bytes and hash of each. */
const SUITES: Readonly<Record<string, [cipher: string, keyBytes: number, hash: string]>> = {
  TLS_AES_128_GCM_SHA256: ['aes-128-gcm', 16, 'sha256'],
  TLS_AES_256_GCM_SHA384: ['aes-256-gcm', 32, 'sha384'],
}

/** The server's first traffic secret in a key log line, if it is that line. */
export function serverSecret(line: Uint8Array): Buffer | undefined {
  const [label, , secret] = Buffer.from(line).toString('latin1').trim().split(' ')
  return label === 'SERVER_TRAFFIC_SECRET_0' && secret ? Buffer.from(secret, 'hex') : undefined
}

/** The record, ready to be sent below TLS; undefined for a suite that cannot be sealed here. */
export function sealAlert(suite: string, secret: Uint8Array, alert: number): Buffer | undefined {
  const known = SUITES[suite]
  if (!known) return undefined
  const [cipher, keyBytes, hash] = known
  const key = expandLabel(hash, secret, { label: 'key', bytes: keyBytes })
  const iv = expandLabel(hash, secret, { label: 'iv', bytes: IV_BYTES })
  const inner = Buffer.from([LEVEL_FATAL, alert, CONTENT_ALERT])
  const header = Buffer.from([RECORD_APPLICATION_DATA, 3, 3, 0, inner.length + TAG_BYTES])
  // The nonce is the IV itself: the sequence number of the first record is 0.
  const seal = createCipheriv(cipher as 'aes-256-gcm', key, iv)
  seal.setAAD(header)
  return Buffer.concat([header, seal.update(inner), seal.final(), seal.getAuthTag()])
}

/** RFC 8446 §7.1, HKDF-Expand-Label with an empty context, for outputs of at most one hash. */
function expandLabel(
  hash: string,
  secret: Uint8Array,
  { label, bytes }: { label: string; bytes: number },
): Buffer {
  const full = Buffer.from(`tls13 ${label}`)
  const info = Buffer.concat([Buffer.from([0, bytes, full.length]), full, Buffer.from([0, 1])])
  return createHmac(hash, secret).update(info).digest().subarray(0, bytes)
}
