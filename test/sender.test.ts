/** The sender against servers that are slow, broken, hostile or not there, and files that are not what they seem. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFile, mkdir, open, readFile, stat, utimes, writeFile } from 'node:fs/promises'
import http from 'node:http'
import https from 'node:https'
import net, { type AddressInfo, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import {
  openFile,
  openSender,
  type PushProgress,
  push,
  streamSource,
  tap,
  type UploadError,
  type UploadHandler,
} from '../src/index.ts'
import {
  BINARY,
  gate,
  getProgress,
  published,
  type Running,
  randomFile,
  run,
  serve,
  sha256,
  startServer,
  tempDir,
  until,
  uploadr,
} from './support.ts'

/** What hangs on old code shall not hang the suite. */
const ENDS = { timeout: 60_000 }

async function listen(t: TestContext, server: net.Server): Promise<number> {
  const sockets = new Set<Socket>()
  server.on('connection', socket => {
    sockets.add(socket)
    socket.on('error', () => {}).once('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

/** A server that is not ours: what it answers is up to the test. */
async function fakeServer(t: TestContext, handle: http.RequestListener): Promise<string> {
  return `http://127.0.0.1:${await listen(t, http.createServer({ requestTimeout: 0 }, handle))}/`
}

async function file(t: TestContext, bytes: Buffer | string, name = 'file.bin'): Promise<string> {
  const path = join(await tempDir(t), name)
  await writeFile(path, bytes)
  return path
}

function receipt(bytes: Buffer | string, more: object = {}): string {
  const body = Buffer.from(bytes)
  const stored = { field: 'file', name: 'file.bin', sentAs: 'file.bin', type: '', handler: 'x' }
  return JSON.stringify({
    id: 'x',
    title: 'x',
    files: [{ ...stored, size: body.length, sha256: sha256(body), ...more }],
  })
}

const is = (code: string, exitCode: number, message?: RegExp) => (error: UploadError) => {
  assert.deepEqual([error.code, error.exitCode], [code, exitCode], error.message)
  if (message) assert.match(error.message, message)
  return true
}

const hello = () => streamSource(Readable.from([Buffer.from('hello')]), 'file.bin')

/** Until what was sent has arrived at the server, or the process has ended. */
async function arrived(running: Running, url: string, id: string): Promise<void> {
  let over = false
  void running.exited.then(() => (over = true))
  await until(
    () => getProgress(url, id),
    ({ state }) => over || state === 'uploading',
  )
  assert.equal(over, false, running.stderr())
}

/** A proxy to `url` that passes on bytes, but for what `cut` does to a connection and its first request line. */
async function proxy(
  t: TestContext,
  url: string,
  cut: (line: string, client: Socket, server: Socket) => void,
): Promise<{ url: string; connections: () => number }> {
  let connections = 0
  const port = await listen(
    t,
    net.createServer(client => {
      connections++
      const server = net.connect(Number(new URL(url).port), '127.0.0.1').on('error', () => {})
      server.setNoDelay(true)
      client.setNoDelay(true)
      client.once('data', head => {
        server.write(head)
        client.pipe(server)
        cut(head.toString('latin1').split('\r\n', 1)[0] as string, client, server)
      })
      server.once('close', () => client.destroy())
      client.once('close', () => server.destroy())
    }),
  )
  return { url: `http://127.0.0.1:${port}/`, connections: () => connections }
}

test('standard input that gives nothing more does not keep a push that is refused', ENDS, async t => {
  const { url } = await startServer(t, { token: 'secret' })
  const running = uploadr(t, ['push', '-', '--url', url], { stdin: 'pipe' })
  running.child.stdin?.write('x')
  assert.equal(await running.exited, 5, running.stderr())
})

test(
  'a FIFO without a writer does not keep a push: not one that is refused, not one that is interrupted',
  ENDS,
  async t => {
    const { url, dir } = await startServer(t, { token: 'secret' })
    const fifo = join(await tempDir(t), 'fifo')
    assert.equal((await run('mkfifo', [fifo])).code, 0)
    const refused = uploadr(t, ['push', fifo, '--url', url])
    assert.equal(await refused.exited, 5, refused.stderr())
    const open = await startServer(t)
    const interrupted = uploadr(t, ['push', fifo, '--url', open.url, '--id', 'fifo'])
    await arrived(interrupted, open.url, 'fifo')
    interrupted.child.kill('SIGINT')
    assert.ok([130, 'SIGINT'].includes(await interrupted.exited), interrupted.stderr())
    assert.deepEqual([await published(dir), await published(open.dir)], [[], []])
  },
)

test('a FIFO is read to its end, whenever its writer comes', ENDS, async t => {
  const { url, dir } = await startServer(t)
  const fifo = join(await tempDir(t), 'fifo')
  await run('mkfifo', [fifo])
  const running = uploadr(t, ['push', fifo, '--url', url, '--id', 'fifo'])
  await arrived(running, url, 'fifo')
  const bytes = randomFile(300_000)
  await writeFile(fifo, bytes)
  assert.equal(await running.exited, 0, running.stderr())
  assert.ok((await readFile(join(dir, 'fifo'))).equals(bytes))
})

test('what is given slowly is no silence of the server’s', ENDS, async t => {
  const { url } = await startServer(t)
  const running = uploadr(t, ['push', '-', '--url', url, '--timeout', '3s', '--id', 'slow'], {
    stdin: 'pipe',
  })
  running.child.stdin?.write('x')
  await arrived(running, url, 'slow')
  // Longer than the timeout.
  await delay(4500)
  running.child.stdin?.end('y')
  assert.equal(await running.exited, 0, running.stderr())
})

test('time in which push was stopped is not the server’s silence', ENDS, async t => {
  let polled = () => {}
  let resolve: (res: http.ServerResponse) => void = () => {}
  const whole = new Promise<http.ServerResponse>(settle => (resolve = settle))
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'POST') return void req.resume().once('end', () => resolve(res))
    res.writeHead(404).end()
    polled()
  })
  const running = uploadr(t, ['push', await file(t, 'hello'), '--url', url, '--timeout', '2s'])
  const res = await whole
  running.child.kill('SIGSTOP')
  await delay(3000)
  // It runs again, and has been told nothing yet, when it asks again.
  const asks = new Promise<void>(settle => (polled = settle))
  running.child.kill('SIGCONT')
  await Promise.race([asks, running.exited])
  res.writeHead(201).end(receipt('hello'))
  assert.equal(await running.exited, 0, running.stderr())
})

for (const [what, progress] of [
  ['nothing known', { state: 'starting' }],
  ['a count that stands still', { state: 'uploading', received: 5, size: 99, phase: 'receiving' }],
] as const) {
  test(`a server that takes nothing is not alive by another’s polls: ${what}`, ENDS, async t => {
    // Reads nothing of a post, and never answers it.
    const url = await fakeServer(t, (req, res) => {
      if (req.method === 'GET') res.end(JSON.stringify(progress))
    })
    const source = await openFile(await file(t, randomFile(30_000_000)))
    await assert.rejects(push({ url, source, timeout: 400, interval: 20 }), is('stalled', 4))
    await assert.rejects(
      push({ url, source: hello(), timeout: 400, interval: 20 }),
      is('answer_lost', 10, /all \d+ bytes were sent and may be stored/),
    )
  })
}

test('a server that stores has no count that could change, and is alive', ENDS, async t => {
  let polls = 0
  let answer = () => {}
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'POST') {
      req.resume().once('end', () => (answer = () => res.writeHead(201).end(receipt('hello'))))
      return
    }
    res.end(JSON.stringify({ state: 'uploading', received: 99, size: 99, phase: 'storing' }))
    // Far more than the timeout has room for.
    if (++polls === 60) answer()
  })
  assert.equal((await push({ url, source: hello(), timeout: 1000, interval: 50 })).verified, true)
})

test(
  'interim answers that nobody asked for are read over, on a connection that is used again',
  ENDS,
  async t => {
    const sockets = new Set<Socket>()
    const url = await fakeServer(t, (req, res) => {
      sockets.add(req.socket)
      req.socket.write('HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX-A: b\r\n\r\n')
      req.resume().once('end', () => {
        req.socket.write('HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n')
        req.socket.write('HTTP/1.1 199 Whatever\r\n\r\nHTTP/1.1 100 Continue\r\nX-Odd: yes\r\n\r\n')
        res.writeHead(201).end(receipt('hello'))
      })
    })
    const sender = openSender({ url })
    t.after(() => sender.close())
    for (let i = 0; i < 3; i++) assert.equal((await sender.push({ source: hello() })).verified, true)
    assert.equal(sockets.size, 1)
  },
)

test('answers without an end have one', ENDS, async t => {
  const endless = async (head: string, piece: string, every: number | undefined) => {
    const url = await fakeServer(t, (req, res) => {
      if (req.method === 'GET') return void res.end(JSON.stringify({ state: 'starting' }))
      req.resume().once('end', () => {
        const { socket } = req
        socket.write(head)
        if (every === undefined) {
          const more = () => {
            while (socket.writable && socket.write(piece));
          }
          socket.on('drain', more)
          more()
        } else {
          const timer = setInterval(() => socket.write(piece), every)
          socket.once('close', () => clearInterval(timer))
        }
      })
    })
    return push({ url, source: hello(), timeout: 400, interval: 50 })
  }
  const created = 'HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n\r\n'
  await assert.rejects(endless(created, ' '.repeat(1000), undefined), is('bad_answer', 9, /too large/))
  await assert.rejects(endless(created, ' ', 20), is('bad_answer', 9, /HTTP 201, without an end/))
  const hints = 'HTTP/1.1 103 Early Hints\r\n\r\n'
  await assert.rejects(endless('', hints, 20), is('bad_answer', 9, /interim answers \(1xx\)/))
  await assert.rejects(endless('', hints, 0), is('bad_answer', 9, /interim answers \(1xx\)/))
  await assert.rejects(endless('HTTP/1.1 100 Continue\r\n', 'X: y\r\n', 1), /too large|no sign of life/)
  const refused = 'HTTP/1.1 413 Too Large\r\n\r\n'
  await assert.rejects(endless(refused, 'x'.repeat(1000), undefined), is('body_too_large', 6))
  await assert.rejects(endless(refused, ' ', 20), is('body_too_large', 6))
})

test(
  'an outcome that is known is not waited for without end, whatever is still to be sent',
  ENDS,
  async t => {
    // Gives a little, again and again; or nothing more.
    const trickle = (t: TestContext, every?: number) => {
      const stream = new Readable({ read() {} })
      stream.push('x')
      const timer = every && setInterval(() => stream.push('y'), every)
      t.after(() => clearInterval(timer))
      return streamSource(stream, 'trickle')
    }
    const recorded = {
      state: 'error',
      status: 413,
      code: 'body_too_large',
      detail: 'too large, at /?key=hush',
    }
    const silent = await fakeServer(t, (req, res) => {
      if (req.method === 'GET') res.end(JSON.stringify(recorded))
    })
    const endless = await fakeServer(t, (req, res) => {
      if (req.method === 'GET') return void res.writeHead(404).end()
      const timer = setInterval(() => res.write(' '), 20)
      req.socket.once('close', () => clearInterval(timer))
      req.once('data', () => res.writeHead(413).flushHeaders())
    })
    for (const every of [undefined, 50]) {
      const at = (url: string) => push({ url, source: trickle(t, every), timeout: 500, interval: 20 })
      await assert.rejects(at(`${silent}?key=hush`), is('body_too_large', 6, /^too large, at \/…$/))
      await assert.rejects(at(endless), is('body_too_large', 6))
    }
  },
)

test('answers that are none, or not all there', ENDS, async t => {
  const answer = async (text: string) => {
    const server = net.createServer(socket => {
      socket.once('data', head => {
        if (head.toString().startsWith('POST')) setImmediate(() => socket.end(text))
        else socket.destroy()
      })
    })
    return push({ url: `http://127.0.0.1:${await listen(t, server)}/`, source: hello() })
  }
  const cut = 'HTTP/1.1 201 Created\r\nContent-Length: 500\r\n\r\n{'
  await assert.rejects(answer(cut), is('answer_lost', 10, /may be stored/))
  await assert.rejects(answer(''), is('answer_lost', 10, /may be stored/))
  const upgrade = 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n'
  await assert.rejects(answer(upgrade), is('bad_answer', 9, /another protocol, unasked \(101\)/))
  const with4 = 'Content-Length: 4\r\n\r\nnull'
  await assert.rejects(answer(`HTTP/1.1 201 Created\r\n${with4}`), is('bad_answer', 9, /no receipt/))
  await assert.rejects(answer(`HTTP/1.1 400 Bad\r\n${with4}`), is('bad_request', 6, /HTTP 400/))
  const large = `HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n${'x'.repeat(100_000)}`
  await assert.rejects(answer(large), is('bad_answer', 9, /HTTP 200/))
})

test('the user of a URL is sent as Basic, its query is kept, for polls too', ENDS, async t => {
  const asked = new Set<string>()
  let answer = () => {}
  const url = await fakeServer(t, (req, res) => {
    asked.add(`${req.method} ${req.url} ${req.headers.authorization}`)
    if (req.method === 'GET') {
      res.end(JSON.stringify({ state: 'starting' }))
      answer()
    } else req.resume().once('end', () => (answer = () => res.writeHead(201).end(receipt('hello'))))
  })
  const { host } = new URL(url)
  await push({ url: `http://m%C3%A9:s%40cret@${host}/up?key=1&b=%20#part`, source: hello(), interval: 1 })
  const basic = `Basic ${Buffer.from('mé:s@cret').toString('base64')}`
  assert.deepEqual(
    [...asked].sort(),
    [`GET /up/progress?key=1&b=%20 ${basic}`, `POST /up/?key=1&b=%20 ${basic}`].sort(),
  )
})

test('the password of Basic is a token to our own server', ENDS, async t => {
  const { port } = await startServer(t, { token: 'hush' })
  await push({ url: `http://anyone:hush@127.0.0.1:${port}/`, source: hello() })
})

test('no secret of a URL or a token is printed, whatever is wrong', ENDS, async t => {
  const path = await file(t, 'hello')
  const gone = new URL(
    await fakeServer(t, (req, res) => {
      const moved = req.url?.startsWith('/moved')
      const location = `http://anyone:hush@127.0.0.1:1/?key=hush`
      req.resume().once('end', () => (moved ? res.writeHead(301, { location }) : res.writeHead(404)).end())
    }),
  ).host
  const cases: [url: string, exit: number, told: RegExp, more?: string[]][] = [
    ['ftp://x:hush@host/?key=hush', 2, /ftp:\/\/…@host\/\?… is not an http or https URL/],
    ['http://x:hush@host:99999/', 2, /http:\/\/…@host:99999\/ is not/],
    ['x:hush@host', 2, /…@host is not/],
    ['http://x:hu/hush@[', 2, /is not an http or https URL/],
    [`http://x:hush@${gone}/a?key=hush`, 6, /\/a\/\?…: the server answered HTTP 404/],
    [`http://x:hush@${gone}/moved?key=hush`, 9, /redirects to http:\/\/…@127\.0\.0\.1:1\/\?…;/],
    ['http://x:hush@no.such.host.invalid/?key=hush', 12, /no host called no\.such\.host\.invalid/],
    ['http://x:hush@127.0.0.1:1/?key=hush', 4, /cannot connect to 127\.0\.0\.1:1/],
    [`http://x:hush@${gone}/`, 2, /two answers to who asks/, ['--token', 'hush']],
    [`http://${gone}/`, 2, /the token has a line end at its place 5 of 9/, ['--token', 'hush\nhush']],
    [`http://${gone}/`, 2, /a letter that a header cannot carry at its place 5 of 5/, ['--token', 'hushж']],
    [`http://${gone}/`, 2, /a blank or a control character/, ['--token', 'hush hush']],
  ]
  for (const [url, exit, told, more = []] of cases) {
    for (const how of ['lines', 'json']) {
      const running = uploadr(t, ['push', path, '--json', '--progress', how, '--url', url, ...more])
      assert.equal(await running.exited, exit, `${url}: ${running.stderr()}`)
      const printed = running.stdout() + running.stderr()
      assert.match(printed, told)
      assert.doesNotMatch(printed, /hush/)
    }
  }
})

test('files whose size says nothing are read to their end', ENDS, async t => {
  const { url, dir } = await startServer(t)
  const enabled = '/sys/kernel/mm/transparent_hugepage/enabled'
  const paths = ['/proc/cpuinfo', '/proc/self/limits', '/proc/kallsyms', enabled, '/proc/version']
  for (const path of paths) {
    const bytes = await readFile(path)
    const result = await push({ url, source: await openFile(path) })
    assert.ok(result.size > 0 && result.verified, path)
    if (path === '/proc/cpuinfo') continue
    assert.ok((await readFile(join(dir, result.name))).equals(bytes), path)
  }
})

for (const count of [1000, 3000]) {
  test(`${count} small files: connections are used again, and memory does not grow`, {
    timeout: 300_000,
  }, async t => {
    const { url, dir } = await serve(t, ['--no-fsync'])
    const counted = await proxy(t, url, (_, client, server) => void server.pipe(client))
    const folder = await tempDir(t)
    const names = Array.from({ length: count }, (_, i) => `file-${i}`)
    for (const name of names) await writeFile(join(folder, name), '0123456789')
    const args = ['push', '--url', counted.url, '--progress', 'none', ...names]
    const running = uploadr(t, args, { cwd: folder })
    let peak = 0
    let over = false
    void running.exited.then(() => (over = true))
    await until(
      async () => {
        const status = await readFile(`/proc/${running.pid}/status`, 'utf8').catch(() => '')
        peak = Math.max(peak, Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? 0))
        await delay(20)
      },
      () => over,
    )
    assert.equal(await running.exited, 0, running.stderr())
    assert.equal((await published(dir)).length, count)
    // One for uploads; one for polls, that may close while there is nothing to ask.
    assert.ok(counted.connections() < count / 50, `${counted.connections()} connections`)
    assert.ok(peak > 0 && peak < 100 * 1024, `${peak} KiB`)
  })
}

test('a sender whose connection broke goes on with another', ENDS, async t => {
  const { url, dir } = await startServer(t)
  let posts = 0
  const flaky = await proxy(t, url, (_, client, server) => {
    // Of the first connection the second answer is lost.
    if (posts++ === 0)
      server.once('data', first => client.write(first, () => server.once('data', () => client.destroy())))
    else server.pipe(client)
  })
  const sender = openSender({ url: flaky.url })
  t.after(() => sender.close())
  await sender.push({ source: hello() })
  await assert.rejects(
    sender.push({ source: hello() }),
    is('answer_lost', 10, /the server has stored the upload/),
  )
  await sender.push({ source: hello() })
  assert.equal((await published(dir)).length, 3)
})

test('an answer that is lost after storing: an exit of its own, and what progress says', ENDS, async t => {
  const { url, dir } = await startServer(t)
  const path = await file(t, randomFile(500_000))
  const lose = (alsoPolls: boolean) =>
    proxy(t, url, (line, client, server) => {
      if (line.startsWith('POST') || alsoPolls) server.once('data', () => client.destroy())
      else server.pipe(client)
    })
  const told = uploadr(t, ['push', path, '--json', '--url', (await lose(false)).url])
  assert.equal(await told.exited, 10, told.stderr())
  assert.match(told.stderr(), /the server has stored the upload, but its answer is lost/)
  assert.equal(JSON.parse(told.stdout()).error.code, 'answer_lost')
  const untold = uploadr(t, ['push', path, '--url', (await lose(true)).url])
  assert.equal(await untold.exited, 10, untold.stderr())
  assert.match(
    untold.stderr(),
    /all \d+ bytes were sent and may be stored, but the answer is lost.*cannot be had/,
  )
  assert.equal((await published(dir)).length, 2)
  // Before everything is sent there is nothing to store.
  const early = await proxy(t, url, (line, client) => {
    if (line.startsWith('POST')) client.once('data', () => client.resetAndDestroy())
  })
  const large = await file(t, randomFile(30_000_000))
  await assert.rejects(push({ url: early.url, source: await openFile(large) }), is('connection_lost', 4))
})

test('a gateway that gave up says nothing of the server: its progress does', ENDS, async t => {
  for (const status of [502, 504]) {
    let said: object = { state: 'done' }
    const url = await fakeServer(t, (req, res) => {
      if (req.method === 'GET') return void res.end(JSON.stringify(said))
      req.resume().once('end', () => res.writeHead(status, { 'retry-after': '30' }).end('<html>'))
    })
    const at = () => push({ url, source: hello() })
    await assert.rejects(at(), is('answer_lost', 10, new RegExp(`a gateway answered HTTP ${status}`)))
    said = { state: 'error', status: 413, code: 'body_too_large', detail: 'too large' }
    await assert.rejects(at(), is('body_too_large', 6, /^too large$/))
    said = { state: 'starting' }
    await assert.rejects(at(), is('unavailable', 4, /HTTP 50\d; try again in 30\.0 s/))
  }
})

test('what a busy server or proxy says is worth another try, and when', ENDS, async t => {
  const path = await file(t, 'hello')
  const at = 'Wed, 21 Oct 2099 07:28:00 GMT'
  const problem = (status: number, code: string) => JSON.stringify({ status, code, detail: 'busy' })
  const cases: [status: number, after: string, body: string, told: RegExp][] = [
    [503, '120', '', /^uploadr: the server answered HTTP 503; try again in 2m00s$/m],
    [
      429,
      at,
      '<html>',
      /^uploadr: the server answered HTTP 429; try again after Wed, 21 Oct 2099 07:28:00 GMT$/m,
    ],
    [503, '5', problem(503, 'shutting_down'), /^uploadr: busy; try again in 5\.0 s$/m],
    [429, '5', problem(429, 'too_many_uploads_of_client'), /^uploadr: busy; try again in 5\.0 s$/m],
  ]
  for (const [status, after, body, told] of cases) {
    const url = await fakeServer(t, (req, res) => {
      req.resume().once('end', () => res.writeHead(status, { 'retry-after': after }).end(body))
    })
    const running = uploadr(t, ['push', path, '--url', url])
    assert.equal(await running.exited, 4, running.stderr())
    assert.match(running.stderr(), told)
  }
})

test('a server of ours that is stopping is worth another try', ENDS, async t => {
  const held = gate()
  const { url, server } = await startServer(t, { handlers: [held.handler] })
  const first = push({ url, source: hello() })
  await held.reached
  // On a connection that is there already: a stopping server takes no new ones.
  const sender = openSender({ url })
  t.after(() => sender.close())
  held.open()
  await Promise.all([first, sender.push({ source: hello() })])
  const down = server.shutdown({ grace: 10_000 } as never)
  await assert.rejects(sender.push({ source: hello() }), (error: UploadError) => {
    assert.equal(error.exitCode, 4, error.message)
    return true
  })
  await down
})

test('a file that changes while it is sent is told, with an exit of its own', ENDS, async t => {
  const changes: [what: string, change: (path: string) => Promise<unknown>, told: RegExp][] = [
    ['grown', path => appendFile(path, 'more'), /grown went from 9000000 to 9000004 bytes while it was sent/],
    ['rewritten', path => rewrite(path), /rewritten was written to while it was sent/],
    [
      'disguised',
      async path => {
        const { atime, mtime } = await stat(path)
        await rewrite(path)
        await utimes(path, atime, mtime)
      },
      /disguised was (written to|changed, or renamed or the like,) while it was sent/,
    ],
  ]
  for (const [name, change, told] of changes) {
    const held = gate()
    const { url, dir } = await startServer(t, { handlers: [held.handler] })
    const path = await file(t, randomFile(9_000_000), name)
    const running = uploadr(t, ['push', path, '--json', '--url', url])
    await held.reached
    await change(path)
    held.open()
    assert.equal(await running.exited, 11, running.stderr())
    assert.match(running.stderr(), told)
    const { ok, error, ...stored } = JSON.parse(running.stdout())
    assert.deepEqual([ok, error.code, error.exitCode], [false, 'changed', 11])
    const { size, sha256 } = stored.receipt.files[0]
    assert.deepEqual(
      [stored.name, stored.sentAs, stored.size, stored.sha256, stored.verified, stored.id],
      [name, name, size, sha256, true, stored.receipt.id],
    )
    assert.match(error.message, new RegExp(`what was read is stored as ${name}`))
    assert.deepEqual(await published(dir), [name])
  }
})

/** Other bytes at its end, and the same size. */
async function rewrite(path: string): Promise<void> {
  const handle = await open(path, 'r+')
  await handle.write('rewritten', 8_999_000)
  await handle.close()
}

/** A self-signed certificate for localhost. */
async function certificate(t: TestContext): Promise<{ key: string; cert: string; path: string }> {
  const folder = await tempDir(t)
  const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')]
  const names = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost']
  const made = await run('openssl', [
    ...['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2'],
    ...['-keyout', key, '-out', cert, ...names],
  ])
  assert.equal(made.code, 0, made.stderr)
  return { key: await readFile(key, 'utf8'), cert: await readFile(cert, 'utf8'), path: cert }
}

test(
  'TLS: a certificate that is not trusted, and TLS and plain HTTP mistaken for each other',
  ENDS,
  async t => {
    const { key, cert, path: trusted } = await certificate(t)
    const handle: http.RequestListener = (req, res) =>
      void req.resume().once('end', () => res.writeHead(201).end(receipt('hello')))
    const secure = await listen(t, https.createServer({ key, cert }, handle))
    const plain = Number(new URL(await fakeServer(t, handle)).port)
    const alert = await listen(
      t,
      net.createServer(
        socket => void socket.once('data', () => socket.end(Buffer.from('15030100020246', 'hex'))),
      ),
    )
    const says = (text: string) =>
      net.createServer(socket => void socket.once('data', () => socket.end(text)))
    const go = await listen(
      t,
      says('HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n'),
    )
    const nginx = await fakeServer(t, (req, res) => {
      const page = '<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>'
      req.resume().once('end', () => res.writeHead(400).end(page))
    })
    const ssh = await listen(t, says('SSH-2.0-OpenSSH_9.2p1\r\n'))
    const path = await file(t, 'hello')
    const cases: [url: string, exit: number, told: RegExp, env?: Record<string, string>][] = [
      [
        `https://localhost:${secure}/`,
        12,
        /the certificate of localhost:\d+ is not trusted: self-signed.*NODE_EXTRA_CA_CERTS/,
      ],
      [`https://localhost:${secure}/`, 0, /^/, { NODE_EXTRA_CA_CERTS: trusted }],
      [
        `https://127.0.0.1:${secure}/`,
        12,
        /the certificate of 127.0.0.1:\d+ is not trusted: .*does not match/,
        { NODE_EXTRA_CA_CERTS: trusted },
      ],
      [
        `https://127.0.0.1:${plain}/`,
        12,
        /127.0.0.1:\d+ does not speak TLS: is http:\/\/127.0.0.1:\d+\/ meant\?/,
      ],
      [`http://127.0.0.1:${secure}/`, 12, /127.0.0.1:\d+ speaks TLS: is https:\/\/127.0.0.1:\d+\/ meant\?/],
      [`http://127.0.0.1:${alert}/`, 12, /speaks TLS: is https:/],
      [`http://127.0.0.1:${go}/`, 12, /speaks TLS: is https:/],
      [nginx, 12, /speaks TLS: is https:/],
      [`http://127.0.0.1:${ssh}/`, 9, /what 127.0.0.1:\d+ answers is not HTTP: "SSH-2.0-OpenSSH_9.2p1/],
      [`https://127.0.0.1:${ssh}/`, 12, /does not speak TLS/],
      ['http://no.such.host.invalid/', 12, /there is no host called no.such.host.invalid/],
    ]
    for (const [url, exit, told, env] of cases) {
      const running = uploadr(t, ['push', path, '--url', url], env && { env })
      assert.equal(await running.exited, exit, `${url}: ${running.stderr()}`)
      assert.match(running.stderr(), told)
    }
  },
)

test('a redirect to what is no URL is told as it came', ENDS, async t => {
  const url = await fakeServer(t, (req, res) => {
    req.resume().once('end', () => res.writeHead(302, { location: 'http://[' }).end())
  })
  await assert.rejects(
    push({ url, source: hello() }),
    is('bad_answer', 9, /redirects to http:\/\/\[; push does not follow/),
  )
})

test('options that cannot be are usage errors, of the library too', ENDS, async t => {
  const { url } = await startServer(t)
  const bad = [{ token: '' }, { token: 'a\nb' }, { type: 'a/b\r\nX: y' }, { type: 'text' }, { id: 'no/good' }]
  for (const options of [...bad, { timeout: -1 }, { interval: Number.NaN }, { interval: 2 ** 31 }]) {
    await assert.rejects(push({ url, source: hello(), ...options }), is('usage', 2), JSON.stringify(options))
  }
})

test('a push that is over does not wait for a connection that is never made', ENDS, async t => {
  // Its accept queue is full and nobody looks after it: what comes now is dropped without a word.
  const script = `import socket, time
s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(0)
full = [socket.socket() for _ in range(4)]
for each in full: each.setblocking(False); each.connect_ex(s.getsockname())
print(s.getsockname()[1], flush=True); time.sleep(600)`
  const child = spawn('python3', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.after(() => child.kill('SIGKILL'))
  const [port] = await once(child.stdout, 'data')
  const began = performance.now()
  const control = new AbortController()
  const pushing = push({ url: `http://127.0.0.1:${Number(port)}/`, source: hello(), signal: control.signal })
  control.abort()
  await assert.rejects(pushing, is('interrupted', 130))
  const running = uploadr(t, [
    'push',
    await file(t, 'x'),
    '--url',
    `http://127.0.0.1:${Number(port)}/`,
    '--timeout',
    '300ms',
  ])
  assert.equal(await running.exited, 4, running.stderr())
  assert.match(running.stderr(), /no sign of life/)
  // undici gives up on a connection after ten seconds: what ended before did not wait for that.
  assert.ok(performance.now() - began < 9000)
})

test('what arrived is verified where a handler stores something else', ENDS, async t => {
  const answer = (more: object) =>
    fakeServer(t, (req, res) => {
      req.resume().once('end', () => res.writeHead(201).end(receipt('HELLO, WORLD', more)))
    })
  const arrived = { size: 5, sha256: sha256(Buffer.from('hello')) }
  const result = await push({ url: await answer({ arrived }), source: hello() })
  assert.deepEqual([result.verified, result.size], [true, 5])
  const unverified = await push({ url: await answer({ arrived: { size: 5 } }), source: hello() })
  assert.equal(unverified.verified, false)
  for (const wrong of [{ size: 6 }, { size: 5, sha256: 'f'.repeat(64) }]) {
    await assert.rejects(
      push({ url: await answer({ arrived: wrong }), source: hello() }),
      is('digest_mismatch', 7),
    )
  }
  const mismatch = uploadr(t, [
    'push',
    await file(t, Buffer.from('hello'), 'greeting'),
    '--json',
    '--url',
    await answer({ arrived: { size: 6 } }),
  ])
  assert.equal(await mismatch.exited, 7)
  const { ok, name, size, verified, receipt: answered, error } = JSON.parse(mismatch.stdout())
  assert.deepEqual(
    [ok, name, size, verified, answered.files[0].arrived.size, error.code],
    [false, answered.files[0].name, 5, false, 6, 'digest_mismatch'],
  )
  for (const nonsense of ['5', { size: '5' }, { size: 5, sha256: 5 }]) {
    await assert.rejects(
      push({ url: await answer({ arrived: nonsense }), source: hello() }),
      is('bad_answer', 9),
    )
  }
})

test('a handler of the server’s that changes bytes is no mismatch', ENDS, async t => {
  const upper: UploadHandler = {
    name: 'upper',
    async open(info, next) {
      const inner = await next(info)
      return tap(inner, { write: chunk => inner.write(Buffer.from(chunk.toString().toUpperCase())) })
    },
  }
  const { url, dir } = await startServer(t, { handlers: [upper] })
  const result = await push({ url, source: hello() })
  assert.deepEqual([result.verified, result.sha256], [true, sha256(Buffer.from('hello'))])
  assert.equal(await readFile(join(dir, result.name), 'utf8'), 'HELLO')
})

test('a name that is not UTF-8 is sent, made valid, and said', ENDS, async t => {
  const { url, dir } = await startServer(t)
  const folder = await tempDir(t)
  for (const byte of [0xe9, 0xe8]) {
    await writeFile(
      Buffer.concat([Buffer.from(`${folder}/caf`), Buffer.from([byte]), Buffer.from('.txt')]),
      `${byte}`,
    )
  }
  const command = [process.execPath, BINARY, 'push', '--json', '--url', url]
  const { code, stdout, stderr } = await run('sh', ['-c', 'exec "$@" caf*', 'sh', ...command], {
    cwd: folder,
  })
  assert.equal(code, 0, stderr)
  const results = stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  assert.deepEqual(
    results.map(({ file }) => file),
    ['caf\ufffd.txt', 'caf\ufffd.txt'],
  )
  const stored = await Promise.all(results.map(({ name }) => readFile(join(dir, name), 'utf8')))
  assert.deepEqual(stored.sort(), ['232', '233'])
  const source = await openFile(
    Buffer.concat([Buffer.from(`${folder}/caf`), Buffer.from([0xe9]), Buffer.from('.txt')]),
  )
  assert.match((await push({ url, source })).why ?? '', /^its name is not UTF-8, name taken$/)
})

test('polls are asked of what takes its time, and only then', ENDS, async t => {
  const seen: PushProgress[] = []
  let polls = 0
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'GET') polls++
    req.resume().once('end', () => res.writeHead(201).end(receipt('hello')))
  })
  await push({ url, source: hello(), interval: 60_000, onProgress: now => seen.push(now) })
  assert.equal(polls, 0)
  assert.equal(seen.at(-1)?.sent, seen.at(-1)?.size ?? seen.at(-1)?.sent)
})

test(
  'the file that was named is sent, although another of the same text stands on the command line',
  ENDS,
  async t => {
    const { url, dir } = await startServer(t)
    const folder = await tempDir(t)
    for (const [byte, text] of [
      [0xff, 'one'],
      [0xfe, 'two'],
    ] as const)
      await writeFile(Buffer.concat([Buffer.from(`${folder}/d`), Buffer.from([byte])]), text)
    const command = [process.execPath, BINARY, 'push', '--json', '--url', url]
    const script = `exec "$@" --title "$(printf 'd\\376')" "$(printf 'd\\377')" "$(printf 'd\\376')"`
    const { code, stdout, stderr } = await run('sh', ['-c', script, 'sh', ...command], { cwd: folder })
    assert.equal(code, 0, stderr)
    const results = stdout
      .trim()
      .split('\n')
      .map(line => JSON.parse(line))
    assert.deepEqual(
      results.map(({ file, title, sentAs, why }) => [file, title, sentAs, why]),
      [
        ['d\ufffd', 'd\ufffd', 'd\ufffd', 'its name is not UTF-8'],
        ['d\ufffd', 'd\ufffd', 'd\ufffd', 'its name is not UTF-8, name taken'],
      ],
    )
    const stored = await Promise.all(results.map(({ name }) => readFile(join(dir, name), 'utf8')))
    assert.deepEqual(stored, ['one', 'two'])
  },
)

test(
  'standard input that is a file is one: its size is known, from where it stands, and a change is told',
  ENDS,
  async t => {
    const held = gate()
    const { url, dir } = await startServer(t, { handlers: [held.handler] })
    // More than sockets hold.
    const path = await file(t, randomFile(40_000_000))
    const script = `dd bs=1000 count=1 of=/dev/null 2>&1 && exec '${process.execPath}' '${BINARY}' push - --json --url ${url} --id file < /dev/stdin`
    const push = (line: string) => run('bash', ['-c', line])
    const running = push(`{ ${script.replace(' < /dev/stdin', '')}; } < '${path}'`)
    await held.reached
    const progress = await getProgress(url, 'file')
    assert.ok(progress.state === 'uploading' && Number(progress.size) > 39_999_000)
    await rewrite(path)
    held.open()
    const { code, stderr } = await running
    assert.equal(code, 11, stderr)
    assert.match(stderr, /stdin was written to while it was sent/)
    assert.equal((await readFile(join(dir, 'stdin'))).length, 39_999_000)
    const folder = await push(`exec '${process.execPath}' '${BINARY}' push - --url ${url} < '${dir}'`)
    assert.deepEqual([folder.code, folder.stderr], [3, 'uploadr: stdin is a directory\n'])
  },
)

test('directories and things that are not there are named', ENDS, async t => {
  const folder = await tempDir(t)
  await mkdir(join(folder, 'sub'))
  await assert.rejects(openFile(join(folder, 'sub')), is('local_file', 3, /sub is a directory/))
  await assert.rejects(openFile(Buffer.from(join(folder, 'none'))), is('local_file', 3, /none: no such file/))
})

test('names arrive as they are, and where they cannot, why is said', ENDS, async t => {
  const { url, dir } = await startServer(t)
  const folder = await tempDir(t)
  const names = [
    'trail\\',
    'back\\slash.txt',
    '..\\..\\up.txt',
    'C:\\dir\\x.txt',
    '\\',
    '100%22.txt',
    'a%0Ab.txt',
    'a%5Cb.txt',
    '100%.txt',
    'quote"d.txt',
    "it's *.txt",
    '=?utf-8?B?w5w=?=.txt',
    'semi;colon=1.txt',
    'Übung — 字.txt',
    '👩\u200d🚀.png',
    '.hidden',
    '-dash',
  ]
  for (const name of names) await writeFile(join(folder, name), name)
  const args = ['push', '--json', '--url', url, '--', ...names]
  const running = uploadr(t, args, { cwd: folder })
  assert.equal(await running.exited, 0, running.stderr())
  for (const [i, line] of running.stdout().trim().split('\n').entries()) {
    const { name, sentAs, why } = JSON.parse(line)
    assert.deepEqual([name, sentAs, why], [names[i], names[i], undefined])
  }
  assert.deepEqual(await published(dir), [...names].sort())
  for (const name of names) assert.equal(await readFile(join(dir, name), 'utf8'), name)

  // What no name on our server has. The text is for people, and on one line.
  const odd = ['line\nend.txt', ' blank.txt ', 'bell\x07.txt', `${'x'.repeat(250)}.txtx`]
  const told = [
    String.raw`line\u000aend.txt stored as lineend.txt (name cleaned)`,
    ' blank.txt  stored as blank.txt (name cleaned)',
    String.raw`bell\u0007.txt stored as bell.txt (name cleaned)`,
  ]
  for (const name of odd) await writeFile(join(folder, name), name)
  const cleaned = uploadr(t, ['push', '--url', url, ...odd.slice(0, 3), '100%22.txt'], { cwd: folder })
  assert.equal(await cleaned.exited, 0, cleaned.stderr())
  const lines = cleaned.stdout().split('\n')
  for (const [i, text] of told.entries()) assert.ok(lines[i]?.startsWith(`${text}: `), lines[i])
  assert.match(lines[3] ?? '', /^100%22\.txt stored as 100%22_\w{7}\.txt \(name taken\): /)
  const long = streamSource(Readable.from([Buffer.from('x')]), `${'x'.repeat(300)}.txt`)
  assert.equal((await push({ url, source: long })).why, 'name shortened')
})

test('nothing is believed that is said before the file was read to its end', ENDS, async t => {
  const stream = new Readable({ read() {} })
  stream.push('hello')
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'GET') return void res.writeHead(404).end()
    req.once('data', () => res.writeHead(201).end(receipt('hello')))
  })
  const pushing = push({ url, source: streamSource(stream, 'file.bin') })
  await assert.rejects(
    pushing,
    is('bad_answer', 9, /done after \d+ bytes sent, before file.bin was at its end/),
  )
})

test('after the head of a 201 nothing is worth another try', ENDS, async t => {
  const server = net.createServer(socket => {
    socket.once('data', head => {
      if (head.toString().startsWith('GET')) return void socket.destroy()
      socket.pause().end('HTTP/1.1 201 Created\r\nContent-Length: 500\r\n\r\n{')
    })
  })
  const url = `http://127.0.0.1:${await listen(t, server)}/`
  const source = await openFile(await file(t, randomFile(30_000_000)))
  await assert.rejects(push({ url, source }), is('answer_lost', 10, /began to say that it has stored/))
})

test('a server that takes bytes all the time is alive, however few', ENDS, async t => {
  // Small segments make small buffers, as slow lines have them: loopback's own hold seconds of this.
  const script = `import socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500)
s.bind(('127.0.0.1', 0)); s.listen(9)
print(s.getsockname()[1], flush=True)
c = s.accept()[0]; got = 0; piece = b''
while not piece.endswith(b'--\\r\\n'):
  piece = c.recv(16384); got += len(piece)
  if got < 1500000: time.sleep(0.05)
c.sendall(b'HTTP/1.1 201 Created\\r\\nContent-Length: %d\\r\\n\\r\\n%s' % (len(sys.argv[1]), sys.argv[1].encode()))
time.sleep(60)`
  const bytes = randomFile(2_500_000)
  const child = spawn('python3', ['-c', script, receipt(bytes)], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.after(() => child.kill('SIGKILL'))
  const [port] = await once(child.stdout, 'data')
  const source = await openFile(await file(t, bytes))
  const result = await push({ url: `http://127.0.0.1:${Number(port)}/`, source, timeout: 2000 })
  assert.equal(result.verified, true)
})

test('polls are asked often enough to hear of life within the timeout', ENDS, async t => {
  let polls = 0
  let answer = () => {}
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'POST') {
      req.resume().once('end', () => (answer = () => res.writeHead(201).end(receipt('hello'))))
      return
    }
    res.end(JSON.stringify({ state: 'uploading', received: 99, size: 99, phase: 'storing' }))
    if (++polls === 10) answer()
  })
  const result = await push({ url, source: hello(), timeout: 1000, interval: 600_000 })
  assert.equal(result.verified, true)
})

test('an answer is waited for as long as was said, also where progress says done', ENDS, async t => {
  let answer = () => {}
  let heard = () => {}
  const polled = new Promise<void>(resolve => (heard = resolve))
  const url = await fakeServer(t, (req, res) => {
    if (req.method === 'POST') {
      req.resume().once('end', () => (answer = () => res.writeHead(201).end(receipt('hello'))))
    } else {
      res.end(JSON.stringify({ state: 'done' }))
      heard()
    }
  })
  const pushing = push({ url, source: hello() })
  await polled
  // Longer than an answer that tells of a failure is waited for.
  await delay(3000)
  answer()
  assert.equal((await pushing).verified, true)
  const lost = push({ url, source: hello(), timeout: 300, interval: 20 })
  await assert.rejects(lost, is('answer_lost', 10, /no answer came within 300 ms/))
})

test('who is told to stop stops, whatever is being found out about a failure', ENDS, async t => {
  const large = await file(t, randomFile(30_000_000))
  type Case = [what: string, post: http.RequestListener, get: (res: http.ServerResponse) => void]
  const reset: http.RequestListener = req => void req.resume().once('end', () => req.socket.destroy())
  const cases: Case[] = [
    ['the progress is asked, after all was sent', reset, () => {}],
    ['the progress is asked, before', req => req.once('data', () => req.socket.destroy()), () => {}],
    ['TLS is tried', reset, res => res.socket?.destroy()],
    [
      'the progress is asked again',
      reset,
      res => void res.end(JSON.stringify({ state: 'uploading', received: 9, phase: 'receiving' })),
    ],
    [
      'the progress is asked behind a gateway',
      (req, res) => void req.resume().once('end', () => res.writeHead(502).end()),
      () => {},
    ],
  ]
  for (const [what, post, get] of cases) {
    let asked = () => {}
    const server = http.createServer((req, res) => {
      if (req.method === 'POST') return post(req, res)
      get(res)
      if (what !== 'TLS is tried') asked()
    })
    // A TLS client's hello is no HTTP; it is not answered.
    server.on('clientError', () => asked())
    const url = `http://127.0.0.1:${await listen(t, server)}/`
    const control = new AbortController()
    asked = () => control.abort()
    const source = what.endsWith('before') ? await openFile(large) : hello()
    const pushing = push({ url, source, signal: control.signal })
    await assert.rejects(pushing, is('interrupted', 130), what)
    const path = what.endsWith('before') ? large : await file(t, 'hello')
    const running = uploadr(t, ['push', path, path, '--json', '--url', url])
    asked = () => void running.child.kill('SIGINT')
    assert.ok([130, 'SIGINT'].includes(await running.exited), `${what}: ${running.stderr()}`)
    const lines = running.stdout().trim().split('\n')
    assert.deepEqual(
      lines.map(line => JSON.parse(line).error.code),
      ['interrupted'],
    )
  }
})

for (const [what, progress] of [
  ['rise and fall', (polls: number) => ({ received: (polls % 2) * 1e6, phase: 'receiving' })],
  ['rise beyond what was sent', (polls: number) => ({ received: 1e9 + polls, phase: 'receiving' })],
  ['stand still, of what is said to be stored', () => ({ received: 1, phase: 'storing' })],
] as const) {
  test(`a server that takes nothing is not alive by counts that ${what}`, ENDS, async t => {
    let polls = 0
    const url = await fakeServer(t, (req, res) => {
      if (req.method === 'GET') res.end(JSON.stringify({ state: 'uploading', ...progress(polls++) }))
    })
    const source = await openFile(await file(t, randomFile(30_000_000)))
    const received: number[] = []
    const onProgress = (now: PushProgress) => void received.push(now.received - now.sent)
    await assert.rejects(push({ url, source, timeout: 1000, interval: 20, onProgress }), is('stalled', 4))
    // A chunk is on its way to the socket.
    assert.ok(Math.max(...received) <= 1024 * 1024 + 1000, `${Math.max(...received)}`)
  })
}

test('a server that repeats our secrets has none of them printed', ENDS, async t => {
  const token = 'tok-SECRET"\\123456'
  const path = await file(t, 'hello')
  const after = (handle: http.RequestListener) =>
    fakeServer(t, (req, res) => {
      if (req.method === 'GET') return void res.writeHead(404).end()
      req.resume().once('end', () => handle(req, res))
    })
  const answers = (status: number, body: object) =>
    after((_, res) => void res.writeHead(status).end(JSON.stringify(body)))
  const errors = { [token]: [{ message: token, code: token }] }
  const says = async (text: string) => {
    const server = net.createServer(socket => void socket.once('data', () => socket.end(text)))
    return `http://127.0.0.1:${await listen(t, server)}/`
  }
  const echo = net.createServer(socket => void socket.pipe(socket))
  let polls = 0
  let answer = () => {}
  const polled = await fakeServer(t, (req, res) => {
    if (req.method === 'POST') {
      answer = () => res.writeHead(201).end(receipt('hello'))
      return
    }
    res.end(token)
    if (++polls === 5) answer()
  })
  const named = { name: token, sentAs: token, type: token, handler: token, field: token }
  const cases: [url: string, exit: number, told: RegExp][] = [
    [`http://127.0.0.1:${await listen(t, echo)}/`, 9, /is not HTTP/],
    [await says(`HTTP/1.1 20${token} Bad\r\n\r\n`), 9, /is not HTTP/],
    [await says(`HTTP/1.1 2${token.slice(0, 12)}`), 9, /is not HTTP/],
    [await after((_, res) => void res.writeHead(503, { 'retry-after': token }).end()), 4, /HTTP 503/],
    [await answers(422, { code: 'invalid_form', detail: token, errors }), 6, /…/],
    [await answers(201, JSON.parse(receipt('hello', named))), 0, /…/],
    [await answers(201, JSON.parse(receipt('hello', { sha256: token }))), 7, /…/],
    [polled, 0, /no progress answer/],
  ]
  for (const [url, exit, told] of cases) {
    const how = url === polled ? 'lines' : 'json'
    const args = ['push', path, '--json', '--progress', how, '--url', `${url}?key=SECRET-KEY`]
    const running = uploadr(t, args, { env: { UPLOADR_TOKEN: token } })
    assert.equal(await running.exited, exit, `${url}: ${running.stderr()}`)
    const printed = running.stdout() + running.stderr()
    assert.match(printed, told)
    assert.doesNotMatch(printed, /SECRET/)
  }
})

test('of an answer nothing is kept but what it is there for, however deep the rest', ENDS, async t => {
  const path = await file(t, 'hello')
  const deep = '['.repeat(30_000) + ']'.repeat(30_000)
  const problem = '{"code":"invalid_form","detail":"bad","errors":'
  const error = '{"message":"m","code":"c"}'
  const cases: [status: number, body: string, exit: number][] = [
    [201, receipt('hello').replace('{', `{"x":${deep},`), 0],
    [201, receipt('hello').replace('{', `{"fields":{"a":["b",1,${deep}]},`), 0],
    [201, receipt('hello').replace('[{', `[{"x":${deep},`), 0],
    [422, `${problem}${deep}}`, 6],
    [422, `${problem}{"title":[${deep},${error}]}}`, 6],
    [422, `${problem}{"title":[${error}],"x":1}}`, 6],
    [201, deep, 9],
  ]
  for (const [status, body, exit] of cases) {
    const url = await fakeServer(t, (req, res) => {
      req.resume().once('end', () => res.writeHead(status).end(body))
    })
    const running = uploadr(t, ['push', path, '--json', '--progress', 'json', '--url', url])
    assert.equal(await running.exited, exit, running.stderr())
    for (const line of running.stderr().trim().split('\n')) JSON.parse(line)
    const { ok, receipt: got, error: told } = JSON.parse(running.stdout())
    assert.equal(ok, exit === 0)
    if (got?.fields) assert.deepEqual(got.fields, { a: ['b'] })
    if (told?.errors) assert.deepEqual(told.errors, { title: [JSON.parse(error)] })
    if (got) assert.equal('x' in got || 'x' in got.files[0], false)
  }
})

test('a server that asks for a certificate of the client’s', ENDS, async t => {
  const { path: trusted } = await certificate(t)
  const files = ['-cert', trusted, '-key', join(dirname(trusted), 'key.pem')]
  const options = ['s_server', '-accept', '127.0.0.1:0', '-Verify', '1', '-verify_return_error', ...files]
  const child = spawn('openssl', options, { stdio: ['pipe', 'pipe', 'ignore'] })
  t.after(() => child.kill('SIGKILL'))
  let said = ''
  child.stdout.on('data', chunk => (said += chunk))
  await until(
    () => said,
    text => /ACCEPT .*:\d+/.test(text),
  )
  const port = /ACCEPT .*:(\d+)/.exec(said)?.[1]
  const args = ['push', await file(t, 'hello'), '--url', `https://localhost:${port}/`]
  const running = uploadr(t, args, { env: { NODE_EXTRA_CA_CERTS: trusted } })
  assert.equal(await running.exited, 12, running.stderr())
  assert.match(running.stderr(), /localhost:\d+ asks for a certificate of the client’s, and push has none/)
})

test('a count that is no number of bytes is no progress answer', ENDS, async t => {
  for (const received of ['1e400', '1e300', '0.5', '-1']) {
    let polls = 0
    let answer = () => {}
    const url = await fakeServer(t, (req, res) => {
      if (req.method === 'POST') {
        req.resume().once('end', () => (answer = () => res.writeHead(201).end(receipt('hello'))))
        return
      }
      res.end(`{"state":"uploading","received":${received},"phase":"receiving"}`)
      if (++polls === 5) answer()
    })
    const seen: PushProgress[] = []
    await push({ url, source: hello(), interval: 10, onProgress: now => seen.push(now) })
    assert.ok(seen.every(now => Number.isSafeInteger(now.received)))
    assert.equal(seen.at(-1)?.why, 'no progress answer')
  }
})

test('a kept connection that ends as the next file is on its way: was it read?', ENDS, async t => {
  const lastsFor = async (knows: boolean, interim = '') => {
    const known = new Set<unknown>()
    const url = await fakeServer(t, (req, res) => {
      const id = req.headers['x-progress-id']
      if (req.method === 'GET')
        return void res.end(JSON.stringify({ state: known.has(id) ? 'done' : 'starting' }))
      req.resume().once('end', () => {
        if (known.size > 0 || req.headers['x-progress-id'] === 'second') return void req.socket.end(interim)
        if (knows) known.add(id)
        res.writeHead(201).end(receipt('hello'))
      })
    })
    const sender = openSender({ url })
    t.after(() => sender.close())
    await sender.push({ source: hello() })
    return sender.push({ source: hello(), id: 'second' })
  }
  await assert.rejects(lastsFor(true), is('connection_lost', 4))
  // Whose progress knows nothing, or who has begun to answer, may have stored it.
  await assert.rejects(lastsFor(false), is('answer_lost', 10))
  await assert.rejects(lastsFor(true, 'HTTP/1.1 102 Processing\r\n\r\n'), is('answer_lost', 10))
})

test('a digest is the same in upper case', ENDS, async t => {
  const digest = sha256(Buffer.from('hello')).toUpperCase()
  const url = await fakeServer(t, (req, res) => {
    const answer = receipt('hello', { sha256: digest, arrived: { size: 5, sha256: digest } })
    req.resume().once('end', () => res.writeHead(201).end(answer))
  })
  assert.equal((await push({ url, source: hello() })).verified, true)
})
