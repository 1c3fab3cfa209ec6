import type { IncomingMessage } from 'node:http'

type Request = Pick<IncomingMessage, 'headers'>

/**
 * What only browsers send. Origin is in every form's post, Sec-Fetch-Site in every request to a trustworthy
 * address (https, localhost), Upgrade-Insecure-Requests in every request for a page. Sec-Fetch-Mode is none:
 * node's own fetch sends it, and nobody's page is behind that.
 */
const SIGNS = ['origin', 'sec-fetch-site', 'upgrade-insecure-requests'] as const

/**
 * Whether a browser sent a request, as far as it does not hide it: CSRF and the form of answers go by this. Before the
 * signs there were browsers too: they say Mozilla, and which languages their user reads. PowerShell and WinHTTP say
 * Mozilla as well, but know of no languages.
 */
export function isBrowser({ headers }: Request): boolean {
  if (SIGNS.some(name => headers[name] !== undefined)) return true
  return headers['accept-language'] !== undefined && (headers['user-agent'] ?? '').startsWith('Mozilla/')
}

/**
 * Whether the script of a page may have sent a request, whatever it calls itself; the Host check goes by this. By plain
 * http and under a name, what a page gets of its own origin has none of the signs (Chromium, tried with fetch, XHR, images,
 * events and workers), and Firefox lets it say another User-Agent. What no browser lets it do is to leave out
 * Accept-Language, or to send Sec-Fetch-Mode, by which node's fetch is known.
 */
export function mayBeOfPage(req: Request): boolean {
  const { 'accept-language': languages, 'sec-fetch-mode': mode } = req.headers
  return isBrowser(req) || (languages !== undefined && mode === undefined)
}

/**
 * Whether a browser says that a page of another origin had the request made, another port of the same host included.
 * `none` is its user's own doing. Undefined where it does not say.
 */
export function isForeign({ headers }: Request): boolean | undefined {
  const site = headers['sec-fetch-site']
  return site === undefined ? undefined : site !== 'same-origin' && site !== 'none'
}

/**
 * Whether the answer is a page for a person to look at, not JSON. Others accept HTML without wanting any:
 * Java's HttpURLConnection puts it first in everything it asks for.
 */
export function wantsPage(req: Request): boolean {
  if (!isBrowser(req)) return false
  const accept = (req.headers.accept ?? '').toLowerCase()
  const html = quality(accept, 'text/html')
  return html > 0 && html >= quality(accept, 'application/json')
}

/** How much a media type is wanted, where it is named (RFC 9110, 12.5.1). */
function quality(accept: string, type: string): number {
  for (const range of accept.split(',')) {
    const [name, ...parameters] = range.split(';').map(text => text.trim())
    if (name !== type) continue
    const q = parameters.find(parameter => parameter.startsWith('q='))
    return q === undefined ? 1 : Number(q.slice(2)) || 0
  }
  return 0
}
