/** Of a shorter time nothing can be said: between two polls nothing may have come, and that is no stall. */
const YOUNG_MS = 250

/** The recent rate of a growing count: a moving average over the last few seconds that also falls when nothing comes. */
export class RateMeter {
  readonly #window: number
  readonly #now: () => number
  /** (time, count) of the past, oldest first; the oldest is the window's far edge. */
  readonly #samples: { at: number; count: number }[] = []

  constructor(options: { window?: number; now?: () => number } = {}) {
    this.#window = options.window ?? 3000
    this.#now = options.now ?? (() => performance.now())
  }

  /** Records the count and returns bytes per second; undefined while it is too early to say. */
  update(count: number): number | undefined {
    const at = this.#now()
    const samples = this.#samples
    samples.push({ at, count })
    while (samples.length > 2 && at - (samples[1]?.at ?? at) >= this.#window) samples.shift()
    const [first] = samples
    if (!first || at - first.at < YOUNG_MS) return undefined
    return ((count - first.count) / (at - first.at)) * 1000
  }
}
