/**
 * A serving agent with a LAN behind it, a member elsewhere, a relay between them, each a machine of its own;
 * and a stream through all of it that knows when a byte is not as it was said. Needs root, `ip` and `nft`.
 */
import { spawnSync } from 'node:child_process'
import { Namespace } from './namespace.ts'
import { BUN, E2eWorld } from './world.ts'
import type { Line, Program, RunOptions } from './world.ts'

const HOST = 'relay.sotto.test'
export const PRINTER = '192.168.1.100'

export let world: E2eWorld
/** Of the member, and of the serving machine. */
export let far: Namespace
export let near: Namespace
let lan: string
let env: Record<string, string>
export let relay: Program
let relayArgs: string[]
const running: Program[] = []

export function ip(...words: string[]): void {
  const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`)
}

export function start(words: readonly string[], options: RunOptions = {}): Program {
  const program = world.start(words[0]!, words.slice(1), options)
  running.push(program)
  return program
}

/** `sotto` of one of the two machines. */
export function sotto(space: Namespace, home: string, args: string[]): Program {
  return start([...space.within, ...world.sottoWords.split(' '), ...args], {
    home,
    env: { SOTTO_HOME: world.path(home), ...env },
  })
}

export async function serve(flags: string[] = [], route = '192.168.1.0/24'): Promise<Program> {
  const program = sotto(near, 'office', [
    ...['wg', 'serve', '--name', 'office', '--route', route, '--json', ...flags],
  ])
  await program.event('serving')
  return program
}

export async function forward(flags: string[] = []): Promise<Program> {
  const program = sotto(far, 'member', [
    ...['wg', 'forward', 'office', '-L', `7000:${PRINTER}:7000`, ...flags, '--json'],
  ])
  await program.event('listening')
  return program
}

/** The n-th line of an event. */
export function nth(program: Program, event: string, n: number): Promise<Line> {
  return program.until(
    () => program.lines.filter((line) => line.event === event)[n - 1],
    `line ${n} of "${event}"`,
    90_000,
  )
}

/** One connection that says what nobody knows, over and over, and counts what comes back as it was said. */
const TALK = `
  let sent = [], blocks = 0, at = 0
  const make = () => { const block = crypto.getRandomValues(new Uint8Array(32768)); sent.push(block); return block }
  let rest
  const write = (s, block) => { const n = s.write(block); rest = n < block.length ? block.subarray(n) : undefined }
  const fill = (s) => { while (rest === undefined && sent.length < 8) write(s, make()) }
  const over = (why) => { console.log('over ' + why + ' at ' + blocks); process.exit(1) }
  await Bun.connect({ hostname: '127.0.0.1', port: 7000, socket: {
    open: fill,
    drain(s) { if (rest) write(s, rest); fill(s) },
    data(s, bytes) {
      for (const byte of bytes) {
        if (sent[0][at] !== byte) over('another byte')
        if (++at < sent[0].length) continue
        at = 0
        sent.shift()
        if (++blocks % 16 === 0) console.log('blocks ' + blocks)
      }
      setTimeout(() => fill(s), 5)
    },
    close() { over('closed') },
    error(_, e) { over(String(e)) },
    connectError(_, e) { over(String(e)) },
  } })`

export class Talk {
  readonly program = start([...far.within, BUN, '-e', TALK])

  get blocks(): number {
    return Number(/blocks (\d+)\n(?!.*blocks)/s.exec(this.program.stdout)?.[1] ?? 0)
  }

  /** So many blocks more came back, each byte as it was. */
  async more(count = 64, msMax = 60_000): Promise<void> {
    const goal = this.blocks + count
    await this.program.until(() => this.blocks >= goal ? true : undefined, `${goal} blocks`, msMax)
  }
}

/** At the same port each time. */
export async function startRelay(): Promise<Line> {
  relay = world.sotto(relayArgs, { home: 'relay' })
  return await relay.event('listening')
}

export async function open(): Promise<void> {
  world = new E2eWorld()
  far = new Namespace(HOST)
  near = new Namespace(HOST)
  lan = `sp${process.pid % 100_000}`
  // The two machines are on wires of their own: the outside leads from one to the other.
  await world.run('sysctl', ['-qw', 'net.ipv4.ip_forward=1'])
  for (const space of [far, near]) {
    ip('-n', space.name, 'route', 'replace', 'default', 'via', space.outside)
  }
  ip('netns', 'add', lan)
  ip('-n', near.name, 'link', 'add', 'lan0', 'type', 'veth', 'peer', 'name', 'lan0', 'netns', lan)
  ip('-n', near.name, 'address', 'add', '192.168.1.1/24', 'dev', 'lan0')
  ip('-n', near.name, 'link', 'set', 'lan0', 'up')
  ip('-n', lan, 'address', 'add', `${PRINTER}/24`, 'dev', 'lan0')
  ip('-n', lan, 'link', 'set', 'lan0', 'up')
  ip('-n', lan, 'link', 'set', 'lo', 'up')
  const echo = `const flush = (s) => {
      for (; s.data.length > 0; s.data.shift()) {
        const taken = Math.max(0, s.write(s.data[0]))
        if (taken < s.data[0].length) return void (s.data[0] = s.data[0].subarray(taken))
      }
    }
    Bun.listen({ hostname: '${PRINTER}', port: 7000, socket: {
      open(s) { s.data = [] },
      data(s, bytes) { s.data.push(Uint8Array.from(bytes)); flush(s) },
      drain: flush,
    } })
    await Bun.udpSocket({ hostname: '${PRINTER}', port: 7001, socket: { data(s, d, p, a) { s.send(d, p, a) } } })
    console.log('ready')`
  const printer = world.start('ip', ['netns', 'exec', lan, BUN, '-e', echo])
  await printer.says(/ready/)
  relayArgs = ['relay', '--port', '0', '--host', '0.0.0.0', '--domain', HOST, '--json']
  const { port, fingerprint, apiKey } = await startRelay()
  relayArgs[2] = String(port)
  env = {
    SOTTO_RELAY: `https://${HOST}:${port}`,
    SOTTO_API_KEY: apiKey,
    SOTTO_RELAY_FINGERPRINT: fingerprint,
  }
  const identity = await world.sottoRun(['identity', '--json'], { home: 'member' })
  const { key } = JSON.parse(identity.stdout.split('\n')[0]!)
  await world.sottoRun(['access', 'allow', key, 'wg'], { home: 'office' })
}

export async function stopAll(): Promise<void> {
  for (const program of running.splice(0).reverse()) await program.stop()
}

export async function close(): Promise<void> {
  await world.close()
  far.close()
  near.close()
  spawnSync('ip', ['netns', 'delete', lan])
}
