import { UploadError } from '../errors.ts'
import type { Address } from './address.ts'

/** What a request failed of where another try does not help, or what came was no answer; undefined for any other reason. */
export function lastingFailure(thrown: unknown, address: Address): UploadError | undefined {
  const { base, hide, hasSecrets } = address
  const { host, hostname } = base
  const error = thrown as NodeJS.ErrnoException & { reason?: string; data?: string }
  const { name = '', code = '', message = '' } = error
  const as = (failure: 'unknown_host' | 'bad_certificate' | 'wrong_protocol' | 'bad_answer', text: string) =>
    new UploadError(failure, text, { cause: thrown })
  if (code === 'ENOTFOUND') return as('unknown_host', `there is no host called ${hostname}`)
  if (code === 'ERR_SSL_WRONG_VERSION_NUMBER' || code === 'ERR_SSL_PACKET_LENGTH_TOO_LONG')
    return as('wrong_protocol', `${host} does not speak TLS: is http://${host}/ meant?`)
  // An alert of the server's (RFC 8446, 6.2).
  if (/^ERR_SSL_.*CERTIFICATE_REQUIRED$/.test(code))
    return as('wrong_protocol', `${host} asks for a certificate of the client’s, and push has none`)
  if (/^ERR_SSL_|^EPROTO$/.test(code))
    return as('wrong_protocol', `no TLS connection to ${host}: ${error.reason ?? code}`)
  // The names that OpenSSL has for what is wrong with a chain, and node's for the wrong host.
  if (/CERT|CRL|^INVALID_|^UNABLE_TO_|^PATH_LENGTH|^HOSTNAME/.test(code)) {
    const hint = /SELF_SIGNED|ISSUER|LEAF/.test(code)
      ? '; the variable NODE_EXTRA_CA_CERTS can name a file of certificates to trust'
      : ''
    return as('bad_certificate', `the certificate of ${host} is not trusted: ${hide(message)}${hint}`)
  }
  if (name === 'HTTPParserError') {
    // A TLS alert record (RFC 8446, 5.1).
    if (/^\x15\x03/.test(error.data ?? '')) return plainToTls(base, thrown)
    // What came may be what we sent, and break off in the middle of a secret: no part of it is shown then.
    const shown = hasSecrets ? '' : `: ${JSON.stringify(error.data?.slice(0, 60))}`
    return as('bad_answer', `what ${host} answers is not HTTP${shown}`)
  }
  if (code === 'UND_ERR_SOCKET' && message === 'bad upgrade')
    return as('bad_answer', `${host} goes over to another protocol, unasked (101)`)
  if (code === 'UND_ERR_HEADERS_OVERFLOW')
    return as('bad_answer', `the head of ${host}’s answer is too large`)
  if (code === 'UND_ERR_RES_EXCEEDED_MAX_SIZE') return as('bad_answer', `the answer of ${host} is too large`)
  return undefined
}

export function plainToTls({ host }: URL, cause?: unknown): UploadError {
  return new UploadError('wrong_protocol', `${host} speaks TLS: is https://${host}/ meant?`, { cause })
}

/**
 * Whether TLS is spoken there. Many servers say nothing to a plain request: they close the connection, as
 * one does that breaks down.
 */
export async function speaksTls(
  { hostname, port }: URL,
  patience: number,
  signal: AbortSignal,
): Promise<boolean> {
  // Who sends over plain HTTP has no other use for it.
  const { connect } = await import('node:tls')
  return new Promise(resolve => {
    const socket = connect({
      host: hostname.replace(/^\[|\]$/g, ''),
      port: Number(port || 80),
      rejectUnauthorized: false,
      timeout: patience,
    })
    const giveUp = () => end(false)
    const end = (yes: boolean) => {
      signal.removeEventListener('abort', giveUp)
      socket.destroy()
      resolve(yes)
    }
    socket.once('secureConnect', () => end(true))
    socket.once('error', () => end(false))
    socket.once('close', () => end(false))
    socket.once('timeout', () => end(false))
    signal.addEventListener('abort', giveUp)
    if (signal.aborted) giveUp()
  })
}

/** The words of a network error: an AggregateError (both address families refused) has none of its own. */
export function networkReason(thrown: unknown): string {
  const error = thrown as NodeJS.ErrnoException & { errors?: Error[] }
  const own = error.errors?.length ? error.errors.map(each => each.message).join(', ') : error.message
  return own || error.code || 'unknown reason'
}
