/** The last answer of a connection: it reaches whoever is still sending, and nothing that comes behind it is processed. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import test from 'node:test'
import { createLogger, type ServerOptions, type UploadHandler } from '../src/index.ts'
import {
  connect,
  gate,
  getProgress,
  multipart,
  type Part,
  parseAnswer,
  post,
  published,
  type RawAnswer,
  randomFile,
  readAnswer,
  startServer,
  TITLE,
  temporaryFiles,
  until,
} from './support.ts'

const FILE: Part = { name: 'file', filename: 'a.bin', type: 'application/octet-stream', body: 'the bytes' }
const FORM = multipart([TITLE, FILE])
const TYPE = 'Content-Type: multipart/form-data; boundary=BOUNDARY'
const MUCH = Buffer.alloc(5_000_000, 'x')

/** Sends a head and 5 MB behind it before it reads anything, as many clients do; what it reads then. */
async function insist(url: string, head: string, behind = MUCH): Promise<RawAnswer> {
  const socket = connect(url)
  socket.pause()
  socket.write(head)
  // Whether or not all of it was taken.
  await new Promise<void>(resolve => {
    socket.once('close', resolve)
    socket.write(behind, () => resolve())
  })
  return readAnswer(socket.resume())
}

const POST = 'POST / HTTP/1.1\r\nHost: localhost\r\n'
const WHOLE = `${POST}${TYPE}\r\nContent-Length: ${FORM.length}\r\n\r\n${FORM}`
const LENGTH = `Content-Length: ${MUCH.length}`
const rows: [row: string, head: string, status: number, code: string | undefined, options?: ServerOptions][] =
  [
    ['two lengths', `${POST}${TYPE}\r\n${LENGTH}\r\nContent-Length: 6\r\n\r\n`, 400, 'bad_request'],
    [
      'chunked beside a length',
      `${POST}${TYPE}\r\nTransfer-Encoding: chunked\r\n${LENGTH}\r\n\r\n`,
      400,
      'bad_request',
    ],
    [
      'a length beside chunked',
      `${POST}${TYPE}\r\n${LENGTH}\r\nTransfer-Encoding: chunked\r\n\r\n`,
      400,
      'bad_request',
    ],
    ['a head of 17 KiB', `${POST}X: ${'x'.repeat(17 * 1024)}\r\n${LENGTH}\r\n\r\n`, 431, 'head_too_large'],
    ['no HTTP', 'nonsense\r\n\r\n', 400, 'bad_request'],
    ['no Host', `POST / HTTP/1.1\r\n${TYPE}\r\n${LENGTH}\r\n\r\n`, 400, 'bad_request'],
    ['two Hosts', `${POST}Host: other\r\n${TYPE}\r\n${LENGTH}\r\n\r\n`, 400, 'bad_request'],
    ['gzip', `${POST}${TYPE}\r\nTransfer-Encoding: gzip\r\n\r\n`, 501, 'not_implemented'],
    [
      'gzip and chunked',
      `${POST}${TYPE}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n`,
      501,
      'not_implemented',
    ],
    [
      'chunked and gzip',
      `${POST}${TYPE}\r\nTransfer-Encoding: chunked, gzip\r\n\r\n`,
      501,
      'not_implemented',
    ],
    ['a tunnel', 'CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n', 405, 'method_not_allowed'],
    ['an expectation', `${POST}${TYPE}\r\nExpect: foo\r\n${LENGTH}\r\n\r\n`, 417, 'expectation_failed'],
    ['a method', `PUT / HTTP/1.1\r\nHost: localhost\r\n${LENGTH}\r\n\r\n`, 405, 'method_not_allowed'],
    ['a path', `POST /nothing HTTP/1.1\r\nHost: localhost\r\n${LENGTH}\r\n\r\n`, 404, 'not_found'],
    ['no token', `${POST}${TYPE}\r\n${LENGTH}\r\n\r\n`, 401, 'unauthorized', { token: 'secret' }],
    [
      'a tunnel, no token',
      'CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n',
      401,
      'unauthorized',
      { token: 'secret' },
    ],
    ['a page', `GET / HTTP/1.1\r\nHost: localhost\r\n${LENGTH}\r\n\r\n`, 200, undefined],
    ['no length', `${POST}${TYPE}\r\nConnection: close\r\n\r\n`, 411, 'length_required'],
    [
      'chunks that are none',
      `${POST}${TYPE}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n`,
      400,
      'bad_request',
    ],
    [
      'too many connections',
      `${POST}${TYPE}\r\n${LENGTH}\r\n\r\n`,
      503,
      'too_many_connections',
      { limits: { connections: 0 } },
    ],
    ['a length too small', WHOLE, 201, undefined],
    ['a length too small, read directly', WHOLE, 201, undefined, { directMin: 0, memoryMax: 0 }],
  ]
for (const [row, head, status, code, options] of rows) {
  test(`an answer arrives although 5 MB more are sent: ${row}`, async t => {
    const at = await startServer(t, options)
    for (let i = 0; i < 5; i++) {
      const answer = await insist(at.url, head)
      assert.deepEqual([answer.status, answer.json?.code], [status, code], answer.text)
      if (code === undefined) continue
      assert.equal(answer.headers.get('connection'), 'close')
      assert.equal(answer.headers.get('content-type'), 'application/problem+json')
      assert.equal(answer.json.status, status)
    }
    assert.deepEqual(await temporaryFiles(at), [])
    if (status !== 201) assert.deepEqual(await published(at.dir), [])
  })
}

test('a request without a body is told so by the record as well', async t => {
  const { url } = await startServer(t)
  const socket = connect(url)
  const answer = readAnswer(socket)
  socket.end(`POST / HTTP/1.0\r\nX-Progress-ID: bare\r\n${TYPE}\r\n\r\n`)
  assert.equal((await answer).json.code, 'length_required')
  const progress = await getProgress(url, 'bare')
  assert.equal(progress.state === 'error' && progress.status, 411)
})

/** Ways in which a body is read. */
const WAYS: Record<string, ServerOptions> = {
  'by node': {},
  'by node, to disk': { memoryMax: 0 },
  directly: { memoryMax: 0, directMin: 0 },
}

for (const [way, options] of Object.entries(WAYS)) {
  test(`a body that ends early is answered on the half that is open, and all of it counted: ${way}`, async t => {
    // Some hear of it before they read, some while they do.
    const waiting = new Map<string, () => void>()
    const slow: UploadHandler = {
      name: 'slow',
      begin: ({ id }) =>
        id.startsWith('slow') ? new Promise<void>(resolve => waiting.set(id, resolve)) : undefined,
    }
    const at = await startServer(t, { ...options, handlers: [slow] })
    const big = multipart([TITLE, { ...FILE, body: randomFile(300_000) }])
    const bodies = [
      FORM.subarray(0, 180),
      FORM,
      big.subarray(0, 250_000),
      Buffer.from('x'),
      FORM.subarray(0, 0),
    ]
    const cases = ['quick', 'slow'].flatMap(how => [false, true].map(chunked => ({ how, chunked })))
    for (const { how, chunked } of cases) {
      for (const [i, body] of bodies.entries()) {
        for (let again = 0; again < 5; again++) {
          const id = `${how}-${chunked}-${i}-${again}`
          const socket = connect(at.url)
          const answer = readAnswer(socket)
          const framing = chunked ? 'Transfer-Encoding: chunked' : `Content-Length: ${body.length + 1000}`
          socket.write(`${POST}X-Progress-ID: ${id}\r\n${TYPE}\r\n${framing}\r\n\r\n`)
          if (chunked) socket.write(`${(body.length + 9).toString(16)}\r\n`)
          socket.end(body)
          if (how === 'slow') {
            await until(
              () => getProgress(at.url, id),
              () => waiting.has(id),
            )
            waiting.get(id)?.()
          }
          const { status, json, text } = await answer
          assert.deepEqual([status, json?.code], [400, 'truncated_body'], `${id} ${text}`)
          const progress = await getProgress(at.url, id)
          assert.equal(progress.state === 'error' && progress.received, body.length, id)
          assert.match(json.detail, new RegExp(`after ${body.length}\\b`))
        }
      }
    }
    assert.deepEqual(await temporaryFiles(at), [])
    assert.deepEqual(await published(at.dir), [])
  })
}

test('a client that closes its half behind its request is answered all the same', async t => {
  for (const options of Object.values(WAYS)) {
    const waiting = new Map<string, () => void>()
    const complete = ({ id }: { id: string }) => new Promise<void>(resolve => waiting.set(id, resolve))
    const slow: UploadHandler = { name: 'slow', complete }
    const at = await startServer(t, { ...options, handlers: [slow] })
    for (const id of ['a', 'b', 'c']) {
      const socket = connect(at.url)
      const answer = readAnswer(socket)
      socket.end(`${WHOLE.replace('\r\n', `\r\nX-Progress-ID: ${id}\r\n`)}`)
      await until(
        () => getProgress(at.url, id),
        () => waiting.has(id),
      )
      waiting.get(id)?.()
      assert.equal((await answer).status, 201)
    }
  }
  const { url } = await startServer(t)
  for (const line of [
    'GET / HTTP/1.1',
    'GET /progress/a HTTP/1.1',
    'GET /nothing HTTP/1.1',
    'GET / HTTP/1.0',
  ]) {
    const socket = connect(url)
    const answer = readAnswer(socket)
    socket.end(`${line}\r\nHost: localhost\r\n\r\n`)
    assert.equal((await answer).status, line.includes('nothing') ? 404 : 200, line)
  }
  // A head that breaks off has no request to answer.
  const socket = connect(url)
  const answer = readAnswer(socket)
  socket.end('POST / HTTP/1.1\r\nHost: local')
  assert.deepEqual([(await answer).status, (await answer).json.code], [400, 'bad_request'])
})

/** Uploads that the server has had, however they ended, and what it stores. */
async function stored(url: string): Promise<number> {
  const text = await (await fetch(new URL('metrics', url))).text()
  return Number(/outcome="stored"} (\d+)/.exec(text)?.[1])
}

test('what is pipelined behind a stream of events is not read', async t => {
  const held = gate()
  const at = await startServer(t, { handlers: [held.handler] })
  const watched = post(at.url, FORM, { headers: { 'X-Progress-ID': 'watched' } })
  await held.reached
  const socket = connect(at.url)
  let text = ''
  socket.on('data', data => (text += data))
  socket.write('GET /progress/watched HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n')
  socket.write(WHOLE.replace('a.bin', 'behind.bin'))
  // Nor is anything behind that: it would be kept for as long as the stream is open.
  const many = Buffer.from('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(500_000))
  socket.write(many)
  await until(
    () => text,
    text => text.includes('"uploading"'),
  )
  assert.ok(socket.writableLength > many.length / 2, `${socket.writableLength} are left to be taken`)
  const closed = once(socket, 'close')
  held.open()
  assert.equal((await watched).status, 201)
  await closed
  assert.match(text, /"state":"done"/)
  assert.equal(text.match(/HTTP\/1\.1/g)?.length, 1, 'one answer')
  assert.equal(await stored(at.url), 1)
  assert.deepEqual(await published(at.dir), ['a.bin'])
})

test('nor is it behind an answer that closes the connection, which arrives', async t => {
  const at = await startServer(t)
  const firsts: [string, number][] = [
    ['GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n', 200],
    ['GET /progress/a HTTP/1.0\r\n\r\n', 200],
    ['GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n', 404],
    [WHOLE.replace('\r\n', '\r\nConnection: close\r\n'), 201],
  ]
  for (const [first, status] of firsts) {
    const before = await stored(at.url)
    const behind = WHOLE.replace('a.bin', 'behind.bin')
    const answer = await insist(at.url, first + behind)
    assert.equal(answer.status, status)
    assert.equal(answer.headers.get('connection'), 'close')
    assert.doesNotMatch(answer.text, /HTTP\/1\.1/)
    assert.equal(await stored(at.url), before + (status === 201 ? 1 : 0))
  }
  assert.deepEqual(await published(at.dir), ['a.bin'])
})

test('a tunnel, or what is no HTTP, takes no answer away from the requests before it', async t => {
  const close = '\r\nHost: localhost\r\nConnection: close\r\n\r\n'
  for (const behind of ['CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n', 'nonsense\r\n\r\n']) {
    const befores: [before: string, statuses: number[]][] = [
      [WHOLE, [201]],
      // Answered at once, but after the upload: its answer waits in line.
      [`${WHOLE}GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n`, [201, 404]],
      [`GET /nothing HTTP/1.1${close}`, [404]],
      [`${WHOLE}GET / HTTP/1.1${close}`, [201, 200]],
    ]
    for (const [before, statuses] of befores) {
      const waiting: (() => void)[] = []
      const complete = () => new Promise<void>(resolve => waiting.push(resolve))
      const at = await startServer(t, { handlers: [{ name: 'slow', complete }] })
      const socket = connect(at.url)
      let text = ''
      socket.on('data', data => (text += data))
      socket.write(before + behind)
      if (before.startsWith(WHOLE)) {
        await until(
          () => waiting.length,
          length => length > 0,
        )
        // What is behind it has been read, too.
        await getProgress(at.url, 'none')
        assert.equal(text, '')
        waiting[0]?.()
      }
      await once(socket, 'close')
      const answers = text.split(/(?=HTTP\/1\.1 )/).map(parseAnswer)
      const seen = answers.map(({ status }) => status)
      assert.deepEqual(seen, statuses, `${before}${behind}`)
      assert.deepEqual(await published(at.dir), before.startsWith(WHOLE) ? ['a.bin'] : [])
    }
    // A stream of events.
    const held = gate()
    const at = await startServer(t, { handlers: [held.handler] })
    const watched = post(at.url, FORM, { headers: { 'X-Progress-ID': 'watched' } })
    await held.reached
    const socket = connect(at.url)
    const stream = readAnswer(socket)
    socket.write('GET /progress/watched HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n')
    socket.write(behind)
    await once(socket, 'data')
    held.open()
    assert.equal((await watched).status, 201)
    const { status, text } = await stream
    assert.equal(status, 200)
    assert.match(text, /"state":"done"/)
    assert.doesNotMatch(text, /HTTP\/1\.1/)
  }
})

test('a client that resets its connection behind a tunnel that was not answered ends nothing else', async t => {
  const waiting: (() => void)[] = []
  const complete = () => new Promise<void>(resolve => waiting.push(resolve))
  const at = await startServer(t, { handlers: [{ name: 'slow', complete }] })
  const socket = connect(at.url)
  socket.write(`${WHOLE}CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n`)
  await until(
    () => waiting.length,
    length => length > 0,
  )
  await getProgress(at.url, 'none')
  socket.resetAndDestroy()
  waiting[0]?.()
  // An answer to a connection that is gone.
  await until(
    () => stored(at.url),
    count => count === 1,
  )
  assert.deepEqual(await published(at.dir), ['a.bin'])
})

test('answers that wait in line end with their connection', async t => {
  const get = (path: string, more = '') => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${more}\r\n`
  for (const behind of ['', 'CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n']) {
    const waiting: (() => void)[] = []
    const wait = () => new Promise<void>(resolve => waiting.push(resolve))
    const lines: string[] = []
    const log = createLogger({ stream: { write: line => lines.push(line) }, format: 'json' })
    const at = await startServer(t, { log, handlers: [{ name: 'slow', complete: wait }] })
    const socket = connect(at.url)
    const second = WHOLE.replace('a.bin', 'b.bin')
    socket.write(WHOLE + get('/first') + second + get('/second') + behind)
    await until(
      () => waiting.length,
      length => length === 2,
    )
    await getProgress(at.url, 'none')
    socket.resetAndDestroy()
    const told = () => lines.filter(line => /"path":"\/(first|second)?"/.test(line))
    // Those that were ready are told of with the connection, those of uploads with these.
    await until(told, lines => lines.length === 2)
    for (const go of waiting) go()
    await until(told, lines => lines.length === 4)
    assert.deepEqual(await published(at.dir), ['a.bin', 'b.bin'])
  }
})

test('what is pipelined behind an answer that is kept is answered in its turn', async t => {
  const { url } = await startServer(t)
  const socket = connect(url)
  let text = ''
  socket.on('data', data => (text += data))
  const last = WHOLE.replace('\r\n', '\r\nConnection: close\r\n')
  socket.write(`GET /progress/a HTTP/1.1\r\nHost: localhost\r\n\r\n${WHOLE}${last}`)
  await once(socket, 'close')
  const answers = text.split(/(?=HTTP\/1\.1 )/).map(parseAnswer)
  assert.deepEqual(
    answers.map(({ status, headers }) => [status, headers.get('connection')]),
    [
      [200, 'keep-alive'],
      [201, 'keep-alive'],
      [201, 'close'],
    ],
  )
})
