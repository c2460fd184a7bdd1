/** An agent on the relay that `join` found: what every command that holds a link sets up alike. */
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
  // Whether a CA vouched is known once the link's TLS is done, and asked only afterwards.
  let trusted = false
  const open: World['link']['open'] = async (url) => {
    try {
      const opened = await joining.open(url)
      trusted = opened.trusted
      return opened
    } catch (error) {
      unopened(error)
      throw error
    }
  }
  const { identity, relay, credential, group16, version, labels, pin } = joining
  return new Agent({ ...world, link: { open } }, {
    ...options,
    identity,
    relay,
    credential,
    group16,
    version,
    labels,
    pin,
    get trust() {
      return trusted ? 'ca' : 'admission'
    },
  })
}
