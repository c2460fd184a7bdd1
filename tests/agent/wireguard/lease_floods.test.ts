/**
 * Addresses of a network that many ask for: whoever was there keeps theirs, whoever comes too late is told so by
 * name, and an end that comes late takes nothing from who came after it.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { hostFiles } from '../../../agent/host/files.ts'
import type { PeerView } from '../../../agent/access.ts'
import type { ServedService } from '../../../agent/peers.ts'
import { Profile } from '../../../agent/profile.ts'
import { Leases, namedSubnet } from '../../../agent/wireguard/leases.ts'
import { ServedNetwork } from '../../../agent/wireguard/served_network.ts'
import type { World } from '../../../agent/world.ts'
import { formatAddress } from '../../../core/address.ts'
import { AGREEMENT_NONCE_BYTES, AgreementReader, encodeAgreement } from '../../../core/agreement.ts'
import type { AgreementMessage } from '../../../core/agreement.ts'
import { ManualClock } from '../../../core/clock.ts'
import { isTunnelError } from '../../../core/errors.ts'
import type { Stream } from '../../../core/mux.ts'
import type { ConnHandler } from '../../../core/socket.ts'
import type { Session } from '../../../core/session.ts'
import { testWorld } from '../../support/agent_world.ts'
import { fast } from '../../support/crypto.ts'

const identity32 = new Uint8Array(32).fill(7)
const folder = mkdtempSync(join(tmpdir(), 'sotto-lease-floods-'))
const test = suite('agent/wireguard/lease_floods')
test.after(() => rmSync(folder, { recursive: true, force: true }))

test('identities without end: each after the last address is told so, and nobody loses theirs', async () => {
  const named = namedSubnet(fast, identity32, '100.64.9.0/28')
  const leases = new Leases(
    { files: hostFiles, clock: new ManualClock(), crypto: fast },
    join(folder, 'leases.json'),
    { identity32, taken: () => [], named },
  )
  const first = await leases.lease('alice')
  const outcomes: string[] = []
  for (let i = 0; i < 40; i++) {
    const asked = leases.lease(`mallory ${i}`).then(({ four }) => four, (error) => error)
    const outcome = await asked
    outcomes.push(isTunnelError(outcome) ? outcome.code : outcome as string)
  }
  // Sixteen, without two that no host has, the serving agent, and Alice.
  const got = outcomes.filter((one) => one !== 'lease/full')
  assert.is(got.length, 12)
  assert.is(new Set([...got, first.four, first.serverFour]).size, 14)
  assert.equal(outcomes.slice(12), Array(28).fill('lease/full'))
  assert.equal(await leases.lease('alice'), first)
  // One that is released goes to whoever asks first.
  await leases.release('mallory 3')
  assert.is((await leases.lease('bob')).four, outcomes[3])
})

/** A session as far as agreements need one. */
class Asking {
  readonly answers: AgreementMessage[] = []
  readonly #events: ReturnType<ServedService['session']>
  #handler: ConnHandler | undefined

  constructor(service: ServedService, key: string) {
    const session = {
      state: 'open',
      close() {},
      exporter: (_: string, context: Uint8Array) => fast.sha256(context),
    } as unknown as Session
    const view = { key, names: [], fingerprint: key } as unknown as PeerView
    this.#events = service.session(session, { key, name: key }, view)
    const reader = new AgreementReader()
    this.#events.onOpen!({
      accept() {},
      handle: (handler: ConnHandler) => void (this.#handler = handler),
      write: (bytes: Uint8Array) => void this.answers.push(...reader.push(bytes)),
      end() {},
      reset() {},
      abort() {},
    } as unknown as Stream)
  }

  propose(): void {
    this.#handler!.data(encodeAgreement({
      kind: 'propose',
      key: fast.x25519Public(fast.randomBytes(32)),
      nonce: fast.randomBytes(AGREEMENT_NONCE_BYTES),
      channel: fast.randomBytes(16),
      taken: [],
      endpoints: [],
    }))
  }

  end(): void {
    this.#events.closed({ error: undefined, reason: '' } as never)
  }
}

test('a session that ended while its address was leased takes nothing from the next', async () => {
  const { world, close } = await testWorld()
  let letGo = (): void => {}
  const held = new Promise<void>((resolve) => letGo = resolve)
  let isHolding = false
  let isOver = false
  const slow: World = {
    ...world,
    files: {
      ...world.files,
      // The first to come is the last to be let in.
      lock: async (path, options) => {
        const isFirst = isHolding
        isHolding = false
        if (isFirst) await held
        const release = await world.files.lock(path, options)
        return release && (async () => {
          await release()
          isOver ||= isFirst
        })
      },
    },
  }
  const profile = new Profile(slow)
  let service: ServedService | undefined
  const served = await ServedNetwork.open(slow, {
    peers: {
      serve: (_, given) => void (service = given),
      expectChannel: () => () => {},
      mayStill: () => Promise.resolve(true),
    },
    profile,
    identity32: (await profile.identity()).public,
  }, {
    name: 'office',
    routes: [],
    dns: false,
    peers: [],
    udpPort: undefined,
    subnet: undefined,
    loopback: false,
    linkLocal: false,
    own: false,
    between: false,
  }, { joined() {}, left() {}, refused() {}, problem: (error) => assert.unreachable(`${error}`) })
  try {
    isHolding = true
    const first = new Asking(service!, 'alice')
    first.propose()
    await Promise.resolve()
    first.end()
    const second = new Asking(service!, 'alice')
    second.propose()
    while (second.answers.length === 0) await new Promise((resolve) => setTimeout(resolve, 1))
    const [agreed] = second.answers
    assert.is(agreed!.kind, 'agreed')
    const address = formatAddress((agreed as { address4: { bytes: Uint8Array } }).address4.bytes)
    assert.ok(served.memberAt(address))
    letGo()
    while (!isOver) await new Promise((resolve) => setTimeout(resolve, 1))
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 1))
    assert.is(first.answers.length, 0)
    assert.ok(served.memberAt(address), 'the second session is still heard')
    second.end()
    assert.is(served.memberAt(address), undefined)
  } finally {
    served.close()
    await close()
  }
})

test.run()
