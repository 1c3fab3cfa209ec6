import { createHash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { isIP } from 'node:net'
import { UploadError } from '../errors.ts'

/**
 * What a 401 tells a client to send. Basic, with any user name, is what a browser can ask a person for;
 * each in a line of its own, as Chromium reads one challenge a line and would find Bearer alone.
 */
export const CHALLENGES = ['Bearer realm="uploadr"', 'Basic realm="uploadr", charset="UTF-8"']

/** How a client sends the token. A browser sends Basic by itself, whoever's page it does it for; Bearer is a script's own doing. */
export type Scheme = 'bearer' | 'basic'

/**
 * Throws `unauthorized` unless the request carries the token, as a Bearer token (RFC 6750) or as the
 * password of Basic (RFC 7617). Compared by digest, in time that does not depend on where they differ.
 */
export function checkToken({ headers }: Pick<IncomingMessage, 'headers'>, token: string): Scheme {
  const { scheme, sent } = credentials(headers.authorization ?? '')
  if (scheme === undefined) {
    const how = 'uploadr push --token, a Bearer token, or the password of Basic with any user name'
    throw new UploadError('unauthorized', `this server asks for a token: ${how}`)
  }
  if (!sameText(sent, token)) throw new UploadError('unauthorized', 'the token is wrong')
  return scheme
}

function credentials(authorization: string): { scheme?: Scheme; sent: string } {
  const [, name, value = ''] = /^(\S+) +(\S+)$/.exec(authorization) ?? []
  const scheme = name?.toLowerCase()
  if (scheme === 'bearer') return { scheme, sent: value }
  if (scheme !== 'basic') return { sent: '' }
  const pair = Buffer.from(value, 'base64').toString()
  const colon = pair.indexOf(':')
  return colon < 0 ? { sent: '' } : { scheme, sent: pair.slice(colon + 1) }
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
