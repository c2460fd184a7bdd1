/**
 * The asking end of agreements on tunnels (docs/protocol.md §17): one network of another agent, for as
 * long as this is open. A session that is lost is opened anew with a key of its own; what was leased
 * stays the same, so that flows inside go on.
 *
 *   opening ─▶ agreed ─▶ up ─▶ (session lost) ─▶ opening …        refused by the server: the end
 */
import {
  AGREEMENT_CHANNEL_BYTES,
  AGREEMENT_NONCE_BYTES,
  agreementPsk,
  AgreementReader,
  encodeAgreement,
} from '../../core/agreement.ts'
import type { Agreed, Refused, TunnelEndpoint } from '../../core/agreement.ts'
import { formatAddress } from '../../core/address.ts'
import type { Network } from '../../core/address.ts'
import { equal } from '../../core/bytes.ts'
import type { Clock, Timer } from '../../core/clock.ts'
import type { Crypto } from '../../core/crypto.ts'
import { KEY_BYTES } from '../../core/crypto.ts'
import { asTunnelError, isTunnelError, TunnelError } from '../../core/errors.ts'
import { RESET } from '../../core/frame.ts'
import { REDIAL_MS_MAX } from '../../core/initiate.ts'
import type { Stream } from '../../core/mux.ts'
import type { OpenedSession, Peers } from '../peers.ts'
import type { Endpoint } from '../wireguard-wasm/address.ts'
import { isHost } from './own_addresses.ts'
import { LOOK_MS, PathChoice, TRY_MS_MIN } from './path_choice.ts'
import type { Races } from './path_choice.ts'
import { type ChannelPath, type PeerTable, prefixText, type TablePeer } from './peer_table.ts'
import { watchChannel } from './peer_table.ts'
import { TUNNEL_SERVICE } from './tunnel_server.ts'

const AGREED_MS_MAX = 15_000
/** A session that was not taken up again for so long may be one that nobody knows. */
const ASK_MS = 6_000
/** Waits between attempts double. */
const AGAIN_MS_MIN = 500
const AGAIN_MS_MAX = 30_000
/** A new pre-shared key so often; docs/protocol.md §17. */
const RENEW_MS = 1_800_000
/** Renewals closer together are refused. */
const RENEW_MS_MIN = 1_000
/** The machine slept for longer: sessions may be over at the other end. */
const JUMP_MS = 5_000
/** Keeps channels and NATs open: a channel without a packet for 60 s is closed. */
const KEEPALIVE_SECONDS = 25
/** Errors after which another attempt would end alike. */
const FINAL =
  /^(trust\/|session\/(refused|suite|service)|agreement\/(?!fault)|dial\/name|network\/(?!gone|fault|full))/

export interface TunnelClientPorts {
  clock: Clock
  crypto: Crypto
  peers: Pick<Peers, 'open' | 'openPackets'>
  /** What the network is called: a name or `scope.name`. */
  name: string
  /** IPv4 networks of 100.64.0.0/10 that this machine has. */
  taken(): Network[]
  /** Where this machine takes WireGuard datagrams over UDP; none: the relay alone carries. */
  endpoints(): TunnelEndpoint[]
  /** Changes with the networks that this machine is in. */
  networks?(): string
  /** The first agreement sets the device up; each later one sets its new private key. */
  device(privateKey: Uint8Array, agreed: Agreed): Promise<ClientDevice>
  changed?(state: TunnelState): void
  /** Packets take another way from now on. */
  moved?(endpoint: Endpoint): void
  /** Whether the largest packets pass by the way that they take now. */
  fits?(agreed: Agreed): Promise<boolean>
}

export interface ClientDevice {
  table: PeerTable
  channels: ChannelPath
  /** Where there is UDP beside the relay. */
  races?: Races
}

export type TunnelState =
  | { kind: 'up'; agreed: Agreed; peer: OpenedSession['peer'] }
  | { kind: 'down'; error: TunnelError | undefined; retryInMs: number }
  | { kind: 'over'; error: TunnelError | undefined }

export class TunnelClient {
  readonly #ports: TunnelClientPorts
  #attempt: Attempt | undefined
  #timer: Timer | undefined
  #waitMs = AGAIN_MS_MIN
  #closed = false
  #wasUp = false

  constructor(ports: TunnelClientPorts) {
    this.#ports = ports
  }

  /** The peer behind which the network is, while there is one. */
  get wireguard(): TablePeer | undefined {
    return this.#attempt?.wireguard
  }

  /**
   * Resolves when the first agreement stands, and keeps it standing until `close`. Throws what the
   * server refuses with, `agreement/…`, and what opening a session throws.
   */
  async open(): Promise<Agreed> {
    const attempt = this.#attempt = new Attempt(this.#ports, (error) => this.#lost(error))
    const agreed = await attempt.run()
    this.#up(attempt, agreed)
    return agreed
  }

  /** The server's word that it is over comes before the session's end. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#timer?.cancel()
    this.#attempt?.close()
    this.#ports.changed?.({ kind: 'over', error: undefined })
  }

  #up(attempt: Attempt, agreed: Agreed): void {
    this.#wasUp = true
    this.#waitMs = AGAIN_MS_MIN
    this.#ports.changed?.({ kind: 'up', agreed, peer: attempt.peer! })
  }

  #lost(error: TunnelError | undefined): void {
    this.#attempt = undefined
    if (this.#closed || !this.#wasUp) return
    if (error && FINAL.test(error.code)) {
      this.#closed = true
      return this.#ports.changed?.({ kind: 'over', error })
    }
    const waitMs = this.#waitMs
    this.#waitMs = Math.min(AGAIN_MS_MAX, this.#waitMs * 2)
    this.#ports.changed?.({ kind: 'down', error, retryInMs: waitMs })
    this.#timer = this.#ports.clock.after(waitMs, () => void this.#again())
  }

  async #again(): Promise<void> {
    const attempt = this.#attempt = new Attempt(this.#ports, (error) => this.#lost(error))
    try {
      this.#up(attempt, await attempt.run())
    } catch {
      // `#lost` has heard.
    }
  }
}

/** One session with its agreement, from its start to its end. */
class Attempt {
  readonly #ports: TunnelClientPorts
  readonly #ended: (error: TunnelError | undefined) => void
  readonly #privateKey: Uint8Array
  readonly #publicKey: Uint8Array
  readonly #channel: Uint8Array
  readonly #reader = new AgreementReader()
  #opened: OpenedSession | undefined
  #stream: Stream | undefined
  #nonce: Uint8Array
  #agreed: Agreed | undefined
  #device: ClientDevice | undefined
  #path: Endpoint | undefined
  #choice: PathChoice | undefined
  #timer: Timer | undefined
  #lookTimer: Timer | undefined
  #channelTimer: Timer | undefined
  #askTimer: Timer | undefined
  #looked = { nowMs: 0, skewMs: 0, networks: '' }
  #renewing = false
  #renewedMs = -Infinity
  #opening = false
  #waitMs = AGAIN_MS_MIN
  #over = false
  #settle: { resolve(agreed: Agreed): void; reject(error: TunnelError): void } | undefined
  wireguard: TablePeer | undefined

  constructor(ports: TunnelClientPorts, ended: (error: TunnelError | undefined) => void) {
    const { crypto } = ports
    this.#ports = ports
    this.#ended = ended
    this.#privateKey = crypto.randomBytes(KEY_BYTES)
    this.#publicKey = crypto.x25519Public(this.#privateKey)
    this.#channel = crypto.randomBytes(AGREEMENT_CHANNEL_BYTES)
    this.#nonce = crypto.randomBytes(AGREEMENT_NONCE_BYTES)
  }

  get peer(): OpenedSession['peer'] | undefined {
    return this.#opened?.peer
  }

  async run(): Promise<Agreed> {
    try {
      const agreed = await this.#agree()
      await this.#connect(agreed)
      return agreed
    } catch (error) {
      const family = asTunnelError(error, 'agreement/fault')
      this.#end(family)
      throw family
    }
  }

  close(): void {
    this.#end(undefined)
  }

  async #agree(): Promise<Agreed> {
    const { peers, name, clock, taken, endpoints } = this.#ports
    const opened = this.#opened = await peers.open(name, TUNNEL_SERVICE, {
      onState: (state) => {
        this.#askTimer?.cancel()
        if (state === 'waiting') this.#askLater()
        // Another carrier: what was recorded of the one before is of no more use with a new key.
        if (state === 'open' && this.#agreed) this.#renew()
      },
      closed: ({ error, reason }) => this.#end(error ?? (reason === '' ? undefined : gone(reason))),
    })
    if (this.#over) {
      opened.session.close()
      throw gone('it was closed')
    }
    const stream = this.#stream = opened.session.open()
    const agreed = new Promise<Agreed>((resolve, reject) => {
      this.#settle = { resolve, reject }
    })
    agreed.catch(() => {})
    stream.handle({
      data: (bytes) => this.#read(bytes),
      end: () => this.#end(gone('the server has ended it')),
      closed: (error) => this.#end(gone(error?.message ?? 'the server has ended it')),
    })
    stream.write(
      encodeAgreement({
        kind: 'propose',
        key: this.#publicKey,
        nonce: this.#nonce,
        channel: this.#channel,
        taken: taken(),
        endpoints: endpoints(),
      }),
    )
    const late = clock.after(AGREED_MS_MAX, () => this.#end(gone('no answer came in time')))
    try {
      return await agreed
    } finally {
      late.cancel()
    }
  }

  #askLater(): void {
    this.#askTimer = this.#ports.clock.after(ASK_MS, () => void this.#ask())
  }

  /** A server that was killed knows nothing of this session: another one that it takes shows that. */
  async #ask(): Promise<void> {
    const { peers, name } = this.#ports
    try {
      const { session } = await peers.open(name, TUNNEL_SERVICE)
      session.close()
      // Where it is alive the session finds its way by now.
      this.#askTimer = this.#ports.clock.after(REDIAL_MS_MAX + 1_000, () => {
        if (this.#opened?.session.state !== 'waiting') return
        this.#end(gone('its server was started anew'))
      })
    } catch (error) {
      if (this.#over || this.#opened?.session.state !== 'waiting') return
      const family = asTunnelError(error, 'agreement/fault')
      if (FINAL.test(family.code)) this.#end(family)
      else this.#askLater()
    }
  }

  #read(bytes: Uint8Array): void {
    try {
      for (const message of this.#reader.push(bytes)) {
        if (this.#over) return
        if (message.kind === 'refused') return this.#end(refusal(message))
        if (message.kind === 'agreed' && !this.#agreed) {
          if (equal(message.key, this.#publicKey)) {
            throw problem('reflected', 'our own key at the other end')
          }
          this.#agreed = message
          this.#settle!.resolve(message)
        } else if (message.kind === 'renewed' && this.#renewing) this.#renewed(message.nonce)
        else throw problem('order', `"${message.kind}", which has no place there`)
      }
    } catch (error) {
      this.#end(asTunnelError(error, 'agreement/fault'))
    }
  }

  async #connect(agreed: Agreed): Promise<void> {
    const { clock, moved, fits } = this.#ports
    const device = this.#device = await this.#ports.device(this.#privateKey, agreed)
    if (this.#over) throw gone('it was closed')
    const psk = this.#psk(agreed.nonce)
    const peer = this.wireguard = device.table.addPeer({
      publicKey: agreed.key,
      presharedKey: psk,
      allowedIps: allowedOf(agreed).map(prefixText),
      keepaliveSeconds: KEEPALIVE_SECONDS,
    })
    psk.fill(0)
    if (device.races) {
      this.#choice = new PathChoice({
        clock,
        peer,
        races: device.races,
        wake: () => device.table.wake(),
        relay: () => this.#path,
        direct: agreed.endpoints.filter(isHost).map(({ address, port }) => ({
          host: formatAddress(address),
          port,
        })),
        firstMs: TRY_MS_MIN,
        ...(moved ? { moved } : {}),
        ...(fits ? { fits: () => fits(agreed) } : {}),
      })
    }
    await this.#openChannel()
    if (this.#over) throw gone('it was closed')
    this.#renewLater()
    this.#look()
  }

  /** The relay carries at once. */
  async #openChannel(): Promise<void> {
    if (this.#opening || this.#over) return
    this.#opening = true
    const { peers } = this.#ports
    const { channels, table } = this.#device!
    try {
      const stream = await peers.openPackets(this.#opened!, this.#channel)
      const path = this.#over ? undefined : channels.add(stream)
      if (!path) return stream.reset(RESET.gone)
      watchChannel(stream, () => this.#channelLost(path))
      this.#path = path
      this.#waitMs = AGAIN_MS_MIN
      // Where UDP carries already, the relay only stands by.
      if (!this.#choice?.isDirect) {
        this.wireguard!.update({ endpoint: path })
        this.wireguard!.connect()
      }
      table.wake()
    } catch (error) {
      if (!this.#over && !isTunnelError(error)) throw error
      this.#channelAgain()
    } finally {
      this.#opening = false
    }
  }

  /** Once a second: the ways, and whether this machine has slept or is in another network. */
  #look(): void {
    const { clock, networks } = this.#ports
    const nowMs = clock.monotonic()
    const skewMs = clock.now() - nowMs
    const before = this.#looked
    const now = this.#looked = { nowMs, skewMs, networks: networks?.() ?? '' }
    const slept = skewMs - before.skewMs > JUMP_MS || nowMs - before.nowMs > LOOK_MS + JUMP_MS
    if (before.nowMs > 0 && (slept || now.networks !== before.networks)) {
      if (this.#choice) this.#choice.again()
      else this.wireguard!.connect()
      this.#device!.table.wake()
    }
    this.#choice?.look()
    this.#lookTimer = clock.after(LOOK_MS, () => {
      if (!this.#over) this.#look()
    })
  }

  #channelLost(path: Endpoint): void {
    this.#device!.channels.remove(path)
    if (this.#path !== path || this.#over) return
    this.#path = undefined
    // Not to wait for another: UDP may carry.
    this.#choice?.again()
    this.#channelAgain()
  }

  #channelAgain(): void {
    if (this.#over) return
    const waitMs = this.#waitMs
    this.#waitMs = Math.min(AGAIN_MS_MAX, waitMs * 2)
    this.#channelTimer?.cancel()
    this.#channelTimer = this.#ports.clock.after(waitMs, () => void this.#openChannel())
  }

  #renewLater(ms = RENEW_MS): void {
    this.#timer?.cancel()
    this.#timer = this.#ports.clock.after(ms, () => {
      if (this.#renewing) return this.#end(gone('its keys were not renewed'))
      this.#renew()
    })
  }

  #renew(): void {
    if (this.#renewing || this.#over || !this.wireguard) return
    const nowMs = this.#ports.clock.monotonic()
    const waitMs = this.#renewedMs + RENEW_MS_MIN - nowMs
    if (waitMs > 0) return this.#renewLater(waitMs)
    this.#renewedMs = nowMs
    this.#renewLater()
    this.#renewing = true
    this.#nonce = this.#ports.crypto.randomBytes(AGREEMENT_NONCE_BYTES)
    this.#stream!.write(encodeAgreement({ kind: 'renew', nonce: this.#nonce }))
  }

  #renewed(nonce: Uint8Array): void {
    this.#renewing = false
    const psk = this.#psk(nonce)
    this.wireguard!.update({ presharedKey: psk })
    psk.fill(0)
    this.wireguard!.connect()
    this.#device!.table.wake()
  }

  #psk(serverNonce: Uint8Array): Uint8Array {
    return agreementPsk(this.#opened!.session, {
      client: this.#publicKey,
      server: this.#agreed!.key,
      clientNonce: this.#nonce,
      serverNonce,
    })
  }

  #end(error: TunnelError | undefined): void {
    if (this.#over) return
    this.#over = true
    this.#timer?.cancel()
    this.#lookTimer?.cancel()
    this.#channelTimer?.cancel()
    this.#askTimer?.cancel()
    this.#choice?.close()
    this.#choice = undefined
    this.#privateKey.fill(0)
    this.wireguard?.remove()
    this.wireguard = undefined
    if (this.#path) this.#device!.channels.remove(this.#path)
    this.#stream?.end()
    this.#settle?.reject(error ?? gone('it was closed'))
    this.#opened?.session.close()
    this.#ended(error)
  }
}

/** The networks of a tunnel: its own, and what the server lets through. */
export function allowedOf({ address4, address6, routes }: Agreed): Network[] {
  const own = [address4, address6].map(({ bytes, bits }) => ({
    bytes: bytes.map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, bits - 8 * i)))),
    bits,
  }))
  return [...own, ...routes]
}

function refusal({ reason, words }: Refused): TunnelError {
  return new TunnelError(
    `network/${reason}`,
    `Cannot be in the network: its server says "${words.slice(0, 200)}"`,
  )
}

function gone(why: string): TunnelError {
  return new TunnelError('network/gone', `Cannot go on in the network: ${why}`)
}

function problem(reason: string, found: string): TunnelError {
  return new TunnelError(
    `agreement/${reason}`,
    `Cannot agree on a tunnel: found ${found}, expected what docs/protocol.md says`,
  )
}
