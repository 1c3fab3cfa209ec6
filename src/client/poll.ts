import { PROGRESS_ID, type Progress, ROUTES } from '../protocol.ts'
import type { Connection } from './connection.ts'

export interface ProgressEndpoint {
  /** The base URL of the server, ending in a slash. */
  base: URL
  id: string
  headers: Record<string, string>
  /** Not the upload's: a poll would wait in line behind it. */
  connection: Connection
}

/** Progress answers are a few hundred bytes; more than this is something else. */
const ANSWER_MAX = 64 * 1024

/** Asks once. Throws where the answer is no progress record. */
export async function askProgress(endpoint: ProgressEndpoint, signal: AbortSignal): Promise<Progress> {
  const { base, id, headers, connection } = endpoint
  const url = new URL(ROUTES.progress.slice(1), base)
  const { statusCode, body } = await connection.request({
    path: url.pathname,
    method: 'GET',
    headers: { ...headers, [PROGRESS_ID]: id, accept: 'application/json' },
    signal,
  })
  const text = await readText(body)
  if (statusCode !== 200) throw new Error(`HTTP ${statusCode}`)
  const answer: unknown = JSON.parse(text)
  if (!isProgress(answer)) throw new Error('not a progress answer')
  return answer
}

/** A body as text, cut at ANSWER_MAX bytes. */
export async function readText(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of body) {
    size += chunk.length
    if (size <= ANSWER_MAX) chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString()
}

function isProgress(answer: unknown): answer is Progress {
  if (typeof answer !== 'object' || answer === null) return false
  const { state, received } = answer as Record<string, unknown>
  if (state === 'starting') return true
  // nginx's own module sends neither number with `done` and `error`.
  if (state === 'done' || state === 'error') return true
  return state === 'uploading' && typeof received === 'number' && received >= 0
}

export interface PollOptions {
  /** Milliseconds between an answer and the next question. */
  interval: number
  signal: AbortSignal
  onProgress(progress: Progress): void
  /** A poll failed; `failures` counts those in a row. */
  onFailure(error: Error, failures: number): void
}

/** Asks again and again until the signal. Never throws. */
export async function poll(endpoint: ProgressEndpoint, options: PollOptions): Promise<void> {
  const { interval, signal } = options
  let failures = 0
  while (!signal.aborted) {
    try {
      options.onProgress(await askProgress(endpoint, signal))
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
