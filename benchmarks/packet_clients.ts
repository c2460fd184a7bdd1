/**
 * Two clients of a packet relay, one that sends and one that counts: DERP's `SendPacket` and `RecvPacket`
 * (tailscale derp/derp.go), and iroh-relay's `ClientToRelayDatagram` and `RelayToClientDatagram`
 * (iroh-relay src/protos/relay.rs). Their payloads would be sealed by WireGuard or QUIC; here they are
 * bytes, so that what is counted is the relay and the client's framing alone.
 */
import { openDerp, openIroh } from './idle_client.ts'
import type { PacketClient } from './idle_client.ts'

export interface PacketRace {
  ms: number
  warmUpMs: number
  datagram: Uint8Array
  /** Sent before the event loop has its turn. */
  burst: number
}

/** Datagrams a second that arrived. */
export async function packetClients(kind: string, port: number, race: PacketRace): Promise<number> {
  const open = kind === 'derper' ? openDerp : openIroh
  let received = 0
  const to: PacketClient = await open(port, false, () => void received++)
  const from: PacketClient = await open(port, false)
  let isOver = false
  const push = (): void => {
    for (let i = 0; i < race.burst && from.buffered() < 262_144; i++) {
      from.send(to.key, race.datagram)
    }
    if (!isOver) setImmediate(push)
  }
  push()
  await Bun.sleep(race.warmUpMs)
  const [before, started] = [received, performance.now()]
  await Bun.sleep(race.ms)
  isOver = true
  return (received - before) / ((performance.now() - started) / 1000)
}
