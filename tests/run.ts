/**
 * Runs every suite as a program, on every runtime that it names, and counts real tests: a uvu file
 * under `bun test` or `deno test` passes even when it fails. Stops at the first red suite.
 *
 *   bun tests/run.ts [--only TEXT] [--runtime bun|node|deno] [--keep-going]
 *
 * A suite may say on one of its first lines: `// runtimes: bun node deno` (default: all three for
 * core, Bun for the rest), `// seconds: 300` (wall clock limit, default 120), `// alone` (nothing
 * runs beside it), `// needs: chromium nft root` (programs, or root), `// wants: go` (the same, of what no package
 * of the distribution brings: without it the suite is named and not run, also in CI). A suite that wants something
 * may find that it is of no use: it says `not run: REASON` and runs no test.
 */
import { spawn, spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

type Runtime = 'bun' | 'node' | 'deno'

interface Job {
  file: string
  runtime: Runtime
  seconds: number
  alone: boolean
  needs: string[]
  wants: string[]
}

interface Outcome {
  job: Job
  passed: number
  failed: number
  skipped: number
  ms: number
  output: string
  problem?: string
  /** Why it ran nothing, which is no failure. */
  notRun?: string
}

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const BIN = join(ROOT, 'node_modules', '.bin')
const COMMANDS: Record<Runtime, string[]> = {
  bun: [join(BIN, 'bun')],
  node: [join(BIN, 'node'), '--no-warnings', '--experimental-strip-types'],
  deno: [join(BIN, 'deno'), 'run', '-A', '--quiet', '--unstable-kv'],
}
/** Suites that run beside each other; the machine that CI has is small. */
const AT_ONCE = 2

function find(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) return entry.name === 'node_modules' ? [] : find(path)
    return entry.name.endsWith('.test.ts') ? [path] : []
  }).sort()
}

function jobs(file: string): Job[] {
  const head = readFileSync(file, 'utf8').split('\n').slice(0, 12).join('\n')
  const said = (word: string): string[] | undefined =>
    new RegExp(`^// ${word}: (.+)$`, 'm').exec(head)?.[1]?.trim().split(/[\s,]+/)
  const name = relative(ROOT, file)
  const runtimes = (said('runtimes') ??
    (name.startsWith('tests/core/') ? ['bun', 'node', 'deno'] : ['bun'])) as Runtime[]
  const seconds = Number(said('seconds')?.[0] ?? 120)
  const alone = /^\/\/ alone$/m.test(head)
  return runtimes.map((runtime) => ({
    file: name,
    runtime,
    seconds,
    alone,
    needs: said('needs') ?? [],
    wants: said('wants') ?? [],
  }))
}

function missing(needs: string[]): string[] {
  return needs.filter((need) =>
    need === 'root'
      ? process.getuid?.() !== 0
      : spawnSync('sh', ['-c', `command -v ${need} || command -v /usr/sbin/${need}`]).status !== 0
  )
}

function run(job: Job): Promise<Outcome> {
  return new Promise((resolve) => {
    const [command, ...args] = COMMANDS[job.runtime]
    const started = performance.now()
    let output = ''
    const child = spawn(command!, [...args, job.file], {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
      env: {
        ...process.env,
        PATH: `${process.env['PATH']}:/usr/sbin:/sbin`,
        FORCE_COLOR: '0',
        NO_COLOR: '1',
      },
    })
    const end = (): void => {
      try {
        process.kill(-child.pid!, 'SIGKILL')
      } catch {
        // It has ended by itself.
      }
    }
    let late = false
    const timer = setTimeout(() => {
      late = true
      end()
    }, job.seconds * 1000)
    child.stdout.on('data', (bytes) => output += bytes)
    child.stderr.on('data', (bytes) => output += bytes)
    child.on('close', (code) => {
      clearTimeout(timer)
      end()
      const count = (word: string): number =>
        [...output.matchAll(new RegExp(`^\\s*${word}:\\s+(\\d+)`, 'gm'))].reduce(
          (sum, match) => sum + Number(match[1]),
          0,
        )
      const total = count('Total')
      const passed = count('Passed')
      const outcome: Outcome = {
        job,
        passed,
        failed: total - passed,
        skipped: count('Skipped'),
        ms: performance.now() - started,
        output,
      }
      if (late) outcome.problem = `not done after ${job.seconds} s`
      else if (code !== 0) outcome.problem = `exit code ${code}`
      else if (total === 0) {
        const [, reason] = job.wants.length > 0 ? /^not run: (.+)$/m.exec(output) ?? [] : []
        if (reason === undefined) outcome.problem = 'ran no test: is .run() missing?'
        else outcome.notRun = reason
      } else if (passed !== total) outcome.problem = `${total - passed} failed`
      else if (outcome.skipped > 0) {
        outcome.problem = `${outcome.skipped} skipped: a skip hides a gap`
      }
      resolve(outcome)
    })
  })
}

async function main(): Promise<number> {
  const args = process.argv.slice(2)
  const value = (flag: string): string | undefined =>
    args.includes(flag) ? args[args.indexOf(flag) + 1] : undefined
  const only = value('--only')
  const runtime = value('--runtime')
  const keepGoing = args.includes('--keep-going')
  const queue = find(join(ROOT, 'tests')).flatMap(jobs)
    .filter((job) => (!only || job.file.includes(only)) && (!runtime || job.runtime === runtime))
    .sort((a, b) => Number(a.alone) - Number(b.alone))
  let passed = 0
  let failed = 0
  const left: string[] = []
  const unwanted: string[] = []
  let stop = false
  const started = performance.now()
  function report(outcome: Outcome): void {
    passed += outcome.passed
    failed += outcome.failed
    const { job } = outcome
    if (outcome.notRun !== undefined) return void unwanted.push(`${job.file}: ${outcome.notRun}`)
    const line = `${job.file.replace(/^tests\//, '').replace(/\.test\.ts$/, '').padEnd(34)} ${
      job.runtime.padEnd(5)
    } ${String(outcome.passed).padStart(4)} tests ${(outcome.ms / 1000).toFixed(1).padStart(6)} s`
    if (!outcome.problem) return console.log(`  ok   ${line}`)
    if (outcome.failed === 0) failed++
    console.log(`  FAIL ${line}  ${outcome.problem}\n${outcome.output}`)
    if (!keepGoing) stop = true
  }
  function isAbsent({ file, needs, wants }: Job): boolean {
    const [absent, lacking] = [missing(needs), missing(wants)]
    if (absent.length > 0) left.push(`${file}: needs ${absent.join(', ')}`)
    else if (lacking.length > 0) unwanted.push(`${file}: wants ${lacking.join(', ')}`)
    return absent.length + lacking.length > 0
  }
  async function worker(): Promise<void> {
    for (;;) {
      const job = stop ? undefined : queue[0]
      if (!job || job.alone) return
      queue.shift()
      if (!isAbsent(job)) report(await run(job))
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
  for (const job of queue) {
    if (stop) break
    if (!isAbsent(job)) report(await run(job))
  }
  for (const line of [...left, ...unwanted]) console.log(`  not run  ${line}`)
  if (left.length > 0 && process.env['CI']) {
    console.log('In CI every suite runs: what is missing above is a failure.')
    failed += left.length
  }
  console.log(`\n${((performance.now() - started) / 1000).toFixed(0)} s`)
  console.log(`${passed} passed, ${failed} failed`)
  return failed === 0 && passed > 0 ? 0 : 1
}

process.exitCode = await main()
