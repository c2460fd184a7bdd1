/**
 * Answers questions of DNS inside a network by the resolver of the machine that serves it: addresses of
 * names (A, AAAA), and nothing else. RFC 1035 §4; whoever asks is not trusted to know the format.
 *
 *   head      id 2 · flags 2 · questions 2 · answers 2 · authorities 2 · additional 2
 *   question  labels (length 1, bytes) · 0 · type 2 · class 2
 *   answer    C0 0C · type 2 · class 2 · TTL 4 · length 2 · address
 */
import { parseAddress } from '../../core/address.ts'
import { concat, EMPTY } from '../../core/bytes.ts'

// Specification constants.
const HEAD_BYTES = 12
const NAME_BYTES_MAX = 255
const TYPE = { A: 1, AAAA: 28 } as const
const CLASS_IN = 1
const RCODE = { none: 0, malformed: 1, failed: 2, unknown: 3, notImplemented: 4 } as const
const FLAG_RESPONSE = 0x80
const FLAG_RECURSE = 0x01
const FLAG_RECURSES = 0x80

/** Of an answer: short, since addresses behind a name of a LAN change. */
const TTL_SECONDS = 30
const ADDRESSES_MAX = 16

export interface NameQuestion {
  /** As it came, for the answer. */
  readonly bytes: Uint8Array
  /** Lower case, without the dot at its end. */
  readonly name: string
  readonly type: number
}

/** The question of a query; undefined for what is none. */
export function decodeNameQuery(query: Uint8Array): NameQuestion | undefined {
  if (query.length < HEAD_BYTES + 5 || (query[2]! & FLAG_RESPONSE) !== 0) return undefined
  if (query[4] !== 0 || query[5] !== 1) return undefined
  const labels: string[] = []
  let at = HEAD_BYTES
  for (;;) {
    const length = query[at]
    if (length === undefined || length > 63) return undefined
    at++
    if (length === 0) break
    if (at + length > query.length || at + length - HEAD_BYTES > NAME_BYTES_MAX) return undefined
    labels.push(String.fromCharCode(...query.subarray(at, at + length)))
    at += length
  }
  if (at + 4 > query.length) return undefined
  const isInternet = query[at + 2]! * 256 + query[at + 3]! === CLASS_IN
  return {
    bytes: query.slice(HEAD_BYTES, at + 4),
    name: labels.join('.').toLowerCase(),
    type: isInternet ? query[at]! * 256 + query[at + 1]! : 0,
  }
}

/**
 * The answer to one query; undefined where it deserves none. `resolve` gives all addresses of a name,
 * and throws `net/unknown-host` where there is no such name.
 */
export async function answerNames(
  query: Uint8Array,
  resolve: (name: string) => Promise<string[]>,
): Promise<Uint8Array | undefined> {
  if (query.length < HEAD_BYTES || (query[2]! & FLAG_RESPONSE) !== 0) return undefined
  const question = decodeNameQuery(query)
  if (!question) return answer(query, EMPTY, { rcode: RCODE.malformed })
  const { type, name } = question
  const opcode = (query[2]! >> 3) & 15
  if (opcode !== 0) return answer(query, question.bytes, { rcode: RCODE.notImplemented })
  const length = type === TYPE.A ? 4 : type === TYPE.AAAA ? 16 : undefined
  if (length === undefined || !/^[a-z0-9_.-]{1,253}$/.test(name)) {
    return answer(query, question.bytes, { rcode: RCODE.none })
  }
  try {
    const found = (await resolve(name)).flatMap((one) => parseAddress(one) ?? [])
    const records = found.filter((one) => one.length === length).slice(0, ADDRESSES_MAX)
      .map((address) => record(type, address))
    return answer(query, question.bytes, { rcode: RCODE.none, records })
  } catch (error) {
    const isUnknown = (error as { code?: unknown }).code === 'net/unknown-host'
    return answer(query, question.bytes, { rcode: isUnknown ? RCODE.unknown : RCODE.failed })
  }
}

function record(type: number, address: Uint8Array): Uint8Array {
  // The name is that of the question, at byte 12.
  const head = [0xc0, HEAD_BYTES, 0, type, 0, CLASS_IN, 0, 0, 0, TTL_SECONDS, 0, address.length]
  return concat(Uint8Array.from(head), address)
}

function answer(
  query: Uint8Array,
  question: Uint8Array,
  { rcode, records = [] }: { rcode: number; records?: Uint8Array[] },
): Uint8Array {
  const head = new Uint8Array(HEAD_BYTES)
  head.set(query.subarray(0, 2))
  head[2] = FLAG_RESPONSE | (query[2]! & (0x78 | FLAG_RECURSE))
  head[3] = FLAG_RECURSES | rcode
  head[5] = question.length > 0 ? 1 : 0
  head[7] = records.length
  return concat(head, question, ...records)
}
