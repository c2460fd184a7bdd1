/**
 * Every attack of the table in docs/protocol.md §3, each tried as the attacker would: on the agent
 * by a relay in the middle, on the relay by an agent or a relay elsewhere, on each byte of each message.
 */
import fc from 'fast-check'
import * as nodeCrypto from 'node:crypto'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat, fromHex, utf8 } from '../../core/bytes.ts'
import { CREDENTIAL } from '../../core/credential.ts'
import { ROLE } from '../../core/greeting.ts'
import {
  AGENT,
  agentSide,
  identity,
  insideAdmit,
  linkKeys,
  OTHER_AGENT,
  RELAY,
  relaySide,
  resigned,
  upToAnswer,
} from '../support/admission.ts'
import { codeOf, fast, filled } from '../support/crypto.ts'

const test = suite('core/admit attacks')

// Attacks on the agent.

test('attack: a challenge recorded on another link is replayed', () => {
  const recorded = upToAnswer().challenge
  const agent = agentSide()
  agent.hello()
  assert.is(codeOf(() => agent.answer(recorded)), 'admit/relay-forged')
})

test('attack: a relay in the middle, with an identity of its own', () => {
  // It answers to the right name and has a certificate that the agent received.
  const middle = { ...RELAY, ...identity(9) }
  assert.is(codeOf(() => upToAnswer({}, { identity: middle })), 'admit/relay-changed')
  const claims = { ...middle, public: RELAY.public }
  assert.is(codeOf(() => upToAnswer({}, { identity: claims })), 'admit/relay-forged')
})

test('attack: a relay in the middle forwards the true challenge under its own host name', () => {
  for (const dialledName of ['evil.example', 'relay.example.evil.example', 'relay', '']) {
    assert.is(codeOf(() => upToAnswer({ dialledName })), 'admit/name', dialledName)
  }
})

test('attack: it forwards the true challenge under the true name, with another valid certificate', () => {
  const another = { certificate: filled(0xee), certificateTrusted: true }
  assert.is(codeOf(() => upToAnswer(another)), 'admit/certificate')
})

test('attack: TLS ends at a self-signed certificate while the relay names none', () => {
  const identity = { ...RELAY, certificates: [] }
  assert.is(codeOf(() => upToAnswer({}, { identity })), 'admit/certificate')
  assert.ok(upToAnswer({ certificateTrusted: true }, { identity }), 'a CA vouches for it')
  assert.ok(upToAnswer({ certificate: undefined }, { identity }), 'no TLS at all')
})

test('attack: the relay is the agent itself', () => {
  const itself = { ...RELAY, ...AGENT }
  assert.is(codeOf(() => upToAnswer({}, { identity: itself })), 'admit/reflected')
  const agent = agentSide({ pin: () => true })
  const hello = agent.hello()
  const body = concat(
    fromHex('0001'),
    AGENT.public,
    filled(5, 64),
    fromHex('010d'),
    utf8('relay.example'),
    fromHex('00'),
  )
  assert.is(codeOf(() => agent.answer(resigned(hello, body, AGENT.seed))), 'admit/reflected')
})

test("attack: the agent's own messages come back to it", () => {
  const agent = agentSide()
  const hello = agent.hello()
  assert.is(codeOf(() => agent.answer(hello)), 'admit/size')
  const padded = agentSide()
  assert.is(
    codeOf(() => padded.answer(concat(padded.hello(), filled(0, 64)))),
    'admit/relay-forged',
  )
  const { agent: second, admit } = upToAnswer()
  assert.is(codeOf(() => second.finish(admit)), 'admit/forged')
})

test('attack: each byte of the challenge is changed', () => {
  const { length } = upToAnswer().challenge
  for (let i = 0; i < length; i++) {
    const agent = agentSide()
    const challenge = relaySide().challenge(agent.hello())
    challenge[i]! ^= 1
    const code = codeOf(() => agent.answer(challenge))
    assert.is(code, i < 2 ? 'admit/version' : 'admit/relay-forged', `byte ${i}`)
  }
})

test('attack: the challenge is cut at each byte, or longer', () => {
  const { length } = upToAnswer().challenge
  for (let cut = 0; cut < length; cut++) {
    const agent = agentSide()
    const challenge = relaySide().challenge(agent.hello()).subarray(0, cut)
    const code = codeOf(() => agent.answer(challenge))
    assert.is(code, cut < 164 ? 'admit/size' : 'admit/relay-forged', `${cut}`)
  }
  const agent = agentSide()
  const longer = concat(relaySide().challenge(agent.hello()), filled(0, 1))
  assert.is(codeOf(() => agent.answer(longer)), 'admit/relay-forged')
})

test('attack: ephemeral keys are swapped', () => {
  const mine = fast.x25519Public(filled(8))
  const agent = agentSide()
  const hello = agent.hello()
  hello.set(mine, 99)
  const challenge = relaySide().challenge(hello)
  assert.is(codeOf(() => agent.answer(challenge)), 'admit/relay-forged', "the agent's")
  const second = agentSide()
  const changed = relaySide().challenge(second.hello())
  changed.set(mine, 66)
  assert.is(codeOf(() => second.answer(changed)), 'admit/relay-forged', "the relay's")
})

test('nothing secret is computed before all checks of the relay hold', () => {
  const used: string[] = []
  const watching = {
    ...fast,
    ed25519Sign: (seed: Uint8Array, message: Uint8Array) => {
      used.push('sign')
      return fast.ed25519Sign(seed, message)
    },
    x25519Shared: (key: Uint8Array, other: Uint8Array) => {
      used.push('shared')
      return fast.x25519Shared(key, other)
    },
  }
  const crypto = { crypto: watching }
  for (
    const run of [
      () => upToAnswer({ ...crypto, pin: () => false }),
      () => upToAnswer({ ...crypto, dialledName: 'evil.example' }),
      () => upToAnswer({ ...crypto, certificate: filled(1) }),
      () => upToAnswer(crypto, { identity: { ...RELAY, seed: filled(9) } }),
    ]
  ) assert.ok(codeOf(run))
  assert.equal(used, [])
  upToAnswer(crypto)
  assert.equal(used, ['shared', 'sign'])
})

test('attack: the welcome is changed, cut, or that of another link', () => {
  const finish = (change: (welcome: Uint8Array) => Uint8Array) => {
    const { agent, relay, admit } = upToAnswer()
    relay.open(admit)
    const welcome = relay.welcome({ ok: 1 })
    return codeOf(() => agent.finish(change(welcome)))
  }
  const first = upToAnswer()
  first.relay.open(first.admit)
  const recorded = first.relay.welcome({ ok: 1 })
  assert.is(finish(() => recorded), 'admit/forged')
  for (let i = 0; i < recorded.length; i++) {
    assert.is(finish((welcome) => welcome.subarray(0, i)), 'admit/forged')
    assert.is(finish((welcome) => (welcome[i]! ^= 1, welcome)), 'admit/forged')
  }
  assert.is(finish((welcome) => welcome), undefined)
})

// Attacks on the relay.

test('attack: a recorded answer is replayed to a new challenge', () => {
  const recorded = upToAnswer()
  const relay = relaySide()
  relay.challenge(recorded.hello)
  assert.is(codeOf(() => relay.open(recorded.admit)), 'admit/forged')
})

test('attack: an answer meant for another relay is forwarded', () => {
  // The other relay is honest towards the agent, and hands what it opened to this one.
  const other = { ...RELAY, ...identity(9) }
  const there = upToAnswer({ pin: () => true }, { identity: other })
  const relay = relaySide()
  relay.challenge(there.hello)
  assert.is(codeOf(() => relay.open(there.admit)), 'admit/forged')
})

test('attack: a malicious relay signs in elsewhere with the signature that it was given', () => {
  // It knows all keys of its own link with the agent; the signature holds for that transcript only.
  const middle = { ...RELAY, ...identity(9) }
  const there = insideAdmit(() => undefined, { identity: middle })
  const relay = relaySide()
  const ephemeral = filled(0x55)
  const hello = Uint8Array.from(there.hello)
  hello.set(fast.x25519Public(ephemeral), 99)
  const challenge = relay.challenge(hello)
  const { plaintext } = there
  const admit = fast.aesGcmSeal({ ...linkKeys(hello, challenge, ephemeral), plaintext })
  assert.is(codeOf(() => relay.open(admit)), 'admit/agent-forged')
})

test("attack: somebody sends an agent's identity in the hello, and signs with another", () => {
  const relay = relaySide()
  const thief = { ...OTHER_AGENT, public: AGENT.public }
  const agent = agentSide({ identity: thief })
  const challenge = relay.challenge(agent.hello())
  assert.is(codeOf(() => relay.open(agent.answer(challenge))), 'admit/agent-forged')
})

test('attack: each byte of the hello is changed on its way', () => {
  for (let i = 0; i < 131; i++) {
    const agent = agentSide()
    const hello = agent.hello()
    hello[i]! ^= 1
    const relay = relaySide()
    const code = codeOf(() => agent.answer(relay.challenge(hello)))
    const expected = i < 2
      ? 'admit/version'
      : i === 2
      ? 'admit/role'
      : i < 67
      ? 'admit/target'
      : 'admit/relay-forged'
    assert.is(code, expected, `byte ${i}`)
  }
})

test('attack: the hello is cut at each byte, or longer', () => {
  const hello = agentSide().hello()
  for (let cut = 0; cut < hello.length; cut++) {
    assert.is(codeOf(() => relaySide().challenge(hello.subarray(0, cut))), 'admit/truncated')
  }
  assert.is(codeOf(() => relaySide().challenge(concat(hello, filled(0, 1)))), 'admit/trailing')
})

test('attack: each byte of the answer is changed, and it is cut at each byte', () => {
  const { length } = upToAnswer().admit
  for (let i = 0; i <= length; i++) {
    const changed = upToAnswer()
    if (i < length) {
      changed.admit[i]! ^= 1
      assert.is(codeOf(() => changed.relay.open(changed.admit)), 'admit/forged', `byte ${i}`)
      const cut = upToAnswer()
      assert.is(codeOf(() => cut.relay.open(cut.admit.subarray(0, i))), 'admit/forged')
    } else {
      const longer = concat(changed.admit, filled(0, 1))
      assert.is(codeOf(() => changed.relay.open(longer)), 'admit/forged')
    }
  }
})

test('attack: a home link is used as a visit link, and to another target', () => {
  const home = upToAnswer()
  const swapped = Uint8Array.from(home.hello)
  swapped[2] = ROLE.visit
  const relay = relaySide()
  const challenge = relay.challenge(swapped)
  assert.is(codeOf(() => relay.open(home.admit)), 'admit/forged', 'the recorded answer')
  const agent = agentSide()
  agent.hello()
  assert.is(codeOf(() => agent.answer(challenge)), 'admit/relay-forged', 'the live agent')

  const elsewhere = { target: OTHER_AGENT.public }
  assert.is(codeOf(() => relaySide(elsewhere).challenge(home.hello)), 'admit/target')
  const stranger = Uint8Array.from(home.hello)
  stranger.set(OTHER_AGENT.public, 35)
  assert.is(
    codeOf(() => relaySide(elsewhere).challenge(stranger)),
    'admit/target',
    'home of another',
  )
})

test('attack: an agent signs in with the identity of the relay', () => {
  const itself = { seed: RELAY.seed, public: RELAY.public }
  const agent = agentSide({ identity: itself, target: RELAY.public })
  const relay = relaySide({ target: RELAY.public })
  assert.is(codeOf(() => relay.challenge(agent.hello())), 'admit/reflected')
})

test('attack: an ephemeral key of small order makes the shared secret known', () => {
  const agent = agentSide()
  const hello = agent.hello()
  hello.set(filled(0), 99)
  const relay = relaySide()
  relay.challenge(hello)
  assert.is(codeOf(() => relay.open(filled(0, 200))), 'admit/ephemeral')
})

test('attack: an insider with all keys of the link swaps the credential, or its kind', () => {
  const open = (change: (plaintext: Uint8Array) => Uint8Array | undefined) => {
    const { relay, admit } = insideAdmit(change)
    return codeOf(() => relay.open(admit))
  }
  assert.is(open((plaintext) => plaintext), undefined, 'unchanged')
  const at = 64 + 16
  const kind = (to: number) => (plaintext: Uint8Array) => (plaintext[at] = to, plaintext)
  assert.is(open(kind(CREDENTIAL.token)), 'admit/agent-forged')
  assert.is(open(kind(CREDENTIAL.none)), 'admit/agent-forged')
  assert.is(open((plaintext) => (plaintext[at + 5]! ^= 1, plaintext)), 'admit/agent-forged')
})

test('attack: random bytes in every place, and nothing outside the family is thrown', () => {
  const noise = fc.uint8Array({ maxLength: 300 })
  fc.assert(fc.property(noise, (bytes) => {
    assert.ok(codeOf(() => relaySide().challenge(bytes)))
    const agent = agentSide()
    agent.hello()
    assert.ok(codeOf(() => agent.answer(bytes)))
    const { relay } = upToAnswer()
    assert.ok(codeOf(() => relay.open(bytes)))
  }))
})

test('a proof of a certificate is of one link, and none is looked at without an authority', () => {
  const key = nodeCrypto.generateKeyPairSync('ed25519')
  const chain = [filled(1, 400)]
  let recorded: Uint8Array | undefined
  const replaying = (message: Uint8Array) =>
    recorded ??= new Uint8Array(nodeCrypto.sign(null, message, key.privateKey))
  const holds = (sign: (message: Uint8Array) => Uint8Array, takesCertificates = true) => {
    const credential = { kind: 'certificate', chain, sign } as const
    const { relay, admit } = upToAnswer({ credential }, { takesCertificates })
    const opened = relay.open(admit).credential
    if (opened.kind !== 'certificate') throw new Error('expected a certificate')
    return nodeCrypto.verify(null, opened.message, key.publicKey, opened.signature)
  }
  assert.ok(holds(replaying))
  assert.not.ok(holds(replaying), 'the proof of another link')
  assert.not.ok(holds(() => filled(1, 64)))
  assert.is(codeOf(() => holds(replaying, false)), 'admit/certificate', 'no authority')
})

test.run()
