/**
 * A task for the Task Scheduler of Windows, which starts a plain program at boot or at sign-in and starts
 * it again: a Windows service proper would have to speak with the Service Control Manager. It has
 * been read by a parser, not yet run by Windows.
 */
import { xml } from './service_launchd.ts'
import { argumentsOf } from './service_plan.ts'
import type { ServicePlan } from './service_plan.ts'

/** S-1-5-19, the account with the fewest rights that may use the network. */
const LOCAL_SERVICE = 'S-1-5-19'
const RESTARTS = 999

/** The task's definition; `user` is whose sign-in starts a user's own. */
export function windowsTask(plan: ServicePlan, user: string): string {
  const [command, ...before] = plan.program
  const words = [...before, ...argumentsOf(plan)].map(windowsWord).join(' ')
  const system = plan.kind === 'system'
  const account = plan.runAs ?? (system ? LOCAL_SERVICE : user)
  return `<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>sotto ${plan.name}</Description>
  </RegistrationInfo>
  <Triggers>
${
    system
      ? '    <BootTrigger />'
      : `    <LogonTrigger>\n      <UserId>${xml(account)}</UserId>\n    </LogonTrigger>`
  }
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>${xml(account)}</UserId>
${system ? '' : '      <LogonType>InteractiveToken</LogonType>\n'}\
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>${RESTARTS}</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>${xml(command!)}</Command>
      <Arguments>${xml(words)}</Arguments>
    </Exec>
  </Actions>
</Task>
`
}

/** One word of a command line, as CommandLineToArgvW reads it. */
export function windowsWord(word: string): string {
  if (word !== '' && !/[\s"]/.test(word)) return word
  // Backslashes count only before a quote.
  return `"${word.replace(/(\\*)"/g, '$1$1\\"').replace(/(\\+)$/, '$1$1')}"`
}

/** As the Task Scheduler wants its files: UTF-16, the low byte first, after a byte order mark. */
export function utf16(text: string): Uint8Array {
  const bytes = new Uint8Array(2 + 2 * text.length)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, 0xfeff, true)
  for (let i = 0; i < text.length; i++) view.setUint16(2 + 2 * i, text.charCodeAt(i), true)
  return bytes
}
