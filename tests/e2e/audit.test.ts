// seconds: 180
/**
 * `sotto audit`: two real agents exchange messages over a real relay, and what both have kept agrees,
 * on their own machines and on one that knows nothing but the two fingerprints. Whatever is changed in
 * an exported file is found by the command; a content opens as itself and as no other.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { concat } from '../../core/bytes.ts'
import { ENVELOPE } from '../../core/envelope.ts'
import { TRAIL_ENTRY } from '../../core/trail.ts'
import { E2eWorld } from '../support/world.ts'
import type { CommandResult, Relay } from '../support/world.ts'

const test = suite('e2e/audit')

let world: E2eWorld
let relay: Relay
const keys: Record<string, string> = {}
const prints: Record<string, string> = {}
const WORDS = 'the shipment leaves at nine'
const REPLY = 'ninety boxes, as agreed'

const run = (home: string, ...args: string[]): Promise<CommandResult> =>
  world.sottoRun(args, { home, timeoutMs: 30_000 })

async function done(home: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(home, ...args)
  assert.is(code, 0, `${args.join(' ')}: ${stdout} ${stderr}`)
  return stdout
}

// deno-lint-ignore no-explicit-any
const objects = (stdout: string): any[] =>
  stdout.split('\n').filter(Boolean).map((one) => JSON.parse(one))

const both = (): string[] => ['--identity', prints['alice']!, '--identity', prints['bob']!]

/** The newest session of this agent. */
async function newest(home: string): Promise<Record<string, string>> {
  return objects(await done(home, 'audit', 'list', '--json'))[0]
}

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
  for (const home of ['alice', 'bob']) {
    const [own] = objects(await done(home, 'identity', '--json'))
    keys[home] = own.key
    prints[home] = own.fingerprint
  }
  await done('bob', 'peers', 'trust', 'alice', keys['alice']!)
  await done('bob', 'access', 'allow', 'alice', 'a2a', 'a2a exec')
  await done('alice', 'peers', 'trust', 'bob', keys['bob']!)
  const script = `cat > /dev/null; echo ${JSON.stringify(REPLY)}; echo psst >&2`
  const bob = world.sotto(
    ['a2a', 'listen', '--name', 'bob', '--json', '--shell', script],
    { home: 'bob', env: world.joins(relay) },
  )
  await bob.event('listening')
  const sent = await world.sottoRun(['a2a', 'send', 'bob', WORDS], {
    home: 'alice',
    env: world.joins(relay),
    timeoutMs: 30_000,
  })
  assert.is(sent.code, 0, sent.stderr)
  await bob.stop()
  const { session } = await newest('alice')
  for (const home of ['alice', 'bob']) {
    await done(home, 'audit', 'export', session!, '-o', world.path(`${home}.trail`))
  }
  await done(
    'alice',
    ...['audit', 'export', session!, '-o', world.path('open.trail')],
    ...['--open', 'sent-0', '--open', 'received-0'],
  )
  mkdirSync(world.path('stranger'))
})

test.after(() => world.close())

test('both have kept the session to its end, with its peer by name', async () => {
  const [alice, bob] = [await newest('alice'), await newest('bob')]
  assert.equal([alice.peer, alice.service, alice.role, alice.state], [
    'bob',
    'a2a',
    'initiator',
    'complete',
  ])
  assert.equal([bob.peer, bob.role, bob.state], ['alice', 'responder', 'complete'])
  assert.is(alice.session, bob.session)
  assert.equal([alice.sent, alice.received], [bob.received, bob.sent])
  const lines = (await done('alice', 'audit', 'list')).split('\n')
  assert.match(lines[0]!, /^SESSION +WHEN +PEER +SERVICE +SENT +RECEIVED +STATE$/)
  assert.match(lines[1]!, new RegExp(`^${alice.session!.slice(0, 12)} .* bob +a2a +\\d`))
})

test('what was said is nowhere in it, and what was committed to is', async () => {
  const { session, path } = await newest('bob')
  const [shown] = objects(await done('bob', 'audit', 'show', session!, '--json'))
  assert.equal(shown.contents.map(({ name }: { name: string }) => name), [
    'sent-0',
    'sent-1',
    'received-0',
  ])
  assert.is(shown.sent.commitment, 2)
  assert.is(shown.checkpoints.length, 2)
  assert.equal(shown.faults, [])
  assert.match(await done('bob', 'audit', 'show', session!.slice(0, 8)), /content +received-0 +SHA/)
  for (const file of [path!, world.path('bob.trail'), world.path('open.trail')]) {
    const bytes = readFileSync(file)
    for (const words of [WORDS, REPLY, 'psst']) assert.not(bytes.includes(words), file)
  }
})

test('both trails agree, here and on a machine that knows the two fingerprints alone', async () => {
  const files = ['alice', 'bob'].map((home) => world.path(`${home}.trail`))
  for (const home of ['alice', 'bob']) {
    assert.match(
      await done(home, 'audit', 'compare', ...files),
      /^the same to the end: \d+ records/,
    )
    for (const file of files) assert.match(await done(home, 'audit', 'verify', file), /^sound/)
  }
  await done('stranger', 'audit', 'compare', ...files.toReversed(), ...both())
  const [verified] = objects(
    await done('stranger', 'audit', 'verify', files[0]!, ...both(), '--json'),
  )
  assert.equal([verified.sound, verified.complete, verified.faults], [true, true, []])
  for (
    const args of [['compare', ...files], ['verify', files[0]!], ['open', files[0]!, 'sent-0']]
  ) {
    const { code, stderr } = await run('stranger', 'audit', ...args)
    assert.is(code, 1)
    assert.match(stderr, /Say both fingerprints.*--identity SHA256/)
  }
  // A file says itself who it is of: that is not believed.
  const other = ['--identity', prints['alice']!, '--identity', `SHA256:${'A'.repeat(43)}`]
  const { code, stderr } = await run('alice', 'audit', 'verify', files[0]!, ...other)
  assert.is(code, 1)
  assert.match(stderr, /found one between SHA256/)
})

test('a content opens as itself and as no other, to whom it is shown', async () => {
  const file = world.path('open.trail')
  for (const [name, words] of [['said', WORDS], ['reply', `${REPLY}\n`], ['lie', 'at ten']]) {
    writeFileSync(world.path(name!), words!)
  }
  const open = (content: string, path: string, from = file): Promise<CommandResult> =>
    run('stranger', ...['audit', 'open', from, content, '--content', world.path(path), ...both()])
  const said = await open('sent-0', 'said')
  assert.is(said.code, 0, said.stderr)
  assert.match(said.stdout, /^it is this content/)
  assert.match(said.stdout, new RegExp(`signed by +${prints['alice']!.replace(/[+/]/g, '.')}`))
  const reply = await open('received-0', 'reply')
  assert.is(reply.code, 0, reply.stderr)
  assert.match(reply.stdout, new RegExp(`signed by +${prints['bob']!.replace(/[+/]/g, '.')}`))
  const lie = await open('sent-0', 'lie')
  assert.is(lie.code, 1)
  assert.match(lie.stdout, /^NOT this content/)
  assert.is((await open('received-0', 'said')).code, 1)
  // What was not exported to be opened stays shut, and what is not there is said.
  const shut = await open('received-1', 'reply')
  assert.is(shut.code, 1)
  assert.match(shut.stderr, /--open received-1/)
  assert.is((await open('sent-0', 'said', world.path('alice.trail'))).code, 1)
  assert.match((await open('sent-7', 'said')).stderr, /no such content/)
  const { session } = await newest('alice')
  const unknown = await run(
    'alice',
    ...['audit', 'export', session!, '-o', world.path('none'), '--open', 'sent-9'],
  )
  assert.is(unknown.code, 1)
})

/** The header, then each entry. */
function entriesOf(bytes: Uint8Array): { head: Uint8Array; entries: Uint8Array[] } {
  const sizes = [0, 29, 29, 234, 234, 41, 41, 73, 73]
  let at = 98 + bytes[97]!
  const head = bytes.slice(0, at)
  const entries: Uint8Array[] = []
  while (at < bytes.length) {
    const size = sizes[bytes[at]!]!
    entries.push(bytes.slice(at, at + size))
    at += size
  }
  return { head, entries }
}

/** Records that alice sent: the entries of her file, by place. */
const sentOf = (entries: readonly Uint8Array[]): number[] =>
  entries.flatMap(([kind], at) => kind === TRAIL_ENTRY.record ? [at] : [])

const bent = (entry: Uint8Array, at: number): Uint8Array =>
  entry.map((byte, i) => i === at ? byte ^ 1 : byte)

const TAMPERINGS: [name: string, bend: (entries: Uint8Array[]) => Uint8Array[], says: RegExp][] = [
  ['the tag of a record', (entries) => {
    const at = sentOf(entries)[2]!
    return entries.with(at, bent(entries[at]!, 20))
  }, /modified: record 2 from this agent/],
  ['the length of a record', (entries) => {
    const at = sentOf(entries)[2]!
    return entries.with(at, bent(entries[at]!, 12))
  }, /modified: record 2 from this agent/],
  [
    'a record is gone',
    (entries) => entries.toSpliced(sentOf(entries)[2]!, 1),
    /injected: record 2/,
  ],
  ['a record is put in', (entries) => {
    const at = sentOf(entries)[2]!
    return entries.toSpliced(at, 0, bent(entries[at]!, 25))
  }, /dropped: record 2/],
  ['two records change places', (entries) => {
    const [one, other] = [sentOf(entries)[1]!, sentOf(entries)[2]!]
    const moved = entries.with(one, entries[other]!)
    return moved.with(other, entries[one]!)
  }, /reordered: record/],
  ['the end is cut off', (entries) => entries.slice(0, -4), /truncated: record/],
  ['a commitment', (entries) => {
    const at = entries.findIndex(([kind]) => kind === TRAIL_ENTRY.commitment)
    return entries.with(at, bent(entries[at]!, 30))
  }, /modified: commitment 0 from this agent/],
  ['a signature', (entries) => {
    const at = entries.findIndex(([kind]) => kind === TRAIL_ENTRY.checkpoint)
    return entries.with(at, bent(entries[at]!, 230))
  }, /the signature does not hold/],
  ['what is signed', (entries) => {
    const at = entries.findIndex(([kind]) => kind === TRAIL_ENTRY.checkpoint + 1)
    return entries.with(at, bent(entries[at]!, 5))
  }, /the signature does not hold/],
]

for (const [name, bend, says] of TAMPERINGS) {
  test(`found in an exported file: ${name}`, async () => {
    const { head, entries } = entriesOf(readFileSync(world.path('alice.trail')))
    assert.is(entries.filter((one) => one[9] === ENVELOPE.close && one[0]! < 3).length, 2)
    const path = world.path('bent.trail')
    writeFileSync(path, concat(head, ...bend(entries)))
    const { code, stdout } = await run('alice', 'audit', 'compare', path, world.path('bob.trail'))
    assert.is(code, 1, stdout)
    assert.match(stdout, /^DIFFERENT/)
    assert.match(stdout, says)
    const verified = await run('alice', 'audit', 'verify', path)
    if (name !== 'the end is cut off') assert.is(verified.code, 1, verified.stdout)
  })
}

test('files that are none, of other sessions or there already are refused by name', async () => {
  const { session } = await newest('alice')
  const mine = world.path('alice.trail')
  writeFileSync(world.path('text'), 'a text that is no trail')
  const cases: [string[], RegExp][] = [
    [['verify', world.path('text')], /file of another kind/],
    [['verify', world.path('nothing')], /it is not there/],
    [['compare', mine, mine], /not the two sides of one session/],
    [['export', session!, '-o', mine], /there already/],
    [['show', 'ffffffff'], /found no trail/],
    [['show', '../../identity'], /found no trail/],
  ]
  for (const [args, says] of cases) {
    const { code, stderr } = await run('alice', 'audit', ...args)
    assert.is(code, 1, args.join(' '))
    assert.match(stderr, says)
  }
  for (
    const args of [
      ['verify', mine, '--identity', prints['alice']!],
      ['verify', mine, '--identity', 'alice', '--identity', 'bob'],
      ['open', mine, '3'],
      ['export', session!],
    ]
  ) assert.is((await run('alice', 'audit', ...args)).code, 2, args.join(' '))
})

test.run()
