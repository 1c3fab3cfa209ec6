/** Who is taken for a browser, and what follows from it: pages in place of JSON, the Host check, CSRF. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import os from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import {
  connect,
  IN_CI,
  multipart,
  type Part,
  post,
  published,
  readAnswer,
  run,
  startServer,
  TITLE,
  tempDir,
} from './support.ts'

const FILE: Part = { name: 'file', filename: 'a.txt', body: 'hello' }
const FORM = multipart([TITLE, FILE])
const CSRF = 'x'.repeat(43)
const COOKIE = { Cookie: `csrftoken=${CSRF}` }
const HTML = { Accept: 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8' }
const TOKEN = 'the-token'
const BEARER = { Authorization: `Bearer ${TOKEN}` }
const BASIC = { Authorization: `Basic ${Buffer.from(`any:${TOKEN}`).toString('base64')}` }
/** What programs for Windows send: Invoke-RestMethod of PowerShell 5.1, WinHTTP under Office. */
const WINDOWS = [
  'Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.4780',
  'Mozilla/4.0 (compatible; Win32; WinHttp.WinHttpRequest.5)',
]

/** A whole request, head as said; its answer. */
async function ask(url: string, line: string, headers: Record<string, string>) {
  const socket = connect(url)
  const answer = readAnswer(socket)
  const lines = Object.entries({ Connection: 'close', ...headers }).map(
    ([name, value]) => `${name}: ${value}\r\n`,
  )
  socket.write(`${line} HTTP/1.1\r\n${lines.join('')}\r\n`)
  return answer
}

test('a Bearer token needs no form token, whatever cookies, Origin or Host come with it', async t => {
  const { url, dir } = await startServer(t, { token: TOKEN })
  const strange: Record<string, string>[] = [
    { Cookie: 'session=1' },
    { Origin: 'https://elsewhere.example', 'Sec-Fetch-Site': 'cross-site' },
    { Origin: 'null', 'Upgrade-Insecure-Requests': '1' },
    { Host: 'upload.example.org', Origin: 'https://upload.example.org' },
  ]
  for (const headers of strange) {
    const { status, text } = await post(url, FORM, { headers: { ...headers, ...BEARER } })
    assert.equal(status, 201, text)
  }
  assert.equal((await published(dir)).length, strange.length)
  // A browser sends Basic by itself, for whichever page.
  for (const headers of strange.slice(1)) {
    assert.equal((await post(url, FORM, { headers: { ...headers, ...BASIC } })).status, 403)
  }
  assert.equal((await post(url, FORM, { headers: { Cookie: 'session=1', ...BASIC } })).status, 201)
  // Nor is a word before the colon a token where the server asks for none.
  const open = await startServer(t)
  const headers = { ...BEARER, Origin: 'https://elsewhere.example' }
  assert.equal((await post(open.url, FORM, { headers })).status, 403)
})

test('PowerShell and WinHTTP call themselves Mozilla, and are answered under any name', async t => {
  for (const token of [undefined, TOKEN]) {
    const { url } = await startServer(t, token === undefined ? {} : { token })
    for (const agent of WINDOWS) {
      for (const access of token === undefined ? [{}] : [BEARER, BASIC]) {
        const headers = { Host: 'files.corp.example', 'User-Agent': agent, ...access }
        const { status, text, json } = await post(url, FORM, { headers })
        assert.equal(status, 201, text)
        assert.equal(json.title, 'a title')
      }
    }
  }
})

test('a refused host name says how it is made known', async t => {
  const { url } = await startServer(t)
  for (const headers of [
    { Origin: 'http://files.lan' },
    { 'Upgrade-Insecure-Requests': '1' },
    { 'Sec-Fetch-Site': 'none' },
  ]) {
    const { status, json } = await ask(url, 'GET /', { Host: 'files.lan', ...headers })
    assert.equal(status, 403)
    assert.match(json.detail, /not known as "files\.lan"; uploadr serve --public-name files\.lan /)
  }
})

test('a script of a page whose name was pointed here is refused although nothing but its language says browser', async t => {
  const { url, port } = await startServer(t)
  // Chromium, fetch('/progress/ID') of a page of plain http under a name: no Origin, no Sec-Fetch-Site.
  const headers = {
    Host: `rebound.example:${port}`,
    'User-Agent':
      'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36',
    Accept: '*/*',
    'Accept-Language': 'en-US,en;q=0.9',
  }
  // Firefox lets a script call itself something else, and any browser lets it say that it reads nothing.
  for (const said of [{}, { 'User-Agent': 'curl/8' }, { 'User-Agent': '', 'Accept-Language': '' }]) {
    for (const path of ['/progress/a', '/metrics', '/', '/healthz', '/nothing']) {
      assert.equal((await ask(url, `GET ${path}`, { ...headers, ...said })).json?.code, 'forbidden', path)
    }
  }
  // fetch of node says that it reads everything, and how it fetches, which no script may say.
  const node = { Host: 'files.lan', 'User-Agent': 'node', 'Accept-Language': '*', 'Sec-Fetch-Mode': 'cors' }
  assert.equal((await ask(url, 'GET /progress/a', node)).status, 200)
})

test('a page is for browsers: whoever only accepts HTML is answered in JSON', async t => {
  const { url, port, dir } = await startServer(t)
  const java = {
    Accept: 'text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2',
    'User-Agent': 'Java/17.0.10',
  }
  const stored = await post(url, FORM, { headers: java })
  assert.deepEqual([stored.status, stored.json?.title], [201, 'a title'])
  const refused = await post(url, multipart([FILE]), { headers: java })
  assert.deepEqual([refused.status, refused.json?.code], [422, 'invalid_form'])
  const lost = await ask(url, 'GET /nothing', { Host: 'localhost', ...java })
  assert.deepEqual([lost.status, lost.json?.code], [404, 'not_found'])
  const browsers: Record<string, Record<string, string>> = {
    'of today': { Origin: `http://127.0.0.1:${port}`, 'Sec-Fetch-Site': 'same-origin' },
    'by plain http': { Origin: `http://127.0.0.1:${port}`, 'Upgrade-Insecure-Requests': '1' },
    'of 2013': {
      'User-Agent': 'Mozilla/5.0 (Windows NT 6.1; Trident/7.0; rv:11.0) like Gecko',
      'Accept-Language': 'de',
    },
  }
  const before = (await published(dir)).length
  for (const [name, headers] of Object.entries(browsers)) {
    const all = { ...HTML, ...COOKIE, ...headers }
    const form = multipart([{ name: 'csrfmiddlewaretoken', body: CSRF }, TITLE, FILE])
    const answer = await post(url, form, { headers: all })
    assert.equal(answer.status, 303, name)
    const wrong = await post(url, multipart([{ name: 'csrfmiddlewaretoken', body: CSRF }, FILE]), {
      headers: all,
    })
    assert.equal(wrong.status, 422, name)
    assert.match(wrong.text, /<form/, name)
    assert.match(
      (await ask(url, 'GET /nothing', { Host: 'localhost', ...all })).text,
      /<h2>Not found<\/h2>/,
      name,
    )
    // What a page of somebody else's would send: without the token of our form it is nothing.
    assert.equal((await post(url, FORM, { headers: all })).status, 403, name)
  }
  assert.equal((await published(dir)).length, before + 3)
  // An old one that says no more than what it likes best still gets the form.
  assert.match((await ask(url, 'GET /', { Host: 'localhost', Accept: 'text/html' })).text, /<form/)
})

test('the redirect without JavaScript stays below a proxy’s path', async t => {
  const { port } = await startServer(t)
  const proxy = http.createServer((req, res) => {
    const path = String(req.url).replace(/^\/files\//, '/')
    const passed = http.request(
      { port, host: '127.0.0.1', method: req.method, path, headers: req.headers },
      answer => {
        res.writeHead(answer.statusCode ?? 0, answer.headers)
        answer.pipe(res)
      },
    )
    req.pipe(passed)
  })
  await new Promise<void>(resolve => proxy.listen(0, '127.0.0.1', resolve))
  t.after(() => proxy.close())
  const { port: front } = proxy.address() as AddressInfo
  const form = multipart([{ name: 'csrfmiddlewaretoken', body: CSRF }, TITLE, FILE])
  const origin = `http://127.0.0.1:${front}`
  const headers = { ...HTML, ...COOKIE, Origin: origin, Host: `127.0.0.1:${front}` }
  const { status, headers: answered } = await post(`${origin}/files/`, form, { path: '/files/', headers })
  assert.equal(status, 303)
  const location = new URL(String(answered.get('location')), `${origin}/files/`)
  assert.equal(location.pathname, '/files/')
})

test('an origin hidden by a proxy’s referrer policy is ours where the browser says so', async t => {
  const { url } = await startServer(t)
  const attempt = async (headers: Record<string, string>) =>
    (await post(url, FORM, { headers: { ...COOKIE, 'X-CSRFToken': CSRF, Origin: 'null', ...headers } }))
      .status
  assert.equal(await attempt({ 'Sec-Fetch-Site': 'same-origin' }), 201)
  for (const site of ['cross-site', 'same-site', 'none-of-these']) {
    assert.equal(await attempt({ 'Sec-Fetch-Site': site }), 403, site)
  }
  assert.equal(await attempt({}), 403)
})

test('JSONP is for pages of our own origin, and not offered where there is a token', async t => {
  const { url } = await startServer(t)
  const path = 'GET /progress/a?callback=f'
  for (const site of ['cross-site', 'same-site']) {
    const { status, json } = await ask(url, path, { Host: 'localhost', 'Sec-Fetch-Site': site })
    assert.deepEqual([status, json.code], [403, 'forbidden'], site)
  }
  for (const headers of [{ 'Sec-Fetch-Site': 'same-origin' }, { 'Sec-Fetch-Site': 'none' }, {}]) {
    const answer = await ask(url, path, { Host: 'localhost', ...headers })
    assert.equal(answer.text, '/**/f({"state":"starting"});\n')
    // By plain http a browser does not say where it comes from, and so has to keep it from other pages itself.
    assert.equal(answer.headers.get('cross-origin-resource-policy'), 'same-origin')
  }
  const closed = await startServer(t, { token: TOKEN })
  for (const access of [BEARER, BASIC]) {
    const { status, json } = await ask(closed.url, path, { Host: 'localhost', ...access })
    assert.deepEqual([status, json.code], [403, 'forbidden'])
  }
})

test('the machine’s own name is known', async t => {
  const { url } = await startServer(t)
  for (const host of [os.hostname(), `${os.hostname()}.local`, `${os.hostname()}:8000`]) {
    const { status } = await ask(url, 'GET /', { Host: host, 'Upgrade-Insecure-Requests': '1' })
    assert.equal(status, 200, host)
  }
})

test('fetch of node and a form of requests with a cookie jar are no browsers', async t => {
  const { url } = await startServer(t)
  const form = new FormData()
  form.set('title', 'fetched')
  form.set('file', new Blob(['hello']), 'fetched.txt')
  assert.equal((await fetch(url, { method: 'POST', body: form, headers: { ...COOKIE } })).status, 201)
})

test('Java’s HttpURLConnection is answered in JSON', async t => {
  const probe = await run('sh', ['-c', 'command -v javac'])
  if (probe.code !== 0 && !IN_CI) return t.skip('there is no Java here')
  const { url } = await startServer(t)
  const folder = await tempDir(t)
  const source = `
import java.io.*; import java.net.*; import java.nio.charset.StandardCharsets;
public class Post { public static void main(String[] args) throws Exception {
  HttpURLConnection c = (HttpURLConnection) new URL(args[0]).openConnection();
  c.setRequestMethod("POST"); c.setDoOutput(true); c.setInstanceFollowRedirects(false);
  c.setRequestProperty("Content-Type", "multipart/form-data; boundary=BOUNDARY");
  c.getOutputStream().write(System.in.readAllBytes());
  InputStream in = c.getResponseCode() < 400 ? c.getInputStream() : c.getErrorStream();
  System.out.println(c.getResponseCode() + " " + c.getContentType());
  System.out.print(new String(in.readAllBytes(), StandardCharsets.UTF_8));
} }`
  await writeFile(join(folder, 'Post.java'), source)
  execFileSync('javac', ['-nowarn', '-d', folder, join(folder, 'Post.java')], { stdio: 'ignore' })
  for (const [form, first, code] of [
    [FORM, '201 application/json', undefined],
    [multipart([FILE]), '422 application/problem+json', 'invalid_form'],
  ] as const) {
    const { stdout, stderr } = await run('java', ['-cp', folder, 'Post', url], { input: form })
    const [head, body = ''] = stdout.split('\n')
    assert.equal(head, first, stderr)
    assert.equal(JSON.parse(body).code, code)
  }
})
