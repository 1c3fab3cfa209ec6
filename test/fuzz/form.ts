import { Random } from './random.ts'

/** The limits of the server under fire: small, so that they are met all the time. */
export const LIMITS = { body: 200_000, files: 6, fields: 9, fieldBytes: 3000, idle: 1000 } as const

export interface FuzzFile {
  /** What a server stores it as; undefined for an empty one whose name means no file. */
  name: string | undefined
  bytes: Buffer
}

/** One request, made from a seed. */
export interface FuzzCase {
  seed: number
  contentType: string
  /** For the oracle, which is not asked to read Content-Type. */
  boundary: string
  body: Buffer
  /** Must be stored, with these files; must be refused; or nobody knows (it was mutated). */
  verdict: 'stored' | 'refused' | 'unknown'
  files: FuzzFile[]
  /** Values by name, but for the title. */
  fields: Record<string, string[]>
  /** Nothing was mutated, whatever becomes of the sending. */
  isWhole: boolean
  title: string
  sending: Sending
}

export interface Sending {
  chunked: boolean
  /** How the bytes are cut into writes. */
  pieces: number[]
  /** After how many bytes of the body the client leaves; undefined: it stays. */
  leavesAfter: number | undefined
  /** What is added to the true length in Content-Length. */
  lie: number
  /** A second, good request follows in the same breath. */
  pipelined: boolean
  /** The framing of the chunked encoding is broken at this piece. */
  breaksChunk: number | undefined
}

const PLAIN = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'
const BOUNDARY = `${PLAIN}'()+_,-./:=?`

/** Parts that are files without a name, and what they are stored as. */
const NAMELESS: [disposition: string, type: string | undefined, name: string][] = [
  ['name="file"', 'application/octet-stream', 'file.bin'],
  ['name="photo"', 'image/jpeg', 'photo.jpg'],
  ['name="note"; filename=""', 'text/plain', 'note.txt'],
  ['name="note"; filename=""', undefined, 'note.txt'],
  ['name="x"', 'constructor/x', 'x.bin'],
]

/** How names are sent, and what they mean. */
const NAMES: [string, string | undefined][] = [
  ['a.txt', 'a.txt'],
  ['../../etc/passwd', 'passwd'],
  ['C:\\\\fakepath\\\\photo.jpg', 'photo.jpg'],
  ['..', undefined],
  ['.', undefined],
  ['dir/', undefined],
  ['.htaccess', '.htaccess'],
  ['größe 🚀.png', 'größe 🚀.png'],
  ['%22quoted%22.txt', '"quoted".txt'],
  ['\u202etxt.exe', 'txt.exe'],
  ['a\u3000b\u202f.txt', 'a\u3000b\u202f.txt'],
  ['\u2800\u3164', undefined],
  ['👩\u200d🚀.p\u200dhp\u2800', '👩\u200d🚀.php'],
  ['=?utf-8?B?w5wvLi4vYi50eHQ=?=', 'b.txt'],
  [`${'n'.repeat(400)}.gz`, `${'n'.repeat(252)}.gz`],
  ['__proto__', '__proto__'],
  ['con.txt', 'con.txt'],
  ['  spaces  ', 'spaces'],
  ['-rf', '-rf'],
]

export function makeCase(seed: number): FuzzCase {
  const random = new Random(seed)
  const bare = random.chance(0.7)
  const boundary = random.text(1 + random.below(70), bare ? PLAIN : BOUNDARY).replace(/^-+/, 'x')
  const contentType = `multipart/form-data; boundary=${bare ? boundary : `"${boundary}"`}`
  const files: FuzzFile[] = []
  const fields: [string, string][] = []
  const chunks: Buffer[] = []
  if (random.chance(0.2)) chunks.push(Buffer.from(`${random.text(random.below(50), PLAIN)}\r\n`))

  const part = (disposition: string, type: string | undefined, body: Buffer) => {
    const headers = [`Content-Disposition: form-data; ${disposition}`]
    if (type !== undefined) headers.push(`Content-Type: ${type}`)
    if (random.chance(0.2))
      headers.push(`X-${random.text(5, PLAIN)}: ${random.text(random.below(200), PLAIN)}`)
    if (random.chance(0.2)) headers.reverse()
    const cased = headers.map(line =>
      random.chance(0.2) ? line.replace(/^[^:]+/, name => name.toLowerCase()) : line,
    )
    chunks.push(Buffer.from(`--${boundary}\r\n${cased.join('\r\n')}\r\n\r\n`), body, Buffer.from('\r\n'))
  }
  const field = (name: string, value: string) => {
    fields.push([name, value])
    part(`name="${name}"`, random.chance(0.1) ? 'text/plain' : undefined, Buffer.from(value))
  }
  let title = ''
  const count = random.below(random.chance(0.1) ? 20 : 7)
  const titleAt = random.chance(0.92) ? random.below(count + 1) : -1
  for (let i = 0; i <= count; i++) {
    if (i === titleAt) {
      title = random.text(1 + random.below(random.chance(0.9) ? 50 : 60), 'aé🚀')
      field('title', title)
    } else if (random.chance(0.4)) {
      field(
        random.text(1 + random.below(10), PLAIN),
        safeBody(random, boundary, random.size(1000)).toString('latin1'),
      )
    } else if (random.chance(0.1)) {
      const [head, type, name] = random.pick(NAMELESS)
      const body = safeBody(random, boundary, random.size(5000))
      files.push({ name: body.length > 0 ? name : undefined, bytes: body })
      part(head, type, body)
    } else {
      const [sent, name] = random.chance(0.7)
        ? [`${random.text(8, PLAIN)}.bin`, undefined]
        : random.pick(NAMES)
      const body = safeBody(random, boundary, random.chance(0.05) ? 0 : 1 + random.size(60_000))
      const known = NAMES.some(([each]) => each === sent)
      files.push({ name: known ? (name ?? (body.length > 0 ? 'file.bin' : undefined)) : sent, bytes: body })
      part(`name="file"; filename="${sent}"`, 'application/octet-stream', body)
    }
  }
  chunks.push(Buffer.from(`--${boundary}--`))
  if (random.chance(0.8)) chunks.push(Buffer.from('\r\n'))
  if (random.chance(0.1)) chunks.push(random.bytes(random.below(200)))
  const whole = Buffer.concat(chunks)

  const mutations = random.chance(0.5) ? 0 : 1 + random.below(3)
  let body: Buffer = whole
  for (let i = 0; i < mutations; i++) body = mutate(random, body, boundary)

  const wanted = files.filter(({ name }) => name !== undefined)
  const fieldBytes = fields.reduce((sum, [name, value]) => sum + Buffer.byteLength(name + value), 0)
  const isGood =
    title !== '' &&
    [...title].length <= 50 &&
    wanted.length > 0 &&
    wanted.every(({ bytes }) => bytes.length > 0) &&
    files.length <= LIMITS.files &&
    fields.length <= LIMITS.fields &&
    fieldBytes <= LIMITS.fieldBytes &&
    whole.length <= LIMITS.body
  const sending = makeSending(random, body.length)
  const certain = mutations === 0 && sending.lie === 0 && sending.breaksChunk === undefined
  const verdict = certain && sending.leavesAfter === undefined ? (isGood ? 'stored' : 'refused') : 'unknown'
  const kept = new Map<string, string[]>()
  for (const [name, value] of fields) if (name !== 'title') kept.set(name, [...(kept.get(name) ?? []), value])
  return {
    seed,
    contentType,
    boundary,
    body,
    verdict,
    files: wanted,
    fields: Object.fromEntries(kept),
    isWhole: mutations === 0,
    title,
    sending,
  }
}

function makeSending(random: Random, length: number): Sending {
  const chunked = random.chance(0.4)
  const most = random.pick([1, 7, 60, 1000, 65_536, 65_536, 65_536])
  const pieces: number[] = []
  // Tiny pieces for the beginning only: it would take for ever.
  for (let at = 0; at < length; ) {
    const piece = pieces.length > 300 ? length - at : Math.min(length - at, 1 + random.below(most))
    pieces.push(piece)
    at += piece
  }
  return {
    chunked,
    pieces,
    leavesAfter: random.chance(0.12) ? random.below(length + 1) : undefined,
    lie: !chunked && random.chance(0.06) ? random.pick([-1, 1, -10, 10, -length, 1000]) : 0,
    pipelined: random.chance(0.1),
    breaksChunk: chunked && random.chance(0.05) ? random.below(pieces.length) : undefined,
  }
}

/** Data that looks as much like a delimiter as data can without being one. */
function safeBody(random: Random, boundary: string, length: number): Buffer {
  if (length === 0) return Buffer.alloc(0)
  const delimiter = `\r\n--${boundary}`
  const lookalikes = [
    delimiter.slice(0, -1),
    delimiter.slice(0, 1 + random.below(delimiter.length - 1)),
    '\r\n',
    '\r',
    '\n',
    '\r\n--',
    '--',
    '\r\r\n',
    `\n--${boundary}`,
    `--${boundary}`,
    '\r\n\r\n',
  ]
  const pieces: Buffer[] = [Buffer.from('b')]
  for (let made = 1; made < length; ) {
    const piece = random.chance(0.5)
      ? Buffer.from(random.pick(lookalikes))
      : random.bytes(1 + random.size(length))
    pieces.push(piece)
    made += piece.length
  }
  const body = Buffer.concat(pieces).subarray(0, length)
  // Two lookalikes in a row can be the real thing, and what follows the body completes one at its end.
  for (let at = body.indexOf(delimiter); at >= 0; at = body.indexOf(delimiter)) body[at] = 0x78
  return body
}

function mutate(random: Random, body: Buffer, boundary: string): Buffer {
  if (body.length < 2) return body
  const at = random.below(body.length)
  const end = Math.min(body.length, at + 1 + random.size(300))
  const put = (text: string | Buffer) =>
    Buffer.concat([body.subarray(0, at), Buffer.from(text), body.subarray(at)])
  switch (random.below(9)) {
    case 0:
      return body.subarray(0, at)
    case 1: {
      const flipped = Buffer.from(body)
      for (let i = 0; i < 1 + random.below(4); i++) flipped[random.below(body.length)] = random.below(256)
      return flipped
    }
    case 2:
      return put(body.subarray(at, end))
    case 3:
      return Buffer.concat([body.subarray(0, at), body.subarray(end)])
    case 4:
      return put(
        random.pick([`\r\n--${boundary}`, `\r\n--${boundary}--`, `\r\n--${boundary}\r\n`, `--${boundary}`]),
      )
    case 5:
      return put(random.pick(['\0', '\r\n', '\r\n\r\n', '"', ';', '\\', '\n', ': ', '\r\n ', '\x7f', 'é']))
    case 6: {
      const headers = body.indexOf('Content-Disposition', at)
      const there = headers < 0 ? at : headers
      const broken = random.pick([
        'Content-Disposition form-data',
        'Content-Disposition: attachment; name="x"\r\n',
        'Content-Transfer-Encoding: base64\r\n',
        'Content-Type: text/plain; charset=utf-16le\r\n',
        ': empty\r\n',
        ' folded\r\n',
        `X-Long: ${'x'.repeat(20_000)}\r\n`,
        'Content-Disposition: form-data; name="f"; filename*=utf-8\'\'%e2%82%ac.txt\r\n',
        'Content-Disposition: form-data; name="f"; filename*=utf-8\'\'..%2f..%2fpasswd\r\n',
      ])
      return Buffer.concat([body.subarray(0, there), Buffer.from(broken), body.subarray(there)])
    }
    case 7:
      // The parts twice, one after the other.
      return Buffer.concat([body.subarray(0, body.lastIndexOf(`--${boundary}--`)), body])
    default:
      return put(random.bytes(random.below(50)))
  }
}
