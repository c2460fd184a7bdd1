/** `sotto update`: another release in the place of this program, or the one before. */
import { text, utf8 } from '../../core/bytes.ts'
import { TunnelError } from '../../core/errors.ts'
import { compareVersions } from '../../core/release.ts'
import type { Release } from '../../core/release.ts'
import type { Conn } from '../../core/socket.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import type { Page } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { bytesWords, Screen } from '../cli/screen.ts'
import { checkChoice, hostOf, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { connectTlsOut, environmentCa, readCa } from '../outward.ts'
import { Profile } from '../profile.ts'
import { RelayApi } from '../relay_api.ts'
import { ageWarning, fetchProgram, fetchRelease, judge, signerOf, tryProgram } from '../update.ts'
import type { Choice } from '../update.ts'
import type { Fetching } from '../update_fetch.ts'
import { ownerOf } from '../update_owner.ts'
import { VERSION } from '../version.ts'
import type { World } from '../world.ts'

const KEPT_BYTES_MAX = 4096

const PAGE: Page = {
  name: 'sotto update',
  summary: 'bring this program up to date',
  examples: [
    ['sotto update', 'the release that your relay hands out, if it is newer'],
    ['sotto update --check', 'only say whether there is one'],
    ['sotto update --rollback', 'the version before again'],
  ],
  flags: [
    { name: 'check', help: 'Change nothing.' },
    { name: 'version', value: 'VERSION', help: 'Take no other version.' },
    { name: 'allow-downgrade', help: 'With --version: also an older one, or the same again.' },
    { name: 'rollback', help: 'Put back the version that the last update replaced.' },
    {
      name: 'from',
      value: 'URL',
      without: "the relay's own /download/",
      help: 'Folder of a release, https alone.',
    },
    ...RELAY_FLAGS,
    JSON_FLAG,
  ],
  more:
    'Believed are releases signed by a key that is compiled into this program, whoever hands them out. The\n' +
    'new program tests itself first, and takes the place of this one in one step. What runs goes on as it\n' +
    'was until it is started again. docs/install.md says more.',
}

interface UpdateOptions {
  choice: RelayChoice
  check: boolean
  version: string | undefined
  allowDowngrade: boolean
  rollback: boolean
  from: URL | undefined
  json: boolean
}

export const update = command<UpdateOptions>({
  page: PAGE,
  read: (given) => {
    const from = textOf(given, 'from')
    return {
      choice: readChoice(given),
      check: isSet(given, 'check'),
      version: textOf(given, 'version'),
      allowDowngrade: isSet(given, 'allow-downgrade'),
      rollback: isSet(given, 'rollback'),
      from: from === undefined ? undefined : releaseUrl(from),
      json: isSet(given, 'json'),
    }
  },
  check({ choice, check, version, allowDowngrade, rollback, from }) {
    checkChoice(choice)
    if (version !== undefined) compareVersions(version, VERSION)
    if (allowDowngrade && version === undefined) {
      throw new TunnelError('cli/usage', 'Cannot go back to any version: expected --version too')
    }
    if (rollback && (check || version !== undefined || from !== undefined)) {
      throw new TunnelError('cli/usage', 'Cannot use --rollback with --check, --version or --from')
    }
  },
  run,
})

/** Where the files of a release are; a folder. Throws `cli/usage`. */
function releaseUrl(words: string): URL {
  try {
    const url = new URL(words.endsWith('/') ? words : `${words}/`)
    const plain = url.username === '' && url.password === '' && url.search === '' && url.hash === ''
    if (url.protocol === 'https:' && plain) return url
  } catch {
    // Said below.
  }
  throw new TunnelError('cli/usage', 'Cannot read --from: expected https://HOST/FOLDER')
}

async function run(options: UpdateOptions, world: World): Promise<number> {
  const screen = new Screen(world, { json: options.json })
  const { own } = world
  if (own.path === undefined || own.target === undefined) {
    throw new TunnelError('update/source', 'Cannot update: this sotto runs from its sources', {
      hint: 'Bring the sources up to date, such as by "git pull" and "npm install".',
    })
  }
  const place = { path: own.path, target: own.target }
  if (!options.check) await refuseManaged(world, place.path)
  const profile = new Profile(world)
  if (options.rollback) {
    return await profile.locked('update', () => rollback(world, { screen, path: place.path }))
  }
  if (options.check) return await check(options, world, { ...place, screen, profile })
  return await profile.locked(
    'update',
    () => replace(options, world, { ...place, screen, profile }),
  )
}

interface Around {
  path: string
  target: string
  screen: Screen
  profile: Profile
}

async function refuseManaged(world: World, path: string): Promise<void> {
  const owner = await ownerOf(world, path)
  if (!owner) return
  throw new TunnelError('update/managed', `Cannot update ${path}: ${owner.manager} keeps it`, {
    hint: `Run: ${owner.remedy}`,
  })
}

interface Found {
  release: Release
  choice: Choice
  base: URL
  fetching: Fetching
}

/** The release that is handed out, judged, and remembered if it is the newest so far. */
async function find(options: UpdateOptions, world: World, around: Around): Promise<Found> {
  const { own, crypto } = world
  const { profile, target, path, screen } = around
  const { base, fetching } = await source(options, world, screen)
  const release = await fetchRelease(base, { ...fetching, own, crypto })
  const warning = ageWarning(release, world.clock.now())
  if (warning !== undefined && options.version === undefined) {
    screen.tell(warning, { event: 'warning', fields: { line: warning } })
  }
  const kept = `${profile.stateDir}/update.json`
  const newest = await readNewest(world, kept)
  const choice = judge(release, target, {
    installed: VERSION,
    hash: await own.hash(path),
    newest,
    wanted: options.version,
    allowDowngrade: options.allowDowngrade,
  })
  if (newest === undefined || compareVersions(release.version, newest) > 0) {
    await world.files.write(kept, utf8(`${JSON.stringify({ newest: release.version })}\n`))
  }
  return { release, choice, base, fetching }
}

async function readNewest(world: World, path: string): Promise<string | undefined> {
  const content = await world.files.read(path, { bytesMax: KEPT_BYTES_MAX })
  if (!content) return undefined
  try {
    const { newest } = JSON.parse(text(content)) as { newest: string }
    compareVersions(newest, newest)
    return newest
  } catch {
    // Damaged: the versions of now and of the manifest are compared all the same.
    return undefined
  }
}

async function source(
  { from, choice }: UpdateOptions,
  world: World,
  screen: Screen,
): Promise<{ base: URL; fetching: Fetching }> {
  const { clock, signal } = world
  // --ca is about the server that was named: the one of --from, or the relay.
  const ca = from && choice.ca !== undefined
    ? await readCa(world, choice.ca, '--ca')
    : await environmentCa(world)
  const byCa = (url: URL): Promise<Conn> =>
    connectTlsOut(world, { host: hostOf(url), port: Number(url.port) || 443 }, {
      servername: hostOf(url),
      alpn: ['http/1.1'],
      ...(ca ? { ca } : {}),
    })
  if (from) return { base: from, fetching: { clock, signal, connect: byCa } }
  const joining = await join(world, choice, (line) => screen.tell(line))
  const api = new RelayApi(world, joining)
  return {
    base: new URL('/download/', joining.relay),
    fetching: {
      clock,
      signal,
      // The relay by its own identity, whoever it sends us on to by a CA.
      connect: (url) => url.origin === joining.relay.origin ? api.openProven() : byCa(url),
    },
  }
}

async function check(
  options: UpdateOptions,
  world: World,
  around: Around,
): Promise<number> {
  const { release, choice } = await find(options, world, around)
  const { version } = release
  around.screen.show('update', [
    { name: 'state', value: choice.differs ? 'available' : 'current' },
    { name: 'installed', value: VERSION },
    {
      name: 'version',
      value: version,
      line: choice.differs
        ? `sotto ${version} is there; this is ${VERSION}. "sotto update" installs it.`
        : `sotto ${VERSION} is the newest that is handed out.`,
    },
    { name: 'key', value: signerOf(release) },
  ])
  return 0
}

async function replace(options: UpdateOptions, world: World, around: Around): Promise<number> {
  const { own } = world
  const { screen, path } = around
  const { release, choice, base, fetching } = await find(options, world, around)
  const { version } = release
  if (!choice.differs) {
    await own.tidy()
    return await check(options, world, around)
  }
  screen.event('fetching', { version, file: choice.name, key: signerOf(release) })
  let status = ''
  screen.follow(() => status)
  const staged = await fetchProgram(base, choice, {
    ...fetching,
    own,
    progress: (have, whole) =>
      void (status = `sotto ${version}: ${bytesWords(have)}` +
        (whole === undefined ? '' : ` of ${bytesWords(whole)}`)),
  }).finally(() => screen.close()).catch((error) => {
    throw readOnly(error, path)
  })
  try {
    await staged.allow()
    const said = await tryProgram(world, staged.path)
    if (said !== version) {
      throw new TunnelError(
        'update/self-test',
        `Cannot use that program: found version ${said}, expected ${version} as it is signed`,
      )
    }
    await own.replace(staged.path)
  } finally {
    await staged.discard()
  }
  await done(world, { screen, path, from: VERSION, to: version })
  return 0
}

async function rollback(
  world: World,
  { screen, path }: { screen: Screen; path: string },
): Promise<number> {
  const { own } = world
  if (!await world.files.info(own.previous!)) {
    throw new TunnelError(
      'update/no-previous',
      `Cannot go back: there is no version before this one at ${own.previous}`,
      {
        hint: 'Only "sotto update" keeps one. For another version: sotto update --version VERSION',
      },
    )
  }
  if (!await own.isPreviousOurs()) {
    throw new TunnelError(
      'update/foreign',
      `Cannot go back: somebody else may have put ${own.previous} there`,
      {
        hint:
          'Look whose it is, and remove it. For another version: sotto update --version VERSION',
      },
    )
  }
  const version = await tryProgram(world, own.previous!)
  await own.restore()
  await done(world, { screen, path, from: VERSION, to: version })
  return 0
}

async function done(
  { own }: World,
  { screen, path, from, to }: { screen: Screen; path: string; from: string; to: string },
): Promise<void> {
  const others = await own.running()
  const restart = others.length === 0
    ? undefined
    : `${
      others.length === 1 ? 'One program goes' : `${others.length} programs go`
    } on with ${from}` +
      ` until started again: process ${others.slice(0, 8).join(', ')}.`
  screen.show('updated', [
    { name: 'from', value: from },
    { name: 'version', value: to, line: `sotto ${to} in place of ${from}: ${path}` },
    { name: 'path', value: path },
    { name: 'running', value: others.length, ...(restart === undefined ? {} : { line: restart }) },
    { name: 'previous', value: own.previous!, line: '"sotto update --rollback" goes back.' },
  ])
}

function readOnly(error: unknown, path: string): unknown {
  if (!(error instanceof TunnelError) || error.code !== 'files/denied') return error
  return new TunnelError(
    'update/denied',
    `Cannot update ${path}: its folder cannot be written to`,
    {
      hint:
        'Run this as the user who installed it, or install another into ~/.local/bin with the line that ' +
        "your relay's page shows.",
      cause: error,
    },
  )
}
