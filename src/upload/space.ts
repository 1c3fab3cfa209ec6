import { readdir, stat, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { UploadError } from '../errors.ts'
import type { StoredFile } from '../protocol.ts'
import { recordsFolder } from '../storage/local.ts'
import { formatSize } from '../units.ts'
import { type FileSink, tap, type Upload, type UploadHandler } from './handler.ts'

export interface SpaceOptions {
  /** The folder that uploads fill with temporary files. */
  tmp: string
  /** The one of stored files; undefined where they are stored elsewhere, which then has no quota. */
  dir: string | undefined
  /** Bytes that stay free on the file systems of both; 0 for none. */
  minFree: number
  /** Bytes that the files in `dir` and the records of them may have together; 0 for any number. */
  quota: number
}

/** An upload that did not say its length is held against the room every so many bytes, and at the end of a file. */
const CHECK_EVERY = 1024 * 1024

/**
 * Keeps the disk from filling up. An upload that says its length is refused before its body unless
 * there is room for it beside all that has been admitted and is still to come. While bytes stream,
 * announced or not, the room is measured again and again: others write to the disk too.
 */
export function space({ tmp, dir, minFree, quota }: SpaceOptions): UploadHandler {
  const running = new Set<Upload>()
  const gauges: Gauge[] = []
  if (minFree > 0) gauges.push(new FreeSpace(dir === undefined ? [tmp] : [tmp, dir], minFree))
  if (quota > 0 && dir !== undefined) gauges.push(new Quota(dir, quota))
  if (gauges.length === 0) return { name: 'space' }

  const leave = (upload: Upload, files: readonly StoredFile[]) => {
    if (running.delete(upload)) for (const gauge of gauges) gauge.ended(upload, files)
  }
  const check = async () => {
    for (const gauge of gauges) {
      if (gauge.isOld() || gauge.room(running) < gauge.slack) await gauge.measure(running)
      if (gauge.room(running) < 0) throw gauge.refusal(0, 0)
    }
  }
  const watched = (inner: FileSink, upload: Upload) => {
    let checkedAt = upload.received
    const isDue = (after: number) =>
      (upload.size === undefined && upload.received - checkedAt >= after) ||
      gauges.some(gauge => gauge.isOld())
    const checkAndWrite = async (chunk: Uint8Array) => {
      checkedAt = upload.received
      await check()
      await inner.write(chunk)
    }
    // Once all of it is written: what a sink has gathered is not on the disk that is measured.
    const closeAndCheck = async () => {
      const staged = await inner.close()
      try {
        await check()
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
      const wanted = upload.size ?? 0
      const admit = () => {
        for (const gauge of gauges) {
          if (gauge.room(running) < wanted) throw gauge.refusal(wanted, gauge.room(running))
        }
        running.add(upload)
      }
      // No refusal by an old measurement: something may have been deleted since.
      const old = gauges.filter(gauge => gauge.isOld() || gauge.room(running) < wanted)
      if (old.length === 0) return admit()
      return Promise.all(old.map(gauge => gauge.measure(running))).then(admit)
    },
    open(file, next, upload) {
      const inner = next(file)
      return inner instanceof Promise ? inner.then(sink => watched(sink, upload)) : watched(inner, upload)
    },
    published: leave,
    interrupt: upload => leave(upload, []),
  }
}

/** A measurement of room, kept up to date between measurements by what uploads are known to take. */
abstract class Gauge {
  /** What it may be wrong by: with less room than this it is measured at every check. */
  readonly slack: number
  readonly #maxAge: number
  #at = Number.NEGATIVE_INFINITY
  #measuring: Promise<void> | undefined

  constructor(maxAge: number, slack: number) {
    this.#maxAge = maxAge
    this.slack = slack
  }

  isOld(): boolean {
    return performance.now() - this.#at > this.#maxAge
  }

  /** One measurement for everybody who asks while it runs. */
  measure(running: ReadonlySet<Upload>): Promise<void> {
    this.#measuring ??= this.look(running).finally(() => {
      this.#at = performance.now()
      this.#measuring = undefined
    })
    return this.#measuring
  }

  protected abstract look(running: ReadonlySet<Upload>): Promise<void>
  /** Bytes that can be admitted beside what is running. */
  abstract room(running: ReadonlySet<Upload>): number
  /** `files`: what was stored of it. */
  abstract ended(upload: Upload, files: readonly StoredFile[]): void
  abstract refusal(wanted: number, room: number): UploadError
}

class FreeSpace extends Gauge {
  readonly #folders: readonly string[]
  readonly #kept: number
  #free = 0
  /** Bytes that running uploads had received when it was measured, and that ended ones received in all. */
  #receivedBefore = 0
  #receivedByEnded = 0

  constructor(folders: readonly string[], kept: number) {
    // When it is measured, so much may have been received and not yet written.
    super(500, 16 * 1024 * 1024)
    this.#folders = folders
    this.#kept = kept
  }

  protected async look(running: ReadonlySet<Upload>): Promise<void> {
    const systems = await Promise.all(this.#folders.map(folder => statfs(folder)))
    this.#free = Math.min(...systems.map(({ bavail, bsize }) => bavail * bsize))
    this.#receivedByEnded = 0
    this.#receivedBefore = sum(running, ({ received }) => received)
  }

  room(running: ReadonlySet<Upload>): number {
    const received = this.#receivedByEnded + sum(running, upload => upload.received)
    const toCome = sum(running, ({ size = 0, received }) => Math.max(0, size - received))
    return this.#free - this.#kept - (received - this.#receivedBefore) - toCome
  }

  ended({ received }: Upload): void {
    this.#receivedByEnded += received
  }

  refusal(wanted: number, room: number): UploadError {
    const left = `${formatSize(Math.max(0, room))} are left above the ${formatSize(this.#kept)} kept free`
    return new UploadError('disk_full', `no room on the disk for ${describe(wanted)}: ${left}`)
  }
}

class Quota extends Gauge {
  readonly #dir: string
  readonly #quota: number
  #used = 0
  /** What was received since it was measured; some of it may not have been stored. */
  #endedSince = 0

  constructor(dir: string, quota: number) {
    super(60_000, 0)
    this.#dir = dir
    this.#quota = quota
  }

  protected async look(): Promise<void> {
    this.#endedSince = 0
    const folders = [this.#dir, recordsFolder(this.#dir)]
    const sizes = await Promise.all(folders.map(sizeOfFiles))
    this.#used = sizes.reduce((total, size) => total + size, 0)
  }

  room(running: ReadonlySet<Upload>): number {
    const admitted = sum(running, ({ size = 0, received }) => Math.max(size, received))
    return this.#quota - this.#used - this.#endedSince - admitted
  }

  ended({ received }: Upload, files: readonly StoredFile[]): void {
    // The record repeats what is said of every file, and little else.
    this.#endedSince += received + Buffer.byteLength(JSON.stringify(files))
  }

  refusal(wanted: number, room: number): UploadError {
    const left = `${formatSize(Math.max(0, room))} are left of ${formatSize(this.#quota)}`
    return new UploadError('quota_exceeded', `no room within the quota for ${describe(wanted)}: ${left}`)
  }
}

function describe(wanted: number): string {
  return wanted === 0 ? 'the upload' : `an upload of ${formatSize(wanted)}`
}

function sum(uploads: ReadonlySet<Upload>, count: (upload: Upload) => number): number {
  let total = 0
  for (const upload of uploads) total += count(upload)
  return total
}

/** Bytes of the files in a folder, not of those below it. */
async function sizeOfFiles(dir: string): Promise<number> {
  let total = 0
  for (const entry of await readdir(dir, { withFileTypes: true })) {
    // One that goes away between the two calls has no size any more.
    if (entry.isFile()) total += (await stat(join(dir, entry.name)).catch(() => ({ size: 0 }))).size
  }
  return total
}
