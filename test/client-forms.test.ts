/**
 * What real clients make of a form that is a little unusual, and what is stored of it: every byte of every part, or
 * an error that names the part. Those that do not run here are here by the bytes that they send.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { gzipSync } from 'node:zlib'
import {
  connect,
  IN_CI,
  multipart,
  type Part,
  parseAnswer,
  post,
  published,
  ROOT,
  readAnswer,
  records,
  run,
  type startServer as Started,
  startServer,
  TITLE,
  tempDir,
} from './support.ts'

const PYTHON = '/usr/bin/python3'
const TOKEN = 'secret'

/** A server with a token, a folder with two files to send, and a way to ask a client for it. */
async function setUp(t: TestContext, probe: readonly [command: string, ...args: string[]]) {
  const [command, ...args] = probe
  const present = (await run(command, args)).code === 0
  if (!present && !IN_CI) return t.skip(`${command} ${args.join(' ')}: not installed`)
  assert.ok(present, `CI must have it: ${probe.join(' ')}`)
  const at = await startServer(t, { token: TOKEN })
  const folder = await tempDir(t)
  for (const name of ['a.txt', 'b.txt']) await writeFile(join(folder, name), `the bytes of ${name}`)
  return { ...at, folder }
}

const AUTHORIZATION = `Authorization: Bearer ${TOKEN}`

/** What is stored: each file's name and text, by what is on disk. */
async function stored({ dir }: Awaited<ReturnType<typeof Started>>): Promise<Record<string, string>> {
  const files: Record<string, string> = {}
  for (const name of await published(dir)) files[name] = await readFile(join(dir, name), 'utf8')
  return files
}

/** A program in JavaScript with `url` and `headers` at hand, which posts something and gives status and text. */
async function script(url: string, packages: readonly string[], program: string) {
  const imports = packages.map(name => {
    const [variable, path = ''] = name.split(' from ')
    return `import ${variable} from ${JSON.stringify(pathToFileURL(join(ROOT, 'node_modules', path)).href)}\n`
  })
  const { code, stdout, stderr } = await run(process.execPath, [
    ...['--input-type=module', '-e'],
    `${imports.join('')}
     const url = ${JSON.stringify(url)}, headers = { Authorization: 'Bearer ${TOKEN}' }
     const [status, text] = await (async () => { ${program} })()
     process.stdout.write(JSON.stringify({ status, text }))`,
  ])
  assert.equal(code, 0, stderr)
  return JSON.parse(stdout) as { status: number; text: string }
}

/** The same in Python, where it is left in `status` and `text`. */
async function python(url: string, program: string) {
  const { code, stdout, stderr } = await run(PYTHON, [
    '-c',
    `import json, sys
url, headers = ${JSON.stringify(url)}, {'Authorization': 'Bearer ${TOKEN}'}
${program}
json.dump({'status': status, 'text': text}, sys.stdout)`,
  ])
  assert.equal(code, 0, stderr)
  return JSON.parse(stdout) as { status: number; text: string }
}

async function curl(folder: string, url: string, ...args: string[]) {
  const { stdout, stderr } = await run(
    'curl',
    ['-sS', '-w', '\n%{http_code}', '-H', AUTHORIZATION, ...args, url],
    { cwd: folder },
  )
  const at = stdout.lastIndexOf('\n')
  assert.ok(at >= 0, stderr)
  return { status: Number(stdout.slice(at)), text: stdout.slice(0, at) }
}

const BUFFERS = `
  const form = new FormData()
  form.append('title', 'a title')
  form.append('file', Buffer.from('a buffer'))
  form.append('photo', Buffer.from('a picture'), { contentType: 'image/jpeg' })
  form.append('named', Buffer.from('a named one'), 'named.txt')`
const STORED_BUFFERS = { 'file.bin': 'a buffer', 'named.txt': 'a named one', 'photo.jpg': 'a picture' }

test('axios and form-data: buffers without a name are stored under their fields’', async t => {
  const at = await setUp(t, [process.execPath, '--version'])
  if (!at) return
  const { status, text } = await script(
    at.url,
    ['FormData from form-data/lib/form_data.js', 'axios from axios/index.js'],
    `${BUFFERS}
     const { status, data } = await axios.post(url, form, { headers, validateStatus: () => true })
     return [status, JSON.stringify(data)]`,
  )
  assert.equal(status, 201, text)
  assert.deepEqual(await stored(at), STORED_BUFFERS)
})

test('node-fetch and form-data: the same', async t => {
  const at = await setUp(t, [process.execPath, '--version'])
  if (!at) return
  const { status, text } = await script(
    at.url,
    ['FormData from form-data/lib/form_data.js', 'fetch from node-fetch/lib/index.js'],
    `${BUFFERS}
     const answer = await fetch(url, { method: 'POST', body: form, headers: { ...headers, ...form.getHeaders() } })
     return [answer.status, await answer.text()]`,
  )
  assert.equal(status, 201, text)
  assert.deepEqual(await stored(at), STORED_BUFFERS)
})

test('fetch with a Blob that is named with nothing, beside a named one; an input left alone is no file', async t => {
  const at = await setUp(t, [process.execPath, '--version'])
  if (!at) return
  const { status, text } = await script(
    at.url,
    [],
    `const form = new FormData()
     form.append('title', 'a title')
     form.append('file', new Blob(['a named one']), 'named.txt')
     form.append('photo', new Blob(['a picture'], { type: 'image/jpeg' }), '')
     form.append('photo', new Blob(['another'], { type: 'image/jpeg' }), '')
     form.append('left alone', new Blob([]), '')
     const answer = await fetch(url, { method: 'POST', body: form, headers })
     return [answer.status, await answer.text()]`,
  )
  assert.equal(status, 201, text)
  const { 'named.txt': named, 'photo.jpg': first, ...others } = await stored(at)
  assert.equal(named, 'a named one')
  assert.deepEqual([first, ...Object.values(others)].sort(), ['a picture', 'another'])
  assert.match(String(Object.keys(others)), /^photo_\w{7}\.jpg$/)
})

test('axios with the form of node itself, as docs/clients.md has it', async t => {
  const at = await setUp(t, [process.execPath, '--version'])
  if (!at) return
  const document = await readFile(join(ROOT, 'docs/clients.md'), 'utf8')
  const [, example = ''] = /```js\n([\s\S]*?)```/.exec(document) ?? []
  const program = example
    .replaceAll("'http://127.0.0.1:8000/'", 'url')
    .replaceAll("'a.txt'", JSON.stringify(join(at.folder, 'a.txt')))
    .replace('await axios', 'const answer = await axios')
  const { status, text } = await script(
    at.url,
    ['axios from axios/index.js'],
    `const fs = await import('node:fs'), token = '${TOKEN}'
     ${program}
     return [answer.status, JSON.stringify(answer.data)]`,
  )
  assert.equal(status, 201, text)
  assert.deepEqual(await stored(at), { 'a.txt': 'the bytes of a.txt' })
})

test('curl: several files in one part are stored one by one', async t => {
  const at = await setUp(t, ['curl', '--version'])
  if (!at) return
  const { status, text } = await curl(at.folder, at.url, '-F', 'title=t', '-F', 'files=@a.txt,b.txt')
  assert.equal(status, 201, text)
  assert.deepEqual(await stored(at), { 'a.txt': 'the bytes of a.txt', 'b.txt': 'the bytes of b.txt' })
})

/** Отчёт, in windows-1251. */
const REPORT = Buffer.from([0xce, 0xf2, 0xf7, 0xb8, 0xf2])

test('curl: a title in windows-1251 is read where the form says so, and else refused by name', async t => {
  const at = await setUp(t, ['curl', '--version'])
  if (!at) return
  await writeFile(join(at.folder, 'title'), REPORT)
  const ways = {
    'by the part': ['-F', 'title=<title;type=text/plain; charset=windows-1251'],
    'by a field': ['-F', '_charset_=windows-1251', '-F', 'title=<title'],
    'by a field that comes later': ['-F', 'title=<title', '-F', '_charset_=windows-1251'],
  }
  for (const [way, args] of Object.entries(ways)) {
    const { status, text } = await curl(at.folder, at.url, ...args, '-F', 'file=@a.txt')
    assert.equal(status, 201, `${way}: ${text}`)
    assert.equal(JSON.parse(text).title, 'Отчёт', way)
  }
  const { status, text } = await curl(at.folder, at.url, '-F', 'title=<title', '-F', 'file=@a.txt')
  assert.ok(status === 400 || status === 422, text)
  assert.match(text, /title/)
  assert.match(text, /UTF-8/)
})

test('curl: what is no form is told what it is, not that it ended early', async t => {
  const at = await setUp(t, ['curl', '--version'])
  if (!at) return
  await writeFile(
    join(at.folder, 'form.gz'),
    gzipSync(multipart([TITLE, { name: 'file', filename: 'a', body: 'x' }])),
  )
  const form = ['-H', 'Content-Type: multipart/form-data; boundary=BOUNDARY', '--data-binary', '@form.gz']
  const cases: Record<string, [args: string[], status: number, words: RegExp]> = {
    compressed: [['-H', 'Content-Encoding: gzip', ...form], 415, /gzip/],
    'no length at all': [
      ['-X', 'POST', '-H', 'Content-Type: multipart/form-data; boundary=BOUNDARY'],
      411,
      /length/i,
    ],
    'another boundary': [form, 400, /boundary.*never/],
    'a piece of a file': [
      ['-H', 'Content-Range: bytes 0-17/100', '-F', 'title=t', '-F', 'file=@a.txt'],
      400,
      /bytes 0-17\/100/,
    ],
  }
  for (const [what, [args, wanted, words]] of Object.entries(cases)) {
    const { status, text } = await curl(at.folder, at.url, ...args)
    assert.equal(status, wanted, `${what}: ${text}`)
    assert.match(JSON.parse(text).detail, words, what)
  }
  assert.deepEqual(await stored(at), {})
})

test('curl: a digest that is announced is compared', async t => {
  const at = await setUp(t, ['curl', '--version'])
  if (!at) return
  const bytes = await readFile(join(at.folder, 'a.txt'))
  const digest = createHash('sha256').update(bytes).digest('base64')
  const part = (digest: string) => [
    ...['-F', 'title=t', '-F', `file=@a.txt;headers="Content-Digest: sha-256=:${digest}:"`],
  ]
  const good = await curl(at.folder, at.url, ...part(digest))
  assert.equal(good.status, 201, good.text)
  const bad = await curl(at.folder, at.url, ...part(createHash('sha256').update('else').digest('base64')))
  assert.equal(bad.status, 400, bad.text)
  assert.match(JSON.parse(bad.text).detail, /a\.txt/)
  assert.deepEqual(await published(at.dir), ['a.txt'])
})

test('curl: with the token, whatever comes with it, there is no form’s token to ask for', async t => {
  const at = await setUp(t, ['curl', '--version'])
  if (!at) return
  const { status, text } = await curl(
    at.folder,
    at.url,
    ...['-H', 'Cookie: session=1; csrftoken=x', '-H', 'Origin: https://elsewhere.example'],
    ...['-H', 'User-Agent: Mozilla/5.0', '-F', 'title=t', '-F', 'file=@a.txt'],
  )
  assert.equal(status, 201, text)
})

test('requests: fields beside the title are kept in the record; a title with a type of its own is a title', async t => {
  const at = await setUp(t, [PYTHON, '-c', 'import requests'])
  if (!at) return
  const { status, text } = await python(
    at.url,
    `
import requests
files = [('title', (None, b'a title', 'application/octet-stream')), ('file', ('a.txt', b'x'))]
answer = requests.post(url, headers=headers, data=[('note', 'über'), ('tag', 'a'), ('tag', 'b')], files=files)
status, text = answer.status_code, answer.text`,
  )
  assert.equal(status, 201, text)
  const [record] = await records(at.dir)
  assert.equal(record?.title, 'a title')
  assert.deepEqual(record?.fields, { note: ['über'], tag: ['a', 'b'] })
  assert.deepEqual(JSON.parse(text).fields, record?.fields)
})

test('aiohttp: a name that is not ASCII as it is, and with escapes that nobody can tell from a name’s own', async t => {
  const at = await setUp(t, [PYTHON, '-c', 'import aiohttp'])
  if (!at) return
  for (const quoted of ['True', 'False']) {
    const { status, text } = await python(
      at.url,
      `
import aiohttp, asyncio
async def main():
    form = aiohttp.FormData(quote_fields=${quoted})
    form.add_field('title', 'a title')
    form.add_field('file', b'${quoted}', filename='Übung ${quoted}.txt')
    async with aiohttp.ClientSession() as session:
        async with session.post(url, data=form, headers=headers) as answer:
            return answer.status, await answer.text()
status, text = asyncio.run(main())`,
    )
    assert.equal(status, 201, text)
  }
  assert.deepEqual(await stored(at), { '%C3%9Cbung%20True.txt': 'True', 'Übung False.txt': 'False' })
})

test('Ansible uri: a form of its own making has its files in base64, and is stored', async t => {
  const at = await setUp(t, [PYTHON, '-c', 'import ansible.modules.uri'])
  if (!at) return
  const body = { title: 'a title', file: { filename: join(at.folder, 'a.txt'), mime_type: 'text/plain' } }
  const input = {
    url: at.url,
    method: 'POST',
    body_format: 'form-multipart',
    body,
    return_content: true,
    status_code: [201],
  }
  const { stdout } = await run(PYTHON, ['-m', 'ansible.modules.uri'], {
    input: Buffer.from(
      JSON.stringify({ ANSIBLE_MODULE_ARGS: { ...input, headers: { Authorization: `Bearer ${TOKEN}` } } }),
    ),
  })
  const { status, content } = JSON.parse(stdout)
  assert.equal(status, 201, content)
  assert.deepEqual(await stored(at), { 'a.txt': await readFile(join(at.folder, 'a.txt'), 'utf8') })
})

/** A request as it goes over the line, once its `100 Continue` has come where it asks for one. */
async function exchange(url: string, head: readonly string[], body: Buffer) {
  const socket = connect(url)
  socket.write(`${[...head, `Content-Length: ${body.length}`].join('\r\n')}\r\n\r\n`)
  if (head.some(line => /^expect:/i.test(line))) {
    const [first] = (await once(socket, 'data')) as [Buffer]
    const text = String(first)
    // Refused before the body: that is the answer.
    if (!text.startsWith('HTTP/1.1 100 Continue\r\n')) return parseAnswer(text)
  }
  const answer = readAnswer(socket)
  socket.write(body)
  return answer
}

const encoded = (name: string) => `=?utf-8?B?${Buffer.from(name).toString('base64')}?=`

test('PowerShell 5 and .NET, by their bytes: a browser’s User-Agent, a DNS name, names after RFC 2047', async t => {
  const at = await startServer(t, { token: TOKEN })
  // Their base64 has a slash in it, which is not where a path's last name begins.
  const names = ['Übung ÿÿ.txt', '報告書?>.pdf', 'plain.txt']
  assert.ok(names.slice(0, 2).some(name => encoded(name).includes('/')))
  for (const name of names) {
    const boundary = '8d9f3a2b-66c5-4b4f-9d2e-7c1d2b3a4f50'
    // HttpClient quotes the boundary and, where a name is not ASCII, writes it encoded, and once more as filename*.
    const file: Part = {
      headers: `Content-Disposition: form-data; name=file; filename="${encoded(name)}"\r\nContent-Type: application/octet-stream`,
      body: name,
    }
    const title: Part = {
      headers: 'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=title',
      body: 'a title',
    }
    const answer = await exchange(
      at.url,
      [
        'POST / HTTP/1.1',
        'User-Agent: Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.4522',
        `Authorization: Bearer ${TOKEN}`,
        `Content-Type: multipart/form-data; boundary="${boundary}"`,
        'Host: uploads.example.net:8000',
        'Expect: 100-continue',
        'Connection: close',
      ],
      multipart([title, file], boundary),
    )
    assert.equal(answer.status, 201, answer.text)
    assert.equal(answer.json.files[0].sentAs, name)
  }
  assert.deepEqual(await stored(at), Object.fromEntries(names.map(name => [name, name])))
})

test('PowerShell 7, by its bytes: names as filename and filename*', async t => {
  const at = await startServer(t, { token: TOKEN })
  const name = 'Übung 1.txt'
  const file: Part = {
    headers:
      'Content-Disposition: form-data; name="file"; ' +
      `filename="${encoded(name)}"; filename*=utf-8''${encodeURIComponent(name)}`,
    body: name,
  }
  const { status, text } = await post(at.url, multipart([TITLE, file]), {
    headers: {
      Authorization: `Bearer ${TOKEN}`,
      'User-Agent': 'Mozilla/5.0 (Linux; Debian) PowerShell/7.4.2',
      Host: 'box.lan',
    },
  })
  assert.equal(status, 201, text)
  assert.deepEqual(await stored(at), { [name]: name })
})

test('names with white space and joiners as clients send them', async t => {
  const at = await setUp(t, ['curl', '--version'])
  if (!at) return
  const names = [
    'Screenshot 2026-11-25 at 9.41.00\u202fAM.png',
    'a\u3000b.txt',
    'ab.txt',
    'family 👨‍👩‍👧.jpg',
    'می‌خواهم.txt',
  ]
  for (const name of names) {
    const { status, text } = await curl(
      at.folder,
      at.url,
      '-F',
      'title=t',
      '-F',
      `file=@a.txt;filename="${name}"`,
    )
    assert.equal(status, 201, text)
  }
  const all = await published(at.dir)
  assert.equal(all.length, names.length)
  assert.ok(all.includes('family 👨‍👩‍👧.jpg') && all.includes('می‌خواهم.txt'), String(all))
  assert.ok(
    all.every(name => !/_\w{7}\./.test(name)),
    `none of them is another's: ${all}`,
  )
})
