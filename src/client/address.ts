import { UploadError } from '../errors.ts'

/** Where a server is and what proves who asks: a URL taken apart once. */
export interface Address {
  /** Ends in a slash. It has no user, no password and no query, so it can be shown. */
  readonly base: URL
  /** The query with its question mark, or ''. It goes with every request, and is never shown: it may hold a key. */
  readonly query: string
  /** `Authorization`, or nothing. */
  readonly headers: Readonly<Record<string, string>>
  /** What a server said, without the secrets of this address: some repeat what they were asked. */
  hide(text: string): string
  /** Whether there is anything to hide. */
  readonly hasSecrets: boolean
}

/** Throws `usage` unless the text is an http or https URL, and the token can be sent. */
export function parseAddress(text: string, token: string | undefined): Address {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (!url || !/^https?:$/.test(url.protocol))
    throw new UploadError('usage', `${withoutSecrets(text)} is not an http or https URL`)
  const { username, password, search: query } = url
  const headers: Record<string, string> = {}
  if (token !== undefined) headers['authorization'] = `Bearer ${checkToken(token)}`
  if (username !== '' || password !== '') {
    if (token !== undefined)
      throw new UploadError('usage', 'the token and the URL’s user are two answers to who asks: give one')
    const pair = `${decoded(username)}:${decoded(password)}`
    headers['authorization'] = `Basic ${Buffer.from(pair).toString('base64')}`
  }
  url.username = url.password = url.search = url.hash = ''
  if (!url.pathname.endsWith('/')) url.pathname += '/'
  const proof = headers['authorization']?.split(' ')[1] ?? ''
  // Less than this may be a word of the server's own.
  const long = [proof, password, decoded(password)].filter(secret => secret.length >= 8)
  const secrets = query === '' ? long : [query, decoded(query), ...long]
  const hide = (text: string) => secrets.reduce((shown, secret) => shown.replaceAll(secret, '…'), text)
  return { base: url, query, headers, hide, hasSecrets: query !== '' || proof !== '' }
}

/** What was meant as a URL, without what may be secret in it: all before its last @, and what follows its path. */
export function withoutSecrets(text: string): string {
  return text.replace(/^([a-z]+:\/\/)?.*@/is, '$1…@').replace(/[?#].*$/s, '?…')
}

/** RFC 9110, 5.5: what a header cannot hold. Nor can blanks be in a token: a server would read it to the first. */
export function checkToken(token: string): string {
  const at = token.search(/[^\x21-\x7e\x80-\xff]/)
  if (token !== '' && at < 0) return token
  const kinds: [RegExp, string][] = [
    [/^$/, 'is empty'],
    [/^[\r\n]/, 'has a line end'],
    [/^[\x00-\x20\x7f]/, 'has a blank or a control character'],
    [/^/, 'has a letter that a header cannot carry'],
  ]
  const [, what] = kinds.find(([kind]) => kind.test(token.slice(at))) ?? []
  const where = token === '' ? '' : ` at its place ${at + 1} of ${token.length}`
  throw new UploadError('usage', `the token ${what}${where}`)
}

/** A % that begins no escape stands for itself (WHATWG URL). */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
