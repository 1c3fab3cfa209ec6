import { type Options, SingleBar } from 'cli-progress'
import ora, { type Ora } from 'ora'
import type { PushProgress } from '../client/push.ts'
import { type BarState, barLine, cutToWidth, glyphsOf } from './layout.ts'
import type { LiveLine } from './output.ts'
import { ofFile } from './percent.ts'
import { RateMeter } from './rate.ts'
import type { Reporter, ReporterOptions } from './reporter.ts'

/** For a person at a terminal: a spinner while connecting, a bar while bytes move, a spinner while the server stores. */
export function barReporter({ out, name, host }: ReporterOptions): Reporter {
  const glyphs = glyphsOf(out.unicode)
  const shownName = out.shown(name)
  const meter = new RateMeter()
  let state: BarState | undefined
  let spinner: Ora | undefined

  function line(): LiveLine {
    if (!spinner) {
      const now = state as BarState
      return barLine({ ...now, rate: meter.update(now.received) }, out.columns, glyphs)
    }
    const frame = spinner.frame()
    const end = frame.indexOf(' ')
    return ['', frame.slice(0, end), cutToWidth(frame.slice(end), out.columns - 2, glyphs.ellipsis)]
  }

  // They decide when to draw and what turns, and no more. cli-progress's own terminal returns at its end to
  // where it began, over what others have printed since, and ora's looks after streams that are not its own.
  const clock = new SingleBar({
    terminal: canvas(() => out.draw(line())),
    fps: 10,
    // Others may have written over it, or the job have been stopped and brought back.
    forceRedraw: true,
    // true swallows the first Ctrl-C.
    gracefulExit: false,
    format: () => '',
  } as Options)

  function spin(text: string): Ora {
    return ora({ text, spinner: glyphs.spinner, color: false, isEnabled: false })
  }

  return {
    update(progress: PushProgress) {
      const { phase } = progress
      if (phase !== state?.phase) {
        spinner = phase === 'uploading' ? undefined : spin(told(phase))
      }
      const first = !state
      state = { ...ofFile(progress), name: shownName, rate: undefined }
      if (first) clock.start(1, 0)
    },
    stop() {
      clock.stop()
      out.erase()
    },
  }

  function told(phase: 'connecting' | 'storing'): string {
    return phase === 'connecting' ? `connecting to ${out.shown(host)}` : `storing ${shownName}`
  }
}

/** What cli-progress takes for a terminal: its writing is ours, and the rest is not wanted. */
function canvas(write: () => void): object {
  const nothing = () => {}
  return {
    ...{ write, isTTY: () => true, getWidth: () => 80, lineWrapping: nothing, newline: nothing },
    ...{ cursorSave: nothing, cursorRestore: nothing, cursorTo: nothing, clearRight: nothing },
  }
}
