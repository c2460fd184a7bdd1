/**
 * What an operator can watch: counters, gauges and histograms in the Prometheus text format 0.0.4.
 *
 * Every label has a fixed list of values, written below, so no visitor can make the relay remember
 * one more series: what is not on a list counts as `other`. Nothing here names an agent, a scope
 * or an address; who talks to whom is not for a scraper.
 */
import type { Clock } from '../core/clock.ts'

export const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8'
/** Most series of one metric; a table that multiplies out to more is a mistake in this file. */
const SERIES_MAX = 256
/** Upper bounds of handshake and open durations; above 5 s both have timed out. */
const DURATION_BOUNDS_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]

/** The metric's labels, each with every value that it can have. */
type Labels = Record<string, readonly string[]>
type LabelValues<L extends Labels> = { readonly [K in keyof L]: L[K][number] }

/** How a visitor came in. */
export const ROUTES = [
  'relay',
  'passthrough',
  'inspectable',
  'raw',
  'udp',
  'connect',
  'session',
  'datagrams',
  'pair',
] as const
/** What became of a visitor. */
export const VISITOR_RESULTS = [
  'served',
  'refused',
  'unreachable',
  'timeout',
  'aborted',
  'quota',
  'blocked',
  'draining',
  'other',
] as const
/** Which way bytes go, seen from the visitor: `in` towards the agent, `out` towards the visitor. */
export const DIRECTIONS = ['in', 'out'] as const
/** Why a connection or request was turned away before it was anybody's visitor. */
export const REFUSALS = [
  'hello', // not a ClientHello that we can read
  'no_name', // a ClientHello without a server name
  'unknown_name',
  'protocol', // neither TLS nor HTTP nor a ticket
  'timeout', // the first bytes did not come in time
  'ticket', // a bulk link whose ticket is wrong or used
  'credential',
  'quota',
  'blocked',
  'draining',
  'overload',
  'other',
] as const
export const HANDSHAKE_RESULTS = [
  'admitted',
  'timeout',
  'protocol',
  'signature',
  'credential',
  'quota',
  'blocked',
  'draining',
  'lost',
  'other',
] as const
export const PACKET_DROPS = ['queue', 'quota', 'oversize', 'gone', 'flow', 'other'] as const
export const STORE_OPERATIONS = ['get', 'list', 'commit', 'other'] as const
export const STREAM_KINDS = [
  'tls',
  'raw',
  'http',
  'connect',
  'udp',
  'session',
  'datagrams',
  'pair',
  'other',
] as const
export const STATUS_CLASSES = ['1xx', '2xx', '3xx', '4xx', '5xx'] as const

/** One series of a counter or gauge. Keep it where it is used often: `add` is one addition. */
export class Cell {
  readonly labels: string
  #value = 0
  #read: (() => number) | undefined

  constructor(labels: string) {
    this.labels = labels
  }

  get value(): number {
    return this.#read ? this.#read() : this.#value
  }

  /** Adds `amount`; on a counter it must not be negative. */
  add(amount = 1): void {
    this.#value += amount
  }

  set(value: number): void {
    this.#value = value
  }

  /** From now on the value is asked for when it is rendered. */
  read(source: () => number): void {
    this.#read = source
  }
}

/** One named metric with all its series, made at once. */
export class Family<L extends Labels> {
  readonly name: string
  readonly help: string
  readonly type: 'counter' | 'gauge'
  readonly #labels: L
  readonly #cells = new Map<string, Cell>()

  constructor(type: 'counter' | 'gauge', name: string, { help, labels }: FamilyOptions<L>) {
    this.type = type
    this.name = name
    this.help = help
    this.#labels = labels
    for (const values of combinations(labels)) {
      this.#cells.set(keyOf(values), new Cell(renderLabels(labels, values)))
    }
  }

  /** The series of these label values; a value that is not listed stands for the last one. */
  cell(values: LabelValues<L>): Cell {
    const listed: string[] = []
    for (const [label, known] of Object.entries(this.#labels)) {
      const value = values[label as keyof L]
      listed.push(known.includes(value) ? value : known[known.length - 1]!)
    }
    return this.#cells.get(keyOf(listed))!
  }

  add(values: LabelValues<L>, amount = 1): void {
    this.cell(values).add(amount)
  }

  render(): string {
    let out = renderHead(this.name, this.help, this.type)
    for (const cell of this.#cells.values()) {
      out += `${this.name}${cell.labels} ${renderNumber(cell.value)}\n`
    }
    return out
  }
}

interface FamilyOptions<L extends Labels> {
  help: string
  labels: L
}

/** How long something took, in seconds, in cumulative buckets. */
export class Histogram {
  readonly name: string
  readonly help: string
  readonly #bounds: readonly number[]
  readonly #counts: number[]
  #sum = 0

  constructor(name: string, { help, bounds }: { help: string; bounds: readonly number[] }) {
    this.name = name
    this.help = help
    this.#bounds = bounds
    this.#counts = new Array<number>(bounds.length + 1).fill(0)
  }

  /** Notes one duration. What is not a number from 0 up counts as 0: a clock may jump back. */
  observe(seconds: number): void {
    const value = seconds > 0 ? seconds : 0
    let index = 0
    while (index < this.#bounds.length && value > this.#bounds[index]!) index++
    this.#counts[index]! += 1
    if (Number.isFinite(value)) this.#sum += value
  }

  render(): string {
    let out = renderHead(this.name, this.help, 'histogram')
    let total = 0
    for (const [index, count] of this.#counts.entries()) {
      total += count
      const bound = index < this.#bounds.length ? renderNumber(this.#bounds[index]!) : '+Inf'
      out += `${this.name}_bucket{le="${bound}"} ${total}\n`
    }
    return `${out}${this.name}_sum ${renderNumber(this.#sum)}\n${this.name}_count ${total}\n`
  }
}

export interface MetricsOptions {
  clock: Clock
  version: string
  /** `bun`, `node`, `deno`, `worker`. */
  runtime: string
}

/** Every metric of a relay, by what it counts. */
export class Metrics {
  readonly links = new Family('gauge', 'sotto_links', {
    help: 'Links open now, by whether they lead to the agent that opened them.',
    labels: { role: ['home', 'visit'] },
  })
  readonly streams = new Family('gauge', 'sotto_streams', {
    help: 'Streams open now, by what they carry.',
    labels: { kind: STREAM_KINDS },
  })
  readonly visitorsActive = new Family('gauge', 'sotto_visitors_active', {
    help: 'Visitors being served now, by the way they came in.',
    labels: { route: ROUTES },
  })
  readonly visitors = new Family('counter', 'sotto_visitors_total', {
    help: 'Visitors, by the way they came in and what became of them.',
    labels: { route: ROUTES, result: VISITOR_RESULTS },
  })
  readonly bytes = new Family('counter', 'sotto_bytes_total', {
    help: 'Bytes of visitors, in towards the agent and out towards the visitor.',
    labels: { route: ROUTES, direction: DIRECTIONS },
  })
  readonly bulkLinksIdle = new Family('gauge', 'sotto_bulk_links_idle', {
    help: 'Bulk links that wait for a visitor.',
    labels: {},
  })
  readonly refused = new Family('counter', 'sotto_refused_total', {
    help: 'Connections and requests turned away, by reason.',
    labels: { reason: REFUSALS },
  })
  readonly handshakes = new Family('counter', 'sotto_handshakes_total', {
    help: 'Admissions of links, by result.',
    labels: { result: HANDSHAKE_RESULTS },
  })
  readonly handshakeSeconds = new Histogram('sotto_handshake_seconds', {
    help: 'From the upgrade of a link to its welcome.',
    bounds: DURATION_BOUNDS_SECONDS,
  })
  readonly openSeconds = new Histogram('sotto_visitor_open_seconds', {
    help: 'From the first bytes of a visitor to the answer of an agent.',
    bounds: DURATION_BOUNDS_SECONDS,
  })
  readonly packets = new Family('counter', 'sotto_packets_total', {
    help: 'Datagrams carried.',
    labels: { direction: DIRECTIONS },
  })
  readonly packetsDropped = new Family('counter', 'sotto_packets_dropped_total', {
    help: 'Datagrams dropped, by reason.',
    labels: { reason: PACKET_DROPS },
  })
  readonly storeErrors = new Family('counter', 'sotto_store_errors_total', {
    help: 'Operations that the store refused.',
    labels: { operation: STORE_OPERATIONS },
  })
  readonly requests = new Family('counter', 'sotto_http_requests_total', {
    help: "Requests to the relay's own pages and API, by class of status.",
    labels: { status: STATUS_CLASSES },
  })
  readonly draining = new Family('gauge', 'sotto_draining', {
    help: '1 while the relay takes no new visitors.',
    labels: {},
  })
  readonly uptimeSeconds = new Family('gauge', 'sotto_uptime_seconds', {
    help: 'Seconds since the relay started.',
    labels: {},
  })
  readonly buildInfo: Family<{ version: readonly string[]; runtime: readonly string[] }>

  constructor({ clock, version, runtime }: MetricsOptions) {
    const startedMs = clock.monotonic()
    this.uptimeSeconds.cell({}).read(() => (clock.monotonic() - startedMs) / 1000)
    this.buildInfo = new Family('gauge', 'sotto_build_info', {
      help: 'Always 1; the labels say what runs.',
      labels: { version: [version], runtime: [runtime] },
    })
    this.buildInfo.cell({ version, runtime }).set(1)
  }

  /** Everything as text of `METRICS_TYPE`: a few hundred lines, however many agents there are. */
  render(): string {
    let out = ''
    for (const metric of Object.values(this)) {
      if (metric instanceof Family || metric instanceof Histogram) out += metric.render()
    }
    return out
  }
}

function combinations(labels: Labels): string[][] {
  let all: string[][] = [[]]
  for (const values of Object.values(labels)) {
    all = all.flatMap((before) => values.map((value) => [...before, value]))
  }
  if (all.length === 0 || all.length > SERIES_MAX) {
    throw new RangeError(`found ${all.length} series, expected 1 to ${SERIES_MAX}`)
  }
  return all
}

function keyOf(values: readonly string[]): string {
  return values.join('\n')
}

function renderLabels(labels: Labels, values: readonly string[]): string {
  const pairs = Object.keys(labels).map((label, i) => `${label}="${escapeLabel(values[i]!)}"`)
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`
}

function renderHead(name: string, help: string, type: string): string {
  return `# HELP ${name} ${
    help.replace(/\\/g, '\\\\').replace(/\n/g, '\\n')
  }\n# TYPE ${name} ${type}\n`
}

function escapeLabel(value: string): string {
  return value.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n')
}

function renderNumber(value: number): string {
  if (value === Infinity) return '+Inf'
  if (value === -Infinity) return '-Inf'
  return Number.isNaN(value) ? 'NaN' : String(value)
}
