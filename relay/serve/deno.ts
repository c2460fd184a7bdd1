// The relay on self-hosted Deno: the Node adapter, whose sockets can pause and say what is buffered.
// `deno task relay`.
import { startRelay } from './node.ts'
import { runProgram } from './program.ts'

/** The one thing asked of Deno's own API. */
declare const Deno: { readonly version: { readonly deno: string } }

await runProgram((settings) => startRelay(settings, { runtime: `deno ${Deno.version.deno}` }))
