/**
 * What is at this machine's end of a tunnel: a stack, for proxies and forwards, or an interface of the
 * system. Either has the device, and the paths that carry its datagrams.
 */
import type { Agreed } from '../../core/agreement.ts'
import type { Device, Notice } from '../wireguard-wasm/device.ts'
import type { Peer } from '../wireguard-wasm/peer.ts'
import type { Path } from '../wireguard-wasm/driver.ts'

export interface NearEnd {
  readonly device: Device
  addPath(number: number, path: Path): void
  /** A turn follows soon: after changes of peers. */
  wake(): void
  /** Connections, where it knows of them. */
  readonly flows: number
  /** The other end has forgotten all connections; absent where others know of them. */
  reset?(): void
  close(): void
}

export interface NearEndOptions {
  module: WebAssembly.Module
  privateKey: Uint8Array
  /** Our own in the network, IPv4 first. */
  addresses: readonly string[]
  mtu: number
  after(ms: number, run: () => void): { cancel(): void }
  onRestart(cause: unknown): void
  onNotice(notice: Notice, peer: Peer): void
}

/** Makes near ends for a network; each takes the place of the one before. */
export interface NearEnds {
  make(options: NearEndOptions, agreed: Agreed): NearEnd | Promise<NearEnd>
  /** Of this machine, where there is one. */
  readonly interface?: string
  /** Another agreement with the same addresses and MTU: what is routed may have changed. */
  renewed?(agreed: Agreed): Promise<void>
}
