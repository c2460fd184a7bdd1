import type { Metafile } from './binary.ts'

export const PLACES: Readonly<Record<'worker' | 'node' | 'deno' | 'deno_deploy', unknown>>
export function bundleRelay(
  place: keyof typeof PLACES,
  folder: string,
): Promise<{ path: string; metafile: Metafile }>
export function writeWranglerConfig(path: string): void

/** What Cloudflare is told of the bundle for Workers. */
export const COMPATIBILITY_DATE: string
export const FLAGS: readonly string[]
/** Durable Objects: binding and class. */
export const OBJECTS: readonly (readonly [string, string])[]
