/** What lines are broken by, or padded with (RFC 2045, 6.8). */
const BLANKS = /[\r\n\t ]+/g
const QUAD = 4

/** Decodes base64 as it comes, and takes nothing else for it: bytes that are none would be stored as others. */
export class Base64Decoder {
  /** The beginning of a quad. */
  #rest = ''
  #isOver = false

  /** The bytes of the quads that are whole by now; undefined where it is no base64. */
  write(piece: Buffer): Buffer | undefined {
    const text = this.#rest + piece.toString('latin1').replace(BLANKS, '')
    const quads = text.slice(0, text.length - (text.length % QUAD))
    this.#rest = text.slice(quads.length)
    if (this.#isOver && text !== '') return undefined
    this.#isOver = quads.endsWith('=')
    const bytes = Buffer.from(quads, 'base64')
    // node passes over what it cannot read, and over what stands behind an end.
    return bytes.toString('base64') === quads ? bytes : undefined
  }

  /** Whether it may end here. */
  get isWhole(): boolean {
    return this.#rest === ''
  }
}
