// seconds: 240
// needs: dash bash busybox curl wget minisign shellcheck unshare zsh fish root
/**
 * `curl … | sh` against a real relay, in three shells, as a person with an empty home: what it leaves
 * behind when all is well, and that it leaves nothing when anything is not.
 */
import { createHash } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { spawn, spawnSync } from 'node:child_process'
import { createServer as createClear } from 'node:http'
import { createServer as createHttps } from 'node:https'
import { connect, createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { SCRIPTS } from '../../agent/cli/completion_scripts.ts'
import { encodeMinisignKey, makeMinisignSecret, signMinisign } from '../../core/minisign.ts'
import { encodeSums, releaseComment } from '../../core/release.ts'
import { fast } from '../support/crypto.ts'
import { startBun } from '../support/relays.ts'
import type { RelayProcess } from '../support/relays.ts'
import { ROOT } from '../support/world.ts'

const RUN_MS_MAX = 60_000
const SHELLS = [['/bin/dash'], ['/bin/bash', '--posix'], ['/bin/busybox', 'sh']]
const TOOLS =
  'bash cat chmod date dirname getconf grep id ldd minisign mkdir mktemp mv rm rmdir sha256sum uname'
const MACHINE = process.arch === 'arm64' ? 'arm64' : 'x64'
const NAMES = [`sotto-linux-${MACHINE}`, 'sotto-linux-x64-baseline', `sotto-linux-${MACHINE}-musl`]
const SECRET = makeMinisignSecret(fast)

let root: string
let release: string
let relay: RelayProcess
let script: string
let counter = 0

const test = suite('e2e/install')

interface Person {
  home: string
  tools: string
}

test.before(async () => {
  root = mkdtempSync(join(tmpdir(), 'sotto-install-'))
  release = join(root, 'release')
  mkdirSync(release)
  publish('1.2.3')
  relay = await startBun({
    flags: {
      downloads: release,
      'release-key': encodeMinisignKey(SECRET).split('\n')[1]!,
      quota: 'address.requestsBurst=100000,address.requests=100000',
    },
  })
  const kept = JSON.parse(readFileSync(join(relay.data, 'certificate.json'), 'utf8'))
  writeFileSync(join(root, 'ca.pem'), kept.cert)
  writeFileSync(join(root, 'wgetrc'), `ca_certificate=${join(root, 'ca.pem')}\n`)
  const got = spawnSync('curl', [
    '-fsS',
    '--cacert',
    join(root, 'ca.pem'),
    `${relay.url}/install.sh`,
  ])
  assert.is(got.status, 0, String(got.stderr))
  script = String(got.stdout)
})

test.after(async () => {
  await relay?.stop()
  rmSync(root, { recursive: true, force: true })
})

test.before.each(() => publish('1.2.3'))

/** A release whose program is a script that says its version, sums and signature right unless told. */
function publish(
  version: string,
  wrong: { program?: string; sums?: string; comment?: string; signature?: string } = {},
): void {
  const program = wrong.program ?? `#!/bin/sh\n[ "$1" = --version ] && echo ${version}\n`
  const sum = createHash('sha256').update(program).digest('hex')
  const sums = wrong.sums ?? encodeSums(new Map(NAMES.map((name) => [name, sum])))
  for (const name of NAMES) writeFileSync(join(release, name), program)
  writeFileSync(join(release, 'SHA256SUMS'), sums)
  writeFileSync(
    join(release, 'SHA256SUMS.minisig'),
    wrong.signature ?? sign(sums, wrong.comment ?? releaseComment(version, Date.now())),
  )
}

function sign(sums: string, trustedComment: string, secret = SECRET): string {
  return signMinisign(new TextEncoder().encode(sums), { secret, trustedComment, crypto: fast })
}

/** An empty home, and a PATH with these programs alone. Its person is not root. */
function person(extra: string[] = ['curl'], without: string[] = []): Person {
  const place = join(root, `person-${counter++}`)
  const [home, tools] = [join(place, 'home'), join(place, 'tools')]
  mkdirSync(home, { recursive: true })
  mkdirSync(tools)
  for (const name of [...TOOLS.split(' '), ...extra]) {
    if (without.includes(name)) continue
    const path = ['/usr/bin', '/bin'].map((at) => join(at, name)).find(existsSync)
    symlinkSync(path!, join(tools, name))
  }
  fake({ home, tools }, 'id', 'echo 1000')
  return { home, tools }
}

/** A program of that name that says what is told, before all others. */
function fake({ tools }: Person, name: string, body: string): void {
  rmSync(join(tools, name), { force: true })
  writeFileSync(join(tools, name), `#!/bin/sh\n${body}\n`)
  chmodSync(join(tools, name), 0o755)
}

interface Options {
  args?: string[]
  shell?: string[]
  input?: string
  /** What runs the shell. */
  wrap?: string[]
}

interface Run {
  code: number | null
  out: string
}

/** The script through a pipe, as it is meant to be run. */
async function install(
  who: Person,
  { args = [], shell = SHELLS[0]!, input = script, wrap = [] }: Options = {},
): Promise<Run> {
  const [command, ...words] = [...wrap, ...shell, '-s', '--', ...args]
  const child = spawn(command!, words, {
    cwd: who.home,
    env: {
      PATH: who.tools,
      HOME: who.home,
      CURL_CA_BUNDLE: join(root, 'ca.pem'),
      SSL_CERT_FILE: join(root, 'ca.pem'),
      WGETRC: join(root, 'wgetrc'),
      LC_ALL: 'C',
    } as unknown as NodeJS.ProcessEnv,
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let out = ''
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.on('data', (part) => void (out += part))
  }
  const late = setTimeout(() => child.kill('SIGKILL'), RUN_MS_MAX)
  // A shell that refuses the script reads no more of it.
  child.stdin!.on('error', () => {})
  // Some builds of BusyBox take their own programs before those of PATH, but none before a function.
  const names = shell[0]!.endsWith('busybox') ? readdirSync(who.tools) : []
  const functions = names.map((name) => `${name}() { '${join(who.tools, name)}' "$@"; }\n`)
  child.stdin!.end(functions.join('') + input)
  const code = await new Promise<number | null>((done) => child.on('close', done))
  clearTimeout(late)
  return { code, out }
}

function tree(folder: string): string[] {
  return readdirSync(folder, { recursive: true }).map(String).sort()
}

const INSTALLED = ['.local', '.local/bin', '.local/bin/sotto']

async function refuses(who: Person, words: RegExp, options: Options = {}): Promise<void> {
  const before = tree(who.home)
  const { code, out } = await install(who, options)
  assert.is(code, 1, out)
  assert.match(out, words)
  assert.match(out, /^Nothing was changed\.$/m)
  assert.equal(tree(who.home), before, out)
}

test('shellcheck has nothing to say', () => {
  const { status, stdout } = spawnSync('shellcheck', ['-s', 'sh', '-'], { input: script })
  assert.is(status, 0, String(stdout))
})

test('three shells, curl or wget: installs, says what comes next, and does it again', async () => {
  for (const shell of SHELLS) {
    for (const tool of ['curl', 'wget']) {
      const who = person([tool])
      const first = await install(who, { shell })
      const where = `${shell} ${tool}: ${first.out}`
      assert.is(first.code, 0, where)
      assert.match(first.out, /^signature: of a release key, version 1\.2\.3$/m)
      assert.match(
        first.out,
        new RegExp(`^  \\S+/sotto login ${relay.url.slice('https://'.length)}$`, 'm'),
      )
      assert.match(first.out, /is not in PATH/)
      assert.equal(tree(who.home), INSTALLED, where)
      const program = join(who.home, '.local/bin/sotto')
      assert.is(statSync(program).mode & 0o777, 0o755)
      assert.is(String(spawnSync(program, ['--version']).stdout), '1.2.3\n')
      const again = await install(who, { shell })
      assert.is(again.code, 0, again.out)
      assert.match(again.out, /^Installed sotto 1\.2\.3 in place of 1\.2\.3:/m)
      assert.equal(tree(who.home), INSTALLED)
    }
  }
})

/** A program that prints completions as the real one does, and completes one word. */
function completing(): string {
  const cases = (['bash', 'zsh', 'fish'] as const)
    .map((shell) => `  ${shell}) cat <<'SCRIPT'\n${SCRIPTS[shell]}SCRIPT\n  ;;`).join('\n')
  return `#!/bin/sh
case $1 in
--version) echo 1.2.3 ;;
complete) printf 'http\\tabout\\n' ;;
completions) case $2 in
${cases}
esac ;;
esac
`
}

test('completions: where each shell looks, for shells that are there, again and away again', async () => {
  publish('1.2.3', { program: completing() })
  const who = person(['curl', 'cp', 'head', 'zsh', 'fish'])
  const places = {
    bash: '.local/share/bash-completion/completions/sotto',
    zsh: '.local/share/zsh/site-functions/_sotto',
    fish: '.local/share/fish/vendor_completions.d/sotto.fish',
  }
  for (const shell of SHELLS) {
    const { code, out } = await install(who, { shell })
    assert.is(code, 0, out)
    assert.match(out, /^completions: bash zsh fish, from the next shell on$/m)
    assert.match(out, /before compinit in ~\/\.zshrc: fpath\+=\(\S+\/site-functions\)$/m)
    for (const [name, place] of Object.entries(places)) {
      assert.is(readFileSync(join(who.home, place), 'utf8'), SCRIPTS[name as 'bash'])
    }
  }
  const env = { HOME: who.home, PATH: `${who.home}/.local/bin:/usr/bin:/bin`, TERM: 'dumb' }
  const asked = (command: string, args: string[]): string => {
    const { stdout, stderr } = spawnSync(command, args, {
      env: env as unknown as NodeJS.ProcessEnv,
      timeout: RUN_MS_MAX,
    })
    return `${stdout}${stderr}`
  }
  // Fish and bash-completion find it by themselves.
  assert.match(asked('fish', ['-c', 'complete -C "sotto ht"']), /^http\tabout$/m)
  const loader = '/usr/share/bash-completion/bash_completion'
  const load = existsSync(loader)
    ? `. ${loader}; _completion_loader sotto; `
    : `. ~/${places.bash}; `
  assert.match(asked('bash', ['-c', `${load}complete -p sotto`]), /-F _sotto sotto$/m)
  const zsh = `fpath=(~/.local/share/zsh/site-functions $fpath); autoload -Uz compinit; ` +
    'compinit -u -D; print -r -- "$_comps[sotto]"; autoload +X _sotto && print loaded'
  assert.is(asked('zsh', ['-f', '-c', zsh]), '_sotto\nloaded\n')
  // What is not ours is left alone, then and at the end.
  writeFileSync(join(who.home, places.fish), '# mine\n')
  const again = await install(who)
  assert.match(again.out, /^completions: bash zsh, from/m)
  const gone = await install(who, { args: ['--uninstall'] })
  assert.is(gone.code, 0, gone.out)
  assert.not.ok(existsSync(join(who.home, places.bash)) || existsSync(join(who.home, places.zsh)))
  assert.is(readFileSync(join(who.home, places.fish), 'utf8'), '# mine\n')
  const without = person(['curl', 'cp', 'head', 'zsh', 'fish'])
  assert.is((await install(without, { args: ['--no-completions'] })).code, 0)
  assert.equal(tree(without.home), INSTALLED)
})

test('a proxy is taken from the environment, and one that is not there is named', async () => {
  const who = person()
  fake(who, 'curl', 'https_proxy=http://127.0.0.1:1 exec /usr/bin/curl "$@"')
  await refuses(who, /Cannot download \S+SHA256SUMS: curl ended with (5|7|97)/)
  const seen: string[] = []
  const proxy = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', (bytes) => {
      const head = String(bytes)
      seen.push(head.split('\r\n')[0]!)
      const to = connect(Number(/:(\d+) HTTP/.exec(head)![1]), '127.0.0.1', () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n')
        socket.pipe(to).pipe(socket)
      })
      to.on('error', () => socket.destroy())
    })
  })
  await new Promise<void>((done) => proxy.listen(0, '127.0.0.1', done))
  const { port } = proxy.address() as AddressInfo
  const through = person()
  fake(through, 'curl', `https_proxy=http://127.0.0.1:${port} exec /usr/bin/curl "$@"`)
  const { code, out } = await install(through)
  assert.is(code, 0, out)
  assert.is(seen.length, 3)
  assert.ok(seen.every((line) => line.startsWith(`CONNECT localhost:${relay.port} `)), seen.join())
  await new Promise((done) => proxy.close(done))
})

test('musl without the C++ library: how to have it', async () => {
  if (existsSync('/usr/lib/libstdc++.so.6')) return
  const who = person()
  fake(who, 'ldd', "echo 'musl libc (x86_64)'")
  publish('1.2.3', { program: '#!/bin/sh\nexit 127\n' })
  await refuses(who, /The C\+\+ library is missing\. On Alpine: apk add libstdc\+\+$/m)
})

test('another wget: called with what all of them know, and that it may check nobody is said', async () => {
  const who = person([])
  fake(
    who,
    'wget',
    `[ "$*" = --version ] && echo 'BusyBox v1.36' && exit 1
[ "$1 $2 $3 $4" = '-q -T 30 -O' ] && exec /usr/bin/curl -fsS -o "$5" "$6"`,
  )
  const { code, out } = await install(who, { shell: SHELLS[2]! })
  assert.match(out, /note: this wget may not check who answers/)
  assert.is(code, 0, out)
  assert.equal(tree(who.home), INSTALLED)
  // A downloader that dies of it, as BusyBox 1.35 of Debian 12 does of every https URL.
  const dying = person([])
  fake(dying, 'wget', 'kill -SEGV $$')
  await refuses(dying, /Cannot download \S+SHA256SUMS: wget ended with 139/)
})

test('attack: a host of the files that sends on to plain http is not followed', async () => {
  const { cert, key } = JSON.parse(readFileSync(join(relay.data, 'certificate.json'), 'utf8'))
  const clear = createClear((request, response) => {
    response.end(readFileSync(join(release, request.url!.split('/').at(-1)!)))
  })
  await new Promise<void>((done) => clear.listen(0, '127.0.0.1', done))
  const secure = createHttps({ cert, key }, (request, response) => {
    const { port } = clear.address() as AddressInfo
    response.writeHead(302, { location: `http://localhost:${port}${request.url}` }).end()
  })
  await new Promise<void>((done) => secure.listen(0, '127.0.0.1', done))
  const { port } = secure.address() as AddressInfo
  const input = script.replaceAll(relay.url, `https://localhost:${port}`)
  for (const tool of ['curl', 'wget']) {
    await refuses(person([tool]), /Cannot download \S+SHA256SUMS/, { input })
  }
  for (const server of [clear, secure]) {
    server.closeAllConnections()
    server.close()
  }
})

test('neither curl nor wget, nothing that hashes: said, and nothing is changed', async () => {
  await refuses(person([]), /found neither curl nor wget/)
  await refuses(person(['curl'], ['sha256sum']), /found none of sha256sum, shasum and openssl/)
})

test('attack: a script that broke off at any place does nothing', async () => {
  const who = person()
  const ends: number[] = []
  for (let end = 0; end < script.length - 1; end += 200) ends.push(end)
  for (let back = 2; back <= 40; back++) ends.push(script.length - back)
  for (const shell of SHELLS) {
    for (const end of ends) {
      const { out } = await install(who, { shell, input: script.slice(0, end) })
      assert.equal(tree(who.home), [], `${shell} ${end}: ${out}`)
      assert.not.match(out, /Installed|SHA-256|signature/, `${shell} ${end}`)
    }
  }
})

test('attack: another program than was summed, other sums than were signed', async () => {
  const who = person()
  publish('1.2.3', { sums: `${'0'.repeat(64)}  ${NAMES[0]}\n${'0'.repeat(64)}  ${NAMES[1]}\n` })
  await refuses(who, /found SHA-256 [0-9a-f]{64}, expected 0{64}/)
  publish('1.2.3', { sums: 'no sums\n' })
  await refuses(who, /this release has no sotto-linux/)
  publish('1.2.3', { signature: sign('others\n', releaseComment('1.2.3')) })
  await refuses(who, /its signature is not of a key in this script/)
  const sums = readFileSync(join(release, 'SHA256SUMS'), 'utf8')
  const stranger = makeMinisignSecret(fast)
  publish('1.2.3', { signature: sign(sums, releaseComment('1.2.3'), stranger) })
  await refuses(who, /its signature is not of a key in this script/)
  publish('1.2.3', { comment: 'other 1.2.3' })
  await refuses(who, /its signature is not of a key in this script/)
  publish('1.2.3', { comment: releaseComment('1.2.4') })
  await refuses(who, /found version 1\.2\.3, expected 1\.2\.4 as it is signed/)
  // Attack: a release without a signature is no way round one.
  rmSync(join(release, 'SHA256SUMS.minisig'))
  await refuses(who, /Cannot download \S+SHA256SUMS\.minisig/)
})

test('told to stop in the middle: it stops, and what it had begun is gone', async () => {
  for (const shell of SHELLS) {
    for (const [name, code] of [['HUP', 129], ['INT', 130], ['TERM', 143]] as const) {
      const who = person()
      fake(
        who,
        'curl',
        `for d in .local/bin/.sotto.*; do echo half >$d/half; done; kill -${name} $PPID`,
      )
      const ended = await install(who, { shell })
      assert.is(ended.code, code, `${shell} ${name}: ${ended.out}`)
      assert.equal(tree(who.home), [])
    }
  }
})

test('without minisign it says that it did not check, or does not install if that is asked', async () => {
  const who = person(['curl'], ['minisign'])
  await refuses(who, /Cannot check the signature: minisign is not/, {
    args: ['--require-signature'],
  })
  const { code, out } = await install(who)
  assert.is(code, 0, out)
  assert.match(out, /^signature: not checked, since minisign is not installed here$/m)
})

test('what does not run here is not installed; nor is a file that has come in part', async () => {
  const who = person()
  publish('1.2.3', { program: '#!/bin/sh\necho broken >&2\nexit 1\n' })
  await refuses(who, /broken[^]*the program does not run on this machine/)
  publish('1.2.3')
  for (const name of NAMES) writeFileSync(join(release, name), '#!/bin/sh\n')
  await refuses(who, /It broke off, or somebody changed it/)
  for (const name of NAMES) rmSync(join(release, name))
  await refuses(who, /Cannot download \S+sotto-linux/)
})

test('another clock, another certificate: what curl found, and a word about the clock', async () => {
  const who = person()
  fake(who, 'curl', 'unset CURL_CA_BUNDLE SSL_CERT_FILE; exec /usr/bin/curl "$@"')
  await refuses(who, /curl ended with 60\nIs this machine's clock right\? It says /)
})

test('a full disk and a read-only folder: said, and what was there stays', async () => {
  const inside = (options: string, after = ':'): string[] => [
    '/usr/bin/unshare',
    '-m',
    '/bin/sh',
    '-c',
    `d=$HOME/full; export d; PATH=/usr/sbin:/usr/bin:/sbin:/bin mount -t tmpfs -o ${options} t "$d" ` +
    `&& echo old >"$d/sotto" && { PATH=/usr/sbin:/usr/bin:/sbin:/bin ${after}; } && "$@"; c=$?; ` +
    `echo "left: $(/bin/ls -A "$d") $(/bin/cat "$d/sotto")"; exit $c`,
    'sh',
  ]
  const who = person()
  const dir = join(who.home, 'full')
  mkdirSync(dir)
  publish('1.2.3', { program: `#!/bin/sh\necho 1.2.3\nexit\n#${'x'.repeat(500_000)}\n` })
  for (const shell of SHELLS) {
    const full = await install(who, { shell, args: ['--dir', dir], wrap: inside('size=64k') })
    assert.is(full.code, 1, full.out)
    assert.match(full.out, /Is there room in [^]*Nothing was changed\.\nleft: sotto old\n$/)
  }
  const only = await install(who, {
    args: ['--dir', dir],
    wrap: inside('size=1m', 'mount -o remount,ro "$d"'),
  })
  assert.is(only.code, 1, only.out)
  assert.match(only.out, /Cannot write to [^]*Nothing was changed\.\nleft: sotto old\n$/)
  await refuses(who, /Cannot make \/proc\/sotto/, { args: ['--dir', '/proc/sotto'] })
})

test('a newer one takes the place, an older one does not unless it is named', async () => {
  const who = person()
  assert.is((await install(who)).code, 0)
  publish('1.10.0')
  const up = await install(who)
  assert.match(up.out, /^Installed sotto 1\.10\.0 in place of 1\.2\.3:/m)
  publish('1.9.9')
  await refuses(who, /Cannot install version 1\.9\.9: 1\.10\.0 is installed, which is newer/)
  await refuses(who, /Cannot install version 1\.10\.0: this relay hands out 1\.9\.9/, {
    args: ['--version', '1.10.0'],
  })
  const down = await install(who, { args: ['--version', '1.9.9'] })
  assert.is(down.code, 0, down.out)
  assert.is(String(spawnSync(join(who.home, '.local/bin/sotto'), ['--version']).stdout), '1.9.9\n')
})

test('--dir with odd names, --uninstall, and what is not ours is left alone', async () => {
  const who = person()
  const odd = join(who.home, "it's $HOME; `id`")
  assert.is((await install(who, { args: ['--dir', odd] })).code, 0)
  assert.is((await install(who, { args: ['--dir', 'beside me'] })).code, 0)
  assert.ok(existsSync(join(who.home, 'beside me', 'sotto')))
  mkdirSync(join(who.home, '.config', 'sotto'), { recursive: true })
  writeFileSync(join(odd, '.sotto.previous'), 'the one before')
  const gone = await install(who, { args: ['--uninstall', '--dir', odd] })
  assert.is(gone.code, 0, gone.out)
  assert.equal(readdirSync(odd), [])
  assert.ok(existsSync(join(who.home, '.config', 'sotto')))
  await refuses(who, /Cannot uninstall: there is no/, { args: ['--uninstall', '--dir', odd] })
  mkdirSync(join(odd, 'sotto'))
  await refuses(who, /it is a folder/, { args: ['--dir', odd] })
  rmSync(join(odd, 'sotto'), { recursive: true })
  symlinkSync('/bin/true', join(odd, 'sotto'))
  for (const more of [[], ['--uninstall']]) {
    await refuses(who, /it is a link/, { args: ['--dir', odd, ...more] })
  }
  await refuses(who, /found the unknown flag --nope/, { args: ['--nope'] })
  await refuses(who, /--dir: found nothing after it/, { args: ['--dir'] })
  const help = await install(who, { args: ['--help'] })
  assert.is(help.code, 0)
  assert.match(help.out, /^usage: install\.sh/)
})

test('the system, the machine and the libc decide which file', async () => {
  const rows: [system: string, machine: string, libc: string, words: RegExp][] = [
    ['Linux', MACHINE === 'x64' ? 'x86_64' : 'aarch64', 'musl libc (x86_64)', /Installed/],
    ['Linux', 'aarch64', 'ldd (GNU libc) 2.36', /Installed|no sotto-linux-arm64$/m],
    ['Darwin', 'arm64', '', /this release has no sotto-darwin-arm64$/m],
    ['Darwin', 'x86_64', '', /this release has no sotto-darwin-x64$/m],
    ['Linux', 'riscv64', '', /Cannot install on riscv64/],
    ['FreeBSD', 'amd64', '', /Cannot install on FreeBSD/],
    ['MINGW64_NT-10.0', 'x86_64', '', /In PowerShell: irm https:\S+\/install\.ps1 \| iex/],
  ]
  for (const [system, machine, libc, words] of rows) {
    const who = person()
    fake(who, 'uname', `case $1 in -s) echo ${system} ;; *) echo ${machine} ;; esac`)
    fake(who, 'ldd', `echo '${libc}'`)
    const { out } = await install(who)
    assert.match(out, words, `${system} ${machine}`)
  }
})

test('a download that a visitor breaks off leaves no file open in the relay', async () => {
  const program = `#!/bin/sh\n#${'x'.repeat(50_000_000)}\n`
  publish('1.2.3', { program })
  const ca = ['--cacert', join(root, 'ca.pem')]
  const url = `${relay.url}/download/${NAMES[0]}`
  // Bun sends a stream in chunks, whatever length is said; either shows where a download broke off.
  const head = String(
    spawnSync('curl', ['-fsS', ...ca, '-D', '-', '-o', join(root, 'big'), url]).stdout,
  )
  assert.match(head, /^(content-length: 50000012|transfer-encoding: chunked)\r?$/im)
  assert.is(statSync(join(root, 'big')).size, program.length)
  const child = spawn('curl', ['-sS', ...ca, '--limit-rate', '100k', url], { stdio: 'pipe' })
  await new Promise((come) => child.stdout!.once('data', come))
  assert.ok(openFiles() > 0)
  child.kill('SIGKILL')
  while (openFiles() > 0) await new Promise((done) => setTimeout(done, 20))
})

/** Of the release, that the relay holds open. */
function openFiles(): number {
  const folder = `/proc/${relay.pid}/fd`
  return readdirSync(folder).filter((name) => {
    try {
      return readlinkSync(join(folder, name)).startsWith(release)
    } catch {
      return false
    }
  }).length
}

test('the real program, where it is built: one line, and it runs', async () => {
  const dist = join(ROOT, 'dist')
  const name = NAMES[0]!
  if (!existsSync(join(dist, 'SHA256SUMS')) || !existsSync(join(dist, name))) return
  for (const each of NAMES) rmSync(join(release, each), { force: true })
  copyFileSync(join(dist, name), join(release, name))
  const sum = createHash('sha256').update(readFileSync(join(release, name))).digest('hex')
  const sums = encodeSums(new Map([[name, sum]]))
  writeFileSync(join(release, 'SHA256SUMS'), sums)
  const version = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')).version
  writeFileSync(join(release, 'SHA256SUMS.minisig'), sign(sums, releaseComment(version)))
  const who = person()
  const { code, out } = await install(who)
  assert.is(code, 0, out)
  const ran = spawnSync(join(who.home, '.local/bin/sotto'), ['--version'], { timeout: RUN_MS_MAX })
  assert.is(String(ran.stdout).trim(), version)
})

test.run()
