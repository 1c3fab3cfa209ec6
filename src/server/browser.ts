import type { IncomingMessage } from 'node:http'

type Request = Pick<IncomingMessage, 'headers'>

/**
 * What only browsers send. Origin is in every form's post, Sec-Fetch-Site in every request to a trustworthy
 * address (https, localhost), Upgrade-Insecure-Requests in every request for a page. Sec-Fetch-Mode is none:
 * node's own fetch sends it, and nobody's page is behind that.
 */
const SIGNS = ['origin', 'sec-fetch-site', 'upgrade-insecure-requests'] as const

/**
 * Whether a browser sent a request, and so perhaps a page that its user knows nothing of. The Host check, CSRF and the
 * form of answers all go by this.
 *
 * A page reached by plain http under a name sends none of the signs when its script gets something of its own origin:
 * what a page does whose name was pointed at this machine. It still says Mozilla and which languages its user reads.
 * PowerShell and WinHTTP say Mozilla too, but know of no languages.
 */
export function isBrowser({ headers }: Request): boolean {
  if (SIGNS.some(name => headers[name] !== undefined)) return true
  return headers['accept-language'] !== undefined && (headers['user-agent'] ?? '').startsWith('Mozilla/')
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
