import { randomBytes } from 'node:crypto'
import type { FieldError } from './protocol.ts'

/**
 * Every way an upload can fail. The code is API: it stands in problem answers, progress records,
 * logs and JSON output, and does not change. `status` is the HTTP status (0 where the failure is
 * the client's own and no answer carries it), `exit` what `uploadr push` exits with.
 */
const TABLE = {
  // The request
  bad_request: { status: 400, exit: 6, title: 'Bad request' },
  malformed_body: { status: 400, exit: 6, title: 'The form could not be read' },
  truncated_body: { status: 400, exit: 6, title: 'The body ended early' },
  partial_upload: { status: 400, exit: 6, title: 'A piece of an upload' },
  bad_digest: { status: 400, exit: 6, title: 'Wrong digest' },
  name_too_long: { status: 400, exit: 6, title: 'A file name is too long' },
  bad_progress_id: { status: 400, exit: 6, title: 'Bad progress id' },
  bad_callback: { status: 400, exit: 6, title: 'Bad callback name' },
  unauthorized: { status: 401, exit: 5, title: 'Access denied' },
  forbidden: { status: 403, exit: 5, title: 'Forbidden' },
  not_found: { status: 404, exit: 6, title: 'Not found' },
  method_not_allowed: { status: 405, exit: 6, title: 'Method not allowed' },
  // The client stopped sending; worth another try, like a broken connection.
  idle_timeout: { status: 408, exit: 4, title: 'The client stopped sending' },
  too_slow: { status: 408, exit: 4, title: 'The client is too slow' },
  progress_id_in_use: { status: 409, exit: 6, title: 'Progress id in use' },
  name_taken: { status: 409, exit: 6, title: 'A file of that name exists' },
  length_required: { status: 411, exit: 6, title: 'Length required' },
  body_too_large: { status: 413, exit: 6, title: 'The upload is too large' },
  fields_too_large: { status: 413, exit: 6, title: 'The form fields are too large' },
  part_head_too_large: { status: 413, exit: 6, title: 'The head of a part is too large' },
  too_many_fields: { status: 413, exit: 6, title: 'Too many form fields' },
  too_many_files: { status: 413, exit: 6, title: 'Too many files' },
  unsupported_media_type: { status: 415, exit: 6, title: 'Unsupported media type' },
  type_not_allowed: { status: 415, exit: 6, title: 'Media type not accepted' },
  extension_not_allowed: { status: 415, exit: 6, title: 'File extension not accepted' },
  expectation_failed: { status: 417, exit: 6, title: 'Expectation failed' },
  head_too_large: { status: 431, exit: 6, title: 'The head of the request is too large' },
  invalid_form: { status: 422, exit: 6, title: 'The form has errors' },
  // The server
  internal: { status: 500, exit: 9, title: 'Internal error' },
  handler_failed: { status: 500, exit: 9, title: 'An upload handler failed' },
  storage_failed: { status: 500, exit: 9, title: 'The upload could not be stored' },
  not_implemented: { status: 501, exit: 6, title: 'Not implemented' },
  shutting_down: { status: 503, exit: 4, title: 'The server is shutting down' },
  // 429 is about one client's doing (RFC 6585, 4), 503 about everybody's.
  too_many_uploads_of_client: { status: 429, exit: 4, title: 'Too many uploads of this client' },
  too_many_connections: { status: 503, exit: 4, title: 'Too many connections' },
  too_many_uploads: { status: 503, exit: 4, title: 'Too many uploads' },
  quota_exceeded: { status: 507, exit: 6, title: 'Quota exceeded' },
  // 507 is WebDAV's (RFC 4918, 11.5), and what people read as "disk full".
  disk_full: { status: 507, exit: 6, title: 'Not enough space' },
  // The sending half
  usage: { status: 0, exit: 2, title: 'Usage error' },
  local_file: { status: 0, exit: 3, title: 'Local file error' },
  unreachable: { status: 0, exit: 4, title: 'Server unreachable' },
  connection_lost: { status: 0, exit: 4, title: 'Connection lost' },
  stalled: { status: 0, exit: 4, title: 'The upload stalled' },
  // What a proxy says without a code, too: 429, 502, 503, 504.
  unavailable: { status: 0, exit: 4, title: 'The server cannot take it now' },
  digest_mismatch: { status: 0, exit: 7, title: 'Digest mismatch' },
  some_failed: { status: 0, exit: 8, title: 'Some uploads failed' },
  bad_answer: { status: 0, exit: 9, title: 'Unexpected answer' },
  // Not for a loop to try again: that may store it twice.
  answer_lost: { status: 0, exit: 10, title: 'Stored, or perhaps stored' },
  changed: { status: 0, exit: 11, title: 'The file changed while it was sent' },
  // Not for a loop either: the address is wrong, and stays so.
  unknown_host: { status: 0, exit: 12, title: 'Unknown host' },
  bad_certificate: { status: 0, exit: 12, title: 'Certificate not trusted' },
  wrong_protocol: { status: 0, exit: 12, title: 'The server speaks another protocol' },
  interrupted: { status: 0, exit: 130, title: 'Interrupted' },
  terminated: { status: 0, exit: 143, title: 'Terminated' },
  hung_up: { status: 0, exit: 129, title: 'Hung up' },
  output_lost: { status: 0, exit: 1, title: 'Results could not be written' },
  cannot_serve: { status: 0, exit: 1, title: 'Cannot serve' },
} as const satisfies Record<string, { status: number; exit: number; title: string }>

export type ErrorCode = keyof typeof TABLE

interface ErrorExtras {
  cause?: unknown
  /** Errors by form field, for `invalid_form`. */
  errors?: Record<string, FieldError[]>
  /** The status a server answered with, where the code does not imply it. */
  status?: number
}

/** What the names of errno look like. */
const ERRNO = /^E[A-Z0-9]{1,14}$/

/** What a code of a handler's own looks like: `virus_found`. */
const CODE_GRAMMAR = /^[a-z][a-z0-9]*(_[a-z0-9]+)*$/
const CODE_MAX = 64
/** Where a code of a handler's own comes without a status: the form could be read, and is refused. */
const OWN_STATUS = 422

/** Of every UploadError: a handler imports the copy of this package in its own `node_modules`, and another may run it. */
const BRAND = Symbol.for('uploadr.UploadError')

/** The one error that uploadr throws. Its message names the thing and the number. */
export class UploadError extends Error {
  readonly code: ErrorCode | (string & {})
  readonly status: number
  readonly exitCode: number
  readonly title: string
  readonly errors: Record<string, FieldError[]> | undefined

  constructor(code: ErrorCode, message: string, extras?: ErrorExtras)
  /**
   * A refusal by a code of a handler's own: lower-case words joined by `_`, at most 64 characters, that
   * no row of the table has. Its status is 400 to 599, and 422 where none is given; it decides what `push` exits with.
   */
  constructor(code: string, message: string, extras: ErrorExtras & { status: number })
  constructor(code: string, message: string, extras: ErrorExtras = {}) {
    super(message, extras.cause === undefined ? undefined : { cause: extras.cause })
    const known = isErrorCode(code) ? TABLE[code] : undefined
    if (!known && !isCode(code)) {
      throw new TypeError(
        `${JSON.stringify(code)} is no error code: one is like virus_found, in lower case, of ${CODE_MAX} letters at most`,
      )
    }
    this.name = 'UploadError'
    this.code = code
    this.status = extras.status ?? known?.status ?? OWN_STATUS
    // Those of the sending half come with whatever a server answered.
    if (known?.status !== 0 && !isErrorStatus(this.status)) {
      throw new TypeError(`${this.status} is no status of an error such as ${code}: one is 400 to 599`)
    }
    // A code that is not known, or comes with another status than its own, is judged by the status.
    this.exitCode = (known?.status === this.status ? known : TABLE[codeOfStatus(this.status)]).exit
    this.title = known?.title ?? inWords(code)
    this.errors = extras.errors
  }

  get [BRAND](): true {
    return true
  }

  /** The same failure in other words. */
  said(message: string): UploadError {
    const { code, status, errors } = this
    return new UploadError(code, message, { cause: this, status, ...(errors && { errors }) })
  }

  /** As it stands in JSON that is printed. */
  toJSON(): object {
    const { code, status, message, exitCode, errors } = this
    return { code, ...(status && { status }), message, exitCode, errors }
  }

  /** An error that a server answered with. A code that this version does not know is kept; what is no code is not. */
  static fromServer(status: number, code: string, message: string, errors?: Record<string, FieldError[]>) {
    const kept = isErrorStatus(status) && isCode(code) ? code : codeOfStatus(status)
    return new UploadError(kept, message, { status, ...(errors && { errors }) })
  }

  /** Anything thrown, as an UploadError: the errno codes that mean "full" by name, the rest as `fallback`. */
  static from(thrown: unknown, fallback: ErrorCode = 'internal', doing?: string): UploadError {
    // What a handler's own push failed with may have a status that no answer of this server's can carry.
    if (isOurs(thrown) && (fallback !== 'handler_failed' || isErrorStatus(thrown.status))) return thrown
    const cause = thrown as NodeJS.ErrnoException
    const what = doing ? `${doing}: ` : ''
    if (cause?.code === 'ENOSPC' || cause?.code === 'EDQUOT') {
      return new UploadError('disk_full', `${what}no space is left on the server's disk`, { cause })
    }
    // The errno's name is safe to show to a stranger. Anything else may hold a path or a password: that stays with
    // the cause, which the log has beside this message, and so under the number in it.
    const errno = ERRNO.test(String(cause?.code)) ? cause.code : undefined
    const isTold = errno !== undefined && fallback !== 'handler_failed'
    const number = isTold ? '' : ` (${randomBytes(4).toString('hex')})`
    const reason = `${errno ?? TABLE[fallback].title.toLowerCase()}${number}`
    return new UploadError(fallback, `${what}${reason}`, { cause: thrown ?? String(thrown) })
  }
}

function isOurs(thrown: unknown): thrown is UploadError {
  return typeof thrown === 'object' && thrown !== null && BRAND in thrown
}

function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(TABLE, code)
}

function isCode(code: string): boolean {
  return CODE_GRAMMAR.test(code) && code.length <= CODE_MAX
}

function isErrorStatus(status: number): boolean {
  return Number.isInteger(status) && status >= 400 && status <= 599
}

/** `virus_found` as a title: Virus found. */
function inWords(code: string): string {
  return `${code.charAt(0).toUpperCase()}${code.slice(1).replaceAll('_', ' ')}`
}

function codeOfStatus(status: number): ErrorCode {
  if (!isErrorStatus(status)) return 'bad_answer'
  if (status === 401) return 'unauthorized'
  if (status === 403) return 'forbidden'
  if (status === 408) return 'idle_timeout'
  if (status === 413) return 'body_too_large'
  if (status === 429 || (status >= 502 && status <= 504)) return 'unavailable'
  if (status === 507) return 'disk_full'
  return status >= 500 ? 'internal' : 'bad_request'
}
