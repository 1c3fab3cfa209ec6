/** Quantities as people write and read them. Sizes are bytes, durations milliseconds. The page has this file, too: it imports nothing. */

/** What a timer of node's can wait, 24.8 days: of more it makes 1 ms. */
export const DURATION_MAX = 2 ** 31 - 1

const SIZE_UNITS: Record<string, number> = {
  '': 1,
  b: 1,
  k: 1024,
  kb: 1000,
  kib: 1024,
  m: 1024 ** 2,
  mb: 1000 ** 2,
  mib: 1024 ** 2,
  g: 1024 ** 3,
  gb: 1000 ** 3,
  gib: 1024 ** 3,
  t: 1024 ** 4,
  tb: 1000 ** 4,
  tib: 1024 ** 4,
}

const DURATION_UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** `2.5mb` is 2,500,000, `1gib` is 1,073,741,824, `2621440` is itself. Undefined if it is not a size. */
export function parseSize(text: string): number | undefined {
  return parseQuantity(text, SIZE_UNITS)
}

/** `30s`, `1.5m`, `250ms`; a number needs its unit, but `0` stands alone. Undefined if it is not a duration. */
export function parseDuration(text: string): number | undefined {
  return text.trim() === '0' ? 0 : parseQuantity(text, DURATION_UNITS)
}

function parseQuantity(text: string, units: Record<string, number>): number | undefined {
  const match = /^(\d+(?:\.\d+)?) ?([a-z]*)$/i.exec(text.trim())
  const unit = match?.[2]?.toLowerCase() ?? ''
  if (!match || !Object.hasOwn(units, unit)) return undefined
  const value = Math.round(Number(match[1]) * (units[unit] as number))
  return Number.isSafeInteger(value) ? value : undefined
}

const BINARY = { step: 1024, names: ['B', 'KiB', 'MiB', 'GiB', 'TiB'] }
const DECIMAL = { step: 1000, names: ['B', 'kB', 'MB', 'GB', 'TB'] }

/** Three significant digits in binary units: `0 B`, `1.00 KiB`, `853 MiB`. */
export function formatSize(bytes: number, { step, names } = BINARY): string {
  if (bytes < step) return `${Math.floor(bytes)} B`
  let value = bytes
  let unit = 0
  // 999.5 would round to 1000: it belongs to the next unit.
  while (value >= 999.5 && unit < 4) {
    value /= step
    unit++
  }
  const digits = value < 9.995 ? 2 : value < 99.95 ? 1 : 0
  return `${value.toFixed(digits)} ${names[unit]}`
}

/** The same in the units that people know from their own machine: `853 MB`; not broken at a line's end. */
export function formatSizePlainly(bytes: number): string {
  return formatSize(bytes, DECIMAL).replace(' ', '\u00a0')
}

/** A limit for people: what it says is never more than what is allowed, so `17.1 GB` for 16 GiB. */
export function formatLimit(bytes: number): string {
  const digit = 10 ** Math.max(0, String(Math.floor(bytes)).length - 3)
  return formatSizePlainly(Math.floor(bytes / digit) * digit).replace(/\.0+(?=\D)/, '')
}

/** `35 ms`, `1.2 s`, `2m05s`, `3h07m`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`
  const seconds = Math.round(ms / 1000)
  const two = (n: number) => String(n).padStart(2, '0')
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${two(seconds % 60)}s`
  const minutes = Math.floor(seconds / 60)
  return `${Math.floor(minutes / 60)}h${two(minutes % 60)}m`
}

/** `1 file is`, `2 files are`, for what comes behind the noun: `1 file of yours is`. */
export function isOrAre(count: number): string {
  return count === 1 ? 'is' : 'are'
}

/** `1 file`, `2 files`. */
export function plural(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`
}
