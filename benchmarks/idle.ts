/**
 * What does an idle agent cost its relay? One process opens N idle clients (`idle_client.ts`); what the
 * relay's resident memory grew by, divided by N. The relay is started anew for each count, meets a few
 * clients first (code, buffers and pools that it makes once), and gets time to settle. A count that the
 * limit of open files does not admit is not tried, and the report says so.
 */
import { fileURLToPath } from 'node:url'
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import type { BenchOptions } from './bench.ts'
import { Lab, residentBytes, type Spawned, which } from './lab.ts'
import {
  checkGoals,
  Columns,
  emptyReport,
  type Goal,
  markdown,
  type Report,
  save,
} from './report.ts'
import { idleSotto } from './sotto.ts'
import { makeCertificate } from './upstreams.ts'

const CLIENT = fileURLToPath(new URL('idle_client.ts', import.meta.url))
const COUNTS = [1000, 5000, 10_000]
const COUNTS_QUICK = [1000]
/** Clients met, and gone again, before the count starts. */
const WARM_UP_CLIENTS = 50
const SETTLE_MS = 3000
/** Descriptors that a relay or a holder of clients has open besides. */
const DESCRIPTORS_BESIDES = 300
/** Memory hardly differs between rounds. */
const ROUNDS_MAX = 3

export const IDLE_RACES = COUNTS.map((count) => `idle ${count}`)

export const IDLE_ORDER = ['sotto', 'derper', 'derper tls', 'iroh-relay', 'iroh-relay tls']
export const IDLE_GOALS: Goal[] = IDLE_RACES.flatMap((race) => [
  ...['derper', 'iroh-relay'].map((theirs) => ({
    says: `memory of an idle agent (TLS), ${race}, ÷ ${theirs} (no TLS)`,
    race,
    ours: 'sotto',
    theirs,
    factor: 1,
  })),
  {
    says: `memory of an idle agent (TLS), ${race}, ÷ 12 KiB`,
    race,
    ours: 'sotto',
    theirs: 12,
    factor: 1,
  },
])

/** A relay that idle clients can be opened to. */
export interface IdleRelay {
  name: string
  /** That it keeps open for each client. */
  descriptors: number
  missing(): string | undefined
  start(lab: Lab): Promise<{ relay: Spawned; client: (count: number) => string[] }>
}

/** The command of a process that holds `count` clients. */
export function idleClients(kind: string, port: number, tls: boolean): (count: number) => string[] {
  const last = tls ? ['tls'] : []
  return (count) => [process.execPath, CLIENT, kind, `${port}`, `${count}`, ...last]
}

function derper(tls: boolean): IdleRelay {
  return {
    name: tls ? 'derper tls' : 'derper',
    descriptors: 1,
    missing: () => (which('derper') ? undefined : 'no derper here'),
    async start(lab) {
      const port = await lab.freePort()
      const folder = lab.path('derper')
      mkdirSync(folder, { recursive: true })
      if (tls) {
        const { cert, key } = makeCertificate(lab)
        copyFileSync(cert, `${folder}/localhost.crt`)
        copyFileSync(key, `${folder}/localhost.key`)
      }
      const relay = lab.spawn('derper', [
        ...[which('derper')!, '-a', `127.0.0.1:${port}`, '-http-port', '-1', '-stun=false'],
        ...['-c', `${folder}/derper.json`, '-hostname', 'localhost'],
        // Without a certificate of its own it speaks plain HTTP on any port but 443.
        ...(tls ? ['-certmode', 'manual', '-certdir', folder] : []),
      ])
      await lab.listens(port, relay)
      return { relay, client: idleClients('derper', port, tls) }
    },
  }
}

function irohRelay(tls: boolean): IdleRelay {
  return {
    name: tls ? 'iroh-relay tls' : 'iroh-relay',
    descriptors: 1,
    missing: () => (which('iroh-relay') ? undefined : 'no iroh-relay here'),
    async start(lab) {
      const [port, plain] = [await lab.freePort(), await lab.freePort()]
      const file = lab.path('iroh-relay.toml')
      const head = `http_bind_addr = "127.0.0.1:${tls ? plain : port}"\nenable_metrics = false\n`
      const { cert, key } = makeCertificate(lab)
      const secure = `[tls]\nhttps_bind_addr = "127.0.0.1:${port}"\ncert_mode = "Manual"\n` +
        `manual_cert_path = "${cert}"\nmanual_key_path = "${key}"\nhostname = "localhost"\n`
      writeFileSync(file, tls ? head + secure : head)
      const relay = lab.spawn('iroh-relay', [which('iroh-relay')!, '--config-path', file], {
        env: { RUST_LOG: 'error' },
      })
      await lab.listens(port, relay)
      return { relay, client: idleClients('iroh-relay', port, tls) }
    },
  }
}

/** Why so many clients cannot be, or undefined: what a process may open is inherited by all that we start. */
function tooMany({ descriptors }: IdleRelay, count: number): string | undefined {
  const limits = readFileSync('/proc/self/limits', 'utf8')
  const limit = Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Infinity)
  const needed = count * descriptors + DESCRIPTORS_BESIDES
  if (needed <= limit) return undefined
  return `not measured: ${descriptors} descriptors a client at the relay make ${needed}, ` +
    `and the limit here is ${limit} (ulimit -n)`
}

async function settledBytes(relay: Spawned): Promise<number> {
  await Bun.sleep(SETTLE_MS)
  return residentBytes([relay.pid])
}

/** KiB of resident memory for each of `count` idle clients. */
async function measure(lab: Lab, kind: IdleRelay, count: number): Promise<number> {
  const { relay, client } = await kind.start(lab)
  try {
    const hold = async (clients: number) => {
      const holder = lab.spawn(`${kind.name} clients`, client(clients))
      await lab.until(holder, `open ${clients} clients`, () => holder.log().includes('"open"'), {
        msMax: 5000 + clients * 20,
      })
      return holder
    }
    await (await hold(WARM_UP_CLIENTS)).stop()
    const before = await settledBytes(relay)
    const holder = await hold(count)
    const after = await settledBytes(relay)
    await holder.stop()
    return (after - before) / 1024 / count
  } finally {
    await relay.stop()
  }
}

/** Whether any of the counts is asked for: `--races idle` means all, `--races "idle 5000"` one. */
export function idleWanted(options: BenchOptions): boolean {
  return COUNTS.some((count) => wanted(options, count))
}

function wanted({ races }: BenchOptions, count: number): boolean {
  return races === undefined || races.some((start) => `idle ${count}`.startsWith(start))
}

/** Adds a column for each count. */
export async function idleFigures(
  lab: Lab,
  columns: Columns,
  { options, report }: { options: BenchOptions; report: Report },
): Promise<void> {
  const kinds = [idleSotto, derper(false), derper(true), irohRelay(false), irohRelay(true)].filter((
    { name },
  ) => options.only === undefined || options.only.some((start) => name.startsWith(start)))
  const rounds = Math.min(ROUNDS_MAX, options.rounds)
  const counts = (options.quick ? COUNTS_QUICK : COUNTS).filter((count) => wanted(options, count))
  for (const count of counts) {
    const column = { race: `idle ${count}`, unit: 'KiB each', digits: 1, better: 'less' } as const
    for (let round = 0; round < rounds; round++) {
      for (const kind of kinds) {
        const missing = kind.missing()
        if (missing !== undefined) {
          report.missing[kind.name] = missing
          continue
        }
        const why = tooMany(kind, count)
        if (why !== undefined) {
          const note = `${kind.name}, ${count} idle clients: ${why}`
          if (!report.notes.includes(note)) report.notes.push(note)
          console.error(`  ${note}`)
          continue
        }
        try {
          columns.add(column, kind.name, await measure(lab, kind, count))
          console.error(`  ${kind.name}: ${count} idle clients measured`)
        } catch (error) {
          lab.goOn()
          const reason = error instanceof Error ? error.message : String(error)
          report.failures.push(`${kind.name}, ${count} idle clients: ${reason}`)
          console.error(`  ${kind.name} fails with ${count} idle clients: ${reason}`)
        }
      }
    }
  }
}

/** `npm run bench -- idle`: this question alone. */
export async function idle(options: BenchOptions): Promise<void> {
  const lab = new Lab()
  const report = emptyReport('idle', { ...options, rounds: Math.min(ROUNDS_MAX, options.rounds) })
  try {
    const columns = new Columns()
    await idleFigures(lab, columns, { options, report })
    report.columns = columns.all
    report.goals = checkGoals(report.columns, IDLE_GOALS)
    const tables = [{ title: 'Idle agents', races: IDLE_RACES }]
    const text = markdown(report, tables, IDLE_ORDER)
    console.log(text)
    console.error(`written to ${save(report, text)}`)
  } finally {
    await lab.close()
  }
}
