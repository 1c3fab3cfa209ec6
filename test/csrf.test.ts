import assert from 'node:assert/strict'
import os from 'node:os'
import test, { type TestContext } from 'node:test'
import type { ServerOptions, UploadHandler } from '../src/index.ts'
import {
  connect,
  multipart,
  type Part,
  post,
  published,
  randomFile,
  readAnswer,
  startServer,
  TITLE,
} from './support.ts'

const TOKEN = 'x'.repeat(43)
const OTHER = `${'x'.repeat(42)}y`
const COOKIE = { Cookie: `csrftoken=${TOKEN}` }
const FILE: Part = { name: 'file', filename: 'a.txt', body: 'hello' }

function field(token: string): Part {
  return { name: 'csrfmiddlewaretoken', body: token }
}

/** A server that says which files were opened for storing. */
async function start(t: TestContext, options: ServerOptions = {}) {
  const opened: string[] = []
  const watcher: UploadHandler = {
    name: 'watcher',
    open(file, next) {
      opened.push(file.name)
      return next(file)
    },
  }
  return { ...(await startServer(t, { ...options, handlers: [watcher] })), opened }
}

test('a script needs no token, whatever cookies it keeps', async t => {
  const { url } = await start(t)
  for (const headers of [{}, { Cookie: 'session=1' }, COOKIE]) {
    assert.equal((await post(url, multipart([TITLE, FILE]), { headers })).status, 201)
  }
})

test('a form of our own page is taken: the token in the field or in the header', async t => {
  const { url, port } = await start(t)
  const headers = { ...COOKIE, Origin: `http://127.0.0.1:${port}`, 'Sec-Fetch-Site': 'same-origin' }
  assert.equal((await post(url, multipart([field(TOKEN), TITLE, FILE]), { headers })).status, 201)
  const withHeader = { ...headers, 'X-CSRFToken': TOKEN }
  assert.equal((await post(url, multipart([TITLE, FILE]), { headers: withHeader })).status, 201)
})

test('a post of another origin is refused without a byte of its body', async t => {
  const { url, port, dir } = await start(t)
  const own = `http://127.0.0.1:${port}`
  const cases: Record<string, Record<string, string>> = {
    'cross-site': { Origin: 'https://evil.example', 'Sec-Fetch-Site': 'cross-site', ...COOKIE },
    'Sec-Fetch-Site alone': { 'Sec-Fetch-Site': 'cross-site', 'X-CSRFToken': TOKEN, ...COOKIE },
    'another port is another origin': { 'Sec-Fetch-Site': 'same-site', 'X-CSRFToken': TOKEN, ...COOKIE },
    'Origin alone': { Origin: `http://127.0.0.1:${port + 1}`, 'X-CSRFToken': TOKEN, ...COOKIE },
    'a sandboxed frame': { Origin: 'null', 'X-CSRFToken': TOKEN, ...COOKIE },
    'an origin of another kind': { Origin: `ftp://127.0.0.1:${port}`, 'X-CSRFToken': TOKEN, ...COOKIE },
    'no cookie': { Origin: own, 'X-CSRFToken': TOKEN },
    'a cookie that is no token': { Origin: own, 'X-CSRFToken': 'short', Cookie: 'csrftoken=short' },
    'a wrong header': { Origin: own, 'X-CSRFToken': OTHER, ...COOKIE },
    'a browser that names no origin': { 'Upgrade-Insecure-Requests': '1', 'X-CSRFToken': TOKEN },
  }
  for (const [name, headers] of Object.entries(cases)) {
    const socket = connect(url)
    const answer = readAnswer(socket)
    const all = { Host: `127.0.0.1:${port}`, 'Content-Length': '1000000', Expect: '100-continue', ...headers }
    const lines = Object.entries(all).map(([key, value]) => `${key}: ${value}\r\n`)
    socket.write(`POST / HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=B\r\n${lines.join('')}\r\n`)
    // Nothing of the body is ever sent: an answer that waited for it would not come.
    socket.once('data', () => socket.end())
    const { status, json } = await answer
    assert.equal(status, 403, name)
    assert.equal(json.code, 'forbidden', name)
  }
  assert.deepEqual(await published(dir), [])
})

test('a wrong token in the form is refused before a file is opened', async t => {
  const { url, port, dir, opened } = await start(t)
  const headers = { ...COOKIE, Origin: `http://127.0.0.1:${port}` }
  for (const [name, parts] of Object.entries({
    wrong: [field(OTHER), TITLE, FILE],
    empty: [field(''), TITLE, FILE],
    missing: [TITLE, FILE],
    // Larger than what is read at once: the token is not there yet.
    'after the file': [TITLE, { ...FILE, body: randomFile(1_000_000) }, field(TOKEN)],
    'wrong, and no file': [field(OTHER), TITLE],
  })) {
    const answer = await post(url, multipart(parts), { headers })
    assert.equal(answer.status, 403, name)
    assert.equal(answer.json.code, 'forbidden', name)
  }
  assert.deepEqual(opened, [])
  assert.deepEqual(await published(dir), [])
})

test('the origin may be a public name, as behind a proxy that sends its own Host', async t => {
  const { url } = await start(t, { publicNames: ['Upload.example.org', 'up.example.org:8443'] })
  const attempt = async (origin: string) => {
    const headers = { ...COOKIE, Origin: origin, 'X-CSRFToken': TOKEN }
    return (await post(url, multipart([TITLE, FILE]), { headers })).status
  }
  assert.equal(await attempt('https://upload.example.org'), 201)
  assert.equal(await attempt('https://up.example.org:8443'), 201)
  assert.equal(await attempt('https://upload.example.org:8443'), 403)
  assert.equal(await attempt('https://up.example.org'), 403)
})

test('another port is another origin, whatever the machine is called', async t => {
  const name = os.hostname()
  const { url } = await start(t, { publicNames: ['box', 'up.example.org'] })
  const attempt = async (Host: string, Origin: string) => {
    const headers = { ...COOKIE, Host, Origin, 'X-CSRFToken': TOKEN }
    return (await post(url, multipart([TITLE, FILE]), { headers })).status
  }
  for (const host of [name, `${name}.local`, 'box', 'localhost', '127.0.0.1', '[::1]']) {
    assert.equal(await attempt(`${host}:8000`, `http://${host}:8000`), 201, host)
    for (const other of [
      `http://${host}`,
      `https://${host}`,
      `http://${host}:8001`,
      `https://${host}:8443`,
    ]) {
      assert.equal(await attempt(`${host}:8000`, other), 403, other)
    }
    assert.equal(await attempt(host, `http://${host}`), 201, host)
    assert.equal(await attempt(host, `http://${host}:8000`), 403, host)
  }
})

test('a proxy that rewrites the Host is known by its public name, with its port where that says less', async t => {
  const { url } = await start(t, { publicNames: ['up.example.org', 'box:80', 'up.example.org:8443'] })
  const attempt = async (Host: string, Origin: string) => {
    const headers = { ...COOKIE, Host, Origin, 'X-CSRFToken': TOKEN }
    return (await post(url, multipart([TITLE, FILE]), { headers })).status
  }
  for (const host of ['127.0.0.1:8000', 'localhost', 'localhost:8000']) {
    for (const origin of ['https://up.example.org', 'http://up.example.org', 'https://up.example.org:8443']) {
      assert.equal(await attempt(host, origin), 201, `${host} ${origin}`)
    }
    assert.equal(await attempt(host, 'https://up.example.org:8000'), 403)
  }
  // nginx's \$proxy_host, where it passes on to this machine by the name that browsers know.
  assert.equal(await attempt('box:8000', 'http://box'), 201)
  assert.equal(await attempt('box:8000', 'https://box'), 403)
  // And its \$host, which has no port.
  assert.equal(await attempt('up.example.org', 'https://up.example.org:8443'), 201)
})

test('TLS may end in front of the server', async t => {
  const { url } = await start(t, { publicNames: ['upload.example.org'] })
  for (const Host of ['upload.example.org', 'upload.example.org:443']) {
    const headers = { ...COOKIE, Host, Origin: 'https://upload.example.org', 'X-CSRFToken': TOKEN }
    assert.equal((await post(url, multipart([TITLE, FILE]), { headers })).status, 201, Host)
  }
})

test('a browser is answered under known names only', async t => {
  const { url, port } = await start(t, { publicNames: ['upload.example.org:8443'] })
  const attempt = async (host: string, header: string) => {
    const socket = connect(url)
    const answer = readAnswer(socket)
    socket.write(`GET / HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n${header}\r\n\r\n`)
    return (await answer).status
  }
  const mozilla = 'User-Agent: Mozilla/5.0 (X11; Linux x86_64)'
  const known = [
    'localhost',
    'LOCALHOST',
    'app.localhost',
    '127.0.0.1',
    '192.168.1.7',
    '[::1]',
    'upload.example.org',
  ]
  for (const host of known) {
    assert.equal(await attempt(`${host}:${port}`, 'Upgrade-Insecure-Requests: 1'), 200, host)
    assert.equal(await attempt(host, 'Upgrade-Insecure-Requests: 1'), 200, host)
  }
  for (const host of [
    'evil.example',
    'localhost.evil.example',
    '127.0.0.1.evil.example',
    'evil.example.',
    '',
  ]) {
    for (const header of [
      `${mozilla}\r\nAccept-Language: en`,
      'Upgrade-Insecure-Requests: 1',
      'Origin: http://evil.example',
      'Sec-Fetch-Site: same-origin',
    ]) {
      assert.equal(await attempt(host, header), 403, `${host} ${header}`)
    }
    for (const none of ['User-Agent: curl/8', 'Cookie: a=b', mozilla])
      assert.equal(await attempt(host, none), 200, host)
  }
})

test('the page gives a token, and keeps the one it gave', async t => {
  const { url } = await start(t)
  const first = await fetch(url)
  const cookie = first.headers.getSetCookie().find(text => text.startsWith('csrftoken=')) ?? ''
  assert.match(cookie, /^csrftoken=[\w-]{43}; Path=\/; SameSite=Lax$/)
  const token = cookie.slice('csrftoken='.length, cookie.indexOf(';'))
  assert.ok((await first.text()).includes(`name="csrfmiddlewaretoken" value="${token}"`))
  const second = await fetch(url, { headers: { cookie: `csrftoken=${token}` } })
  assert.deepEqual(second.headers.getSetCookie(), [])
  assert.ok((await second.text()).includes(`value="${token}"`))
  const third = await fetch(url, { headers: { cookie: 'csrftoken="><script>' } })
  assert.equal(third.headers.getSetCookie().length, 1)
  assert.ok(!(await third.text()).includes('<script>'))
})
