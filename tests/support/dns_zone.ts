/** A DNS server as a program, in name spaces of its own: `bun dns_zone.ts FILE ADDRESS`, lines "NAME. A ADDRESS". */
import { readFileSync } from 'node:fs'
import { DnsServer } from './dns.ts'

const [file, host] = process.argv.slice(2)
const server = await DnsServer.start({ host: host!, port: 53 })
for (const line of readFileSync(file!, 'utf8').split('\n')) {
  const [name, type, data] = line.trim().split(/\s+/)
  if (type === 'A' && data) server.set(name!.replace(/\.$/, ''), { type, data })
}
console.log('listening')
