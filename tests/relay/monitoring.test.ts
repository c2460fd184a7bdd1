// needs: promtool
/**
 * What docs/monitoring gives to those who run a relay: every rule and panel asks for metrics that there are,
 * in expressions that Prometheus takes, and each rule fires when it should.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { parse } from 'yaml'
import { ManualClock } from '../../core/clock.ts'
import { Metrics } from '../../relay/metrics.ts'

const FOLDER = fileURLToPath(new URL('../../docs/monitoring', import.meta.url))

interface Dashboard {
  panels: { title: string; targets: { expr: string }[] }[]
}
interface Rules {
  groups: { rules: { alert: string; expr: string }[] }[]
}

const test = suite('relay/monitoring')
const exposition = new Metrics({ clock: new ManualClock(), version: '1', runtime: 'bun' }).render()
const dashboard = JSON.parse(readFileSync(`${FOLDER}/dashboard.json`, 'utf8')) as Dashboard
const rules = (parse(readFileSync(`${FOLDER}/alerts.yaml`, 'utf8')) as Rules).groups
  .flatMap((group) => group.rules)
const asked = dashboard.panels.flatMap(({ targets }) => targets.map(({ expr }) => expr))

function promtool(args: string[], input = ''): void {
  const done = spawnSync('promtool', args, { cwd: FOLDER, encoding: 'utf8', input })
  assert.is(done.status, 0, `${done.stdout}${done.stderr}`)
}

test('the rules are well formed, quiet on a healthy relay, and each fires when it should', () => {
  promtool(['check', 'rules', 'alerts.yaml'])
  promtool(['test', 'rules', 'alerts_test.yaml'])
  const tried = readFileSync(`${FOLDER}/alerts_test.yaml`, 'utf8')
  for (const { alert } of rules) {
    assert.is(tried.split(new RegExp(`\\b${alert}\\b`)).length - 1, 2, alert)
  }
})

test('rules and panels name metrics, labels and values that a relay has', () => {
  const names = new Set(
    exposition.split('\n').map((line) => /^([a-z_]+)[{ ]/.exec(line)?.[1]).filter(Boolean),
  )
  for (const expr of [...asked, ...rules.map(({ expr }) => expr)]) {
    for (const [name] of expr.matchAll(/\bsotto_[a-z_]+/g)) assert.ok(names.has(name), name)
    for (const [, label, values] of expr.matchAll(/([a-z]+)(?:=|=~|!=)"([a-z|]+)"/g)) {
      if (label === 'job') continue
      for (const value of values!.split('|')) {
        assert.ok(exposition.includes(`${label}="${value}"`), `${label} ${value}`)
      }
    }
  }
})

test('Prometheus takes every panel, and the metrics as a relay gives them', () => {
  const folder = mkdtempSync(join(tmpdir(), 'sotto-monitoring-'))
  try {
    const records = asked.map((expr, i) => ({
      record: `panel:${i}`,
      expr: expr.replaceAll('$__rate_interval', '5m').replaceAll('$instance', '.*'),
    }))
    const file = join(folder, 'panels.yaml')
    writeFileSync(file, JSON.stringify({ groups: [{ name: 'panels', rules: records }] }))
    promtool(['check', 'rules', file])
  } finally {
    rmSync(folder, { recursive: true })
  }
  promtool(['check', 'metrics'], exposition)
})

test.run()
