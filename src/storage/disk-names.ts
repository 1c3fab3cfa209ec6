import { closeSync, mkdirSync, openSync, readdirSync, rmdirSync, unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { UploadError } from '../errors.ts'
import { alternativeName, fitName, isPlainName, NAME_MAX_BYTES } from './name.ts'

/**
 * Characters that FAT, exFAT, NTFS and their like refuse, and one each of those that a disk has or has not
 * together, as what stands for all of them in a regular expression.
 */
const SUSPECTS: Record<string, string> = {
  ...Object.fromEntries(Array.from('"*:<>?|', character => [character, character])),
  '\\': '\\\\',
  é: '\\u{80}-\\u{ff}',
  字: '\\u{100}-\\u{ffff}',
  '🚀': '\\u{10000}-\\u{10ffff}',
}

/** What a disk says of a name that it does not take; anything else is about the disk. */
const REFUSALS = new Set(['EINVAL', 'EILSEQ', 'ENAMETOOLONG', 'ENOENT', 'EPROTO'])

/**
 * The names that a disk takes. One look at the start tells whether it takes any; where it does not, which
 * characters and how many bytes are found out, and each name is tried before it is promised.
 */
export class DiskNames {
  readonly #folder: string
  readonly maxBytes: number
  /** Characters that it refuses: undefined where it takes every name of NAME_MAX_BYTES. */
  readonly refused: readonly string[] | undefined

  /** `folder`: one that this server alone writes to, on the disk in question. */
  constructor(folder: string) {
    this.#folder = join(folder, 'names')
    const start = Object.keys(SUSPECTS).join('')
    const worst = `${start}${'x'.repeat(NAME_MAX_BYTES - 1 - Buffer.byteLength(start))}.`
    if (this.#takes(worst)) {
      this.maxBytes = NAME_MAX_BYTES
      return
    }
    let [fits, tooLong] = [0, NAME_MAX_BYTES + 1]
    while (tooLong - fits > 1) {
      const length = (fits + tooLong) >> 1
      if (this.#takes('x'.repeat(length))) fits = length
      else tooLong = length
    }
    this.maxBytes = fits
    this.refused = Object.keys(SUSPECTS).filter(character => !this.#takes(`a${character}b`))
  }

  /** The name as the disk can have it: shortened, with what it refuses replaced by `_`. */
  fit(name: string): string {
    if (!this.refused) return name
    const set = this.refused.map(character => SUSPECTS[character]).join('')
    const replaced = set === '' ? name : name.replace(new RegExp(`[${set}]`, 'gu'), '_')
    // Ends and whole names that mean something to Windows, and whatever else it may be.
    const plain = replaced.replace(/[^\w.-]/g, '_').replace(/[. ]+$/, '_')
    for (const candidate of [name, replaced, plain, `_${plain}`]) {
      const made = this.#make(fitName(candidate, '', this.maxBytes))
      if (made !== undefined && isPlainName(made)) return made
    }
    throw new UploadError('storage_failed', `the disk takes no name that is like ${name}`)
  }

  /** A free variant of a name. */
  alternative(name: string): string {
    return alternativeName(this.fit(name), this.maxBytes)
  }

  #takes(name: string): boolean {
    return this.#make(name) === name
  }

  /** The name that a file has which is made under this one: some disks change it. Undefined where it is refused. */
  #make(name: string): string | undefined {
    mkdirSync(this.#folder)
    try {
      closeSync(openSync(join(this.#folder, name), 'wx', 0o600))
      const [made] = readdirSync(this.#folder)
      unlinkSync(join(this.#folder, name))
      return made
    } catch (error) {
      if (REFUSALS.has(String((error as NodeJS.ErrnoException).code))) return undefined
      throw error
    } finally {
      rmdirSync(this.#folder)
    }
  }
}
