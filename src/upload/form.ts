import { UploadError } from '../errors.ts'
import { type FieldError, TITLE_MAX } from '../protocol.ts'
import type { StagedFile } from '../storage/storage.ts'

export interface FormRules {
  /** Whether a title must be given; what is given is always checked. True by default. */
  titleRequired?: boolean
}

const REQUIRED: FieldError = { message: 'This field is required.', code: 'required' }

/**
 * Django's rules for the form's two fields, title and file, and its words. Returns the title, stripped;
 * throws `invalid_form` with the errors of both fields at once.
 */
export function checkForm(
  fields: ReadonlyMap<string, readonly string[]>,
  files: readonly Pick<StagedFile, 'field' | 'size'>[],
  rules: FormRules = {},
): string {
  const title = (fields.get('title')?.at(-1) ?? '').trim()
  // A Map: field names come from the client, and `__proto__` is one.
  const errors = new Map<string, FieldError[]>()
  const titleErrors = checkTitle(title, rules.titleRequired ?? true)
  if (titleErrors.length > 0) errors.set('title', titleErrors)
  if (files.length === 0) errors.set('file', [REQUIRED])
  for (const { field, size } of files) {
    if (size === 0) errors.set(field, [{ message: 'The submitted file is empty.', code: 'empty' }])
  }
  if (errors.size === 0) return title
  const messages = (list: FieldError[]) => list.map(error => error.message).join(' ')
  const detail = Array.from(errors, ([field, list]) => `${field}: ${messages(list)}`).join(' ')
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
