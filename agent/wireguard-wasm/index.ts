/** Userspace WireGuard in one WebAssembly module: see README.md. */
export {
  decodeEndpoint,
  encodeEndpoint,
  ENDPOINT_BYTES,
  formatEndpoint,
  formatIp,
} from './address.ts'
export { parseEndpoint, parseIp, parsePrefix, writeEndpoint } from './address.ts'
export type { Endpoint, Prefix } from './address.ts'
export { Batch, NO_PEER, Packets, RUN_WORDS, RUNS_MAX } from './batch.ts'
export type { DeviceStats } from './counts.ts'
export { Device } from './device.ts'
export type { DeviceOptions, Notice } from './device.ts'
export { Driver, packetEngine } from './driver.ts'
export type { DriverOptions, Engine, Path } from './driver.ts'
export { Flow } from './flow.ts'
export type { FlowHandler, Sent } from './flow.ts'
export { lendAead } from './lent_aead.ts'
export type { AeadLender, LentAead, LentCall } from './lent_aead.ts'
export { MemoryPath, memoryPaths } from './memory_path.ts'
export type { Message, MessageKind, Unreachable } from './message.ts'
export { Peer } from './peer.ts'
export type { PeerChanges, PeerOptions, PeerStats } from './peer.ts'
export { WireGuardError } from './problem.ts'
export type { WireGuardCode } from './problem.ts'
export { Incoming, Tunnel } from './tunnel.ts'
export type { TunnelOptions, TunnelStats } from './tunnel.ts'
