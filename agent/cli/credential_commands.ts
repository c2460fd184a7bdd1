/** `create`, `list` and `revoke` of API keys and of fleet tokens, which differ in a few flags alone. */
import { TunnelError } from '../../core/errors.ts'
import type { World } from '../world.ts'
import {
  checkOperator,
  expiryOf,
  openApi,
  OPERATOR_FLAGS,
  printList,
  readOperator,
  SCOPE_FLAG,
} from './operator.ts'
import type { OperatorOptions } from './operator.ts'
import { command, isSet, listOf, numberOf, textOf } from './page.ts'
import type { Command, Flag, Given, Page } from './page.ts'

const AGENTS_MAX = 1_000_000

export interface CredentialKind {
  /** As in the API's paths and the command's name. */
  path: 'keys' | 'tokens'
  /** `an API key`. */
  one: string
  many: string
  createExamples: Page['examples']
  createFlags: readonly Flag[]
}

interface CreateOptions extends OperatorOptions {
  scope: string | undefined
  label: string | undefined
  expires: string | undefined
  names: string[]
  admin: boolean
  maxAgents: number | undefined
  labels: string[]
}

const CREATE_FLAGS: readonly Flag[] = [
  { ...SCOPE_FLAG, help: 'Whose names it may claim.', without: "your key's own" },
  { name: 'label', value: 'TEXT', without: 'none', help: 'A note for the list.' },
  {
    name: 'expires',
    value: 'WHEN',
    without: 'never',
    help: 'When it ends: 90m, 12h, 30d, or a date such as 2030-01-31.',
  },
  {
    name: 'name',
    value: 'PATTERN',
    many: true,
    without: 'any',
    help: 'Names that it may claim; * is any text, ? one character.',
  },
]

export function credentialCommands(
  kind: CredentialKind,
): Readonly<Record<'create' | 'list' | 'revoke', Command>> {
  return { create: create(kind), list: list(kind), revoke: revoke(kind) }
}

function create({ path, one, createExamples, createFlags }: CredentialKind): Command {
  return command<CreateOptions>({
    page: {
      name: `sotto relay ${path} create`,
      summary: `make ${one}; its secret is shown this once`,
      examples: createExamples,
      flags: [...CREATE_FLAGS, ...createFlags, ...OPERATOR_FLAGS],
    },
    read: (given: Given): CreateOptions => ({
      ...readOperator(given),
      scope: textOf(given, 'scope'),
      label: textOf(given, 'label'),
      expires: textOf(given, 'expires'),
      names: listOf(given, 'name'),
      admin: isSet(given, 'admin'),
      maxAgents: numberOf(given, 'max-agents', { min: 1, max: AGENTS_MAX }),
      labels: listOf(given, 'agent-label'),
    }),
    check(options) {
      checkOperator(options)
      labelsOf(options.labels)
      // Its form alone; whether it is to come is a question of the clock.
      expiryOf(options.expires, 0)
    },
    async run(options, world) {
      const { scope, label, names, admin, maxAgents } = options
      const expiresAt = expiryOf(options.expires, world.clock.now())
      const labels = labelsOf(options.labels)
      const { api } = await openApi(world, options)
      const made = await api.call('POST', `/${path}`, {
        ...(scope === undefined ? {} : { scope }),
        ...(label === undefined ? {} : { label }),
        ...(expiresAt === undefined ? {} : { expiresAt }),
        ...(names.length === 0 ? {} : { names }),
        ...(admin ? { admin } : {}),
        ...(maxAgents === undefined ? {} : { maxAgents }),
        ...(options.labels.length === 0 ? {} : { labels }),
      }) as { secret: string; credential: Record<string, unknown> }
      const { stdout, stderr } = world.terminal
      if (options.json) {
        stdout.write(`${JSON.stringify({ secret: made.secret, ...made.credential })}\n`)
        return 0
      }
      // The secret alone on standard output, so that it can go straight into a file.
      stdout.write(`${made.secret}\n`)
      stderr.write(
        `made ${one} of scope ${made.credential['scope']}, id ${made.credential['id']}; ` +
          'its secret is shown this once\n',
      )
      return 0
    },
  })
}

function list({ path, many }: CredentialKind): Command {
  return command<OperatorOptions & { scope: string | undefined }>({
    page: {
      name: `sotto relay ${path} list`,
      summary: `list the ${many}, revoked and expired ones of late included`,
      examples: [
        [`sotto relay ${path} list`, 'Those that your key may see.'],
        [`sotto relay ${path} list --scope home --json`, 'Those of one scope, for programs.'],
      ],
      flags: [SCOPE_FLAG, ...OPERATOR_FLAGS],
    },
    read: (given) => ({ ...readOperator(given), scope: textOf(given, 'scope') }),
    check: checkOperator,
    async run(options, world) {
      const { api } = await openApi(world, options)
      const { scope, json } = options
      const items = await api.list(`/${path}`, scope === undefined ? {} : { scope })
      printList(world, {
        items: json ? items : items.map((item) => ({ ...item, state: stateOf(item, world) })),
        heads: {
          ID: 'id',
          KIND: 'kind',
          SCOPE: 'scope',
          STATE: 'state',
          CREATED: 'createdAt',
          EXPIRES: 'expiresAt',
          NAMES: 'names',
          LABEL: 'label',
        },
        json,
        none: `there are no ${many}`,
      })
      return 0
    },
  })
}

function stateOf(item: Record<string, unknown>, { clock }: World): string {
  if (item['revokedAt'] !== undefined) return 'revoked'
  const { expiresAt } = item
  return typeof expiresAt === 'string' && Date.parse(expiresAt) <= clock.now() ? 'expired' : 'good'
}

function revoke({ path, one }: CredentialKind): Command {
  return command<OperatorOptions & { id: string }>({
    page: {
      name: `sotto relay ${path} revoke`,
      summary: `revoke ${one}; links that it admitted end within a second`,
      args: ['ID'],
      examples: [
        [`sotto relay ${path} revoke 0f1e2d3c4b5a69788796`, `By the id that the list shows.`],
        [
          `sotto relay ${path} revoke 0f1e2d3c4b5a69788796 --relay https://relay.example`,
          'On another relay than that of the profile.',
        ],
      ],
      flags: OPERATOR_FLAGS,
    },
    read: (given) => ({ ...readOperator(given), id: given.args[0]! }),
    check(options) {
      checkOperator(options)
      if (/^[0-9a-f]{20}$/.test(options.id)) return
      throw new TunnelError(
        'cli/id',
        `Cannot revoke "${options.id.slice(0, 4)}…": expected an id of 20 hex digits`,
        { hint: `See "sotto relay ${path} list". A secret is not an id.` },
      )
    },
    async run(options, world) {
      const { api } = await openApi(world, options)
      await api.call('DELETE', `/${path}/${options.id}`)
      if (options.json) world.terminal.stdout.write(`${JSON.stringify({ revoked: options.id })}\n`)
      else world.terminal.stderr.write(`revoked ${options.id}\n`)
      return 0
    },
  })
}

/** `site=berlin-*` and the like. Throws `cli/label`. */
function labelsOf(words: readonly string[]): Record<string, string> {
  return Object.fromEntries(words.map((one) => {
    const at = one.indexOf('=')
    if (at > 0) return [one.slice(0, at), one.slice(at + 1)]
    throw new TunnelError(
      'cli/label',
      `Cannot read --agent-label: found "${one}", expected NAME=PATTERN`,
    )
  }))
}
