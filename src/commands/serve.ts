import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import net from 'node:net'
import os from 'node:os'
import { Command } from 'commander'
import { UploadError } from '../errors.ts'
import { DEFAULT_LIMITS, MEMORY_MAX, MEMORY_TOTAL, PART_HEAD_MAX } from '../limits.ts'
import { createLogger, LOG_LEVELS, type LogFormat, type Logger, type LogLevel } from '../log.ts'
import { DEFAULT_HOST, DEFAULT_PORT } from '../protocol.ts'
import type { ServerOptions, UploadServer } from '../server/server.ts'
import { FILE_MODE, ON_CONFLICT, type OnConflict } from '../storage/storage.ts'
import type { Output } from '../terminal/output.ts'
import { formatSize } from '../units.ts'
import type { UploadHandler } from '../upload/handler.ts'
import {
  duration,
  fileMode,
  giver,
  type Host,
  integer,
  list,
  option,
  port,
  readEnvironment,
  size,
  sizeUpTo,
  text,
} from './options.ts'
import { type EndSignal, onEndSignals } from './signals.ts'

interface ServeOptions {
  host: string
  port: number
  dir: string
  tmp?: string
  onConflict: OnConflict
  mode: number
  fsync: boolean
  sha256: boolean
  memoryMax: number
  memoryTotal: number
  maxSize: number
  maxFields: number
  maxFieldBytes: number
  maxPartHead: number
  maxNameBytes: number
  maxFiles: number
  idleTimeout: number
  minRate: number
  maxUploads: number
  maxUploadsPerClient: number
  maxConnections: number
  maxConnectionsPerClient: number
  minFree: number
  quota: number
  allowType: string[]
  denyType: string[]
  allowExtension: string[]
  denyExtension: string[]
  headerTimeout: number
  keepAlive: number
  progressTtl: number
  progressMax: number
  handler: string[]
  token?: string
  title: 'optional' | 'required'
  allowEmpty: boolean
  welcome?: string
  publicName: string[]
  grace: number
  log: LogFormat
  logLevel: LogLevel
}

export function serveCommand(host: Host, out: Output): Command {
  return new Command('serve')
    .description('receive uploads and answer their progress')
    .addOption(option('--host <address>', 'address to listen on', text).default(DEFAULT_HOST))
    .addOption(option('--port <number>', 'port to listen on, 0 for any', port).default(DEFAULT_PORT))
    .addOption(option('--dir <path>', 'where stored files live', text).default('./uploads'))
    .addOption(option('--tmp <path>', 'where temporary files are made (default: inside --dir)', text))
    .addOption(option('--on-conflict <how>', 'when a name is taken').choices(ON_CONFLICT).default('rename'))
    .addOption(option('--mode <mode>', 'permissions of stored files', fileMode).default(FILE_MODE, '0644'))
    .addOption(option('--no-fsync', 'answer before what was stored is safe on disk'))
    .addOption(option('--no-sha256', 'compute no digests; clients cannot verify then'))
    .addOption(bytes('--memory-max <size>', 'largest request kept in memory', MEMORY_MAX))
    .addOption(bytes('--memory-total <size>', 'what all requests in memory may hold', MEMORY_TOTAL))
    .addOption(bytes('--max-size <size>', 'largest request', DEFAULT_LIMITS.body))
    .addOption(count('--max-files <number>', 'most files in a request', DEFAULT_LIMITS.files))
    .addOption(count('--max-fields <number>', 'most fields in a form', DEFAULT_LIMITS.fields))
    .addOption(bytes('--max-field-bytes <size>', 'largest fields together', DEFAULT_LIMITS.fieldBytes))
    .addOption(
      option('--max-part-head <size>', "largest head of a form's part", sizeUpTo(PART_HEAD_MAX)).default(
        DEFAULT_LIMITS.partHead,
        formatSize(DEFAULT_LIMITS.partHead),
      ),
    )
    .addOption(bytes('--max-name-bytes <size>', 'longest file name', DEFAULT_LIMITS.nameBytes))
    .addOption(count('--max-uploads <number>', 'most uploads at once', DEFAULT_LIMITS.uploads))
    .addOption(
      count('--max-uploads-per-client <number>', 'of them of one address', DEFAULT_LIMITS.uploadsPerClient),
    )
    .addOption(count('--max-connections <number>', 'most connections at once', DEFAULT_LIMITS.connections))
    .addOption(
      count(
        '--max-connections-per-client <number>',
        'of them from one address',
        DEFAULT_LIMITS.connectionsPerClient,
      ),
    )
    .addOption(bytes('--min-free <size>', 'disk space that stays free, 0 for none', DEFAULT_LIMITS.minFree))
    .addOption(
      option(
        '--quota <size>',
        'what stored files and their records may take together, 0 for any',
        size,
      ).default(0, 'any'),
    )
    .addOption(every('--allow-type <type>', 'media type to accept alone, such as image/*'))
    .addOption(every('--deny-type <type>', 'media type to refuse'))
    .addOption(every('--allow-extension <name>', 'file extension to accept alone'))
    .addOption(every('--deny-extension <name>', 'file extension to refuse'))
    .addOption(wait('--idle-timeout <time>', 'longest silence of an uploading client, 0 for any', '1m'))
    .addOption(bytes('--min-rate <size>', 'least an uploading client sends a second', DEFAULT_LIMITS.minRate))
    .addOption(wait('--header-timeout <time>', "longest time for a request's head", '20s'))
    .addOption(
      wait('--keep-alive <time>', 'how long a connection waits for its next request, 0 for none', '75s'),
    )
    .addOption(wait('--progress-ttl <time>', "how long an ended upload's progress is kept", '30s'))
    .addOption(option('--progress-max <number>', 'most progress records', integer(1, 1e7)).default(10_000))
    .addOption(every('--handler <module>', 'upload handler to add'))
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
    .addOption(option('--allow-empty', 'store empty files too').default(false, 'off'))
    .addOption(
      option(
        '--welcome <text>',
        'what the page says of where files go (default: a sentence of its own)',
        text,
      ),
    )
    .addOption(every('--public-name <host>', 'name that browsers may reach it by'))
    .addOption(wait('--grace <time>', 'how long running uploads may finish on the first signal', '30s'))
    .addOption(
      option('--log <format>', 'format of the log on stderr').choices(['text', 'json']).default('text'),
    )
    .addOption(
      option('--log-level <level>', 'least that is worth a line of the log')
        .choices(LOG_LEVELS)
        .default('info'),
    )
    .action(async (_, command: Command) => {
      readEnvironment(command, host.env)
      await serve(host, out, command.opts<ServeOptions>(), giver(command, 'handler'))
    })
}

function bytes(flags: string, description: string, value: number) {
  return option(flags, description, size).default(value, formatSize(value))
}

function count(flags: string, description: string, value: number) {
  return option(flags, description, integer(1, 1e7)).default(value)
}

function every(flags: string, description: string) {
  return option(flags, `${description}, repeatable`, list).default([], 'none')
}

function wait(flags: string, description: string, value: string) {
  return option(flags, description, duration).default(duration(value), value)
}

/** Resolves when the server has ended as the first signal asked. */
async function serve(host: Host, out: Output, options: ServeOptions, handlerGiver: string): Promise<void> {
  const log = createLogger({ stream: out.log, format: options.log, level: options.logLevel })
  // Loaded here, not above: `push` and `--help` start without the server.
  const [{ createServer }, { isLoopback }, { loadHandler }] = await Promise.all([
    import('../server/server.ts'),
    import('../server/access.ts'),
    import('../upload/plugin.ts'),
  ])
  const open = isLoopback(options.host)
  const token = options.token ?? (open ? undefined : randomBytes(18).toString('base64url'))
  const handlers: UploadHandler[] = []
  for (const module of options.handler) handlers.push(await loadHandler(module, handlerGiver))
  const settings = serverOptions(options, handlers, token, log)
  const { host: address, port } = options
  const doing = `cannot listen on ${address} port ${port}`
  await creating(doing, probe(address, port))
  const server = await creating(`cannot use ${options.dir}`, createServer(settings))
  // Before anybody is told that it listens, and may end it.
  const stopped = untilSignal(host, server, options.grace, log)
  const url = await creating(doing, server.listen({ host: address, port })).catch(async error => {
    await server.shutdown()
    throw error
  })
  const reached = reachable(url)
  out.result(reached)
  log.info('listening', { url, dir: options.dir })
  if (token !== undefined && options.token === undefined) {
    const command = `UPLOADR_TOKEN=${token} uploadr push FILE --url ${reached}`
    // Whatever is logged, this must be told.
    if (options.log === 'json')
      createLogger({ stream: out.log, format: 'json' }).info('push to it with', { command })
    else out.log.write(`push to it with:\n  ${command}\n`)
  }
  await stopped
}

function serverOptions(
  options: ServeOptions,
  handlers: readonly UploadHandler[],
  token: string | undefined,
  log: Logger,
): ServerOptions {
  const { dir, tmp, onConflict, mode, fsync, sha256, memoryMax, memoryTotal } = options
  const { headerTimeout, keepAlive, progressTtl, progressMax } = options
  return {
    ...{ dir, onConflict, mode, fsync, sha256, memoryMax, memoryTotal },
    ...{ headerTimeout, keepAlive, progressTtl, progressMax },
    ...(tmp !== undefined && { tmp }),
    ...(token !== undefined && { token }),
    handlers,
    limits: {
      body: options.maxSize,
      files: options.maxFiles,
      fields: options.maxFields,
      fieldBytes: options.maxFieldBytes,
      partHead: options.maxPartHead,
      nameBytes: options.maxNameBytes,
      idle: options.idleTimeout,
      minRate: options.minRate,
      uploads: options.maxUploads,
      uploadsPerClient: options.maxUploadsPerClient,
      connections: options.maxConnections,
      connectionsPerClient: options.maxConnectionsPerClient,
      minFree: options.minFree,
      quota: options.quota,
    },
    kinds: {
      allowTypes: options.allowType,
      denyTypes: options.denyType,
      allowExtensions: options.allowExtension,
      denyExtensions: options.denyExtension,
    },
    titleRequired: options.title === 'required',
    allowEmpty: options.allowEmpty,
    ...(options.welcome !== undefined && { welcome: options.welcome }),
    publicNames: options.publicName,
    log,
  }
}

/**
 * Listens for a moment. Without an address to serve at no folder is made, and nothing recovered; and
 * it cannot be kept until those are there, as clients would be let in to nobody.
 */
async function probe(host: string, port: number): Promise<void> {
  const server = net.createServer(socket => socket.destroy()).listen(port, host)
  await once(server, 'listening')
  server.close()
  await once(server, 'close')
}

/** What stands in the way of serving, as one error that says what was being done. */
async function creating<T>(doing: string, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (cause) {
    if (cause instanceof UploadError) throw cause
    throw new UploadError('cannot_serve', `${doing}: ${(cause as Error).message}`, { cause })
  }
}

/** The first signal drains, the second ends at once. */
function untilSignal(host: Host, server: UploadServer, grace: number, log: Logger): Promise<void> {
  return new Promise((resolve, reject) => {
    let draining = false
    const release = onEndSignals(host, (signal: EndSignal) => {
      if (draining) {
        server.terminate()
        log.info('stopped', { signal })
        // Of the signal itself: a status of 130 would not end a shell's loop.
        release()
        host.kill(host.pid, signal)
        return
      }
      draining = true
      log.info('stopping', { signal, grace })
      server.shutdown({ grace }).then(() => {
        log.info('stopped', { signal })
        resolve()
      }, reject)
    })
  })
}

/** A URL that other machines can be told, for one that means every address. */
function reachable(url: string): string {
  const { hostname, port } = new URL(url)
  if (hostname !== '0.0.0.0' && hostname !== '[::]') return url
  const addresses = Object.values(os.networkInterfaces()).flatMap(list => list ?? [])
  const outside = addresses.find(({ internal, family }) => !internal && family === 'IPv4')
  return `http://${outside?.address ?? os.hostname()}:${port}/`
}
