/**
 * An agent as a program of its own, for tests that break it: `bun fault_agent.ts PLAN`, PLAN an
 * `AgentPlan` in JSON. It tells what happens as one JSON object a line, and takes `{"do":…}` lines:
 * `jump` moves its wall clock, `counts` tells what it holds.
 */
import { createInterface } from 'node:readline'
import { Agent } from '../../agent/agent.ts'
import { makeCertificate } from '../../agent/certificate.ts'
import { parseUpstream } from '../../agent/forward.ts'
import { hostWorld } from '../../agent/host/world.ts'
import { Tunnel } from '../../agent/tunnel.ts'
import type { TunnelKind, TunnelMode } from '../../agent/tunnel.ts'
import type { World } from '../../agent/world.ts'
import { fromHex } from '../../core/bytes.ts'

export interface AgentPlan {
  /** URL. */
  relay: string
  /** 32 bytes in hex: the identity. Absent: a fresh one. */
  seed?: string
  /** False: every visitor is a stream. */
  bulk?: boolean
  tunnels: { name: string; upstream: string; kind?: TunnelKind; mode?: TunnelMode; port?: number }[]
}

function say(event: string, fields: object = {}): void {
  process.stdout.write(`${JSON.stringify({ event, atMs: Date.now(), ...fields })}\n`)
}

async function main(plan: AgentPlan): Promise<void> {
  const host = hostWorld({ signal: new AbortController().signal })
  let jumpMs = 0
  const world: World = {
    ...host,
    clock: { ...host.clock, now: () => host.clock.now() + jumpMs },
  }
  const { crypto } = world
  const seed = plan.seed === undefined ? crypto.randomBytes(32) : fromHex(plan.seed)
  const certificate = await makeCertificate(world, { name: 'tunnel.test', use: 'server' })
  const { fingerprint } = world.tls.inspect(certificate)
  const tunnels: Tunnel[] = []
  const agent: Agent = new Agent(world, {
    identity: { seed, public: crypto.ed25519Public(seed) },
    relay: new URL(plan.relay),
    credential: { kind: 'none' },
    group16: crypto.randomBytes(16),
    version: 'test',
    trust: 'admission',
    pin: () => true,
    bulkLinks: plan.bulk ?? true,
    certificates: () => Promise.resolve([fingerprint]),
    onState: (state) => {
      if (state.kind === 'up') {
        say('up', { places: tunnels.map(({ place }) => place) })
      } else if (state.kind === 'down') {
        say('down', { reason: state.reason, retryInMs: state.retryInMs })
      } else if (state.kind === 'refused') say('refused', state.error.toJSON())
    },
    onNotice: (notice) => say('notice', notice),
  })
  for (const { name, upstream, kind = 'http', mode = 'verified', port = 0 } of plan.tunnels) {
    const tunnel = new Tunnel(world, {
      name,
      kind,
      mode,
      port,
      upstream: parseUpstream(upstream),
      identity: () => certificate,
      ...(kind === 'http' ? { alpn: ['http/1.1'] } : {}),
      onTrouble: (error) => say('trouble', error.toJSON()),
    })
    tunnels.push(tunnel)
    agent.add(tunnel)
  }
  agent.start()
  createInterface({ input: process.stdin }).on('line', (line) => {
    const order = JSON.parse(line) as { do: string; ms?: number }
    if (order.do === 'jump') jumpMs += order.ms ?? 0
    else if (order.do === 'counts') {
      Bun.gc(true)
      const visitors = tunnels.reduce((sum, { counts }) => sum + counts.visitors, 0)
      say('counts', { visitors, bulkIdle: agent.bulkIdle })
    }
  }).on('close', () => process.exit(0))
}

if (import.meta.main) await main(JSON.parse(process.argv[2]!) as AgentPlan)
