/**
 * One short visit to the relay: a home link that asks a few questions, or tells the relay something,
 * and is gone again. What the commands use that hold no link of their own.
 */
import type { Agent } from './agent.ts'
import { fromBase64, toBase64 } from './base64.ts'
import type { Joining } from './join.ts'
import { joinedAgent } from './joined_agent.ts'
import type { Uplink } from './uplink.ts'
import type { World } from './world.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'

/** Until the relay has let us in. */
const READY_MS_MAX = 15_000
/** Answers to one question; each has at least one item. */
const PAGES_MAX = 2000

/**
 * Runs `ask` on a link of this identity, and closes it. Throws what the relay refuses with, and
 * `uplink/timeout` when it cannot be reached in 15 s.
 */
export async function enquire<T>(
  world: World,
  joining: Joining,
  ask: (uplink: Uplink) => Promise<T>,
): Promise<T> {
  let agent: Agent | undefined
  let stop = (): void => {}
  const late = world.clock.after(READY_MS_MAX, () => stop())
  try {
    await new Promise<void>((resolve, reject) => {
      stop = () =>
        reject(
          new TunnelError('uplink/timeout', `Cannot reach the relay ${joining.relay.host}`, {
            hint: 'Check the address and the network; "sotto status" shows what is set.',
          }),
        )
      world.signal.addEventListener('abort', stop, { once: true })
      agent = joinedAgent(world, joining, {
        bulkLinks: false,
        unopened: reject,
        onState: (state) => {
          if (state.kind === 'up') resolve()
          else if (state.kind === 'refused') reject(state.error)
          else if (state.kind === 'down') {
            reject(
              new TunnelError(
                'uplink/down',
                `Cannot reach the relay ${joining.relay.host}: ${state.reason}`,
              ),
            )
          }
        },
      })
      agent.start()
    })
    late.cancel()
    return await ask(agent!.uplink)
  } finally {
    late.cancel()
    world.signal.removeEventListener('abort', stop)
    agent?.close()
  }
}

/** Has the relay keep a statement. Throws `statements/…`, `statement/…`, `uplink/…`. */
export async function publishStatement(
  uplink: Pick<Uplink, 'request'>,
  statement: Uint8Array,
): Promise<void> {
  await uplink.request({ do: 'publish', statement: toBase64(statement) })
}

/** What the relay keeps about a KEY, unverified; what it does not answer is missing. */
export async function askStatements(
  uplink: Pick<Uplink, 'request'>,
  key: string,
): Promise<Uint8Array[]> {
  const all: Uint8Array[] = []
  let after = 0
  try {
    for (let page = 0; page < PAGES_MAX && all.length < PAGES_MAX; page++) {
      const { statements, next } = await uplink.request({ do: 'statements', key, after })
      if (!Array.isArray(statements)) break
      for (const one of statements) if (typeof one === 'string') all.push(fromBase64(one))
      if (typeof next !== 'number' || next <= after) break
      after = next
    }
  } catch (error) {
    if (!isTunnelError(error)) throw error
  }
  return all
}

/** KEYs of the agents that the relay shows to this identity and that are there now. */
export async function askOnline(uplink: Pick<Uplink, 'request'>): Promise<Set<string>> {
  const online = new Set<string>()
  let after: string | undefined
  for (let page = 0; page < PAGES_MAX; page++) {
    const asked = { do: 'agents', ...(after === undefined ? {} : { after }) }
    const { agents, next } = await uplink.request(asked)
    for (const one of Array.isArray(agents) ? agents : []) {
      const { key, online: isThere } = one as Record<string, unknown>
      if (typeof key === 'string' && isThere === true) online.add(key)
    }
    if (typeof next !== 'string' || next === after) break
    after = next
  }
  return online
}

/** KEYs of those that serve a name now, by the relay's word. */
export async function askServing(
  uplink: Pick<Uplink, 'request'>,
  name: string,
): Promise<string[]> {
  const { agents } = await uplink.request({ do: 'resolve', name })
  return (Array.isArray(agents) ? agents : []).flatMap((one) => {
    const { key } = one as Record<string, unknown>
    return typeof key === 'string' ? [key] : []
  })
}
