import busboy, { type Busboy, type FieldInfo, type FileInfo as PartInfo } from 'busboy'

export type { FieldInfo, PartInfo }

/** Told what a head or a field's value says. */
export interface PartListener {
  file(field: string | undefined, info: PartInfo): void
  field(name: string | undefined, value: string | undefined, info: FieldInfo): void
  unreadable(cause: Error): void
}

/** A Content-Type as nearly all clients send it: the boundary is all there is to know. */
const PLAIN = /^multipart\/form-data; ?boundary=([\w!#$%&'*+.^`|~-]+)$/i
/** Readers that stand between two parts, for the next form. */
const idle: PartReader[] = []
const IDLE_MAX = 64

/**
 * busboy, for heads and fields. It is told of each delimiter, and what comes between. Making one takes
 * a tenth of the time that a small request does, and between two parts it cannot know which form's they
 * are; so a reader whose form was read to its end is used for another.
 */
export class PartReader {
  readonly #delimiter: Buffer
  readonly #take: TakePiece
  #listener: PartListener | undefined

  /** Throws what busboy throws: the Content-Type has no usable boundary. */
  private constructor(contentType: string) {
    const parser = busboy({
      headers: { 'content-type': contentType },
      defParamCharset: 'utf8',
      // Counted elsewhere: busboy's own limits skip in silence, or flag what is just within.
      limits: { fieldSize: Number.POSITIVE_INFINITY },
    })
    parser.on('error', cause => this.#listener?.unreadable(cause as Error))
    parser.on('file', (field, _stream, info) => this.#listener?.file(field, info))
    parser.on('field', (name, value, info) => this.#listener?.field(name, value, info))
    const { delimiter, take } = wayIn(parser)
    this.#delimiter = delimiter
    this.#take = take
    this.delimiter()
  }

  /** A reader that stands behind the form's first delimiter, and what the form's delimiters are. */
  static open(contentType: string, listener: PartListener): { reader: PartReader; delimiter: Buffer } {
    const boundary = PLAIN.exec(contentType)?.[1]
    const used = boundary === undefined ? undefined : idle.pop()
    const reader = used ?? new PartReader(contentType)
    reader.#listener = listener
    return { reader, delimiter: used ? Buffer.from(`\r\n--${boundary}`) : reader.#delimiter }
  }

  /** The part before is over: its field, if it was one, is told. */
  delimiter(): void {
    this.#take(true, undefined, 0, 0, false)
  }

  /** What follows a delimiter, to the head's end; then, of a field, its value. */
  data(bytes: Buffer, end = bytes.length): void {
    this.#take(false, bytes, 0, end, false)
  }

  /** The form's last delimiter was told. */
  close(): void {
    this.#listener = undefined
    if (idle.length < IDLE_MAX) idle.push(this)
  }
}

type TakePiece = (
  isDelimiter: boolean,
  data: Buffer | undefined,
  start: number,
  end: number,
  isSafe: boolean,
) => void

/** Where busboy's own search hands on what it finds. busboy 1.6.0 is final; a test fails if its inside ever changes. */
function wayIn(parser: Busboy): { delimiter: Buffer; take: TakePiece } {
  const { _needle, _cb } = (parser as unknown as { _bparser: { _needle: Buffer; _cb: TakePiece } })._bparser
  return { delimiter: _needle, take: _cb }
}
