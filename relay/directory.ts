/** Where names, scopes, rooms and other stars are, seen from a star on its own. */
import type { Labels } from '../core/labels.ts'
import type { Grant } from './credentials.ts'
import type { Claim } from './endpoints.ts'
import type { Shown } from './grants.ts'
import type { Peer } from './peers.ts'
import type { StoredPassport } from './registry.ts'
import type { Entered, Opened, Served } from './requests.ts'
import type { Maker } from './rooms.ts'
import type { Publisher } from './statements.ts'

/** A claim with whose it is. */
export interface ClaimOf extends Claim {
  scope: string
  agent: string
  group: string
  labels: Labels
}

/** What a scope shows to others; of two, the one with the higher version holds. */
export interface ScopeGrants {
  scope: string
  version: number
  grants: Shown[]
}

export interface Directory {
  /** Lets a link in, counted until `left`. Throws what `Credentials.verify` and quotas throw. */
  admit(link: { scope: string; secret?: string; agent: string; token: string }): Promise<Grant>
  left(link: { scope: string; token: string }): Promise<void>
  /** Was the identity of a visit link revoked? If it is later, this star is told to cut it. */
  isRevoked(agent: string): Promise<boolean>
  /** Reserves the name and joins those that serve it. Throws what `Registry.reserve` throws. */
  claim(claim: ClaimOf): Promise<void>
  unclaim(claim: { name: string; agent: string; group: string }): Promise<void>
  serving(name: string): Promise<Served | undefined>
  /** The passport of an agent whose star is another. */
  passport(key: string): Promise<StoredPassport | undefined>
  grants(scope: string): Promise<ScopeGrants>
  shows(name: string, of: { scope: string; to: string }): Promise<boolean>
  peers(scope: string): Promise<Peer[]>
  /** Statements of an agent whose star is another. */
  statements(key: string): Promise<Uint8Array[]>
  keepStatement(key: string, bytes: Uint8Array, publisher: Publisher): Promise<void>
  makeRoom(maker: Maker): Promise<Opened>
  /** The star of the maker knows of the entry when this resolves. */
  enterRoom(room: number, visitor: { key: string; address: string }): Promise<Entered>
  leaveRoom(room: number, key: string): Promise<void>
  linkEnded(link: string): Promise<void>
}
