// `sotto relay grants` against a relay that runs: what one scope shows to another, listed on both sides.
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Scene } from '../support/scene.ts'

const test = suite('agent/grants')

let scene: Scene
test.before.each(async () => void (scene = await Scene.make()))
test.after.each(() => scene.close())

test('a scope shows names to another, both see it, and only the owner takes it back', async () => {
  const relay = await scene.relay()
  const ana = await scene.friend(relay, 'ana')
  const bob = await scene.friend(relay, 'bob')
  const grants = (who: string, env: Record<string, string>, ...words: string[]) =>
    scene.place.run(who, ['relay', 'grants', ...words], { env })
  const none = await grants('ana', ana, 'list')
  assert.match(none.stderr.text, /^no scope shows names to another\n$/m)
  const added = await grants('ana', ana, 'add', 'edge-*', '--to', 'bob')
  assert.is(added.code, 0)
  assert.match(added.stderr.text, /^agents of bob may see edge-\*$/m)
  for (const [who, env] of [['ana', ana], ['bob', bob]] as const) {
    const list = await grants(who, env, 'list', '--json')
    const [{ since: _, ...one }, ...rest] = list.stdout.objects as [Record<string, unknown>]
    assert.equal([one, rest], [{ names: 'edge-*', scope: 'ana', to: 'bob' }, []])
  }
  const foreign = await grants('bob', bob, 'remove', 'edge-*', '--to', 'bob', '--scope', 'ana')
  assert.is(foreign.code, 1)
  assert.match(foreign.stderr.text, /scope "bob"/)
  const removed = await grants('ana', ana, 'remove', 'edge-*', '--to', 'bob')
  assert.is(removed.code, 0)
  assert.match(removed.stderr.text, /^agents of bob see edge-\* no more$/m)
  const again = await grants('ana', ana, 'remove', 'edge-*', '--to', 'bob')
  assert.is(again.code, 1)
})

test('what cannot be meant is refused before anything is asked', async () => {
  for (
    const words of [
      ['add', 'box'],
      ['add', 'a/b', '--to', 'bob'],
      ['add', 'box', '--to', 'Bob'],
      ['remove', 'box', '--to', 'bob', '--scope', 'A B'],
    ]
  ) {
    const refused = await scene.place.run('ana', ['relay', 'grants', ...words])
    assert.ok(refused.code !== 0, words.join(' '))
    assert.match(refused.stderr.text, /Cannot/)
    assert.not.match(refused.stderr.text, /relay is/)
  }
})

test.run()
