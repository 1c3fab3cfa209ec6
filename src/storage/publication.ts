import fs, { constants, type Stats } from 'node:fs'
import { dirname } from 'node:path'
import { UploadError } from '../errors.ts'
import type { StoredFile } from '../protocol.ts'
import type { Ground } from './ground.ts'
import { exists, isSame, linkNew, look } from './link.ts'
import type { Replaced, UploadRecord } from './storage.ts'

/**
 * What becomes of a file whose name is taken: it replaces what is `there`, gets a free variant of its
 * name, or stays without one, as its name has been given before. May throw.
 */
export type Conflict = (there: Stats, i: number) => 'replace' | 'vary' | 'keep'

/** Opened so, a file that is closed again is reported to who watches the folder as written (IN_CLOSE_WRITE). */
const ANNOUNCE = constants.O_WRONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK

/**
 * One upload on its way to its names, in steps that publishing takes (local.ts), and recovery again where
 * a crash cut them (recovery.ts). All that is needed to go on, or back, is in the staging folder:
 *
 *   KEY.N       file N, whole; without hard links only until it has its name
 *   KEY.json    the record: from here on the upload will be completed
 *   KEY.N.old   what file N replaces, until the upload is published or taken back
 *   KEY.N.new   file N, a moment before it replaces that
 */
export class Publication {
  readonly document: UploadRecord
  readonly #record: string
  /** Where the record is, or will be: in staging until the upload is published. */
  #kept: string
  readonly #ground: Ground
  readonly #base: string
  /** What the files are to which this process gives names. */
  readonly #given = new Map<number, Stats>()
  #hasReplaced = false
  /** What other uploads would give back, by number. */
  #others: Map<number, string> | undefined

  /** `isPublished`: the record has moved to the others already. */
  constructor(ground: Ground, staging: string, key: string, document: UploadRecord, isPublished = false) {
    this.document = document
    this.#ground = ground
    this.#base = `${staging}/${key}`
    this.#record = `${ground.records}/${key}.json`
    this.#kept = isPublished ? this.#record : `${this.#base}.json`
  }

  get isPublished(): boolean {
    return this.#kept === this.#record
  }

  get stored(): StoredFile[] {
    return this.document.files
  }

  staged(i: number): string {
    return `${this.#base}.${i}`
  }

  target(i: number): string {
    return `${this.#ground.dir}/${this.#file(i).name}`
  }

  /** Whether the name of file `i`, which is taken, was given to one of this upload before it. */
  isOurs(i: number, there: Stats): boolean {
    const ground = this.#ground
    const own = ground.folded(this.#file(i).name)
    return this.stored
      .slice(0, i)
      .some(({ name }, j) => ground.folded(name) === own || isSame(there, this.#ours(j)))
  }

  /**
   * Notes what is under the names now, for a recovery to know what it may replace. Refuses what nothing can
   * replace before anything is: who may send names has no way to have a file replaced and given back.
   */
  noteReplaced(): void {
    this.document.replaces = this.stored.map(({ name }, i) => {
      const there = look(this.target(i))
      if (there?.isDirectory()) throw nameTaken(name, 'folder')
      return replaced(there)
    })
  }

  writeRecord(): Promise<void> {
    return this.#ground.write(this.#kept, this.#bytes())
  }

  /** Gives file `i` its name. `rewritten`: what makes it durable that the record names it differently. */
  async giveName(i: number, conflict: Conflict, rewritten: () => Promise<void> | undefined): Promise<void> {
    const file = this.#file(i)
    this.#note(i, this.staged(i))
    for (let tries = 0; tries < 100; tries++) {
      try {
        this.#link(i)
        return
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      }
      const there = look(this.target(i))
      // Gone again.
      if (!there) continue
      const what = conflict(there, i)
      if (what === 'keep' || (what === 'replace' && this.#replace(i))) return
      if (what === 'replace') continue
      file.name = this.#ground.names.alternative(file.sentAs)
      // One that a crash has left.
      remove(this.#rewritten)
      await this.#ground.write(this.#rewritten, this.#bytes())
      fs.renameSync(this.#rewritten, this.#kept)
      await rewritten()
    }
    throw nameTaken(file.sentAs)
  }

  /** The record moves to its place: the upload is published. */
  keepRecord(): void {
    fs.renameSync(this.#kept, this.#record)
    this.#kept = this.#record
  }

  /**
   * Lets those who watch the folder know of each file, by its name. link(2) tells them only of something that
   * was made, as if it were still to be written. Not before all is in place: some take a file away at once.
   */
  announce(): void {
    for (const i of this.stored.keys()) attempt(() => fs.closeSync(fs.openSync(this.target(i), ANNOUNCE)))
  }

  /** Removes what was only needed on the way. */
  clear(): void {
    for (const i of this.stored.keys()) {
      remove(this.staged(i))
      if (!this.#hasReplaced) continue
      remove(this.#new(i))
      remove(this.#old(i))
    }
  }

  /**
   * Takes every name back, gives it to what had it before, and removes every trace. False where a disk refuses
   * that: then all else stays, and the next start completes the upload.
   */
  undo(): boolean {
    for (const i of this.stored.keys()) if (!attempt(() => this.#takeBack(i))) return false
    // Before what it names: a record whose files are gone could not be completed.
    remove(this.#kept)
    remove(this.#rewritten)
    this.clear()
    return true
  }

  #link(i: number): void {
    const { hasLinks } = this.#ground
    linkNew(this.staged(i), this.target(i), hasLinks)
    // Made with FUSE, some file systems give a file another number when it moves.
    if (!hasLinks) this.#note(i, this.target(i))
  }

  /** Knows file `i` from now on, whatever becomes of its staged link. */
  #note(i: number, path: string): void {
    const given = look(path)
    if (given) this.#given.set(i, given)
  }

  /** False, and nothing done but that the name is free or another's, where somebody was quicker. */
  #replace(i: number): boolean {
    const target = this.target(i)
    const old = this.#old(i)
    this.#hasReplaced = true
    // One that an earlier try kept: by now the name was somebody else's.
    remove(old)
    try {
      if (!this.#ground.hasLinks) throw new Error('no hard links')
      fs.linkSync(target, old)
    } catch {
      return this.#moveAside(i, target, old)
    }
    // In one step: at no moment is nothing there. A link of its own, as rename(2) takes one away.
    remove(this.#new(i))
    fs.linkSync(this.staged(i), this.#new(i))
    fs.renameSync(this.#new(i), target)
    return true
  }

  /**
   * Where the file to be replaced can have no second link: the file system knows none, or the file is another
   * owner's (protected_hardlinks). For a moment nothing has the name.
   */
  #moveAside(i: number, target: string, old: string): boolean {
    try {
      fs.renameSync(target, old)
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      if (code === 'ENOENT') return false
      const { name } = this.#file(i)
      throw new UploadError(
        'name_taken',
        `a file named ${name} is stored already and cannot be replaced: ${code}`,
        { cause },
      )
    }
    try {
      this.#link(i)
      return true
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      return false
    }
  }

  #takeBack(i: number): void {
    const ours = this.#ours(i)
    const target = this.target(i)
    const there = look(target)
    // Another server's upload may have replaced ours in the meantime: its file is not ours to take away, but
    // what it would give back, should it fail too, is no longer ours. It is what ours has replaced, or nothing.
    const place = there && !isSame(there, ours) ? ours && this.#successor(ours) : target
    if (place === undefined) return
    if (exists(this.#old(i))) fs.renameSync(this.#old(i), place)
    else if (there) fs.rmSync(place, { force: true })
  }

  /** Where the upload that has replaced our file keeps it, in the staging folder of whichever server. */
  #successor(ours: Stats): string | undefined {
    this.#others ??= this.#replacedByOthers()
    const path = this.#others.get(ours.ino)
    return path !== undefined && isSame(look(path), ours) ? path : undefined
  }

  #replacedByOthers(): Map<number, string> {
    const found = new Map<number, string>()
    const parent = dirname(dirname(this.#base))
    for (const folder of namesIn(parent)) {
      for (const name of namesIn(`${parent}/${folder}`)) {
        const path = `${parent}/${folder}/${name}`
        const kept = name.endsWith('.old') && look(path)
        if (kept) found.set(kept.ino, path)
      }
    }
    return found
  }

  #ours(i: number): Stats | undefined {
    return this.#given.get(i) ?? look(this.staged(i))
  }

  get #rewritten(): string {
    return `${this.#base}.json.new`
  }

  #old(i: number): string {
    return `${this.staged(i)}.old`
  }

  #new(i: number): string {
    return `${this.staged(i)}.new`
  }

  #file(i: number): StoredFile {
    return this.stored[i] as StoredFile
  }

  #bytes(): Buffer {
    return Buffer.from(`${JSON.stringify(this.document)}\n`)
  }
}

/** What a file is known by that is to be replaced: one that was changed or made since is another. */
export function replaced(there: Stats | undefined): Replaced | null {
  return there && !there.isDirectory() ? { ino: there.ino, size: there.size, mtimeMs: there.mtimeMs } : null
}

export function nameTaken(name: string, what = 'file'): UploadError {
  return new UploadError('name_taken', `a ${what} named ${name} is stored already`)
}

function attempt(act: () => void): boolean {
  try {
    act()
    return true
  } catch {
    return false
  }
}

/** None where it is no folder, is gone, or another user's. */
function namesIn(folder: string): string[] {
  let names: string[] = []
  attempt(() => {
    names = fs.readdirSync(folder)
  })
  return names
}

function remove(path: string): void {
  attempt(() => fs.unlinkSync(path))
}
