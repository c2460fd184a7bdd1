/** A property list for launchd, launchd.plist(5). It has been read by a parser, not yet run by a Mac. */
import { argumentsOf, serviceId } from './service_plan.ts'
import type { ServicePlan } from './service_plan.ts'

/** launchd starts it again no sooner. */
const THROTTLE_SECONDS = 10

export function launchdLabel(plan: Pick<ServicePlan, 'name'>): string {
  return serviceId(plan).replace('-', '.')
}

/** Where its output goes. */
export function launchdLog(plan: ServicePlan, home: string): string {
  const folder = plan.kind === 'system' ? '/Library/Logs' : `${home}/Library/Logs`
  return `${folder}/${serviceId(plan)}.log`
}

export function launchdPath(plan: ServicePlan, home: string): string {
  const folder = plan.kind === 'system' ? '/Library/LaunchDaemons' : `${home}/Library/LaunchAgents`
  return `${folder}/${launchdLabel(plan)}.plist`
}

export function launchdPlist(plan: ServicePlan, home: string): string {
  const log = launchdLog(plan, home)
  const words = [...plan.program, ...argumentsOf(plan)]
  return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>${xml(launchdLabel(plan))}</string>
  <key>ProgramArguments</key>
  <array>
${words.map((word) => `    <string>${xml(word)}</string>`).join('\n')}
  </array>
${plan.runAs === undefined ? '' : `  <key>UserName</key>\n  <string>${xml(plan.runAs)}</string>\n`}\
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <true/>
  <key>ThrottleInterval</key>
  <integer>${THROTTLE_SECONDS}</integer>
  <key>ProcessType</key>
  <string>Background</string>
  <key>Umask</key>
  <integer>63</integer>
  <key>SoftResourceLimits</key>
  <dict>
    <key>NumberOfFiles</key>
    <integer>65536</integer>
  </dict>
  <key>StandardOutPath</key>
  <string>${xml(log)}</string>
  <key>StandardErrorPath</key>
  <string>${xml(log)}</string>
</dict>
</plist>
`
}

/** Text of an element. */
export function xml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
}
