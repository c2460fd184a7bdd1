/**
 * The programs that race, each with the fastest configuration that it documents. Those that carry raw
 * TCP lead to three upstreams at once: plain HTTP, the byte server, and nginx ending TLS (their visitor's TLS
 * passes through). `sotto.ts` holds ours, behind the same interface.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { type Lab, runShort, type Spawned, which } from './lab.ts'
import type { Address } from './load.ts'
import { nginxBase, startNginx, type Upstreams } from './upstreams.ts'

export interface Contender {
  name: string
  /** direct: the ceiling. hop: one process. tunnel: a relay and an agent. ours: sotto. */
  kind: 'direct' | 'hop' | 'tunnel' | 'ours'
  /** Why it cannot race here, or undefined. */
  missing(): string | undefined
  /** Its version, for the record. */
  version(): string
  start(lab: Lab, upstreams: Upstreams): Promise<Racer>
}

/** A contender that runs. An address that is not there means: it does not do that. */
export interface Racer {
  http?: Address
  bytes?: Address
  https?: Address
  /** Processes on the public side. */
  relays(): number[]
  /** Processes beside the upstream. */
  agents(): number[]
  /** Ends the agent and starts it again, without waiting for it: what "command to first byte" measures. */
  stopAgent?(): Promise<void>
  startAgent?(): void
  stop(): Promise<void>
}

function missingPrograms(...programs: string[]): () => string | undefined {
  return () => {
    const missing = programs.filter((program) => which(program) === undefined)
    return missing.length === 0 ? undefined : `no ${missing.join(', ')} here`
  }
}

/** First line that a program says of its version, on either stream; some say it with a failing exit code. */
function versionOf(program: string, ...args: string[]): () => string {
  return () => {
    const { stdout, stderr } = Bun.spawnSync([which(program) ?? program, ...args])
    return `${stdout}${stderr}`.split('\n').find((line) => /\d+\.\d+\.\d+/.test(line))?.trim() ??
      '?'
  }
}

/** The three ports that a TCP contender opens, each with the upstream behind it. */
async function openPorts(lab: Lab, upstreams: Upstreams): Promise<
  {
    http: number
    bytes: number
    https: number
    pairs: { port: number; to: number; name: string }[]
  }
> {
  const [http, bytes, https] = [await lab.freePort(), await lab.freePort(), await lab.freePort()]
  const pairs = [
    { port: http, to: upstreams.http, name: 'http' },
    { port: bytes, to: upstreams.bytes, name: 'bytes' },
    { port: https, to: upstreams.https, name: 'https' },
  ]
  return { http, bytes, https, pairs }
}

function addresses(ports: { http: number; bytes: number; https: number }): {
  http: Address
  bytes: Address
  https: Address
} {
  return {
    http: { port: ports.http },
    bytes: { port: ports.bytes },
    https: { port: ports.https, name: 'localhost' },
  }
}

export const direct: Contender = {
  name: 'direct',
  kind: 'direct',
  missing: () => undefined,
  version: versionOf('nginx', '-v'),
  start: (_lab, upstreams) =>
    Promise.resolve({
      ...addresses(upstreams),
      relays: () => [],
      agents: () => [],
      stop: () => Promise.resolve(),
    }),
}

function hop(
  lab: Lab,
  relay: Spawned,
  ports: Awaited<ReturnType<typeof openPorts>>,
): Promise<Racer> {
  return (async () => {
    for (const { port } of ports.pairs) await lab.listens(port, relay)
    return {
      ...addresses(ports),
      relays: () => [relay.pid],
      agents: () => [],
      stop: () => relay.stop(),
    }
  })()
}

const haproxy: Contender = {
  name: 'haproxy tcp',
  kind: 'hop',
  missing: missingPrograms('haproxy'),
  version: versionOf('haproxy', '-v'),
  async start(lab, upstreams) {
    const ports = await openPorts(lab, upstreams)
    const file = lab.path('haproxy.cfg')
    const proxies = ports.pairs.map(({ port, to, name }) =>
      `listen ${name}\n  bind 127.0.0.1:${port}\n  server upstream 127.0.0.1:${to}\n`
    )
    writeFileSync(
      file,
      `global
  nbthread 2
  maxconn 3000
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
${proxies.join('')}`,
    )
    return hop(lab, lab.spawn('haproxy', [which('haproxy')!, '-db', '-f', file]), ports)
  },
}

function nginxStream(options: { preread: boolean }): Contender {
  const id = options.preread ? 'nginx-preread' : 'nginx-stream'
  return {
    name: options.preread ? 'nginx ssl_preread' : 'nginx stream',
    kind: 'hop',
    missing: missingPrograms('nginx'),
    version: versionOf('nginx', '-v'),
    async start(lab, upstreams) {
      const ports = await openPorts(lab, upstreams)
      const servers = ports.pairs.map(({ port, to, name }) => {
        const listen = `listen 127.0.0.1:${port} backlog=4096; tcp_nodelay on;`
        if (!options.preread) return `  server { ${listen} proxy_pass 127.0.0.1:${to}; }`
        // Only what starts with a ClientHello can be routed by its name.
        if (name !== 'https') return ''
        return `  map $ssl_preread_server_name $upstream { localhost 127.0.0.1:${to}; }
  server { ${listen} ssl_preread on; proxy_pass $upstream; }`
      })
      const config = `load_module /usr/lib/nginx/modules/ngx_stream_module.so;
${nginxBase(lab, id)}
stream {
${servers.join('\n')}
}
`
      const relay = await startNginx(lab, {
        name: id,
        port: ports.https,
        config,
      })
      const stop = () => relay.stop()
      if (!options.preread) return { ...(await hop(lab, relay, ports)), stop }
      return {
        https: { port: ports.https, name: 'localhost' },
        relays: () => [relay.pid],
        agents: () => [upstreams.httpsServer.pid],
        stop,
      }
    },
  }
}

/** Likewise a pair, whose second nginx does what an agent does: it ends TLS and asks the plain upstream. */
const nginxTlsHop: Contender = {
  name: 'nginx ssl_preread + ssl hop',
  kind: 'hop',
  missing: missingPrograms('nginx'),
  version: versionOf('nginx', '-v'),
  async start(lab, upstreams) {
    const module = 'load_module /usr/lib/nginx/modules/ngx_stream_module.so;'
    const [port, inner] = [await lab.freePort(), await lab.freePort()]
    const { cert, key } = upstreams.certificate
    const agent = await startNginx(lab, {
      name: 'nginx-ssl-hop',
      port: inner,
      config: `${module}
${nginxBase(lab, 'nginx-ssl-hop')}
stream {
  server {
    listen 127.0.0.1:${inner} ssl backlog=4096; tcp_nodelay on;
    ssl_certificate ${cert}; ssl_certificate_key ${key};
    ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;
    proxy_pass 127.0.0.1:${upstreams.http};
  }
}
`,
    })
    const relay = await startNginx(lab, {
      name: 'nginx-preread-hop',
      port,
      config: `${module}
${nginxBase(lab, 'nginx-preread-hop')}
stream {
  map $ssl_preread_server_name $upstream { localhost 127.0.0.1:${inner}; }
  server { listen 127.0.0.1:${port} backlog=4096; tcp_nodelay on; ssl_preread on; proxy_pass $upstream; }
}
`,
    })
    return {
      https: { port, name: 'localhost' },
      relays: () => [relay.pid],
      agents: () => [agent.pid],
      stop: async () => {
        await relay.stop()
        await agent.stop()
      },
    }
  },
}

/** A relay and an agent by two command lines; the agent can be ended and started again. */
async function twoHops(lab: Lab, options: {
  name: string
  relay: string[]
  /** The relay's own port, waited for before the agent starts. */
  relayPort: number
  agents: string[][]
  ports: Awaited<ReturnType<typeof openPorts>>
}): Promise<Racer> {
  const { name, ports } = options
  const relay = lab.spawn(`${name} relay`, options.relay)
  await lab.listens(options.relayPort, relay)
  let agents: Spawned[] = []
  const startAgent = () => {
    agents = options.agents.map((command, i) => lab.spawn(`${name} agent ${i}`, command))
  }
  const stopAgent = async () => {
    await Promise.all(agents.map((agent) => agent.stop()))
  }
  startAgent()
  for (const { port } of ports.pairs) await lab.listens(port, agents[0]!)
  return {
    ...addresses(ports),
    relays: () => [relay.pid],
    agents: () => agents.map(({ pid }) => pid),
    startAgent,
    stopAgent,
    stop: async () => {
      await stopAgent()
      await relay.stop()
    },
  }
}

const ssh: Contender = {
  name: 'ssh -R',
  kind: 'tunnel',
  missing: missingPrograms('sshd', 'ssh', 'ssh-keygen'),
  version: versionOf('ssh', '-V'),
  async start(lab, upstreams) {
    const ports = await openPorts(lab, upstreams)
    const port = await lab.freePort()
    const folder = lab.path('ssh')
    mkdirSync(folder, { mode: 0o700 })
    for (const name of ['host', 'user']) {
      runShort('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', `${folder}/${name}`])
    }
    writeFileSync(
      `${folder}/sshd_config`,
      `Port ${port}
ListenAddress 127.0.0.1
HostKey ${folder}/host
PidFile none
AuthorizedKeysFile ${folder}/user.pub
StrictModes no
UsePAM no
PermitRootLogin yes
`,
    )
    if (process.getuid?.() === 0) mkdirSync('/run/sshd', { recursive: true })
    return twoHops(lab, {
      name: 'ssh',
      relay: [which('sshd')!, '-D', '-e', '-f', `${folder}/sshd_config`],
      relayPort: port,
      agents: [[
        ...['ssh', '-N', '-F', 'none', '-p', String(port), '-i', `${folder}/user`],
        ...['-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null'],
        ...['-o', 'ExitOnForwardFailure=yes', '-c', 'aes128-gcm@openssh.com'],
        ...ports.pairs.flatMap((pair) => ['-R', `127.0.0.1:${pair.port}:127.0.0.1:${pair.to}`]),
        '127.0.0.1',
      ]],
      ports,
    })
  },
}

/** TOML of one side; `transport` differs between them only where keys are. */
function ratholeTransport(kind: string, side: 'server' | 'client', upstreams: Upstreams): string {
  const { pkcs12, password, cert } = upstreams.certificate
  const tls = side === 'server'
    ? `[server.transport.tls]\npkcs12 = "${pkcs12}"\npkcs12_password = "${password}"\n`
    : `[client.transport.tls]\ntrusted_root = "${cert}"\nhostname = "localhost"\n`
  if (kind === 'tcp') return `[${side}.transport]\ntype = "tcp"\n`
  if (kind === 'tls') return `[${side}.transport]\ntype = "tls"\n${tls}`
  return `[${side}.transport]\ntype = "websocket"\n${tls}[${side}.transport.websocket]\ntls = true\n`
}

function rathole(transport: 'tcp' | 'tls' | 'wss'): Contender {
  const name = `rathole ${transport}`
  return {
    name,
    kind: 'tunnel',
    missing: missingPrograms('rathole'),
    version: versionOf('rathole', '--version'),
    async start(lab, upstreams) {
      const ports = await openPorts(lab, upstreams)
      const port = await lab.freePort()
      const [server, client] = ['server', 'client'].map((side) => lab.path(`${name}-${side}.toml`))
      const services = (side: 'server' | 'client') =>
        ports.pairs.map((pair) =>
          `[${side}.services.${pair.name}]\ntoken = "benchmark"\n` +
          (side === 'server'
            ? `bind_addr = "127.0.0.1:${pair.port}"\n`
            : `local_addr = "127.0.0.1:${pair.to}"\n`)
        ).join('')
      writeFileSync(
        server!,
        `[server]\nbind_addr = "127.0.0.1:${port}"\n` +
          ratholeTransport(transport, 'server', upstreams) + services('server'),
      )
      writeFileSync(
        client!,
        `[client]\nremote_addr = "127.0.0.1:${port}"\n` +
          ratholeTransport(transport, 'client', upstreams) + services('client'),
      )
      return twoHops(lab, {
        name,
        relay: [which('rathole')!, '-s', server!],
        relayPort: port,
        agents: [[which('rathole')!, '-c', client!]],
        ports,
      })
    },
  }
}

const bore: Contender = {
  name: 'bore',
  kind: 'tunnel',
  missing: missingPrograms('bore'),
  version: versionOf('bore', '--version'),
  async start(lab, upstreams) {
    const ports = await openPorts(lab, upstreams)
    return twoHops(lab, {
      name: 'bore',
      relay: [
        ...[which('bore')!, 'server', '--bind-addr', '127.0.0.1', '--bind-tunnels', '127.0.0.1'],
        ...['-s', 'benchmark'],
      ],
      // Fixed in the program.
      relayPort: 7835,
      agents: ports.pairs.map((pair) => [
        ...[which('bore')!, 'local', String(pair.to), '-l', '127.0.0.1', '-t', '127.0.0.1'],
        ...['-p', String(pair.port), '-s', 'benchmark'],
      ]),
      ports,
    })
  },
}

const frp: Contender = {
  name: 'frp',
  kind: 'tunnel',
  missing: missingPrograms('frps', 'frpc'),
  version: versionOf('frps', '--version'),
  async start(lab, upstreams) {
    const ports = await openPorts(lab, upstreams)
    const port = await lab.freePort()
    const [server, client] = [lab.path('frps.toml'), lab.path('frpc.toml')]
    const auth = 'auth.token = "benchmark"\n'
    writeFileSync(server, `bindAddr = "127.0.0.1"\nbindPort = ${port}\n${auth}`)
    const proxies = ports.pairs.map(({ name, port: remotePort, to }) =>
      `[[proxies]]\nname = "${name}"\ntype = "tcp"\nlocalIP = "127.0.0.1"\nlocalPort = ${to}\n` +
      `remotePort = ${remotePort}\n`
    )
    writeFileSync(
      client,
      `serverAddr = "127.0.0.1"\nserverPort = ${port}\n${auth}${proxies.join('')}`,
    )
    return twoHops(lab, {
      name: 'frp',
      relay: [which('frps')!, '-c', server],
      relayPort: port,
      agents: [[which('frpc')!, '-c', client]],
      ports,
    })
  },
}

const chisel: Contender = {
  name: 'chisel',
  kind: 'tunnel',
  missing: missingPrograms('chisel'),
  version: versionOf('chisel', '--version'),
  async start(lab, upstreams) {
    const ports = await openPorts(lab, upstreams)
    const port = await lab.freePort()
    const auth = ['--auth', 'bench:mark']
    return twoHops(lab, {
      name: 'chisel',
      relay: [
        ...[which('chisel')!, 'server', '--host', '127.0.0.1', '--port', String(port)],
        ...['--reverse', ...auth],
      ],
      relayPort: port,
      agents: [[
        ...[which('chisel')!, 'client', ...auth, `http://127.0.0.1:${port}`],
        ...ports.pairs.map((pair) => `R:127.0.0.1:${pair.port}:127.0.0.1:${pair.to}`),
      ]],
      ports,
    })
  },
}

export const rivals: Contender[] = [
  direct,
  haproxy,
  nginxStream({ preread: false }),
  nginxStream({ preread: true }),
  nginxTlsHop,
  ssh,
  rathole('tcp'),
  rathole('tls'),
  rathole('wss'),
  bore,
  frp,
  chisel,
]
