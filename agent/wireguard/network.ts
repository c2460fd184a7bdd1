/**
 * A private network as programs of this machine use it: connections, datagrams, names and echoes, whatever
 * carries them. The WireGuard stack is one such network; the exit (`exit.ts`), which dials out with the
 * sockets of its machine, is another. Proxies and port forwards know nothing but this port.
 *
 * Rules of `core/socket.ts` hold: events start on the turn after `handle()`, `send` never throws,
 * received arrays belong to the receiver.
 */
import type { Conn, Listener } from '../../core/socket.ts'

/** A name or an address, and a port. An IPv6 address has no brackets. */
export interface Place {
  readonly host: string
  readonly port: number
}

/** An IP address as text, and a port. */
export interface FarEnd {
  readonly address: string
  readonly port: number
}

export interface Network {
  /** Our own addresses in the network, IPv4 first; none where they are the machine's. */
  readonly localAddresses: readonly string[]
  /**
   * Names are resolved at the far side. Throws `net/refused`, `net/timeout`, `net/unknown-host`,
   * `net/unreachable`, `exit/denied`, `exit/busy`.
   */
  connect(to: Place & { readonly timeoutMs?: number }): Promise<Conn>
  /** Takes what the network opens to our address; absent where nothing can. Throws `net/in-use`. */
  listen?(at: { readonly port: number }, accepted: (conn: Conn) => void): Promise<Listener>
  /** A UDP port that sends to anybody; port 0 or none takes a free one. Throws `exit/busy`, `net/in-use`. */
  bindDatagrams(at?: { readonly port?: number }): Promise<DatagramFlow>
  /** Milliseconds until the echo came. Throws `net/timeout`, `net/unreachable`, `exit/denied`, `ping/unavailable`. */
  ping(
    address: string,
    options?: { readonly timeoutMs?: number; readonly bytes?: number },
  ): Promise<number>
  /** Addresses of a name as the far side knows it, preferred first. Throws `net/unknown-host`. */
  resolve(name: string): Promise<string[]>
}

export interface DatagramFlow {
  readonly port: number
  /** False when it was not taken: lost, as datagrams may be, or refused by the far side's rules. */
  send(to: FarEnd, bytes: Uint8Array): boolean
  handle(handler: DatagramHandler): void
  close(): void
}

export interface DatagramHandler {
  message(from: FarEnd, bytes: Uint8Array): void
  /** Last event, and only where it was not `close()`: idle for too long, or broken. */
  closed?(error?: Error): void
}

/** A UDP socket of this machine. `host` is an address. Throws `net/in-use`, `net/denied`. */
export type BindUdp = (
  at: { readonly host: string; readonly port: number },
) => Promise<DatagramFlow>

/** An echo of this machine's own ICMP. Throws as `Network.ping` does. */
export type Pinger = (
  address: string,
  options: { readonly timeoutMs: number; readonly bytes: number },
) => Promise<number>

/** `10.0.0.1:53`, `[fd00::1]:53`, `db.internal:5432`. */
export function placeText({ host, port }: Place): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}
