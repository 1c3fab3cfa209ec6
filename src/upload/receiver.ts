import type { IncomingMessage } from 'node:http'
import type { Readable, Writable } from 'node:stream'
import busboy from 'busboy'
import { UploadError } from '../errors.ts'
import type { Limits } from '../limits.ts'
import type { Awaitable, Phase } from '../protocol.ts'
import type { StagedFile } from '../storage/storage.ts'
import { formatDuration, formatSize, plural } from '../units.ts'
import { DelimiterSearch, type OnPiece } from './delimiter-search.ts'
import { cleanFileName } from './filename.ts'
import type { FileInfo, FileSink, Upload, UploadHandler } from './handler.ts'

export type ReceiveLimits = Pick<Limits, 'body' | 'files' | 'fields' | 'fieldBytes' | 'idle' | 'minRate'>

/** Files of one request that are open at once; a form may hold more small ones than a process may open. */
const OPEN_MAX = 32

/** What the fields of all forms that are being received take together, in bytes, and may take. */
export interface FieldMemory {
  held: number
  readonly max: number
}

const FIELD_BLOCK = 4096
/** What a field name or a media type may take, in bytes: they go into records, answers and logs. */
const LABEL_MAX_BYTES = 255

export interface ReceiveOptions {
  fieldMemory: FieldMemory
  /** The composed chain. */
  chain: Required<UploadHandler>
  limits: ReceiveLimits
  /** Called once the request is accepted, before its body is read: the moment to send 100 Continue. */
  askForBody?: () => void
  /** May refuse a file, by its cleaned name and the fields that came before it, before its bytes are stored. */
  accepts?: (name: string, fields: Received['fields']) => Awaitable<void>
}

export interface Received {
  /** Values by field name, in order of arrival. */
  fields: ReadonlyMap<string, readonly string[]>
  files: readonly StagedFile[]
}

/** The `Upload` of one request. */
export class RequestUpload implements Upload {
  readonly id: string
  readonly size: number | undefined
  readonly headers: IncomingMessage['headers']
  readonly from: string
  readonly time = new Date()
  received = 0
  phase: Phase = 'receiving'
  /** Why it was ended from outside, once it was. */
  aborted: UploadError | undefined
  /** Whoever has it in hand just now, to be told of that. */
  onAbort: ((reason: UploadError) => void) | undefined

  constructor(req: IncomingMessage, id: string) {
    this.id = id
    this.headers = req.headers
    this.from = req.socket.remoteAddress ?? ''
    const length = req.headers['content-length']
    this.size = length === undefined ? undefined : Number(length)
  }

  /** Ends the upload where it can still be ended: while its body is received. */
  abort(reason: UploadError): void {
    this.aborted ??= reason
    this.onAbort?.(this.aborted)
  }
}

/**
 * Reads one multipart request through a chain of handlers. Resolves when every byte has arrived, the
 * form was read to its end and every file is staged. On any failure every sink is aborted and every
 * staged file discarded before the promise rejects with an UploadError; the request itself is left
 * readable, so that the caller can still answer it.
 */
export async function receive(
  req: IncomingMessage,
  upload: RequestUpload,
  options: ReceiveOptions,
): Promise<Received> {
  try {
    // First, so that whoever asks by the id is told of a refusal too.
    await options.chain.begin(upload)
  } catch (error) {
    throw UploadError.from(error, 'handler_failed', 'beginning the upload')
  }
  const parser = createParser(req, options.limits)
  // Neither event comes again where the client left, or the server gave up, while handlers were thinking.
  if (upload.aborted) throw upload.aborted
  if (req.destroyed) throw clientGone(upload)
  return new Reception(req, upload, options, parser).result
}

/** Refuses what can be refused by the request's head: too long a body, another media type than a form's. */
export function announced(limits: Pick<Limits, 'body'>): UploadHandler {
  return {
    name: 'announced',
    begin({ size, headers }) {
      if (size !== undefined && size > limits.body) throw bodyTooLarge(limits.body, size)
      const mediaType = headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase()
      if (mediaType === 'multipart/form-data') return
      const sent = mediaType ? `not ${mediaType}` : 'and the request has no Content-Type'
      throw new UploadError('unsupported_media_type', `an upload is sent as multipart/form-data, ${sent}`)
    },
  }
}

function createParser(req: IncomingMessage, limits: ReceiveLimits): busboy.Busboy {
  const type = req.headers['content-type'] ?? ''
  try {
    return busboy({
      headers: { 'content-type': type },
      defParamCharset: 'utf8',
      // Counted here instead: busboy's own limits skip in silence, or flag what is just within.
      limits: { fieldSize: limits.fieldBytes + 1 },
    })
  } catch (cause) {
    throw new UploadError(
      'malformed_body',
      `the Content-Type has no usable boundary: ${type.slice(0, 200)}`,
      { cause },
    )
  }
}

/**
 * One body on its way through busboy. busboy and node report the end of things in many voices, some
 * more than once (each case is in test/receiver.test.ts), so there is one way out for success, when
 * the parser has closed and all files are staged, and one for failure, `fail`, which acts once.
 */
class Reception {
  readonly result: Promise<Received>
  readonly #req: IncomingMessage
  readonly #upload: RequestUpload
  readonly #options: ReceiveOptions
  readonly #parser: busboy.Busboy
  readonly #fields = new Map<string, string[]>()
  /** By file part, in order; a skipped one stays undefined. */
  readonly #staged: (StagedFile | undefined)[] = []
  /** Every file part on its way from open to staged or aborted; none of these rejects. */
  readonly #transfers: Promise<void>[] = []
  #failure: UploadError | undefined
  #failed!: (error: UploadError) => void
  #fieldCount = 0
  #fieldBytes = 0
  #fileCount = 0
  #delimiters = 0
  #fieldsHeld = 0
  /** Of them, those of a field that is not whole yet. */
  #piecesHeld = 0
  /** Files that wait until one before them is staged. */
  #queued = 0
  /** Handlers that hold the body back: while there are any, silence is not the client's. */
  #holding = 0
  #idleCheck: NodeJS.Timeout | undefined

  constructor(req: IncomingMessage, upload: RequestUpload, options: ReceiveOptions, parser: busboy.Busboy) {
    this.#req = req
    this.#upload = upload
    this.#options = options
    this.#parser = parser
    this.result = this.#run()
  }

  async #run(): Promise<Received> {
    try {
      await new Promise<void>((resolve, reject) => {
        this.#failed = reject
        this.#listenToParser(resolve)
        this.#listenToRequest()
        this.#options.askForBody?.()
      })
      this.#upload.phase = 'storing'
      await Promise.all(this.#transfers)
      if (this.#failure) throw this.#failure
      return { fields: this.#fields, files: this.#staged.filter(file => file !== undefined) }
    } catch (error) {
      await Promise.all(this.#transfers)
      await Promise.all(this.#staged.map(file => file?.discard()))
      throw error
    } finally {
      clearInterval(this.#idleCheck)
      this.#options.fieldMemory.held -= this.#fieldsHeld
    }
  }

  #listenToRequest(): void {
    const req = this.#req
    const { limits } = this.#options
    req.on('data', this.#onData)
    req.on('end', this.#onEnd)
    req.on('error', noop)
    req.once('close', () => {
      if (!req.complete) this.#fail(clientGone(this.#upload))
    })
    this.#upload.onAbort = error => this.#fail(error)
    if (limits.idle > 0) this.#watchClient(limits)
  }

  readonly #onData = (chunk: Buffer): void => {
    const upload = this.#upload
    upload.received += chunk.length
    const { body } = this.#options.limits
    if (upload.received > body) return this.#fail(bodyTooLarge(body))
    if (!this.#parser.write(chunk)) {
      this.#req.pause()
      this.#parser.once('drain', this.#onDrain)
    }
  }

  readonly #onDrain = (): void => this.#resume()

  #resume(): void {
    if (!this.#failure && this.#queued === 0 && !this.#parser.writableNeedDrain) this.#req.resume()
  }

  readonly #onEnd = (): void => {
    if (this.#req.complete) this.#parser.end()
  }

  #listenToParser(finished: () => void): void {
    const parser = this.#parser
    // For ever: busboy emits more than one error, and an error nobody listens to ends the process.
    parser.on('error', (cause: Error) => {
      const truncated = cause.message === 'Unexpected end of form'
      const why = truncated ? 'the form ends before its closing boundary' : 'a part has a malformed header'
      this.#fail(new UploadError(truncated ? 'truncated_body' : 'malformed_body', why, { cause }))
    })
    parser.on('file', (field, stream, info) => this.#onFile(field, stream, info))
    parser.on('field', (field, value, info) => this.#onField(field, value, info))
    parser.on('close', () => {
      if (this.#failure) return
      this.#checkLostParts()
      if (this.#failure) return
      finished()
    })
    searchDelimiters(parser, {
      found: () => {
        this.#delimiters++
        this.#checkLostParts()
      },
      held: bytes => {
        this.#piecesHeld += bytes
        const { fieldBytes } = this.#options.limits
        if (this.#piecesHeld > fieldBytes) this.#fail(fieldsTooLarge(fieldBytes))
        else this.#holdFields(bytes)
      },
      cut: () => this.#fail(malformed('the form ends within a file')),
    })
  }

  /** Between any two delimiters lies one part, and busboy has told of it, or never will. */
  #checkLostParts(): void {
    const parts = this.#fieldCount + this.#fileCount
    const lost = this.#delimiters - 1 - parts
    if (lost > 0) this.#fail(malformed(`${plural(lost, 'part')} of ${parts + lost} could not be read`))
  }

  /** Counts what is kept of fields, as they come and once they are whole, in all forms that are being received. */
  #holdFields(bytes: number): void {
    const memory = this.#options.fieldMemory
    this.#fieldsHeld += bytes
    memory.held += bytes
    if (memory.held <= memory.max) return
    const held = `the fields of all uploads together take more than ${formatSize(memory.max)}`
    this.#fail(new UploadError('too_many_uploads', held))
  }

  #onField(field: string | undefined, value: string | undefined, info: busboy.FieldInfo): void {
    if (this.#failure) return
    const { fields, fieldBytes } = this.#options.limits
    if (++this.#fieldCount > fields) {
      return this.#fail(
        new UploadError('too_many_fields', `the form has more than ${plural(fields, 'field')}`),
      )
    }
    if (field === undefined) return this.#fail(malformed('a field has no name'))
    const nameError = checkLabel('the name of a field', field)
    if (nameError) return this.#fail(nameError)
    if (value === undefined) return this.#fail(malformed(`the field ${field} is in an unsupported charset`))
    const encodingError = checkEncoding(field, info.encoding)
    if (encodingError) return this.#fail(encodingError)
    this.#fieldBytes += Buffer.byteLength(field) + Buffer.byteLength(value)
    // What was cut at the limit may be within it once decoded: UTF-16 shrinks.
    if (this.#fieldBytes > fieldBytes || info.valueTruncated) {
      return this.#fail(fieldsTooLarge(fieldBytes))
    }
    // The value takes the place of its pieces.
    this.#holdFields(Buffer.byteLength(value) - this.#piecesHeld)
    this.#piecesHeld = 0
    const values = this.#fields.get(field)
    if (values) values.push(value)
    else this.#fields.set(field, [value])
  }

  #onFile(field: string | undefined, stream: Readable, info: busboy.FileInfo): void {
    // An unfinished file stream has an error of its own, told already by the parser's.
    stream.on('error', noop)
    if (this.#failure) return void stream.resume()
    const { files } = this.#options.limits
    if (++this.#fileCount > files) {
      stream.resume()
      return this.#fail(new UploadError('too_many_files', `the form has more than ${plural(files, 'file')}`))
    }
    if (field === undefined) return this.#fail(malformed('a file has no field name'))
    const labelError =
      checkLabel("the name of a file's field", field) ?? checkLabel('a media type', info.mimeType)
    if (labelError) return this.#fail(labelError)
    const encodingError = checkEncoding(field, info.encoding)
    if (encodingError) return this.#fail(encodingError)
    const name = cleanFileName(info.filename ?? '')
    // What a browser sends for an input left empty, and names such as `..`: no file, by Django's rules.
    if (name === undefined) return void stream.resume()
    const place = this.#staged.push(undefined) - 1
    this.#transfers.push(this.#transfer({ field, name, type: info.mimeType }, stream, place))
  }

  /** One file, from the opening of its sink to staged or aborted. Never rejects. */
  async #transfer(file: FileInfo, stream: Readable, place: number): Promise<void> {
    let sink: FileSink | undefined
    if (this.#transfers.length >= OPEN_MAX) await this.#turn()
    if (this.#failure) return
    try {
      const accepting = this.#options.accepts?.(file.name, this.#fields)
      if (accepting) await this.#hold(accepting)
      const opening = this.#options.chain.open(file, noHandler, this.#upload)
      sink = opening instanceof Promise ? await this.#hold(opening) : opening
      if (!this.#failure) await this.#pour(stream, sink)
    } catch (error) {
      this.#fail(UploadError.from(error, 'handler_failed', `receiving ${file.name}`))
    }
    try {
      if (!this.#failure) this.#staged[place] = await sink?.close()
      else await sink?.abort(this.#failure)
    } catch (error) {
      this.#fail(UploadError.from(error, 'handler_failed', `storing ${file.name}`))
    }
  }

  /** Lets a file wait where OPEN_MAX before it are not all staged; meanwhile no more of the body is read. */
  async #turn(): Promise<void> {
    const before = this.#transfers[this.#transfers.length - OPEN_MAX]
    if (!before) return
    this.#queued++
    this.#req.pause()
    await this.#hold(before)
    this.#queued--
    this.#resume()
  }

  /** Feeds the sink from the part; resolves at its end, or after a failure, when no write is pending any more. */
  #pour(stream: Readable, sink: FileSink): Promise<void> {
    return new Promise((resolve, reject) => {
      let writing = false
      let ended = false
      const finish = () => {
        ended = true
        // `end` comes even while the last write is pending.
        if (!writing) resolve()
      }
      stream.on('data', chunk => {
        if (this.#failure) return
        try {
          const wait = sink.write(chunk)
          if (!wait) return
          writing = true
          stream.pause()
          this.#hold(wait).then(() => {
            writing = false
            if (ended) resolve()
            else stream.resume()
          }, reject)
        } catch (error) {
          // Until the failure is known: the rest of a chunk comes at once, and the sink is past writing.
          stream.pause()
          reject(error)
        }
      })
      stream.once('end', finish)
      stream.once('close', finish)
    })
  }

  async #hold<T>(wait: Promise<T>): Promise<T> {
    this.#holding++
    try {
      return await wait
    } finally {
      this.#holding--
    }
  }

  /** Ends an upload whose client sends nothing for `idle`, or over twice as long too little. */
  #watchClient({ idle, minRate }: ReceiveLimits): void {
    const upload = this.#upload
    let heard = { at: performance.now(), received: -1 }
    let window = { at: heard.at, received: 0 }
    const check = () => {
      const now = { at: performance.now(), received: upload.received }
      // While a handler holds the body back, or there is no more to send, it is not the client that is slow.
      const excused = this.#holding > 0 || this.#req.complete
      if (excused || now.received !== heard.received) heard = now
      if (excused) window = now
      if (now.at - heard.at >= idle) {
        this.#fail(new UploadError('idle_timeout', `nothing was received for ${formatDuration(idle)}`))
      } else if (now.at - window.at >= 2 * idle) {
        const rate = ((now.received - window.received) / (now.at - window.at)) * 1000
        if (rate < minRate) this.#fail(tooSlow(rate, minRate, 2 * idle))
        window = now
      }
    }
    this.#idleCheck = setInterval(check, Math.max(10, idle / 8)).unref()
  }

  /** The one way out for every failure: the body is no longer read, and what is open closes itself. */
  #fail(error: UploadError): void {
    if (this.#failure) return
    this.#failure = error
    this.#req.off('data', this.#onData)
    this.#req.off('end', this.#onEnd)
    this.#req.pause()
    // Not from within the parser's own events: busboy's destroy() is not safe there.
    process.nextTick(() => this.#parser.destroy())
    this.#failed(error)
  }
}

/**
 * Puts our search for the delimiter in the place of busboy's: it is three times as fast, and it tells
 * what busboy does not. busboy drops parts that it cannot make sense of without any event: a raw quote
 * in a file name, a missing disposition, a file cut by its own boundary. The search sees them all, so
 * they are counted there. After the closing delimiter busboy goes on to the end of the chunk: what it
 * finds there is no part. And a file whose data begins with the delimiter can leave it complete with
 * that file open, for ever. busboy 1.6.0 is final; a test fails if its inside ever changes.
 */
function searchDelimiters(parser: Writable, told: DelimiterListener): void {
  const inside = parser as unknown as {
    _complete: boolean
    _fileStream: Readable | null | undefined
    _hparser: object | null
    _bparser: Pick<DelimiterSearch, 'push' | 'destroy'> & { _needle: Buffer; _cb: OnPiece }
  }
  const { _needle: delimiter, _cb: onPiece } = inside._bparser
  // busboy keeps every piece of a field's value as it comes: small ones are handed on together.
  let small: Buffer | undefined
  let gathered = 0
  const handOn = () => {
    const bytes = gathered
    gathered = 0
    // Not safe: the block is used again.
    if (small && bytes > 0) onPiece(false, small, 0, bytes, false)
  }
  let headRead = false
  let head = inside._hparser
  Object.defineProperty(inside, '_hparser', {
    get: () => head,
    set: (value: object | null) => {
      headRead = value === null
      head = value
    },
  })
  // The line end that busboy has put before the body already, so that the first delimiter is like the others.
  const search = new DelimiterSearch(delimiter, Buffer.from('\r\n'), (isMatch, data, start, end, isSafe) => {
    if (inside._complete) return
    if (!inside._fileStream) {
      if (headRead) told.held(end - start)
      if (headRead && data && !isMatch && end - start < FIELD_BLOCK) {
        if (gathered + end - start > FIELD_BLOCK) handOn()
        small ??= Buffer.allocUnsafeSlow(FIELD_BLOCK)
        gathered += data.copy(small, gathered, start, end)
        return
      }
      handOn()
    }
    onPiece(isMatch, data, start, end, isSafe)
    if (isMatch) headRead = false
    if (inside._complete && inside._fileStream) told.cut()
    else if (isMatch && !inside._complete) told.found()
  })
  Object.assign(inside, { _bparser: search })
}

interface DelimiterListener {
  /** A delimiter that is not the closing one. */
  found(): void
  /** So many bytes of a field's value. */
  held(bytes: number): void
  /** The closing delimiter came within a file. */
  cut(): void
}

/** RFC 7578, 4.7: the header is deprecated; bytes that need decoding would be stored encoded. */
function checkEncoding(field: string, encoding: string): UploadError | undefined {
  if (encoding === '7bit' || encoding === '8bit' || encoding === 'binary') return undefined
  return malformed(`the part ${field} has Content-Transfer-Encoding ${encoding}, which is not supported`)
}

function checkLabel(what: string, label: string): UploadError | undefined {
  const bytes = Buffer.byteLength(label)
  if (bytes <= LABEL_MAX_BYTES) return undefined
  return malformed(`${what} has ${bytes} bytes, ${LABEL_MAX_BYTES} are allowed`)
}

function noHandler(file: FileInfo): never {
  throw new UploadError('handler_failed', `no upload handler took ${file.name}`)
}

function malformed(detail: string): UploadError {
  return new UploadError('malformed_body', detail)
}

function bodyTooLarge(limit: number, size?: number): UploadError {
  const sent = size === undefined ? '' : `: it has ${formatSize(size)} (${size} bytes)`
  return new UploadError(
    'body_too_large',
    `the upload is larger than ${formatSize(limit)} (${limit} bytes)${sent}`,
  )
}

function fieldsTooLarge(limit: number): UploadError {
  return new UploadError('fields_too_large', `the form's fields are larger than ${formatSize(limit)}`)
}

function tooSlow(rate: number, minRate: number, over: number): UploadError {
  const rates = `${formatSize(rate)}/s over ${formatDuration(over)}, less than ${formatSize(minRate)}/s`
  return new UploadError('too_slow', `the client sent ${rates}`)
}

function clientGone({ received, size }: Upload): UploadError {
  const of = size === undefined ? '' : ` of ${size}`
  return new UploadError('truncated_body', `the client left after ${received}${of} bytes`)
}

function noop(): void {}
