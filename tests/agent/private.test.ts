// Private endpoints, from both sides: who is refused, what each side is told, what lets them in.
// seconds: 240
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { utf8 } from '../../core/bytes.ts'
import { Collector } from '../support/agent_world.ts'
import { event, literally, Scene, talk, within } from '../support/scene.ts'

const test = suite('agent/private')

let scene: Scene
test.before.each(async () => void (scene = await Scene.make()))
test.after.each(() => scene.close())

test('a stranger is refused at a private endpoint, told what to ask for, and let in by the command shown', async () => {
  const relay = await scene.relay()
  const tcp = await scene.place.start('host', ['tcp', scene.echo, '--name', 'db', '--json'])
  assert.is((await event(tcp, 'up'))['admits'], 0)
  const env = await scene.friend(relay, 'bob')
  const connect = await scene.place.start('bob', ['connect', 'db', '--json'], { env })
  const { address, fingerprint } = await event(connect, 'listening')
  assert.match(
    connect.stderr.text,
    new RegExp(`first contact with "db": ${literally(fingerprint)}`),
  )
  const port = Number(address.split(':')[1])
  assert.is(await talk(port, 'hi'), '')
  const ask = await connect.stderr.until(
    /Ask whoever runs it to type: (sotto peers trust bob ([a-z2-7]{52}) && sotto access allow bob connect)\n/,
  )
  const knock = await tcp.stderr.until(
    /To let them in: (sotto peers trust (peer-\w+) ([a-z2-7]{52})) && (sotto access allow \2 connect)\n/,
  )
  assert.is(ask[2], knock[3], 'both sides name the same key')
  const identity = (await scene.place.run('bob', ['identity', '--json'])).stdout.objects[0]!
  assert.match(
    tcp.stderr.text,
    new RegExp(`${literally(identity['fingerprint'])} knocked from 127.0.0.1`),
  )
  const typed = async (words: string): Promise<number> =>
    (await scene.place.run('host', words.split(' ').slice(1))).code
  assert.is(await typed(knock[1]!), 0)
  // A pin says who somebody is, and lets nobody in.
  for (let i = 0; i < 5; i++) assert.is(await talk(port, 'hi'), '')
  // The running tunnel sees rule and pin by itself, and their end.
  assert.is(await typed(knock[4]!), 0)
  await within(async () => await talk(port, 'hi') === 'echo:hi')
  assert.is(await typed(`sotto access deny ${knock[2]} connect`), 0)
  await within(async () => await talk(port, 'hi') === '')
  assert.is(await typed(knock[4]!), 0)
  await within(async () => await talk(port, 'hi') === 'echo:hi')
  assert.is(await typed(`sotto peers forget ${knock[2]}`), 0)
  await within(async () => await talk(port, 'hi') === '')
})

test('a pin made by first use serves to find somebody, and lets nobody in', async () => {
  const relay = await scene.relay()
  const env = await scene.friend(relay, 'bob')
  const theirs = await scene.place.start('bob', [
    'tcp',
    scene.echo,
    '--name',
    'box',
    '--public',
    '--json',
  ], { env })
  await event(theirs, 'up')
  const there = await scene.place.start('host', ['connect', 'box', '--json'])
  await event(there, 'listening')
  const [pin] = (await scene.place.run('host', ['peers', 'list', '--json'])).stdout.objects
  assert.equal([pin!['name'], pin!['how']], ['box', 'first-use'])
  const mine = await scene.place.start('host', ['tcp', scene.echo, '--name', 'db', '--json'])
  await event(mine, 'up')
  const back = await scene.place.start('bob', ['connect', 'db', '--json'], { env })
  const { address } = await event(back, 'listening')
  assert.is(await talk(Number(address.split(':')[1]), 'hi'), '')
  await mine.stderr.until(/knocked/)
  // Neither a rule nor --allow makes more of it.
  const refused = await scene.place.run('host', ['tcp', scene.echo, '--allow', 'box'])
  assert.match(
    refused.stderr.text,
    /"box": first use alone has pinned it\nPin it first: sotto peers/,
  )
  await scene.place.run('host', ['access', 'allow', 'box', 'connect'])
  const again = await scene.up('host', ['tcp', scene.echo, '--name', 'db2'])
  assert.is(again.shown['admits'], 0)
})

test('--allow takes a KEY, a fingerprint, a certificate and a pinned name; an unknown name is refused', async () => {
  const relay = await scene.relay()
  const env = await scene.friend(relay, 'bob')
  const { key, fingerprint } = (await scene.place.run('bob', ['identity', '--json'])).stdout
    .objects[0]!
  const unknown = await scene.place.run('host', ['tcp', scene.echo, '--allow', 'bob'])
  assert.is(unknown.code, 1)
  assert.match(
    unknown.stderr.text,
    /"bob": it is not pinned\nPin it first: sotto peers trust bob KEY/,
  )
  const knocked = await scene.place.start('host', ['tcp', scene.echo, '--name', 'db0', '--json'])
  await event(knocked, 'up')
  const probe = await scene.place.start('bob', ['connect', 'db0', '--json'], { env })
  await talk(Number((await event(probe, 'listening'))['address'].split(':')[1]), 'hi')
  await knocked.stderr.until(/knocked/)
  const { certificate } = knocked.stdout.objects.find((one) => one['event'] === 'knock')!
  await scene.place.run('host', ['peers', 'trust', 'alias', key])
  await scene.place.run('host', ['peers', 'forget', 'alias'])
  for (const [i, who] of [key, fingerprint, certificate].entries()) {
    const name = `db${i + 1}`
    const tcp = await scene.place.start('host', [
      'tcp',
      scene.echo,
      '--name',
      name,
      '--allow',
      who,
      '--json',
    ])
    await event(tcp, 'up')
    const connect = await scene.place.start('bob', ['connect', name, '--json'], { env })
    const port = Number((await event(connect, 'listening'))['address'].split(':')[1])
    // By an identity's fingerprint alone its KEY is known at the first knock, and let in at the second.
    await within(async () => await talk(port, 'hi') === 'echo:hi')
    assert.not.match(tcp.stderr.text, /knocked/, who)
  }
})

test('connect --stdio carries one connection both ways, with half-close', async () => {
  await scene.relay()
  const tcp = await scene.place.start('host', ['tcp', scene.echo, '--name', 'box', '--json'])
  await event(tcp, 'up')
  const connect = await scene.place.start('host', ['connect', 'box', '--stdio'])
  const far = new Collector(connect.stdio)
  connect.stdio.write(utf8('through'))
  await far.until('echo:through'.length)
  assert.is(far.text, 'echo:through')
  connect.stdio.end()
  assert.is(await connect.code, 0)
  assert.is(connect.stdout.text, '', 'standard output belongs to the connection')
})

test('connect to a name that nobody serves says so, and another identity behind a known name stops it', async () => {
  const relay = await scene.relay()
  const nobody = await scene.place.run('host', ['connect', 'ghost', '--stdio'])
  assert.is(nobody.code, 1)
  assert.match(nobody.stderr.text, /"ghost": nobody serves it now/)
  const env = await scene.friend(relay, 'bob')
  const first = await scene.place.start('host', [
    'tcp',
    scene.echo,
    '--name',
    'box',
    '--public',
    '--json',
  ])
  await event(first, 'up')
  const connect = await scene.place.start('bob', ['connect', 'box', '--json'], { env })
  await event(connect, 'listening')
  await connect.stop()
  await first.stop()
  await scene.place.run('host', ['relay', 'names', 'release', 'box'])
  const other = await scene.friend(relay, 'mallory')
  const swapped = await scene.place.start('mallory', [
    'tcp',
    scene.echo,
    '--name',
    'box',
    '--public',
    '--json',
  ], { env: other })
  await event(swapped, 'up')
  const again = await scene.place.run('bob', ['connect', 'box', '--json'], { env })
  assert.is(again.code, 1)
  assert.match(again.stderr.text, /its identity has changed: found SHA256:\S+, expected SHA256:/)
  assert.match(again.stderr.text, /sotto peers trust box [a-z2-7]{52}/)
})

test.run()
