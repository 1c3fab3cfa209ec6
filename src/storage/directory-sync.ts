import { type Stats, statSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { isSame } from './link.ts'

/**
 * fsync of one directory, shared: whoever asks while a sync is running waits for the next one, which
 * starts after their change and serves all of them. A hundred uploads at once cost a few syncs, not a hundred.
 */
export class DirectorySync {
  readonly #path: string
  #handle: FileHandle
  #opened: Stats
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined

  private constructor(path: string, handle: FileHandle, opened: Stats) {
    this.#path = path
    this.#handle = handle
    this.#opened = opened
  }

  static async open(path: string): Promise<DirectorySync> {
    const handle = await open(path, 'r')
    return new DirectorySync(path, handle, await handle.stat())
  }

  /** Resolves when every change made in the directory before the call is on disk. */
  sync(): Promise<void> {
    if (!this.#running) return this.#start()
    this.#next ??= this.#running.then(
      () => this.#start(),
      () => this.#start(),
    )
    return this.#next
  }

  #start(): Promise<void> {
    this.#next = undefined
    const run = this.#syncNow().finally(() => {
      if (this.#running === run) this.#running = undefined
    })
    this.#running = run
    return run
  }

  /** Of the directory that has the path now: the one that was opened may have been removed or moved away. */
  async #syncNow(): Promise<void> {
    if (!isSame(statSync(this.#path), this.#opened)) {
      const gone = this.#handle
      this.#handle = await open(this.#path, 'r')
      this.#opened = await this.#handle.stat()
      await gone.close()
    }
    await this.#handle.sync()
  }

  async close(): Promise<void> {
    await this.#running?.catch(() => {})
    await this.#handle.close()
  }
}
