/** What commands of private networks share: their words, the process that is in one, and how it ends. */
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { formatAddress } from '../../core/address.ts'
import { formatKey } from '../../core/key.ts'
import { join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { parseAddress } from '../peers.ts'
import { Presence } from '../presence.ts'
import type { UplinkState } from '../uplink.ts'
import type { StopReason, World } from '../world.ts'
import { openMembership } from '../wireguard/membership_control.ts'
import type { MembershipControl } from '../wireguard/membership_control.ts'
import { JoinedNetwork } from '../wireguard/joined_network.ts'
import type { NearEnds } from '../wireguard/near_end.ts'
import type { TunnelState } from '../wireguard/tunnel_client.ts'
import { routeText } from '../wireguard/exit_policy.ts'
import { parseForward } from '../wireguard/port_forward.ts'
import type { Forward } from '../wireguard/port_forward.ts'
import { listOf } from './page.ts'
import type { Flag, Given } from './page.ts'
import { Screen, waitWords } from './screen.ts'

export const RELAY_ONLY_FLAG: Flag = {
  name: 'relay-only',
  help: 'Never try UDP, also where the network can be reached so.',
}

export const FORWARD_FLAGS: readonly Flag[] = [
  {
    name: 'local',
    short: 'L',
    value: '[ADDRESS:]PORT:HOST:PORT',
    many: true,
    help: 'A TCP port of this machine onto a place of the network.',
  },
  {
    name: 'udp',
    short: 'U',
    value: '[ADDRESS:]PORT:HOST:PORT',
    many: true,
    help: 'The same for UDP.',
  },
  {
    name: 'reverse',
    short: 'R',
    value: 'PORT:HOST:PORT',
    many: true,
    help: 'A TCP port of our address in the network onto a place of this side.',
  },
]

/** Throws `forward/…`. */
export function readForwards(given: Given): Forward[] {
  return [
    ...listOf(given, 'local').map((words) => parseForward('tcp', words)),
    ...listOf(given, 'udp').map((words) => parseForward('udp', words)),
    ...listOf(given, 'reverse').map((words) => parseForward('reverse', words)),
  ]
}

export interface NetworkChoice {
  name: string
  choice: RelayChoice
  /** UDP is tried where the server can be reached so. */
  direct: boolean
  json: boolean
  /** What is at our end; a stack unless given. */
  ends?: NearEnds
}

/** Throws `dial/name`. */
export function checkNetwork(name: string): void {
  parseAddress(name)
}

/** Resolves when the person stops the program, with its exit code. */
export function stopped({ signal }: Pick<World, 'signal'>): Promise<number> {
  return new Promise((resolve) => {
    const stop = (): void => resolve((signal.reason as StopReason | undefined)?.exitCode ?? 0)
    if (signal.aborted) stop()
    else signal.addEventListener('abort', stop, { once: true })
  })
}

/** Says when the relay is lost, and when it is back. */
export class RelayWatch {
  readonly #screen: Screen
  #told = false

  constructor(screen: Screen) {
    this.#screen = screen
  }

  state(state: UplinkState): void {
    if (state.kind === 'up' && this.#told) {
      this.#told = false
      this.#screen.tell('relay is back', { event: 'up', again: true })
    } else if (state.kind === 'down' && !this.#told) {
      this.#told = true
      const words = `relay lost (${state.reason}), again in ${waitWords(state.retryInMs)}`
      this.#screen.tell(words, { event: 'down', fields: { reason: state.reason }, again: true })
    }
  }
}

/**
 * Joins a network for as long as `use` takes, or until the person stops it: then its exit code is that of
 * the signal. Throws what joining throws, and what ends the network for good.
 */
export async function inNetwork(
  world: World,
  { name, choice, direct, json, ends }: NetworkChoice,
  use: (joined: JoinedNetwork, screen: Screen) => Promise<number>,
): Promise<number> {
  const screen = new Screen(world, { json })
  const joining = await join(world, choice, (line) => screen.tell(line))
  const watch = new RelayWatch(screen)
  const presence = await Presence.open(world, {
    joining,
    tell: (sentence) => screen.tell(sentence),
    onState: (state) => watch.state(state),
    onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
  })
  let joined: JoinedNetwork | undefined
  let control: MembershipControl | undefined
  try {
    const over = Promise.withResolvers<never>()
    over.promise.catch(() => {})
    const stop = stopped(world)
    const work = async (): Promise<number> => {
      await presence.ready()
      const options = { peers: presence.peers, name, direct, ...(ends ? { ends } : {}) }
      joined = await JoinedNetwork.open(world, options, {
        changed: (state) =>
          changed(screen, { state, fail: over.reject, wasUp: joined !== undefined }),
        moved: (path) =>
          screen.tell(`packets take ${path === 'relay' ? 'the relay' : path} now`, {
            event: 'path',
            fields: { path },
            again: true,
          }),
        problem: (error) => screen.tell(`trouble in the network: ${(error as Error).message}`),
      })
      control = await openMembership(world, joining.profile.stateDir, joined)
      return await use(joined, screen)
    }
    return await Promise.race([work(), stop, over.promise])
  } catch (error) {
    throw withRemedy(world, { error, name, joining })
  } finally {
    joined?.close()
    await control?.close()
    await presence.end()
    screen.close()
  }
}

function changed(
  screen: Screen,
  { state, fail, wasUp }: { state: TunnelState; fail: (error: unknown) => void; wasUp: boolean },
): void {
  if (state.kind === 'over') {
    if (state.error) fail(state.error)
  } else if (state.kind === 'down') {
    const why = state.error === undefined ? '' : ` (${state.error.message})`
    const words = `the network is lost${why}, again in ${waitWords(state.retryInMs)}`
    screen.tell(words, { event: 'network-down', again: true })
  } else if (state.kind === 'up' && wasUp) {
    const { address4, routes } = state.agreed
    const leads = routes.map(routeText).join(', ')
    screen.tell(`the network is back, and leads to ${leads === '' ? 'nothing' : leads}`, {
      event: 'network-up',
      fields: { address: formatAddress(address4.bytes), routes: leads },
      again: true,
    })
  }
}

/** Whoever is refused has to be let in at the other end. */
function withRemedy(
  { username }: World,
  { error, name, joining }: { error: unknown; name: string; joining: Joining },
): unknown {
  if (!isTunnelError(error, 'session/refused')) return error
  const key = formatKey(joining.identity.public)
  const own = /^[a-z0-9][a-z0-9._-]{0,62}$/i.test(username) ? username : 'friend'
  return new TunnelError(error.code, `Cannot join "${name}": its agent does not let us in`, {
    hint: `Ask whoever runs it to type: sotto peers trust ${own} ${key} && ` +
      `sotto access allow ${own} wg`,
    cause: error,
  })
}
