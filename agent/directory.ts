/**
 * The agents that this key sees, with what is known of them here: pins, and what pinned authorities
 * vouch for. Who is there and what they call themselves is the relay's word; who they are is not.
 */
import type { PeerView } from './access.ts'
import { isPinOf } from './known_agents.ts'
import type { KnownAgent, KnownAgents } from './known_agents.ts'
import type { Trust, Trusted } from './trust.ts'
import type { Uplink } from './uplink.ts'
import type { Crypto } from '../core/crypto.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { fingerprint, isName, parseKey } from '../core/key.ts'
import { checkLabels } from '../core/labels.ts'
import type { Labels } from '../core/labels.ts'
import { parseSelector, selects } from '../core/selector.ts'

/** Of one list; a relay that goes on is not believed. */
const AGENTS_MAX = 10_000
const PAGES_MAX = 2000
const NAMES_MAX = 256
/** Where an agent waits to be compared with or to enroll others, for a while: nobody is called so. */
const MEETING_NAME = /^(verify|enroll)-[0-9a-f]{16}(-[0-9a-f]{4})?$/
/** Questions about vouches that wait at once. */
const QUESTIONS_MAX = 16

export type Standing = 'self' | 'verified' | 'pinned' | 'vouched' | 'revoked' | 'unknown'

export interface SeenAgent {
  /** KEY. */
  key: string
  fingerprint: string
  scope: string
  /** Endpoints, in the relay's order; those where agents meet for a moment are left out. */
  names: { name: string; kind: string | undefined }[]
  /** Those that a pinned authority signed, where one did; else the agent's own word. */
  labels: Labels
  online: boolean
  /** ISO 8601. */
  since: string | undefined
  standing: Standing
  /** How it is pinned, or by whom it is vouched for. */
  how: string | undefined
  /** What it is called here: a pin's name, or its endpoint. */
  name: string
}

export interface DirectoryPorts {
  crypto: Crypto
  uplink: Pick<Uplink, 'request'>
  known: KnownAgents
  trust: Pick<Trust, 'view'>
  /** KEY of this very agent. */
  own?: string
}

export class Directory {
  readonly #ports: DirectoryPorts

  constructor(ports: DirectoryPorts) {
    this.#ports = ports
  }

  /**
   * Those that a selector chooses; with `etag`, undefined when the relay shows the same as then.
   * Throws `selector/…`, `uplink/…`, `directory/answer`.
   */
  async list(
    selector = '',
    { etag }: { etag?: string | undefined } = {},
  ): Promise<{ agents: SeenAgent[]; etag: string } | undefined> {
    const terms = parseSelector(selector)
    const { known } = this.#ports
    const authorities = await known.authorities()
    // An authority's labels decide, and the relay does not know which those are.
    const asked = authorities.length > 0 ? '' : selector
    const rows = await this.#rows(asked, etag)
    if (!rows) return undefined
    const [pins, revoked] = await Promise.all([known.list(), known.revoked()])
    const agents: SeenAgent[] = []
    const queue = [...rows.rows]
    const work = async (): Promise<void> => {
      for (let row = queue.shift(); row; row = queue.shift()) {
        agents.push(await this.#seen(row, { pins, revoked, asks: authorities.length > 0 }))
      }
    }
    await Promise.all(Array.from({ length: QUESTIONS_MAX }, work))
    const chosen = agents.filter(({ labels }) => selects(terms, labels))
    chosen.sort((a, b) => order(`${a.scope}.${a.name} ${a.key}`, `${b.scope}.${b.name} ${b.key}`))
    return { agents: chosen, etag: rows.etag }
  }

  /** The agent of a KEY, or of a fingerprint. Throws `dial/unknown`, and what `list` throws. */
  async find(identity: string): Promise<SeenAgent> {
    const listed = await this.list()
    const found = listed!.agents.filter((agent) =>
      (agent.key === identity || agent.fingerprint === identity) && agent.names.length > 0
    )
    const best = found.find(({ online }) => online) ?? found[0]
    if (best) return best
    throw new TunnelError('dial/unknown', `Cannot reach ${identity}: nobody shows it`, {
      hint: 'It may be away, or not be shown to your scope: see "sotto agents".',
    })
  }

  /** Full names that begin as `words` do, for whoever typed half of one. */
  async similar(words: string): Promise<string[]> {
    const { agents } = (await this.list())!
    const full = agents.flatMap(({ scope, names }) => names.map(({ name }) => `${scope}.${name}`))
    return full.filter((one) => one.includes(words)).slice(0, 10)
  }

  async #rows(
    selector: string,
    etag: string | undefined,
  ): Promise<{ rows: Row[]; etag: string } | undefined> {
    const rows: Row[] = []
    let after: string | undefined
    let seen = ''
    for (let page = 0; page < PAGES_MAX; page++) {
      const reply = await this.#ports.uplink.request({
        do: 'agents',
        ...(selector === '' ? {} : { selector }),
        ...(after === undefined ? {} : { after }),
        ...(etag === undefined || page > 0 ? {} : { etag }),
      })
      if (reply['unchanged'] === true) return undefined
      if (page === 0) seen = String(reply['etag'] ?? '')
      const { agents, next } = reply
      if (!Array.isArray(agents)) throw answer()
      for (const one of agents) rows.push(readRow(one))
      if (typeof next !== 'string') return { rows, etag: seen }
      if (rows.length > AGENTS_MAX || next === after) throw answer()
      after = next
    }
    throw answer()
  }

  async #seen(
    row: Row,
    { pins, revoked, asks }: {
      pins: readonly KnownAgent[]
      revoked: readonly string[]
      asks: boolean
    },
  ): Promise<SeenAgent> {
    const { crypto } = this.#ports
    const own = pins.filter((pin) => isPinOf(crypto, pin, row.key))
    const view = asks ? await this.#view(row.key) : undefined
    const vouched = view === 'revoked' ? [] : view?.vouched ?? []
    const pin = own.find(({ verified }) => verified) ??
      own.find(({ how }) => how !== 'first-use') ?? own[0]
    const base = {
      ...row,
      fingerprint: fingerprint(crypto, parseKey(row.key)),
      labels: vouched.length > 0
        ? Object.assign({}, ...vouched.map(({ labels }) => labels)) as Labels
        : row.labels,
      name: pin?.name ?? row.names[0]?.name ?? '',
    }
    if (row.key === this.#ports.own) return { ...base, standing: 'self', how: undefined }
    if (view === 'revoked' || revoked.includes(row.key)) {
      return { ...base, standing: 'revoked', how: undefined }
    }
    if (pin) return { ...base, standing: pin.verified ? 'verified' : 'pinned', how: pin.how }
    if (vouched.length > 0) return { ...base, standing: 'vouched', how: vouched[0]!.authority }
    return { ...base, standing: 'unknown', how: undefined }
  }

  async #view(key: string): Promise<PeerView | 'revoked'> {
    try {
      return await this.#ports.trust.view(key)
    } catch (error) {
      // Of two successors neither is believed.
      if (isTunnelError(error) && /^trust\/(revoked|split)$/.test(error.code)) return 'revoked'
      throw error
    }
  }
}

/** Why an agent may be spoken to without asking a person; undefined: it may not. */
export function trustedBy({ key, standing, how }: SeenAgent): Trusted | undefined {
  if (standing === 'vouched') return { key, how: 'authority', verified: false }
  if (standing !== 'pinned' && standing !== 'verified') return undefined
  return { key, how: how as Trusted['how'], verified: standing === 'verified' }
}

type Row = Pick<SeenAgent, 'key' | 'scope' | 'names' | 'labels' | 'online' | 'since'>

/** A relay is not believed to send the right types. Throws `directory/answer`. */
function readRow(value: unknown): Row {
  try {
    const { key, scope, names, labels, online, since } = value as Record<string, unknown>
    parseKey(key as string)
    if (!isName(scope as string)) throw answer()
    const all = (names as Record<string, unknown>[]).slice(0, NAMES_MAX).map((one) => {
      const { name, kind } = one
      if (!isName(name as string)) throw answer()
      return { name: name as string, kind: typeof kind === 'string' ? kind : undefined }
    }).filter(({ name }) => !MEETING_NAME.test(name))
    checkLabels(labels as Labels)
    return {
      key: key as string,
      scope: scope as string,
      names: all,
      labels: { ...labels as Labels },
      online: online === true,
      since: typeof since === 'string' && /^\d{4}-[\d:.TZ-]{1,40}$/.test(since) ? since : undefined,
    }
  } catch (cause) {
    throw answer(cause)
  }
}

function answer(cause?: unknown): TunnelError {
  return new TunnelError('directory/answer', "Cannot read the relay's list of agents", { cause })
}

function order(a: string, b: string): number {
  return a < b ? -1 : Number(a !== b)
}
