import { UploadError } from './errors.ts'
import { DURATION_MAX } from './units.ts'

/** What the values of a name have to be. */
export interface Rule {
  /** As a message says it: `true or false`. */
  readonly what: string
  fits(value: unknown): boolean
}

export const BOOLEAN: Rule = { what: 'true or false', fits: value => typeof value === 'boolean' }
export const QUANTITY: Rule = {
  what: 'a number, 0 or more',
  fits: value => typeof value === 'number' && value >= 0,
}
export const STRING: Rule = { what: 'a string', fits: value => typeof value === 'string' }
export const TEXT: Rule = {
  what: 'a string with something in it',
  fits: value => STRING.fits(value) && value !== '',
}
export const TEXTS: Rule = {
  what: 'an array of strings with something in them',
  fits: value => Array.isArray(value) && value.every(TEXT.fits),
}

/** Every name of a type, and a rule where its values are looked at. The compiler sees to it that none is missing and none too many. */
export type NamesOf<T> = Record<keyof T, true | Rule>

/** The names of an object, all with one rule. */
export function namesWith<T extends object>(object: T, rule: Rule): NamesOf<T> {
  return Object.fromEntries(Object.keys(object).map(name => [name, rule])) as NamesOf<T>
}

/**
 * Refuses a name that nobody would read, and a value that would be taken for another in silence: a limit under a
 * wrong name is no limit, a negative one neither, and nothing would tell. A value is not repeated, as it may be a
 * secret. `where` is what the message begins with: `createServer`, `createServer, limits`.
 */
export function checkNames(where: string, given: object, known: Readonly<Record<string, true | Rule>>): void {
  for (const [name, value] of Object.entries(given)) {
    const rule = Object.hasOwn(known, name) ? known[name] : undefined
    if (!rule) throw unknownName(where, name, Object.keys(known))
    if (rule !== true && value !== undefined && !rule.fits(value))
      throw new UploadError('usage', `${where}: ${name} is not ${rule.what}`)
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

/** Throws `usage` for what no timer can wait; undefined is a default. */
export function checkDurations(where: string, given: Record<string, number | undefined>): void {
  for (const [name, ms] of Object.entries(given)) {
    if (ms !== undefined && !(ms >= 0 && ms <= DURATION_MAX))
      throw new UploadError('usage', `${where}: ${name} ${ms} is not of 0 to ${DURATION_MAX} ms`)
  }
}
