/** `sotto logs`: what happened in a running "sotto up", the last of it, or as it happens. */
import { command, isSet, JSON_FLAG, numberOf, textOf } from '../cli/page.ts'
import { askRunning, RUNNING_FLAG } from '../cli/running.ts'
import { printable } from '../cli/screen.ts'
import type { StopReason, World } from '../world.ts'

interface LogsOptions {
  tunnel: string | undefined
  config: string | undefined
  follow: boolean
  last: number | undefined
  json: boolean
}

async function run(options: LogsOptions, world: World): Promise<number> {
  const { tunnel, config, follow, last, json } = options
  const { stdout } = world.terminal
  const request = {
    do: 'logs',
    follow,
    ...(tunnel === undefined ? {} : { tunnel }),
    ...(last === undefined ? {} : { last }),
  }
  try {
    await askRunning(world, { config, request }, (line) => {
      stdout.write(json ? `${JSON.stringify(line)}\n` : `${logWords(line)}\n`)
    })
  } catch (error) {
    // A reader that follows is ended by who reads.
    if (!follow || !world.signal.aborted) throw error
    return (world.signal.reason as StopReason).exitCode
  }
  return 0
}

/** `2026-01-31 12:00:00  web  a visitor from 192.0.2.7`. */
function logWords({ time, tunnel, message }: Record<string, unknown>): string {
  const at = String(time).slice(0, 19).replace('T', ' ')
  return printable(`${at}  ${tunnel === undefined ? '-' : String(tunnel)}  ${String(message)}`)
}

export const logs = command<LogsOptions>({
  page: {
    name: 'sotto logs',
    summary: 'show what happened in a running "sotto up"',
    args: ['[NAME]'],
    examples: [
      ['sotto logs', 'The last hundred lines: visitors, troubles, names that were refused.'],
      ['sotto logs -f web', 'Those of the tunnel "web", and new ones as they come.'],
    ],
    flags: [
      { name: 'follow', short: 'f', help: 'Go on with new lines as they come.' },
      {
        name: 'last',
        value: 'COUNT',
        without: '100',
        help: 'So many of what was before, at most 1000.',
      },
      RUNNING_FLAG,
      JSON_FLAG,
    ],
    more: 'The last thousand lines are kept, in the memory of the process alone. Times are UTC.',
  },
  read: (given) => ({
    tunnel: given.args[0],
    config: textOf(given, 'config'),
    follow: isSet(given, 'follow'),
    last: numberOf(given, 'last', { min: 0, max: 1000 }),
    json: isSet(given, 'json'),
  }),
  check: () => {},
  run,
})
