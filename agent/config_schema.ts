/**
 * The JSON schema of `sotto.yaml` (draft-07, which editors read), and the table of docs/config.md: both
 * made from config_table.ts, by which the file is checked as well.
 *
 * What a schema cannot say is left to "sotto config check": variables that are not set, names that two
 * tunnels share, certificates that are not in the file, keys and fingerprints that are no whole ones.
 */
import { CONFIG, LIST_MAX, TEXT_LENGTH_MAX } from './config_table.ts'
import type { Condition, Field, ObjectField, Rule, TextField } from './config_table.ts'

export type JsonSchema = { [name: string]: unknown }

const NAME = '[A-Za-z_][A-Za-z0-9_]*'
/** Texts with `${NAME}`, `${NAME:-default}` and `$$`, and no other `$`. */
const WORDS = `^(?:[^$]|\\$\\$|\\$\\{${NAME}(?::-[^}]*)?\\})*$`
const ONE_VARIABLE = `^\\$\\{${NAME}(?::-[^}]*)?\\}$`

export function configSchema(): JsonSchema {
  return {
    $schema: 'http://json-schema.org/draft-07/schema#',
    title: 'sotto.yaml',
    ...schemaOf(CONFIG),
    definitions: {
      words: { type: 'string', pattern: WORDS, maxLength: TEXT_LENGTH_MAX },
      variable: { type: 'string', pattern: ONE_VARIABLE },
    },
  }
}

function schemaOf(field: Field): JsonSchema {
  return { ...bodyOf(field), description: describe(field) }
}

function bodyOf(field: Field): JsonSchema {
  switch (field.type) {
    case 'text':
      return textSchema(field)
    case 'number':
      return orVariable({ type: 'integer', minimum: field.min, maximum: field.max })
    case 'switch':
      return orVariable({
        type: 'boolean',
        ...(field.only === undefined ? {} : { const: field.only }),
      })
    case 'list':
      return { type: 'array', items: schemaOf(field.of), maxItems: LIST_MAX }
    case 'map':
      return {
        type: 'object',
        propertyNames: { pattern: field.key.pattern },
        additionalProperties: schemaOf(field.of),
        maxProperties: field.max,
      }
    case 'object':
      return objectSchema(field)
    case 'kinds':
      return { type: 'object', oneOf: Object.values(field.kinds).map(schemaOf) }
  }
}

function textSchema({ pattern, number }: TextField): JsonSchema {
  // What a variable will give is not known to an editor.
  const words = {
    $ref: '#/definitions/words',
  }
  const text = { allOf: [words, { anyOf: [{ pattern }, { pattern: '\\$' }] }] }
  if (!number) return text
  return { anyOf: [{ type: 'integer', minimum: number.min, maximum: number.max }, text] }
}

function orVariable(schema: JsonSchema): JsonSchema {
  return { anyOf: [schema, { $ref: '#/definitions/variable' }] }
}

function objectSchema({ fields, rules = [] }: ObjectField): JsonSchema {
  const required = Object.keys(fields).filter((name) => fields[name]!.required)
  return {
    type: 'object',
    properties: Object.fromEntries(
      Object.entries(fields).map(([name, field]) => [name, schemaOf(field)]),
    ),
    additionalProperties: false,
    ...(required.length === 0 ? {} : { required }),
    ...(rules.length === 0 ? {} : { allOf: rules.map(ruleSchema) }),
  }
}

function ruleSchema({ when, refuses, needs }: Rule): JsonSchema {
  return {
    if: conditionSchema(when),
    then: refuses ? { not: conditionSchema(refuses) } : conditionSchema(needs!),
  }
}

function conditionSchema({ field, is }: Condition): JsonSchema {
  return {
    required: [field],
    ...(is === undefined ? {} : { properties: { [field]: { const: is } } }),
  }
}

function describe({ help, without, required }: Field): string {
  if (required) return help
  return without === undefined ? help : `${help} Default: ${without}.`
}

/** Every field with its values and its default, in Markdown. */
export function configTable(): string {
  const parts = [rowsOf('The file', CONFIG.fields)]
  for (const [name, field] of Object.entries(CONFIG.fields)) {
    if (field.type !== 'map') continue
    const { of } = field
    if (of.type === 'object') parts.push(rowsOf(`\`${name}\`, each`, of.fields))
    if (of.type !== 'kinds') continue
    for (const [kind, { help, fields }] of Object.entries(of.kinds)) {
      parts.push(`${rowsOf(`\`${name}\`, each with \`${kind}\``, fields, help)}`)
    }
  }
  return parts.join('\n')
}

function rowsOf(title: string, fields: Readonly<Record<string, Field>>, help?: string): string {
  const rows = Object.entries(fields).map(([name, field]) => {
    const otherwise = field.required ? 'must be there' : field.without ?? ''
    return `| \`${name}\` | ${valueWords(field)} | ${otherwise} | ${field.help} |`
  })
  return [
    `### ${title}`,
    '',
    ...(help === undefined ? [] : [help, '']),
    '| field | value | without it | what it is |',
    '|---|---|---|---|',
    ...rows,
    '',
  ].join('\n')
}

function valueWords(field: Field): string {
  switch (field.type) {
    case 'text':
      return field.expected.replaceAll('|', '\\|')
    case 'number':
      return `${field.min} to ${field.max}`
    case 'switch':
      return field.only === undefined ? 'true or false' : String(field.only)
    case 'list':
      return `a list: ${field.of.expected}`
    case 'map':
      return `at most ${field.max}, by names`
    case 'object':
    case 'kinds':
      return 'fields'
  }
}
