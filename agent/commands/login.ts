/** `sotto login`: a key for a relay, by a code that a person approves, or one that is at hand. */
import { text } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Given } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { qrPicture } from '../cli/qr.ts'
import { Screen } from '../cli/screen.ts'
import { enquire } from '../enquiry.ts'
import { checkChoice, credentialOf, join, parseRelay, relayOf } from '../join.ts'
import type { Joining, RelayChoice } from '../join.ts'
import { deviceLogin } from '../login.ts'
import type { LoginCode } from '../login.ts'
import { Profile, profileName } from '../profile.ts'
import type { Settings } from '../profile.ts'
import { RelayApi } from '../relay_api.ts'
import type { World } from '../world.ts'

const KEY_BYTES_MAX = 4096
/** Of a terminal that does not say. */
const ROWS_USUAL = 24
/** What stands beneath the QR code. */
const WORDS_ROWS = 8

interface LoginOptions {
  choice: RelayChoice
  keyFile: string | undefined
  promptKey: boolean
  json: boolean
}

function read(given: Given): LoginOptions {
  return {
    choice: { ...readChoice(given), relay: given.args[0] },
    keyFile: textOf(given, 'key-file'),
    promptKey: isSet(given, 'prompt-key'),
    json: isSet(given, 'json'),
  }
}

function check({ choice, keyFile, promptKey }: LoginOptions): void {
  checkChoice(choice)
  if (keyFile === undefined || !promptKey) return
  throw new TunnelError('cli/usage', 'Cannot take a key from a file and from a prompt: say one', {
    hint: 'See "sotto login --help".',
  })
}

async function run(options: LoginOptions, world: World): Promise<number> {
  const screen = new Screen(world, options)
  const profile = new Profile(world)
  const settings = await profile.settings()
  const relay = relayOf(world, { choice: options.choice, kept: settings.relay })
  const same = isSame(profile, settings, relay)
  if (!same) refuseOther(world, settings, relay)
  const shown = await shownKey(options, world)
  const choice = { ...options.choice, relay: relay.origin }
  let relayKey: Uint8Array | undefined
  const joined = await join(world, choice, (line) => screen.tell(line))
  const joining: Joining = {
    ...joined,
    pin: (key) => {
      relayKey = key
      return joined.pin(key)
    },
  }
  const secret = shown ?? await deviceLogin(world, joining, {
    code: (code) => void showCode(screen, code, { world, joining }),
    trouble: (error) => screen.trouble(error),
  })
  const { id, scope, kind } = await checkKey(world, joining, secret)
  if (relayKey) await profile.knownRelays().trust(relay.host, formatKey(relayKey))
  const demanded = choice.fingerprint
  await profile.change({
    relay: relay.origin,
    // A fingerprint of the relay before says nothing of this one.
    ...(demanded === undefined
      ? (same ? {} : { relayFingerprint: undefined })
      : { relayFingerprint: demanded }),
    // What an operator may do is kept apart from what tunnels use.
    ...(kind === 'admin' ? { adminKey: secret } : { apiKey: secret }),
  })
  const name = profileName(world)
  screen.show('login', [
    {
      name: 'relay',
      value: relay.origin,
      line: kind === 'admin'
        ? `logged in to ${relay.origin} as its operator`
        : `logged in to ${relay.origin}, scope ${scope}`,
    },
    { name: 'scope', value: scope },
    { name: 'kind', value: kind },
    { name: 'id', value: id },
    { name: 'profile', value: name, ...(name === 'default' ? {} : { line: `profile ${name}` }) },
    {
      name: 'next',
      value: kind === 'admin' ? 'sotto relay keys list' : 'sotto http 3000',
      line: `next: ${kind === 'admin' ? 'sotto relay keys list' : 'sotto http 3000'}`,
    },
  ])
  return 0
}

function isSame(profile: Profile, { relay }: Settings, other: URL): boolean {
  return relay !== undefined && parseRelay(relay, profile.settingsPath).host === other.host
}

/** A profile is of one relay: keys for another would go where they do not belong. */
function refuseOther(world: World, settings: Settings, relay: URL): void {
  if (settings.apiKey === undefined && settings['adminKey'] === undefined) return
  throw new TunnelError(
    'login/other-relay',
    `Cannot log in to ${relay.host}: the profile "${
      profileName(world)
    }" has a key for ${settings.relay}`,
    {
      hint: `Keep both: sotto login ${relay.host} --profile NAME. Or leave that one: sotto logout`,
    },
  )
}

/** A key that is at hand; undefined: there is none, and a person is to approve. */
async function shownKey(
  { keyFile, promptKey }: LoginOptions,
  world: World,
): Promise<string | undefined> {
  let secret: string | undefined
  let from: string
  if (keyFile !== undefined) {
    from = keyFile
    const path = keyFile.startsWith('/') ? keyFile : `${world.directory}/${keyFile}`
    const content = await world.files.read(path, { bytesMax: KEY_BYTES_MAX })
    if (!content) {
      throw new TunnelError(
        'relay/credential',
        `Cannot read a key from ${path}: found no such file`,
        {
          hint: 'Without --key-file, "sotto login RELAY" shows a code to approve.',
        },
      )
    }
    secret = text(content).trim()
  } else if (promptKey) {
    from = 'the prompt'
    secret = (await world.terminal.prompt({
      question: 'API key: ',
      hidden: true,
      signal: world.signal,
    }))?.trim()
  } else {
    const variable = world.env['SOTTO_API_KEY']
    if (!variable) return undefined
    from = 'SOTTO_API_KEY'
    secret = variable.trim()
  }
  if (!secret) {
    throw new TunnelError('relay/credential', `Cannot read a key from ${from}: found nothing`)
  }
  credentialOf(secret)
  return secret
}

/** The relay admits this identity with the key, and says what it is. */
async function checkKey(
  world: World,
  joining: Joining,
  secret: string,
): Promise<{ id: string; scope: string; kind: string }> {
  // An admin key is for the API; no link is made with it.
  if (!secret.startsWith('ak_')) {
    await enquire(world, { ...joining, credential: credentialOf(secret) }, () => Promise.resolve())
  }
  const grant = await new RelayApi(world, joining, secret).call('GET', '/grant')
  const { id, scope, kind } = (grant ?? {}) as Record<string, unknown>
  return { id: String(id), scope: String(scope), kind: String(kind) }
}

async function showCode(
  screen: Screen,
  { userCode, page, pageWithCode, seconds }: LoginCode,
  { world, joining }: { world: World; joining: Joining },
): Promise<void> {
  const { terminal, crypto } = world
  const print = fingerprint(crypto, joining.identity.public)
  const isWatched = terminal.stdout.isTTY && !screen.isJson
  // A picture says nothing to who has the lines read out.
  if (isWatched && !screen.looks.plain) {
    const { lines, width } = await qrPicture(pageWithCode, screen.looks)
    const { columns, rows = ROWS_USUAL } = terminal.stdout
    // Above the words, and only with room for all: what is to be typed must not scroll away.
    if (width <= columns && lines.length + WORDS_ROWS <= rows) screen.print(['', ...lines])
  }
  screen.show('code', [
    { name: 'page', value: page, line: `to be let in, open  ${page}`, whole: true },
    { name: 'code', value: userCode, line: `and enter the code  ${userCode}` },
    { name: 'fingerprint', value: print, line: `this identity asks  ${print}` },
    { name: 'pageWithCode', value: pageWithCode },
    { name: 'seconds', value: seconds },
    {
      name: 'approve',
      value: `sotto relay approve ${userCode}`,
      line: `or the relay's host types: sotto relay approve ${userCode}`,
      whole: true,
    },
  ])
  if (isWatched) {
    terminal.stderr.write(`waiting for ${Math.round(seconds / 60)} minutes; Ctrl-C gives up\n`)
  }
}

export const login = command<LoginOptions>({
  page: {
    name: 'sotto login',
    summary: 'log in to a relay, by a code that a person approves or with a key',
    args: ['[RELAY]'],
    examples: [
      ['sotto login relay.example', 'Shows a code; whoever may let you in enters it.'],
      ['sotto login relay.example --profile work', 'A second relay, in a profile of its own.'],
      ['sotto login relay.example --key-file ana.key', 'With a key that you were given.'],
      ['sotto login relay.example --prompt-key', 'The same, pasted and not shown.'],
    ],
    flags: [
      { name: 'key-file', value: 'PATH', help: 'File with an API key, or an admin key.' },
      { name: 'prompt-key', help: 'Ask for the key; without a terminal, the next line of input.' },
      ...RELAY_FLAGS.filter(({ name }) => name !== 'relay'),
      JSON_FLAG,
    ],
    more:
      `Without RELAY it is SOTTO_RELAY, else that of the profile. Where SOTTO_API_KEY is set, that
key is kept. A key is kept after the relay has let this identity in with it, and not before.`,
  },
  read,
  check,
  run,
})
