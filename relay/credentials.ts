import type { Clock, Timer } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import type { Store } from './store/store.ts'

export type CredentialKind = 'key' | 'token' | 'admin'

/** What is kept and listed: everything but the secret. Times in ms since 1970. */
export interface CredentialRecord {
  id: string
  kind: CredentialKind
  scope: string
  label: string
  createdAt: number
  expiresAt?: number
  revokedAt?: number
  /** Glob patterns (`*`, `?`) of which an endpoint's name must match one. */
  names?: string[]
  /** Label → glob pattern that the agent's label must match. */
  labels?: Record<string, string>
  /** Most agents at once on this credential. */
  maxAgents?: number
}

export interface Grant {
  id: string
  kind: CredentialKind | 'certificate'
  scope: string
  admin: boolean
  names?: string[]
  labels?: Record<string, string>
  maxAgents?: number
  expiresAt?: number
}

export interface NewCredential {
  kind: CredentialKind
  scope: string
  label?: string
  expiresAt?: number
  names?: string[]
  labels?: Record<string, string>
  maxAgents?: number
}

export interface MadeCredential {
  id: string
  /** Shown once, kept nowhere. */
  secret: string
  record: CredentialRecord
}

export declare class Credentials {
  constructor(ports: { store: Store; crypto: Crypto; clock: Clock })
  create(wanted: NewCredential): Promise<MadeCredential>
  /** Throws credentials/unknown, /expired, /revoked, all with one same message. */
  verify(secret: string): Promise<Grant>
  list(options?: { scope?: string; limit?: number; after?: string }): Promise<CredentialRecord[]>
  get(id: string): Promise<CredentialRecord | undefined>
  revoke(id: string): Promise<boolean>
  onRevoked(listener: (id: string, scope: string) => void): () => void
  /** Sees what other processes on this store revoked; every 500 ms unless told. */
  watch(intervalMs?: number): Timer
  /** First start: an admin key; undefined ever after. */
  ensureAdmin(): Promise<MadeCredential | undefined>
}
export declare function allowsName(grant: Grant, name: string): boolean
export declare function allowsLabels(grant: Grant, labels: Record<string, string>): boolean
