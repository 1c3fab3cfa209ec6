import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Receipt } from '../protocol.ts'
import { readCookie } from './cookies.ts'

const COOKIE = 'uploadr_stored'
const KEPT_MS = 60_000
const KEPT_MAX = 1000

/**
 * What was stored, from the post to the page that its redirect leads to: told once, to whoever brings
 * the cookie. Not in the cookie itself: the names of a hundred files do not fit.
 */
export class Flashes {
  /** Oldest first. */
  readonly #kept = new Map<string, { receipt: Receipt; at: number }>()

  /** Keeps a receipt, without its fields, which may take megabytes; returns the cookie that fetches it. */
  put({ id, title, files }: Receipt): string {
    const now = performance.now()
    for (const [key, { at }] of this.#kept) {
      if (now - at <= KEPT_MS && this.#kept.size < KEPT_MAX) break
      this.#kept.delete(key)
    }
    const key = randomBytes(16).toString('base64url')
    this.#kept.set(key, { receipt: { id, title, files }, at: now })
    return cookie(key, KEPT_MS / 1000)
  }

  /** What the request's cookie fetches, if anything, and the cookie that ends it. */
  take(req: IncomingMessage): { receipt: Receipt | undefined; cookie: string } | undefined {
    const key = readCookie(req, COOKIE)
    if (key === undefined) return undefined
    const kept = this.#kept.get(key)
    this.#kept.delete(key)
    const fresh = kept !== undefined && performance.now() - kept.at <= KEPT_MS
    return { receipt: fresh ? kept.receipt : undefined, cookie: cookie('', 0) }
  }
}

function cookie(value: string, seconds: number): string {
  return `${COOKIE}=${value}; Path=/; Max-Age=${seconds}; HttpOnly; SameSite=Lax`
}
