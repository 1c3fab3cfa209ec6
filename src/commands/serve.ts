import { randomBytes } from 'node:crypto'
import os from 'node:os'
import { Command } from 'commander'
import { UploadError } from '../errors.ts'
import { createLogger, type LogFormat } from '../log.ts'
import { DEFAULT_HOST, DEFAULT_PORT } from '../protocol.ts'
import { isLoopback } from '../server/access.ts'
import { createServer, type UploadServer } from '../server/server.ts'
import { ON_CONFLICT, type OnConflict } from '../storage/local.ts'
import { formatSize } from '../units.ts'
import { MEMORY_MAX, MEMORY_TOTAL } from '../upload/memory.ts'
import { loadHandler } from '../upload/plugin.ts'
import { DEFAULT_LIMITS } from '../upload/receiver.ts'
import { duration, type Host, integer, list, option, readFlags, size, text } from './options.ts'

interface ServeOptions {
  host: string
  port: number
  dir: string
  tmp?: string
  onConflict: OnConflict
  fsync: boolean
  sha256: boolean
  memoryMax: number
  memoryTotal: number
  maxSize: number
  maxFields: number
  maxFieldBytes: number
  maxFiles: number
  idleTimeout: number
  headerTimeout: number
  progressTtl: number
  progressMax: number
  handler: string[]
  token?: string
  title: 'optional' | 'required'
  publicName: string[]
  grace: number
  log: LogFormat
}

export function serveCommand(host: Host): Command {
  return new Command('serve')
    .description('receive uploads and answer their progress')
    .addOption(option('--host <address>', 'address to listen on', text).default(DEFAULT_HOST))
    .addOption(
      option('--port <number>', 'port to listen on, 0 for any', integer(0, 65535)).default(DEFAULT_PORT),
    )
    .addOption(option('--dir <path>', 'where stored files live', text).default('./uploads'))
    .addOption(option('--tmp <path>', 'where temporary files are made (default: inside --dir)', text))
    .addOption(option('--on-conflict <how>', 'when a name is taken').choices(ON_CONFLICT).default('rename'))
    .addOption(option('--no-fsync', 'answer before what was stored is safe on disk'))
    .addOption(option('--no-sha256', 'compute no digests; clients cannot verify then'))
    .addOption(bytes('--memory-max <size>', 'largest request kept in memory', MEMORY_MAX))
    .addOption(bytes('--memory-total <size>', 'what all requests in memory may hold', MEMORY_TOTAL))
    .addOption(bytes('--max-size <size>', 'largest request', DEFAULT_LIMITS.body))
    .addOption(
      option('--max-files <number>', 'most files in a request', integer(1, 1e6)).default(
        DEFAULT_LIMITS.files,
      ),
    )
    .addOption(
      option('--max-fields <number>', 'most fields in a form', integer(1, 1e6)).default(
        DEFAULT_LIMITS.fields,
      ),
    )
    .addOption(bytes('--max-field-bytes <size>', 'largest fields together', DEFAULT_LIMITS.fieldBytes))
    .addOption(wait('--idle-timeout <time>', 'longest silence of an uploading client, 0 for any', '1m'))
    .addOption(wait('--header-timeout <time>', "longest time for a request's head", '20s'))
    .addOption(wait('--progress-ttl <time>', "how long an ended upload's progress is kept", '30s'))
    .addOption(option('--progress-max <number>', 'most progress records', integer(1, 1e7)).default(10_000))
    .addOption(option('--handler <module>', 'upload handler to add, repeatable', list).default([], 'none'))
    .addOption(
      option('--token <token>', 'what every request must carry (default: made where not loopback)', text),
    )
    .addOption(
      option('--title <when>', 'whether the form needs a title')
        .choices(['required', 'optional'])
        .default('required')
        // UPLOADR_TITLE is the title that push sends.
        .env('UPLOADR_SERVE_TITLE'),
    )
    .addOption(
      option('--public-name <host>', 'name that browsers may reach it by, repeatable', list).default(
        [],
        'none',
      ),
    )
    .addOption(wait('--grace <time>', 'how long running uploads may finish on the first signal', '30s'))
    .addOption(
      option('--log <format>', 'format of the log on stderr').choices(['text', 'json']).default('text'),
    )
    .action(async (_, command: Command) => {
      readFlags(command, host.env)
      await serve(host, command.opts<ServeOptions>())
    })
}

function bytes(flags: string, description: string, value: number) {
  return option(flags, description, size).default(value, formatSize(value))
}

function wait(flags: string, description: string, value: string) {
  return option(flags, description, duration).default(duration(value), value)
}

/** Resolves when the server has ended as the first signal asked. */
async function serve(host: Host, options: ServeOptions): Promise<void> {
  // A log whose reader is gone is no reason to stop receiving.
  for (const stream of [host.stdout, host.stderr]) stream.on('error', () => {})
  const log = createLogger({ stream: host.stderr, format: options.log })
  const open = isLoopback(options.host)
  const token = options.token ?? (open ? undefined : randomBytes(18).toString('base64url'))
  const handlers = []
  for (const module of options.handler) handlers.push(await loadHandler(module))
  const server = await start(options, handlers, token, log)
  host.stdout.write(`${server.url}\n`)
  log.info('listening', { url: server.url, dir: options.dir })
  if (token !== undefined && options.token === undefined) {
    const { port } = new URL(server.url)
    host.stderr.write(
      `push to it with:\n  UPLOADR_TOKEN=${token} uploadr push FILE --url http://${reachable(options.host)}:${port}/\n`,
    )
  }
  await untilSignal(host, server.server, options.grace, log)
}

async function start(
  options: ServeOptions,
  handlers: Awaited<ReturnType<typeof loadHandler>>[],
  token: string | undefined,
  log: ReturnType<typeof createLogger>,
): Promise<{ server: UploadServer; url: string }> {
  let doing = `cannot use ${options.dir}`
  try {
    const server = await createServer({
      dir: options.dir,
      ...(options.tmp !== undefined && { tmp: options.tmp }),
      onConflict: options.onConflict,
      fsync: options.fsync,
      sha256: options.sha256,
      memoryMax: options.memoryMax,
      memoryTotal: options.memoryTotal,
      handlers,
      limits: {
        body: options.maxSize,
        fields: options.maxFields,
        fieldBytes: options.maxFieldBytes,
        files: options.maxFiles,
        idle: options.idleTimeout,
      },
      headerTimeout: options.headerTimeout,
      progressTtl: options.progressTtl,
      progressMax: options.progressMax,
      titleRequired: options.title === 'required',
      // Beside what was asked for, the names that this machine goes by in its own network.
      publicNames: [...options.publicName, os.hostname(), `${os.hostname()}.local`],
      ...(token !== undefined && { token }),
      log,
    })
    doing = `cannot listen on ${options.host} port ${options.port}`
    const url = await server.listen({ host: options.host, port: options.port }).catch(async error => {
      await server.shutdown()
      throw error
    })
    return { server, url }
  } catch (cause) {
    if (cause instanceof UploadError) throw cause
    throw new UploadError('cannot_serve', `${doing}: ${(cause as Error).message}`, { cause })
  }
}

/** The first signal drains, the second ends at once. */
function untilSignal(
  host: Host,
  server: UploadServer,
  grace: number,
  log: ReturnType<typeof createLogger>,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let draining = false
    const onSignal = (signal: 'SIGINT' | 'SIGTERM') => {
      if (draining) {
        server.terminate()
        return host.exit(signal === 'SIGINT' ? 130 : 143)
      }
      draining = true
      log.info('stopping', { signal, grace })
      server.shutdown({ grace }).then(resolve, reject)
    }
    host.on('SIGINT', onSignal)
    host.on('SIGTERM', onSignal)
  })
}

/** A host that other machines can be told, for one that means every address. */
function reachable(host: string): string {
  if (host !== '0.0.0.0' && host !== '::') return host.includes(':') ? `[${host}]` : host
  const addresses = Object.values(os.networkInterfaces()).flatMap(list => list ?? [])
  return addresses.find(({ internal, family }) => !internal && family === 'IPv4')?.address ?? os.hostname()
}
