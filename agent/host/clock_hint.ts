/** A certificate that is over, or has not begun, may be good: the clock of this machine may be what is wrong. */

const OF_TIME = /EXPIRED|NOT_YET_VALID|has expired|not yet valid/i

/** What to say beside such an error; undefined for others. */
export function clockHint(said: string): string | undefined {
  if (!OF_TIME.test(said)) return undefined
  const now = new Date().toISOString().slice(0, 16).replace('T', ' ')
  return `Is this machine's clock right? It says ${now} UTC.`
}
