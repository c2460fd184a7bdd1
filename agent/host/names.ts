/**
 * Addresses of names that others ask for. The system's own lookup takes a thread of the runtime's pool until it has an
 * answer, and the pool has as many as there are processors: whoever asks for two names that nobody answers would keep
 * this program from reading a file. So these are asked by sockets (c-ares, with the hosts file and the search list),
 * of the resolvers that the system has now.
 */
import { setServers } from 'node:dns'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { TunnelError } from '../../core/errors.ts'
import { bareHost, lookup } from './tcp.ts'

const RESOLVERS_FILE = '/etc/resolv.conf'
/** It is read again so often: machines change networks. */
const RESOLVERS_MS = 5_000
/** Names of a link (RFC 6762), which the system alone can find, by its threads: one at a time, and so many wait. */
const LINK_NAME = /\.local\.?$/i
const LINK_WAITING_MAX = 16

let resolvers = ''
let resolversMs = -Infinity
let linkWaiting = 0
let linkTurn: Promise<unknown> = Promise.resolve()

/** As `Net.lookup`. Throws `net/unknown-host`, `net/timeout`, `exit/busy`. */
export async function lookupAside(host: string): Promise<string[]> {
  const name = bareHost(host)
  if (isIP(name)) return [name]
  if (LINK_NAME.test(name)) return await lookupOnLink(name)
  await refreshResolvers()
  try {
    return (await Bun.dns.lookup(name, { backend: 'c-ares' })).map(({ address }) => address)
  } catch (cause) {
    const { code } = cause as { code?: string }
    if (!/NOTFOUND|NODATA|NONAME|BADNAME/.test(code ?? '')) {
      throw new TunnelError('net/timeout', `Cannot find ${name}: no resolver has an answer`, {
        cause,
      })
    }
    const words = `Cannot find ${name}: there is no host of that name`
    throw new TunnelError('net/unknown-host', words, { cause })
  }
}

async function lookupOnLink(name: string): Promise<string[]> {
  if (linkWaiting >= LINK_WAITING_MAX) {
    const found = `${LINK_WAITING_MAX} questions that wait`
    throw new TunnelError('exit/busy', `Cannot find ${name}: there are ${found} already`)
  }
  linkWaiting++
  const turn = linkTurn.then(() => lookup(name))
  linkTurn = turn.catch(() => {}).finally(() => void linkWaiting--)
  return await turn
}

/** The runtime reads them once, at its start. */
async function refreshResolvers(): Promise<void> {
  const nowMs = performance.now()
  if (process.platform === 'win32' || nowMs - resolversMs < RESOLVERS_MS) return
  resolversMs = nowMs
  const words = await readFile(RESOLVERS_FILE, 'utf8').catch(() => '')
  const found = [...words.matchAll(/^[ \t]*nameserver[ \t]+([0-9a-fA-F:.]{2,45})/gm)]
    .map(([, address]) => address!).filter((address) => isIP(address)).slice(0, 3)
  if (found.length === 0 || found.join() === resolvers) return
  resolvers = found.join()
  setServers(found)
}
