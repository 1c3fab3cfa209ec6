import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { UploadError } from '../errors.ts'
import type { Problem } from '../protocol.ts'
import { dropRest, hasArrived, isReusable } from '../upload/body.ts'

export type Headers = Record<string, string | string[]>

/** How long, and for how many bytes, an early answer keeps reading what the client still sends. */
const LINGER_MS = 30_000
const LINGER_SILENCE_MS = 5_000
const LINGER_BYTES = 1024 ** 3

const BASE_HEADERS: Headers = { 'X-Content-Type-Options': 'nosniff', 'Cache-Control': 'no-store' }

/** Connections whose last answer has been given: RFC 9112, 9.6 forbids to process what still comes on them. */
const closing = new WeakSet<Socket>()

/** Whether a request came, pipelined, after an answer that closes its connection. */
export function isTooLate({ socket }: IncomingMessage): boolean {
  return closing.has(socket)
}

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
  if (bodyPending(req)) lingerAfterAnswer(req, res)
  if (closing.has(req.socket) || !isReusable(req)) all['Connection'] = 'close'
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

/** RFC 9457 problem details; `type` is about:blank because `code` says which problem it is. */
export function answerProblem(
  req: IncomingMessage,
  res: ServerResponse,
  error: UploadError,
  headers: Headers = {},
): void {
  answer(req, res, error.status || 500, { type: 'application/problem+json', body: problemOf(error) }, headers)
}

/** An error as problem details, JSON text. */
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

/**
 * Closes the connection so that a client in the middle of sending still gets the answer. Closing at
 * once resets the connection, and the reset takes the answer with it (40 to 90 % of them measured).
 * So: only our half is closed, what comes is read and dropped, and an end is put to that.
 */
function lingerAfterAnswer(req: IncomingMessage, res: ServerResponse): void {
  const { socket } = req
  closing.add(socket)
  // node calls this, once the answer is written, on a connection that is not kept alive.
  socket.destroySoon = () => socket.end()
  let bytes = 0
  let silence: NodeJS.Timeout
  const destroy = () => socket.destroy()
  const heard = (more: number) => {
    bytes += more
    if (bytes > LINGER_BYTES) destroy()
    else silence.refresh()
  }
  res.once('finish', () => {
    silence = setTimeout(destroy, LINGER_SILENCE_MS).unref()
    const limit = setTimeout(destroy, LINGER_MS).unref()
    socket.once('close', () => {
      clearTimeout(silence)
      clearTimeout(limit)
    })
    // Once all was read the close resets nothing any more.
    dropRest(req, heard, destroy)
  })
}
