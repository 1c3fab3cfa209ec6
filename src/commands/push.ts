import { setFlagsFromString } from 'node:v8'
import { Command } from 'commander'
import { checkToken, parseAddress } from '../client/address.ts'
import {
  checkId,
  checkTitle,
  checkType,
  openSender,
  type PushResult,
  type Sender,
  StoredError,
} from '../client/push.ts'
import { openFile, openInput, type Source } from '../client/source.ts'
import { UploadError } from '../errors.ts'
import { DEFAULT_URL } from '../protocol.ts'
import { lateReporter } from '../terminal/late.ts'
import type { Output } from '../terminal/output.ts'
import { type Reporter, silentReporter } from '../terminal/reporter.ts'
import { formatDuration, formatSize, plural } from '../units.ts'
import { pathOf, textOf } from './argument-bytes.ts'
import { checked, duration, giver, type Host, option, readEnvironment, visible } from './options.ts'
import { type EndSignal, onEndSignals, onStop } from './signals.ts'

/** Failures of files that are stored, or may be. */
const STORED = new Set<string>(['digest_mismatch', 'answer_lost', 'changed', 'bad_answer'])

/** Of fewer bytes the rate is that of a round trip. */
const RATED_MIN = 64 * 1024

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
    .addOption(
      option(
        '--url <url>',
        'where the server is',
        checked(url => parseAddress(url, undefined)),
      ).default(DEFAULT_URL),
    )
    .addOption(
      option('--title <text>', "title of the upload (default: the file's name)", checked(checkTitle)),
    )
    .addOption(option('--name <name>', "name to send the file under (default: the file's)", visible))
    .addOption(
      option('--type <type>', 'media type to declare', checked(checkType)).default(
        'application/octet-stream',
      ),
    )
    .addOption(option('--id <id>', 'progress id (default: 128 random bits)', checked(checkId)))
    .addOption(option('--token <token>', 'what the server asks for', checked(checkToken)))
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
      for (const name of ['id', 'name']) {
        if (files.length > 1 && command.getOptionValue(name) !== undefined)
          throw new UploadError('usage', `${giver(command, name)} is for one file`)
      }
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
  const { url, title, type, token, interval, timeout } = options
  const sender = openSender({
    url,
    interval,
    timeout,
    ...(title !== undefined && { title }),
    ...(type !== undefined && { type }),
    ...(token !== undefined && { token }),
  })
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
    for (const argument of files) {
      const file = textOf(argument)
      try {
        const result = await pushOne(host, out, sender, pathOf(argument), options, stop.signal)
        stored++
        bytes += result.size
        if (options.json) out.result(JSON.stringify(jsonResult(file, result)))
        else await tell(out, textResult(result))
        if (options.progress === 'json') event(out, 'stored', jsonResult(file, result))
      } catch (thrown) {
        // Whatever a file failed of while push was told to stop: it stopped.
        const error = UploadError.from(stop.signal.aborted ? stop.signal.reason : thrown)
        failures.push(error)
        const failed = {
          ...(error instanceof StoredError && jsonResult(file, error.result)),
          ok: false,
          file,
          error,
        }
        if (options.json) out.result(JSON.stringify(failed))
        if (options.progress === 'json') event(out, 'failed', failed)
        if (stop.signal.aborted) throw error
        if (!several) throw error.code === 'invalid_form' ? about(file, error) : error
        if (options.progress !== 'json') out.message(`uploadr: ${about(file, error).message}`)
      }
    }
  } finally {
    release()
    await sender.close()
    const ms = performance.now() - began
    if (several && options.progress === 'json')
      event(out, 'summary', { files: files.length, stored, bytes, ms: Math.round(ms) })
    if (stored > 0 && several && !options.json) await tell(out, summary(files.length, stored, bytes, ms))
  }
  const [first] = failures
  if (!first) return
  const of =
    stored === 0
      ? `none of ${files.length} files was`
      : `${failures.length} of ${files.length} files were not`
  // What failed at the last may be stored all the same.
  const told = failures.some(({ code }) => STORED.has(code))
    ? `${failures.length} of ${files.length} files failed`
    : `${of} stored`
  // Where every one of several failed alike, the exit code says how.
  if (stored === 0 && failures.every(({ exitCode }) => exitCode === first.exitCode)) throw first.said(told)
  throw new UploadError('some_failed', told)
}

/** The failure by the file's name. What is wrong with a local file names it already; `file` is the form's field for it. */
function about(file: string, error: UploadError): UploadError {
  if (error.code === 'local_file') return error
  const words = error.code === 'invalid_form' ? error.message.replace(/^file: /, '') : error.message
  return error.said(`${file}: ${words}`)
}

async function pushOne(
  host: Host,
  out: Output,
  sender: Sender,
  path: string | Buffer,
  options: PushCommandOptions,
  signal: AbortSignal,
): Promise<PushResult> {
  const source = await openSource(host, path)
  const name = options.name ?? source.name
  const reporter = await makeReporter(host, out, name, options)
  const release = onStop(host, () => out.leave())
  try {
    const { id } = options
    return await sender.push({
      source,
      signal,
      ...(options.name !== undefined && { name }),
      ...(id !== undefined && { id }),
      onProgress: progress => reporter.update(progress),
    })
  } finally {
    release()
    reporter.stop()
  }
}

async function openSource(host: Host, path: string | Buffer): Promise<Source> {
  return path === '-' ? openInput(host) : openFile(path)
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

function textResult({ sentAs, name, why, size, ms, verified }: PushResult): string {
  const as = why === undefined ? name : `${sentAs} stored as ${name} (${why})`
  return `${as}: ${pace(size, ms)}, ${verified ? 'verified' : 'no'} sha-256`
}

function summary(files: number, stored: number, bytes: number, ms: number): string {
  const of = stored === files ? plural(files, 'file') : `${stored} of ${files} files`
  return `${of} stored: ${pace(bytes, ms)}`
}

function pace(size: number, ms: number): string {
  const rate = size < RATED_MIN ? '' : `, ${formatSize((size / Math.max(ms, 1)) * 1000)}/s`
  return `${formatSize(size)} in ${formatDuration(ms)}${rate}`
}

/** A result for people: one line, or on a terminal too narrow for it as many as it takes. */
async function tell(out: Output, text: string): Promise<void> {
  const columns = out.resultColumns
  if (columns === undefined) return out.result(text)
  const shown = out.shown(text)
  // No letter is wider than two columns; the measure is loaded where it is needed.
  if (shown.length * 2 <= columns) return out.result(shown)
  const { wrapToWidth } = await import('../terminal/layout.ts')
  for (const line of wrapToWidth(shown, columns)) out.result(line)
}

/** A file that was stored, as `--json` prints it. */
function jsonResult(file: string, { ms, receipt, ...result }: PushResult): object {
  return { ok: true, file, ...result, ms: Math.round(ms), receipt }
}
