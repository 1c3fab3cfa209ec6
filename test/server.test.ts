/** The HTTP surface over real sockets, and with the clients people use. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import net, { type Socket } from 'node:net'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { request } from 'undici'
import {
  createLogger,
  type LogLevel,
  type ServerOptions,
  tap,
  UploadError,
  type UploadHandler,
} from '../src/index.ts'
import {
  connect,
  gate,
  getProgress,
  multipart,
  parseAnswer,
  post,
  published,
  type RawAnswer,
  randomFile,
  readAnswer,
  records,
  run,
  serve,
  startServer,
  TITLE,
  tempDir,
  temporaryFiles,
  until,
  uploadr,
} from './support.ts'

const FILE = { name: 'file', filename: 'a.bin', type: 'application/octet-stream', body: 'the bytes' }
const FORM = multipart([TITLE, FILE])

/** A whole request as text; its answer, read to the end of the connection. */
async function raw(url: string, head: string): Promise<RawAnswer> {
  const socket = connect(url)
  socket.write(`${head}\r\nHost: localhost\r\nConnection: close\r\n\r\n`)
  return readAnswer(socket)
}

/** Begins an upload of `length` bytes, or of chunks, and leaves its body to the caller. */
function begin(url: string, id: string, length: number | undefined, more = ''): Socket {
  const socket = connect(url)
  const framing = length === undefined ? 'Transfer-Encoding: chunked' : `Content-Length: ${length}`
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: ${id}\r\nConnection: close\r\n${more}` +
      `Content-Type: multipart/form-data; boundary=BOUNDARY\r\n${framing}\r\n\r\n`,
  )
  return socket
}

const received = (url: string, id: string, count: number) =>
  until(
    () => getProgress(url, id),
    progress => progress.state === 'uploading' && progress.received >= count,
  )

test('routes and methods', async t => {
  const { url } = await startServer(t)
  const rows: [string, number, (string | undefined)?, string?][] = [
    ['GET / HTTP/1.1', 200],
    ['HEAD / HTTP/1.1', 200],
    ['GET /healthz HTTP/1.1', 200],
    ['GET /metrics HTTP/1.1', 200],
    ['GET /progress/x HTTP/1.1', 200],
    ['OPTIONS / HTTP/1.1', 204, undefined, 'GET, HEAD, POST, OPTIONS'],
    ['OPTIONS /progress HTTP/1.1', 204, undefined, 'GET, HEAD, OPTIONS'],
    ['PUT / HTTP/1.1', 405, 'method_not_allowed', 'GET, HEAD, POST, OPTIONS'],
    ['DELETE /progress/x HTTP/1.1', 405, 'method_not_allowed', 'GET, HEAD, OPTIONS'],
    ['POST /healthz HTTP/1.1', 405, 'method_not_allowed', 'GET, HEAD, OPTIONS'],
    ['GET /nothing HTTP/1.1', 404, 'not_found'],
    ['POST /nothing HTTP/1.1', 404, 'not_found'],
    ['GET /../../etc/passwd HTTP/1.1', 404, 'not_found'],
    ['GET //progress HTTP/1.1', 404, 'not_found'],
    ['GET /__proto__ HTTP/1.1', 404, 'not_found'],
    ['GET /progress HTTP/1.1', 400, 'bad_progress_id'],
    ['GET /progress/a/b HTTP/1.1', 400, 'bad_progress_id'],
    ['GET /progress/%41 HTTP/1.1', 400, 'bad_progress_id'],
    ['GET / HTTP/9.9', 400],
    ['nonsense', 400],
  ]
  for (const [line, status, code, allow] of rows) {
    await t.test(`${line}: ${status}`, async () => {
      const answer = await raw(url, line)
      assert.equal(answer.status, status, answer.text)
      if (allow) assert.equal(answer.headers.get('allow'), allow)
      if (line.startsWith('HEAD')) assert.equal(answer.text, '')
      if (code === undefined) return
      assert.equal(answer.headers.get('content-type'), 'application/problem+json')
      assert.equal(answer.json.code, code)
      assert.equal(answer.json.status, status)
      assert.deepEqual(Object.keys(answer.json), ['type', 'title', 'status', 'detail', 'code'])
    })
  }
  await t.test('a head of too many bytes is 431', async () => {
    const { status } = await raw(url, `GET / HTTP/1.1\r\nX-Long: ${'x'.repeat(40_000)}`)
    assert.equal(status, 431)
  })
})

test('with curl: what was sent is stored and seen on the way, starting, uploading, done', async t => {
  const held = gate()
  const at = await startServer(t, { handlers: [held.handler] })
  const path = join(await tempDir(t), 'f.bin')
  await writeFile(path, randomFile(3_000_000))
  assert.deepEqual(await getProgress(at.url, 'abc'), { state: 'starting' })
  const curl = run('curl', [
    '-sS',
    '-F',
    'title=x',
    '-F',
    `file=@${path}`,
    '-H',
    'X-Progress-ID: abc',
    at.url,
  ])
  await held.reached
  const poll = async () =>
    JSON.parse((await run('curl', ['-sS', `${at.url}progress?X-Progress-ID=abc`])).stdout)
  const uploading = await poll()
  assert.equal(uploading.state, 'uploading')
  assert.equal(uploading.phase, 'receiving')
  assert.ok(uploading.received < uploading.size)
  held.open()
  const { code, stdout } = await curl
  assert.equal(code, 0)
  const receipt = JSON.parse(stdout)
  assert.deepEqual([receipt.id, receipt.title, receipt.files[0].size], ['abc', 'x', 3_000_000])
  const done = await poll()
  assert.deepEqual(done, { state: 'done', received: uploading.size, size: uploading.size })
})

test('an id is taken from header, query or path; the header wins; two are refused', async t => {
  const { url } = await startServer(t)
  const upload = (path: string, headers: Record<string, string> = {}) => post(url, FORM, { path, headers })
  assert.equal((await upload('/?x-progress-id=query')).json.id, 'query')
  assert.equal((await upload('/?X-Progress-ID=query2', { 'x-PROGRESS-id': 'header' })).json.id, 'header')
  assert.match((await upload('/')).json.id, /^[0-9a-f-]{36}$/)
  for (const id of ['', 'a b', 'a,b', 'ü', 'a'.repeat(129), '<script>']) {
    const answer = await upload('/', { 'X-Progress-ID': id })
    assert.deepEqual([answer.status, answer.json.code], [400, 'bad_progress_id'], id)
  }
  const twice = await raw(url, 'GET /progress HTTP/1.1\r\nX-Progress-ID: a\r\nX-Progress-ID: b')
  assert.equal(twice.json.code, 'bad_progress_id')

  const ask = async (path: string, more = '') => (await raw(url, `GET ${path} HTTP/1.1${more}`)).json.state
  assert.equal(await ask('/progress/query'), 'done')
  assert.equal(await ask('/progress?X-Progress-ID=query'), 'done')
  assert.equal(await ask('/progress', '\r\nX-Progress-ID: query'), 'done')
  assert.equal(await ask('/progress?X-Progress-ID=unknown', '\r\nX-Progress-ID: query'), 'done')
  assert.equal(await ask('/progress/unknown'), 'starting')
})

test('progress is not cached, and as JSONP only a callback name comes back', async t => {
  const { url } = await startServer(t)
  await post(url, FORM, { headers: { 'X-Progress-ID': 'a' } })
  const plain = await raw(url, 'GET /progress/a HTTP/1.1')
  assert.equal(plain.headers.get('cache-control'), 'no-store')
  assert.equal(plain.headers.get('content-type'), 'application/json')
  for (const callback of ['f', '$.cb_1', 'x'.repeat(64)]) {
    const { headers, text } = await raw(url, `GET /progress/a?callback=${callback} HTTP/1.1`)
    assert.match(String(headers.get('content-type')), /^text\/javascript/)
    assert.equal(headers.get('x-content-type-options'), 'nosniff')
    assert.ok(text.trim().endsWith(`${callback}(${plain.text.trim()});`), text)
  }
  for (const callback of ['', 'a(b', 'a;b', 'a%0Ab', '%3Cscript%3E', 'x'.repeat(65)]) {
    const { status, json } = await raw(url, `GET /progress/a?callback=${callback} HTTP/1.1`)
    assert.deepEqual([status, json.code], [400, 'bad_callback'], callback)
  }
})

test('an id that is live is refused, and its upload goes on', async t => {
  const at = await startServer(t)
  const socket = begin(at.url, 'twin', FORM.length)
  const answer = readAnswer(socket)
  socket.write(FORM.subarray(0, 50))
  const before = await received(at.url, 'twin', 50)
  const second = await post(at.url, FORM, { headers: { 'X-Progress-ID': 'twin' } })
  assert.deepEqual([second.status, second.json.code], [409, 'progress_id_in_use'])
  assert.deepEqual(await getProgress(at.url, 'twin'), before)
  socket.write(FORM.subarray(50))
  assert.equal((await answer).status, 201)
  assert.equal((await published(at.dir)).length, 1)
  // Ended, it may be used again.
  assert.equal((await post(at.url, FORM, { headers: { 'X-Progress-ID': 'twin' } })).status, 201)
})

test('done has received == size, with a length and without', async t => {
  const { url } = await startServer(t)
  for (const chunked of [false, true]) {
    const id = `done-${chunked}`
    await post(url, FORM, { chunked, chunk: 20, headers: { 'X-Progress-ID': id } })
    assert.deepEqual(await getProgress(url, id), { state: 'done', received: FORM.length, size: FORM.length })
  }
})

test('ended uploads are forgotten after their time, live ones never', async t => {
  const { url } = await startServer(t, { progressTtl: 1 })
  const socket = begin(url, 'live', FORM.length)
  socket.write(FORM.subarray(0, 10))
  await received(url, 'live', 10)
  await post(url, FORM, { headers: { 'X-Progress-ID': 'ended' } })
  await until(
    () => getProgress(url, 'ended'),
    ({ state }) => state === 'starting',
  )
  assert.equal((await getProgress(url, 'live')).state, 'uploading')
  socket.destroy()
})

/** Sends a head that expects 100-continue, and the body only if it is asked for. */
async function expecting(url: string, headers: string): Promise<{ continued: boolean; answer: RawAnswer }> {
  const socket = connect(url)
  let text = ''
  socket.on('data', data => (text += data))
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n${headers}\r\n\r\n`,
  )
  await until(
    () => text,
    text => text.includes('\r\n\r\n'),
  )
  const continued = text.startsWith('HTTP/1.1 100 ')
  if (continued) socket.write(FORM)
  await new Promise<void>(resolve => socket.once('close', () => resolve()))
  return { continued, answer: parseAnswer(text) }
}

test('refused before a byte of the body is asked for', async t => {
  const token = 'secret'
  const { url } = await startServer(t, {
    token,
    limits: { body: 10_000 },
    handlers: [
      {
        name: 'picky',
        begin: ({ id }) => {
          if (id === 'refuse') throw new Error('not you')
        },
      },
    ],
  })
  const type = 'Content-Type: multipart/form-data; boundary=BOUNDARY'
  const length = `Content-Length: ${FORM.length}`
  const access = `Authorization: Bearer ${token}`
  const rows: [string, string[], number, string][] = [
    ['no token', [type, length], 401, 'unauthorized'],
    ['too large', [access, type, 'Content-Length: 10001'], 413, 'body_too_large'],
    ['wrong type', [access, 'Content-Type: text/plain', length], 415, 'unsupported_media_type'],
    ['no boundary', [access, 'Content-Type: multipart/form-data', length], 400, 'malformed_body'],
    ['a bad id', [access, type, length, 'X-Progress-ID: a b'], 400, 'bad_progress_id'],
    ['a handler that refuses', [access, type, length, 'X-Progress-ID: refuse'], 500, 'handler_failed'],
  ]
  for (const [row, headers, status, code] of rows) {
    await t.test(row, async () => {
      const { continued, answer } = await expecting(url, headers.join('\r\n'))
      assert.equal(continued, false)
      assert.deepEqual([answer.status, answer.json.code], [status, code])
    })
  }
  await t.test('accepted', async () => {
    const { continued, answer } = await expecting(url, [access, type, length].join('\r\n'))
    assert.deepEqual([continued, answer.status], [true, 201])
  })
  await t.test('curl sends no byte of 64 MB', async t => {
    const path = join(await tempDir(t), 'large')
    await writeFile(path, Buffer.alloc(64_000_000))
    const headers = ['-H', 'Expect: 100-continue', '-H', `Authorization: Bearer ${token}`]
    const format = ['-o', '/dev/null', '-w', '%{http_code} %{size_upload}']
    const { stdout } = await run('curl', ['-sS', ...headers, ...format, '-F', `file=@${path}`, url])
    assert.equal(stdout, '413 0')
  })
})

test('a refusal in mid-upload reaches the client, every time', async t => {
  const { url } = await startServer(t, { limits: { body: 1_000_000 } })
  const form = multipart([TITLE, { ...FILE, body: Buffer.alloc(30_000_000) }])
  const path = join(await tempDir(t), 'large')
  await writeFile(path, Buffer.alloc(30_000_000))
  const TRIES = 10
  await t.test('a plain socket', async () => {
    for (let i = 0; i < TRIES; i++) {
      const { status, json } = await post(url, form, { chunked: true, chunk: 1_000_000 })
      assert.deepEqual([status, json.code], [413, 'body_too_large'])
    }
  })
  await t.test('curl', async () => {
    for (let i = 0; i < TRIES; i++) {
      const args = ['-sS', '-H', 'Transfer-Encoding: chunked', '-H', 'Expect:', '-F', `file=@${path}`, url]
      const { code, stdout, stderr } = await run('curl', args)
      assert.equal(code, 0, stderr)
      assert.equal(JSON.parse(stdout).code, 'body_too_large')
    }
  })
  await t.test('undici', async () => {
    async function* chunks() {
      for (let at = 0; at < form.length; at += 65_536) yield form.subarray(at, at + 65_536)
    }
    for (let i = 0; i < TRIES; i++) {
      const { statusCode, body } = await request(url, {
        method: 'POST',
        headers: { 'content-type': 'multipart/form-data; boundary=BOUNDARY' },
        body: Readable.from(chunks()),
      })
      assert.equal(statusCode, 413)
      assert.equal(((await body.json()) as { code: string }).code, 'body_too_large')
    }
  })
})

test('early refusals are told by progress too', async t => {
  const { url } = await startServer(t, { limits: { body: 1000 } })
  const headers = { 'X-Progress-ID': 'big' }
  await post(url, Buffer.alloc(1001), { headers })
  const progress = await getProgress(url, 'big')
  assert.ok(progress.state === 'error')
  assert.deepEqual([progress.status, progress.code, progress.size], [413, 'body_too_large', 1001])
  await post(url, FORM, { headers: { 'X-Progress-ID': 'type', 'Content-Type': 'text/plain' } })
  const type = await getProgress(url, 'type')
  assert.ok(type.state === 'error')
  assert.equal(type.status, 415)
})

test('silence ends an upload with 408, a slow steady one goes on', async t => {
  const idle = 400
  const at = await startServer(t, { limits: { idle } })
  const silent = begin(at.url, 'silent', FORM.length)
  const silentAnswer = readAnswer(silent)
  silent.write(FORM.subarray(0, 20))
  const steady = begin(at.url, 'steady', FORM.length)
  const steadyAnswer = readAnswer(steady)
  const pieces = 16
  for (let i = 0; i < pieces; i++) {
    steady.write(FORM.subarray((FORM.length * i) / pieces, (FORM.length * (i + 1)) / pieces))
    // Together several times as long as may be silent.
    await delay(idle / 8)
  }
  assert.equal((await steadyAnswer).status, 201)
  const answer = await silentAnswer
  assert.deepEqual([answer.status, answer.json.code], [408, 'idle_timeout'])
  const progress = await getProgress(at.url, 'silent')
  assert.equal(progress.state === 'error' && progress.code, 'idle_timeout')
  assert.deepEqual(await temporaryFiles(at), [])
})

test('a handler may take longer than a client may be silent', async t => {
  const held = gate()
  const at = await startServer(t, { limits: { idle: 100 }, handlers: [held.handler] })
  const answer = post(at.url, multipart([TITLE, { ...FILE, body: randomFile(1_000_000) }]))
  await held.reached
  await delay(300)
  held.open()
  assert.equal((await answer).status, 201)
})

test('a head that does not end is 408', async t => {
  const { url } = await startServer(t, { headerTimeout: 200 })
  const socket = connect(url)
  const answer = readAnswer(socket)
  socket.write('POST / HTTP/1.1\r\nHost: localhost\r\n')
  assert.equal((await answer).status, 408)
})

test('a token is asked for on every route but that of probes', async t => {
  const token = 'a:token-with~odd.characters'
  const { url, dir } = await startServer(t, { token })
  const basic = (pair: string) => `Basic ${Buffer.from(pair).toString('base64')}`
  const right = [`Bearer ${token}`, `bearer  ${token}`, basic(`anyone:${token}`), basic(`:${token}`)]
  const wrong = [
    undefined,
    '',
    'Bearer',
    'Bearer ',
    `Bearer ${token}x`,
    `Bearer ${token.slice(1)}`,
    `Token ${token}`,
    token,
    basic(token.replace(':', '')),
    basic(`${token}:`),
    'Basic !!!',
  ]
  for (const path of ['/', '/progress/x', '/metrics', '/nothing']) {
    for (const authorization of wrong) {
      const line = authorization === undefined ? '' : `\r\nAuthorization: ${authorization}`
      const answer = await raw(url, `GET ${path} HTTP/1.1${line}`)
      assert.deepEqual([answer.status, answer.json.code], [401, 'unauthorized'], `${path} ${authorization}`)
      assert.match(String(answer.headers.get('www-authenticate')), /Bearer.*Basic/)
      assert.ok(!answer.text.includes(token))
    }
    for (const authorization of right) {
      const { status } = await raw(url, `GET ${path} HTTP/1.1\r\nAuthorization: ${authorization}`)
      assert.equal(status, path === '/nothing' ? 404 : 200, `${path} ${authorization}`)
    }
  }
  assert.equal((await post(url, FORM)).status, 401)
  assert.deepEqual(await readdir(dir), ['.uploadr'])
  assert.equal((await post(url, FORM, { headers: { Authorization: `Bearer ${token}` } })).status, 201)
})

test('without the token nothing but the 401 is to be had, whatever else is wrong; a probe needs none', async t => {
  const { url } = await startServer(t, { token: 'hidden' })
  const browser = '\r\nOrigin: http://evil.example\r\nAccept: text/html'
  const wrong: string[] = [
    'POST / HTTP/1.1\r\nExpect: foo\r\nContent-Length: 5',
    `POST / HTTP/1.1\r\nExpect: foo\r\nContent-Length: 5${browser}`,
    `GET / HTTP/1.1${browser}`,
    `GET / HTTP/1.1\r\nCookie: uploadr_stored=x${browser}`,
    `GET /nothing HTTP/1.1${browser}`,
    'OPTIONS / HTTP/1.1',
    'OPTIONS * HTTP/1.1',
    'PUT / HTTP/1.1',
    'POST /healthz HTTP/1.1',
    'OPTIONS /healthz HTTP/1.1',
    'GET /healthz/ HTTP/1.1',
    // A probe with something wrong is none.
    'GET /healthz HTTP/1.1\r\nExpect: foo',
    'GET /healthz HTTP/1.1\r\nHost: another',
    'GET /metrics HTTP/1.1',
    'GET /progress/a?callback=( HTTP/1.1',
    'GET /progress HTTP/1.1',
    'GET /assets/none HTTP/1.1',
  ]
  for (const line of wrong) {
    const { status, headers, text } = await raw(url, line)
    assert.equal(status, 401, line)
    for (const header of ['set-cookie', 'allow', 'location'])
      assert.equal(headers.get(header), undefined, line)
    assert.doesNotMatch(text, /<form|csrf/, line)
    assert.match(text, /--token/, line)
  }
  for (const line of [
    'GET /healthz',
    'HEAD /healthz',
    'GET /healthz?probe=1',
    'GET http://localhost/healthz',
  ]) {
    const { status, text } = await raw(url, `${line} HTTP/1.1`)
    assert.equal(status, 200, line)
    assert.equal(text, line.startsWith('HEAD') ? '' : '{"ok":true}\n')
  }
})

test('targets and expectations: what means the same is taken for the same', async t => {
  const { url } = await startServer(t)
  const type = 'Content-Type: multipart/form-data; boundary=BOUNDARY'
  const send = async (target: string, more: string) => {
    const socket = connect(url)
    const answer = readAnswer(socket)
    const length = `Content-Length: ${FORM.length}`
    socket.write(
      `POST ${target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${type}\r\n${length}\r\n${more}\r\n`,
    )
    socket.write(FORM)
    return answer
  }
  for (const target of [
    'http://localhost',
    'http://localhost/',
    'HTTPS://localhost:8000',
    'http://localhost?a=b',
    '/?a=b',
  ]) {
    assert.equal((await send(target, '')).status, 201, target)
  }
  assert.equal((await send('http://localhost?a=?&X-Progress-ID=whole', '')).json.id, 'whole')
  for (const expect of [
    'Expect:',
    'Expect: ',
    'Expect: ,',
    'expect: 100-Continue',
    'Expect: 100-continue\r\nExpect: 100-continue',
  ]) {
    assert.equal((await send('/', `${expect}\r\n`)).status, 201, expect)
  }
  for (const expect of ['foo', '100-continue, foo', '100', 'foo=100-continue']) {
    const { status, json } = await send('/', `Expect: ${expect}\r\n`)
    assert.deepEqual([status, json.code], [417, 'expectation_failed'], expect)
  }
})

test('shutdown lets running uploads finish, refuses new ones, and progress stays readable', async t => {
  const at = await startServer(t)
  const socket = begin(at.url, 'running', FORM.length)
  const answer = readAnswer(socket)
  socket.write(FORM.subarray(0, 50))
  await received(at.url, 'running', 50)
  // Open connections that are used again while the server drains: nothing new is accepted.
  const poller = connect(at.url)
  const late = connect(at.url)
  await Promise.all([once(poller, 'connect'), once(late, 'connect')])
  const polled: string[] = []
  poller.on('data', data => polled.push(String(data)))
  poller.write('GET /progress/running HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await until(
    () => polled.length,
    count => count === 1,
  )

  const shutdown = at.server.shutdown({ grace: 60_000 })
  poller.write('GET /progress/running HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await until(
    () => polled.length,
    count => count === 2,
  )
  assert.match(String(polled[1]), /"state":"uploading","received":50/)
  late.write(
    'POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: late\r\nConnection: close\r\n' +
      `Content-Type: multipart/form-data; boundary=BOUNDARY\r\nContent-Length: ${FORM.length}\r\n\r\n`,
  )
  late.write(FORM)
  const refused = await readAnswer(late)
  assert.deepEqual([refused.status, refused.json.code], [503, 'shutting_down'])
  assert.ok(Number(refused.headers.get('retry-after')) > 0)
  socket.write(FORM.subarray(50))
  assert.equal((await answer).status, 201)
  await shutdown
  assert.deepEqual(await published(at.dir), ['a.bin'])
  assert.deepEqual(await temporaryFiles(at), [])
  await assert.rejects(fetch(at.url))
})

test('when the grace is over running uploads are refused and nothing is left', async t => {
  for (const options of [{}, { memoryMax: 0 }] satisfies ServerOptions[]) {
    const at = await startServer(t, options)
    const socket = begin(at.url, 'running', FORM.length)
    const answer = readAnswer(socket)
    socket.write(FORM.subarray(0, FORM.length - 30))
    await received(at.url, 'running', FORM.length - 30)
    await at.server.shutdown({ grace: 50 })
    const { status, json } = await answer
    assert.deepEqual([status, json.code], [503, 'shutting_down'])
    assert.deepEqual(await published(at.dir), [])
    assert.deepEqual(await records(at.dir), [])
    assert.deepEqual(await temporaryFiles(at), [])
    assert.deepEqual(await readdir(at.tmp), [])
  }
})

test('the binary: the first signal drains, the second ends at once, nothing half-published', async t => {
  const start = async (t: TestContext) => {
    const server = await serve(t, ['--grace', '1m', '--memory-max', '0'])
    const socket = begin(server.url, 'running', FORM.length)
    const answer = readAnswer(socket)
    socket.write(FORM.subarray(0, 100))
    await received(server.url, 'running', 100)
    server.child.kill('SIGTERM')
    await until(server.stderr, text => text.includes('stopping'))
    return { server, socket, answer }
  }
  await t.test('one', async t => {
    const { server, socket, answer } = await start(t)
    socket.write(FORM.subarray(100))
    assert.equal((await answer).status, 201)
    assert.equal(await server.exited, 0)
    assert.match(server.stderr(), / outcome=stored .*\n.* INFO {2}stopped signal=SIGTERM\n$/)
    assert.deepEqual(await published(server.dir), ['a.bin'])
    assert.deepEqual(await temporaryFiles(server), [])
  })
  await t.test('two', async t => {
    const { server } = await start(t)
    server.child.kill('SIGINT')
    // A shell's loop ends with it.
    assert.equal(await server.exited, 'SIGINT')
    assert.match(
      server.stderr(),
      / upload from=127\.0\.0\.1 method=POST path=\/ ms=\d+ id=running outcome=aborted received=100 code=shutting_down\n.* INFO {2}stopped signal=SIGINT\n$/,
    )
    assert.deepEqual(await published(server.dir), [])
    assert.deepEqual(await temporaryFiles(server), [])
  })
})

test('an address that cannot be listened on: one line, and no folder is made', async t => {
  const { port } = await startServer(t)
  const root = await tempDir(t)
  const dir = join(root, 'deep', 'uploads')
  for (const [args, reason] of [
    [['--port', String(port)], new RegExp(`127\\.0\\.0\\.1 port ${port}: .*EADDRINUSE`)],
    [['--host', '192.0.2.1', '--port', '0'], /192\.0\.2\.1 port 0: .*EADDRNOTAVAIL/],
  ] as const) {
    const server = uploadr(t, ['serve', '--dir', dir, ...args])
    assert.equal(await server.exited, 1)
    assert.match(server.stderr(), reason)
    assert.match(server.stderr(), /^uploadr: cannot listen on .*\n$/)
    assert.deepEqual(await readdir(root), [])
  }
  // Nor is what was there before touched.
  await mkdir(dir, { recursive: true })
  await writeFile(join(dir, 'theirs'), 'theirs')
  assert.equal(await uploadr(t, ['serve', '--dir', dir, '--port', String(port)]).exited, 1)
  assert.deepEqual(await readdir(dir), ['theirs'])
})

test('an ended id used by another client is left as it is, and so is what is told of it', async t => {
  const at = await startServer(t)
  const from = async (localAddress: string, body = FORM) => {
    const socket = net.connect({ host: '127.0.0.1', port: at.port, localAddress })
    const answer = readAnswer(socket)
    const type = 'Content-Type: multipart/form-data; boundary=BOUNDARY'
    const head = `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: mine\r\nConnection: close\r\n${type}`
    socket.write(`${head}\r\nContent-Length: ${body.length}\r\n\r\n`)
    socket.write(body)
    return answer
  }
  assert.equal((await from('127.0.0.1')).status, 201)
  const before = await getProgress(at.url, 'mine')
  assert.equal(before.state, 'done')
  for (const body of [FORM, Buffer.from('no form')]) {
    const { status, json } = await from('127.0.0.2', body)
    assert.deepEqual([status, json.code], [409, 'progress_id_in_use'])
    assert.deepEqual(await getProgress(at.url, 'mine'), before)
  }
  assert.deepEqual(await published(at.dir), ['a.bin'])
  // Its own client may try again under the same id.
  assert.equal((await from('127.0.0.1', Buffer.from('no form'))).status, 400)
  const after = await getProgress(at.url, 'mine')
  assert.equal(after.state, 'error')
})

test('what a handler throws stays in the log, under a number that the client is told', async t => {
  const secret = 'hunter2'
  const thrown: (() => unknown)[] = [
    () => new Error(`password ${secret}`),
    () => Object.assign(new Error(secret), { code: `E_${secret}` }),
    () => Object.assign(new Error(secret), { code: 'EACCES', path: `/etc/${secret}` }),
    () => new Error('outside', { cause: new Error(secret) }),
    () => `password ${secret}`,
    () => ({ code: secret }),
    () => null,
  ]
  const verbs = ['begin', 'open', 'write', 'close', 'complete'] as const
  let fail: (verb: string) => void = () => {}
  const handler: UploadHandler = {
    name: 'leaky',
    begin: () => fail('begin'),
    async open(file, next) {
      fail('open')
      const sink = await next(file)
      return tap(sink, {
        write: chunk => {
          fail('write')
          return sink.write(chunk)
        },
        async close() {
          const staged = await sink.close()
          fail('close')
          return staged
        },
      })
    },
    complete: () => fail('complete'),
  }
  const lines: string[] = []
  const log = createLogger({ stream: { write: line => lines.push(line) }, format: 'json' })
  const at = await startServer(t, { handlers: [handler], log })
  for (const verb of verbs) {
    for (const make of thrown) {
      fail = at => {
        if (at === verb) throw make()
      }
      lines.length = 0
      const answer = await post(at.url, FORM, { headers: { 'X-Progress-ID': 'leaky' } })
      assert.deepEqual([answer.status, answer.json.code], [500, 'handler_failed'], verb)
      assert.doesNotMatch(answer.text, new RegExp(secret), verb)
      const progress = await getProgress(at.url, 'leaky')
      assert.doesNotMatch(JSON.stringify(progress), new RegExp(secret), verb)
      const [, number = ''] = /\(([0-9a-f]{8})\)$/.exec(answer.json.detail) ?? []
      assert.match(number, /./, answer.json.detail)
      assert.match(JSON.stringify(progress), new RegExp(number))
      const [error] = lines.map(line => JSON.parse(line)).filter(({ level }) => level === 'error')
      assert.match(error.event, new RegExp(number))
      if (make() !== null) assert.match(error.cause, new RegExp(secret))
    }
  }
  // What is thrown on purpose is for the client to read.
  fail = at => {
    if (at === 'complete')
      throw new UploadError('name_taken', 'it is here already', { cause: new Error(secret) })
  }
  const answer = await post(at.url, FORM)
  assert.deepEqual([answer.status, answer.json.detail], [409, 'it is here already'])
  assert.deepEqual(await published(at.dir), [])
  assert.deepEqual(await temporaryFiles(at), [])
})

test('connections wait for their next request as long as they are told', async t => {
  await t.test('by default longer than balancers keep theirs', async t => {
    const { url } = await startServer(t)
    const socket = connect(url)
    socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
    const [first] = await once(socket, 'data')
    assert.match(String(first), /\r\nKeep-Alive: timeout=75\r\n/)
    socket.destroy()
  })
  await t.test('--keep-alive', async t => {
    const { url } = await serve(t, ['--keep-alive', '100ms'])
    const socket = connect(url)
    const answer = readAnswer(socket)
    socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
    // The server ends it, not we.
    const { status, headers } = await answer
    assert.deepEqual([status, headers.get('connection')], [200, 'keep-alive'])
  })
  await t.test('not at all', async t => {
    const { url } = await serve(t, ['--keep-alive', '0'])
    for (const request of ['GET /healthz HTTP/1.1', 'GET / HTTP/1.1', 'POST /nothing HTTP/1.1']) {
      const socket = connect(url)
      const answer = readAnswer(socket)
      socket.write(`${request}\r\nHost: localhost\r\n\r\n`)
      assert.equal((await answer).headers.get('connection'), 'close', request)
    }
    const large = multipart([TITLE, { ...FILE, body: randomFile(5_000_000) }])
    assert.equal((await post(url, large, { headers: { Connection: 'keep-alive' } })).status, 201)
  })
})

test('the access log: one line a request, whatever is in it', async t => {
  for (const format of ['text', 'json'] as const) {
    await t.test(format, async t => {
      const lines: string[] = []
      const log = createLogger({ stream: { write: line => lines.push(line) }, format })
      const { url } = await startServer(t, { log })
      const hostile = ['/%0d%0afake', '/\x1b[31m', '/\u202eevil'.replace('\u202e', '\xe2\x80\xae'), '/a"b=c']
      for (const path of hostile) {
        const socket = connect(url)
        const answer = readAnswer(socket)
        socket.write(
          Buffer.from(`GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`, 'latin1'),
        )
        await answer
      }
      await post(url, FORM, { headers: { 'X-Progress-ID': 'logged' } })
      await raw(url, 'GET /assets/none?secret=hunter2 HTTP/1.1')
      await until(
        () => lines.filter(line => line.includes('request')).length,
        count => count === hostile.length + 1,
      )
      for (const line of lines) {
        // biome-ignore format: every character that could move a cursor or end a line
        assert.doesNotMatch(line.slice(0, -1), /[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/)
        assert.ok(line.endsWith('\n'))
        assert.ok(!line.includes('hunter2'), 'what is in a query is nobody’s business')
      }
      const upload = lines.find(line => line.includes('logged')) ?? ''
      if (format === 'json') {
        const { time, from, ms, ...rest } = JSON.parse(upload)
        assert.ok(time && from && ms >= 0)
        assert.deepEqual(rest, {
          level: 'info',
          event: 'upload',
          method: 'POST',
          path: '/',
          status: 201,
          id: 'logged',
          outcome: 'stored',
          received: FORM.length,
          files: [{ name: 'a.bin', size: 9 }],
        })
      } else {
        assert.match(
          upload,
          new RegExp(
            `INFO  upload .*method=POST path=/ status=201 .*id=logged outcome=stored received=${FORM.length} files="a.bin 9"`,
          ),
        )
      }
    })
  }
})

test('the log as text: a value of several lines is one line, escaped once, and can be had back', () => {
  const lines: string[] = []
  const log = createLogger({ stream: { write: line => lines.push(line) }, now: () => new Date(0) })
  const values = [
    'Error: a\n    at b',
    '\u202e\x1b[31m\x9b\u2028\ud800',
    'a\\nb',
    'C:\\new',
    '"',
    'a=b',
    '',
    'é',
  ]
  log.error('failed', { ...Object.fromEntries(values.entries()), plain: 'a,b/c:d', number: 7 })
  assert.equal(
    lines.join(''),
    String.raw`1970-01-01T00:00:00.000Z ERROR failed 0="Error: a\n    at b" 1="\u202e\u001b[31m\u009b\u2028\ud800" 2="a\\nb" 3="C:\\new" 4="\"" 5="a=b" 6="" 7="é" plain=a,b/c:d number=7` +
      '\n',
  )
  const quoted = Array.from(String(lines[0]).matchAll(/ \d=("(?:\\.|[^"\\])*")/g), ([, text]) =>
    JSON.parse(String(text)),
  )
  assert.deepEqual(quoted, values)
})

test('a refusal says what was refused, how much room there is without it, and counts in good grammar', async t => {
  const detail = async (url: string, body: Buffer, headers = {}) =>
    String((await post(url, body, { headers })).json?.detail)
  await t.test('the extension', async t => {
    const denying = await startServer(t, { kinds: { denyExtensions: ['php'] } })
    const allowing = await startServer(t, { kinds: { allowExtensions: ['jpg'] } })
    const of = ({ url }: { url: string }, filename: string) =>
      detail(url, multipart([TITLE, { ...FILE, filename }]))
    assert.equal(
      await of(denying, 'x.php.jpg'),
      'x.php.jpg has the extension .php, which is not accepted here',
    )
    assert.equal(
      await of(allowing, 'x.jpg.gif'),
      'x.jpg.gif has the extension .gif, which is not accepted here',
    )
    assert.equal(await of(allowing, 'x'), 'x has no extension, which is not accepted here')
  })
  await t.test('the room', async t => {
    const quota = 20_000
    const { url } = await startServer(t, { limits: { quota } })
    const left = (text: string) => /: (.*) are left of 19.5 KiB$/.exec(text)?.[1] ?? text
    assert.equal((await post(url, FORM)).status, 201)
    const byHead = await detail(url, multipart([TITLE, { ...FILE, body: randomFile(quota) }]))
    // Let in by its length, and refused with its record.
    const withRecord = await detail(url, multipart([TITLE, { ...FILE, body: randomFile(19_000) }]))
    assert.match(withRecord, /^no room within the quota for 2\d\.\d KiB of files and their record: /)
    assert.equal(left(withRecord), left(byHead))
    assert.match(left(byHead), /^19\.\d KiB$|^18\.\d KiB$/)
    assert.equal((await post(url, FORM)).status, 201)
  })
  for (const [limits, says] of [
    [{ limits: { uploads: 1 } }, '1 upload is running already'],
    [{ limits: { uploadsPerClient: 1 } }, '1 upload of 127.0.0.1 is running already'],
    [{ progressMax: 1 }, '1 upload is running already'],
    [{ limits: { uploads: 2 } }, '2 uploads are running already'],
  ] as const) {
    await t.test(says, async t => {
      const { url } = await startServer(t, limits)
      const sockets = Array.from({ length: Number(says[0]) }, (_, i) => begin(url, `a${i}`, FORM.length))
      for (const [i, socket] of sockets.entries()) {
        socket.write(FORM.subarray(0, 10))
        await received(url, `a${i}`, 10)
      }
      assert.equal(await detail(url, FORM), says)
      for (const socket of sockets) socket.destroy()
    })
  }
  for (const [limits, says] of [
    [{ connections: 1 }, '1 connection is open already'],
    [{ connectionsPerClient: 1 }, '1 connection of 127.0.0.1 is open already'],
  ] as const) {
    await t.test(says, async t => {
      const { url } = await startServer(t, { limits })
      const first = connect(url)
      first.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
      await once(first, 'data')
      assert.equal((await readAnswer(connect(url))).json.detail, says)
      first.destroy()
    })
  }
})

test('the log: a line for each upload, polls and probes at debug level alone, and no refusal is an error', async t => {
  const start = async (t: TestContext, options: ServerOptions = {}, level: LogLevel = 'info') => {
    const lines: string[] = []
    const log = createLogger({ stream: { write: line => lines.push(line) }, format: 'json', level })
    const at = await startServer(t, { ...options, log })
    const upload = (id: string) =>
      until(
        () => lines.map(line => JSON.parse(line)).find(line => line.id === id),
        line => line !== undefined,
      )
    return { ...at, lines, upload }
  }
  const poll = async (url: string) => {
    for (const path of ['/progress/a', '/progress?X-Progress-ID=a', '/healthz', '/metrics']) {
      await raw(url, `GET ${path} HTTP/1.1`)
    }
  }
  await t.test('uploads, stored and not', async t => {
    const token = 'secret-token'
    const at = await start(t, { token, limits: { quota: 100_000, body: 200_000 } })
    const send = (id: string, body: Buffer, headers = {}) =>
      post(at.url, body, { headers: { Authorization: `Bearer ${token}`, 'X-Progress-ID': id, ...headers } })
    const two = multipart([TITLE, FILE, { ...FILE, filename: '\u202egpj.b c' }])
    await send('two', two)
    const { files, outcome, ms, received } = await at.upload('two')
    assert.deepEqual([outcome, received], ['stored', two.length])
    assert.ok(ms >= 0)
    assert.deepEqual(
      files.map(({ size }: { size: number }) => size),
      [9, 9],
    )
    await send('short', two.subarray(0, -20))
    const short = await at.upload('short')
    assert.deepEqual([short.outcome, short.code, short.status], ['refused', 'truncated_body', 400])
    assert.equal(short.files[0].name, 'a.bin')
    assert.match(short.detail, /closing boundary/)
    for (const [id, leave] of [
      ['left', (socket: Socket) => socket.destroy()],
      ['half', (socket: Socket) => socket.end()],
    ] as const) {
      const socket = begin(at.url, id, two.length, `Authorization: Bearer ${token}\r\n`)
      await new Promise(done => socket.write(two.subarray(0, -20), done))
      await until(
        async () =>
          (await raw(at.url, `GET /progress/${id} HTTP/1.1\r\nAuthorization: Bearer ${token}`)).json,
        progress => progress.received === two.length - 20,
      )
      leave(socket)
      const line = await at.upload(id)
      assert.deepEqual([line.outcome, line.code], ['interrupted', 'truncated_body'])
      socket.destroy()
    }
    await send('large', Buffer.alloc(300_000))
    assert.equal((await at.upload('large')).code, 'body_too_large')
    await send('quota', Buffer.alloc(150_000))
    assert.equal((await at.upload('quota')).code, 'quota_exceeded')
    await raw(at.url, 'GET / HTTP/1.1')
    await until(
      () => at.lines.length,
      count => count >= 5,
    )
    for (const line of at.lines) {
      assert.equal(JSON.parse(line).level, 'info', line)
      assert.doesNotMatch(line, /secret-token|\u202e/)
    }
  })
  await t.test('uploads of clients that fall silent, however they are read', async t => {
    for (const directMin of [0, 1e9]) {
      const at = await start(t, { directMin, limits: { idle: 50 } })
      const socket = begin(at.url, 'silent', FORM.length)
      socket.write(FORM.subarray(0, 100))
      const line = await at.upload('silent')
      assert.deepEqual([line.outcome, line.code, line.status], ['interrupted', 'idle_timeout', 408])
      socket.destroy()
    }
  })
  await t.test('what a handler throws when it is told of a failure, and nothing else changes', async t => {
    const throws: UploadHandler = {
      name: 'throws',
      interrupt() {
        throw new Error('cannot forget it')
      },
    }
    const at = await start(t, { handlers: [throws], kinds: { denyExtensions: ['bin'] } })
    const answer = await post(at.url, FORM, { headers: { 'X-Progress-ID': 'told' } })
    assert.deepEqual([answer.status, answer.json.code], [415, 'extension_not_allowed'])
    await until(
      () => at.lines.length,
      count => count === 2,
    )
    const [error, line] = at.lines.map(each => JSON.parse(each))
    assert.deepEqual([error.level, error.id], ['error', 'told'])
    assert.match(error.cause, /cannot forget it/)
    assert.deepEqual([line.outcome, line.code], ['refused', 'extension_not_allowed'])
  })
  await t.test('polls', async t => {
    const quiet = await start(t)
    await poll(quiet.url)
    await raw(quiet.url, 'GET /progress HTTP/1.1')
    await until(
      () => quiet.lines.length,
      count => count > 0,
    )
    assert.deepEqual(
      quiet.lines.map(line => JSON.parse(line).code),
      ['bad_progress_id'],
    )
    const loud = await start(t, {}, 'debug')
    await poll(loud.url)
    await until(
      () => loud.lines.filter(line => line.includes('"debug"')).length,
      count => count === 4,
    )
  })
  await t.test('--log-level', async t => {
    for (const [level, count] of [
      ['error', 0],
      ['info', 1],
      ['debug', 5],
    ] as const) {
      const server = await serve(t, ['--log-level', level, '--log', 'json'])
      await poll(server.url)
      await post(server.url, FORM)
      server.child.kill('SIGTERM')
      assert.equal(await server.exited, 0)
      const lines = server
        .stderr()
        .trim()
        .split('\n')
        .filter(line => /"(request|upload)"/.test(line))
      assert.equal(lines.length, count, `${level}: ${server.stderr()}`)
    }
    const wrong = uploadr(t, ['serve', '--log-level', 'loud'])
    assert.equal(await wrong.exited, 2)
    assert.match(wrong.stderr(), /error, warn, info, debug/)
  })
})
