/**
 * The serving end of agreements on tunnels (docs/protocol.md §17): whoever is let into a session of
 * service `wg` gets an address and becomes a peer of the device, for as long as the session lasts and
 * the right does. The relay sees that two agents talk, and sealed datagrams.
 */
import { agreementPsk, AgreementReader, encodeAgreement } from '../../core/agreement.ts'
import type {
  Agreed,
  AgreementMessage,
  Proposal,
  RefusalName,
  Renewal,
} from '../../core/agreement.ts'
import { AGREEMENT_NONCE_BYTES } from '../../core/agreement.ts'
import { formatAddress } from '../../core/address.ts'
import type { Network } from '../../core/address.ts'
import { equal } from '../../core/bytes.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { asTunnelError, TunnelError } from '../../core/errors.ts'
import { RESET } from '../../core/frame.ts'
import type { Stream } from '../../core/mux.ts'
import type { Session } from '../../core/session.ts'
import type { PeerView } from '../access.ts'
import type { Peer, Peers } from '../peers.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import { isHost } from './own_addresses.ts'
import { LOOK_MS, PathChoice } from './path_choice.ts'
import type { Races } from './path_choice.ts'
import {
  type ChannelPath,
  type PeerTable,
  prefixText,
  type TablePeer,
  watchChannel,
} from './peer_table.ts'

export const TUNNEL_SERVICE = 'wg'

export const MEMBERS_MAX = 1_024
/** Of one identity at once: each has an address of its own. */
export const MEMBERS_OF_ONE_MAX = 8
/** Sessions of one identity, with those in which nothing was proposed yet. */
export const SESSIONS_OF_ONE_MAX = 2 * MEMBERS_OF_ONE_MAX
/** From the session's start until the proposal has come. */
const PROPOSAL_MS_MAX = 15_000
/** Rights are looked at again so often, and when `recheck` is called. */
const RECHECK_MS = 5_000
/** For the last words to come, before the session is closed. */
const GOODBYE_MS = 1_000
/** Renewals closer together are no honest client's. */
const RENEWAL_MS_MIN = 500
/** The member tries first, from its side of a NAT. */
const FIRST_TRY_MS = 9_000
/** Of an endpoint that a member names: below are the services of others, which are not to be knocked at. */
const PORT_MIN = 1_024

/** Addresses that are one member's while it is there, and longer. */
export interface Lease {
  address4: Network
  address6: Network
  /** The member has left; the address may stay reserved for it. */
  release(): void
}

export interface TunnelServerPorts {
  clock: Clock
  crypto: Crypto
  peers: Pick<Peers, 'serve' | 'expectChannel' | 'mayStill'>
  table: PeerTable
  channels: ChannelPath
  /** Where there is UDP beside the relay. */
  races?: Races
  /**
   * An address for an identity, of which `number` (from 0) are there already; beside the networks that
   * its machine has. `direct`: it takes UDP as well. Throws `lease/full`, `lease/subnet`.
   */
  lease(
    key: string,
    options: { number: number; taken: readonly Network[]; direct: boolean },
  ): Promise<Lease>
  offer(lease: Lease): Pick<Agreed, 'relayMtu' | 'directMtu' | 'dns' | 'routes' | 'endpoints'>
  /** Of those whom the rules let in, these alone. */
  narrows?(view: PeerView): boolean
  joined?(member: Member): void
  left?(member: Member, why: string): void
}

/** Somebody in the network. */
export interface Member {
  readonly peer: Peer
  readonly view: PeerView
  /** WireGuard public key. */
  readonly key: Uint8Array
  readonly address4: Network
  readonly address6: Network
  readonly number: number
  readonly wireguard: TablePeer
  readonly sinceMs: number
}

export class TunnelServer {
  readonly #ports: TunnelServerPorts
  readonly #members = new Set<Membership>()
  #timer: Timer | undefined
  #lookTimer: Timer | undefined
  #checking: Promise<void> | undefined
  #again = false
  #closed = false

  constructor(ports: TunnelServerPorts) {
    this.#ports = ports
    ports.peers.serve(TUNNEL_SERVICE, {
      needs: TUNNEL_SERVICE,
      ...(ports.narrows ? { narrows: (view: PeerView) => ports.narrows!(view) } : {}),
      session: (session, peer, view) => {
        const membership: Membership = new Membership(ports, { session, peer, view }, {
          number: () => this.#number(membership),
          left: () => void this.#members.delete(membership),
        })
        this.#members.add(membership)
        const own = [...this.#members].filter((one) => one.peer.key === peer.key)
        if (own.length > SESSIONS_OF_ONE_MAX) membership.refuse('full', 'too many sessions')
        return {
          onOpen: (stream) => membership.opened(stream),
          onState() {},
          closed: () => membership.end('the session has ended'),
        }
      },
    })
    this.#later()
    if (ports.races) this.#look()
  }

  get members(): Member[] {
    return [...this.#members].flatMap(({ member }) => member ? [member] : [])
  }

  /** Sessions in which nothing is agreed. */
  get waiting(): number {
    return this.#members.size - this.members.length
  }

  /** Whoever has lost the right is out when this resolves. */
  async recheck(): Promise<void> {
    if (this.#checking) {
      this.#again = true
      return await this.#checking
    }
    this.#checking = this.#check().finally(() => void (this.#checking = undefined))
    await this.#checking
    if (!this.#again || this.#closed) return
    this.#again = false
    await this.recheck()
  }

  close(): void {
    this.#closed = true
    this.#timer?.cancel()
    this.#lookTimer?.cancel()
    for (const membership of [...this.#members]) membership.refuse('fault', 'going down')
  }

  async #check(): Promise<void> {
    const { peers, narrows } = this.#ports
    for (const membership of [...this.#members]) {
      const { view } = membership
      const may = await peers.mayStill(view, TUNNEL_SERVICE).catch(() => false)
      if (may && (narrows?.(view) ?? true)) continue
      membership.refuse('revoked', 'the right to be in this network was taken back')
    }
  }

  #later(): void {
    this.#timer = this.#ports.clock.after(RECHECK_MS, () => {
      void this.recheck().finally(() => {
        if (!this.#closed) this.#later()
      })
    })
  }

  #look(): void {
    const { clock } = this.#ports
    for (const membership of this.#members) membership.look()
    this.#lookTimer = clock.after(LOOK_MS, () => this.#look())
  }

  /** The lowest number that no other member of the identity has. Throws `lease/full`. */
  #number(asking: Membership): number {
    const others = [...this.#members].filter((one) => one !== asking)
    const there = others.filter(({ number }) => number !== undefined)
    if (there.length >= MEMBERS_MAX) throw full(`${MEMBERS_MAX} members`)
    const own = others.filter(({ peer }) => peer.key === asking.peer.key)
    // Its way is lost: this is the same one that came again.
    for (const one of own) {
      if (one.session.state === 'waiting') one.refuse('fault', 'came again in another session')
    }
    const taken = new Set(own.flatMap((one) => this.#members.has(one) ? one.number ?? [] : []))
    for (let number = 0; number < MEMBERS_OF_ONE_MAX; number++) {
      if (!taken.has(number)) return number
    }
    throw full(`${MEMBERS_OF_ONE_MAX} members of one identity`)
  }
}

function full(found: string): TunnelError {
  return new TunnelError('lease/full', `Cannot lease an address: found ${found} already`)
}

/** One session from its start to its end. */
class Membership {
  readonly session: Session
  readonly peer: Peer
  readonly view: PeerView
  number: number | undefined
  member: Member | undefined
  readonly #ports: TunnelServerPorts
  readonly #server: { number(): number; left(): void }
  readonly #reader = new AgreementReader()
  #stream: Stream | undefined
  #late: Timer | undefined
  #proposal: Proposal | undefined
  #lease: Lease | undefined
  #channel: Endpoint | undefined
  #choice: PathChoice | undefined
  #forget: (() => void) | undefined
  #renewedMs = -Infinity
  #over = false

  constructor(
    ports: TunnelServerPorts,
    { session, peer, view }: { session: Session; peer: Peer; view: PeerView },
    server: { number(): number; left(): void },
  ) {
    this.#ports = ports
    this.#server = server
    this.session = session
    this.peer = peer
    this.view = view
    this.#late = ports.clock.after(PROPOSAL_MS_MAX, () => {
      this.refuse('order', 'found no proposal in time')
    })
  }

  opened(stream: Stream): void {
    if (this.#over || this.#stream) return stream.reset(RESET.protocol, 'one stream is agreed on')
    this.#stream = stream
    stream.accept()
    stream.handle({
      data: (bytes) => this.#read(bytes),
      end: () => this.#leave('it has left'),
      closed: () => this.#leave('it has left'),
    })
  }

  look(): void {
    this.#choice?.look()
  }

  /** Says why, and is over. */
  refuse(reason: RefusalName, words: string): void {
    if (this.#over) return
    this.#stream?.write(encodeAgreement({ kind: 'refused', reason, words }))
    this.#stream?.end()
    this.end(words)
    // Until the words have come; nothing else passes any more.
    this.#late = this.#ports.clock.after(GOODBYE_MS, () => this.session.close())
  }

  /** The peer and its keys are gone when this returns. */
  end(why: string): void {
    if (this.#over) return
    this.#over = true
    this.#late?.cancel()
    this.#choice?.close()
    this.#choice = undefined
    this.member?.wireguard.remove()
    this.#forget?.()
    if (this.#channel) this.#ports.channels.remove(this.#channel)
    this.#lease?.release()
    this.#server.left()
    if (this.member) this.#ports.left?.(this.member, why)
  }

  #leave(why: string): void {
    this.end(why)
    this.#late?.cancel()
    this.session.close()
  }

  #read(bytes: Uint8Array): void {
    let messages: AgreementMessage[]
    try {
      messages = this.#reader.push(bytes)
    } catch (error) {
      const { code, message } = asTunnelError(error, 'agreement/envelope')
      return this.refuse(code === 'agreement/version' ? 'version' : 'order', message)
    }
    for (const message of messages) {
      if (this.#over) return
      if (message.kind === 'propose' && !this.#proposal) {
        this.#proposal = message
        this.#late?.cancel()
        void this.#agree(message).catch((error) => {
          const { code, message } = asTunnelError(error, 'agreement/fault')
          const reason = code === 'lease/full'
            ? 'full'
            : code === 'lease/subnet'
            ? 'subnet'
            : 'fault'
          this.refuse(reason, message)
        })
      } else if (message.kind === 'renew' && this.member) this.#renew(message)
      else return this.refuse('order', `found "${message.kind}", which has no place there`)
    }
  }

  async #agree(proposal: Proposal): Promise<void> {
    const { crypto, clock, peers, table, channels, lease, offer, joined } = this.#ports
    const { key, channel, taken } = proposal
    if (equal(key, table.publicKey)) throw reflected()
    this.number = this.#server.number()
    const direct = proposal.endpoints.length > 0
    const leased = await lease(this.peer.key, { number: this.number, taken, direct })
    if (this.#over) return leased.release()
    this.#lease = leased
    const { address4, address6 } = leased
    const nonce = crypto.randomBytes(AGREEMENT_NONCE_BYTES)
    const psk = this.#psk(proposal.nonce, nonce)
    const wireguard = table.addPeer({
      publicKey: key,
      presharedKey: psk,
      allowedIps: [
        prefixText({ bytes: address4.bytes, bits: 32 }),
        prefixText({ bytes: address6.bytes, bits: 128 }),
      ],
    })
    psk.fill(0)
    this.member = {
      peer: this.peer,
      view: this.view,
      key,
      address4,
      address6,
      number: this.number,
      wireguard,
      sinceMs: clock.now(),
    }
    const forget = peers.expectChannel(channel, (stream) => {
      const before = this.#channel
      const added = this.#channel = channels.add(stream)
      if (before) channels.remove(before)
      if (added) watchChannel(stream, () => this.#channelLost(added))
    })
    if (!forget) throw new TunnelError('agreement/channel', 'Cannot agree: the channel is taken')
    this.#forget = forget
    this.#choose(wireguard, proposal)
    table.wake()
    this.#stream!.write(
      encodeAgreement({
        kind: 'agreed',
        key: table.publicKey,
        nonce,
        address4,
        address6,
        ...offer(leased),
      }),
    )
    joined?.(this.member)
  }

  #channelLost(channel: Endpoint): void {
    this.#ports.channels.remove(channel)
    if (this.#channel === channel) this.#channel = undefined
  }

  /** The way to a member that can be reached by UDP, as it says. */
  #choose(peer: TablePeer, { endpoints }: Proposal): void {
    const { races, table, clock } = this.#ports
    if (!races || endpoints.length === 0) return
    this.#choice = new PathChoice({
      clock,
      peer,
      races,
      wake: () => table.wake(),
      relay: () => this.#channel,
      direct: endpoints.filter((one) => one.port >= PORT_MIN && isHost(one)).map((
        { address, port },
      ) => ({
        host: formatAddress(address),
        port,
      })),
      firstMs: FIRST_TRY_MS,
    })
  }

  #renew({ nonce: clientNonce }: Renewal): void {
    const now = this.#ports.clock.monotonic()
    if (now - this.#renewedMs < RENEWAL_MS_MIN) {
      return this.refuse('order', 'found keys renewed without a pause')
    }
    this.#renewedMs = now
    const nonce = this.#ports.crypto.randomBytes(AGREEMENT_NONCE_BYTES)
    const psk = this.#psk(clientNonce, nonce)
    this.member!.wireguard.update({ presharedKey: psk })
    psk.fill(0)
    this.#stream!.write(encodeAgreement({ kind: 'renewed', nonce }))
  }

  #psk(clientNonce: Uint8Array, serverNonce: Uint8Array): Uint8Array {
    return agreementPsk(this.session, {
      client: this.#proposal!.key,
      server: this.#ports.table.publicKey,
      clientNonce,
      serverNonce,
    })
  }
}

function reflected(): TunnelError {
  return new TunnelError('agreement/reflected', 'Cannot agree: found our own key at the other end')
}
