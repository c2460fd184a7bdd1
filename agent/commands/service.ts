/** `sotto service`: the agent or a relay as a service of this machine, or of this person. */
import { TunnelError } from '../../core/errors.ts'
import { command, isSet, JSON_FLAG, listOf, numberOf, textOf } from '../cli/page.ts'
import type { Command, Flag, Given, Page } from '../cli/page.ts'
import { Screen } from '../cli/screen.ts'
import {
  defaultConfig,
  describeService,
  installService,
  serviceLogs,
  serviceStatus,
  uninstallService,
} from '../service.ts'
import { SERVICES } from '../service_plan.ts'
import type { ServiceKind, ServiceName, ServicePlan } from '../service_plan.ts'
import type { World } from '../world.ts'

const LINES_MAX = 100_000
const LINES = 100

interface ServiceOptions {
  name: ServiceName
  system: boolean
  user: boolean
  json: boolean
}

interface InstallOptions extends ServiceOptions {
  config: string | undefined
  runAs: string | undefined
  print: boolean
  flags: string[]
}

const KIND_FLAGS: readonly Flag[] = [
  { name: 'system', without: 'for root', help: 'Of the machine: starts at boot.' },
  { name: 'user', without: 'for others', help: 'Of this person: starts when they sign in.' },
]
const MORE = 'WHAT is agent, which runs "sotto up" and is meant where it is left out, or relay.'

function readService(given: Given): ServiceOptions {
  const [words] = given.args
  const name = SERVICES.find((one) => one === (words ?? 'agent'))
  if (name === undefined) {
    throw new TunnelError(
      'service/name',
      `Cannot read the service: found "${words}", expected agent or relay`,
    )
  }
  return {
    name,
    system: isSet(given, 'system'),
    user: isSet(given, 'user'),
    json: isSet(given, 'json'),
  }
}

function checkService({ system, user }: ServiceOptions): void {
  if (system && user) {
    throw new TunnelError('cli/conflict', 'Cannot use --system with --user: it is one or the other')
  }
}

function planOf(
  options: ServiceOptions & Partial<InstallOptions>,
  world: World,
): ServicePlan {
  const { name, system, user, config, runAs, flags = [] } = options
  const isRoot = world.system.uid === 0
  const kind: ServiceKind = system || (isRoot && !user) ? 'system' : 'user'
  return {
    name,
    kind,
    program: world.system.self,
    config: config ?? defaultConfig(world, kind),
    flags,
    // launchd makes no users; whoever asked by sudo is meant.
    runAs: runAs ??
      (world.system.platform === 'darwin' && kind === 'system'
        ? world.env['SUDO_USER']
        : undefined),
  }
}

async function runInstall(options: InstallOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const plan = planOf(options, world)
  if (options.print) {
    const { path, content } = await describeService(world, plan)
    if (options.json) screen.event('service', { path, content })
    else world.terminal.stdout.write(content)
    return 0
  }
  const { path, notes } = await installService(world, plan)
  screen.show('installed', [
    { name: 'path', value: path, line: `installed ${path}` },
    { name: 'service', value: plan.name },
    { name: 'kind', value: plan.kind, line: 'it runs now, and starts by itself from here on' },
  ])
  for (const note of notes) screen.tell(note, { event: 'note', fields: { note } })
  return 0
}

const installServiceCommand = command<InstallOptions>({
  page: {
    name: 'sotto service install',
    summary: 'have the agent or a relay run always',
    args: ['[WHAT]'],
    examples: [
      ['sotto service install', 'By root: the agent by /etc/sotto/sotto.yaml, from boot on.'],
      [
        'sotto service install relay -- --domain relay.example.com',
        'A relay; its flags follow the two dashes.',
      ],
      ['sotto service install --print', 'The unit, without installing it.'],
    ],
    flags: [
      ...KIND_FLAGS,
      {
        name: 'config',
        value: 'PATH',
        without: '/etc/sotto/sotto.yaml, for a user ~/.config/sotto/sotto.yaml',
        help: 'The file of the agent, as "sotto up" reads it; absolute.',
      },
      {
        name: 'run-as',
        value: 'USER',
        without: "a user of the service's own",
        help: 'Whose rights a system service has.',
      },
      { name: 'print', help: 'Print what would be installed, and change nothing.' },
      JSON_FLAG,
      { name: '', value: 'FLAGS', rest: true, help: 'Flags of the relay.' },
    ],
    more: `${MORE}
Keys and passwords go into /etc/sotto/sotto.env or relay.env, mode 0600, as NAME=VALUE a line,
such as SOTTO_API_KEY=sk_…
Asks nothing. Again replaces it, and starts it anew.`,
  },
  read: (given) => ({
    ...readService(given),
    config: textOf(given, 'config'),
    runAs: textOf(given, 'run-as'),
    print: isSet(given, 'print'),
    flags: listOf(given, ''),
  }),
  check(options) {
    checkService(options)
    const { name, config, flags } = options
    if (name === 'agent' && flags.length > 0) {
      throw new TunnelError(
        'service/flags',
        'Cannot give flags to the agent: its file says all that it does',
        { hint: 'Write them into sotto.yaml, or name the relay: sotto service install relay -- …' },
      )
    }
    if (config !== undefined && !/^(\/|[A-Za-z]:\\)/.test(config)) {
      throw new TunnelError('service/path', `Cannot use --config ${config}: expected a whole path`)
    }
  },
  run: runInstall,
})

const uninstallServiceCommand = command<ServiceOptions>({
  page: page('uninstall', 'stop a service and remove it', {
    examples: [
      ['sotto service uninstall', 'The agent; configuration, keys and state stay.'],
      ['sotto service uninstall relay', 'The relay.'],
    ],
  }),
  read: readService,
  check: checkService,
  async run(options, world) {
    const screen = new Screen(world, options)
    const { path, removed } = await uninstallService(world, planOf(options, world))
    screen.show('uninstalled', [
      { name: 'path', value: path, line: removed ? `removed ${path}` : `${path} was not there` },
      { name: 'removed', value: String(removed) },
    ])
    return 0
  },
})

const statusServiceCommand = command<ServiceOptions>({
  page: page('status', 'show how a service is', {
    examples: [
      [
        'sotto service status',
        "In the words of the machine's own manager; exit code 3: not running.",
      ],
      ['sotto service status relay --json', 'The relay, for programs.'],
    ],
  }),
  read: readService,
  check: checkService,
  async run(options, world) {
    const plan = planOf(options, world)
    const { words, running, facts } = await serviceStatus(world, plan)
    if (options.json) {
      new Screen(world, options).event('service', {
        service: plan.name,
        kind: plan.kind,
        running,
        ...facts,
      })
    } else world.terminal.stdout.write(words.endsWith('\n') ? words : `${words}\n`)
    return running ? 0 : NOT_RUNNING
  },
})

/** As systemctl(1) and LSB say it. */
const NOT_RUNNING = 3

interface LogsOptions extends ServiceOptions {
  lines: number
  follow: boolean
}

const logsServiceCommand = command<LogsOptions>({
  page: page('logs', 'show what a service has printed', {
    examples: [
      ['sotto service logs --follow', 'What the agent printed, and what it prints from now on.'],
      ['sotto service logs relay --lines 1000', 'More of what the relay printed.'],
    ],
    flags: [
      { name: 'lines', value: 'COUNT', without: String(LINES), help: 'The last so many.' },
      { name: 'follow', short: 'f', help: 'Go on until Ctrl-C.' },
    ],
  }),
  read: (given) => ({
    ...readService(given),
    lines: numberOf(given, 'lines', { min: 0, max: LINES_MAX }) ?? LINES,
    follow: isSet(given, 'follow'),
  }),
  check: checkService,
  run: (options, world) => serviceLogs(world, planOf(options, world), options),
})

function page(
  verb: string,
  summary: string,
  { examples, flags = [] }: { examples: Page['examples']; flags?: readonly Flag[] },
): Page {
  return {
    name: `sotto service ${verb}`,
    summary,
    args: ['[WHAT]'],
    examples,
    flags: [...flags, ...KIND_FLAGS, JSON_FLAG],
    more: MORE,
  }
}

export const service = {
  install: installServiceCommand,
  uninstall: uninstallServiceCommand,
  status: statusServiceCommand,
  logs: logsServiceCommand,
} satisfies Record<string, Command>
