import { createHash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import { UploadError } from '../errors.ts'

/**
 * What a 401 tells a client to send. Basic, with any user name, is what a browser can ask a person for;
 * each in a line of its own, as Chromium reads one challenge a line and would find Bearer alone.
 */
export const CHALLENGES = ['Bearer realm="uploadr"', 'Basic realm="uploadr", charset="UTF-8"']

/**
 * Throws `unauthorized` unless the request carries the token, as a Bearer token (RFC 6750) or as the
 * password of Basic (RFC 7617). Compared by digest, in time that does not depend on where they differ.
 */
export function checkToken(req: IncomingMessage, token: string): void {
  const sent = tokenOf(req.headers.authorization ?? '')
  if (sent === undefined) throw new UploadError('unauthorized', 'this server asks for a token')
  if (!sameText(sent, token)) throw new UploadError('unauthorized', 'the token is wrong')
}

function tokenOf(authorization: string): string | undefined {
  const [, scheme, credentials] = /^(\S+) +(\S+)$/.exec(authorization) ?? []
  if (credentials === undefined) return undefined
  if (scheme?.toLowerCase() === 'bearer') return credentials
  if (scheme?.toLowerCase() !== 'basic') return undefined
  const pair = Buffer.from(credentials, 'base64').toString()
  const colon = pair.indexOf(':')
  return colon < 0 ? undefined : pair.slice(colon + 1)
}

/** Equality in constant time, whatever the lengths. */
export function sameText(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(digest(a), digest(b))
}

/** True for addresses that only this machine reaches. */
export function isLoopback(host: string): boolean {
  const address = host.toLowerCase().replace(/^\[|\]$/g, '')
  if (address === 'localhost' || address === '::1') return true
  return isIP(address) === 4 && address.startsWith('127.')
}
