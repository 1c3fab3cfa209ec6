import { readFileSync } from 'node:fs'
import { Command, CommanderError } from 'commander'
import type { Host } from './commands/options.ts'
import { pushCommand } from './commands/push.ts'
import { serveCommand } from './commands/serve.ts'
import { UploadError } from './errors.ts'
import { printable } from './log.ts'

const USAGE_EXIT = 2

/** The whole command line as commander knows it: `docs.test.ts` reads the options from it. */
export function createProgram(host: Host): Command {
  const program = new Command('uploadr')
  program
    .description(
      'Receive uploads and send them, with a bar that shows what the server has received and stored.',
    )
    .version(version(), '-V, --version', 'print the version')
    .helpCommand(false)
    .showHelpAfterError('(--help tells more)')
    .addHelpText('after', '\nEvery option can be set in the environment too: --max-size is UPLOADR_MAX_SIZE.')
  for (const command of [serveCommand(host), pushCommand(host)]) program.addCommand(command)
  for (const command of [program, ...program.commands]) {
    command.exitOverride().configureOutput({
      writeOut: text => host.stdout.write(text),
      writeErr: text => host.stderr.write(text),
    })
  }
  return program
}

/** Runs one command line. Whatever goes wrong becomes one line on stderr and an exit code. */
export async function main(host: Host & Pick<NodeJS.Process, 'argv' | 'exitCode'>): Promise<void> {
  // A reader that has seen enough (`uploadr push … | head -1`) is no error.
  host.stdout.on('error', () => {})
  try {
    await createProgram(host).parseAsync(host.argv)
  } catch (error) {
    host.exitCode = report(error, host)
  }
}

function report(thrown: unknown, host: Host): number {
  if (thrown instanceof CommanderError) {
    // Commander has printed it; help and version come this way too, with 0.
    return thrown.exitCode === 0 ? 0 : USAGE_EXIT
  }
  const error = UploadError.from(thrown)
  host.stderr.write(`uploadr: ${printable(error.message)}\n`)
  if (!(thrown instanceof UploadError))
    host.stderr.write(`${printable(String((thrown as Error)?.stack ?? thrown))}\n`)
  return error.exitCode
}

function version(): string {
  const file = new URL('../../package.json', import.meta.url)
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version
}
