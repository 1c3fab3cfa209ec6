import type { PushProgress } from '../client/push.ts'
import { formatSize } from '../units.ts'
import { ofFile, percent } from './percent.ts'
import { RateMeter } from './rate.ts'
import type { Reporter, ReporterOptions } from './reporter.ts'

const LINE_EVERY_MS = 5000

/** For a log: a line when a phase begins, when the count changes hands, and every five seconds. */
export function lineReporter(options: ReporterOptions & { now?: () => number }): Reporter {
  const { out, name, host } = options
  const now = options.now ?? (() => performance.now())
  const meter = new RateMeter({ now })
  let last: PushProgress | undefined
  let lineAt = 0
  const line = (text: string) => {
    lineAt = now()
    out.message(`${name}: ${text}`)
  }
  return {
    update(body) {
      const progress = ofFile(body)
      const rate = meter.update(progress.received)
      if (progress.phase !== last?.phase) {
        const size = progress.size === undefined ? '' : ` ${formatSize(progress.size)}`
        if (progress.phase === 'connecting') line(`connecting to ${host}`)
        else line(progress.phase === 'uploading' ? `uploading${size}` : 'storing')
      } else if (progress.source !== last.source) {
        line(
          progress.source === 'client'
            ? `the server's count cannot be read (${progress.why ?? ''}): showing bytes sent`
            : `showing the server's count again`,
        )
      } else if (now() - lineAt >= LINE_EVERY_MS) {
        const share = percent(progress)
        const of = progress.size === undefined ? '' : ` of ${formatSize(progress.size)}`
        const whose = progress.source === 'client' ? 'sent' : 'received'
        const counts = `${formatSize(progress.received)}${of} ${whose}, ${formatSize(rate ?? 0)}/s`
        line(share === undefined ? counts : `${share}%, ${counts}`)
      }
      last = progress
    },
    stop() {},
  }
}

/** For machines: every change as a line of JSON. */
export function jsonReporter({ out, name }: ReporterOptions): Reporter {
  let last = ''
  return {
    update(progress) {
      const { phase, received, size, source } = progress
      const text = JSON.stringify({ event: 'progress', file: name, phase, received, size, source })
      // Bytes sent change more often than what is told here.
      if (text !== last) out.message(text)
      last = text
    },
    stop() {},
  }
}
