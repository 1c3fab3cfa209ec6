import { createHash, webcrypto } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'

/** Up to this many bytes hashing here is quicker than a round trip to another thread. */
export const HASH_INLINE_MAX = 64 * 1024

/** SHA-256 of bytes in memory, lower-case hexadecimal; large ones are hashed on the thread pool. */
export async function sha256(bytes: Uint8Array): Promise<string> {
  if (bytes.length <= HASH_INLINE_MAX) return createHash('sha256').update(bytes).digest('hex')
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)).toString(
    'hex',
  )
}

/**
 * The worker's code, which imports nothing but node. Read now: by the time of the first large file an upgrade may
 * have taken the file away, or put another in its place.
 */
const WORKER = new URL(
  `data:text/javascript,${encodeURIComponent(readFileSync(new URL('./digest-worker.js', import.meta.url), 'utf8'))}`,
)

/** What the worker is told: the file of `fd` can be read up to `end`. */
export interface DigestRequest {
  id: number
  fd: number
  end: number
  then: 'follow' | 'finish' | 'cancel'
}

export interface DigestReply {
  id: number
  sha256?: string
  error?: string
  /** The error's errno name, where it has one. */
  code?: string
}

/** Follows one growing file. After `finish` or `cancel` has settled its descriptor may be closed. */
export interface Following {
  /** Bytes up to `end` are in the file now. */
  advance(end: number): void
  finish(end: number): Promise<string>
  cancel(): Promise<void>
}

/**
 * SHA-256 of files while they are being written: one worker thread reads back what has been written,
 * from the page cache. The main thread, which has the network and the parser to serve, spends a
 * message per megabyte on it, and the digest is of the bytes in the file, not of those that passed by.
 */
export class Digester {
  #worker: Worker | undefined
  #nextId = 0
  readonly #waiting = new Map<number, { resolve: (sha256: string) => void; reject: (error: Error) => void }>()

  follow(fd: number): Following {
    const id = this.#nextId++
    const send = (end: number, then: DigestRequest['then']) => {
      this.#start().postMessage({ id, fd, end, then } satisfies DigestRequest)
    }
    const settle = (end: number, then: DigestRequest['then']) =>
      new Promise<string>((resolve, reject) => {
        this.#waiting.set(id, { resolve, reject })
        // Only while somebody waits does the worker keep the process alive.
        this.#start().ref()
        send(end, then)
      })
    return {
      advance: end => send(end, 'follow'),
      finish: end => settle(end, 'finish'),
      // A worker that died reads no descriptor any more, which is all that is asked.
      cancel: () => settle(0, 'cancel').then(noop, noop),
    }
  }

  async close(): Promise<void> {
    await this.#worker?.terminate()
  }

  #start(): Worker {
    if (this.#worker) return this.#worker
    // Without this process's flags: `node -e` has some that no worker starts with.
    const worker = new Worker(WORKER, { execArgv: [] })
    worker.unref()
    worker.on('message', ({ id, sha256, error, code }: DigestReply) => {
      const waiting = this.#waiting.get(id)
      this.#waiting.delete(id)
      if (this.#waiting.size === 0) worker.unref()
      if (error === undefined) waiting?.resolve(sha256 ?? '')
      else waiting?.reject(Object.assign(new Error(error), code !== undefined && { code }))
    })
    let failure: Error | undefined
    worker.on('error', error => {
      failure = error
    })
    worker.on('exit', () => {
      this.#worker = undefined
      for (const { reject } of this.#waiting.values()) reject(failure ?? new Error('the digest worker ended'))
      this.#waiting.clear()
    })
    this.#worker = worker
    return worker
  }
}

function noop() {}
