import { createHash } from 'node:crypto'
import { createReadStream, type Stats } from 'node:fs'
import { lstat, open, readdir, readFile, rename, rm, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import type { Logger } from '../log.ts'
import type { StoredFile } from '../protocol.ts'
import { exists, linkNew } from './link.ts'
import { alternativeName, isPlainName } from './name.ts'
import type { UploadRecord } from './storage.ts'

interface Abandoned {
  dir: string
  records: string
  /** The staging folder of a server that is gone. */
  staging: string
  log: Logger
}

/**
 * Finishes what a dead server left in its staging folder, then removes the folder. An upload whose
 * record was written is completed: its files are given the names they lack, its record moves to the
 * records. Anything without a record was never going to be acknowledged and is removed.
 */
export async function recover(abandoned: Abandoned): Promise<void> {
  const { staging, records, log } = abandoned
  const entries = await readdir(staging)
  for (const entry of entries.filter(name => name.endsWith('.json'))) {
    const key = entry.slice(0, -'.json'.length)
    const completed = await complete(abandoned, key, join(staging, entry))
    log.info(completed ? 'recovered an upload' : 'removed an incomplete upload', { record: key })
  }
  // Where the record had moved already, only the links into staging were left, or (after a loss of
  // power) a final name that did not reach the disk.
  for (const key of new Set(entries.map(name => name.replace(/\..*$/, '')))) {
    if (entries.includes(`${key}.json`)) continue
    await complete(abandoned, key, join(records, `${key}.json`))
  }
  await rm(staging, { recursive: true, force: true })
}

/** Gives every file of one record its name. False, with nothing left of the upload, if a file is not whole. */
async function complete({ dir, records, staging }: Abandoned, key: string, path: string): Promise<boolean> {
  const record = await readRecord(path)
  if (!record) return false
  const target = join(records, `${key}.json`)
  const published = path === target
  // As in publishing, the record names a file before the file has the name.
  const rewrite = async () => {
    const replacement = join(staging, `${key}.new`)
    await writeFile(replacement, `${JSON.stringify(record)}\n`, { flush: true })
    await rename(replacement, path)
  }
  const named: string[] = []
  for (const [i, file] of record.files.entries()) {
    const staged = join(staging, `${key}.${i}`)
    const ours = await lstat(staged).catch(() => undefined)
    if (!ours) {
      // It was given its name already: `replace` renames to it, without hard links so does every
      // publication. Whatever is under that name by now, this upload or one that replaced it put it there.
      if (published || exists(join(dir, file.name))) continue
    } else if (await giveName(dir, staged, ours, file, rewrite)) {
      named.push(file.name)
      continue
    }
    for (const name of named) await unlink(join(dir, name)).catch(() => {})
    await unlink(path).catch(() => {})
    return false
  }
  if (!published) await rename(path, target)
  for (const folder of [dir, records]) await syncDirectory(folder)
  return true
}

async function giveName(
  dir: string,
  staged: string,
  ours: Stats,
  file: StoredFile,
  rewrite: () => Promise<void>,
): Promise<boolean> {
  const there = await lstat(join(dir, file.name)).catch(() => undefined)
  if (there?.ino === ours.ino && there.dev === ours.dev) return true
  // With fsync the data was on disk before the record; without it a loss of power may have torn it.
  if (!(await isWhole(staged, file))) return false
  for (let tries = 0; tries < 100; tries++) {
    try {
      linkNew(staged, join(dir, file.name))
      return true
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'EEXIST') throw error
      file.name = alternativeName(file.sentAs)
      await rewrite()
    }
  }
  return false
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
