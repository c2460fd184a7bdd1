/** A DNS server of our own, over UDP and TCP at one port, that says what a test wants and counts questions. */
import { createSocket } from 'node:dgram'
import type { Socket as UdpSocket } from 'node:dgram'
import { createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import * as packet from 'dns-packet'
import type { Answer, Packet } from 'dns-packet'

export interface ZoneRecord {
  type: 'A' | 'AAAA' | 'CNAME' | 'TXT' | 'CAA'
  // deno-lint-ignore no-explicit-any
  data: any
  ttl?: number
}

/** What becomes of questions for a name. */
export type Fault =
  | 'servfail'
  | 'refused'
  | 'silent'
  | 'truncated'
  | 'garbage'
  | 'wrong-id'
  | 'other-question'

export class DnsServer {
  readonly zone = new Map<string, ZoneRecord[]>()
  readonly faults = new Map<string, Fault>()
  readonly asked: string[] = []
  readonly #udp: UdpSocket = createSocket('udp4')
  readonly #tcp: Server
  readonly #open = new Set<Socket>()
  port = 0

  private constructor() {
    // Whoever asked is gone: an ICMP message about its answer.
    this.#udp.on('error', () => {})
    this.#udp.on('message', (bytes, from) => {
      const answer = this.#answer(bytes, 'udp')
      if (answer) this.#udp.send(answer, from.port, from.address)
    })
    this.#tcp = createServer((socket) => {
      this.#open.add(socket)
      socket.on('close', () => this.#open.delete(socket)).on('error', () => {})
      socket.on('data', (bytes) => {
        const answer = this.#answer(bytes.subarray(2), 'tcp')
        if (!answer) return
        const length = Buffer.alloc(2)
        length.writeUInt16BE(answer.length)
        socket.write(Buffer.concat([length, answer]))
      })
    })
  }

  static async start({ host = '127.0.0.1', port = 0 } = {}): Promise<DnsServer> {
    const server = new DnsServer()
    await new Promise<void>((resolve) => server.#tcp.listen(port, host, resolve))
    server.port = (server.#tcp.address() as AddressInfo).port
    await new Promise<void>((resolve) => server.#udp.bind(server.port, host, resolve))
    return server
  }

  get address(): string {
    return `127.0.0.1:${this.port}`
  }

  set(name: string, ...records: ZoneRecord[]): void {
    this.zone.set(name, records)
  }

  async close(): Promise<void> {
    for (const socket of this.#open) socket.destroy()
    this.#udp.close()
    await new Promise((resolve) => this.#tcp.close(resolve))
  }

  #answer(bytes: Uint8Array, over: 'udp' | 'tcp'): Buffer | undefined {
    const query = packet.decode(Buffer.from(bytes)) as Packet & { id: number }
    const { name, type } = query.questions![0]! as { name: string; type: ZoneRecord['type'] }
    this.asked.push(`${over} ${type} ${name}`)
    const fault = this.faults.get(name)
    if (fault === 'silent') return undefined
    if (fault === 'garbage') return Buffer.concat([bytes.subarray(0, 2), Buffer.alloc(40, 0xc0)])
    const response: Packet = {
      type: 'response',
      id: fault === 'wrong-id' ? query.id ^ 1 : query.id,
      flags: packet.RECURSION_DESIRED | packet.RECURSION_AVAILABLE |
        (fault === 'truncated' && over === 'udp' ? packet.TRUNCATED_RESPONSE : 0),
      questions: fault === 'other-question'
        ? [{ type, name: `x.${name}`, class: 'IN' }]
        : query.questions!,
      answers: fault === 'truncated' && over === 'udp' ? [] : this.#records(name, type),
      authorities: [{
        type: 'SOA',
        name: name.split('.').slice(-2).join('.'),
        ttl: 60,
        data: {
          mname: 'ns.invalid',
          rname: 'a.invalid',
          serial: 1,
          refresh: 1,
          retry: 1,
          expire: 1,
          minimum: 60,
        },
      }] as Answer[],
    }
    const encoded = packet.encode(response)
    const code = fault === 'servfail' ? 2 : fault === 'refused' ? 5 : this.#exists(name) ? 0 : 3
    encoded[3] = (encoded[3]! & 0xf0) | code
    return encoded
  }

  /** A name above one that is there is there too (RFC 8020). */
  #exists(name: string): boolean {
    return [...this.zone.keys()].some((known) =>
      known === name || known.endsWith(`.${name}`) || known === name.replace(/^[^.]+/, '*')
    )
  }

  #records(name: string, type: string): Answer[] {
    const found: Answer[] = []
    for (let at = name, hop = 0; hop < 30; hop++) {
      const records = this.zone.get(at) ?? this.zone.get(at.replace(/^[^.]+/, '*')) ?? []
      const alias = records.find((one) => one.type === 'CNAME')
      for (const { type: kind, data, ttl = 60 } of records) {
        if (kind === type || kind === 'CNAME') {
          found.push({ name: at, type: kind, data, ttl } as Answer)
        }
      }
      if (!alias || type === 'CNAME') break
      at = alias.data
    }
    return found
  }
}
