import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http'
import type { UploadError } from '../errors.ts'
import type { Receipt } from '../protocol.ts'
import { answer } from './answer.ts'
import { Assets } from './assets.ts'
import { csrfCookie, csrfToken, type Fields, newCsrfToken } from './csrf.ts'
import { Flashes } from './flashes.ts'
import {
  PAGE_HEADERS,
  type PageRules,
  type PageState,
  renderError,
  renderForm,
  renderTokenNeeded,
} from './page.ts'
import { type Headers, headersOf } from './problem.ts'

/** What a page shows again of a title that was refused, in UTF-16 units. */
const TITLE_SHOWN_MAX = 1000

/** Everything that is answered in HTML, and what the page needs beside it. */
export class PageRoute {
  readonly #assets: Assets
  readonly #rules: PageRules
  readonly #flashes = new Flashes()

  private constructor(assets: Assets, rules: PageRules) {
    this.#assets = assets
    this.#rules = rules
  }

  static async open(rules: PageRules): Promise<PageRoute> {
    return new PageRoute(await Assets.load(), rules)
  }

  /** `GET /` */
  answerForm(req: IncomingMessage, res: ServerResponse): void {
    // HEAD shows nobody anything: the message stays for the GET.
    const flash = req.method === 'GET' ? this.#flashes.take(req) : undefined
    const cookies = flash ? [flash.cookie] : []
    this.#answerForm(req, res, 200, { ...(flash?.receipt && { stored: flash.receipt }) }, {}, cookies)
  }

  /** A browser's upload was stored: back to the form, which will say so. */
  answerStored(req: IncomingMessage, res: ServerResponse, receipt: Receipt): void {
    // Relative, as all of the page is: below a proxy's path that is where the form is.
    answer(req, res, 303, undefined, { Location: './', 'Set-Cookie': [this.#flashes.put(receipt)] })
  }

  /** An upload that failed is answered with the form and what was typed, anything else with a short page. */
  answerError(
    req: IncomingMessage,
    res: ServerResponse,
    error: UploadError,
    more: Headers,
    form: Fields | undefined,
  ): void {
    const status = error.status || 500
    const headers = { ...headersOf(error), ...more }
    const root = rootOf(req)
    const page = (body: string) =>
      answer(req, res, status, { type: HTML, body }, { ...PAGE_HEADERS, ...headers })
    if (status === 401) return page(renderTokenNeeded(root))
    // What is no deeper than the form has the form's relative links.
    if (req.method === 'POST' && root === './') {
      const title = form?.get('title')?.at(-1)
      const state = {
        // Typed by a person, it is never so long; by a machine, it would be kept until it is read.
        ...(title !== undefined && { title: title.slice(0, TITLE_SHOWN_MAX) }),
        ...(error.errors ? { errors: error.errors } : { failure: error.message }),
      }
      return this.#answerForm(req, res, status, state, headers)
    }
    page(renderError(this.#assets, root, error.title || (STATUS_CODES[status] ?? 'Error'), error.message))
  }

  /** `GET /assets/…`; false where there is nothing of that name. */
  answerAsset(req: IncomingMessage, res: ServerResponse, path: string): boolean {
    const asset = this.#assets.get(path)
    // The name is made of the content: what it names never changes.
    if (asset) answer(req, res, 200, asset, { 'Cache-Control': 'public, max-age=31536000, immutable' })
    return asset !== undefined
  }

  #answerForm(
    req: IncomingMessage,
    res: ServerResponse,
    status: number,
    state: Omit<PageState, 'token'>,
    headers: Headers = {},
    cookies: string[] = [],
  ): void {
    const held = csrfToken(req)
    const token = held ?? newCsrfToken()
    const all = held === undefined ? [...cookies, csrfCookie(token)] : cookies
    const body = renderForm(this.#assets, this.#rules, { ...state, token })
    const extra = all.length > 0 ? { 'Set-Cookie': all } : {}
    answer(req, res, status, { type: HTML, body }, { ...PAGE_HEADERS, ...headers, ...extra })
  }
}

const HTML = 'text/html; charset=utf-8'

/** From the address of a request to that of the form, whatever a proxy puts before both. */
function rootOf({ url = '/' }: IncomingMessage): string {
  const [path = ''] = url.replace(/^https?:\/\/[^/?]*/i, '').split('?', 1)
  return '../'.repeat(Math.max(0, path.split('/').length - 2)) || './'
}
