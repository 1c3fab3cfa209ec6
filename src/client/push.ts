import { randomBytes } from 'node:crypto'
import type { Readable } from 'node:stream'
import { UploadError } from '../errors.ts'
import { checkNames, type NamesOf } from '../names.ts'
import {
  DEFAULT_URL,
  PROGRESS_ID,
  type Problem,
  type Progress,
  type Receipt,
  TITLE_MAX,
} from '../protocol.ts'
import { formatDuration } from '../units.ts'
import { type Connection, openConnection } from './connection.ts'
import { multipartFrame } from './multipart.ts'
import { askProgress, type ProgressEndpoint, poll, readText } from './poll.ts'
import type { Source } from './source.ts'

export interface PushOptions {
  /** The server's base URL; http://127.0.0.1:8000/ by default. */
  url?: string
  /** What to send. `push` closes it. */
  source: Source
  /** The file's name, cut to 50 characters, by default. */
  title?: string
  /** The name the file is sent under; the source's own by default. */
  name?: string
  /** The media type declared; application/octet-stream by default. */
  type?: string
  /** The progress id; 128 random bits by default. */
  id?: string
  token?: string
  /** Milliseconds between polls; 100 by default. */
  interval?: number
  /** Milliseconds without any sign of life from the server before the push gives up; 60 000 by default, 0 for never. */
  timeout?: number
  /** Ends the push; its reason is what the push rejects with where that is an UploadError. */
  signal?: AbortSignal
  /** Called whenever something has changed. */
  onProgress?: (progress: PushProgress) => void
}

const OPTIONS: NamesOf<PushOptions> = {
  url: true,
  source: true,
  title: true,
  name: true,
  type: true,
  id: true,
  token: true,
  interval: true,
  timeout: true,
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
  /** Whose count `received` is. */
  source: 'server' | 'client'
  /** Why it is ours, once it is. */
  why?: string
}

export interface PushResult {
  id: string
  title: string
  /** The name the server stored the file under. */
  name: string
  /** Bytes of the file. */
  size: number
  /** Of the bytes sent, lower-case hexadecimal. */
  sha256: string
  /** True where the server computed the same digest; false where it computes none. A different one rejects. */
  verified: boolean
  /** From the first byte read to the server's answer, in milliseconds. */
  ms: number
  receipt: Receipt
}

const CONNECT_TIMEOUT_MS = 10_000
const POLL_TIMEOUT_MS = 5000
/** So many polls in a row may fail, and so long may the server know nothing, before the bar shows our count. */
const FAILURES_MAX = 3
const STARTING_MAX_MS = 3000
/** After the progress endpoint has said how it ended, how long the answer itself may take. */
const ANSWER_GRACE_MS = 2000
/** After a broken connection, how often the progress endpoint is asked for the reason, and how far apart. */
const RESCUE_TRIES = 10
const RESCUE_INTERVAL_MS = 100

/**
 * Sends one file and resolves when the server has stored it and both sides' digests are equal.
 * Rejects with an UploadError: the server's own, or one of the client's (local_file, unreachable,
 * connection_lost, stalled, digest_mismatch, bad_answer).
 */
export async function push(options: PushOptions): Promise<PushResult> {
  let transfer: Transfer | undefined
  try {
    checkNames('push', options, OPTIONS)
    transfer = new Transfer(options)
    return await transfer.run()
  } finally {
    await transfer?.close()
    await options.source?.close()
  }
}

class Transfer {
  readonly #options: PushOptions
  readonly #base: URL
  readonly #id: string
  readonly #headers: Record<string, string>
  readonly #progress: PushProgress
  /** Ends the upload's request: the caller's signal, a stall, or an outcome without an answer. */
  readonly #end = new AbortController()
  readonly #endPolling = new AbortController()
  readonly #connections: Connection[] = []
  #fileBytes = 0
  /** performance.now() of the last sign of life, and of the first byte sent. */
  #alive = performance.now()
  #began = 0
  #answerTimer: NodeJS.Timeout | undefined
  #stallTimer: NodeJS.Timeout | undefined

  constructor(options: PushOptions) {
    this.#options = options
    this.#base = baseUrl(options.url ?? DEFAULT_URL)
    this.#id = options.id ?? randomBytes(16).toString('hex')
    this.#headers = options.token === undefined ? {} : { authorization: `Bearer ${options.token}` }
    this.#progress = { phase: 'connecting', received: 0, sent: 0, size: undefined, source: 'server' }
  }

  async run(): Promise<PushResult> {
    const { source, signal } = this.#options
    const follow = () => this.#end.abort(signal?.reason)
    signal?.addEventListener('abort', follow)
    if (signal?.aborted) follow()
    const upload = this.#connect(0)
    const polling = this.#connect(POLL_TIMEOUT_MS)
    const endpoint = { base: this.#base, id: this.#id, headers: this.#headers, connection: polling }

    const name = this.#options.name ?? source.name
    const title = this.#options.title ?? Array.from(name).slice(0, TITLE_MAX).join('')
    this.#watchForStall()
    this.#report({})
    let answer: { status: number; text: string; location: string | undefined }
    try {
      answer = await this.#request(upload, name, title, endpoint)
    } catch (error) {
      throw await this.#explain(error, endpoint)
    } finally {
      this.#endPolling.abort()
      signal?.removeEventListener('abort', follow)
    }
    const ms = performance.now() - this.#began
    if (answer.status !== 201) throw refusal(answer, this.#base)
    return this.#verified(answer.text, title, ms)
  }

  /** `timeout`: for an answer's head and between its bytes, in milliseconds; 0 for none. */
  #connect(timeout: number): Connection {
    const options = {
      headersTimeout: timeout,
      bodyTimeout: timeout,
      connect: { timeout: CONNECT_TIMEOUT_MS },
    }
    const connection = openConnection(this.#base.origin, options)
    this.#connections.push(connection)
    return connection
  }

  async close(): Promise<void> {
    clearInterval(this.#stallTimer)
    clearTimeout(this.#answerTimer)
    this.#endPolling.abort()
    await Promise.all(this.#connections.map(connection => connection.destroy()))
  }

  async #request(upload: Connection, name: string, title: string, endpoint: ProgressEndpoint) {
    const { source } = this.#options
    const type = this.#options.type ?? 'application/octet-stream'
    const frame = multipartFrame({ title }, { field: 'file', name, type })
    const length =
      source.size === undefined ? undefined : frame.before.length + source.size + frame.after.length
    const headers: Record<string, string> = {
      ...this.#headers,
      accept: 'application/json',
      'content-type': frame.contentType,
      [PROGRESS_ID]: this.#id,
    }
    if (length !== undefined) headers['content-length'] = String(length)
    this.#progress.size = length
    const {
      statusCode,
      headers: answered,
      body,
    } = await upload.request({
      path: this.#base.pathname,
      method: 'POST',
      headers,
      // undici takes any async iterable; its types name only Readable.
      body: this.#body(frame.before, frame.after, endpoint) as unknown as Readable,
      signal: this.#end.signal,
    })
    const location = answered['location']
    return {
      status: statusCode,
      text: await readText(body),
      location: Array.isArray(location) ? location[0] : location,
    }
  }

  /** The body, counting what the socket took. undici starts to read it when the connection is there. */
  async *#body(before: Buffer, after: Buffer, endpoint: ProgressEndpoint): AsyncGenerator<Uint8Array> {
    this.#began = performance.now()
    this.#report({ phase: 'uploading' })
    void this.#poll(endpoint)
    yield before
    this.#sent(before.length)
    for await (const chunk of this.#options.source.read()) {
      this.#fileBytes += chunk.length
      yield chunk
      this.#sent(chunk.length)
    }
    yield after
    this.#sent(after.length)
  }

  #sent(bytes: number): void {
    this.#alive = performance.now()
    this.#report({ sent: this.#progress.sent + bytes })
  }

  #poll(endpoint: ProgressEndpoint): Promise<void> {
    return poll(endpoint, {
      interval: this.#options.interval ?? 100,
      signal: this.#endPolling.signal,
      onProgress: progress => this.#heard(progress),
      onFailure: (error, failures) => {
        if (failures >= FAILURES_MAX) this.#fallBack(error.message || 'no connection')
      },
    })
  }

  #heard(progress: Progress): void {
    this.#alive = performance.now()
    if (progress.state === 'starting') {
      // Normal for a moment. For longer, whoever answers does not see the upload: a buffering proxy, say.
      if (this.#alive - this.#began > STARTING_MAX_MS) this.#fallBack('it does not know this upload')
    } else if (progress.state === 'uploading') {
      delete this.#progress.why
      this.#report({
        source: 'server',
        received: Math.max(this.#progress.received, progress.received),
        phase: progress.phase === 'storing' ? 'storing' : 'uploading',
      })
    } else {
      // The answer is on its way to us. If it never comes, this is what there is to tell.
      const error =
        progress.state === 'error'
          ? UploadError.fromServer(
              progress.status,
              progress.code,
              progress.detail ?? `HTTP ${progress.status}`,
            )
          : new UploadError(
              'connection_lost',
              'the server has stored the upload, but its answer did not arrive',
            )
      this.#answerTimer ??= setTimeout(() => this.#end.abort(error), ANSWER_GRACE_MS)
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

  #watchForStall(): void {
    const timeout = this.#options.timeout ?? 60_000
    if (timeout === 0) return
    this.#stallTimer = setInterval(
      () => {
        if (performance.now() - this.#alive < timeout) return
        const { received, sent } = this.#progress
        const counts = `${sent} bytes sent, ${received} received`
        this.#end.abort(
          new UploadError(
            'stalled',
            `no sign of life from ${this.#base.host} for ${formatDuration(timeout)} (${counts})`,
          ),
        )
      },
      Math.max(10, timeout / 8),
    ).unref()
  }

  /** What a failed request failed of: our own reason, the file's, the server's by its progress, or the network's. */
  async #explain(thrown: unknown, endpoint: ProgressEndpoint): Promise<UploadError> {
    if (this.#end.signal.aborted && this.#end.signal.reason instanceof UploadError)
      return this.#end.signal.reason
    if (thrown instanceof UploadError) return thrown
    if (this.#end.signal.aborted)
      return new UploadError('interrupted', 'the push was interrupted', { cause: thrown })
    const why = networkReason(thrown)
    if (this.#began === 0) {
      return new UploadError('unreachable', `cannot connect to ${this.#base.host}: ${why}`, { cause: thrown })
    }
    // A server that refuses in mid-upload may have reset the connection before its answer was read.
    for (let tries = 0; tries < RESCUE_TRIES; tries++) {
      const progress = await askProgress(endpoint, AbortSignal.timeout(ANSWER_GRACE_MS)).catch(
        () => undefined,
      )
      if (progress === undefined || progress.state === 'starting') break
      if (progress.state === 'error' && progress.code !== 'truncated_body') {
        return UploadError.fromServer(progress.status, progress.code, progress.detail)
      }
      if (progress.state !== 'uploading') break
      await new Promise(resolve => setTimeout(resolve, RESCUE_INTERVAL_MS))
    }
    const { sent, size } = this.#progress
    const of = size === undefined ? '' : ` of ${size}`
    return new UploadError('connection_lost', `the connection broke after ${sent}${of} bytes: ${why}`, {
      cause: thrown,
    })
  }

  async #verified(text: string, title: string, ms: number): Promise<PushResult> {
    const receipt = parseReceipt(text)
    const stored = receipt?.files[0]
    if (!receipt || !stored)
      throw new UploadError('bad_answer', 'the server says done, but its answer is no receipt')
    const sha256 = await this.#options.source.sha256()
    const verified = stored.sha256 !== undefined
    if (stored.size !== this.#fileBytes || (verified && stored.sha256 !== sha256)) {
      const ours = `sent ${this.#fileBytes} bytes with sha-256 ${sha256}`
      const theirs = `the server stored ${stored.size}${verified ? ` with ${stored.sha256}` : ''}`
      throw new UploadError('digest_mismatch', `${stored.name}: ${ours}, ${theirs}`)
    }
    return { id: this.#id, title, name: stored.name, size: this.#fileBytes, sha256, verified, ms, receipt }
  }
}

/** Throws `usage` unless the text is an http or https URL; its path ends in a slash afterwards. */
function baseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (!url || !/^https?:$/.test(url.protocol))
    throw new UploadError('usage', `${text} is not an http or https URL`)
  if (!url.pathname.endsWith('/')) url.pathname += '/'
  return url
}

function refusal(
  answer: { status: number; text: string; location: string | undefined },
  base: URL,
): UploadError {
  const { status, text, location } = answer
  if (status >= 300 && status < 400) {
    const to = location ? ` to ${new URL(location, base).href}` : ''
    return new UploadError('bad_answer', `the server redirects${to}; push does not follow`, { status })
  }
  const problem = parseJson(text) as Partial<Problem> | undefined
  const detail = typeof problem?.detail === 'string' ? problem.detail : `the server answered HTTP ${status}`
  const code = typeof problem?.code === 'string' ? problem.code : ''
  // Which server was asked is half of what may be wrong, and its own words know only the path.
  const where = status === 404 ? `${base.origin}${base.pathname}: ` : ''
  return UploadError.fromServer(status, code, where + detail, problem?.errors)
}

function parseReceipt(text: string): Receipt | undefined {
  const receipt = parseJson(text) as Receipt | undefined
  const first = Array.isArray(receipt?.files) ? receipt.files[0] : undefined
  const digest = first?.sha256 === undefined || typeof first.sha256 === 'string'
  const whole = typeof first?.name === 'string' && typeof first.size === 'number' && digest
  return whole ? receipt : undefined
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** The words of a network error: an AggregateError (both address families refused) has none of its own. */
function networkReason(thrown: unknown): string {
  const error = thrown as NodeJS.ErrnoException & { errors?: Error[] }
  const own = error.errors?.length ? error.errors.map(each => each.message).join(', ') : error.message
  return own || error.code || 'unknown reason'
}
