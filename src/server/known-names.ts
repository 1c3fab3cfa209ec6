import type { IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import { UploadError } from '../errors.ts'

/**
 * What the server is known as. A page whose name its owner lets point at this machine (DNS rebinding)
 * is of the same origin as this server, as far as the browser can tell; the name gives it away.
 */
export class KnownNames {
  /** Host names, without ports. */
  readonly #hosts = new Set(['localhost'])
  /** Public names as given, with their port where it is not the default one. */
  readonly #public = new Set<string>()

  constructor(publicNames: readonly string[]) {
    for (const name of publicNames) {
      this.#public.add(name.toLowerCase())
      this.add(name)
    }
  }

  add(host: string): void {
    this.#hosts.add(hostName(host))
  }

  /** Throws `forbidden` where a browser asks for a name that is not ours. Nobody rebinds an address, or curl. */
  check(req: IncomingMessage): void {
    if (!fromBrowser(req)) return
    const name = hostName(req.headers.host ?? '')
    if (isIP(name) || name.endsWith('.localhost') || this.#hosts.has(name)) return
    throw new UploadError('forbidden', `this server is not known as "${name.slice(0, 200)}"`)
  }

  /** Whether an Origin header names this server: as the request's Host does, or by a public name. */
  isOwnOrigin(origin: string, host: string | undefined): boolean {
    if (!URL.canParse(origin)) return false
    const { protocol, host: own } = new URL(origin)
    // Of http and https alike: who ends TLS in front of this server does not tell.
    if (protocol !== 'http:' && protocol !== 'https:') return false
    return own === withoutDefaultPort(host?.toLowerCase() ?? '', protocol) || this.#public.has(own)
  }
}

/**
 * Sec-Fetch-Site and Origin are not in every request: to a plain http address that is not this machine's
 * own name a browser sends neither with a GET. Every browser's User-Agent begins with Mozilla.
 */
function fromBrowser({ headers }: IncomingMessage): boolean {
  return (
    headers.origin !== undefined ||
    headers['sec-fetch-site'] !== undefined ||
    headers.cookie !== undefined ||
    (headers['user-agent'] ?? '').startsWith('Mozilla/')
  )
}

/** Lower case, without port, brackets and the dot at the end. */
function hostName(host: string): string {
  const [, bracketed, plain] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/.exec(host) ?? []
  return (bracketed ?? plain ?? host).toLowerCase().replace(/\.$/, '')
}

function withoutDefaultPort(host: string, protocol: string): string {
  return host.replace(protocol === 'https:' ? /:443$/ : /:80$/, '')
}
