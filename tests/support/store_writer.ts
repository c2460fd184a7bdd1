/**
 * Writes to a store until it is killed, one line on stdout after each commit that was reported
 * done. Each commit makes a pair and moves a counter: halves of it are easily seen.
 *
 *   bun tests/support/store_writer.ts FILE
 */
import process from 'node:process'

const [file] = process.argv.slice(2) as [string]
const store = 'Bun' in globalThis
  ? (await import('../../relay/serve/bun_sqlite.ts')).bunSqliteStore(file)
  : (await import('../../relay/serve/node_sqlite.ts')).nodeSqliteStore(file)

for (;;) {
  const count = Number((await store.get('count'))?.value ?? 0) + 1
  const value = String(count).repeat(3000 / String(count).length)
  await store.commit({
    puts: [
      { key: 'count', value: count },
      { key: `left/${count % 50}`, value },
      { key: `right/${count % 50}`, value },
    ],
    // The table grows and shrinks, so that pages are freed and reused too.
    deletes: count % 3 === 0 ? [`left/${(count + 7) % 50}`, `right/${(count + 7) % 50}`] : [],
  })
  process.stdout.write(`${count}\n`)
}
