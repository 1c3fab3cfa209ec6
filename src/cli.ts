import { readFileSync } from 'node:fs'
import { Command, CommanderError, Help } from 'commander'
import { exactArguments } from './commands/argument-bytes.ts'
import type { Host } from './commands/options.ts'
import { pushCommand } from './commands/push.ts'
import { serveCommand } from './commands/serve.ts'
import { UploadError } from './errors.ts'
import { createLogger } from './log.ts'
import { Output, type OutputStream } from './terminal/output.ts'

/** Exit codes above it are those of a process that died of a signal: 128 and the signal's number. */
const SIGNALLED = 128
/** Columns that the text beside an option must have; with fewer it stands below. */
const HELP_TEXT_MIN = 30

/** The whole command line as commander knows it: `docs.test.ts` reads the options from it. */
export function createProgram(host: Host, out: Output): Command {
  const program = new Command('uploadr')
  program
    .description(
      'Receive uploads and send them, with a bar that shows what the server has received and stored.\n\n' +
        'Every option has a variable too: --max-size is UPLOADR_MAX_SIZE.',
    )
    .version(version(), '-V, --version', 'print the version')
    .helpCommand('help [command]', 'print the usage of a command')
  for (const command of [serveCommand(host, out), pushCommand(host, out)]) program.addCommand(command)
  for (const command of [program, ...program.commands]) {
    command
      .exitOverride()
      .configureHelp({ minWidthToWrap: 1, formatItem })
      .configureOutput({
        writeOut: out.page.write,
        writeErr: out.log.write,
        // Usage errors are told below, as every error is.
        outputError: () => {},
      })
  }
  return program
}

/** Commander's own, but for terminals too narrow to have the text beside the option: there it runs on past the edge. */
function formatItem(term: string, termWidth: number, description: string, helper: Help): string {
  const width = helper.helpWidth ?? 80
  if (width - termWidth - 4 >= HELP_TEXT_MIN)
    return Help.prototype.formatItem.call(helper, term, termWidth, description, helper)
  return `  ${term}\n${helper.boxWrap(description, width - 6).replace(/^/gm, ' '.repeat(6))}`
}

export type Process = Host & { stdout: OutputStream; stderr: OutputStream } & Pick<
    NodeJS.Process,
    'argv' | 'exitCode'
  >

/** Runs one command line. Whatever goes wrong becomes one line on stderr and an exit code. */
export async function main(host: Process): Promise<void> {
  const out = new Output(host)
  const program = createProgram(host, out)
  const ending = endingOf(host, out, program)
  let lostResults: UploadError | undefined
  const fail = (thrown: unknown) => {
    host.exitCode = tell(thrown, ending, program, out)
  }
  // What node prints of one by itself is not made harmless.
  host.on('uncaughtException', thrown => {
    fail(thrown)
    host.exit()
  })
  try {
    await program
      .parseAsync(exactArguments(host.argv))
      .finally(() => out.written().catch(lost => (lostResults = lost)))
    if (lostResults) throw lostResults
    ending.done()
  } catch (thrown) {
    if (lostResults && thrown !== lostResults) ending.lost(lostResults)
    fail(thrown)
  }
  await out.flushed()
  // A shell's loop ends where its command died of the signal; a status of 130 alone is an answer like any other.
  const exit = Number(host.exitCode ?? 0)
  if (exit > SIGNALLED) host.kill(host.pid, exit - SIGNALLED)
  // All is told: a message that nobody reads is not waited for.
  host.exit(exit)
}

/** How the end of a command is told. */
interface Ending {
  done(): void
  /** Results could not be written, beside what failed. */
  lost(error: UploadError): void
  /** `more` prints what a person may want to know beside it. */
  failed(error: UploadError, more?: () => void): void
}

/** As text, or as JSON where every other line is. */
function endingOf(host: Process, out: Output, program: Command): Ending {
  const command = host.argv[2]
  const asked = (option: string) =>
    said(
      host,
      option,
      program.commands.find(each => each.name() === command),
    )
  if (command === 'push' && asked('progress') === 'json') {
    const event = (fields: object) => out.message(JSON.stringify({ event: 'end', ...fields }))
    return {
      done: () => event({ ok: true, exitCode: 0 }),
      lost: error => out.message(JSON.stringify({ event: 'lost', error })),
      failed: error => event({ ok: false, exitCode: error.exitCode, error, trace: traceOf(error) }),
    }
  }
  if (command === 'serve' && asked('log') === 'json') {
    const log = createLogger({ stream: out.log, format: 'json' })
    return {
      done() {},
      lost: error => log.error('lost', { code: error.code, detail: error.message }),
      failed: error =>
        log.error('failed', { code: error.code, detail: error.message, trace: traceOf(error)?.join('\n') }),
    }
  }
  return {
    done() {},
    lost: error => out.message(`uploadr: ${error.message}`),
    failed(error, more) {
      out.message(`uploadr: ${error.message}`)
      for (const line of traceOf(error) ?? []) out.message(line)
      more?.()
    },
  }
}

/** What an option says, looked up before the command line is parsed: an error in it must be told as it asks, too. */
function said({ argv, env }: Process, option: string, command?: Command): string | undefined {
  let last = env[`UPLOADR_${option.toUpperCase()}`]
  for (let i = 3; i < argv.length && argv[i] !== '--'; i++) {
    const [, flag = '', inline] = /^([^=]*)(?:=(.*))?$/s.exec(argv[i] as string) ?? []
    // The next is its value, whatever that looks like.
    const takesNext =
      inline === undefined &&
      command?.options.find(({ short, long }) => flag === long || flag === short)?.required
    const value = takesNext ? argv[++i] : inline
    if (flag === `--${option}`) last = value
  }
  return last
}

/** Tells what was thrown, and returns the exit code. */
function tell(thrown: unknown, ending: Ending, program: Command, out: Output): number {
  const more = () => out.message('(--help tells more)')
  if (!(thrown instanceof CommanderError)) {
    const error = UploadError.from(thrown)
    ending.failed(error, error.code === 'usage' ? more : undefined)
    return error.exitCode
  }
  // Help and version come this way too, printed and with 0.
  if (thrown.exitCode === 0) return 0
  const usage = new UploadError('usage', usageMessage(thrown))
  if (thrown.code === 'commander.missingArgument') {
    ending.failed(usage, () =>
      program.commands.find(each => each.name() === 'push')?.outputHelp({ error: true }),
    )
  } else if (thrown.code !== 'commander.help') {
    ending.failed(usage, more)
  }
  return usage.exitCode
}

/** Commander's words, without the values it repeats: what stands behind a mistyped `--tokne=` is a secret too. */
function usageMessage({ code, message }: CommanderError): string {
  const words = message.replace(/^error: /, '').replace(/\n(\(Did you mean [^\n]*\))$/, ' $1')
  if (code === 'commander.unknownOption') return words.replace(/'(--[^=]*|-.).*'/s, "'$1'")
  const [, flag, value, variable, why = ''] =
    /^option '(?:-\w, )?(--[\w-]+)[^']*' (?:argument|value) '(.*?)(?:' from env '(\w+))?' is invalid\. (?!.*' is invalid\. )(.*)$/s.exec(
      words,
    ) ?? []
  if (flag === undefined) return words
  // Our own parsers name a value that is no secret.
  const choices = /^Allowed choices are (.*)\.$/.exec(why)?.[1]
  return `${variable ?? flag}: ${choices ? `"${value}" is none of ${choices}` : why}`
}

/** Where something came from that nobody expected; a server's own internal error comes from nowhere here. */
function traceOf({ code, cause }: UploadError): string[] | undefined {
  if (cause instanceof UploadError) return traceOf(cause)
  if (code !== 'internal' || cause === undefined) return undefined
  const stack = String((cause as Error)?.stack ?? '').split('\n')
  return [String(cause), ...stack.filter(line => /^ +at /.test(line))]
}

function version(): string {
  const file = new URL('../../package.json', import.meta.url)
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version
}
