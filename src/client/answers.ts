/**
 * What a stranger answered, as what the protocol names, and nothing else of it: no depth, no kind and no
 * number that it does not have. Every word of it goes through `hide`, for it may repeat our secrets.
 */
import type { FieldError, Problem, Progress, Receipt, StoredFile } from '../protocol.ts'

type Hide = (text: string) => string

/** Throws where it is none. */
export function readProgress(answer: string, hide: Hide): Progress {
  const { state, received, size, status, code, detail, phase } = objectOf(answer)
  const counts = { received: count(received) ?? 0, size: count(size) ?? 0 }
  if (state === 'starting') return { state }
  // nginx's own module sends neither number with `done` and `error`, and of an error its status alone.
  if (state === 'done') return { state, ...counts }
  if (state === 'error') {
    const is = count(status) ?? 0
    const words = { code: text(code, hide) ?? '', detail: text(detail, hide) ?? `HTTP ${is}` }
    return { state, status: is, ...words, ...counts }
  }
  if (state !== 'uploading' || count(received) === undefined) throw new Error('no progress answer')
  return { state, ...counts, phase: phase === 'storing' ? phase : 'receiving' }
}

/** Undefined where it is none. */
export function readReceipt(answer: string, hide: Hide): Receipt | undefined {
  const { id, title, fields, contentDigest, files } = objectOf(answer)
  const stored = Array.isArray(files) ? files.map(file => readStored(Object(file), hide)) : []
  if (!stored[0]) return undefined
  return {
    id: text(id, hide) ?? '',
    title: text(title, hide) ?? '',
    ...some(
      'fields',
      lists(fields, hide, value => text(value, hide)),
    ),
    ...some('contentDigest', text(contentDigest, hide)),
    files: stored.filter(file => file !== undefined),
  }
}

/** What of a problem is told. */
export function readProblem(
  answer: string,
  hide: Hide,
): Partial<Pick<Problem, 'code' | 'detail' | 'errors'>> {
  const { code, detail, errors } = objectOf(answer)
  const error = (each: unknown): FieldError | undefined => {
    const { message, code } = Object(each) as Record<string, unknown>
    const told = text(message, hide)
    return told === undefined ? undefined : { message: told, code: text(code, hide) ?? '' }
  }
  return {
    ...some('code', text(code, hide)),
    ...some('detail', text(detail, hide)),
    ...some('errors', lists(errors, hide, error)),
  }
}

function readStored(file: Record<string, unknown>, hide: Hide): StoredFile | undefined {
  const { field, name, sentAs, type, handler, arrived, contentDigest } = file
  const [called, stored] = [text(name, hide), counted(file, hide)]
  const given = arrived ? counted(Object(arrived), hide) : undefined
  if (called === undefined || !stored || (arrived && !given)) return undefined
  return {
    field: text(field, hide) ?? '',
    name: called,
    sentAs: text(sentAs, hide) ?? called,
    type: text(type, hide) ?? '',
    handler: text(handler, hide) ?? '',
    ...stored,
    ...some('arrived', given),
    ...some('contentDigest', text(contentDigest, hide)),
  }
}

function counted({ size, sha256 }: Record<string, unknown>, hide: Hide) {
  const [bytes, digest] = [count(size), text(sha256, hide)?.toLowerCase()]
  if (bytes === undefined || (sha256 !== undefined && digest === undefined)) return undefined
  return { size: bytes, ...some('sha256', digest) }
}

/** Lists by name; those of nothing that we know are left out. */
function lists<T>(value: unknown, hide: Hide, read: (item: unknown) => T | undefined) {
  const named: [string, T[]][] = []
  for (const [name, list] of Object.entries(Object(value))) {
    const items = Array.isArray(list) ? list.map(read).filter(item => item !== undefined) : []
    if (items.length > 0) named.push([hide(name), items])
  }
  return named.length > 0 ? Object.fromEntries(named) : undefined
}

function some<K extends string, V>(name: K, value: V | undefined): { [key in K]?: V } {
  return value === undefined ? {} : ({ [name]: value } as { [key in K]: V })
}

function text(value: unknown, hide: Hide): string | undefined {
  return typeof value === 'string' ? hide(value) : undefined
}

/** JSON has 1e400, too, and that is infinite. */
function count(value: unknown): number | undefined {
  return Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : undefined
}

/** An object's fields; none of what is no object. V8's own words for what is no JSON repeat some of it. */
function objectOf(json: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(json))
  } catch {
    return {}
  }
}
