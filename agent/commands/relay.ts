/**
 * `sotto relay`: a relay on this machine. The one place where the agent's program meets the relay's
 * code, which is loaded only here.
 */
import { asTunnelError } from '../../core/errors.ts'
import { formatKey } from '../../core/key.ts'
import {
  ENVIRONMENT_PREFIX,
  readSettings,
  SETTINGS,
  unknownVariables,
} from '../../relay/settings.ts'
import type { Settings } from '../../relay/settings.ts'
import type { RunningRelay } from '../../relay/serve/host.ts'
import { command, isSet, JSON_FLAG } from '../cli/page.ts'
import type { Given, Page } from '../cli/page.ts'
import { Screen } from '../cli/screen.ts'
import type { Fact } from '../cli/screen.ts'
import { Profile } from '../profile.ts'
import { keepAlive, tellReady } from '../service_notice.ts'
import { VERSION } from '../version.ts'
import type { StopReason, World } from '../world.ts'

const page: Page = {
  name: 'sotto relay',
  summary: 'run a relay on this machine',
  examples: [
    ['sotto relay', 'A relay for this machine alone, at https://localhost:8443.'],
    [
      'sotto relay --domain relay.example.com --public-ports 20000-20999',
      'One for everybody; needs DNS for the name, *.secure and *.apps under it.',
    ],
  ],
  flags: [
    ...SETTINGS.map(({ flag, value, without, help }) => ({ name: flag, value, without, help })),
    JSON_FLAG,
  ],
  more:
    `Every flag can be set as a variable too: --public-ports is ${ENVIRONMENT_PREFIX}PUBLIC_PORTS.
At a terminal --log-level is warn and --log-format text, unless set.
To manage a relay: sotto relay keys, tokens, certificates, names, grants, block, unblock.`,
}

export interface RelayOptions {
  flags: Readonly<Record<string, unknown>>
  json: boolean
}

function read(given: Given): RelayOptions {
  const { json: _, ...flags } = given.flags
  return { flags, json: isSet(given, 'json') }
}

function check({ flags }: RelayOptions): void {
  readSettings({ flags })
}

/** Starts a relay in this process; what `sotto demo` runs as well. */
export async function startRelay(
  settings: Settings,
  write: (line: string) => void,
): Promise<RunningRelay> {
  const serve = await import('../../relay/serve/bun.ts')
  return await serve.startRelay(settings, { version: VERSION, write })
}

async function run({ flags, json }: RelayOptions, world: World): Promise<number> {
  const { env, terminal, signal } = world
  const screen = new Screen(world, { json })
  const given = readSettings({
    flags: { ...(terminal.stdout.isTTY && !json ? quiet(env) : {}), ...flags },
    environment: env,
  })
  for (const { variable, perhaps } of unknownVariables(env)) {
    screen.tell(`${variable} sets nothing${perhaps ? `; did you mean ${perhaps}?` : ''}`)
  }
  const profile = new Profile(world)
  const settings = {
    ...given,
    dataDirectory: given.dataDirectory || `${profile.stateDir}/relay`,
  }
  const running = await startRelay(settings, (line) => terminal.stderr.write(`${line}\n`))
  const live = keepAlive(world)
  try {
    const origin = `https://${settings.domain}${running.port === 443 ? '' : `:${running.port}`}`
    screen.show('listening', [
      { name: 'url', value: origin, line: `${origin}/` },
      { name: 'port', value: running.port },
      { name: 'domain', value: settings.domain },
      {
        name: 'verified',
        value: `*.${settings.secureDomain}`,
        line: `verified endpoints    *.${settings.secureDomain}`,
      },
      {
        name: 'inspectable',
        value: `*.${settings.appsDomain}`,
        line: `inspectable endpoints *.${settings.appsDomain}`,
      },
      { name: 'key', value: formatKey(running.identity) },
      {
        name: 'fingerprint',
        value: running.fingerprint,
        line: `identity ${running.fingerprint}`,
      },
      ...await firstKeys(world, { running, profile, origin }),
      {
        name: 'login',
        value: `sotto login ${new URL(origin).host}`,
        line: `\nlet a machine in: there  sotto login ${new URL(origin).host}\n` +
          '                  here   sotto relay approve CODE',
        whole: true,
      },
    ])
    await tellReady(world, `listens on port ${running.port} as ${settings.domain}`)
    await new Promise<void>((resolve) => {
      if (signal.aborted) resolve()
      else signal.addEventListener('abort', () => resolve(), { once: true })
      void running.replaced.then(resolve)
    })
    const { visitors } = running.relay
    if (visitors.size > 0) {
      screen.tell(`${visitors.size} visitors finish within ${settings.graceSeconds} s`)
    }
  } catch (error) {
    await running.stop()
    throw asTunnelError(error, 'relay/fault')
  }
  await running.drain()
  live()
  screen.event('stopped', {})
  return signal.aborted ? exitCode(signal.reason as StopReason) : 0
}

/** A person at a terminal wants no log of every link, unless they said so. */
function quiet(env: World['env']): Record<string, string> {
  return {
    ...(env[`${ENVIRONMENT_PREFIX}LOG_LEVEL`] ? {} : { 'log-level': 'warn' }),
    ...(env[`${ENVIRONMENT_PREFIX}LOG_FORMAT`] ? {} : { 'log-format': 'text' }),
  }
}

/** A relay that was told to go has done its work; one that a person interrupted says so. */
function exitCode(reason: StopReason): number {
  return reason.name === 'terminate' ? 0 : reason.exitCode
}

/**
 * The first start makes the admin key, and an API key for this user. They are shown once; where this
 * profile knows no relay yet they are kept in it, so that `sotto http` works in the next terminal.
 */
async function firstKeys(
  world: World,
  { running, profile, origin }: { running: RunningRelay; profile: Profile; origin: string },
): Promise<Fact[]> {
  const { adminKey } = running
  if (adminKey === undefined) return []
  const scope = scopeOf(world.username)
  const { secret } = await running.credentials.create({ kind: 'key', scope, label: 'first start' })
  // What a service prints is kept in a journal that others may read.
  if (world.env['JOURNAL_STREAM'] && world.env['INVOCATION_ID']) {
    await profile.change({ relay: origin, apiKey: secret, adminKey })
    await profile.knownRelays().trust(new URL(origin).host, formatKey(running.identity))
    return [{
      name: 'kept',
      value: profile.settingsPath,
      line: `the admin key and an API key are kept in ${profile.settingsPath}`,
    }]
  }
  const facts: Fact[] = [
    { name: 'adminKey', value: adminKey, line: `\nadmin key  ${adminKey}` },
    { name: 'apiKey', value: secret, line: `API key    ${secret}` },
  ]
  const settings = await profile.settings()
  if (settings.relay !== undefined) {
    return [...facts, { name: 'kept', value: '', line: 'Both are shown this once: keep them.' }]
  }
  await profile.change({ relay: origin, apiKey: secret, adminKey })
  await profile.knownRelays().trust(new URL(origin).host, formatKey(running.identity))
  return [...facts, {
    name: 'kept',
    value: profile.settingsPath,
    line: `Both are shown this once, and kept for you in ${profile.settingsPath}`,
  }]
}

/** A user's name as a scope, which has the form of a DNS label. */
export function scopeOf(username: string): string {
  const label = username.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-+|-+$/g, '')
  return label === 'unknown' ? 'home' : label.slice(0, 63).replace(/-+$/, '') || 'home'
}

export const relay = command({ page, read, check, run })
