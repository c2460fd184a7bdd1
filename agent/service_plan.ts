/**
 * What a service is to be, before it is written down for one manager: which program with which words,
 * whose, and with which rights. No secret may be in it, since every user of a machine can read units.
 */
import { TunnelError } from '../core/errors.ts'

export const SERVICES = ['agent', 'relay'] as const
export type ServiceName = (typeof SERVICES)[number]
/** `system`: at boot, for the machine. `user`: of one person, from when they sign in. */
export type ServiceKind = 'system' | 'user'

/** Where a machine's services are configured. */
export const SYSTEM_CONFIG = '/etc/sotto'
/** Ports below need a right of their own on Linux. */
const FREE_PORT_MIN = 1024
const DOMAIN_WITHOUT = 'localhost'

export interface ServicePlan {
  name: ServiceName
  kind: ServiceKind
  /** What starts sotto, before its arguments. */
  program: readonly string[]
  /** Of the agent: the file of `sotto up`. */
  config: string
  /** Of the relay: its flags. */
  flags: readonly string[]
  /** Absent: a user of the service's own, where the manager can make one. */
  runAs: string | undefined
  /** Where a user's own service keeps its files; absent: as ever. */
  home?: string
}

/** `sotto`, `sotto-relay`. */
export function serviceId({ name }: Pick<ServicePlan, 'name'>): string {
  return name === 'agent' ? 'sotto' : 'sotto-relay'
}

/** Holds what must not be in a unit: `NAME=VALUE` a line. */
export function environmentFile({ name }: Pick<ServicePlan, 'name'>): string {
  return `${SYSTEM_CONFIG}/${name === 'agent' ? 'sotto' : 'relay'}.env`
}

/** The words after the program. */
export function argumentsOf({ name, config, flags }: ServicePlan): string[] {
  return name === 'agent' ? ['up', '--config', config] : ['relay', ...flags]
}

/** The value of a flag of the relay, as `--flag value` or `--flag=value`; the last one holds. */
export function flagValue(flags: readonly string[], flag: string): string | undefined {
  let found: string | undefined
  flags.forEach((word, i) => {
    if (word === `--${flag}`) found = flags[i + 1]
    else if (word.startsWith(`--${flag}=`)) found = word.slice(flag.length + 3)
  })
  return found
}

/** The same flags with another value for one of them. */
export function withFlag(flags: readonly string[], flag: string, value: string): string[] {
  return flags.map((word, i) =>
    word.startsWith(`--${flag}=`)
      ? `--${flag}=${value}`
      : i > 0 && flags[i - 1] === `--${flag}`
      ? value
      : word
  )
}

/** Whether the relay listens where not everybody may. */
export function needsLowPort({ name, flags }: ServicePlan): boolean {
  if (name !== 'relay') return false
  const domain = flagValue(flags, 'domain') ?? DOMAIN_WITHOUT
  const local = domain === 'localhost' || domain.endsWith('.localhost')
  const port = flagValue(flags, 'port')
  const ports = [
    port === undefined ? (local ? FREE_PORT_MIN : 443) : Number(port),
    Number(flagValue(flags, 'public-ports')?.split('-')[0] ?? FREE_PORT_MIN),
  ]
  return ports.some((one) => one > 0 && one < FREE_PORT_MIN)
}

/** Refuses what no manager can be told; throws `service/…`. */
export function checkPlan({ name, flags, program, config, runAs }: ServicePlan): void {
  const secret = flags.find((word) => /(^|=)(sk|ak|ft)_[A-Za-z0-9]/.test(word))
  if (secret !== undefined) {
    throw new TunnelError(
      'service/secret',
      'Cannot install the service: found a key among its flags, which every user could read',
      { hint: `Put it as NAME=VALUE into ${environmentFile({ name })}, mode 0600.` },
    )
  }
  for (const word of [...program, config, ...flags, runAs ?? '']) {
    // deno-lint-ignore no-control-regex
    if (/[\x00-\x1f\x7f]/.test(word)) {
      throw new TunnelError(
        'service/word',
        `Cannot install the service: found a control character in ${JSON.stringify(word)}`,
      )
    }
  }
  if (runAs !== undefined && !/^[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?$/.test(runAs)) {
    throw new TunnelError(
      'service/user',
      `Cannot run the service as ${JSON.stringify(runAs)}: expected the name of a user`,
    )
  }
}
