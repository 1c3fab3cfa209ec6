/** Programs and libraries that people upload with, for real: what each makes of a stored upload and of refusals. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'node:test'
import { pathToFileURL } from 'node:url'
import {
  connect,
  type getProgress,
  IN_CI,
  multipart,
  published,
  ROOT,
  randomFile,
  records,
  run,
  sha256,
  startServer,
  tempDir,
  temporaryFiles,
  until,
} from './support.ts'

/** A request, as every client can be told to make it. */
interface Request {
  url: string
  headers: Readonly<Record<string, string>>
  /** The file to send, and the fields before it. */
  path: string
  fields: Readonly<Record<string, string>>
  /** How the body is sent: a form, a form that does not say its length, or the file alone as plain text. */
  as: 'form' | 'form of unknown length' | 'text'
}

interface Seen {
  status: number
  body: string
  /** What the client tells whoever called it: an exit status, an exception. */
  outcome: string
}

interface Client {
  /** Fails where the client is not installed. */
  probe: readonly [command: string, ...args: string[]]
  send(request: Request): Promise<Seen>
}

const BOUNDARY = 'b'.repeat(40)
const FORM_TYPE = `multipart/form-data; boundary=${BOUNDARY}`

/** Where Debian installs its modules for; another python may come first in PATH. */
const PYTHON = '/usr/bin/python3'

const PYTHON_PROGRAM = `
import json, os, sys, requests
request = json.load(sys.stdin)
url, path, headers, fields = request['url'], request['path'], request['headers'], request['fields']
with open(path, 'rb') as file:
    if request['as'] == 'form':
        answer = requests.post(url, headers=headers, data=fields, files={'file': (os.path.basename(path), file)})
    elif request['as'] == 'text':
        answer = requests.post(url, headers={**headers, 'Content-Type': 'text/plain'}, data=file)
    else:
        form = requests.Request('POST', url, data=fields, files={'file': file}).prepare()
        pieces = (form.body[at:at + 65536] for at in range(0, len(form.body), 65536))
        headers['Content-Type'] = form.headers['Content-Type']
        answer = requests.post(url, headers=headers, data=pieces)
try:
    answer.raise_for_status()
    outcome = 'ok'
except Exception as error:
    outcome = type(error).__name__
json.dump({'status': answer.status_code, 'body': answer.text, 'outcome': outcome}, sys.stdout)
`

const AIOHTTP_PROGRAM = `
import aiohttp, asyncio, json, sys

async def main():
    request = json.load(sys.stdin)
    headers, outcome = request['headers'], 'ok'
    with open(request['path'], 'rb') as file:
        if request['as'] == 'text':
            body = file
            headers['Content-Type'] = 'text/plain'
        else:
            body = aiohttp.FormData()
            for name, value in request['fields'].items():
                body.add_field(name, value)
            # What it does not know the length of it sends in chunks.
            body.add_field('file', file if request['as'] == 'form' else pieces(file), filename=file.name.split('/')[-1])
        async with aiohttp.ClientSession() as session:
            async with session.post(request['url'], data=body, headers=headers) as answer:
                text = await answer.text()
                try:
                    answer.raise_for_status()
                except Exception as error:
                    outcome = type(error).__name__
                json.dump({'status': answer.status, 'body': text, 'outcome': outcome}, sys.stdout)

async def pieces(file):
    while piece := file.read(65536):
        yield piece

asyncio.run(main())
`

const AXIOS_PROGRAM = `
import axios from ${JSON.stringify(pathToFileURL(join(ROOT, 'node_modules/axios/index.js')).href)}
import FormData from ${JSON.stringify(pathToFileURL(join(ROOT, 'node_modules/form-data/lib/form_data.js')).href)}
import fs from 'node:fs'
import { basename } from 'node:path'
import { PassThrough } from 'node:stream'
import { text } from 'node:stream/consumers'
const request = JSON.parse(await text(process.stdin))
const file = fs.createReadStream(request.path)
let body = file
if (request.as === 'text') request.headers['Content-Type'] = 'text/plain'
else {
  body = new FormData()
  for (const [name, value] of Object.entries(request.fields)) body.append(name, value)
  // What it does not know the length of it sends in chunks.
  body.append('file', request.as === 'form' ? file : file.pipe(new PassThrough()), basename(request.path))
}
const config = { headers: request.headers, maxBodyLength: Infinity, transformResponse: body => body }
const seen = await axios.post(request.url, body, config).then(
  ({ status, data }) => ({ status, body: data, outcome: 'ok' }),
  ({ code, message, response }) => ({ status: response?.status, body: response?.data ?? message, outcome: code }),
)
process.stdout.write(JSON.stringify(seen))
`

const PERL_PROGRAM = `
use strict; use warnings; use JSON::PP; use LWP::UserAgent; use HTTP::Request::Common qw(POST);
my $request = decode_json(join '', <STDIN>);
my ($url, $path, $headers, $fields, $as) = @$request{qw(url path headers fields as)};
my $message;
if ($as eq 'text') {
    open my $file, '<:raw', $path or die $!;
    $message = POST $url, %$headers, Content_Type => 'text/plain', Content => join('', <$file>);
} else {
    $HTTP::Request::Common::DYNAMIC_FILE_UPLOAD = 1;
    $message = POST $url, %$headers, Content_Type => 'form-data', Content => [%$fields, file => [$path]];
    $message->remove_header('Content-Length') if $as ne 'form';
}
my $answer = LWP::UserAgent->new->request($message);
print encode_json({ status => 0 + $answer->code, body => $answer->content, outcome => $answer->is_success ? 'ok' : 'is_error' });
`

const CLIENTS: Record<string, Client> = {
  curl: {
    probe: ['curl', '--version'],
    async send({ url, headers, path, fields, as }) {
      const body =
        as === 'text'
          ? ['--data-binary', `@${path}`, '-H', 'Content-Type: text/plain']
          : [...pairs(fields).flatMap(([name, value]) => ['-F', `${name}=${value}`]), '-F', `file=@${path}`]
      const chunked = as === 'form of unknown length' ? ['-H', 'Transfer-Encoding: chunked'] : []
      const { code, stdout, stderr } = await run('curl', [
        ...['-sS', '--fail-with-body', '-w', '\n%{http_code}'],
        ...pairs(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`]),
        ...chunked,
        ...body,
        url,
      ])
      const at = stdout.lastIndexOf('\n')
      assert.ok(at >= 0, stderr)
      return { status: Number(stdout.slice(at)), body: stdout.slice(0, at), outcome: `exit ${code}` }
    },
  },

  wget: {
    probe: ['wget', '--version'],
    async send(request) {
      const { url, headers } = request
      const { body, type } = await prepared(request)
      const all = { ...headers, 'Content-Type': type }
      const { code, stdout, stderr } = await run('wget', [
        ...['--no-config', '--tries=1', '-S', '-nv', '--content-on-error', '-O', '-'],
        ...pairs(all).map(([name, value]) => `--header=${name}: ${value}`),
        `--post-file=${body}`,
        url,
      ])
      const status = Number(/^ *HTTP\/1\.1 (\d+)/m.exec(stderr)?.[1])
      return { status, body: stdout, outcome: `exit ${code}` }
    },
  },

  HTTPie: {
    probe: ['http', '--version'],
    async send({ url, headers, path, fields, as }) {
      const items =
        as === 'text'
          ? [`@${path}`, 'Content-Type:text/plain']
          : [...pairs(fields).map(([name, value]) => `${name}=${value}`), `file@${path}`]
      const config = `${path}.httpie`
      // Unless told otherwise it asks its makers whether there is a newer version.
      await mkdir(config, { recursive: true })
      await writeFile(join(config, 'config.json'), '{"disable_update_warnings": true}')
      const { code, stdout, stderr } = await run('env', [
        ...[`HTTPIE_CONFIG_DIR=${config}`, 'http'],
        ...['--ignore-stdin', '--check-status', '--pretty=none', '--print=hb'],
        ...(as === 'text' ? [] : ['--multipart']),
        ...(as === 'form of unknown length' ? ['--chunked'] : []),
        ...['POST', url],
        ...pairs(headers).map(([name, value]) => `${name}:${value}`),
        ...items,
      ])
      const [head = '', ...rest] = stdout.split(/\r?\n\r?\n/)
      assert.ok(head.startsWith('HTTP/1.1 '), stderr)
      return { status: Number(head.split(' ')[1]), body: rest.join('\n\n'), outcome: `exit ${code}` }
    },
  },

  requests: {
    probe: [PYTHON, '-c', 'import requests'],
    send: request => script(PYTHON, ['-c', PYTHON_PROGRAM], request),
  },

  aiohttp: {
    probe: [PYTHON, '-c', 'import aiohttp'],
    send: request => script(PYTHON, ['-c', AIOHTTP_PROGRAM], request),
  },

  axios: {
    probe: [process.execPath, '--version'],
    send: request => script(process.execPath, ['--input-type=module', '-e', AXIOS_PROGRAM], request),
  },

  'Ansible uri': {
    probe: [PYTHON, '-c', 'import ansible.modules.uri'],
    async send(request) {
      const { body, type } = await prepared(request)
      const { stdout, stderr } = await run(PYTHON, ['-m', 'ansible.modules.uri'], {
        input: Buffer.from(
          JSON.stringify({
            ANSIBLE_MODULE_ARGS: {
              ...{ url: request.url, method: 'POST', src: body, remote_src: true, return_content: true },
              ...{ status_code: [201], headers: { ...request.headers, 'Content-Type': type } },
            },
          }),
        ),
      })
      assert.ok(stdout, stderr)
      const { status, content, failed } = JSON.parse(stdout)
      return { status, body: content ?? '', outcome: failed ? 'failed' : 'ok' }
    },
  },

  HttpURLConnection: {
    probe: ['java', '--version'],
    send: request => java('UrlConnection.java', request),
  },

  HttpClient: {
    probe: ['java', '--version'],
    send: request => java('Client.java', request),
  },

  LWP: {
    probe: ['perl', '-MLWP::UserAgent', '-MJSON::PP', '-e', '1'],
    send: request => script('perl', ['-e', PERL_PROGRAM], request),
  },
}

/** A body in a file and its type, for those that make no forms. */
async function prepared({ path, fields, as }: Request): Promise<{ body: string; type: string }> {
  if (as === 'text') return { body: path, type: 'text/plain' }
  const file = { name: 'file', filename: fileName(path), body: await readFile(path) }
  const parts = [...pairs(fields).map(([name, body]) => ({ name, body })), file]
  await writeFile(`${path}.form`, multipart(parts, BOUNDARY))
  return { body: `${path}.form`, type: FORM_TYPE }
}

async function java(program: string, request: Request): Promise<Seen> {
  const { body, type } = await prepared(request)
  const source = join(ROOT, 'test/fixtures/clients', program)
  const headers = pairs({ ...request.headers, 'Content-Type': type }).flat()
  const known = String(request.as !== 'form of unknown length')
  const { stdout, stderr } = await run('java', [source, request.url, body, known, ...headers])
  assert.ok(stdout, stderr)
  const [status, outcome = '', ...rest] = stdout.split('\n')
  return { status: Number(status), body: rest.join('\n'), outcome }
}

async function script(command: string, args: readonly string[], request: Request): Promise<Seen> {
  const { stdout, stderr } = await run(command, args, { input: Buffer.from(JSON.stringify(request)) })
  assert.ok(stdout, stderr)
  return JSON.parse(stdout)
}

function pairs(record: Readonly<Record<string, string>>): [string, string][] {
  return Object.entries(record)
}

function fileName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}

const TOKEN = 'secret'
const LIMIT = 1_000_000
const ACCESS = { Authorization: `Bearer ${TOKEN}` }

/** By the first cell of a row in docs/clients.md: how the request differs from a good one. */
const CASES: Record<string, Partial<Request> & { large?: true }> = {
  stored: { headers: { ...ACCESS, 'X-Progress-ID': 'stored' } },
  'no token': { headers: {} },
  'too large, as announced': { large: true },
  'too large, found out on the way': { large: true, as: 'form of unknown length' },
  'no form': { as: 'text' },
  'no title': { fields: {} },
  'a live id': { headers: { ...ACCESS, 'X-Progress-ID': 'live' } },
}

/** The matrix of docs/clients.md: rows by their first cell, cells by the heading of their column. */
function matrix(): Map<string, Map<string, string>> {
  const [, after = ''] = readFileSync(join(ROOT, 'docs/clients.md'), 'utf8').split('\n## The matrix\n')
  const [heads = [], , ...rows] =
    after
      .split(/^#/m, 1)[0]
      ?.split('\n')
      .filter(line => line.startsWith('|'))
      .map(cellsOf) ?? []
  return new Map(
    rows.map(cells => [String(cells[0]), new Map(heads.map((head, i) => [head, String(cells[i])]))]),
  )
}

function cellsOf(row: string): string[] {
  return row
    .slice(1, -1)
    .split('|')
    .map(cell => cell.trim().replaceAll('`', ''))
}

const MATRIX = matrix()

test('docs/clients.md has every case and every client tried here', () => {
  assert.deepEqual([...MATRIX.keys()].sort(), Object.keys(CASES).sort())
  for (const row of MATRIX.values()) {
    assert.deepEqual([...row.keys()], ['case', 'answer', ...Object.keys(CLIENTS), 'Chromium'])
  }
})

for (const [name, client] of Object.entries(CLIENTS)) {
  test(`${name} as a client`, async t => {
    const [command, ...args] = client.probe
    if ((await run(command, args)).code !== 0 && !IN_CI) return t.skip(`${name} is not installed`)
    // The live upload stays live, and the stored one is remembered, however long the others take.
    const limits = { body: LIMIT, idle: 0 }
    const at = await startServer(t, { token: TOKEN, limits, progressTtl: 3_600_000 })
    const folder = await tempDir(t)
    const small = join(folder, 'small.bin')
    const large = join(folder, 'large.bin')
    const bytes = randomFile(200_000)
    await writeFile(small, bytes)
    // More than sockets buffer: whoever does not wait for 100 Continue is refused while it sends.
    await writeFile(large, Buffer.alloc(20 * LIMIT))

    const live = connect(at.url)
    t.after(() => live.destroy())
    await once(live, 'connect')
    live.write(
      `POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${TOKEN}\r\nX-Progress-ID: live\r\n` +
        `Content-Type: multipart/form-data; boundary=BOUNDARY\r\nContent-Length: 1000\r\n\r\n`,
    )
    const state = async (id: string) => {
      const answer = await fetch(`${at.url}progress/${id}`, { headers: ACCESS })
      return (await answer.json()) as Awaited<ReturnType<typeof getProgress>>
    }
    await until(
      () => state('live'),
      ({ state }) => state === 'uploading',
    )

    for (const [title, row] of MATRIX) {
      const expected = String(row.get(name))
      const { large: isLarge, ...changes } = CASES[title] ?? {}
      const request: Request = {
        ...{ url: at.url, headers: ACCESS, fields: { title: 'a title' }, as: 'form' },
        path: isLarge ? large : small,
        ...changes,
      }
      if (expected === 'cannot') continue
      await t.test(title, async () => {
        const { status, body, outcome } = await client.send(request)
        const [wanted, code = ''] = String(row.get('answer')).split(' ')
        assert.equal(status, Number(wanted), body)
        if (body) assert.equal(JSON.parse(body).code ?? '', code)
        // Its length is in the refusal of a body that announced it.
        if (isLarge) assert.equal(body.includes(': it has '), request.as === 'form')
        assert.equal(body ? outcome : `${outcome}, no body`, expected)
      })
    }

    assert.deepEqual(await published(at.dir), ['small.bin'])
    assert.equal(sha256(await readFile(join(at.dir, 'small.bin'))), sha256(bytes))
    const [record, ...others] = await records(at.dir)
    assert.equal(others.length, 0)
    assert.deepEqual(
      [record?.id, record?.title, record?.files[0]?.sha256],
      ['stored', 'a title', sha256(bytes)],
    )
    assert.equal((await state('stored')).state, 'done')
    assert.equal((await state('live')).state, 'uploading')
    assert.deepEqual(await temporaryFiles(at), [])
    live.destroy()
  })
}
