/** `sotto pair`: two agents get to know each other by a code that one shows and the other types. */
import { completeCode, parseCode } from '../../core/code.ts'
import type { Code } from '../../core/code.ts'
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import type { PairedPeer } from '../../core/pairing.ts'
import { allow } from '../access.ts'
import type { Service } from '../access.ts'
import {
  CODE_FD_FLAG,
  codeFdOf,
  NO_CODE_IN_ARGUMENTS,
  readCode,
  showCode,
} from '../cli/code_entry.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { checkName, defaultAgentName, readChoice, servicesOf } from '../cli/plan.ts'
import { Screen } from '../cli/screen.ts'
import { uplinkTeller } from '../cli/uplink_words.ts'
import { checkChoice, join } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { isPinOf, pinPrint } from '../known_agents.ts'
import { enterRoom, PairRoom } from '../pairing.ts'
import { Presence } from '../presence.ts'
import { stopped } from '../stop.ts'
import type { World } from '../world.ts'

const page: Page = {
  name: 'sotto pair',
  summary: 'pair with another machine by a short code',
  refusesArgs: NO_CODE_IN_ARGUMENTS,
  examples: [
    ['sotto pair', 'Shows a code, good for 10 minutes and one try.'],
    ['sotto pair --join', 'On the other machine: asks for that code; Tab completes its words.'],
    ['sotto pair --as alice --allow a2a,connect', 'Keep whoever comes as "alice", and let her in.'],
  ],
  flags: [
    { name: 'join', help: 'Type a code that the other machine shows.' },
    CODE_FD_FLAG,
    {
      name: 'as',
      value: 'NAME',
      without: 'what the other side calls itself',
      help: 'Pin the other side under this name.',
    },
    {
      name: 'name',
      value: 'NAME',
      without: 'agent- and the beginning of your key',
      help: 'What the other side is to call this machine: the name that it serves.',
    },
    {
      name: 'allow',
      value: 'SERVICES',
      without: 'none',
      help: 'Services of this machine that the other side may use, such as a2a,connect.',
    },
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more:
    `Both machines pin each other's identity. One wrong try burns the code, and both are told that
somebody guessed: exit code 5. --code-fd and SOTTO_CODE imply --join.`,
}

interface PairOptions {
  joins: boolean
  codeFd: number | undefined
  as: string | undefined
  name: string | undefined
  allow: Service[]
  choice: RelayChoice
  json: boolean
}

function read(given: Given): PairOptions {
  const codeFd = codeFdOf(given)
  return {
    joins: isSet(given, 'join') || codeFd !== undefined,
    codeFd,
    as: textOf(given, 'as'),
    name: textOf(given, 'name'),
    allow: servicesOf(given, 'allow'),
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }
}

function check({ as, name, choice }: PairOptions): void {
  if (as !== undefined) checkName(as)
  if (name !== undefined) checkName(name)
  checkChoice(choice)
}

async function run(options: PairOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const joins = options.joins || Boolean(world.env['SOTTO_CODE'])
  // Before anything is opened: a person takes a while.
  const code = joins ? await askCode(world, options.codeFd) : undefined
  const joining = await join(world, options.choice, (line) => screen.tell(line))
  const tellState = uplinkTeller(screen)
  let room: PairRoom | undefined
  const presence = await Presence.open(world, {
    joining,
    tell: (sentence) => screen.tell(sentence),
    onState: (state) => {
      tellState(state)
      if (state.kind === 'down') room?.lost()
    },
    onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
    onPair: (stream) => room ? room.accept(stream) : stream.reset(1),
  })
  const stop = stopped(world.signal)
  try {
    await Promise.race([presence.ready(), stop.promise])
    const name = options.name ?? defaultAgentName(joining.identity)
    const ports = { ...world, presence, joining, name }
    let peer: PairedPeer
    if (code) peer = await Promise.race([enterRoom(ports, code), stop.promise])
    else {
      room = await Promise.race([PairRoom.open(ports), stop.promise])
      showCode(world, screen, {
        code: room.code,
        expires: room.expires,
        whom: 'one other machine',
        typed: 'sotto pair --join',
      })
      peer = await Promise.race([room.paired, stop.promise])
    }
    await keep(world, { options, screen, joining, peer })
    return 0
  } finally {
    stop.done()
    await room?.close()
    presence.close()
  }
}

function askCode(world: World, fd: number | undefined): Promise<Code> {
  return readCode(world, fd, {
    question: 'The code that the other machine shows: ',
    parse: parseCode,
    complete: completeCode,
  })
}

async function keep(
  world: World,
  { options, screen, joining, peer }: {
    options: PairOptions
    screen: Screen
    joining: Joining
    peer: PairedPeer
  },
): Promise<void> {
  const { crypto } = world
  const known = joining.profile.knownAgents()
  const key = formatKey(peer.identity)
  const print = fingerprint(crypto, peer.identity)
  // SCOPE.NAME is how others write it; a pin is of the name alone.
  const name = options.as ?? peer.name.split('.').at(-1)!
  const other = (await known.find(name)).find((pin) => !isPinOf(crypto, pin, key))
  if (other) throw clash(name, { print, pinned: pinPrint(crypto, other) })
  if ((await known.revoked()).includes(key)) throw revoked(print)
  await known.trust(name, key, { how: 'code' })
  if (options.allow.length > 0) {
    await joining.profile.changeAccess((rules) => ({
      rules: allow(rules, { peer: name }, options.allow),
      answer: undefined,
    }))
  }
  const may = options.allow.join(', ')
  screen.show('paired', [
    { name: 'name', value: name, line: `paired with ${name}` },
    { name: 'fingerprint', value: print, line: print },
    { name: 'key', value: key },
    {
      name: 'allowed',
      value: may,
      line: may === ''
        ? `\nTo let it in: sotto access allow ${name} a2a connect`
        : `it may use ${may} here`,
      whole: true,
    },
  ])
}

function clash(name: string, { print, pinned }: { print: string; pinned: string }): TunnelError {
  return new TunnelError(
    'pair/name',
    `Cannot pin ${print} as "${name}": that name is pinned to ${pinned}`,
    {
      hint: `The other side has pinned this machine already. Pair again with --as OTHER-NAME, or ` +
        `first: sotto peers forget ${name}`,
    },
  )
}

function revoked(print: string): TunnelError {
  return new TunnelError('trust/revoked', `Cannot pin ${print}: it has revoked itself`, {
    hint: 'Its owner said that this identity must not be used any more.',
  })
}

export const pair = command({ page, read, check, run })
