// What a fresh clone needs before its first command: the packages that package-lock.json pins. Plain
// JavaScript, since Node 20 runs it before anything is installed.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { constants } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('..', import.meta.url))
export const BUN = join(ROOT, 'node_modules', '.bin', 'bun')
/** Without its install script the package holds a few lines that say so, in place of the program. */
const BUN_BYTES_MIN = 1_000_000
/** One Ctrl-C may arrive twice: from the terminal, and from npm, which passes it on. */
const SAME_SIGNAL_MS = 1000

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'))
  } catch {
    return undefined
  }
}

/** Why `npm ci` must run, in a few words; undefined when what is installed is what is pinned. */
export function staleness(root = ROOT) {
  const installed = readJson(join(root, 'node_modules', '.package-lock.json'))?.packages
  if (!installed) return 'nothing is installed yet'
  const pinned = readJson(join(root, 'package-lock.json'))?.packages
  if (!pinned) return undefined
  for (const [path, { version, integrity, optional, link }] of Object.entries(pinned)) {
    if (path === '' || link) continue
    const found = installed[path]
    // Packages of other platforms are pinned as well, and rightly absent.
    if (!found && optional) continue
    const name = path.replace(/^.*node_modules\//, '')
    if (!found || !existsSync(join(root, path))) return `${name} is missing`
    if (found.version !== version || found.integrity !== integrity) {
      return `${name} is ${found.version} and not ${version}`
    }
  }
  return undefined
}

function npm(args) {
  // The npm that runs us, where one does: there may be no other.
  const running = process.env.npm_execpath
  const [command, first] = running && basename(running) === 'npm-cli.js'
    ? [process.execPath, [running]]
    : ['npm', []]
  return spawnSync(command, [...first, ...args], {
    cwd: ROOT,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    shell: process.platform === 'win32' && command === 'npm',
  })
}

function give(up, words) {
  process.stderr.write(`${up}\n${words.trim()}\n`)
  process.exit(1)
}

function bunIsWhole() {
  try {
    return statSync(BUN).size >= BUN_BYTES_MIN
  } catch {
    return false
  }
}

/** Installs when something is missing or stale; a line on stderr says so. Ends the process on failure. */
export function ensureInstalled() {
  const reason = staleness()
  if (reason !== undefined) {
    process.stderr.write(`installing what package-lock.json pins, once: ${reason}\n`)
    const quiet = ['--include=dev', '--no-audit', '--no-fund', '--loglevel=error']
    let result = npm(['ci', ...quiet])
    if (/EUSAGE/.test(result.stderr ?? '')) {
      // A registry that lacks a package for some other platform makes a lockfile that `ci` calls
      // incomplete; `install` holds to what is pinned, and asks again for what is not.
      result = npm(['install', '--no-save', ...quiet])
    }
    if (result.error || result.status !== 0) {
      give('Cannot install: npm failed.', result.error?.message ?? result.stderr.slice(0, 2000))
    }
  }
  if (bunIsWhole()) return
  // npm was told to run no install scripts: this one puts the program in its place.
  const result = spawnSync(process.execPath, ['install.js'], {
    cwd: join(ROOT, 'node_modules', 'bun'),
    encoding: 'utf8',
  })
  if (!bunIsWhole()) give('Cannot install Bun.', `${result.stderr ?? ''}${result.error ?? ''}`)
}

/** Runs a program of the agent on Bun in place of this process, as near as Node 20 comes to that. */
export function runOnBun(args) {
  const child = spawn(BUN, args, { stdio: 'inherit' })
  const passedOn = new Map()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      // The terminal tells the whole group, so the program has heard of it already.
      if (signal === 'SIGINT' && process.stdin.isTTY) return
      const now = performance.now()
      if (now - (passedOn.get(signal) ?? -Infinity) < SAME_SIGNAL_MS) return
      passedOn.set(signal, now)
      child.kill(signal)
    })
  }
  child.on('error', (error) => give('Cannot start Bun.', error.message))
  child.on('exit', (code, signal) => {
    process.exit(code ?? 128 + (constants.signals[signal] ?? 0))
  })
}
