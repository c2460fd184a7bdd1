/**
 * Who asks for names on this machine, told to ask a network: systemd-resolved, which forgets it with the
 * interface, or resolvconf (Debian's, openresolv). Where there is neither nothing is changed, since nobody
 * would change it back.
 */
import { isTunnelError } from '../../core/errors.ts'
import type { World } from '../world.ts'
import type { IpProgram } from './ip_program.ts'

const RESOLVED = '/run/systemd/resolve/stub-resolv.conf'

export class SystemNames {
  readonly #world: Pick<World, 'files'>
  readonly #ip: IpProgram
  readonly #name: string

  constructor(world: Pick<World, 'files'>, ip: IpProgram, name: string) {
    this.#world = world
    this.#ip = ip
    this.#name = name
  }

  /** What asks the network from now on; undefined: nothing here can be told to. */
  async use(servers: readonly string[]): Promise<string | undefined> {
    if (await this.#world.files.info(RESOLVED).catch(() => undefined)) {
      const done = await this.#run('resolvectl', ['dns', this.#name, ...servers]) &&
        await this.#run('resolvectl', ['domain', this.#name, '~.'])
      if (done) return 'systemd-resolved'
    }
    const lines = servers.map((server) => `nameserver ${server}\n`).join('')
    // As wg-quick has it: before all others, and they not at all.
    if (await this.#run('resolvconf', ['-a', this.#record, '-m', '0', '-x'], lines)) {
      return 'resolvconf'
    }
    return undefined
  }

  /** Also what a process that was killed has left. */
  async forget(): Promise<void> {
    await this.#run('resolvconf', ['-d', this.#record])
  }

  get #record(): string {
    return `tun.${this.#name}`
  }

  async #run(program: string, args: readonly string[], input = ''): Promise<boolean> {
    try {
      return (await this.#ip.run(args, input, program)).code === 0
    } catch (error) {
      if (isTunnelError(error, 'tun/ip')) return false
      throw error
    }
  }
}
