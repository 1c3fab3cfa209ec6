import { createHash, type Hash } from 'node:crypto'
import { UploadError } from '../errors.ts'

/** A digest that a request, or a part of it, says it has. */
export interface WantedDigest {
  /** As RFC 9530's registry calls it. */
  readonly algorithm: keyof typeof ALGORITHMS
  readonly digest: Buffer
}

const ALGORITHMS = { 'sha-256': 'sha256', 'sha-512': 'sha512', sha: 'sha1', md5: 'md5' } as const
/**
 * Both are dictionaries of byte sequences (RFC 9530, 2 and 3; RFC 8941, 3.3.5). No content coding is accepted
 * here, so the representation is the content.
 */
const DICTIONARIES = ['content-digest', 'repr-digest']
const KEY = '[a-z*][a-z0-9_.*-]*'
/** Parameters, which say nothing of a digest, and may hold a comma in a string (RFC 8941, 3.1.2). */
const PARAMETERS = `(?:[ \\t]*; *${KEY}(?:=(?:"(?:[^"\\\\]|\\\\.)*"|[^\\s",;]+))?)*`
const MEMBER = new RegExp(`[ \\t]*(${KEY})=:([A-Za-z0-9+/]*={0,2}):${PARAMETERS}[ \\t]*(?:,(?=.)|$)`, 'y')
const BASE64 = /^[A-Za-z0-9+/]*={0,2}$/
/** Every header that announces a digest. */
const HEADERS = ['content-md5', ...DICTIONARIES]

/**
 * What a head says of the bytes that follow it, in Content-Digest, Repr-Digest (RFC 9530) and Content-MD5 (RFC 1864);
 * undefined for nothing. Algorithms that are not known are passed over, as RFC 9530 has it. Throws `bad_digest`
 * where it cannot be read: a check that was asked for is not left out in silence.
 */
export function wantedDigests(
  header: (name: string) => string | undefined,
): readonly WantedDigest[] | undefined {
  const wanted: WantedDigest[] = []
  const md5 = header('content-md5')
  if (md5 !== undefined) wanted.push(wantedDigest('Content-MD5', 'md5', md5.trim()))
  for (const name of DICTIONARIES) {
    const value = header(name)
    if (value !== undefined) wanted.push(...membersOf(name, value))
  }
  return wanted.length > 0 ? wanted : undefined
}

function membersOf(name: string, value: string): WantedDigest[] {
  const wanted: WantedDigest[] = []
  MEMBER.lastIndex = 0
  do {
    const at = MEMBER.lastIndex
    const [, algorithm, base64] = MEMBER.exec(value) ?? []
    if (algorithm === undefined || base64 === undefined) throw unreadable(name, value.slice(at))
    if (isKnown(algorithm)) wanted.push(wantedDigest(name, algorithm, base64))
  } while (MEMBER.lastIndex < value.length)
  return wanted
}

/**
 * Refuses a digest that is sent behind the body, or announced to be: by then the body has been taken. Throws
 * `bad_digest`. `trailers`: names in lower case.
 */
export function refuseDigestsIn(trailers: readonly string[]): void {
  const name = trailers.find(each => HEADERS.includes(each))
  if (name !== undefined) throw new UploadError('bad_digest', `${name} in a trailer is not compared here`)
}

/** Hashes bytes as they come, by every algorithm that was asked for. */
export class DigestCheck {
  readonly #wanted: readonly (WantedDigest & { hash: Hash })[]

  constructor(wanted: readonly WantedDigest[]) {
    this.#wanted = wanted.map(each => ({ ...each, hash: createHash(ALGORITHMS[each.algorithm]) }))
  }

  update(bytes: Uint8Array): void {
    for (const { hash } of this.#wanted) hash.update(bytes)
  }

  /** The digests as Content-Digest has them. Throws `bad_digest` where one is not that of the bytes. */
  finish(what: string): string {
    const members = this.#wanted.map(({ algorithm, digest, hash }) => {
      const actual = hash.digest()
      if (actual.equals(digest)) return `${algorithm}=:${digest.toString('base64')}:`
      const differ = `it says ${digest.toString('base64')}, what arrived has ${actual.toString('base64')}`
      throw new UploadError('bad_digest', `the ${algorithm} digest of ${what} is wrong: ${differ}`)
    })
    return [...new Set(members)].join(', ')
  }
}

function isKnown(algorithm: string): algorithm is WantedDigest['algorithm'] {
  return Object.hasOwn(ALGORITHMS, algorithm)
}

function wantedDigest(name: string, algorithm: WantedDigest['algorithm'], base64: string): WantedDigest {
  const digest = Buffer.from(BASE64.test(base64) ? base64 : '', 'base64')
  if (digest.length !== createHash(ALGORITHMS[algorithm]).digest().length) throw unreadable(name, base64)
  return { algorithm, digest }
}

function unreadable(name: string, value: string): UploadError {
  return new UploadError('bad_digest', `${name} cannot be read: ${JSON.stringify(value.slice(0, 200))}`)
}
