import type { IncomingMessage, ServerResponse } from 'node:http'
import type { ProgressStore } from '../progress/store.ts'
import { makeLast } from './last-answer.ts'

/** Ten events a second at most. */
const SAMPLE_MS = 100
/** Shorter than the minute after which most proxies close a silent connection. */
const HEARTBEAT_MS = 15_000
/** An id that nobody uses is not waited for any longer than this. */
const STARTING_MS = 60_000

export interface EventOptions {
  /** Milliseconds between two looks at the store; 100 by default. */
  sample?: number
  /** Milliseconds of silence before a heartbeat; 15 000 by default. */
  heartbeat?: number
  /** Milliseconds that an id which nobody uses is waited for; 60 000 by default. */
  starting?: number
}

/** Whether a request asks for server-sent events. */
export function wantsEvents(req: IncomingMessage): boolean {
  return /(?:^|[\s,])text\/event-stream(?=[\s,;]|$)/i.test(req.headers.accept ?? '')
}

/**
 * Progress as server-sent events (WHATWG HTML, 9.2): one event per change, the last with the outcome,
 * then the end. The store is looked at on a clock, as a shared store has no way to call.
 */
export class ProgressEvents {
  readonly #store: ProgressStore
  readonly #options: Required<EventOptions>
  readonly #streams = new Set<EventStream>()

  constructor(store: ProgressStore, options: EventOptions = {}) {
    this.#store = store
    this.#options = { sample: SAMPLE_MS, heartbeat: HEARTBEAT_MS, starting: STARTING_MS, ...options }
  }

  /** How many streams are open. */
  get size(): number {
    return this.#streams.size
  }

  /** Answers with a stream of its own, which ends with the upload, the client or `close`. */
  async answer(req: IncomingMessage, res: ServerResponse, id: string): Promise<void> {
    // At once: what comes behind it, perhaps in the same read, would wait as long as the upload takes, and for nothing.
    makeLast(res)
    // Before the head is sent: a store that fails is told by a status.
    const first = await this.#store.get(id)
    // The client may be gone by now; a response that is closed closes no second time.
    if (res.destroyed) return
    res.writeHead(200, {
      'Content-Type': 'text/event-stream',
      'Cache-Control': 'no-store',
      'X-Content-Type-Options': 'nosniff',
      // nginx would keep the events back.
      'X-Accel-Buffering': 'no',
      Connection: 'close',
    })
    if (req.method === 'HEAD') return void res.end()
    const stream = new EventStream(res, () => this.#store.get(id), this.#options)
    this.#streams.add(stream)
    res.once('close', () => this.#streams.delete(stream))
    // Whoever closes its half is taken for gone: a watcher has nothing to send, and would be noticed by the next event only.
    req.socket.once('end', () => stream.end())
    stream.tell(first)
  }

  /** Tells every watcher how things stand, and ends the streams. */
  async close(): Promise<void> {
    await Promise.all(Array.from(this.#streams, stream => stream.finish()))
  }
}

type Ask = () => ReturnType<ProgressStore['get']>

class EventStream {
  readonly #res: ServerResponse
  readonly #ask: Ask
  readonly #options: Required<EventOptions>
  readonly #timer: NodeJS.Timeout
  readonly #since = performance.now()
  #told = ''
  #toldAt = 0
  #asking = false

  constructor(res: ServerResponse, ask: Ask, options: Required<EventOptions>) {
    this.#res = res
    this.#ask = ask
    this.#options = options
    this.#timer = setInterval(() => void this.#look(), options.sample)
    res.once('close', () => clearInterval(this.#timer))
  }

  /** Sends the record if it says anything new; ends after an outcome. */
  tell(progress: Awaited<ReturnType<Ask>>): void {
    if (this.#res.writableEnded || this.#res.destroyed) return
    const text = JSON.stringify(progress)
    const now = performance.now()
    if (text !== this.#told) this.#write(`data: ${text}\n\n`, now)
    else if (now - this.#toldAt >= this.#options.heartbeat) this.#write(':\n\n', now)
    this.#told = text
    const { state } = progress
    const forgotten = state === 'starting' && now - this.#since >= this.#options.starting
    if (state === 'done' || state === 'error' || forgotten) this.end()
  }

  async finish(): Promise<void> {
    try {
      this.tell(await this.#ask())
    } catch {
      // What was told last has to do.
    }
    this.end()
  }

  async #look(): Promise<void> {
    // A client that does not read is told less, not later: what is old by then is of no use.
    if (this.#asking || this.#res.writableNeedDrain) return
    this.#asking = true
    try {
      this.tell(await this.#ask())
    } catch {
      // The client asks again, and is then answered with the failure.
      this.end()
    } finally {
      this.#asking = false
    }
  }

  #write(text: string, now: number): void {
    this.#res.write(text)
    this.#toldAt = now
  }

  end(): void {
    clearInterval(this.#timer)
    if (!this.#res.writableEnded) this.#res.end()
  }
}
