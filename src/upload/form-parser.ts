import { UploadError } from '../errors.ts'
import type { Limits } from '../limits.ts'
import type { Awaitable } from '../protocol.ts'
import { formatSize } from '../units.ts'
import { DELIMITER, DelimiterSearch, type Piece } from './delimiter-search.ts'
import { type FieldInfo, type PartInfo, type PartListener, PartReader } from './part-reader.ts'
import { Turns } from './turns.ts'

export type { FieldInfo, PartInfo }

/** Told of a form part by part. What a method throws ends the parsing; a promise holds it back. */
export interface FormListener {
  /** Nobody wants to know any more: the rest of a chunk that was held back is not looked at. */
  readonly isOver: boolean
  /** A file begins; its data comes in any number of pieces, then its end. */
  file(field: string | undefined, info: PartInfo): Awaitable<void>
  /** A view of the chunk that is being parsed: to be copied where it is kept. */
  fileData(bytes: Buffer): Awaitable<void>
  fileEnd(): Awaitable<void>
  /** So many bytes of a field's value are kept until it is whole. */
  fieldData(bytes: number): void
  /** A whole field. The value is undefined where its charset is unknown. */
  field(name: string | undefined, value: string | undefined, info: FieldInfo): void
}

export type FormLimits = Pick<Limits, 'partHead'>

const CRLF = Buffer.from('\r\n')
/** What makes a delimiter the last one. */
const CLOSING = Buffer.from('--')
const HEAD_END = Buffer.from('\r\n\r\n')
const EMPTY = Buffer.alloc(0)
/** busboy keeps every piece of a field's value as it comes: small ones are handed on together. */
const FIELD_BLOCK = 4096
/** So many parts of a form are taken apart as they come; those after them in turns with other forms. */
const FREE_PARTS = 16
const turns = new Turns()

/**
 * Takes a multipart/form-data body apart. busboy knows heads and fields: parameters, charsets, names.
 * Where parts begin and end is found here, and a file's data never goes through busboy: that is three
 * times as fast, and busboy drops parts it cannot make sense of without any event (a raw quote in a
 * file name, a missing disposition, something after a boundary). Here each delimiter is seen, so a
 * part that busboy did not tell of is an error.
 */
export class FormParser {
  readonly #listener: FormListener
  readonly #limits: FormLimits
  readonly #search: DelimiterSearch
  readonly #reader: PartReader
  #state: 'preamble' | 'head' | 'file' | 'field' | 'epilogue' = 'preamble'
  /** What there is of a head whose end has not come. */
  #head: Buffer = EMPTY
  /** What busboy made of the head in hand, or of the field that ended. */
  #file: { field: string | undefined; info: PartInfo } | undefined
  #told = false
  #parts = 0
  #block: Buffer | undefined
  #gathered = 0

  /** Throws a `malformed_body` where the Content-Type has no usable boundary. */
  constructor(contentType: string, limits: FormLimits, listener: FormListener) {
    this.#limits = limits
    this.#listener = listener
    const { reader, delimiter } = openReader(contentType, {
      file: (field, info) => {
        this.#file = { field, info }
      },
      field: (name, value, info) => {
        this.#told = true
        listener.field(name, value, info)
      },
      unreadable: cause => {
        throw malformed('a part has a malformed header', cause)
      },
    })
    this.#reader = reader
    // The first delimiter may stand at the very beginning, without the line end before it.
    this.#search = new DelimiterSearch(delimiter, CRLF.length)
  }

  /** The next chunk, once the one before has been taken. The memory is used again after that. */
  write(chunk: Buffer): Awaitable<void> {
    return this.#state === 'epilogue' ? undefined : this.#take(this.#search.pieces(chunk))
  }

  /** The body has ended. Throws a `truncated_body` where the form had not. */
  end(): void {
    if (this.#state === 'epilogue') return
    throw new UploadError('truncated_body', 'the form ends before its closing boundary')
  }

  #take(pieces: Generator<Piece, void, void>): Awaitable<void> {
    for (let next = pieces.next(); !next.done; next = pieces.next()) {
      const wait = next.value === DELIMITER ? this.#delimiter() : this.#data(next.value)
      if (wait) return this.#after(wait, () => this.#take(pieces))
    }
  }

  /** Goes on once it is no longer held back, unless that came too late. */
  #after(wait: Promise<void>, goOn: () => Awaitable<void>): Promise<void> {
    return wait.then(() => (this.#listener.isOver ? undefined : goOn()))
  }

  #delimiter(): Awaitable<void> {
    const state = this.#state
    if (state === 'epilogue') return
    if (state === 'head') throw malformed('the head of a part has no end')
    if (state === 'field') this.#handOn()
    this.#state = 'head'
    this.#told = false
    // The reader stands behind the first one already.
    if (state !== 'preamble') this.#reader.delimiter()
    if (state === 'field' && !this.#told) throw malformed('a part could not be read')
    const wait = state === 'file' ? this.#listener.fileEnd() : undefined
    return wait ?? (++this.#parts > FREE_PARTS ? turns.spend() : undefined)
  }

  #data(piece: Buffer): Awaitable<void> {
    switch (this.#state) {
      case 'file':
        return this.#listener.fileData(piece)
      case 'field':
        return this.#fieldData(piece)
      case 'head':
        return this.#headData(piece)
    }
  }

  #headData(piece: Buffer): Awaitable<void> {
    const before = this.#head.length
    const head = before > 0 ? Buffer.concat([this.#head, piece]) : piece
    if (head.length >= 2 && !head.subarray(0, 2).equals(CRLF)) {
      if (!head.subarray(0, 2).equals(CLOSING)) throw malformed('a boundary is followed by something else')
      this.#state = 'epilogue'
      return this.#reader.close()
    }
    const found = head.indexOf(HEAD_END, Math.max(0, before - HEAD_END.length + 1))
    const end = found < 0 ? head.length : found + HEAD_END.length
    if (end - CRLF.length > this.#limits.partHead) throw headTooLarge(this.#limits.partHead)
    if (found < 0) {
      this.#head = before > 0 ? head : Buffer.from(head)
      return
    }
    this.#head = EMPTY
    this.#file = undefined
    this.#reader.data(head, end)
    const rest = head.subarray(end)
    if (!this.#file) {
      this.#state = 'field'
      return rest.length > 0 ? this.#fieldData(rest) : undefined
    }
    this.#state = 'file'
    const { field, info } = this.#file
    const wait = this.#listener.file(field, info)
    if (rest.length === 0) return wait
    return wait ? this.#after(wait, () => this.#listener.fileData(rest)) : this.#listener.fileData(rest)
  }

  #fieldData(piece: Buffer): void {
    this.#listener.fieldData(piece.length)
    if (this.#gathered + piece.length > FIELD_BLOCK) this.#handOn()
    if (piece.length > FIELD_BLOCK) return this.#reader.data(piece)
    this.#block ??= Buffer.allocUnsafeSlow(FIELD_BLOCK)
    this.#gathered += piece.copy(this.#block, this.#gathered)
  }

  #handOn(): void {
    const gathered = this.#gathered
    this.#gathered = 0
    if (this.#block && gathered > 0) this.#reader.data(this.#block, gathered)
  }
}

function openReader(contentType: string, listener: PartListener) {
  try {
    return PartReader.open(contentType, listener)
  } catch (cause) {
    throw malformed(`the Content-Type has no usable boundary: ${contentType.slice(0, 200)}`, cause as Error)
  }
}

/** The error of a form that cannot be read. */
export function malformed(detail: string, cause?: Error): UploadError {
  return new UploadError('malformed_body', detail, { cause })
}

function headTooLarge(limit: number): UploadError {
  return new UploadError('part_head_too_large', `the head of a part is larger than ${formatSize(limit)}`)
}
