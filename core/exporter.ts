/**
 * What a session derives beside its record keys, each by a spelled label (RFC 5705 in spirit):
 *
 *   export(label, context, n) = HKDF-SHA256(secret, salt h, info "sotto " ‖ label ‖ 0 ‖ context)
 *
 * `secret` and `h` come from the handshake. docs/protocol.md §10.
 */
import { concat, EMPTY, utf8 } from './bytes.ts'
import type { Crypto } from './crypto.ts'
import { KEY_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import { CipherState, type Role, type Split, type Suite } from './noise.ts'
import { RESUME_KEY_LABELS, type ResumeKeys, SESSION_ID_BYTES } from './resume.ts'

export class Exporter {
  readonly #crypto: Crypto
  readonly #split: Split
  readonly #resumeKeys: ResumeKeys
  #erased = false
  /** The session's id, 16 bytes. */
  readonly id: Uint8Array

  constructor(crypto: Crypto, split: Split) {
    this.#crypto = crypto
    this.#split = split
    this.id = this.export('session id', EMPTY, SESSION_ID_BYTES)
    this.#resumeKeys = {
      initiator: this.export(RESUME_KEY_LABELS.initiator, EMPTY, KEY_BYTES),
      responder: this.export(RESUME_KEY_LABELS.responder, EMPTY, KEY_BYTES),
    }
  }

  /** 1 to 8,160 bytes. Throws `session/closed` once erased, `crypto/length`. */
  export(label: string, context: Uint8Array, bytes: number): Uint8Array {
    this.#needKeys()
    const { hash: salt, exporterSecret: key } = this.#split
    const info = concat(utf8(`sotto ${label}\0`), context)
    return this.#crypto.hkdfSha256({ key, salt, info, bytes })
  }

  /** What proves both sides when the session is resumed. Throws `session/closed`. */
  get resumeKeys(): ResumeKeys {
    this.#needKeys()
    return this.#resumeKeys
  }

  /** For the datagrams of one side, keyed for the first epoch. */
  datagrams(side: Role, suite: Suite): CipherState {
    const key32 = this.export(`datagrams ${side}`, EMPTY, KEY_BYTES)
    return new CipherState({ crypto: this.#crypto, suite, key32 })
  }

  erase(): void {
    this.#erased = true
    for (const key of [this.#split.exporterSecret, ...Object.values(this.#resumeKeys)]) key.fill(0)
  }

  #needKeys(): void {
    if (!this.#erased) return
    throw new TunnelError('session/closed', 'Cannot export a key: found the session closed')
  }
}
