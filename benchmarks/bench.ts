/**
 * The entry of all benchmarks: one file a question, rivals beside us in the same run.
 *
 *     npm run bench -- NAME [--only CONTENDER,…] [--races RACE,…] [--rounds N] [--quick]
 *
 * `--only` and `--races` take beginnings of names. `--quick` is one short round, to see that everything
 * runs: its figures go to a file of their own and are not to be quoted.
 */
import { parseArgs } from 'node:util'
import { idle } from './idle.ts'
import { onboarding } from './onboarding.ts'
import { session } from './session.ts'
import { start } from './start.ts'
import { tunnel } from './tunnel.ts'
import { wireguard } from './wireguard.ts'

/** Rounds of a run that is to be quoted. */
const ROUNDS = 5

export interface BenchOptions {
  only: string[] | undefined
  races: string[] | undefined
  rounds: number
  quick: boolean
  /** Length of one run of a timed race; undefined: the benchmark's own. */
  ms: number | undefined
}

const BENCHMARKS: Record<string, (options: BenchOptions) => Promise<void>> = {
  tunnel,
  idle,
  session,
  start,
  onboarding,
  wireguard,
}

const USAGE =
  `usage: npm run bench -- NAME [--only CONTENDER,…] [--races RACE,…] [--rounds N] [--ms N] [--quick]
benchmarks: ${Object.keys(BENCHMARKS).join(', ')}`

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    args: process.argv.slice(2),
    allowPositionals: true,
    options: {
      only: { type: 'string' },
      races: { type: 'string' },
      rounds: { type: 'string' },
      ms: { type: 'string' },
      quick: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const run = BENCHMARKS[positionals[0] ?? '']
  const rounds = Number(values.rounds ?? (values.quick ? 1 : ROUNDS))
  if (!run || values.help || !Number.isInteger(rounds) || rounds < 1) {
    console.error(USAGE)
    process.exit(values.help ? 0 : 2)
  }
  const names = (text: string | undefined) => text?.split(',').map((name) => name.trim())
  const ms = values.ms === undefined ? undefined : Number(values.ms)
  await run({
    only: names(values.only),
    races: names(values.races),
    rounds,
    quick: values.quick,
    ms,
  })
}

await main()
process.exit()
