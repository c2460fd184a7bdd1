/**
 * The world as an agent sees it: one value, gathered by `agent/host/` at the start and passed inward.
 * Nothing here names a runtime, so a command runs in a test with the parts that it needs.
 *
 * Rules of `core/socket.ts` hold for every connection: events start on the turn after `handle()`,
 * `write` never throws, received arrays belong to the receiver.
 */
import type { AcmePort } from './acme_port.ts'
import type { Clock } from '../core/clock.ts'
import type { Crypto } from '../core/crypto.ts'
import type { DuplexShape } from '../core/duplex_conn.ts'
import type { TunnelError } from '../core/errors.ts'
import type { Conn, Listener, Socket } from '../core/socket.ts'
import type { OwnProgram } from './own_program.ts'
import type { BindUdp, Pinger } from './wireguard/network.ts'
import type { Path } from './wireguard-wasm/driver.ts'

export interface World {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly clock: Clock
  /** Runs `run` when the events at hand have been handled, before more are waited for. */
  later(run: () => void): void
  readonly crypto: Crypto
  readonly files: Files
  readonly net: Net
  readonly tls: Tls
  readonly link: LinkPort
  readonly http: HttpPort
  readonly programs: Programs
  readonly acme: AcmePort
  /** This program as a file, for `sotto update`. */
  readonly own: OwnProgram
  readonly system: System
  readonly probes: Probes
  readonly wireguard: WireGuardHost
  /** Fires once, when the person or the system asks the program to stop; the reason is a `StopReason`. */
  readonly signal: AbortSignal
  /**
   * While somebody listens, SIGHUP is theirs: "read the settings again". Where the program has a terminal,
   * it means that this went away, and stops the program as ever. Returns what ends the listening.
   */
  onHangup(run: () => void): () => void
  readonly terminal: Terminal
  readonly hostname: string
  readonly username: string
  /** The person's home directory, absolute. */
  readonly home: string
  /** The folder that the program was started in, absolute. */
  readonly directory: string
  readonly pid: number
}

/** The system that this program runs on, and whoever started it as a service. */
export interface System {
  readonly platform: 'linux' | 'darwin' | 'windows' | 'other'
  /** The user's number, 0 for root; undefined where users have none. */
  readonly uid: number | undefined
  /** What starts this program again, before its arguments; paths are absolute. */
  readonly self: readonly string[]
  /**
   * Tells the service manager, one `NAME=VALUE` each (sd_notify(3)). False: nobody asked to be told, or it
   * could not be. Never throws.
   */
  notify(assignments: readonly string[]): Promise<boolean>
  /** The manager's own clock, CLOCK_MONOTONIC; undefined where there is none. */
  monotonicUs(): Promise<number | undefined>
}

/** Looks at the network and the disk, for `sotto doctor`. */
export interface Probes {
  /** All addresses of a name by the system's resolver. Throws `net/unknown-host`. */
  resolve(name: string): Promise<readonly NetAddress[]>
  interfaces(): readonly (NetAddress & { readonly name: string; readonly internal: boolean })[]
  /** Of the file system that `path`, or the nearest folder above it that is there, is on. */
  space(path: string): Promise<{ readonly freeBytes: number; readonly totalBytes: number }>
  /** What a TLS server shows over `carrier`, and why no CA of the system, or of `ca`, vouches for it. */
  tlsChain(
    carrier: Conn,
    options: { servername: string; ca?: readonly string[]; timeoutMs: number },
  ): Promise<TlsChain>
  /** A UDP socket that takes datagrams from anybody. */
  datagrams(family: 4 | 6): Promise<OpenDatagrams>
  /** What the system knows of the largest packet towards an address; undefined: it does not say. */
  pathMtu(address: NetAddress): Promise<number | undefined>
}

/** What private networks need of the machine. */
export interface WireGuardHost {
  /** The module of `agent/wireguard-wasm/`. */
  module(): Promise<WebAssembly.Module>
  /**
   * `Net.connect` to a place that others name: an attempt that is given up is given up by the system as well, so
   * that hosts which do not answer hold no more sockets than there are attempts.
   */
  dial(target: Target & { readonly timeoutMs?: number }): Promise<Conn>
  /** `Net.lookup` of a name that others choose: one that nobody answers holds nothing else up. */
  lookup(name: string): Promise<string[]>
  readonly bindUdp: BindUdp
  readonly ping: Pinger
  /**
   * WireGuard's datagrams over a UDP port of this machine, both families; port 0 takes a free one. Throws
   * `net/in-use`, `net/denied`.
   */
  udpPath(at: { readonly port: number }): Promise<SocketPath>
  /**
   * Makes an interface of the system, without addresses, down. Linux alone, as root. Throws `tun/system`,
   * `tun/denied`, `tun/missing`, `tun/taken`, `tun/failed`.
   */
  openTun(name: string): Promise<TunDevice>
}

/** An interface whose packets this program gives and takes. It ends with the process, whatever ends that. */
export interface TunDevice {
  readonly name: string
  /** Packets that the system did not take. */
  readonly dropped: number
  /**
   * The next IP packet of the system, valid until the next is read. What is not read waits with the system, up to a
   * bound. Undefined when the interface is gone.
   */
  read(): Promise<Uint8Array | undefined>
  /**
   * Between two reads: one more packet that is there already, straight to where it is wanted; how many bytes it has,
   * 0 for none. A longer one than `into` is cut.
   */
  take(into: Uint8Array): number
  /** One packet to the system. False: it was not taken. */
  write(bytes: Uint8Array, from: number, length: number): boolean
  close(): Promise<void>
}

/** A path of a device that is a socket. */
export interface SocketPath extends Path {
  readonly port: number
  close(): void
}

export interface NetAddress {
  readonly address: string
  readonly family: 4 | 6
}

export interface TlsChain {
  /** `TLSv1.3` */
  readonly version: string
  /** Undefined: a CA of this system vouches for it. */
  readonly problem: string | undefined
  /** Leaf first. */
  readonly certificates: readonly {
    readonly subject: string
    readonly issuer: string
    readonly names: readonly string[]
    readonly notBeforeMs: number
    readonly notAfterMs: number
  }[]
}

export interface OpenDatagrams {
  readonly port: number
  send(datagram: Uint8Array, to: { address: string; port: number }): void
  handle(message: (datagram: Uint8Array, from: { address: string; port: number }) => void): void
  close(): void
}

/** Why `World.signal` fired; `exitCode` is 128 + the signal's number, as shells count. */
export interface StopReason {
  readonly name: 'interrupt' | 'terminate' | 'hangup'
  readonly exitCode: number
}

export interface Terminal {
  readonly stdout: TerminalOutput
  readonly stderr: TerminalOutput
  /** Standard input and output as one byte stream, for `--stdio`; may be taken once. */
  stdio(): Conn
  /**
   * Asks the person, one question at a time; where there is no terminal, the next line of standard
   * input is the answer. Undefined when there is none: the input ended, or `signal` fired.
   */
  prompt(options: PromptOptions): Promise<string | undefined>
  /**
   * Each key that is pressed, until what it returns is called; Ctrl-C stays a signal. Ctrl-Z is told when
   * the program is back from it. Undefined where
   * standard input is no terminal, or the program is in its background.
   */
  keys?(pressed: (key: string) => void): (() => void) | undefined
}

export interface PromptOptions {
  /** On standard error, before what is typed. */
  readonly question: string
  /** Whole lines that what was typed may become, for Tab. */
  readonly complete?: (text: string) => readonly string[]
  /** At a terminal: what was typed before the question is no answer to it. */
  readonly fresh?: boolean
  /** At a terminal: what is typed is not shown, since it is a secret. */
  readonly hidden?: boolean
  readonly signal?: AbortSignal
}

export interface TerminalOutput {
  write(text: string | Uint8Array): void
  /** Resolves when what was written has been taken, or nobody takes it any more. */
  taken?(): Promise<void>
  readonly isTTY: boolean
  /** Width in characters; 80 where nothing says. */
  readonly columns: number
  /** Height in lines, where something says. */
  readonly rows?: number
}

/** Paths are absolute. Every failure is a `TunnelError` `files/…` that names the path. */
export interface Files {
  /**
   * Whole content; undefined when there is no such file. Refuses more than `bytesMax` (default 1 MiB) with
   * `files/size`, or with `head` gives that much of it.
   */
  read(
    path: string,
    options?: { bytesMax?: number; head?: boolean },
  ): Promise<Uint8Array | undefined>
  /** Replaces the file in one step: mode 0600 if no other is named, directories on the way made with 0700, synced to disk. */
  write(path: string, content: Uint8Array, options?: { mode?: number }): Promise<void>
  /** Adds to the end; mode 0600 when it makes the file. */
  append(path: string, content: Uint8Array): Promise<void>
  /** A new file that grows at its end, mode 0600. Throws `files/append`, also when it is there already. */
  appender(path: string): Promise<Appender>
  /** Names in a directory, sorted; none when it is not there. */
  list(path: string): Promise<string[]>
  /** Removes a file; nothing happens when it is not there. */
  remove(path: string): Promise<void>
  info(path: string): Promise<FileInfo | undefined>
  /** Calls `changed` after the file was written, replaced or removed; several changes may become one call. */
  watch(path: string, changed: () => void): () => void
  /**
   * Takes a lock that ends with this process at the latest; undefined when another living process (or
   * another holder in this one) has it, also after waiting for `waitMs` (default 0). The path is that of
   * the lock file itself.
   */
  lock(path: string, options?: { waitMs?: number }): Promise<(() => Promise<void>) | undefined>
}

export interface Appender {
  /** Kept in memory until it is written, at the end of this turn; dropped after an error. */
  write(bytes: Uint8Array): void
  /** When all that was written is on the disk, or `error` says why not. */
  sync(): Promise<void>
  close(): Promise<void>
  /** What ended the writing, such as a full disk. */
  readonly error: TunnelError | undefined
}

export interface FileInfo {
  readonly bytes: number
  /** Permission bits alone, such as 0o600. */
  readonly mode: number
  readonly modifiedMs: number
  /** True when this process's user owns it (always true where there are no users). */
  readonly own: boolean
  /** True when the administrator owns it. */
  readonly system?: boolean
  readonly directory: boolean
}

/** Programs of this machine. */
export interface Programs {
  /** No shell. `env` is all that it gets. Throws `program/start`. */
  start(
    options: {
      readonly argv: readonly string[]
      readonly env: Readonly<Record<string, string>>
      readonly cwd?: string
    },
    sink: ProgramSink,
  ): Promise<Program>
}

/** Takes a program's output; while a promise is open nothing more is read. */
export interface ProgramSink {
  output(bytes: Uint8Array): void | Promise<void>
  errors(bytes: Uint8Array): void | Promise<void>
}

export interface ProgramExit {
  /** Undefined when a signal ended it. */
  readonly code: number | undefined
  readonly signal: string | undefined
}

export interface Program {
  readonly pid: number
  /** When it has exited and all output was taken. */
  readonly done: Promise<ProgramExit>
  /** To its standard input; resolves when that was taken, or there is nobody to take it. */
  write(bytes: Uint8Array): Promise<void>
  end(): void
  /** The whole group of processes. */
  kill(how: 'terminate' | 'kill'): void
}

/** Where a byte stream leads: a TCP port, or a unix socket. */
export type Target = { readonly host: string; readonly port: number } | { readonly path: string }

export interface Net {
  /**
   * Opens a connection on the fastest sockets there are, TCP_NODELAY set. `timeoutMs` defaults to 10 s.
   * Throws `net/refused`, `net/timeout`, `net/unknown-host`, `net/unreachable`.
   */
  connect(target: Target & { readonly timeoutMs?: number }): Promise<Conn>
  /** The same on a stream socket, which `Tls.connect` takes as a `carrier` without a detour. */
  connectDuplex(target: Target & { readonly timeoutMs?: number }): Promise<CarrierConn>
  /** Listens; port 0 takes a free one. Throws `net/in-use`, `net/denied`. */
  listen(
    target: { readonly host: string; readonly port: number },
    accepted: (conn: Conn) => void,
  ): Promise<Listener>
  /**
   * Listens for programs of this user at a path of this machine: a unix socket of mode 0600, in a folder
   * made with 0700; on Windows a named pipe, `\\.\pipe\NAME`. A socket that is there is replaced, so the
   * caller holds a lock. Throws `net/path` for a path that is too long for a socket, `net/denied`.
   */
  listenLocal(path: string, accepted: (conn: Conn) => void): Promise<Listener>
  /** The addresses of a host, the preferred one first. Throws `net/unknown-host`. */
  lookup(host: string): Promise<string[]>
  /** A UDP socket connected to one far end. */
  udp(target: { readonly host: string; readonly port: number }): Promise<Datagrams>
}

/** A `Conn` whose socket can be taken out of it: see `DuplexConn`. */
export interface CarrierConn extends Conn {
  detach(): DuplexShape
}

export interface Datagrams {
  /** The local port. */
  readonly port: number
  /** False when the system took nothing: the datagram is lost, as datagrams may be. */
  send(datagram: Uint8Array): boolean
  /** `closed` is the last call; `error` tells that the far end refused (ICMP) or the socket broke. */
  handle(handler: { message(datagram: Uint8Array): void; closed?(error?: Error): void }): void
  close(): void
}

/** A certificate with its key, both PEM; a chain has its leaf first. Keep the object: contexts are cached by it. */
export interface TlsIdentity {
  readonly cert: string
  readonly key: string
}

export interface Tls {
  /**
   * Ends TLS 1.2 or 1.3 on `carrier`, whose first bytes may have been read already (`first`). Resolves
   * when the handshake is done and `admit` agreed. Rejects with `tls/handshake`, `tls/timeout` or
   * `tls/refused`; the carrier is closed then, after the alert.
   */
  serve(carrier: Conn, first: Uint8Array, options: TlsServeOptions): Promise<TlsConn>
  /** TLS as a client, to a target or over a carrier. Rejects as `serve` does, and with `tls/untrusted`. */
  connect(options: TlsConnectOptions): Promise<TlsConn>
  /** What a pair says of itself. Throws `tls/certificate` when it is unreadable or does not belong together. */
  inspect(identity: TlsIdentity): CertificateFacts
  /** The chain and key as a credential proves them at admission. Throws `tls/certificate`. */
  signer(identity: TlsIdentity): CertificateSigner
  /** SHA-256 fingerprint and DER of the certificate that a server shows; nothing is verified. */
  peerCertificate(
    target: Target & { readonly servername?: string; readonly timeoutMs?: number },
  ): Promise<{ der: Uint8Array; fingerprint: Uint8Array }>
}

export interface CertificateSigner {
  /** DER, leaf first. */
  readonly chain: Uint8Array[]
  /** By the leaf's key: ECDSA P-256 with SHA-256 as r ‖ s, or Ed25519; 64 bytes. */
  sign(message: Uint8Array): Uint8Array
}

export interface CertificateFacts {
  /** The leaf. */
  readonly der: Uint8Array
  /** SHA-256 of `der`, 32 bytes. */
  readonly fingerprint: Uint8Array
  readonly notBeforeMs: number
  readonly notAfterMs: number
  /** DNS names and addresses of the subject alternative name. */
  readonly names: readonly string[]
}

export interface TlsServeOptions {
  readonly identity: TlsIdentity
  /** In order of preference; a client that asks for none of them gets `no_application_protocol`. */
  readonly alpn?: readonly string[]
  /** Picks by the client's list instead of `alpn`: undefined refuses. */
  readonly chooseAlpn?: (offered: readonly string[]) => string | undefined
  /**
   * Asks for a client certificate and admits those for which this says true; no CA is consulted. It gets
   * the leaf in DER, and undefined from a client that sent none. While it thinks, nothing is read.
   */
  readonly admit?: (certificate: Uint8Array | undefined) => boolean | Promise<boolean>
  /** Whole handshake; default 10 s. */
  readonly timeoutMs?: number
}

export interface TlsConnectOptions {
  readonly target?: Target
  readonly carrier?: Conn
  readonly servername?: string
  readonly alpn?: readonly string[]
  /** Client certificate. */
  readonly identity?: TlsIdentity
  /** With it, no CA is consulted: it gets the leaf in DER and throws to refuse, before any byte is sent. */
  readonly verify?: (certificate: Uint8Array) => void
  /** PEM certificates to trust in place of the system's, where there is no `verify`. */
  readonly ca?: readonly string[]
  /** Connecting and handshake; default 10 s. */
  readonly timeoutMs?: number
}

export interface TlsConn extends Conn {
  /** The protocol chosen, false when there was no choice. */
  readonly alpn: string | false
  readonly servername: string | undefined
  /** `TLSv1.2` or `TLSv1.3`. */
  readonly version: string
  /** The other end's leaf, DER. */
  readonly peerCertificate: Uint8Array | undefined
  readonly resumed: boolean
  /** RFC 8446 §7.5, RFC 5705: a value that both ends of this very session can make, and nobody else. */
  exporter(label: string, bytes: number, context?: Uint8Array): Uint8Array
  /** Gives up the socket below, to hand to `HttpServer.accept`; this `Conn` is dead then. */
  detach(): DuplexShape
}

export interface LinkPort {
  /**
   * Opens a link's WebSocket: sub-protocol `sotto.v1`, no compression, messages of at most one frame.
   * Rejects with `link/refused` (HTTP status in the text), `link/timeout`, `link/untrusted`, `net/…`.
   */
  open(url: string, options: LinkOptions): Promise<OpenLink>
}

export interface LinkOptions {
  /**
   * `ca`: the TLS certificate must verify. `admission`: any certificate is taken here, and its fingerprint
   * is given back, for admission (docs/protocol.md §3) to check before anything is told to the relay.
   */
  readonly trust: 'ca' | 'admission'
  readonly ca?: readonly string[]
  readonly headers?: Readonly<Record<string, string>>
  /** Until the upgrade is answered; default 10 s. */
  readonly timeoutMs?: number
  /** Opens what the link goes over in place of a connection of its own, such as a proxy's tunnel. */
  readonly carrier?: (timeoutMs: number) => Promise<Conn>
}

export interface OpenLink {
  readonly socket: Socket
  /** SHA-256 of the certificate, DER, that *this* connection received; absent without TLS. */
  readonly certificate: Uint8Array | undefined
}

/** `[name, value]` in order; names repeat. */
export type HeaderList = [name: string, value: string][]

export interface HttpPort {
  /** An HTTP/1.1 server that listens nowhere: it serves connections handed to `accept`. */
  server(handler: HttpHandler, limits?: HttpLimits): HttpServer
  /** One HTTP/1.1 exchange with an upstream. The body is written on the value returned. */
  request(options: HttpRequestOptions, handler: HttpResponseHandler): HttpSending
}

export interface HttpLimits {
  /** A connection's first request head must be whole by then; default 20 s. */
  readonly headMs?: number
  /** An idle connection's next request head must be whole by then; default 75 s. */
  readonly idleMs?: number
}

export interface HttpHandler {
  request(request: HttpIncoming, response: HttpOutgoing): void
  /** An upgrade: answer by `respond`; with 101 both directions are bytes then. */
  upgrade(request: HttpIncoming, tunnel: HttpUpgrade): void
}

export interface HttpServer {
  /** Serves one connection; resolves when it is closed. `visitor` is whom its requests come from. */
  accept(conn: TlsConn, visitor: { address: string; port: number }): Promise<void>
  /** Ends idle connections; running exchanges finish. */
  close(): void
}

/** A body coming in. Paused until `handle`. */
export interface HttpBody {
  handle(handler: {
    data(bytes: Uint8Array): void
    end(trailers: HeaderList): void
    /** The other side went away before the end. */
    aborted(): void
  }): void
  pause(): void
  resume(): void
}

export interface HttpIncoming extends HttpBody {
  readonly method: string
  /** As on the request line. */
  readonly target: string
  readonly headers: HeaderList
  /** The visitor, as `HttpServer.accept` was told. */
  readonly visitor: { readonly address: string; readonly port: number }
}

/** A body going out; the shape of `Conn`'s writing half. */
export interface HttpSending {
  /** False when the caller should wait for `drain`. */
  write(bytes: Uint8Array): boolean
  end(trailers?: HeaderList): void
  abort(): void
}

export interface HttpOutgoing extends HttpSending {
  /** A 1xx other than 101. */
  info(status: number, headers: HeaderList): void
  head(status: number, headers: HeaderList, reason?: string): void
  onDrain(run: () => void): void
  /** The visitor went away before the response ended. */
  onClose(run: () => void): void
}

export interface HttpUpgrade {
  /** With 101: the bytes of both directions. Any other status ends the connection after `body`. */
  respond(status: number, headers: HeaderList, body?: Uint8Array): Conn | undefined
  /** The visitor went away before it was answered. */
  onClose(run: () => void): void
}

export interface HttpRequestOptions {
  readonly target: Target
  readonly tls?: { readonly servername: string; readonly verify: boolean }
  readonly method: string
  /** Path and query. */
  readonly path: string
  /** Sent as they are; framing headers (`content-length`, `transfer-encoding`) decide the framing. */
  readonly headers: HeaderList
  readonly timeoutMs?: number
}

export interface HttpResponseHandler {
  info?(status: number, headers: HeaderList): void
  response(status: number, headers: HeaderList, body: HttpBody, reason: string): void
  /** The upstream agreed to switch protocols. */
  upgraded?(headers: HeaderList, conn: Conn): void
  drain?(): void
  /** No response came, or it broke off: `net/…` or `http/…`. */
  failed(error: Error): void
}
