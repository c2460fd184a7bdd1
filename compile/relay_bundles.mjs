/**
 * The relay as one file for each place where it runs, made by esbuild. Plain JavaScript, since
 * compile/worker.mjs runs on Node as well.
 */
import { build } from 'esbuild'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('..', import.meta.url))
/** Which behaviours of the platform the relay is written for. */
export const COMPATIBILITY_DATE = '2026-11-01'
export const FLAGS = [
  'no_web_socket_compression',
  'enable_request_signal',
  'request_signal_passthrough',
]
/** Durable Objects: binding and class. */
export const OBJECTS = [['HUBS', 'HubObject'], ['DIRECTORY', 'DirectoryObject']]

/** CommonJS packages ask for `require`, which a module has not. */
const REQUIRE =
  "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);"
const NODE = {
  platform: 'node',
  target: 'node22',
  // Optional: without its native code `ws` unmasks in JavaScript.
  external: ['bufferutil', 'utf-8-validate'],
  banner: { js: REQUIRE },
}

/** File name by place, with what esbuild is told. */
export const PLACES = {
  worker: {
    entry: 'worker.ts',
    file: 'worker.js',
    target: 'es2022',
    conditions: ['workerd', 'worker', 'browser'],
    external: ['cloudflare:*', 'node:*'],
  },
  node: { entry: 'node_main.ts', file: 'node.mjs', ...NODE },
  deno: { entry: 'deno.ts', file: 'deno.mjs', ...NODE },
  deno_deploy: {
    entry: 'deno_deploy.ts',
    file: 'deno_deploy.js',
    target: 'es2022',
    conditions: ['deno', 'worker', 'browser'],
    external: ['node:*'],
  },
}

/** Bundles the relay for one place into `folder`; the path, and esbuild's metafile. */
export async function bundleRelay(place, folder) {
  const { entry, file, ...options } = PLACES[place]
  const outfile = join(folder, file)
  mkdirSync(dirname(outfile), { recursive: true })
  const { metafile } = await build({
    ...options,
    entryPoints: [join(ROOT, 'relay', 'serve', entry)],
    outfile,
    bundle: true,
    format: 'esm',
    minify: true,
    keepNames: true,
    metafile: true,
    // Paths in it are those of the sources' folder, wherever the command was given.
    absWorkingDir: ROOT,
    legalComments: 'none',
    logLevel: 'warning',
  })
  return { path: outfile, metafile }
}

/** What Cloudflare is told, for a deployment of worker.js beside it. */
export function writeWranglerConfig(path) {
  const config = {
    name: 'sotto-relay',
    main: 'worker.js',
    no_bundle: true,
    compatibility_date: COMPATIBILITY_DATE,
    compatibility_flags: FLAGS,
    durable_objects: {
      bindings: OBJECTS.map(([name, of]) => ({ name, class_name: of })),
    },
    migrations: [{ tag: 'v1', new_sqlite_classes: OBJECTS.map(([, of]) => of) }],
    vars: { SOTTO_RELAY_SCHEME: 'https', SOTTO_RELAY_ADDRESS_HEADER: 'cf-connecting-ip' },
  }
  writeFileSync(path, `${JSON.stringify(config, null, 2)}\n`)
}
