/** The code with which a promise is refused; anything but a TunnelError is thrown on. */
import { TunnelError } from '../../core/errors.ts'

/** Undefined when it resolves. */
export async function rejection(promise: Promise<unknown>): Promise<string | undefined> {
  try {
    await promise
  } catch (error) {
    if (error instanceof TunnelError) return error.code
    throw error
  }
  return undefined
}

/** The code of the TunnelError that `run` throws; undefined when it throws none. */
export function thrown(run: () => unknown): string | undefined {
  try {
    run()
  } catch (error) {
    if (error instanceof TunnelError) return error.code
    throw error
  }
  return undefined
}
