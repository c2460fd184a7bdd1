/** `World.wireguard`: the module is read when a network is used, and is in the program where it is built. */
import { TunnelError } from '../../core/errors.ts'
import type { WireGuardHost } from '../world.ts'
import { bindUdp } from './datagrams.ts'

let compiled: Promise<WebAssembly.Module> | undefined

export const hostWireGuard: WireGuardHost = {
  module() {
    compiled ??= (async () => (await import('./wireguard_module.ts')).compileModule())()
    return compiled
  },
  bindUdp,
  ping: (address) =>
    Promise.reject(
      new TunnelError('ping/unavailable', `Cannot ping ${address}: this system does not let us`),
    ),
}
