import { decode, isPlain } from './charset.ts'
import { type WantedDigest, wantedDigests } from './content-digest.ts'
import { OWN_FIELDS } from './form.ts'

/** What the head of a part says. */
export interface PartHead {
  /** What its bytes are: a field's, a file's, or those of several files, as parts of a form within it. */
  readonly kind: 'field' | 'file' | 'files'
  /** The name of its field in the form, never empty. */
  readonly name: string
  /** As it was sent, decoded, and to be cleaned before it is used; undefined for none. */
  readonly filename: string | undefined
  /** Whether a backslash in it is one of the name's characters, and ends no folder's name. */
  readonly hasBackslash: boolean
  /** The media type, in lower case and without parameters. */
  readonly type: string
  /** The whole Content-Type, its bytes one a character; empty for none. */
  readonly contentType: string
  /** Of a field's value, where the part announces it. */
  readonly charset: string | undefined
  /** Whether its bytes come coded (RFC 2045, 6.8). */
  readonly isBase64: boolean
  readonly digests: readonly WantedDigest[] | undefined
}

/** Header lines by name in lower case, their bytes one a character. */
export type PartHeader = Readonly<Record<string, readonly string[] | undefined>>

/** Ends the form, with why this part cannot be read. */
export type Refuse = (reason: string) => never

/** What a field name or a media type may take, in bytes: they go into records, answers and logs. */
const LABEL_MAX_BYTES = 255
/** Header lines of a part. busboy leaves out those over 2000, and says nothing. */
const LINES_MAX = 100
/** As they come is all that these may say of a part's bytes; RFC 7578, 4.7 deprecates saying it. */
const PLAIN_ENCODINGS = ['7bit', '8bit', 'binary']

const TOKEN = "[\\w!#$%&'*+.^`|~-]+"
const MEDIA_TYPE = new RegExp(`^(${TOKEN}/${TOKEN})[ \\t]*(?:;|$)`)
const CHARSET = /;[ \t]*charset[ \t]*=[ \t]*(?:"([^"]*)"|([^\s;]+))/i
const DISPOSITION = new RegExp(`^(${TOKEN})[ \\t]*(?=;|$)`)
// A quoted string with its escapes (RFC 9110, 5.6.4) or, where that does not come out, with none: browsers escape
// no backslash, and `trail\` is a name. What follows a value is the next parameter or nothing.
const PARAMETER = new RegExp(
  `[ \\t]*;[ \\t]*(${TOKEN})=(?:"(?:((?:[^"\\\\]|\\\\.)*)|([^"]*))"|(${TOKEN}))(?=[ \\t]*(?:;|$))`,
  'y',
)
/** Nothing to decode: nearly all names. */
const PLAIN = /^[\x20-$&-<>-~]*$/
/** RFC 8187, 3.2.1. */
const EXTENDED = /^([^']*)'[^']*'((?:[^%]|%[0-9A-Fa-f]{2})*)$/
/** RFC 2047, 2; white space between two of them is not part of the text (6.2). */
const ENCODED_WORD =
  /=\?([^?\s*]+)(?:\*[^?\s]*)?\?([bq])\?([^?\s]*)\?=(?:\s+(?==\?[^?\s]+\?[bq]\?[^?\s]*\?=))?/gi

/** Where a head stands. */
export interface HeadPlace {
  /** What the request announces for its names; UTF-8 where it does not. */
  readonly charset: string | undefined
  /** The part whose form it is in; undefined in the form itself. */
  readonly within: PartHead | undefined
}

/**
 * Reads a part's head. A part is a file where it has a filename, an empty one too, or is declared to be anything but text: that is how
 * clients send bytes that they have no name for. The form's own fields are fields whatever their type, unless
 * they come with a name of a file.
 */
export function readPartHead(header: PartHeader, { charset, within }: HeadPlace, refuse: Refuse): PartHead {
  checkLines(header, refuse)
  const only = (name: string) => onlyOf(header, name, refuse)
  const disposition = only('content-disposition')
  if (disposition === undefined) return refuse('has no Content-Disposition')
  const parameters = readDisposition(disposition, refuse)
  const purpose = DISPOSITION.exec(disposition)?.[1]?.toLowerCase()
  // Within a part it is `attachment` or `file` (RFC 2388, 4.2), and the field's name stands outside.
  if (purpose !== 'form-data' && !within) return refuse(`has the disposition ${purpose}, not form-data`)
  const name = within?.name ?? nameOf(parameters, charset, refuse)
  const { filename, hasBackslash } = fileNameOf(parameters, charset, refuse)

  const contentType = only('content-type') ?? ''
  const type = contentType === '' ? 'text/plain' : mediaType(contentType)
  checkLabel('media type', type, refuse)
  const isForm = filename === undefined && type.startsWith('multipart/')
  if (isForm && (type !== 'multipart/mixed' || within)) return refuse(`is ${type}, which is not read here`)
  const isFile = OWN_FIELDS.has(name)
    ? filename !== undefined && filename !== ''
    : filename !== undefined || within !== undefined || !type.startsWith('text/')
  // Bytes that need decoding would be stored encoded. Only files and fields may be in base64 (RFC 2045, 6.4).
  const encoding = only('content-transfer-encoding')?.trim().toLowerCase() ?? 'binary'
  const isBase64 = encoding === 'base64' && !isForm
  if (!isBase64 && !PLAIN_ENCODINGS.includes(encoding)) {
    return refuse(`has the Content-Transfer-Encoding ${encoding}, which is not supported`)
  }
  // Not for parts (RFC 7578, 4.8), but whoever sends them means something else than these bytes.
  const coding = header['content-encoding']?.join(', ').trim() || 'identity'
  if (coding.toLowerCase() !== 'identity') refuse(`has the Content-Encoding ${coding}, which is not decoded`)
  if (header['content-range']) refuse('has a Content-Range: a file is sent whole, not in pieces')
  const digests = wantedDigests(name => header[name]?.join(', '))
  if (isForm && digests)
    return refuse('has a digest, which is compared for each file, not for several in one part')
  const kind = isForm ? 'files' : isFile ? 'file' : 'field'
  const own = charsetOf(contentType)
  return { kind, name, filename, hasBackslash, type, contentType, charset: own, isBase64, digests }
}

function checkLines(header: PartHeader, refuse: Refuse): void {
  let lines = 0
  for (const name in header) lines += header[name]?.length ?? 0
  if (lines > LINES_MAX) refuse(`has more than ${LINES_MAX} header lines`)
}

/** A header of which there is one at most. What a second one says would be left out in silence. */
function onlyOf(header: PartHeader, name: string, refuse: Refuse): string | undefined {
  const values = header[name]
  if (values && values.length > 1) refuse(`has ${values.length} headers ${name}`)
  return values?.[0]
}

function nameOf(parameters: Map<string, string>, charset: string | undefined, refuse: Refuse): string {
  const sent = parameters.get('name')
  if (!sent) return refuse('has no name')
  const name = textOf(sent, charset)
  if (name === undefined) return refuse(`has a name that is not ${charset ?? 'UTF-8'}`)
  checkLabel('name', name, refuse)
  return name
}

/** A Content-Type that is none says as little of the bytes as octet-stream does. */
function mediaType(contentType: string): string {
  return MEDIA_TYPE.exec(contentType)?.[1]?.toLowerCase() ?? 'application/octet-stream'
}

/** The charset that a Content-Type announces. */
export function charsetOf(contentType: string): string | undefined {
  const [, quoted, bare] = CHARSET.exec(contentType) ?? []
  return quoted || bare
}

function checkLabel(what: string, label: string, refuse: Refuse): void {
  const bytes = Buffer.byteLength(label)
  if (bytes > LABEL_MAX_BYTES) refuse(`has a ${what} of ${bytes} bytes, ${LABEL_MAX_BYTES} are allowed`)
}

/** The parameters, by name in lower case. */
function readDisposition(value: string, refuse: Refuse): Map<string, string> {
  const parameters = new Map<string, string>()
  let at = DISPOSITION.exec(value)?.[0].length
  if (at === undefined) return refuse('has a Content-Disposition that cannot be read')
  while (at < value.length) {
    PARAMETER.lastIndex = at
    const found = PARAMETER.exec(value)
    if (!found) {
      if (value.slice(at).trim() === '') break
      return refuse('has a Content-Disposition that cannot be read')
    }
    const [all, name = '', escaped, verbatim, bare] = found
    const key = name.toLowerCase()
    if (parameters.has(key)) refuse(`has a Content-Disposition with two parameters ${key}`)
    parameters.set(key, escaped?.replace(/\\(["\\])/g, '$1') ?? verbatim ?? bare ?? '')
    at += all.length
  }
  return parameters
}

/**
 * The best name there is: a good `filename` counts where a `filename*` beside it is broken. Who sends a path sends
 * it in both; where the plain one has no backslash, the other's is a character (`push` sends `back\slash.txt` so).
 */
function fileNameOf(
  parameters: Map<string, string>,
  charset: string | undefined,
  refuse: Refuse,
): Pick<PartHead, 'filename' | 'hasBackslash'> {
  const extended = parameters.get('filename*')
  const best = (extended === undefined ? undefined : decodeExtended(extended)) ?? continued(parameters)
  const sent = parameters.get('filename')
  // Where nothing says what the bytes are, the name is kept as far as it can be read.
  const plain = sent && (textOf(sent, charset) ?? Buffer.from(sent, 'latin1').toString())
  if (best !== undefined) {
    return { filename: best, hasBackslash: plain !== undefined && plain !== '' && !plain.includes('\\') }
  }
  const isSent = [...parameters.keys()].some(key => key.startsWith('filename*'))
  if (plain === undefined && isSent) return refuse('has a filename* that cannot be read, and no filename')
  return { filename: plain, hasBackslash: false }
}

/** RFC 2231, 3 and 4.1: `filename*0`, `filename*1*` and so on, one after the other. */
function continued(parameters: Map<string, string>): string | undefined {
  let bytes = ''
  let charset: string | undefined
  for (let i = 0; ; i++) {
    const plain = parameters.get(`filename*${i}`)
    const encoded = parameters.get(`filename*${i}*`)
    if (plain === undefined && encoded === undefined) return i === 0 ? undefined : decode(bytes, charset)
    if (plain !== undefined) bytes += plain
    else {
      // The first says the charset for all.
      const [, label, rest] = EXTENDED.exec(i === 0 ? `${encoded}` : `''${encoded}`) ?? []
      if (rest === undefined) return undefined
      charset ??= label || undefined
      bytes += percentDecoded(rest)
    }
  }
}

function decodeExtended(value: string): string | undefined {
  const [, charset, encoded] = EXTENDED.exec(value) ?? []
  return encoded === undefined ? undefined : decode(percentDecoded(encoded), charset || undefined)
}

function percentDecoded(text: string): string {
  return text.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
}

/**
 * The text of a plain parameter; undefined where its bytes are not in the charset.
 *
 * Browsers, and curl, percent-encode the quote and the line ends and nothing else, the percent sign neither
 * (WHATWG HTML, multipart/form-data encoding algorithm): those three are undone. Every other escape is the
 * client's own, and undoing it would make another name of a browser's `100%25.txt`.
 */
function textOf(bytes: string, charset: string | undefined): string | undefined {
  if (PLAIN.test(bytes)) return bytes
  const text = isPlain(bytes) ? bytes : decode(bytes, charset)
  return text
    ?.replace(/%22/g, '"')
    .replace(/%0D/gi, '\r')
    .replace(/%0A/gi, '\n')
    .replace(ENCODED_WORD, decodeWord)
}

/** RFC 2047, as .NET has it in file names. One in an unknown charset stays whole: its `/` is no separator. */
function decodeWord(word: string, charset: string, how: string, encoded: string): string {
  const bytes =
    how.toLowerCase() === 'b'
      ? Buffer.from(encoded, 'base64').toString('latin1')
      : percentDecoded(
          encoded
            .replace(/%/g, '%25')
            .replace(/_/g, ' ')
            .replace(/=(?=[0-9A-Fa-f]{2})/g, '%'),
        )
  return decode(bytes, charset) ?? word.replace(/\//g, '_')
}
