/** `sotto relay certificates`: client certificates that admit nobody any more. */
import { TunnelError } from '../../core/errors.ts'
import { checkOperator, openApi, OPERATOR_FLAGS, printList, readOperator } from '../cli/operator.ts'
import type { OperatorOptions } from '../cli/operator.ts'
import { command, textOf } from '../cli/page.ts'
import type { Given } from '../cli/page.ts'

interface SerialOptions extends OperatorOptions {
  serial: string
  reason: string
}

const MORE = `SERIAL is what "openssl x509 -noout -serial -in FILE" prints.
Colons, case and leading zeros make no difference.`

export const listCertificates = command<OperatorOptions>({
  page: {
    name: 'sotto relay certificates list',
    summary: 'list the client certificates that are revoked',
    examples: [
      ['sotto relay certificates list', 'Their serial numbers, and why.'],
      ['sotto relay certificates list --json', 'The same for programs.'],
    ],
    flags: OPERATOR_FLAGS,
  },
  read: readOperator,
  check: checkOperator,
  async run(options, world) {
    const { api } = await openApi(world, options)
    printList(world, {
      items: await api.list('/certificates'),
      heads: { SERIAL: 'serial', REVOKED: 'since', REASON: 'reason' },
      json: options.json,
      none: 'no certificate is revoked',
    })
    return 0
  },
})

export const revokeCertificate = command<SerialOptions>({
  page: {
    name: 'sotto relay certificates revoke',
    summary: 'revoke a client certificate at once, links that it admitted too',
    args: ['SERIAL'],
    examples: [
      ['sotto relay certificates revoke 1F2E --reason stolen', 'One certificate.'],
      ['sotto relay certificates revoke 0a:1b --key-file admin.key', 'Another, written otherwise.'],
    ],
    flags: [
      {
        name: 'reason',
        value: 'TEXT',
        without: 'revoked by the operator',
        help: 'Kept with it.',
      },
      ...OPERATOR_FLAGS,
    ],
    more: `${MORE}
That of an authority below yours revokes all that it signed.`,
  },
  read: readSerial,
  check: checkSerial,
  async run(options, world) {
    const { api } = await openApi(world, options)
    const { serial, reason, json } = options
    const revoked = await api.call('POST', '/certificates', { serial, reason })
    const { stdout, stderr } = world.terminal
    if (json) stdout.write(`${JSON.stringify(revoked)}\n`)
    else stderr.write(`revoked the certificate ${serial}\n`)
    return 0
  },
})

export const restoreCertificate = command<SerialOptions>({
  page: {
    name: 'sotto relay certificates restore',
    summary: 'let a client certificate admit agents again',
    args: ['SERIAL'],
    examples: [
      ['sotto relay certificates restore 1F2E', 'One certificate.'],
      ['sotto relay certificates restore 0a:1b --key-file admin.key', 'Written another way.'],
    ],
    flags: OPERATOR_FLAGS,
    more: `${MORE}
One that has expired may be restored: it admits nobody, and the list is the shorter.`,
  },
  read: readSerial,
  check: checkSerial,
  async run(options, world) {
    const { api } = await openApi(world, options)
    await api.call('DELETE', `/certificates/${options.serial}`)
    const { stdout, stderr } = world.terminal
    if (options.json) stdout.write(`${JSON.stringify({ restored: options.serial })}\n`)
    else stderr.write(`restored the certificate ${options.serial}\n`)
    return 0
  },
})

function readSerial(given: Given): SerialOptions {
  return {
    ...readOperator(given),
    // As openssl prints it, prefix and all.
    serial: given.args[0]!.replace(/^serial=/i, ''),
    reason: textOf(given, 'reason') ?? 'revoked by the operator',
  }
}

function checkSerial(options: SerialOptions): void {
  checkOperator(options)
  if (/^[0-9a-f:]{1,80}$/i.test(options.serial)) return
  throw new TunnelError(
    'cli/serial',
    `Cannot use the serial number "${options.serial}": expected hex digits`,
    { hint: 'See it with "openssl x509 -noout -serial -in FILE".' },
  )
}
