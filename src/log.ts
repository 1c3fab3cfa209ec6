/** A logger over a given stream: one line an event, as text for people or as JSON for machines. */

export type LogFormat = 'text' | 'json'
/** From the fewest lines to the most. */
export const LOG_LEVELS = ['error', 'warn', 'info', 'debug'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]
export interface LogFields {
  [name: string]: string | number | boolean | undefined | readonly LogFields[]
}

export interface Logger {
  /** What is of no interest while everything is well: polls and probes. */
  debug(event: string, fields?: LogFields): void
  info(event: string, fields?: LogFields): void
  warn(event: string, fields?: LogFields): void
  error(event: string, fields?: LogFields): void
}

/** Where lines go: `process.stderr`, a file stream, a test's array. */
export interface LineSink {
  write(text: string): unknown
}

export function createLogger(options: {
  stream: LineSink
  format?: LogFormat
  /** `info` by default. */
  level?: LogLevel
  now?: () => Date
}): Logger {
  const now = options.now ?? (() => new Date())
  const levels = LOG_LEVELS.slice(0, LOG_LEVELS.indexOf(options.level ?? 'info') + 1)
  const line = options.format === 'json' ? jsonLine : textLine
  const at =
    (level: LogLevel) =>
    (event: string, fields: LogFields = {}) => {
      if (levels.includes(level)) options.stream.write(`${line(now().toISOString(), level, event, fields)}\n`)
    }
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
}

export const silentLogger: Logger = { debug() {}, info() {}, warn() {}, error() {} }

function jsonLine(time: string, level: string, event: string, fields: LogFields): string {
  return harmlessJson({ time, level, event, ...fields })
}

/** JSON.stringify leaves bidi overrides and C1 controls raw; a log is read in terminals too. */
function harmlessJson(value: unknown): string {
  return printable(JSON.stringify(value))
}

/** What stands in a line of text as it is: printable ASCII without a space, `"`, `=` and a backslash. All else is a JSON string. */
const WORD = /^[!#-<>-[\]-~]+$/

function textLine(time: string, level: string, event: string, fields: LogFields): string {
  const parts = [time, level.toUpperCase().padEnd(5), printable(event)]
  for (const [key, value] of Object.entries(fields)) {
    if (value === undefined) continue
    const text = inText(value)
    parts.push(`${key}=${WORD.test(text) ? text : harmlessJson(text)}`)
  }
  return parts.join(' ')
}

/** `one.txt 6, two.txt 12` for several of a kind. */
function inText(value: LogFields[string]): string {
  if (typeof value !== 'object') return String(value)
  return value.map(one => Object.values(one).join(' ')).join(', ')
}

// Controls (Cc), format characters such as bidi overrides (Cf), line and paragraph separators
// (Zl, Zp) and lone surrogates (Cs): everything that can move a cursor, reorder or end a line.
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu

const PLAIN = /^[ -~]*$/

function escapeUnit(character: string): string {
  let escaped = ''
  for (let i = 0; i < character.length; i++) {
    escaped += `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`
  }
  return escaped
}

/** Text from outside, safe to show in a terminal or a log line: unprintable characters become `\uXXXX`. */
export function printable(text: string): string {
  // Nearly every text is plain, and that is quickly seen.
  if (PLAIN.test(text)) return text
  return text.replace(UNPRINTABLE, escapeUnit)
}

/** The same for text of several lines. */
export function printableLines(text: string): string {
  return /^[ -~\n]*$/.test(text) ? text : text.split('\n').map(printable).join('\n')
}

/** Text for a terminal that has no letters but ASCII's. */
export function ascii(text: string): string {
  return text
    .replaceAll('’', "'")
    .replaceAll('…', '...')
    .replace(/[^ -~\n]/gu, escapeUnit)
}
