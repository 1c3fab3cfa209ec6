/** Bytes that are copied together block by block, each block larger than the one before, up to this size. */
const BLOCK_MIN = 16 * 1024
const BLOCK_MAX = 1024 * 1024

/** Copies of chunks, in order: the chunks themselves are only lent, and may come byte by byte. */
export class ChunkList {
  #full: Uint8Array[] = []
  #block: Buffer | undefined
  #used = 0

  push(chunk: Uint8Array): void {
    // The first chunk of a small file is often all of it, and so is its block.
    this.#block ??= Buffer.allocUnsafeSlow(chunk.length)
    const fits = Math.min(chunk.length, this.#block.length - this.#used)
    this.#block.set(fits < chunk.length ? chunk.subarray(0, fits) : chunk, this.#used)
    this.#used += fits
    if (fits === chunk.length) return
    const grown = Math.min(BLOCK_MAX, Math.max(BLOCK_MIN, 2 * this.#block.length))
    this.#full.push(this.#block)
    this.#block = Buffer.allocUnsafeSlow(Math.max(grown, chunk.length - fits))
    this.#used = 0
    this.push(chunk.subarray(fits))
  }

  /** All of them; the list is empty afterwards. */
  take(): Uint8Array[] {
    const blocks = this.#full
    if (this.#block) blocks.push(this.#block.subarray(0, this.#used))
    this.#full = []
    this.#block = undefined
    this.#used = 0
    return blocks
  }
}
