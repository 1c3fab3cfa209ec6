import type { IncomingMessage, ServerResponse } from 'node:http'
import { UploadError } from '../errors.ts'
import type { ProgressStore } from '../progress/store.ts'
import { isProgressId, PROGRESS_ID, ROUTES } from '../protocol.ts'
import { answer, answerJson } from './answer.ts'
import { isForeign } from './browser.ts'
import { type ProgressEvents, wantsEvents } from './events.ts'

// Apache's upload progress module set this grammar: what it lets through can only name a function.
const CALLBACK = /^[A-Za-z0-9._$]{1,64}$/

/** The id a request names: in the header, else in the query; undefined for none. Throws `bad_progress_id`. */
export function progressIdOf(req: IncomingMessage, query: URLSearchParams): string | undefined {
  const sent = req.headers[PROGRESS_ID.toLowerCase()] ?? queryValue(query, PROGRESS_ID)
  // Node joins a repeated header with ", ", which the grammar refuses.
  return sent === undefined ? undefined : checkedId(String(sent))
}

/** `GET /progress` and `GET /progress/ID`: as JSON, with `callback` as JSONP, or as server-sent events. */
export async function answerProgress(
  req: IncomingMessage,
  res: ServerResponse,
  path: string,
  query: URLSearchParams,
  store: ProgressStore,
  events: ProgressEvents,
  hasToken: boolean,
): Promise<void> {
  const inPath = path.slice(ROUTES.progress.length + 1)
  const id = inPath === '' ? progressIdOf(req, query) : checkedId(inPath)
  if (id === undefined) {
    throw new UploadError('bad_progress_id', `name the upload in ${PROGRESS_ID}, as a header or in the query`)
  }
  const callback = query.get('callback')
  if (callback !== null && !CALLBACK.test(callback)) {
    throw new UploadError('bad_callback', 'a callback is 1 to 64 of the characters A-Z a-z 0-9 . _ $')
  }
  if (callback !== null) checkScript(req, hasToken)
  if (callback === null && wantsEvents(req)) return events.answer(req, res, id)
  const progress = await store.get(id)
  if (callback === null) return answerJson(req, res, 200, progress)
  // The comment keeps the answer from being read as anything but a script.
  const body = `/**/${callback}(${JSON.stringify(progress)});\n`
  const headers = { 'Cross-Origin-Resource-Policy': 'same-origin' }
  answer(req, res, 200, { type: 'text/javascript; charset=utf-8', body }, headers)
}

/**
 * A script is read by whatever page names it, and by the credentials that the browser keeps. So it is for pages of our
 * own, and for nobody where there is a token. What a browser does not tell us by plain http, the policy of the answer
 * (Cross-Origin-Resource-Policy, WHATWG Fetch, 3.7) tells the browser.
 */
function checkScript(req: IncomingMessage, hasToken: boolean): void {
  if (hasToken) throw new UploadError('forbidden', 'JSONP is not answered where there is a token')
  if (isForeign(req)) throw new UploadError('forbidden', 'JSONP is not answered to pages of another origin')
}

function checkedId(id: string): string {
  if (isProgressId(id)) return id
  throw new UploadError('bad_progress_id', 'a progress id is 1 to 128 of the characters A-Z a-z 0-9 . _ ~ -')
}

function queryValue(query: URLSearchParams, name: string): string | undefined {
  for (const [key, value] of query) if (key.toLowerCase() === name.toLowerCase()) return value
  return undefined
}
