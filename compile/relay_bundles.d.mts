import type { Metafile } from './binary.ts'

export const PLACES: Readonly<Record<'worker' | 'node' | 'deno' | 'deno_deploy', unknown>>
export function bundleRelay(
  place: keyof typeof PLACES,
  folder: string,
): Promise<{ path: string; metafile: Metafile }>
export function writeWranglerConfig(path: string): void
