import { TextDecoder } from 'node:util'

const decoders = new Map<string, TextDecoder>()
const DECODERS_MAX = 64

/** What reads differently from one charset to another: anything but ASCII, and the escapes of ISO-2022-JP. */
const TELLING = /[^\x00-\x1a\x1c-\x7f]/

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
    return decoderOf(charset)?.decode(Buffer.from(bytes, 'latin1'))
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
