/**
 * Reads `sotto.yaml` by the table of config_table.ts: YAML without tags of its own, aliases and sizes
 * bounded, `${NAME}` in texts replaced by variables; and tells every mistake with its place.
 * Variables stand in the values of texts alone: one never makes structure.
 */
import type { Alias, LineCounter, Node, Pair, Scalar, YAMLMap, YAMLSeq } from 'yaml'
import type { ErrorCode } from '../core/errors.ts'
import { excerptOf, PROBLEMS_MAX } from './config_problem.ts'
import type { ConfigProblem } from './config_problem.ts'
import { accepts, LIST_MAX, SECRET_FIELDS } from './config_table.ts'
import type { Condition, Field, KindsField, MapField, ObjectField } from './config_table.ts'
import type { ListField, NumberField, Rule, SwitchField, TextField } from './config_table.ts'
import { nearest, orWords, quoted, substitute } from './config_words.ts'

export const FILE_BYTES_MAX = 262_144
/** Values, each counted as often as an alias repeats it. */
const NODES_MAX = 20_000
const DEPTH_MAX = 12
const SECRET = /\b(?:sk|ak|ft)_[A-Za-z0-9_-]{16,}|-----BEGIN [A-Z ]*PRIVATE KEY-----/

type Yaml = typeof import('yaml')
type Variables = Readonly<Record<string, string | undefined>>

/** What a file says, by the names of the table; `places` tells where a field's value stands. */
export interface Read {
  readonly value: Readonly<Record<string, unknown>>
  readonly problems: readonly ConfigProblem[]
  /** Adds a problem at a field that was read, by its path such as `tunnels.web.name`. */
  note(field: string, problem: { code: ErrorCode; found: string; expected: string }): void
}

/** Never throws on what a text holds: what is wrong is in `problems`. */
export async function readConfig(
  text: string,
  table: ObjectField,
  variables: Variables,
): Promise<Read> {
  // Loaded only where there is a file to read: it would cost every start.
  const yaml = await import('yaml')
  const reader = new Reader(yaml, text, variables)
  const value = reader.read(table)
  return {
    value,
    get problems() {
      return reader.sorted
    },
    note: (field, problem) => reader.note(field, problem),
  }
}

interface Place {
  offset: number
  length: number
}

interface Found extends Place {
  code: ErrorCode
  field: string
  found: string
  expected: string
  hint?: string
  /** In place of "Cannot read FIELD". */
  action?: string
}

class Reader {
  readonly #yaml: Yaml
  readonly #text: string
  readonly #variables: Variables
  readonly #lines: LineCounter
  readonly #problems: (ConfigProblem & Place)[] = []
  readonly #places = new Map<string, Place>()
  #nodes = 0
  #full = false
  readonly #anchors = new Map<string, Node>()
  /** Being read now: an alias in them may not lead back to them. */
  readonly #open = new Set<Node>()

  constructor(yaml: Yaml, text: string, variables: Variables) {
    this.#yaml = yaml
    this.#text = text
    this.#variables = variables
    this.#lines = new yaml.LineCounter()
  }

  get sorted(): ConfigProblem[] {
    return [...this.#problems].sort((a, b) => a.offset - b.offset)
      .map(({ offset: _, length: __, ...problem }) => problem)
  }

  read(table: ObjectField): Record<string, unknown> {
    let doc: ReturnType<Yaml['parseDocument']>
    try {
      doc = this.#yaml.parseDocument(this.#text, {
        lineCounter: this.#lines,
        schema: 'core',
        customTags: [],
        resolveKnownTags: false,
        merge: false,
        // Compared by us, in one pass: the parser's own check takes time by the square of their number.
        uniqueKeys: false,
        prettyErrors: false,
        logLevel: 'error',
      })
    } catch (error) {
      // A text that nests ten thousand deep ends the parser's own stack.
      const found = error instanceof RangeError ? 'a text that nests too deep' : String(error)
      this.#add({ ...WHOLE, code: 'config/syntax', found, expected: 'YAML' })
      return {}
    }
    const { errors, warnings, contents } = doc
    for (const { message, pos: [start, end] } of [...errors, ...warnings]) {
      const found = message.replace(/; please use .*/, '').replace(
        /^[A-Z](?=[a-z])/,
        (letter) => letter.toLowerCase(),
      )
      // The parser says "X must be Y": found X, expected it to be Y.
      const [, what = found, must] = /^(.*?) must (.*)$/.exec(found) ?? []
      const expected = must === undefined ? 'YAML' : `it to ${must}`
      this.#add({
        ...{ code: 'config/syntax', field: '', found: what, expected, action: 'the text' },
        ...{ offset: start, length: end - start },
      })
    }
    if (errors.length + warnings.length > 0) return {}
    this.#secrets()
    const value = this.#object(table, contents, { field: '', depth: 0 })
    return (value ?? {}) as Record<string, unknown>
  }

  note(field: string, problem: { code: ErrorCode; found: string; expected: string }): void {
    this.#add({ ...problem, field, ...(this.#places.get(field) ?? WHOLE) })
  }

  /** Whatever else is wrong: a secret in the text is told, wherever it stands, and never shown. */
  #secrets(): void {
    let offset = 0
    for (const line of this.#text.split('\n')) {
      const found = SECRET.exec(line.replace(/^\s*#.*/, ''))
      if (found) {
        this.#add({
          code: 'config/secret',
          field: '',
          action: 'the text',
          offset: offset + found.index,
          length: found[0].length,
          found: 'a secret, which whoever reads this file could use',
          expected: 'the name of a file or of a variable that holds it',
          hint: SECRET_HINT,
        })
      }
      offset += line.length + 1
    }
  }

  #value(field: Field, node: unknown, at: At): unknown {
    const found = this.#resolved(node, at)
    if (found === undefined) return undefined
    switch (field.type) {
      case 'text':
        return this.#textOf(field, found, at)
      case 'number':
        return this.#number(field, found, at)
      case 'switch':
        return this.#switch(field, found, at)
      case 'list':
        return this.#list(field, found, at)
      case 'map':
        return this.#map(field, found, at)
      case 'object':
        return this.#object(field, found, at)
      case 'kinds':
        return this.#kinds(field, found, at)
    }
  }

  /** An alias becomes what it stands for; what is too much or too deep is refused. */
  #resolved(node: unknown, at: At): Node | null | undefined {
    if (this.#full) return undefined
    if (++this.#nodes > NODES_MAX || at.depth > DEPTH_MAX) {
      this.#full = true
      this.#wrong(node, at, {
        code: 'config/size',
        found: at.depth > DEPTH_MAX
          ? `more than ${DEPTH_MAX} levels`
          : `more than ${NODES_MAX} values`,
        expected: 'a file of tunnels',
      })
      return undefined
    }
    if (!this.#yaml.isAlias(node)) {
      const { anchor, range } = (node ?? {}) as Scalar
      // As the text goes on: an alias means the last anchor of its name before it.
      if (anchor !== undefined) this.#anchors.set(anchor, node as Node)
      if (range) this.#places.set(at.field, { offset: range[0], length: range[1] - range[0] })
      return node as Node | null
    }
    const alias = node as Alias
    const target = this.#anchors.get(alias.source)
    if (target && !this.#open.has(target)) return target
    this.#wrong(node, at, {
      code: 'config/alias',
      found: target ? `*${alias.source}, which holds itself` : `*${alias.source}`,
      expected: 'the name of an anchor before it',
    })
    return undefined
  }

  #textOf(field: TextField, node: Node | null, at: At): string | undefined {
    const scalar = this.#scalar(node)
    const written = scalar?.value
    const { number } = field
    if (number && typeof written === 'number' && Number.isInteger(written)) {
      if (written >= number.min && written <= number.max) return String(written)
    }
    if (typeof written !== 'string') {
      const quotes = typeof written === 'number' || typeof written === 'boolean'
      this.#wrong(node, at, {
        code: 'config/type',
        found: this.#words(node),
        expected: field.expected,
        ...(quotes && accepts(field, scalar!.source ?? '')
          ? { hint: `Put it in quotes: "${scalar!.source}"` }
          : {}),
      })
      return undefined
    }
    const words = this.#replaced(written, node, at)
    if (words === undefined) return undefined
    if (accepts(field, words) && !SECRET.test(words)) return words
    this.#wrong(
      node,
      at,
      SECRET.test(words)
        ? {
          code: 'config/secret',
          found: 'a secret',
          expected: field.expected,
          hint: SECRET_HINT,
        }
        : { code: 'config/value', found: asWritten(written, words), expected: field.expected },
    )
    return undefined
  }

  #number({ min, max }: NumberField, node: Node | null, at: At): number | undefined {
    const found = this.#variable(node, at)
    if (found === undefined) return undefined
    const { value, source } = found
    const number = found.replaced ? (/^\d{1,9}$/.test(source) ? Number(source) : NaN) : value
    if (typeof number === 'number' && Number.isInteger(number) && number >= min && number <= max) {
      return number
    }
    this.#wrong(node, at, {
      code: typeof value === 'number' ? 'config/value' : 'config/type',
      found: found.replaced ? asWritten(String(value), source) : this.#words(node),
      expected: `a whole number from ${min} to ${max}`,
    })
    return undefined
  }

  #switch({ only }: SwitchField, node: Node | null, at: At): boolean | undefined {
    const found = this.#variable(node, at)
    if (found === undefined) return undefined
    const { value, source, replaced } = found
    const on = replaced ? (/^(true|false)$/.test(source) ? source === 'true' : undefined) : value
    const expected = only === undefined ? 'true or false' : String(only)
    if (typeof on === 'boolean' && (only === undefined || on === only)) return on
    this.#wrong(node, at, {
      code: typeof on === 'boolean' ? 'config/value' : 'config/type',
      found: replaced ? asWritten(String(value), source) : this.#words(node),
      expected,
    })
    return undefined
  }

  /** A scalar that is no text, or the text that a variable gives in its place. */
  #variable(
    node: Node | null,
    at: At,
  ): { value: unknown; source: string; replaced: boolean } | undefined {
    const scalar = this.#scalar(node)
    const value = scalar?.value
    if (typeof value !== 'string' || !/^\$\{[^}]*\}$/.test(value)) {
      return { value, source: scalar?.source ?? '', replaced: false }
    }
    const source = this.#replaced(value, node, at)
    return source === undefined ? undefined : { value, source, replaced: true }
  }

  #list(field: ListField, node: Node | null, at: At): unknown[] | undefined {
    if (!this.#yaml.isSeq(node)) {
      const hint = this.#scalar(node)?.value
      this.#wrong(node, at, {
        code: 'config/type',
        found: this.#words(node),
        expected: 'a list',
        ...(typeof hint === 'string' ? { hint: `As a list: [${hint.slice(0, 80)}]` } : {}),
      })
      return undefined
    }
    const { items } = node as YAMLSeq
    if (items.length > LIST_MAX) {
      this.#wrong(node, at, {
        code: 'config/size',
        found: `${items.length} entries`,
        expected: `at most ${LIST_MAX}`,
      })
      return undefined
    }
    return this.#within(
      node,
      () => items.map((item, i) => this.#value(field.of, item, below(at, `[${i}]`, ''))),
    )
  }

  #map(field: MapField, node: Node | null, at: At): Record<string, unknown> | undefined {
    const entries = this.#entries(node, at)
    if (!entries) return undefined
    const { max, key: keyField } = field
    if (entries.length > max) {
      this.#wrong(node, at, {
        code: 'config/size',
        found: `${entries.length} entries`,
        expected: `at most ${max}`,
      })
      return undefined
    }
    const values: Record<string, unknown> = Object.create(null)
    this.#within(node, () => {
      for (const { name, key, value } of entries) {
        const inside = below(at, name)
        if (!accepts(keyField, name)) {
          const { expected } = keyField
          this.#wrong(key, inside, { code: 'config/value', found: quoted(name), expected })
          continue
        }
        values[name] = this.#value(field.of, value ?? null, {
          ...inside,
          key,
        })
      }
    })
    return values
  }

  #kinds({ kinds }: KindsField, node: Node | null, at: At): unknown {
    const names = Object.keys(kinds)
    const entries = this.#entries(node, at)
    if (!entries) return undefined
    const said = entries.filter(({ name }) => names.includes(name))
    if (said.length === 1) {
      const kind = said[0]!.name
      const value = this.#object(kinds[kind]!, node, at)
      return value === undefined ? undefined : { ...value, kind }
    }
    const all = orWords(names)
    if (said.length > 1) {
      const [first, second] = said
      this.#wrong(second!.key, below(at, second!.name), {
        code: 'config/conflict',
        found: `${second!.name} beside ${first!.name}`,
        expected: `one of ${all}`,
        hint: 'Make two tunnels of them.',
      })
      return undefined
    }
    const known = [...new Set(names.flatMap((name) => Object.keys(kinds[name]!.fields)))]
    const strange = entries.filter(({ name }) => !known.includes(name))
    for (const entry of strange) this.#unknown(entry, { known, at })
    // Who mistyped the kind is told so once.
    if (strange.some(({ name }) => names.includes(nearest(name, known) ?? ''))) return undefined
    this.#wrong(at.key ?? node, at, {
      code: 'config/missing',
      found: 'none of them',
      expected: `${all}, which leads somewhere`,
      hint: 'Such as "http: 3000".',
    })
    return undefined
  }

  #object(
    table: ObjectField,
    node: Node | null,
    at: At,
  ): Record<string, unknown> | undefined {
    const entries = this.#entries(node, at)
    if (!entries) return undefined
    const known = Object.keys(table.fields)
    const values: Record<string, unknown> = Object.create(null)
    const keys = new Map(entries.map(({ name, key }) => [name, key]))
    this.#within(node, () => {
      for (const entry of entries) {
        const { name, key, value } = entry
        const field = Object.hasOwn(table.fields, name) ? table.fields[name] : undefined
        if (!field) this.#unknown(entry, { known, at })
        else values[name] = this.#value(field, value ?? null, { ...below(at, name), key })
      }
    })
    for (const [name, { required, help }] of Object.entries(table.fields)) {
      if (!required || keys.has(name)) continue
      this.#wrong(at.key ?? node, at, {
        code: 'config/missing',
        found: `no "${name}"`,
        expected: `one: ${
          help.replace(/\.$/, '').replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase())
        }`,
      })
    }
    for (const rule of table.rules ?? []) this.#rule(rule, { values, keys, at })
    return values
  }

  #rule(
    { when, refuses, needs, why }: Rule,
    { values, keys, at }: { values: Record<string, unknown>; keys: Map<string, Node>; at: At },
  ): void {
    const holds = ({ field, is }: Condition): boolean =>
      keys.has(field) && (is === undefined || values[field] === is)
    const words = ({ field, is }: Condition): string => is === undefined ? field : `${field}: ${is}`
    if (!holds(when)) return
    if (refuses && holds(refuses)) {
      this.#wrong(keys.get(refuses.field), below(at, refuses.field), {
        code: 'config/conflict',
        found: `${words(refuses)} together with ${words(when)}`,
        expected: `one of them: ${why}`,
      })
    }
    if (needs && !holds(needs)) {
      this.#wrong(keys.get(when.field), below(at, when.field), {
        code: 'config/conflict',
        found: `${words(when)} alone`,
        expected: `${words(needs)} as well: ${why}`,
      })
    }
  }

  #unknown(entry: Entry, { known, at }: { known: readonly string[]; at: At }): void {
    const { name, key } = entry
    if (SECRET_FIELDS.includes(name)) {
      return this.#wrong(key, below(at, name), {
        code: 'config/secret',
        found: 'a field for a secret, which whoever reads this file could use',
        expected: 'the name of a file or of a variable that holds it',
        hint: SECRET_HINT,
      })
    }
    const near = nearest(name, known)
    this.#wrong(key, below(at, name), {
      code: 'config/field',
      found: 'no field of that name',
      expected: orWords(known),
      ...(near === undefined ? {} : { hint: `Did you mean "${near}"?` }),
    })
  }

  /** The pairs of a mapping, each name once. */
  #entries(node: Node | null, at: At): Entry[] | undefined {
    if (!this.#yaml.isMap(node)) {
      this.#wrong(node ?? at.key, at, {
        code: 'config/type',
        found: this.#words(node),
        expected: 'names with their values, each "name: value"',
      })
      return undefined
    }
    const entries: Entry[] = []
    const seen = new Set<string>()
    for (const { key, value } of (node as YAMLMap).items as Pair<Node, Node | null>[]) {
      const scalar = this.#scalar(key)
      if (scalar === undefined || scalar.value === null || this.#yaml.isAlias(key)) {
        this.#wrong(key ?? node, at, {
          code: 'config/type',
          found: this.#words(key),
          expected: 'a name',
        })
        continue
      }
      const name = typeof scalar.value === 'string' ? scalar.value : scalar.source ?? ''
      if (seen.has(name)) {
        this.#wrong(key, below(at, name), {
          code: 'config/duplicate',
          found: 'it a second time',
          expected: 'each name once',
        })
        continue
      }
      seen.add(name)
      entries.push({ name, key, value })
    }
    return entries
  }

  /** While a value is read that an alias within it might lead back to. */
  #within<T>(node: Node | null, run: () => T): T {
    if (node) this.#open.add(node)
    const value = run()
    if (node) this.#open.delete(node)
    return value
  }

  #scalar(node: unknown): Scalar | undefined {
    return this.#yaml.isScalar(node) ? node as Scalar : undefined
  }

  /** With variables in place; undefined where one is missing or misspelled. */
  #replaced(written: string, node: Node | null, at: At): string | undefined {
    const words = substitute(written, this.#variables)
    if (typeof words === 'string') return words
    this.#wrong(node, at, { code: 'config/variable', ...words })
    return undefined
  }

  /** What stands there, in words. */
  #words(node: unknown): string {
    if (node === null || node === undefined) return 'nothing'
    if (this.#yaml.isMap(node)) return 'names with values'
    if (this.#yaml.isSeq(node)) return 'a list'
    const { value, source } = node as Scalar
    if (value === null) return 'nothing'
    return typeof value === 'string' ? quoted(value) : quoted(source ?? String(value), '')
  }

  #wrong(node: unknown, at: At, problem: Omit<Found, 'field' | keyof Place>): void {
    const range = (node as Node | null | undefined)?.range ?? at.key?.range
    const [start, end] = range ?? [0, 0]
    // Of a value that takes several lines the first one is underlined.
    const length = Math.max(1, (this.#text.slice(start, end).split('\n')[0] ?? '').length)
    this.#add({ ...problem, field: at.field, offset: start, length })
  }

  #add(found: Found): void {
    if (this.#problems.length >= PROBLEMS_MAX) return
    const { code, field, offset, length, hint, action } = found
    const offsetIn = Math.min(offset, this.#text.length)
    const { line, col } = this.#lines.lineStarts.length === 0
      ? { line: 1, col: 1 }
      : this.#lines.linePos(offsetIn)
    const [row, column] = [Math.max(1, line), Math.max(1, col)]
    const subject = action ?? (field === '' ? 'the file' : field.slice(0, 160))
    this.#problems.push({
      code,
      line: row,
      column,
      field,
      message: `Cannot read ${subject}: found ${found.found}, expected ${found.expected}`,
      ...(hint === undefined ? {} : { hint }),
      excerpt: code === 'config/secret' ? [] : excerptOf(this.#text, { line: row, column, length }),
      offset,
      length,
    })
  }
}

const WHOLE = { field: '', offset: 0, length: 1 }

/** Never what a variable holds: it may be a secret in the wrong place, and mistakes end in logs. */
function asWritten(written: string, words: string): string {
  if (words === written) return quoted(words)
  return `${quoted(written)}${words === '' ? ', which is empty' : ' with variables in place'}`
}

const SECRET_HINT =
  'Put it into a file and name that by "api-key-file", or into the variable SOTTO_API_KEY.'

interface At {
  field: string
  depth: number
  /** The name that the value stands behind. */
  key?: Node
}

interface Entry {
  name: string
  key: Node
  value: Node | null
}

function below({ field, depth }: At, name: string, dot = '.'): At {
  const short = name.slice(0, 80)
  return { field: field === '' ? short : `${field}${dot}${short}`, depth: depth + 1 }
}
