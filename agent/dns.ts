/** Questions to the resolvers of this machine, for `sotto domains check`. */
import { concat, text } from '../core/bytes.ts'
import { DNS_BYTES_MAX, dnsServer } from '../core/dns.ts'
import type { DnsServer } from '../core/dns.ts'
import { TunnelError } from '../core/errors.ts'
import type { DnsExchange } from '../core/resolver.ts'
import type { World } from './world.ts'

const ANSWER_MS_MAX = 3000
/** Where systems other than Windows name their resolvers. */
const RESOLVERS_PATH = '/etc/resolv.conf'

type DnsWorld = Pick<World, 'net' | 'clock' | 'files'>

/** `named` in place of the machine's. Throws `dns/none`. */
export async function dnsExchange(
  world: DnsWorld,
  named: readonly string[],
): Promise<DnsExchange> {
  const words = named.length > 0 ? named : await systemServers(world)
  const servers = words.flatMap((one) => dnsServer(one) ?? [])
  if (servers.length === 0) {
    throw new TunnelError('dns/none', 'Cannot ask DNS: found no resolver of this machine', {
      hint: 'Name one, such as --dns 9.9.9.9',
    })
  }
  return (query, { over, attempt }) => {
    const server = servers[attempt % servers.length]!
    return over === 'udp' ? overUdp(world, query, server) : overTcp(world, query, server)
  }
}

async function systemServers({ files }: DnsWorld): Promise<string[]> {
  const content = await files.read(RESOLVERS_PATH)
  return content
    ? [...text(content).matchAll(/^nameserver[ \t]+(\S+)/gm)].map(([, one]) => one!)
    : []
}

async function overUdp(world: DnsWorld, query: Uint8Array, server: DnsServer): Promise<Uint8Array> {
  const datagrams = await world.net.udp(server)
  try {
    return await new Promise<Uint8Array>((resolve, reject) => {
      const late = world.clock.after(ANSWER_MS_MAX, () => reject(silent(server)))
      datagrams.handle({
        message(bytes) {
          // A forger who does not know the number has not ended the wait.
          if (bytes[0] !== query[0] || bytes[1] !== query[1]) return
          late.cancel()
          resolve(bytes)
        },
        closed() {
          late.cancel()
          reject(silent(server))
        },
      })
      datagrams.send(query)
    })
  } finally {
    datagrams.close()
  }
}

async function overTcp(world: DnsWorld, query: Uint8Array, server: DnsServer): Promise<Uint8Array> {
  const conn = await world.net.connect({ ...server, timeoutMs: ANSWER_MS_MAX })
  return await new Promise<Uint8Array>((resolve, reject) => {
    const parts: Uint8Array[] = []
    const late = world.clock.after(ANSWER_MS_MAX, () => conn.abort())
    conn.handle({
      data(bytes) {
        parts.push(bytes)
        const came = concat(...parts)
        const length = came.length < 2 ? Infinity : came[0]! * 256 + came[1]!
        if (length !== Infinity && length > DNS_BYTES_MAX) return conn.abort()
        if (came.length < length + 2) return
        resolve(came.subarray(2, length + 2))
        conn.abort()
      },
      end: () => conn.abort(),
      closed() {
        late.cancel()
        reject(silent(server))
      },
    })
    conn.write(concat(Uint8Array.of(query.length >> 8, query.length & 255), query))
  })
}

function silent({ host }: DnsServer): TunnelError {
  return new TunnelError('dns/silent', `Cannot ask DNS: no answer of ${host}`)
}
