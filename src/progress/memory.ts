import { UploadError } from '../errors.ts'
import { checkNames, type NamesOf, QUANTITY } from '../names.ts'
import type { Progress } from '../protocol.ts'
import { isOrAre, plural } from '../units.ts'
import type { LiveUpload, Outcome, ProgressStore } from './store.ts'

export interface MemoryProgressOptions {
  /** How long an ended upload is remembered, in milliseconds. 30 000 by default. */
  ttl?: number
  /** How many records are kept. Ended ones make room, oldest first; live ones alone can fill it. 10 000 by default. */
  max?: number
  /** Milliseconds on a clock that never runs backwards; for tests. */
  now?: () => number
}

const OPTIONS: NamesOf<MemoryProgressOptions> = { ttl: QUANTITY, max: QUANTITY, now: true }

interface Ended {
  outcome: Outcome
  at: number
  from: string | undefined
}

/** Progress in this process's memory. */
export class MemoryProgressStore implements ProgressStore {
  readonly #live = new Map<string, LiveUpload>()
  /** In the order in which they ended, so the oldest come first. */
  #ended = new Map<string, Ended>()
  /** Ended ones deleted since the map was made: it walks over all of them to find its first. */
  #deleted = 0
  readonly #ttl: number
  readonly #max: number
  readonly #now: () => number

  constructor(options: MemoryProgressOptions = {}) {
    checkNames('MemoryProgressStore', options, OPTIONS)
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
    const before = this.#ended.get(id)
    if (before?.from !== undefined && before.from !== upload.from && this.#isRemembered(before)) {
      throw new UploadError('progress_id_in_use', `another client has just used the progress id ${id}`)
    }
    if (this.#live.size >= this.#max) {
      throw new UploadError(
        'too_many_uploads',
        `${plural(this.#max, 'upload')} ${isOrAre(this.#max)} running already`,
      )
    }
    this.#delete(id)
    this.#live.set(id, upload)
    this.#forget()
  }

  end(id: string, outcome: Outcome): void {
    const from = this.#live.get(id)?.from
    this.#live.delete(id)
    this.#delete(id)
    this.#ended.set(id, { outcome, at: this.#now(), from })
    this.#forget()
  }

  get(id: string): Progress {
    const live = this.#live.get(id)
    if (live) return live.progress()
    const ended = this.#ended.get(id)
    return ended && this.#isRemembered(ended) ? ended.outcome : { state: 'starting' }
  }

  #isRemembered({ at }: Ended): boolean {
    return this.#now() - at <= this.#ttl
  }

  #forget(): void {
    for (const [id, ended] of this.#ended) {
      if (this.#isRemembered(ended) && this.size <= this.#max) return
      this.#delete(id)
    }
  }

  #delete(id: string): void {
    if (!this.#ended.delete(id) || ++this.#deleted <= 64 + this.#ended.size / 8) return
    this.#ended = new Map(this.#ended)
    this.#deleted = 0
  }
}
