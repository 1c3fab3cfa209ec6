/** Blocks grow from this size to that. */
const BLOCK_MIN = 16 * 1024
const BLOCK_MAX = 1024 * 1024
/** A first block is made as large as what can come, up to this: most files in memory are one block then. */
const FIRST_MAX = 96 * 1024

/** Copies of chunks, in order: the chunks themselves are only lent, and may come byte by byte. */
export class ChunkList {
  #full: Uint8Array[] = []
  #block: Buffer | undefined
  #used = 0
  readonly #expected: number

  /** `expected`: bytes that may come after the first chunk at most, where it is known. */
  constructor(expected = 0) {
    this.#expected = expected
  }

  push(chunk: Uint8Array): void {
    const expected = chunk.length + this.#expected
    this.#block ??= Buffer.allocUnsafeSlow(Math.max(chunk.length, Math.min(expected, FIRST_MAX)))
    const fits = Math.min(chunk.length, this.#block.length - this.#used)
    this.#block.set(fits < chunk.length ? chunk.subarray(0, fits) : chunk, this.#used)
    this.#used += fits
    if (fits === chunk.length) return
    this.#grow(chunk.length - fits)
    this.push(chunk.subarray(fits))
  }

  #grow(needed: number): void {
    const block = this.#block as Buffer
    // It has turned out to be large: one block for all that can come.
    if (this.#full.length === 0 && block.length < this.#expected) {
      this.#block = Buffer.allocUnsafeSlow(this.#used + this.#expected)
      this.#block.set(block)
      return
    }
    const grown = Math.min(BLOCK_MAX, Math.max(BLOCK_MIN, 2 * block.length))
    this.#full.push(block)
    this.#block = Buffer.allocUnsafeSlow(Math.max(grown, needed))
    this.#used = 0
  }

  /** All of them; the list is empty afterwards. */
  take(): Uint8Array[] {
    const blocks = this.#full
    // Much of a block that was not used is not kept for long either.
    if (this.#block && this.#used > 0) {
      const used = this.#block.subarray(0, this.#used)
      blocks.push(2 * this.#used < this.#block.length ? Buffer.from(used) : used)
    }
    this.#full = []
    this.#block = undefined
    this.#used = 0
    return blocks
  }
}
