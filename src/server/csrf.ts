import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { UploadError } from '../errors.ts'
import { CSRF_FIELD } from '../upload/form.ts'
import { sameText } from './access.ts'
import { isBrowser, isForeign } from './browser.ts'
import { readCookie } from './cookies.ts'
import type { KnownNames } from './known-names.ts'

export { CSRF_FIELD }
/** The tutorial's, and so Django's, names. */
export const CSRF_COOKIE = 'csrftoken'
export const CSRF_HEADER = 'X-CSRFToken'

// Django's tokens too: another server on this host may have set the cookie, as cookies know no ports.
const TOKEN = /^[A-Za-z0-9_-]{32,128}$/

/** Field values by name, as far as they have arrived. */
export type Fields = ReadonlyMap<string, readonly string[]>

/** The token that a browser holds; undefined for none, or for something that is none of ours. */
export function csrfToken(req: IncomingMessage): string | undefined {
  const token = readCookie(req, CSRF_COOKIE)
  return token !== undefined && TOKEN.test(token) ? token : undefined
}

export function newCsrfToken(): string {
  return randomBytes(32).toString('base64url')
}

/** The cookie for a token. Scripts may read it, as Django's; Lax keeps it out of other sites' posts. */
export function csrfCookie(token: string): string {
  return `${CSRF_COOKIE}=${token}; Path=/; SameSite=Lax`
}

/**
 * Refuses a post that somebody else's page made a browser send, from its head alone: throws `forbidden`.
 * Returns the check of the form's token that is left to be made before a file is stored; undefined where
 * none is: the header carried the token, or no browser is involved.
 */
export function checkPost(req: IncomingMessage, known: KnownNames): ((fields: Fields) => void) | undefined {
  if (!isBrowser(req)) return undefined
  const { origin, host } = req.headers
  const foreign = isForeign(req)
  if (foreign) throw foreignOrigin(String(req.headers['sec-fetch-site']))
  // Behind a proxy whose referrer policy is `no-referrer` our own page has no origin to name; the browser knows it.
  const isHidden = origin === 'null' && foreign === false
  if (origin !== undefined && !isHidden && !known.isOwnOrigin(origin, host)) throw foreignOrigin(origin, host)
  const token = csrfToken(req)
  if (token === undefined) {
    throw new UploadError('forbidden', `the cookie ${CSRF_COOKIE} is missing; open the form again`)
  }
  const header = req.headers[CSRF_HEADER.toLowerCase()]
  if (header === undefined) return fields => checkToken(fields.get(CSRF_FIELD)?.at(-1), token, CSRF_FIELD)
  checkToken(String(header), token, CSRF_HEADER)
  return undefined
}

function foreignOrigin(origin: string, host?: string): UploadError {
  const asked =
    host === undefined
      ? ''
      : `; this is ${host.slice(0, 200)}, and --public-name says what a proxy in front is called`
  return new UploadError(
    'forbidden',
    `a page of another origin (${origin.slice(0, 200)}) may not upload here${asked}`,
  )
}

function checkToken(sent: string | undefined, token: string, where: string): void {
  if (sent !== undefined && sameText(sent, token)) return
  const wrong = sent === undefined ? 'is missing, or comes after a file' : 'is wrong'
  throw new UploadError('forbidden', `the form's token (${where}) ${wrong}; open the form again`)
}
