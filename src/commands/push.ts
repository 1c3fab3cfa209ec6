import { setFlagsFromString } from 'node:v8'
import { Command } from 'commander'
import { type PushResult, push } from '../client/push.ts'
import { openFile, type Source, streamSource } from '../client/source.ts'
import { UploadError } from '../errors.ts'
import { printable } from '../log.ts'
import { DEFAULT_URL, isProgressId } from '../protocol.ts'
import { lateReporter } from '../terminal/late.ts'
import { type Reporter, silentReporter } from '../terminal/reporter.ts'
import { formatDuration, formatSize } from '../units.ts'
import { duration, type Host, option, readFlags, text } from './options.ts'

/** A push that is done by then shows no bar. */
const BAR_DELAY_MS = 50

interface PushCommandOptions {
  url: string
  title?: string
  name?: string
  type?: string
  id?: string
  token?: string
  json: boolean
  progress: 'auto' | 'bar' | 'lines' | 'json' | 'none'
  interval: number
  timeout: number
}

export function pushCommand(host: Host): Command {
  return new Command('push')
    .description('send files, with a bar that shows what the server has received')
    .argument('<file...>', 'what to send; - is standard input')
    .addOption(option('--url <url>', 'where the server is', text).default(DEFAULT_URL))
    .addOption(option('--title <text>', "title of the upload (default: the file's name)", text))
    .addOption(option('--name <name>', "name to send the file under (default: the file's)", text))
    .addOption(option('--type <type>', 'media type to declare', text).default('application/octet-stream'))
    .addOption(option('--id <id>', 'progress id (default: 128 random bits)', text))
    .addOption(option('--token <token>', 'what the server asks for', text))
    .addOption(option('--json', 'print the result as JSON').default(false, 'off'))
    .addOption(
      option('--progress <how>', 'how to show progress on stderr')
        .choices(['auto', 'bar', 'lines', 'json', 'none'])
        .default('auto'),
    )
    .addOption(option('--interval <time>', 'pause between polls', duration).default(100, '100ms'))
    .addOption(
      option('--timeout <time>', 'longest silence of the server, 0 for any', duration).default(60_000, '1m'),
    )
    .action(async (files: string[], _, command: Command) => {
      // node ends only when V8 has optimised undici's WebAssembly, a parser of a few answers: 150 ms for nothing.
      setFlagsFromString('--liftoff-only')
      readFlags(command, host.env)
      await pushAll(host, files, command.opts<PushCommandOptions>())
    })
}

async function pushAll(host: Host, files: readonly string[], options: PushCommandOptions): Promise<void> {
  checkUsage(files, options)
  const stop = new AbortController()
  const interrupted = () => stop.abort(new UploadError('interrupted', 'interrupted'))
  const terminated = () => stop.abort(new UploadError('terminated', 'terminated'))
  host.on('SIGINT', interrupted)
  host.on('SIGTERM', terminated)
  host.on('SIGHUP', terminated)
  const failures: UploadError[] = []
  try {
    for (const file of files) {
      try {
        const result = await pushOne(host, file, options, stop.signal)
        host.stdout.write(options.json ? `${jsonResult(file, result)}\n` : `${textResult(result)}\n`)
      } catch (thrown) {
        const error = UploadError.from(thrown)
        failures.push(error)
        if (options.json) host.stdout.write(`${jsonFailure(file, error)}\n`)
        if (stop.signal.aborted) throw error
        if (files.length === 1) throw naming(file, error)
        // What is wrong with a local file names it already.
        const about = error.code === 'local_file' ? '' : `${printable(file)}: `
        host.stderr.write(`uploadr: ${about}${printable(error.message)}\n`)
      }
    }
  } finally {
    host.off('SIGINT', interrupted)
    host.off('SIGTERM', terminated)
    host.off('SIGHUP', terminated)
  }
  const [first] = failures
  if (!first) return
  // Where every one of several failed alike, the exit code says how.
  if (failures.length === files.length && failures.every(({ exitCode }) => exitCode === first.exitCode))
    throw first
  throw new UploadError('some_failed', `${failures.length} of ${files.length} files were not stored`)
}

/** What a server says of a form names fields, and no file. */
function naming(file: string, error: UploadError): UploadError {
  if (error.code !== 'invalid_form') return error
  return new UploadError('invalid_form', `${file}: ${error.message}`, { cause: error })
}

function checkUsage(files: readonly string[], options: PushCommandOptions): void {
  if (options.id !== undefined && !isProgressId(options.id)) {
    throw new UploadError(
      'usage',
      `--id ${options.id}: a progress id is 1 to 128 of the characters A-Z a-z 0-9 . _ ~ -`,
    )
  }
  if (options.type !== undefined && !/^[\w.+-]+\/[\w.+-]+$/.test(options.type)) {
    throw new UploadError('usage', `--type ${options.type} is not a media type such as text/plain`)
  }
  if (files.length > 1 && (options.id !== undefined || options.name !== undefined)) {
    throw new UploadError('usage', '--id and --name are for one file')
  }
}

async function pushOne(
  host: Host,
  file: string,
  options: PushCommandOptions,
  signal: AbortSignal,
): Promise<PushResult> {
  const source = await openSource(host, file)
  const name = options.name ?? source.name
  const reporter = await makeReporter(host, name, options)
  try {
    const { url, title, type, id, token, interval, timeout } = options
    return await push({
      source,
      url,
      name,
      interval,
      timeout,
      signal,
      ...(title !== undefined && { title }),
      ...(type !== undefined && { type }),
      ...(id !== undefined && { id }),
      ...(token !== undefined && { token }),
      onProgress: progress => reporter.update(progress),
    })
  } finally {
    reporter.stop()
  }
}

async function openSource(host: Host, file: string): Promise<Source> {
  return file === '-' ? streamSource(host.stdin, 'stdin') : openFile(file)
}

async function makeReporter(host: Host, name: string, options: PushCommandOptions): Promise<Reporter> {
  const { stderr, env } = host
  const capable = stderr.isTTY === true && env['TERM'] !== 'dumb' && !env['CI']
  const how = options.progress === 'auto' ? (capable ? 'bar' : 'lines') : options.progress
  if (how === 'none') return silentReporter
  // https://no-color.org: present and not empty.
  const reporterOptions = { stream: stderr, name, host: hostOf(options.url), color: !env['NO_COLOR'] }
  if (how === 'bar' && stderr.isTTY) {
    const load = async () => (await import('../terminal/bar.ts')).barReporter(reporterOptions)
    return lateReporter(load, BAR_DELAY_MS)
  }
  const { lineReporter, jsonReporter } = await import('../terminal/lines.ts')
  return how === 'json' ? jsonReporter(reporterOptions) : lineReporter(reporterOptions)
}

function hostOf(url: string): string {
  return URL.canParse(url) ? new URL(url).host : url
}

function textResult({ name, size, ms, verified }: PushResult): string {
  const rate = `${formatSize((size / Math.max(ms, 1)) * 1000)}/s`
  return `${printable(name)}: ${formatSize(size)} in ${formatDuration(ms)}, ${rate}, ${verified ? 'verified' : 'no'} sha-256`
}

function jsonResult(
  file: string,
  { receipt, size, sha256, verified, ms, name, id, title }: PushResult,
): string {
  return JSON.stringify({
    ok: true,
    file,
    id,
    title,
    name,
    size,
    sha256,
    verified,
    ms: Math.round(ms),
    receipt,
  })
}

function jsonFailure(file: string, { code, status, message, exitCode, errors }: UploadError): string {
  return JSON.stringify({
    ok: false,
    file,
    error: { code, status: status || undefined, message, exitCode, errors },
  })
}
