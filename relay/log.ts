/**
 * The relay's log: one line an event, JSON for machines or plain for a terminal.
 *
 * A line can only say what FIELDS lists, so a credential, a body or a header has no way in; text
 * that looks like one of our secrets is scrubbed all the same, and whatever a visitor sent stays
 * inside its line: control characters, line separators and characters that turn the direction of
 * text are escaped. Lines and values are bounded.
 */
import type { Clock } from '../core/clock.ts'
import { isTunnelError } from '../core/errors.ts'

/** Longest value; what is cut ends in "…". Counted in UTF-16 units, before escaping. */
export const LOG_VALUE_LENGTH_MAX = 512
/** Longest line without its line feed, in characters (all are ASCII). */
export const LOG_LINE_LENGTH_MAX = 4096
/** Longest text that is looked at for secrets; no value of ours comes near. */
const SCRUB_LENGTH_MAX = 16_384

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

/** Everything that a line may say besides time, level and event. */
export const LOG_FIELDS = [
  'address', // of who came, as the relay saw it
  'agent', // the text of an identity key
  'amount',
  'bytesIn',
  'bytesOut',
  'code', // of an error
  'count',
  'credential', // the id of a credential, never its secret
  'endpoint',
  'error', // the sentence of an error
  'host',
  'kind',
  'link', // the id of a link
  'method',
  'mode',
  'ms', // how long it took
  'name',
  'names',
  'path', // of a request, without its query
  'port',
  'reason',
  'result',
  'role',
  'route',
  'runtime',
  'scope',
  'serverName', // that a visitor asked for
  'signal',
  'status',
  'stream',
  'until', // an instant
  'url',
  'version',
] as const
export type LogField = (typeof LOG_FIELDS)[number]
export type LogValue = string | number | boolean | undefined | readonly string[]
export type LogFields = { readonly [K in LogField]?: LogValue }

/** `event` is a word or two that stays the same across releases: `link admitted`. */
export interface Log {
  debug(event: string, fields?: LogFields): void
  info(event: string, fields?: LogFields): void
  warn(event: string, fields?: LogFields): void
  error(event: string, fields?: LogFields): void
  /** The same log with these fields on every line. */
  with(fields: LogFields): Log
}

export interface LogOptions {
  /** Takes one line, without a line feed. What it throws is dropped: a full disk stops no relay. */
  write(line: string): void
  clock: Clock
  /** The lowest level that is written. */
  level: LogLevel
  /** JSON when true, else text for people. */
  json: boolean
}

const ALLOWED: ReadonlySet<string> = new Set(LOG_FIELDS)

export function createLog(options: LogOptions): Log {
  return logWith(options, {})
}

/** A log that says nothing. */
export const silentLog: Log = {
  debug() {},
  info() {},
  warn() {},
  error() {},
  with: () => silentLog,
}

/** An error as the fields of a line: its code and sentence, never its stack. */
export function errorFields(error: unknown): LogFields {
  if (isTunnelError(error)) return { code: error.code, error: error.message }
  return { error: error instanceof Error ? `${error.name}: ${error.message}` : String(error) }
}

/** `text` without anything that looks like a credential. */
export function scrub(text: string): string {
  return text
    .replace(/(?:sk|ft|ak)_[A-Za-z0-9-]*_[A-Za-z0-9_-]{8,}/g, (found) => `${found.slice(0, 3)}***`)
    .replace(/(?<![A-Za-z0-9])(sk|ft|ak)_[A-Za-z0-9_-]+/g, '$1_***')
    .replace(/\b(bearer|basic)(\s+)[^\s"',;]+/gi, '$1$2***')
}

function logWith(options: LogOptions, always: LogFields): Log {
  const least = LOG_LEVELS.indexOf(options.level)
  function writer(level: LogLevel): (event: string, fields?: LogFields) => void {
    if (LOG_LEVELS.indexOf(level) < least) return () => {}
    return (event, fields = {}) => {
      const line = options.json
        ? jsonLine(options.clock, level, event, { ...always, ...fields })
        : textLine(options.clock, level, event, { ...always, ...fields })
      try {
        options.write(line)
      } catch {
        // There is no better place to report that the log cannot be written.
      }
    }
  }
  return {
    debug: writer('debug'),
    info: writer('info'),
    warn: writer('warn'),
    error: writer('error'),
    with: (fields) => logWith(options, { ...always, ...fields }),
  }
}

function jsonLine(clock: Clock, level: LogLevel, event: string, fields: LogFields): string {
  let line = `{"time":${quote(isoTime(clock))},"level":"${level}","event":${quote(clean(event))}`
  for (const [name, value] of allowed(fields)) {
    const next = `,"${name}":${renderValue(value)}`
    // A field that no longer fits is left out whole, so that the line stays JSON.
    if (line.length + next.length > LOG_LINE_LENGTH_MAX - CUT_NOTE.length - 1) {
      return `${line}${CUT_NOTE}}`
    }
    line += next
  }
  return `${line}}`
}

const CUT_NOTE = ',"cut":true'

function textLine(clock: Clock, level: LogLevel, event: string, fields: LogFields): string {
  let line = `${isoTime(clock)} ${level.padEnd(5)} ${quote(clean(event)).slice(1, -1)}`
  for (const [name, value] of allowed(fields)) {
    const rendered = renderValue(value)
    const bare = /^"[A-Za-z0-9._:/@+-]+"$/.test(rendered) ? rendered.slice(1, -1) : rendered
    const next = ` ${name}=${bare}`
    if (line.length + next.length > LOG_LINE_LENGTH_MAX - 4) return `${line} ...`
    line += next
  }
  return line
}

/** Wall time; a clock that stands outside of what a date can say gives its bare number. */
function isoTime(clock: Clock): string {
  const now = clock.now()
  return Math.abs(now) <= 8.64e15 ? new Date(now).toISOString() : String(now)
}

function* allowed(fields: LogFields): Generator<[string, LogValue]> {
  // Types hold names back at build time; this holds back what comes in by a cast or from JSON.
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined && ALLOWED.has(name)) yield [name, value]
  }
}

function renderValue(value: LogValue): string {
  if (typeof value === 'number') return Number.isFinite(value) ? String(value) : `"${value}"`
  if (typeof value === 'boolean') return String(value)
  if (Array.isArray(value)) {
    let joined = ''
    for (const item of value.slice(0, 64)) joined += `${joined === '' ? '' : ' '}${String(item)}`
    return quote(clean(joined))
  }
  return quote(clean(String(value)))
}

function clean(text: string): string {
  // Scrubbed before it is cut: half a secret is still half a secret.
  const scrubbed = scrub(text.slice(0, SCRUB_LENGTH_MAX))
  return scrubbed.length <= LOG_VALUE_LENGTH_MAX
    ? scrubbed
    : `${scrubbed.slice(0, LOG_VALUE_LENGTH_MAX - 1)}…`
}

/** JSON text in ASCII alone: a terminal or a log viewer sees no character that it could act on. */
function quote(text: string): string {
  return JSON.stringify(text).replace(
    /[^ -~]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}
