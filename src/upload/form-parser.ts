import { UploadError } from '../errors.ts'
import type { Limits } from '../limits.ts'
import type { Awaitable } from '../protocol.ts'
import { formatSize } from '../units.ts'
import { Base64Decoder } from './base64.ts'
import { DELIMITER, DelimiterSearch, type Piece } from './delimiter-search.ts'
import { charsetOf, type HeadPlace, type PartHead } from './part-head.ts'
import { type PartListener, PartReader } from './part-reader.ts'
import { Turns } from './turns.ts'

export type { PartHead }

/** Told of a form part by part. What a method throws ends the parsing; a promise holds it back. */
export interface FormListener {
  /** Nobody wants to know any more: the rest of a chunk that was held back is not looked at. */
  readonly isOver: boolean
  /** A file begins; its data comes in any number of pieces, then its end. */
  file(head: PartHead): Awaitable<void>
  /** A view of the chunk that is being parsed: to be copied where it is kept. */
  fileData(bytes: Buffer): Awaitable<void>
  fileEnd(): Awaitable<void>
  /** So many bytes of a field's value are kept until it is whole. */
  fieldData(head: PartHead, bytes: number): void
  /** A whole field: its bytes, one a character. */
  field(head: PartHead, bytes: string): void
}

/** A part that holds a form, and what errors call it. */
interface OuterPart extends HeadPlace {
  readonly within: PartHead
  readonly what: string
}

export type FormLimits = Pick<Limits, 'partHead'>

const TAB = 9
const LF = 10
const CR = 13
const SPACE = 32
const HYPHEN = 45
const CRLF = Buffer.from('\r\n')
const HEAD_END = Buffer.from('\r\n\r\n')
/** What an error quotes of a head or a boundary, in characters. */
const QUOTE_MAX = 200
const EMPTY = Buffer.alloc(0)
/** The least that pieces are gathered in. busboy keeps each of a field's value as it comes: small ones are handed on together. */
const BLOCK = 4096
/** So many parts of a form are taken apart as they come; those after them in turns with other forms. */
const FREE_PARTS = 16
/** So many chunks count as a part: of one byte, as HTTP's chunked coding can have them, they take as long. */
const CHUNKS_A_PART = 16
const turns = new Turns()

/**
 * Takes a multipart/form-data body apart. Where parts begin and end is found here, and a file's data never goes
 * through busboy, which knows the lines of heads and the values of fields: that is three times as fast.
 * Whatever is no form by RFC 2046 is refused by a `malformed_body` that says which part is meant.
 */
export class FormParser {
  readonly #listener: FormListener
  readonly #limits: FormLimits
  readonly #search: DelimiterSearch
  readonly #reader: PartReader
  readonly #delimiter: Buffer
  #state: 'preamble' | 'line' | 'head' | PartHead['kind'] | 'epilogue' | 'behind' = 'preamble'
  /** The end of the preamble, as long as a boundary; undefined for no preamble. */
  #preambleEnd: Buffer | undefined
  /** Of the delimiter's line: how many blanks, and the first byte behind them. */
  #padding = 0
  #first: number | undefined
  /** What there is of the head in hand; nothing once it has been read. */
  #bytes: Buffer = EMPTY
  /** What it says. */
  #head: PartHead | undefined
  #parts = 0
  #chunks = 0
  readonly #place: HeadPlace
  /** Of the part in hand, where it is coded. */
  #decoder: Base64Decoder | undefined
  /** The form in the part in hand, where that is one. */
  #inner: FormParser | undefined
  /** What errors add to the number of a part: the part that this form is in. */
  readonly #within: string
  /** Pieces of a head, or of a field's value, and how many bytes they have. */
  #block = EMPTY
  #gathered = 0

  /**
   * Throws a `malformed_body` where the Content-Type has no usable boundary. `outer`: the part that this form
   * is in, for several files in one part (RFC 7578, 4.3; curl's `-F 'f=@a,b'`).
   */
  constructor(contentType: string, limits: FormLimits, listener: FormListener, outer?: OuterPart) {
    this.#limits = limits
    this.#within = outer ? ` of ${outer.what}` : ''
    this.#place = outer ?? { charset: charsetOf(contentType), within: undefined }
    this.#listener = listener
    const { reader, delimiter } = openReader(contentType, this.#place, {
      head: head => {
        this.#head = head
      },
      value: bytes => listener.field(this.#head as PartHead, bytes),
      refuse: reason => this.#refuse(reason),
    })
    this.#reader = reader
    this.#delimiter = delimiter
    // The first delimiter may stand at the very beginning, without the line end before it.
    this.#search = new DelimiterSearch(delimiter, CRLF.length)
  }

  /** The next chunk, once the one before has been taken. The memory is used again after that. */
  write(chunk: Buffer): Awaitable<void> {
    const wait = this.#take(this.#search.pieces(chunk))
    if (wait || ++this.#chunks % CHUNKS_A_PART > 0) return wait
    return turns.spend()
  }

  /** The body has ended. Throws a `truncated_body` where the form had not. */
  end(): void {
    if (this.#isClosed) return
    if (this.#parts > 0) throw truncated(`the form ends in ${this.#part()}, before its closing boundary`)
    if (this.#preambleEnd) throw malformed(`${this.#boundary()} never appears`)
    throw truncated(`the form${this.#within} ends before its first part`)
  }

  #take(pieces: Generator<Piece, void, void>): Awaitable<void> {
    for (let next = pieces.next(); !next.done; next = pieces.next()) {
      const wait = next.value === DELIMITER ? this.#atDelimiter() : this.#data(next.value)
      if (wait) return this.#after(wait, () => this.#take(pieces))
    }
  }

  /** Goes on once it is no longer held back, unless that came too late. */
  #after(wait: Promise<void>, goOn: () => Awaitable<void>): Promise<void> {
    return wait.then(() => (this.#listener.isOver ? undefined : goOn()))
  }

  #atDelimiter(): Awaitable<void> {
    const state = this.#state
    if (this.#isClosed) {
      this.#state = 'behind'
      this.#bytes = EMPTY
      return
    }
    if (state === 'line' || state === 'head') this.#refuse('has a head without an end')
    if (this.#decoder?.isWhole === false) throw this.#noBase64()
    if (state === 'field') this.#handOn()
    if (state === 'files') this.#inner?.end()
    // The reader stands behind the first one already.
    if (state !== 'preamble') this.#reader.delimiter()
    this.#state = 'line'
    this.#padding = 0
    this.#first = undefined
    this.#head = undefined
    this.#parts++
    const wait = state === 'file' ? this.#listener.fileEnd() : undefined
    return wait ?? (this.#parts > FREE_PARTS ? turns.spend() : undefined)
  }

  #data(piece: Buffer): Awaitable<void> {
    switch (this.#state) {
      case 'file':
        return this.#fileData(piece)
      case 'field':
        return this.#fieldData(piece)
      case 'files':
        return this.#inner?.write(piece)
      case 'line':
        return this.#line(piece)
      case 'head':
        return this.#headData(piece)
      case 'preamble':
        return this.#preamble(piece)
      case 'behind':
        return this.#behind(piece)
    }
  }

  get #isClosed(): boolean {
    return this.#state === 'epilogue' || this.#state === 'behind'
  }

  /** Behind the last delimiter is nothing to read (RFC 2046, 5.1.1), but one more part would be lost. */
  #behind(piece: Buffer): void {
    this.#bytes = Buffer.concat([this.#bytes, piece.subarray(0, CRLF.length)])
    if (this.#bytes.length < CRLF.length) return
    if (this.#bytes.subarray(0, CRLF.length).equals(CRLF)) {
      throw malformed(`a part follows the closing boundary${this.#within}`)
    }
    this.#state = 'epilogue'
  }

  /** A boundary in what comes before the first one would be a part that is not read. */
  #preamble(piece: Buffer): void {
    const seen = Buffer.concat([this.#preambleEnd ?? EMPTY, piece])
    const boundary = this.#delimiter.subarray(CRLF.length)
    const at = seen.indexOf(boundary)
    if (at >= 0) {
      throw seen[at - 1] === LF
        ? bareLineEnds(`the form${this.#within}`)
        : malformed(`${this.#boundary()} stands within a line`)
    }
    this.#preambleEnd = Buffer.from(seen.subarray(Math.max(0, seen.length - boundary.length)))
  }

  /**
   * The rest of a delimiter's line. Blanks before its end are transport padding (RFC 2046, 5.1.1), and count as part of
   * the head; two hyphens make the delimiter the last one.
   */
  #line(piece: Buffer): Awaitable<void> {
    let at = 0
    if (this.#first === undefined) {
      while (piece[at] === SPACE || piece[at] === TAB) at++
      this.#padding += at
      if (this.#padding > this.#limits.partHead) throw this.#headTooLarge(EMPTY)
      this.#first = piece[at++]
    }
    const first = this.#first
    const second = piece[at++]
    if (first === undefined || second === undefined) return
    if (first === CR && second === LF) {
      this.#state = 'head'
      // With this line end, which may be the first half of the head's.
      if (at >= CRLF.length) return this.#headData(piece.subarray(at - CRLF.length))
      this.#gather(CRLF)
      return this.#headData(piece.subarray(at))
    }
    if (first !== HYPHEN || second !== HYPHEN || this.#padding > 0) {
      const before = `the boundary before ${this.#part()}`
      if (first === LF) throw bareLineEnds(before)
      throw malformed(`${before} is followed by ${quote(Buffer.of(first, second))}, not by a line end`)
    }
    this.#state = 'epilogue'
    this.#reader.close()
  }

  /** The head in hand, from the line end before it on. Each byte is looked at once, however it comes. */
  #headData(piece: Buffer): Awaitable<void> {
    const before = this.#gathered
    const max = CRLF.length + this.#limits.partHead
    let bytes = before > 0 ? this.#gather(piece.subarray(0, max + 1 - before)) : piece
    const found = bytes.indexOf(HEAD_END, Math.max(0, before - HEAD_END.length + 1))
    const end = found < 0 ? bytes.length : found + HEAD_END.length
    if (end > max) throw this.#headTooLarge(bytes.subarray(CRLF.length, max))
    if (found < 0 && before === 0) bytes = this.#gather(piece)
    this.#bytes = bytes.subarray(CRLF.length, end)
    if (found < 0) return
    this.#gathered = 0
    this.#reader.data(this.#bytes)
    const head = this.#head
    if (!head) return this.#refuse('could not be read')
    this.#bytes = EMPTY
    const rest = piece.subarray(end - before)
    this.#state = head.kind
    this.#decoder = head.isBase64 ? new Base64Decoder() : undefined
    if (head.kind === 'files') this.#inner = this.#formOf(head)
    if (head.kind !== 'file') return rest.length > 0 ? this.#data(rest) : undefined
    const wait = this.#listener.file(head)
    if (rest.length === 0) return wait
    return wait ? this.#after(wait, () => this.#fileData(rest)) : this.#fileData(rest)
  }

  #formOf(head: PartHead): FormParser {
    const outer = { charset: this.#place.charset, within: head, what: this.#part() }
    const contentType = head.contentType.replace(/^multipart\/mixed/i, 'multipart/form-data')
    return new FormParser(contentType, this.#limits, this.#listener, outer)
  }

  #fileData(piece: Buffer): Awaitable<void> {
    if (!this.#decoder) return this.#listener.fileData(piece)
    const bytes = this.#decoded(piece)
    if (bytes.length > 0) return this.#listener.fileData(bytes)
  }

  #decoded(piece: Buffer): Buffer {
    const bytes = this.#decoder ? this.#decoder.write(piece) : piece
    if (!bytes) throw this.#noBase64()
    return bytes
  }

  #noBase64(): UploadError {
    return malformed(`${this.#part()} is not in base64, which its Content-Transfer-Encoding announces`)
  }

  #fieldData(data: Buffer): void {
    const piece = this.#decoded(data)
    this.#listener.fieldData(this.#head as PartHead, piece.length)
    if (this.#gathered + piece.length > BLOCK) this.#handOn()
    if (piece.length > BLOCK) this.#reader.data(piece)
    else this.#gather(piece)
  }

  #handOn(): void {
    const gathered = this.#gathered
    this.#gathered = 0
    if (gathered > 0) this.#reader.data(this.#block, gathered)
  }

  /** Puts a piece behind those before it; a view of all of them. */
  #gather(piece: Buffer): Buffer {
    const gathered = this.#gathered + piece.length
    if (gathered > this.#block.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(BLOCK, 2 * gathered))
      this.#block.copy(larger, 0, 0, this.#gathered)
      this.#block = larger
    }
    piece.copy(this.#block, this.#gathered)
    this.#gathered = gathered
    return this.#block.subarray(0, gathered)
  }

  /** What errors call the part in hand. */
  #part(): string {
    return `part ${this.#parts}${this.#head ? ` (${this.#head.name})` : ''}${this.#within}`
  }

  #boundary(): string {
    return `the boundary ${quote(this.#delimiter.subarray(2 * CRLF.length))}${this.#within}`
  }

  #refuse(reason: string): never {
    if (hasBareLineEnds(this.#bytes)) throw bareLineEnds(this.#part())
    throw malformed(`${this.#part()} ${reason}: ${quote(this.#bytes)}`)
  }

  #headTooLarge(bytes: Buffer): UploadError {
    if (hasBareLineEnds(bytes)) return bareLineEnds(this.#part())
    const detail = `the head of ${this.#part()} is larger than ${formatSize(this.#limits.partHead)}`
    return new UploadError('part_head_too_large', detail)
  }
}

function openReader(contentType: string, place: HeadPlace, listener: PartListener) {
  try {
    return PartReader.open(contentType, place, listener)
  } catch (cause) {
    throw malformed(
      `the Content-Type has no usable boundary: ${contentType.slice(0, QUOTE_MAX)}`,
      cause as Error,
    )
  }
}

/** The error of a form that cannot be read. */
export function malformed(detail: string, cause?: Error): UploadError {
  return new UploadError('malformed_body', detail, { cause })
}

function truncated(detail: string): UploadError {
  return new UploadError('truncated_body', detail)
}

function bareLineEnds(what: string): UploadError {
  return malformed(`the lines of ${what} end in LF alone, where CR LF is needed (RFC 2046, 4.1.1)`)
}

function hasBareLineEnds(bytes: Buffer): boolean {
  return /(?<!\r)\n/.test(bytes.toString('latin1'))
}

function quote(bytes: Buffer): string {
  const text = bytes.toString('utf8', 0, 4 * QUOTE_MAX)
  return JSON.stringify(text.length > QUOTE_MAX ? `${text.slice(0, QUOTE_MAX)}…` : text)
}
