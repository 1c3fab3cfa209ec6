import { createCipheriv, createHash } from 'node:crypto'
import { closeSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'

const BLOCK = 1024 * 1024

/** The boundaries that requests are made with: of RFC 2046's full length, as push sends, or of curl's. */
export const BOUNDARIES = {
  full: 'benchmark'.padEnd(70, '0123456789abcdef'),
  curl: '------------------------0123456789abcdef',
}

/** Functions that give `BLOCK` bytes after `BLOCK` bytes of a file. */
const KINDS = {
  random() {
    const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 1), Buffer.alloc(16))
    const zeros = Buffer.alloc(BLOCK)
    return () => cipher.update(zeros)
  },
  /** All of a delimiter but its last character, again and again. */
  'near-boundary': boundary => repeated(`\r\n--${boundary.slice(0, -1)}`),
  dashes: () => repeated('\r\n--'),
  returns: () => repeated('\r'),
}

function repeated(text) {
  // Whole repetitions, so that the blocks join without a seam.
  const block = Buffer.from(text.repeat(Math.floor(BLOCK / text.length)))
  return () => block
}

/** The files that are sent, made once, on tmpfs, with their digests. */
export class Payloads {
  #dir
  #made = new Map()

  constructor(dir) {
    this.#dir = dir
  }

  /** @returns {{ path: string, size: number, sha256: string }} */
  get({ kind = 'random', size, boundary }) {
    const key = `${kind}-${size}`
    if (!this.#made.has(key)) this.#made.set(key, this.#make(key, kind, size, boundary))
    return this.#made.get(key)
  }

  drop({ kind = 'random', size }) {
    const made = this.#made.get(`${kind}-${size}`)
    if (made) rmSync(made.path)
    this.#made.delete(`${kind}-${size}`)
  }

  #make(key, kind, size, boundary) {
    const path = join(this.#dir, key)
    const next = KINDS[kind](boundary)
    const hash = createHash('sha256')
    const fd = openSync(path, 'w')
    for (let left = size; left > 0; ) {
      const block = next()
      const piece = block.subarray(0, left)
      writeSync(fd, piece)
      hash.update(piece)
      left -= piece.length
    }
    closeSync(fd)
    return { path, size, sha256: hash.digest('hex') }
  }
}
