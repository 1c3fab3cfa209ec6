import { constants } from 'node:fs'
import { access, readdir, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { UploadError } from '../errors.ts'
import { type Logger, silentLogger } from '../log.ts'
import { BOOLEAN, checkNames, type NamesOf, TEXT } from '../names.ts'
import type { StoredFile } from '../protocol.ts'
import { DirectorySync } from './directory-sync.ts'
import { Ground } from './ground.ts'
import { exists, look } from './link.ts'
import { isPlainName } from './name.ts'
import { type Conflict, nameTaken, Publication } from './publication.ts'
import { recover } from './recovery.ts'
import {
  CONFLICT_RULE,
  FILE_MODE,
  MODE_RULE,
  type OnConflict,
  type StagedFile,
  type Storage,
  type UploadFacts,
  type UploadRecord,
} from './storage.ts'
import { makeFolder, Workspace, why } from './workspace.ts'

export interface LocalStorageOptions {
  /** Where published files live, by their names. Made where it is missing. */
  dir: string
  /** `rename` by default. */
  onConflict?: OnConflict
  /** Sync data, names and record to disk before `publish` resolves. True by default. */
  fsync?: boolean
  /** Permissions of the files, 0o644 by default; their owner has to be let read and write. */
  mode?: number
  log?: Logger
}

const OPTIONS: NamesOf<LocalStorageOptions> = {
  dir: TEXT,
  onConflict: CONFLICT_RULE,
  fsync: BOOLEAN,
  mode: MODE_RULE,
  log: true,
}

/** What a directory says that cannot be synced: on CIFS, and some made with FUSE. */
const NO_SYNC = new Set(['EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EBADF', 'EACCES', 'EPERM', 'EISDIR'])

/** The hidden folder in `dir` that holds records and work in progress. */
export function hiddenFolder(dir: string): string {
  return join(resolve(dir), '.uploadr')
}

/** The folder of the records, one a stored upload. */
export function recordsFolder(dir: string): string {
  return join(hiddenFolder(dir), 'records')
}

interface Syncs {
  files: DirectorySync
  records: DirectorySync
  staging: DirectorySync
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
 *  5. who watches the directory is told of each file, and the staged links are removed.
 *
 * What waits for the disk, syncs and copies, is asynchronous. Everything else changes a directory or a
 * small file in the page cache, takes microseconds on a local file system and is called in place, as
 * nginx does: a round trip to the thread pool costs ten times the call (docs/performance.md).
 */
export class LocalStorage implements Storage {
  readonly name = 'local'
  readonly folder: string
  readonly #ground: Ground
  readonly #staging: Workspace
  readonly #onConflict: OnConflict
  readonly #log: Logger
  /** Names the next record; with the workspace's name and the time it is like no other. */
  #count = 0
  /** With `replace`: the last upload that has a name or waits for it, until it has come to its end. */
  readonly #holders = new Map<string, Promise<void>>()
  /** Absent without fsync, and where directories cannot be synced. */
  readonly #syncs: Syncs | undefined

  private constructor(
    ground: Ground,
    staging: Workspace,
    options: LocalStorageOptions,
    syncs: Syncs | undefined,
  ) {
    this.folder = ground.dir
    this.#ground = ground
    this.#staging = staging
    this.#onConflict = options.onConflict ?? 'rename'
    this.#log = options.log ?? silentLogger
    this.#syncs = syncs
  }

  /** Makes the directory where needed, completes or clears what a dead server left in it, and opens it. */
  static async open(options: LocalStorageOptions): Promise<LocalStorage> {
    checkNames('LocalStorage.open', options, OPTIONS)
    const { fsync = true, mode = FILE_MODE, log = silentLogger } = options
    const dir = resolve(options.dir)
    const records = recordsFolder(dir)
    await makeFolders(dir)
    const staging = await Workspace.create(stagingFolder(dir))
    try {
      const ground = new Ground({ dir, records, staging: staging.path, mode, fsync })
      const syncs = fsync ? await openSyncs(dir, records, staging.path) : undefined
      const without = [...ground.without, ...(fsync && !syncs ? ['names synced to disk'] : [])]
      if (without.length > 0)
        log.warn('the file system of --dir is without', { dir, what: without.join('; ') })
      for (const path of await staging.abandoned())
        await recover({ ground, path, syncs: syncs !== undefined, log })
      return new LocalStorage(ground, staging, options, syncs)
    } catch (error) {
      await staging.removeIfEmpty()
      throw error
    }
  }

  /** A name that the disk has no likeness of, and with `reject` a taken one, is refused before its bytes arrive. */
  accepts(name: string): string | undefined | Promise<string | undefined> {
    try {
      return this.#accept(name)
    } catch (error) {
      return this.#mend(error).then(() => this.#accept(name))
    }
  }

  async publish(upload: UploadFacts, files: readonly StagedFile[]): Promise<StoredFile[]> {
    let publication: Publication | undefined
    let release: (() => void) | undefined
    try {
      publication = this.#begin(upload, files)
      await this.#stage(publication, files)
      await this.#syncs?.staging.sync()
      if (this.#onConflict === 'replace') release = await this.#hold(publication)
      for (const i of publication.stored.keys()) {
        await publication.giveName(i, this.#conflict(publication), () => this.#syncs?.staging.sync())
      }
      try {
        publication.keepRecord()
      } catch (error) {
        await this.#mend(error)
        publication.keepRecord()
      }
      if (this.#syncs) await Promise.all([this.#syncs.files.sync(), this.#syncs.records.sync()])
    } catch (error) {
      publication?.undo()
      throw UploadError.from(error, 'storage_failed', 'storing the upload')
    } finally {
      release?.()
    }
    publication.announce()
    publication.clear()
    return publication.stored
  }

  async used(): Promise<number> {
    const sizes = await Promise.all([this.folder, this.#ground.records].map(sizeOfFiles))
    return sizes.reduce((total, size) => total + size, 0)
  }

  async health(): Promise<string | undefined> {
    try {
      // As long as the staging folder is there, by its name like no other, so is the place.
      const device = look(this.#staging.path) ? undefined : this.#staging.device
      if (await makeFolders(this.folder, device)) {
        this.#log.warn('made folders again that were gone', { dir: this.folder })
      }
      const why = await this.#staging.health()
      if (why !== undefined) return why
      for (const folder of [this.folder, this.#ground.records])
        await access(folder, constants.W_OK | constants.X_OK)
      return undefined
    } catch (error) {
      return why(error)
    }
  }

  /** Closes the directories. Work of publications still running stays for the next start to recover. */
  async close(): Promise<void> {
    await this.#staging.removeIfEmpty()
    await closeSyncs(this.#syncs)
  }

  #begin(upload: UploadFacts, files: readonly StagedFile[]): Publication {
    if (!files.every(file => isPlainName(file.name))) {
      throw new UploadError('storage_failed', 'a file name is not a plain name')
    }
    const time = upload.time.toISOString()
    // Names of records sort by time; the staging folder's random end tells servers apart, the count uploads.
    const key = `${time.replace(/[-:.]/g, '')}-${this.#staging.path.slice(-12)}-${this.#count++}`
    const { id, title, from, fields, contentDigest } = upload
    const document: UploadRecord = { id, title, time, from, files: [] }
    if (fields) document.fields = fields
    if (contentDigest !== undefined) document.contentDigest = contentDigest
    for (const file of files) document.files.push(describe(file, this.#ground.names.fit(file.name)))
    return new Publication(this.#ground, this.#staging.path, key, document)
  }

  #accept(name: string): string | undefined {
    const stored = this.#ground.names.fit(name)
    const there = this.#onConflict === 'reject' ? look(join(this.folder, stored)) : undefined
    if (there) throw nameTaken(stored, there.isDirectory() ? 'folder' : 'file')
    return stored === name ? undefined : stored
  }

  /** Steps 1 and 2: the files and the record in the staging folder, whole and synced. */
  async #stage(publication: Publication, files: readonly StagedFile[]): Promise<void> {
    const results = await Promise.allSettled(
      files.map((file, i) => this.#stageFile(file, publication.staged(i))),
    )
    // Not before all have come to their end: what is still being written cannot be taken back.
    for (const result of results) if (result.status === 'rejected') throw result.reason
    if (this.#onConflict === 'replace') publication.noteReplaced()
    await publication.writeRecord()
  }

  async #stageFile(file: StagedFile, target: string): Promise<void> {
    const { path, bytes = new Uint8Array(), durable = false } = file
    const stage = () => {
      return path === undefined ? this.#ground.write(target, bytes) : this.#ground.take(path, target, durable)
    }
    try {
      await stage()
    } catch (error) {
      await this.#mend(error)
      await stage()
    }
  }

  /**
   * Waits for the uploads before it that have a name in common with it: what one replaces and would give back is
   * then never a file of another that may still fail. Who waits, waits for earlier ones alone, so never in a circle.
   */
  async #hold(publication: Publication): Promise<() => void> {
    const names = publication.stored.map(({ name }) => this.#ground.folded(name))
    const earlier = names.map(name => this.#holders.get(name))
    let end = () => {}
    const held = new Promise<void>(resolve => {
      end = resolve
    })
    for (const name of names) this.#holders.set(name, held)
    await Promise.all(earlier)
    return () => {
      for (const name of names) if (this.#holders.get(name) === held) this.#holders.delete(name)
      end()
    }
  }

  /** Makes a folder again that an error says is gone; throws where it is another error, or that cannot be. */
  async #mend(error: unknown): Promise<void> {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    const why = await this.health()
    if (why !== undefined) throw new UploadError('storage_failed', `nothing can be stored: ${why}`)
  }

  #conflict(publication: Publication): Conflict {
    return (there, i) => {
      if (this.#onConflict === 'rename') return 'vary'
      const { name } = publication.stored[i] as StoredFile
      const isOurs = publication.isOurs(i, there)
      // Replacing is for files of other uploads: two of one upload are both wanted.
      if (this.#onConflict === 'replace' && !there.isDirectory()) return isOurs ? 'vary' : 'replace'
      if (isOurs) throw new UploadError('name_taken', `the upload has two files named ${name}`)
      throw nameTaken(name, there.isDirectory() ? 'folder' : 'file')
    }
  }
}

/** A file as the record tells of it. Written out: spreading objects took as long as two calls of the file system. */
function describe(file: StagedFile, name: string): StoredFile {
  const { field, name: sentAs, size, type, sha256, handler, arrived, contentDigest } = file
  const stored: StoredFile =
    sha256 === undefined
      ? { field, name, sentAs, size, type, handler }
      : { field, name, sentAs, size, type, sha256, handler }
  if (arrived) stored.arrived = arrived
  if (contentDigest !== undefined) stored.contentDigest = contentDigest
  return stored
}

function stagingFolder(dir: string): string {
  return join(hiddenFolder(dir), 'staging')
}

/** The folders that are there as long as any server is; true where one was missing. */
async function makeFolders(dir: string, device?: number): Promise<boolean> {
  const [hidden, inside] = [hiddenFolder(dir), [recordsFolder(dir), stagingFolder(dir)]]
  const isMissing = ![dir, hidden, ...inside].every(exists)
  const options = device === undefined ? {} : { device }
  await makeFolder(dir, options)
  // Links in their places would lead out of the directory.
  await makeFolder(hidden, { ...options, mode: 0o700, own: true })
  for (const folder of inside) await makeFolder(folder, { ...options, own: true })
  return isMissing
}

async function openSyncs(dir: string, records: string, staging: string): Promise<Syncs | undefined> {
  let files: DirectorySync | undefined
  try {
    files = await DirectorySync.open(dir)
    await files.sync()
  } catch (error) {
    await files?.close()
    if (NO_SYNC.has(String((error as NodeJS.ErrnoException).code))) return undefined
    throw error
  }
  return { files, records: await DirectorySync.open(records), staging: await DirectorySync.open(staging) }
}

async function closeSyncs(syncs: Syncs | undefined): Promise<void> {
  if (syncs) await Promise.all(Object.values(syncs).map(sync => sync.close()))
}

/** Bytes of the files in a folder, not of those below it. */
async function sizeOfFiles(dir: string): Promise<number> {
  let total = 0
  for (const entry of await readdir(dir, { withFileTypes: true })) {
    // One that goes away between the two calls has no size any more.
    if (entry.isFile()) total += (await stat(join(dir, entry.name)).catch(() => ({ size: 0 }))).size
  }
  return total
}
