import fs, { constants, type Stats } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { UploadError } from '../errors.ts'
import { type Logger, silentLogger } from '../log.ts'
import type { StoredFile } from '../protocol.ts'
import { DirectorySync } from './directory-sync.ts'
import { exists, linkNew } from './link.ts'
import { alternativeName, isPlainName } from './name.ts'
import { recover } from './recovery.ts'
import type { OnConflict, StagedFile, Storage, UploadFacts, UploadRecord } from './storage.ts'
import { makeFolder, Workspace } from './workspace.ts'

export interface LocalStorageOptions {
  /** Where published files live, by their names. Made where it is missing. */
  dir: string
  /** `rename` by default. */
  onConflict?: OnConflict
  /** Sync data, names and record to disk before `publish` resolves. True by default. */
  fsync?: boolean
  log?: Logger
}

const FILE_MODE = 0o644

/** The hidden folder in `dir` that holds records and work in progress. */
export function hiddenFolder(dir: string): string {
  return join(resolve(dir), '.uploadr')
}

/** The folder of the records, one a stored upload. */
export function recordsFolder(dir: string): string {
  return join(hiddenFolder(dir), 'records')
}

/**
 * Files in a local directory. An upload is published in these steps, so that a crash between any two
 * of them can be completed or undone by the next start (recovery.ts):
 *
 *  1. every file goes into this server's staging folder as KEY.0, KEY.1 …, and its data is synced;
 *  2. the record is written beside them as KEY.json, and the staging folder is synced: from here on
 *     the upload will be completed, whatever happens;
 *  3. every file is linked to its final name. link(2) fails where the name exists: nothing is overwritten;
 *  4. KEY.json moves to the records, and both directories are synced;
 *  5. the staged links are removed.
 *
 * What waits for the disk, syncs and copies, is asynchronous. Everything else changes a directory or a
 * small file in the page cache, takes microseconds on a local file system and is called in place, as
 * nginx does: a round trip to the thread pool costs ten times the call (docs/performance.md).
 */
export class LocalStorage implements Storage {
  readonly name = 'local'
  readonly #dir: string
  readonly #records: string
  readonly #staging: Workspace
  readonly #onConflict: OnConflict
  readonly #fsync: boolean
  readonly #keepsMode: boolean
  /** Names the next record; with the workspace's name and the time it is like no other. */
  #count = 0
  /** The directories of files, records and staging; absent without fsync. */
  readonly #syncs: { files: DirectorySync; records: DirectorySync; staging: DirectorySync } | undefined

  private constructor(
    dir: string,
    staging: Workspace,
    options: LocalStorageOptions,
    syncs: { files: DirectorySync; records: DirectorySync; staging: DirectorySync } | undefined,
  ) {
    this.#dir = dir
    this.#records = recordsFolder(dir)
    this.#staging = staging
    this.#onConflict = options.onConflict ?? 'rename'
    this.#fsync = options.fsync ?? true
    this.#keepsMode = keepsMode(staging.path)
    this.#syncs = syncs
  }

  /** Makes the directory where needed, completes or clears what a dead server left in it, and opens it. */
  static async open(options: LocalStorageOptions): Promise<LocalStorage> {
    const dir = resolve(options.dir)
    const hidden = hiddenFolder(dir)
    const records = recordsFolder(dir)
    const parent = join(hidden, 'staging')
    await makeFolder(dir)
    // Links in their places would lead out of the directory.
    await makeFolder(hidden, { mode: 0o700, own: true })
    for (const folder of [records, parent]) await makeFolder(folder, { own: true })
    for (const path of await Workspace.abandoned(parent)) {
      // Of several servers starting at once, one recovers.
      const staging = await Workspace.adopt(path)
      if (staging) await recover({ dir, records, staging, log: options.log ?? silentLogger })
    }
    const staging = await Workspace.create(parent)
    if (options.fsync === false) return new LocalStorage(dir, staging, options, undefined)
    return new LocalStorage(dir, staging, options, {
      files: await DirectorySync.open(dir),
      records: await DirectorySync.open(records),
      staging: await DirectorySync.open(staging.path),
    })
  }

  /** With `reject`, a taken name is refused before its bytes arrive. */
  accepts(name: string): void {
    if (this.#onConflict === 'reject' && exists(join(this.#dir, name))) throw nameTaken(name)
  }

  async publish(upload: UploadFacts, files: readonly StagedFile[]): Promise<StoredFile[]> {
    const publication = new Publication(this.#staging.path, this.#records, this.#count++, upload, files)
    try {
      await this.#stage(publication, files)
      if (this.#syncs) await this.#syncs.staging.sync()
      for (const [i, file] of publication.stored.entries()) await this.#giveName(publication, i, file)
      fs.renameSync(publication.intent, publication.record)
      if (this.#syncs) await Promise.all([this.#syncs.files.sync(), this.#syncs.records.sync()])
    } catch (error) {
      publication.undo()
      throw UploadError.from(error, 'storage_failed', 'storing the upload')
    }
    publication.clear()
    return publication.stored
  }

  /** Closes the directories. Work of publications still running stays for the next start to recover. */
  async close(): Promise<void> {
    await this.#staging.removeIfEmpty()
    if (this.#syncs) await Promise.all(Object.values(this.#syncs).map(sync => sync.close()))
  }

  /** Steps 1 and 2: the files and the record in the staging folder, whole and synced. */
  async #stage(publication: Publication, files: readonly StagedFile[]): Promise<void> {
    const results = await Promise.allSettled(
      files.map((file, i) => this.#stageFile(file, publication.staged(i))),
    )
    // Not before all have come to their end: what is still being written cannot be taken back.
    for (const result of results) if (result.status === 'rejected') throw result.reason
    await this.#writeIntent(publication)
  }

  async #stageFile(file: StagedFile, target: string): Promise<void> {
    if (!isPlainName(file.name)) throw new UploadError('storage_failed', 'a file name is not a plain name')
    if (file.path === undefined) {
      await this.#writeWhole(target, file.bytes ?? new Uint8Array())
      return
    }
    let synced = file.durable === true
    try {
      fs.renameSync(file.path, target)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error
      await copyFile(file.path, target, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE)
      synced = false
    }
    fs.chmodSync(target, FILE_MODE)
    if (this.#fsync && !synced) await syncAndClose(fs.openSync(target, 'r'))
  }

  /** Again where a name turned out to be taken: then the intent is replaced in one step. */
  async #writeIntent(publication: Publication): Promise<void> {
    const record = Buffer.from(`${JSON.stringify(publication.document)}\n`)
    if (!publication.committed) {
      publication.committed = true
      return this.#writeWhole(publication.intent, record)
    }
    const replacement = `${publication.intent}.new`
    await this.#writeWhole(replacement, record)
    fs.renameSync(replacement, publication.intent)
    await this.#syncs?.staging.sync()
  }

  /** A new file with these bytes, synced where that is promised. */
  async #writeWhole(path: string, bytes: Uint8Array): Promise<void> {
    const fd = fs.openSync(path, 'wx', FILE_MODE)
    try {
      for (let at = 0; at < bytes.length; ) at += fs.writeSync(fd, bytes, at)
      // The process's umask may have taken bits away that the file is promised to have.
      if (!this.#keepsMode) fs.fchmodSync(fd, FILE_MODE)
    } catch (error) {
      fs.closeSync(fd)
      throw error
    }
    if (this.#fsync) await syncAndClose(fd)
    else fs.closeSync(fd)
  }

  /** Step 3 for one file. */
  async #giveName(publication: Publication, i: number, file: StoredFile): Promise<void> {
    const staged = publication.staged(i)
    // Replacing is for files of other uploads: two of one upload are both wanted.
    const replace = this.#onConflict === 'replace' && !publication.stored.slice(0, i).some(isNamed(file.name))
    for (let tries = 0; tries < 100; tries++) {
      const target = join(this.#dir, file.name)
      try {
        if (replace) publication.replace(staged, target)
        else publication.link(staged, target)
        return
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
        if (this.#onConflict === 'reject' || replace) throw nameTaken(file.name)
      }
      file.name = alternativeName(file.sentAs)
      await this.#writeIntent(publication)
    }
    throw nameTaken(file.sentAs)
  }
}

/** One upload on its way to its names, and how to take it back. */
class Publication {
  readonly document: UploadRecord
  readonly intent: string
  readonly record: string
  committed = false
  readonly #base: string
  readonly #undo: (() => void)[] = []
  readonly #backups: string[] = []

  constructor(
    staging: string,
    records: string,
    count: number,
    upload: UploadFacts,
    files: readonly StagedFile[],
  ) {
    const time = upload.time.toISOString()
    // Names of records sort by time; the staging folder's random end tells servers apart, the count uploads.
    const key = `${time.replace(/[-:.]/g, '')}-${staging.slice(-12)}-${count}`
    this.#base = `${staging}/${key}`
    this.intent = `${this.#base}.json`
    this.record = `${records}/${key}.json`
    this.document = {
      id: upload.id,
      title: upload.title,
      time,
      from: upload.from,
      ...(upload.fields && { fields: upload.fields }),
      ...(upload.contentDigest !== undefined && { contentDigest: upload.contentDigest }),
      files: files.map(({ field, name, size, type, sha256, handler, arrived, contentDigest }) => ({
        ...{ field, name, sentAs: name, size, type, ...(sha256 !== undefined && { sha256 }), handler },
        ...(arrived && { arrived }),
        ...(contentDigest !== undefined && { contentDigest }),
      })),
    }
  }

  get stored(): StoredFile[] {
    return this.document.files
  }

  staged(i: number): string {
    return `${this.#base}.${i}`
  }

  link(staged: string, target: string): void {
    const moved = linkNew(staged, target)
    this.#undo.push(() => ifStill(moved ?? fs.lstatSync(staged), target, () => fs.unlinkSync(target)))
  }

  /** The old file keeps a second link until the upload is published, so that a failure can bring it back. */
  replace(staged: string, target: string): void {
    const backup = `${staged}.old`
    const ours = fs.lstatSync(staged)
    try {
      fs.linkSync(target, backup)
      this.#backups.push(backup)
      this.#undo.push(() => ifStill(ours, target, () => fs.renameSync(backup, target)))
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      // link(2) of a directory is EPERM: a file cannot replace it.
      if (code !== 'ENOENT' && fs.lstatSync(target, { throwIfNoEntry: false })?.isDirectory()) {
        throw Object.assign(new Error('a directory'), { code: 'EEXIST' })
      }
      if (code === 'ENOENT') this.#undo.push(() => ifStill(ours, target, () => fs.unlinkSync(target)))
    }
    fs.renameSync(staged, target)
  }

  /** Takes every name back and removes every trace. Best effort: what cannot be undone now, recovery completes. */
  undo(): void {
    for (const step of this.#undo.reverse()) attempt(step)
    remove(this.record)
    // Before what it names: an intent whose files are gone could not be completed.
    remove(this.intent)
    remove(`${this.intent}.new`)
    this.clear()
  }

  /** Removes what was only needed on the way. */
  clear(): void {
    for (const i of this.stored.keys()) remove(this.staged(i))
    for (const backup of this.#backups) remove(backup)
  }
}

function isNamed(name: string): (file: StoredFile) => boolean {
  return file => file.name === name
}

/** Another upload may have replaced the file in the meantime: that one is not ours to take away. */
function ifStill(ours: Stats, target: string, act: () => void): void {
  const there = fs.lstatSync(target)
  if (there.ino === ours.ino && there.dev === ours.dev) act()
}

function nameTaken(name: string): UploadError {
  return new UploadError('name_taken', `a file named ${name} is stored already`)
}

function syncAndClose(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    fs.fdatasync(fd, error => {
      // What is on disk stays there, whatever close says; and nobody could catch what it throws here.
      attempt(() => fs.closeSync(fd))
      if (error) reject(error)
      else resolve()
    })
  })
}

function attempt(act: () => void): void {
  try {
    act()
  } catch {}
}

function remove(path: string): void {
  attempt(() => fs.unlinkSync(path))
}

/** Whether a file made in `folder` has the mode it was asked to have, whatever the umask. */
function keepsMode(folder: string): boolean {
  const path = join(folder, 'mode')
  const fd = fs.openSync(path, 'wx', FILE_MODE)
  try {
    return (fs.fstatSync(fd).mode & 0o777) === FILE_MODE
  } finally {
    fs.closeSync(fd)
    fs.unlinkSync(path)
  }
}
