import { UploadError } from '../errors.ts'
import type { Progress } from '../protocol.ts'
import type { LiveUpload, Outcome, ProgressStore } from './store.ts'

export interface MemoryProgressOptions {
  /** How long an ended upload is remembered, in milliseconds. 30 000 by default. */
  ttl?: number
  /** How many records are kept. Ended ones make room, oldest first; live ones alone can fill it. 10 000 by default. */
  max?: number
  /** Milliseconds on a clock that never runs backwards; for tests. */
  now?: () => number
}

interface Ended {
  outcome: Outcome
  at: number
}

/** Progress in this process's memory. */
export class MemoryProgressStore implements ProgressStore {
  readonly #live = new Map<string, LiveUpload>()
  /** In the order in which they ended, so the oldest come first. */
  readonly #ended = new Map<string, Ended>()
  /** Stands behind the oldest that has been looked at: a map walks over all it has deleted to find its first. */
  #walk = this.#ended.entries()
  #oldest: [string, Ended] | undefined
  /** Ids used again since the walk began. A walk that stands keeps all the tables alive that the map has outgrown. */
  #reused = 0
  readonly #ttl: number
  readonly #max: number
  readonly #now: () => number

  constructor(options: MemoryProgressOptions = {}) {
    this.#ttl = options.ttl ?? 30_000
    this.#max = options.max ?? 10_000
    this.#now = options.now ?? (() => performance.now())
  }

  get live(): number {
    return this.#live.size
  }

  get size(): number {
    return this.#live.size + this.#ended.size
  }

  begin(id: string, upload: LiveUpload): void {
    if (this.#live.has(id)) {
      throw new UploadError('progress_id_in_use', `an upload with the progress id ${id} is still running`)
    }
    if (this.#live.size >= this.#max) {
      throw new UploadError('too_many_uploads', `${this.#max} uploads are running already`)
    }
    this.#useAgain(id)
    this.#live.set(id, upload)
    this.#forget()
  }

  end(id: string, outcome: Outcome): void {
    this.#live.delete(id)
    this.#useAgain(id)
    this.#ended.set(id, { outcome, at: this.#now() })
    this.#forget()
  }

  get(id: string): Progress {
    const live = this.#live.get(id)
    if (live) return live.progress()
    const ended = this.#ended.get(id)
    if (ended && this.#now() - ended.at <= this.#ttl) return ended.outcome
    return { state: 'starting' }
  }

  #useAgain(id: string): void {
    if (!this.#ended.delete(id) || ++this.#reused < this.#max) return
    this.#reused = 0
    this.#walk = this.#ended.entries()
    this.#oldest = undefined
  }

  #forget(): void {
    for (;;) {
      this.#oldest ??= this.#walk.next().value
      if (!this.#oldest) {
        // A walk that has come to the end does not go on.
        this.#walk = this.#ended.entries()
        return
      }
      const [id, ended] = this.#oldest
      if (this.#ended.get(id) === ended) {
        if (this.#now() - ended.at <= this.#ttl && this.size <= this.#max) return
        this.#ended.delete(id)
      }
      this.#oldest = undefined
    }
  }
}
