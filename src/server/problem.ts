import { STATUS_CODES } from 'node:http'
import type { UploadError } from '../errors.ts'
import type { Problem } from '../protocol.ts'
import { CHALLENGES } from './access.ts'

export type Headers = Record<string, string | string[]>

/** An error as RFC 9457 problem details, JSON text; `type` is about:blank because `code` says which problem it is. */
export function problemOf(error: UploadError): string {
  const status = error.status || 500
  const problem: Problem = {
    type: 'about:blank',
    title: error.title || (STATUS_CODES[status] ?? 'Error'),
    status,
    detail: error.message,
    code: error.code,
    ...(error.errors && { errors: error.errors }),
  }
  return `${JSON.stringify(problem)}\n`
}

/** What an error's status obliges an answer to say beside it. */
export function headersOf({ status }: UploadError): Headers {
  if (status === 401) return { 'WWW-Authenticate': CHALLENGES }
  return status === 429 || status === 503 ? { 'Retry-After': '5' } : {}
}
