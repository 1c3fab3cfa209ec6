import fs from 'node:fs'
import { join } from 'node:path'
import type { StagedFile } from '../storage/storage.ts'
import { Digester, type Following, HASH_INLINE_MAX, sha256 } from './digest.ts'
import type { FileInfo, FileSink, UploadHandler } from './handler.ts'

export interface DiskOptions {
  /** A folder nobody else writes to. */
  dir: string
  /** Sync every file's data before it counts as staged. True by default. */
  fsync?: boolean
  /** Compute every file's digest. True by default. */
  sha256?: boolean
}

/** One writev in flight per file, of about this many bytes: 1525 MiB/s against 1104 with 256 KiB (docs/performance.md). */
const WRITE_SIZE = 1024 * 1024
/** What one file may gather before its part pauses, and what all files together may. */
const WINDOW_MAX = 2 * WRITE_SIZE
const WINDOW_MIN = 256 * 1024
const WINDOWS_TOTAL = 16 * 1024 * 1024
/** IOV_MAX is 1024 on every system that Node runs on. */
const PIECES_MAX = 1024
/** Data is synced in the background every so many bytes, so that the last sync finds little left to do. */
const SYNC_EVERY = 64 * 1024 * 1024

/** What all files of one handler share. */
interface Shared {
  readonly dir: string
  readonly fsync: boolean
  readonly digester: Digester
  readonly hashing: boolean
  /** Files open now. */
  active: number
  /** Files so far; names the next one. */
  count: number
  /** One background sync at a time, whatever the number of files: the thread pool has writes to do. */
  syncing: boolean
}

/** Writes every file it is given to a temporary file (0600) of its own. The last link of the chain. */
export function disk(options: DiskOptions): UploadHandler & { close(): Promise<void> } {
  const digester = new Digester()
  const { dir, fsync = true, sha256: hashing = true } = options
  const shared: Shared = { dir, fsync, digester, hashing, active: 0, count: 0, syncing: false }
  return {
    name: 'disk',
    open: file => new DiskSink(file, shared),
    close: () => digester.close(),
  }
}

/**
 * Chunks gather while the file is opened and while a write is in flight; whatever has gathered goes
 * out in the next writev. Only a full window makes the part wait.
 */
class DiskSink implements FileSink {
  readonly #file: FileInfo
  readonly #shared: Shared
  readonly #path: string
  #fd = -1
  #chunks: Uint8Array[] = []
  /** Bytes in #chunks, and bytes in the file. */
  #gathered = 0
  #written = 0
  /** An open or a write is in flight. */
  #busy = true
  /** A write was started: #chunks is no longer the whole file. */
  #flushed = false
  #closing = false
  #failure: Error | undefined
  /** Settles the promise that a paused `write`, or a `close` or `abort`, waits on. */
  #wake: (() => void) | undefined
  #following: Following | undefined
  #syncedTo = 0
  #sync: Promise<void> | undefined

  constructor(file: FileInfo, shared: Shared) {
    this.#file = file
    this.#shared = shared
    this.#path = join(shared.dir, `${shared.count++}.part`)
    shared.active++
    // O_RDWR: the digest worker reads through the same descriptor.
    fs.open(this.#path, 'wx+', 0o600, (error, fd) => {
      if (error) this.#failure = error
      else this.#fd = fd
      this.#settled()
    })
  }

  write(chunk: Uint8Array): void | Promise<void> {
    if (this.#failure) throw this.#failure
    this.#chunks.push(chunk)
    this.#gathered += chunk.length
    this.#pump()
    return this.#isFull() ? this.#until(() => !this.#isFull()) : undefined
  }

  async close(): Promise<StagedFile> {
    this.#closing = true
    try {
      const size = this.#written + this.#gathered
      const { hashing } = this.#shared
      const small = hashing && !this.#flushed && size <= HASH_INLINE_MAX
      const inline = small ? sha256(Buffer.concat(this.#chunks)) : undefined
      this.#pump()
      await this.#until(() => !this.#busy && this.#gathered === 0)
      const digest = inline ?? (hashing ? this.#follow().finish(size) : undefined)
      // Both to their end, whatever becomes of the other: the descriptor is closed next.
      const [hashed, synced] = await Promise.allSettled([
        digest,
        this.#shared.fsync ? this.#finalSync() : undefined,
      ])
      this.#following = undefined
      if (hashed.status === 'rejected') throw hashed.reason
      if (synced.status === 'rejected') throw synced.reason
      await this.#closeDescriptor()
      this.#shared.active--
      return new DiskFile(this.#file, this.#path, size, hashed.value, this.#shared.fsync)
    } catch (error) {
      await this.abort()
      throw error
    }
  }

  async abort(): Promise<void> {
    this.#failure ??= new Error('aborted')
    this.#chunks = []
    this.#gathered = 0
    while (this.#busy) await new Promise<void>(resolve => (this.#wake = resolve))
    await this.#sync?.catch(() => {})
    await this.#following?.cancel()
    await this.#closeDescriptor().catch(() => {})
    await fs.promises.unlink(this.#path).catch(() => {})
    this.#shared.active--
  }

  #window(): number {
    return Math.max(WINDOW_MIN, Math.min(WINDOW_MAX, WINDOWS_TOTAL / this.#shared.active))
  }

  #isFull(): boolean {
    return this.#gathered >= this.#window() || this.#chunks.length >= 2 * PIECES_MAX
  }

  /** Starts the next write if none is in flight and there is enough to write. */
  #pump(): void {
    if (this.#busy || this.#failure || this.#gathered === 0) return
    const enough = Math.min(WRITE_SIZE, this.#window())
    if (!this.#closing && this.#gathered < enough && this.#chunks.length < PIECES_MAX) return
    this.#busy = true
    this.#flushed = true
    const batch = this.#chunks.splice(0, PIECES_MAX)
    fs.writev(this.#fd, batch, this.#written, (error, written) => {
      if (error) this.#failure = error
      else this.#wrote(batch, written)
      this.#settled()
    })
  }

  #wrote(batch: Uint8Array[], written: number): void {
    this.#written += written
    this.#gathered -= written
    // A short write: the rest goes back to the front.
    let left = written
    let done = 0
    while (done < batch.length && left >= (batch[done] as Uint8Array).length)
      left -= (batch[done++] as Uint8Array).length
    if (done < batch.length) {
      const [torn, ...rest] = batch.slice(done) as [Uint8Array, ...Uint8Array[]]
      this.#chunks.unshift(torn.subarray(left), ...rest)
    }
    if (this.#shared.hashing && this.#written > HASH_INLINE_MAX) this.#follow().advance(this.#written)
    this.#syncInBackground()
  }

  #settled(): void {
    this.#busy = false
    this.#pump()
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }

  /** Resolves when `condition` holds, rejects when a write has failed. Every settled write looks again. */
  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.#failure) break
      await new Promise<void>(resolve => (this.#wake = resolve))
    }
    if (this.#failure) throw this.#failure
  }

  #follow(): Following {
    this.#following ??= this.#shared.digester.follow(this.#fd)
    return this.#following
  }

  #syncInBackground(): void {
    if (!this.#shared.fsync || this.#shared.syncing || this.#sync) return
    if (this.#written - this.#syncedTo < SYNC_EVERY) return
    this.#shared.syncing = true
    this.#syncedTo = this.#written
    this.#sync = datasync(this.#fd).finally(() => {
      this.#shared.syncing = false
      this.#sync = undefined
    })
    // The last sync reports what is wrong: an error is kept by the kernel until it was told once.
    this.#sync.catch(error => (this.#failure ??= error))
  }

  async #finalSync(): Promise<void> {
    await this.#sync
    await datasync(this.#fd)
  }

  #closeDescriptor(): Promise<void> {
    const fd = this.#fd
    this.#fd = -1
    if (fd < 0) return Promise.resolve()
    return new Promise((resolve, reject) => fs.close(fd, error => (error ? reject(error) : resolve())))
  }
}

function datasync(fd: number): Promise<void> {
  return new Promise((resolve, reject) => fs.fdatasync(fd, error => (error ? reject(error) : resolve())))
}

class DiskFile implements StagedFile {
  readonly field: string
  readonly name: string
  readonly type: string
  readonly handler = 'disk'
  readonly path: string
  readonly size: number
  readonly sha256: string | undefined
  readonly durable: boolean

  constructor(file: FileInfo, path: string, size: number, sha256: string | undefined, durable: boolean) {
    this.field = file.field
    this.name = file.name
    this.type = file.type
    this.path = path
    this.size = size
    this.sha256 = sha256
    this.durable = durable
  }

  async discard(): Promise<void> {
    await fs.promises.unlink(this.path).catch(() => {})
  }
}
