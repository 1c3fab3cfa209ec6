/**
 * Waits for a sign of life, so long and no longer. Only time counts in which push itself ran and had
 * nothing else to wait for: a process that was stopped, or slept with its machine, could not have heard any.
 */
export class Patience {
  /** True while nobody is waited for. */
  suspended = false
  readonly #look: () => void
  #silent = 0
  #timer: NodeJS.Timeout | undefined

  /** Calls `look` again and again while it waits, for signs of life that do not come by themselves. */
  constructor(look: () => void) {
    this.#look = look
  }

  /** From here on at most `ms`, 0 for ever; then `over` is called, once, unless something else is waited for by then. */
  wait(ms: number, over: () => void): void {
    this.stop()
    this.suspended = false
    this.#silent = 0
    if (ms === 0) return
    const tick = Math.max(10, Math.min(250, ms / 8))
    let last = performance.now()
    this.#timer = setInterval(() => {
      const now = performance.now()
      // A tick that comes later than this was held up, and so was everything that it would have heard of.
      if (!this.suspended) this.#silent += Math.min(now - last, 2 * tick)
      last = now
      this.#look()
      if (this.#silent < ms) return
      this.stop()
      over()
    }, tick).unref()
  }

  heard(): void {
    this.#silent = 0
  }

  stop(): void {
    clearInterval(this.#timer)
  }
}
