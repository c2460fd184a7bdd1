// seconds: 180
/**
 * Trust between real processes over a real relay: a new identity is followed and told, a stolen one is
 * ended from another machine by a paper, a fleet is let in and sent away by its authority, and what is
 * listed is what holds.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { readFileSync, statSync } from 'node:fs'
import { E2eWorld } from '../support/world.ts'
import type { CommandResult, Relay } from '../support/world.ts'

/** An agent looks at its files at least every 2 s, and then asks the relay. */
const LOOK_MS_MAX = 15_000

let world: E2eWorld
let relay: Relay
let upstreamPort: number

const test = suite('e2e/trust')

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
  const upstream = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {})
    socket.pipe(socket)
  })
  await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve))
  upstreamPort = (upstream.address() as AddressInfo).port
  world.defer(() => upstream.close())
})

test.after(() => world.close())

/** `sotto …` in a home that has joined the relay, to its end. */
function at(home: string, args: readonly string[], input?: string): Promise<CommandResult> {
  return world.sottoRun(args, {
    home,
    env: world.joins(relay),
    ...(input === undefined ? {} : { input }),
  })
}

/** The same, where it has to end well. */
async function done(home: string, args: readonly string[], input?: string): Promise<CommandResult> {
  const got = await at(home, args, input)
  assert.is(got.code, 0, `${home}: ${args.join(' ')}\n${got.stderr}`)
  return got
}

const keyOf = async (home: string): Promise<{ key: string; fingerprint: string }> =>
  JSON.parse((await done(home, ['identity', '--json'])).stdout)

function serve(name: string, home: string, more: readonly string[] = []) {
  return world.tunnel(relay, ['tcp', String(upstreamPort), '--name', name, ...more], { home })
}

/** Connects again and again, until it goes as it should, or for too long. */
async function until(
  home: string,
  name: string,
  good: (got: CommandResult) => boolean,
): Promise<CommandResult> {
  const late = Date.now() + LOOK_MS_MAX
  for (;;) {
    const got = await at(home, ['connect', name, '--stdio'], 'hello')
    if (good(got) || Date.now() > late) return got
  }
}

const gotIn = ({ code, stdout }: CommandResult): boolean => code === 0 && stdout === 'hello'

async function enters(home: string, name: string): Promise<void> {
  const got = await until(home, name, gotIn)
  assert.is(got.stdout, 'hello', got.stderr)
}

async function staysOut(home: string, name: string, why: RegExp): Promise<void> {
  const got = await until(home, name, (one) => why.test(one.stderr))
  assert.is(got.stdout, '')
  assert.match(got.stderr, why)
}

const list = async (home: string): Promise<Record<string, unknown>[]> =>
  (await done(home, ['peers', '--json'])).stdout.trim().split('\n').filter((line) => line !== '')
    .map((line) => JSON.parse(line))

test('who serves and who comes may both move to a new identity: the other follows and is told', async () => {
  const guest = await keyOf('guest-1')
  await done('host-1', ['peers', 'trust', 'ada', guest.key, '--allow', 'connect'])
  const first = await serve('moving', 'host-1')
  await enters('guest-1', 'moving')
  await first.stop()

  const rotated = await done('host-1', ['identity', 'rotate'])
  assert.match(rotated.stderr, /knows it; peers follow/)
  const now = await keyOf('host-1')
  assert.is.not(now.fingerprint, first.up['fingerprint'])
  assert.match(rotated.stdout, new RegExp(`follows +${escaped(first.up['fingerprint'])}`))
  const second = await serve('moving', 'host-1')
  const told = await until('guest-1', 'moving', gotIn)
  assert.is(told.stdout, 'hello', told.stderr)
  assert.match(
    told.stderr,
    new RegExp(`moving has a new identity, signed by the old one: ${escaped(now.fingerprint)}`),
  )
  assert.not.match((await until('guest-1', 'moving', gotIn)).stderr, /new identity/, 'once')
  const [pin] = await list('guest-1')
  assert.equal([pin!['name'], pin!['fingerprint'], pin!['how'], pin!['online']], [
    'moving',
    now.fingerprint,
    'rotation',
    true,
  ])

  // The other way round: no rule is touched, the pin it names moves.
  await done('guest-1', ['identity', 'rotate'])
  await enters('guest-1', 'moving')
  const after = await keyOf('guest-1')
  await second.says(
    new RegExp(`ada has a new identity, signed by the old one: ${escaped(after.fingerprint)}`),
  )
  const ada = (await list('host-1')).find(({ name }) => name === 'ada')
  assert.is(ada!['fingerprint'], after.fingerprint)
  await second.stop()
})

function escaped(words: string): string {
  return words.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
}

test('a rotation that no relay heard of is told by the next command that joins one', async () => {
  const host = await serve('later', 'host-2', ['--public'])
  await done('guest-2', ['connect', 'later', '--stdio'], 'hello')
  await host.stop()
  const silent = await world.sottoRun(['identity', 'rotate'], { home: 'host-2' })
  assert.is(silent.code, 0, silent.stderr)
  assert.match(silent.stderr, /no relay was told yet/)
  const again = await serve('later', 'host-2', ['--public'])
  const got = await until('guest-2', 'later', gotIn)
  assert.match(got.stderr, /later has a new identity, signed by the old one/)
  await again.stop()
})

test('a stolen identity is ended from another machine by the paper alone, at both ends of it', async () => {
  const guest = await keyOf('guest-3')
  const host = await serve('paper', 'host-3', ['--allow', guest.key])
  await enters('guest-3', 'paper')
  const paper = await done('guest-3', ['identity', 'revoke-certificate'])
  assert.match(paper.stdout, /^[A-Za-z0-9+/=]+\n$/)
  assert.match(paper.stderr, /Keep it offline/)
  const file = world.path('end.txt')
  await done('guest-3', ['identity', 'revoke-certificate', '-o', file])
  assert.is(statSync(file).mode & 0o777, 0o600)
  assert.is((await at('guest-3', ['identity', 'revoke-certificate', '-o', file])).code, 1, 'kept')

  const wrong = await at(
    'elsewhere',
    ['identity', 'revoke', '--certificate', '-'],
    `${paper.stdout.slice(0, 60)}AAAA`,
  )
  assert.is(wrong.code, 1)
  await enters('guest-3', 'paper')
  const ended = await done('elsewhere', ['identity', 'revoke', '--certificate', '-'], paper.stdout)
  assert.match(ended.stdout, new RegExp(`${escaped(guest.fingerprint)} is revoked at localhost`))
  await staysOut('guest-3', 'paper', /revoked/)
  // Not even a new identity that the thief signs with the stolen key.
  await at('guest-3', ['identity', 'rotate'])
  await staysOut('guest-3', 'paper', /does not let this identity in|revoked/)

  // The one that serves: whoever pinned it stops, and stays so when the relay is another one.
  await done('host-3', ['identity', 'revoke-certificate', '-o', world.path('host-end.txt')])
  await at('visitor-3', ['connect', 'paper', '--stdio'], 'hello')
  assert.is((await list('visitor-3'))[0]!['how'], 'first-use')
  await done('elsewhere', ['identity', 'revoke', '--certificate', world.path('host-end.txt')])
  await host.says(/revoked/)
  await host.stop()
  await done('visitor-3', ['peers', 'forget', 'paper'])
  const back = await at('visitor-3', ['peers', 'trust', 'paper', host.up['key']])
  assert.is(back.code, 0, 'it has not heard of it')
  assert.is((await list('visitor-3'))[0]!['revoked'], true, 'and now it has')
  const refused = await at('visitor-3', ['peers', 'trust', 'again', host.up['key']])
  assert.match(refused.stderr, /it has revoked itself/)
})

test('a fleet: an authority lets in by label, names by its word, and sends away by number', async () => {
  const made = await done('ops', ['authority', 'init', 'ops', '--json'])
  const { key: authority } = JSON.parse(made.stdout)
  const worker = await keyOf('worker')
  const host = await keyOf('host-4')
  for (const home of ['host-4', 'worker']) {
    await done(home, ['peers', 'trust', '--authority', 'ops', authority])
  }
  await done('host-4', ['access', 'allow', 'connect', '--authority', 'ops', '--labels', 'role=web'])
  const tunnel = await serve('fleet', 'host-4')
  await staysOut('worker', 'fleet', /does not let this identity in/)
  assert.match((await list('worker'))[0]!['how'] as string, /first-use/)
  await done('worker', ['peers', 'forget', 'fleet'])

  // Signed where no relay is, with keys in a file, and carried over.
  const wanted = world.path('fleet.txt')
  await Bun.write(wanted, `# the fleet\n${worker.key}\n${host.key} fleet\n`)
  const signed = await world.sottoRun(
    [
      'authority',
      'sign',
      wanted,
      '--label',
      'role=web',
      '--days',
      '9',
      '-o',
      world.path('vouches'),
    ],
    { home: 'ops' },
  )
  assert.is(signed.code, 0, signed.stderr)
  assert.is(readFileSync(world.path('vouches'), 'utf8').trim().split('\n').length, 2)
  for (const home of ['worker', 'host-4']) {
    await done(home, ['authority', 'publish', world.path('vouches')])
  }
  const nobody = await at('stranger', ['authority', 'publish', world.path('vouches')])
  assert.match(nobody.stderr, /nothing is for us/)
  const got = await until('worker', 'fleet', gotIn)
  assert.is(got.stdout, 'hello', got.stderr)
  assert.not.match(got.stderr, /first contact/, 'vouched for, so nothing is pinned')
  assert.equal((await list('worker')).map(({ kind, name }) => [kind, name]), [['authority', 'ops']])
  await done('host-4', ['peers', 'trust', 'w', worker.key])
  const shown = (await list('host-4')).find(({ name }) => name === 'w')!
  assert.equal([shown['labels'], shown['authorities']], [{ role: 'web' }, ['ops']])
  assert.match((await done('host-4', ['peers'])).stdout, /^w +SHA256:\S+ +manual .* role=web$/m)

  const vouches = (await done('ops', ['authority', 'list', '--json'])).stdout.trim().split('\n')
    .map((line) => JSON.parse(line))
  const { serial } = vouches.find(({ key }) => key === worker.key)
  await done('ops', ['authority', 'revoke', String(serial)])
  assert.match(
    (await done('ops', ['authority', 'list'])).stdout,
    new RegExp(`^${serial} +revoked`, 'm'),
  )
  // A change of the rules has the running tunnel look anew.
  await done('host-4', ['access', 'allow', 'w', 'a2a'])
  await staysOut('worker', 'fleet', /does not let this identity in/)
  // The one that serves is still vouched for; labels that were taken back are not shown.
  assert.equal((await list('host-4')).find(({ name }) => name === 'w')!['labels'], {})
  await tunnel.stop()
})

test('pins are listed without a relay, and with one that is not there', async () => {
  const { key, fingerprint } = await keyOf('someone')
  await world.sottoRun(['peers', 'trust', 'some', fingerprint], { home: 'lonely' })
  for (const env of [{}, { SOTTO_RELAY: 'https://localhost:1' }]) {
    const got = await world.sottoRun(['peers'], { home: 'lonely', env })
    assert.is(got.code, 0, got.stderr)
    assert.match(got.stdout, new RegExp(`^some +${escaped(fingerprint)} +manual`, 'm'))
    if ('SOTTO_RELAY' in env) assert.match(got.stderr, /the relay was not asked/)
  }
  assert.is(key.length, 52)
})

test.run()
