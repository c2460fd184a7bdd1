/**
 * A backup that is taken while the relay runs and is written to, and restored into a fresh folder: names,
 * keys, the admin key and the identity that agents pinned still hold.
 */
import {
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hex } from '../../core/bytes.ts'
import { backUp, restore } from '../../relay/serve/backup.ts'
import { startRelay } from '../../relay/serve/bun.ts'
import { openBunSql } from '../../relay/serve/bun_sqlite.ts'
import type { RunningRelay } from '../../relay/serve/host.ts'
import { readSettings } from '../../relay/settings.ts'
import { rejection } from '../support/rejection.ts'

const test = suite('relay/backup')
let dir: string
let relay: RunningRelay
let secret: string

function start(data: string): Promise<RunningRelay> {
  return startRelay(readSettings({ flags: { port: '0', data, 'log-level': 'error' } }), {
    write() {},
  })
}

const at = (name: string): string => join(dir, name)

test.before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'sotto-backup-'))
  relay = await start(at('data'))
  secret = (await relay.credentials.create({ kind: 'key', scope: 'ana', label: 'x' })).secret
  await relay.registry.reserve({ name: 'shop', scope: 'ana' })
})

test.after(async () => {
  await relay.stop()
  await rm(dir, { recursive: true })
})

test('taken while it is written to, and restored: names, keys and the identity hold', async () => {
  let over = false
  const writes = (async () => {
    for (let i = 0; !over && i < 100_000; i++) {
      await relay.registry.reserve({ name: `n${i % 20}`, scope: 'ana' })
      await new Promise((resolve) => setImmediate(resolve))
    }
  })()
  const made = await backUp(at('data'), at('one.backup'), openBunSql)
  over = true
  await writes
  assert.is((await stat(made.path)).mode & 0o777, 0o600)
  assert.is(made.files, 2)
  await restore(made.path, at('fresh'), openBunSql)
  for (const file of ['relay.db', 'identity', 'certificate.json']) {
    assert.is((await stat(at(`fresh/${file}`))).mode & 0o777, 0o600, file)
  }
  const second = await start(at('fresh'))
  try {
    assert.is(hex(second.identity), hex(relay.identity))
    assert.is(second.certificate, relay.certificate)
    assert.is(second.adminKey, undefined, 'the admin key of before holds')
    assert.is((await second.credentials.verify(secret)).scope, 'ana')
    assert.is(
      await rejection(second.registry.reserve({ name: 'shop', scope: 'eve' })),
      'registry/taken',
    )
  } finally {
    await second.stop()
  }
})

test('nothing is written over, and nothing half is left', async () => {
  await writeFile(at('there'), 'mine')
  assert.is(await rejection(backUp(at('data'), at('there'), openBunSql)), 'backup/exists')
  assert.is(await readFile(at('there'), 'utf8'), 'mine')
  assert.is(await rejection(backUp(at('nowhere'), at('x'), openBunSql)), 'backup/data')
  assert.is(await rejection(backUp(at('data'), at('no/such/folder'), openBunSql)), 'backup/failed')
  const { path, bytes } = await backUp(at('data'), at('two.backup'), openBunSql)
  assert.is(await rejection(restore(path, at('data'), openBunSql)), 'backup/exists')
  assert.is(await rejection(restore(at('there'), at('new'), openBunSql)), 'backup/file')
  // The store alone is no backup: its identity would be another.
  assert.is(await rejection(restore(at('data/relay.db'), at('new'), openBunSql)), 'backup/file')
  await truncate(path, bytes / 2)
  assert.match(String(await rejection(restore(path, at('new'), openBunSql))), /^backup\//)
  assert.is(await stat(at('new')).catch(() => 'gone'), 'gone')
})

test('attack: links and files of others where a backup is written', async () => {
  await writeFile(at('victim'), 'precious')
  await symlink(at('victim'), at('three.backup.half'))
  await symlink(at('victim'), at('link.backup'))
  await symlink(at('nowhere-yet'), at('dangling.backup'))
  await backUp(at('data'), at('three.backup'), openBunSql)
  for (const name of ['link.backup', 'dangling.backup']) {
    assert.is(await rejection(backUp(at('data'), at(name), openBunSql)), 'backup/exists', name)
  }
  assert.is(await readFile(at('victim'), 'utf8'), 'precious')
  assert.is(await stat(at('nowhere-yet')).catch(() => 'gone'), 'gone')
  const left = (await readdir(dir)).filter((name) => name.startsWith('three.backup'))
  assert.equal(left.sort(), ['three.backup', 'three.backup.half'])
})

test('what is no folder is not restored into, and stays', async () => {
  await writeFile(at('letter'), 'precious')
  const { path } = await backUp(at('data'), at('four.backup'), openBunSql)
  assert.is(await rejection(restore(path, at('letter'), openBunSql)), 'backup/failed')
  assert.is(await readFile(at('letter'), 'utf8'), 'precious')
})

test('a backup that somebody made up writes nowhere but into its folder', async () => {
  for (const path of ['../escaped', '/tmp/escaped', 'acme/../../escaped', 'relay.db', 'other']) {
    const made = await backUp(at('data'), at('evil.backup'), openBunSql)
    const database = openBunSql(made.path)
    const statement = database.prepare('INSERT INTO backup_files VALUES (?, ?)')
    statement.all(path, new Uint8Array(3))
    statement.finalize?.()
    database.close()
    assert.is(await rejection(restore(made.path, at('new'), openBunSql)), 'backup/file', path)
    assert.is(await stat(at('escaped')).catch(() => 'gone'), 'gone')
    await rm(made.path)
  }
})

test.run()
