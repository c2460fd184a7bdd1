/**
 * What rows about tunnels stand on: Bob serves a network in which one host says back what it is told, at
 * whatever port, and people on the stage join it over the relay. What the host reads and what they read
 * is written down as everything else on the stage is.
 */
import { JoinedNetwork } from '../../agent/wireguard/joined_network.ts'
import { parseRoute } from '../../agent/wireguard/exit_policy.ts'
import { ServedNetwork } from '../../agent/wireguard/served_network.ts'
import type { ServedOptions } from '../../agent/wireguard/served_network.ts'
import { TUNNEL_SERVICE } from '../../agent/wireguard/tunnel_server.ts'
import type { World } from '../../agent/world.ts'
import { concat, EMPTY, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { memoryConns } from '../../core/socket.ts'
import type { Conn } from '../../core/socket.ts'
import { pattern } from '../support/agent_world.ts'
import type { Stage } from './stage.ts'

/** The one host behind Bob (RFC 5737). */
export const HOST = '192.0.2.10'
export const ROUTE = '192.0.2.0/24'
/** What somebody says to whom the relay's lies did nothing: all that was said has come. */
export const UNHARMED = 'tunnel/unharmed'
const CONNECT_MS = 3000
const PORT_MIN = 1000

export interface Office {
  served: ServedNetwork
  /** What the exit dialled, as "address port". */
  dialled: string[]
  /** Connections that the host has open. */
  open: Set<Conn>
}

const offices = new WeakMap<Stage, Office>()
const joinings = new WeakMap<Stage, Map<string, JoinedNetwork>>()

export function officeOf(stage: Stage): Office {
  return offices.get(stage)!
}

export function joinedOf(stage: Stage, who: string): JoinedNetwork {
  return joinings.get(stage)!.get(who)!
}

/** Bob serves; each of `members` has pinned him and may come in. */
export async function serve(
  stage: Stage,
  members: readonly string[] = ['alice'],
  options: Partial<ServedOptions> = {},
): Promise<void> {
  const bob = await stage.enter('bob')
  for (const name of members) {
    const member = await stage.enter(name)
    await stage.pin(member, 'bob', bob.key)
    await stage.pin(bob, name, member.key)
    await stage.allow(bob, { peer: member.key, services: [TUNNEL_SERVICE] })
  }
  joinings.set(stage, new Map())
  const dialled: string[] = []
  const open = new Set<Conn>()
  const served = await ServedNetwork.open(
    officeWorld(stage, { dialled, open }),
    {
      peers: bob.presence.peers,
      profile: bob.joining.profile,
      identity32: bob.joining.identity.public,
    },
    {
      name: 'bob',
      routes: [parseRoute(ROUTE)],
      dns: false,
      peers: [],
      udpPort: undefined,
      subnet: undefined,
      loopback: false,
      linkLocal: false,
      own: false,
      between: false,
      ...options,
    },
    {
      joined() {},
      left() {},
      refused: (_, { error }) => stage.hear('bob', 'exit', error),
      problem: (error) => stage.hear('bob', 'network', error),
    },
  )
  offices.set(stage, { served, dialled, open })
  stage.closers.push(() => served.close())
}

function officeWorld(
  stage: Stage,
  { dialled, open }: Pick<Office, 'dialled' | 'open'>,
): World {
  const { world } = stage.actor('bob').test
  return {
    ...world,
    clock: stage.clock,
    wireguard: {
      ...world.wireguard,
      dial: (target) => {
        const { host, port } = target as { host: string; port: number }
        dialled.push(`${host} ${port}`)
        if (host !== HOST) {
          return Promise.reject(new TunnelError('net/unreachable', `Cannot reach ${host}`))
        }
        const [near, far] = memoryConns()
        open.add(far)
        void answer(stage, far, `tunnel ${port}`).finally(() => open.delete(far))
        return Promise.resolve(near)
      },
    },
  }
}

async function answer(stage: Stage, conn: Conn, id: string): Promise<void> {
  try {
    const echo = concat(utf8('echo of '), await collect(stage, conn, { who: 'bob', id }))
    stage.sent.set(`${id}>`, echo)
    conn.write(echo)
    conn.end()
  } catch {
    // Broken off; whoever asked hears it.
  }
}

/** What a connection brings until its end; rejects where it is broken off. */
function collect(
  stage: Stage,
  conn: Conn,
  { who, id }: { who: string; id: string },
): Promise<Uint8Array> {
  const got = { who, id, bytes: EMPTY as Uint8Array, isEnded: false }
  stage.arrived.push(got)
  return new Promise((resolve, reject) => {
    conn.handle({
      data: (bytes) => void (got.bytes = concat(got.bytes, bytes)),
      end: () => {
        got.isEnded = true
        resolve(got.bytes)
      },
      closed: (error) =>
        reject(error ?? new TunnelError('net/closed', 'Cannot read: it is closed')),
    })
  })
}

/** Comes into Bob's network over the relay. Throws what refuses. */
export async function enterOffice(stage: Stage, who = 'alice'): Promise<JoinedNetwork> {
  const { test, presence } = stage.actor(who)
  const joined = await JoinedNetwork.open(
    { ...test.world, clock: stage.clock },
    { peers: presence.peers, name: 'bob', direct: false },
    {
      changed: (state) => {
        if (state.kind !== 'up') stage.hear(who, `network ${state.kind}`, state.error)
      },
      problem: (error) => stage.hear(who, 'network', error),
    },
  )
  joinings.get(stage)!.set(who, joined)
  stage.closers.push(() => joined.close())
  return joined
}

/** Something long is said to the host, and comes back. Rejects with what stopped it. */
export async function sayThrough(stage: Stage, who = 'alice', bytes = 60_000): Promise<void> {
  const port = PORT_MIN + stage.sent.size
  const id = `tunnel ${port}`
  const message = concat(utf8(`${stage.marker} `), pattern(bytes, port), utf8(stage.marker))
  stage.sent.set(id, message)
  const conn = await joinedOf(stage, who).network.connect({
    host: HOST,
    port,
    timeoutMs: CONNECT_MS,
  })
  const echo = collect(stage, conn, { who, id: `${id}>` })
  conn.write(message)
  conn.end()
  await echo
}

/** What Bob's device turned away is heard by its name; of whom nothing was lost, that too. */
export function hearDrops(stage: Stage, who = 'alice'): void {
  const { drops } = officeOf(stage).served.tunnel.device.stats()
  for (const [name, count] of Object.entries(drops)) {
    if (count > 0) stage.hear('bob', 'device', `wireguard/${name}`)
  }
  if (stage.relay.interventions > 0) stage.hear(who, 'tunnel', UNHARMED)
}
