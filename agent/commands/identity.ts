/** `sotto identity`: who this agent is, for others to pin; a new one, and the end of a stolen one. */
import { text, utf8 } from '../../core/bytes.ts'
import { isTunnelError, TunnelError } from '../../core/errors.ts'
import { fingerprint, formatKey } from '../../core/key.ts'
import { encodeStatement, openStatement } from '../../core/statement.ts'
import { toBase64 } from '../base64.ts'
import { looksOf } from '../cli/looks.ts'
import { command, isSet, JSON_FLAG, RELAY_FLAGS, textOf } from '../cli/page.ts'
import { readChoice } from '../cli/plan.ts'
import { qrPicture } from '../cli/qr.ts'
import { Screen } from '../cli/screen.ts'
import { readStatement, readWords, writeNew } from '../cli/statement_file.ts'
import { enquire, publishStatement } from '../enquiry.ts'
import { checkChoice, join } from '../join.ts'
import type { RelayChoice } from '../join.ts'
import { Profile } from '../profile.ts'
import type { World } from '../world.ts'

export const identity = command<{ json: boolean }>({
  page: {
    name: 'sotto identity',
    summary: 'show who this agent is; made on first use, and never sent',
    examples: [
      ['sotto identity', 'The key and its fingerprint, to read out to somebody.'],
      ['sotto identity --json', 'The same for programs.'],
    ],
    flags: [JSON_FLAG],
    more: `Others let this agent in by: sotto peers trust NAME KEY --allow connect
Commands below: rotate, revoke-certificate, revoke.`,
  },
  read: (given) => ({ json: isSet(given, 'json') }),
  check() {},
  async run(options, world) {
    const profile = new Profile(world)
    const own = await profile.identity()
    const key = formatKey(own.public)
    const print = fingerprint(world.crypto, own.public)
    new Screen(world, options).show('identity', [
      { name: 'key', value: key, line: `key          ${key}` },
      { name: 'fingerprint', value: print, line: `fingerprint  ${print}` },
      { name: 'path', value: profile.identityPath, line: `kept in      ${profile.identityPath}` },
    ])
    return 0
  },
})

export const rotateIdentity = command<{ choice: RelayChoice; json: boolean }>({
  page: {
    name: 'sotto identity rotate',
    summary: 'move to a new identity, which the old one signs',
    examples: [
      ['sotto identity rotate', 'Peers that pinned the old one follow, and are told.'],
      ['sotto identity rotate --json', 'The same for programs.'],
    ],
    flags: [...RELAY_FLAGS, JSON_FLAG],
    more: `Every relay is told when this agent next joins it; the old key is gone at once.
What still runs here goes on under the old identity: start it again.
Rules of others that name the old KEY itself, vouches of authorities and a revocation certificate
that you printed do not follow: have them renewed.`,
  },
  read: (given) => ({ choice: readChoice(given), json: isSet(given, 'json') }),
  check: ({ choice }) => checkChoice(choice),
  async run(options, world) {
    const screen = new Screen(world, options)
    const profile = new Profile(world)
    const { old, next } = await profile.rotateIdentity()
    const key = formatKey(next.public)
    const print = fingerprint(world.crypto, next.public)
    const before = fingerprint(world.crypto, old.public)
    screen.show('rotated', [
      { name: 'key', value: key, line: `key          ${key}` },
      { name: 'fingerprint', value: print, line: `fingerprint  ${print}` },
      { name: 'before', value: before, line: `follows      ${before}` },
    ])
    try {
      const joining = await join(world, options.choice, (line) => screen.tell(line))
      // Joining is enough: every agent tells the relay whom it follows.
      await enquire(world, joining, () => Promise.resolve())
      screen.tell(`${joining.relay.host} knows it; peers follow when they next meet it`)
    } catch (error) {
      if (!isTunnelError(error)) throw error
      screen.tell(
        `no relay was told yet (${error.message}); the next command that joins one does it`,
      )
    }
    screen.tell('Start again whatever runs here: until then it goes by the old identity.')
    return 0
  },
})

interface CertificateOptions {
  keyFile: string | undefined
  out: string | undefined
  json: boolean
}

export const revokeCertificate = command<CertificateOptions>({
  page: {
    name: 'sotto identity revoke-certificate',
    summary: 'print what ends this identity for good, to be kept offline',
    examples: [
      ['sotto identity revoke-certificate', 'Text and QR code, for a printer.'],
      ['sotto identity revoke-certificate -o /media/stick/end', 'Into a file.'],
    ],
    flags: [
      {
        name: 'out',
        short: 'o',
        value: 'FILE',
        without: 'standard output',
        help: 'A new file, readable by you alone.',
      },
      {
        name: 'key-file',
        value: 'PATH',
        without: 'the identity of this profile',
        help: "Another identity's file, such as the key of an authority.",
      },
      JSON_FLAG,
    ],
    more:
      `Whoever has it can end this identity, and do nothing else with it. It beats every rotation.
It is used by: sotto identity revoke --certificate FILE`,
  },
  read: (given) => ({
    keyFile: textOf(given, 'key-file'),
    out: textOf(given, 'out'),
    json: isSet(given, 'json'),
  }),
  check() {},
  async run({ keyFile, out, json }, world) {
    const profile = new Profile(world)
    const own = keyFile === undefined ? await profile.identity() : await profile.identityAt(keyFile)
    if (!own) {
      throw new TunnelError('cli/file', `Cannot read a key from ${keyFile}: it is not there`)
    }
    const statement = toBase64(encodeStatement({
      kind: 'revocation',
      identity: own.public,
      time: world.clock.now(),
    }, (message) => world.crypto.ed25519Sign(own.seed, message)))
    const print = fingerprint(world.crypto, own.public)
    const { stdout, stderr } = world.terminal
    if (out !== undefined) await writeNew(world, out, utf8(`${statement}\n`))
    else if (json) stdout.write(`${JSON.stringify({ fingerprint: print, statement })}\n`)
    else {
      stdout.write(`${statement}\n`)
      if (stdout.isTTY) stdout.write(await pictureOf(statement, world))
    }
    stderr.write(`This ends ${print} for good once it is published. Keep it offline.\n`)
    return 0
  },
})

/** Nothing where it would break in the middle, and for who has the lines read out. */
async function pictureOf(statement: string, { env, terminal }: World): Promise<string> {
  const looks = looksOf(env)
  if (looks.plain) return ''
  const { lines, width } = await qrPicture(statement, looks)
  return width <= terminal.stdout.columns ? `\n${lines.join('\n')}\n` : ''
}

interface RevokeOptions {
  certificate: string
  choice: RelayChoice
  json: boolean
}

export const revokeIdentity = command<RevokeOptions>({
  page: {
    name: 'sotto identity revoke',
    summary: 'end an identity by its revocation certificate, from any machine',
    examples: [
      ['sotto identity revoke --certificate end.txt', 'The key was stolen or lost.'],
      ['sotto identity revoke --certificate -', 'The text on standard input.'],
    ],
    flags: [
      {
        name: 'certificate',
        value: 'FILE',
        help: 'As "sotto identity revoke-certificate" made it.',
      },
      ...RELAY_FLAGS,
      JSON_FLAG,
    ],
    more:
      `The relay ends the links of that identity and lets it in no more; peers that pinned it stop.
Do it at every relay that the identity used.`,
  },
  read: (given) => ({
    certificate: textOf(given, 'certificate') ?? '',
    choice: readChoice(given),
    json: isSet(given, 'json'),
  }),
  check({ certificate, choice }) {
    checkChoice(choice)
    if (certificate !== '') return
    throw new TunnelError('cli/usage', 'Cannot revoke: expected --certificate FILE', {
      hint: 'It was made by "sotto identity revoke-certificate" before the key was lost.',
    })
  },
  async run({ certificate, choice, json }, world) {
    const bytes = readStatement(text(await readWords(world, certificate)))
    const said = openStatement(world.crypto, bytes)
    if (said.kind !== 'revocation') {
      throw new TunnelError('identity/certificate', `Cannot revoke: found a ${said.kind} in it`)
    }
    const screen = new Screen(world, { json })
    const joining = await join(world, choice, (line) => screen.tell(line))
    await enquire(world, joining, (uplink) => publishStatement(uplink, bytes))
    // Ours may have it pinned too: it need not hear of it from the relay.
    await joining.profile.knownAgents().revoke(formatKey(said.identity))
    const print = fingerprint(world.crypto, said.identity)
    screen.show('revoked', [
      { name: 'fingerprint', value: print, line: `${print} is revoked at ${joining.relay.host}` },
    ])
    return 0
  },
})
