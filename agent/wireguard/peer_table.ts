/**
 * What agreements need of a WireGuard device, whatever has the device: peers that come and go while it
 * runs. After a change `wake` lets what follows from it go out.
 */
import { formatAddress } from '../../core/address.ts'
import type { Network } from '../../core/address.ts'
import type { Stream } from '../../core/mux.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import type { PeerChanges, PeerOptions, PeerStats } from '../wireguard-wasm/peer.ts'

export interface TablePeer {
  update(changes: PeerChanges): void
  /** Forgets it with its keys, at once. */
  remove(): void
  /** Starts a handshake. */
  connect(): void
  stats(): PeerStats
}

export interface PeerTable {
  /** 32 bytes. */
  readonly publicKey: Uint8Array
  /** Throws where the key is one that is there already. */
  addPeer(options: PeerOptions): TablePeer
  wake(): void
}

/** Packet channels as one path of the device. */
export interface ChannelPath {
  /** Undefined: there are too many. */
  add(stream: Stream): Endpoint | undefined
  remove(endpoint: Endpoint): void
}

/** `10.0.0.0/8`, as the device reads it. */
export function prefixText({ bytes, bits }: Network): string {
  return `${formatAddress(bytes)}/${bits}`
}

/** Packet channels carry no bytes; their end is all that there is to hear. */
export function watchChannel(stream: Stream, closed: () => void): void {
  stream.handle({ data() {}, end: closed, closed })
}
