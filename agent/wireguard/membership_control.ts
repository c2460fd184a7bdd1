/**
 * Where "sotto wg status" finds the processes of this profile that serve a network or are in one: the
 * sockets of `control.ts`, in a folder of their own. One process serves a network; some may be in it.
 */
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { askControl, controlIds, openControl } from '../control.ts'
import type { Profile } from '../profile.ts'
import type { World } from '../world.ts'
import type { JoinedNetwork } from './joined_network.ts'

/** Processes of one profile in one network that tell how they are. */
const PLACES_MAX = 16

export interface MembershipControl {
  close(): Promise<void>
}

export type Line = Record<string, unknown>

function folder(stateDir: string): string {
  return `${stateDir}/wireguard`
}

/** For a process that serves. Throws `network/running` where another one serves it. */
export async function openServing(
  world: World,
  { stateDir, name }: { stateDir: string; name: string },
  lines: () => Line[],
): Promise<MembershipControl> {
  try {
    return await open(world, { stateDir, path: `serve ${name}` }, lines)
  } catch (error) {
    if (!isTunnelError(error, 'config/running')) throw error
    throw new TunnelError(
      'network/running',
      `Cannot serve "${name}": another process of this profile serves it already`,
      { hint: 'See "sotto wg status".' },
    )
  }
}

/** For a process that is in a network; undefined where so many are that no more are told of. */
export async function openMembership(
  world: World,
  stateDir: string,
  joined: JoinedNetwork,
): Promise<MembershipControl | undefined> {
  for (let place = 0; place < PLACES_MAX; place++) {
    try {
      const path = `join ${joined.name} ${place}`
      return await open(world, { stateDir, path }, () => [joinedLine(world, joined)])
    } catch (error) {
      if (!isTunnelError(error, 'config/running')) throw error
    }
  }
  return undefined
}

function joinedLine({ pid }: World, joined: JoinedNetwork): Line {
  const { stats, ...facts } = joined.facts
  return {
    event: 'joined',
    pid,
    ...facts,
    received: stats?.receivedBytes ?? 0,
    sent: stats?.sentBytes ?? 0,
    handshake: stats?.lastHandshakeMs,
  }
}

function open(
  world: World,
  { stateDir, path }: { stateDir: string; path: string },
  lines: () => Line[],
): Promise<MembershipControl> {
  return openControl(world, {
    stateDir: folder(stateDir),
    path,
    handler: (request, answer) => {
      if (request['do'] !== 'status') {
        throw new TunnelError('control/request', 'Cannot answer: found an unknown "do"')
      }
      for (const line of lines()) answer.line(line)
      answer.end()
      return Promise.resolve()
    },
  })
}

/** What all of them say. */
export async function askMemberships(world: World, profile: Profile): Promise<Line[]> {
  const stateDir = folder(profile.stateDir)
  const lines: Line[] = []
  for (const id of await controlIds(world, stateDir)) {
    await askControl(world, { stateDir, id, request: { do: 'status' } }, (line) => {
      lines.push(line)
    })
  }
  return lines
}
