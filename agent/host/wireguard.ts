/** `World.wireguard`: the module is read when a network is used, and is in the program where it is built. */
import { isTunnelError } from '../../core/errors.ts'
import type { WireGuardHost } from '../world.ts'
import { bindUdp } from './datagrams.ts'
import { dialOut } from './dial_out.ts'
import { lookupAside } from './names.ts'
import { hostPing } from './ping.ts'
import { hostPrograms } from './programs.ts'

let compiled: Promise<WebAssembly.Module> | undefined

export const hostWireGuard: WireGuardHost = {
  module() {
    compiled ??= compile()
    return compiled
  },
  dial: dialOut,
  lookup: lookupAside,
  bindUdp,
  ping: hostPing(hostPrograms),
  async udpPath({ port }) {
    const { UdpPath } = await import('./udp_path.ts')
    try {
      return await UdpPath.open({ port })
    } catch (error) {
      if (isTunnelError(error, 'net/in-use')) throw error
      // A system without IPv6.
      return await UdpPath.open({ host: '0.0.0.0', port })
    }
  },
  openTun: async (name) => await (await import('./tun_device.ts')).openTun(name),
}

/** With the AEAD of this machine where there is one. */
async function compile(): Promise<WebAssembly.Module> {
  const [{ compileModule }, { Libcrypto }] = await Promise.all([
    import('./wireguard_module.ts'),
    import('./libcrypto.ts'),
  ])
  const [module, libcrypto] = await Promise.all([compileModule(), Libcrypto.open()])
  libcrypto?.lendTo(module)
  return module
}
