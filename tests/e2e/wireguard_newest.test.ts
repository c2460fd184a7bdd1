// The cases of wireguard.test.ts against the newest wireguard-go, built from its Go module.
// needs: root ip wg iperf3 ping
// wants: go
// seconds: 600
// alone
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { buildNewest } from '../support/wireguard_go.ts'

const CASES = fileURLToPath(new URL('wireguard.test.ts', import.meta.url))
const CASES_MS_MAX = 500_000

const test = suite('e2e/wireguard_newest')

function built(): { path: string; version: string } {
  try {
    return buildNewest()
  } catch (error) {
    console.log(`not run: Go did not build it (${(error as Error).message})`)
    process.exit(0)
  }
}

const { path, version } = built()

test(`all cases pass with ${version}`, () => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [CASES], {
    encoding: 'utf8',
    env: { ...process.env, SOTTO_WIREGUARD_GO: path },
    timeout: CASES_MS_MAX,
    killSignal: 'SIGKILL',
  })
  assert.is(status, 0, `${stdout}${stderr}`)
  const [, passed] = /Passed:\s+(\d+)/.exec(stdout) ?? []
  assert.ok(Number(passed) > 10, stdout)
})

test.run()
