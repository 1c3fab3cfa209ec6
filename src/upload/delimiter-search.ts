const CR = 13

/** A delimiter, among pieces of data. */
export const DELIMITER = null

/** Data, a view of the chunk it came in, or a delimiter. */
export type Piece = Buffer | typeof DELIMITER

/**
 * Finds a multipart delimiter (CR LF, two hyphens, the boundary) in a stream of chunks. The search
 * itself is V8's neighbour in C++, Buffer.indexOf, at 0.08 s of CPU per GiB against 0.25 for a
 * Boyer-Moore-Horspool written in JavaScript.
 *
 * A delimiter that lies across chunks is found because whatever a chunk ends with that could begin one
 * is held back. A boundary holds no CR, so a delimiter can only begin at a CR and only one beginning
 * can be pending; what is pending is a prefix of the delimiter, so its length is all there is to know.
 */
export class DelimiterSearch {
  readonly #delimiter: Buffer
  /** How many bytes of a delimiter the chunks so far end with. */
  #held: number

  /** `held`: how many bytes of a delimiter count as seen already. */
  constructor(delimiter: Buffer, held = 0) {
    this.#delimiter = delimiter
    this.#held = held
  }

  /** What a chunk adds, piece by piece, in order. The next chunk only once all were taken. */
  *pieces(chunk: Buffer): Generator<Piece, void, void> {
    const delimiter = this.#delimiter
    let at = 0
    if (this.#held > 0) {
      const held = this.#held
      const there = Math.min(delimiter.length - held, chunk.length)
      if (chunk.compare(delimiter, held, held + there, 0, there) !== 0) {
        this.#held = 0
        yield delimiter.subarray(0, held)
      } else if (held + there < delimiter.length) {
        this.#held += there
        return
      } else {
        this.#held = 0
        yield DELIMITER
        at = there
      }
    }
    for (;;) {
      const found = chunk.indexOf(delimiter, at)
      if (found < 0) break
      if (found > at) yield chunk.subarray(at, found)
      yield DELIMITER
      at = found + delimiter.length
    }
    const end = this.#beginning(chunk, at)
    this.#held = chunk.length - end
    if (end > at) yield at === 0 && end === chunk.length ? chunk : chunk.subarray(at, end)
  }

  /** Where the beginning of a delimiter stands at the chunk's very end; the chunk's length for nowhere. */
  #beginning(chunk: Buffer, from: number): number {
    const first = Math.max(from, chunk.length - this.#delimiter.length + 1)
    for (let i = chunk.length - 1; i >= first; i--) {
      if (chunk[i] !== CR) continue
      const length = chunk.length - i
      return chunk.compare(this.#delimiter, 0, length, i) === 0 ? i : chunk.length
    }
    return chunk.length
  }
}
