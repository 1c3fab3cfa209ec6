import type { Awaitable, Progress } from '../protocol.ts'

/** How an upload ended. */
export type Outcome = Extract<Progress, { state: 'done' | 'error' }>

/** A running upload, as a store sees it: asked for its numbers when somebody wants them, never pushing any. */
export interface LiveUpload {
  /** The client's address. What it used for an id is its own for as long as the outcome is remembered. */
  readonly from: string
  progress(): Extract<Progress, { state: 'uploading' }>
}

/**
 * Remembers how far each upload is, by its id. `begin` and `end` are called once each by the progress
 * handler, `get` for every poll. A live record never expires; after `end` it is kept for the store's
 * retention, so that the last poll sees the end.
 */
export interface ProgressStore {
  /**
   * Throws an UploadError `progress_id_in_use` while the id is live, and leaves that upload alone; so it does while the
   * outcome of another client's upload is remembered, as whoever waits for that would be told of this one.
   */
  begin(id: string, upload: LiveUpload): Awaitable<void>
  /** Replaces the live record by its outcome. An id that is not live is given the outcome alone. */
  end(id: string, outcome: Outcome): Awaitable<void>
  /** `{ state: 'starting' }` for an id that is unknown or forgotten, as nginx's module answers. */
  get(id: string): Awaitable<Progress>
  close?(): Awaitable<void>
}
