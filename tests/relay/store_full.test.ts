// runtimes: bun node deno
// needs: root
/**
 * A disk that is full: the store sits on a file system of one megabyte that another file fills.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Store } from '../../relay/store/store.ts'
import { rejection } from '../support/rejection.ts'

const openStore: (path: string) => Store = 'Bun' in globalThis
  ? (await import('../../relay/serve/bun_sqlite.ts')).bunSqliteStore
  : (await import('../../relay/serve/node_sqlite.ts')).nodeSqliteStore

const test = suite('relay/store full disk')
const disk = mkdtempSync(join(tmpdir(), 'sotto-disk-'))
test.before(() => {
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m,mode=0700', 'sotto-test', disk])
})
test.after(() => {
  execFileSync('umount', [disk])
  rmSync(disk, { recursive: true, force: true })
})

test('says store/full, keeps what was there, goes on when there is room again', async () => {
  const path = join(disk, 'relay.db')
  const store = openStore(path)
  const value = 'x'.repeat(2000)
  await store.commit({ puts: [{ key: 'kept', value: 1 }] })
  fill()
  let written = 0
  let code: string | undefined
  while (!code && written < 1000) {
    const puts = [{ key: `fill/${written}`, value }, { key: 'last', value: written }]
    code = await rejection(store.commit({ puts }))
    if (!code) written++
  }
  assert.is(code, 'store/full')
  for (let again = 0; again < 5; again++) {
    assert.is(await rejection(store.commit({ puts: [{ key: 'more', value }] })), 'store/full')
  }
  assert.is((await store.get('kept'))?.value, 1)
  assert.is((await store.list('fill/', { limit: 1000 })).length, written)
  assert.is(await store.get('more'), undefined)
  rmSync(join(disk, 'ballast'))
  assert.ok(await store.commit({ puts: [{ key: 'more', value }] }))
  await store.close()
  const again = openStore(path)
  assert.is((await again.get('more'))?.value, value)
  assert.is((await again.list('fill/', { limit: 1000 })).length, written)
  await again.close()
})

test('a store that cannot even be made says the same', () => {
  fill()
  let refusal: { code?: string } = {}
  try {
    openStore(join(disk, 'other.db'))
  } catch (error) {
    refusal = error as { code?: string }
  }
  assert.is(refusal.code, 'store/full')
  rmSync(join(disk, 'ballast'))
})

/** Takes all the space that is left. */
function fill(): void {
  for (let bytes = 1 << 20; bytes >= 512; bytes /= 2) {
    try {
      for (;;) writeFileSync(join(disk, 'ballast'), new Uint8Array(bytes), { flag: 'a' })
    } catch (error) {
      assert.is((error as { code?: string }).code, 'ENOSPC')
    }
  }
}

test.run()
