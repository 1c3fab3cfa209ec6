import busboy, { type Busboy } from 'busboy'
import { type HeadPlace, type PartHead, type PartHeader, type Refuse, readPartHead } from './part-head.ts'

/** Told what a head or a field's value says. */
export interface PartListener {
  head(head: PartHead): void
  /** The whole value of the field whose head was told last: its bytes, one a character. */
  value(bytes: string): void
  refuse: Refuse
}

/** A Content-Type as nearly all clients send it: the boundary is all there is to know. */
const PLAIN = /^multipart\/form-data; ?boundary=([\w!#$%&'*+.^`|~-]+)$/i
/** Readers that stand at the beginning of a head, for the next form. */
const idle: PartReader[] = []
const IDLE_MAX = 64

const CRLF = Buffer.from('\r\n')
/** What busboy is left to see of a head: a field, whose value it gathers, or nothing that concerns it. */
const FIELD: PartHeader = { 'content-disposition': ['form-data'] }
const NOTHING: PartHeader = {}

/**
 * busboy, for the lines of heads and the values of fields. It is told of each delimiter, and what comes between.
 * What a head's lines mean is read here (part-head.ts), before busboy sees it: it drops parts whose parameters it
 * cannot make sense of, and their bytes, without any event, takes what has no filename for a field's text
 * unless it is octet-stream, and knows three charsets.
 *
 * Making one takes a tenth of the time that a small request does, and at the beginning of a head it cannot
 * know which form's it is; so a reader whose form was read to its end is used for another.
 */
export class PartReader {
  readonly #delimiter: Buffer
  readonly #take: TakePiece
  #listener: PartListener | undefined
  #place: HeadPlace = { charset: undefined, within: undefined }

  /** Throws what busboy throws: the Content-Type has no usable boundary. */
  private constructor(contentType: string) {
    const parser = busboy({
      headers: { 'content-type': contentType },
      // Bytes, one a character: they are decoded once it is known how.
      defCharset: 'latin1',
      // Counted elsewhere: busboy's own limits skip in silence, or flag what is just within.
      limits: { fieldSize: Number.POSITIVE_INFINITY },
    })
    parser.on('error', () => this.#listener?.refuse('has a malformed header'))
    parser.on('field', (_name, bytes) => this.#listener?.value(bytes))
    const { delimiter, take, heads } = wayIn(parser)
    this.#delimiter = delimiter
    this.#take = take
    this.delimiter()
    const gather = heads().cb
    heads().cb = header => gather(this.#read(header) ? FIELD : NOTHING)
  }

  /** A reader for the first head of a form, and what the form's delimiters are. */
  static open(
    contentType: string,
    place: HeadPlace,
    listener: PartListener,
  ): { reader: PartReader; delimiter: Buffer } {
    const boundary = PLAIN.exec(contentType)?.[1]
    const used = boundary === undefined ? undefined : idle.pop()
    const reader = used ?? new PartReader(contentType)
    reader.#listener = listener
    reader.#place = place
    return { reader, delimiter: used ? Buffer.from(`\r\n--${boundary}`) : reader.#delimiter }
  }

  /** The part before is over: its value, if it was a field, is told. A head comes next. */
  delimiter(): void {
    this.#take(true, undefined, 0, 0, false)
    this.#take(false, CRLF, 0, CRLF.length, false)
  }

  /** A head to its end; then, of a field, its value. */
  data(bytes: Buffer, end = bytes.length): void {
    this.#take(false, bytes, 0, end, false)
  }

  /** The form's last delimiter was told. */
  close(): void {
    this.#listener = undefined
    if (idle.length < IDLE_MAX) idle.push(this)
  }

  /** Tells of a head; whether it is a field's. */
  #read(header: PartHeader): boolean {
    const listener = this.#listener as PartListener
    const head = readPartHead(header, this.#place, listener.refuse)
    listener.head(head)
    return head.kind === 'field'
  }
}

type TakePiece = (
  isDelimiter: boolean,
  data: Buffer | undefined,
  start: number,
  end: number,
  isSafe: boolean,
) => void

/**
 * Where busboy's own search hands on what it finds, and where its reader of heads does, once the first delimiter
 * was told. busboy 1.6.0 is final; a test fails if its inside ever changes.
 */
function wayIn(parser: Busboy) {
  const inside = parser as unknown as {
    _bparser: { _needle: Buffer; _cb: TakePiece }
    _hparser: { cb: (header: PartHeader) => void }
  }
  return { delimiter: inside._bparser._needle, take: inside._bparser._cb, heads: () => inside._hparser }
}
