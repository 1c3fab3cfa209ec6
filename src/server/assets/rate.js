/** The rate is that of the last few seconds, so that a stall shows. */
const WINDOW_MS = 3000

export class Rate {
  #samples = []

  /** Notes how many bytes there are by now; returns how many a second come, 0 while that is unknown. */
  note(bytes) {
    const now = performance.now()
    const samples = this.#samples
    samples.push({ now, bytes })
    while (samples.length > 2 && now - samples[1].now >= WINDOW_MS) samples.shift()
    const [first] = samples
    return now > first.now ? Math.max(0, ((bytes - first.bytes) / (now - first.now)) * 1000) : 0
  }
}

export function duration(seconds) {
  if (seconds < 1) return 'under\u00a01\u00a0s'
  if (seconds < 59.5) return `${Math.round(seconds)}\u00a0s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 60) return `${minutes}\u00a0min`
  return `${Math.floor(minutes / 60)}\u00a0h\u00a0${minutes % 60}\u00a0min`
}
