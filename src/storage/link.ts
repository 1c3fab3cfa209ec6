import { linkSync, lstatSync, renameSync } from 'node:fs'

const NO_HARD_LINKS = new Set(['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS'])

/** Gives a file its name. Whether it keeps the old one, too; EEXIST, and nothing done, where the name is taken. */
export function linkNew(file: string, target: string): boolean {
  try {
    linkSync(file, target)
    return true
  } catch (error) {
    if (!NO_HARD_LINKS.has(String((error as NodeJS.ErrnoException).code))) throw error
    // FAT, exFAT and some network file systems have no hard links. Only a look before the rename
    // protects the name there: another program that takes it in between loses its file.
    if (exists(target)) throw Object.assign(new Error('exists'), { code: 'EEXIST' })
    renameSync(file, target)
    return false
  }
}

export function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined
}
