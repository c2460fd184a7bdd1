// Rules of the protocol (agent/wireguard-wasm/RULES.md): each names its tests, and they are there; no test of
// `rules.rs` is named by none. With those that want two paths, or the whole module.
// runtimes: bun node
import { blake2s } from '@noble/hashes/blake2.js'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Batch, encodeEndpoint } from '../../agent/wireguard-wasm/index.ts'
import { ipv4, nodes, settle, Time } from '../support/wireguard.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const PACKAGE = join(ROOT, 'agent', 'wireguard-wasm')
/** Lists of the table, from 0 to 11. */
const LISTS = 12
const test = suite('wireguard/rules')

/** `FILE NAME` of each test of the crate that is run. */
function crateTests(): string[] {
  return readdirSync(join(PACKAGE, 'tests')).filter((name) => name.endsWith('.rs')).flatMap(
    (name) => {
      const words = readFileSync(join(PACKAGE, 'tests', name), 'utf8')
      return [...words.matchAll(/#\[test\]\s*fn (\w+)\(/g)].map(([, title]) =>
        `${name.slice(0, -3)} ${title}`
      )
    },
  )
}

/** Whether `SUITE WORDS` is a test whose title has these words. */
function isHere(named: string): boolean {
  const [, suiteName, words] = /^([a-z_/]+) (.+)$/.exec(named) ?? []
  const source = readFileSync(join(ROOT, 'tests', `${suiteName}.test.ts`), 'utf8')
  return [...source.matchAll(/^test\(\s*(['"`])(.*?)\1,/gm)].some(([, , title]) =>
    title!.includes(words!)
  )
}

function table(): { list: number; rule: string; tests: string[] }[] {
  let list = -1
  return readFileSync(join(PACKAGE, 'RULES.md'), 'utf8').split('\n').flatMap((line) => {
    const [, number] = /^## (\d+)\. /.exec(line) ?? []
    if (number !== undefined) list = Number(number)
    const [, rule, tests] = /^\| (.+?) +\| (.+?) *\|$/.exec(line) ?? []
    if (list < 0 || !tests || rule === 'rule' || /^-+$/.test(rule!)) return []
    return { list, rule: rule!, tests: [...tests.matchAll(/`([^`]+)`/g)].map(([, one]) => one!) }
  })
}

test('each rule names tests that are there', () => {
  const known = new Set(crateTests())
  const rules = table()
  assert.equal([...new Set(rules.map(({ list }) => list))], [...Array(LISTS).keys()])
  for (const { rule, tests } of rules) {
    assert.ok(tests.length > 0, `${rule}: no test`)
    for (const one of tests) {
      assert.ok(one.includes('/') ? isHere(one) : known.has(one), `${rule}: no test ${one}`)
    }
  }
})

test('each test of rules.rs is named by a rule, under the number that it has', () => {
  const rules = table()
  for (const one of crateTests().filter((name) => name.startsWith('rules '))) {
    const lists = rules.filter(({ tests }) => tests.includes(one)).map(({ list }) => list)
    assert.ok(lists.length > 0, `${one} is named by no rule`)
    const [, number] = /^rules r(\d+)_/.exec(one) ?? []
    assert.ok(
      number === undefined || lists.some((list) => list === 0 || list === Number(number)),
      one,
    )
  }
})

test('a path is changed by whatever is authentic, and by nothing else', () => {
  const time = new Time()
  const [a, b] = nodes(time)
  a.peer.connect()
  settle(a, b)
  const [udp, relay] = [0, 1].map((path) => encodeEndpoint({ host: '203.0.113.9', port: 7, path }))
  const arrive = (datagrams: readonly Uint8Array[], record: Uint8Array): number => {
    const batch = Batch.make(datagrams.reduce((sum, { length }) => sum + length, 0))
    for (const one of datagrams) batch.push(one, record)
    return b.device.receive(batch)
  }
  const pathOf = (): number | undefined => b.peer.stats().endpoint?.path
  const said = (): Uint8Array[] => {
    assert.ok(a.device.send(ipv4(1, 2, 9)))
    return a.flush()
  }
  const first = said()
  assert.is(arrive(first, relay!), 1)
  assert.is(pathOf(), 1, 'the relay')
  const second = said()
  assert.is(arrive(second, udp!), 1)
  assert.is(pathOf(), 0, 'UDP, since it came last')
  // Of before, changed, and made up: none moves it back.
  const changed = said().map((one) => one.with(-1, one.at(-1)! ^ 1))
  assert.is(arrive([...first, ...changed, new Uint8Array(32).fill(4)], relay!), 0)
  assert.is(pathOf(), 0)
  assert.is(arrive(said(), relay!), 1)
  assert.is(pathOf(), 1, 'and back by the same rule')
})

/** An initiation by who knows no more than the public key: nobody's, with a right mac1. */
function initiation(publicKey: Uint8Array): Uint8Array {
  const bytes = crypto.getRandomValues(new Uint8Array(148))
  bytes.set([1, 0, 0, 0])
  const key = blake2s(new Uint8Array([...new TextEncoder().encode('mac1----'), ...publicKey]))
  bytes.set(blake2s(bytes.subarray(0, 116), { key, dkLen: 16 }), 116)
  return bytes
}

test('a flood of initiations costs a bounded number of key exchanges, and a peer comes through it', () => {
  const time = new Time()
  const [a, b] = nodes(time)
  const limit = 20
  b.device.setLoadLimit(limit)
  const flood = Array.from({ length: 256 }, () => initiation(b.device.publicKey))
  const [seconds, rounds] = [5, 20]
  const tried = (): number => {
    const { drops } = b.device.stats()
    // What a key exchange was made for; the others were turned away by a hash.
    return drops.badHandshake + drops.unknownPeer
  }
  let asked = 0
  for (let second = 0; second < seconds; second++) {
    for (let round = 0; round < rounds; round++) {
      b.take(flood, a)
      asked += b.flush().filter(([type]) => type === 3).length
      time.ms += 1000 / rounds
      b.device.tick()
    }
  }
  const { drops } = b.device.stats()
  assert.is(
    tried() + drops.underLoad + drops.rateLimited,
    flood.length * rounds * seconds,
    JSON.stringify(drops),
  )
  assert.ok(tried() <= (limit + 1) * (seconds + 1), `${tried()} key exchanges`)
  assert.ok(asked > 0, 'cookies were sent')
  // In the midst of it, by the cookie.
  a.peer.connect()
  for (let turn = 0; turn < 40 && b.peer.stats().lastHandshakeMs === undefined; turn++) {
    b.take(flood, a)
    b.flush()
    b.take(a.flush(), a)
    a.take(b.flush(), b)
    b.take(a.flush(), a)
    time.ms += 300
    a.device.tick()
    b.device.tick()
  }
  assert.ok(b.peer.stats().lastHandshakeMs !== undefined)
})

test.run()
