/** Which running "sotto up" a command means: the one there is, or that of a configuration. */
import { TunnelError } from '../../core/errors.ts'
import { findConfig } from '../config.ts'
import { askControl, controlId, controlIds } from '../control.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'
import type { Flag } from './page.ts'

export const RUNNING_FLAG: Flag = {
  name: 'config',
  value: 'PATH',
  without: 'the one that runs',
  help: 'The file of the "sotto up" that is meant, where several run.',
}

/** What "sotto status" tells of one process. */
export interface Running {
  id: string
  process: Record<string, unknown>
  tunnels: Record<string, unknown>[]
}

/** All of this profile that answer. */
export async function runningProcesses(world: World): Promise<Running[]> {
  const { stateDir } = new Profile(world)
  const found: Running[] = []
  for (const id of await controlIds(world, stateDir)) {
    const one: Running = { id, process: {}, tunnels: [] }
    const answered = await askControl(
      world,
      { stateDir, id, request: { do: 'status' } },
      (line) => {
        const { event, ...fields } = line
        if (event === 'process') one.process = fields
        if (event === 'tunnel') one.tunnels.push(fields)
      },
    )
    if (answered) found.push(one)
  }
  return found
}

/** Asks the one that is meant. Throws `control/none`, `control/several`, and what it answers. */
export async function askRunning(
  world: World,
  { config, request }: { config: string | undefined; request: object },
  each: (line: Record<string, unknown>) => void,
): Promise<void> {
  const { stateDir } = new Profile(world)
  let id: string | undefined
  if (config !== undefined) id = controlId(world, await findConfig(world, config))
  else {
    const running = await runningProcesses(world)
    if (running.length > 1) {
      throw new TunnelError(
        'control/several',
        `Cannot choose: found ${running.length} "sotto up" that run`,
        {
          hint: `Name one: ${
            running.map(({ process }) => `--config ${process['config']}`).join(', or ')
          }`,
        },
      )
    }
    id = running[0]?.id
  }
  if (id !== undefined && await askControl(world, { stateDir, id, request }, each)) return
  throw new TunnelError(
    'control/none',
    `Cannot reach "sotto up"${config === undefined ? '' : ` of ${config}`}: found none that runs`,
    { hint: 'Start it by "sotto up".' },
  )
}
