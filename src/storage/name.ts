import { randomInt } from 'node:crypto'
import { extname } from 'node:path'

/** What ext4, XFS, APFS and tmpfs allow for one name: bytes, not characters. */
export const NAME_MAX_BYTES = 255

const ALPHABET = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'

/** A free variant of a taken name in Django's form: `a.tar.gz` → `a.tar_BlJKjV4.gz`, `.hidden` → `.hidden_5TAMQNW`. */
export function alternativeName(name: string, max = NAME_MAX_BYTES): string {
  let suffix = '_'
  for (let i = 0; i < 7; i++) suffix += ALPHABET[randomInt(ALPHABET.length)]
  return fitName(name, suffix, max)
}

/** The name with `suffix` before its extension, its stem cut so that all of it fits in `max` bytes of UTF-8. */
export function fitName(name: string, suffix = '', max = NAME_MAX_BYTES): string {
  let extension = extname(name)
  // An "extension" too long to keep is no extension.
  if (Buffer.byteLength(extension) > max / 2) extension = ''
  const stem = name.slice(0, name.length - extension.length)
  const room = max - Buffer.byteLength(suffix) - Buffer.byteLength(extension)
  return cutBytes(stem, room) + suffix + extension
}

/** The longest beginning of whole characters that fits in `bytes` of UTF-8. */
function cutBytes(text: string, bytes: number): string {
  if (Buffer.byteLength(text) <= bytes) return text
  let used = 0
  let cut = ''
  for (const character of text) {
    used += Buffer.byteLength(character)
    if (used > bytes) break
    cut += character
  }
  return cut
}

const SEPARATORS = process.platform === 'win32' ? /[/\\\0]/ : /[/\0]/

/** True for a name that is one plain component of a path, and nothing else. */
export function isPlainName(name: string): boolean {
  return (
    name !== '' &&
    name !== '.' &&
    name !== '..' &&
    !SEPARATORS.test(name) &&
    Buffer.byteLength(name) <= NAME_MAX_BYTES
  )
}
