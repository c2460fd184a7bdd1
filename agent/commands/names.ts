/** `sotto relay names`, `block` and `unblock`: what is reserved to whom, and the kill switch. */
import { isName } from '../../core/key.ts'
import { TunnelError } from '../../core/errors.ts'
import {
  checkOperator,
  openApi,
  OPERATOR_FLAGS,
  printList,
  readOperator,
  SCOPE_FLAG,
} from '../cli/operator.ts'
import type { OperatorOptions } from '../cli/operator.ts'
import { command, isSet, textOf } from '../cli/page.ts'
import type { Flag, Given } from '../cli/page.ts'

interface ListOptions extends OperatorOptions {
  scope: string | undefined
}

export const listNames = command<ListOptions>({
  page: {
    name: 'sotto relay names list',
    summary: 'list the reserved names',
    examples: [
      ['sotto relay names list', 'Those that your key may see.'],
      ['sotto relay names list --scope ana --json', 'Those of one scope, for programs.'],
    ],
    flags: [SCOPE_FLAG, ...OPERATOR_FLAGS],
  },
  read: (given) => ({ ...readOperator(given), scope: textOf(given, 'scope') }),
  check: checkOperator,
  async run(options, world) {
    const { api } = await openApi(world, options)
    const { scope, json } = options
    printList(world, {
      items: await api.list('/names', scope === undefined ? {} : { scope }),
      heads: { NAME: 'name', SCOPE: 'scope', RESERVED: 'reservedAt' },
      json,
      none: 'no name is reserved',
    })
    return 0
  },
})

interface NameOptions extends OperatorOptions {
  name: string
}

export const releaseName = command<NameOptions>({
  page: {
    name: 'sotto relay names release',
    summary: 'release a name that nobody serves now, so that another scope may have it',
    args: ['NAME'],
    examples: [
      ['sotto relay names release web', 'Your own name.'],
      ['sotto relay names release web --key-file admin.key', "Anybody's, with the admin key."],
    ],
    flags: OPERATOR_FLAGS,
  },
  read: (given) => ({ ...readOperator(given), name: given.args[0]! }),
  check(options) {
    checkOperator(options)
    checkLabel(options.name)
  },
  async run(options, world) {
    const { api } = await openApi(world, options)
    await api.call('DELETE', `/names/${options.name}`)
    const { stdout, stderr } = world.terminal
    if (options.json) stdout.write(`${JSON.stringify({ released: options.name })}\n`)
    else stderr.write(`released ${options.name}\n`)
    return 0
  },
})

interface BlockOptions extends OperatorOptions {
  target: { name: string } | { scope: string }
  reason: string
}

const WHICH: Flag = { name: 'scope', help: 'The word is a scope, not a name.' }

export const block = command<BlockOptions>({
  page: {
    name: 'sotto relay block',
    summary: 'cut a name or a scope off at once, live visitors too',
    args: ['NAME'],
    examples: [
      ['sotto relay block web --reason phishing', 'One name.'],
      ['sotto relay block --scope ana', 'Everything of one scope.'],
    ],
    flags: [
      WHICH,
      {
        name: 'reason',
        value: 'TEXT',
        without: 'blocked by the operator',
        help: 'Kept with the block.',
      },
      ...OPERATOR_FLAGS,
    ],
  },
  read: (given) => ({
    ...readOperator(given),
    target: targetOf(given),
    reason: textOf(given, 'reason') ?? 'blocked by the operator',
  }),
  check: checkBlock,
  async run(options, world) {
    const { api } = await openApi(world, options)
    const { target, reason, json } = options
    const added = await api.call('POST', '/blocks', { ...target, reason })
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify(added)}\n`)
    else stderr.write(`blocked ${wordsOf(target)}\n`)
    return 0
  },
})

export const unblock = command<BlockOptions>({
  page: {
    name: 'sotto relay unblock',
    summary: 'let a name or a scope in again',
    args: ['NAME'],
    examples: [
      ['sotto relay unblock web', 'One name.'],
      ['sotto relay unblock --scope ana', 'One scope.'],
    ],
    flags: [WHICH, ...OPERATOR_FLAGS],
  },
  read: (given) => ({ ...readOperator(given), target: targetOf(given), reason: '' }),
  check: checkBlock,
  async run(options, world) {
    const { api } = await openApi(world, options)
    const { target, json } = options
    await api.call('DELETE', `/blocks?${new URLSearchParams({ ...target })}`)
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify({ unblocked: target })}\n`)
    else stderr.write(`let ${wordsOf(target)} in again\n`)
    return 0
  },
})

function targetOf(given: Given): { name: string } | { scope: string } {
  const word = given.args[0]!
  return isSet(given, 'scope') ? { scope: word } : { name: word }
}

function checkBlock(options: BlockOptions): void {
  checkOperator(options)
  checkLabel(Object.values(options.target)[0]!)
}

function wordsOf(target: { name: string } | { scope: string }): string {
  return 'name' in target ? `the name ${target.name}` : `the scope ${target.scope}`
}

function checkLabel(label: string): void {
  if (isName(label)) return
  throw new TunnelError(
    'cli/name',
    `Cannot use "${label}": expected 1 to 63 of a-z 0-9 and inner hyphens`,
  )
}
