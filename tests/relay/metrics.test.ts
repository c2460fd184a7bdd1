/**
 * The exposition is read back by a strict parser of the text format 0.0.4, written here from its
 * grammar ("Exposition formats", Prometheus documentation) and shown to refuse what breaks it.
 */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { ManualClock } from '../../core/clock.ts'
import { Family, Histogram, Metrics } from '../../relay/metrics.ts'

const test = suite('relay/metrics')

interface Sample {
  name: string
  labels: Record<string, string>
  value: number
}
interface Parsed {
  type: string
  help: string
  samples: Sample[]
}

/** Every family by name; throws on anything that the grammar does not allow. */
function parse(exposition: string): Map<string, Parsed> {
  if (!exposition.endsWith('\n')) throw new Error('the last line has no line feed')
  if (exposition.includes('\r')) throw new Error('carriage return')
  const families = new Map<string, Parsed>()
  const seen = new Set<string>()
  let current: { name: string; parsed: Parsed } | undefined
  for (const line of exposition.slice(0, -1).split('\n')) {
    const help = /^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)$/.exec(line)
    const type = /^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram)$/.exec(line)
    if (help) {
      if (families.has(help[1]!)) throw new Error(`${help[1]} comes twice`)
      if (/\\(?![\\n])/.test(help[2]!.replaceAll('\\\\', ''))) throw new Error('escape in help')
      current = { name: help[1]!, parsed: { type: '', help: help[2]!, samples: [] } }
      families.set(current.name, current.parsed)
    } else if (type) {
      if (current?.name !== type[1]) throw new Error(`TYPE of ${type[1]} stands apart`)
      if (current!.parsed.type !== '') throw new Error('TYPE comes twice')
      current!.parsed.type = type[2]!
    } else {
      const sample = parseSample(line)
      if (!current || current.parsed.type === '') throw new Error(`no TYPE before ${line}`)
      const base = current.parsed.type === 'histogram'
        ? sample.name.replace(/_(bucket|sum|count)$/, '')
        : sample.name
      if (base !== current.name) throw new Error(`${sample.name} stands under ${current.name}`)
      const key = `${sample.name}${JSON.stringify(Object.entries(sample.labels).sort())}`
      if (seen.has(key)) throw new Error(`${key} comes twice`)
      seen.add(key)
      current.parsed.samples.push(sample)
    }
  }
  for (const [name, family] of families) checkFamily(name, family)
  return families
}

function parseSample(line: string): Sample {
  const found =
    /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (-?[0-9.]+(?:[eE][+-]?[0-9]+)?|[+-]Inf|NaN)$/
      .exec(line)
  if (!found) throw new Error(`not a sample: ${line}`)
  const labels: Record<string, string> = {}
  let rest = found[2] ?? ''
  while (rest !== '') {
    const label = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,(?=.)|$)/.exec(rest)
    if (!label || label[1]! in labels) throw new Error(`not a label: ${rest}`)
    labels[label[1]!] = label[2]!.replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c))
    rest = rest.slice(label[0].length)
  }
  const value = found[3]!.endsWith('Inf')
    ? (found[3]!.startsWith('-') ? -Infinity : Infinity)
    : Number(found[3])
  return { name: found[1]!, labels, value }
}

function checkFamily(name: string, { type, samples }: Parsed): void {
  if (samples.length === 0) throw new Error(`${name} has no samples`)
  if (type === 'counter' && samples.some(({ value }) => !(value >= 0))) {
    throw new Error(`counter ${name} is negative`)
  }
  if (type !== 'histogram') return
  const buckets = samples.filter((sample) => sample.name === `${name}_bucket`)
  const bounds = buckets.map(({ labels }) => labels['le'])
  if (bounds.at(-1) !== '+Inf') throw new Error(`${name} ends without +Inf`)
  for (let i = 1; i < buckets.length; i++) {
    if (buckets[i]!.value < buckets[i - 1]!.value) throw new Error(`${name} is not cumulative`)
    const [below, above] = [bounds[i - 1], bounds[i]].map((le) =>
      le === '+Inf' ? 1e308 : Number(le)
    )
    if (!(below! < above!)) throw new Error(`bounds of ${name} do not rise`)
  }
  const count = samples.find((sample) => sample.name === `${name}_count`)
  if (count?.value !== buckets.at(-1)!.value) throw new Error(`${name}_count differs from +Inf`)
  if (!samples.some((sample) => sample.name === `${name}_sum`)) {
    throw new Error(`${name} has no sum`)
  }
}

function made() {
  const clock = new ManualClock()
  return { clock, metrics: new Metrics({ clock, version: '1.2.3', runtime: 'bun' }) }
}

test('the parser refuses what the grammar does not allow', () => {
  const head = '# HELP a_total x\n# TYPE a_total counter\n'
  assert.is(parse(`${head}a_total{x="1"} 2\n`).size, 1)
  for (
    const [why, wrong] of [
      ['no line feed at the end', `${head}a_total 1`],
      ['no type', '# HELP a_total x\na_total 1\n'],
      ['no head', 'a_total 1\n'],
      ['another name', `${head}b_total 1\n`],
      ['the same series twice', `${head}a_total{x="1"} 1\na_total{x="1"} 2\n`],
      ['a quote in a label', `${head}a_total{x="""} 1\n`],
      ['a bare backslash', `${head}a_total{x="\\t"} 1\n`],
      ['a comma at the end', `${head}a_total{x="1",} 1\n`],
      ['a number that is none', `${head}a_total 1x\n`],
      ['undefined', `${head}a_total undefined\n`],
      ['two spaces', `${head}a_total  1\n`],
      ['a counter below zero', `${head}a_total -1\n`],
      ['an empty line', `${head}a_total 1\n\n`],
      ['a head twice', `${head}a_total 1\n${head}a_total{x="1"} 1\n`],
      [
        'a histogram without +Inf',
        '# HELP h x\n# TYPE h histogram\nh_bucket{le="1"} 0\nh_sum 0\nh_count 0\n',
      ],
    ] as const
  ) assert.throws(() => parse(wrong), undefined, why)
})

test('render() of a relay that did nothing yet parses, every name with prefix and unit', () => {
  const families = parse(made().metrics.render())
  for (const [name, { type, help }] of families) {
    assert.match(name, /^sotto_[a-z_]+$/)
    assert.ok(help.length > 10, name)
    assert.is(name.endsWith('_total'), type === 'counter', `${name} is a ${type}`)
  }
  for (
    const name of [
      'sotto_links',
      'sotto_streams',
      'sotto_visitors_total',
      'sotto_bytes_total',
      'sotto_bulk_links_idle',
      'sotto_refused_total',
      'sotto_handshakes_total',
      'sotto_packets_dropped_total',
      'sotto_store_errors_total',
      'sotto_uptime_seconds',
      'sotto_build_info',
    ]
  ) assert.ok(families.has(name), name)
})

test('counts come back from the exposition', () => {
  const { clock, metrics } = made()
  metrics.visitors.add({ route: 'passthrough', result: 'served' })
  metrics.visitors.add({ route: 'passthrough', result: 'served' })
  metrics.bytes.add({ route: 'raw', direction: 'in' }, 5e15)
  metrics.links.cell({ role: 'home' }).read(() => 7)
  clock.advance(1500)
  const families = parse(metrics.render())
  function value(name: string, labels: Record<string, string>): number | undefined {
    return families.get(name)?.samples.find((sample) =>
      JSON.stringify(sample.labels) === JSON.stringify(labels)
    )?.value
  }
  assert.is(value('sotto_visitors_total', { route: 'passthrough', result: 'served' }), 2)
  assert.is(value('sotto_visitors_total', { route: 'raw', result: 'served' }), 0)
  assert.is(value('sotto_bytes_total', { route: 'raw', direction: 'in' }), 5e15)
  assert.is(value('sotto_links', { role: 'home' }), 7)
  assert.is(value('sotto_uptime_seconds', {}), 1.5)
  assert.is(value('sotto_build_info', { version: '1.2.3', runtime: 'bun' }), 1)
})

test('attack: values that nobody listed make no new series', () => {
  const { metrics } = made()
  const before = metrics.render().split('\n').length
  for (let i = 0; i < 10_000; i++) {
    metrics.refused.add({ reason: `x${i}"}\n` as 'other' })
    metrics.visitors.add({ route: `${i}` as 'raw', result: `${i}` as 'other' })
  }
  const rendered = metrics.render()
  assert.is(rendered.split('\n').length, before)
  assert.is(metrics.refused.cell({ reason: 'other' }).value, 10_000)
  parse(rendered)
})

test('label values and help are escaped', () => {
  const family = new Family('gauge', 'sotto_odd', { help: 'a\\b\nc', labels: { x: ['"\\\n'] } })
  const parsed = parse(family.render()).get('sotto_odd')!
  assert.is(parsed.help, 'a\\\\b\\nc')
  assert.is(parsed.samples[0]!.labels['x'], '"\\\n')
  const info = new Metrics({ clock: new ManualClock(), version: '1"} 9\n', runtime: 'bun' })
  assert.is(parse(info.render()).get('sotto_build_info')!.samples.length, 1)
})

test('a table that multiplies out to too many series is refused', () => {
  const many = Array.from({ length: 17 }, (_, i) => `${i}`)
  assert.throws(() => new Family('gauge', 'sotto_x', { help: 'x', labels: { a: many, b: many } }))
  assert.throws(() => new Family('gauge', 'sotto_x', { help: 'x', labels: { a: [] } }))
})

test('a histogram puts a bound into its own bucket, and odd values do no harm', () => {
  const histogram = new Histogram('sotto_h_seconds', { help: 'x', bounds: [0.1, 1] })
  for (const value of [0.1, 0.100001, 1, 1.5, -3, NaN, Infinity]) histogram.observe(value)
  const { samples } = parse(histogram.render()).get('sotto_h_seconds')!
  assert.equal(samples.filter(({ name }) => name.endsWith('_bucket')).map(({ value }) => value), [
    3,
    5,
    7,
  ])
  assert.is(samples.find(({ name }) => name.endsWith('_sum'))!.value, 0.1 + 0.100001 + 1 + 1.5)
})

test('numbers that are none are written as the format has it', () => {
  const family = new Family('gauge', 'sotto_x', { help: 'x', labels: {} })
  for (const value of [NaN, Infinity, -Infinity, 1e21, 1e-7, -0.5]) {
    family.cell({}).set(value)
    assert.equal(parse(family.render()).get('sotto_x')!.samples[0]!.value, value)
  }
})

test.run()
