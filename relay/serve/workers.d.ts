/**
 * What the relay uses of workerd. The package that describes all of it declares globals that
 * contradict those of Bun and Node, so the few members are written down here.
 */
declare module 'cloudflare:workers' {
  export class DurableObject<Env> {
    protected readonly ctx: ObjectContext
    protected readonly env: Env
    constructor(ctx: ObjectContext, env: Env)
  }

  export interface ObjectContext {
    readonly storage: {
      readonly sql: {
        // deno-lint-ignore no-explicit-any
        exec(query: string, ...bindings: any[]): { toArray(): Record<string, unknown>[] }
      }
      /** Synchronous, on objects that have SQLite. */
      readonly kv: {
        get<T>(key: string): T | undefined
        put<T>(key: string, value: T): void
        delete(key: string): boolean
        list<T>(options: { prefix: string; limit?: number }): Iterable<[string, T]>
      }
      /** Calls `alarm` of the object then, awake or not; one at a time. */
      setAlarm(atMs: number): Promise<void>
      transactionSync<Result>(run: () => Result): Result
    }
    acceptWebSocket(socket: ServerWebSocket): void
    getWebSockets(): ServerWebSocket[]
    waitUntil(work: Promise<unknown>): void
    blockConcurrencyWhile<T>(run: () => Promise<T>): Promise<T>
  }

  export interface ServerWebSocket {
    readonly readyState: number
    readonly bufferedAmount?: number
    binaryType: string
    /** Serves it in this object alone; `acceptWebSocket` lets the object sleep. */
    accept(): void
    addEventListener(
      type: 'open' | 'message' | 'close' | 'error',
      run: (event: { data?: unknown; code?: number; reason?: string }) => void,
    ): void
    send(message: string | Uint8Array): void
    close(code?: number, reason?: string): void
    /** At most 16 KiB, structured clone; kept while the object sleeps. */
    serializeAttachment(value: unknown): void
    deserializeAttachment(): unknown
  }

  /** Objects of one class; a stub's methods are those of the object, each a call. */
  export interface ObjectNamespace<Remote> {
    idFromName(name: string): ObjectId
    get(id: ObjectId): Remote & { fetch(request: Request): Promise<Response> }
  }

  export type ObjectId = { readonly name?: string }
}
