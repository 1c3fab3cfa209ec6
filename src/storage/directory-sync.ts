import { type FileHandle, open } from 'node:fs/promises'

/**
 * fsync of one directory, shared: whoever asks while a sync is running waits for the next one, which
 * starts after their change and serves all of them. A hundred uploads at once cost a few syncs, not a hundred.
 */
export class DirectorySync {
  #handle: FileHandle
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined

  private constructor(handle: FileHandle) {
    this.#handle = handle
  }

  static async open(path: string): Promise<DirectorySync> {
    return new DirectorySync(await open(path, 'r'))
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
    const run = this.#handle.sync().finally(() => {
      if (this.#running === run) this.#running = undefined
    })
    this.#running = run
    return run
  }

  async close(): Promise<void> {
    await this.#running?.catch(() => {})
    await this.#handle.close()
  }
}
