/**
 * Admission: how an agent and a relay come to trust a new link. Two state machines, bytes in, bytes
 * out; each method takes or gives the payload of one frame, in this order:
 *
 *   agent                              relay
 *   hello()        ── hello ──▶        challenge(hello)
 *   answer(…)      ◀─ challenge ──
 *                  ── admit ──▶        open(admit)
 *   finish(…)      ◀─ welcome ──       welcome(body)
 *
 * hello, challenge  greeting.ts
 * admit             sealed: signature 64 ‖ group 16 ‖ kind 1 ‖ credential 2+n ‖ agent version 1+n
 *                   ‖ labels (labels.ts)
 * welcome           sealed: JSON
 *
 * A signed Diffie-Hellman exchange of the SIGMA family (Krawczyk 2003): each side signs a
 * transcript that holds both identities and fresh values of both, and proves the shared key by
 * sealing with it. The agent sends nothing secret before the relay's signature, identity, name and
 * certificate hold. Integers are big-endian. docs/protocol.md §3.
 */
import { ByteReader, ByteWriter, concat, EMPTY, equal, hex, utf8 } from './bytes.ts'
import type { AdmittedCredential, Credential } from './credential.ts'
import { checkCredential, CREDENTIAL, encodeCredential, openCredential } from './credential.ts'
import type { Crypto } from './crypto.ts'
import { AEAD_NONCE_BYTES, HASH_BYTES, KEY_BYTES, SIGNATURE_BYTES } from './crypto.ts'
import { TunnelError } from './errors.ts'
import { decodeJson, encodeJson } from './frame.ts'
import type { Challenge, Hello, RelayIdentity, Role } from './greeting.ts'
import {
  checkHello,
  checkRelayIdentity,
  decodeHello,
  encodeChallenge,
  encodeHello,
  hostName,
  needSize,
  NONCE_BYTES,
  openChallenge,
} from './greeting.ts'
import type { Identity } from './key.ts'
import { fingerprint } from './key.ts'
import type { Labels } from './labels.ts'
import { checkLabels, readLabels, writeLabels } from './labels.ts'

export type { AdmittedCredential, Credential, ShownCertificate } from './credential.ts'
export type { RelayIdentity, Role } from './greeting.ts'

// Specification constants.
export const GROUP_BYTES = 16
/** Bounds of frame.ts, which these messages must fit. */
export const ADMIT_BYTES_MAX = 32_768
export const WELCOME_BYTES_MAX = 4096

// One label for each use, so that no signature or key made for one holds for another.
const ADMIT_LABEL = utf8('sotto agent admit v1\0')
const TRANSCRIPT_LABEL = utf8('sotto link transcript v1\0')
const ADMIT_INFO = 'sotto link v1 admit'
const WELCOME_INFO = 'sotto link v1 welcome'
const BULK_INFO = 'sotto link v1 bulk'

/** Each key seals one message, so the nonce never repeats under it. */
const ZERO_NONCE = new Uint8Array(AEAD_NONCE_BYTES)
/** It is printed in logs and pages: no control characters. */
const AGENT_VERSION = /^[\x20-\x7e]{1,64}$/

export interface AgentAdmissionOptions {
  crypto: Crypto
  identity: Identity
  /** The 32 bytes of the KEY in the path. */
  target: Uint8Array
  role: Role
  /** The host name or address of the relay's URL; case and a trailing dot do not matter. */
  dialledName: string
  /** SHA-256 of the TLS certificate that was received; absent when the link is not TLS. */
  certificate?: Uint8Array | undefined
  /** True when a CA that the machine trusts vouched for it. A relay that names no certificates needs this. */
  certificateTrusted?: boolean | undefined
  /** Called last of all checks: false stops with `admit/relay-changed`. */
  pin(relayPublic: Uint8Array): boolean
  credential: Credential
  /** 16 random bytes of this process. */
  group16: Uint8Array
  /** The agent's own version, 1 to 64 printable ASCII characters. */
  version: string
  /** What the agent says of itself; at most 16. */
  labels?: Labels | undefined
}

export interface AgentAdmitted {
  welcome: Record<string, unknown>
  /** 32 bytes: authenticates bulk links (ticket.ts). */
  bulkKey: Uint8Array
  /** The relay's identity. */
  relay: Uint8Array
}

/** The agent's side of one link. An error in any step ends it. */
export class AgentAdmission {
  readonly #options: AgentAdmissionOptions
  readonly #ephemeral: Uint8Array
  #steps = new Steps('hello', 'answer', 'finish')
  #hello = EMPTY
  #relay = EMPTY
  #keys: LinkKeys | undefined

  /** Throws `admit/agent`, `admit/credential`, `labels/…` when an option has the wrong length or form. */
  constructor(options: AgentAdmissionOptions) {
    checkAgent(options)
    this.#options = options
    this.#ephemeral = options.crypto.randomBytes(KEY_BYTES)
  }

  /** The first payload. */
  hello(): Uint8Array {
    return this.#steps.take('hello', () => {
      const { crypto, identity, role, target } = this.#options
      this.#hello = encodeHello({
        role,
        agent: identity.public,
        target,
        nonce: crypto.randomBytes(NONCE_BYTES),
        ephemeral: crypto.x25519Public(this.#ephemeral),
      })
      // A copy: the transcript must hold what was sent, whatever becomes of the caller's array.
      return Uint8Array.from(this.#hello)
    })
  }

  /**
   * The payload of `admit`. Throws before anything secret is computed: `admit/size`,
   * `admit/version`, `admit/reflected`, `admit/relay-forged`, `admit/truncated`, `admit/trailing`,
   * `admit/name`, `admit/certificate`, `admit/relay-changed`, `admit/ephemeral`.
   */
  answer(challenge: Uint8Array): Uint8Array {
    return this.#steps.take('answer', () => {
      const { crypto, identity, credential, group16, version, labels = {} } = this.#options
      const offer = openChallenge(crypto, challenge, this.#hello)
      checkRelay(offer, this.#options)
      const transcript = linkTranscript(crypto, this.#hello, challenge)
      const keys = linkKeys(crypto, {
        privateKey: this.#ephemeral,
        publicKey: offer.ephemeral,
        transcript,
      })
      const kind = CREDENTIAL[credential.kind]
      const shown = encodeCredential(credential, transcript)
      const signature = crypto.ed25519Sign(
        identity.seed,
        admitMessage(crypto, { transcript, kind, credential: shown }),
      )
      const writer = new ByteWriter(256)
        .bytes(signature)
        .bytes(group16)
        .u8(kind)
        .bytes16(shown)
        .text8(version)
      const plaintext = writeLabels(writer, labels).done()
      this.#relay = offer.relay
      this.#keys = keys
      return seal(crypto, keys.admit, { transcript, plaintext, max: ADMIT_BYTES_MAX })
    })
  }

  /** What the relay grants. Throws `admit/forged`, `frame/json`, `bytes/utf8`. */
  finish(welcome: Uint8Array): AgentAdmitted {
    return this.#steps.take('finish', () => {
      const { welcome: key, bulk, transcript } = this.#keys!
      const plaintext = unseal(this.#options.crypto, key, { transcript, sealed: welcome })
      return { welcome: decodeJson(plaintext), bulkKey: bulk, relay: this.#relay }
    })
  }
}

export interface Admitted {
  /** The agent's identity, 32 bytes; it has proven that it holds the seed. */
  agent: Uint8Array
  role: Role
  /** The process: 16 bytes in hex. Means something only together with `agent`. */
  group: string
  credential: AdmittedCredential
  /** The agent's own version, printable ASCII. */
  version: string
  /** Its own word; whether the credential allows them is still to be checked. */
  labels: Labels
}

export interface RelayAdmissionOptions {
  crypto: Crypto
  identity: RelayIdentity
  /** The 32 bytes of the KEY in the path. */
  target: Uint8Array
  /** Without it every certificate is refused. */
  takesCertificates?: boolean | undefined
}

/** The relay's side of one link. An error in any step ends it. */
export class RelayAdmission {
  readonly #options: RelayAdmissionOptions
  readonly #ephemeral: Uint8Array
  #steps = new Steps('challenge', 'open', 'welcome')
  #hello: Hello | undefined
  #transcript = EMPTY
  #keys: LinkKeys | undefined

  /** Throws `admit/relay` when names, certificates or keys have the wrong count or length. */
  constructor(options: RelayAdmissionOptions) {
    checkRelayIdentity(options.identity)
    if (options.target.length !== KEY_BYTES) {
      throw new TunnelError('admit/relay', 'Cannot admit agents: found a target that is no key')
    }
    this.#options = options
    this.#ephemeral = options.crypto.randomBytes(KEY_BYTES)
  }

  /**
   * The payload of `challenge`. Throws `admit/truncated`, `admit/trailing`, `admit/version`,
   * `admit/role`, `admit/target`, `admit/reflected`; `admit/size` when names do not fit.
   */
  challenge(hello: Uint8Array): Uint8Array {
    return this.#steps.take('challenge', () => {
      const { crypto, identity, target } = this.#options
      this.#hello = decodeHello(hello)
      checkHello(this.#hello, { relay: identity.public, target })
      const challenge = encodeChallenge(crypto, identity, {
        nonce: crypto.randomBytes(NONCE_BYTES),
        ephemeral: crypto.x25519Public(this.#ephemeral),
        hello,
      })
      this.#transcript = linkTranscript(crypto, hello, challenge)
      return challenge
    })
  }

  /**
   * Who it is. Throws `admit/ephemeral`, `admit/forged`, `admit/agent-forged`, `admit/truncated`,
   * `admit/trailing`, `admit/credential`, `admit/certificate`, `admit/agent`, `labels/…`,
   * `bytes/utf8`.
   */
  open(admit: Uint8Array): Admitted {
    return this.#steps.take('open', () => {
      const { crypto, takesCertificates = false } = this.#options
      const hello = this.#hello!
      const transcript = this.#transcript
      const keys = linkKeys(crypto, {
        privateKey: this.#ephemeral,
        publicKey: hello.ephemeral,
        transcript,
      })
      const plaintext = unseal(crypto, keys.admit, { transcript, sealed: admit })
      const reader = new ByteReader(plaintext, 'admit', 'admit')
      const signature = reader.bytes(SIGNATURE_BYTES)
      const group = reader.bytes(GROUP_BYTES)
      const kind = reader.u8()
      const credential = reader.bytes16()
      const version = reader.text8()
      const labels = readLabels(reader)
      reader.end()
      const message = admitMessage(crypto, { transcript, kind, credential })
      if (!crypto.ed25519Verify(hello.agent, message, signature)) {
        throw new TunnelError(
          'admit/agent-forged',
          'Cannot admit agent: found a signature that is not by the identity in its hello',
        )
      }
      if (!AGENT_VERSION.test(version)) throw wrongAgent('version', 'printable text')
      const opened = openCredential(kind, credential, { transcript, takesCertificates })
      this.#keys = keys
      return {
        agent: hello.agent,
        role: hello.role,
        group: hex(group),
        credential: opened,
        version,
        labels,
      }
    })
  }

  /** The payload of `welcome`. Throws `admit/size` when the JSON does not fit 4,080 bytes. */
  welcome(body: object): Uint8Array {
    return this.#steps.take('welcome', () => {
      const { welcome, transcript } = this.#keys!
      return seal(this.#options.crypto, welcome, {
        transcript,
        plaintext: encodeJson(body),
        max: WELCOME_BYTES_MAX,
      })
    })
  }

  /** 32 bytes: authenticates bulk links (ticket.ts). Throws `admit/order` before `open` has succeeded. */
  get bulkKey(): Uint8Array {
    if (this.#keys === undefined) throw outOfOrder('bulkKey', 'open')
    return this.#keys.bulk
  }
}

/** Each method once, in order; a step that throws is the last. */
class Steps {
  #left: string[]

  constructor(...names: string[]) {
    this.#left = names
  }

  take<T>(name: string, run: () => T): T {
    const left = this.#left
    const expected = left[0]
    // Emptied while it runs: a throw must not leave a machine that can be asked again.
    this.#left = []
    if (expected !== name) throw outOfOrder(name, expected)
    const result = run()
    this.#left = left.slice(1)
    return result
  }
}

function checkRelay(offer: Challenge, options: AgentAdmissionOptions): void {
  // A relay in the middle may forward a true challenge, but was dialled by a name of its own.
  if (!offer.names.includes(hostName(options.dialledName))) {
    throw new TunnelError(
      'admit/name',
      `Cannot accept relay: found one that answers to ${
        JSON.stringify(offer.names.slice(0, 4)).slice(0, 300)
      }, expected ${JSON.stringify(options.dialledName)}`,
      { hint: 'Dial the relay by one of its own names, or add this one to the relay.' },
    )
  }
  checkCertificate(offer.certificates, options)
  if (!options.pin(Uint8Array.from(offer.relay))) {
    throw new TunnelError(
      'admit/relay-changed',
      `Cannot accept relay: found the identity ${
        fingerprint(options.crypto, offer.relay)
      }, expected the pinned one`,
      {
        hint: 'Ask who runs the relay for its fingerprint; ' +
          'accept the new one with --relay-fingerprint SHA256:…',
      },
    )
  }
}

/** The TLS that the link runs in must end at this relay, or where a CA says that it may. */
function checkCertificate(
  listed: Uint8Array[],
  { certificate, certificateTrusted }: AgentAdmissionOptions,
): void {
  if (certificate === undefined) return
  if (listed.length === 0) {
    if (certificateTrusted) return
    throw new TunnelError(
      'admit/certificate',
      'Cannot accept relay: found a TLS certificate that no known authority vouches for, and that the relay does not name as its own',
      { hint: 'Something between here and the relay may be ending TLS.' },
    )
  }
  if (listed.some((one) => equal(one, certificate))) return
  throw new TunnelError(
    'admit/certificate',
    `Cannot accept relay: found the TLS certificate ${
      hex(certificate)
    }, expected one of those that the relay serves`,
    { hint: 'Something between here and the relay is ending TLS.' },
  )
}

interface LinkKeys {
  admit: Uint8Array
  welcome: Uint8Array
  bulk: Uint8Array
  transcript: Uint8Array
}

interface LinkKeyInput {
  /** This side's ephemeral key; zeroed here, so that a later leak of memory opens no old link. */
  privateKey: Uint8Array
  /** The other side's. */
  publicKey: Uint8Array
  transcript: Uint8Array
}

function linkKeys(crypto: Crypto, input: LinkKeyInput): LinkKeys {
  const { privateKey, publicKey, transcript } = input
  let key: Uint8Array
  try {
    key = crypto.x25519Shared(privateKey, publicKey)
  } catch (cause) {
    throw new TunnelError(
      'admit/ephemeral',
      'Cannot agree on keys: found an ephemeral key of small order',
      { cause },
    )
  } finally {
    privateKey.fill(0)
  }
  const derive = (info: string): Uint8Array =>
    crypto.hkdfSha256({ key, salt: transcript, info, bytes: KEY_BYTES })
  const keys = {
    admit: derive(ADMIT_INFO),
    welcome: derive(WELCOME_INFO),
    bulk: derive(BULK_INFO),
    transcript,
  }
  key.fill(0)
  return keys
}

/** `h`: both identities, both nonces, both ephemeral keys, role, target, names, certificates. */
function linkTranscript(crypto: Crypto, hello: Uint8Array, challenge: Uint8Array): Uint8Array {
  return crypto.sha256(TRANSCRIPT_LABEL, crypto.sha256(hello), crypto.sha256(challenge))
}

interface AdmitMessage {
  transcript: Uint8Array
  kind: number
  credential: Uint8Array
}

/** The credential is signed with the transcript, so that it cannot be swapped for another. */
function admitMessage(crypto: Crypto, { transcript, kind, credential }: AdmitMessage): Uint8Array {
  return concat(ADMIT_LABEL, transcript, crypto.sha256(Uint8Array.of(kind), credential))
}

interface SealedInput {
  transcript: Uint8Array
  plaintext: Uint8Array
  /** Most bytes of the result. */
  max: number
}

function seal(crypto: Crypto, key32: Uint8Array, input: SealedInput): Uint8Array {
  const { transcript, plaintext, max } = input
  const sealed = crypto.aesGcmSeal({
    key32,
    nonce12: ZERO_NONCE,
    associated: transcript,
    plaintext,
  })
  needSize('message', sealed.length, max)
  return sealed
}

function unseal(
  crypto: Crypto,
  key32: Uint8Array,
  { transcript, sealed }: { transcript: Uint8Array; sealed: Uint8Array },
): Uint8Array {
  try {
    return crypto.aesGcmOpen({ key32, nonce12: ZERO_NONCE, associated: transcript, sealed })
  } catch (cause) {
    throw new TunnelError(
      'admit/forged',
      'Cannot open admission: found bytes that the other end of this exchange did not seal',
      { cause },
    )
  }
}

function checkAgent(options: AgentAdmissionOptions): void {
  const { identity, target, role, credential, group16, version, certificate, labels = {} } = options
  if (identity.seed.length !== KEY_BYTES || identity.public.length !== KEY_BYTES) {
    throw wrongAgent('identity', '32 bytes each')
  }
  if (target.length !== KEY_BYTES) throw wrongAgent('target', '32 bytes')
  if (role === 'home' && !equal(target, identity.public)) {
    throw wrongAgent('target', "the agent's own key on a home link")
  }
  if (group16.length !== GROUP_BYTES) throw wrongAgent('group', '16 bytes')
  if (!AGENT_VERSION.test(version)) throw wrongAgent('version', '1 to 64 printable characters')
  if (certificate !== undefined && certificate.length !== HASH_BYTES) {
    throw wrongAgent('certificate fingerprint', '32 bytes')
  }
  checkCredential(credential)
  checkLabels(labels)
}

function wrongAgent(subject: string, expected: string): TunnelError {
  return new TunnelError('admit/agent', `Cannot use ${subject} of agent: expected ${expected}`)
}

function outOfOrder(found: string, expected: string | undefined): TunnelError {
  return new TunnelError(
    'admit/order',
    `Cannot go on with admission: found ${found}, expected ${expected ?? 'nothing more'}`,
  )
}
