/** `sotto config check` and `sotto config schema`: whether a file is right, and what it may hold. */
import { command, isSet, JSON_FLAG, textOf } from '../cli/page.ts'
import { checkConfig, findConfig } from '../config.ts'
import { problemLines } from '../config_problem.ts'
import { configSchema } from '../config_schema.ts'
import type { World } from '../world.ts'

interface CheckOptions {
  file: string | undefined
  json: boolean
}

const EXIT_WRONG = 1

async function check({ file, json }: CheckOptions, world: World): Promise<number> {
  const { stdout, stderr } = world.terminal
  const path = await findConfig(world, file)
  const { config, problems } = await checkConfig(world, path)
  for (const problem of problems) {
    if (json) stdout.write(`${JSON.stringify({ event: 'problem', file: path, ...problem })}\n`)
    else stderr.write(`${problemLines(path, problem).join('\n')}\n\n`)
  }
  const count = config?.tunnels.length ?? 0
  if (json) {
    stdout.write(
      `${
        JSON.stringify({ event: 'checked', file: path, tunnels: count, problems: problems.length })
      }\n`,
    )
  } else if (config) {
    stdout.write(`${path}: ${count === 1 ? '1 tunnel' : `${count} tunnels`}, nothing to correct\n`)
  }
  return config ? 0 : EXIT_WRONG
}

export const checkCommand = command<CheckOptions>({
  page: {
    name: 'sotto config check',
    summary: 'say whether a file is right, and what is wrong where',
    args: ['[FILE]'],
    examples: [
      ['sotto config check', 'The file that "sotto up" would run.'],
      ['sotto config check deploy/sotto.yaml --json', 'Another one, for programs.'],
    ],
    flags: [
      { name: 'config', value: 'PATH', without: 'as FILE', help: 'The same as FILE.' },
      JSON_FLAG,
    ],
    more:
      'Nothing is asked of a relay, and no other file is read. Ends with 1 where something is wrong.',
  },
  read: (given) => ({
    file: given.args[0] ?? textOf(given, 'config'),
    json: isSet(given, 'json'),
  }),
  check: () => {},
  run: check,
})

export const schemaCommand = command<object>({
  page: {
    name: 'sotto config schema',
    summary: 'print the JSON schema of the file, for editors',
    examples: [
      ['sotto config schema > sotto.schema.json', 'Kept beside the file.'],
      ['sotto config schema --json', 'The same: it is JSON in any case.'],
    ],
    flags: [JSON_FLAG],
    more: 'Editors look for this line at the top of the file:\n' +
      '  # yaml-language-server: $schema=./sotto.schema.json',
  },
  read: () => ({}),
  check: () => {},
  run: (_, world) => {
    world.terminal.stdout.write(`${JSON.stringify(configSchema(), null, 2)}\n`)
    return Promise.resolve(0)
  },
})
