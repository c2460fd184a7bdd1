/** Questions to the resolvers of the machine, or to those that are named; on Bun, Node and Deno alike. */
import { createSocket } from 'node:dgram'
import { getServers } from 'node:dns'
import { connect, isIPv6 } from 'node:net'
import { concat } from '../../core/bytes.ts'
import { DNS_BYTES_MAX, dnsServer } from '../../core/dns.ts'
import type { DnsServer } from '../../core/dns.ts'
import { TunnelError } from '../../core/errors.ts'
import type { DnsExchange } from '../../core/resolver.ts'

const ANSWER_MS_MAX = 3000

/** `named`: addresses with or without a port; none: those of the system. */
export function dnsExchange(named: readonly string[]): DnsExchange {
  const servers = (named.length > 0 ? named : getServers()).flatMap((one) => dnsServer(one) ?? [])
  return (query, { over, attempt }) => {
    const server = servers[attempt % Math.max(1, servers.length)]
    if (!server) {
      return Promise.reject(new TunnelError('dns/none', 'Cannot ask DNS: no resolver is set'))
    }
    return over === 'udp' ? overUdp(query, server) : overTcp(query, server)
  }
}

/** A socket of its own: its port is one more thing to guess, and it hears that resolver alone. */
function overUdp(query: Uint8Array, { host, port }: DnsServer): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const socket = createSocket(isIPv6(host) ? 'udp6' : 'udp4')
    const late = setTimeout(() => end(() => reject(silent(host))), ANSWER_MS_MAX)
    let over = false
    const end = (settle: () => void): void => {
      if (over) return
      over = true
      clearTimeout(late)
      socket.close()
      settle()
    }
    // Of one question there can be several: each that nobody hears would end the process.
    socket.on('error', () => end(() => reject(silent(host))))
    socket.on('message', (bytes) => {
      // A forger who does not know the number has not ended the wait.
      if (bytes[0] !== query[0] || bytes[1] !== query[1]) return
      end(() => resolve(new Uint8Array(bytes)))
    })
    socket.connect(port, host, () => void socket.send(query))
  })
}

function overTcp(query: Uint8Array, { host, port }: DnsServer): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port })
    let came: Uint8Array = new Uint8Array(0)
    const late = setTimeout(() => end(() => reject(silent(host))), ANSWER_MS_MAX)
    const end = (settle: () => void): void => {
      clearTimeout(late)
      socket.destroy()
      settle()
    }
    socket.on('error', () => end(() => reject(silent(host))))
    socket.once('close', () => end(() => reject(silent(host))))
    socket.once('connect', () => {
      socket.write(concat(Uint8Array.of(query.length >> 8, query.length & 255), query))
    })
    socket.on('data', (bytes: Uint8Array) => {
      came = concat(came, new Uint8Array(bytes))
      const length = came.length < 2 ? Infinity : came[0]! * 256 + came[1]!
      if (length !== Infinity && length > DNS_BYTES_MAX) end(() => reject(silent(host)))
      else if (came.length >= length + 2) end(() => resolve(came.subarray(2, length + 2)))
    })
  })
}

function silent(host: string): TunnelError {
  return new TunnelError('dns/silent', `Cannot ask DNS: no answer of ${host}`)
}
