/**
 * How fast does the built program start, and how big is it? `sotto --version` against the smallest program
 * that Bun compiles, and `sotto http` until its URL is there, beside a relay on this machine. Needs
 * `npm run build`; each figure is the median of many starts, the fastest beside it.
 */
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, release } from 'node:os'
import { join } from 'node:path'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { BenchOptions } from './bench.ts'
import { Lab } from './lab.ts'

const ROOT = join(import.meta.dirname, '..')
const VERSION_STARTS = 40
const HTTP_STARTS = 11
const VERSION_MS_GOAL = 50
const HTTP_MS_GOAL = 300
const START_MS_MAX = 20_000
const MIB = 2 ** 20

interface Figure {
  what: string
  medianMs: number
  fastestMs: number
  starts: number
  goalMs?: number
}

export async function start({ quick }: BenchOptions): Promise<void> {
  const lab = new Lab()
  try {
    const binary = join(ROOT, 'dist', `sotto-linux-${process.arch}`)
    const starts = quick ? 5 : VERSION_STARTS
    const figures: Figure[] = [
      measure('the smallest program of Bun', starts, smallest(lab), []),
      { ...measure('sotto --version', starts, binary, ['--version']), goalMs: VERSION_MS_GOAL },
      measure('sotto http --help', starts, binary, ['http', '--help']),
      measure('sotto --version, from the sources', starts, process.execPath, [
        join(ROOT, 'agent/main.ts'),
        '--version',
      ]),
      { ...await httpReady(lab, binary, quick ? 3 : HTTP_STARTS), goalMs: HTTP_MS_GOAL },
    ]
    report(figures, quick)
  } finally {
    await lab.close()
  }
}

function smallest(lab: Lab): string {
  const source = lab.path('smallest.ts')
  const outfile = lab.path('smallest')
  writeFileSync(source, "console.log('0.1.0')\n")
  const args = ['build', '--compile', '--minify', '--bytecode', source, '--outfile', outfile]
  const built = spawnSync(process.execPath, args, { encoding: 'utf8', timeout: START_MS_MAX })
  if (built.status !== 0) throw new Error(built.stderr)
  return outfile
}

function measure(what: string, starts: number, command: string, args: string[]): Figure {
  const times: number[] = []
  for (let i = 0; i < starts; i++) {
    const began = performance.now()
    const { status, stderr } = spawnSync(command, args, { timeout: START_MS_MAX })
    times.push(performance.now() - began)
    if (status !== 0) throw new Error(`${command}: ${stderr}`)
  }
  return figure(what, times)
}

/** From the start of the process to the line that says that the URL works. */
async function httpReady(lab: Lab, binary: string, starts: number): Promise<Figure> {
  const upstream = createServer((_, response) => response.end('hello'))
  await new Promise<void>((resolve) => upstream.listen(0, '127.0.0.1', resolve))
  const home = (name: string) => ({ ...process.env, SOTTO_HOME: lab.path(name) })
  mkdirSync(lab.path('host'), { recursive: true })
  const relayArgs = ['relay', '--port', '0', '--host', '127.0.0.1', '--json', '--grace', '0']
  const relay = spawn(binary, relayArgs, { env: home('host'), stdio: ['ignore', 'pipe', 'ignore'] })
  try {
    const { url, apiKey } = await event(relay, 'listening')
    const env = { ...home('agent'), SOTTO_RELAY: String(url), SOTTO_API_KEY: String(apiKey) }
    const { port } = upstream.address() as AddressInfo
    const times: number[] = []
    // The first start makes identity and certificate, and pins the relay: it is told apart.
    for (let i = 0; i <= starts; i++) {
      const began = performance.now()
      const args = ['http', `${port}`, '--name', 'web', '--json']
      const agent = spawn(binary, args, { env, stdio: ['ignore', 'pipe', 'ignore'] })
      await event(agent, 'up')
      if (i > 0) times.push(performance.now() - began)
      const ended = new Promise((resolve) => agent.once('exit', resolve))
      agent.kill('SIGTERM')
      await ended
    }
    return figure('sotto http, until its URL is there', times)
  } finally {
    relay.kill('SIGKILL')
    upstream.close()
  }
}

function event(
  child: ReturnType<typeof spawn>,
  name: string,
): Promise<Record<string, unknown>> {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`no "${name}"`)), START_MS_MAX)
    let said = ''
    child.stdout!.on('data', (bytes) => {
      said += bytes
      const line = said.split('\n').slice(0, -1).find((one) => one.includes(`"event":"${name}"`))
      if (line === undefined) return
      clearTimeout(late)
      resolve(JSON.parse(line))
    })
  })
}

function figure(what: string, times: number[]): Figure {
  const sorted = times.toSorted((a, b) => a - b)
  const round = (ms: number): number => Math.round(ms * 10) / 10
  return {
    what,
    medianMs: round(sorted[Math.floor(sorted.length / 2)]!),
    fastestMs: round(sorted[0]!),
    starts: times.length,
  }
}

function report(figures: Figure[], quick: boolean): void {
  const files = ['', 'relay/'].flatMap((folder) =>
    readdirSync(join(ROOT, 'dist', folder), { withFileTypes: true })
      .filter((one) => one.isFile() && (folder === '' ? /^sotto-/ : /\.m?js$/).test(one.name))
      .map(({ name }) => ({
        name: `${folder}${name}`,
        bytes: statSync(join(ROOT, 'dist', folder, name)).size,
      }))
  )
  const commit = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: ROOT, encoding: 'utf8' })
  const machine = {
    cpu: cpus()[0]?.model.trim(),
    cores: cpus().length,
    kernel: release(),
    load: loadavg()[0],
    commit: commit.stdout.trim(),
    bun: Bun.version,
  }
  const lines = [
    '# Start and size',
    '',
    `Written by \`npm run bench -- start\`. ${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Bun ${machine.bun}, commit ${machine.commit}; load before it ${
      machine.load!.toFixed(1)
    }.`,
    '',
    '| start | median | fastest | of | goal |',
    '| --- | ---: | ---: | ---: | ---: |',
    ...figures.map((one) =>
      `| ${one.what} | ${one.medianMs} ms | ${one.fastestMs} ms | ${one.starts} | ${
        one.goalMs === undefined ? '' : `< ${one.goalMs} ms`
      } |`
    ),
    '',
    '| file | size |',
    '| --- | ---: |',
    ...files.map(({ name, bytes }) => `| ${name} | ${(bytes / MIB).toFixed(1)} MiB |`),
    '',
  ]
  const name = join(ROOT, 'benchmarks', 'results', quick ? 'start.quick' : 'start')
  writeFileSync(`${name}.json`, `${JSON.stringify({ machine, figures, files }, null, 2)}\n`)
  writeFileSync(`${name}.md`, lines.join('\n'))
  console.log(lines.join('\n'))
}
