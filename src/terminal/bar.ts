import { SingleBar } from 'cli-progress'
import ora, { type Ora } from 'ora'
import type { PushProgress } from '../client/push.ts'
import { printable } from '../log.ts'
import { type BarState, barLine, cutToWidth } from './layout.ts'
import { RateMeter } from './rate.ts'
import type { Reporter, ReporterOptions } from './reporter.ts'

const CYAN = '\x1b[36m'
const PLAIN = '\x1b[39m'

/** For a person at a terminal: a spinner while connecting, a bar while bytes move, a spinner while the server stores. */
export function barReporter(options: ReporterOptions): Reporter {
  const { stream, name, host, color } = options
  const paint = color ? (text: string) => `${CYAN}${text}${PLAIN}` : undefined
  const meter = new RateMeter()
  const columns = () => stream.columns ?? 80
  let state: BarState | undefined
  let phase: PushProgress['phase'] | undefined
  let spinner: Ora | undefined
  let bar: SingleBar | undefined

  const onResize = () => {
    // What the terminal made of the old line is below and beside the cursor.
    if (bar) stream.write('\r\x1b[J')
  }

  function stop(): void {
    // One at a time: a spinner that draws while the bar runs wipes it out.
    spinner?.stop()
    spinner = undefined
    bar?.stop()
    bar = undefined
    stream.off('resize', onResize)
  }

  function spin(text: string): void {
    spinner = ora({
      text: cutToWidth(text, Math.max(1, columns() - 4)),
      stream,
      // true swallows Ctrl-C; signals are the command's affair.
      discardStdin: false,
      // ora does not look at NO_COLOR.
      color: color ? 'cyan' : false,
    }).start()
  }

  function drawBar(): void {
    stream.on('resize', onResize)
    bar = new SingleBar({
      stream,
      fps: 10,
      hideCursor: true,
      clearOnComplete: true,
      // true swallows the first Ctrl-C.
      gracefulExit: false,
      forceRedraw: true,
      format: () => {
        const now = state as BarState
        return barLine({ ...now, rate: meter.update(now.received) }, columns(), paint)
      },
    })
    // Its own numbers are not used: a total of 0 would be 100 %.
    bar.start(1, 0)
  }

  return {
    update(progress) {
      state = { ...progress, name, rate: 0 }
      if (progress.phase === phase) return
      phase = progress.phase
      stop()
      if (phase === 'connecting') spin(`connecting to ${printable(host)}`)
      else if (phase === 'uploading') drawBar()
      else spin(`storing ${printable(name)}`)
    },
    stop,
  }
}
