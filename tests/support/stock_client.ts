/**
 * A stock client of WireGuard with a printed configuration: a wireguard-go with a real TUN in a namespace of
 * its own, set up as wg-quick does it. Needs root.
 */
import { existsSync, writeFileSync } from 'node:fs'
import { Namespace } from './namespace.ts'
import type { E2eWorld, Program } from './world.ts'

let made = 0

export class StockClient {
  readonly space: Namespace
  readonly device: string
  readonly address: string
  readonly address6: string
  /** Our own address of the serving machine, as the file has it. */
  readonly server: string
  readonly endpoint: string
  readonly #world: E2eWorld
  readonly #words: string
  readonly #program: Program

  /** `space` is closed by whoever made it. */
  static async start(
    world: E2eWorld,
    words: string,
    { space }: { space: Namespace },
  ): Promise<StockClient> {
    const client = new StockClient(world, words, space)
    await client.#up()
    return client
  }

  private constructor(world: E2eWorld, words: string, space: Namespace) {
    this.#world = world
    this.#words = words
    this.space = space
    this.device = `ws${process.pid % 10_000}n${++made}`
    const [address = '', address6 = ''] = this.#value('Address').split(/, ?/)
    this.address = address.split('/')[0]!
    this.address6 = address6.split('/')[0]!
    this.server = this.#allowed[0]!.split('/')[0]!
    this.endpoint = this.#value('Endpoint')
    const [command, ...rest] = [...space.within, 'wireguard-go', '-f', this.device]
    this.#program = world.start(command!, rest)
  }

  run(...args: string[]): ReturnType<E2eWorld['run']> {
    const [command, ...rest] = [...this.space.within, ...args]
    return this.#world.run(command!, rest, { timeoutMs: 20_000 })
  }

  /** Throws with what it said unless it went well. */
  async must(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(...args)
    if (code !== 0) throw new Error(`${args.join(' ')}: ${stdout}${stderr}`)
    return stdout
  }

  async stop(): Promise<void> {
    await this.#program.stop()
  }

  get #allowed(): string[] {
    return this.#value('AllowedIPs').split(/, ?/)
  }

  #value(field: string): string {
    return new RegExp(`^${field} = (.*)$`, 'm').exec(this.#words)?.[1] ?? ''
  }

  async #up(): Promise<void> {
    const { device } = this
    for (let tries = 0; !existsSync(`/var/run/wireguard/${device}.sock`); tries++) {
      if (tries === 400) throw new Error(`wireguard-go did not start: ${this.#program.stderr}`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    const file = this.#world.path(`${device}.conf`)
    writeFileSync(file, this.#words.replaceAll(/^(Address|DNS|MTU|#).*\n/gm, ''))
    await this.must('wg', 'setconf', device, file)
    await this.must('ip', 'address', 'add', this.address, 'dev', device)
    await this.must('ip', 'address', 'add', this.address6, 'dev', device, 'nodad')
    await this.must('ip', 'link', 'set', device, 'mtu', this.#value('MTU'), 'up')
    for (const one of this.#allowed) await this.must('ip', 'route', 'replace', one, 'dev', device)
  }
}
