/** Whatever is called every so many milliseconds, by how many. */
const clocks = new Map<number, Set<() => void>>()

/**
 * Calls `tick` every `ms` milliseconds, from somewhere within the first ones, until what is returned is
 * called. All that ask for the same `ms` share one timer, which does not keep the process alive: a timer
 * of its own costs a small request a tenth of its time.
 */
export function every(ms: number, tick: () => void): () => void {
  const ticks = clocks.get(ms) ?? start(ms)
  ticks.add(tick)
  return () => ticks.delete(tick)
}

function start(ms: number): Set<() => void> {
  const ticks = new Set<() => void>()
  clocks.set(ms, ticks)
  const timer = setInterval(() => {
    for (const tick of ticks) tick()
    if (ticks.size > 0) return
    clearInterval(timer)
    clocks.delete(ms)
  }, ms)
  timer.unref()
  return ticks
}
