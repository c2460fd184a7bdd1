/** `sotto enroll`: this machine joins a fleet, by the code or the secret of its authority. */
import { completeCode, parseCode } from '../../core/code.ts'
import type { Code } from '../../core/code.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey, parseKey } from '../../core/key.ts'
import { VOUCH_NAMES_MAX } from '../../core/statement.ts'
import { allow } from '../access.ts'
import type { Service } from '../access.ts'
import { CODE_FD_FLAG, codeFdOf, NO_CODE_IN_ARGUMENTS, readCode } from '../cli/code_entry.ts'
import { command, isSet, JSON_FLAG, listOf, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { checkName, defaultAgentName, readChoice, servicesOf } from '../cli/plan.ts'
import { Screen } from '../cli/screen.ts'
import { uplinkTeller } from '../cli/uplink_words.ts'
import { enroll, ENROLL_SERVICE, isSecret, readSecret } from '../enrolment.ts'
import type { Enrolment, EnrolmentSecret } from '../enrolment.ts'
import { publishStatement } from '../enquiry.ts'
import { checkChoice, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { isPinOf, pinPrint } from '../known_agents.ts'
import { enterRoom } from '../pairing.ts'
import { isPassing } from '../peers.ts'
import { Presence } from '../presence.ts'
import { stopped } from '../stop.ts'
import type { World } from '../world.ts'

/** For an authority's agent that is busy with the rest of the fleet, or just coming back. */
const WAIT_MS_MAX = 120_000
const RETRY_MS_MIN = 500
const RETRY_MS_MAX = 8000

const page: Page = {
  name: 'sotto enroll',
  summary: 'join a fleet by the code or the secret of its authority',
  refusesArgs: NO_CODE_IN_ARGUMENTS,
  examples: [
    ['sotto enroll --name web-1', 'Asks for the code that "sotto authority enroll-code" shows.'],
    ['sotto enroll --json', 'For programs: the code, or a secret for many, is in SOTTO_CODE.'],
  ],
  flags: [
    CODE_FD_FLAG,
    {
      name: 'name',
      value: 'NAME',
      many: true,
      without: 'agent- and the beginning of your key',
      help: 'What this machine serves, for the authority to sign.',
    },
    {
      name: 'as',
      value: 'NAME',
      without: 'what it calls itself',
      help: 'Pin the authority under this name.',
    },
    {
      name: 'allow',
      value: 'SERVICES',
      without: 'none',
      help: 'Services of this machine that all of the fleet may use, such as a2a,connect.',
    },
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more:
    `This machine pins the authority and trusts whom it vouches for; others that pin it trust this
machine. One wrong try burns a code, and both are told: exit code 5. No secret is kept.`,
}

interface EnrollOptions {
  codeFd: number | undefined
  names: string[]
  as: string | undefined
  allow: Service[]
  choice: RelayChoice
  json: boolean
}

function read(given: Given): EnrollOptions {
  return {
    codeFd: codeFdOf(given),
    names: listOf(given, 'name'),
    as: textOf(given, 'as'),
    allow: servicesOf(given, 'allow'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }
}

function check({ names, as, choice }: EnrollOptions): void {
  checkChoice(choice)
  for (const name of as === undefined ? names : [...names, as]) checkName(name)
  if (names.length > VOUCH_NAMES_MAX) {
    throw new TunnelError('cli/name', `Cannot ask for more than ${VOUCH_NAMES_MAX} names`)
  }
}

type Invitation = { kind: 'code'; code: Code } | { kind: 'secret'; secret: EnrolmentSecret }

async function run(options: EnrollOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const invitation = await readCode<Invitation>(world, options.codeFd, {
    question: 'The code that the authority shows: ',
    parse: (words) =>
      isSecret(words)
        ? { kind: 'secret', secret: readSecret(world.crypto, words) }
        : { kind: 'code', code: parseCode(words) },
    complete: completeCode,
  })
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  const presence = await Presence.open(world, {
    joining,
    tell: (sentence) => screen.tell(sentence),
    onState: uplinkTeller(screen),
    onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
  })
  const stop = stopped(world.signal)
  try {
    await Promise.race([presence.ready(), stop.promise])
    const names = options.names.length > 0 ? options.names : [defaultAgentName(joining.identity)]
    const asking = ask(world, { joining, presence, invitation, names })
    asking.catch(() => {})
    const enrolment = await Promise.race([asking, stop.promise])
    await keep(world, { options, screen, joining, presence, enrolment })
    return 0
  } finally {
    stop.done()
    if (world.signal.aborted) presence.close()
    else await presence.end()
  }
}

async function ask(
  world: World,
  { joining, presence, invitation, names }: {
    joining: Joining
    presence: Presence
    invitation: Invitation
    names: readonly string[]
  },
): Promise<Enrolment> {
  const { crypto, clock } = world
  const identity = joining.identity.public
  if (invitation.kind === 'secret') {
    const { at, key: secret } = invitation.secret
    return await patiently(world, () => meet(presence, { at }, { identity, names, secret, world }))
  }
  const name = names[0]!
  const ports = { clock, crypto, presence, joining, name }
  const peer = await enterRoom(ports, invitation.code)
  const key = formatKey(peer.identity)
  const at = peer.name
  if (!at.startsWith(`${ENROLL_SERVICE}-`)) throw notEnrolling()
  return await meet(presence, { at, key }, { identity, names, world }).catch((error) => {
    throw isTunnelError(error, 'dial/unknown') ? notEnrolling(error) : error
  })
}

/** One session with the authority's agent; nothing of it is pinned. */
async function meet(
  presence: Presence,
  { at, key }: { at: string; key?: string },
  { world, ...request }: {
    world: World
    identity: Uint8Array
    names: readonly string[]
    secret?: Uint8Array
  },
): Promise<Enrolment> {
  const found = await presence.peers.find(at, (one) => key === undefined || one === key)
  const { session } = await presence.peers.openTo(
    { key: found, how: 'code', verified: false },
    { at, name: at, service: ENROLL_SERVICE },
  )
  try {
    return await enroll(world, session, request)
  } finally {
    session.close()
  }
}

/** Tries again what may pass, with waits of chance length, so that a fleet does not come at once. */
async function patiently<T>(world: World, run: () => Promise<T>): Promise<T> {
  const { clock, crypto, signal } = world
  const deadlineMs = clock.monotonic() + WAIT_MS_MAX
  for (let waitMs = RETRY_MS_MIN;; waitMs = Math.min(RETRY_MS_MAX, waitMs * 2)) {
    try {
      return await run()
    } catch (error) {
      const { code } = asTunnelError(error, 'enroll/fault')
      const passes = isPassing(error) || code === 'enroll/timeout'
      if (!passes || signal.aborted || clock.monotonic() + waitMs > deadlineMs) throw error
    }
    const chance = crypto.randomBytes(1)[0]! / 255
    await new Promise<void>((resolve) => {
      clock.after(waitMs * (0.5 + chance), resolve)
      signal.addEventListener('abort', () => resolve(), { once: true })
    })
  }
}

async function keep(
  world: World,
  { options, screen, joining, presence, enrolment }: {
    options: EnrollOptions
    screen: Screen
    joining: Joining
    presence: Presence
    enrolment: Enrolment
  },
): Promise<void> {
  const { crypto } = world
  const { profile } = joining
  const { authority, vouch, vouchBytes } = enrolment
  const known = profile.knownAgents()
  const name = options.as ?? enrolment.name
  const print = fingerprint(crypto, parseKey(authority))
  const other = (await known.authorities()).find((pin) =>
    pin.name === name && !isPinOf(crypto, pin, authority)
  )
  if (other) throw clash(name, { print, pinned: pinPrint(crypto, other) })
  await known.trust(name, authority, { how: 'code', authority: true })
  await profile.keepStatement(vouchBytes)
  await publishStatement(presence.agent.uplink, vouchBytes)
  if (options.allow.length > 0) {
    await profile.changeAccess((rules) => ({
      rules: allow(rules, { authority: name }, options.allow),
      answer: undefined,
    }))
  }
  const until = new Date(vouch.notAfter).toISOString()
  const names = vouch.names.join(', ')
  const labels = Object.entries(vouch.labels).map(([label, value]) => `${label}=${value}`).join(',')
  screen.show('enrolled', [
    { name: 'authority', value: name, line: `enrolled by ${name}, until ${until.slice(0, 10)}` },
    { name: 'fingerprint', value: print, line: print },
    { name: 'key', value: authority },
    { name: 'serial', value: vouch.serial },
    { name: 'until', value: until },
    { name: 'names', value: names, line: `names   ${names || 'none'}` },
    { name: 'labels', value: labels, line: `labels  ${labels || 'none'}` },
    {
      name: 'allowed',
      value: options.allow.join(', '),
      line: options.allow.length > 0
        ? `its fleet may use ${options.allow.join(', ')} here`
        : `\nTo let its fleet in: sotto access allow a2a --authority ${name}`,
      whole: true,
    },
  ])
}

function clash(name: string, { print, pinned }: { print: string; pinned: string }): TunnelError {
  return new TunnelError(
    'enroll/name',
    `Cannot pin ${print} as the authority "${name}": that name is pinned to ${pinned}`,
    { hint: `Enroll with --as OTHER-NAME, or first: sotto peers forget --authority ${name}` },
  )
}

function notEnrolling(cause?: unknown): TunnelError {
  return new TunnelError(
    'enroll/away',
    'Cannot enroll: whoever showed the code waits for no machine in this scope',
    { hint: 'It may have been a code of "sotto pair": there type "sotto pair --join".', cause },
  )
}

export const enrollMachine = command({ page, read, check, run })
