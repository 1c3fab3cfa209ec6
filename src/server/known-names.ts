import type { IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import os from 'node:os'
import { UploadError } from '../errors.ts'
import { mayBeOfPage } from './browser.ts'

/**
 * What the server is called, and which origins are its own: two questions. `box` is this machine whatever the port, but
 * a page of `http://box` is not a page of `http://box:8000`.
 */
export class KnownNames {
  /** Host names, without ports: this machine's own in its network, what it listens on, and the public ones. */
  readonly #hosts = new Set(['localhost', hostName(os.hostname()), `${hostName(os.hostname())}.local`])
  /** Public names as given, with their port where one was. */
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

  /**
   * Throws `forbidden` where a browser may be asking for a name that is not ours. A page whose name its owner lets point at this
   * machine (DNS rebinding) is of the same origin as this server, as far as the browser can tell; the name gives it away.
   * Nobody rebinds an address, or curl.
   */
  check(req: IncomingMessage): void {
    if (!mayBeOfPage(req)) return
    const name = hostName(req.headers.host ?? '').slice(0, 200)
    if (isIP(name) || name.endsWith('.localhost') || this.#hosts.has(name)) return
    throw new UploadError(
      'forbidden',
      `this server is not known as "${name}"; uploadr serve --public-name ${name || 'NAME'} makes it known`,
    )
  }

  /**
   * Whether an Origin header names this server: as the request's Host does, or as a proxy in front is called, which may
   * have put another Host in its place. A public name with a port is that origin and no other. One without stands for
   * the default ports, unless the Host has the same name: then no proxy has changed it, and its port is the one that counts.
   */
  isOwnOrigin(origin: string, host = ''): boolean {
    if (!URL.canParse(origin)) return false
    const { protocol, host: own, hostname, port } = new URL(origin)
    // Of http and https alike: who ends TLS in front of this server does not tell.
    if (protocol !== 'http:' && protocol !== 'https:') return false
    const usual = protocol === 'https:' ? '443' : '80'
    if (own === host.toLowerCase().replace(new RegExp(`:${usual}$`), '')) return true
    if (this.#public.has(`${hostname}:${port || usual}`)) return true
    return port === '' && this.#public.has(hostname) && hostName(host) !== hostName(hostname)
  }
}

/** Lower case, without port, brackets and the dot at the end. */
function hostName(host: string): string {
  const [, bracketed, plain] = /^(?:\[([^\]]*)\]|([^:]*))(?::\d*)?$/.exec(host) ?? []
  return (bracketed ?? plain ?? host).toLowerCase().replace(/\.$/, '')
}
