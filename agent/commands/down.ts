/** `sotto down`: ends a running "sotto up". */
import { command, isSet, JSON_FLAG, textOf } from '../cli/page.ts'
import { askRunning, RUNNING_FLAG } from '../cli/running.ts'
import { Screen } from '../cli/screen.ts'
import type { World } from '../world.ts'

interface DownOptions {
  config: string | undefined
  json: boolean
}

async function run({ config, json }: DownOptions, world: World): Promise<number> {
  const screen = new Screen(world, { json })
  await askRunning(world, { config, request: { do: 'down' } }, () => {})
  screen.tell('ended', { event: 'ended', fields: {} })
  return 0
}

export const down = command<DownOptions>({
  page: {
    name: 'sotto down',
    summary: 'end a running "sotto up"',
    examples: [
      ['sotto down', 'The one that runs; its visitors end with it.'],
      ['sotto down --config /etc/sotto/sotto.yaml', 'That of another file, where several run.'],
    ],
    flags: [RUNNING_FLAG, JSON_FLAG],
  },
  read: (given) => ({ config: textOf(given, 'config'), json: isSet(given, 'json') }),
  check: () => {},
  run,
})
