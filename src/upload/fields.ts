import { decode, isCharset, isFormCharset, isPlain } from './charset.ts'
import { CHARSET_FIELD } from './form.ts'
import { malformed } from './form-parser.ts'

/** A value that was read by a guess, and its bytes, one a character. */
interface Guess {
  readonly name: string
  readonly values: string[]
  readonly place: number
  readonly bytes: string
}

/**
 * The fields of one form, as text. A value is in the charset that its part announces, or the form in its field
 * `_charset_` (RFC 7578, 4.6), which may come last, or the request; in UTF-8 where none does.
 */
export class FormFields {
  /** By name, in order of arrival. What a later `_charset_` may change is read as it can be until then. */
  readonly values = new Map<string, string[]>()
  readonly #guesses: Guess[] = []
  #charset: string | undefined

  /** `charset`: what the request announces. */
  constructor(charset: string | undefined) {
    this.#charset = charset
  }

  /** Bytes are given one a character. */
  add(name: string, bytes: string, charset: string | undefined): void {
    let values = this.values.get(name)
    if (!values) {
      values = []
      this.values.set(name, values)
    }
    if (charset !== undefined) values.push(announced(name, bytes, charset))
    else if (isPlain(bytes)) values.push(bytes)
    else {
      this.#guesses.push({ name, values, place: values.length, bytes })
      values.push(decode(bytes, this.#charset) ?? Buffer.from(bytes, 'latin1').toString())
    }
    // Left empty by whoever is no browser, it announces nothing.
    if (name === CHARSET_FIELD) this.#charset = bytes.trim() || this.#charset
  }

  /** All are there. Throws a `malformed_body` that names a field whose bytes are not in the form's charset. */
  end(): void {
    const charset = this.#charset
    // Where all is ASCII, too: in UTF-7, say, that is other text.
    if (charset !== undefined && !isFormCharset(charset)) throw unknown('the form', charset)
    for (const { name, values, place, bytes } of this.#guesses) {
      values[place] = charset === undefined ? utf8(name, bytes) : announced(name, bytes, charset)
    }
  }
}

function utf8(name: string, bytes: string): string {
  const text = decode(bytes)
  if (text !== undefined) return text
  throw malformed(`the field ${name} is not in UTF-8, and no other charset is announced`)
}

function announced(name: string, bytes: string, charset: string): string {
  if (!isCharset(charset)) throw unknown(`the field ${name}`, charset)
  const text = decode(bytes, charset)
  if (text !== undefined) return text
  throw malformed(`the field ${name} is not in ${charset}, which is announced for it`)
}

function unknown(what: string, charset: string): Error {
  return malformed(
    `${what} announces a charset that is not known here: ${JSON.stringify(charset.slice(0, 100))}`,
  )
}
