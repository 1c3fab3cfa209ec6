import { createHash } from 'node:crypto'
import { createReadStream, type Stats } from 'node:fs'
import { lstat, open, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import type { Logger } from '../log.ts'
import type { StoredFile } from '../protocol.ts'
import { type Ground, probeName } from './ground.ts'
import { exists, isSame, look } from './link.ts'
import { isPlainName } from './name.ts'
import { type Conflict, Publication, replaced } from './publication.ts'
import type { Replaced, UploadRecord } from './storage.ts'
import { Workspace } from './workspace.ts'

interface Abandoned {
  ground: Ground
  /** The staging folder of a server that is gone. */
  path: string
  /** Whether directories are to be synced. */
  syncs: boolean
  log: Logger
}

/**
 * Finishes what a dead server left in its staging folder, then removes the folder. An upload whose
 * record was written is completed: its files are given the names they lack, its record moves to the
 * records. Anything without a record was never going to be acknowledged and is removed.
 */
export async function recover({ ground, path, syncs, log }: Abandoned): Promise<void> {
  // Of several servers starting at once, one recovers.
  const staging = await Workspace.adopt(path)
  if (staging === undefined) return
  await rm(probeName(ground.dir, path), { force: true })
  const entries = await readdir(staging)
  for (const key of new Set(entries.map(name => name.replace(/\..*$/, '')))) {
    // Where the record had moved already, only the links into staging were left, or (after a loss of
    // power) a final name that did not reach the disk.
    const isIntent = entries.includes(`${key}.json`)
    const folder = isIntent ? staging : ground.records
    const record = await readRecord(join(folder, `${key}.json`))
    const publication = record && new Publication(ground, staging, key, record, !isIntent)
    const completed = publication !== undefined && (await complete(publication))
    if (completed && syncs) for (const folder of [ground.dir, ground.records]) await syncDirectory(folder)
    if (completed) publication.announce()
    if (isIntent)
      log.info(completed ? 'recovered an upload' : 'removed an incomplete upload', { record: key })
  }
  await rm(staging, { recursive: true, force: true })
}

/** Gives every file of one upload its name. False, with nothing left of the upload, if a file is not whole. */
async function complete(publication: Publication): Promise<boolean> {
  const { stored, document, isPublished } = publication
  const conflict: Conflict = (there, i) => {
    // It was given its name before.
    if (isSame(there, look(publication.staged(i)))) return 'keep'
    if (!document.replaces) return 'vary'
    if (isOf(there, document.replaces[i])) return 'replace'
    // What another server has stored since is newer: it has taken the place of this one, or keeps its own.
    return isPublished ? 'keep' : 'vary'
  }
  for (const [i, file] of stored.entries()) {
    if (await isThere(publication, i, file)) continue
    if (publication.undo()) return false
    throw new Error('the names of an incomplete upload cannot be taken back')
  }
  for (const i of stored.keys()) {
    if (exists(publication.staged(i))) await publication.giveName(i, conflict, () => undefined)
  }
  if (!isPublished) publication.keepRecord()
  return true
}

/** Whether file `i` is whole, in staging or under its name. */
async function isThere(publication: Publication, i: number, file: StoredFile): Promise<boolean> {
  const staged = publication.staged(i)
  const ours = look(staged)
  // It was given its name already: without hard links, the file moves. Whatever is under that name by now,
  // this upload or one that replaced it put it there.
  if (!ours) return publication.isPublished || exists(publication.target(i))
  // With fsync the data was on disk before the record; without it a loss of power may have torn it.
  return isSame(look(publication.target(i)), ours) || (await isWhole(staged, file))
}

/** Whether it is the file that was to be replaced, unchanged. */
function isOf(there: Stats, expected: Replaced | null | undefined): boolean {
  const found = replaced(there)
  if (!found || !expected) return false
  return found.ino === expected.ino && found.size === expected.size && found.mtimeMs === expected.mtimeMs
}

async function isWhole(path: string, { size, sha256 }: StoredFile): Promise<boolean> {
  const stats = await lstat(path).catch(() => undefined)
  if (stats?.isFile() !== true || stats.size !== size) return false
  return sha256 === undefined || (await digest(path)) === sha256
}

/** The record, if it is whole and ours: a name in it becomes a path. */
async function readRecord(path: string): Promise<UploadRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(path, 'utf8')) as UploadRecord
    return record.files.every(file => isPlainName(file.name) && isPlainName(file.sentAs)) ? record : undefined
  } catch {
    return undefined
  }
}

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path), hash)
  return hash.digest('hex')
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
