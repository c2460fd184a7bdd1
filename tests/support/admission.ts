/**
 * One agent and one relay for the tests of admission; an insider who can read and change what the
 * agent seals; and the twin, which makes all messages from docs/protocol.md §3 by `node:crypto` alone.
 */
import * as nodeCrypto from 'node:crypto'
import type {
  AgentAdmissionOptions,
  RelayAdmissionOptions,
  RelayIdentity,
} from '../../core/admit.ts'
import { AgentAdmission, RelayAdmission } from '../../core/admit.ts'
import { concat, hex, utf8 } from '../../core/bytes.ts'
import type { Identity } from '../../core/key.ts'
import { fast, filled, seededCrypto } from './crypto.ts'

export const identity = (seed: number): Identity => ({
  seed: filled(seed),
  public: fast.ed25519Public(filled(seed)),
})
export const AGENT = identity(1)
export const OTHER_AGENT = identity(2)
export const CERTIFICATE = filled(0xce)
export const RELAY: RelayIdentity = {
  ...identity(3),
  names: ['relay.example', '127.0.0.1', '::1'],
  certificates: [filled(0xcd), CERTIFICATE],
}
export const GROUP = Uint8Array.from({ length: 16 }, (_, i) => i)
export const SECRET = { kind: 'key', secret: 'sk_test' } as const

export const LABELS = { site: 'berlin-1', role: 'web' }

export function agentSide(changes: Partial<AgentAdmissionOptions> = {}): AgentAdmission {
  return new AgentAdmission({
    crypto: fast,
    identity: AGENT,
    target: AGENT.public,
    role: 'home',
    dialledName: 'relay.example',
    certificate: CERTIFICATE,
    pin: (relay) => hex(relay) === hex(RELAY.public),
    credential: SECRET,
    group16: GROUP,
    version: '0.1.0',
    labels: LABELS,
    ...changes,
  })
}

export function relaySide(changes: Partial<RelayAdmissionOptions> = {}): RelayAdmission {
  return new RelayAdmission({ crypto: fast, identity: RELAY, target: AGENT.public, ...changes })
}

/** Runs up to the answer: what an attacker in the middle gets to see and change. */
export function upToAnswer(
  changes: Partial<AgentAdmissionOptions> = {},
  relayChanges: Partial<RelayAdmissionOptions> = {},
) {
  const agent = agentSide(changes)
  const relay = relaySide(relayChanges)
  const hello = agent.hello()
  const challenge = relay.challenge(hello)
  const admit = agent.answer(challenge)
  return { agent, relay, hello, challenge, admit }
}

/** The challenge of `relay` with its body changed, signed again by `seed`. */
export function resigned(hello: Uint8Array, body: Uint8Array, seed: Uint8Array): Uint8Array {
  const message = concat(utf8('sotto relay challenge v1\0'), fast.sha256(hello), body)
  return concat(body, fast.ed25519Sign(seed, message))
}

export type Signer = (kindAndCredential: Uint8Array) => Uint8Array

/**
 * An exchange whose ephemeral key of the agent is known, so that the sealed plaintext can be read,
 * changed and sealed again: what an insider could do at best.
 */
export function insideAdmit(
  change: (plaintext: Uint8Array, sign: Signer) => Uint8Array | undefined,
  options: Partial<RelayAdmissionOptions> = {},
) {
  const ephemeral = filled(0x66)
  let calls = 0
  const crypto = {
    ...fast,
    randomBytes: (n: number) => calls++ === 0 ? Uint8Array.from(ephemeral) : fast.randomBytes(n),
  }
  const agent = agentSide({ crypto, pin: () => true })
  const relay = relaySide(options)
  const hello = agent.hello()
  const challenge = relay.challenge(hello)
  const sealed = agent.answer(challenge)
  const keys = linkKeys(hello, challenge, ephemeral)
  const plaintext = fast.aesGcmOpen({ ...keys, sealed })
  const sign: Signer = (shown) =>
    fast.ed25519Sign(
      AGENT.seed,
      concat(utf8('sotto agent admit v1\0'), keys.associated, fast.sha256(shown)),
    )
  const changed = change(Uint8Array.from(plaintext), sign) ?? plaintext
  const admit = fast.aesGcmSeal({ ...keys, plaintext: changed })
  return { relay, hello, challenge, sealed, plaintext, admit }
}

/** What seals the admit message, for who knows one of the two ephemeral keys. */
export function linkKeys(hello: Uint8Array, challenge: Uint8Array, ephemeral: Uint8Array) {
  const transcript = fast.sha256(
    utf8('sotto link transcript v1\0'),
    fast.sha256(hello),
    fast.sha256(challenge),
  )
  const key = fast.x25519Shared(ephemeral, challenge.slice(66, 98))
  const key32 = fast.hkdfSha256({ key, salt: transcript, info: 'sotto link v1 admit', bytes: 32 })
  return { key32, nonce12: filled(0, 12), associated: transcript }
}

/** The twin: docs/protocol.md §3 read line by line, over `node:crypto` and Buffer. */
export function slowExchange() {
  const node = nodeCrypto
  const sha = (...parts: Uint8Array[]) =>
    node.createHash('sha256').update(Buffer.concat(parts)).digest()
  const der = (head: string, key: Uint8Array) => Buffer.concat([Buffer.from(head, 'hex'), key])
  const secret = (oid: string, key: Uint8Array) =>
    node.createPrivateKey({
      key: der(`302e020100300506032b65${oid}04220420`, key),
      format: 'der',
      type: 'pkcs8',
    })
  const publicOf = (oid: string, key: Uint8Array) =>
    node.createPublicKey(secret(oid, key)).export({ format: 'der', type: 'spki' }).subarray(-32)
  const sign = (seed: Uint8Array, ...parts: Uint8Array[]) =>
    node.sign(null, Buffer.concat(parts), secret('70', seed))
  const random = { agent: seededCrypto('agent'), relay: seededCrypto('relay') }
  const ephemeral = { agent: random.agent.randomBytes(32), relay: random.relay.randomBytes(32) }
  const hello = Buffer.concat([
    Buffer.from([0, 1, 1]),
    AGENT.public,
    AGENT.public,
    random.agent.randomBytes(32),
    publicOf('6e', ephemeral.agent),
  ])
  const body = Buffer.concat([
    Buffer.from([0, 1]),
    RELAY.public,
    random.relay.randomBytes(32),
    publicOf('6e', ephemeral.relay),
    Buffer.from('\x03\x0drelay.example\x09127.0.0.1\x03::1\x02', 'latin1'),
    ...RELAY.certificates,
  ])
  const challenge = Buffer.concat([
    body,
    sign(RELAY.seed, Buffer.from('sotto relay challenge v1\0'), sha(hello), body),
  ])
  const h = sha(Buffer.from('sotto link transcript v1\0'), sha(hello), sha(challenge))
  const dh = node.diffieHellman({
    privateKey: secret('6e', ephemeral.agent),
    publicKey: node.createPublicKey(secret('6e', ephemeral.relay)),
  })
  const derive = (info: string) => Buffer.from(node.hkdfSync('sha256', dh, h, info, 32))
  const seal = (info: string, plaintext: Uint8Array) => {
    const cipher = node.createCipheriv('aes-256-gcm', derive(info), Buffer.alloc(12))
    cipher.setAAD(h)
    return Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()])
  }
  const shown = Buffer.from('\x01sk_test', 'latin1')
  const admit = seal(
    'sotto link v1 admit',
    Buffer.concat([
      sign(AGENT.seed, Buffer.from('sotto agent admit v1\0'), h, sha(shown)),
      GROUP,
      Buffer.from('\x01\x00\x07sk_test\x050.1.0', 'latin1'),
      Buffer.from('\x02\x04role\x03web\x04site\x08berlin-1', 'latin1'),
    ]),
  )
  const welcome = seal('sotto link v1 welcome', Buffer.from('{"scope":"home"}'))
  return {
    hello: hello.toString('hex'),
    challenge: challenge.toString('hex'),
    admit: admit.toString('hex'),
    welcome: welcome.toString('hex'),
    bulk: derive('sotto link v1 bulk').toString('hex'),
  }
}
