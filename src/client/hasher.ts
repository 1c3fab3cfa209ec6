import { createHash } from 'node:crypto'
import { Worker } from 'node:worker_threads'

/** Computes one SHA-256 of chunks given in order. */
export interface Hasher {
  /** Resolves, or returns, when the chunk's memory may be used again. */
  update(chunk: Uint8Array): Promise<void> | undefined
  /** Lower-case hexadecimal. To be called once, at the end. */
  digest(): Promise<string>
  close(): Promise<void>
}

/** Hashes in place: for what is not worth a thread. */
export function inlineHasher(): Hasher {
  const hash = createHash('sha256')
  return {
    update: chunk => void hash.update(chunk),
    digest: async () => hash.digest('hex'),
    async close() {},
  }
}

/** What the thread is sent: a piece of the shared memory, or the end. */
export type HashRequest = { start: number; length: number } | 'digest'
/** What it answers: that a piece is hashed, or the digest. */
export type HashReply = 'hashed' | { sha256: string }

/**
 * Hashes in a thread of its own, beside the sending: with one thread for both, half of the time goes
 * to the digest. The chunks are views of `memory`, which both threads see; nothing is copied.
 */
export function threadHasher(memory: SharedArrayBuffer): Hasher {
  const worker = new Worker(new URL('./hash-worker.js', import.meta.url), {
    workerData: memory,
    execArgv: [],
  })
  const hashed: (() => void)[] = []
  let finish: ((sha256: string) => void) | undefined
  let fail: (error: Error) => void = () => {}
  const failed = new Promise<never>((_, reject) => (fail = reject))
  failed.catch(() => {})
  worker.on('error', error => fail(error))
  worker.on('message', (reply: HashReply) => {
    if (reply === 'hashed') hashed.shift()?.()
    else finish?.(reply.sha256)
  })
  const send = (request: HashRequest) => worker.postMessage(request)
  return {
    update(chunk) {
      const done = new Promise<void>(resolve => hashed.push(resolve))
      send({ start: chunk.byteOffset, length: chunk.length })
      return Promise.race([done, failed])
    },
    digest() {
      const done = new Promise<string>(resolve => (finish = resolve))
      send('digest')
      return Promise.race([done, failed])
    },
    async close() {
      await worker.terminate()
    },
  }
}
