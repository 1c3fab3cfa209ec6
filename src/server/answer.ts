import type { IncomingMessage, ServerResponse } from 'node:http'
import type { UploadError } from '../errors.ts'
import { hasArrived, isReusable } from '../upload/body.ts'
import { isLast, lingerAfter } from './last-answer.ts'
import { type Headers, headersOf, problemOf } from './problem.ts'

const BASE_HEADERS: Headers = { 'X-Content-Type-Options': 'nosniff', 'Cache-Control': 'no-store' }

/** Sends a whole answer. Where the request's body has not all been read the connection lingers, then closes. */
export function answer(
  req: IncomingMessage,
  res: ServerResponse,
  status: number,
  content: { type: string; body: string | Buffer } | undefined,
  headers: Headers = {},
): void {
  if (res.headersSent || res.destroyed) return
  // A string goes out with the head in one write.
  const body = content?.body ?? ''
  const all: Headers = { ...BASE_HEADERS, ...headers, 'Content-Length': String(Buffer.byteLength(body)) }
  if (content) all['Content-Type'] = content.type
  if (bodyPending(req) || !isReusable(req)) lingerAfter(res)
  if (isLast(res)) all['Connection'] = 'close'
  res.writeHead(status, all)
  res.end(req.method === 'HEAD' ? undefined : body)
}

export function answerJson(
  req: IncomingMessage,
  res: ServerResponse,
  status: number,
  value: unknown,
  headers?: Headers,
): void {
  answer(req, res, status, { type: 'application/json', body: `${JSON.stringify(value)}\n` }, headers)
}

/** Whether there may be a body still to be read. For a moment node calls a request without one incomplete, too. */
function bodyPending(req: IncomingMessage): boolean {
  const { headers } = req
  return (
    !hasArrived(req) &&
    (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0)
  )
}

export function answerProblem(
  req: IncomingMessage,
  res: ServerResponse,
  error: UploadError,
  headers: Headers = {},
): void {
  const all = { ...headersOf(error), ...headers }
  answer(req, res, error.status || 500, { type: 'application/problem+json', body: problemOf(error) }, all)
}
