// seconds: 120
// needs: tmux bash stty script
/**
 * A tunnel at a real terminal: keys, the QR code, narrow windows, plain words, other locales, and a
 * terminal that is in order again however the program ended. Screens are tmux's.
 */
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Terminal } from '../support/tmux.ts'
import { BUN, E2eWorld } from '../support/world.ts'
import type { Relay } from '../support/world.ts'

const test = suite('e2e/terminal')
let world: E2eWorld
let relay: Relay
let last = 0

test.before(async () => {
  world = new E2eWorld()
  relay = await world.relay()
})
test.after(() => world.close())

function sit(columns: number, env: Record<string, string> = {}, rows = 40): Terminal {
  return new Terminal(world, {
    home: `terminal${++last}`,
    env: { ...world.joins(relay), LANG: 'C.UTF-8', DISPLAY: '', ...env },
    columns,
    rows,
  })
}

/** `sotto http` until its URL is there. */
async function up(terminal: Terminal, flags = ''): Promise<string> {
  terminal.run(`sotto http 3000 --name t${last} ${flags}`)
  return (await terminal.until(/https:\/\/\S+/))[0]
}

const KEYS = /Keys: q QR code, o open in a browser/

test('keys are said, show the QR code, help, and that there is no desktop; Ctrl-C ends it', async () => {
  const terminal = sit(80)
  await up(terminal)
  await terminal.until(KEYS)
  await terminal.until(/0 visitors now · 0 so far/)
  terminal.press('q')
  const picture = await terminal.until(/([█▀▄ ]{25,}\n){12,}/)
  assert.ok(picture[0].split('\n').every((line) => line.length <= 80))
  terminal.press('o')
  await terminal.until(/There is no desktop here/)
  terminal.press('C-c')
  assert.is(await terminal.left(), 130)
  // The shell's own modes are back: what is typed is echoed and edited.
  terminal.run('stty -a | grep -o "[-]*icanon\\|[-]*isig\\|[-]*echo " | tr "\\n" " "; echo')
  await terminal.until(/^isig icanon echo/m)
})

test('c gives the URL to the terminal, which keeps it', async () => {
  const terminal = sit(80)
  terminal.setOption('set-clipboard', 'on')
  const url = await up(terminal)
  await terminal.until(KEYS)
  terminal.press('c')
  await terminal.until(/Given to the terminal to copy/)
  assert.is(terminal.clipboard, `${url.replace(/\/?$/, '/')}`)
  terminal.press('C-c')
  await terminal.left()
})

test('o starts the browser with the URL and nothing of ours in its environment', async () => {
  const bin = world.path('bin')
  mkdirSync(bin, { recursive: true })
  const script = `${bin}/xdg-open`
  const opened = world.path('opened')
  writeFileSync(
    script,
    `#!/bin/sh\n{ echo "$# $1"; env | grep -c ^SOTTO_; } > ${world.path('opened')}\n`,
  )
  chmodSync(script, 0o755)
  const terminal = sit(80, { DISPLAY: ':9' })
  terminal.run(`PATH=${bin}:$PATH; clear`)
  const url = await up(terminal)
  await terminal.until(KEYS)
  terminal.press('o')
  await terminal.until(/Opened in a browser/)
  const tail = world.start('bash', [
    '-c',
    `until [ -s ${opened} ]; do sleep 0.05; done; cat ${opened}`,
  ])
  const [, found] = await tail.says(/^1 (\S+)\n0$/m)
  assert.is(found!.replace(/\/$/, ''), url.replace(/\/$/, ''))
  terminal.press('C-c')
  await terminal.left()
})

test('40 columns: nothing is cut within a word, and the QR code fits', async () => {
  const terminal = sit(40)
  await up(terminal, '--qr')
  await terminal.until(/0 visitors now · 0 so far/)
  const lines = terminal.lines
  assert.ok(lines.some((line) => /^[█▀▄ ]{25,40}$/.test(line)), terminal.screen)
  assert.match(lines.at(-1)!, /^ {2}0 visitors now · 0 so far( · 0 B in)?$/)
  terminal.press('C-c')
  await terminal.left()
})

test('without UTF-8 all is ASCII, and a picture that does not fit is said', async () => {
  for (const columns of [100, 40]) {
    const terminal = sit(columns, { LANG: 'C', LC_ALL: 'POSIX', NO_COLOR: '1' }, 60)
    await up(terminal, '--qr')
    if (columns === 100) await terminal.until(/([# ]{50,}\n){20,}/)
    else await terminal.until(/too narrow for the QR\s+code/)
    await terminal.until(/0 visitors now - 0 so far/)
    // deno-lint-ignore no-control-regex
    assert.match(terminal.screen, /^[\x00-\x7f]*$/)
    terminal.press('C-c')
    await terminal.left()
  }
})

test('plain: lines in their order, sentences, no cursor that moves', async () => {
  for (const [flag, env] of [['--plain', {}], ['', { SOTTO_PLAIN: '1' }]] as const) {
    const terminal = sit(80, env)
    terminal.run(`sotto http 3000 --name t${last} ${flag} | tee /dev/null; true`)
    await terminal.until(/https:\/\//)
    terminal.press('C-c')
    const raw = world.path(`raw${last}`)
    terminal.clear()
    terminal.run(
      `script -qec '${world.sottoWords} http 3000 --name t${last} ${flag}' ${raw} ; echo done`,
    )
    await terminal.until(/0 visitors now, 0 so far, 0 B in, 0 B out\./)
    await terminal.until(KEYS)
    terminal.press('h')
    terminal.press('C-c')
    await terminal.until(/^done$/m)
    terminal.clear()
    terminal.run(`grep -c "$(printf '\\033')" ${raw}`)
    await terminal.until(/^0$/m)
  }
})

test('TERM=dumb: no cursor movement and no keys', async () => {
  const terminal = sit(80, { TERM: 'dumb' })
  terminal.run('export TERM=dumb')
  await up(terminal)
  await terminal.until(/leads to/)
  assert.not.match(terminal.screen, /Keys:|visitors now/)
  terminal.press('C-c')
  assert.is(await terminal.left(), 130)
})

test('the terminal is in order after kill -TERM, a fault, Ctrl-Z and in the background', async () => {
  const order = async (terminal: Terminal): Promise<void> => {
    terminal.clear()
    terminal.run('stty -a | grep -o "[-]*icanon\\|[-]*isig\\|[-]*echo " | tr "\\n" " "; echo')
    await terminal.until(/^isig icanon echo/m)
    terminal.clear()
  }
  const terminal = sit(80)
  terminal.run(`set -m; ${world.sottoWords} http 3000 --name t${last}`)
  await terminal.until(KEYS)
  terminal.press('C-z')
  await terminal.until(/Stopped/)
  await order(terminal)
  terminal.run('fg')
  await terminal.until(/main.ts|sotto/)
  terminal.press('h')
  await terminal.until(KEYS)
  terminal.press('C-z')
  await terminal.until(/Stopped/)
  terminal.run('kill -TERM %1; fg; echo over')
  await terminal.until(/^over$/m)
  await order(terminal)
  const fault = world.path('fault.ts')
  writeFileSync(
    fault,
    `import { keys } from '${new URL('../../agent/host/keys.ts', import.meta.url).pathname}'\n` +
      `process.on('uncaughtException', () => process.exit(70))\n` +
      `keys(() => { throw new Error('a fault') })\nconsole.log('ready')\n`,
  )
  terminal.run(`${BUN} ${fault}; echo left with $?`)
  await terminal.until(/^ready$/m)
  terminal.press('x')
  await terminal.until(/^left with 70$/m)
  await order(terminal)
  terminal.run(`${world.sottoWords} http 3000 --name t${last} &`)
  await terminal.until(/https:\/\//)
  assert.not.match(terminal.screen, /Stopped|Keys:/)
  terminal.run('kill -TERM %1; wait; echo over')
  await terminal.until(/^over$/m)
})

test.run()
