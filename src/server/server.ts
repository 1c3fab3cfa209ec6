import { randomUUID } from 'node:crypto'
import { rmSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import net, { type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { inspect } from 'node:util'
import { UploadError } from '../errors.ts'
import { DEFAULT_LIMITS, type Limits, MEMORY_MAX, MEMORY_TOTAL } from '../limits.ts'
import { type LogFields, type Logger, silentLogger } from '../log.ts'
import {
  BOOLEAN,
  checkDurations,
  checkNames,
  type NamesOf,
  namesWith,
  QUANTITY,
  STRING,
  TEXT,
  TEXTS,
} from '../names.ts'
import { MemoryProgressStore } from '../progress/memory.ts'
import type { ProgressStore } from '../progress/store.ts'
import { type Awaitable, DEFAULT_HOST, DEFAULT_PORT, type Receipt, ROUTES } from '../protocol.ts'
import { hiddenFolder, LocalStorage } from '../storage/local.ts'
import {
  CONFLICT_RULE,
  MODE_RULE,
  type OnConflict,
  type StagedFile,
  type Storage,
} from '../storage/storage.ts'
import { Workspace } from '../storage/workspace.ts'
import { formatSize } from '../units.ts'
import { admission } from '../upload/admission.ts'
import { withArrivals } from '../upload/arrivals.ts'
import { hasArrived } from '../upload/body.ts'
import { disk, tryDisk } from '../upload/disk.ts'
import { checkForm, keptFields } from '../upload/form.ts'
import { compose, type UploadHandler } from '../upload/handler.ts'
import { ALL_KINDS, type KindRules, kinds } from '../upload/kinds.ts'
import { memory } from '../upload/memory.ts'
import { checkHandler } from '../upload/plugin.ts'
import { progress } from '../upload/progress.ts'
import {
  announced,
  cutShort,
  FieldClaim,
  type FieldMemory,
  RequestUpload,
  receive,
} from '../upload/receiver.ts'
import { space } from '../upload/space.ts'
import { checkToken, type Scheme } from './access.ts'
import { answer, answerJson, answerProblem } from './answer.ts'
import { ASSETS } from './assets.ts'
import { wantsPage } from './browser.ts'
import { limitConnections, limitWaiting } from './connections.ts'
import { checkPost, type Fields } from './csrf.ts'
import { ProgressEvents } from './events.ts'
import { KnownNames } from './known-names.ts'
import { isLast, isLingering, isTooLate, lingerAfter, makeLast, refuse } from './last-answer.ts'
import { WELCOME } from './page.ts'
import { PageRoute } from './page-route.ts'
import type { Headers } from './problem.ts'
import { answerProgress, progressIdOf } from './progress-route.ts'

export interface ServerOptions {
  /** Where published files live; `./uploads` by default. */
  dir?: string
  /** Where temporary files are made; `dir`'s own hidden folder by default. */
  tmp?: string
  /** `rename` by default. */
  onConflict?: OnConflict
  /** Permissions of stored files, 0o644 by default; their owner has to be let read and write. */
  mode?: number
  /** Everything stored is on disk before the answer. True by default. */
  fsync?: boolean
  /** Compute the SHA-256 of every file, for the receipt and the record. True by default. */
  sha256?: boolean
  /** Largest request kept in memory, bytes of Content-Length, inclusive; 2,621,440 by default. */
  memoryMax?: number
  /** What all requests in memory may hold together, in bytes; 64 MiB by default. */
  memoryTotal?: number
  /** Requests of at least so many bytes are read past node's parser, and close their connection; 4 MiB by default. */
  directMin?: number
  /** The user's handlers, asked before memory and disk. */
  handlers?: readonly UploadHandler[]
  limits?: Partial<Limits>
  /** Media types and extensions that are accepted or refused; every one is accepted by default. */
  kinds?: Partial<KindRules>
  /** How long, in milliseconds, an ended upload's progress is remembered; 30 000 by default. */
  progressTtl?: number
  /** How many progress records are kept; 10 000 by default. */
  progressMax?: number
  /** How long, in milliseconds, a request's head may take; 20 000 by default. */
  headerTimeout?: number
  /** How long, in milliseconds, a connection waits for its next request, 0 for none; 75 000 by default. */
  keepAlive?: number
  /** Asked for on every route; nothing is asked where it is absent. */
  token?: string
  /** Whether a form without a title is refused. True by default. */
  titleRequired?: boolean
  /** Whether empty files are stored. False by default. */
  allowEmpty?: boolean
  /** What the page says of where files go and who sees them: one sentence, text. */
  welcome?: string
  /**
   * Host names, with their port where it is not the default one, under which browsers may reach the server
   * beside localhost, any IP address and the host it listens on. For a proxy in front, or a name in the DNS.
   */
  publicNames?: readonly string[]
  /** Instead of the local directory; `dir`, `onConflict` and the sync of names are then its own affair. */
  storage?: Storage
  /** Instead of this process's memory. */
  progress?: ProgressStore
  log?: Logger
}

const OPTIONS: NamesOf<ServerOptions> = {
  dir: TEXT,
  tmp: TEXT,
  onConflict: CONFLICT_RULE,
  mode: MODE_RULE,
  fsync: BOOLEAN,
  sha256: BOOLEAN,
  memoryMax: QUANTITY,
  memoryTotal: QUANTITY,
  directMin: QUANTITY,
  handlers: true,
  limits: true,
  kinds: true,
  progressTtl: QUANTITY,
  progressMax: QUANTITY,
  headerTimeout: QUANTITY,
  keepAlive: QUANTITY,
  token: TEXT,
  titleRequired: BOOLEAN,
  allowEmpty: BOOLEAN,
  welcome: STRING,
  publicNames: TEXTS,
  storage: true,
  progress: true,
  log: true,
}

/** Longer than balancers keep theirs, most of them a minute: whoever closes first must not meet a request on its way. */
const KEEP_ALIVE_MS = 75_000
/** What a line of the log has at most of a path and of an error's words, in characters, and how many files it names. */
const PATH_MAX = 200
const DETAIL_MAX = 500
const NAMED_MAX = 100
/** How long an answer may wait for its reader, in milliseconds. */
const UNREAD_MS = 60_000
/** How long handlers may take to let go of an upload that the end of the grace has ended, in milliseconds. */
const LET_GO_MS = 5000
/** After the last upload has ended, how long answers may take to reach their clients. */
const FLUSH_MS = 1000

/** Opens the storage, recovers what a dead server left there, and makes a server that is not listening yet. */
export async function createServer(options: ServerOptions = {}): Promise<UploadServer> {
  checkNames('createServer', options, OPTIONS)
  checkNames('createServer, limits', options.limits ?? {}, namesWith(DEFAULT_LIMITS, QUANTITY))
  checkNames('createServer, kinds', options.kinds ?? {}, namesWith(ALL_KINDS, TEXTS))
  for (const [i, handler] of (options.handlers ?? []).entries()) checkHandler(`handlers[${i}]`, handler)
  const { headerTimeout, keepAlive, progressTtl, limits: { idle } = {} } = options
  checkDurations('createServer', { headerTimeout, keepAlive, progressTtl, idle })
  const log = options.log ?? silentLogger
  const { dir = './uploads', fsync = true } = options
  const storage =
    options.storage ??
    (await LocalStorage.open({
      dir,
      fsync,
      log,
      ...(options.onConflict && { onConflict: options.onConflict }),
      ...(options.mode !== undefined && { mode: options.mode }),
    }))
  const workspace = await Workspace.create(options.tmp ?? join(hiddenFolder(dir), 'tmp'))
  for (const path of await workspace.abandoned()) {
    await rm(path, { recursive: true, force: true })
    log.info('removed the temporary files of a dead server', { path })
  }
  const syncs = await tryDisk(workspace.path, fsync).catch(async error => {
    await workspace.remove()
    await storage.close?.()
    throw new UploadError('cannot_serve', `temporary files cannot be made: ${error.code}`, { cause: error })
  })
  if (!syncs)
    log.warn('the file system of --tmp is without', { what: 'files synced to disk, but for their copies' })
  const limits = { ...DEFAULT_LIMITS, ...options.limits }
  const page = await PageRoute.open({
    welcome: options.welcome ?? WELCOME,
    titleRequired: options.titleRequired ?? true,
    allowEmpty: options.allowEmpty ?? false,
    bodyMax: limits.body,
    nameMax: limits.nameBytes,
    kinds: { ...ALL_KINDS, ...options.kinds },
  })
  return new UploadServer({ ...options, fsync: fsync && syncs }, storage, workspace, page, log)
}

/** What of an answer goes into the access log beside the request's own facts. */
interface Noted {
  fields: LogFields
  /** How the token came, where it was asked for. */
  scheme?: Scheme | undefined
  status?: number
  upload?: RequestUpload
  /** The names of the upload's files, as far as their parts have come. */
  names: string[]
  stored?: Receipt['files']
  /** The form's fields, as far as they were read: an answer in HTML shows them again. */
  form?: Fields
  /** What they take of memory. */
  claim?: FieldClaim
  /** Where it is another than the status says. */
  outcome?: 'interrupted' | 'aborted'
}

/** One upload on its way. */
interface Incoming {
  req: IncomingMessage
  upload: RequestUpload
  noted: Noted
  /** What is left to check of the form's token once its fields are there. */
  checkCsrf: ((fields: Fields) => void) | undefined
  sendContinue: (() => void) | undefined
  /** Rejects once the server waits for handlers no longer. */
  abandoned: Promise<never>
  /** The storage has the files: they are not taken back any more. */
  publishing: boolean
}

interface Running {
  incoming: Incoming
  abandon(reason: UploadError): void
}

/** The HTTP server: routes, answers and the life of it. Made by `createServer`. */
export class UploadServer {
  readonly #options: ServerOptions
  readonly #storage: Storage
  readonly #workspace: Workspace
  readonly #log: Logger
  readonly #limits: Limits
  readonly #progress: ProgressStore
  readonly #events: ProgressEvents
  readonly #page: PageRoute
  readonly #names: KnownNames
  readonly #disk: ReturnType<typeof disk>
  readonly #chain: Required<UploadHandler>
  readonly #http: http.Server
  /** Running uploads, each by the promise of its end. */
  readonly #running = new Map<Promise<void>, Running>()
  readonly #fieldMemory: FieldMemory
  /** The last answer of every connection, given or still to come. */
  readonly #answers = new WeakMap<net.Socket, ServerResponse>()
  /** Those whose line in the log is still to come, by what writes it. */
  readonly #unlogged = new Map<Noted, () => void>()
  readonly #totals = { stored: 0, failed: 0, received: 0 }
  #draining = false

  constructor(options: ServerOptions, storage: Storage, workspace: Workspace, page: PageRoute, log: Logger) {
    this.#options = options
    this.#storage = storage
    this.#workspace = workspace
    this.#page = page
    this.#log = log
    this.#names = new KnownNames(options.publicNames ?? [])
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits }
    // One form's fields always fit, however little memory files are given.
    const fieldMemory = Math.max(options.memoryTotal ?? MEMORY_TOTAL, 2 * this.#limits.fieldBytes)
    this.#fieldMemory = { held: 0, max: fieldMemory }
    this.#progress =
      options.progress ??
      new MemoryProgressStore({
        ...(options.progressTtl !== undefined && { ttl: options.progressTtl }),
        ...(options.progressMax !== undefined && { max: options.progressMax }),
      })
    this.#events = new ProgressEvents(this.#progress)
    const health = () => this.#health()
    this.#disk = disk({
      ...{ dir: workspace.path, fsync: options.fsync ?? true, sha256: options.sha256 ?? true, health },
    })
    const memoryOptions = {
      sha256: options.sha256 ?? true,
      ...(options.memoryMax !== undefined && { max: options.memoryMax }),
      ...(options.memoryTotal !== undefined && { total: options.memoryTotal }),
    }
    this.#chain = compose([
      progress(this.#progress),
      announced(this.#limits),
      admission(this.#limits),
      space({
        ...{ tmp: workspace.path, storage, health, ...this.#limits },
        memoryMax: options.memoryMax ?? MEMORY_MAX,
      }),
      kinds({ ...ALL_KINDS, ...options.kinds }),
      ...withArrivals(options.handlers ?? [], options.sha256 ?? true),
      memory(memoryOptions),
      this.#disk,
    ])
    const { headerTimeout: headersTimeout = 20_000, keepAlive = KEEP_ALIVE_MS } = options
    this.#http = http.createServer({
      // A steady upload may take all day; silence is watched for by the receiver.
      requestTimeout: 0,
      // Its own answer to a request without one would not linger.
      requireHostHeader: false,
      headersTimeout,
      keepAliveTimeout: keepAlive,
      connectionsCheckingInterval: Math.max(100, Math.min(5000, headersTimeout / 2)),
    })
    // node's own way with a client that closes its half behind its request is to close the other, unanswered.
    Object.assign(this.#http, { httpAllowHalfOpen: true })
    limitWaiting(
      this.#http,
      { first: headersTimeout, next: keepAlive + headersTimeout },
      socket => this.#answers.get(socket),
      socket => this.#refuseBrokenRequest({ code: TIMED_OUT }, socket),
    )
    limitConnections(this.#http, this.#limits, (error, from) => {
      this.#log.warn('connection refused', { from, code: error.code })
    })
    this.#http.setTimeout(UNREAD_MS, (socket: net.Socket) => {
      // Silence alone is the receiver's to judge. An answer that nobody reads is not kept, nor is a
      // connection on which nothing followed the last one.
      const isIdle = this.#answers.get(socket)?.writableFinished ?? false
      if (socket.writableLength > 0 || isIdle) socket.destroy()
    })
    this.#http.on('request', (req, res) => void this.#handle(req, res))
    // The same, but the body is only sent once it is asked for.
    this.#http.on('checkContinue', (req, res) => void this.#handle(req, res, () => res.writeContinue()))
    this.#http.on('checkExpectation', (req, res) => void this.#handle(req, res))
    // Without a listener node would close the connection without a word.
    this.#http.on('connect', (req, socket) => this.#refuseTunnel(req, socket as net.Socket))
    this.#http.on('clientError', (error, socket) => this.#refuseBrokenRequest(error, socket as net.Socket))
  }

  /** Starts listening; resolves to the base URL, with the port that port 0 became. */
  async listen(options: { host?: string; port?: number } = {}): Promise<string> {
    checkNames('listen', options, { host: true, port: true })
    const { host = DEFAULT_HOST, port = DEFAULT_PORT } = options
    await new Promise<void>((resolve, reject) => {
      this.#http.once('error', reject)
      this.#http.listen(port, host, () => {
        this.#http.off('error', reject)
        resolve()
      })
    })
    this.#names.add(host)
    const { address, family, port: bound } = this.#http.address() as AddressInfo
    return `http://${family === 'IPv6' ? `[${address}]` : address}:${bound}/`
  }

  /**
   * Stops accepting, lets running uploads finish for `grace` milliseconds, refuses the rest with 503,
   * and closes everything. Progress stays readable on open connections until the last upload ended.
   * Handlers are not waited for longer than another 5 seconds; the log names the uploads they kept.
   */
  async shutdown(options: { grace?: number } = {}): Promise<void> {
    checkNames('shutdown', options, { grace: QUANTITY })
    const { grace = 0 } = options
    checkDurations('shutdown', { grace })
    this.#draining = true
    const closed = new Promise<void>(resolve => {
      // Of net, not http: that one also closes the idle connections on which clients poll their progress.
      net.Server.prototype.close.call(this.#http, () => resolve())
    })
    const reason = new UploadError('shutting_down', 'the server is shutting down')
    await this.#uploadsEnd(grace)
    for (const { incoming } of this.#running.values()) incoming.upload.abort(reason)
    await this.#uploadsEnd(LET_GO_MS)
    for (const { incoming, abandon } of this.#running.values()) {
      const { id, from, received } = incoming.upload
      if (!incoming.publishing) this.#log.warn('abandoned an upload', { id, from, received })
      abandon(reason)
    }
    await Promise.all(this.#running.keys())
    await this.#events.close()
    this.#http.closeIdleConnections()
    await Promise.race([closed, delay(FLUSH_MS, undefined, { ref: false })])
    this.#http.closeAllConnections()
    await this.#disk.close()
    await this.#progress.close?.()
    await this.#storage.close?.()
    await this.#workspace.remove()
  }

  /** Resolves when no upload runs any more, or after so many milliseconds. */
  async #uploadsEnd(ms: number): Promise<void> {
    const patience = new AbortController()
    const over = delay(ms, undefined, { signal: patience.signal }).catch(noop)
    await Promise.race([Promise.all(this.#running.keys()), over])
    patience.abort()
  }

  /** Ends at once, for a process that exits next: temporary files are removed, publications left to recovery. */
  terminate(): void {
    for (const { incoming } of this.#running.values()) {
      const { noted, publishing } = incoming
      noted.outcome = 'aborted'
      noted.fields['code'] = 'shutting_down'
      if (publishing) noted.fields['detail'] = 'it was being stored: the next start completes or removes it'
    }
    // The process is gone before a connection tells that it has closed.
    for (const [{ upload }, log] of this.#unlogged) if (upload) log()
    this.#http.closeAllConnections()
    rmSync(this.#workspace.path, { recursive: true, force: true })
  }

  async #handle(req: IncomingMessage, res: ServerResponse, sendContinue?: () => void): Promise<void> {
    if (isTooLate(res)) return
    const before = this.#answers.get(req.socket)
    this.#answers.set(req.socket, res)
    // A connection that closes takes the answer with it that is on its way; node leaves those in line behind it as they are.
    if (before && !before.closed) before.once('close', () => req.socket.destroyed && res.emit('close'))
    if (this.#options.keepAlive === 0 || !res.shouldKeepAlive) makeLast(res)
    const started = performance.now()
    // Not to be had any more once the client has left.
    const from = req.socket.remoteAddress
    const noted: Noted = { fields: { from }, names: [] }
    const { path, search } = targetOf(req)
    const log = () => {
      if (this.#unlogged.delete(noted)) this.#logAccess(req, res, path, started, noted)
    }
    this.#unlogged.set(noted, log)
    try {
      // First of all: who has no token is told nothing else, and given nothing.
      noted.scheme = this.#checkHead(req, path)
      await this.#route(req, res, path, new URLSearchParams(search), noted, sendContinue)
    } catch (thrown) {
      const error = UploadError.from(thrown)
      noted.fields['code'] = error.code
      noted.fields['detail'] = error.message.slice(0, DETAIL_MAX)
      // What has no cause was refused on purpose: nothing is broken, whatever the status.
      if (error.cause !== undefined) {
        this.#log[error.status >= 500 ? 'error' : 'debug'](error.message, { cause: inspect(error.cause) })
      }
      const headers: Headers = error.status === 405 ? { Allow: allowed(path) } : {}
      if (wantsPage(req)) this.#page.answerError(req, res, error, headers, noted.form)
      else answerProblem(req, res, error, headers)
      // The client left before an answer could be sent; the log tells what it would have been.
      if (!res.headersSent) noted.status = error.status
      if (BY_CLIENT.has(error.code) && !hasArrived(req)) noted.outcome = 'interrupted'
    }
    const over = () => {
      noted.claim?.release()
      log()
    }
    if (res.closed || req.socket.destroyed) over()
    else res.once('close', over)
  }

  /** Why nothing can be stored, or undefined. Folders that have gone are made anew where that is safe. */
  async #health(): Promise<string | undefined> {
    return (await this.#storage.health?.()) ?? this.#workspace.health()
  }

  /** Throws what a request is refused for whatever it asks. Probes have no token: that the server is there is what everybody may know. */
  #checkHead(req: IncomingMessage, path: string): Scheme | undefined {
    const isProbe = path === ROUTES.health && isReading(req)
    try {
      const scheme = isProbe ? undefined : this.#checkToken(req)
      // Whoever sends it as Bearer has it in hand: no page that a browser was led to.
      if (scheme !== 'bearer') this.#names.check(req)
      checkFraming(req)
      checkExpectation(req)
      return scheme
    } catch (error) {
      // A probe is told that and nothing else, what is wrong with it neither.
      if (isProbe) this.#checkToken(req)
      throw error
    }
  }

  #checkToken(req: IncomingMessage): Scheme | undefined {
    const { token } = this.#options
    return token === undefined ? undefined : checkToken(req, token)
  }

  async #route(
    req: IncomingMessage,
    res: ServerResponse,
    path: string,
    query: URLSearchParams,
    noted: Noted,
    sendContinue: (() => void) | undefined,
  ): Promise<void> {
    if (path === ROUTES.upload && req.method === 'POST')
      return this.#track(req, res, query, noted, sendContinue)
    if (allowed(path) === '') throw nothingAt(path)
    if (req.method === 'OPTIONS') return answer(req, res, 204, undefined, { Allow: allowed(path) })
    if (!isReading(req)) throw new UploadError('method_not_allowed', `${req.method} is not allowed here`)
    if (path === ROUTES.upload) return this.#page.answerForm(req, res)
    if (path === ROUTES.health) {
      const why = this.#draining ? 'shutting down' : await this.#health()
      return answerJson(req, res, why === undefined ? 200 : 503, { ok: why === undefined, why })
    }
    if (path === ROUTES.metrics) return answer(req, res, 200, this.#metrics())
    if (this.#page.answerAsset(req, res, path)) return
    if (path.startsWith(`${ASSETS}/`)) throw nothingAt(path)
    await answerProgress(
      req,
      res,
      path,
      query,
      this.#progress,
      this.#events,
      this.#options.token !== undefined,
    )
  }

  /** Runs one upload under the eyes of `shutdown`. */
  async #track(
    req: IncomingMessage,
    res: ServerResponse,
    query: URLSearchParams,
    noted: Noted,
    sendContinue: (() => void) | undefined,
  ): Promise<void> {
    if (this.#draining) throw new UploadError('shutting_down', 'the server is shutting down')
    const checkCsrf = noted.scheme === 'bearer' ? undefined : checkPost(req, this.#names)
    const upload = new RequestUpload(req, progressIdOf(req, query) ?? randomUUID())
    noted.upload = upload
    let abandon: Running['abandon'] = noop
    const abandoned = new Promise<never>((_, reject) => {
      abandon = reject
    })
    // It may come when nobody listens.
    abandoned.catch(noop)
    const incoming = { req, upload, noted, checkCsrf, sendContinue, abandoned, publishing: false }
    const work = this.#upload(incoming).then(
      receipt => {
        this.#totals.stored++
        noted.stored = receipt.files
        if (wantsPage(req)) this.#page.answerStored(req, res, receipt)
        else answerJson(req, res, 201, receipt)
      },
      error => {
        this.#totals.failed++
        throw error
      },
    )
    // Running until the answer is out, and whatever becomes of it.
    const running = work.then(noop, noop).then(() => {
      this.#running.delete(running)
      this.#totals.received += upload.received
    })
    this.#running.set(running, { incoming, abandon })
    return work
  }

  async #upload(incoming: Incoming): Promise<Receipt> {
    const { req, upload, noted, checkCsrf, sendContinue, abandoned } = incoming
    const storage = this.#storage
    // Handlers may never settle; the storage does, and what it has begun is not to be cut in two.
    const unlessAbandoned = <T>(work: Awaitable<T>) => Promise.race([work, abandoned])
    // A file that cannot be released keeps nobody from hearing how the upload ended.
    const release = () => unlessAbandoned(discard(staged)).catch(noop)
    let staged: readonly StagedFile[] = []
    let receipt: Receipt
    try {
      const fieldClaim = new FieldClaim(this.#fieldMemory)
      noted.claim = fieldClaim
      const receiving = receive(req, upload, {
        chain: this.#chain,
        limits: this.#limits,
        fieldClaim,
        ...(sendContinue && { askForBody: sendContinue }),
        ...(this.#options.directMin !== undefined && { directMin: this.#options.directMin }),
        accepts: (name, fields) => {
          noted.form = fields
          checkCsrf?.(fields)
          noted.names.push(name)
          return storage.accepts?.(name)
        },
      })
      const { fields, files, blanks, contentDigest } = await unlessAbandoned(receiving)
      staged = files
      noted.form = fields
      // Where there was no file to check it at.
      checkCsrf?.(fields)
      const { titleRequired = true, allowEmpty = false } = this.#options
      const title = checkForm(fields, files, { titleRequired, allowEmpty }, blanks)
      const kept = keptFields(fields)
      await unlessAbandoned(this.#chain.complete(upload, files))
      incoming.publishing = true
      const { id, time, from } = upload
      const said = { ...(kept && { fields: kept }), ...(contentDigest !== undefined && { contentDigest }) }
      receipt = {
        id,
        title,
        ...said,
        files: await storage.publish({ id, title, time, from, ...said }, files),
      }
    } catch (thrown) {
      const error = UploadError.from(thrown, 'handler_failed', 'completing the upload')
      await release()
      await unlessAbandoned(this.#interrupt(upload, error)).catch(noop)
      throw error
    }
    await release()
    try {
      await unlessAbandoned(this.#chain.published(upload, receipt.files))
    } catch (error) {
      // The files are stored; that a handler cannot take the news changes nothing for the client.
      this.#log.error('a handler failed after the upload was stored', {
        id: upload.id,
        cause: inspect(error),
      })
    }
    return receipt
  }

  /** The upload has failed already, for a reason worth more than what a handler throws now: the log alone has that. */
  async #interrupt(upload: RequestUpload, reason: UploadError): Promise<void> {
    try {
      await this.#chain.interrupt(upload, reason)
    } catch (error) {
      this.#log.error('a handler failed after the upload had failed', {
        id: upload.id,
        cause: inspect(error),
      })
    }
  }

  #metrics() {
    const { stored, failed, received } = this.#totals
    const body = [
      '# TYPE uploadr_uploads_running gauge',
      `uploadr_uploads_running ${this.#running.size}`,
      '# TYPE uploadr_uploads_total counter',
      `uploadr_uploads_total{outcome="stored"} ${stored}`,
      `uploadr_uploads_total{outcome="failed"} ${failed}`,
      '# TYPE uploadr_received_bytes_total counter',
      `uploadr_received_bytes_total ${received}`,
      '',
    ].join('\n')
    return { type: 'text/plain; version=0.0.4; charset=utf-8', body }
  }

  /** One line a request. Polls and probes, which come by the second, are told at debug level alone. */
  #logAccess(req: IncomingMessage, res: ServerResponse, path: string, started: number, noted: Noted): void {
    const status = noted.status ?? res.statusCode
    const { upload, fields, stored } = noted
    const line: LogFields = {
      from: fields['from'],
      method: req.method,
      path: path.slice(0, PATH_MAX),
      // Nobody was answered.
      status: noted.outcome === 'aborted' ? undefined : status,
      ms: Math.round(performance.now() - started),
    }
    if (!upload) {
      const isPoll = path.startsWith(ROUTES.progress) || path === ROUTES.health || path === ROUTES.metrics
      this.#log[isPoll && status < 400 ? 'debug' : 'info']('request', Object.assign(line, fields))
      return
    }
    line['id'] = upload.id
    line['outcome'] = noted.outcome ?? (status < 400 ? 'stored' : status < 500 ? 'refused' : 'failed')
    line['received'] = upload.received
    Object.assign(line, fields)
    const files = stored?.map(({ name, size }) => ({ name, size })) ?? noted.names.map(name => ({ name }))
    if (files.length > 0) line['files'] = files.slice(0, NAMED_MAX)
    if (files.length > NAMED_MAX) line['more'] = files.length - NAMED_MAX
    this.#log.info('upload', line)
  }

  /**
   * The answer that a connection waits for, or has closed with: what comes behind it and has no answer object does not
   * take it away, but makes it the last.
   */
  #answerBefore(socket: net.Socket): ServerResponse | undefined {
    const res = this.#answers.get(socket)
    if (!res || (res.writableFinished && !isLast(res))) return undefined
    lingerAfter(res)
    if (hasArrived(res.req)) socket.pause()
    return res
  }

  /** CONNECT: node hands over the connection, and no answer object. */
  #refuseTunnel(req: IncomingMessage, socket: net.Socket): void {
    // It has taken its listeners off, too.
    socket.on('error', noop).on('timeout', () => this.#http.emit('timeout', socket))
    if (this.#answerBefore(socket)) return
    let error = new UploadError('method_not_allowed', 'CONNECT is not allowed here')
    try {
      this.#checkToken(req)
    } catch (thrown) {
      error = UploadError.from(thrown)
    }
    this.#log.info('request', {
      from: socket.remoteAddress,
      method: 'CONNECT',
      status: error.status,
      code: error.code,
    })
    refuse(socket, error)
  }

  /** A request that is no HTTP, or breaks off, or whose head took too long. node has no answer object for it. */
  #refuseBrokenRequest(thrown: ParserError, socket: net.Socket): void {
    if (isLingering(socket)) return
    if (thrown.code === 'ECONNRESET' || !socket.writable) return void socket.destroy()
    const error = brokenRequest(thrown)
    const res = this.#answerBefore(socket)
    if (!res) {
      this.#log.info('request', {
        from: socket.remoteAddress,
        status: error.status,
        code: error.code,
        detail: error.message,
      })
      return refuse(socket, error)
    }
    const { req } = res
    if (hasArrived(req)) return
    for (const { incoming } of this.#running.values()) {
      if (incoming.req !== req) continue
      const { upload } = incoming
      upload.abort(thrown.code === CUT_SHORT ? cutShort(req, upload) : error)
    }
  }
}

interface ParserError extends Partial<NodeJS.ErrnoException> {
  /** What node's parser says of it, in words of its own. */
  reason?: string
}

/** What an upload fails of whose client leaves, or as good as that, before all of its body has come. */
const BY_CLIENT: ReadonlySet<string> = new Set(['truncated_body', 'idle_timeout', 'too_slow'])

/** The parser's code for a client that has closed its half within a request. */
const CUT_SHORT = 'HPE_INVALID_EOF_STATE'
/** node's code for a head that is not there in time. */
const TIMED_OUT = 'ERR_HTTP_REQUEST_TIMEOUT'

function brokenRequest({ code, reason = '' }: ParserError): UploadError {
  if (code === 'HPE_HEADER_OVERFLOW') {
    return new UploadError(
      'head_too_large',
      `the request's head is larger than ${formatSize(http.maxHeaderSize)}`,
    )
  }
  if (code === TIMED_OUT) return new UploadError('idle_timeout', "the request's head took too long")
  if (code === CUT_SHORT) return new UploadError('bad_request', 'the request ends before its head does')
  // Other codings than chunked are told by name where they come alone.
  const isCoding = code === 'HPE_INVALID_TRANSFER_ENCODING' && !reason.includes('Content-Length')
  if (isCoding) return new UploadError('not_implemented', 'the Transfer-Encoding is another than chunked')
  return new UploadError('bad_request', `the request cannot be read: ${reason || code}`)
}

/** The methods of a path, for `Allow`; empty where there is nothing. */
function allowed(path: string): string {
  if (path === ROUTES.upload) return 'GET, HEAD, POST, OPTIONS'
  const below = [ROUTES.progress, ASSETS].some(folder => path.startsWith(`${folder}/`))
  const known = [ROUTES.progress, ROUTES.health, ROUTES.metrics].some(route => path === route)
  return below || known ? 'GET, HEAD, OPTIONS' : ''
}

function isReading({ method }: IncomingMessage): boolean {
  return method === 'GET' || method === 'HEAD'
}

/** A proxy's absolute form (RFC 9112, 3.2.2) names the host once more, and may end with it; the Host header is what is checked. */
function targetOf({ url = '/' }: IncomingMessage): { path: string; search: string } {
  const target = url.replace(/^https?:\/\/[^/?]*/i, '')
  const mark = target.indexOf('?')
  if (mark < 0) return { path: target || '/', search: '' }
  return { path: target.slice(0, mark) || '/', search: target.slice(mark + 1) }
}

/** RFC 9112, 3.2 and 6.1: one Host, and of codings none but chunked. */
function checkFraming({ headers, httpVersion, rawHeaders }: IncomingMessage): void {
  let hosts = 0
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i] as string
    if (name.length === 4 && name.toLowerCase() === 'host') hosts++
  }
  if (hosts > 1 || (hosts === 0 && httpVersion === '1.1')) {
    throw new UploadError('bad_request', `the request has ${hosts === 0 ? 'no' : 'more than one'} Host`)
  }
  const coding = headers['transfer-encoding']
  if (coding === undefined || coding.toLowerCase() === 'chunked') return
  throw new UploadError(
    'not_implemented',
    `the Transfer-Encoding ${coding.slice(0, 100)} is another than chunked`,
  )
}

/** RFC 9110, 10.1.1: what cannot be met is refused, and 100-continue is all there is. An empty list expects nothing. */
function checkExpectation({ headers: { expect = '' } }: IncomingMessage): void {
  const unmet = expect.split(',').find(one => !/^\s*(100-continue)?\s*$/i.test(one))
  if (unmet === undefined) return
  throw new UploadError('expectation_failed', `the expectation ${unmet.trim().slice(0, 100)} cannot be met`)
}

function nothingAt(path: string): UploadError {
  return new UploadError('not_found', `there is nothing at ${path.slice(0, 200)}`)
}

async function discard(files: readonly StagedFile[]): Promise<void> {
  await Promise.all(files.map(file => file.discard()))
}

function noop(): void {}
