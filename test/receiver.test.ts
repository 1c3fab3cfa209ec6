/** Bodies byte for byte over a real socket: what busboy loses, hides or hangs on must end in the right answer. */
import assert from 'node:assert/strict'
import { createHash, randomInt } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import os from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setImmediate as tick } from 'node:timers/promises'
import { type Receipt, type ServerOptions, type StoredFile, tap, type UploadHandler } from '../src/index.ts'
import {
  assertStored,
  connect,
  gate,
  getProgress,
  IN_CI,
  multipart,
  type Part,
  post,
  published,
  type RawAnswer,
  randomFile,
  readAnswer,
  records,
  run,
  sha256,
  startServer,
  type TestServer,
  TITLE,
  temporaryFiles,
  until,
} from './support.ts'

const MEMORY_MAX = 2_621_440
const FILE: Part = { name: 'file', filename: 'a.bin', type: 'application/octet-stream', body: 'the bytes' }
/** Where files go: every case must hold for both. */
const WAYS = {
  memory: {},
  disk: { memoryMax: 0 },
  'read directly': { memoryMax: 0, directMin: 0 },
} as const satisfies Record<string, ServerOptions>

let ids = 0
const newId = () => `receiver-${ids++}`

/** Posts and expects a refusal that leaves nothing behind and is told by the progress endpoint too. */
async function assertRefused(
  at: TestServer,
  body: Buffer,
  code: string,
  options: Parameters<typeof post>[2] = {},
): Promise<RawAnswer> {
  const id = newId()
  const headers = { 'X-Progress-ID': id, ...options.headers }
  const answer = await post(at.url, body, { ...options, headers })
  assert.equal(answer.json?.code, code, `${answer.status} ${answer.text}`)
  assert.equal(answer.json.status, answer.status)
  const progress = await getProgress(at.url, id)
  assert.equal(progress.state, 'error')
  assert.equal(progress.state === 'error' && progress.code, code)
  assert.deepEqual(await published(at.dir), [])
  assert.deepEqual(await records(at.dir), [])
  assert.deepEqual(await temporaryFiles(at), [])
  return answer
}

async function stored(
  at: TestServer,
  body: Buffer,
  options: Parameters<typeof post>[2] = {},
): Promise<StoredFile[]> {
  const answer = await post(at.url, body, options)
  assert.equal(answer.status, 201, answer.text)
  return (answer.json as Receipt).files
}

const head = (...lines: string[]) => lines.join('\r\n')
const DISPOSITION = 'Content-Disposition: form-data; name="file"; filename="a.bin"'

test('a part that busboy loses, or cannot read, refuses the form: never a file less than was sent', async t => {
  const at = await startServer(t)
  const rows: Record<string, [string, string?]> = {
    'a raw quote in the file name': [head('Content-Disposition: form-data; name="file"; filename="a"b.bin"')],
    'a trailing semicolon': [head(`${DISPOSITION};`)],
    'an unquoted value with a space': [head('Content-Disposition: form-data; name="file"; filename=a b.bin')],
    'an unquoted UTF-8 value': [head('Content-Disposition: form-data; name="file"; filename=ü.bin')],
    'filename= with nothing': [head('Content-Disposition: form-data; name="file"; filename=')],
    'another disposition': [head('Content-Disposition: attachment; name="file"; filename="a.bin"')],
    'no disposition': [head('Content-Type: application/octet-stream')],
    'an unknown charset in filename*': [
      head(`Content-Disposition: form-data; name="file"; filename*=shift_jis''%83`),
    ],
    'a bogus charset in filename*': [
      head(`Content-Disposition: form-data; name="file"; filename*=nope''a.bin`),
    ],
    'no name': [head('Content-Disposition: form-data; filename="a.bin"')],
    'an empty name': [head('Content-Disposition: form-data; name=""; filename="a.bin"')],
    'a field without a name': [head('Content-Disposition: form-data')],
    'a header without a colon': [head(DISPOSITION, 'nonsense')],
    'a header with a space before its colon': [head(DISPOSITION, 'Content-Type : text/plain')],
    'a header that begins with a colon': [head(': x', DISPOSITION)],
    'a NUL in a header': [head(DISPOSITION, 'X: a\0b')],
    'a header ended by LF alone': [`${DISPOSITION}\nContent-Type: text/plain`],
    'a header ended by CR alone': [`${DISPOSITION}\rContent-Type: text/plain`],
    'base64 that is none': [head(DISPOSITION, 'Content-Transfer-Encoding: base64'), 'aGVsbG8'],
    'quoted-printable': [head(DISPOSITION, 'Content-Transfer-Encoding: quoted-printable'), 'a=3Db'],
    'a field in a charset nobody decodes': [
      head('Content-Disposition: form-data; name="note"', 'Content-Type: text/plain; charset=nope'),
      'xx',
    ],
  }
  for (const [row, [headers, body = 'some bytes']] of Object.entries(rows)) {
    // Beside a part that is right, so that a loss would pass for success.
    const form = multipart([TITLE, { headers, body }, { ...FILE, filename: 'good.bin' }])
    for (const chunk of [form.length, 7, 1]) {
      if (chunk === 1 && form.length > 10_000) continue
      await t.test(`${row}, ${chunk} bytes a read`, async () => {
        await assertRefused(at, form, 'malformed_body', { chunk })
      })
    }
  }
})

test('several malformed parts are one refusal, and what follows them is not stored', async t => {
  const bad: Part = { headers: head(DISPOSITION, 'no colon'), body: 'x' }
  for (const way of Object.values(WAYS)) {
    const at = await startServer(t, way)
    await assertRefused(at, multipart([bad, TITLE, bad, FILE, bad, FILE]), 'malformed_body')
    await assertRefused(at, multipart([FILE, TITLE, bad]), 'malformed_body')
  }
})

test('a delimiter that is none', async t => {
  const at = await startServer(t)
  const form = (delimiter: string) =>
    Buffer.from(
      `--BOUNDARY\r\nContent-Disposition: form-data; name="title"\r\n\r\nx\r\n` +
        `--BOUNDARY${delimiter}${DISPOSITION}\r\n\r\nbytes\r\n--BOUNDARY--\r\n`,
    )
  const rows = { padding: '  x\r\n', 'a tab': '\t\n', 'LF alone': '\n', 'CR alone': '\r', dash: '-\r\n' }
  for (const [row, delimiter] of Object.entries(rows)) {
    for (const chunk of [1000, 3, 1]) {
      await t.test(`${row} after the boundary, ${chunk} bytes a read`, async () => {
        await assertRefused(at, form(delimiter), 'malformed_body', { chunk })
      })
    }
  }
  assert.equal((await stored(at, form('\r\n'))).length, 1)
})

test('file data that begins like the boundary', async t => {
  for (const [way, options] of Object.entries(WAYS)) {
    const at = await startServer(t, options)
    await t.test(`${way}: \\r\\n--BX with boundary B cuts the file: refused, not stored short`, async () => {
      for (const cut of ['X', '\rX', '\r\r\n', '-X']) {
        const form = multipart([TITLE, { ...FILE, body: `before\r\n--BOUNDARY${cut}after` }])
        for (const chunk of [form.length, 5, 1]) await assertRefused(at, form, 'malformed_body', { chunk })
      }
    })
    await t.test(`${way}: a file that begins with the delimiter, in the part's own empty line`, async () => {
      for (const rest of [
        '',
        'x',
        '\r',
        '\n',
        '--',
        '\r\n',
        '\r\nx',
        '\r\n\r\nx',
        '\r\n-',
        '\r\n--x',
        '\r\n\r\n--',
      ]) {
        const form = multipart([TITLE, { ...FILE, body: `--BOUNDARY${rest} and more` }, FILE])
        for (const chunk of [form.length, 5, 1]) await assertRefused(at, form, 'malformed_body', { chunk })
      }
    })
    await t.test(`${way}: everything short of the boundary is data`, async () => {
      const nearly =
        '\r\n--BOUNDAR\r\n--BOUNDAR\r\n\r\n--\r\r\n-\r\n--BOUNDARx--BOUNDARY--\n--BOUNDARY\r\n--B\r'
      const bytes = Buffer.from(nearly.repeat(3))
      for (const chunk of [1, 2, 3, 5, 7, 11, 13, 64]) {
        const [file] = await stored(at, multipart([TITLE, { ...FILE, body: bytes }]), { chunk })
        await assertStored(at.dir, file as StoredFile, bytes)
      }
    })
  }
})

test('what comes after the closing delimiter is ignored, whatever the chunking', async t => {
  const at = await startServer(t)
  const form = multipart([TITLE, FILE])
  const epilogue = Buffer.concat([
    form,
    Buffer.from('x--BOUNDARY\r\nx\r\n--BOUNDARY--\r\n--BOUNDARY--x\r\n--BOUNDARY'),
  ])
  for (const chunk of [epilogue.length, form.length, 50, 7, 1]) {
    const files = await stored(at, epilogue, { chunk })
    assert.deepEqual(
      files.map(file => file.sentAs),
      ['a.bin'],
    )
  }
})

test('a preamble is ignored', async t => {
  const at = await startServer(t)
  const form = Buffer.concat([Buffer.from('ignore me\r\n--BOUNDAR\r\n'), multipart([TITLE, FILE])])
  for (const chunk of [form.length, 1]) assert.equal((await stored(at, form, { chunk })).length, 1)
})

test('a body cut at any byte is refused and leaves nothing', async t => {
  const form = multipart([TITLE, FILE, { name: 'note', body: 'after the file' }])
  // The line break after the closing delimiter is not part of it.
  const whole = form.length - 2
  for (const [way, options] of Object.entries(WAYS)) {
    await t.test(way, async t => {
      const at = await startServer(t, options)
      for (let cut = 0; cut < whole; cut++) {
        const answer = await post(at.url, form.subarray(0, cut))
        assert.equal(answer.status, 400, `cut at ${cut}: ${answer.text}`)
        assert.match(answer.json.code, /^(truncated|malformed)_body$/)
      }
      assert.deepEqual(await published(at.dir), [])
      assert.deepEqual(await temporaryFiles(at), [])
      assert.equal((await stored(at, form.subarray(0, whole))).length, 1)
    })
  }
})

test('a body cut right after a boundary: the file ended well, the upload did not', async t => {
  for (const options of Object.values(WAYS)) {
    const at = await startServer(t, options)
    const form = multipart([TITLE, FILE])
    const cut = form.subarray(0, form.lastIndexOf('\r\n--BOUNDARY') + '\r\n--BOUNDARY'.length)
    await assertRefused(at, cut, 'truncated_body')
    await assertRefused(at, cut, 'truncated_body', { chunked: true })
  }
})

test('a sink whose file was cut short is aborted, never closed', async t => {
  const calls: string[] = []
  let opened = 0
  const at = await startServer(t, {
    handlers: [
      {
        name: 'witness',
        async open(file, next) {
          const inner = await next(file)
          opened++
          return tap(inner, {
            close() {
              calls.push('close')
              return inner.close()
            },
            abort(reason) {
              calls.push(`abort ${reason.code}`)
              return inner.abort(reason)
            },
          })
        },
      },
    ],
  })
  const form = multipart([TITLE, FILE])
  for (const options of [{}, { chunked: true }, { chunk: 1 }]) {
    await assertRefused(at, form.subarray(0, form.length - 20), 'truncated_body', options)
  }
  // A body that is cut within its first packet may have failed before the file was opened.
  assert.ok(opened > 0)
  assert.deepEqual(calls, Array(opened).fill('abort truncated_body'))
})

test('content types', async t => {
  const at = await startServer(t)
  const form = multipart([TITLE, FILE])
  const rows: [string, string][] = [
    ['', 'unsupported_media_type'],
    ['text/plain', 'unsupported_media_type'],
    ['application/x-www-form-urlencoded', 'unsupported_media_type'],
    ['multipart/mixed; boundary=BOUNDARY', 'unsupported_media_type'],
    ['multipart', 'unsupported_media_type'],
    ['multipart/form-data', 'malformed_body'],
    ['multipart/form-data; boundary', 'malformed_body'],
    ['multipart/form-data; boundary=', 'malformed_body'],
    ['multipart/form-data; boundary=a=b', 'malformed_body'],
    ['multipart/form-data; boundary=a/b', 'malformed_body'],
    ['multipart/form-data; boundary=BOUNDARY;', 'malformed_body'],
    ['multipart/form-data; boundary=ANOTHER', 'malformed_body'],
  ]
  for (const [type, code] of rows) {
    await t.test(`${JSON.stringify(type)}: ${code}`, async () => {
      const { status } = await assertRefused(at, form, code, { headers: { 'Content-Type': type } })
      assert.equal(status, code === 'unsupported_media_type' ? 415 : 400)
    })
  }
  for (const boundary of ['a=b', "'()+_,-./:=?", 'with space', 'x', 'B'.repeat(70), 'B'.repeat(3000)]) {
    await t.test(
      `boundary="${boundary.slice(0, 20)}" of ${boundary.length} is right when quoted`,
      async () => {
        const headers = { 'Content-Type': `Multipart/Form-Data; charset=utf-8; Boundary="${boundary}"` }
        const bytes = randomFile(5000)
        const [file] = await stored(at, multipart([TITLE, { ...FILE, body: bytes }], boundary), {
          headers,
          chunk: 1000,
        })
        await assertStored(at.dir, file as StoredFile, bytes)
      },
    )
  }
})

/** Bytes in which the beginnings of a boundary abound. */
function nastyBytes(size: number): Buffer {
  const pieces = [
    '\r',
    '\n',
    '\r\n',
    '--',
    '\r\n--',
    '\r\n--BOUND',
    '\r\n--BOUNDAR',
    'BOUNDARY',
    '\0',
    'ü',
    'x',
  ]
  const chunks: Buffer[] = []
  let length = 0
  while (length < size) {
    const piece = Buffer.from(pieces[randomInt(pieces.length)] as string)
    chunks.push(piece)
    length += piece.length
  }
  const bytes = Buffer.concat(chunks).subarray(0, size)
  // Pieces may have made a whole boundary; at the very beginning the part's empty line is half of it.
  if (bytes.toString('latin1', 0, 2) === '--') bytes.write('xx')
  const text = bytes.toString('latin1').replaceAll('\r\n--BOUNDARY', '\r\n--boundary')
  return Buffer.from(text, 'latin1')
}

test('every chunk size, in memory and on disk, with a length and without', async t => {
  for (const [way, options] of Object.entries(WAYS)) {
    const at = await startServer(t, options)
    for (const chunk of [1, 2, 3, 7, 64, 65_536]) {
      await t.test(`${way}, ${chunk}`, async () => {
        const size = Math.min(2_000_000, 1000 * chunk)
        const parts = [nastyBytes(size), Buffer.from('x'), nastyBytes(Math.ceil(size / 3))]
        const form = multipart([...parts.map(body => ({ ...FILE, body })), TITLE])
        for (const chunked of [false, true]) {
          const files = await stored(at, form, { chunk, chunked })
          assert.equal(files.length, parts.length)
          for (const [i, file] of files.entries()) await assertStored(at.dir, file, parts[i] as Buffer)
        }
      })
    }
  }
})

test('random chunking against a sink of random slowness', async t => {
  const moody: UploadHandler = {
    name: 'moody',
    async open(file, next) {
      if (randomInt(2)) await tick()
      const inner = await next(file)
      let busy = false
      return tap(inner, {
        write(chunk) {
          assert.equal(busy, false, 'a write while an earlier one is unsettled')
          if (randomInt(3) === 0) return inner.write(chunk)
          busy = true
          return (async () => {
            for (let i = randomInt(4); i > 0; i--) await tick()
            await inner.write(chunk)
            busy = false
          })()
        },
        async close() {
          assert.equal(busy, false, 'a close during a write')
          if (randomInt(2)) await tick()
          return inner.close()
        },
      })
    },
  }
  for (const options of [{}, { memoryMax: 0 }, { memoryMax: 20_000 }]) {
    const at = await startServer(t, { ...options, handlers: [moody] })
    const round = async () => {
      const bodies = Array.from({ length: 1 + randomInt(4) }, () => nastyBytes(1 + randomInt(60_000)))
      const form = multipart([...bodies.map(body => ({ ...FILE, body })), TITLE])
      const chunk = 1 + randomInt(randomInt(2) ? 300 : 40_000)
      const files = await stored(at, form, { chunk: Math.max(chunk, 50), chunked: randomInt(2) === 1 })
      assert.equal(files.length, bodies.length)
      for (const [i, file] of files.entries()) await assertStored(at.dir, file, bodies[i] as Buffer)
    }
    for (let rounds = 0; rounds < 3; rounds++) await Promise.all(Array.from({ length: 4 }, round))
    assert.deepEqual(await temporaryFiles(at), [])
  }
})

test('names', async t => {
  const at = await startServer(t)
  const long = (unit: string, count: number) => unit.repeat(count)
  const rows: [string, string, string][] = [
    ['plain', 'filename="a.bin"', 'a.bin'],
    ['unquoted', 'filename=a.bin', 'a.bin'],
    ['UTF-8', 'filename="ünï.bin"', 'ünï.bin'],
    ['filename* beats filename', `filename="a"; filename*=UTF-8''b%C3%BC.bin`, 'bü.bin'],
    ['filename* is decoded before the directory is cut off', `filename*=UTF-8''x%2F..%2Fb.bin`, 'b.bin'],
    ['%22 is how a quote is sent', 'filename="say %22hi%22.txt"', 'say "hi".txt'],
    ['an escaped quote', String.raw`filename="a\"b.bin"`, 'a"b.bin'],
    ['%20 is itself', 'filename="a%20b.bin"', 'a%20b.bin'],
    ['a path', 'filename="/etc/passwd"', 'passwd'],
    ['a climbing path', 'filename="../../x.bin"', 'x.bin'],
    ['a path of Windows', String.raw`filename="C:\\dir\\x.bin"`, 'x.bin'],
    ['mixed separators', String.raw`filename="a/b\\..\\c.bin"`, 'c.bin'],
    ['a NUL', `filename*=UTF-8''a%00b.bin`, 'ab.bin'],
    ['line breaks', `filename*=UTF-8''a%0D%0Ab.bin`, 'ab.bin'],
    ['an escape sequence', `filename*=UTF-8''%1B%5B31mred.bin`, '[31mred.bin'],
    ['a bidi override', 'filename="cod\u202egpj.exe"', 'codgpj.exe'],
    ['invisible characters alone around a name', 'filename="\u200b\ufeffa.bin\u2028"', 'a.bin'],
    ['spaces around a name', 'filename="  a.bin  "', 'a.bin'],
    ['hidden', 'filename=".htaccess"', '.htaccess'],
    ['a device of Windows', 'filename="con.txt"', 'con.txt'],
    ['a colon', 'filename="a:b"', 'a:b'],
    ['three dots', 'filename="..."', '...'],
    ['emoji', 'filename="👩‍🚀.bin"', '👩‍🚀.bin'],
    ['255 bytes', `filename="${long('a', 251)}.bin"`, `${long('a', 251)}.bin`],
    ['256 bytes', `filename="${long('a', 252)}.bin"`, `${long('a', 251)}.bin`],
    ['CJK is cut by bytes', `filename="${long('字', 100)}.bin"`, `${long('字', 83)}.bin`],
    ['emoji are cut whole', `filename="${long('🚀', 64)}.bin"`, `${long('🚀', 62)}.bin`],
    ['an extension that is none', `filename="a.${long('b', 300)}"`, `a.${long('b', 253)}`],
    ['two dots', 'filename=".."', 'file.bin'],
    ['one dot', 'filename="."', 'file.bin'],
    ['nothing', 'filename=""', 'file.bin'],
    ['a folder', 'filename="a/"', 'file.bin'],
    ['invisible characters only', 'filename="\u200b\u202e"', 'file.bin'],
    ['a path to nothing', 'filename="a/.."', 'file.bin'],
  ]
  for (const [row, parameter, expected] of rows) {
    await t.test(row, async () => {
      const headers = head(
        `Content-Disposition: form-data; name="file"; ${parameter}`,
        'Content-Type: application/octet-stream',
      )
      const form = multipart([TITLE, { headers, body: 'x' }])
      const answer = await post(at.url, form)
      assert.equal(answer.status, 201, answer.text)
      assert.equal(answer.json.files[0].sentAs, expected)
      await assertStored(at.dir, answer.json.files[0], Buffer.from('x'))
    })
  }
  await t.test('bytes that are no UTF-8', async () => {
    const form = multipart([TITLE, { ...FILE, filename: 'a\xffb.bin' }])
    const latin1 = Buffer.from(form.toString('latin1').replace('a\xc3\xbfb', 'a\xffb'), 'latin1')
    const [file] = await stored(at, latin1)
    assert.equal(file?.sentAs, 'a\ufffdb.bin')
  })
})

test('names such as __proto__ are names', async t => {
  const at = await startServer(t)
  const odd = ['__proto__', 'constructor', 'toString', 'hasOwnProperty']
  const fields = odd.map(name => ({ name, body: 'x' }))
  const files = odd.map(name => ({ ...FILE, name, filename: name }))
  const receipt = await stored(at, multipart([...fields, TITLE, ...files]))
  assert.deepEqual(
    receipt.map(file => file.field),
    odd,
  )
  assert.deepEqual(
    receipt.map(file => file.name),
    odd,
  )
  const { json } = await post(at.url, multipart([TITLE, { ...FILE, name: '__proto__', body: '' }]))
  assert.deepEqual(Object.keys(json.errors), ['__proto__'])
  assert.equal(({} as Record<string, unknown>)['message'], undefined)
})

test('charsets of fields', async t => {
  const at = await startServer(t)
  const rows: [string, Buffer][] = [
    ['utf-8', Buffer.from('grüße')],
    ['ISO-8859-1', Buffer.from('grüße', 'latin1')],
    ['utf-16le', Buffer.from('grüße', 'utf16le')],
  ]
  for (const [charset, body] of rows) {
    const title: Part = {
      headers: head(
        'Content-Disposition: form-data; name="title"',
        `Content-Type: text/plain; charset=${charset}`,
      ),
      body,
    }
    const answer = await post(at.url, multipart([title, FILE]))
    assert.equal(answer.json.title, 'grüße', charset)
  }
})

test('fields may come after the file, files anywhere, encodings that change nothing are accepted', async t => {
  const at = await startServer(t)
  for (const encoding of ['7bit', '8bit', 'BINARY']) {
    const headers = head(DISPOSITION, `Content-Transfer-Encoding: ${encoding}`)
    const form = multipart([{ headers, body: 'x' }, { name: 'n', body: '1' }, FILE, TITLE, FILE])
    assert.equal((await stored(at, form)).length, 3)
  }
})

test('the same field twice: the last title counts', async t => {
  const at = await startServer(t)
  const answer = await post(
    at.url,
    multipart([{ ...TITLE, body: 'first' }, FILE, { ...TITLE, body: 'last' }]),
  )
  assert.equal(answer.json.title, 'last')
})

test('form errors come all at once and leave nothing', async t => {
  for (const options of Object.values(WAYS)) {
    const at = await startServer(t, options)
    const { json, status } = await assertRefused(at, multipart([{ ...FILE, body: '' }]), 'invalid_form')
    assert.equal(status, 422)
    assert.deepEqual(json.errors, {
      title: [{ message: 'This field is required.', code: 'required' }],
      file: [{ message: 'The submitted file is empty.', code: 'empty' }],
    })
    await assertRefused(at, multipart([FILE, { ...TITLE, body: 'x'.repeat(51) }]), 'invalid_form')
    await assertRefused(at, multipart([FILE, { ...TITLE, body: ' \t' }]), 'invalid_form')
    await assertRefused(at, multipart([FILE, { ...TITLE, body: 'a\0b' }]), 'invalid_form')
    await assertRefused(
      at,
      multipart([TITLE, { name: 'file', body: 'text under that name' }]),
      'invalid_form',
    )
    const fifty = '🚀'.repeat(50)
    assert.equal((await post(at.url, multipart([FILE, { ...TITLE, body: `  ${fifty} ` }]))).json.title, fifty)
  }
})

test('limits hold at exactly their number and one beyond', async t => {
  const fields = (count: number) => Array.from({ length: count }, (_, i) => ({ name: `f${i}`, body: 'x' }))
  const files = (count: number) => Array.from({ length: count }, (_, i) => ({ ...FILE, filename: `${i}` }))

  await t.test('fields', async t => {
    const at = await startServer(t, { limits: { fields: 5 } })
    const { status } = await assertRefused(at, multipart([TITLE, ...fields(5), FILE]), 'too_many_fields')
    assert.equal(status, 413)
    assert.equal((await stored(at, multipart([TITLE, ...fields(4), FILE]))).length, 1)
  })
  await t.test('files', async t => {
    const at = await startServer(t, { limits: { files: 3 } })
    for (const chunk of [10_000, 50]) {
      await assertRefused(at, multipart([TITLE, ...files(4)]), 'too_many_files', { chunk })
    }
    assert.equal((await stored(at, multipart([TITLE, ...files(3)]))).length, 3)
  })
  await t.test('bytes of fields, names included', async t => {
    const at = await startServer(t, { limits: { fieldBytes: 1000 } })
    const used = Buffer.byteLength('title') + Buffer.byteLength('a title') + Buffer.byteLength('größe')
    const note = (size: number): Part => ({ name: 'größe', body: 'x'.repeat(size) })
    await assertRefused(at, multipart([TITLE, note(1001 - used), FILE]), 'fields_too_large')
    await assertRefused(at, multipart([TITLE, note(100_000), FILE]), 'fields_too_large')
    assert.equal((await stored(at, multipart([TITLE, note(1000 - used), FILE]))).length, 1)
  })
  await t.test('a field that shrinks in decoding is not cut in silence', async t => {
    const at = await startServer(t, { limits: { fieldBytes: 1000 } })
    const headers = head(
      'Content-Disposition: form-data; name="note"',
      'Content-Type: text/plain; charset=utf-16le',
    )
    const form = multipart([TITLE, { headers, body: Buffer.from('x'.repeat(900), 'utf16le') }, FILE])
    await assertRefused(at, form, 'fields_too_large')
  })
  await t.test('bytes of the body', async t => {
    const form = multipart([TITLE, { ...FILE, body: randomFile(50_000) }])
    const at = await startServer(t, { limits: { body: form.length - 1 } })
    for (const options of [{}, { chunked: true }, { chunked: true, chunk: 999 }]) {
      const { status } = await assertRefused(at, form, 'body_too_large', options)
      assert.equal(status, 413)
    }
    const within = await startServer(t, { limits: { body: form.length } })
    for (const chunked of [false, true]) assert.equal((await stored(within, form, { chunked })).length, 1)
  })
  await t.test('a length beyond every number', async t => {
    const at = await startServer(t)
    const headers = { 'Content-Length': String(2 ** 60) }
    await assertRefused(at, multipart([TITLE, FILE]), 'body_too_large', { headers })
  })
})

test('20,000 empty files are refused by number, and by the form where so many are allowed', async t => {
  const form = multipart([TITLE, ...Array(20_000).fill({ ...FILE, type: undefined, body: '' })])
  await assertRefused(await startServer(t), form, 'too_many_files')
  await assertRefused(await startServer(t, { limits: { files: 20_000 } }), form, 'invalid_form')
})

test('a thousand small files in one request are not all open at once', async t => {
  let open = 0
  let most = 0
  const counter: UploadHandler = {
    name: 'counter',
    async open(file, next) {
      most = Math.max(most, ++open)
      const inner = await next(file)
      return tap(inner, {
        async close() {
          const staged = await inner.close()
          open--
          return staged
        },
      })
    },
  }
  const { url, dir } = await startServer(t, { memoryMax: 0, limits: { files: 1000 }, handlers: [counter] })
  const form = multipart([TITLE, ...Array.from({ length: 1000 }, (_, i) => ({ ...FILE, filename: `${i}` }))])
  const answer = await post(url, form)
  assert.equal(answer.status, 201, answer.text)
  assert.equal((await published(dir)).length, 1000)
  assert.ok(most <= 100, `${most} files were open at once`)
})

test('memory up to 2,621,440 bytes of Content-Length, disk from one more', async t => {
  const at = await startServer(t)
  const empty = multipart([TITLE, { ...FILE, body: '' }]).length
  for (const [length, handler] of [
    [MEMORY_MAX, 'memory'],
    [MEMORY_MAX + 1, 'disk'],
  ] as const) {
    const bytes = randomFile(length - empty)
    const form = multipart([TITLE, { ...FILE, body: bytes }])
    assert.equal(form.length, length)
    const [file] = await stored(at, form, { chunk: 300_000 })
    assert.equal(file?.handler, handler)
    await assertStored(at.dir, file as StoredFile, bytes)
  }
  // Without a length it is the bytes that decide.
  for (const [size, handler] of [
    [MEMORY_MAX, 'memory'],
    [MEMORY_MAX + 1, 'disk'],
  ] as const) {
    const bytes = randomFile(size)
    const form = multipart([TITLE, { ...FILE, body: bytes }])
    const [file] = await stored(at, form, { chunked: true, chunk: 300_000 })
    assert.equal(file?.handler, handler)
    await assertStored(at.dir, file as StoredFile, bytes)
  }
  const first = randomFile(MEMORY_MAX - 10)
  const second = randomFile(1000)
  const files = await stored(at, multipart([TITLE, { ...FILE, body: first }, { ...FILE, body: second }]), {
    chunked: true,
    chunk: 300_000,
  })
  assert.deepEqual(
    files.map(file => file.handler),
    ['memory', 'disk'],
  )
  await assertStored(at.dir, files[0] as StoredFile, first)
  await assertStored(at.dir, files[1] as StoredFile, second)
})

test('what memory holds is bounded over all requests and given back, whatever their end', async t => {
  const failing: UploadHandler = {
    name: 'failing',
    published() {
      throw new Error('cannot take the news')
    },
  }
  for (const handlers of [[], [failing]]) {
    const held = gate()
    const form = multipart([TITLE, { ...FILE, body: randomFile(50_000) }])
    const at = await startServer(t, { memoryTotal: form.length + 100, handlers: [held.handler, ...handlers] })
    const first = post(at.url, form)
    await held.reached
    const second = post(at.url, form)
    await until(
      () => fetch(new URL('metrics', at.url)).then(res => res.text()),
      text => /running 2/.test(text),
    )
    held.open()
    const handlersOf = (answer: RawAnswer) => answer.json.files[0].handler
    assert.deepEqual([handlersOf(await first), handlersOf(await second)], ['memory', 'disk'])
    for (const refused of [form.subarray(0, -20), multipart([{ ...FILE, body: randomFile(50_000) }])]) {
      assert.notEqual((await post(at.url, refused)).status, 201)
      assert.equal((await stored(at, form))[0]?.handler, 'memory')
      assert.equal((await stored(at, form, { chunked: true }))[0]?.handler, 'memory')
    }
  }
})

test('a part that nobody reads does not hold the form up', async t => {
  const skip: UploadHandler = {
    name: 'skip',
    open: (file, next) =>
      file.name === 'file.bin' ? { write() {}, close: () => undefined, abort() {} } : next(file),
  }
  for (const options of Object.values(WAYS)) {
    const at = await startServer(t, { ...options, handlers: [skip] })
    const unread = { ...FILE, filename: '..', body: randomFile(1_000_000) }
    const [file, ...rest] = await stored(at, multipart([unread, TITLE, FILE, { ...unread, body: 'x' }]), {
      chunk: 65_536,
    })
    assert.equal(file?.sentAs, 'a.bin')
    assert.deepEqual(rest, [])
  }
})

test('a handler that skips, claims or fails', async t => {
  const by = (name: string, open: Required<UploadHandler>['open']): UploadHandler => ({ name, open })
  const ignore = { write() {}, async close() {}, async abort() {} } as const
  const skip = by('skip', (file, next) =>
    file.name === 'skip' ? { ...ignore, close: () => undefined } : next(file),
  )
  const failAt = (method: 'open' | 'write' | 'later' | 'close'): UploadHandler =>
    by('fail', async (file, next) => {
      if (method === 'open') throw new Error('no')
      const inner = await next(file)
      let writes = 0
      return tap(inner, {
        write(chunk) {
          assert.equal(writes++, 0, 'no write comes after one that failed')
          if (method === 'write') throw new Error('no')
          if (method === 'later') return Promise.reject(new Error('no'))
          writes = 0
          return inner.write(chunk)
        },
        async close() {
          if (method !== 'close') return inner.close()
          await inner.abort(new (await import('../src/index.ts')).UploadError('handler_failed', 'no'))
          throw new Error('no')
        },
      })
    })
  const form = multipart([TITLE, { ...FILE, filename: 'skip' }, { ...FILE, body: nastyBytes(100_000) }])
  for (const [way, options] of Object.entries(WAYS)) {
    await t.test(`${way}: skip`, async t => {
      const at = await startServer(t, { ...options, handlers: [skip] })
      assert.deepEqual(
        (await stored(at, form)).map(file => file.sentAs),
        ['a.bin'],
      )
    })
    for (const method of ['open', 'write', 'later', 'close'] as const) {
      await t.test(`${way}: ${method} fails`, async t => {
        const at = await startServer(t, { ...options, handlers: [failAt(method)] })
        const { status } = await assertRefused(at, form, 'handler_failed', { chunk: 30_000 })
        assert.equal(status, 500)
      })
    }
  }
})

test('a client that leaves, in every phase', async t => {
  const form = multipart([TITLE, { ...FILE, body: randomFile(200_000) }, { name: 'note', body: 'x' }])
  const places = {
    'before the body': 0,
    'in a part header': 30,
    'in a field': form.indexOf('a title') + 3,
    'in the file': 150_000,
    'right after the file': form.indexOf('\r\n--BOUNDARY', 1000) + 12,
    'in the closing delimiter': form.length - 3,
  }
  for (const [way, options] of Object.entries(WAYS)) {
    for (const chunked of [false, true]) {
      const at = await startServer(t, options)
      for (const [place, at_] of Object.entries(places)) {
        await t.test(`${way}, ${place}${chunked ? ', chunked' : ''}`, async () => {
          const id = newId()
          const socket = openUpload(at, id, chunked ? undefined : form.length)
          const piece = form.subarray(0, at_)
          if (chunked && piece.length > 0) socket.write(`${piece.length.toString(16)}\r\n`)
          socket.write(piece)
          if (chunked && piece.length > 0) socket.write('\r\n')
          await until(
            () => getProgress(at.url, id),
            progress => progress.state === 'uploading' && progress.received === piece.length,
          )
          socket.destroy()
          const progress = await until(
            () => getProgress(at.url, id),
            ({ state }) => state === 'error',
          )
          assert.equal(progress.state === 'error' && progress.code, 'truncated_body')
          assert.deepEqual(await temporaryFiles(at), [])
          assert.deepEqual(await published(at.dir), [])
          assert.deepEqual(await records(at.dir), [])
        })
      }
    }
  }
})

/** The head of an upload on a socket of its own; the body is the caller's. */
function openUpload(at: TestServer, id: string, length: number | undefined) {
  const socket = connect(at.url)
  const framing = length === undefined ? 'Transfer-Encoding: chunked' : `Content-Length: ${length}`
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: ${id}\r\n` +
      `Content-Type: multipart/form-data; boundary=BOUNDARY\r\n${framing}\r\n\r\n`,
  )
  return socket
}

test('a client that leaves while a handler is thinking', async t => {
  const form = multipart([TITLE, { ...FILE, body: randomFile(200_000) }])
  for (const method of ['begin', 'open', 'write', 'close'] as const) {
    await t.test(method, async t => {
      let reach = () => {}
      let letGo = () => {}
      const reached = new Promise<void>(resolve => (reach = resolve))
      const released = new Promise<void>(resolve => (letGo = resolve))
      const think = () => {
        reach()
        return released
      }
      const calls: string[] = []
      const at = await startServer(t, {
        memoryMax: 0,
        handlers: [
          {
            name: 'thinker',
            ...(method === 'begin' && { begin: think }),
            async open(file, next) {
              if (method === 'open') await think()
              const inner = await next(file)
              return tap(inner, {
                async write(chunk) {
                  if (method === 'write') await think()
                  await inner.write(chunk)
                },
                async close() {
                  if (method === 'close') await think()
                  return inner.close()
                },
                abort(reason) {
                  calls.push('abort')
                  return inner.abort(reason)
                },
              })
            },
            interrupt(_, reason) {
              calls.push(`interrupt ${reason.code}`)
            },
          },
        ],
      })
      const id = newId()
      const socket = openUpload(at, id, form.length)
      // All but the end: the client leaves with the body unfinished, whatever is thought about.
      const end = method === 'close' ? form.length - 4 : form.length - 100
      socket.write(form.subarray(0, end))
      await reached
      socket.destroy()
      await once(socket, 'close')
      letGo()
      const progress = await until(
        () => getProgress(at.url, id),
        ({ state }) => state === 'error',
      )
      assert.equal(progress.state === 'error' && progress.code, 'truncated_body')
      assert.equal(calls.at(-1), 'interrupt truncated_body')
      // The server may see the client go before or after it has opened the file.
      if (method !== 'begin') assert.equal(calls.includes('abort'), method !== 'close')
      assert.deepEqual(await temporaryFiles(at), [])
      assert.deepEqual(await published(at.dir), [])
    })
  }
})

test('a client that leaves after its last byte has uploaded', async t => {
  const held = gate()
  const at = await startServer(t, { handlers: [held.handler] })
  const form = multipart([TITLE, FILE])
  const id = newId()
  const socket = openUpload(at, id, form.length)
  socket.write(form)
  await held.reached
  await until(
    () => getProgress(at.url, id),
    progress => progress.state === 'uploading' && progress.received === form.length,
  )
  socket.destroy()
  await once(socket, 'close')
  held.open()
  const progress = await until(
    () => getProgress(at.url, id),
    ({ state }) => state !== 'uploading',
  )
  assert.deepEqual(progress, { state: 'done', received: form.length, size: form.length })
  assert.deepEqual(await published(at.dir), ['a.bin'])
})

/** A file system of `size` that is full soon; undefined, and the test skipped, where mounting is not allowed. */
async function smallFileSystem(t: TestContext, size: string): Promise<string | undefined> {
  const path = await mkdtemp(join(os.tmpdir(), 'uploadr-small-'))
  t.after(async () => {
    await run('umount', ['-l', path])
    await rm(path, { recursive: true })
  })
  const { code, stderr } = await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'uploadr-test', path])
  if (code === 0) return path
  assert.ok(!IN_CI, `CI must be able to mount a file system: ${stderr}`)
  t.skip(`cannot mount a small file system: ${stderr.trim()}`)
  return undefined
}

test('a full disk is 507 and leaves nothing, under --tmp and under --dir', async t => {
  const small = await smallFileSystem(t, '2m')
  if (small === undefined) return
  const form = multipart([
    TITLE,
    { ...FILE, body: randomFile(100_000) },
    { ...FILE, body: randomFile(4_000_000) },
  ])
  for (const fsync of [true, false]) {
    await t.test(`--tmp is full, fsync ${fsync}`, async t => {
      const at = await startServer(t, { tmp: join(small, `tmp-${fsync}`), fsync, limits: { minFree: 0 } })
      for (const chunked of [false, true]) {
        const { status } = await assertRefused(at, form, 'disk_full', { chunk: 65_536, chunked })
        assert.equal(status, 507)
      }
      // What was full has been freed.
      const bytes = randomFile(1_000_000)
      const [file] = await stored(at, multipart([TITLE, { ...FILE, body: bytes }]))
      await assertStored(at.dir, file as StoredFile, bytes)
    })
    for (const memoryMax of [0, 10_000_000]) {
      await t.test(`--dir is full, fsync ${fsync}, memory of ${memoryMax}`, async t => {
        const dir = join(small, `dir-${fsync}-${memoryMax}`)
        const at = await startServer(t, { dir, fsync, memoryMax, limits: { minFree: 0 } })
        await assertRefused(at, form, 'disk_full', { chunk: 65_536 })
      })
    }
  }
})

test('a large body is read directly: its connection closes, that of a small one is kept', async t => {
  const at = await startServer(t, { keepAlive: 100 })
  const form = (size: number) => multipart([TITLE, { ...FILE, body: randomFile(size) }])
  // Where node's inside has changed this fails, and all still works. It waits for the end of the one that is kept.
  for (const [size, connection] of [
    [4 * 1024 * 1024, 'close'],
    [3 * 1024 * 1024, 'keep-alive'],
  ] as const) {
    const { status, headers } = await post(at.url, form(size), { headers: { Connection: 'keep-alive' } })
    assert.deepEqual([status, headers.get('connection')], [201, connection])
  }
})

test('a chunk stays what it is until its write has settled, however slow the handler', async t => {
  const seen: string[] = []
  const slow: UploadHandler = {
    name: 'slow',
    async open(file, next) {
      const inner = await next(file)
      const hash = createHash('sha256')
      let turns = 0
      return tap(inner, {
        async write(chunk) {
          // Some of them long enough for every block to fill meanwhile, some not at all.
          for (let i = turns++ % 40; i > 0; i--) await tick()
          await inner.write(chunk)
          hash.update(chunk)
        },
        async close() {
          seen.push(hash.digest('hex'))
          return inner.close()
        },
      })
    },
  }
  for (const [way, options] of Object.entries(WAYS)) {
    await t.test(way, async t => {
      const at = await startServer(t, { ...options, handlers: [slow] })
      const bodies = [11_000_000, 70_000, 5_000_001].map(randomFile)
      const form = multipart([TITLE, ...bodies.map(body => ({ ...FILE, body }))])
      for (const sending of [{}, { chunk: 100_000 }]) {
        const files = await stored(at, form, sending)
        assert.deepEqual(seen.splice(0), bodies.map(sha256))
        for (const [i, file] of files.entries()) await assertStored(at.dir, file, bodies[i] as Buffer)
      }
    })
  }
})

test('a client that closes its half after the body still gets the answer', async t => {
  for (const [way, options] of Object.entries(WAYS)) {
    await t.test(way, async t => {
      let store = () => {}
      const stored = new Promise<void>(resolve => (store = resolve))
      const at = await startServer(t, { ...options, handlers: [{ name: 'late', complete: () => stored }] })
      const form = multipart([TITLE, { ...FILE, body: randomFile(6_000_000) }])
      const socket = connect(at.url)
      const answer = readAnswer(socket)
      const id = newId()
      socket.write(
        `POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\n` +
          `X-Progress-ID: ${id}\r\nContent-Length: ${form.length}\r\n\r\n`,
      )
      socket.end(form)
      await until(
        () => getProgress(at.url, id),
        progress => progress.state === 'uploading' && progress.phase === 'storing',
      )
      store()
      assert.equal((await answer).status, 201)
    })
  }
})
