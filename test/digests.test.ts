/** Digests that clients announce, and what the receipt says where handlers change the bytes. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { tap, type UploadHandler } from '../src/index.ts'
import {
  connect,
  multipart,
  type Part,
  post,
  published,
  randomFile,
  readAnswer,
  records,
  sha256,
  startServer,
  TITLE,
  temporaryFiles,
} from './support.ts'

const base64 = (algorithm: string, bytes: Buffer) => createHash(algorithm).update(bytes).digest('base64')
const WAYS = [{}, { memoryMax: 0 }, { memoryMax: 0, directMin: 0 }]

const withHeaders = (name: string, parameters: string, body: Buffer, ...lines: string[]): Part => ({
  headers: [`Content-Disposition: form-data; name="${name}"${parameters}`, ...lines].join('\r\n'),
  body,
})

test('a digest of the body: a right one is in the record, a wrong one refuses the upload', async t => {
  const form = multipart([TITLE, { name: 'file', filename: 'a.bin', body: randomFile(100_000) }])
  const other = Buffer.from('other bytes')
  const sha = (bytes: Buffer) => `sha-256=:${base64('sha256', bytes)}:`
  const rows: [string, Record<string, string>, string | undefined][] = [
    ['SHA-256', { 'Content-Digest': sha(form) }, sha(form)],
    [
      'SHA-512',
      { 'Content-Digest': `sha-512=:${base64('sha512', form)}:` },
      `sha-512=:${base64('sha512', form)}:`,
    ],
    ['one nobody knows beside it', { 'Content-Digest': `crc32c=:AAAAAA==:, ${sha(form)}` }, sha(form)],
    [
      'with parameters',
      { 'Content-Digest': `md5=:${base64('md5', form)}:;x; y="a,b" , ${sha(form)};z=1` },
      `md5=:${base64('md5', form)}:, ${sha(form)}`,
    ],
    ['as a representation', { 'Repr-Digest': sha(form) }, sha(form)],
    ['Content-MD5', { 'Content-MD5': base64('md5', form) }, `md5=:${base64('md5', form)}:`],
    ['wrong SHA-256', { 'Content-Digest': sha(other) }, undefined],
    ['right and wrong', { 'Content-Digest': `${sha(form)}, md5=:${base64('md5', other)}:` }, undefined],
    ['wrong as a representation', { 'Repr-Digest': sha(other) }, undefined],
    ['wrong Content-MD5', { 'Content-MD5': base64('md5', other) }, undefined],
    ['too short', { 'Content-Digest': 'sha-256=:AAAA:' }, undefined],
    ['no dictionary', { 'Content-Digest': 'nonsense' }, undefined],
    [
      'two of Content-MD5',
      { 'Content-MD5': base64('md5', form), 'content-md5': base64('md5', other) },
      undefined,
    ],
    ['Content-MD5 in something else', { 'Content-MD5': `!!${base64('md5', form)}##` }, undefined],
    ['an end that is none', { 'Content-Digest': `${sha(form)},` }, undefined],
    ['announced to come behind the body', { Trailer: 'X, Content-Digest' }, undefined],
    ['no MD5', { 'Content-MD5': 'nonsense' }, undefined],
  ]
  for (const options of WAYS) {
    for (const [row, headers, digest] of rows) {
      await t.test(row, async t => {
        const at = await startServer(t, options)
        for (const chunked of [false, true]) {
          const answer = await post(at.url, form, { headers, chunk: 30_000, chunked })
          if (digest !== undefined) {
            assert.equal(answer.json.contentDigest, digest, answer.text)
            assert.equal((await records(at.dir)).at(-1)?.contentDigest, digest)
          } else {
            assert.deepEqual([answer.status, answer.json.code], [400, 'bad_digest'], answer.text)
            assert.deepEqual(await published(at.dir), [])
            assert.deepEqual(await temporaryFiles(at), [])
          }
        }
      })
    }
  }
})

test('a digest of a part: a right one stands with its file, a wrong one refuses the upload and names it', async t => {
  const bytes = randomFile(100_000)
  const digest = `sha-256=:${base64('sha256', bytes)}:`
  const wrong = `sha-256=:${base64('sha256', Buffer.from('wrong'))}:`
  const note = Buffer.from('note')
  const good = withHeaders('file', '; filename="a.bin"', bytes, `Content-Digest: ${digest}`)
  for (const options of WAYS) {
    const at = await startServer(t, options)
    const rows: [Part, RegExp][] = [
      [
        withHeaders('file', '; filename="b.bin"', bytes, `Content-Digest: ${wrong}`),
        /digest of b\.bin is wrong/,
      ],
      [
        withHeaders('file', '; filename="b.bin"', bytes, 'Content-MD5: AAAAAAAAAAAAAAAAAAAAAA=='),
        /md5 digest of b\.bin/,
      ],
      [
        withHeaders('file', '; filename=""', Buffer.alloc(0), `Content-Digest: ${wrong}`),
        /digest of the part file is wrong/,
      ],
      [withHeaders('note', '', note, `Content-Digest: ${wrong}`), /digest of the field note is wrong/],
      [
        withHeaders('file', '; filename="b.bin"', bytes, 'Content-Digest: nonsense'),
        /content-digest cannot be read/,
      ],
      [
        withHeaders(
          'file',
          '; filename="b.bin"',
          bytes,
          `Content-Digest: ${digest}`,
          `Repr-Digest: ${digest}`,
          `Content-Digest: ${wrong}`,
        ),
        /digest of b\.bin is wrong/,
      ],
      [
        withHeaders(
          'file',
          '; filename="b.bin"',
          bytes,
          'Content-Digest: crc32c=:AAAA:',
          `Content-Digest: ${wrong}`,
        ),
        /digest of b\.bin is wrong/,
      ],
      [
        withHeaders(
          'note',
          '',
          note,
          `Content-MD5: ${base64('md5', note)}`,
          `Content-MD5: ${base64('md5', bytes)}`,
        ),
        /Content-MD5 cannot be read/,
      ],
    ]
    for (const [part, detail] of rows) {
      const answer = await post(at.url, multipart([TITLE, good, part]), { chunk: 30_000 })
      assert.deepEqual([answer.status, answer.json.code], [400, 'bad_digest'], answer.text)
      assert.match(answer.json.detail, detail)
      assert.deepEqual(await published(at.dir), [])
      assert.deepEqual(await temporaryFiles(at), [])
    }
    const right = withHeaders('note', '', note, `Content-Digest: sha-256=:${base64('sha256', note)}:`)
    const plain = { name: 'file', filename: 'plain.bin', body: 'x' }
    const { json } = await post(at.url, multipart([right, TITLE, good, plain]), { chunk: 30_000 })
    assert.equal(json.files[0].contentDigest, digest)
    assert.equal('contentDigest' in json.files[1], false)
    assert.deepEqual((await records(at.dir))[0]?.files, json.files)
  }
})

test('a digest behind the body is refused, not left out', async t => {
  const at = await startServer(t)
  const form = multipart([TITLE, { name: 'file', filename: 'a.bin', body: 'x' }])
  for (const name of ['Content-Digest', 'repr-digest', 'Content-MD5']) {
    const socket = connect(at.url)
    const answer = readAnswer(socket)
    const head = `POST / HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n`
    socket.write(
      `${head}${form.length.toString(16)}\r\n${form}\r\n0\r\nX: y\r\n${name}: sha-256=:AAAA:\r\n\r\n`,
    )
    const { status, json, text } = await answer
    assert.deepEqual([status, json?.code], [400, 'bad_digest'], text)
    assert.deepEqual(await published(at.dir), [])
    assert.deepEqual(await temporaryFiles(at), [])
  }
})

/** Stores every byte as its complement, behind a line of its own. */
const changing: UploadHandler = {
  name: 'changing',
  async open(file, next) {
    const inner = await next(file)
    let begun = false
    return tap(inner, {
      async write(chunk) {
        if (!begun) await inner.write(Buffer.from('begin\n'))
        begun = true
        await inner.write(chunk.map(byte => ~byte))
      },
    })
  },
}

test('what arrived is told beside what a handler made of it', async t => {
  const bytes = randomFile(200_000)
  const form = multipart([TITLE, { name: 'file', filename: 'a.bin', body: bytes }])
  const made = Buffer.concat([Buffer.from('begin\n'), bytes.map(byte => ~byte)])
  for (const options of WAYS) {
    for (const chunked of [false, true]) {
      const at = await startServer(t, { ...options, handlers: [changing] })
      const { json } = await post(at.url, form, { chunk: 30_000, chunked })
      const [file] = json.files
      assert.deepEqual([file.size, file.sha256], [made.length, sha256(made)])
      assert.deepEqual(file.arrived, { size: bytes.length, sha256: sha256(bytes) })
      assert.deepEqual((await records(at.dir))[0]?.files, json.files)
    }
    const blind = await startServer(t, { ...options, sha256: false, handlers: [changing] })
    const { json } = await post(blind.url, form)
    assert.deepEqual(json.files[0].arrived, { size: bytes.length })
  }
})

test('nothing more is told where the bytes came through as they were', async t => {
  const looking: UploadHandler = {
    name: 'looking',
    open: async (file, next) => tap(await next(file), {}),
  }
  const naming: UploadHandler = {
    name: 'naming',
    open: (file, next) => next({ ...file, name: `my-${file.name}` }),
  }
  const skipping: UploadHandler = {
    name: 'skipping',
    open: (file, next) =>
      file.name === 'skip' ? { write() {}, close: () => undefined, abort() {} } : next(file),
  }
  const file = { name: 'file', filename: 'a.bin', body: randomFile(1000) }
  const form = multipart([TITLE, file, { ...file, filename: 'skip' }])
  for (const options of WAYS) {
    const handlers = [skipping, looking, naming]
    const at = await startServer(t, { ...options, handlers })
    const { json } = await post(at.url, form)
    assert.deepEqual(
      [json.files.length, json.files[0].name, json.files[0].arrived],
      [1, 'my-a.bin', undefined],
    )
  }
})
