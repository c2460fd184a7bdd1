/**
 * Installs the programs that the benchmarks race against, outside the repository.
 *
 * Each contender is optional: one that is there already is skipped, one that cannot be installed is
 * named at the end, and the benchmarks then name it as missing. The exit code is 0 either way; only a wrong
 * command line fails. Nothing here runs in `npm test`.
 *
 *     npm run bench:setup -- [--root DIR] [--only rathole,bore] [--list]
 *
 * Programs of the distribution come by apt-get (root, or sudo without a password), the others from source
 * into DIR/bin: `--root`, else $SOTTO_RIVALS, else ~/.cache/sotto-rivals.
 */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import { delimiter, join, resolve } from 'node:path'
import process from 'node:process'
import { parseArgs } from 'node:util'

/** A build that takes longer than this is given up: the slowest one took 4 minutes on two shared cores. */
const BUILD_MS_MAX = 30 * 60_000

/** A failing build shows at most this many of its last lines. */
const FAILURE_LINES = 15

/**
 * `apt`: packages by the file that shows that they are there. `cargo`, `go`: arguments of the installer.
 * `path`: not built here, used when PATH has it.
 */
const CONTENDERS = [
  { name: 'nginx', apt: ['nginx'], shows: '/usr/sbin/nginx' },
  {
    name: 'nginx stream',
    apt: ['libnginx-mod-stream'],
    shows: '/usr/lib/nginx/modules/ngx_stream_module.so',
  },
  { name: 'haproxy', apt: ['haproxy'], shows: '/usr/sbin/haproxy' },
  { name: 'sshd', apt: ['openssh-server'], shows: '/usr/sbin/sshd' },
  { name: 'wrk', apt: ['wrk'], shows: '/usr/bin/wrk' },
  { name: 'iperf3', apt: ['iperf3'], shows: '/usr/bin/iperf3' },
  { name: 'wireguard-go', apt: ['wireguard-go'], shows: '/usr/bin/wireguard-go' },
  { name: 'wg', apt: ['wireguard-tools'], shows: '/usr/bin/wg' },
  { name: 'nft', apt: ['nftables'], shows: '/usr/sbin/nft' },
  { name: 'openssl', apt: ['openssl'], shows: '/usr/bin/openssl' },
  { name: 'curl', apt: ['curl'], shows: '/usr/bin/curl' },
  {
    name: 'rathole',
    version: '0.5.0',
    // Not --locked: the `time` crate pinned there no longer compiles on a current Rust.
    cargo: ['rathole', '--version', '0.5.0'],
    needs: ['libssl-dev', 'pkg-config'],
    bin: 'rathole',
  },
  {
    name: 'bore',
    version: '0.6.0',
    cargo: ['bore-cli', '--version', '0.6.0', '--locked'],
    bin: 'bore',
  },
  {
    name: 'iroh-relay',
    version: '1.4.1',
    cargo: ['iroh-relay', '--version', '1.4.1', '--locked', '--features', 'server'],
    bin: 'iroh-relay',
  },
  {
    name: 'onetun',
    version: '0.3.10',
    cargo: ['onetun', '--version', '0.3.10', '--locked'],
    bin: 'onetun',
  },
  {
    name: 'derper',
    version: '1.102.5',
    go: 'tailscale.com/cmd/derper@v1.102.5',
    bin: 'derper',
  },
  { name: 'frp', path: ['frps', 'frpc'] },
  { name: 'chisel', path: ['chisel'] },
  { name: 'wireproxy', path: ['wireproxy'] },
]

function readOptions() {
  const { values } = parseArgs({
    options: {
      root: { type: 'string' },
      only: { type: 'string' },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const root = values.root ?? process.env['SOTTO_RIVALS'] ?? join(homedir(), '.cache/sotto-rivals')
  return {
    root: resolve(root),
    only: values.only?.split(',').map((name) => name.trim()),
    list: values.list,
    help: values.help,
  }
}

/** Where PATH (and the usual places of cargo, go and system daemons) has `program`, or undefined. */
function which(program) {
  const folders = [
    ...(process.env['PATH'] ?? '').split(delimiter),
    join(homedir(), '.cargo/bin'),
    '/usr/local/go/bin',
    '/usr/sbin',
  ]
  return folders.filter((folder) => folder !== '').map((folder) => join(folder, program))
    .find((file) => existsSync(file))
}

function isThere(contender, root) {
  if (contender.apt) return existsSync(contender.shows)
  if (contender.path) return contender.path.every((program) => which(program) !== undefined)
  return existsSync(join(root, 'bin', contender.bin))
}

/** Runs a command to its end, quietly, at the lowest priority. Resolves to undefined, or to why it failed. */
function run(command, args, environment = {}) {
  return new Promise((done) => {
    const child = spawn(command, args, {
      env: { ...process.env, ...environment },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: BUILD_MS_MAX,
    })
    let lines = []
    const keep = (data) => {
      lines = [...lines, ...String(data).split('\n')].filter((line) => line.trim() !== '')
        .slice(-FAILURE_LINES)
    }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    child.on('error', (error) => done(error.message))
    child.on('close', (code, signal) => {
      done(
        code === 0
          ? undefined
          : [`${command} ended with ${signal ?? code}`, ...lines].join('\n    '),
      )
    })
  })
}

async function aptInstall(packages) {
  const apt = which('apt-get')
  if (!apt) return `no apt-get here: install ${packages.join(' ')} by the system's own means`
  const isRoot = process.getuid?.() === 0
  if (!isRoot && spawnSync('sudo', ['-n', 'true']).status !== 0) {
    return `needs root: sudo apt-get install ${packages.join(' ')}`
  }
  const [command, prefix] = isRoot ? [apt, []] : ['sudo', ['-n', apt]]
  const environment = { DEBIAN_FRONTEND: 'noninteractive' }
  const args = [...prefix, '-q', 'install', '-y', '--no-install-recommends', ...packages]
  const failure = await run(command, args, environment)
  if (failure === undefined) return undefined
  await run(command, [...prefix, '-q', 'update'], environment)
  return run(command, args, environment)
}

function missingPackages(packages) {
  return packages.filter((name) => spawnSync('dpkg', ['-s', name]).status !== 0)
}

async function cargoInstall(contender, root) {
  const cargo = which('cargo')
  if (!cargo) return 'needs cargo (https://rustup.rs)'
  const missing = contender.needs && which('dpkg') ? missingPackages(contender.needs) : []
  if (missing.length > 0) {
    const failure = await aptInstall(missing)
    if (failure !== undefined) return failure
  }
  const target = mkdtempSync(join(tmpdir(), 'sotto-rivals-'))
  try {
    return await run('nice', ['-n', '19', cargo, 'install', ...contender.cargo, '--root', root], {
      CARGO_TARGET_DIR: target,
    })
  } finally {
    rmSync(target, { recursive: true, force: true })
  }
}

function goInstall(contender, root) {
  const go = which('go')
  if (!go) return 'needs go (https://go.dev/dl)'
  return run('nice', ['-n', '19', go, 'install', contender.go], { GOBIN: join(root, 'bin') })
}

function install(contender, root) {
  if (contender.apt) return aptInstall(contender.apt)
  if (contender.cargo) return cargoInstall(contender, root)
  if (contender.go) return goInstall(contender, root)
  return `not built here: put ${contender.path.join(' and ')} on PATH to race it`
}

async function main() {
  const { root, only, list, help } = readOptions()
  if (help) {
    console.log('usage: npm run bench:setup -- [--root DIR] [--only NAME,NAME] [--list]')
    return
  }
  const unknown = (only ?? []).filter((name) => !CONTENDERS.some((other) => other.name === name))
  if (unknown.length > 0) {
    console.error(
      `Cannot set up ${unknown.join(', ')}: expected some of ${
        CONTENDERS.map((c) => c.name).join(', ')
      }`,
    )
    process.exitCode = 2
    return
  }
  mkdirSync(join(root, 'bin'), { recursive: true })
  console.log(`contenders go to ${root}`)
  const failures = []
  for (const contender of CONTENDERS.filter(({ name }) => !only || only.includes(name))) {
    const label = [contender.name, contender.version].filter(Boolean).join(' ').padEnd(20)
    if (isThere(contender, root)) {
      console.log(`${label} there`)
      continue
    }
    if (list) {
      console.log(`${label} missing`)
      continue
    }
    const started = performance.now()
    const failure = await install(contender, root)
    const seconds = ((performance.now() - started) / 1000).toFixed(0)
    console.log(`${label} ${failure === undefined ? `installed in ${seconds} s` : 'MISSING'}`)
    if (failure !== undefined) failures.push(`${contender.name}: ${failure}`)
  }
  for (const failure of failures) console.log(`\nmissing: ${failure}`)
}

await main()
