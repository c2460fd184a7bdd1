/**
 * Services by the manager that this machine has: systemd, launchd, or the Task Scheduler. It is asked
 * through its own programs, and only what is written by this file is removed by it.
 */
import { concat, EMPTY, text, utf8 } from '../core/bytes.ts'
import { isTunnelError, TunnelError } from '../core/errors.ts'
import { launchdLabel, launchdLog, launchdPath, launchdPlist } from './service_launchd.ts'
import { checkPlan, environmentFile, serviceId, SYSTEM_CONFIG } from './service_plan.ts'
import type { ServicePlan } from './service_plan.ts'
import { systemdUnit } from './service_systemd.ts'
import { utf16, windowsTask } from './service_windows.ts'
import { stopped } from './stop.ts'
import type { World } from './world.ts'

/** Until the manager has done what it was asked; a start waits until the service is ready. */
const MANAGER_MS_MAX = 120_000
/** Of what it prints. */
const OUTPUT_BYTES_MAX = 1_048_576
const MODE_UNIT = 0o644

/** What was written where, and what the person may want to know. */
export interface Installed {
  path: string
  notes: string[]
}

export interface Ran {
  code: number
  stdout: string
  stderr: string
}

/** The definition as it would be installed, and where. */
export async function describeService(
  world: World,
  plan: ServicePlan,
): Promise<{ path: string; content: string }> {
  checkPlan(plan)
  const { home, username, system } = world
  if (system.platform === 'darwin') {
    return { path: launchdPath(plan, home), content: launchdPlist(plan, home) }
  }
  if (system.platform === 'windows') {
    const folder = world.env['LOCALAPPDATA'] ?? home
    return {
      path: `${folder}\\sotto\\${serviceId(plan)}.xml`,
      content: windowsTask(plan, username),
    }
  }
  const version = await systemdVersion(world)
  return {
    path: unitPath(world, plan),
    content: systemdUnit(plan, version === undefined ? {} : { version }),
  }
}

/** Writes it, has it start now and at every boot or sign-in. Throws `service/…`, `files/…`. */
export async function installService(world: World, plan: ServicePlan): Promise<Installed> {
  const { path, content } = await describeService(world, plan)
  await mayManage(world, plan)
  await checkFiles(world, plan)
  const id = serviceId(plan)
  if (world.system.platform === 'windows') {
    await world.files.write(path, utf16(content))
    await need(world, ['schtasks', '/Create', '/TN', id, '/XML', path, '/F'])
    await need(world, ['schtasks', '/Run', '/TN', id])
    return { path, notes: ['Windows starts it again a minute after it ends.'] }
  }
  await world.files.write(path, utf8(content), { mode: MODE_UNIT })
  if (world.system.platform === 'darwin') {
    const domain = launchdDomain(world, plan)
    await ask(world, ['launchctl', 'bootout', `${domain}/${launchdLabel(plan)}`])
    await need(world, ['launchctl', 'bootstrap', domain, path])
    return { path, notes: [`Its output is in ${launchdLog(plan, world.home)}.`] }
  }
  await need(world, systemctl(plan, 'daemon-reload'))
  await need(world, systemctl(plan, 'enable', `${id}.service`))
  const started = await ask(world, systemctl(plan, 'restart', `${id}.service`))
  if (started.code !== 0) {
    throw new TunnelError('service/start', `Cannot start ${id}: it did not become ready`, {
      hint: `It is installed and will be tried again. See: sotto service logs${suffix(plan)}`,
    })
  }
  return { path, notes: plan.kind === 'user' ? await lingerNotes(world) : [] }
}

/** Stops and removes it; configuration and state stay. False: it was not there. */
export async function uninstallService(
  world: World,
  plan: ServicePlan,
): Promise<{ path: string; removed: boolean }> {
  const { path } = await describeService(world, plan)
  await mayManage(world, plan)
  const removed = await world.files.info(path) !== undefined
  const id = serviceId(plan)
  switch (world.system.platform) {
    case 'windows':
      if (removed) {
        await ask(world, ['schtasks', '/End', '/TN', id])
        await need(world, ['schtasks', '/Delete', '/TN', id, '/F'])
      }
      break
    case 'darwin':
      await ask(world, [
        'launchctl',
        'bootout',
        `${launchdDomain(world, plan)}/${launchdLabel(plan)}`,
      ])
      break
    default:
      // Also where the file is gone and the service still runs.
      await ask(world, systemctl(plan, 'disable', '--now', `${id}.service`))
  }
  await world.files.remove(path)
  if (world.system.platform === 'linux') {
    await ask(world, systemctl(plan, 'daemon-reload'))
    await ask(world, systemctl(plan, 'reset-failed', `${id}.service`))
  }
  return { path, removed }
}

/** How it is, in the manager's own words; `facts` where it gives some by name. */
export async function serviceStatus(
  world: World,
  plan: ServicePlan,
): Promise<{ words: string; running: boolean; facts: Record<string, string> }> {
  await hasManager(world)
  const id = serviceId(plan)
  switch (world.system.platform) {
    case 'windows': {
      const { code, stdout } = await ask(world, [
        'schtasks',
        '/Query',
        '/TN',
        id,
        '/V',
        '/FO',
        'LIST',
      ])
      return { words: stdout, running: code === 0 && /Running/.test(stdout), facts: {} }
    }
    case 'darwin': {
      const place = `${launchdDomain(world, plan)}/${launchdLabel(plan)}`
      const { stdout } = await ask(world, ['launchctl', 'print', place])
      return { words: stdout, running: /state = running/.test(stdout), facts: {} }
    }
    default: {
      const named = 'ActiveState,SubState,StatusText,MainPID,NRestarts,LoadState,UnitFileState'
      const shown = await need(
        world,
        systemctl(plan, 'show', `${id}.service`, `--property=${named}`),
      )
      const facts = Object.fromEntries(
        shown.stdout.split('\n').filter((line) => line.includes('='))
          .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
      )
      const { stdout, stderr } = await ask(
        world,
        systemctl(plan, '--no-pager', '--lines=5', 'status', `${id}.service`),
      )
      return { words: stdout || stderr, running: facts['ActiveState'] === 'active', facts }
    }
  }
}

/** Passes on what the service has printed; with `follow` until the person stops it. */
export async function serviceLogs(
  world: World,
  plan: ServicePlan,
  { lines, follow, json }: { lines: number; follow: boolean; json: boolean },
): Promise<number> {
  await hasManager(world)
  const id = serviceId(plan)
  if (world.system.platform === 'windows') {
    throw new TunnelError('service/logs', 'Cannot show logs: the Task Scheduler keeps no output', {
      hint: 'Run "sotto up" in a terminal to see what it says.',
    })
  }
  const argv = world.system.platform === 'darwin'
    ? ['tail', '-n', String(lines), ...(follow ? ['-F'] : []), launchdLog(plan, world.home)]
    : [
      'journalctl',
      ...(plan.kind === 'user' ? ['--user'] : []),
      '--no-pager',
      `--unit=${id}.service`,
      `--lines=${lines}`,
      ...(follow ? ['--follow'] : []),
      ...(json ? ['--output=json'] : []),
    ]
  const { stdout, stderr } = world.terminal
  const program = await world.programs.start({ argv, env: environment(world) }, {
    output: (bytes) => stdout.write(bytes),
    errors: (bytes) => stderr.write(bytes),
  })
  program.end()
  const stop = stopped(world.signal)
  try {
    const { code } = await Promise.race([program.done, stop.promise])
    return code ?? 1
  } finally {
    stop.done()
    program.kill('terminate')
  }
}

/** `/etc/sotto/sotto.yaml`, or the person's own. */
export function defaultConfig(
  { system, home, env }: Pick<World, 'system' | 'home' | 'env'>,
  kind: ServicePlan['kind'],
): string {
  if (system.platform === 'windows') {
    const folder = kind === 'system' ? env['ProgramData'] : env['APPDATA']
    return `${folder ?? home}\\sotto\\sotto.yaml`
  }
  if (kind === 'system') return `${SYSTEM_CONFIG}/sotto.yaml`
  return `${env['XDG_CONFIG_HOME'] || `${home}/.config`}/sotto/sotto.yaml`
}

/** A machine without a manager that we know, or a person without the right to it. */
async function mayManage(world: World, plan: ServicePlan): Promise<void> {
  await hasManager(world)
  const { system } = world
  if (plan.kind === 'system' && system.uid !== undefined && system.uid !== 0) {
    throw new TunnelError('service/rights', 'Cannot manage a system service: only root may', {
      hint: 'Run it with sudo, or leave out --system for a service of your own.',
    })
  }
  if (system.platform === 'linux' && plan.kind === 'user' && !world.env['XDG_RUNTIME_DIR']) {
    throw new TunnelError(
      'service/manager',
      'Cannot manage a service of yours: no systemd of this user runs (XDG_RUNTIME_DIR is not set)',
      { hint: 'Sign in as this user, not by su or sudo; or use --system as root.' },
    )
  }
}

async function hasManager({ system, files }: World): Promise<void> {
  if (system.platform === 'darwin' || system.platform === 'windows') return
  if (system.platform === 'linux' && await files.info('/run/systemd/system')) return
  throw new TunnelError('service/manager', 'Cannot manage services: systemd does not run here', {
    hint:
      'Let whatever starts programs here run "sotto up" or "sotto relay"; --print shows a unit.',
  })
}

/** What the service would fail on at once. */
async function checkFiles(world: World, plan: ServicePlan): Promise<void> {
  const { files, system } = world
  const hidden = plan.kind === 'system' && system.platform === 'linux'
    ? [...plan.program, ...(plan.name === 'agent' ? [plan.config] : [])]
      .find((path) => /^\/(home|root|run\/user|tmp|var\/tmp)\//.test(path))
    : undefined
  if (hidden !== undefined) {
    throw new TunnelError(
      'service/hidden',
      `Cannot install the service: it could not see ${hidden}`,
      {
        hint: `Put the program into /usr/local/bin and its configuration into ${SYSTEM_CONFIG}.`,
      },
    )
  }
  for (const path of plan.kind === 'system' ? plan.program : []) {
    const info = await files.info(path)
    if (!info || info.system !== false && (info.mode & 0o002) === 0) continue
    throw new TunnelError(
      'service/foreign',
      `Cannot install the service: somebody without the rights of root could change ${path}`,
      { hint: 'Put the program into /usr/local/bin, as root: the installer does so.' },
    )
  }
  if (plan.name === 'agent' && !await files.info(plan.config)) {
    throw new TunnelError(
      'service/config',
      `Cannot install the service: there is no ${plan.config}`,
      {
        hint: 'Write one and try it with "sotto up --config PATH", or name another by --config.',
      },
    )
  }
  const secrets = plan.kind === 'system' ? await files.info(environmentFile(plan)) : undefined
  if (secrets && system.platform === 'linux' && (secrets.mode & 0o077) !== 0) {
    throw new TunnelError(
      'service/permissions',
      `Cannot install the service: ${environmentFile(plan)} is readable to others`,
      { hint: `chmod 600 ${environmentFile(plan)}` },
    )
  }
}

function unitPath({ home, env }: World, plan: ServicePlan): string {
  const folder = plan.kind === 'system'
    ? '/etc/systemd/system'
    : `${env['XDG_CONFIG_HOME'] || `${home}/.config`}/systemd/user`
  return `${folder}/${serviceId(plan)}.service`
}

async function systemdVersion(world: World): Promise<number | undefined> {
  try {
    const { stdout } = await ask(world, ['systemctl', '--version'])
    return Number(/^systemd (\d{2,4})\b/.exec(stdout)?.[1]) || undefined
  } catch (error) {
    if (isTunnelError(error, 'service/manager')) return undefined
    throw error
  }
}

/** A user's manager goes with their last session, unless they may stay. */
async function lingerNotes(world: World): Promise<string[]> {
  const { username } = world
  if (await world.files.info(`/var/lib/systemd/linger/${username}`)) return []
  return [`It ends when you sign out. To keep it: loginctl enable-linger ${username}`]
}

function systemctl({ kind }: ServicePlan, ...words: string[]): string[] {
  return ['systemctl', ...(kind === 'user' ? ['--user'] : []), ...words]
}

function launchdDomain({ system }: World, { kind }: ServicePlan): string {
  return kind === 'system' ? 'system' : `gui/${system.uid ?? 501}`
}

function suffix({ name, kind }: ServicePlan): string {
  return `${name === 'relay' ? ' relay' : ''} --${kind}`
}

/** Asks and throws `service/refused` with the manager's own words when it says no. */
async function need(world: World, argv: string[]): Promise<Ran> {
  const ran = await ask(world, argv)
  if (ran.code === 0) return ran
  const said = (ran.stderr || ran.stdout).trim().split('\n')[0] || `it ended with ${ran.code}`
  throw new TunnelError('service/refused', `Cannot run "${argv.join(' ')}": ${said}`)
}

async function ask(world: World, argv: string[]): Promise<Ran> {
  const parts = { stdout: EMPTY, stderr: EMPTY }
  const take = (which: 'stdout' | 'stderr') => (bytes: Uint8Array): void => {
    if (parts[which].length < OUTPUT_BYTES_MAX) parts[which] = concat(parts[which], bytes)
  }
  let program
  try {
    program = await world.programs.start({ argv, env: environment(world) }, {
      output: take('stdout'),
      errors: take('stderr'),
    })
  } catch (error) {
    if (!isTunnelError(error, 'program/start')) throw error
    throw new TunnelError('service/manager', `Cannot manage services: there is no ${argv[0]} here`)
  }
  program.end()
  const stop = stopped(world.signal)
  const late = world.clock.after(MANAGER_MS_MAX, () => program.kill('kill'))
  try {
    const { code } = await Promise.race([program.done, stop.promise])
    return { code: code ?? 1, stdout: text(parts.stdout), stderr: text(parts.stderr) }
  } finally {
    late.cancel()
    stop.done()
    program.kill('terminate')
  }
}

function environment({ env }: World): Record<string, string> {
  const kept = Object.entries(env).filter((entry): entry is [string, string] => {
    const [name, value] = entry
    // No secret of ours is their business.
    return value !== undefined && !name.startsWith('SOTTO_')
  })
  return { ...Object.fromEntries(kept), SYSTEMD_COLORS: '0', LC_ALL: 'C.UTF-8' }
}
