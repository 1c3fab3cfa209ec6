import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { UploadError } from '../errors.ts'
import { dropRest } from '../upload/body.ts'
import { every } from '../upload/ticks.ts'
import { headersOf, problemOf } from './problem.ts'

/**
 * The last answer of a connection, and how it reaches a client that is still sending. Closing at once resets the
 * connection, and the reset takes the answer with it (40 to 90 % of them measured). So: only our half is closed, what
 * comes is read and dropped past node's parser, and an end is put to that.
 */

/** How long, in all and in silence, and for how many bytes a connection is read after its last answer. */
const LINGER_MS = 30_000
const LINGER_SILENCE_MS = 5_000
const LINGER_BYTES = 1024 ** 3
const LOOK_MS = 250

/** By connection; undefined for one that was written by hand. RFC 9112, 9.6 forbids to process what comes behind it. */
const lastAnswers = new WeakMap<Socket, ServerResponse | undefined>()
/** Connections of which nothing more is read but to drop it, now or once the answer is out. */
const lingering = new WeakSet<Socket>()

/** The connection closes after this answer: our half at once, and all of it when the client has closed its own, or says nothing. */
export function makeLast(res: ServerResponse): void {
  const { socket } = res.req
  if (lastAnswers.has(socket)) return
  lastAnswers.set(socket, res)
  // node calls this once the answer is written. What comes all the same makes the connection linger.
  socket.destroySoon = () => void socket.end().setTimeout(LINGER_SILENCE_MS)
}

export function isLast(res: ServerResponse): boolean {
  return lastAnswers.get(res.req.socket) === res
}

/**
 * Whether a request came behind an answer that closes its connection, or never ends. It is not read, nor is
 * anything behind it: it would never be answered.
 */
export function isTooLate({ req: { socket } }: ServerResponse): boolean {
  if (!lastAnswers.has(socket)) return false
  socket.pause()
  const last = lastAnswers.get(socket)
  if (last) lingerAfter(last)
  return true
}

export function isLingering(socket: Socket): boolean {
  return lingering.has(socket)
}

/** Makes an answer the last one, after which what still comes is dropped. */
export function lingerAfter(res: ServerResponse): void {
  const { socket } = res.req
  makeLast(res)
  if (lingering.has(socket)) return
  lingering.add(socket)
  const begin = () => linger(socket, LINGER_SILENCE_MS, res.req)
  if (res.writableFinished) begin()
  else res.once('finish', begin)
}

/** Answers where there is no request that could be answered, and closes the connection. */
export function refuse(socket: Socket, error: UploadError, silence = LINGER_SILENCE_MS): void {
  const body = problemOf(error)
  const headers = {
    'Content-Type': 'application/problem+json',
    'Content-Length': Buffer.byteLength(body),
    ...headersOf(error),
    Connection: 'close',
  }
  const lines = Object.entries(headers).flatMap(([name, value]) =>
    [value].flat().map(one => `${name}: ${one}\r\n`),
  )
  lastAnswers.set(socket, undefined)
  lingering.add(socket)
  socket.on('error', noop)
  socket.end(`HTTP/1.1 ${error.status} ${STATUS_CODES[error.status]}\r\n${lines.join('')}\r\n${body}`)
  linger(socket, silence)
}

function linger(socket: Socket, silence: number, req?: IncomingMessage): void {
  socket.end()
  // Later: node's parser may be in the midst of a read of its own.
  setImmediate(() => {
    if (socket.destroyed) return
    dropRest(socket, req)
    const since = performance.now()
    const before = socket.bytesRead
    let heard = { at: since, bytes: before }
    const stop = every(LOOK_MS, () => {
      const now = { at: performance.now(), bytes: socket.bytesRead }
      if (now.bytes !== heard.bytes) heard = now
      const enough = now.at - since > LINGER_MS || now.bytes - before > LINGER_BYTES
      if (enough || now.at - heard.at > silence) socket.destroy()
    })
    socket.once('close', stop)
  })
}

function noop(): void {}
