import { PROGRESS_ID, type Progress, ROUTES } from '../protocol.ts'
import type { Address } from './address.ts'
import { readProgress } from './answers.ts'
import type { Connection } from './connection.ts'

export interface ProgressEndpoint extends Address {
  id: string
  /** Not the upload's: a poll would wait in line behind it. */
  connection: Connection
}

/** An answer to a poll is a matter of milliseconds; one that takes longer than this is none. */
const POLL_TIMEOUT_MS = 5000
/** What is done by then needs no count, and no second connection. */
const FIRST_POLL_MS = 100

/** Asks once. Throws where the answer is no progress record, or comes too late. */
export async function askProgress(endpoint: ProgressEndpoint, signal?: AbortSignal): Promise<Progress> {
  const { base, query, id, headers, hide, connection } = endpoint
  const limit = new AbortController()
  const end = () => limit.abort()
  const timer = setTimeout(end, POLL_TIMEOUT_MS)
  signal?.addEventListener('abort', end)
  if (signal?.aborted) end()
  try {
    const { statusCode, body } = await connection.request({
      path: new URL(ROUTES.progress.slice(1), base).pathname + query,
      method: 'GET',
      headers: { ...headers, [PROGRESS_ID]: id, accept: 'application/json' },
      signal: limit.signal,
    })
    const text = await readText(body)
    if (statusCode !== 200) throw new Error(`HTTP ${statusCode}`)
    return readProgress(text, hide)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', end)
  }
}

/** A body as text. The connection bounds it. */
export async function readText(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of body) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

export interface PollOptions {
  /** Milliseconds between an answer and the next question. */
  interval: number
  signal: AbortSignal
  onProgress(progress: Progress): void
  /** A poll failed; `failures` counts those in a row. */
  onFailure(error: Error, failures: number): void
}

/** Asks again and again until the signal; what is being asked then is no longer told, but keeps its connection. Never throws. */
export async function poll(endpoint: ProgressEndpoint, options: PollOptions): Promise<void> {
  const { interval, signal } = options
  let failures = 0
  await pause(Math.min(interval, FIRST_POLL_MS), signal)
  while (!signal.aborted) {
    try {
      const progress = await askProgress(endpoint)
      if (signal.aborted) return
      options.onProgress(progress)
      failures = 0
    } catch (error) {
      if (signal.aborted) return
      options.onFailure(error as Error, ++failures)
    }
    await pause(interval, signal)
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const done = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', done)
      resolve()
    }
    const timer = setTimeout(done, ms)
    signal.addEventListener('abort', done)
    if (signal.aborted) done()
  })
}
