/**
 * Bytes are fixed by docs/protocol.md §3. The twin makes all four messages from that text by
 * `node:crypto` alone; with seeded randomness its output and that of the state machines are equal.
 * Attacks are in admit_attacks.test.ts.
 */
import * as nodeCrypto from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { AgentAdmissionOptions, Credential, RelayIdentity } from '../../core/admit.ts'
import { concat, fromHex, hex, utf8 } from '../../core/bytes.ts'
import { CREDENTIAL } from '../../core/credential.ts'
import { encodeFrame } from '../../core/frame.ts'
import { ROLE } from '../../core/greeting.ts'
import {
  AGENT,
  agentSide,
  CERTIFICATE,
  GROUP,
  insideAdmit,
  LABELS,
  OTHER_AGENT,
  RELAY,
  relaySide,
  resigned,
  SECRET,
  slowExchange,
  upToAnswer,
} from '../support/admission.ts'
import { codeOf, CRYPTOS, fast, filled, seededCrypto } from '../support/crypto.ts'

const test = suite('core/admit')

/** How long they are in the admit of every agent here. */
const LABEL_BYTES = 1 + 5 + 4 + 5 + 9

for (const [name, crypto] of CRYPTOS) {
  test(`${name}: an honest exchange admits, and both ends hold the same bulk key`, () => {
    for (const role of ['home', 'visit'] as const) {
      const target = role === 'home' ? AGENT.public : OTHER_AGENT.public
      const { agent, relay, admit } = upToAnswer({ crypto, role, target }, { crypto, target })
      assert.equal(relay.open(admit), {
        agent: AGENT.public,
        role,
        group: '000102030405060708090a0b0c0d0e0f',
        credential: SECRET,
        version: '0.1.0',
        labels: LABELS,
      })
      const done = agent.finish(relay.welcome({ link: 'x', n: 1 }))
      assert.equal(done.welcome, { link: 'x', n: 1 })
      assert.equal(done.relay, RELAY.public)
      assert.equal(done.bulkKey, relay.bulkKey)
      assert.is(done.bulkKey.length, 32)
    }
  })
}

test('all four messages are those of the twin', () => {
  const agent = agentSide({ crypto: seededCrypto('agent') })
  const relay = relaySide({ crypto: seededCrypto('relay') })
  const hello = agent.hello()
  const challenge = relay.challenge(hello)
  const admit = agent.answer(challenge)
  relay.open(admit)
  const welcome = relay.welcome({ scope: 'home' })
  const twin = slowExchange()
  assert.is(hex(hello), twin.hello)
  assert.is(hex(challenge), twin.challenge)
  assert.is(hex(admit), twin.admit)
  assert.is(hex(welcome), twin.welcome)
  assert.is(hex(relay.bulkKey), twin.bulk)
})

test('the golden bytes are unchanged', () => {
  const twin = slowExchange()
  const short = (digits: string) => hex(fast.sha256(fromHex(digits))).slice(0, 32)
  assert.is(twin.hello.length / 2, 131)
  assert.equal(
    [twin.hello, twin.challenge, twin.admit, twin.welcome, twin.bulk].map(short),
    GOLDEN_HASHES,
  )
})

test('each message fits its frame', () => {
  const names = Array.from({ length: 12 }, (_, i) => `${i}`.padStart(253, 'n'))
  const certificates = Array.from({ length: 16 }, (_, i) => filled(i))
  const relay = { ...RELAY, names, certificates }
  const exchange = upToAnswer(
    {
      dialledName: names[11]!,
      certificate: filled(15),
      credential: { ...SECRET, secret: 'x'.repeat(1024) },
    },
    { identity: relay },
  )
  encodeFrame('hello', 0, exchange.hello)
  encodeFrame('challenge', 0, exchange.challenge)
  encodeFrame('admit', 0, exchange.admit)
  exchange.relay.open(exchange.admit)
  encodeFrame('welcome', 0, exchange.relay.welcome({ text: 'x'.repeat(4000) }))
})

test('what does not fit is refused by its sender', () => {
  const names = Array.from({ length: 64 }, (_, i) => `${i}`.padStart(100, 'n'))
  const hello = agentSide().hello()
  const wide = relaySide({ identity: { ...RELAY, names } })
  assert.is(codeOf(() => wide.challenge(hello)), 'admit/size')
  const { relay, admit } = upToAnswer()
  relay.open(admit)
  assert.is(codeOf(() => relay.welcome({ text: 'x'.repeat(4096) })), 'admit/size')
  const chain = [filled(1, 30_000), filled(1, 5_000)]
  const agent = agentSide({ credential: { kind: 'certificate', chain, sign: () => filled(1, 64) } })
  const challenge = relaySide().challenge(agent.hello())
  assert.is(codeOf(() => agent.answer(challenge)), 'admit/size')
})

test('every kind of credential arrives as it was shown', () => {
  const chain = [filled(1, 400), filled(2, 500)]
  const shown: Credential[] = [
    { kind: 'none' },
    { kind: 'key', secret: 'sk_ä' },
    { kind: 'token', secret: 't' },
  ]
  for (const credential of shown) {
    const { relay, admit } = upToAnswer({ credential })
    assert.equal(relay.open(admit).credential, credential)
  }
  const key = nodeCrypto.generateKeyPairSync('ed25519')
  const sign = (message: Uint8Array) =>
    new Uint8Array(nodeCrypto.sign(null, message, key.privateKey))
  const { relay, admit } = upToAnswer({ credential: { kind: 'certificate', chain, sign } }, {
    takesCertificates: true,
  })
  const opened = relay.open(admit).credential
  if (opened.kind !== 'certificate') throw new Error('expected a certificate')
  assert.equal(opened.chain, chain)
  assert.ok(nodeCrypto.verify(null, opened.message, key.publicKey, opened.signature))
})

test('with the certificate among those signed, no authority is needed', () => {
  assert.ok(upToAnswer({ certificateTrusted: false }))
})

test('names are compared as host names are', () => {
  for (const dialledName of ['RELAY.Example', 'relay.example.', '127.0.0.1', '[::1]', '::1']) {
    assert.ok(upToAnswer({ dialledName }), dialledName)
  }
  const identity = { ...RELAY, names: ['Relay.Example.'] }
  assert.ok(upToAnswer({}, { identity }))
})

test('a challenge that is signed and not exact is refused', () => {
  const head = concat(fromHex('0001'), RELAY.public, filled(5, 64))
  const name = concat(fromHex('0d'), utf8('relay.example'))
  const cases: [string, Uint8Array][] = [
    ['admit/trailing', concat(head, fromHex('01'), name, fromHex('00ff'))],
    ['admit/truncated', concat(head, fromHex('02'), name, fromHex('00'))],
    ['admit/truncated', concat(head, fromHex('01'), name, fromHex('02'), filled(1))],
    ['bytes/utf8', concat(head, fromHex('0101ff00'))],
    ['admit/name', concat(head, fromHex('0000'))],
    [
      'admit/ephemeral',
      concat(head.slice(0, 66), filled(0), fromHex('01'), name, fromHex('01'), CERTIFICATE),
    ],
  ]
  for (const [code, body] of cases) {
    const agent = agentSide()
    assert.is(codeOf(() => agent.answer(resigned(agent.hello(), body, RELAY.seed))), code)
  }
})

test('the pin is asked once, last, and about the key that signed', () => {
  const asked: string[] = []
  const pin = (relay: Uint8Array) => asked.push(hex(relay)) > 0
  const forged = agentSide({ pin })
  const challenge = relaySide().challenge(forged.hello())
  challenge[70]! ^= 1
  codeOf(() => forged.answer(challenge))
  codeOf(() => upToAnswer({ pin, dialledName: 'evil.example' }))
  codeOf(() => upToAnswer({ pin, certificate: filled(1) }))
  assert.equal(asked, [], 'a first use must not be remembered before all else holds')
  upToAnswer({ pin })
  assert.equal(asked, [hex(RELAY.public)])
})

test('a welcome that is no JSON object is refused', () => {
  const { agent, relay, admit } = upToAnswer()
  relay.open(admit)
  assert.is(codeOf(() => agent.finish(relay.welcome([]))), 'frame/json')
})

test("a visit to one's own key is a visit", () => {
  const { relay, admit } = upToAnswer({ role: 'visit' })
  assert.is(relay.open(admit).role, 'visit')
})

test('an answer that is sealed and not exact is refused', () => {
  const open = (change: (plaintext: Uint8Array) => Uint8Array | undefined) => {
    const { relay, admit } = insideAdmit(change)
    return codeOf(() => relay.open(admit))
  }
  const { plaintext } = insideAdmit((all) => all)
  for (let cut = 0; cut < plaintext.length; cut++) {
    assert.is(open((all) => all.subarray(0, cut)), 'admit/truncated', `${cut}`)
  }
  assert.is(open((all) => concat(all, filled(0, 1))), 'admit/trailing')
  const version = plaintext.length - LABEL_BYTES - 1
  assert.is(open((all) => (all[version] = 7, all)), 'admit/agent', 'a bell in the version')
  const labelled = (words: string) =>
    open((all) => concat(all.subarray(0, -LABEL_BYTES), utf8(words)))
  assert.is(labelled('\x00'), undefined, 'none')
  assert.is(labelled('\x02\x01b\x011\x01a\x011'), 'labels/order')
  assert.is(labelled('\x02\x01a\x011\x01a\x012'), 'labels/order', 'one name twice')
  for (const one of ['\x00\x011', '\x01A\x011', '\x01a\x00', '\x01a\x01B', '\x01a\x02a\x07']) {
    assert.is(labelled(`\x01${one}`), one[0] === '\x00' ? 'labels/order' : 'labels/form', one)
  }
  const many = Array.from({ length: 17 }, (_, i) => `\x03l${i + 10}\x011`).join('')
  assert.is(labelled(`\x11${many}`), 'labels/count')
  assert.is(labelled(`\x10${many.slice(0, 16 * 6)}`), undefined)
})

test('credentials that an agent of ours would never send are refused', () => {
  const cases: [string, number, string][] = [
    ['admit/credential', CREDENTIAL.none, '00'],
    ['admit/credential', CREDENTIAL.key, ''],
    ['admit/credential', CREDENTIAL.token, '61'.repeat(1025)],
    ['bytes/utf8', CREDENTIAL.key, 'ff'],
    ['admit/credential', 4, ''],
    ['admit/credential', 255, '00'],
    ['admit/truncated', CREDENTIAL.certificate, ''],
    ['admit/credential', CREDENTIAL.certificate, '00' + '0000'],
    ['admit/credential', CREDENTIAL.certificate, '09' + '000161'.repeat(9) + '000161'],
    ['admit/credential', CREDENTIAL.certificate, '01' + '0000' + '000161'],
    ['admit/credential', CREDENTIAL.certificate, '01' + '000161' + '0201' + '00'.repeat(513)],
    ['admit/trailing', CREDENTIAL.certificate, '01' + '000161' + '000161' + '00'],
    ['admit/truncated', CREDENTIAL.certificate, '01' + '000261'],
  ]
  for (const [code, kind, digits] of cases) {
    const credential = fromHex(digits)
    const { relay, admit } = insideAdmit(
      (_, sign) =>
        concat(
          sign(concat(Uint8Array.of(kind), credential)),
          GROUP,
          Uint8Array.of(kind, credential.length >> 8, credential.length & 255),
          credential,
          fromHex('013100'),
        ),
      { takesCertificates: true },
    )
    assert.is(codeOf(() => relay.open(admit)), code, `${kind} ${digits.slice(0, 20)}`)
  }
})

// Order and options.

test('no step can be skipped, repeated, or tried again after an error', () => {
  const agent = agentSide()
  assert.is(codeOf(() => agentSide().answer(filled(1))), 'admit/order')
  assert.is(codeOf(() => agentSide().finish(filled(1))), 'admit/order')
  const hello = agent.hello()
  assert.is(codeOf(() => agent.hello()), 'admit/order')
  assert.is(
    codeOf(() => agent.answer(relaySide().challenge(hello))),
    'admit/order',
    'it is dead now',
  )

  const relay = relaySide()
  assert.is(codeOf(() => relay.bulkKey), 'admit/order')
  assert.is(codeOf(() => relaySide().open(filled(1))), 'admit/order')
  assert.is(codeOf(() => relaySide().welcome({})), 'admit/order')
  relay.challenge(hello)
  assert.is(codeOf(() => relay.bulkKey), 'admit/order', 'not before the agent has proven itself')
  assert.is(codeOf(() => relay.welcome({})), 'admit/order')

  const twice = upToAnswer()
  twice.relay.open(twice.admit)
  assert.is(codeOf(() => twice.relay.open(twice.admit)), 'admit/order')
  const guess = upToAnswer()
  assert.is(codeOf(() => guess.relay.open(filled(1))), 'admit/forged')
  assert.is(
    codeOf(() => guess.relay.open(guess.admit)),
    'admit/order',
    'one try for each challenge',
  )
  assert.is(codeOf(() => guess.relay.bulkKey), 'admit/order')
  assert.is(codeOf(() => twice.agent.answer(twice.challenge)), 'admit/order')
})

test('options of the wrong length or form are refused at once', () => {
  const cases: [string, Partial<AgentAdmissionOptions>][] = [
    ['admit/agent', { identity: { ...AGENT, seed: filled(1, 31) } }],
    ['admit/agent', { target: filled(1, 31) }],
    ['admit/agent', { target: OTHER_AGENT.public }],
    ['admit/agent', { group16: filled(1, 15) }],
    ['admit/agent', { version: '' }],
    ['admit/agent', { version: 'a\nb' }],
    ['admit/agent', { version: 'x'.repeat(65) }],
    ['admit/agent', { certificate: filled(1, 20) }],
    ['admit/credential', { credential: { kind: 'key', secret: '' } }],
    ['admit/credential', { credential: { kind: 'token', secret: 'x'.repeat(1025) } }],
    ['admit/credential', { credential: { kind: 'certificate', chain: [], sign: () => filled(1) } }],
  ]
  for (const [code, change] of cases) assert.is(codeOf(() => agentSide(change)), code)
  const relays: Partial<RelayIdentity>[] = [
    { seed: filled(1, 31) },
    { names: [] },
    { names: [''] },
    { names: ['x'.repeat(254)] },
    { names: Array.from({ length: 65 }, () => 'a') },
    { certificates: [filled(1, 31)] },
    { certificates: Array.from({ length: 17 }, () => filled(1)) },
  ]
  for (const change of relays) {
    assert.is(codeOf(() => relaySide({ identity: { ...RELAY, ...change } })), 'admit/relay')
  }
  assert.is(codeOf(() => relaySide({ target: filled(1, 33) })), 'admit/relay')
})

test('two links of one agent share no key', () => {
  const keys = [1, 2, 3].map(() => {
    const { relay, admit } = upToAnswer()
    relay.open(admit)
    return hex(relay.bulkKey)
  })
  assert.is(new Set(keys).size, 3)
})

test('the numbers are unchanged', () => {
  assert.equal(ROLE, { home: 1, visit: 2 })
  assert.equal(CREDENTIAL, { none: 0, key: 1, token: 2, certificate: 3 })
})

const GOLDEN_HASHES = [
  'f0874d4d67e6eb9db939705d9b3869db', // hello
  '76e0f69f3b80a86bd5cf645abc25d8e9', // challenge
  'f957b47b25b3fc4c646e56a21ce01159', // admit
  'ecf558ba683304594a6933bf93e660dc', // welcome
  '95c8938961d777e7a7766f3deb69e968', // bulk key
]

test.run()
