/**
 * Writes what is made from the table of `sotto.yaml`: docs/sotto.schema.json, and the tables within
 * docs/config.md, between the two lines that say so.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { configSchema, configTable } from '../agent/config_schema.ts'

const BEGIN = '<!-- begin: made by compile/config.ts -->'
const END = '<!-- end -->'

export function schemaText(): string {
  return `${JSON.stringify(configSchema(), null, 2)}\n`
}

/** The page with its tables as they are now. */
export function withTable(page: string): string {
  const [before, rest = ''] = page.split(BEGIN)
  const after = rest.split(END)[1] ?? ''
  return `${before}${BEGIN}\n\n${configTable()}\n${END}${after}`
}

if (import.meta.main) {
  const docs = new URL('../docs/', import.meta.url)
  writeFileSync(new URL('sotto.schema.json', docs), schemaText())
  const page = new URL('config.md', docs)
  writeFileSync(page, withTable(readFileSync(page, 'utf8')))
}
