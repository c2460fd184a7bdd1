/**
 * What `sotto.yaml` may hold: one table, by which a file is checked (config_reader.ts), from which the
 * JSON schema that editors read is made (config_schema.ts), and the table of docs/config.md.
 *
 * To add a field to a tunnel: one entry here (in `EVERY` or in one kind's fields), a rule below it
 * where it excludes another, and its use in `readTunnel` of config.ts. Then run `bun
 * compile/config.ts`; tests/agent/config.test.ts says what was forgotten.
 */
import { readHostName } from '../core/dns.ts'
import { isTunnelError } from '../core/errors.ts'
import { checkLabels } from '../core/labels.ts'
import { parseFingerprint } from '../core/key.ts'
import { parseUpstream } from './forward.ts'
import { checkAllow } from './guests.ts'
import { parseRelay } from './join.ts'
import { checkDirectory } from './acme_choice.ts'

export const TUNNELS_MAX = 256
export const CERTIFICATES_MAX = 64
export const LIST_MAX = 256
/**
 * Names for which a CA is asked, of all tunnels: a passport names 16 certificates of an identity, and a
 * CA has its limits.
 */
export const ACME_NAMES_MAX = 6
export const TEXT_LENGTH_MAX = 4096

interface Common {
  /** One sentence, for editors and docs/config.md. */
  readonly help: string
  /** What holds where it is left out, in words. */
  readonly without?: string
  readonly required?: true
}

export interface TextField extends Common {
  readonly type: 'text'
  /** Of the whole value, as JSON schema has it: what `check` says, as nearly as a pattern can. */
  readonly pattern: string
  /** The same in words. */
  readonly expected: string
  /** Throws on what cannot be used; the pattern alone counts where it is absent. */
  readonly check?: (words: string) => void
  /** A whole number means the same as its digits in quotes. */
  readonly number?: { readonly min: number; readonly max: number }
}

export interface NumberField extends Common {
  readonly type: 'number'
  readonly min: number
  readonly max: number
}

export interface SwitchField extends Common {
  readonly type: 'switch'
  /** The one value that it may have. */
  readonly only?: boolean
}

export interface ListField extends Common {
  readonly type: 'list'
  readonly of: TextField
}

/** Names that the person chooses, each with the same kind of value. */
export interface MapField extends Common {
  readonly type: 'map'
  readonly key: TextField
  readonly of: Field
  readonly max: number
}

export interface ObjectField extends Common {
  readonly type: 'object'
  readonly fields: Readonly<Record<string, Field>>
  readonly rules?: readonly Rule[]
}

/** An object of one of several kinds: the field that it is named by says which. */
export interface KindsField extends Common {
  readonly type: 'kinds'
  readonly kinds: Readonly<Record<string, ObjectField>>
}

export type Field =
  | TextField
  | NumberField
  | SwitchField
  | ListField
  | MapField
  | ObjectField
  | KindsField

/** A field that is there, or has that value. */
export interface Condition {
  readonly field: string
  readonly is?: boolean | string
}

/** What fields of one object mean for each other. */
export interface Rule {
  readonly when: Condition
  readonly refuses?: Condition
  readonly needs?: Condition
  readonly why: string
}

const NAME_PATTERN = '^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$'
const PORT = '(?:[1-9][0-9]{0,4})'
const HOST = '(?:\\[[0-9a-fA-F:.]+\\]|[^:\\[\\]/?#@\\s]+)'

function nameField(help: string, without?: string): TextField {
  return {
    type: 'text',
    help,
    ...(without === undefined ? {} : { without }),
    pattern: NAME_PATTERN,
    expected: '1 to 63 of a-z 0-9 and inner hyphens',
  }
}

function pathField(help: string): TextField {
  return { type: 'text', help, pattern: '^[^\\u0000-\\u001f]{1,4096}$', expected: 'a path' }
}

function upstreamField(help: string, kind: 'any' | 'udp'): TextField {
  const near = kind === 'udp' ? '' : '[uU][nN][iI][xX]:(?://)?/[^\\u0000]*|'
  const scheme = kind === 'udp'
    ? '(?:tcp://)?'
    : `(?:(?:https?|https\\+insecure)://${HOST}(?::${PORT})?/?)|(?:tcp://)?`
  return {
    type: 'text',
    help,
    required: true,
    pattern: `^(?:${near}${PORT}|${scheme}${HOST}:${PORT})$`,
    expected: kind === 'udp'
      ? 'a port or host:port'
      : 'a port, host:port, http://host:port, https://host[:port] or unix:/path',
    check: (words) => {
      const upstream = parseUpstream(words)
      if (kind === 'udp' && upstream.kind !== 'tcp') throw new Error('no place for packets')
    },
    number: { min: 1, max: 65_535 },
  }
}

/** Fields of tunnels of every kind. */
const EVERY = {
  name: nameField(
    'The endpoint, one label of its host name; reserved to you on first use.',
    'what the tunnel is called in this file',
  ),
} satisfies Record<string, Field>

const PROXY: TextField = {
  type: 'text',
  help: "Tell the upstream the visitor's address by a PROXY protocol header.",
  without: 'none',
  pattern: '^v[12]$',
  expected: 'v1 or v2',
}

const PUBLIC_PORT: NumberField = {
  type: 'number',
  help: "The relay's port for it, with e2ee: false.",
  without: 'any free one',
  min: 1,
  max: 65_535,
}

function hostsField(help: string, without?: string): ListField {
  return {
    type: 'list',
    help,
    ...(without === undefined ? {} : { without }),
    of: {
      type: 'text',
      help: 'A host name.',
      pattern: '^[^\\s/:@]+\\.[^\\s/:@]+$',
      expected: 'a host name such as app.example.com',
      check: (words) => {
        if (!readHostName(words).includes('.')) throw new Error('no domain')
      },
    },
  }
}

const HTTP: ObjectField = {
  type: 'object',
  help: 'A local HTTP service at a public https URL, as "sotto http" serves it.',
  fields: {
    http: upstreamField('The HTTP service.', 'any'),
    ...EVERY,
    e2ee: {
      type: 'switch',
      help: 'Whether TLS ends in this agent; false: at the relay, which can then read everything.',
      without: 'true',
    },
    certificate: nameField(
      'One of "certificates", to show to visitors.',
      'a self-signed certificate',
    ),
    'e2ee-cert': pathField('PEM file: your own certificate and its chain; read when it changes.'),
    'e2ee-key': pathField('PEM file: the key of that certificate.'),
    acme: {
      type: 'text',
      help: 'Get a certificate that browsers trust; off: the self-signed one stays.',
      without: `on where the relay allows it, for ${ACME_NAMES_MAX} names of the file`,
      pattern: '^(?:on|off)$',
      expected: 'on or off',
    },
    'acme-domains': hostsField('Your own host names that lead to the relay, served here as well.'),
    domains: hostsField('The same, with no certificate of a CA for them.'),
    'host-header': {
      type: 'text',
      help: 'The Host header for the upstream: "rewrite" for its own name, or the value itself.',
      without: 'passed on as it is',
      pattern: '^[\\u0021-\\u007e]{1,255}$',
      expected: '"rewrite" or a host name',
    },
    'proxy-protocol': PROXY,
  },
  rules: [
    { when: { field: 'e2ee-cert' }, needs: { field: 'e2ee-key' }, why: 'a certificate has a key' },
    { when: { field: 'e2ee-key' }, needs: { field: 'e2ee-cert' }, why: 'a key has a certificate' },
    {
      when: { field: 'certificate' },
      refuses: { field: 'e2ee-cert' },
      why: 'visitors get one certificate',
    },
    ...['certificate', 'e2ee-cert', 'e2ee-key', 'acme', 'acme-domains', 'domains'].map((field) => ({
      when: { field: 'e2ee', is: false },
      refuses: { field },
      why: 'TLS does not end here then',
    })),
    {
      when: { field: 'acme', is: 'off' },
      refuses: { field: 'acme-domains' },
      why: 'nothing would vouch for those names',
    },
    {
      when: { field: 'e2ee', is: false },
      refuses: { field: 'proxy-protocol' },
      why: 'the visitor is named by X-Forwarded-For then',
    },
    {
      when: { field: 'e2ee', is: false },
      refuses: { field: 'host-header' },
      why: 'the relay names the upstream itself then',
    },
    {
      when: { field: 'host-header' },
      refuses: { field: 'proxy-protocol' },
      why: 'the visitor is named by X-Forwarded-For then',
    },
  ],
}

const TCP: ObjectField = {
  type: 'object',
  help: 'A local TCP service for chosen agents, or for anybody, as "sotto tcp" serves it.',
  fields: {
    tcp: upstreamField('The TCP service.', 'any'),
    ...EVERY,
    allow: {
      type: 'list',
      help: 'Who may come in too: each a KEY, a fingerprint or a pinned name.',
      without: 'the rules of "sotto access" alone',
      of: {
        type: 'text',
        help: 'A KEY, a fingerprint or a pinned name.',
        pattern: '^[^\\s#]\\S{0,252}$',
        expected: 'a KEY, a fingerprint or a pinned name',
        check: checkAllow,
      },
    },
    public: { type: 'switch', help: 'Let any TLS client in.', without: 'false' },
    e2ee: {
      type: 'switch',
      help: 'Whether TLS ends in this agent; false: a raw public port, nothing added.',
      without: 'true',
    },
    'public-port': PUBLIC_PORT,
    'proxy-protocol': PROXY,
  },
  rules: [
    {
      when: { field: 'public', is: true },
      refuses: { field: 'allow' },
      why: 'anybody comes in then',
    },
    {
      when: { field: 'e2ee', is: false },
      refuses: { field: 'allow' },
      why: 'a raw port knows nobody',
    },
    {
      when: { field: 'e2ee', is: false },
      refuses: { field: 'public', is: true },
      why: 'a raw port knows nobody',
    },
    {
      when: { field: 'public-port' },
      needs: { field: 'e2ee', is: false },
      why: 'endpoints that are verified are reached by name',
    },
  ],
}

const UDP: ObjectField = {
  type: 'object',
  help: 'A UDP port of the relay onto a local service, as "sotto udp" opens it.',
  fields: {
    udp: upstreamField('The UDP service.', 'udp'),
    ...EVERY,
    e2ee: {
      type: 'switch',
      help: 'Must be false: nothing is added to the packets, so say that you know.',
      required: true,
      only: false,
    },
    'public-port': { ...PUBLIC_PORT, help: "The relay's port for it." },
  },
}

/** The whole file. */
export const CONFIG: ObjectField = {
  type: 'object',
  help: 'Tunnels that "sotto up" runs in one process, over one link.',
  fields: {
    relay: {
      type: 'text',
      help: 'The relay, such as https://relay.example.',
      without: 'SOTTO_RELAY, else the profile',
      pattern: `^(?:https://|http://(?:localhost|127\\.|\\[::1\\])|(?![a-zA-Z]+://))[^/?#@\\s]+/?$`,
      expected: 'https://host[:port]',
      check: (words) => void parseRelay(words, 'the file'),
    },
    'relay-fingerprint': {
      type: 'text',
      help: "The relay's identity; with it a self-signed certificate will do.",
      without: 'pinned on first use',
      pattern: '^SHA256:[A-Za-z0-9+/]{43}$',
      expected: 'a whole fingerprint, SHA256:…',
      check: (words) => void parseFingerprint(words),
    },
    ca: pathField('PEM file of CAs to trust for the relay, in place of those of the program.'),
    profile: nameField('The profile whose identity and relay are meant.', 'the default one'),
    'api-key-file': pathField(
      'The file that holds the API key or fleet token; a secret has no place in this one.',
    ),
    'api-key-env': {
      type: 'text',
      help: 'The variable that holds the API key or fleet token.',
      without: 'SOTTO_API_KEY, else the profile',
      pattern: '^[A-Za-z_][A-Za-z0-9_]{0,254}$',
      expected: 'the name of a variable',
    },
    acme: {
      type: 'object',
      help: 'The CA of tunnels that get a certificate by themselves.',
      fields: {
        directory: {
          type: 'text',
          help: 'Its URL; to use it is to agree to its terms.',
          without: "SOTTO_ACME_DIRECTORY, else Let's Encrypt",
          pattern: '^https://[^\\s@]+$',
          expected: 'an https URL',
          check: (words) => void checkDirectory(words),
        },
        contact: {
          type: 'text',
          help: 'Where the CA may write to.',
          without: 'none',
          pattern: '^[^\\s@,?]{1,64}@[^\\s@,?]{1,253}$',
          expected: 'one e-mail address',
        },
        ca: {
          ...pathField("PEM file: CAs to trust for the directory's own address."),
          without: 'SSL_CERT_FILE, else the CAs that come with sotto',
        },
        'eab-kid': {
          type: 'text',
          help: "External account binding: the key's id.",
          without: 'none',
          pattern: '^[\\u0021-\\u007e]{1,255}$',
          expected: 'an id that the CA gave you',
        },
        'eab-key-file': {
          ...pathField('File with the HMAC key that the CA gave you, in base64url.'),
          without: 'SOTTO_ACME_EAB_KEY',
        },
      },
      rules: [
        {
          when: { field: 'eab-key-file' },
          needs: { field: 'eab-kid' },
          why: 'the CA gives an id and a key',
        },
      ],
    },
    labels: {
      type: 'map',
      help: 'What this agent is, for the relay and its fleet tokens.',
      without: '"labels" of the profile',
      max: 16,
      key: nameField('What is said.'),
      of: {
        type: 'text',
        help: 'One of a-z 0-9 and inner hyphens, dots and underscores.',
        pattern: '^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$',
        expected: '1 to 63 of a-z 0-9 and inner hyphens, dots and underscores',
        check: (words) => checkLabels({ label: words }),
        number: { min: 0, max: 999_999_999 },
      },
    },
    certificates: {
      type: 'map',
      help: 'Certificates of your own, by names that tunnels use.',
      max: CERTIFICATES_MAX,
      key: nameField('The name.'),
      of: {
        type: 'object',
        help: 'Two PEM files, read again when they change.',
        fields: {
          cert: { ...pathField('The certificate and its chain.'), required: true },
          key: { ...pathField('Its key.'), required: true },
        },
      },
    },
    tunnels: {
      type: 'map',
      help: 'The tunnels, by name.',
      required: true,
      max: TUNNELS_MAX,
      key: nameField('What the tunnel is called here, and its endpoint on the relay.'),
      of: {
        type: 'kinds',
        help: 'What is published: http, tcp or udp says of which kind, and where it leads to.',
        kinds: { http: HTTP, tcp: TCP, udp: UDP },
      },
    },
  },
  rules: [
    {
      when: { field: 'api-key-file' },
      refuses: { field: 'api-key-env' },
      why: 'one of them holds the key',
    },
  ],
}

/** Fields in which somebody would write a secret, and that are not there. */
export const SECRET_FIELDS: readonly string[] = [
  'api-key',
  'apiKey',
  'api_key',
  'apikey',
  'token',
  'secret',
  'password',
  'key',
]

/** Whether a text passes a field's check. */
export function accepts(field: TextField, words: string): boolean {
  if (words.length > TEXT_LENGTH_MAX) return false
  if (!field.check) return new RegExp(field.pattern, 'u').test(words)
  try {
    field.check(words)
    return true
  } catch (error) {
    if (isTunnelError(error) || error instanceof Error) return false
    throw error
  }
}
