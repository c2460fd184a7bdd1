/**
 * Ours among the contenders, started as a person would start it, from the source:
 *
 *     bun agent/main.ts relay --domain localhost --host 127.0.0.1 --port P --data DIR --open true
 *         --public-ports FIRST-LAST [--bulk 0] --quota … --log-level error
 *     bun agent/main.ts http UPSTREAM --name web [--e2ee=false] --relay https://localhost:P --json
 *     bun agent/main.ts tcp UPSTREAM --name bytes --e2ee=false --public-port N --relay … --json
 *
 * What this file relies on: the relay prints one JSON line with `fingerprint` when it listens; an agent prints
 * its public address in a JSON line, an `https://` URL for `http`; `SOTTO_HOME` holds identity and
 * profile; nothing else is asked. The relay's flags are the table in `relay/settings.ts`.
 *
 * sotto raw: raw public ports, beside rathole and bore. sotto verified: TLS ends in the agent. sotto
 * inspectable: TLS ends at the relay. sotto websocket: raw ports with no bulk links, so every visitor
 * is a stream on the agent's WebSocket. sotto hop: the relay's hop alone (`hop.ts`), beside nginx stream.
 */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Contender, Racer } from './contenders.ts'
import { idleClients, type IdleRelay } from './idle.ts'
import type { Lab, Spawned } from './lab.ts'
import type { Address } from './load.ts'
import { describeCommit } from './report.ts'
import type { Upstreams } from './upstreams.ts'

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const MAIN = `${ROOT}agent/main.ts`
const HOP = `${ROOT}benchmarks/hop.ts`
/** The races come from one address and mean no harm. */
const QUOTAS = ['scope', 'address'].flatMap((who) =>
  ['visitors', 'visitorsBurst', 'requests', 'requestsBurst', 'links', 'streams', 'connections']
    .map((kind) => `${who}.${kind}=1000000`)
).join(',')

const missing = () => (existsSync(MAIN) ? undefined : 'agent/main.ts is not there')
const version = () => `${describeCommit()}, Bun ${Bun.version}`

interface RunningRelay {
  relay: Spawned
  port: number
  fingerprint: string
  /** Admits agents of one scope, who see each other. */
  apiKey: string
}

export async function startRelay(
  lab: Lab,
  options: { name: string; publicPorts?: [number, number]; bulk?: boolean },
): Promise<RunningRelay> {
  const { name, publicPorts, bulk = true } = options
  const port = await lab.freePort()
  const relay = lab.spawn(`${name} relay`, [
    ...[process.execPath, MAIN, 'relay', '--json', '--domain', 'localhost', '--host', '127.0.0.1'],
    ...['--port', `${port}`, '--data', lab.path(`${name} relay`), '--open', 'true'],
    ...['--quota', QUOTAS, '--log-level', 'error'],
    ...(publicPorts ? ['--public-ports', publicPorts.join('-')] : []),
    ...(bulk ? [] : ['--bulk', '0']),
  ], { env: { SOTTO_HOME: lab.path(`${name} relay home`) } })
  const said = () => /"fingerprint":"([^"]+)"/.exec(relay.log())?.[1]
  await lab.until(relay, 'say its fingerprint', () => said() !== undefined)
  const apiKey = /"apiKey":"([^"]+)"/.exec(relay.log())?.[1] ?? ''
  return { relay, port, fingerprint: said()!, apiKey }
}

function agentCommand({ port, fingerprint }: RunningRelay, args: string[]): string[] {
  return [
    ...[process.execPath, MAIN, ...args],
    ...['--relay', `https://localhost:${port}`, '--relay-fingerprint', fingerprint, '--json'],
  ]
}

/** Agents that the command line starts, one for each upstream; the first is the one that is restarted. */
class Agents {
  readonly #lab: Lab
  readonly #name: string
  readonly #commands: string[][]
  running: Spawned[] = []

  constructor(lab: Lab, name: string, commands: string[][]) {
    this.#lab = lab
    this.#name = name
    this.#commands = commands
    this.running = commands.map((_, i) => this.#start(i))
  }

  #start(i: number): Spawned {
    return this.#lab.spawn(`${this.#name} agent ${i}`, this.#commands[i]!, {
      env: { SOTTO_HOME: this.#lab.path(`${this.#name} agent home`) },
    })
  }

  racer(relay: Spawned): Omit<Racer, 'http' | 'bytes' | 'https'> {
    return {
      relays: () => [relay.pid],
      agents: () => this.running.map(({ pid }) => pid),
      startAgent: () => void (this.running[0] = this.#start(0)),
      stopAgent: () => this.running[0]!.stop(),
      stop: async () => {
        await Promise.all(this.running.map((agent) => agent.stop()))
        await relay.stop()
      },
    }
  }
}

/** Raw public ports: HTTP, the byte server, and nginx ending TLS behind them. */
function rawContender(name: string, options: { bulk: boolean }): Contender {
  return {
    name,
    kind: 'ours',
    missing,
    version,
    async start(lab, upstreams) {
      const first = await lab.freePorts(3)
      const relay = await startRelay(lab, {
        name,
        publicPorts: [first, first + 2],
        bulk: options.bulk,
      })
      const targets = [upstreams.http, upstreams.bytes, upstreams.https]
      const agents = new Agents(
        lab,
        name,
        targets.map((target, i) =>
          agentCommand(relay, [
            ...['tcp', `${target}`, '--name', `raw-${i}`, '--e2ee=false'],
            ...['--public-port', `${first + i}`],
          ])
        ),
      )
      for (const [i, agent] of agents.running.entries()) await lab.listens(first + i, agent)
      return {
        http: { port: first },
        bytes: { port: first + 1 },
        https: { port: first + 2, name: 'localhost' },
        ...agents.racer(relay.relay),
      }
    },
  }
}

/** `sotto http`: TLS to the visitor, plain HTTP to the upstream. */
function httpContender(name: string, flags: string[]): Contender {
  return {
    name,
    kind: 'ours',
    missing,
    version,
    async start(lab, upstreams) {
      const relay = await startRelay(lab, { name })
      const agents = new Agents(lab, name, [
        agentCommand(relay, ['http', `${upstreams.http}`, '--name', 'web', ...flags]),
      ])
      const agent = agents.running[0]!
      const said = () => /https:\/\/([a-z0-9.-]+):\d+/.exec(withoutRelay(agent.log(), relay.port))
      await lab.until(agent, 'say its URL', () => said() !== null)
      const https: Address = { port: relay.port, name: said()![1]! }
      return { https, ...agents.racer(relay.relay) }
    },
  }
}

/** The relay's own URL may be named as well; it is not the endpoint's. */
function withoutRelay(log: string, port: number): string {
  return log.replaceAll(`https://localhost:${port}`, '')
}

const hop: Contender = {
  name: 'sotto hop',
  kind: 'ours',
  missing: () => undefined,
  version,
  async start(lab: Lab, upstreams: Upstreams) {
    const first = await lab.freePorts(3)
    const relay = lab.spawn('sotto hop', [
      ...[process.execPath, HOP, `${first}:${upstreams.http}`, `${first + 1}:${upstreams.bytes}`],
      `${first + 2}:${upstreams.https}:tls`,
    ])
    for (const port of [first, first + 1, first + 2]) await lab.listens(port, relay)
    return {
      http: { port: first },
      bytes: { port: first + 1 },
      https: { port: first + 2, name: 'web.secure.localhost' },
      relays: () => [relay.pid],
      agents: () => [],
      stop: () => relay.stop(),
    }
  },
}

export const ours: Contender[] = [
  hop,
  rawContender('sotto raw', { bulk: true }),
  rawContender('sotto websocket', { bulk: false }),
  httpContender('sotto verified', []),
  httpContender('sotto inspectable', ['--e2ee=false']),
]

/** Home links that do nothing, over TLS as always. */
export const idleSotto: IdleRelay = {
  name: 'sotto',
  // The connection, and both ends of its splice to the HTTPS server behind the one port.
  descriptors: 3,
  missing,
  async start(lab) {
    const { relay, port } = await startRelay(lab, { name: `sotto idle ${Date.now()}` })
    return { relay, client: idleClients('sotto', port, true) }
  },
}
