import type { PushProgress } from '../client/push.ts'
import { type Reporter, silentReporter } from './reporter.ts'

/**
 * A reporter that is loaded only once there has been something to show for `delay` milliseconds: what
 * draws bars takes longer to load than a small file to send, and to flash up for a moment helps nobody.
 */
export function lateReporter(load: () => Promise<Reporter>, delay: number): Reporter {
  let last: PushProgress | undefined
  let reporter: Reporter | undefined
  let stopped = false
  const timer = setTimeout(async () => {
    // The upload goes on without what cannot be loaded, as after an upgrade in place.
    const loaded = await load().catch(() => silentReporter)
    if (stopped) return
    reporter = loaded
    if (last) reporter.update(last)
  }, delay)
  return {
    update(progress) {
      last = progress
      reporter?.update(progress)
    },
    stop() {
      stopped = true
      clearTimeout(timer)
      reporter?.stop()
    },
  }
}
