// The module against a slow twin of WireGuard's handshake, written from the whitepaper §5.4 on the
// primitives of noble: both roles, with and without a pre-shared key, and cookies.
// runtimes: bun node deno
import { chacha20poly1305, xchacha20poly1305 } from '@noble/ciphers/chacha.js'
import { x25519 } from '@noble/curves/ed25519.js'
import { blake2s } from '@noble/hashes/blake2.js'
import { hmac } from '@noble/hashes/hmac.js'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ipv4, Node, Time } from '../support/wireguard.ts'

const test = suite('wireguard/twin')
const NONE = new Uint8Array(0)
const text = (words: string): Uint8Array => new TextEncoder().encode(words)
const join = (...parts: Uint8Array[]): Uint8Array =>
  Uint8Array.from(parts.flatMap((part) => [...part]))
const hash = (...parts: Uint8Array[]): Uint8Array => blake2s(join(...parts))
const dh = (secret: Uint8Array, open: Uint8Array): Uint8Array =>
  x25519.getSharedSecret(secret, open)

function kdf(count: number, key: Uint8Array, input: Uint8Array): Uint8Array[] {
  const secret = hmac(blake2s, key, input)
  const out: Uint8Array[] = []
  for (let i = 1; i <= count; i++) {
    out.push(hmac(blake2s, secret, join(out.at(-1) ?? NONE, Uint8Array.of(i))))
  }
  return out
}

function nonceOf(counter: number): Uint8Array {
  const nonce = new Uint8Array(12)
  new DataView(nonce.buffer).setUint32(4, counter, true)
  return nonce
}
const seal = (key: Uint8Array, counter: number, plain: Uint8Array, ad: Uint8Array): Uint8Array =>
  chacha20poly1305(key, nonceOf(counter), ad).encrypt(plain)
const open = (key: Uint8Array, counter: number, sealed: Uint8Array, ad: Uint8Array): Uint8Array =>
  chacha20poly1305(key, nonceOf(counter), ad).decrypt(sealed)
const mac1 = (publicKey: Uint8Array, message: Uint8Array): Uint8Array =>
  blake2s(message, { key: hash(text('mac1----'), publicKey), dkLen: 16 })
const word = (value: number): Uint8Array =>
  Uint8Array.of(value & 255, value >> 8 & 255, value >> 16 & 255, value >>> 24)

function tai64n(unixMs: number): Uint8Array {
  const stamp = new Uint8Array(12)
  const view = new DataView(stamp.buffer)
  view.setBigUint64(0, 0x400000000000000an + BigInt(Math.floor(unixMs / 1000)))
  view.setUint32(8, (unixMs % 1000) * 1_000_000)
  return stamp
}

/** Chain and hash of a handshake; `mix` and `psk` as the whitepaper names them. */
class Handshake {
  chain: Uint8Array = hash(text('Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s'))
  hash: Uint8Array
  key: Uint8Array = NONE

  constructor(responder: Uint8Array) {
    const named = hash(this.chain, text('WireGuard v1 zx2c4 Jason@zx2c4.com'))
    this.hash = hash(named, responder)
  }

  ephemeral(key: Uint8Array): void {
    this.chain = kdf(1, this.chain, key)[0]!
    this.hash = hash(this.hash, key)
  }

  mix(secret: Uint8Array, keyed: boolean): void {
    const [chain, key] = kdf(keyed ? 2 : 1, this.chain, secret)
    this.chain = chain!
    if (key) this.key = key
  }

  psk(psk: Uint8Array): void {
    const [chain, tau, key] = kdf(3, this.chain, psk)
    this.chain = chain!
    this.hash = hash(this.hash, tau!)
    this.key = key!
  }

  seal(plain: Uint8Array): Uint8Array {
    const sealed = seal(this.key, 0, plain, this.hash)
    this.hash = hash(this.hash, sealed)
    return sealed
  }

  open(sealed: Uint8Array): Uint8Array {
    const plain = open(this.key, 0, sealed, this.hash)
    this.hash = hash(this.hash, sealed)
    return plain
  }
}

interface Keys {
  secret: Uint8Array
  open: Uint8Array
}
function keys(): Keys {
  const secret = crypto.getRandomValues(new Uint8Array(32))
  return { secret, open: x25519.getPublicKey(secret) }
}

function initiation(
  own: Keys,
  ephemeral: Keys,
  to: Uint8Array,
  stampMs: number,
): [Uint8Array, Handshake] {
  const shake = new Handshake(to)
  shake.ephemeral(ephemeral.open)
  shake.mix(dh(ephemeral.secret, to), true)
  const who = shake.seal(own.open)
  shake.mix(dh(own.secret, to), true)
  const when = shake.seal(tai64n(stampMs))
  const head = join(word(1), word(0xabcdef01), ephemeral.open, who, when)
  return [join(head, mac1(to, head), new Uint8Array(16)), shake]
}

for (const psk of [new Uint8Array(32), new Uint8Array(32).fill(7)]) {
  const how = psk[0] ? 'with a pre-shared key' : 'without a pre-shared key'

  test(`the twin initiates ${how}: the module answers, and data passes both ways`, () => {
    const time = new Time()
    const [node, other] = [new Node(1, time), new Node(2, time)]
    const [own, ephemeral] = [keys(), keys()]
    node.device.addPeer({ publicKey: own.open, allowedIps: ['10.0.0.2/32'], presharedKey: psk })
    const [message, shake] = initiation(own, ephemeral, node.device.publicKey, 1.7e12)
    node.take([message], other)
    const [response] = node.flush()
    assert.is(response?.length, 92)
    assert.equal(response!.subarray(60, 76), mac1(own.open, response!.subarray(0, 60)))
    assert.equal(response!.subarray(8, 12), word(0xabcdef01))
    const theirs = response!.subarray(12, 44)
    shake.ephemeral(theirs)
    shake.mix(dh(ephemeral.secret, theirs), false)
    shake.mix(dh(own.secret, theirs), false)
    shake.psk(psk)
    assert.is(shake.open(response!.subarray(44, 60)).length, 0)
    const [sendKey, receiveKey] = kdf(2, shake.chain, NONE)
    const data = (packet: Uint8Array, counter: number): Uint8Array => {
      const padded = new Uint8Array(Math.ceil(packet.length / 16) * 16)
      padded.set(packet)
      const head = join(word(4), response!.subarray(4, 8), word(counter), word(0))
      return join(head, seal(sendKey!, counter, padded, NONE))
    }
    for (const [counter, length] of [0, 1, 44, 300, 1400].entries()) {
      const packet = ipv4(2, 1, length)
      assert.is(node.take([data(packet, counter)], other), 1)
      assert.equal(node.packets.at(-1), packet)
      assert.is(node.take([data(packet, counter)], other), 0, 'again is replayed')
      node.device.send(ipv4(1, 2, length))
      const [sealed] = node.flush()
      assert.equal(sealed!.subarray(0, 12), join(word(4), word(0xabcdef01), word(counter)))
      const plain = open(receiveKey!, counter, sealed!.subarray(16), NONE)
      assert.is(plain.length % 16 === 0 || plain.length === 1420, true)
      assert.equal(plain.subarray(0, 20 + length), ipv4(1, 2, length))
    }
  })

  test(`the module initiates ${how}: the twin reads it, answers, and is believed`, () => {
    const time = new Time()
    const [node, other] = [new Node(1, time), new Node(2, time)]
    const [own, ephemeral] = [keys(), keys()]
    const peer = node.device.addPeer({
      publicKey: own.open,
      allowedIps: ['10.0.0.2/32'],
      presharedKey: psk,
      endpoint: '192.0.2.2:51820',
    })
    peer.connect()
    const [message] = node.flush()
    assert.is(message?.length, 148)
    assert.equal(message!.subarray(116, 132), mac1(own.open, message!.subarray(0, 116)))
    const shake = new Handshake(own.open)
    const theirs = message!.subarray(8, 40)
    shake.ephemeral(theirs)
    shake.mix(dh(own.secret, theirs), true)
    assert.equal(shake.open(message!.subarray(40, 88)), node.device.publicKey)
    shake.mix(dh(own.secret, node.device.publicKey), true)
    const stamp = shake.open(message!.subarray(88, 116))
    assert.equal(stamp.subarray(0, 8), tai64n(time.wallClock()).subarray(0, 8))
    shake.ephemeral(ephemeral.open)
    shake.mix(dh(ephemeral.secret, theirs), false)
    shake.mix(dh(ephemeral.secret, node.device.publicKey), false)
    shake.psk(psk)
    const empty = shake.seal(NONE)
    const head = join(word(2), word(5), message!.subarray(4, 8), ephemeral.open, empty)
    node.take([join(head, mac1(node.device.publicKey, head), new Uint8Array(16))], other)
    const [keepalive] = node.flush()
    const [theirKey] = kdf(2, shake.chain, NONE)
    assert.is(open(theirKey!, 0, keepalive!.subarray(16), NONE).length, 0)
  })
}

test('a cookie of the module opens, and the mac2 that it makes is believed', () => {
  const time = new Time()
  const [node, other] = [new Node(1, time), new Node(2, time)]
  const own = keys()
  node.device.addPeer({ publicKey: own.open, allowedIps: ['10.0.0.2/32'] })
  node.device.setLoadLimit(0)
  const [message] = initiation(own, keys(), node.device.publicKey, 1.7e12)
  node.take([message], other)
  const [reply] = node.flush()
  assert.equal(reply!.subarray(0, 8), join(word(3), word(0xabcdef01)))
  const key = hash(text('cookie--'), node.device.publicKey)
  const sealed = xchacha20poly1305(key, reply!.subarray(8, 32), message.subarray(116, 132))
  const cookie = sealed.decrypt(reply!.subarray(32))
  time.ms += 100
  message.set(blake2s(message.subarray(0, 132), { key: cookie, dkLen: 16 }), 132)
  node.take([message], other)
  assert.is(node.flush()[0]?.length, 92)
})

test.run()
