import { stat, statfs } from 'node:fs/promises'
import { UploadError } from '../errors.ts'
import type { StagedFile, Storage } from '../storage/storage.ts'
import { formatSize } from '../units.ts'
import { type FileSink, tap, type Upload, type UploadHandler } from './handler.ts'

export interface SpaceOptions {
  /** The folder that uploads fill with temporary files. */
  tmp: string
  storage: Pick<Storage, 'folder' | 'used'>
  /** Bytes that stay free on the file systems of both; 0 for none. */
  minFree: number
  /** Bytes that the stored files and their records may have together; 0 for any number. */
  quota: number
  /** Bytes of the largest request that may wait in memory until it is stored. */
  memoryMax: number
  /** Makes folders anew that have gone, or says why nothing can be stored. */
  health: () => Promise<string | undefined>
}

/** An upload that did not say its length is held against the room every so many bytes, and at the end of a file. */
const CHECK_EVERY = 1024 * 1024
/** What may have been received of an upload and not be in its file yet, in bytes: two blocks, and a chunk on its way. */
const UNWRITTEN_MAX = 2 * 1024 * 1024

/** Uploads that were let in, with their bytes once those are known. */
type Claims = Map<Upload, number | undefined>

/** What an upload takes at most, as far as it can be known. */
function claimOf(upload: Upload, exact: number | undefined): number {
  return exact ?? Math.max(upload.size ?? 0, upload.received)
}

/**
 * Keeps the disk from filling up. An upload that says its length is refused before its body unless
 * there is room for it beside all that has been admitted and is not there yet. While bytes stream,
 * announced or not, the room is measured again and again: others write to the disk too.
 */
export function space(options: SpaceOptions): UploadHandler {
  const { tmp, storage, minFree, quota } = options
  const claims: Claims = new Map()
  const gauges: Gauge[] = []
  if (minFree > 0) gauges.push(new FreeSpace(options, tmp))
  if (minFree > 0 && storage.folder !== undefined) gauges.push(new FreeSpace(options, storage.folder, tmp))
  if (quota > 0 && storage.used) gauges.push(new Quota(options, storage.used.bind(storage)))
  if (gauges.length === 0) return { name: 'space' }

  const leave = (upload: Upload, isStored: boolean) => {
    const exact = claims.get(upload)
    if (!claims.delete(upload)) return
    if (isStored) for (const gauge of gauges) gauge.stored(upload, claimOf(upload, exact))
  }
  /**
   * Refuses `more` bytes than the upload has claimed so far unless there is room, and then does what claims them.
   * What it claims is not counted in what it is told to be left.
   */
  const claim = (upload: Upload, more: number, exact: number | undefined, grant: () => void) => {
    const hasBegun = claims.has(upload)
    const admit = () => {
      for (const gauge of gauges) {
        if (gauge.room(claims, hasBegun) >= more) continue
        throw gauge.refusal(
          describe(upload, exact),
          formatSize(Math.max(0, gauge.room(claims, false, upload))),
        )
      }
      grant()
    }
    // No refusal by an old measurement: something may have been deleted since.
    const old = gauges.filter(gauge => gauge.isOld() || gauge.room(claims, hasBegun) < more)
    if (old.length === 0) return admit()
    return Promise.all(old.map(gauge => gauge.measure(claims))).then(admit)
  }
  const check = (upload: Upload) => claim(upload, 0, undefined, noop)
  const watched = (inner: FileSink, upload: Upload) => {
    let checkedAt = upload.received
    const isDue = (after: number) =>
      (upload.size === undefined && upload.received - checkedAt >= after) ||
      gauges.some(gauge => gauge.isOld())
    const checkAndWrite = async (chunk: Uint8Array) => {
      checkedAt = upload.received
      await check(upload)
      await inner.write(chunk)
    }
    // Once all of it is written: what a sink has gathered is not on the disk that is measured.
    const closeAndCheck = async () => {
      const staged = await inner.close()
      try {
        await check(upload)
      } catch (error) {
        await staged?.discard()
        throw error
      }
      return staged
    }
    return tap(inner, {
      write: chunk => (isDue(CHECK_EVERY) ? checkAndWrite(chunk) : inner.write(chunk)),
      close: () => (upload.size === undefined ? closeAndCheck() : inner.close()),
    })
  }
  return {
    name: 'space',
    begin(upload) {
      return claim(upload, upload.size ?? 0, undefined, () => claims.set(upload, undefined))
    },
    open(file, next, upload) {
      const inner = next(file)
      return inner instanceof Promise ? inner.then(sink => watched(sink, upload)) : watched(inner, upload)
    },
    complete(upload, files) {
      // Handlers may have made more of the files than was sent, and the record comes on top.
      const exact = bytesToStore(upload, files)
      return claim(upload, exact - claimOf(upload, undefined), exact, () => claims.set(upload, exact))
    },
    published: upload => leave(upload, true),
    interrupt: upload => leave(upload, false),
  }
}

/** What the files take and their record takes at most: it repeats what the form says, a byte of it as six (`\u0001`). */
function bytesToStore({ id, from, received }: Upload, files: readonly StagedFile[]): number {
  let bytes = 0
  let labels = 256 + id.length + from.length
  for (const { field, name, type, size } of files) {
    bytes += size
    labels += 512 + Buffer.byteLength(field) + 2 * Buffer.byteLength(name) + Buffer.byteLength(type)
  }
  return bytes + labels + 6 * Math.max(0, received - bytes)
}

/**
 * A measurement of room, kept up to date by what uploads are known to take that were admitted or stored since.
 * It takes a while, and meanwhile uploads come and end: only what was known before it began counts as
 * measured, and its numbers change together.
 */
abstract class Gauge {
  readonly #maxAge: number
  readonly #health: SpaceOptions['health']
  #at = Number.NEGATIVE_INFINITY
  #room = 0
  /** What had been received, then, of the uploads that were running. */
  #received: ReadonlyMap<Upload, number> = new Map()
  /** What uploads that ended have taken since, and was not measured yet. */
  #storedSince = 0
  #measuring: Promise<void> | undefined
  #next: Promise<void> | undefined

  constructor(maxAge: number, { health }: SpaceOptions) {
    this.#maxAge = maxAge
    this.#health = health
  }

  isOld(): boolean {
    return performance.now() - this.#at > this.#maxAge
  }

  /** One that begins after the call, for everybody who asks before it does. */
  measure(claims: Claims): Promise<void> {
    if (!this.#measuring) return this.#start(claims)
    const start = () => this.#start(claims)
    this.#next ??= this.#measuring.then(start, start)
    return this.#next
  }

  /**
   * Bytes that are left beside all that was admitted. To be `lenient` takes all that was received for there; who
   * was let in is not refused for what only may not be written yet. `without` an upload it is as after its refusal.
   */
  room(claims: Claims, lenient: boolean, without?: Upload): number {
    let left = this.#room - this.#storedSince
    for (const [upload, exact] of claims) {
      const claim = claimOf(upload, exact)
      const there = this.#there(upload, claim, lenient)
      left -= upload === without ? -there : Math.max(0, claim - there)
    }
    return left
  }

  stored(upload: Upload, bytes: number): void {
    this.#storedSince += Math.max(0, bytes - this.#there(upload, bytes, false))
  }

  #there(upload: Upload, claim: number, lenient: boolean): number {
    const received = this.#received.get(upload)
    return received === undefined ? 0 : this.there(received, claim, lenient)
  }

  #start(claims: Claims): Promise<void> {
    this.#next = undefined
    const run = this.#measure(claims).finally(() => {
      if (this.#measuring === run) this.#measuring = undefined
    })
    this.#measuring = run
    return run
  }

  async #measure(claims: Claims): Promise<void> {
    const received = new Map(Array.from(claims.keys(), upload => [upload, upload.received]))
    const storedBefore = this.#storedSince
    let room: number
    try {
      room = await this.look().catch(async error => {
        const why = error.code === 'ENOENT' ? await this.#health() : String(error.code)
        if (why !== undefined) throw new UploadError('storage_failed', `nothing can be stored: ${why}`)
        return this.look()
      })
    } finally {
      this.#at = performance.now()
    }
    this.#room = room
    this.#received = received
    this.#storedSince -= storedBefore
  }

  /** Bytes that are left where all is there that uploads have put there so far. */
  protected abstract look(): Promise<number>
  /** What a measurement saw of an upload that takes `claim` bytes, when so many were `received`. */
  protected abstract there(received: number, claim: number, lenient: boolean): number
  /** In words: what there is no room for, and how much is left. */
  abstract refusal(what: string, left: string): UploadError
}

/** What is free on the disk of temporary files; or on that of stored ones, which get all of an upload at its end. */
class FreeSpace extends Gauge {
  readonly #folder: string
  readonly #tmp: string | undefined
  readonly #kept: number
  readonly #memoryMax: number

  /** `tmp`: where temporary files are, if `folder` is that of stored ones. */
  constructor(options: SpaceOptions, folder: string, tmp?: string) {
    super(500, options)
    this.#folder = folder
    this.#tmp = tmp
    this.#kept = options.minFree
    this.#memoryMax = options.memoryMax
  }

  protected async look(): Promise<number> {
    const { bavail, bsize } = await statfs(this.#folder)
    if (this.#tmp !== undefined) {
      const [{ dev }, tmp] = await Promise.all([stat(this.#folder), stat(this.#tmp)])
      // One disk, where a file only gets another name: what is said of the other folder is all there is to say.
      if (dev === tmp.dev) return Number.POSITIVE_INFINITY
    }
    return bavail * bsize - this.#kept
  }

  protected there(received: number, claim: number, lenient: boolean): number {
    if (this.#tmp !== undefined) return 0
    if (lenient) return received
    return claim <= this.#memoryMax ? 0 : Math.max(0, received - UNWRITTEN_MAX)
  }

  refusal(what: string, left: string): UploadError {
    const above = `${left} are left above the ${formatSize(this.#kept)} kept free`
    return new UploadError('disk_full', `no room on the disk for ${what}: ${above}`)
  }
}

class Quota extends Gauge {
  readonly #used: () => Promise<number>
  readonly #quota: number

  constructor(options: SpaceOptions, used: () => Promise<number>) {
    super(60_000, options)
    this.#used = used
    this.#quota = options.quota
  }

  protected async look(): Promise<number> {
    return this.#quota - (await this.#used())
  }

  protected there(): number {
    return 0
  }

  refusal(what: string, left: string): UploadError {
    const of = `${left} are left of ${formatSize(this.#quota)}`
    return new UploadError('quota_exceeded', `no room within the quota for ${what}: ${of}`)
  }
}

function describe({ size }: Upload, exact: number | undefined): string {
  if (exact !== undefined) return `${formatSize(exact)} of files and their record`
  return size === undefined ? 'the upload' : `an upload of ${formatSize(size)}`
}

function noop(): void {}
