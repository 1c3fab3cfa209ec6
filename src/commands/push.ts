import { extname } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { Command } from 'commander'
import { type PushResult, push } from '../client/push.ts'
import { openFile, type Source, streamSource } from '../client/source.ts'
import { UploadError } from '../errors.ts'
import { DEFAULT_URL, isProgressId } from '../protocol.ts'
import { lateReporter } from '../terminal/late.ts'
import type { Output } from '../terminal/output.ts'
import { type Reporter, silentReporter } from '../terminal/reporter.ts'
import { formatDuration, formatSize, plural } from '../units.ts'
import { duration, type Host, option, readEnvironment, text } from './options.ts'
import { type EndSignal, onEndSignals, onStop } from './signals.ts'

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

export function pushCommand(host: Host, out: Output): Command {
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
      readEnvironment(command, host.env)
      await pushAll(host, out, files, command.opts<PushCommandOptions>())
    })
}

const ENDED = { SIGINT: 'interrupted', SIGTERM: 'terminated', SIGHUP: 'hung_up' } as const

async function pushAll(
  host: Host,
  out: Output,
  files: readonly string[],
  options: PushCommandOptions,
): Promise<void> {
  checkUsage(files, options)
  const stop = new AbortController()
  const release = onEndSignals(host, (signal: EndSignal) => {
    const code = ENDED[signal]
    stop.abort(new UploadError(code, code.replace('_', ' ')))
  })
  const several = files.length > 1
  const began = performance.now()
  const failures: UploadError[] = []
  let stored = 0
  let bytes = 0
  try {
    for (const file of files) {
      try {
        const { sent, result } = await pushOne(host, out, file, options, stop.signal)
        stored++
        bytes += result.size
        if (options.json) out.result(JSON.stringify(jsonResult(file, result)))
        else out.result(textResult(sent, result))
        if (options.progress === 'json') event(out, 'stored', jsonResult(file, result))
      } catch (thrown) {
        const error = UploadError.from(thrown)
        failures.push(error)
        if (options.json) out.result(JSON.stringify({ ok: false, file, error }))
        if (options.progress === 'json') event(out, 'failed', { ok: false, file, error })
        if (stop.signal.aborted) throw error
        if (!several) throw error.code === 'invalid_form' ? about(file, error) : error
        if (options.progress !== 'json') out.message(`uploadr: ${about(file, error).message}`)
      }
    }
  } finally {
    release()
    const ms = performance.now() - began
    if (several && options.progress === 'json')
      event(out, 'summary', { files: files.length, stored, bytes, ms: Math.round(ms) })
    if (stored > 0 && several && !options.json) out.result(summary(files.length, stored, bytes, ms))
  }
  const [first] = failures
  if (!first) return
  // Where every one of several failed alike, the exit code says how.
  if (stored === 0 && failures.every(({ exitCode }) => exitCode === first.exitCode))
    throw first.said(`none of ${files.length} files was stored`)
  throw new UploadError('some_failed', `${failures.length} of ${files.length} files were not stored`)
}

/** The failure by the file's name. What is wrong with a local file names it already. */
function about(file: string, error: UploadError): UploadError {
  return error.code === 'local_file' ? error : error.said(`${file}: ${error.message}`)
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

/** What came of one file, and the name it was sent under. */
async function pushOne(
  host: Host,
  out: Output,
  file: string,
  options: PushCommandOptions,
  signal: AbortSignal,
): Promise<{ sent: string; result: PushResult }> {
  const source = await openSource(host, file)
  const name = options.name ?? source.name
  const reporter = await makeReporter(host, out, name, options)
  const release = onStop(host, () => out.erase())
  try {
    const { url, title, type, id, token, interval, timeout } = options
    const result = await push({
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
    return { sent: name, result }
  } finally {
    release()
    reporter.stop()
  }
}

async function openSource(host: Host, file: string): Promise<Source> {
  return file === '-' ? streamSource(host.stdin, 'stdin') : openFile(file)
}

async function makeReporter(
  host: Host,
  out: Output,
  name: string,
  options: PushCommandOptions,
): Promise<Reporter> {
  const { env } = host
  const capable = out.isTerminal && env['TERM'] !== 'dumb' && !env['CI']
  const how = options.progress === 'auto' ? (capable ? 'bar' : 'lines') : options.progress
  if (how === 'none') return silentReporter
  const reporterOptions = { out, name, host: hostOf(options.url) }
  if (how === 'bar' && out.isTerminal) {
    const load = async () => (await import('../terminal/bar.ts')).barReporter(reporterOptions)
    return lateReporter(load, BAR_DELAY_MS)
  }
  const { lineReporter, jsonReporter } = await import('../terminal/lines.ts')
  return how === 'json' ? jsonReporter(reporterOptions) : lineReporter(reporterOptions)
}

function hostOf(url: string): string {
  return URL.canParse(url) ? new URL(url).host : url
}

function event(out: Output, name: 'stored' | 'failed' | 'summary', fields: object): void {
  out.message(JSON.stringify({ event: name, ...fields }))
}

function textResult(sent: string, { name, size, ms, verified }: PushResult): string {
  const as = name === sent ? sent : `${sent} stored as ${name} (${whyRenamed(sent, name)})`
  return `${as}: ${pace(size, ms)}, ${verified ? 'verified' : 'no'} sha-256`
}

function summary(files: number, stored: number, bytes: number, ms: number): string {
  const of = stored === files ? plural(files, 'file') : `${stored} of ${files} files`
  return `${of} stored: ${pace(bytes, ms)}`
}

function pace(size: number, ms: number): string {
  return `${formatSize(size)} in ${formatDuration(ms)}, ${formatSize((size / Math.max(ms, 1)) * 1000)}/s`
}

/** A name that was taken has seven letters more, before its extension; a name that is too long has lost the end of its stem. */
function whyRenamed(sent: string, stored: string): string {
  const free = stored.replace(/_[A-Za-z0-9]{7}(?=(?:\.[^.]*)?$)/, '')
  const stem = free.slice(0, free.length - extname(free).length)
  const taken = free !== stored && sent.startsWith(stem)
  const name = taken ? free : stored
  if (name === sent) return 'name taken'
  const shortened = sent.startsWith(stem) && sent.endsWith(extname(free)) && sent.length > name.length
  const why = `name ${shortened ? 'shortened' : 'cleaned'}`
  return taken ? `${why}, and taken` : why
}

/** A file that was stored, as `--json` prints it. */
function jsonResult(
  file: string,
  { receipt, size, sha256, verified, ms, name, id, title }: PushResult,
): object {
  return { ok: true, file, id, title, name, size, sha256, verified, ms: Math.round(ms), receipt }
}
