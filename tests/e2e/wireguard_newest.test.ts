// The cases of wireguard.test.ts against the newest wireguard-go, built from its Go module.
// needs: root ip wg iperf3 ping
// wants: go
// seconds: 600
// alone
import { buildNewest } from '../support/wireguard_go.ts'

try {
  const { path, version } = buildNewest()
  console.log(`wireguard-go ${version}`)
  process.env['SOTTO_WIREGUARD_GO'] = path
} catch (error) {
  console.log(`not run: Go did not build it (${(error as Error).message})`)
  process.exit(0)
}
await import('./wireguard.test.ts')
