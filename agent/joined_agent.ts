/** An agent on the relay that `join` found: what every command that holds a link sets up alike. */
import { isTunnelError } from '../core/errors.ts'
import type { TunnelError } from '../core/errors.ts'
import { Agent } from './agent.ts'
import type { AgentOptions } from './agent.ts'
import type { Joining } from './join.ts'
import type { World } from './world.ts'

export interface JoinedAgentOptions extends Omit<AgentOptions, keyof Joining | 'trust'> {
  /** The WebSocket could not be opened; the agent tries again unless somebody ends it. */
  unopened(error: unknown): void
}

export function joinedAgent(
  world: World,
  joining: Joining,
  { unopened, ...options }: JoinedAgentOptions,
): Agent {
  return new Agent(world, {
    statements: () => joining.profile.ownStatements(),
    ...options,
    ...linkPorts(joining, unopened),
  })
}

/** What links of this identity to this relay need, home links and visit links. */
export function linkPorts(
  joining: Joining,
  unopened: (error: unknown) => void,
): Omit<Joining, 'profile'> {
  const { profile: _, ...link } = joining
  const open: Joining['open'] = async (url) => {
    try {
      return await joining.open(url)
    } catch (error) {
      unopened(error)
      throw error
    }
  }
  return { ...link, open }
}

/** What a proxy says that will say the same again. */
const LASTING = /^proxy\/(address|authentication|denied|protocol)$/

/**
 * Whether trying again would change nothing: a certificate that cannot be trusted, and for a command
 * that was never up yet a proxy that is set up wrongly. Later the same may be a proxy's bad day.
 */
export function isFinal(error: unknown, wasUp = false): error is TunnelError {
  if (!isTunnelError(error)) return false
  return error.code === 'link/untrusted' || (!wasUp && LASTING.test(error.code))
}
