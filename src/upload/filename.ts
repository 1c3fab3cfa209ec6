import { fitName } from '../storage/name.ts'

const PRINTABLE = /^[\x20-\x7e]*$/

// Line and paragraph separators, controls, lone surrogates and private use are no part of a name. Format characters
// (bidi overrides) and whatever else Unicode has renderers ignore (Default_Ignorable_Code_Point: zero-width
// spaces, the Hangul fillers) make two names look like one; Python's str.isprintable(), and so Django, drops most of them.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{DI}]/gu

/** Blanks that are no white space to JavaScript: the Braille blank, a musical one, and fillers of two old scripts. */
const BLANK = '\\s\\u2800\\u{1d159}\\u{13441}\\u{13442}\\u{16fe4}'
// The lookbehind keeps it linear: a run of blanks within a name is tried from its beginning alone.
const OUTER_BLANKS = new RegExp(`^[${BLANK}]+|(?<![${BLANK}])[${BLANK}]+$`, 'gu')

// What is invisible and still tells: joiners, which Persian, the scripts of India and emoji are spelled with, and
// variation selectors (VS). They stay behind, joiners between, what can be seen and is not ASCII, which is neither
// joined nor varied: so none makes a name of nothing or another extension of `php`. A keycap has its selector.
const SEEN = `[^\\p{ASCII}\\p{Z}\\p{Cc}\\p{Cf}\\p{Cs}\\p{Co}\\p{DI}${BLANK}]`
const TELLING = new RegExp(
  `(?<=${SEEN}\\p{VS}?)[\\u200c\\u200d](?=${SEEN})|(?<=${SEEN})\\p{VS}|\\ufe0f(?=\\u20e3)`,
  'gu',
)

/**
 * The base name of what a client calls its file, by Django's rules but cut by UTF-8 bytes: the part after the last
 * `/` or, unless the name has it, `\`, without what is invisible and without blanks around it, at most 255 bytes
 * with the extension kept. Undefined for names that mean no file: '', '.' and '..'.
 */
export function cleanFileName(sent: string, hasBackslash = false): string | undefined {
  const name = trimBlanks(visible(sent.replace(hasBackslash ? /^.*\//s : /^.*[/\\]/s, '')))
  if (name === '' || name === '.' || name === '..') return undefined
  const cut = fitName(name)
  // What a cut leaves at its edge may join nothing any more.
  return cut === name ? name : trimBlanks(visible(cut))
}

/** The text without blanks around it, whatever they are. */
export function trimBlanks(text: string): string {
  return text.replace(OUTER_BLANKS, '')
}

/** The text without what is invisible in it and tells nothing. */
function visible(text: string): string {
  if (PRINTABLE.test(text)) return text
  const telling = new Set(Array.from(text.matchAll(TELLING), ({ index }) => index))
  return text.replace(INVISIBLE, (character, at: number) => (telling.has(at) ? character : ''))
}

/** What files of a type are called; of the types that come without a name often enough to be told apart. */
const EXTENSIONS: Readonly<Record<string, string>> = {
  'application/gzip': 'gz',
  'application/json': 'json',
  'application/msword': 'doc',
  'application/pdf': 'pdf',
  'application/vnd.ms-excel': 'xls',
  'application/vnd.openxmlformats-officedocument.presentationml.presentation': 'pptx',
  'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet': 'xlsx',
  'application/vnd.openxmlformats-officedocument.wordprocessingml.document': 'docx',
  'application/x-tar': 'tar',
  'application/xml': 'xml',
  'application/zip': 'zip',
  'audio/mpeg': 'mp3',
  'audio/mp4': 'm4a',
  'audio/ogg': 'ogg',
  'audio/wav': 'wav',
  'image/avif': 'avif',
  'image/gif': 'gif',
  'image/heic': 'heic',
  'image/jpeg': 'jpg',
  'image/png': 'png',
  'image/svg+xml': 'svg',
  'image/tiff': 'tif',
  'image/webp': 'webp',
  'text/csv': 'csv',
  'text/html': 'html',
  'text/plain': 'txt',
  'text/xml': 'xml',
  'video/mp4': 'mp4',
  'video/quicktime': 'mov',
  'video/webm': 'webm',
}

/** A name for a file that came without one: its field's, with an extension by its type. */
export function nameByField(field: string, type: string): string {
  const extension = `.${Object.hasOwn(EXTENSIONS, type) ? EXTENSIONS[type] : 'bin'}`
  const stem = cleanFileName(field) ?? 'file'
  return fitName(stem.endsWith(extension) ? stem : stem + extension)
}
