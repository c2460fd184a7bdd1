/**
 * `sotto demo`, which is `npm start`: a relay on this machine, an agent on it, and a page that shows
 * what each of them saw. The relay's code is handed in, so that commands stay apart.
 */
import { equal, utf8 } from '../../core/bytes.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { GROUP_BYTES } from '../../core/admit.ts'
import type { Listener } from '../../core/socket.ts'
import type { RunningRelay } from '../../relay/serve/host.ts'
import { readSettings } from '../../relay/settings.ts'
import type { Settings } from '../../relay/settings.ts'
import { servePage } from '../cli/demo_page.ts'
import type { RelaySight, Visitor } from '../cli/demo_page.ts'
import { command, isSet, JSON_FLAG, numberOf, textOf } from '../cli/page.ts'
import type { Command, Given, Page } from '../cli/page.ts'
import { publish } from '../cli/publish.ts'
import type { Plan, Shown } from '../cli/publish.ts'
import { Screen } from '../cli/screen.ts'
import type { Fact } from '../cli/screen.ts'
import { parseUpstream } from '../forward.ts'
import type { Joining } from '../join.ts'
import { Profile } from '../profile.ts'
import { VERSION } from '../version.ts'
import type { World } from '../world.ts'

const NAME = 'demo'
const DOMAIN = 'localhost'
const PORT_FIRST = 8443
/** Ports tried after the first one. */
const PORTS_MAX = 50
const LOOPBACK = '127.0.0.1'

export type StartRelay = (
  settings: Settings,
  write: (line: string) => void,
) => Promise<RunningRelay>

const page: Page = {
  name: 'sotto demo',
  summary: 'a relay, an agent and a page on this machine, as "npm start" runs them',
  args: ['[UPSTREAM]'],
  examples: [
    ['sotto demo', 'A page that shows what the agent saw of you, and what the relay saw.'],
    ['sotto demo 3000', 'Your own service on port 3000 instead of the page.'],
  ],
  flags: [
    {
      name: 'port',
      value: 'PORT',
      without: `${PORT_FIRST}, or the next free one`,
      help: "The relay's port on 127.0.0.1.",
    },
    {
      name: 'state',
      value: 'PATH',
      without: 'a folder of the profile',
      help: 'Where keys and certificates of the demo are kept.',
    },
    JSON_FLAG,
  ],
}

export interface DemoOptions {
  upstream: string | undefined
  port: number | undefined
  statePath: string | undefined
  json: boolean
}

function read(given: Given): DemoOptions {
  return {
    upstream: given.args[0],
    port: numberOf(given, 'port', { min: 1, max: 65_535 }),
    statePath: textOf(given, 'state'),
    json: isSet(given, 'json'),
  }
}

function check({ upstream, statePath }: DemoOptions): void {
  if (upstream !== undefined) parseUpstream(upstream)
  if (statePath !== undefined && !/^(\/|[A-Za-z]:[\\/])/.test(statePath)) {
    throw new TunnelError(
      'cli/state',
      `Cannot use --state: found "${statePath}", expected a whole path`,
    )
  }
}

async function run(options: DemoOptions, world: World, startRelay: StartRelay): Promise<number> {
  const screen = new Screen(world, options)
  const state = options.statePath ?? `${new Profile(world).stateDir}/demo`
  const profile = new Profile({ ...world, env: { ...world.env, SOTTO_HOME: state } })
  const running = await start(world, { port: options.port, state, startRelay })
  let listener: Listener | undefined
  try {
    const joining = await joinOwn(world, { running, profile })
    const certificatePath = `${state}/${NAME}.crt`
    const tunnel = {
      name: NAME,
      kind: 'http' as const,
      mode: 'verified' as const,
      port: 0,
      onUp: async ({ certificate }: Shown): Promise<void> => {
        if (certificate) await world.files.write(certificatePath, utf8(certificate.pem))
      },
      facts: (shown: Shown) => facts(world, { shown, certificatePath, running }),
    }
    let plan: Plan
    if (options.upstream !== undefined) {
      plan = { ...tunnel, upstream: parseUpstream(options.upstream) }
    } else {
      const { clock } = world
      const saw = (visitor: Visitor): RelaySight | undefined => relaySaw(running, visitor)
      listener = await world.net.listen(
        { host: LOOPBACK, port: 0 },
        (conn) => servePage(conn, { clock, relaySaw: saw }),
      )
      plan = {
        ...tunnel,
        upstream: parseUpstream(`${LOOPBACK}:${listener.port}`),
        upstreamWords: 'a page that shows what the agent and the relay saw of you',
        // By it the page knows which of the relay's connections a request came over.
        proxyProtocol: 'v1',
      }
    }
    return await publish(world, plan, { joining, screen })
  } finally {
    await listener?.close()
    await running.stop()
  }
}

/** On the port that was asked for, else on the first free one. */
async function start(
  world: World,
  { port, state, startRelay }: { port: number | undefined; state: string; startRelay: StartRelay },
): Promise<RunningRelay> {
  const last = port ?? PORT_FIRST + PORTS_MAX
  for (let at = port ?? PORT_FIRST;; at++) {
    try {
      // Asked before anything of the relay is opened.
      await (await world.net.listen({ host: LOOPBACK, port: at }, (conn) => conn.abort())).close()
      const settings = readSettings({
        flags: { domain: DOMAIN, port: at, data: `${state}/relay`, 'log-level': 'error' },
      })
      return await startRelay(settings, (line) => world.terminal.stderr.write(`${line}\n`))
    } catch (error) {
      const taken = isTunnelError(error, 'net/in-use') || isTunnelError(error, 'listen/taken')
      if (!taken || at >= last) throw error
    }
  }
}

/** Our own relay needs no first use: its identity is known, and so is a key for it. */
async function joinOwn(
  world: World,
  { running, profile }: { running: RunningRelay; profile: Profile },
): Promise<Joining> {
  const { credentials } = running
  const kept = (await profile.settings()).apiKey
  let secret = kept
  const good = secret !== undefined &&
    await credentials.verify(secret).then(() => true, () => false)
  if (!good) {
    secret = (await credentials.create({ kind: 'key', scope: NAME, label: 'npm start' })).secret
  }
  const relay = new URL(`https://${DOMAIN}:${running.port}`)
  await profile.change({ relay: relay.origin, apiKey: secret! })
  return {
    profile,
    identity: await profile.identity(),
    relay,
    credential: { kind: 'key', secret: secret! },
    group16: world.crypto.randomBytes(GROUP_BYTES),
    labels: {},
    version: VERSION,
    pin: (relayPublic) => equal(relayPublic, running.identity),
    open: async (url) => ({
      ...await world.link.open(url, { trust: 'admission' }),
      trusted: false,
    }),
  }
}

function relaySaw({ relay }: RunningRelay, { address, port }: Visitor): RelaySight | undefined {
  for (const visitor of relay.visitors.all()) {
    if (visitor.port !== port || visitor.address !== address) continue
    return {
      serverName: `${visitor.endpoint.name}.secure.${DOMAIN}`,
      route: visitor.route === 'bulk' ? 'bulk link' : 'stream',
      fromVisitorBytes: visitor.bytes.forth,
      toVisitorBytes: visitor.bytes.back,
    }
  }
  return undefined
}

function facts(
  { env }: World,
  { shown, certificatePath, running }: {
    shown: Shown
    certificatePath: string
    running: RunningRelay
  },
): Fact[] {
  const proxied = ['https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'].some((name) => env[name])
  const curl = [
    'curl',
    ...(proxied ? ["--noproxy '*'"] : []),
    '--cacert',
    quoted(certificatePath),
    shown.place.url!,
  ].join(' ')
  return [
    {
      name: 'relay',
      value: running.fingerprint,
      line: `relay       ${running.fingerprint}\n`,
    },
    { name: 'curl', value: curl, line: curl, whole: true },
  ]
}

/** For a POSIX shell. */
function quoted(path: string): string {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`
}

export function demo(startRelay: StartRelay): Command {
  return command({
    page,
    read,
    check,
    run: (options: DemoOptions, world: World) => run(options, world, startRelay),
  })
}
