import { linkSync, lstatSync, renameSync, type Stats } from 'node:fs'

const NO_HARD_LINKS = new Set(['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS'])

/**
 * Gives a file its name; EEXIST, and nothing done, where the name is taken. It keeps the old one, too;
 * where the file system has no hard links it is moved, and the file's Stats are returned.
 */
export function linkNew(file: string, target: string): Stats | undefined {
  try {
    linkSync(file, target)
    return undefined
  } catch (error) {
    if (!NO_HARD_LINKS.has(String((error as NodeJS.ErrnoException).code))) throw error
    // FAT, exFAT and some network file systems have no hard links. Only a look before the rename
    // protects the name there: another program that takes it in between loses its file.
    if (exists(target)) throw Object.assign(new Error('exists'), { code: 'EEXIST' })
    const moved = lstatSync(file)
    renameSync(file, target)
    return moved
  }
}

export function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined
}
