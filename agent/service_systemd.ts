/**
 * A unit for systemd. Everything that the program can do without is taken from it; what had to stay is
 * said beside it. `systemd-analyze security` judges the result in the tests.
 */
import {
  argumentsOf,
  environmentFile,
  flagValue,
  needsLowPort,
  serviceId,
  withFlag,
} from './service_plan.ts'
import type { ServicePlan } from './service_plan.ts'

/** Files of the relay that root alone may read: handed over by the manager as credentials. */
const CREDENTIALS = ['tls-cert', 'tls-key', 'client-ca'] as const
/** From here on the wait between starts can grow. */
const STEPS_VERSION_MIN = 254

export interface UnitOptions {
  /** Of the systemd that will read it; undefined: any. */
  version?: number
}

/** The text of `ID.service`. */
export function systemdUnit(plan: ServicePlan, { version }: UnitOptions = {}): string {
  const { name, kind } = plan
  const system = kind === 'system'
  const { credentials, flags } = system ? lent(plan) : { credentials: [], flags: plan.flags }
  const words = [...plan.program, ...argumentsOf({ ...plan, flags })]
  const line = words.map((word) => quote(word, credentials.length > 0)).join(' ')
  return [
    `# Made by "sotto service install${
      name === 'relay' ? ' relay' : ''
    }"; a drop-in changes it and survives: systemctl ${system ? '' : '--user '}edit ${
      serviceId(plan)
    }`,
    '[Unit]',
    `Description=sotto ${name}`,
    ...(system ? ['Wants=network-online.target', 'After=network-online.target'] : []),
    '# It comes back however often it fails.',
    'StartLimitIntervalSec=0',
    '',
    '[Service]',
    'Type=notify',
    'NotifyAccess=main',
    `ExecStart=${line}`,
    ...(name === 'agent' ? ['ExecReload=/bin/kill -HUP $MAINPID'] : []),
    'Restart=always',
    ...(version === undefined || version < STEPS_VERSION_MIN
      ? ['RestartSec=5']
      : ['RestartSec=1', 'RestartSteps=6', 'RestartMaxDelaySec=60']),
    '# Wrong settings and wrong usage do not mend themselves.',
    'RestartPreventExitStatus=2',
    'TimeoutStartSec=90',
    'TimeoutStopSec=45',
    'WatchdogSec=60',
    '# What hangs is not asked for its last words.',
    'WatchdogSignal=SIGKILL',
    'LimitNOFILE=524288',
    'UMask=0077',
    ...(system ? systemLines(plan, credentials) : []),
    ...sandbox(plan),
    '',
    '[Install]',
    `WantedBy=${system ? 'multi-user.target' : 'default.target'}`,
    '',
  ].join('\n')
}

function systemLines(plan: ServicePlan, credentials: readonly string[]): string[] {
  const id = serviceId(plan)
  return [
    ...(plan.runAs === undefined ? ['DynamicUser=yes'] : [`User=${plan.runAs}`]),
    `StateDirectory=${id}`,
    'StateDirectoryMode=0700',
    'ConfigurationDirectory=sotto',
    'ConfigurationDirectoryMode=0755',
    `Environment=SOTTO_HOME=%S/${id}`,
    `# Keys and passwords: 0600, root's; it need not be there.`,
    `EnvironmentFile=-${environmentFile(plan)}`,
    ...credentials,
  ]
}

/** Files that the service's own user could not read. */
function lent(plan: ServicePlan): { credentials: string[]; flags: readonly string[] } {
  const credentials: string[] = []
  let { flags } = plan
  if (plan.runAs !== undefined) return { credentials, flags }
  for (const flag of CREDENTIALS) {
    const path = flagValue(flags, flag)
    if (path === undefined) continue
    credentials.push(`LoadCredential=${flag}:${path.replaceAll('%', '%%')}`)
    flags = withFlag(flags, flag, `%d/${flag}`)
  }
  return { credentials, flags }
}

/**
 * MemoryDenyWriteExecute stays off: JavaScript is compiled into memory and run there. ProcSubset=pid would
 * hide /proc/meminfo, by which the runtime sizes its heap.
 */
function sandbox(plan: ServicePlan): string[] {
  const lowPort = needsLowPort(plan)
  const shared = [
    'NoNewPrivileges=yes',
    'LockPersonality=yes',
    'RestrictRealtime=yes',
    'RestrictSUIDSGID=yes',
    'RestrictNamespaces=yes',
    'RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK',
    'SystemCallArchitectures=native',
    'SystemCallFilter=@system-service',
    'SystemCallFilter=~@privileged @resources',
    'SystemCallErrorNumber=EPERM',
  ]
  // A person's own manager may not build most of the walls.
  if (plan.kind === 'user') return shared
  const right = lowPort ? 'CAP_NET_BIND_SERVICE' : ''
  return [
    ...shared,
    `CapabilityBoundingSet=${right}`,
    `AmbientCapabilities=${right}`,
    // In a name space of users of its own the right to the port would not be the machine's.
    ...(lowPort ? [] : ['PrivateUsers=yes']),
    'ProtectSystem=strict',
    'ProtectHome=yes',
    'PrivateTmp=yes',
    'PrivateDevices=yes',
    'DevicePolicy=closed',
    'ProtectClock=yes',
    'ProtectHostname=yes',
    'ProtectKernelLogs=yes',
    'ProtectKernelModules=yes',
    'ProtectKernelTunables=yes',
    'ProtectControlGroups=yes',
    'ProtectProc=invisible',
    'RemoveIPC=yes',
  ]
}

/** systemd.service(5), "Command lines": quotes, and what systemd would put values for. */
export function quote(word: string, specifiers = false): string {
  let safe = word.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('$', '$$$$')
  // `%d` is ours where a credential is lent.
  safe = safe.replace(/%/g, '%%')
  if (specifiers) safe = safe.replace(/%%d\/(tls-cert|tls-key|client-ca)$/, '%d/$1')
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(safe) ? safe : `"${safe}"`
}
