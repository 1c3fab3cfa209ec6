import { MEMORY_MAX, MEMORY_TOTAL } from '../limits.ts'
import { BOOLEAN, checkNames, type NamesOf, QUANTITY } from '../names.ts'
import type { StagedFile } from '../storage/storage.ts'
import { ChunkList } from './chunk-list.ts'
import { sha256 } from './digest.ts'
import type { FileInfo, FileSink, OpenFile, Upload, UploadHandler } from './handler.ts'

export interface MemoryOptions {
  /** The largest request that is kept in memory, in bytes, inclusive. MEMORY_MAX by default. */
  max?: number
  /** What all requests together may hold, in bytes; whoever finds it used up goes to the next handler. */
  total?: number
  /** Compute every file's digest. True by default. */
  sha256?: boolean
}

const OPTIONS: NamesOf<MemoryOptions> = { max: QUANTITY, total: QUANTITY, sha256: BOOLEAN }

/**
 * Keeps the files of small requests in memory. A request that announces its length is judged by it
 * and its memory reserved at once; one that does not is kept until it crosses the limit, then the
 * file in hand spills to the next handler and the later ones go there directly.
 */
export function memory(options: MemoryOptions = {}): UploadHandler {
  checkNames('memory', options, OPTIONS)
  const hashing = options.sha256 ?? true
  const budget = new Budget(options.max ?? MEMORY_MAX, options.total ?? MEMORY_TOTAL)
  return {
    name: 'memory',
    begin(upload) {
      if (upload.size !== undefined) budget.reserve(upload, upload.size)
    },
    open(file, next, upload) {
      if (upload.size === undefined) return new SpillingSink(file, next, upload, budget, hashing)
      return budget.held(upload) > 0
        ? new MemorySink(file, hashing, upload.size - upload.received)
        : next(file)
    },
    published: upload => budget.release(upload),
    interrupt: upload => budget.release(upload),
  }
}

class Budget {
  readonly #max: number
  readonly #total: number
  readonly #held = new Map<Upload, number>()
  #used = 0

  constructor(max: number, total: number) {
    this.#max = max
    this.#total = total
  }

  held(upload: Upload): number {
    return this.#held.get(upload) ?? 0
  }

  /** Takes `bytes` more for the upload; false, and nothing taken, if that is over a limit. */
  reserve(upload: Upload, bytes: number): boolean {
    const held = this.held(upload) + bytes
    if (held > this.#max || this.#used + bytes > this.#total) return false
    this.#held.set(upload, held)
    this.#used += bytes
    return true
  }

  release(upload: Upload, bytes = this.held(upload)): void {
    const left = this.held(upload) - bytes
    this.#used -= bytes
    if (left > 0) this.#held.set(upload, left)
    else this.#held.delete(upload)
  }
}

class MemorySink implements FileSink {
  readonly #file: FileInfo
  readonly #hashing: boolean
  readonly #chunks: ChunkList

  /** `expected`: bytes that may come at most. */
  constructor(file: FileInfo, hashing: boolean, expected?: number) {
    this.#chunks = new ChunkList(expected)
    this.#file = file
    this.#hashing = hashing
  }

  write(chunk: Uint8Array): void {
    this.#chunks.push(chunk)
  }

  async close(): Promise<StagedFile> {
    const chunks = this.#chunks.take()
    const bytes = chunks.length === 1 ? (chunks[0] as Uint8Array) : Buffer.concat(chunks)
    return new MemoryFile(this.#file, bytes, this.#hashing ? await sha256(bytes) : undefined)
  }

  abort(): void {
    this.#chunks.take()
  }

  /** The chunks so far, for a sink that takes over. */
  take(): Uint8Array[] {
    return this.#chunks.take()
  }
}

class MemoryFile implements StagedFile {
  readonly field: string
  readonly name: string
  readonly type: string
  readonly handler = 'memory'
  readonly bytes: Uint8Array
  readonly sha256: string | undefined

  constructor(file: FileInfo, bytes: Uint8Array, sha256: string | undefined) {
    this.field = file.field
    this.name = file.name
    this.type = file.type
    this.bytes = bytes
    this.sha256 = sha256
  }

  get size(): number {
    return this.bytes.length
  }

  discard(): void {}
}

/** A file of a request that did not say how long it is: in memory until the request crosses a limit. */
class SpillingSink implements FileSink {
  readonly #file: FileInfo
  readonly #next: OpenFile
  readonly #upload: Upload
  readonly #budget: Budget
  readonly #memory: MemorySink
  #held = 0
  #spilled: FileSink | undefined

  constructor(file: FileInfo, next: OpenFile, upload: Upload, budget: Budget, hashing: boolean) {
    this.#file = file
    this.#next = next
    this.#upload = upload
    this.#budget = budget
    this.#memory = new MemorySink(file, hashing)
  }

  write(chunk: Uint8Array): void | Promise<void> {
    if (this.#spilled) return this.#spilled.write(chunk)
    if (!this.#budget.reserve(this.#upload, chunk.length)) return this.#spill(chunk)
    this.#held += chunk.length
    this.#memory.write(chunk)
  }

  close() {
    return (this.#spilled ?? this.#memory).close()
  }

  abort(reason: Parameters<FileSink['abort']>[0]) {
    return (this.#spilled ?? this.#memory).abort(reason)
  }

  async #spill(chunk: Uint8Array): Promise<void> {
    this.#spilled = await this.#next(this.#file)
    for (const held of this.#memory.take()) await this.#spilled.write(held)
    this.#budget.release(this.#upload, this.#held)
    await this.#spilled.write(chunk)
  }
}
