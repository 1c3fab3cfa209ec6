import { TextDecoder } from 'node:util'

const decoders = new Map<string, TextDecoder>()
const DECODERS_MAX = 64

/** What reads differently from one charset to another: anything but ASCII, and the escapes of ISO-2022-JP. */
const TELLING = /[^\x00-\x1a\x1c-\x7f]/

/**
 * 0x80 to 0x9f in windows-1252, which the WHATWG also calls iso-8859-1 and us-ascii: node's own decoder makes
 * controls of them in node 20. All other bytes are their own code points.
 */
const WINDOWS_1252 = '€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ'

/** Whether the bytes, one a character, are the same text in every charset that forms are sent in. */
export function isPlain(bytes: string): boolean {
  return !TELLING.test(bytes)
}

/** Whether it is the label of an encoding that the WHATWG's Encoding Standard knows. */
export function isCharset(label: string): boolean {
  return decoderOf(label) !== undefined
}

/** Whether a form can be sent in it: its own ASCII, the boundaries, would not be ASCII in UTF-16. */
export function isFormCharset(label: string): boolean {
  return decoderOf(label)?.encoding.startsWith('utf-16') === false
}

/** The text of bytes, one a character; undefined where they are none in this charset, or it is unknown. */
export function decode(bytes: string, charset = 'utf-8'): string | undefined {
  try {
    const decoder = decoderOf(charset)
    if (decoder?.encoding === 'windows-1252') {
      return bytes.replace(/[\x80-\x9f]/g, byte => WINDOWS_1252.charAt(byte.charCodeAt(0) - 0x80))
    }
    return decoder?.decode(Buffer.from(bytes, 'latin1'))
  } catch {
    return undefined
  }
}

function decoderOf(label: string): TextDecoder | undefined {
  const known = decoders.get(label)
  if (known) return known
  try {
    // With its byte order mark: what was sent is what is kept.
    const decoder = new TextDecoder(label, { fatal: true, ignoreBOM: true })
    if (decoders.size < DECODERS_MAX) decoders.set(label, decoder)
    return decoder
  } catch {
    return undefined
  }
}
