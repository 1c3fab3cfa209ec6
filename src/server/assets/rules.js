/** What the server takes, known before anything is sent, and what is said of what it does not take. */
import { byId } from './elements.js'

/** As the server wrote them into the form; a limit that is none is null. */
export const rules = JSON.parse(byId('upload').dataset.rules)

/** Why a file would be refused, in words; undefined where it may be taken. */
export function refusal(file) {
  const { bodyMax, nameMax, allowEmpty } = rules
  if (file.size === 0 && !allowEmpty) return rules.words['file.empty']
  if (file.size > (bodyMax ?? Number.POSITIVE_INFINITY)) return rules.words.body_too_large
  const nameBytes = new TextEncoder().encode(file.name).length
  if (nameBytes > (nameMax ?? Number.POSITIVE_INFINITY)) return rules.words.name_too_long
  if (!isOfKind(file, rules.kinds)) return rules.words.type_not_allowed
  return undefined
}

/** The server's own look at media type and extension; see src/upload/kinds.ts. */
function isOfKind({ name, type }, { allowTypes, denyTypes, allowExtensions, denyExtensions }) {
  const lower = text => text.toLowerCase()
  const bare = extension => lower(extension).replace(/^\./, '')
  // What a browser declares where it knows of none.
  const own = lower(type || 'application/octet-stream')
  const matches = pattern => {
    const wanted = lower(pattern)
    return wanted === own || (wanted.endsWith('/*') && own.startsWith(wanted.slice(0, -1)))
  }
  const extensions = lower(name).split('.').slice(1)
  const last = /[^.]\.([^.]*)$/.exec(lower(name))?.[1] ?? ''
  return (
    !denyTypes.some(matches) &&
    (allowTypes.length === 0 || allowTypes.some(matches)) &&
    !denyExtensions.some(each => extensions.includes(bare(each))) &&
    (allowExtensions.length === 0 || allowExtensions.some(each => bare(each) === last))
  )
}

/** The title's error in words; empty where it has none. */
export function titleError(title) {
  if (title === '' && rules.titleRequired) return rules.words['title.required']
  return [...title].length > rules.titleMax ? rules.words['title.max_length'] : ''
}

/** A form's errors of one field, in words. */
export function inWords(field, errors) {
  return errors.map(({ code, message }) => rules.words[`${field}.${code}`] ?? message).join(' ')
}

/** A refusal in words: ours where the page has some, else the server's, which are a clause and may begin with a name. */
export function refused({ code, detail }) {
  return rules.words[code] ?? `Not stored: ${detail}`
}

/** An answer that is not the server's own: a proxy on the way to it gave it. */
export function refusedOnTheWay(status) {
  if (status === 413) {
    return 'Too large for a proxy on the way to this server. Whoever runs the server can raise the limit there.'
  }
  if (status === 429 || status >= 500) return `The server cannot be reached just now (HTTP ${status}).`
  if (status >= 400) return `A proxy on the way to this server refused it (HTTP ${status}).`
  return 'Something on the way to this server answered in its place. Reload this page.'
}

/** Whether another try may help: not where the server, or a proxy, has judged what was sent. */
export function isWorthAnotherTry(status) {
  return status === 408 || status === 429 || status >= 500
}
