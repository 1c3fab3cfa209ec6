import { UploadError } from '../errors.ts'
import { type FieldError, TITLE_MAX } from '../protocol.ts'
import type { StagedFile } from '../storage/storage.ts'
import { plural } from '../units.ts'

export interface FormRules {
  /** Whether a title must be given; what is given is always checked. True by default. */
  titleRequired?: boolean
  /** Whether files may be empty. False by default. */
  allowEmpty?: boolean
}

const TITLE_FIELD = 'title'
/** The tutorial's, and so Django's, name. */
export const CSRF_FIELD = 'csrfmiddlewaretoken'
/** Announces the charset of the others (RFC 7578, 4.6). */
export const CHARSET_FIELD = '_charset_'
/** The form's own: fields whatever media type they are sent with. */
export const OWN_FIELDS: ReadonlySet<string> = new Set([TITLE_FIELD, CSRF_FIELD, CHARSET_FIELD])

/**
 * What is kept of the fields beside the title that counts: all but the token, which is a secret; undefined for
 * none. Titles before the last are among them, as nothing of a form is dropped in silence.
 */
export function keptFields(
  fields: ReadonlyMap<string, readonly string[]>,
): Record<string, string[]> | undefined {
  const kept: [string, string[]][] = []
  for (const [name, values] of fields) {
    const rest = name === TITLE_FIELD ? values.slice(0, -1) : values.slice()
    if (name !== CSRF_FIELD && rest.length > 0) kept.push([name, rest])
  }
  return kept.length > 0 ? Object.fromEntries(kept) : undefined
}

const REQUIRED: FieldError = { message: 'This field is required.', code: 'required' }

/** Which of several files an error is about; with one file there is no question. */
interface FileError extends FieldError {
  file?: string
}

/**
 * Django's rules for the form's two fields, title and file, and its words. Returns the title, stripped;
 * throws `invalid_form` with the errors of both fields, and of every file, at once. The detail also says
 * what did arrive where something is missing. `blanks` are the fields of parts that are no files, as they
 * came empty and without a name.
 */
export function checkForm(
  fields: ReadonlyMap<string, readonly string[]>,
  files: readonly Pick<StagedFile, 'field' | 'name' | 'size'>[],
  rules: FormRules = {},
  blanks: readonly string[] = [],
): string {
  const title = (fields.get(TITLE_FIELD)?.at(-1) ?? '').trim()
  // A Map: field names come from the client, and `__proto__` is one.
  const errors = new Map<string, FileError[]>()
  const hints = new Map<string, string>()
  const titleErrors = checkTitle(title, rules.titleRequired ?? true)
  if (titleErrors.length > 0) errors.set(TITLE_FIELD, titleErrors)
  if (title === '') hints.set(TITLE_FIELD, whyNoTitle(fields, files))
  if (files.length === 0) {
    errors.set('file', [REQUIRED])
    hints.set('file', whyNoFile(fields, blanks))
  }
  for (const { field, name, size } of rules.allowEmpty ? [] : files) {
    if (size > 0) continue
    const error = {
      message: 'The submitted file is empty.',
      code: 'empty',
      ...(files.length > 1 && { file: name }),
    }
    hints.set(field, ' A server that is started with --allow-empty takes it.')
    const list = errors.get(field)
    if (list) list.push(error)
    else errors.set(field, [error])
  }
  if (errors.size === 0) return title
  const words = ({ message, file }: FileError) => (file === undefined ? message : `${file}: ${message}`)
  const detail = Array.from(
    errors,
    ([field, list]) => `${field}: ${list.map(words).join(' ')}${hints.get(field) ?? ''}`,
  ).join(' ')
  throw new UploadError('invalid_form', detail, { errors: Object.fromEntries(errors) })
}

function whyNoTitle(
  fields: ReadonlyMap<string, readonly string[]>,
  files: readonly Pick<StagedFile, 'field'>[],
): string {
  if (fields.has(TITLE_FIELD)) return ' What came under that name is blank.'
  return files.some(({ field }) => field === TITLE_FIELD) ? ' What came under that name is a file.' : ''
}

function whyNoFile(fields: ReadonlyMap<string, readonly string[]>, blanks: readonly string[]): string {
  const text = fields.get('file')?.at(-1)
  if (text !== undefined) {
    const size = plural(Buffer.byteLength(text), 'byte')
    return ` What came under that name is text, ${size}: a file has a filename, or a Content-Type other than text.`
  }
  const [blank] = blanks
  return blank === undefined ? '' : ` The part ${blank} is empty and has no filename: no file was chosen.`
}

function checkTitle(title: string, required: boolean): FieldError[] {
  if (title === '') return required ? [REQUIRED] : []
  const errors: FieldError[] = []
  const length = [...title].length
  if (length > TITLE_MAX) {
    const message = `Ensure this value has at most ${TITLE_MAX} characters (it has ${length}).`
    errors.push({ message, code: 'max_length' })
  }
  if (title.includes('\0')) {
    errors.push({ message: 'Null characters are not allowed.', code: 'null_characters_not_allowed' })
  }
  return errors
}
