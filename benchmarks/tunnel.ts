/**
 * How fast are tunnels? Every contender is set up on loopback, its bytes are checked, then all race in turns:
 * each round of a race goes through all contenders before the next round starts, in an order that moves on, so
 * that what else happens on the machine hits all alike.
 */
import type { BenchOptions } from './bench.ts'
import { type Contender, type Racer, rivals } from './contenders.ts'
import { IDLE_GOALS, IDLE_ORDER, IDLE_RACES, idleFigures, idleWanted } from './idle.ts'
import { cpuSeconds, Lab, residentBytes } from './lab.ts'
import {
  answers,
  checkBytes,
  checkDownload,
  connects,
  describeTls,
  download,
  type Figures,
  firstByteMs,
  requests,
  streams,
} from './load.ts'
import {
  checkGoals,
  Columns,
  emptyReport,
  type Goal,
  markdown,
  type Report,
  save,
} from './report.ts'
import { ours } from './sotto.ts'
import { FILE_PATH, SMALL_PATH, startUpstreams, type Upstreams } from './upstreams.ts'

const FILE_BYTES = 2 ** 30
const FILE_BYTES_QUICK = 2 ** 27
const CHECK_BYTES = 256 * 2 ** 20
const CHECK_BYTES_QUICK = 32 * 2 ** 20
const RUN_MS = 3000
const RUN_MS_QUICK = 1000
/** Between two runs: connections that are closing get out of the way. */
const PAUSE_MS = 200
const FIRST_BYTE_MS_MAX = 10_000

/** What a run of a race needs to know. */
interface Setting {
  lab: Lab
  upstreams: Upstreams
  racer: Racer
  ms: number
}

interface Race {
  name: string
  /** Column by figure. */
  columns: Record<string, { race: string; unit: string; digits: number; better: 'more' | 'less' }>
  /** Undefined: this contender does not do that. */
  run(setting: Setting): Promise<Figures> | undefined
}

const more = (race: string, unit: string, digits: number) =>
  ({ race, unit, digits, better: 'more' }) as const
const less = (race: string, unit: string, digits: number) =>
  ({ race, unit, digits, better: 'less' }) as const

function streamRace(name: string, kind: 'push' | 'pull', count: number): Race {
  return {
    name,
    columns: {
      gbits: more(name, 'Gbit/s', 1),
      cpu: less(`${name}: CPU`, 's/GiB', 2),
    },
    run: ({ upstreams, racer, ms }) => {
      const to = racer.bytes
      if (!to) return undefined
      return (async () => {
        const pids = [...racer.relays(), ...racer.agents()]
        const before = cpuSeconds(pids)
        const began = performance.now()
        const figures = await streams(kind, to, { direct: upstreams.bytes, streams: count, ms })
        const used = cpuSeconds(pids) - before
        const gib = (figures['gbits']! * 1e9 / 8 / 2 ** 30) * (performance.now() - began) / 1000
        return pids.length === 0 ? figures : { ...figures, cpu: used / gib }
      })()
    },
  }
}

function requestRace(scheme: 'http' | 'https', width: number): Race {
  const name = `${scheme} c=${width}`
  return {
    name,
    columns: {
      perSecond: more(name, 'requests/s', 0),
      p50: less(`${name} p50`, 'ms', 3),
      p99: less(`${name} p99`, 'ms', 3),
    },
    run: ({ lab, racer, ms }) =>
      racer[scheme] && requests(lab, racer[scheme], { width, ms, path: SMALL_PATH }),
  }
}

function connectRace(scheme: 'http' | 'https', name: string, width: number): Race {
  return {
    name,
    columns: { perSecond: more(name, '/s', 0), p99: less(`${name} p99`, 'ms', 1) },
    run: ({ racer, ms }) =>
      racer[scheme] && connects(racer[scheme], { width, ms, path: SMALL_PATH }),
  }
}

const RACES: Race[] = [
  streamRace('stream in', 'push', 1),
  streamRace('stream out', 'pull', 1),
  streamRace('8 streams', 'push', 8),
  requestRace('http', 1),
  requestRace('http', 64),
  connectRace('http', 'new connections', 32),
  requestRace('https', 1),
  requestRace('https', 64),
  connectRace('https', 'new TLS', 16),
  {
    name: 'download',
    columns: { mbs: more('download', 'MB/s', 0) },
    run: ({ upstreams, racer }) =>
      racer.https && download(racer.https, { path: FILE_PATH, bytes: upstreams.file.bytes }),
  },
  {
    name: 'first byte',
    columns: { ms: less('first byte', 'ms', 0) },
    run: ({ racer }) => {
      const to = racer.http ?? racer.https
      if (!to || !racer.startAgent || !racer.stopAgent) return undefined
      return (async () => {
        await racer.stopAgent!()
        const deadline = performance.now() + FIRST_BYTE_MS_MAX
        while (await answers(to, SMALL_PATH)) {
          if (performance.now() > deadline) throw new Error('it answered on without its agent')
          await Bun.sleep(20)
        }
        racer.startAgent!()
        return { ms: await firstByteMs(to, { path: SMALL_PATH, msMax: FIRST_BYTE_MS_MAX }) }
      })()
    },
  },
]

const PLAIN = [
  'stream in',
  'stream out',
  '8 streams',
  'http c=1',
  'http c=1 p50',
  'http c=1 p99',
  'http c=64',
  'http c=64 p99',
  'new connections',
]
const SECURE = [
  'https c=1',
  'https c=1 p50',
  'https c=1 p99',
  'https c=64',
  'https c=64 p99',
  'new TLS',
  'download',
]
const COST = ['first byte', 'stream in: CPU', 'stream out: CPU', 'memory relay', 'memory agent']

const TABLES = [
  { title: 'Raw bytes and plain requests', races: PLAIN, base: 'rathole tcp' },
  { title: 'TLS 1.3 to the visitor', races: SECURE, base: 'nginx ssl_preread' },
  { title: 'Cost', races: COST },
  { title: 'Idle agents', races: IDLE_RACES },
]

function goal(ours: string, race: string, theirs: string | number, factor: number): Goal {
  const against = typeof theirs === 'number' ? 'absolute' : `÷ ${theirs}`
  return { says: `${ours}, ${race}, ${against}`, race, ours, theirs, factor }
}

const GOALS: Goal[] = [
  goal('sotto raw', 'stream in', 'rathole tcp', 1.3),
  goal('sotto raw', 'http c=64', 'rathole tcp', 1.3),
  goal('sotto raw', 'new connections', 'rathole tcp', 1.3),
  goal('sotto raw', 'http c=1', 'rathole tcp', 1),
  goal('sotto raw', 'stream in', 'bore', 1),
  goal('sotto raw', 'stream in', 'frp', 2.5),
  goal('sotto hop', 'stream in', 'nginx stream', 1),
  goal('sotto hop', 'stream out', 'nginx stream', 1),
  goal('sotto hop', 'http c=64', 'nginx stream', 1),
  goal('sotto hop', 'new connections', 'nginx stream', 1),
  goal('sotto verified', 'download', 'nginx ssl_preread', 1),
  goal('sotto verified', 'https c=64', 'nginx ssl_preread', 1),
  goal('sotto verified', 'new TLS', 'nginx ssl_preread', 1),
  goal('sotto verified', 'https c=1 p99', 1, 1),
  goal('sotto raw', 'http c=1 p99', 1, 1),
  goal('sotto verified', 'first byte', 500, 1),
  ...IDLE_GOALS,
]

/** Beginnings of names; none given means all. */
export function chosen(name: string, wanted: string[] | undefined): boolean {
  return wanted === undefined || wanted.some((start) => name.startsWith(start))
}

function say(text: string): void {
  console.error(text)
}

interface Entry {
  contender: Contender
  racer: Racer
}

const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error))

/** Starts a contender and sees that it carries bytes unchanged; it does not race otherwise. */
async function enter(
  lab: Lab,
  contender: Contender,
  options: { upstreams: Upstreams; checkBytes: number; report: Report },
): Promise<Entry | undefined> {
  const { upstreams, report } = options
  const missing = contender.missing()
  if (missing !== undefined) {
    report.missing[contender.name] = missing
    say(`  ${contender.name}: missing, ${missing}`)
    return undefined
  }
  let racer: Racer | undefined
  try {
    report.versions[contender.name] = contender.version()
    racer = await contender.start(lab, upstreams)
    const { http, bytes, https } = racer
    if (http && !(await answers(http, SMALL_PATH))) throw new Error('no answer over HTTP')
    if (bytes) await checkBytes(bytes, options.checkBytes)
    if (https) {
      await checkDownload(https, { path: FILE_PATH, sha256: upstreams.file.sha256 })
      report.versions[contender.name] += `; visitors get ${await describeTls(https)}`
    }
    say(`  ${contender.name}: bytes agree`)
    return { contender, racer }
  } catch (error) {
    lab.goOn()
    report.failures.push(`${contender.name} does not race: ${reason(error)}`)
    say(`  ${contender.name}: does not race, ${reason(error)}`)
    await racer?.stop()
    return undefined
  }
}

/** All rounds of one race, interleaved. A contender that fails one round is out of this race. */
async function runRace(
  race: Race,
  entries: Entry[],
  options: { setting: Omit<Setting, 'racer'>; rounds: number; columns: Columns; report: Report },
): Promise<void> {
  const { setting, rounds, columns, report } = options
  const out = new Set<string>()
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < entries.length; i++) {
      const { contender, racer } = entries[(i + round) % entries.length]!
      if (out.has(contender.name)) continue
      try {
        const figures = await race.run({ ...setting, racer })
        for (const [key, value] of Object.entries(figures ?? {})) {
          if (!Number.isFinite(value)) throw new Error(`${key} is ${value}`)
          columns.add(race.columns[key]!, contender.name, value)
        }
        if (figures) await Bun.sleep(PAUSE_MS)
      } catch (error) {
        setting.lab.goOn()
        out.add(contender.name)
        for (const column of Object.values(race.columns)) columns.drop(column.race, contender.name)
        report.failures.push(
          `${contender.name}, ${race.name}, round ${round + 1}: ${reason(error)}`,
        )
        say(`  ${contender.name} fails ${race.name}: ${reason(error)}`)
      }
    }
    say(`  ${race.name}: round ${round + 1} of ${rounds}`)
  }
}

function addMemory(columns: Columns, entries: Entry[]): void {
  for (const { contender, racer } of entries) {
    for (
      const [race, pids] of [['memory relay', racer.relays()], [
        'memory agent',
        racer.agents(),
      ]] as const
    ) {
      if (pids.length > 0) {
        columns.add(less(race, 'MiB', 0), contender.name, residentBytes(pids) / 2 ** 20)
      }
    }
  }
}

export async function tunnel(options: BenchOptions): Promise<void> {
  const { quick, rounds } = options
  const ms = options.ms ?? (quick ? RUN_MS_QUICK : RUN_MS)
  const lab = new Lab()
  const report = emptyReport('tunnel', options)
  const all = [...rivals, ...ours]
  report.notes.push(
    `Each run of a timed race took ${ms} ms.`,
    'stream, new connections, new TLS, first byte: own load on Bun sockets, bytes checked on arrival; ' +
      'requests: wrk, keep-alive, 64-byte body; download: curl, hash checked before the race, length in each round.',
    'The pair "nginx ssl_preread" answers by itself; "nginx ssl_preread + ssl hop" asks an upstream, as an agent does.',
    'nginx ssl_preread counts both of its processes; its "agent" is the nginx that ends TLS. TCP contenders ' +
      "carry the visitor's TLS to that same nginx.",
    'bore, sotto raw and sotto websocket run an agent process for each of three ports: their agent memory is of three.',
  )
  try {
    say('upstreams')
    const upstreams = await startUpstreams(lab, quick ? FILE_BYTES_QUICK : FILE_BYTES)
    say('contenders')
    const entries: Entry[] = []
    const check = quick ? CHECK_BYTES_QUICK : CHECK_BYTES
    for (const contender of all.filter(({ name }) => chosen(name, options.only))) {
      const entry = await enter(lab, contender, { upstreams, checkBytes: check, report })
      if (entry) entries.push(entry)
    }
    const columns = new Columns()
    const setting = { lab, upstreams, ms }
    for (const race of RACES.filter(({ name }) => chosen(name, options.races))) {
      await runRace(race, entries, { setting, rounds, columns, report })
    }
    addMemory(columns, entries)
    for (const { racer } of entries) await racer.stop()
    if (idleWanted(options)) await idleFigures(lab, columns, { options, report })
    report.columns = columns.all
    report.goals = checkGoals(report.columns, GOALS)
    const text = markdown(report, TABLES, [...all.map(({ name }) => name), ...IDLE_ORDER])
    console.log(text)
    say(`written to ${save(report, text)}`)
  } finally {
    await lab.close()
  }
}
