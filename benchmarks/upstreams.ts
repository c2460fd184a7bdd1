/**
 * What every contender leads to: one nginx for plain HTTP, another for HTTPS (a process of its own, since it is
 * half of the yardstick for verified TLS), and the byte server. One worker each; TLS 1.3 with a P-256
 * certificate, no session resumption.
 */
import { createHash, randomFillSync } from 'node:crypto'
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from 'node:fs'
import { type Lab, runShort, type Spawned, which } from './lab.ts'
import { startByteServer } from './load.ts'

const FILE_CHUNK_BYTES = 1_048_576
/** Small enough to fit one segment with its head, long enough to be a body. */
const SMALL_BODY = 'A small answer of an upstream: sixty-four bytes, line end and all'

export const SMALL_PATH = '/small'
export const FILE_PATH = '/file'

export interface Upstreams {
  http: number
  https: number
  bytes: number
  certificate: Certificate
  file: { bytes: number; sha256: string }
  /** The HTTPS server is half of "nginx ssl_preread in front of nginx": its memory counts there. */
  httpsServer: Spawned
}

export interface Certificate {
  cert: string
  key: string
  pkcs12: string
  password: string
}

/** A self-signed P-256 certificate for localhost, in PEM and in PKCS#12. */
export function makeCertificate(lab: Lab): Certificate {
  const [cert, key, pkcs12] = ['cert.pem', 'key.pem', 'identity.pfx'].map((name) => lab.path(name))
  const password = 'benchmark'
  runShort('openssl', [
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'],
    ...['-days', '30', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'],
    ...['-keyout', key!, '-out', cert!],
  ])
  runShort('openssl', [
    ...['pkcs12', '-export', '-inkey', key!, '-in', cert!],
    ...['-out', pkcs12!, '-passout', `pass:${password}`],
  ])
  return { cert: cert!, key: key!, pkcs12: pkcs12!, password }
}

/** Random bytes, so that nothing on the way can compress them. */
function makeFile(lab: Lab, bytes: number): { bytes: number; sha256: string } {
  mkdirSync(lab.path('files'))
  const fd = openSync(lab.path('files/file'), 'w')
  const hash = createHash('sha256')
  const chunk = new Uint8Array(FILE_CHUNK_BYTES)
  for (let at = 0; at < bytes; at += chunk.length) {
    randomFillSync(chunk)
    const part = chunk.subarray(0, Math.min(chunk.length, bytes - at))
    writeSync(fd, part)
    hash.update(part)
  }
  closeSync(fd)
  return { bytes, sha256: hash.digest('hex') }
}

/** Lines that every nginx here shares; `name` keeps their files apart. */
export function nginxBase(lab: Lab, name: string, workerConnections = 4096): string {
  return [
    'daemon off;',
    // Started by root, workers would drop to a user who cannot read the lab's folder.
    ...(process.getuid?.() === 0 ? ['user root;'] : []),
    'worker_processes 1;',
    'worker_rlimit_nofile 20000;',
    `pid ${lab.path(`${name}.pid`)};`,
    `error_log ${lab.path(`${name}.error`)};`,
    `events { worker_connections ${workerConnections}; }`,
  ].join('\n')
}

function nginxHttp(lab: Lab, name: string, listen: string): string {
  const folders = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map((kind) => `${kind}_temp_path ${lab.path(`${name}.${kind}`)};`).join(' ')
  return `${nginxBase(lab, name)}
http {
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000000; ${folders}
  default_type application/octet-stream;
  server {
    ${listen}
    root ${lab.path('files')};
    location = ${SMALL_PATH} { return 200 "${SMALL_BODY}\\n"; }
  }
}
`
}

/** Starts one nginx in the foreground and waits until it listens. */
export async function startNginx(
  lab: Lab,
  options: { name: string; port: number; config: string },
): Promise<Spawned> {
  const file = lab.path(`${options.name}.conf`)
  writeFileSync(file, options.config)
  const nginx = which('nginx')
  if (!nginx) throw new Error('Cannot start the upstream: no nginx here (npm run bench:setup)')
  const spawned = lab.spawn(options.name, [
    nginx,
    '-e',
    lab.path(`${options.name}.error`),
    '-c',
    file,
  ])
  await lab.listens(options.port, spawned)
  return spawned
}

export async function startUpstreams(lab: Lab, fileBytes: number): Promise<Upstreams> {
  const certificate = makeCertificate(lab)
  const file = makeFile(lab, fileBytes)
  const [http, https] = [await lab.freePort(), await lab.freePort()]
  await startNginx(lab, {
    name: 'upstream-http',
    port: http,
    config: nginxHttp(lab, 'upstream-http', `listen 127.0.0.1:${http} backlog=4096;`),
  })
  const httpsServer = await startNginx(lab, {
    name: 'upstream-https',
    port: https,
    config: nginxHttp(
      lab,
      'upstream-https',
      `listen 127.0.0.1:${https} ssl backlog=4096;
    ssl_certificate ${certificate.cert}; ssl_certificate_key ${certificate.key};
    ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;`,
    ),
  })
  const { port: bytes } = await startByteServer(lab)
  return { http, https, bytes, certificate, file, httpsServer }
}
