/** Which hosts are this machine: nobody stands in between, and no proxy is asked for them. */

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host.endsWith('.localhost') || host === '::1' ||
    /^127\./.test(host)
}
