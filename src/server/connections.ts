import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import { UploadError } from '../errors.ts'
import type { Limits } from '../limits.ts'
import { isOrAre, plural } from '../units.ts'
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
