import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, open, truncate, writeFile } from 'node:fs/promises'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import net from 'node:net'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { setImmediate as tick } from 'node:timers/promises'
import {
  openFile,
  type PushProgress,
  push,
  streamSource,
  tap,
  type UploadError,
  type UploadHandler,
} from '../src/index.ts'
import {
  assertStored,
  gate,
  getProgress,
  published,
  randomFile,
  sha256,
  startServer,
  tempDir,
  temporaryFiles,
  until,
  uploadr,
} from './support.ts'

async function file(
  t: TestContext,
  size: number,
  name = 'file.bin',
): Promise<{ path: string; bytes: Buffer }> {
  const path = join(await tempDir(t), name)
  const bytes = randomFile(size)
  await writeFile(path, bytes)
  return { path, bytes }
}

/** A server that is not ours: what it answers is up to the test. */
async function fakeServer(t: TestContext, handle: http.RequestListener): Promise<string> {
  const server = http.createServer(handle).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
}

/** Reads a whole push and answers with a receipt for `size` bytes of `digest`. */
function acceptEverything(size: number, digest: string): http.RequestListener {
  return (req, res) => {
    req.resume()
    req.once('end', () => {
      const files = [
        { field: 'file', name: 'file.bin', sentAs: 'file.bin', size, type: '', sha256: digest, handler: 'x' },
      ]
      res
        .writeHead(201, { 'content-type': 'application/json' })
        .end(JSON.stringify({ id: 'x', title: 'x', files }))
    })
  }
}

const withCode = (code: string) => (error: UploadError) => {
  assert.equal(error.code, code, error.message)
  return true
}

for (const size of [1, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1, 5_000_000]) {
  test(`a file of ${size} bytes arrives, with exact length and equal digests`, async t => {
    const { url, dir } = await startServer(t)
    const { path, bytes } = await file(t, size)
    const result = await push({ url, source: await openFile(path), id: 'one' })
    assert.deepEqual([result.size, result.sha256, result.verified], [size, sha256(bytes), true])
    assert.equal(result.title, 'file.bin')
    await assertStored(dir, result.receipt.files[0] as never, bytes)
    const progress = await getProgress(url, 'one')
    assert.equal(progress.state, 'done')
    assert.ok(progress.state === 'done' && progress.received === progress.size && progress.size > size)
  })
}

test('the two read buffers are not used again before the socket has drained them', async t => {
  // A sink that takes the bytes in fits and starts keeps chunks waiting in the client's socket; were a
  // buffer filled again too early, the digests would differ and push would reject.
  const fits: UploadHandler = {
    name: 'fits',
    async open(info, next) {
      const inner = await next(info)
      let turn = 0
      return tap(inner, {
        async write(chunk) {
          for (let i = 0; i < turn % 7; i++) await tick()
          turn++
          await inner.write(chunk)
        },
      })
    },
  }
  const { url, dir } = await startServer(t, { handlers: [fits] })
  const { path, bytes } = await file(t, 48 * 1024 * 1024 + 17)
  const result = await push({ url, source: await openFile(path) })
  assert.equal(result.verified, true)
  await assertStored(dir, result.receipt.files[0] as never, bytes)
})

test('a title is cut to 50 code points of the name; names with quotes and line ends arrive clean', async t => {
  const { url, dir } = await startServer(t)
  const { path } = await file(t, 10, `${'😀'.repeat(51)}.bin`)
  const result = await push({ url, source: await openFile(path) })
  assert.equal(result.title, '😀'.repeat(50))
  const odd = await push({
    url,
    source: streamSource(Readable.from([Buffer.from('x')]), 'a"b\r\nc/d\\e.txt'),
    title: 't',
  })
  assert.equal(odd.name, 'd\\e.txt')
  const quoted = await push({ url, source: streamSource(Readable.from([Buffer.from('x')]), 'a"b.txt') })
  assert.equal(quoted.name, 'a"b.txt')
  assert.equal((await published(dir)).length, 3)
})

test('a stream of unknown length is sent chunked, and its count is the server’s at the end', async t => {
  const { url, dir } = await startServer(t)
  const bytes = randomFile(6_000_000)
  const seen: PushProgress[] = []
  const source = streamSource(Readable.from([bytes.subarray(0, 7), bytes.subarray(7)]), 'piped')
  const result = await push({ url, source, id: 'pipe', onProgress: progress => seen.push(progress) })
  await assertStored(dir, result.receipt.files[0] as never, bytes)
  assert.ok(seen.every(({ size }) => size === undefined))
  const progress = await getProgress(url, 'pipe')
  assert.ok(progress.state === 'done' && progress.received === progress.size)
})

test('what push shows is what the server has, and never falls', async t => {
  const slow = gate()
  const { url } = await startServer(t, { handlers: [slow.handler] })
  const { path } = await file(t, 40_000_000)
  const seen: PushProgress[] = []
  const pushing = push({
    url,
    source: await openFile(path),
    id: 'held',
    interval: 5,
    onProgress: p => seen.push(p),
  })
  await slow.reached
  // The gate is shut: the socket's buffers fill up and the server's count stands still, far behind.
  const held = await until(
    () => getProgress(url, 'held'),
    now => now.state === 'uploading' && seen.at(-1)?.received === now.received && now.received > 0,
  )
  assert.ok(held.state === 'uploading' && held.received < 8_000_000, JSON.stringify(held))
  assert.ok(
    (seen.at(-1) as PushProgress).sent > held.received,
    'the socket has swallowed more than the server has',
  )
  slow.open()
  await pushing
  assert.ok(seen.every((each, i) => i === 0 || each.received >= (seen[i - 1] as PushProgress).received))
  assert.ok(seen.every(({ source }) => source === 'server'))
  assert.equal(seen.at(0)?.phase, 'connecting')
})

test('a progress endpoint that fails: the count falls back to bytes sent, and says so', async t => {
  const { path, bytes } = await file(t, 30_000_000)
  const accept = acceptEverything(bytes.length, sha256(bytes))
  let polls = 0
  let resume = () => {}
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'POST') {
      accept(req, res)
      // Held until the client has given up on the endpoint.
      req.pause()
      resume = () => req.resume()
    } else {
      polls++
      res.writeHead(404).end('no such thing')
    }
  })
  const seen: PushProgress[] = []
  const result = await push({
    url,
    source: await openFile(path),
    interval: 1,
    onProgress: progress => {
      seen.push(progress)
      if (progress.source === 'client') resume()
    },
  })
  assert.ok(polls >= 3)
  assert.equal(result.verified, true)
  const fallen = seen.find(({ source }) => source === 'client') as PushProgress
  assert.equal(fallen.why, 'HTTP 404')
  assert.equal(fallen.received, fallen.sent)
})

test('errors before and after connecting have their codes', async t => {
  const missing = openFile(join(await tempDir(t), 'nothing'))
  await assert.rejects(missing, withCode('local_file'))
  await assert.rejects(openFile(await tempDir(t)), withCode('local_file'))

  const port = await freePort()
  const { path, bytes } = await file(t, 3_000_000)
  const at = async (url: string) => push({ url, source: await openFile(path) })
  await assert.rejects(at(`http://127.0.0.1:${port}/`), withCode('unreachable'))
  await assert.rejects(at(`http://localhost:${port}/`), (error: UploadError) => {
    // Refused on both address families: an AggregateError without a message of its own.
    assert.match(error.message, /ECONNREFUSED/)
    return true
  })
  await assert.rejects(at('ftp://host/'), withCode('usage'))
  await assert.rejects(
    at(await fakeServer(t, acceptEverything(bytes.length, 'f'.repeat(64)))),
    withCode('digest_mismatch'),
  )
  await assert.rejects(
    at(await fakeServer(t, acceptEverything(7, sha256(bytes)))),
    withCode('digest_mismatch'),
  )
  const html = await fakeServer(
    t,
    (req, res) => void req.resume().once('end', () => res.writeHead(201).end('<html>')),
  )
  await assert.rejects(at(html), withCode('bad_answer'))
  const moved = await fakeServer(
    t,
    (req, res) => void req.resume().once('end', () => res.writeHead(307, { location: '/x' }).end()),
  )
  await assert.rejects(at(moved), /redirects to http:.*\/x; push does not follow/)
  const broken = await fakeServer(
    t,
    (req, res) => void req.resume().once('end', () => res.writeHead(502).end()),
  )
  await assert.rejects(at(broken), (error: UploadError) => error.exitCode === 4 && error.status === 502)
})

test('the server refuses by the length it is told: 413, nothing sent that matters, in every one of 20 tries', async t => {
  const { url, dir, tmp } = await startServer(t, { limits: { body: 1_000_000 } })
  const { path } = await file(t, 20_000_000)
  for (let i = 0; i < 20; i++)
    await assert.rejects(push({ url, source: await openFile(path) }), withCode('body_too_large'))
  assert.deepEqual([await published(dir), await temporaryFiles({ dir, tmp })], [[], []])
})

test('a 413 in mid-upload is seen: the length was unknown, the limit is crossed on the way', async t => {
  const { url, dir, tmp } = await startServer(t, { limits: { body: 5_000_000 } })
  for (let i = 0; i < 20; i++) {
    const source = streamSource(Readable.from(pieces(40)), 'endless')
    await assert.rejects(push({ url, source }), withCode('body_too_large'))
  }
  assert.deepEqual([await published(dir), await temporaryFiles({ dir, tmp })], [[], []])
})

test('a refusal whose connection was reset before it could be read is found by the progress endpoint', async t => {
  const refused = {
    state: 'error',
    status: 413,
    code: 'body_too_large',
    detail: 'too large, said the record',
    received: 9,
  }
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'GET') return void res.end(JSON.stringify(refused))
    req.once('data', () => (req.socket as net.Socket).resetAndDestroy())
  })
  const { path } = await file(t, 20_000_000)
  await assert.rejects(
    push({ url, source: await openFile(path), interval: 60_000 }),
    (error: UploadError) => {
      assert.equal(error.code, 'body_too_large')
      assert.equal(error.message, 'too large, said the record')
      return true
    },
  )
})

test('a server that goes silent is given up after the timeout', async t => {
  const silent = net.createServer(socket => socket.on('error', () => {})).listen(0, '127.0.0.1')
  await once(silent, 'listening')
  t.after(() => silent.close())
  const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}/`
  const { path } = await file(t, 30_000_000)
  await assert.rejects(push({ url, source: await openFile(path), timeout: 300 }), withCode('stalled'))
})

test('a file that shrinks is an error and leaves nothing', async t => {
  const { url, dir, tmp } = await startServer(t)
  const shrunk = await file(t, 9_000_000, 'shrunk')
  const source = await openFile(shrunk.path)
  await truncate(shrunk.path, 4_000_000)
  await assert.rejects(push({ url, source, id: 'shrunk' }), /shrank from 9000000 to 4000000 bytes/)
  await until(
    () => getProgress(url, 'shrunk'),
    ({ state }) => state === 'error',
  )
  assert.deepEqual([await published(dir), await temporaryFiles({ dir, tmp })], [[], []])
})

test('an abort leaves nothing on the server', async t => {
  const slow = gate()
  const { url, dir, tmp } = await startServer(t, { handlers: [slow.handler] })
  const { path } = await file(t, 30_000_000)
  const control = new AbortController()
  const pushing = push({ url, source: await openFile(path), id: 'gone', signal: control.signal })
  await slow.reached
  control.abort()
  await assert.rejects(pushing, withCode('interrupted'))
  slow.open()
  const progress = await until(
    () => getProgress(url, 'gone'),
    ({ state }) => state === 'error',
  )
  assert.ok(progress.state === 'error' && progress.code === 'truncated_body' && progress.status === 400)
  assert.deepEqual([await published(dir), await temporaryFiles({ dir, tmp })], [[], []])
})

test('exit codes and output of the binary', async t => {
  const { url, dir } = await startServer(t, { token: 'secret', limits: { body: 2_000_000 } })
  const folder = await tempDir(t)
  const [small, large, locked] = ['small', 'large', 'folder'].map(name => join(folder, name)) as [
    string,
    string,
    string,
  ]
  const empty = join(folder, 'empty')
  await writeFile(empty, '')
  await writeFile(small, 'hello')
  await writeFile(large, randomFile(3_000_000))
  await mkdir(locked)
  const token = ['--url', url, '--token', 'secret']
  const cases: [string[], number, RegExp][] = [
    [[small, ...token], 0, /^$|uploading/],
    [[empty, ...token], 6, new RegExp(`^uploadr: ${empty}: The submitted file is empty\\. `, 'm')],
    [
      [small, '--url', `${url}nothing`, '--token', 'secret'],
      6,
      new RegExp(`^uploadr: ${url}nothing/: there is nothing at /nothing/$`, 'm'),
    ],
    [[small, '--url', url], 5, /this server asks for a token/],
    [[small, '--url', url, '--token', 'wrong'], 5, /the token is wrong/],
    [[large, ...token], 6, /larger than 1.91 MiB \(2000000 bytes\)/],
    [[join(folder, 'none'), ...token], 3, /none: no such file/],
    [[locked, ...token], 3, /is a directory/],
    [[small, '--url', `http://127.0.0.1:${await freePort()}/`], 4, /ECONNREFUSED/],
    [[small, '--url', 'nonsense'], 2, /nonsense is not an http or https URL/],
    [[small, '--timeout', '5 parsecs'], 2, /"5 parsecs" is not a duration/],
    [[small, '--id', 'no/good', ...token], 2, /a progress id is 1 to 128/],
    [[], 2, /missing required argument/],
    [[small, join(folder, 'none'), large, ...token], 8, /2 of 3 files were not stored/],
    [[large, large, ...token], 6, /larger than/],
  ]
  for (const [args, code, stderr] of cases) {
    const running = uploadr(t, ['push', ...args])
    assert.equal(await running.exited, code, `push ${args.join(' ')}: ${running.stderr()}`)
    assert.match(running.stderr(), stderr)
    if (code !== 0 && code !== 8) assert.equal(running.stdout(), '')
    if (code === 0) assert.match(running.stdout(), /^small: 5 B in [\d.]+ m?s, verified sha-256\n$/)
  }
  const json = uploadr(t, ['push', small, '--json', '--title', 'My title', ...token])
  assert.equal(await json.exited, 0)
  const result = JSON.parse(json.stdout())
  assert.deepEqual(
    [result.ok, result.title, result.size, result.sha256, result.verified],
    [true, 'My title', 5, sha256(Buffer.from('hello')), true],
  )
  const failed = uploadr(t, ['push', large, '--json', ...token])
  assert.equal(await failed.exited, 6)
  assert.equal(JSON.parse(failed.stdout()).error.code, 'body_too_large')
  const fromEnv = uploadr(t, ['push', small], {
    env: { UPLOADR_URL: url, UPLOADR_TOKEN: 'secret', UPLOADR_JSON: '0' },
  })
  assert.equal(await fromEnv.exited, 0)
  assert.match(fromEnv.stdout(), /verified sha-256/)
  const badEnv = uploadr(t, ['push', small], { env: { UPLOADR_JSON: 'maybe' } })
  assert.equal(await badEnv.exited, 2)
  assert.match(badEnv.stderr(), /UPLOADR_JSON is "maybe", neither 1 nor 0/)
  assert.equal((await published(dir)).length, 4)
})

test('standard input is sent as it comes', async t => {
  const { url, dir } = await startServer(t)
  const running = uploadr(t, ['push', '-', '--name', 'from-stdin', '--url', url], { stdin: 'pipe' })
  const bytes = randomFile(3_000_000)
  running.child.stdin?.end(bytes)
  assert.equal(await running.exited, 0, running.stderr())
  assert.deepEqual(await published(dir), ['from-stdin'])
})

test('a sparse file of more than 4 GiB is counted right', { timeout: 300_000 }, async t => {
  const { url } = await startServer(t)
  const path = join(await tempDir(t), 'huge')
  const size = 4 * 1024 ** 3 + 12_345
  const handle = await open(path, 'w')
  await handle.truncate(size)
  await handle.close()
  const result = await push({ url, source: await openFile(path), id: 'huge' })
  assert.deepEqual([result.size, result.receipt.files[0]?.size, result.verified], [size, size, true])
  const progress = await getProgress(url, 'huge')
  assert.ok(progress.state === 'done' && progress.received > size && progress.received === progress.size)
})

function* pieces(count: number): Generator<Buffer> {
  for (let i = 0; i < count; i++) yield randomFile(1_000_000)
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
