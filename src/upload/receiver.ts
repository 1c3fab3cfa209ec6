import type { IncomingMessage } from 'node:http'
import { UploadError } from '../errors.ts'
import type { Limits } from '../limits.ts'
import type { Awaitable, Phase } from '../protocol.ts'
import type { StagedFile } from '../storage/storage.ts'
import { formatDuration, formatSize, isOrAre, plural } from '../units.ts'
import { type Body, bodyOf, hasArrived } from './body.ts'
import { DigestCheck, refuseDigestsIn, wantedDigests } from './content-digest.ts'
import { FormFields } from './fields.ts'
import { cleanFileName, nameByField } from './filename.ts'
import { type FormListener, FormParser, type PartHead } from './form-parser.ts'
import type { FileInfo, FileSink, Upload, UploadHandler } from './handler.ts'
import { charsetOf } from './part-head.ts'
import { every } from './ticks.ts'

export type ReceiveLimits = Pick<
  Limits,
  'body' | 'files' | 'fields' | 'fieldBytes' | 'partHead' | 'nameBytes' | 'idle' | 'minRate'
>

/** Files of one request that are open at once; a form may hold more small ones than a process may open. */
const OPEN_MAX = 32

/** What the fields of all forms take together, in bytes, and may take. */
export interface FieldMemory {
  held: number
  readonly max: number
}

/** What those of one form take of it until its answer is out, which says them again. */
export class FieldClaim {
  readonly #memory: FieldMemory
  #held = 0

  constructor(memory: FieldMemory) {
    this.#memory = memory
  }

  /** Throws a `too_many_uploads` where it is too much; the only form there is always has room. */
  hold(bytes: number): void {
    const memory = this.#memory
    this.#held += bytes
    memory.held += bytes
    if (memory.held <= memory.max || memory.held === this.#held) return
    const held = `the fields of all uploads together take more than ${formatSize(memory.max)}`
    throw new UploadError('too_many_uploads', held)
  }

  release(): void {
    this.#memory.held -= this.#held
    this.#held = 0
  }
}

export interface ReceiveOptions {
  /** Released by the caller. */
  fieldClaim: FieldClaim
  /** The composed chain. */
  chain: Required<UploadHandler>
  limits: ReceiveLimits
  /** Called once the request is accepted, before its body is read: the moment to send 100 Continue. */
  askForBody?: () => void
  /** Bytes; larger bodies are read directly, see body.ts. */
  directMin?: number
  /** May refuse a file, by its cleaned name and the fields that came before it, before its bytes are stored; or says its `storedAs`. */
  accepts?: (name: string, fields: Received['fields']) => Awaitable<string | undefined>
}

export interface Received {
  /** Values by field name, in order of arrival. */
  fields: ReadonlyMap<string, readonly string[]>
  files: readonly StagedFile[]
  /** The fields of parts that are no files: empty and without a name, as of an input that was left alone. */
  blanks: readonly string[]
  /** The digests of the whole body that the request announced, once they were found right. */
  contentDigest: string | undefined
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
  const reception = new Reception(req, upload, options)
  // Neither event comes again where the client left, or the server gave up, while handlers were thinking.
  if (upload.aborted) throw upload.aborted
  if (req.destroyed) throw cutShort(req, upload)
  return reception.run()
}

/** Refuses what can be refused by the request's head: too long a body, a piece of one, another media type than a form's. */
export function announced(limits: Pick<Limits, 'body'>): UploadHandler {
  return {
    name: 'announced',
    begin({ size, headers }) {
      if (size === undefined && headers['transfer-encoding'] === undefined) {
        throw new UploadError(
          'length_required',
          'the request says nothing of a body: neither Content-Length nor Transfer-Encoding',
        )
      }
      if (size !== undefined && size > limits.body) throw bodyTooLarge(limits.body, size)
      const range = headers['content-range']
      // RFC 9110, 14.5: for a method that defines no use of it, a piece would be taken for the whole.
      if (range !== undefined) {
        throw new UploadError(
          'partial_upload',
          `an upload is sent whole, not in pieces (Content-Range: ${range.slice(0, 100)})`,
        )
      }
      const coding = headers['content-encoding'] || 'identity'
      if (coding.toLowerCase() !== 'identity') {
        const detail = `an upload is sent as it is, not in Content-Encoding ${coding.slice(0, 100)}`
        throw new UploadError('unsupported_media_type', detail)
      }
      digestsOf(headers)
      refuseDigestsIn(headers.trailer?.toLowerCase().split(/[ \t]*,[ \t]*/) ?? [])
      const mediaType = headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase()
      if (mediaType === 'multipart/form-data') return
      const sent = mediaType ? `not ${mediaType}` : 'and the request has no Content-Type'
      throw new UploadError('unsupported_media_type', `an upload is sent as multipart/form-data, ${sent}`)
    },
  }
}

/** One body on its way into the sinks of its files. */
class Reception implements FormListener {
  readonly #req: IncomingMessage
  readonly #upload: RequestUpload
  readonly #options: ReceiveOptions
  readonly #parser: FormParser
  readonly #body: Body
  readonly #fields: FormFields
  readonly #blanks: string[] = []
  readonly #digest: DigestCheck | undefined
  /** The sink of the file that is being received; undefined where its bytes are skipped. */
  #sink: FileSink | undefined
  #file: FileInfo | undefined
  /** The file in hand while it has neither a name nor a byte. */
  #nameless: PartHead | undefined
  /** By file, in order; undefined until it is staged, and for a skipped one. */
  readonly #staged: (StagedFile | undefined)[] = []
  /** Every file whose end has come, on its way to staged; none of these rejects. */
  readonly #closing: Promise<void>[] = []
  #failure: UploadError | undefined
  #fieldCount = 0
  #fieldBytes = 0
  #fileCount = 0
  /** Bytes of a field that is not whole yet. */
  #piecesHeld = 0
  #stopWatching = noop

  constructor(req: IncomingMessage, upload: RequestUpload, options: ReceiveOptions) {
    this.#req = req
    this.#upload = upload
    this.#options = options
    const contentType = req.headers['content-type'] ?? ''
    this.#fields = new FormFields(charsetOf(contentType))
    this.#parser = new FormParser(contentType, options.limits, this)
    const wanted = digestsOf(req.headers)
    this.#digest = wanted && new DigestCheck(wanted)
    const { body } = options.limits
    const counted = (bytes: number) => {
      upload.received += bytes
      if (upload.received > body) throw bodyTooLarge(body)
    }
    this.#body = bodyOf(req, upload.size, counted, options.directMin)
  }

  async run(): Promise<Received> {
    try {
      this.#watchRequest()
      const digest = this.#digest
      const reading = this.#body.read(chunk => {
        digest?.update(chunk)
        return this.#parser.write(chunk)
      })
      this.#options.askForBody?.()
      await reading
      refuseDigestsIn(Object.keys(this.#req.trailers))
      this.#parser.end()
      this.#fields.end()
      const contentDigest = digest?.finish('the body')
      this.#upload.phase = 'storing'
      await Promise.all(this.#closing)
      if (this.#failure) throw this.#failure
      const files = this.#staged.filter(file => file !== undefined)
      return { fields: this.#fields.values, files, blanks: this.#blanks, contentDigest }
    } catch (thrown) {
      const error = this.#failure ?? UploadError.from(thrown, 'handler_failed', this.#doing())
      await this.#abortSink(error)
      await Promise.all(this.#closing)
      await Promise.all(this.#staged.map(file => file?.discard()))
      throw error
    } finally {
      this.#stopWatching()
    }
  }

  #watchRequest(): void {
    const req = this.#req
    const { limits } = this.#options
    req.on('error', noop)
    req.once('close', () => {
      if (!hasArrived(req) && !this.#body.hasFailed) this.#body.fail(cutShort(req, this.#upload))
    })
    this.#upload.onAbort = error => this.#body.fail(error)
    if (limits.idle > 0) this.#watchClient(limits)
  }

  get isOver(): boolean {
    return this.#body.hasFailed
  }

  field({ name, charset, digests }: PartHead, bytes: string): void {
    const { fields, fieldBytes } = this.#options.limits
    if (++this.#fieldCount > fields) {
      throw new UploadError(
        'too_many_fields',
        `the form has more than ${plural(fields, 'field')}: ${name} is one too many`,
      )
    }
    this.#fieldBytes += Buffer.byteLength(name) + bytes.length
    if (this.#fieldBytes > fieldBytes) throw fieldsTooLarge(fieldBytes, name)
    this.#piecesHeld = 0
    // As record and receipt will have it: JSON makes six bytes of a control.
    this.#options.fieldClaim.hold(2 * Buffer.byteLength(JSON.stringify([name, bytes])))
    if (digests) {
      const check = new DigestCheck(digests)
      check.update(Buffer.from(bytes, 'latin1'))
      check.finish(`the field ${name}`)
    }
    this.#fields.add(name, bytes, charset)
  }

  fieldData({ name }: PartHead, bytes: number): void {
    this.#piecesHeld += bytes
    const { fieldBytes } = this.#options.limits
    if (this.#piecesHeld > fieldBytes) throw fieldsTooLarge(fieldBytes, name)
    this.#options.fieldClaim.hold(bytes)
  }

  file(head: PartHead): Awaitable<void> {
    const { files, nameBytes } = this.#options.limits
    if (++this.#fileCount > files) {
      throw new UploadError(
        'too_many_files',
        `the form has more than ${plural(files, 'file')}: ${head.name} has one too many`,
      )
    }
    const length = Buffer.byteLength(head.filename ?? '')
    if (length > nameBytes) throw nameTooLong(head.name, length, nameBytes)
    const name = cleanFileName(head.filename ?? '', head.hasBackslash)
    if (name !== undefined) return this.#begin(head, name)
    // What a browser sends for an input left alone, and no file; unless bytes come.
    this.#nameless = head
  }

  #begin({ name: field, type, digests }: PartHead, name: string): Awaitable<void> {
    const file: FileInfo = { field, name, type, ...(digests && { digests }) }
    this.#file = file
    const accepting = this.#options.accepts?.(name, this.#fields.values)
    // Lets a file wait where OPEN_MAX before it are not all staged; meanwhile no more of the body is read.
    const before = this.#closing[this.#closing.length - OPEN_MAX]
    if (accepting || before) {
      return Promise.all([accepting, before]).then(([storedAs]) =>
        this.#open(storedAs === undefined ? file : { ...file, storedAs }),
      )
    }
    return this.#open(file)
  }

  #open(file: FileInfo): Awaitable<void> {
    const opening = this.#options.chain.open(file, noHandler, this.#upload)
    if (!(opening instanceof Promise)) this.#sink = opening
    else
      return opening.then(sink => {
        this.#sink = sink
      })
  }

  fileData(bytes: Buffer): Awaitable<void> {
    const head = this.#nameless
    if (!head) return this.#sink?.write(bytes)
    this.#nameless = undefined
    const opening = this.#begin(head, nameByField(head.name, head.type))
    return opening ? opening.then(() => this.#writeFirst(bytes)) : this.#sink?.write(bytes)
  }

  /** Unless it is over by now: the sink is aborted then, and nothing written. */
  #writeFirst(bytes: Buffer): Awaitable<void> {
    if (!this.isOver) return this.#sink?.write(bytes)
  }

  fileEnd(): void {
    this.#endBlank()
    const sink = this.#sink
    const file = this.#file
    this.#sink = undefined
    this.#file = undefined
    if (sink && file) this.#closing.push(this.#close(sink, file, this.#staged.push(undefined) - 1))
  }

  /** A file in hand that has neither a name nor a byte is none, unless its head says that there were some. */
  #endBlank(): void {
    const head = this.#nameless
    if (!head) return
    this.#nameless = undefined
    if (head.digests) new DigestCheck(head.digests).finish(`the part ${head.name}`)
    this.#blanks.push(head.name)
  }

  async #close(sink: FileSink, file: FileInfo, place: number): Promise<void> {
    try {
      this.#staged[place] = await sink.close()
    } catch (thrown) {
      this.#failure ??= UploadError.from(thrown, 'handler_failed', `storing ${file.name}`)
      this.#body.fail(this.#failure)
    }
  }

  async #abortSink(reason: UploadError): Promise<void> {
    const sink = this.#sink
    this.#sink = undefined
    try {
      await sink?.abort(reason)
    } catch {
      // The upload has failed already, for a reason worth more than this one.
    }
  }

  /** What goes on, for an error that does not tell. */
  #doing(): string {
    return this.#file ? `receiving ${this.#file.name}` : 'receiving the form'
  }

  /** Ends an upload whose client sends nothing for `idle`, or over twice as long too little. */
  #watchClient({ idle, minRate }: ReceiveLimits): void {
    const upload = this.#upload
    let heard = { at: performance.now(), received: -1 }
    let window = { at: heard.at, received: 0 }
    const check = () => {
      const now = { at: performance.now(), received: upload.received }
      // While a handler holds the body back, or there is no more to send, it is not the client that is slow.
      const excused = this.#body.waiting || hasArrived(this.#req)
      if (excused || now.received !== heard.received) heard = now
      if (excused) window = now
      if (now.at - heard.at >= idle) {
        this.#body.fail(new UploadError('idle_timeout', `nothing was received for ${formatDuration(idle)}`))
      } else if (now.at - window.at >= 2 * idle) {
        const rate = ((now.received - window.received) / (now.at - window.at)) * 1000
        if (rate < minRate) this.#body.fail(tooSlow(rate, minRate, 2 * idle))
        window = now
      }
    }
    this.#stopWatching = every(Math.max(10, idle / 8), check)
  }
}

/** What the request's head says of its body. Throws a `bad_digest` where it cannot be read. */
function digestsOf(headers: IncomingMessage['headers']) {
  return wantedDigests(name => headers[name]?.toString())
}

function noHandler(file: FileInfo): never {
  throw new UploadError('handler_failed', `no upload handler took ${file.name}`)
}

function bodyTooLarge(limit: number, size?: number): UploadError {
  const sent = size === undefined ? '' : `: it has ${formatSize(size)} (${size} bytes)`
  return new UploadError(
    'body_too_large',
    `the upload is larger than ${formatSize(limit)} (${limit} bytes)${sent}`,
  )
}

function fieldsTooLarge(limit: number, name: string): UploadError {
  return new UploadError(
    'fields_too_large',
    `the form's fields are larger than ${formatSize(limit)} with ${name}`,
  )
}

function nameTooLong(field: string, length: number, limit: number): UploadError {
  return new UploadError(
    'name_too_long',
    `the name of a file in ${field} has ${length} bytes, ${limit} ${isOrAre(limit)} allowed`,
  )
}

function tooSlow(rate: number, minRate: number, over: number): UploadError {
  const rates = `${formatSize(rate)}/s over ${formatDuration(over)}, less than ${formatSize(minRate)}/s`
  return new UploadError('too_slow', `the client sent ${rates}`)
}

/** The error of a body that ends, or whose client leaves, before all of it is there. */
export function cutShort(req: IncomingMessage, upload: RequestUpload): UploadError {
  // What node holds has arrived, though nobody has asked for it.
  upload.received += req.readableLength
  const of = upload.size === undefined ? '' : ` of ${upload.size}`
  return new UploadError('truncated_body', `the client left after ${upload.received}${of} bytes`)
}

function noop(): void {}
