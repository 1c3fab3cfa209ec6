import fs, { constants } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { DiskNames } from './disk-names.ts'
import { exists, isSame, look } from './link.ts'

export interface GroundOptions {
  /** The folder of the stored files, and of their records. */
  dir: string
  records: string
  /** This server's staging folder. */
  staging: string
  /** Permissions of stored files. */
  mode: number
  /** Whether files are synced to disk before they count as written. */
  fsync: boolean
}

/** The bit of a folder's mode that gives its group to what is made in it. */
const SET_GROUP = 0o2000

/** What link(2) fails with for a reason of the moment, or one for which nothing else would work either. */
const NO_WORD_ON_LINKS = new Set(['ENOSPC', 'EDQUOT', 'EROFS', 'ENOENT', 'ENOMEM'])

/**
 * A directory that files are stored in, and what its file system can do: tried once at the start, on the
 * folders themselves. What cannot be done is done without, and told in `without`; what cannot be done
 * without throws.
 */
export class Ground {
  readonly dir: string
  readonly records: string
  /** In words, what the file system cannot do, or does its own way. */
  readonly without: readonly string[]
  readonly hasLinks: boolean
  /** Whether names that differ in upper and lower case only are one. */
  readonly foldsCase: boolean
  readonly names: DiskNames
  readonly #mode: number
  readonly #fsync: boolean
  /** Whether a new file has the mode it is made with, and whether another can be given to it. */
  readonly #keepsMode: boolean
  readonly #hasModes: boolean
  /** The group that stored files have, and whether a file made here has it: as the folder says, if it does. */
  readonly #group: number
  readonly #keepsGroup: boolean

  constructor({ dir, records, staging, mode, fsync }: GroundOptions) {
    this.dir = dir
    this.records = records
    this.#mode = mode
    this.#fsync = fsync
    const without: string[] = []
    const path = join(staging, 'probe')
    // Of a name that nobody else can choose; should we die within the next lines, recovery removes it.
    const named = probeName(dir, staging)
    try {
      const fd = fs.openSync(path, 'wx', mode)
      try {
        const made = fs.fstatSync(fd)
        this.#keepsMode = (made.mode & 0o777) === mode
        this.#hasModes = succeeds(() => fs.fchmodSync(fd, mode))
        if (!this.#hasModes) without.push('the mode of files')
        const folder = fs.statSync(dir)
        this.#group = folder.mode & SET_GROUP ? folder.gid : made.gid
        this.#keepsGroup = made.gid === this.#group
        if (!this.#keepsGroup && !succeeds(() => fs.fchownSync(fd, -1, this.#group))) {
          without.push("the folder's group")
        }
        if (fsync) fs.fdatasyncSync(fd)
      } finally {
        fs.closeSync(fd)
      }
      this.foldsCase = exists(join(staging, 'PROBE'))
      this.hasLinks = canLink(path, named)
      if (!this.hasLinks) {
        without.push('hard links: a name taken at the same moment by another program is not protected')
        // Without this nothing can be stored here.
        fs.renameSync(path, named)
        fs.renameSync(named, path)
      }
    } finally {
      succeeds(() => fs.unlinkSync(path))
      succeeds(() => fs.unlinkSync(named))
    }
    this.names = new DiskNames(staging)
    const { refused, maxBytes } = this.names
    if (refused) without.push(`names with ${refused.join(' ')} or of more than ${maxBytes} bytes`)
    this.without = without
  }

  /** The same for all names that are one here. */
  folded(name: string): string {
    return this.foldsCase ? name.normalize('NFC').toLowerCase() : name
  }

  /** A new file with these bytes, as durable as it is promised. */
  async write(path: string, bytes: Uint8Array): Promise<void> {
    const fd = fs.openSync(path, 'wx', this.#mode)
    try {
      for (let at = 0; at < bytes.length; ) at += fs.writeSync(fd, bytes, at)
      // The process's umask may have taken bits away that the file is promised to have.
      if (!this.#keepsMode && this.#hasModes) fs.fchmodSync(fd, this.#mode)
      if (!this.#keepsGroup) succeeds(() => fs.fchownSync(fd, -1, this.#group))
    } catch (error) {
      fs.closeSync(fd)
      throw error
    }
    if (this.#fsync) await syncAndClose(fd)
    else fs.closeSync(fd)
  }

  /** The file at `from` under another path, whole and as durable as is promised; `synced` where its data is already. */
  async take(from: string, path: string, synced: boolean): Promise<void> {
    let isSynced = synced
    try {
      if (!this.#mayMove(from)) throw Object.assign(new Error('group'), { code: 'EXDEV' })
      fs.renameSync(from, path)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error
      await this.#copy(from, path)
      if (!this.#keepsGroup) succeeds(() => fs.lchownSync(path, -1, this.#group))
      isSynced = false
    }
    if (this.#hasModes) fs.chmodSync(path, this.#mode)
    if (this.#fsync && !isSynced) await syncAndClose(fs.openSync(path, 'r'))
  }

  /** Whether the file, moved, has the folder's group or can be given it. A copy is made in the folder, and has it. */
  #mayMove(from: string): boolean {
    if (fs.lstatSync(from).gid === this.#group) return true
    return succeeds(() => fs.lchownSync(from, -1, this.#group)) || !this.#keepsGroup
  }

  async #copy(from: string, to: string): Promise<void> {
    // It gives the copy the mode of what it copies, or fails.
    if (this.#hasModes) return copyFile(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE)
    await pipeline(fs.createReadStream(from), fs.createWriteStream(to, { flags: 'wx', mode: this.#mode }))
  }
}

/** The name under which a server tries links in `dir`, by its staging folder. */
export function probeName(dir: string, staging: string): string {
  return join(dir, `.${basename(staging)}`)
}

function canLink(path: string, target: string): boolean {
  try {
    fs.linkSync(path, target)
    // FUSE, unless told otherwise, numbers names and not files: whether a name is our file's could not be told.
    if (isSame(look(path), look(target))) return true
    fs.unlinkSync(target)
    return false
  } catch (error) {
    if (NO_WORD_ON_LINKS.has(String((error as NodeJS.ErrnoException).code))) throw error
    return false
  }
}

function succeeds(act: () => void): boolean {
  try {
    act()
    return true
  } catch {
    return false
  }
}

function syncAndClose(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    fs.fdatasync(fd, error => {
      // What is on disk stays there, whatever close says; and nobody could catch what it throws here.
      succeeds(() => fs.closeSync(fd))
      if (error) reject(error)
      else resolve()
    })
  })
}
