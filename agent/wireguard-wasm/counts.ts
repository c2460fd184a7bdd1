/** What the module counts, by name. */

/** In the order of `wg_counts`. */
const DROPS = [
  'malformed',
  'noIdentity',
  'badMac1',
  'underLoad',
  'rateLimited',
  'unknownPeer',
  'unknownIndex',
  'badHandshake',
  'expired',
  'forged',
  'replayed',
  'notIp',
  'foreignSource',
  'noEntropy',
  'outboxFull',
] as const
const UNSENT = [
  'badDescriptor',
  'notIp',
  'noRoute',
  'noEndpoint',
  'slotTooShort',
  'tooManyStaged',
] as const

export interface DeviceStats {
  peers: number
  /** Instances that were lost. */
  restarts: number
  /** Bytes of the module's memory. */
  memoryBytes: number
  /** Datagrams that were dropped, by reason, of this instance. */
  drops: Record<(typeof DROPS)[number], number>
  /** Packets that were not sent, by reason. */
  unsent: Record<(typeof UNSENT)[number], number>
}

/** Of the numbers that `wg_counts` gives. */
export function readDeviceCounts(
  counts: readonly number[],
): Pick<DeviceStats, 'drops' | 'unsent'> {
  const named = <T extends string>(
    names: readonly T[],
    from: number,
  ): Record<T, number> =>
    Object.fromEntries(
      names.map((name, i) => [name, counts[from + i] ?? 0]),
    ) as Record<T, number>
  return { drops: named(DROPS, 0), unsent: named(UNSENT, DROPS.length) }
}
