import { UploadError } from '../errors.ts'
import { type FieldError, TITLE_MAX } from '../protocol.ts'
import type { StagedFile } from '../storage/storage.ts'

export interface FormRules {
  /** Whether a title must be given; what is given is always checked. True by default. */
  titleRequired?: boolean
}

const REQUIRED: FieldError = { message: 'This field is required.', code: 'required' }

/** Which of several files an error is about; with one file there is no question. */
interface FileError extends FieldError {
  file?: string
}

/**
 * Django's rules for the form's two fields, title and file, and its words. Returns the title, stripped;
 * throws `invalid_form` with the errors of both fields, and of every file, at once.
 */
export function checkForm(
  fields: ReadonlyMap<string, readonly string[]>,
  files: readonly Pick<StagedFile, 'field' | 'name' | 'size'>[],
  rules: FormRules = {},
): string {
  const title = (fields.get('title')?.at(-1) ?? '').trim()
  // A Map: field names come from the client, and `__proto__` is one.
  const errors = new Map<string, FileError[]>()
  const titleErrors = checkTitle(title, rules.titleRequired ?? true)
  if (titleErrors.length > 0) errors.set('title', titleErrors)
  if (files.length === 0) errors.set('file', [REQUIRED])
  for (const { field, name, size } of files) {
    if (size > 0) continue
    const error = {
      message: 'The submitted file is empty.',
      code: 'empty',
      ...(files.length > 1 && { file: name }),
    }
    const list = errors.get(field)
    if (list) list.push(error)
    else errors.set(field, [error])
  }
  if (errors.size === 0) return title
  const words = ({ message, file }: FileError) => (file === undefined ? message : `${file}: ${message}`)
  const detail = Array.from(errors, ([field, list]) => `${field}: ${list.map(words).join(' ')}`).join(' ')
  throw new UploadError('invalid_form', detail, { errors: Object.fromEntries(errors) })
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
