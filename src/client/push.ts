import { randomBytes } from 'node:crypto'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { UploadError } from '../errors.ts'
import { checkDurations, checkNames, type NamesOf } from '../names.ts'
import {
  DEFAULT_URL,
  isProgressId,
  PROGRESS_ID,
  type Progress,
  type Receipt,
  TITLE_MAX,
} from '../protocol.ts'
import { formatDuration } from '../units.ts'
import { type Address, parseAddress, withoutSecrets } from './address.ts'
import { readProblem, readReceipt } from './answers.ts'
import { type Connection, openConnection } from './connection.ts'
import { multipartFrame } from './multipart.ts'
import { lastingFailure, networkReason, plainToTls, speaksTls } from './network-error.ts'
import { Patience } from './patience.ts'
import { askProgress, type ProgressEndpoint, poll, readText } from './poll.ts'
import type { Source } from './source.ts'

/** What all files of a sender have in common. */
export interface SenderOptions {
  /** The server's base URL; http://127.0.0.1:8000/ by default. Its user and password are sent as Basic, its query is kept. */
  url?: string
  /** The file's name, cut to 50 characters, by default. */
  title?: string
  /** The media type declared; application/octet-stream by default. */
  type?: string
  /** Sent as a Bearer token. */
  token?: string
  /** Milliseconds between polls; 100 by default. */
  interval?: number
  /** Milliseconds without any sign of life from the server before the push gives up; 60 000 by default, 0 for never. */
  timeout?: number
}

export interface FileOptions {
  /** What to send. It is closed at the end, however that comes. */
  source: Source
  /** The name the file is sent under; the source's own by default. */
  name?: string
  /** The progress id; 128 random bits by default. */
  id?: string
  /** Ends the push; its reason is what the push rejects with where that is an UploadError. */
  signal?: AbortSignal
  /** Called whenever something has changed. */
  onProgress?: (progress: PushProgress) => void
}

export interface PushOptions extends SenderOptions, FileOptions {}

const SENDER_OPTIONS: NamesOf<SenderOptions> = {
  url: true,
  title: true,
  type: true,
  token: true,
  interval: true,
  timeout: true,
}

const FILE_OPTIONS: NamesOf<FileOptions> = {
  source: true,
  name: true,
  id: true,
  signal: true,
  onProgress: true,
}

export interface PushProgress {
  phase: 'connecting' | 'uploading' | 'storing'
  /** Body bytes the server has received, by its own count; by ours where `source` is `client`. Never falls. */
  received: number
  /** Body bytes handed to the socket; runs ahead of the server by what the buffers in between hold. */
  sent: number
  /** Body bytes in all; undefined while unknown. */
  size: number | undefined
  /** Body bytes of the form around the file, nearly all of them before it. */
  overhead: number
  /** Whose count `received` is. */
  source: 'server' | 'client'
  /** Why it is ours, once it is. */
  why?: string
}

export interface PushResult {
  id: string
  title: string
  /** The name it was sent under. */
  sentAs: string
  /** The name the server stored the file under. */
  name: string
  /** Why that is not the file's own name, where it is not: `name taken`, say. */
  why?: string
  /** Bytes of the file. */
  size: number
  /** Of the bytes sent, lower-case hexadecimal. */
  sha256: string
  /** True where what arrived has the same digest, by the server's word; false where it computes none. A different one rejects. */
  verified: boolean
  /** From the first byte read to the server's answer, in milliseconds. */
  ms: number
  receipt: Receipt
}

/** The upload is stored, but not as the file is: `digest_mismatch`, `changed`. */
export class StoredError extends UploadError {
  /** What the push would have resolved with. */
  readonly result: PushResult

  constructor(code: 'digest_mismatch' | 'changed', message: string, result: PushResult) {
    super(code, message)
    this.result = result
  }
}

const POLL_INTERVAL_MS = 100
const TIMEOUT_MS = 60_000
/** So many polls in a row may fail, and so long may the server know nothing, before the bar shows our count. */
const FAILURES_MAX = 3
const STARTING_MAX_MS = 3000
/** After the progress endpoint has said that it failed, how long the answer itself may take. */
const ANSWER_GRACE_MS = 2000
/** Each timeout has so many polls at least: their answers may be the only signs of life. */
const POLLS_PER_TIMEOUT = 4
/** After a broken connection, how often the progress endpoint is asked for the reason, and how far apart. */
const RESCUE_TRIES = 10
const RESCUE_INTERVAL_MS = 100
/** What a directory takes for one name, nearly everywhere, in bytes. */
const NAME_MAX_BYTES = 255

/** Sends files to one server, on connections that are kept between them. */
export interface Sender {
  /**
   * Sends one file and resolves when the server has stored it and both sides' digests are equal.
   * Rejects with an UploadError: the server's own, or one of the client's: usage, local_file,
   * unreachable, connection_lost, stalled, unavailable, unknown_host, bad_certificate, wrong_protocol,
   * bad_answer; where it may be stored, answer_lost; and where it is, a StoredError: digest_mismatch, changed.
   * One file at a time.
   */
  push(options: FileOptions): Promise<PushResult>
  close(): Promise<void>
}

/** Throws `usage` for options that cannot be. Connects when there is something to send. */
export function openSender(options: SenderOptions = {}): Sender {
  checkNames('openSender', options, SENDER_OPTIONS)
  return new KeptSender(options)
}

/** Sends one file, as a sender does. */
export async function push(options: PushOptions): Promise<PushResult> {
  let sender: Sender | undefined
  try {
    checkNames('push', options, { ...SENDER_OPTIONS, ...FILE_OPTIONS })
    sender = new KeptSender(options)
    return await sender.push(options)
  } finally {
    if (sender) await sender.close()
    else await options.source.close()
  }
}

/** Each throws `usage` for what no server would take. */
export function checkType(type: string): void {
  if (!/^[\w.+-]+\/[\w.+-]+$/.test(type))
    throw new UploadError('usage', `${type} is not a media type such as text/plain`)
}

export function checkTitle(title: string): void {
  const length = Array.from(title.trim()).length
  if (length > TITLE_MAX)
    throw new UploadError('usage', `a title has at most ${TITLE_MAX} characters, this one has ${length}`)
}

export function checkId(id: string): void {
  if (!isProgressId(id))
    throw new UploadError('usage', `${id}: a progress id is 1 to 128 of A-Z a-z 0-9 . _ ~ -`)
}

class KeptSender implements Sender {
  readonly #options: SenderOptions
  readonly #address: Address
  readonly #upload: Connection
  /** Polls on the upload's own connection would wait in line behind it. */
  readonly #polling: Connection
  /** The id of the last file that was stored. */
  #stored: string | undefined

  constructor(options: SenderOptions) {
    const { url = DEFAULT_URL, token, title, type, interval = 0, timeout = 0 } = options
    if (type !== undefined) checkType(type)
    if (title !== undefined) checkTitle(title)
    checkDurations('push', { interval, timeout })
    this.#options = options
    this.#address = parseAddress(url, token)
    this.#upload = openConnection(this.#address.base.origin)
    this.#polling = openConnection(this.#address.base.origin)
  }

  async push(options: FileOptions): Promise<PushResult> {
    const { source, id = randomBytes(16).toString('hex') } = options
    try {
      checkId(id)
      const endpoint = { ...this.#address, id, connection: this.#polling }
      const each = { ...this.#options, ...options }
      const result = await new Transfer(each, this.#upload, endpoint, this.#stored).run()
      this.#stored = id
      return result
    } finally {
      await source.close()
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.#upload.destroy(), this.#polling.destroy()])
  }
}

interface Answer {
  status: number
  text: string
  location: string | undefined
  retryAfter: string | undefined
}

/** One file on its way. */
class Transfer {
  readonly #options: PushOptions
  readonly #connection: Connection
  readonly #endpoint: ProgressEndpoint
  readonly #storedBefore: string | undefined
  readonly #progress: PushProgress
  /** Ends the upload's request: the caller's signal, a stall, or an outcome without an answer. */
  readonly #end = new AbortController()
  readonly #endPolling = new AbortController()
  /** What the system takes of us is a sign of life, however slowly it goes. */
  readonly #patience = new Patience(() => {
    const taken = this.#connection.taken()
    if (taken !== this.#taken) this.#alive()
    this.#taken = taken
  })
  #taken = 0
  #fileBytes = 0
  /** Body bytes given to the connection, those on their way to the socket too: no server has received more. */
  #given = 0
  /** The highest count of the server's. */
  #counted = 0
  /** The source was read to its end: before that nobody can have stored it. */
  #allRead = false
  /** All of the body has been handed to the socket: whatever happens now, it may be stored. */
  #allSent = false
  /** The answer's status, as soon as its head is there. */
  #status = 0
  /** Interim answers (1xx) since the last sign of life. */
  #interim = 0
  /** The server's own word, the last one. */
  #said: Progress | undefined
  /** performance.now() of the first byte sent; 0 before it. */
  #began = 0

  constructor(
    options: PushOptions,
    connection: Connection,
    endpoint: ProgressEndpoint,
    storedBefore: string | undefined,
  ) {
    this.#options = options
    this.#connection = connection
    this.#endpoint = endpoint
    this.#storedBefore = storedBefore
    this.#progress = {
      phase: 'connecting',
      received: 0,
      sent: 0,
      size: undefined,
      overhead: 0,
      source: 'server',
    }
  }

  async run(): Promise<PushResult> {
    const { source, signal } = this.#options
    const sentAs = this.#options.name ?? source.name
    const title = this.#options.title ?? Array.from(sentAs).slice(0, TITLE_MAX).join('')
    const follow = () => this.#end.abort(signal?.reason)
    signal?.addEventListener('abort', follow)
    if (signal?.aborted) follow()
    this.#patience.wait(this.#timeout, () => this.#end.abort(this.#stalled()))
    this.#report({})
    let answer: Answer
    try {
      answer = await this.#request(sentAs, title)
      this.#patience.stop()
      if (answer.status !== 201) throw (await this.#behindGateway(answer)) ?? refusal(answer, this.#endpoint)
      if (!this.#allRead) {
        const early = `the server says done after ${this.#progress.sent} bytes sent, before ${source.name} was at its end`
        throw new UploadError('bad_answer', early)
      }
    } catch (error) {
      const failure = await this.#explain(error)
      // Whatever it failed of, and however long that took to find out: who was told to stop has stopped.
      throw signal?.aborted ? this.#interrupted(error) : failure
    } finally {
      this.#patience.stop()
      this.#endPolling.abort()
      signal?.removeEventListener('abort', follow)
    }
    const ms = performance.now() - this.#began
    const { mismatch, ...stored } = await this.#compared(answer.text)
    const result = { id: this.#endpoint.id, title, sentAs, ...stored, ms }
    if (mismatch !== undefined) throw new StoredError('digest_mismatch', mismatch, result)
    if (source.change !== undefined) {
      const read = `what was read is stored as ${result.name}`
      throw new StoredError('changed', `${source.name} ${source.change} while it was sent; ${read}`, result)
    }
    return result
  }

  get #timeout(): number {
    return this.#options.timeout ?? TIMEOUT_MS
  }

  async #request(name: string, title: string): Promise<Answer> {
    const { source, type = 'application/octet-stream' } = this.#options
    const { base, query, id, headers: proof } = this.#endpoint
    const frame = multipartFrame({ title }, { field: 'file', name, type })
    const overhead = frame.before.length + frame.after.length
    const length = source.size === undefined ? undefined : source.size + overhead
    const headers: Record<string, string> = {
      ...proof,
      accept: 'application/json',
      'content-type': frame.contentType,
      [PROGRESS_ID]: id,
    }
    if (length !== undefined) headers['content-length'] = String(length)
    Object.assign(this.#progress, { size: length, overhead })
    const {
      statusCode,
      headers: answered,
      body,
    } = await this.#connection.request({
      path: base.pathname + query,
      method: 'POST',
      headers,
      // undici takes any async iterable; its types name only Readable.
      body: this.#body(frame.before, frame.after) as unknown as Readable,
      signal: this.#end.signal,
      onInfo: () => this.#interim++,
    })
    this.#status = statusCode
    // The rest of the answer is short: it has no time but this, and nothing else is a sign of life now.
    this.#endPolling.abort()
    const unfinished = new UploadError('bad_answer', `the server answered HTTP ${statusCode}, without an end`)
    this.#patience.wait(this.#timeout, () => this.#end.abort(unfinished))
    const text = await readText(body).catch(error => {
      // A refusal is one without its words, too.
      if (statusCode === 201 || this.#options.signal?.aborted) throw error
      return ''
    })
    const one = (value: string | string[] | undefined) => (Array.isArray(value) ? value[0] : value)
    return {
      status: statusCode,
      text,
      location: one(answered['location']),
      retryAfter: one(answered['retry-after']),
    }
  }

  /** The body, counting what the socket took. undici starts to read it when the connection is there. */
  async *#body(before: Buffer, after: Buffer): AsyncGenerator<Uint8Array> {
    this.#began = performance.now()
    this.#report({ phase: 'uploading' })
    void this.#poll()
    this.#given = before.length
    yield before
    this.#sent()
    for await (const chunk of this.#read()) {
      this.#fileBytes += chunk.length
      this.#given += chunk.length
      yield chunk
      this.#sent()
    }
    this.#allRead = true
    this.#given += after.length
    yield after
    this.#allSent = true
    this.#sent()
  }

  /** The source's bytes. While it has none to give, the server owes nothing; until its answer or its progress has said how it ended. */
  async *#read(): AsyncGenerator<Uint8Array> {
    const wait = () => (this.#patience.suspended = !this.#endPolling.signal.aborted)
    wait()
    for await (const chunk of this.#options.source.read()) {
      this.#patience.suspended = false
      yield chunk
      wait()
    }
    this.#patience.suspended = false
  }

  /** The socket has taken what it was given. */
  #sent(): void {
    this.#report({ sent: this.#given })
  }

  #alive(): void {
    // What is still sent after the outcome is known, or its answer has begun, makes neither come.
    if (this.#endPolling.signal.aborted) return
    this.#interim = 0
    this.#patience.heard()
  }

  #poll(): Promise<void> {
    const { interval = POLL_INTERVAL_MS } = this.#options
    return poll(this.#endpoint, {
      interval: Math.min(interval, this.#timeout / POLLS_PER_TIMEOUT || interval),
      signal: this.#endPolling.signal,
      onProgress: progress => this.#heard(progress),
      onFailure: (error, failures) => {
        if (failures >= FAILURES_MAX) this.#fallBack(error.message || 'no connection')
      },
    })
  }

  #heard(progress: Progress): void {
    this.#said = progress
    if (progress.state === 'starting') {
      // Normal for a moment. For longer, whoever answers does not see the upload: a buffering proxy, say.
      if (performance.now() - this.#began > STARTING_MAX_MS) this.#fallBack('it does not know this upload')
    } else if (progress.state === 'uploading') {
      const received = Math.min(progress.received, this.#given)
      const storing = progress.phase === 'storing' && this.#allSent
      // Of a server that stores there is no count that could rise; one that does not rise is no life.
      if (received > this.#counted || storing) this.#alive()
      this.#counted = Math.max(this.#counted, received)
      delete this.#progress.why
      this.#report({
        source: 'server',
        received: Math.max(this.#progress.received, received),
        phase: storing ? 'storing' : 'uploading',
      })
    } else if (progress.state === 'error' || this.#allSent) {
      // The answer is on its way to us. If it never comes, this is what there is to tell.
      this.#endPolling.abort()
      const grace = progress.state === 'error' ? ANSWER_GRACE_MS : this.#timeout
      const why = `no answer came within ${formatDuration(grace)}`
      const end =
        this.#verdict(progress, why) ?? new UploadError('connection_lost', `the body ended early: ${why}`)
      this.#patience.wait(grace, () => this.#end.abort(end))
    }
  }

  /** From here on, until a poll succeeds, the count shown is of bytes sent. */
  #fallBack(why: string): void {
    const { sent, received } = this.#progress
    this.#report({ source: 'client', why, received: Math.max(received, sent) })
  }

  #report(change: Partial<PushProgress>): void {
    Object.assign(this.#progress, change)
    const { source, sent, received } = this.#progress
    if (source === 'client') this.#progress.received = Math.max(received, sent)
    this.#options.onProgress?.({ ...this.#progress })
  }

  #stalled(): UploadError {
    const { received, sent } = this.#progress
    const silence = `no sign of life from ${this.#endpoint.base.host} for ${formatDuration(this.#timeout)}`
    if (!this.#allSent) {
      return new UploadError('stalled', `${silence} (${sent} bytes sent, ${received} received)`)
    }
    if (this.#interim === 0) return this.#answerLost(this.#said, silence)
    const interim = `${this.#interim} interim answers (1xx) in ${formatDuration(this.#timeout)}`
    return new UploadError('bad_answer', `${interim}, and never an answer`)
  }

  /** What the caller's signal ended it for. */
  #interrupted(cause: unknown): UploadError {
    const reason: unknown = this.#options.signal?.reason
    if (reason instanceof UploadError) return reason
    return new UploadError('interrupted', 'the push was interrupted', { cause })
  }

  /** What a failed request failed of: our own reason, the file's, the server's by its progress, or the network's. */
  async #explain(thrown: unknown): Promise<UploadError> {
    const { reason, aborted } = this.#end.signal
    if (thrown instanceof UploadError) return thrown
    if (aborted && reason instanceof UploadError) return reason
    if (aborted) return this.#interrupted(thrown)
    const { base } = this.#endpoint
    const lasting = lastingFailure(thrown, this.#endpoint)
    if (lasting) return lasting
    const why = networkReason(thrown)
    const cause = { cause: thrown }
    if (this.#began === 0)
      return new UploadError('unreachable', `cannot connect to ${base.host}: ${why}`, cause)
    const { sent, size } = this.#progress
    const of = size === undefined ? '' : ` of ${size}`
    const broken = `the connection broke after ${sent}${of} bytes: ${why}`
    if (this.#status === 201) {
      const begun = 'the server began to say that it has stored the upload, which may be stored'
      return new UploadError('answer_lost', `${begun}, but the rest of its answer is lost: ${broken}`, cause)
    }
    // A server that refuses in mid-upload may have reset the connection before its answer was read.
    const said = await this.#ask()
    const verdict = this.#verdict(said, broken)
    if (verdict) return verdict
    if (
      said === undefined &&
      base.protocol === 'http:' &&
      (await speaksTls(base, ANSWER_GRACE_MS, this.#end.signal))
    )
      return plainToTls(base, thrown)
    const unread = said?.state === 'starting' && (await this.#wentUnread())
    if (this.#allSent && said?.state !== 'error' && !unread) return this.#answerLost(said, broken)
    return new UploadError('connection_lost', broken, cause)
  }

  /** A gateway that gave up on the server says nothing of what the server did. */
  async #behindGateway({ status, text }: Answer): Promise<UploadError | undefined> {
    const own = status >= 500 && readProblem(text, this.#endpoint.hide).code === undefined
    return own ? this.#verdict(await this.#ask(), `a gateway answered HTTP ${status}`) : undefined
  }

  /** What the server's progress says in the end. */
  async #ask(): Promise<Progress | undefined> {
    for (let tries = 1; ; tries++) {
      const said = await askProgress(this.#endpoint, this.#end.signal).catch(() => undefined)
      if (said?.state !== 'uploading' || tries === RESCUE_TRIES) return said
      await delay(RESCUE_INTERVAL_MS, undefined, { signal: this.#end.signal }).catch(() => {})
    }
  }

  /**
   * Whether a kept connection ended as our request was on its way: nothing of an answer came, and a
   * progress that does not know this upload knows the one before it.
   */
  async #wentUnread(): Promise<boolean> {
    const id = this.#storedBefore
    if (id === undefined || !this.#connection.unheard()) return false
    const before = await askProgress({ ...this.#endpoint, id }, this.#end.signal).catch(() => undefined)
    return before?.state === 'done'
  }

  /** How it ended, where the progress can say: refused, or stored, or all there and about to be. */
  #verdict(said: Progress | undefined, why: string): UploadError | undefined {
    if (said?.state === 'error') {
      // Our own connection's end, as the server saw it, explains nothing.
      if (said.code === 'truncated_body') return undefined
      return UploadError.fromServer(said.status, said.code, said.detail)
    }
    const mayBe = said?.state === 'done' || (said?.state === 'uploading' && this.#allSent)
    return mayBe ? this.#answerLost(said, why) : undefined
  }

  #answerLost(said: Progress | undefined, why: string): UploadError {
    if (said?.state === 'done')
      return new UploadError(
        'answer_lost',
        `the server has stored the upload, but its answer is lost: ${why}`,
      )
    const progress =
      said?.state === 'uploading'
        ? `its progress says ${said.received} bytes received, ${said.phase}`
        : said
          ? 'its progress does not know the upload'
          : 'its progress cannot be had'
    const all = `all ${this.#progress.sent} bytes were sent and may be stored, but the answer is lost`
    return new UploadError('answer_lost', `${all}: ${why}; ${progress}`)
  }

  /** What the receipt says of the file, and where that is not what was sent. */
  async #compared(text: string) {
    const { source } = this.#options
    const { hide } = this.#endpoint
    const name = hide(this.#options.name ?? source.name)
    const receipt = readReceipt(text, hide)
    const stored = receipt?.files[0]
    if (!receipt || !stored)
      throw new UploadError('bad_answer', 'the server says done, but its answer is no receipt')
    const sha256 = await source.sha256()
    // A handler may have changed what it stored; what it was given is what we can know.
    const arrived = stored.arrived ?? stored
    const size = this.#fileBytes
    const verified = arrived.size === size && arrived.sha256 === sha256
    let mismatch: string | undefined
    if (arrived.size !== size || (arrived.sha256 !== undefined && !verified)) {
      const theirs = `${arrived.size}${arrived.sha256 === undefined ? '' : ` with ${arrived.sha256}`}`
      mismatch = `${stored.name}: sent ${size} bytes with sha-256 ${sha256}, the server stored ${theirs}`
    }
    const reasons = []
    if (source.renamed !== undefined && this.#options.name === undefined) reasons.push(source.renamed)
    const { sentAs } = stored
    if (sentAs !== name)
      reasons.push(Buffer.byteLength(name) > NAME_MAX_BYTES ? 'name shortened' : 'name cleaned')
    if (stored.name !== sentAs) reasons.push('name taken')
    const why = reasons.join(', ')
    return { name: stored.name, ...(why && { why }), size, sha256, verified, receipt, mismatch }
  }
}

function refusal(
  { status, text, location, retryAfter }: Answer,
  { base, query, hide }: Address,
): UploadError {
  if (status >= 300 && status < 400) {
    const url =
      location !== undefined && URL.canParse(location, base.href) ? new URL(location, base).href : location
    const to = url === undefined ? '' : ` to ${hide(withoutSecrets(url))}`
    return new UploadError('bad_answer', `the server redirects${to}; push does not follow`, { status })
  }
  // What nginx and Go say to a plain request.
  if (status === 400 && base.protocol === 'http:' && /\bHTTPS (port|server)\b/i.test(text))
    return plainToTls(base)
  const { code = '', detail = `the server answered HTTP ${status}`, errors } = readProblem(text, hide)
  // Which server was asked is half of what may be wrong, and its own words know only the path.
  const where = status === 404 ? `${base.href}${query && '?…'}: ` : ''
  const when = retryAfter && retryTime(retryAfter)
  return UploadError.fromServer(status, code, where + detail + (when ? `; try again ${when}` : ''), errors)
}

/** RFC 9110, 10.2.3: seconds, or a date; '' for anything else. */
function retryTime(retryAfter: string): string {
  if (/^\d{1,9}$/.test(retryAfter)) return `in ${formatDuration(Number(retryAfter) * 1000)}`
  return /^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$/.test(retryAfter) ? `after ${retryAfter}` : ''
}
