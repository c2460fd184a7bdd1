/**
 * How long is the way from nothing to a URL that a browser trusts? A minimal Debian, a terminal in it, three
 * commands as a person types them, a relay that lets them in, a CA (pebble), and Chromium in the end. Every
 * line is the program's own. Writes the figures beside the steps that others publish, and the terminal as a
 * picture (docs/first_minutes.svg). As root, since the minimal Debian is another root.
 */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { appendFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { cpus, release } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { VERSION } from '../agent/version.ts'
import { buildBinary } from '../compile/binary.ts'
import { plain, renderPicture } from '../compile/picture.ts'
import type { Shown } from '../compile/picture.ts'
import { runtimeFor } from '../compile/runtimes.ts'
import { encodeMinisignKey, makeMinisignSecret, signMinisign } from '../core/minisign.ts'
import { encodeSums, releaseComment } from '../core/release.ts'
import { openBrowser } from '../tests/support/browser.ts'
import { fast } from '../tests/support/crypto.ts'
import { startPebble } from '../tests/support/pebble.ts'
import { MIRROR, must, SUITE } from '../tests/support/roots.ts'
import type { BenchOptions } from './bench.ts'
import { Lab, which } from './lab.ts'

const ROOT = join(import.meta.dirname, '..')
/** An address of this machine's own, so that 443 is free there. */
const ADDRESS = '127.0.77.1'
const DOMAIN = 'relay.example'
const SECONDS_GOAL = 10
const DEBOOTSTRAP_MS_MAX = 300_000
const WAIT_MS_MAX = 60_000
const LOOK_MS = 20
const PROGRAMS = [
  ...['debootstrap', 'tmux', 'pebble', 'pebble-challtestsrv', 'unshare', 'certutil', 'chromium'],
]
const PAGE_TEXT = 'It works on my machine'
const COLUMNS = 92
const ROWS = 50

/** What their own pages ask of a newcomer on Linux, read in November 2026. Seconds cannot be had here: both need their cloud. */
const PUBLISHED = [
  {
    name: 'ngrok',
    commands: [
      'curl … | sudo tee … && echo … | sudo tee … && sudo apt update && sudo apt install ngrok',
      'ngrok config add-authtoken TOKEN',
      'ngrok http 3000',
    ],
    elsewhere: 'an account: a form, an e-mail to confirm, a token to copy',
    ends: 'TLS ends in their cloud',
  },
  {
    name: 'cloudflared, a quick tunnel',
    commands: [
      'curl -L … -o cloudflared && chmod +x cloudflared',
      './cloudflared tunnel --url http://localhost:3000',
    ],
    elsewhere: 'nothing',
    ends: 'TLS ends in their cloud; another name at each start',
  },
  {
    name: 'cloudflared, a name of its own',
    commands: [
      'curl -L … -o cloudflared && chmod +x cloudflared',
      'cloudflared tunnel login',
      'cloudflared tunnel create web',
      'cloudflared tunnel route dns web app.example.com',
      'cloudflared tunnel run --url http://localhost:3000 web',
    ],
    elsewhere: 'an account, a domain moved to it, a page that approves the login',
    ends: 'TLS ends in their cloud',
  },
]

export async function onboarding({ quick }: BenchOptions): Promise<void> {
  const missing = PROGRAMS.filter((program) => which(program) === undefined)
  if (missing.length > 0 || process.getuid?.() !== 0) {
    throw new Error(`Cannot run: expected root, and ${missing.join(', ') || 'nothing else'}`)
  }
  const lab = new Lab()
  const upstream = createServer((_, response) => response.end(`<h1>${PAGE_TEXT}</h1>`))
  try {
    await new Promise<void>((resolve, reject) =>
      upstream.once('error', reject).listen(3000, '127.0.0.1', resolve)
    )
    const pebble = await startPebble({ tlsPort: 443, address: ADDRESS })
    try {
      await run(lab, pebble, quick)
    } finally {
      await pebble.close()
    }
  } finally {
    upstream.close()
    await lab.close()
  }
}

async function run(
  lab: Lab,
  pebble: Awaited<ReturnType<typeof startPebble>>,
  quick: boolean,
): Promise<void> {
  const caRoot = await pebble.root()
  const program = makeRelease(lab)
  const host = { SOTTO_HOME: lab.path('host') }
  const relay = lab.spawn('relay', [
    program,
    ...[
      'relay',
      '--host',
      ADDRESS,
      '--port',
      '443',
      '--domain',
      DOMAIN,
      '--acme',
      '--agents-acme',
      'true',
    ],
    ...['--acme-directory', pebble.directory, '--acme-ca', pebble.serverCaPath],
    ...[
      '--downloads',
      lab.path('release'),
      '--release-key',
      readFileSync(lab.path('release.pub'), 'utf8'),
    ],
  ], { env: host })
  const root = makeRoot(lab, { caRoot, serverCa: pebble.serverCa })
  await until(() => trusts(root), () => `the relay has no certificate: ${relay.log()}`)

  const terminal = new Terminal(root, pebble.directory)
  try {
    const began = performance.now()
    await terminal.type(`curl -fsSL https://${DOMAIN}/install.sh | sh`)
    await terminal.until(/^ +sotto http 3000$/m)
    const installed = performance.now()
    await terminal.type(`sotto login ${DOMAIN}`)
    const [, code] = await terminal.until(/enter the code +([A-Z0-9]{4}-[A-Z0-9]{4})/)
    // The host's own terminal, where the name leads to the relay as well.
    const approved = spawnSync('unshare', [
      ...[
        '--mount',
        'sh',
        '-c',
        'mount --bind "$0" /etc/hosts && exec "$@"',
        join(root, 'etc/hosts'),
      ],
      ...[program, 'relay', 'approve', code!, '--relay', `https://${DOMAIN}`, '--yes', '--json'],
    ], {
      env: { ...process.env, ...host, SSL_CERT_FILE: lab.path('ca.pem') },
      encoding: 'utf8',
    })
    if (approved.status !== 0) throw new Error(`approve: ${approved.stdout}${approved.stderr}`)
    await terminal.until(/^ *next: sotto http/m)
    const loggedIn = performance.now()
    await terminal.type('sotto http 3000')
    const [, url] = await terminal.until(/^ *(https:\/\/3000\S+)/m)
    const up = performance.now()
    await terminal.until(/has a certificate that browsers trust/)
    const trusted = performance.now()
    await openPage(lab, url!, caRoot)
    const opened = performance.now()
    const lines = terminal.close()
    const steps = {
      installed: installed - began,
      loggedIn: loggedIn - installed,
      up: up - loggedIn,
      trusted: trusted - up,
      opened: opened - trusted,
    }
    write(lines, { steps, programMiB: Math.round(statSync(program).size / 2 ** 20), quick })
  } finally {
    terminal.close()
  }
}

interface Steps {
  installed: number
  loggedIn: number
  up: number
  trusted: number
  opened: number
}

/** A release of one program, signed; its path is given. */
function makeRelease(lab: Lab): string {
  const folder = lab.path('release')
  mkdirSync(folder)
  const secret = makeMinisignSecret(fast)
  const releaseKey = encodeMinisignKey(secret).split('\n')[1]!
  const outfile = join(folder, 'sotto-linux-x64')
  buildBinary({
    root: ROOT,
    bun: process.execPath,
    target: 'linux-x64',
    runtime: runtimeFor('linux-x64', { fetch: true }),
    outfile,
    releaseKeys: [releaseKey],
  })
  const sums = encodeSums(
    new Map([[
      'sotto-linux-x64',
      createHash('sha256').update(readFileSync(outfile)).digest('hex'),
    ]]),
  )
  writeFileSync(join(folder, 'SHA256SUMS'), sums)
  writeFileSync(
    join(folder, 'SHA256SUMS.minisig'),
    signMinisign(new TextEncoder().encode(sums), {
      secret,
      trustedComment: releaseComment(VERSION),
      crypto: fast,
    }),
  )
  writeFileSync(lab.path('release.pub'), releaseKey)
  return outfile
}

/** A minimal Debian with curl, which knows the relay's address and trusts the CA. */
function makeRoot(lab: Lab, { caRoot, serverCa }: { caRoot: string; serverCa: string }): string {
  const root = lab.path('root')
  must(
    'debootstrap',
    ['--variant=minbase', '--include=curl,ca-certificates', SUITE, root, MIRROR],
    '/',
    DEBOOTSTRAP_MS_MAX,
  )
  appendFileSync(join(root, 'etc/hosts'), `127.0.0.1 localhost\n${ADDRESS} ${DOMAIN}\n`)
  appendFileSync(join(root, 'etc/ssl/certs/ca-certificates.crt'), `${caRoot}\n${serverCa}\n`)
  writeFileSync(lab.path('ca.pem'), `${caRoot}\n${serverCa}\n`)
  appendFileSync(join(root, 'etc/passwd'), 'ana:x:1000:1000::/home/ana:/bin/bash\n')
  return root
}

function trusts(root: string): boolean {
  const url = `https://${DOMAIN}/healthz`
  return spawnSync('chroot', [root, 'curl', '-fsS', '-m', '5', url]).status === 0
}

async function until(done: () => boolean, why: () => string): Promise<void> {
  const deadline = performance.now() + WAIT_MS_MAX
  while (!done()) {
    if (performance.now() > deadline) throw new Error(why())
    await pause(LOOK_MS)
  }
}

/** A shell in the minimal Debian, in tmux; what it shows is kept with its times. */
class Terminal {
  readonly #socket = `sotto-onboarding-${process.pid}`
  readonly #shown: Shown[] = []
  readonly #began = performance.now()
  #open = true

  constructor(root: string, directory: string) {
    // tmux gives a shell the PATH that it was started with.
    const script =
      'PATH=/home/ana/.local/bin:/usr/bin:/bin:/usr/sbin && export PATH && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && ' +
      'exec chroot --userspec=1000:1000 "$0" /bin/bash --norc --noprofile'
    const home = join(root, 'home/ana')
    mkdirSync(home, { recursive: true })
    must('chown', ['1000:1000', home])
    this.#tmux([
      ...['-f', '/dev/null', 'new-session', '-d', '-x', `${COLUMNS}`, '-y', `${ROWS}`],
      ...Object.entries({
        HOME: '/home/ana',
        LANG: 'C.UTF-8',
        PS1: '$ ',
        SSL_CERT_FILE: '/etc/ssl/certs/ca-certificates.crt',
        SOTTO_ACME_DIRECTORY: directory,
      }).flatMap(([name, value]) => ['-e', `${name}=${value}`]),
      ...['--', 'unshare', '--mount', '--pid', '--fork', '--kill-child', 'sh', '-c', script, root],
    ])
  }

  async type(words: string): Promise<void> {
    await this.until(/^\$ *$/m)
    this.#tmux(['send-keys', '-l', words])
    this.#tmux(['send-keys', 'Enter'])
  }

  /** The first match of what is shown from the last typed line on. */
  async until(pattern: RegExp): Promise<RegExpExecArray> {
    let found: RegExpExecArray | null = null
    await until(() => {
      this.#look()
      found = pattern.exec(this.#lines().slice(-ROWS).join('\n'))
      return found !== null
    }, () => `${pattern} did not come:\n${this.#lines().join('\n')}`)
    return found!
  }

  #lines(): string[] {
    return this.#shown.map(({ text }) => plain(text).trimEnd())
  }

  /** New lines get the time of now; a line that has changed keeps its own. */
  #look(): void {
    const lines = this.#tmux(['capture-pane', '-e', '-p', '-S', '-200']).trimEnd().split('\n')
    const atMs = performance.now() - this.#began
    lines.forEach((text, i) => this.#shown[i] = { text, atMs: this.#shown[i]?.atMs ?? atMs })
    this.#shown.length = lines.length
  }

  close(): Shown[] {
    if (this.#open) {
      this.#look()
      spawnSync('tmux', ['-L', this.#socket, 'kill-server'])
    }
    this.#open = false
    return this.#shown
  }

  #tmux(args: string[]): string {
    const done = spawnSync('tmux', ['-L', this.#socket, ...args], {
      encoding: 'utf8',
      env: { ...process.env, LC_ALL: 'C.UTF-8' },
    })
    if (done.status === 0) return done.stdout
    throw new Error(`tmux ${args[0]}: ${done.stderr || done.error}`)
  }
}

/** Chromium, which trusts the CA's root and nothing else that is not of the web, loads the page. */
async function openPage(lab: Lab, url: string, caRoot: string): Promise<void> {
  const home = lab.path('browser')
  const store = join(home, '.pki/nssdb')
  mkdirSync(store, { recursive: true })
  writeFileSync(lab.path('root.pem'), caRoot)
  must('certutil', ['-N', '-d', `sql:${store}`, '--empty-password'])
  must('certutil', [
    '-A',
    '-d',
    `sql:${store}`,
    '-t',
    'C,,',
    '-n',
    'ca',
    '-i',
    lab.path('root.pem'),
  ])
  const browser = await openBrowser([], { home, local: `*.${DOMAIN}`, address: ADDRESS })
  try {
    const page = await browser.newPage()
    const answer = await page.goto(url)
    const text = await page.innerText('h1')
    if (answer?.status() !== 200 || text !== PAGE_TEXT) throw new Error(`the page says ${text}`)
    const picture = process.env['SOTTO_SCREENSHOT']
    if (picture) await page.screenshot({ path: picture })
  } finally {
    await browser.close()
  }
}

function write(
  lines: Shown[],
  { steps, programMiB, quick }: { steps: Steps; programMiB: number; quick: boolean },
): void {
  const total = Object.values(steps).reduce((sum, ms) => sum + ms, 0) / 1000
  const seconds = (ms: number): string => `${(ms / 1000).toFixed(2)} s`
  const commands = lines.filter(({ text }) => plain(text).startsWith('$ ') && text.length > 2)
  const text = [
    '# From nothing to a URL that a browser trusts',
    '',
    `Written by \`npm run bench -- onboarding\`. ${
      cpus()[0]?.model.trim() ?? ''
    }, ${cpus().length} cores, Linux ${release()}. A minimal Debian with curl, a relay`,
    'with a CA (pebble) on the same machine, keys typed without delay, the login approved as soon as its code was shown. The',
    `network of a real place comes on top: a download of ${programMiB} MiB, and the way to the CA. Of a login 5 s are the interval of RFC 8628.`,
    '',
    '| step | machine time |',
    '| --- | ---: |',
    `| \`curl … \\| sh\`: downloaded, checked, installed | ${seconds(steps.installed)} |`,
    `| \`sotto login\`: code shown, approved, key kept | ${seconds(steps.loggedIn)} |`,
    `| \`sotto http 3000\`: the URL is up, self-signed | ${seconds(steps.up)} |`,
    `| its certificate of the CA serves | ${seconds(steps.trusted)} |`,
    `| Chromium has started and loaded it without a warning | ${seconds(steps.opened)} |`,
    `| **all** | **${total.toFixed(2)} s** (goal: ${SECONDS_GOAL} s, ${
      total <= SECONDS_GOAL ? 'met' : '**falls short**'
    }) |`,
    '',
    '## Beside what others publish',
    '',
    'Counted from their own pages for Linux; their seconds cannot be had without their cloud and an account.',
    '',
    '| | commands | elsewhere | where TLS ends |',
    '| --- | ---: | --- | --- |',
    `| sotto, on a relay that is there | ${commands.length} | the relay\'s host approves a code, or with \`--open-signup\` the person does | on the person\'s own machine |`,
    ...PUBLISHED.map(({ name, commands, elsewhere, ends }) =>
      `| ${name} | ${commands.length} | ${elsewhere} | ${ends} |`
    ),
    '',
  ].join('\n')
  const folder = join(import.meta.dirname, 'results')
  writeFileSync(join(folder, `onboarding${quick ? '.quick' : ''}.md`), text)
  console.log(text)
  if (quick) return
  writeFileSync(
    join(ROOT, 'docs/first_minutes.svg'),
    renderPicture(trimmed(lines), 'The first minutes of sotto, in a terminal'),
  )
}

/** Without the prompt that waits at the end. */
function trimmed(lines: Shown[]): Shown[] {
  const last = lines.findLastIndex(({ text }) => !/^\$? *$/.test(plain(text)))
  return lines.slice(0, last + 1)
}
