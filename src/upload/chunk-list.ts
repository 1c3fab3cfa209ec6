/** Chunks smaller than this are copied together; a Buffer object costs about as much memory. */
const SMALL = 1024
const BLOCK = 16 * 1024

/**
 * Chunks in order. Small ones are copied into blocks: a body that comes byte by byte would otherwise
 * take a Buffer object, a hundred bytes and more, for each of its bytes.
 */
export class ChunkList {
  #chunks: Uint8Array[] = []
  /** The open block, always the last of #chunks while there is one, and how much of it is used. */
  #block: Buffer | undefined
  #used = 0

  push(chunk: Uint8Array): void {
    if (chunk.length >= SMALL || this.#chunks.length === 0) {
      this.#closeBlock()
      this.#chunks.push(chunk)
      return
    }
    if (this.#block === undefined || this.#used + chunk.length > BLOCK) {
      this.#closeBlock()
      this.#block = Buffer.allocUnsafeSlow(BLOCK)
    }
    this.#block.set(chunk, this.#used)
    this.#used += chunk.length
  }

  /** All of them; the list is empty afterwards. */
  take(): Uint8Array[] {
    this.#closeBlock()
    const chunks = this.#chunks
    this.#chunks = []
    return chunks
  }

  #closeBlock(): void {
    if (this.#block && this.#used > 0) this.#chunks.push(this.#block.subarray(0, this.#used))
    this.#block = undefined
    this.#used = 0
  }
}
