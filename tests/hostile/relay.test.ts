/**
 * A relay that lies, driven by tables of attacks. Each row is played without its attack too.
 */
// seconds: 300
import { suite } from 'uvu'
import { HANDSHAKE } from './rows_handshake.ts'
import { ADMISSION, NAMES, PASSPORTS } from './rows_names.ts'
import { RECORDS } from './rows_records.ts'
import { RESUMPTION } from './rows_resume.ts'
import { SIZES } from './rows_sizes.ts'
import { play } from './table.ts'

const only = process.env['ROW']
for (
  const [group, rows] of Object.entries({
    PASSPORTS,
    NAMES,
    ADMISSION,
    HANDSHAKE,
    RECORDS,
    RESUMPTION,
    SIZES,
  })
) {
  const test = suite(`hostile relay: ${group}`)
  for (const row of rows) {
    if (!only || `${group} ${row.name}`.includes(only)) test(row.name, () => play(row))
  }
  test.run()
}
