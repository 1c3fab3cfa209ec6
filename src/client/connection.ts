import { createRequire } from 'node:module'
import type { Socket } from 'node:net'
import type { Client, Dispatcher } from 'undici'

/** One connection to one origin, and requests on it in turn; a broken one is made anew for the next request. */
export interface Connection {
  /** Where the signal aborts while the connection is being made, that ends too. */
  request(options: Dispatcher.RequestOptions & { signal: AbortSignal }): Promise<Dispatcher.ResponseData>
  /** Bytes that the system has taken of all that was sent over the socket of now. */
  taken(): number
  /**
   * Whether the last request went over a socket with answers to others, and none of its own: who closes
   * a kept connection may not have read what was on its way meanwhile (RFC 9112, 9.3.1).
   */
  unheard(): boolean
  destroy(): Promise<void>
}

const CONNECT_TIMEOUT_MS = 10_000
/** Answers are a few hundred bytes; more than this is something else. */
const ANSWER_MAX = 64 * 1024

type Connected = (...result: [error: Error, socket: null] | [error: null, socket: Socket]) => void
type Connect = (to: object, done: Connected) => Socket

/**
 * undici's Client and nothing else of it: all of undici, with its fetch, caches and mocks, takes longer
 * to load than node to start. These files are no public entry points, hence the exact version in
 * package.json. They are loaded at the first call: who only serves needs none of them.
 */
export function openConnection(origin: string): Connection {
  const require = createRequire(import.meta.url)
  const UndiciClient = require('undici/lib/dispatcher/client.js') as typeof Client
  const request = require('undici/lib/api/api-request.js') as Connection['request']
  const connectorOf = require('undici/lib/core/connect.js') as (options: object) => Connect
  const { kParser } = require('undici/lib/core/symbols.js') as { kParser: symbol }
  const connector = connectorOf({ timeout: CONNECT_TIMEOUT_MS })
  /** Where one is being made: undici can wait for it, but not give it up. */
  let connecting: Socket | undefined
  const giveUp = () => connecting?.destroy(new Error('given up'))
  let asked: AbortSignal | undefined
  let socket: Socket | undefined
  /** Bytes that had come over it when the last request was made. */
  let heard = 0
  const connect: Connect = (to, done) => {
    connecting = connector(to, (...result) => {
      connecting = undefined
      done(...result)
      const [, made] = result
      if (!made) return
      socket = made
      heard = 0
      readOverContinue((made as unknown as Record<symbol, Parser>)[kParser])
    })
    // undici connects a moment after it was asked to.
    if (asked?.aborted) giveUp()
    return connecting
  }
  const client = new UndiciClient(origin, {
    // How long is too long, whoever asks knows.
    headersTimeout: 0,
    bodyTimeout: 0,
    maxResponseSize: ANSWER_MAX,
    connect: connect as unknown as Client.Options['connect'] & {},
  })
  return {
    async request(options) {
      asked = options.signal
      heard = socket?.bytesRead ?? 0
      options.signal.addEventListener('abort', giveUp)
      try {
        return await request.call(client, options)
      } finally {
        options.signal.removeEventListener('abort', giveUp)
      }
    },
    taken() {
      // A socket's own `bytesWritten` has all of a chunk from its first byte on. node's timeouts look here, too.
      const { bytesWritten = 0, writeQueueSize = 0 } =
        (socket as unknown as Sending | undefined)?._handle ?? {}
      return bytesWritten - writeQueueSize
    },
    unheard: () => heard > 0 && socket?.bytesRead === heard,
    destroy() {
      connecting?.destroy()
      return client.destroy()
    },
  }
}

interface Sending {
  _handle?: { bytesWritten?: number; writeQueueSize?: number } | null
}

interface Parser {
  onHeadersComplete(status: number, ...rest: unknown[]): number
}

/**
 * A client must read over an interim answer it did not ask for (RFC 9110, 15.2). undici does with every
 * one but 100, for which it breaks the connection: to it each 100 is a 102, which means as little.
 */
function readOverContinue(parser: Parser | undefined): void {
  const whole = parser?.onHeadersComplete
  if (!parser || !whole) return
  parser.onHeadersComplete = (status, ...rest) => whole.call(parser, status === 100 ? 102 : status, ...rest)
}
