/** Parts that all forms together may have taken apart in one turn of the event loop: 0.2 to 0.3 ms of work, where they are tiny. */
const PARTS_A_TURN = 32

/**
 * Shares the thread between forms of many small parts and everything else. A part costs the same few
 * microseconds however small it is, so a chunk of 64 KiB can hold 4 ms of work, and clients that send
 * nothing else would leave little of each turn to an upload of one large file. Here parts are counted
 * over all forms; once a turn's are spent, forms wait in line, and each turn serves the first of them.
 */
export class Turns {
  #spent = 0
  #isTold = false
  readonly #line: (() => void)[] = []

  /** Counts one part. A promise where the next has to wait for its turn. */
  spend(): Promise<void> | undefined {
    this.#askForNext()
    if (++this.#spent < PARTS_A_TURN) return undefined
    return new Promise(resolve => this.#line.push(resolve))
  }

  #askForNext(): void {
    if (this.#isTold) return
    this.#isTold = true
    setImmediate(this.#next)
  }

  readonly #next = (): void => {
    this.#isTold = false
    this.#spent = 0
    const first = this.#line.shift()
    if (!first) return
    this.#askForNext()
    first()
  }
}
