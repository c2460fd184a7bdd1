/**
 * The shapes of the API: what it takes and gives, once, for checking requests, for types and for
 * the OpenAPI document. Times are ISO 8601 in UTC. Unknown fields are refused, not skipped, so that
 * a misspelt restriction never makes a credential without it.
 */
import { z } from '@hono/zod-openapi'
import { KEY_TEXT_LENGTH, NAME_LENGTH_MAX } from '../core/key.ts'
import { SELECTOR_LENGTH_MAX } from '../core/selector.ts'
import type { Block } from './blocks.ts'
import type { Asking } from './device_desk.ts'
import type { CredentialRecord } from './credentials.ts'
import { LABEL_LENGTH_MAX, PATTERNS_MAX } from './credentials.ts'
import { PATTERN_LENGTH_MAX } from '../core/glob.ts'
import type { ShownRecord } from './grants.ts'
import type { NameRecord } from './registry.ts'
import type { RevokedCertificate } from './revoked_certificates.ts'

/** Entries of one page. */
export const PAGE_MAX = 200
const AGENTS_MAX = 1_000_000
const REASON_LENGTH_MAX = 500

const labelPattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/

export const nameSchema = z.string().min(1).max(NAME_LENGTH_MAX).regex(labelPattern).openapi({
  description: 'One DNS label, lower case.',
  example: 'web',
})
export const scopeSchema = z.string().min(1).max(NAME_LENGTH_MAX).regex(labelPattern).openapi({
  description: 'Whose it is; a scope has the form of a name.',
  example: 'home',
})
const timeSchema = z.iso.datetime({ offset: false }).openapi({ example: '2030-01-31T00:00:00Z' })
const keySchema = z.string().length(KEY_TEXT_LENGTH).regex(/^[a-z2-7]+$/).openapi({
  description: 'An identity: 32 bytes in lower-case base32.',
})
const idSchema = z.string().regex(/^[0-9a-f]{20}$/).openapi({
  description: 'The id of a credential, which is no secret.',
})
const namePatternsSchema = z.array(z.string().regex(/^[a-z0-9*?-]{1,63}$/)).min(1)
  .max(PATTERNS_MAX).openapi({
    description: 'Names that may be claimed, `*` for any text and `?` for one character.',
    example: ['web-*'],
  })
const labelsSchema = z.record(nameSchema, z.string().max(PATTERN_LENGTH_MAX)).openapi({
  description: "Labels that an agent must bring, each with its value's pattern; no others then.",
})
const maxAgentsSchema = z.int().min(1).max(AGENTS_MAX).openapi({
  description: 'Most agents at once.',
})

export const problemSchema = z.strictObject({
  error: z.strictObject({
    code: z.string().openapi({ description: 'Stable: module/reason.', example: 'api/forbidden' }),
    message: z.string(),
    hint: z.string().optional(),
  }),
}).openapi('Problem')

export const credentialSchema = z.strictObject({
  id: idSchema,
  kind: z.enum(['key', 'token', 'admin']),
  scope: scopeSchema,
  label: z.string(),
  createdAt: timeSchema,
  expiresAt: timeSchema.optional(),
  revokedAt: timeSchema.optional(),
  names: namePatternsSchema.optional(),
  labels: labelsSchema.optional(),
  maxAgents: maxAgentsSchema.optional(),
}).openapi('Credential')

export const madeSchema = z.strictObject({
  secret: z.string().openapi({ description: 'Shown this once; the relay keeps its hash alone.' }),
  credential: credentialSchema,
}).openapi('MadeCredential')

const wantedShape = {
  scope: scopeSchema.optional().openapi({ description: "Without it the caller's own." }),
  label: z.string().max(LABEL_LENGTH_MAX).optional(),
  expiresAt: timeSchema.optional(),
  names: namePatternsSchema.optional(),
}
export const newKeySchema = z.strictObject({
  ...wantedShape,
  admin: z.boolean().optional().openapi({ description: 'An admin key; only by an admin key.' }),
}).openapi('NewKey')
export const newTokenSchema = z.strictObject({
  ...wantedShape,
  labels: labelsSchema.optional(),
  maxAgents: maxAgentsSchema.optional(),
}).openapi('NewToken')

export const ownedNameSchema = z.strictObject({
  name: nameSchema,
  scope: scopeSchema,
  reservedAt: timeSchema,
}).openapi('Name')

export const blockSchema = z.strictObject({
  name: nameSchema.optional(),
  scope: scopeSchema.optional(),
  reason: z.string(),
  since: timeSchema,
}).openapi('Block')
export const newBlockSchema = z.strictObject({
  name: nameSchema.optional(),
  scope: scopeSchema.optional(),
  reason: z.string().min(1).max(REASON_LENGTH_MAX),
}).openapi('NewBlock', { description: 'Exactly one of `name` and `scope`.' })

const serialSchema = z.string().max(80).regex(/^[0-9a-fA-F:]+$/).openapi({
  description: 'The serial number in hex, with colons or without.',
  example: '1f:2e',
})
export const revokedSchema = z.strictObject({
  serial: serialSchema,
  reason: z.string(),
  since: timeSchema,
}).openapi('RevokedCertificate')
export const newRevokedSchema = z.strictObject({
  serial: serialSchema,
  reason: z.string().min(1).max(REASON_LENGTH_MAX),
}).openapi('NewRevokedCertificate')
export const serialParamSchema = z.object({
  serial: serialSchema.openapi({ param: { name: 'serial', in: 'path' } }),
})

export const agentSchema = z.strictObject({
  key: keySchema,
  scope: scopeSchema,
  group: z.string().openapi({ description: 'One process of the agent, 16 bytes in hex.' }),
  version: z.string(),
  labels: z.record(nameSchema, z.string().max(63)).openapi({
    description: 'What it says of itself; checked against its credential.',
  }),
  address: z.string(),
  since: timeSchema,
  endpoints: z.array(nameSchema),
  streams: z.int().min(0),
  bulkIdle: z.int().min(0),
}).openapi('Agent')

export const peerSchema = z.strictObject({
  key: keySchema,
  scope: scopeSchema,
  names: z.array(z.strictObject({
    name: nameSchema,
    kind: z.enum(['http', 'tcp', 'udp', 'agent']).optional(),
  })),
  labels: z.record(z.string(), z.string()).openapi({
    description: 'What the agent says of itself; the relay vouches for none of it.',
  }),
  online: z.boolean(),
  since: timeSchema.optional(),
}).openapi('Peer')

export const newShownSchema = z.strictObject({
  scope: scopeSchema.optional().openapi({
    description: "Whose names; without it the caller's own.",
  }),
  to: scopeSchema,
  names: z.string().regex(/^[a-z0-9*?-]{1,63}$/).openapi({
    description: 'A name, `*` for any text and `?` for one character.',
    example: 'web-*',
  }),
}).openapi('NewGrant')
export const shownSchema = z.strictObject({
  scope: scopeSchema,
  to: scopeSchema,
  names: z.string(),
  since: timeSchema,
}).openapi('NameGrant')

export const loginCodeSchema = z.strictObject({
  code: z.string().min(8).max(64).openapi({
    description: 'The code that the machine shows, in any case.',
    example: 'WDJB-MJHT',
  }),
}).openapi('LoginCode')
export const approvalSchema = z.strictObject({
  ...loginCodeSchema.shape,
  scope: scopeSchema.optional().openapi({
    description: 'Whose it is to be; without it a new one, or that of the API key that approves.',
  }),
  names: namePatternsSchema.optional(),
  expiresAt: timeSchema.optional(),
}).openapi('Approval')
const loginShape = {
  who: z.string().openapi({ description: "The machine's own word." }),
  fingerprint: z.string(),
  address: z.string(),
  since: timeSchema,
  expiresAt: timeSchema,
}
export const loginSchema = z.strictObject(loginShape).openapi('Login')
export const approvedSchema = z.strictObject({ ...loginShape, scope: scopeSchema }).openapi(
  'ApprovedLogin',
)

export const relaySchema = z.strictObject({
  key: keySchema,
  fingerprint: z.string(),
  names: z.array(z.string()),
  domain: z.string(),
  secure: z.string(),
  apps: z.string(),
  port: z.int().min(0).max(65_535),
  version: z.string(),
  runtime: z.string(),
  can: z.strictObject({
    rawTcp: z.boolean(),
    rawUdp: z.boolean(),
    bulkLinks: z.boolean(),
    inspectable: z.boolean(),
  }),
}).openapi('Relay')

export const grantSchema = z.strictObject({
  id: z.string(),
  kind: z.enum(['key', 'token', 'admin']),
  scope: scopeSchema,
  admin: z.boolean(),
  names: namePatternsSchema.optional(),
  labels: labelsSchema.optional(),
  maxAgents: maxAgentsSchema.optional(),
  expiresAt: timeSchema.optional(),
}).openapi('Grant')

export const idParamSchema = z.object({
  id: idSchema.openapi({ param: { name: 'id', in: 'path' } }),
})
export const nameParamSchema = z.object({
  name: nameSchema.openapi({ param: { name: 'name', in: 'path' } }),
})
export const scopeQuerySchema = z.strictObject({ scope: scopeSchema.optional() })
const afterDescription = 'The `next` of the page before.'
export const credentialQuerySchema = z.strictObject({
  scope: scopeSchema.optional(),
  after: idSchema.optional().openapi({ description: afterDescription }),
})
export const nameQuerySchema = z.strictObject({
  scope: scopeSchema.optional(),
  after: nameSchema.optional().openapi({ description: afterDescription }),
})
export const blockQuerySchema = z.strictObject({
  name: nameSchema.optional(),
  scope: scopeSchema.optional(),
})

export const peerQuerySchema = z.strictObject({
  scope: scopeSchema.optional(),
  selector: z.string().max(SELECTOR_LENGTH_MAX).optional().openapi({
    description: 'Labels, comma means and.',
    example: 'env=prod,region!=eu',
  }),
  after: z.string().max(KEY_TEXT_LENGTH + 1 + NAME_LENGTH_MAX).optional().openapi({
    description: afterDescription,
  }),
})

/** A list of `items`, with `next` where there are more. */
export function pageOf<T extends z.ZodType>(items: T) {
  return z.strictObject({
    items: z.array(items),
    next: z.string().optional().openapi({ description: 'Send it as `after` for the next page.' }),
  })
}

export function showCredential(record: CredentialRecord): z.output<typeof credentialSchema> {
  const { expiresAt, revokedAt, createdAt, ...rest } = record
  return {
    ...rest,
    createdAt: iso(createdAt),
    ...(expiresAt === undefined ? {} : { expiresAt: iso(expiresAt) }),
    ...(revokedAt === undefined ? {} : { revokedAt: iso(revokedAt) }),
  }
}

export function showLogin(
  { at, expires, ...asking }: Asking,
): z.output<typeof loginSchema> {
  return { ...asking, since: iso(at), expiresAt: iso(expires) }
}

export function showName({ name, scope, reservedAt }: NameRecord): z.output<
  typeof ownedNameSchema
> {
  return { name, scope, reservedAt: iso(reservedAt) }
}

export function showShown({ since, ...shown }: ShownRecord): z.output<typeof shownSchema> {
  return { ...shown, since: iso(since) }
}

export function showBlock({ since, ...block }: Block): z.output<typeof blockSchema> {
  return { ...block, since: iso(since) }
}

export function showRevoked(revoked: RevokedCertificate): z.output<typeof revokedSchema> {
  return { ...revoked, since: iso(revoked.since) }
}

function iso(ms: number): string {
  return new Date(ms).toISOString()
}
