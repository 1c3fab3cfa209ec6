/** What a server takes at most: refused at one beyond, early where it can be known, nothing left, the slot free again. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readdir, rm, stat, statfs, writeFile } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { type ServerOptions, tap, UploadError, type UploadHandler } from '../src/index.ts'
import {
  assertStored,
  getProgress,
  multipart,
  type Part,
  parseAnswer,
  post,
  published,
  type RawAnswer,
  randomFile,
  readAnswer,
  records,
  run,
  serve,
  smallFileSystem,
  startServer,
  type TestServer,
  TITLE,
  temporaryFiles,
  until,
} from './support.ts'

const FILE: Part = { name: 'file', filename: 'a.bin', type: 'application/octet-stream', body: 'the bytes' }
const FORM = multipart([TITLE, FILE])

/** A connection from an address of one's own: all of 127/8 is this machine. */
function connectFrom(url: string, from = '127.0.0.1'): net.Socket {
  const { hostname, port } = new URL(url)
  const socket = net.connect({ host: hostname, port: Number(port), localAddress: from })
  socket.on('error', () => {})
  return socket
}

function head(headers: Record<string, string | number>): string {
  const all = { Host: 'localhost', 'Content-Type': 'multipart/form-data; boundary=BOUNDARY', ...headers }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return `POST / HTTP/1.1\r\n${lines.join('')}\r\n`
}

/** Sends the head alone and waits for the server's word on it. */
async function ask(
  url: string,
  headers: Record<string, string | number>,
  from?: string,
): Promise<{ socket: net.Socket; continued: boolean; answer: RawAnswer }> {
  const socket = connectFrom(url, from)
  let text = ''
  socket.on('data', data => (text += data))
  socket.write(head({ Expect: '100-continue', ...headers }))
  await until(
    () => text,
    () => text.includes('\r\n\r\n') || socket.destroyed,
  )
  const continued = text.startsWith('HTTP/1.1 100 ')
  if (!continued) {
    socket.end()
    await until(
      () => socket.destroyed,
      gone => gone,
    )
  }
  return { socket, continued, answer: parseAnswer(text) }
}

/** Refused by the head alone, whether the client waits for 100 Continue or not. */
async function assertRefusedByHead(
  at: { url: string },
  headers: Record<string, string | number>,
  [code, status]: [string, number],
  from?: string,
): Promise<void> {
  const asked = await ask(at.url, headers, from)
  assert.equal(asked.continued, false, 'the body was asked for')
  assert.deepEqual([asked.answer.json?.code, asked.answer.status], [code, status], asked.answer.text)
  // Nor does the answer wait for a body that was announced and never comes.
  const socket = connectFrom(at.url, from)
  const answered = once(socket, 'data')
  socket.write(head(headers))
  const { json } = parseAnswer(String((await answered)[0]))
  assert.equal(json?.code, code)
  socket.destroy()
}

async function assertNothing(at: Pick<TestServer, 'dir' | 'tmp'>): Promise<void> {
  assert.deepEqual(await published(at.dir), [])
  assert.deepEqual(await records(at.dir), [])
  assert.deepEqual(await temporaryFiles(at), [])
}

/** A running upload, which has been let in and sends nothing. */
async function running(url: string, length = FORM.length, from?: string): Promise<net.Socket> {
  const { socket, continued, answer } = await ask(url, { 'Content-Length': length }, from)
  assert.ok(continued, answer.text)
  return socket
}

/** Ends one, and returns when the server knows. */
async function leave(url: string, socket: net.Socket): Promise<void> {
  const before = await runningCount(url)
  socket.destroy()
  await until(
    () => runningCount(url),
    count => count < before,
  )
}

async function runningCount(url: string): Promise<number> {
  const text = await (await fetch(new URL('metrics', url))).text()
  return Number(/uploadr_uploads_running (\d+)/.exec(text)?.[1])
}

const file = (body: string | Buffer = 'the bytes', more: Partial<Part> = {}): Part => ({
  ...FILE,
  body,
  ...more,
})
const files = (count: number) => Array.from({ length: count }, (_, i) => file('x', { filename: `${i}` }))
const fields = (count: number) => Array.from({ length: count }, (_, i) => ({ name: `f${i}`, body: 'x' }))
const note = (size: number): Part => ({ name: 'größe', body: 'x'.repeat(size) })
const NOTE_ROOM = 1000 - Buffer.byteLength('title' + 'a title' + 'größe')
/** A part whose header block has `size` bytes. */
const padded = (size: number): Part => {
  const headers = 'Content-Disposition: form-data; name="file"; filename="a.bin"\r\nX-Pad: '
  return { headers: headers + 'x'.repeat(size - headers.length), body: 'x' }
}
const tooLarge = multipart([TITLE, file(randomFile(50_000))])

interface Row {
  limit: string
  options: ServerOptions
  args: string[]
  within: Buffer
  beyond: Buffer
  refusal: [code: string, status: number]
  /** It can be known from the length that is announced. */
  byHead?: true
}

const rows: Row[] = [
  {
    limit: 'the size of a request',
    options: { limits: { body: tooLarge.length - 1 } },
    args: ['--max-size', String(tooLarge.length - 1)],
    within: tooLarge.subarray(0, 0),
    beyond: tooLarge,
    refusal: ['body_too_large', 413],
    byHead: true,
  },
  {
    limit: 'files',
    options: { limits: { files: 3 } },
    args: ['--max-files', '3'],
    within: multipart([TITLE, ...files(3)]),
    beyond: multipart([TITLE, ...files(4)]),
    refusal: ['too_many_files', 413],
  },
  {
    limit: 'fields',
    options: { limits: { fields: 5 } },
    args: ['--max-fields', '5'],
    within: multipart([TITLE, ...fields(4), FILE]),
    beyond: multipart([TITLE, ...fields(5), FILE]),
    refusal: ['too_many_fields', 413],
  },
  {
    limit: 'bytes of fields, names included',
    options: { limits: { fieldBytes: 1000 } },
    args: ['--max-field-bytes', '1000'],
    within: multipart([TITLE, note(NOTE_ROOM), FILE]),
    beyond: multipart([TITLE, note(NOTE_ROOM + 1), FILE]),
    refusal: ['fields_too_large', 413],
  },
  {
    limit: "a part's headers",
    options: { limits: { partHead: 1000 } },
    args: ['--max-part-head', '1000'],
    // The empty line at its end is part of it.
    within: multipart([TITLE, padded(1000 - 4)]),
    beyond: multipart([TITLE, padded(1000 - 3)]),
    refusal: ['part_head_too_large', 413],
  },
  {
    limit: "a part's headers, by default",
    options: {},
    args: [],
    within: multipart([TITLE, padded(16_000)]),
    beyond: multipart([TITLE, padded(16 * 1024 - 3)]),
    refusal: ['part_head_too_large', 413],
  },
  {
    limit: "a file's name",
    options: { limits: { nameBytes: 20 } },
    args: ['--max-name-bytes', '20'],
    within: multipart([TITLE, file('x', { filename: `${'ñ'.repeat(8)}.txt` })]),
    beyond: multipart([TITLE, file('x', { filename: `${'ñ'.repeat(8)}x.txt` })]),
    refusal: ['name_too_long', 400],
  },
  {
    limit: 'a media type to accept alone',
    options: { kinds: { allowTypes: ['image/*', 'text/plain'] } },
    args: ['--allow-type', 'image/*,text/plain'],
    within: multipart([
      TITLE,
      file('x', { type: 'IMAGE/png' }),
      file('x', { type: 'text/plain; charset=utf-8' }),
    ]),
    beyond: multipart([TITLE, file('x', { type: 'text/html' })]),
    refusal: ['type_not_allowed', 415],
  },
  {
    limit: 'a media type to refuse',
    options: { kinds: { denyTypes: ['text/html'] } },
    args: ['--deny-type', 'text/html'],
    within: multipart([TITLE, file('x', { type: 'text/htm' })]),
    beyond: multipart([TITLE, file('x', { type: 'Text/HTML; charset=utf-8' })]),
    refusal: ['type_not_allowed', 415],
  },
  {
    limit: 'an extension to accept alone',
    options: { kinds: { allowExtensions: ['.jpg', 'PNG'] } },
    args: ['--allow-extension', '.jpg', '--allow-extension', 'PNG'],
    within: multipart([TITLE, file('x', { filename: 'a.JPG' }), file('x', { filename: 'php.png' })]),
    beyond: multipart([TITLE, file('x', { filename: 'jpg' })]),
    refusal: ['extension_not_allowed', 415],
  },
  ...[
    'shell.php',
    'shell.PHP',
    'shell.php.jpg',
    'a.b.php.c.d',
    'shell.php.',
    'shell.php ',
    '.php',
    'shell.p\u202ehp',
  ].map(
    (filename): Row => ({
      limit: `an extension to refuse: ${JSON.stringify(filename)}`,
      options: { kinds: { denyExtensions: ['php'] } },
      args: ['--deny-extension', 'php'],
      within: multipart([TITLE, file('x', { filename: 'php.jpg' }), file('x', { filename: 'a.php5' })]),
      beyond: multipart([TITLE, file('x', { filename })]),
      refusal: ['extension_not_allowed', 415],
    }),
  ),
]

for (const { limit, options, args, within, beyond, refusal, byHead } of rows) {
  test(`${limit}: ${refusal.join(' ')}`, async t => {
    // One upload at a time: where the refused one kept its slot the next would not come in.
    const limits = { ...options.limits, uploads: 1, uploadsPerClient: 1 }
    for (const way of [{}, { memoryMax: 0 }, { memoryMax: 0, directMin: 0 }]) {
      const at = await startServer(t, { ...options, ...way, limits })
      for (const sending of [{}, { chunked: true }, { chunk: 1000 }, { chunked: true, chunk: 1000 }]) {
        const answer = await post(at.url, beyond, { ...sending, headers: { 'X-Progress-ID': 'refused' } })
        assert.deepEqual([answer.json?.code, answer.status], refusal, answer.text)
        assert.equal(answer.headers.get('content-type'), 'application/problem+json')
        const progress = await getProgress(at.url, 'refused')
        assert.equal(progress.state === 'error' && progress.code, refusal[0])
        await assertNothing(at)
      }
      if (byHead) await assertRefusedByHead(at, { 'Content-Length': beyond.length }, refusal)
      await assertNothing(at)
      for (const chunked of [false, true]) {
        const form = within.length > 0 ? within : FORM
        const { status, text } = await post(at.url, form, { chunked })
        assert.equal(status, 201, text)
      }
    }
    // And by its option.
    if (args.length === 0 || limit.includes('"')) return
    const { url } = await serve(t, args)
    assert.deepEqual((await post(url, beyond)).json?.code, refusal[0])
    assert.equal((await post(url, within.length > 0 ? within : FORM)).status, 201)
  })
}

test('the size of a request: exactly the number is taken', async t => {
  const at = await startServer(t, { limits: { body: tooLarge.length, uploads: 1 } })
  for (const chunked of [false, true]) assert.equal((await post(at.url, tooLarge, { chunked })).status, 201)
})

test('a name of any length is cut to what a directory takes', async t => {
  const at = await startServer(t)
  for (const filename of [`${'n'.repeat(4000)}.txt`, `${'ñ'.repeat(2000)}.txt`, '.'.repeat(1000)]) {
    const bytes = randomFile(100)
    const { json } = await post(at.url, multipart([TITLE, file(bytes, { filename })]))
    assert.equal(Buffer.byteLength(json.files[0].name), filename.startsWith('ñ') ? 254 : 255)
    await assertStored(at.dir, json.files[0], bytes)
  }
})

test("a request's head: 431", async t => {
  const at = await startServer(t)
  const socket = connectFrom(at.url)
  const answer = readAnswer(socket)
  socket.write(head({ 'X-Pad': 'x'.repeat(20_000), 'Content-Length': FORM.length }))
  assert.equal((await answer).status, 431)
  await assertNothing(at)
})

test('uploads of everybody, and of one address', async t => {
  const at = await startServer(t, { limits: { uploads: 3, uploadsPerClient: 2 } })
  const length = { 'Content-Length': FORM.length }
  const [first, second] = [await running(at.url), await running(at.url)]
  await assertRefusedByHead(at, length, ['too_many_uploads_of_client', 429])
  await assertRefusedByHead(at, { 'Transfer-Encoding': 'chunked' }, ['too_many_uploads_of_client', 429])
  // Another address is another client.
  const other = await running(at.url, FORM.length, '127.0.0.2')
  await assertRefusedByHead(at, length, ['too_many_uploads', 503], '127.0.0.3')
  for (const from of ['127.0.0.1', '127.0.0.3']) {
    const { answer } = await ask(at.url, length, from)
    assert.equal(answer.headers.get('retry-after'), '5', answer.text)
  }
  // What is refused holds no slot, and what ends gives its own back: to whom it was taken from.
  await leave(at.url, other)
  await assertRefusedByHead(at, length, ['too_many_uploads_of_client', 429])
  await leave(at.url, first)
  const third = await running(at.url)
  for (const socket of [second, third]) await leave(at.url, socket)
  // However they end: stored ones too.
  for (let i = 0; i < 5; i++) assert.equal((await post(at.url, FORM)).status, 201)
  assert.equal(
    (await Promise.all([1, 2].map(() => post(at.url, FORM)))).every(({ status }) => status === 201),
    true,
  )
})

test('uploads over the number, by the options', async t => {
  const { url } = await serve(t, ['--max-uploads', '2', '--max-uploads-per-client', '1'])
  await running(url)
  await assertRefusedByHead({ url }, { 'Content-Length': 10 }, ['too_many_uploads_of_client', 429])
  await running(url, FORM.length, '127.0.0.2')
  await assertRefusedByHead({ url }, { 'Content-Length': 10 }, ['too_many_uploads', 503], '127.0.0.3')
})

/** An open connection that the server has accepted. */
async function accepted(url: string, from?: string): Promise<net.Socket> {
  const socket = connectFrom(url, from)
  socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n')
  const [data] = await once(socket, 'data')
  assert.match(String(data), /^HTTP\/1.1 200 /)
  return socket
}

async function assertNoConnection(url: string, from?: string): Promise<void> {
  const socket = connectFrom(url, from)
  // Not a byte has to be sent to be refused.
  const answer = await readAnswer(socket)
  assert.deepEqual([answer.json?.code, answer.status], ['too_many_connections', 503])
  assert.equal(answer.headers.get('retry-after'), '5')
}

test('connections of everybody, and from one address', async t => {
  for (const way of ['in this process', 'by the options']) {
    await t.test(way, async t => {
      const { url } = way.startsWith('in')
        ? await startServer(t, { limits: { connections: 3, connectionsPerClient: 2 } })
        : await serve(t, ['--max-connections', '3', '--max-connections-per-client', '2'])
      const first = await accepted(url)
      const second = await accepted(url)
      await assertNoConnection(url)
      const other = await accepted(url, '127.0.0.2')
      await assertNoConnection(url, '127.0.0.3')
      for (const socket of [first, second, other]) {
        socket.destroy()
        await once(socket, 'close')
      }
      // Refused ones are not counted for ever, nor are those that ended.
      await until(
        async () => {
          const socket = connectFrom(url)
          socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
          return (await readAnswer(socket)).status
        },
        status => status === 200,
      )
    })
  }
})

test('line ends keep no connection open on which no request comes', async t => {
  const health = 'GET /healthz HTTP/1.1\r\nHost: localhost\r\n'
  const cases: [before: string, keepAlive: number, statuses: number[]][] = [
    ['', 100, [408]],
    [`${health}\r\n`, 100, [200, 408]],
    [`${health}\r\n`, 0, [200]],
    [`${health}Connection: close\r\n\r\n`, 100, [200]],
  ]
  for (const [before, keepAlive, statuses] of cases) {
    const { port } = await startServer(t, { headerTimeout: 200, keepAlive })
    // Whoever has been told the end of the other half may keep its own open.
    const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: statuses.at(-1) === 200 })
    socket.on('error', () => {})
    let text = ''
    socket.on('data', data => (text += data))
    socket.write(before)
    while (!socket.destroyed) {
      socket.write('\r\n')
      await delay(20)
    }
    assert.deepEqual(
      Array.from(text.matchAll(/HTTP\/1\.1 (\d+)/g), ([, status]) => Number(status)),
      statuses,
      `${before} ${keepAlive}`,
    )
  }
})

test('whoever does not read its answer is not read either, until it does', async t => {
  const words = 'x'.repeat(20_000_000)
  const talks: UploadHandler = {
    name: 'talks',
    complete() {
      throw new UploadError('quota_exceeded', words)
    },
  }
  const { url } = await startServer(t, { handlers: [talks] })
  const socket = connectFrom(url).pause()
  socket.write(head({ 'Content-Length': FORM.length }))
  socket.write(FORM)
  // Line ends, without end: some are taken, then none while others are served.
  const blanks = Buffer.from('\r\n'.repeat(32 * 1024))
  let turns = 0
  for (let bytes = -1; turns < 100; turns++) {
    if (socket.writableLength < blanks.length) socket.write(blanks)
    const taken = socket.bytesWritten - socket.writableLength
    assert.ok(taken < 2_000_000_000, 'no end to what is taken')
    if (taken !== bytes) turns = 0
    bytes = taken
    assert.equal((await fetch(new URL('healthz', url))).status, 200)
  }
  socket.write('GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
  const { text } = await readAnswer(socket.resume())
  const at = text.indexOf('HTTP/1.1 200 ')
  assert.ok(at > words.length && at === text.lastIndexOf('HTTP/1.1 '), text.slice(0, 500))
})

test('the least rate, and silence', async t => {
  await t.test('a client that trickles', async t => {
    const at = await startServer(t, { limits: { idle: 200, minRate: 1_000_000, uploads: 1 } })
    const socket = connectFrom(at.url)
    const answer = readAnswer(socket)
    socket.write(head({ 'Content-Length': 10_000_000, 'X-Progress-ID': 'slow' }))
    while (!socket.readableEnded && !socket.destroyed && !socket.bytesRead) {
      socket.write('x')
      await delay(20)
    }
    const { json, status } = await answer
    assert.deepEqual([json?.code, status], ['too_slow', 408])
    await assertNothing(at)
    assert.equal((await post(at.url, FORM)).status, 201)
  })
  await t.test('a client that is silent', async t => {
    const { url } = await serve(t, ['--idle-timeout', '200ms', '--max-uploads', '1'])
    const socket = connectFrom(url)
    const answer = readAnswer(socket)
    socket.write(head({ 'Content-Length': FORM.length }))
    const { json, status } = await answer
    assert.deepEqual([json?.code, status], ['idle_timeout', 408])
    assert.equal((await post(url, FORM)).status, 201)
  })
  await t.test('a least rate by its option', async t => {
    const { url } = await serve(t, ['--idle-timeout', '200ms', '--min-rate', '1gib'])
    const socket = connectFrom(url)
    const answer = readAnswer(socket)
    socket.write(head({ 'Transfer-Encoding': 'chunked' }))
    while (!socket.destroyed && !socket.bytesRead) {
      socket.write('1\r\nx\r\n')
      await delay(20)
    }
    assert.equal((await answer).json?.code, 'too_slow')
  })
})

test('disk space that stays free', async t => {
  const small = await smallFileSystem(t, '16m')
  if (small === undefined) return
  const minFree = 4 * 1024 ** 2
  const at = await startServer(t, { dir: join(small, 'dir'), tmp: join(small, 'tmp'), limits: { minFree } })
  const { bavail, bsize } = await statfs(small)
  const room = bavail * bsize - minFree
  const disk_full: [string, number] = ['disk_full', 507]

  await t.test('a length that is known: one byte beyond is refused by the head', async () => {
    await assertRefusedByHead(at, { 'Content-Length': room + 1 }, disk_full)
    await leave(at.url, await running(at.url, room))
    await assertNothing(at)
  })
  await t.test('what running uploads have still to send is reserved', async () => {
    const first = await running(at.url, Math.floor(room / 2))
    const second = await running(at.url, Math.ceil(room / 2))
    await assertRefusedByHead(at, { 'Content-Length': 1 }, disk_full)
    await leave(at.url, first)
    await assertRefusedByHead(at, { 'Content-Length': Math.floor(room / 2) + 1 }, disk_full)
    const third = await running(at.url, Math.floor(room / 2))
    for (const socket of [second, third]) await leave(at.url, socket)
  })
  await t.test('a length that is not known is stopped on the way', async () => {
    const form = multipart([TITLE, file(Buffer.alloc(room + 1_000_000))])
    const { json, status } = await post(at.url, form, { chunked: true, chunk: 65_536 })
    assert.deepEqual([json?.code, status], disk_full)
    await assertNothing(at)
  })
  await t.test('what others write while it streams counts too', async t => {
    const form = multipart([TITLE, file(Buffer.alloc(8_000_000))])
    const socket = connectFrom(at.url)
    const answer = readAnswer(socket)
    socket.write(head({ 'Content-Length': form.length, Connection: 'close', 'X-Progress-ID': 'others' }))
    socket.write(form.subarray(0, 1_000_000))
    await until(
      () => getProgress(at.url, 'others'),
      progress => progress.state !== 'starting' && progress.received === 1_000_000,
    )
    const { code, stderr } = await run('fallocate', ['-l', '8m', join(small, 'others')])
    assert.equal(code, 0, stderr)
    t.after(() => run('rm', [join(small, 'others')]))
    for (let sent = 1_000_000; sent < form.length && !socket.bytesRead; sent += 100_000) {
      socket.write(form.subarray(sent, sent + 100_000))
      // The measurement that the last one was let in by has to grow old.
      await delay(20)
    }
    assert.equal((await answer).json?.code, 'disk_full')
    await assertNothing(at)
  })
  await t.test('by its option', async t => {
    const { url } = await serve(t, ['--min-free', '15mib', '--tmp', join(small, 'tmp')], {
      dir: join(small, 'dir'),
    })
    await assertRefusedByHead({ url }, { 'Content-Length': 2_000_000 }, disk_full)
    assert.equal((await post(url, FORM)).status, 201)
  })
})

/** Bytes of stored files and their records. */
async function sizeOnDisk(dir: string): Promise<number> {
  let total = 0
  for (const folder of [dir, join(dir, '.uploadr', 'records')]) {
    for (const entry of await readdir(folder, { withFileTypes: true })) {
      if (entry.isFile()) total += (await stat(join(folder, entry.name))).size
    }
  }
  return total
}

test('a quota', async t => {
  const quota = 1_000_000
  const quota_exceeded: [string, number] = ['quota_exceeded', 507]
  const at = await startServer(t, { limits: { quota } })
  const bytes = randomFile(300_000)
  await t.test('what is stored counts, what is being sent is reserved', async () => {
    assert.equal((await post(at.url, multipart([TITLE, file(bytes)]))).status, 201)
    const room = quota - (await sizeOnDisk(at.dir))
    await assertRefusedByHead(at, { 'Content-Length': room + 1 }, quota_exceeded)
    const all = await running(at.url, room)
    await assertRefusedByHead(at, { 'Content-Length': 1 }, quota_exceeded)
    await leave(at.url, all)
    assert.equal((await post(at.url, FORM)).status, 201)
  })
  await t.test('a length that is not known is stopped on the way', async () => {
    const before = await published(at.dir)
    const form = multipart([TITLE, file(randomFile(900_000))])
    for (const chunk of [1_000_000, 10_000]) {
      const { json, status } = await post(at.url, form, { chunked: true, chunk })
      assert.deepEqual([json?.code, status], quota_exceeded)
    }
    assert.deepEqual(await published(at.dir), before)
    assert.deepEqual(await temporaryFiles(at), [])
  })
  await t.test('what is deleted gives room again', async () => {
    const [name] = await published(at.dir)
    await run('rm', [join(at.dir, String(name))])
    const form = multipart([TITLE, file(randomFile(900_000))])
    assert.equal((await post(at.url, form)).status, 201)
  })
  await t.test('the records of what is stored count too', async t => {
    const quota = 20_000
    const { url, dir } = await startServer(t, { limits: { quota } })
    const tiny = multipart([TITLE, file('x')])
    const statuses: number[] = []
    while (statuses.length < 200 && statuses.at(-1) !== 507) statuses.push((await post(url, tiny)).status)
    assert.equal(statuses.at(-1), 507, `${statuses.length} were taken`)
    const used = await sizeOnDisk(dir)
    // What a record may take at most is more than what it takes.
    assert.ok(used > quota - 3000 && used <= quota, `${used} bytes are used of ${quota}`)
    const folder = join(dir, '.uploadr', 'records')
    const [record = '', ...others] = await readdir(folder)
    assert.equal(others.length + 2, statuses.length)
    for (const name of [record, ...others.slice(0, 7)]) await rm(join(folder, name))
    assert.equal((await post(url, tiny)).status, 201)
  })
  await t.test('by its option', async t => {
    const { url } = await serve(t, ['--quota', '5000'])
    await assertRefusedByHead({ url }, { 'Content-Length': 5001 }, quota_exceeded)
    assert.equal((await post(url, FORM)).status, 201)
  })
})

for (const clients of [20, 60]) {
  test(`a quota, ${clients} clients at once while thousands of files are measured: never a byte more`, async t => {
    const quota = 10_000_000
    const at = await startServer(t, { limits: { quota, uploadsPerClient: 1000 } })
    // Nine tenths of it in files that are slow to count.
    await Promise.all(
      Array.from({ length: 5000 }, (_, i) => writeFile(join(at.dir, `old-${i}`), Buffer.alloc(1800))),
    )
    const form = multipart([TITLE, file(randomFile(100_000))])
    let [stored, refused] = [0, 0]
    const client = async (): Promise<void> => {
      for (let i = 0; i < 6; i++) {
        const { status, text } = await post(at.url, form)
        assert.ok(status === 201 || status === 507, text)
        if (status === 201) stored++
        else refused++
      }
    }
    await Promise.all(Array.from({ length: clients }, client))
    const used = await sizeOnDisk(at.dir)
    assert.ok(used <= quota, `${used} bytes are used of ${quota}`)
    // And what was refused was refused for want of room.
    assert.ok(refused > 0 && used > quota - 200_000, `${stored} are stored, ${used} bytes of ${quota}`)
  })
}

test('a quota, where a handler makes files larger than what was sent', async t => {
  const quota = 1_000_000
  const grows: UploadHandler = {
    name: 'grows',
    async open(info, next) {
      const inner = await next(info)
      return tap(inner, {
        async write(chunk) {
          for (let i = 0; i < 4; i++) await inner.write(chunk)
        },
      })
    },
  }
  const at = await startServer(t, { limits: { quota }, handlers: [grows] })
  const answers = await Promise.all(
    Array.from({ length: 5 }, () => post(at.url, multipart([TITLE, file(randomFile(100_000))]))),
  )
  // Two have room; how many of the others are on their way decides whether the second sees it.
  const stored = answers.filter(({ status }) => status === 201).length
  assert.ok(stored === 1 || stored === 2, `${stored} of 400 kB are stored within 1 MB`)
  for (const { status, json } of answers) assert.ok(status === 201 || json.code === 'quota_exceeded')
  assert.ok((await sizeOnDisk(at.dir)) <= quota)
  assert.deepEqual(await temporaryFiles(at), [])
})

test('disk space that stays free where temporary files are on another disk: reserved on both, until the bytes are there', async t => {
  const [disk, other] = [await smallFileSystem(t, '200m'), await smallFileSystem(t, '400m')]
  if (disk === undefined || other === undefined) return
  const MIB = 1024 ** 2
  const at = await startServer(t, {
    dir: join(disk, 'dir'),
    tmp: join(other, 'tmp'),
    limits: { minFree: 100 * MIB },
  })
  const free = async () => {
    const { bavail, bsize } = await statfs(disk)
    return bavail * bsize
  }
  const form = multipart([TITLE, file(randomFile(30 * MIB))])
  for (const chunked of [false, true]) {
    const answers = await Promise.all(
      Array.from({ length: 6 }, () => post(at.url, form, { chunked, chunk: MIB })),
    )
    for (const { status, json } of answers) {
      assert.ok(status === 201 || json?.code === 'disk_full', `${status} ${json?.code}`)
    }
    const stored = answers.filter(({ status }) => status === 201).length
    assert.ok(stored <= 3, `${stored} of 30 MiB are stored where 100 MiB are left above what stays free`)
    if (!chunked) assert.equal(stored, 3)
    assert.ok((await free()) >= 100 * MIB, `${(await free()) / MIB} MiB are free`)
    for (const name of await published(at.dir)) await rm(join(at.dir, name))
  }
  // One that fits alone is stored.
  assert.equal((await post(at.url, form)).status, 201)
})
