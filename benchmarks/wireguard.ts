/**
 * How fast are private networks without root? Ours beside a forwarder on wireguard-go's own userspace stack (the
 * engine of wireproxy), onetun, wireproxy where it is, wireguard-go with a TUN, and the wire itself. Two
 * namespaces with a veth between them; weather (`weather.ts`) stands on the wire when a race asks for it. Bytes
 * are checked before and during the races. Needs root.
 */
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { aeadSpeed, portableSpeed } from './aead.ts'
import type { BenchOptions } from './bench.ts'
import { cpuSeconds, Lab, residentBytes, which } from './lab.ts'
import { type Address, checkBytes, type Figures, generate, requests, streams } from './load.ts'
import { startByteServer } from './load.ts'
import {
  checkGoals,
  Columns,
  emptyReport,
  type Goal,
  markdown,
  type Report,
  save,
} from './report.ts'
import { FAR_ADDRESS, inFar, isWithin, runWithin } from './spaces.ts'
import { nginxBase, SMALL_PATH } from './upstreams.ts'
import { type Weather, WeatherMaker } from './weather.ts'
import {
  buildNetstack,
  FAR_PORTS,
  type FarUpstreams,
  type NetworkContender,
  networkContenders,
  type NetworkRacer,
  OURS,
} from './wireguard_contenders.ts'

const RUN_MS = 1_500
const RUN_MS_QUICK = 1_000
/** Slow start and recovery take their time at 100 ms. */
const WEATHER_MS = 4_000
const WEATHER_MS_QUICK = 2_000
const AEAD_MS = 1_500
const CHECK_BYTES = 64 * 2 ** 20
/** Contenders that would take minutes for those are checked with these. */
const CHECK_BYTES_QUICK = 2 ** 20
const PAUSE_MS = 150
/** A contender that has failed so many races is out of the rest: each may take half a minute to fail. */
const FAILED_RACES_MAX = 3
const WEATHER_ANSWER_MS_MAX = 10_000
const PULSE_MS = 1_000
const IDLE_FLOWS = 1_000
const HOLD_MS_MAX = 20_000
/** Datagrams offered a second: more than any of these carries on two cores. */
const OFFERED = 100_000
const HTTP_PORT = 8_080
const HELD = fileURLToPath(new URL('held_flows.ts', import.meta.url))
const DATAGRAMS = fileURLToPath(new URL('datagrams.ts', import.meta.url))
const NETSTACK = 'netstack forwarder'

interface Setting {
  lab: Lab
  upstreams: FarUpstreams & { sink: number }
  racer: NetworkRacer
  ms: number
}

type Heading = { race: string; unit: string; digits: number; better: 'more' | 'less' }

interface Race {
  name: string
  weather?: Weather
  columns: Record<string, Heading>
  /** Undefined: this contender does not do that. */
  run(setting: Setting): Promise<Figures> | undefined
}

const more = (race: string, unit: string, digits: number): Heading => ({
  race,
  unit,
  digits,
  better: 'more',
})
const less = (race: string, unit: string, digits: number): Heading => ({
  race,
  unit,
  digits,
  better: 'less',
})

/** Figures of a run and the processor time of both ends for 10⁹ bytes. */
async function priced(
  { near, far }: NetworkRacer,
  run: () => Promise<Figures>,
): Promise<Figures> {
  const before = [cpuSeconds(near), cpuSeconds(far)] as const
  const began = performance.now()
  const figures = await run()
  if (near.length === 0) return figures
  const gigabytes = figures['gbits']! / 8 * (performance.now() - began) / 1000
  return {
    ...figures,
    near: (cpuSeconds(near) - before[0]) / gigabytes,
    far: (cpuSeconds(far) - before[1]) / gigabytes,
  }
}

function push(
  kind: 'push' | 'pull',
  count: number,
  { upstreams, racer, ms }: Setting,
): Promise<Figures> {
  const options = { direct: upstreams.bytes, directHost: FAR_ADDRESS, streams: count, ms }
  return streams(kind, racer.bytes, options)
}

function streamRace(name: string, kind: 'push' | 'pull', count: number): Race {
  return {
    name,
    columns: {
      gbits: more(name, 'Gbit/s', 2),
      near: less(`${name}: CPU near`, 's/GB', 2),
      far: less(`${name}: CPU far`, 's/GB', 2),
    },
    run: (setting) => priced(setting.racer, () => push(kind, count, setting)),
  }
}

function weatherRace(name: string, kind: 'push' | 'pull', weather: Weather): Race {
  return {
    name,
    weather,
    columns: { mbits: more(name, 'Mbit/s', 1) },
    run: (setting) => push(kind, 1, setting).then(({ gbits }) => ({ mbits: gbits! * 1000 })),
  }
}

function requestRace(width: number): Race {
  const name = `http c=${width}`
  return {
    name,
    columns: {
      perSecond: more(name, 'requests/s', 0),
      p50: less(`${name} p50`, 'ms', 3),
      p99: less(`${name} p99`, 'ms', 3),
    },
    run: ({ lab, racer, ms }) => requests(lab, racer.http, { width, ms, path: SMALL_PATH }),
  }
}

/** One flow up beside many that are open and do nothing; and what all these take of memory. */
const idleRace: Race = {
  name: 'up beside 1,000 idle',
  columns: {
    gbits: more('up beside 1,000 idle', 'Gbit/s', 2),
    kept: more('kept of up alone', '', 2),
    memory: less('memory near with 1,000 flows', 'MiB', 0),
  },
  run: async (setting) => {
    const { lab, racer } = setting
    const { host = '127.0.0.1', port } = racer.bytes
    const alone = await push('push', 1, setting)
    const held = lab.spawn('held flows', [process.execPath, HELD, host, `${port}`, `${IDLE_FLOWS}`])
    try {
      await lab.until(held, `hold ${IDLE_FLOWS} flows`, () => held.log().includes('"held"'), {
        msMax: HOLD_MS_MAX,
      })
      const memory = residentBytes(racer.near) / 2 ** 20
      const { gbits } = await push('push', 1, setting)
      const kept = gbits! / alone['gbits']!
      return { gbits: gbits!, kept, ...(racer.near.length > 0 ? { memory } : {}) }
    } finally {
      await held.stop()
    }
  },
}

async function ask(port: number): Promise<{ count: number; seconds: number }> {
  return JSON.parse(
    await generate(['bash', '-c', `exec 3<>/dev/tcp/${FAR_ADDRESS}/${port}; cat <&3`], 1_000),
  )
}

const datagramRace: Race = {
  name: 'datagrams',
  columns: {
    perSecond: more('datagrams arrived', '/s', 0),
    lost: less('datagrams lost', '%', 1),
  },
  run: ({ upstreams, racer, ms }) => {
    const to = racer.datagrams
    if (!to) return undefined
    return (async () => {
      const flood = async (ms: number, rate: number): Promise<number> => {
        const args = [to.host ?? '127.0.0.1', to.port, '--ms', ms, '--rate', rate].map(String)
        const said = await generate([process.execPath, DATAGRAMS, 'flood', ...args], ms)
        await Bun.sleep(PAUSE_MS)
        return JSON.parse(said).sent
      }
      // The flow is opened first.
      await flood(100, 1_000)
      await ask(upstreams.sink)
      const sent = await flood(ms, OFFERED)
      const { count, seconds } = await ask(upstreams.sink)
      if (count === 0) throw new Error(`none of ${sent} datagrams arrived`)
      return { perSecond: count / seconds, lost: (1 - count / sent) * 100 }
    })()
  },
}

const FIFTY: Weather = { delayMs: 25, jitterMs: 0, loss: 0.001 }
const RACES: Race[] = [
  streamRace('up', 'push', 1),
  streamRace('down', 'pull', 1),
  streamRace('8 up', 'push', 8),
  streamRace('8 down', 'pull', 8),
  requestRace(1),
  requestRace(64),
  datagramRace,
  idleRace,
  weatherRace('50 ms, 0.1 %: up', 'push', FIFTY),
  weatherRace('50 ms, 0.1 %: down', 'pull', FIFTY),
  weatherRace('100 ms, 1 %: up', 'push', { delayMs: 50, jitterMs: 0, loss: 0.01 }),
  weatherRace('25 ms jitter: up', 'push', { delayMs: 12.5, jitterMs: 25, loss: 0 }),
]

const TABLES = [
  {
    title: 'Bytes',
    races: ['up', 'down', '8 up', '8 down', 'up beside 1,000 idle', 'kept of up alone'],
  },
  { title: 'Weather', races: RACES.filter(({ weather }) => weather).map(({ name }) => name) },
  {
    title: 'Requests and datagrams',
    races: [1, 64].flatMap((width) => ['', ' p50', ' p99'].map((what) => `http c=${width}${what}`))
      .concat(['datagrams arrived', 'datagrams lost']),
  },
  {
    title: 'Cost',
    races: [
      ...['up: CPU near', 'down: CPU near', 'up: CPU far', 'down: CPU far'],
      'memory near with 1,000 flows',
    ],
  },
].map((table) => ({ ...table, base: NETSTACK }))

const AEAD_TABLE = { title: 'Packets of 1,420 bytes', races: ['seal', 'open'] }

function goal(ours: string, race: string, theirs: string | number, factor: number): Goal {
  const against = typeof theirs === 'number' ? 'absolute' : `÷ ${theirs}`
  return { says: `${ours}, ${race}, ${against}`, race, ours, theirs, factor }
}

const MODULE = 'module on Bun'
const PORTABLE = 'its portable code alone (RustCrypto)'
const GOALS: Goal[] = [
  goal(OURS, 'up', NETSTACK, 2.5),
  goal(OURS, 'down', NETSTACK, 1.2),
  goal(OURS, 'up: CPU near', NETSTACK, 0.5),
  goal(OURS, 'down: CPU near', NETSTACK, 0.5),
  goal(OURS, '50 ms, 0.1 %: up', NETSTACK, 1.5),
  goal(OURS, '50 ms, 0.1 %: down', NETSTACK, 1.5),
  goal(OURS, 'kept of up alone', 1, 0.8),
  goal(OURS, 'http c=1', NETSTACK, 1),
  goal(OURS, 'http c=64', NETSTACK, 1),
  goal(OURS, 'http c=1 p99', NETSTACK, 1),
  goal(OURS, 'http c=64 p99', NETSTACK, 1),
  goal(MODULE, 'seal', 0.9, 1),
  goal(MODULE, 'open', 0.9, 1),
]

function chosen(name: string, wanted: string[] | undefined): boolean {
  return wanted === undefined || wanted.some((start) => name.startsWith(start))
}

const began = performance.now()

function say(text: string): void {
  console.error(`${((performance.now() - began) / 1000).toFixed(0).padStart(4)} s  ${text}`)
}

const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error))

/** All at the far end, on every address of it. */
async function startFar(lab: Lab): Promise<Setting['upstreams']> {
  const nginx = which('nginx')
  if (!nginx) throw new Error('Cannot start the upstream: no nginx here (npm run bench:setup)')
  const file = lab.path('far.conf')
  writeFileSync(
    file,
    `${nginxBase(lab, 'far')}
http {
  access_log off; tcp_nodelay on; keepalive_requests 1000000000;
  server {
    listen 0.0.0.0:${HTTP_PORT} backlog=4096;
    location = ${SMALL_PATH} { return 200 "An answer of sixty-four bytes, as in the races of public tunnels.\\n"; }
  }
}
`,
  )
  lab.spawn('far http', [...inFar(), nginx, '-e', lab.path('far.error'), '-c', file])
  const { port: bytes } = await startByteServer(lab, { within: inFar(), host: '0.0.0.0' })
  const sink = lab.spawn('far sink', [...inFar(), process.execPath, DATAGRAMS, 'sink'])
  await lab.until(sink, 'say its ports', () => sink.log().includes('\n'))
  const { udp, tcp } = JSON.parse(sink.log())
  return { http: HTTP_PORT, bytes, datagrams: udp, sink: tcp }
}

async function answers({ host = '127.0.0.1', port }: Address): Promise<boolean> {
  const url = `http://${host}:${port}${SMALL_PATH}`
  const found = await fetch(url, { signal: AbortSignal.timeout(2_000) }).catch(() => undefined)
  return found?.status === 200
}

/** Throws when an answer comes sooner than the weather allows: then it does not go through it. */
async function feelsWeather({ http }: NetworkRacer, { delayMs }: Weather): Promise<void> {
  const asked = performance.now()
  const { host = '127.0.0.1', port } = http
  const signal = AbortSignal.timeout(WEATHER_ANSWER_MS_MAX)
  await fetch(`http://${host}:${port}${SMALL_PATH}`, { signal })
  const ms = performance.now() - asked
  if (ms < 2 * delayMs) {
    throw new Error(`it goes past the weather: an answer in ${ms.toFixed(1)} ms`)
  }
}

/**
 * Keeps tunnels in use while others race: whoever has a second way looks for the faster one after a silence, and
 * weather is on one of them alone.
 */
function pulse(racers: NetworkRacer[]): () => void {
  const timer = setInterval(() => {
    for (const { http } of racers) void answers(http)
  }, PULSE_MS)
  return () => clearInterval(timer)
}

interface Entry {
  contender: NetworkContender
  racer: NetworkRacer
  failedRaces: number
}

async function enter(
  lab: Lab,
  contender: NetworkContender,
  options: { upstreams: FarUpstreams; number: number; bytes: number; report: Report },
): Promise<Entry | undefined> {
  const { upstreams, number, bytes, report } = options
  const missing = contender.missing()
  if (missing !== undefined) {
    report.missing[contender.name] = missing
    say(`${contender.name}: missing, ${missing}`)
    return undefined
  }
  try {
    report.versions[contender.name] = contender.version()
    const racer = await contender.start(lab, upstreams, number)
    for (let tries = 0; !(await answers(racer.http)); tries++) {
      if (tries === 5) throw new Error('no answer over HTTP')
      await Bun.sleep(200)
    }
    // Some take minutes for what others do in a second.
    await checkBytes(racer.bytes, CHECK_BYTES_QUICK)
    if (contender.name !== 'onetun') await checkBytes(racer.bytes, bytes)
    say(`${contender.name}: bytes agree`)
    return { contender, racer, failedRaces: 0 }
  } catch (error) {
    lab.goOn()
    report.failures.push(`${contender.name} does not race: ${reason(error)}`)
    say(`${contender.name}: does not race, ${reason(error)}`)
    return undefined
  }
}

interface Course {
  setting: Omit<Setting, 'racer'>
  weatherMs: number
  rounds: number
  columns: Columns
  report: Report
  weather: WeatherMaker | undefined
}

/** All rounds of one race, interleaved. A contender that fails one round is out of this race. */
async function runRace(race: Race, entries: Entry[], course: Course): Promise<void> {
  const { setting, weatherMs, rounds, columns, report, weather } = course
  const racing = entries.filter(({ contender, failedRaces }) =>
    failedRaces < FAILED_RACES_MAX && (!race.weather || contender.isDatagrams)
  )
  const out = new Set<string>()
  if (race.weather && !weather) return
  await weather?.set(race.weather)
  const rest = race.weather ? pulse(racing.map(({ racer }) => racer)) : () => {}
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < racing.length; i++) {
      const entry = racing[(i + round) % racing.length]!
      const { contender, racer } = entry
      if (out.has(contender.name)) continue
      try {
        const ms = race.weather ? weatherMs : setting.ms
        if (race.weather) await feelsWeather(racer, race.weather)
        const figures = await race.run({ ...setting, ms, racer })
        if (race.weather) await feelsWeather(racer, race.weather)
        for (const [key, value] of Object.entries(figures ?? {})) {
          if (!Number.isFinite(value)) throw new Error(`${key} is ${value}`)
          columns.add(race.columns[key]!, contender.name, value)
        }
        if (figures) await Bun.sleep(PAUSE_MS)
      } catch (error) {
        setting.lab.goOn()
        out.add(contender.name)
        if (++entry.failedRaces === FAILED_RACES_MAX) {
          report.failures.push(
            `${contender.name} failed ${FAILED_RACES_MAX} races and runs no other`,
          )
        }
        for (const column of Object.values(race.columns)) columns.drop(column.race, contender.name)
        report.failures.push(
          `${contender.name}, ${race.name}, round ${round + 1}: ${reason(error)}`,
        )
        say(`${contender.name} fails ${race.name}: ${reason(error)}`)
      }
    }
    say(`${race.name}: round ${round + 1} of ${rounds}`)
  }
  rest()
  await weather?.set(undefined)
}

function notes(report: Report, { ms, weatherMs }: { ms: number; weatherMs: number }): void {
  report.notes.push(
    `Each run took ${ms} ms, in weather ${weatherMs} ms. Up is from the near end to the far one.`,
    'Rivals lead to wireguard-go 0.0.20220316 with a TUN at the far end; sotto to `sotto wg serve`, which dials on ' +
      'by an ordinary socket. CPU near is the client alone; CPU far the other end, and the relay where one carries.',
    'Weather is an impairing relay for UDP on the wire: delay and loss are of each way halved and alike (50 ms: 25 each way); ' +
      'in "25 ms jitter" each datagram waits 12.5 ms and, by chance, up to 25 ms more, each way, so that most are ' +
      'overtaken. The plain path and the relayed one are TCP, and have none.',
    `Datagrams: ${OFFERED} of 1,200 bytes offered a second, one way.`,
    'seal and open: whole batches of 64 through the module, with the work of the protocol; sealed and opened on one thread.',
    'bytes: own load on Bun sockets, checked on arrival; requests: wrk, keep-alive.',
  )
}

async function race(options: BenchOptions): Promise<void> {
  const { quick, rounds } = options
  const ms = options.ms ?? (quick ? RUN_MS_QUICK : RUN_MS)
  const weatherMs = quick ? WEATHER_MS_QUICK : Math.max(WEATHER_MS, ms)
  const lab = new Lab()
  const report = emptyReport('wireguard', options)
  notes(report, { ms, weatherMs })
  try {
    const columns = new Columns()
    if (chosen('aead', options.races)) {
      for (let round = 0; round < rounds; round++) {
        const { seal, open } = aeadSpeed(AEAD_MS)
        columns.add(more('seal', 'GB/s', 2), MODULE, seal)
        columns.add(more('open', 'GB/s', 2), MODULE, open)
        const portable = portableSpeed(AEAD_MS)
        columns.add(more('seal', 'GB/s', 2), PORTABLE, portable.seal)
        columns.add(more('open', 'GB/s', 2), PORTABLE, portable.open)
      }
      say('packets sealed and opened')
    }
    const upstreams = await startFar(lab)
    const entries: Entry[] = []
    const bytes = quick ? CHECK_BYTES_QUICK : CHECK_BYTES
    for (const [number, contender] of networkContenders.entries()) {
      if (!chosen(contender.name, options.only)) continue
      const entry = await enter(lab, contender, { upstreams, number, bytes, report })
      if (entry) entries.push(entry)
    }
    const weather = which('nft') ? await WeatherMaker.start(lab, FAR_PORTS) : undefined
    if (!weather) report.missing['weather'] = 'no nft here'
    const setting = { lab, upstreams, ms }
    for (const one of RACES.filter(({ name }) => chosen(name, options.races))) {
      await runRace(one, entries, { setting, weatherMs, rounds, columns, report, weather })
    }
    report.columns = columns.all
    report.goals = checkGoals(report.columns, GOALS)
    const order = [...networkContenders.map(({ name }) => name), MODULE, PORTABLE]
    const text = markdown(report, [...TABLES, AEAD_TABLE], order)
    console.log(text)
    say(`written to ${save(report, text)}`)
  } finally {
    await lab.close()
  }
}

/** Runs itself again within its namespaces, and races there. */
export async function wireguard(options: BenchOptions): Promise<void> {
  if (isWithin()) return await race(options)
  if (process.getuid?.() !== 0) throw new Error('Cannot make network namespaces: needs root')
  const remove = buildNetstack()
  try {
    process.exitCode = await runWithin(process.argv.slice(1))
  } finally {
    remove()
  }
}
