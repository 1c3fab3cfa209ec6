import assert from 'node:assert/strict'
import { once } from 'node:events'
import http, { type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import test, { type TestContext } from 'node:test'
import { setImmediate as tick } from 'node:timers/promises'
import type { Progress, ProgressStore } from '../src/index.ts'
import { type EventOptions, ProgressEvents } from '../src/server/events.ts'
import { connect, gate, multipart, post, randomFile, startServer, TITLE, until } from './support.ts'

interface Stream {
  response: IncomingMessage
  /** What came so far. */
  events(): Progress[]
  raw(): string
  ended: Promise<unknown>
}

async function listen(t: TestContext, url: string, headers: Record<string, string> = {}): Promise<Stream> {
  const request = http.get(url, { agent: false, headers: { accept: 'text/event-stream', ...headers } })
  t.after(() => request.destroy())
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  response.on('error', () => {})
  let raw = ''
  response.setEncoding('utf8').on('data', text => (raw += text))
  const events = () =>
    raw
      .split('\n\n')
      .filter(text => text.startsWith('data: '))
      .map(text => JSON.parse(text.slice('data: '.length)) as Progress)
  // Not `once`, which rejects where the test itself breaks the connection.
  const ended = new Promise(resolve => response.once('close', resolve))
  return { response, events, raw: () => raw, ended }
}

/** A server of nothing but streams, over a store of the test's own. */
async function streams(t: TestContext, get: ProgressStore['get'], options: EventOptions = {}) {
  const events = new ProgressEvents({ begin() {}, end() {}, get }, options)
  const server = http.createServer((req, res) => {
    events.answer(req, res, 'an-id').catch(() => res.writeHead(500).end())
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    server.close()
    server.closeAllConnections()
  })
  return { events, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/` }
}

test('a watcher hears of the upload from before its beginning to its end', async t => {
  const { handler, reached, open } = gate()
  const { url } = await startServer(t, { handlers: [handler] })
  const stream = await listen(t, `${url}progress/watched`)
  assert.equal(stream.response.statusCode, 200)
  assert.equal(stream.response.headers['content-type'], 'text/event-stream')
  assert.equal(stream.response.headers['cache-control'], 'no-store')
  const body = multipart([TITLE, { name: 'file', filename: 'a.bin', body: randomFile(3_000_000) }])
  const answer = post(url, body, { headers: { 'X-Progress-ID': 'watched' } })
  await reached
  await until(stream.events, events => events.some(({ state }) => state === 'uploading'))
  open()
  assert.equal((await answer).status, 201)
  await stream.ended
  const events = stream.events()
  assert.deepEqual(events[0], { state: 'starting' })
  assert.deepEqual(events.at(-1), { state: 'done', received: body.length, size: body.length })
  assert.equal(events.filter(({ state }) => state === 'done').length, 1)
  for (const [i, event] of events.slice(1).entries()) assert.notDeepEqual(event, events[i])
  assert.ok(stream.response.complete)
})

test('the id may come in the header or the query as well', async t => {
  const { url } = await startServer(t)
  await post(url, multipart([TITLE, { name: 'file', filename: 'a', body: 'x' }]), {
    headers: { 'X-Progress-ID': 'ended' },
  })
  for (const stream of [
    await listen(t, `${url}progress?X-Progress-ID=ended`),
    await listen(t, `${url}progress`, { 'X-Progress-ID': 'ended' }),
    await listen(t, `${url}progress/ended`, { accept: 'text/event-stream;q=1, */*' }),
  ]) {
    await stream.ended
    assert.deepEqual(
      stream.events().map(({ state }) => state),
      ['done'],
    )
  }
})

test('a failed upload ends the stream with its error', async t => {
  const { handler, reached, open } = gate()
  const { url } = await startServer(t, { handlers: [handler] })
  const socket = connect(url)
  const head =
    'Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 9999999\r\nX-Progress-ID: broken'
  socket.write(`POST / HTTP/1.1\r\nHost: x\r\n${head}\r\n\r\n`)
  socket.write('--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n')
  socket.write(Buffer.alloc(100_000))
  await reached
  const stream = await listen(t, `${url}progress/broken`)
  open()
  socket.destroy()
  await stream.ended
  const last = stream.events().at(-1)
  assert.equal(last?.state, 'error')
  assert.equal(last?.state === 'error' && last.code, 'truncated_body')
})

test('what is wrong with the question is answered with a status, and a callback gets its script', async t => {
  const { url } = await startServer(t)
  assert.equal((await listen(t, `${url}progress/a%20b`)).response.statusCode, 400)
  assert.equal((await listen(t, `${url}progress`)).response.statusCode, 400)
  const script = await listen(t, `${url}progress/a?callback=f`)
  assert.match(String(script.response.headers['content-type']), /javascript/)
})

test('HEAD gets the head alone', async t => {
  const { url } = await startServer(t)
  const answer = await fetch(`${url}progress/a`, { method: 'HEAD', headers: { accept: 'text/event-stream' } })
  assert.equal(answer.status, 200)
  assert.equal(answer.headers.get('content-type'), 'text/event-stream')
  assert.equal(await answer.text(), '')
})

test('at most ten events a second, one per change', async t => {
  t.mock.timers.enable({ apis: ['setInterval'] })
  let received = 0
  let asked = 0
  const { url } = await streams(t, () => {
    asked++
    return { state: 'uploading', received, phase: 'receiving' }
  })
  const stream = await listen(t, url)
  // A second in which the count changes a hundred times.
  for (let i = 0; i < 100; i++) {
    received++
    t.mock.timers.tick(10)
    await tick()
  }
  assert.equal(asked, 11)
  await until(stream.events, events => events.length === 11)
  // And one without any change.
  t.mock.timers.tick(1000)
  for (let i = 0; i < 100; i++) {
    t.mock.timers.tick(10)
    await tick()
  }
  received++
  t.mock.timers.tick(100)
  await until(stream.events, events => events.at(-1)?.state === 'uploading' && events.length >= 12)
  assert.equal(stream.events().length, 12)
})

test('silence is filled with heartbeats', async t => {
  const { url } = await streams(t, () => ({ state: 'starting' }), { sample: 1, heartbeat: 1 })
  const stream = await listen(t, url)
  await until(stream.raw, raw => raw.includes('\n\n:\n\n:\n\n'))
  assert.equal(stream.events().length, 1)
})

test('an id that nobody uses is not waited for for ever', async t => {
  const { events, url } = await streams(t, () => ({ state: 'starting' }), { sample: 1, starting: 20 })
  const stream = await listen(t, url)
  await stream.ended
  assert.deepEqual(stream.events(), [{ state: 'starting' }])
  assert.equal(events.size, 0)
})

test('nothing is left of a watcher who went away', async t => {
  let asked = 0
  const get = () => {
    asked++
    return { state: 'starting' } as const
  }
  const { events, url } = await streams(t, get, { sample: 1 })
  const all = await Promise.all(Array.from({ length: 20 }, () => listen(t, url)))
  assert.equal(events.size, 20)
  for (const { response } of all) response.destroy()
  await until(
    () => events.size,
    size => size === 0,
  )
  const before = asked
  for (let i = 0; i < 20; i++) await new Promise(resolve => setTimeout(resolve, 1))
  assert.equal(asked, before)
})

test('a store that fails is a status at first, and the end later', async t => {
  let failing = true
  const get = () => {
    if (failing) throw new Error('the store is gone')
    return { state: 'starting' } as const
  }
  const { events, url } = await streams(t, get, { sample: 1 })
  assert.equal((await listen(t, url)).response.statusCode, 500)
  failing = false
  const stream = await listen(t, url)
  failing = true
  await stream.ended
  assert.ok(stream.response.complete)
  assert.equal(events.size, 0)
})

test('a watcher who does not read is not written to without end', async t => {
  let received = 0
  let asked = 0
  const get = () => {
    asked++
    // Two megabytes at once: more than the sockets between here and there hold.
    return { state: 'error', status: 400, code: 'x'.repeat(2e6), detail: '', received: received++ } as const
  }
  const alive = () => ({ ...get(), state: 'uploading', phase: 'receiving' }) as const
  const { url } = await streams(t, alive, { sample: 1 })
  const socket = connect(url)
  t.after(() => socket.destroy())
  socket.pause()
  socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
  await until(
    () => asked,
    times => times > 1,
  )
  for (let i = 0; i < 50; i++) await new Promise(resolve => setTimeout(resolve, 1))
  assert.ok(asked < 10, `asked ${asked} times`)
})

test('shutdown ends the streams, with the outcome of what was still running', async t => {
  const { handler, reached, open } = gate()
  const { server, url } = await startServer(t, { handlers: [handler] })
  const body = multipart([TITLE, { name: 'file', filename: 'a', body: 'x' }])
  const answer = post(url, body, { headers: { 'X-Progress-ID': 'running' } })
  await reached
  const running = await listen(t, `${url}progress/running`)
  const idle = await listen(t, `${url}progress/idle`)
  const down = server.shutdown({ grace: 60_000 })
  open()
  await Promise.all([running.ended, idle.ended, down])
  assert.equal((await answer).status, 201)
  assert.equal(running.events().at(-1)?.state, 'done')
  assert.deepEqual(idle.events(), [{ state: 'starting' }])
})
