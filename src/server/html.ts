/** A piece of HTML, as opposed to text that has yet to become some. Only `html` makes one. */
export class Markup {
  readonly #text: string

  private constructor(text: string) {
    this.#text = text
  }

  /** Everything inserted is escaped, except what is markup already: text from a client cannot forget it. */
  static tag(pieces: TemplateStringsArray, ...values: readonly Inserted[]): Markup {
    const inserted = values.map(value => render(value))
    return new Markup(pieces.map((piece, i) => piece + (inserted[i] ?? '')).join(''))
  }

  toString(): string {
    return this.#text
  }
}

export const html = Markup.tag

/** `undefined` and `false` insert nothing, so that a condition can stand in the template. */
export type Inserted = string | number | false | undefined | Markup | readonly Markup[]

const ESCAPES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

function render(value: Inserted): string {
  if (value === undefined || value === false) return ''
  if (value instanceof Markup) return value.toString()
  if (typeof value === 'object') return value.join('')
  return String(value).replace(/[&<>"']/g, character => ESCAPES[character] as string)
}
