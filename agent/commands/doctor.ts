/** `sotto doctor`: looks at everything that a tunnel needs, and says what to do about what is wrong. */
import { utf8 } from '../../core/bytes.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { command, isSet, JSON_FLAG, listOf, RELAY_FLAGS, textOf, wrap } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { printable } from '../cli/screen.ts'
import { runChecks } from '../doctor.ts'
import type { Check, Level, Result } from '../doctor.ts'
import { makeBundle, redact } from '../doctor_bundle.ts'
import { localChecks } from '../doctor_local.ts'
import { natCheck, parseStunServer, STUN_SERVERS_MAX } from '../doctor_nat.ts'
import { relayChecks } from '../doctor_relay.ts'
import { checkChoice, relayOf } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { Profile } from '../profile.ts'
import type { TerminalOutput, World } from '../world.ts'

const MARKS: Readonly<Record<Level, string>> = {
  ok: 'ok',
  warning: 'warning',
  fail: 'FAIL',
  skipped: '-',
}
const MARK_WIDTH = 9
/** Narrower terminals get the words below their title. */
const COLUMNS_MIN = 60
const BELOW_INDENT = 4
const TITLE_WIDTH = 13

interface DoctorOptions {
  choice: RelayChoice
  stun: string[]
  bundle: string | undefined
  json: boolean
}

async function run({ choice, stun, bundle, json }: DoctorOptions, world: World): Promise<number> {
  const { stdout, stderr } = world.terminal
  const checks: Check[] = [
    ...localChecks(world),
    ...await wayChecks(world, choice),
    natCheck(world, stun),
  ]
  const results = await runChecks(world, checks, (result) => {
    if (json) stdout.write(`${redact(JSON.stringify({ event: 'check', ...result }))}\n`)
    else stdout.write(lines(result, stdout))
  })
  const failures = results.filter(({ level }) => level === 'fail').length
  const warnings = results.filter(({ level }) => level === 'warning').length
  if (bundle !== undefined) {
    const path = /^([A-Za-z]:)?[\\/]/.test(bundle) ? bundle : `${world.directory}/${bundle}`
    await world.files.write(path, utf8(await makeBundle(world, results)))
    if (!json) {
      stderr.write(`${bundle} holds all this without secrets; read it before you send it\n`)
    }
  }
  if (json) {
    stdout.write(
      `${JSON.stringify({ event: 'done', checks: results.length, failures, warnings })}\n`,
    )
  } else {
    const hasRelay = results.some(({ check }) => check === 'dns')
    stdout.write(`\n${summary(failures, warnings, hasRelay)}\n`)
  }
  return failures > 0 ? 1 : 0
}

/** Of the way to the relay; without one, that there is none. */
async function wayChecks(world: World, choice: RelayChoice): Promise<Check[]> {
  const settings = await new Profile(world).settings().catch(() => ({ relay: undefined }))
  try {
    return relayChecks(world, { relay: relayOf(world, { choice, kept: settings.relay }), choice })
  } catch (error) {
    if (!isTunnelError(error)) throw error
    const isNone = error.code === 'relay/none'
    return [{
      name: 'relay',
      title: 'relay',
      run: () =>
        Promise.resolve({
          level: isNone ? 'skipped' : 'fail',
          words: isNone ? 'none is named yet' : error.message,
          remedy: error.hint ?? '"sotto login RELAY" names one.',
        }),
    }]
  }
}

function lines(
  { level, title, words, remedy }: Result,
  { isTTY, columns }: TerminalOutput,
): string {
  const head = `${MARKS[level].padEnd(MARK_WIDTH)}${title.padEnd(TITLE_WIDTH)}`
  const isWide = !isTTY || columns >= COLUMNS_MIN
  const indent = ' '.repeat(isWide ? head.length : BELOW_INDENT)
  const folded = isTTY ? wrap(printable(words), columns - indent.length) : [printable(words)]
  // Remedies are there to be pasted, and stay whole.
  const rest = [...folded, ...(remedy === undefined ? [] : [printable(remedy)])]
  const [first, ...more] = isWide ? rest : ['', ...rest]
  return redact([`${head}${first}`.trimEnd(), ...more.map((one) => indent + one), ''].join('\n'))
}

function summary(failures: number, warnings: number, hasRelay: boolean): string {
  const count = (some: number, word: string): string => `${some} ${word}${some === 1 ? '' : 's'}`
  if (failures === 0 && warnings === 0) {
    return hasRelay ? 'All is well.' : 'All is well here; the way to a relay was not looked at.'
  }
  return [
    ...(failures > 0 ? [count(failures, 'failure')] : []),
    ...(warnings > 0 ? [count(warnings, 'warning')] : []),
  ].join(', ')
}

export const doctor = command<DoctorOptions>({
  page: {
    name: 'sotto doctor',
    summary: 'find what is wrong, and say what to do',
    examples: [
      ['sotto doctor', 'This machine, and the way to the relay of the profile.'],
      [
        'sotto doctor --relay https://relay.example --bundle report.json',
        'A file for who helps you.',
      ],
      ['sotto doctor --stun stun.example.com:3478', 'UDP as well, and which kind of NAT is here.'],
    ],
    flags: [
      {
        name: 'stun',
        value: 'HOST:PORT',
        without: 'none',
        many: true,
        help: 'A STUN server to look at UDP with; a second one shows more of a NAT.',
      },
      {
        name: 'bundle',
        value: 'FILE',
        help: 'Write what was found and how this machine is set up, without secrets.',
      },
      ...RELAY_FLAGS,
      JSON_FLAG,
    ],
    more: `Changes nothing, but for the pin of a relay that is met for the first time.
Exit code 1: something fails.`,
  },
  read: (given) => ({
    choice: readChoice(given),
    stun: listOf(given, 'stun'),
    bundle: textOf(given, 'bundle'),
    json: isSet(given, 'json'),
  }),
  check({ choice, stun }) {
    checkChoice(choice)
    if (stun.length > STUN_SERVERS_MAX) {
      throw new TunnelError(
        'doctor/stun',
        `Cannot ask ${stun.length} STUN servers: expected at most ${STUN_SERVERS_MAX}`,
      )
    }
    for (const words of stun) parseStunServer(words)
  },
  run,
})
