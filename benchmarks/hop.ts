/**
 * The relay's hop alone, without an agent behind it: what stands beside nginx stream. The same
 * listener, ingress, ClientHello parser and splice that the relay runs on Bun; only where a visitor goes
 * is fixed: to a port on loopback.
 *
 *     bun hop.ts PORT:UPSTREAM[:tls] …      `tls` peeks at the ClientHello as the public port does
 */
import { Ingress, type IngressPorts } from '../relay/ingress.ts'
import { connect, listen } from '../relay/serve/bun_net.ts'
import { systemClock } from '../relay/serve/host.ts'
import { type Conn, splice } from '../core/socket.ts'

const SECURE_DOMAIN = 'secure.localhost'

/** Reads nothing more from the visitor until the upstream is there, as behind the ingress. */
function forward(visitor: Conn, upstream: number, first?: Uint8Array): void {
  visitor.pause()
  // Until the splice has it, the visitor's end is all that can come.
  visitor.handle({ data() {}, end() {}, closed() {} })
  connect({ host: '127.0.0.1', port: upstream }).then((conn) => {
    if (first) conn.write(first)
    splice(visitor, conn)
    visitor.resume()
  }, () => visitor.abort())
}

function ingressTo(upstream: number): Ingress {
  const endpoint = { mode: 'verified', scope: 'benchmark' }
  const ports = {
    clock: systemClock,
    endpoints: { get: () => endpoint },
    visitors: {
      carry: (conn: Conn, { first }: { first: Uint8Array }) => forward(conn, upstream, first),
    },
    ownNames: new Set(['localhost']),
    secureDomain: SECURE_DOMAIN,
    appsDomain: 'apps.localhost',
    publicPort: () => 443,
    app: (conn: Conn) => conn.abort(),
    bulkTls: (conn: Conn) => conn.abort(),
    claim: () => false,
    admits: () => true,
    blocked: () => false,
    refused: () => {},
  }
  // Endpoints and visitors are classes of the relay; the ingress asks them only this much.
  return new Ingress(ports as unknown as IngressPorts)
}

for (const pair of process.argv.slice(2)) {
  const [port, upstream, kind] = pair.split(':')
  const ingress = kind === 'tls' ? ingressTo(Number(upstream)) : undefined
  await listen({ host: '127.0.0.1', port: Number(port) }, (conn) => {
    if (ingress) ingress.accept(conn)
    else forward(conn, Number(upstream))
  })
}
