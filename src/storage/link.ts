import { linkSync, lstatSync, renameSync, type Stats } from 'node:fs'

/** Gives a file its name, and it keeps the old one, too; EEXIST, and nothing done, where the name is taken. */
export function linkNew(file: string, target: string, hasLinks: boolean): void {
  if (hasLinks) return linkSync(file, target)
  // FAT, exFAT, Android's storage and some network file systems have no hard links: the file moves. Only a
  // look before protects the name there: another program that takes it in between loses its file.
  if (exists(target)) throw Object.assign(new Error('exists'), { code: 'EEXIST' })
  renameSync(file, target)
}

export function exists(path: string): boolean {
  return look(path) !== undefined
}

/** What is at a path, a link itself; undefined where nothing is. */
export function look(path: string): Stats | undefined {
  return lstatSync(path, { throwIfNoEntry: false })
}

/** Whether both are of one file, by whatever names. */
export function isSame(a: Stats | undefined, b: Stats | undefined): boolean {
  return a !== undefined && b !== undefined && a.ino === b.ino && a.dev === b.dev
}
