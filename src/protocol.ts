/**
 * What the sending and the receiving half agree on: header names, routes, the progress
 * answer and the receipt. Both halves import this file and nothing of each other.
 */

/** For what may stay synchronous: a promise is made only where there is something to wait for. */
export type Awaitable<T> = T | Promise<T>

/** Where `serve` listens and `push` sends unless told otherwise. */
export const DEFAULT_HOST = '127.0.0.1'
export const DEFAULT_PORT = 8000
export const DEFAULT_URL = `http://${DEFAULT_HOST}:${DEFAULT_PORT}/`

export const ROUTES = {
  upload: '/',
  progress: '/progress',
  health: '/healthz',
  metrics: '/metrics',
} as const

/** The header, and the query parameter, that names an upload; nginx's upload progress module chose it. */
export const PROGRESS_ID = 'X-Progress-ID'

/**
 * A progress id is a capability: whoever knows it sees the upload's progress. The characters are
 * RFC 3986's unreserved ones, so an id needs no escaping in a path, a query or a header.
 */
const PROGRESS_ID_GRAMMAR = /^[A-Za-z0-9._~-]{1,128}$/

export function isProgressId(text: string): boolean {
  return PROGRESS_ID_GRAMMAR.test(text)
}

/** A title has at most this many Unicode code points; the form and `push` both cut by it. */
export const TITLE_MAX = 50

/** `receiving` while the body comes in, `storing` from its last byte until the files have their names. */
export type Phase = 'receiving' | 'storing'

/**
 * The answer of `GET /progress`: the wire of nginx's upload progress module, with fields its
 * clients ignore. `received` counts raw body bytes and `size` is the request's Content-Length,
 * absent while unknown. `starting` stands for an id nobody has used, or one long forgotten.
 */
export type Progress =
  | { state: 'starting' }
  | { state: 'uploading'; received: number; size?: number; phase: Phase }
  | { state: 'done'; received: number; size: number }
  | { state: 'error'; status: number; code: string; detail: string; received: number; size?: number }

/** One stored file, as the receipt and the record name it. */
export interface StoredFile {
  /** The form field that carried it. */
  field: string
  /** The name it was stored under. */
  name: string
  /** The name it was sent with, after cleaning; differs from `name` where that one was taken. */
  sentAs: string
  /** Bytes. */
  size: number
  /** The media type the client declared, without parameters. */
  type: string
  /** Lower-case hexadecimal, of the stored bytes; absent where the server was told to compute none. */
  sha256?: string
  /** The upload handler that staged it. */
  handler: string
  /** What arrived of it, where a handler stored other bytes than that: what a client compares with what it sent. */
  arrived?: { size: number; sha256?: string }
  /** The digests that its part announced, in the form of RFC 9530's Content-Digest; found right. */
  contentDigest?: string
}

/** The JSON answer to an upload that was stored. */
export interface Receipt {
  id: string
  title: string
  /** The form's fields beside the title, but for its CSRF token; absent where there are none. */
  fields?: Record<string, string[]>
  /** The digests of the whole body that the request announced, as Content-Digest has them; found right. */
  contentDigest?: string
  files: StoredFile[]
}

/** One error of one form field, in the shape of Django's `ErrorDict.get_json_data()`. */
export interface FieldError {
  message: string
  code: string
}

/** An error answer: RFC 9457 problem details, with a stable `code` and, for a form, errors by field. */
export interface Problem {
  type: string
  title: string
  status: number
  detail: string
  code: string
  errors?: Record<string, FieldError[]>
}
