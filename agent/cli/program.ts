/**
 * From the command line to a command: finds the verb, reads its arguments by its page, runs it, and
 * says what went wrong. Commands are loaded when they are asked for, so that each starts fast.
 */
import { Command as Parser, CommanderError, Option } from 'commander'
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { inProfile } from '../profiles.ts'
import { VERSION } from '../version.ts'
import type { StopReason, World } from '../world.ts'
import { NETWORK_VERBS } from './network_verbs.ts'
import {
  describeError,
  pageWidth,
  PROFILE_FLAG,
  renderOverview,
  renderPage,
  ROOT_FLAGS,
  unknownVerb,
} from './page.ts'
import type { Command, Flag, Given, Page } from './page.ts'

const EXIT_ERROR = 1
const EXIT_USAGE = 2
/** Errors that a script wants to tell from all others. */
const EXIT_CODES: Readonly<Record<string, number>> = {
  'pair/guessed': 5,
  'verify/different': 5,
  'sas/commitment': 5,
  'sas/reflected': 5,
}

interface Verb {
  summary: string
  load?(): Promise<Command>
  verbs?: Readonly<Record<string, Verb>>
}

const VERBS: Readonly<Record<string, Verb>> = {
  login: {
    summary: 'log in to a relay, by a code that a person approves or with a key',
    load: async () => (await import('../commands/login.ts')).login,
  },
  logout: {
    summary: "revoke the profile's key at its relay, and forget it here",
    load: async () => (await import('../commands/logout.ts')).logout,
  },
  profiles: {
    summary: 'profiles: a relay, a key, pins and an identity each',
    load: async () => (await import('../commands/profiles.ts')).profiles,
    verbs: {
      list: {
        summary: 'list the profiles',
        load: async () => (await import('../commands/profiles.ts')).listProfiles,
      },
      use: {
        summary: 'use a profile wherever none is named',
        load: async () => (await import('../commands/profiles.ts')).useOne,
      },
      remove: {
        summary: 'remove a profile for good',
        load: async () => (await import('../commands/profiles.ts')).removeOne,
      },
    },
  },
  http: {
    summary: 'give a local HTTP service a public https URL',
    load: async () => (await import('../commands/http.ts')).http,
  },
  tcp: {
    summary: 'let chosen agents, or anybody, reach a local TCP service',
    load: async () => (await import('../commands/tcp.ts')).tcp,
  },
  udp: {
    summary: 'open a UDP port of the relay onto a local service',
    load: async () => (await import('../commands/udp.ts')).udp,
  },
  up: {
    summary: 'run the tunnels of a file, in one process over one link',
    load: async () => (await import('../commands/up.ts')).up,
  },
  down: {
    summary: 'end a running "sotto up"',
    load: async () => (await import('../commands/down.ts')).down,
  },
  logs: {
    summary: 'show what happened in a running "sotto up"',
    load: async () => (await import('../commands/logs.ts')).logs,
  },
  config: {
    summary: 'the file of "sotto up"',
    verbs: {
      check: {
        summary: 'say whether a file is right, and what is wrong where',
        load: async () => (await import('../commands/config.ts')).checkCommand,
      },
      schema: {
        summary: 'print the JSON schema of the file, for editors',
        load: async () => (await import('../commands/config.ts')).schemaCommand,
      },
    },
  },
  connect: {
    summary: "reach another agent's private endpoint",
    load: async () => (await import('../commands/connect.ts')).connect,
  },
  pair: {
    summary: 'pair with another machine by a short code',
    load: async () => (await import('../commands/pair.ts')).pair,
  },
  relay: {
    summary: 'run a relay, or manage one',
    load: async () => (await import('../commands/relay.ts')).relay,
    verbs: {
      approve: {
        summary: 'let a machine in that shows this code',
        load: async () => (await import('../commands/approve.ts')).approve,
      },
      backup: {
        summary: 'write the data of a relay into one file, while it runs',
        load: async () => (await import('../commands/backup.ts')).backup,
      },
      restore: {
        summary: 'put a backup into an empty folder',
        load: async () => (await import('../commands/backup.ts')).restoreBackup,
      },
      keys: credentialVerbs('keys', 'API keys'),
      tokens: credentialVerbs('tokens', 'fleet tokens'),
      certificates: {
        summary: 'client certificates that are revoked',
        verbs: {
          list: {
            summary: 'list the revoked certificates',
            load: async () => (await import('../commands/certificates.ts')).listCertificates,
          },
          revoke: {
            summary: 'revoke a client certificate at once',
            load: async () => (await import('../commands/certificates.ts')).revokeCertificate,
          },
          restore: {
            summary: 'let a client certificate admit again',
            load: async () => (await import('../commands/certificates.ts')).restoreCertificate,
          },
        },
      },
      block: {
        summary: 'cut a name or a scope off at once',
        load: async () => (await import('../commands/names.ts')).block,
      },
      unblock: {
        summary: 'let a name or a scope in again',
        load: async () => (await import('../commands/names.ts')).unblock,
      },
      names: {
        summary: 'reserved names',
        verbs: {
          list: {
            summary: 'list the reserved names',
            load: async () => (await import('../commands/names.ts')).listNames,
          },
          release: {
            summary: 'release a name that nobody serves now',
            load: async () => (await import('../commands/names.ts')).releaseName,
          },
        },
      },
      grants: {
        summary: 'names that one scope shows to another',
        verbs: {
          list: {
            summary: 'list the names that scopes show to each other',
            load: async () => (await import('../commands/grants.ts')).listGrants,
          },
          add: {
            summary: 'show names of your scope to another',
            load: async () => (await import('../commands/grants.ts')).addGrant,
          },
          remove: {
            summary: 'show them no more',
            load: async () => (await import('../commands/grants.ts')).removeGrant,
          },
        },
      },
    },
  },
  a2a: {
    summary: 'messages between agents',
    verbs: {
      send: {
        summary: 'send a message to another agent, or to many',
        load: async () => (await import('../commands/a2a_send.ts')).sendA2a,
      },
      listen: {
        summary: 'take messages from other agents',
        load: async () => (await import('../commands/a2a_listen.ts')).listenA2a,
      },
    },
  },
  wg: { summary: 'private networks over WireGuard, without root', verbs: NETWORK_VERBS },
  audit: {
    summary: 'what passed in sessions, signed by both sides',
    verbs: {
      list: {
        summary: 'list the sessions that this agent has kept',
        load: async () => (await import('../commands/audit.ts')).listAudit,
      },
      show: {
        summary: 'show what is kept of one session',
        load: async () => (await import('../commands/audit.ts')).showAudit,
      },
      export: {
        summary: 'write a trail into a file, for others',
        load: async () => (await import('../commands/audit.ts')).exportAudit,
      },
      verify: {
        summary: 'verify a trail, offline',
        load: async () => (await import('../commands/audit_file.ts')).verifyAudit,
      },
      compare: {
        summary: "compare both sides' trails of one session",
        load: async () => (await import('../commands/audit_file.ts')).compareAudit,
      },
      open: {
        summary: 'show that a content is the one that was sent',
        load: async () => (await import('../commands/audit_file.ts')).openAudit,
      },
    },
  },
  agents: {
    summary: 'list the agents that you see',
    load: async () => (await import('../commands/agents.ts')).agents,
  },
  status: {
    summary: 'show the relay, the identity and what is being served',
    load: async () => (await import('../commands/status.ts')).status,
  },
  identity: {
    summary: 'show who this agent is',
    load: async () => (await import('../commands/identity.ts')).identity,
    verbs: {
      rotate: {
        summary: 'move to a new identity, which the old one signs',
        load: async () => (await import('../commands/identity.ts')).rotateIdentity,
      },
      'revoke-certificate': {
        summary: 'print what ends this identity for good, to be kept offline',
        load: async () => (await import('../commands/identity.ts')).revokeCertificate,
      },
      revoke: {
        summary: 'end an identity by its revocation certificate',
        load: async () => (await import('../commands/identity.ts')).revokeIdentity,
      },
    },
  },
  peers: {
    summary: 'pins: which identity is behind which name',
    load: async () => (await import('../commands/peers.ts')).peers,
    verbs: {
      list: {
        summary: 'list the pins',
        load: async () => (await import('../commands/peers.ts')).listPeers,
      },
      trust: {
        summary: 'pin an identity to a name',
        load: async () => (await import('../commands/peers.ts')).trustPeer,
      },
      verify: {
        summary: 'compare seven emoji with the person at the other machine',
        load: async () => (await import('../commands/verify.ts')).verifyPeer,
      },
      forget: {
        summary: 'remove the pins of a name',
        load: async () => (await import('../commands/peers.ts')).forgetPeer,
      },
    },
  },
  enroll: {
    summary: 'join a fleet by the code or the secret of its authority',
    load: async () => (await import('../commands/enroll.ts')).enrollMachine,
  },
  authority: {
    summary: 'vouch for a fleet',
    verbs: {
      init: {
        summary: 'make an authority',
        load: async () => (await import('../commands/authority.ts')).initAuthority,
      },
      'enroll-code': {
        summary: 'let machines join a fleet: one by a code, or many by a secret',
        load: async () => (await import('../commands/enroll_code.ts')).enrollCode,
      },
      sign: {
        summary: 'vouch for identities',
        load: async () => (await import('../commands/authority.ts')).signVouches,
      },
      publish: {
        summary: 'give signed statements to the relay',
        load: async () => (await import('../commands/authority.ts')).publishStatements,
      },
      revoke: {
        summary: 'take vouches back',
        load: async () => (await import('../commands/authority.ts')).revokeVouches,
      },
      list: {
        summary: 'list what was signed and taken back',
        load: async () => (await import('../commands/authority.ts')).listVouches,
      },
    },
  },
  access: {
    summary: 'who may do what on this machine',
    verbs: {
      list: {
        summary: 'list the rules',
        load: async () => (await import('../commands/access.ts')).listAccess,
      },
      allow: {
        summary: 'let a peer use services',
        load: async () => (await import('../commands/access.ts')).allowAccess,
      },
      deny: {
        summary: 'take services from a peer',
        load: async () => (await import('../commands/access.ts')).denyAccess,
      },
    },
  },
  update: {
    summary: 'bring this program up to date',
    load: async () => (await import('../commands/update.ts')).update,
  },
  service: {
    summary: 'have the agent or a relay run always',
    verbs: {
      install: {
        summary: 'install a service, and start it',
        load: async () => (await import('../commands/service.ts')).service.install,
      },
      uninstall: {
        summary: 'stop a service and remove it',
        load: async () => (await import('../commands/service.ts')).service.uninstall,
      },
      status: {
        summary: 'show how a service is',
        load: async () => (await import('../commands/service.ts')).service.status,
      },
      logs: {
        summary: 'show what a service has printed',
        load: async () => (await import('../commands/service.ts')).service.logs,
      },
    },
  },
  doctor: {
    summary: 'find what is wrong, and say what to do',
    load: async () => (await import('../commands/doctor.ts')).doctor,
  },
  domains: {
    summary: 'domains of your own that lead to endpoints',
    verbs: {
      check: {
        summary: 'whether a domain is ready, and which records to set',
        load: async () => (await import('../commands/domains.ts')).checkDomains,
      },
    },
  },
  completions: {
    summary: 'print what a shell loads to complete command lines',
    load: async () => (await import('../commands/completions.ts')).completions,
  },
  explain: {
    summary: 'what an error code means and what to do about it',
    load: async () => (await import('../commands/explain.ts')).explain,
  },
  demo: {
    summary: 'a relay, an agent and a page on this machine, as "npm start" runs them',
    load: async () => {
      const [{ demo }, { startRelay }] = await Promise.all([
        import('../commands/demo.ts'),
        import('../commands/relay.ts'),
      ])
      return demo(startRelay)
    },
  },
}

const ROOT_VERB: Verb = {
  summary: 'private tunnels through relays that cannot listen',
  verbs: VERBS,
}

function credentialVerbs(what: 'keys' | 'tokens', words: string): Verb {
  const load = (verb: 'create' | 'list' | 'revoke') => async (): Promise<Command> =>
    what === 'keys'
      ? (await import('../commands/keys.ts')).keys[verb]
      : (await import('../commands/tokens.ts')).tokens[verb]
  const one = words.replace(/s$/, '')
  return {
    summary: `${words} that admit agents`,
    verbs: {
      create: { summary: `make an ${one}`.replace('an f', 'a f'), load: load('create') },
      list: { summary: `list the ${words}`, load: load('list') },
      revoke: { summary: `revoke an ${one}`.replace('an f', 'a f'), load: load('revoke') },
    },
  }
}

/** Runs one command line and gives the exit code. Errors are told here, to the person, once. */
export async function runProgram(typed: readonly string[], world: World): Promise<number> {
  const { argv, profile } = takeProfile(typed)
  const { stdout, stderr } = world.terminal
  let json = argv.includes('--json')
  let started = false
  try {
    if (argv[0] === 'self-test') return await (await import('../self_test.ts')).selfTest(world)
    if (argv[0] === 'complete') return await complete(argv.slice(1), world)
    const found = find(argv)
    if (found.kind === 'text' || found.kind === 'overview') {
      stdout.write(
        found.kind === 'text'
          ? found.text
          : renderOverview(found.name, found.verb, pageWidth(stdout)),
      )
      return 0
    }
    if (found.kind === 'unknown') throw await unknownVerb(found)
    const command = await found.verb.load!()
    // Words of a program that follow are not ours.
    json = found.rest.slice(0, splitRest(command.page, found.rest).at).includes('--json')
    const given = readArguments(command.page, found.rest)
    if (given === 'help') {
      stdout.write(renderPage(command.page, pageWidth(stdout)))
      return 0
    }
    const { [PROFILE_FLAG.name]: named, ...flags } = given.flags
    const run = command.prepare({ ...given, flags })
    const own = await inProfile(world, typeof named === 'string' ? named : profile)
    started = true
    return await run(own)
  } catch (thrown) {
    // What breaks because the person stopped it is no error.
    if (world.signal.aborted) return (world.signal.reason as StopReason).exitCode
    const error = asTunnelError(thrown, 'cli/fault')
    if (json) stdout.write(`${JSON.stringify({ event: 'error', ...error.toJSON() })}\n`)
    stderr.write(`${describeError(error, stderr)}\n`)
    return started ? EXIT_CODES[error.code] ?? EXIT_ERROR : EXIT_USAGE
  }
}

/** `--profile NAME` before the command, where it is typed for all of them alike. */
function takeProfile(typed: readonly string[]): { argv: readonly string[]; profile?: string } {
  const [first, second] = typed
  const flag = `--${PROFILE_FLAG.name}`
  if (first === flag && second !== undefined) return { argv: typed.slice(2), profile: second }
  if (first?.startsWith(`${flag}=`)) {
    return { argv: typed.slice(1), profile: first.slice(flag.length + 1) }
  }
  return { argv: typed }
}

/** `sotto complete -- WORDS`, which shells ask: one offer a line. On no page, since nobody types it. */
async function complete(argv: readonly string[], world: World): Promise<number> {
  const [first] = argv
  const typed = first === '--new' ? [...argv.slice(2), ''] : argv.slice(first === '--' ? 1 : 0)
  const { argv: words, profile } = takeProfile(typed)
  const { offers } = await import('./completion.ts')
  let verb = ROOT_VERB
  let at = 0
  while (at < words.length - 1 && verb.verbs && Object.hasOwn(verb.verbs, words[at]!)) {
    verb = verb.verbs[words[at++]!]!
  }
  const page = (await verb.load?.())?.page
  const verbs: (readonly [string, string])[] = Object.entries(verb.verbs ?? {})
    .map(([word, { summary }]) => [word, summary])
  if (verb === ROOT_VERB && words[at]?.startsWith('-')) {
    for (const { name, help } of ROOT_FLAGS) verbs.push([`--${name}`, help])
  }
  // A wrong profile is told by commands, not into the middle of a line.
  const own = await inProfile(world, profile).catch(() => world)
  const found = await offers({ verbs, rest: words.slice(at), ...(page && { page }) }, own)
  world.terminal.stdout.write(found.map(({ word, about }) => `${word}\t${about}\n`).join(''))
  return 0
}

/** Every word path that leads somewhere, with its page, or the overview of what is below it. */
export async function everyPage(): Promise<{ path: string; text: string; page?: Page }[]> {
  const pages: { path: string; text: string; page?: Page }[] = []
  async function walk(path: string, verb: Verb): Promise<void> {
    if (verb.load) {
      const { page } = await verb.load()
      pages.push({ path, text: renderPage(page), page })
    } else pages.push({ path, text: renderOverview(path, verb) })
    for (const [word, below] of Object.entries(verb.verbs ?? {})) {
      await walk(`${path} ${word}`, below)
    }
  }
  await walk('sotto', ROOT_VERB)
  return pages
}

type Found =
  | { kind: 'text'; text: string }
  | { kind: 'overview'; name: string; verb: Verb }
  | { kind: 'verb'; verb: Verb; rest: string[] }
  | { kind: 'unknown'; path: string[]; typed: string; known: string[] }

/** Walks down the tree of verbs as far as words lead. */
function find(argv: readonly string[]): Found {
  const words = [...argv]
  if (words[0] === 'help') return find([...words.slice(1), '--help'])
  let verb = ROOT_VERB
  const path = ['sotto']
  while (verb.verbs && words[0] !== undefined && Object.hasOwn(verb.verbs, words[0])) {
    verb = verb.verbs[words[0]]!
    path.push(words.shift()!)
  }
  if (path.length === 1 && (words[0] === '--version' || words[0] === '-V')) {
    return { kind: 'text', text: `${VERSION}\n` }
  }
  const helps = words[0] === undefined || words[0] === '--help' || words[0] === '-h'
  if (verb.load && !(verb.verbs && words[0] !== undefined && !words[0].startsWith('-'))) {
    return { kind: 'verb', verb, rest: words }
  }
  if (helps) return { kind: 'overview', name: path.join(' '), verb }
  return { kind: 'unknown', path, typed: words[0]!, known: Object.keys(verb.verbs ?? {}) }
}

/** The flag that takes all that follows it, and where it is; else the end. */
function splitRest(page: Page, argv: readonly string[]): { flag: Flag | undefined; at: number } {
  const flag = page.flags.find(({ rest, name }) => rest && argv.includes(`--${name}`))
  return { flag, at: flag === undefined ? argv.length : argv.indexOf(`--${flag.name}`) }
}

/** Reads arguments by the page; `help` when the page itself was asked for. Throws `cli/usage`. */
export function readArguments(page: Page, argv: readonly string[]): Given | 'help' {
  const parser = new Parser(page.name)
    .exitOverride()
    .configureOutput({ writeOut: () => {}, writeErr: () => {} })
    .allowExcessArguments(false)
    .helpOption('-h, --help')
  for (const arg of page.args ?? []) {
    parser.argument(arg.startsWith('[') ? arg : `<${arg}>`)
  }
  const { flag: rest, at: cut } = splitRest(page, argv)
  const known = page.flags.some(({ name }) => name === PROFILE_FLAG.name)
    ? page.flags
    : [...page.flags, PROFILE_FLAG]
  for (const { name, short, value, many, rest } of known) {
    if (rest) continue
    const letter = short === undefined ? '' : `-${short}, `
    const words = value === undefined ? '' : value.startsWith('[') ? ' [value]' : ' <value>'
    const option = new Option(`${letter}--${name}${words}`)
    if (many) option.argParser((one: string, before: string[] = []) => [...before, one])
    parser.addOption(option)
  }
  try {
    parser.parse(argv.slice(0, cut), { from: 'user' })
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    if (error.code === 'commander.helpDisplayed') return 'help'
    if (error.code === 'commander.excessArguments' && page.refusesArgs !== undefined) {
      throw new TunnelError('cli/argument', `Cannot take that argument: ${page.refusesArgs}`)
    }
    const words = error.message.replace(/^error: /, '').replace(/\s*\n\s*/g, ' ')
    throw new TunnelError('cli/usage', `Cannot read the command line: ${words}`, {
      hint: `See "${page.name} --help".`,
    })
  }
  const values = parser.opts()
  const flags: Record<string, string | boolean | string[]> = {}
  for (const option of parser.options) {
    const value: unknown = values[option.attributeName()]
    if (value !== undefined) flags[option.name()] = value as string | boolean | string[]
  }
  if (rest) {
    flags[rest.name] = argv.slice(cut + 1)
    if (cut + 1 === argv.length) {
      throw new TunnelError(
        'cli/usage',
        `Cannot read the command line: --${rest.name} needs ${rest.value}`,
        { hint: `See "${page.name} --help".` },
      )
    }
  }
  return { args: parser.args, flags }
}
