/**
 * What a benchmark hands back: rounds kept apart, medians, ratios, and the circumstances without which a
 * figure says nothing (machine, versions, commit). Printed as a table, written as JSON and Markdown.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { fileURLToPath } from 'node:url'

const RESULTS = fileURLToPath(new URL('results/', import.meta.url))

export interface Machine {
  cpu: string
  cores: number
  memoryGiB: number
  kernel: string
  /** Load average when the run began: what else went on. */
  loadBefore: string
}

export interface Row {
  contender: string
  /** Each round's value, in order. */
  rounds: number[]
  median: number
}

/** One column of the table. */
export interface Column {
  race: string
  unit: string
  /** Decimals shown. */
  digits: number
  better: 'more' | 'less'
  rows: Row[]
}

export interface Goal {
  says: string
  race: string
  ours: string
  /** A contender, or a fixed bound in the column's unit. */
  theirs: string | number
  /** Ours ÷ theirs must be at least this ('more') or at most this ('less'). */
  factor: number
}

export interface Report {
  name: string
  when: string
  commit: string
  quick: boolean
  rounds: number
  machine: Machine
  versions: Record<string, string>
  /** Contenders that could not race, with the reason. */
  missing: Record<string, string>
  /** Races that a contender failed, with the reason. */
  failures: string[]
  notes: string[]
  columns: Column[]
  goals: (Goal & { found: number | undefined; met: boolean | undefined })[]
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

export function describeMachine(): Machine {
  return {
    cpu: cpus()[0]?.model.trim() ?? '?',
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    loadBefore: readFileSync('/proc/loadavg', 'utf8').split(' ').slice(0, 3).join(' '),
  }
}

/** The commit, with "+" when the tree held changes that it does not have. */
export function describeCommit(): string {
  const git = (...args: string[]) => Bun.spawnSync(['git', ...args]).stdout.toString().trim()
  const dirty = git('status', '--porcelain', '--untracked-files=no') !== ''
  return `${git('rev-parse', '--short', 'HEAD')}${dirty ? '+' : ''}`
}

/** A report with its circumstances and without figures. */
export function emptyReport(name: string, options: { quick: boolean; rounds: number }): Report {
  return {
    name,
    when: new Date().toISOString().slice(0, 16).replace('T', ' '),
    commit: describeCommit(),
    quick: options.quick,
    rounds: options.rounds,
    machine: describeMachine(),
    versions: {},
    missing: {},
    failures: [],
    notes: [],
    columns: [],
    goals: [],
  }
}

/** Gathers the values of a run by column and contender. */
export class Columns {
  #columns = new Map<string, Column>()

  add(
    column: { race: string; unit: string; digits: number; better: 'more' | 'less' },
    contender: string,
    value: number,
  ): void {
    let found = this.#columns.get(column.race)
    if (!found) this.#columns.set(column.race, found = { ...column, rows: [] })
    let row = found.rows.find((other) => other.contender === contender)
    if (!row) found.rows.push(row = { contender, rounds: [], median: 0 })
    row.rounds.push(value)
    row.median = median(row.rounds)
  }

  /** A contender that failed a race has no figure in it. */
  drop(race: string, contender: string): void {
    const column = this.#columns.get(race)
    if (column) column.rows = column.rows.filter((row) => row.contender !== contender)
  }

  get all(): Column[] {
    return [...this.#columns.values()]
  }
}

export function checkGoals(columns: Column[], goals: Goal[]): Report['goals'] {
  return goals.map((goal) => {
    const column = columns.find(({ race }) => race === goal.race)
    const of = (contender: string) =>
      column?.rows.find((row) => row.contender === contender)?.median
    const ours = of(goal.ours)
    const theirs = typeof goal.theirs === 'number' ? goal.theirs : of(goal.theirs)
    if (ours === undefined || theirs === undefined) {
      return { ...goal, found: undefined, met: undefined }
    }
    const found = ours / theirs
    const met = column!.better === 'more' ? found >= goal.factor : found <= goal.factor
    return { ...goal, found, met }
  })
}

function number(value: number, digits: number): string {
  return value.toLocaleString('en-US', {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  })
}

/** `value`, and how it compares with `base` when there is one. */
function cell(column: Column, contender: string, base: string | undefined): string {
  const row = column.rows.find((other) => other.contender === contender)
  if (!row) return '–'
  const value = number(row.median, column.digits)
  const reference = column.rows.find((other) => other.contender === base)?.median
  if (!reference || contender === base) return value
  return `${value} (${(row.median / reference).toFixed(2)})`
}

/** Markdown table of contenders by races; in parentheses the ratio to `base`. */
export function table(columns: Column[], options: { order: string[]; base?: string }): string[] {
  const { order, base } = options
  const heads = [
    'contender',
    ...columns.map(({ race, unit }) => (unit ? `${race}, ${unit}` : race)),
  ]
  const rows = order
    .filter((name) => columns.some(({ rows }) => rows.some((row) => row.contender === name)))
    .map((name) => [name, ...columns.map((column) => cell(column, name, base))])
  const widths = heads.map((head, i) => Math.max(head.length, ...rows.map((row) => row[i]!.length)))
  const line = (cells: string[]) =>
    `| ${
      cells.map((text, i) => (i === 0 ? text.padEnd(widths[i]!) : text.padStart(widths[i]!))).join(
        ' | ',
      )
    } |`
  const rule = `|${
    widths.map((width, i) => (i === 0 ? '-'.repeat(width + 2) : `${'-'.repeat(width + 1)}:`)).join(
      '|',
    )
  }|`
  return [line(heads), rule, ...rows.map(line)]
}

function goalLines(report: Report): string[] {
  if (report.goals.length === 0) return []
  const lines = report.goals.map(({ says, factor, found, met }) => {
    const verdict = met === undefined ? 'not measured' : met ? 'met' : '**falls short**'
    return `| ${says} | ${factor} | ${found === undefined ? '–' : found.toFixed(2)} | ${verdict} |`
  })
  return ['', '| goal | wanted | found | |', '|---|---:|---:|---|', ...lines]
}

/** The whole report as Markdown. `base` is the contender that ratios refer to, table by table. */
export function markdown(
  report: Report,
  tables: { title: string; races: string[]; base?: string }[],
  order: string[],
): string {
  const { machine } = report
  const parts = [
    `# ${report.name}`,
    '',
    `${report.when}, commit ${report.commit}, median of ${report.rounds}${
      report.quick ? ' (quick: not to be quoted)' : ''
    }. ` +
    `${machine.cores} × ${machine.cpu}, ${machine.memoryGiB} GiB, Linux ${machine.kernel}, load ${machine.loadBefore} before. ` +
    'Load, upstream, relay and agent share these cores: read ratios, not absolutes.',
  ]
  for (const { title, races, base } of tables) {
    const columns = races.flatMap((race) => report.columns.filter((column) => column.race === race))
    if (columns.length === 0) continue
    const ratio = base === undefined ? '' : ` (in parentheses: ÷ ${base})`
    parts.push(
      '',
      `## ${title}${ratio}`,
      '',
      ...table(columns, { order, ...(base ? { base } : {}) }),
    )
  }
  parts.push(...(report.goals.length > 0 ? ['', '## Goals'] : []), ...goalLines(report))
  const list = (title: string, lines: string[]) =>
    lines.length > 0 ? parts.push('', `## ${title}`, '', ...lines.map((text) => `- ${text}`)) : 0
  list('Versions', Object.entries(report.versions).map(([name, version]) => `${name}: ${version}`))
  list('Missing', Object.entries(report.missing).map(([name, reason]) => `${name}: ${reason}`))
  list('Failed', report.failures)
  list('Notes', report.notes)
  return `${parts.join('\n')}\n`
}

/** Writes both files; a quick run gets a name of its own and never overwrites figures that are quoted. */
export function save(report: Report, text: string): string {
  mkdirSync(RESULTS, { recursive: true })
  const base = `${RESULTS}${report.name}${report.quick ? '.quick' : ''}`
  writeFileSync(`${base}.json`, `${JSON.stringify(report, null, 1)}\n`)
  writeFileSync(`${base}.md`, text)
  return `${base}.md`
}
