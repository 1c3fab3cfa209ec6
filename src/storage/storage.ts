import type { Rule } from '../names.ts'
import type { Awaitable, Receipt, StoredFile } from '../protocol.ts'

/**
 * A file that a handler has received whole and nobody can see yet: what a handler's sink hands over
 * on close and a storage publishes. Its bytes are in memory (`bytes`) or in a file (`path`).
 */
export interface StagedFile {
  readonly field: string
  /** A cleaned base name: never empty, `.`, `..`, nor with a separator; at most 255 UTF-8 bytes. */
  readonly name: string
  readonly type: string
  /** Bytes. */
  readonly size: number
  /** Lower-case hexadecimal, of the bytes staged; undefined where none is computed. */
  readonly sha256?: string | undefined
  /** The name of the handler that staged it. */
  readonly handler: string
  /** Set by the receiver, as `StoredFile` has them, where there is something to say. */
  arrived?: StoredFile['arrived']
  contentDigest?: string
  readonly bytes?: Uint8Array
  readonly path?: string
  /** True where `path` has been synced to disk: a storage that renames it need not sync its data again. */
  readonly durable?: boolean
  /** Releases the bytes or removes the file. A storage may have moved `path` away before; calling twice is harmless. */
  discard(): Awaitable<void>
}

/**
 * What happens where a name is taken: `rename` stores under a free variant of it, `replace` swaps the
 * old file for the new one, in one step where that one can have a second link, `reject` refuses the upload.
 */
export type OnConflict = 'rename' | 'replace' | 'reject'
export const ON_CONFLICT = ['rename', 'replace', 'reject'] as const satisfies readonly OnConflict[]

/** Permissions of stored files, where nothing else is asked for. */
export const FILE_MODE = 0o644

/** What the options of a storage may be, whoever takes them. */
export const CONFLICT_RULE: Rule = {
  what: `one of ${ON_CONFLICT.join(', ')}`,
  fits: value => ON_CONFLICT.some(how => how === value),
}
export const MODE_RULE: Rule = {
  what: 'a mode such as 0o644 that lets the owner read and write',
  fits: value => typeof value === 'number' && (value & 0o777) === value && (value & 0o600) === 0o600,
}

/** What a storage is told of the upload whose files it publishes. */
export interface UploadFacts {
  readonly id: string
  readonly title: string
  /** When the request arrived. */
  readonly time: Date
  /** The client's address. */
  readonly from: string
  readonly fields?: Receipt['fields']
  readonly contentDigest?: Receipt['contentDigest']
}

/** The small JSON document kept for each upload. */
export interface UploadRecord {
  id: string
  title: string
  /** ISO 8601, UTC. */
  time: string
  from: string
  /** As `Receipt` has them. */
  fields?: Record<string, string[]>
  contentDigest?: string
  files: StoredFile[]
  /** With `replace`, what had the name of each file before, null for none: recovery replaces that and nothing newer. */
  replaces?: (Replaced | null)[]
}

/** A file as it was before another took its place. */
export interface Replaced {
  ino: number
  /** Bytes. */
  size: number
  /** Milliseconds since 1970. */
  mtimeMs: number
}

/**
 * Where published files live. The server calls `accepts` when a file part opens and `publish` once
 * per upload, after every file of it was staged and the form was found right.
 */
export interface Storage {
  readonly name: string
  /** The local folder whose disk takes the files, where that is one; --min-free is kept there. */
  readonly folder?: string
  /** Bytes that the stored files and their records have together; without it there can be no quota. */
  used?(): Promise<number>
  /**
   * Why nothing can be stored just now, in a few words without a path, or undefined. What is missing and can be
   * made anew is, first. Asked by /healthz, and when something that an upload needs has gone.
   */
  health?(): Awaitable<string | undefined>
  /**
   * May refuse a file by its name before its bytes arrive, by throwing an UploadError. Where it cannot store it
   * under that name, the one it will have, but for what makes it another than one that is taken.
   */
  accepts?(name: string): Awaitable<string | undefined>
  /**
   * Gives every file its name, all or none, and writes the upload's record. Resolves when both are as
   * durable as the storage promises. On failure nothing of the upload is left and an UploadError is thrown.
   */
  publish(upload: UploadFacts, files: readonly StagedFile[]): Promise<StoredFile[]>
  close?(): Awaitable<void>
}
