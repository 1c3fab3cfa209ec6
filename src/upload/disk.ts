import fs from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { UploadError } from '../errors.ts'
import { BOOLEAN, checkNames, type NamesOf, TEXT } from '../names.ts'
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
  /** Makes the folder anew where it has gone, or says why that cannot be. */
  health?: () => Promise<string | undefined>
}

const OPTIONS: NamesOf<DiskOptions> = { dir: TEXT, fsync: BOOLEAN, sha256: BOOLEAN, health: true }

/** A chunk of this size is written from where it is; smaller ones are gathered. */
const WRITE_MIN = 64 * 1024
/** What is gathered for one write, in bytes; less where many files are open. */
const GATHER_MAX = 512 * 1024
const GATHER_MIN = 128 * 1024
const GATHER_TOTAL = 16 * 1024 * 1024
/** Data is synced in the background every so many bytes, so that the last sync finds little left to do. */
const SYNC_EVERY = 16 * 1024 * 1024
/** And the digest's thread is told of what was written every so many. */
const FOLLOW_EVERY = 1024 * 1024
const EMPTY = Buffer.alloc(0)

/** What all files of one handler share. */
interface Shared {
  readonly dir: string
  readonly health: () => Promise<string | undefined>
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
  checkNames('disk', options, OPTIONS)
  const digester = new Digester()
  const { dir, fsync = true, sha256: hashing = true, health = async () => 'ENOENT' } = options
  const shared: Shared = { dir, health, fsync, digester, hashing, active: 0, count: 0, syncing: false }
  return {
    name: 'disk',
    open: (file, _next, upload) => new DiskSink(file, upload.size, shared),
    close: () => digester.close(),
  }
}

/**
 * A large chunk is written from where it is, and taken once it is in the file; what comes meanwhile
 * waits in the receiver. Small ones are copied together: one block is written while the next gathers.
 */
class DiskSink implements FileSink {
  readonly #file: FileInfo
  readonly #shared: Shared
  readonly #path: string
  readonly #gatherSize: number
  #fd = -1
  #written = 0
  /** What is gathered, and the other block, which is free or being written. */
  #block: Buffer | undefined
  #gathered = 0
  #otherBlock: Buffer | undefined
  /** The open, then each write; it never rejects, #failure tells. Undefined while there is none. */
  #work: Promise<void> | undefined
  #failure: Error | undefined
  #following: Following | undefined
  #followedTo = 0
  #syncedTo = 0
  #sync: Promise<void> | undefined

  constructor(file: FileInfo, size: number | undefined, shared: Shared) {
    this.#file = file
    this.#shared = shared
    this.#path = join(shared.dir, `${shared.count++}.part`)
    shared.active++
    const share = Math.max(GATHER_MIN, Math.min(GATHER_MAX, GATHER_TOTAL / shared.active))
    this.#gatherSize = Math.min(share, size ?? share)
    this.#do(async () => {
      this.#fd = await this.#open()
    })
  }

  write(chunk: Uint8Array): void | Promise<void> {
    if (this.#failure) throw this.#failure
    return chunk.length >= WRITE_MIN ? this.#append(chunk) : this.#gather(chunk)
  }

  async close(): Promise<StagedFile> {
    try {
      const { hashing, fsync } = this.#shared
      const isSmall = this.#written === 0 && !this.#otherBlock && this.#gathered <= HASH_INLINE_MAX
      const inline = hashing && isSmall ? sha256(this.#copies()) : undefined
      await this.#flush()
      const size = this.#written
      const digest = inline ?? (hashing ? this.#follow().finish(size) : undefined)
      // Both to their end, whatever becomes of the other: the descriptor is closed next.
      const [hashed, synced] = await Promise.allSettled([digest, fsync ? this.#finalSync() : undefined])
      this.#following = undefined
      if (hashed.status === 'rejected') throw hashed.reason
      if (synced.status === 'rejected') throw synced.reason
      await this.#closeDescriptor()
      this.#shared.active--
      return new DiskFile(this.#file, this.#path, size, hashed.value, fsync)
    } catch (error) {
      await this.abort()
      throw this.#failed(error)
    }
  }

  async abort(): Promise<void> {
    this.#failure ??= new Error('aborted')
    await this.#work
    await this.#sync?.catch(() => {})
    await this.#following?.cancel()
    await this.#closeDescriptor().catch(() => {})
    await fs.promises.unlink(this.#path).catch(() => {})
    this.#shared.active--
  }

  /** For reading, too: the digest worker reads through the same descriptor. */
  async #open(): Promise<number> {
    try {
      return await open(this.#path, 'wx+', 0o600)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
      const why = await this.#shared.health()
      if (why !== undefined) throw error
      return open(this.#path, 'wx+', 0o600)
    }
  }

  /** Writes a chunk after all that came before it. */
  async #append(chunk: Uint8Array): Promise<void> {
    await this.#flush()
    this.#startWrite(chunk)
    await this.#idle()
  }

  #gather(chunk: Uint8Array): void | Promise<void> {
    this.#block ??= Buffer.allocUnsafeSlow(this.#gatherSize)
    const fits = Math.min(chunk.length, this.#block.length - this.#gathered)
    this.#block.set(fits < chunk.length ? chunk.subarray(0, fits) : chunk, this.#gathered)
    this.#gathered += fits
    if (fits === chunk.length) return
    const rest = chunk.subarray(fits)
    if (this.#work) return this.#idle().then(() => this.#gatherOn(rest))
    return this.#gatherOn(rest)
  }

  #gatherOn(rest: Uint8Array): void | Promise<void> {
    this.#writeBlock()
    return this.#gather(rest)
  }

  /** Starts the write of what has gathered; only where none is in flight. */
  #writeBlock(): void {
    const copies = this.#copies()
    const other = this.#otherBlock
    this.#otherBlock = this.#block
    this.#block = other
    this.#gathered = 0
    this.#startWrite(copies)
  }

  #copies(): Uint8Array {
    return (this.#block ?? EMPTY).subarray(0, this.#gathered)
  }

  async #flush(): Promise<void> {
    await this.#idle()
    if (this.#gathered === 0) return
    this.#writeBlock()
    await this.#idle()
  }

  /** Resolves when no open or write is in flight; rejects if one has failed. */
  async #idle(): Promise<void> {
    await this.#work
    if (this.#failure) throw this.#failure
  }

  #startWrite(bytes: Uint8Array): void {
    this.#do(async () => {
      for (let done = 0; done < bytes.length; )
        done += await write(this.#fd, bytes, done, this.#written + done)
      this.#written += bytes.length
      this.#followInBackground()
      this.#syncInBackground()
    })
  }

  #do(work: () => Promise<void>): void {
    this.#work = work()
      .catch(error => {
        this.#failure ??= this.#failed(error)
      })
      .finally(() => {
        this.#work = undefined
      })
  }

  #follow(): Following {
    this.#following ??= this.#shared.digester.follow(this.#fd)
    return this.#following
  }

  #followInBackground(): void {
    if (!this.#shared.hashing || this.#written - this.#followedTo < FOLLOW_EVERY) return
    this.#followedTo = this.#written
    this.#follow().advance(this.#written)
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
    this.#sync.catch(error => {
      this.#failure ??= this.#failed(error)
    })
  }

  async #finalSync(): Promise<void> {
    await this.#sync
    await datasync(this.#fd)
  }

  #failed(cause: unknown): UploadError {
    return UploadError.from(cause, 'storage_failed', `writing ${this.#file.name}`)
  }

  async #closeDescriptor(): Promise<void> {
    const fd = this.#fd
    this.#fd = -1
    if (fd >= 0) await close(fd)
  }
}

/**
 * Does once what is done for each file, so that a folder where that cannot be, for want of a call or a right, is
 * found before somebody's bytes are: throws what it meets there. False where only syncing is not to be had.
 */
export async function tryDisk(dir: string, fsync: boolean): Promise<boolean> {
  const path = join(dir, 'probe')
  const fd = await open(path, 'wx+', 0o600)
  try {
    await write(fd, Buffer.from('probe'), 0, 0)
    await read(fd, Buffer.alloc(5), 0, 5, 0)
    if (!fsync) return true
    return await datasync(fd).then(
      () => true,
      () => false,
    )
  } catch (error) {
    // What is full now may have room later; until then uploads are told.
    if (UploadError.from(error).code === 'disk_full') return true
    throw error
  } finally {
    await close(fd)
    await fs.promises.unlink(path)
  }
}

const open = promisify(fs.open)
const read = promisify(fs.read)
const close = promisify(fs.close)
const datasync = promisify(fs.fdatasync)

/** Writes once; resolves to how many bytes went out, which may be fewer than there are. */
function write(fd: number, bytes: Uint8Array, from: number, position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.write(fd, bytes, from, bytes.length - from, position, (error, written) =>
      error ? reject(error) : resolve(written),
    )
  })
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
