import { fitName } from '../storage/name.ts'

// Controls, format characters such as bidi overrides, lone surrogates, private use and every separator
// but the space: what Python's str.isprintable(), and so Django, drops. It drops unassigned code points
// too; they are harmless, and the emoji of next year are among them.
const UNPRINTABLE = /(?! )[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Z}]/gu

/**
 * The base name of what a client calls its file, by Django's rules but cut by UTF-8 bytes: the part
 * after the last `/` or `\`, without unprintable characters, at most 255 bytes with the extension
 * kept. Undefined for names that mean no file: '', '.' and '..'.
 */
export function cleanFileName(sent: string): string | undefined {
  // Browsers and curl send a quote as %22 (WHATWG HTML, multipart/form-data encoding), which no parser decodes.
  const name = sent
    .replace(/%22/g, '"')
    .replace(/^.*[/\\]/s, '')
    .replace(UNPRINTABLE, '')
    .trim()
  return name === '' || name === '.' || name === '..' ? undefined : fitName(name)
}
