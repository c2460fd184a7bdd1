/**
 * Visitors of a verified endpoint: TLS to the relay's public port with the endpoint's name, then one
 * HTTP/1.1 request by hand, so that each byte and each kind of end is seen. Every wait has a limit:
 * what a test calls a hang is an error here.
 */
import * as tls from 'node:tls'

const WAIT_MS_MAX = 20_000

export interface VisitTo {
  port: number
  host?: string
  name: string
  /** Under which domain; default the local relay's. */
  secure?: string
}

/** How a visit ended: the peer's FIN, or a reset and the like, which names it. */
export type End = { kind: 'end' } | { kind: 'error'; code: string }

export class Visitor {
  readonly socket: tls.TLSSocket
  readonly ended: Promise<End>
  /** Bytes received, head included. */
  received = 0
  text = ''
  #waiting: (() => void)[] = []
  #end: End | undefined

  private constructor(socket: tls.TLSSocket) {
    this.socket = socket
    this.ended = new Promise((resolve) => {
      const end = (end: End): void => {
        this.#end ??= end
        resolve(this.#end)
        this.#wake()
      }
      socket.on('error', (error) => end({ kind: 'error', code: codeOf(error) }))
      socket.on('end', () => end({ kind: 'end' }))
      socket.on('close', () => end({ kind: 'error', code: 'closed' }))
    })
    socket.on('data', (bytes: Uint8Array) => {
      this.received += bytes.length
      if (this.text.length < 4096) this.text += Buffer.from(bytes).toString('latin1')
      this.#wake()
    })
  }

  /** TLS done. Rejects with the reason, a hang included. */
  static open(to: VisitTo, ms = WAIT_MS_MAX): Promise<Visitor> {
    return new Promise((resolve, reject) => {
      const socket = tls.connect({
        host: to.host ?? '127.0.0.1',
        port: to.port,
        servername: `${to.name}.${to.secure ?? 'secure.localhost'}`,
        rejectUnauthorized: false,
        ALPNProtocols: ['http/1.1'],
      })
      const timer = setTimeout(() => fail(new Error('hang: TLS was not done')), ms)
      const fail = (error: Error): void => {
        clearTimeout(timer)
        socket.destroy()
        reject(error)
      }
      const closed = (): void => fail(new Error('closed before TLS was done'))
      socket.once('error', fail)
      socket.once('close', closed)
      socket.once('secureConnect', () => {
        clearTimeout(timer)
        socket.removeListener('error', fail)
        socket.removeListener('close', closed)
        resolve(new Visitor(socket))
      })
    })
  }

  /** Opens and asks. */
  static async get(to: VisitTo, path: string, ms = WAIT_MS_MAX): Promise<Visitor> {
    const visitor = await Visitor.open(to, ms)
    visitor.ask(path)
    return visitor
  }

  ask(path: string): void {
    this.socket.write(`GET ${path} HTTP/1.1\r\nHost: tunnel.test\r\nConnection: close\r\n\r\n`)
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }

  /** Until so many bytes have come. Rejects when it ends before, and on a hang. */
  async until(bytes: number, ms = WAIT_MS_MAX): Promise<void> {
    const deadline = performance.now() + ms
    while (this.received < bytes) {
      if (this.#end) throw new Error(`ended after ${this.received} bytes of ${bytes}`)
      const left = deadline - performance.now()
      if (left <= 0) throw new Error(`hang: ${this.received} bytes of ${bytes} after ${ms} ms`)
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left)
        this.#waiting.push(() => {
          clearTimeout(timer)
          resolve()
        })
      })
    }
  }

  /** The whole of it, to its end. Rejects on a hang. */
  async end(ms = WAIT_MS_MAX): Promise<End> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`hang: no end within ${ms} ms`)), ms)
    })
    try {
      return await Promise.race([this.ended, late])
    } finally {
      clearTimeout(timer)
    }
  }

  get status(): number {
    return Number(/^HTTP\/1\.1 (\d+)/.exec(this.text)?.[1] ?? 0)
  }

  close(): void {
    this.socket.destroy()
  }
}

/** One request: status and beginning of the text. */
export async function visit(
  to: VisitTo,
  path = '/',
  ms = WAIT_MS_MAX,
): Promise<{ status: number; text: string }> {
  const visitor = await Visitor.get(to, path, ms)
  try {
    await visitor.end(ms)
    return { status: visitor.status, text: visitor.text }
  } finally {
    visitor.close()
  }
}

/** Tries until one is answered with 200. Rejects after `ms`. */
export async function served(to: VisitTo, ms = WAIT_MS_MAX): Promise<void> {
  const deadline = performance.now() + ms
  for (;;) {
    let last: string
    try {
      const { status } = await visit(to, '/', 8000)
      if (status === 200) return
      last = `status ${status}`
    } catch (error) {
      last = (error as Error).message
    }
    if (performance.now() > deadline) throw new Error(`not served within ${ms} ms: ${last}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

function codeOf(error: Error): string {
  return String((error as { code?: string }).code ?? error.message)
}
