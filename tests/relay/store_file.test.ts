// runtimes: bun node deno
// seconds: 240
/**
 * The store as a file: rights, a process killed in the middle of writes, a full disk, two processes
 * at once, and files that are not ours to read.
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import process from 'node:process'
import { DatabaseSync } from 'node:sqlite'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { sqliteStore } from '../../relay/store/sqlite.ts'
import type { Store } from '../../relay/store/store.ts'
import { codeOf } from '../support/crypto.ts'
import { rejection } from '../support/rejection.ts'

const openStore: (path: string) => Store = 'Bun' in globalThis
  ? (await import('../../relay/serve/bun_sqlite.ts')).bunSqliteStore
  : (await import('../../relay/serve/node_sqlite.ts')).nodeSqliteStore
const WRITER = fileURLToPath(new URL('../support/store_writer.ts', import.meta.url))
const KILLS = 100

const test = suite('relay/store file')
const directory = mkdtempSync(join(tmpdir(), 'sotto-store-'))
test.after(() => rmSync(directory, { recursive: true, force: true }))
let files = 0
const fresh = (): string => join(directory, `${files++}`, 'relay.db')

test('a new store is 0600 in a directory of 0700, and so are the files beside it', async () => {
  const path = fresh()
  const mask = process.umask(0)
  const store = openStore(path)
  await store.commit({ puts: [{ key: 'a', value: 1 }] })
  process.umask(mask)
  for (const file of [path, `${path}-wal`, `${path}-shm`]) {
    assert.is(statSync(file).mode & 0o777, 0o600, file)
  }
  assert.is(statSync(dirname(path)).mode & 0o777, 0o700)
  await store.close()
  // Nothing left open: the last to close folds the log into the file and removes it.
  assert.not(existsSync(`${path}-wal`))
})

test('what was committed is there after a new start, versions go on', async () => {
  const path = fresh()
  const first = openStore(path)
  await first.commit({ puts: [{ key: 'a', value: { b: [1] } }, { key: 'gone', value: 1 }] })
  const before = (await first.get('a'))!
  await first.commit({ deletes: ['gone'] })
  await first.close()
  const second = openStore(path)
  assert.equal(await second.get('a'), before)
  assert.is(await second.get('gone'), undefined)
  await second.commit({ puts: [{ key: 'gone', value: 1 }] })
  assert.ok((await second.get('gone'))!.version > before.version + 1)
  await second.close()
})

test('two connections see each other at once and race safely', async () => {
  const path = fresh()
  const [one, two] = [openStore(path), openStore(path)]
  await one.commit({ puts: [{ key: 'a', value: 1 }] })
  assert.is((await two.get('a'))?.value, 1)
  for (let round = 0; round < 50; round++) {
    const key = `race/${round}`
    const won = await Promise.all(
      [one, two].map((store, value) =>
        store.commit({ checks: [{ key, version: 0 }], puts: [{ key, value }] })
      ),
    )
    assert.is(won.filter(Boolean).length, 1)
    assert.is((await one.get(key))?.value, won.indexOf(true))
  }
  await one.close()
  await two.close()
})

test(`kill -9 in the middle of writes, ${KILLS} times, leaves it whole`, async () => {
  const path = fresh()
  const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000)
  console.log(`seed ${seed}`)
  let random = seed + 1
  const next = (below: number): number => {
    random = Math.imul(random, 48_271) % 2_147_483_647
    return Math.abs(random) % below
  }
  let grown = 0
  for (let kill = 0; kill < KILLS; kill++) {
    const reported = await writeUntilKilled(path, { lines: 1 + next(12), thenMs: next(4) })
    const database = new DatabaseSync(path)
    const [row] = database.prepare('PRAGMA integrity_check').all()
    assert.is(Object.values(row as object)[0], 'ok', `after kill ${kill}`)
    const store = sqliteStore(database)
    const count = Number((await store.get('count'))?.value)
    // The last commit may be there without having been reported; none that was may be missing.
    assert.ok(count === reported || count === reported + 1, `${reported} reported, ${count} there`)
    assert.ok(count > grown)
    grown = count
    const [left, right] = await Promise.all(
      ['left/', 'right/'].map((side) => store.list(side, { limit: 100 })),
    )
    const cut = (side: typeof left, from: number): unknown[] =>
      side!.map(({ key, value, version }) => [key.slice(from), value, version])
    assert.equal(cut(left, 4), cut(right, 5), `halves after kill ${kill}`)
    await store.close()
  }
})

test('a database at its largest size says so; reads go on, and writes after a deletion', async () => {
  const path = fresh()
  await openStore(path).close()
  const database = new DatabaseSync(path)
  database.prepare('PRAGMA max_page_count = 40').all()
  const store = sqliteStore(database)
  let written = 0
  let refusal: unknown
  const value = 'x'.repeat(4000)
  while (!refusal && written < 1000) {
    await store.commit({
      puts: [{ key: `fill/${written}`, value }, { key: 'last', value: written }],
    }).then(() => written++, (error) => refusal = error)
  }
  const { code, message, hint } = refusal as { code: string; message: string; hint: string }
  assert.is(code, 'store/full')
  assert.is(message, 'Cannot write to the store: the disk or the database is full')
  assert.match(hint, 'Free space')
  assert.is((await store.get('last'))?.value, written - 1, 'nothing of the failed commit')
  assert.is((await store.list('fill/', { limit: 1000 })).length, written)
  assert.ok(await store.commit({ deletes: ['fill/0', 'fill/1', 'fill/2'] }))
  assert.ok(await store.commit({ puts: [{ key: 'fill/again', value }] }))
  await store.close()
})

test('a store of a newer sotto is refused with what to do', async () => {
  const path = fresh()
  await openStore(path).close()
  const database = new DatabaseSync(path)
  database.prepare("UPDATE entries SET value = '999' WHERE key = ''").all()
  database.close()
  assert.is(codeOf(() => openStore(path)), 'store/newer')
})

test('a file that is no database, or damaged, is refused and left as it is', async () => {
  const path = fresh()
  await openStore(path).close()
  assert.not(existsSync(`${path}-wal`), 'nothing to recover from')
  writeFileSync(path, 'this is a letter, not a database. '.repeat(300))
  const before = statSync(path).size
  assert.is(codeOf(() => openStore(path)), 'store/corrupt')
  assert.is(statSync(path).size, before)
})

test('a store that another process holds is busy, not broken', async () => {
  const path = fresh()
  const store = openStore(path)
  const other = new DatabaseSync(path)
  other.prepare('BEGIN IMMEDIATE').all()
  assert.is(await rejection(store.commit({ puts: [{ key: 'a', value: 1 }] })), 'store/busy')
  assert.is(await store.get('a'), undefined, 'reads go on meanwhile')
  other.prepare('COMMIT').all()
  other.close()
  assert.ok(await store.commit({ puts: [{ key: 'a', value: 1 }] }))
  await store.close()
})

test('a value that another program spoilt is named', async () => {
  const database = new DatabaseSync(':memory:')
  const store = sqliteStore(database)
  database.prepare("INSERT INTO entries VALUES ('a', '{', 5)").all()
  assert.is(await rejection(store.get('a')), 'store/corrupt')
  await store.close()
})

/** Runs a writer until it has reported so many commits and a little longer; the last one reported. */
async function writeUntilKilled(
  path: string,
  { lines, thenMs }: { lines: number; thenMs: number },
): Promise<number> {
  const child = spawn(process.execPath, [...process.execArgv, WRITER, path], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const exited = new Promise<NodeJS.Signals | null>((resolve) => {
    child.once('close', (_code, signal) => resolve(signal))
  })
  let output = ''
  let killing = false
  child.stdout.on('data', (chunk) => {
    output += chunk
    if (killing || output.split('\n').length <= lines) return
    killing = true
    // Spread over the commit's length: the moment matters, not how long it takes.
    setTimeout(() => child.kill('SIGKILL'), thenMs)
  })
  assert.is(await exited, 'SIGKILL')
  const whole = output.slice(0, output.lastIndexOf('\n')).split('\n')
  return Number(whole.at(-1))
}

test.run()
