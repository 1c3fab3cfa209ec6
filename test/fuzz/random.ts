/** Randomness that a seed brings back: the same numbers in the same order (mulberry32). */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** At least 0, less than 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let mixed = this.#state
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number below `limit`. */
  below(limit: number): number {
    return Math.floor(this.next() * limit)
  }

  chance(share: number): boolean {
    return this.next() < share
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)] as T
  }

  times<T>(count: number, make: () => T): T[] {
    return Array.from({ length: count }, make)
  }

  bytes(length: number): Buffer {
    const made = Buffer.alloc(length)
    for (let i = 0; i < length; i++) made[i] = this.next() * 256
    return made
  }

  /** Small mostly, large now and then. */
  size(most: number): number {
    return Math.floor(most * this.next() ** 4)
  }

  text(length: number, alphabet: string): string {
    const letters = [...alphabet]
    return this.times(length, () => this.pick(letters)).join('')
  }
}
