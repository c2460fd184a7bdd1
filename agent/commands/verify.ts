/** `sotto peers verify`: two people compare seven emoji, and their pins become verified ones. */
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, parseKey } from '../../core/key.ts'
import { formatSas } from '../../core/sas.ts'
import type { Emoji } from '../../core/sas.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { Screen } from '../cli/screen.ts'
import { uplinkTeller } from '../cli/uplink_words.ts'
import { checkChoice, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { isPinOf, pinPrint } from '../known_agents.ts'
import type { KnownAgent, KnownAgents } from '../known_agents.ts'
import { Presence } from '../presence.ts'
import { stopped } from '../stop.ts'
import { meet } from '../verification.ts'
import type { Verification } from '../verification.ts'
import type { World } from '../world.ts'

const QUESTION = 'The same on both, in the same order? yes or no: '
const ATTEMPTS_MAX = 5
/** Without the other side for so long, a person wonders. */
const HINT_MS = 15_000
const STILL_WAITING =
  'still waiting: it must be pinned there too, and agents of different scopes see ' +
  'each other only by "sotto relay grants add"'

interface VerifyOptions {
  name: string
  choice: RelayChoice
  json: boolean
}

export const verifyPeer = command<VerifyOptions>({
  page: {
    name: 'sotto peers verify',
    summary: 'compare seven emoji with the person at the other machine',
    args: ['NAME'],
    examples: [
      ['sotto peers verify alice', 'Alice types the same with her name for you; either may begin.'],
      ['sotto peers verify alice --json', 'For programs: "yes" or "no" on standard input.'],
    ],
    flags: [...RELAY_FLAGS, JSON_FLAG],
    more:
      `NAME is a pinned name, a KEY or a fingerprint. Both wait two minutes for the other. Compare by a
way that nobody can imitate: side by side, or by voice. Yes on both marks both pins as verified.
No on either is told to both: exit code 5. Without a terminal a line of standard input answers.`,
  },
  read: (given) => ({
    name: given.args[0]!,
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }),
  check: ({ choice }) => checkChoice(choice),
  async run(options, world) {
    const screen = new Screen(world, options)
    const joining = await join(world, options.choice, (line) => screen.tell(line))
    const known = joining.profile.knownAgents()
    const pin = await pinOf(world, known, options.name)
    const presence = await Presence.open(world, {
      joining,
      tell: (sentence) => screen.tell(sentence),
      onState: uplinkTeller(screen),
      onNotice: ({ message }) => screen.tell(`the relay says: ${message}`),
    })
    const stop = stopped(world.signal)
    let verification: Verification | undefined
    let late: { cancel(): void } | undefined
    try {
      await Promise.race([presence.ready(), stop.promise])
      screen.tell(`waiting for "${pin.name}", who has to type "sotto peers verify" too`, {
        event: 'waiting',
        fields: { name: pin.name },
      })
      late = world.clock.after(HINT_MS, () => screen.tell(STILL_WAITING))
      const ports = { ...world, presence, identity: joining.identity }
      verification = await Promise.race([meet(ports, pin, world.signal), stop.promise])
      late.cancel()
      const yes = await Promise.race([compare(world, { screen, pin, verification }), stop.promise])
      await keep(world, known, { pin, key: verification.key, yes })
      if (!yes) throw different(pin.name, 'one of you said that the emoji differ')
      const print = fingerprint(world.crypto, parseKey(verification.key))
      screen.show('verified', [
        { name: 'name', value: pin.name, line: `verified ${pin.name}` },
        { name: 'fingerprint', value: print, line: print },
        { name: 'key', value: verification.key },
      ])
      return 0
    } catch (error) {
      if (/^sas\/(commitment|reflected)$/.test(asTunnelError(error, 'verify/fault').code)) {
        await keep(world, known, { pin, key: verification!.key, yes: false })
      }
      throw error
    } finally {
      late?.cancel()
      stop.done()
      verification?.close()
      if (world.signal.aborted) presence.close()
      else await presence.end()
    }
  },
})

/** Throws `peers/unknown`, `verify/which`. */
async function pinOf(world: World, known: KnownAgents, words: string): Promise<KnownAgent> {
  const { crypto } = world
  const isIt = (pin: KnownAgent): boolean =>
    pin.name === words || pin.key === words || pinPrint(crypto, pin) === words
  const pins = (await known.list()).filter(isIt)
  const prints = [...new Set(pins.map((pin) => pinPrint(crypto, pin)))]
  if (prints.length === 1) return pins[0]!
  if (prints.length === 0) {
    throw new TunnelError('peers/unknown', `Cannot verify "${words}": it is not pinned`, {
      hint: 'See "sotto peers list". Two machines pin each other by: sotto pair',
    })
  }
  throw new TunnelError(
    'verify/which',
    `Cannot verify "${words}": found ${prints.length} identities of that name, expected one`,
    { hint: `Say which: sotto peers verify ${prints.join(' or ')}` },
  )
}

/** True when both said yes. Throws where the other end gave no answer. */
async function compare(
  world: World,
  { screen, pin, verification }: { screen: Screen; pin: KnownAgent; verification: Verification },
): Promise<boolean> {
  const emoji = await verification.emoji
  show(screen, { name: pin.name, emoji })
  // When the other one says no, or leaves, nobody has to answer any more.
  const over = new AbortController()
  const leave = (): void => over.abort()
  world.signal.addEventListener('abort', leave, { once: true })
  verification.peerSaid.then((yes) => yes || leave(), leave)
  let own: boolean | undefined
  try {
    own = await ask(world, over.signal)
  } finally {
    world.signal.removeEventListener('abort', leave)
  }
  if (own === undefined && !over.signal.aborted) {
    throw new TunnelError('verify/unanswered', 'Cannot verify: you gave no answer', {
      hint: 'Nothing was changed. Both may start again.',
    })
  }
  if (own !== undefined) {
    verification.answer(own)
    if (!own) {
      await verification.sent()
      return false
    }
    screen.tell(`waiting for what "${pin.name}" says`)
  }
  return await verification.outcome()
}

function show(
  screen: Screen,
  { name, emoji }: { name: string; emoji: readonly Emoji[] },
): void {
  screen.show('compare', [
    { name: 'name', value: name, line: `Compare with the screen of "${name}":\n` },
    { name: 'emoji', value: emoji.map((one) => one.name).join(', '), line: formatSas(emoji) },
    { name: 'symbols', value: emoji.map(({ symbol }) => symbol).join(' ') },
  ])
}

async function ask({ terminal }: World, signal: AbortSignal): Promise<boolean | undefined> {
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const words = await terminal.prompt({ question: QUESTION, fresh: true, signal })
    if (words === undefined) return undefined
    if (/^\s*y(es)?\s*$/i.test(words)) return true
    if (/^\s*no?\s*$/i.test(words)) return false
  }
  return undefined
}

async function keep(
  { crypto }: World,
  known: KnownAgents,
  { pin, key, yes }: { pin: KnownAgent; key: string; yes: boolean },
): Promise<void> {
  if (!isPinOf(crypto, pin, key)) throw different(pin.name, 'the session is with another identity')
  for (const one of await known.list()) {
    if (isPinOf(crypto, one, key)) await known.verify(one.name, key, yes)
  }
}

function different(name: string, found: string): TunnelError {
  return new TunnelError('verify/different', `Cannot verify "${name}": ${found}`, {
    hint: [
      'SOMEBODY MAY SIT BETWEEN THE TWO OF YOU. Trust nothing that came from there.',
      `Both: sotto peers forget ${name}, then pair anew: sotto pair`,
    ].join('\n'),
  })
}
