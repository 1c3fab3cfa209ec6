/** Every byte of every part is stored, kept in the record as a field, or refused with an error that names the part. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Receipt, ServerOptions } from '../src/index.ts'
import {
  assertStored,
  multipart,
  type Part,
  post,
  published,
  randomFile,
  records,
  serve,
  startServer,
  type TestServer,
  TITLE,
  temporaryFiles,
} from './support.ts'

const NAMED: Part = { name: 'file', filename: 'named.bin', type: 'application/octet-stream', body: 'named' }
const WAYS = { memory: {}, disk: { memoryMax: 0, directMin: 0 } } as const satisfies Record<
  string,
  ServerOptions
>

const disposition = (parameters: string, ...lines: string[]) =>
  [`Content-Disposition: form-data; ${parameters}`, ...lines].join('\r\n')

async function stored(at: TestServer, parts: readonly Part[], options = {}): Promise<Receipt> {
  const answer = await post(at.url, multipart(parts), options)
  assert.equal(answer.status, 201, answer.text)
  return answer.json
}

/** Refused with these words, and nothing of it is left. */
async function refused(at: TestServer, body: Buffer, code: string, detail: RegExp, options = {}) {
  const answer = await post(at.url, body, options)
  assert.equal(answer.json?.code, code, `${answer.status} ${answer.text}`)
  assert.match(answer.json.detail, detail)
  assert.deepEqual(await published(at.dir), [])
  assert.deepEqual(await records(at.dir), [])
  assert.deepEqual(await temporaryFiles(at), [])
  return answer
}

test('a part that is no text and has no usable name is stored under its field’s', async t => {
  const rows: [string, string, string][] = [
    ['no filename', disposition('name="file"', 'Content-Type: application/octet-stream'), 'file.bin'],
    ['an image without one', disposition('name="photo"', 'Content-Type: image/jpeg'), 'photo.jpg'],
    ['of a type nobody knows', disposition('name="x"', 'Content-Type: constructor/x'), 'x.bin'],
    ['of a type that is none', disposition('name="x"', 'Content-Type: nonsense'), 'x.bin'],
    ['JSON', disposition('name="meta"', 'Content-Type: application/json; charset=utf-8'), 'meta.json'],
    [
      'an empty one',
      disposition('name="file"; filename=""', 'Content-Type: application/octet-stream'),
      'file.bin',
    ],
    ['an empty one of text', disposition('name="note"; filename=""', 'Content-Type: text/plain'), 'note.txt'],
    ['an empty one, no type', disposition('name="note"; filename=""'), 'note.txt'],
    ['a folder', disposition('name="file"; filename="folder/"', 'Content-Type: image/png'), 'file.png'],
    ['the folder above', disposition('name="file"; filename=".."', 'Content-Type: image/png'), 'file.png'],
    ['a blank of CJK', disposition('name="file"; filename="\u3000"', 'Content-Type: image/png'), 'file.png'],
    ['a filler', disposition('name="file"; filename="\u3164"', 'Content-Type: image/png'), 'file.png'],
    ['a field that names no file either', disposition('name="../.."', 'Content-Type: image/png'), 'file.png'],
    ['a field like a path', disposition('name="a/b"', 'Content-Type: image/png'), 'b.png'],
    ['a field that has the extension', disposition('name="b.png"', 'Content-Type: image/png'), 'b.png'],
    [
      'a name in continuations',
      disposition('name="file"; filename*0="part"; filename*1="ed.txt"'),
      'parted.txt',
    ],
    [
      'encoded continuations',
      disposition(`name="file"; filename*0*=utf-8'de'%C3%9Cb; filename*1="ung"; filename*2*=%20.txt`),
      'Übung .txt',
    ],
  ]
  for (const [way, options] of Object.entries(WAYS)) {
    for (const [row, headers, name] of rows) {
      await t.test(`${way}: ${row}`, async t => {
        const at = await startServer(t, options)
        const bytes = randomFile(100_000)
        const part = { headers, body: bytes }
        for (const chunk of [200_000, 999]) {
          const beside = await stored(at, [TITLE, NAMED, part], { chunk })
          assert.deepEqual(
            beside.files.map(file => file.sentAs),
            ['named.bin', name],
          )
          await assertStored(at.dir, beside.files[1] as Receipt['files'][0], bytes)
          const alone = await stored(at, [part, TITLE], { chunk, chunked: true })
          assert.equal(alone.files[0]?.sentAs, name)
          await assertStored(at.dir, alone.files[0] as Receipt['files'][0], bytes)
        }
      })
    }
  }
})

test('only an empty part without a name is no file', async t => {
  const at = await startServer(t)
  const left = {
    headers: disposition('name="other"; filename=""', 'Content-Type: application/octet-stream'),
    body: '',
  }
  const { files } = await stored(at, [left, TITLE, NAMED, left])
  assert.deepEqual(
    files.map(file => file.sentAs),
    ['named.bin'],
  )
})

test('the form’s own fields are fields whatever their type', async t => {
  const at = await startServer(t)
  for (const type of ['application/octet-stream', 'application/json', 'image/png', 'nonsense']) {
    const title = { headers: disposition('name="title"', `Content-Type: ${type}`), body: 'mine' }
    assert.equal((await stored(at, [title, NAMED])).title, 'mine')
    const empty = { ...title, headers: disposition('name="title"; filename=""', `Content-Type: ${type}`) }
    assert.equal((await stored(at, [NAMED, empty])).title, 'mine')
  }
  // A name of its own makes a file of it.
  const file = { name: 'title', filename: 'title.txt', body: 'a file' }
  const { title, files } = await stored(at, [TITLE, file])
  assert.deepEqual([title, files[0]?.sentAs], ['a title', 'title.txt'])
})

test('fields are kept in the record and told in the receipt, all but the form’s token', async t => {
  const at = await startServer(t)
  const field = (name: string, body: string): Part => ({ name, body })
  const parts = [
    field('note', 'one'),
    field('title', 'not this one'),
    field('__proto__', 'odd'),
    TITLE,
    field('csrfmiddlewaretoken', 'x'.repeat(64)),
    field('note', 'zwei ü'),
    field('empty', ''),
    NAMED,
    field('late', 'after the file'),
  ]
  const { title, fields } = await stored(at, parts)
  assert.equal(title, 'a title')
  const kept = JSON.parse(
    '{"note":["one","zwei ü"],"title":["not this one"],"__proto__":["odd"],"empty":[""],"late":["after the file"]}',
  )
  assert.deepEqual(fields, kept)
  assert.deepEqual((await records(at.dir))[0]?.fields, kept)
  assert.equal('fields' in (await stored(at, [TITLE, NAMED])), false)
})

test('a piece of an upload is refused before its body', async t => {
  const at = await startServer(t)
  const form = multipart([TITLE, NAMED])
  const headers = { 'Content-Range': 'bytes 0-999/3000' }
  const { status } = await refused(at, form, 'partial_upload', /bytes 0-999\/3000/, { headers })
  assert.equal(status, 400)
  // Not a byte of the body is asked for.
  const asking = { ...headers, Expect: '100-continue', 'Content-Length': '1000000' }
  await refused(at, Buffer.alloc(0), 'partial_upload', /whole/, { headers: asking })
})

test('a coded body is refused before it is read, and the coding named', async t => {
  const at = await startServer(t)
  for (const coding of ['gzip', 'br', 'identity, gzip', 'GZIP']) {
    const headers = { 'Content-Encoding': coding }
    const form = multipart([TITLE, NAMED])
    const { status } = await refused(at, form, 'unsupported_media_type', new RegExp(coding), { headers })
    assert.equal(status, 415)
  }
  const answer = await post(at.url, multipart([TITLE, NAMED]), {
    headers: { 'Content-Encoding': 'Identity' },
  })
  assert.equal(answer.status, 201)
})

test('a field is read in the charset that its part, the form or the request announces', async t => {
  const at = await startServer(t)
  const cp1251 = Buffer.from([0xcf, 0xf0, 0xe8, 0xe2, 0xe5, 0xf2])
  const title = { name: 'title', body: cp1251 }
  const announcing = (charset: string) => ({ name: '_charset_', body: charset })
  const own = (charset: string, body: Buffer) => ({
    headers: disposition('name="title"', `Content-Type: text/plain; charset=${charset}`),
    body,
  })
  const request = (charset: string) => ({
    headers: { 'Content-Type': `multipart/form-data; boundary=BOUNDARY; charset=${charset}` },
  })
  const rows: [string, Part[], object][] = [
    ['by the part', [own('windows-1251', cp1251), NAMED], {}],
    ['by the part, in quotes', [own('"Windows-1251"', cp1251), NAMED], {}],
    ['by _charset_ before it', [announcing('windows-1251'), title, NAMED], {}],
    ['by _charset_ behind it', [title, NAMED, announcing('windows-1251')], {}],
    ['by the request', [title, NAMED], request('windows-1251')],
    ['by _charset_ rather than the request', [title, announcing('cp1251'), NAMED], request('koi8-r')],
    ['by the part rather than both', [announcing('koi8-r'), own('cp1251', cp1251), NAMED], request('gbk')],
    ['in windows-1252', [own('iso-8859-1', Buffer.from([0x80, 0x93, 0xe9, 0x81])), NAMED], {}],
    ['by an empty _charset_, which is none', [announcing(''), title, NAMED], request('windows-1251')],
    ['in UTF-16', [own('utf-16be', Buffer.from('041f04400438043204350442', 'hex')), NAMED], {}],
    ['in what the WHATWG has no name of its own for', [own('x-sjis', Buffer.from('8440', 'hex')), NAMED], {}],
  ]
  for (const [row, parts, options] of rows) {
    await t.test(row, async () => {
      const expected = row.startsWith('in what') ? 'А' : row.startsWith('in windows') ? '€“é\x81' : 'Привет'
      assert.equal((await stored(at, parts, options)).title, expected)
    })
  }
  await t.test('names too', async () => {
    const file = { ...NAMED, headers: '' }
    const body = multipart([TITLE, { ...file, headers: disposition('name="file"; filename="NAME.txt"') }])
    const at = body.indexOf('NAME')
    const form = Buffer.concat([body.subarray(0, at), cp1251, body.subarray(at + 4)])
    const server = await startServer(t)
    const answer = await post(server.url, form, request('windows-1251'))
    assert.equal(answer.json.files[0].name, 'Привет.txt')
  })
})

test('bytes of a field that cannot be read are refused, and the field named', async t => {
  const at = await startServer(t)
  const bad = Buffer.from([0xcf, 0xf0])
  const own = (charset: string) => ({
    headers: disposition('name="note"', `Content-Type: text/plain; charset=${charset}`),
    body: bad,
  })
  const rows: [string, Part[], RegExp][] = [
    [
      'no UTF-8, and nothing announced',
      [TITLE, { name: 'note', body: bad }, NAMED],
      /field note is not in UTF-8/,
    ],
    ['the title', [{ name: 'title', body: bad }, NAMED], /field title is not in UTF-8/],
    [
      'not what the part says',
      [TITLE, own('utf-8'), NAMED],
      /field note is not in utf-8, which is announced/,
    ],
    ['a charset nobody knows', [TITLE, own('nope'), NAMED], /field note announces a charset .*"nope"/],
    [
      '_charset_ that nobody knows',
      [TITLE, { name: 'note', body: bad }, NAMED, { name: '_charset_', body: 'nope' }],
      /the form announces a charset .*"nope"/,
    ],
    [
      '_charset_ that no form is sent in',
      [TITLE, { name: 'note', body: bad }, NAMED, { name: '_charset_', body: 'utf-16le' }],
      /the form announces a charset .*"utf-16le"/,
    ],
    [
      '_charset_ that no form is sent in, where all is ASCII',
      [TITLE, { name: 'note', body: 'h\0i\0' }, NAMED, { name: '_charset_', body: 'utf-16le' }],
      /the form announces a charset .*"utf-16le"/,
    ],
    [
      '_charset_ that nobody knows, where all is ASCII',
      [TITLE, { name: 'note', body: '+AOk-' }, NAMED, { name: '_charset_', body: 'utf-7' }],
      /the form announces a charset .*"utf-7"/,
    ],
  ]
  for (const [row, parts, detail] of rows) {
    await t.test(row, async () => void (await refused(at, multipart(parts), 'malformed_body', detail)))
  }
})

test('several files in one part are files of its field', async t => {
  const one = randomFile(50_000)
  const two = Buffer.from('--INNE\r\n--INNE--\r\n')
  const mixed = multipart(
    [
      { headers: 'Content-Disposition: attachment; filename="a.txt"\r\nContent-Type: text/plain', body: one },
      { headers: 'Content-Disposition: file; filename="b.bin"\r\nContent-Type: x/y', body: two },
      { headers: 'Content-Disposition: attachment\r\nContent-Type: text/plain', body: 'no name' },
      { headers: 'Content-Disposition: attachment; filename=""', body: '' },
    ],
    'INNER',
  )
  const headers = disposition('name="files"', 'Content-Type: Multipart/Mixed; boundary="INNER"')
  const form = [TITLE, { headers, body: mixed }, NAMED, { name: 'note', body: 'x' }]
  for (const options of Object.values(WAYS)) {
    const at = await startServer(t, options)
    for (const chunk of [1_000_000, 999, 7]) {
      const { files, fields } = await stored(at, form, { chunk })
      assert.deepEqual(
        files.map(file => [file.field, file.sentAs, file.type]),
        [
          ['files', 'a.txt', 'text/plain'],
          ['files', 'b.bin', 'x/y'],
          ['files', 'files.txt', 'text/plain'],
          ['file', 'named.bin', 'application/octet-stream'],
        ],
      )
      const bodies = [one, two, Buffer.from('no name'), Buffer.from('named')]
      for (const [i, file] of files.entries()) await assertStored(at.dir, file, bodies[i] as Buffer)
      assert.deepEqual(fields, { note: ['x'] })
    }
  }
  const at = await startServer(t)
  const within = (body: Buffer, type = 'multipart/mixed; boundary=INNER') =>
    multipart([TITLE, { headers: disposition('name="files"', `Content-Type: ${type}`), body }, NAMED])
  const deeper = multipart(
    [{ headers: `Content-Disposition: file\r\nContent-Type: multipart/mixed; boundary=C`, body: 'x' }],
    'INNER',
  )
  const rows: [string, Buffer, string, RegExp][] = [
    ['cut', within(mixed.subarray(0, 100)), 'truncated_body', /ends in part 1 \(files\) of part 2 \(files\)/],
    [
      'another boundary',
      within(Buffer.from('x')),
      'malformed_body',
      /"INNER" of part 2 \(files\) never appears/,
    ],
    ['no boundary', within(mixed, 'multipart/mixed'), 'malformed_body', /no usable boundary: multipart/],
    ['a form in it', within(deeper), 'malformed_body', /^part 1 of part 2 \(files\) is multipart\/mixed/],
    [
      'another kind of form',
      within(mixed, 'multipart/related; boundary=INNER'),
      'malformed_body',
      /^part 2 is multipart\/related/,
    ],
    [
      'LF alone',
      within(Buffer.from(mixed.toString('latin1').replaceAll('\r\n', '\n'), 'latin1')),
      'malformed_body',
      /LF alone/,
    ],
  ]
  for (const [row, body, code, detail] of rows) {
    await t.test(row, async () => void (await refused(at, body, code, detail)))
  }
})

test('a digest of several files in one part is not left out', async t => {
  const at = await startServer(t)
  const mixed = multipart(
    [{ headers: 'Content-Disposition: attachment; filename="a.txt"', body: 'a' }],
    'INNER',
  )
  const headers = disposition(
    'name="files"',
    'Content-Type: multipart/mixed; boundary=INNER',
    'Content-MD5: AAAAAAAAAAAAAAAAAAAAAA==',
  )
  await refused(
    at,
    multipart([TITLE, { headers, body: mixed }, NAMED]),
    'malformed_body',
    /^part 2 has a digest/,
  )
})

test('what a part’s head says twice, or of other bytes than these, is not left out', async t => {
  const at = await startServer(t)
  const rows: [string, RegExp][] = [
    [
      disposition('name="a"', 'Content-Disposition: form-data; name="b"'),
      /has 2 headers content-disposition/,
    ],
    [disposition('name="a"; filename="a"; filename="b"'), /with two parameters filename/],
    [disposition('name="a"', 'Content-Type: text/plain', 'Content-Type: x/y'), /has 2 headers content-type/],
    [
      disposition('name="a"', 'Content-Transfer-Encoding: binary', 'Content-Transfer-Encoding: base64'),
      /has 2 headers content-transfer-encoding/,
    ],
    [
      disposition('name="a"', ...Array(2000).fill('a:'), 'Content-MD5: nonsense'),
      /more than 100 header lines/,
    ],
    [disposition('name="a"', 'Content-Encoding: gzip'), /has the Content-Encoding gzip/],
    [
      disposition('name="a"', 'Content-Encoding: identity', 'Content-Encoding: br'),
      /Content-Encoding identity, br/,
    ],
    [disposition('name="a"', 'Content-Range: bytes 0-1/3000'), /has a Content-Range/],
  ]
  for (const [headers, detail] of rows) {
    const form = multipart([TITLE, NAMED, { headers, body: 'x' }])
    await t.test(String(detail), async () => void (await refused(at, form, 'malformed_body', detail)))
  }
  // Content-Length says nothing (RFC 7578, 4.8): some count characters.
  const part = {
    headers: disposition('name="note"', 'Content-Encoding: Identity', 'Content-Length: 7'),
    body: 'x',
  }
  assert.deepEqual((await stored(at, [TITLE, NAMED, part])).fields, { note: ['x'] })
})

test('base64 is decoded where a part announces it, and what is none is refused', async t => {
  const bytes = randomFile(100_000)
  const coded = disposition('name="file"; filename="a.bin"', 'Content-Transfer-Encoding: BASE64')
  const field = disposition('name="note"', 'Content-Transfer-Encoding: base64')
  const lines = (end: string) => `${bytes.toString('base64').replace(/.{76}/g, `$&${end}`)}${end}`
  const empty = {
    headers: disposition('name="file"; filename=""', 'Content-Transfer-Encoding: base64'),
    body: '\r\n',
  }
  for (const options of Object.values(WAYS)) {
    const at = await startServer(t, options)
    for (const [end, chunk] of [
      ['\r\n', 1_000_000],
      ['\n', 999],
      ['', 77],
    ] as const) {
      const note = { headers: field, body: 'Z3LDvMOf\r\nZQ==\r\n' }
      const { files, fields } = await stored(at, [TITLE, { headers: coded, body: lines(end) }, note, empty], {
        chunk,
      })
      assert.equal(files.length, 1)
      await assertStored(at.dir, files[0] as Receipt['files'][0], bytes)
      assert.deepEqual(fields, { note: ['grüße'] })
    }
  }
  const at = await startServer(t)
  for (const headers of [coded, field]) {
    for (const body of [
      'eA',
      'eA=',
      'eB==',
      'e-_A',
      'eA==eA==',
      'eA==\r\ne',
      'eHh4*',
      '=',
      'e\0A=',
      'ZQ=Z',
      '====',
    ]) {
      for (const chunk of [1000, 1]) {
        const form = multipart([TITLE, NAMED, { headers, body }])
        await refused(at, form, 'malformed_body', /^part 3 \(\w+\) is not in base64/, { chunk })
      }
    }
  }
  const mixed = disposition(
    'name="f"',
    'Content-Type: multipart/mixed; boundary=I',
    'Content-Transfer-Encoding: base64',
  )
  const form = multipart([TITLE, NAMED, { headers: mixed, body: 'LS1J' }])
  await refused(at, form, 'malformed_body', /^part 3 has the Content-Transfer-Encoding base64/)
})

test('what cannot be read is said, with the part and its head', async t => {
  const at = await startServer(t)
  const form = multipart([TITLE, NAMED])
  const lines = (text: string) => Buffer.from(text)
  const rows: [string, Buffer, string, RegExp][] = [
    [
      'no disposition',
      multipart([TITLE, { headers: 'X-Odd: yes', body: 'x' }]),
      'malformed_body',
      /^part 2 has no Content-Disposition: "X-Odd: yes\\r\\n/,
    ],
    [
      'a quote within quotes',
      multipart([TITLE, NAMED, { headers: disposition('name="file"; filename="a"b.bin"'), body: 'x' }]),
      'malformed_body',
      /^part 3 has a Content-Disposition that cannot be read: ".*a\\"b\.bin/,
    ],
    [
      'no name',
      multipart([{ headers: disposition('filename="a.bin"'), body: 'x' }]),
      'malformed_body',
      /^part 1 has no name: /,
    ],
    [
      'an encoding',
      multipart([
        TITLE,
        { headers: disposition('name="f"', 'Content-Transfer-Encoding: quoted-printable'), body: '=78' },
      ]),
      'malformed_body',
      /^part 2 has the Content-Transfer-Encoding quoted-printable/,
    ],
    [
      'a header without a colon',
      multipart([{ headers: `${disposition('name="f"')}\r\nnonsense`, body: 'x' }]),
      'malformed_body',
      /^part 1 has a malformed header: .*nonsense/,
    ],
    [
      'LF alone everywhere',
      lines(form.toString().replaceAll('\r\n', '\n')),
      'malformed_body',
      /end in LF alone/,
    ],
    [
      'LF alone in a head',
      lines(form.toString().replace('named.bin"\r\n', 'named.bin"\n')),
      'malformed_body',
      /^the lines of part 2 end in LF alone/,
    ],
    [
      'LF alone behind a head',
      lines(form.toString().replace('octet-stream\r\n\r\n', 'octet-stream\n\n')),
      'malformed_body',
      /^the lines of part 2 end in LF alone/,
    ],
    ['LF alone around a preamble', lines(`preamble\n${form}`), 'malformed_body', /the form end in LF alone/],
    ['a boundary within a line', lines(`\ufeff${form}`), 'malformed_body', /"BOUNDARY" stands within a line/],
    ['another boundary', multipart([TITLE, NAMED], 'OTHER'), 'malformed_body', /"BOUNDARY" never appears/],
    ['no form', lines('{"title":"x"}'), 'malformed_body', /"BOUNDARY" never appears/],
    [
      'a longer boundary',
      multipart([TITLE, NAMED], 'BOUNDARYX'),
      'malformed_body',
      /before part 1 is followed by "X/,
    ],
    ['nothing', Buffer.alloc(0), 'truncated_body', /before its first part/],
    ['the beginning of a boundary', lines('--BOUND'), 'truncated_body', /before its first part/],
    [
      'a part behind the last one',
      Buffer.concat([form, Buffer.from('\r\n'), multipart([{ ...NAMED, filename: 'late.bin' }])]),
      'malformed_body',
      /^a part follows the closing boundary$/,
    ],
    ['cut in a file', form.subarray(0, form.length - 20), 'truncated_body', /ends in part 2 \(file\)/],
  ]
  for (const [row, body, code, detail] of rows) {
    for (const chunk of [body.length || 1, 3]) {
      await t.test(
        `${row}, ${chunk} bytes a read`,
        async () => void (await refused(at, body, code, detail, { chunk })),
      )
    }
  }
})

test('a part over a limit is named', async t => {
  const at = await startServer(t, { limits: { fields: 2, files: 1, fieldBytes: 100, nameBytes: 20 } })
  const note = (name: string, body: string): Part => ({ name, body })
  const rows: [string, Part[], RegExp][] = [
    ['too_many_fields', [TITLE, note('a', ''), note('b', '')], /: b is one too many/],
    ['too_many_files', [TITLE, NAMED, { ...NAMED, name: 'second' }], /: second has one too many/],
    ['fields_too_large', [TITLE, note('long', 'x'.repeat(200))], /larger than 100 B with long/],
    ['fields_too_large', [TITLE, note('long', 'x'.repeat(90))], /larger than 100 B with long/],
    [
      'name_too_long',
      [TITLE, { ...NAMED, name: 'f', filename: 'x'.repeat(21) }],
      /of a file in f has 21 bytes/,
    ],
  ]
  for (const [code, parts, detail] of rows) {
    await t.test(code, async () => void (await refused(at, multipart(parts), code, detail)))
  }
})

test('blanks behind a boundary are padding', async t => {
  const at = await startServer(t)
  const form = multipart([TITLE, NAMED, { name: 'note', body: 'x' }]).toString()
  for (const padding of [' ', '\t', '   \t ', ' '.repeat(1000)]) {
    const padded = Buffer.from(form.replaceAll('--BOUNDARY\r\n', `--BOUNDARY${padding}\r\n`))
    for (const chunk of [padded.length, 3, 1]) {
      const answer = await post(at.url, padded, { chunk })
      assert.equal(answer.status, 201, answer.text)
      assert.deepEqual(answer.json.fields, { note: ['x'] })
    }
  }
  const endless = Buffer.from(form.replace('--BOUNDARY\r\n', `--BOUNDARY${' '.repeat(100_000)}\r\n`))
  const answer = await post(at.url, endless, { chunk: 10_000 })
  assert.equal(answer.json.code, 'part_head_too_large')
})

test('“This field is required.” says what did arrive, and why it is none', async t => {
  const at = await startServer(t)
  const text = { name: 'file', body: 'only text' }
  const left = {
    headers: disposition('name="file"; filename=""', 'Content-Type: application/octet-stream'),
    body: '',
  }
  const rows: [string, Part[], RegExp][] = [
    ['text', [TITLE, text], /^file: This field is required\. What came under that name is text, 9 bytes: /],
    [
      'an input left alone',
      [TITLE, left],
      /^file: This field is required\. The part file is empty and has no filename/,
    ],
    ['a blank title', [{ name: 'title', body: ' ' }, NAMED], /^title: This field is required\. .* is blank/],
    ['a file for a title', [{ ...NAMED, name: 'title' }], /^title: This field is required\. .* is a file/],
    ['nothing', [TITLE], /^file: This field is required\.$/],
  ]
  for (const [row, parts, detail] of rows) {
    await t.test(row, async () => void (await refused(at, multipart(parts), 'invalid_form', detail)))
  }
})

test('--allow-empty stores an empty file; the refusal of one names it', async t => {
  const empty = { ...NAMED, body: '' }
  const strict = await startServer(t)
  await refused(
    strict,
    multipart([TITLE, NAMED, empty]),
    'invalid_form',
    /named\.bin: The submitted file is empty\. .*--allow-empty/,
  )
  const { url, dir } = await serve(t, ['--allow-empty'])
  const answer = await post(url, multipart([TITLE, empty, NAMED]))
  assert.equal(answer.status, 201, answer.text)
  assert.deepEqual(
    answer.json.files.map((file: { size: number }) => file.size),
    [0, 5],
  )
  assert.equal((await published(dir)).length, 2)
})
