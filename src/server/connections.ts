import type { Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { UploadError } from '../errors.ts'
import type { Limits } from '../limits.ts'
import { isOrAre, plural } from '../units.ts'
import { every } from '../upload/ticks.ts'
import { refuse } from './last-answer.ts'

/** How long a refused connection may be silent while it reads why, in milliseconds, and how many may at once. */
const FAREWELL_MS = 1000
const FAREWELLS_MAX = 100

/** Refuses connections over the numbers that may be open at once. `refused` is told of each. */
export function limitConnections(
  server: Server,
  limits: Pick<Limits, 'connections' | 'connectionsPerClient'>,
  refused: (error: UploadError, from: string) => void,
): void {
  const open = new Map<string, number>()
  let total = 0
  let leaving = 0
  const refusal = (from: string, own: number): UploadError | undefined => {
    if (total >= limits.connections) {
      return new UploadError(
        'too_many_connections',
        `${plural(total, 'connection')} ${isOrAre(total)} open already`,
      )
    }
    if (own < limits.connectionsPerClient) return undefined
    return new UploadError(
      'too_many_connections',
      `${plural(own, 'connection')} of ${from} ${isOrAre(own)} open already`,
    )
  }
  // node's own listener, which makes a socket speak HTTP: a refused one never gets to it.
  const accept = server.listeners('connection') as ((socket: Socket) => void)[]
  server.removeAllListeners('connection')
  server.on('connection', (socket: Socket) => {
    const from = socket.remoteAddress ?? ''
    const own = open.get(from) ?? 0
    const error = refusal(from, own)
    if (error) {
      refused(error, from)
      // Not counted with the others: whoever is refused again and again must not keep everybody out.
      if (leaving >= FAREWELLS_MAX) return void socket.destroy()
      leaving++
      socket.once('close', () => leaving--)
      return refuse(socket, error, FAREWELL_MS)
    }
    total++
    open.set(from, own + 1)
    socket.once('close', () => {
      total--
      const left = (open.get(from) ?? 1) - 1
      if (left > 0) open.set(from, left)
      else open.delete(from)
    })
    for (const listener of accept) listener.call(server, socket)
  })
}

/** How long a connection may be open without a request, and how long after its last answer, in milliseconds. */
export interface Waits {
  first: number
  next: number
}

/**
 * Tells of connections on which no request comes. node's own timers begin anew with whatever arrives, and the line
 * ends that may stand before a request (RFC 9112, 2.2) are part of none. Looked at from outside: a request costs
 * nothing, and time in which the process did not run is no wait.
 */
export function limitWaiting(
  server: Server,
  waits: Waits,
  answerOf: (socket: Socket) => ServerResponse | undefined,
  ended: (socket: Socket) => void,
): void {
  const look = Math.max(50, Math.min(1000, waits.first / 4))
  server.on('connection', (socket: Socket) => {
    let waited = 0
    /** After which answer it waits; null while one is on its way, or before the first look. */
    let after: ServerResponse | undefined | null = null
    const stop = every(look, () => {
      const res = answerOf(socket)
      const isOut = res?.writableFinished ?? true
      waited = isOut && res === after ? waited + look : 0
      after = isOut ? res : null
      if (waited >= (res ? waits.next : waits.first)) ended(socket)
      // Nor is an answer that nobody reads kept for what arrives: it is read again once that is out.
      if (isOut || !res?.writableEnded || socket.isPaused()) return
      socket.pause()
      res.once('finish', () => socket.resume())
    })
    socket.once('close', stop)
  })
}
