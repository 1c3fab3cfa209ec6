import { UploadError } from './errors.ts'

/** Every name of a type. The compiler sees to it that none is missing and none too many. */
export type NamesOf<T> = Record<keyof T, true>

/**
 * Refuses a name that nobody would read: a limit under a wrong name is no limit, and nothing would tell.
 * `where` is what the message begins with: `createServer`, `createServer, limits`.
 */
export function checkNames(where: string, given: object, known: object): void {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(known, name)) throw unknownName(where, name, Object.keys(known))
  }
}

/** `prefix` is what all the names begin with. */
export function unknownName(where: string, name: string, known: readonly string[], prefix = ''): UploadError {
  const [nearest = ''] = known.toSorted((a, b) => edits(name, a) - edits(name, b))
  // With more than half of its letters to be changed it is another word.
  const isNear = edits(name, nearest) <= (name.length - prefix.length) / 2
  const hint = isNear ? `; the nearest is ${nearest}` : ''
  return new UploadError('usage', `${where}: ${name} is not known${hint}`)
}

/** How many letters are to be added, removed, changed or swapped with the next to make one of the other; case is none. */
export function edits(one: string, other: string): number {
  const a = one.toLowerCase()
  const b = other.toLowerCase()
  // Of the row before the last, the last and this one, each by the letters of `b`: Damerau's and Levenshtein's.
  let [before, last]: number[][] = [[], Array.from({ length: b.length + 1 }, (_, j) => j)]
  for (let i = 0; i < a.length; i++) {
    const row = [i + 1]
    for (let j = 0; j < b.length; j++) {
      const swapped = a[i] === b[j - 1] && a[i - 1] === b[j] ? Number(before?.[j - 1]) + 1 : Infinity
      const changed = Number(last?.[j]) + (a[i] === b[j] ? 0 : 1)
      row.push(Math.min(Number(last?.[j + 1]) + 1, Number(row[j]) + 1, changed, swapped))
    }
    ;[before, last] = [last, row]
  }
  return Number(last?.at(-1))
}
