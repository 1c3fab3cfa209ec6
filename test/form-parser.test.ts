/** One form after another through the same busboy: none may show in the next. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FormParser } from '../src/upload/form-parser.ts'
import { multipart } from './support.ts'

/** What a form says: fields and files, as they are told of; the last line of one that is refused is its error. */
async function told(body: Buffer, contentType: string, chunk = body.length): Promise<string[]> {
  const lines: string[] = []
  const limits = { partHead: 16_384 }
  const parser = new FormParser(contentType, limits, {
    isOver: false,
    file: ({ name, filename, type }) => void lines.push(`file ${name} ${filename} ${type}`),
    fileData: bytes => void lines.push(`data ${bytes.toString('latin1')}`),
    fileEnd: () => void lines.push('end'),
    fieldData: () => {},
    field: ({ name, type, charset }, bytes) => void lines.push(`field ${name} ${bytes} ${type} ${charset}`),
  })
  try {
    for (let at = 0; at < body.length; at += chunk) await parser.write(body.subarray(at, at + chunk))
    parser.end()
  } catch (error) {
    lines.push(String(error))
  }
  return lines
}

const FILE = { name: 'file', filename: 'a.bin', type: 'image/png', body: 'bytes' }
const PLAIN = 'multipart/form-data; boundary='

/** Bodies and their types, each unlike the one before in whatever a reader could remember. */
const FORMS: [body: Buffer, contentType: string][] = [
  [multipart([{ name: 'title', body: 'one' }, FILE]), `${PLAIN}BOUNDARY`],
  [multipart([{ name: 'title', body: 'x'.repeat(200_000) }], 'other'), `${PLAIN}other`],
  [
    multipart([
      {
        name: '',
        headers: 'Content-Disposition: form-data; name="t"\r\nContent-Type: text/html; charset=latin1',
        body: Buffer.from([0xe9]),
      },
    ]),
    `${PLAIN}BOUNDARY`,
  ],
  [multipart([{ name: 'e', body: Buffer.from('é') }], '"q"'), 'multipart/form-data; boundary="\\"q\\""'],
  [
    multipart([
      {
        name: '',
        headers:
          'Content-Disposition: form-data; name="b"; filename="b"\r\nContent-Transfer-Encoding: binary',
        body: '',
      },
    ]),
    `${PLAIN}BOUNDARY`,
  ],
  // Refused: in the middle of a head, of a field, of a file; by what is no head; by a part without a name.
  [Buffer.from('--BOUNDARY\r\nContent-Disposition: form-data; na'), `${PLAIN}BOUNDARY`],
  [multipart([{ name: 'cut', body: 'value' }]).subarray(0, -20), `${PLAIN}BOUNDARY`],
  [multipart([FILE]).subarray(0, -20), `${PLAIN}BOUNDARY`],
  [multipart([{ name: '', headers: 'no head at all', body: '' }]), `${PLAIN}BOUNDARY`],
  [multipart([{ name: '', headers: 'Content-Type: text/plain', body: 'x' }]), `${PLAIN}BOUNDARY`],
  [multipart([]), `${PLAIN}BOUNDARY`],
]

test('a form is read the same whatever was read before it', async () => {
  // Once each with a reader of its own: a boundary in quotes is never read by a used one.
  const fresh = await Promise.all(
    FORMS.map(([body, contentType]) => told(body, contentType.replace(/boundary=([^"]+)$/, 'boundary="$1"'))),
  )
  assert.match(
    fresh[0]?.join('\n') ?? '',
    /^field title one .*\nfile file a\.bin image\/png\ndata bytes\nend$/,
  )
  assert.match(fresh[2]?.[0] ?? '', /^field t é text\/html latin1/)
  for (const [i, lines] of fresh.entries())
    assert.equal(/Error/.test(lines.join('\n')), i >= 5 && i < 10, `${i}`)
  for (const first of FORMS) {
    for (const [i, second] of FORMS.entries()) {
      await told(...first)
      assert.deepEqual(await told(...second), fresh[i])
    }
  }
})

test('forms that are read at once do not share a reader', async () => {
  const forms = Array.from({ length: 200 }, (_, i) =>
    multipart(
      [
        { name: 'n', body: String(i) },
        { ...FILE, filename: `${i}` },
      ],
      `b${i}`,
    ),
  )
  // In chunks, and the next of each form only after one of every other.
  const all = await Promise.all(forms.map((form, i) => told(form, `${PLAIN}b${i}`, 100)))
  for (const [i, lines] of all.entries()) {
    assert.deepEqual(lines, [
      `field n ${i} text/plain undefined`,
      `file file ${i} image/png`,
      'data bytes',
      'end',
    ])
  }
})

test('a reader has no limit to how often it is used', async () => {
  for (let i = 0; i < 5000; i++) {
    const lines = await told(multipart([{ name: 'n', body: `${i}` }, FILE, FILE]), `${PLAIN}BOUNDARY`)
    assert.equal(lines.length, 7)
  }
})

test('what comes byte by byte is gathered once, not anew with each byte', async t => {
  // What is copied and searched, in bytes.
  let looked = 0
  const { concat } = Buffer
  const { indexOf } = Buffer.prototype
  t.mock.method(Buffer, 'concat', (list: readonly Uint8Array[], length?: number) => {
    const bytes = concat(list, length)
    looked += bytes.length
    return bytes
  })
  t.mock.method(Buffer.prototype, 'indexOf', function (this: Buffer, value: Buffer, from = 0) {
    looked += this.length - from
    return indexOf.call(this, value, from)
  })
  const [CRLF, blanks] = ['\r\n', ' '.repeat(16_000)]
  const part = `Content-Disposition: form-data; name="n"${CRLF}X: ${'x'.repeat(16_000)}${CRLF}${CRLF}v${CRLF}`
  const form = Buffer.from(`--BOUNDARY${blanks}${CRLF}${part}--BOUNDARY${CRLF}${part}--BOUNDARY--`)
  for (const chunk of [1, 2, 3]) {
    looked = 0
    assert.deepEqual(await told(form, `${PLAIN}BOUNDARY`, chunk), [
      'field n v text/plain undefined',
      'field n v text/plain undefined',
    ])
    assert.ok(looked < 10 * form.length, `${looked} for ${form.length}`)
  }
})

test('an error says the same however its bytes come', async () => {
  const file = multipart([FILE]).toString('latin1')
  const bodies = [
    file.replace('BOUNDARY\r\n', 'BOUNDARYX and more, in one piece or in many\r\n'),
    file.replace('BOUNDARY\r\n', 'BOUNDARY   X\r\n'),
    file.replace('BOUNDARY\r\n', 'BOUNDARY -- \r\n'),
    file.replace('BOUNDARY\r\n', 'BOUNDARY\rX\n'),
    file.replace('BOUNDARY\r\n', 'BOUNDARY\n'),
    file.replace('BOUNDARY\r\n', 'BOUNDARY\r\n\r\n'),
    file.replace('BOUNDARY\r\n', 'BOUNDARY\r\n--BOUNDARY\r\n'),
    file.replace('\r\n\r\n', '\r\n--BOUNDARY\r\n\r\n'),
    file.replace('\r\n\r\n', '\n\r\n--BOUNDARY\r\n\r\n'),
    file.replace('\r\n\r\n', `\r\nX: ${'x'.repeat(20_000)}\n\r\n\r\n`),
    file.replace('\r\n\r\n', `\nX: ${'x'.repeat(20_000)}\r\n\r\n`),
    file.replace('BOUNDARY', `BOUNDARY${' '.repeat(20_000)}`),
    `\ufeff${file}`.replaceAll('\r\n', '\n'),
    file.replaceAll('\r\n', '\n'),
    `pre\n${file}`.replaceAll('\r\n', '\n'),
    `${file}\r\n${file}`,
    file.slice(0, 12),
    file.slice(0, 60),
  ]
  for (const body of bodies) {
    const bytes = Buffer.from(body)
    const whole = (await told(bytes, `${PLAIN}BOUNDARY`)).at(-1)
    assert.match(whole ?? '', /Error/)
    for (const chunk of [1, 2, 7, 100]) {
      assert.equal((await told(bytes, `${PLAIN}BOUNDARY`, chunk)).at(-1), whole)
    }
  }
})
