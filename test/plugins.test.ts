/** Handlers of the user's own: codes of their own, and names that nobody would read. */
import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'node:test'
import { pathToFileURL } from 'node:url'
import {
  compose,
  createServer,
  type DiskOptions,
  disk,
  LocalStorage,
  type LocalStorageOptions,
  type MemoryOptions,
  type MemoryProgressOptions,
  MemoryProgressStore,
  memory,
  openFile,
  type PushOptions,
  push,
  type ServerOptions,
  UploadError,
  type UploadHandler,
} from '../src/index.ts'
import {
  getProgress,
  multipart,
  post,
  published,
  ROOT,
  serve,
  startServer,
  TITLE,
  tempDir,
  uploadr,
} from './support.ts'

const FORM = multipart([TITLE, { name: 'file', filename: 'a.txt', type: 'text/plain', body: 'EICAR' }])

/** Refuses every upload at its last moment. */
const refusing = (make: () => Error): UploadHandler => ({
  name: 'refusing',
  complete() {
    throw make()
  },
})

test('a code of its own and a status: in the answer, in the progress record, and what push ends with', async t => {
  const { url, dir } = await startServer(t, {
    handlers: [refusing(() => new UploadError('virus_found', 'a.txt has EICAR in it', { status: 451 }))],
  })
  const { status, json } = await post(url, FORM, { headers: { 'X-Progress-ID': 'sick' } })
  assert.equal(status, 451)
  assert.deepEqual(json, {
    type: 'about:blank',
    title: 'Virus found',
    status: 451,
    detail: 'a.txt has EICAR in it',
    code: 'virus_found',
  })
  const progress = await getProgress(url, 'sick')
  assert.ok(progress.state === 'error')
  assert.deepEqual([progress.status, progress.code, progress.detail], [451, 'virus_found', json.detail])

  const path = join(await tempDir(t), 'a.txt')
  await writeFile(path, 'EICAR')
  await assert.rejects(push({ url, source: await openFile(path) }), (error: UploadError) => {
    assert.deepEqual(
      [error.code, error.status, error.exitCode, error.message],
      ['virus_found', 451, 6, json.detail],
    )
    return true
  })
  const { exited, stdout } = uploadr(t, ['push', path, '--url', url, '--json', '--progress', 'none'])
  assert.equal(await exited, 6)
  assert.equal(JSON.parse(stdout()).error.code, 'virus_found')
  assert.deepEqual(await published(dir), [])
})

test('the status of a code of its own decides what push exits with; without one it is 422', () => {
  const made = [undefined, 401, 403, 408, 413, 422, 429, 500, 503, 507].map(status => {
    // As a handler in JavaScript may: the types ask for a status.
    const extras = (status === undefined ? {} : { status }) as { status: number }
    const error = new UploadError('quarantine_full', 'x', extras)
    return [error.status, error.exitCode]
  })
  const exits = [
    [422, 6],
    [401, 5],
    [403, 5],
    [408, 4],
    [413, 6],
    [422, 6],
    [429, 4],
    [500, 9],
    [503, 4],
    [507, 6],
  ]
  assert.deepEqual(made, exits)
})

test('what is no code, or no status of an error, is a TypeError that says so', () => {
  for (const code of [
    '',
    'Virus',
    'virus-found',
    'virus found',
    'virus_',
    '_virus',
    '1virus',
    'v\u202e',
    'v'.repeat(65),
  ]) {
    assert.throws(() => new UploadError(code, 'x', { status: 422 }), {
      name: 'TypeError',
      message: `${JSON.stringify(code)} is no error code: one is like virus_found, in lower case, of 64 letters at most`,
    })
  }
  for (const status of [0, 200, 302, 399, 600, 422.5, Number.NaN]) {
    for (const code of ['virus_found', 'name_taken']) {
      assert.throws(() => new UploadError(code, 'x', { status }), {
        name: 'TypeError',
        message: `${status} is no status of an error such as ${code}: one is 400 to 599`,
      })
    }
  }
})

test('what another server answers with is kept where it is a code, and judged by its status', () => {
  const heard = (status: number, code: string) => {
    const error = UploadError.fromServer(status, code, 'x')
    return [error.code, error.exitCode]
  }
  assert.deepEqual(heard(451, 'virus_found'), ['virus_found', 6])
  assert.deepEqual(heard(413, 'body_too_large'), ['body_too_large', 6])
  // A code of the sending half from a server says nothing of how this one ended.
  assert.deepEqual(heard(500, 'interrupted'), ['interrupted', 9])
  assert.deepEqual(heard(500, '\u001b[2J'), ['internal', 9])
  assert.deepEqual(heard(302, 'virus_found'), ['bad_answer', 9])
  assert.deepEqual(heard(Number.NaN, 'virus_found'), ['bad_answer', 9])
})

test('an UploadError of another copy of the package is one', async t => {
  const copy = `${pathToFileURL(join(ROOT, 'dist/src/errors.js')).href}?copy`
  const { UploadError: Theirs } = (await import(copy)) as { UploadError: typeof UploadError }
  assert.notEqual(Theirs, UploadError)
  const { url } = await startServer(t, {
    handlers: [refusing(() => new Theirs('virus_found', 'a.txt has EICAR in it', { status: 451 }))],
  })
  const { status, json } = await post(url, FORM)
  assert.deepEqual([status, json.code, json.detail], [451, 'virus_found', 'a.txt has EICAR in it'])
})

test('a push inside a handler that fails is the handler’s failure, and the server answers', async t => {
  for (const code of ['unreachable', 'usage', 'digest_mismatch'] as const) {
    const { url } = await startServer(t, { handlers: [refusing(() => new UploadError(code, 'elsewhere'))] })
    const { status, json } = await post(url, FORM)
    assert.deepEqual([status, json.code], [500, 'handler_failed'])
  }
  // That it was answered with a redirect is not what our client is to be answered with.
  const { url } = await startServer(t, {
    handlers: [refusing(() => new UploadError('bad_answer', 'elsewhere', { status: 302 }))],
  })
  assert.equal((await post(url, FORM)).status, 500)
})

/** Options and handlers as JavaScript may have them, and what is said of them. */
const MISNAMED: Record<string, [options: object, message: string]> = {
  'an option': [{ dri: 'x' }, 'createServer: dri is not known; the nearest is dir'],
  'an option in another case': [
    { onconflict: 'reject' },
    'createServer: onconflict is not known; the nearest is onConflict',
  ],
  'a limit': [
    { limits: { bodySize: 1 } },
    'createServer, limits: bodySize is not known; the nearest is body',
  ],
  'a limit that is swapped': [
    { limits: { fiels: 1 } },
    'createServer, limits: fiels is not known; the nearest is files',
  ],
  'a rule for kinds': [
    { kinds: { allowType: [] } },
    'createServer, kinds: allowType is not known; the nearest is allowTypes',
  ],
  // Computed, as it would be the object's prototype otherwise.
  ['__proto__']: [JSON.parse('{"__proto__": 1}'), 'createServer: __proto__ is not known'],
  'a method': [
    { handlers: [{ name: 'x', opne() {} }] },
    'handlers[0]: opne is not known; the nearest is open',
  ],
  'a method of an object without a prototype': [
    { handlers: [Object.assign(Object.create(null), { name: 'x', onOpen() {} })] },
    'handlers[0]: onOpen is not known; the nearest is open',
  ],
  'anything of a plain object': [
    { handlers: [memory(), { name: 'x', onFile() {} }] },
    'handlers[1]: onFile is not known',
  ],
  'nearly a method of a class': [
    {
      handlers: [
        new (class {
          name = 'x'
          completed() {}
        })(),
      ],
    },
    'handlers[0]: completed is not known; the nearest is complete',
  ],
  'no name': [{ handlers: [{ open() {} }] }, 'handlers[0]: the handler has no name'],
  'no handler': [
    { handlers: [undefined] },
    'handlers[0]: an upload handler is an object, the default export where it is a module',
  ],
}
for (const [what, [options, message]] of Object.entries(MISNAMED)) {
  test(`createServer refuses a wrong name: ${what}`, async t => {
    const dir = join(await tempDir(t), 'uploads')
    await assert.rejects(createServer({ dir, ...options } as ServerOptions), { code: 'usage', message })
  })
}

/** Values as JavaScript may have them. What they were is not repeated: one may be a secret. */
const MISVALUED: [options: object, message: string][] = [
  [{ onConflict: 'overwrite' }, 'createServer: onConflict is not one of rename, replace, reject'],
  ...[0o444, 0o1644, -1, '0644', 420.5].map((mode): [object, string] => [
    { mode },
    'createServer: mode is not a mode such as 0o644 that lets the owner read and write',
  ]),
  ...['body', 'files', 'idle', 'minFree', 'quota', 'connectionsPerClient'].flatMap(name =>
    [-1, Number.NaN, '10', null].map((value): [object, string] => [
      { limits: { [name]: value } },
      `createServer, limits: ${name} is not a number, 0 or more`,
    ]),
  ),
  [{ memoryMax: '1mb' }, 'createServer: memoryMax is not a number, 0 or more'],
  [{ keepAlive: -1 }, 'createServer: keepAlive is not a number, 0 or more'],
  [{ fsync: 'no' }, 'createServer: fsync is not true or false'],
  [{ titleRequired: 'optional' }, 'createServer: titleRequired is not true or false'],
  [{ token: '' }, 'createServer: token is not a string with something in it'],
  [
    { publicNames: 'a.example' },
    'createServer: publicNames is not an array of strings with something in them',
  ],
  [
    { kinds: { denyExtensions: [/php/] } },
    'createServer, kinds: denyExtensions is not an array of strings with something in them',
  ],
]
test('createServer refuses a wrong value by the name of its option, and makes nothing', async t => {
  const parent = await tempDir(t)
  const dir = join(parent, 'uploads')
  for (const [options, message] of MISVALUED)
    await assert.rejects(createServer({ dir, ...options } as ServerOptions), { code: 'usage', message })
  assert.deepEqual(await readdir(parent), [])
  // What is left open, by a value that says so, is the default; and a limit may be none.
  const server = await createServer({
    dir,
    onConflict: undefined,
    limits: { body: Infinity, idle: 0 },
  } as object)
  await server.shutdown()
})

test('names of a handler’s own: in a class any but a method’s misspelt, in an object those that begin with _', async t => {
  class Counting extends EventEmitter {
    name = 'counting'
    files = 0
    #limit = 10
    count() {
      if (++this.files > this.#limit) throw new UploadError('too_many_files', 'enough')
    }
    complete() {
      this.count()
    }
  }
  const noting = { name: 'noting', _noted: 0, complete: () => void noting._noted++ }
  const own = disk({ dir: await tempDir(t) })
  t.after(() => own.close())
  const counting = new Counting()
  const { url } = await startServer(t, { handlers: [counting, compose([noting]), noting, own] })
  assert.equal((await post(url, FORM)).status, 201)
  assert.deepEqual([counting.files, noting._noted], [1, 2])
})

test('wrong names elsewhere: push, listen, shutdown, the storage, the built-in handlers and the progress store', async t => {
  const { server } = await startServer(t)
  const path = join(await tempDir(t), 'a.txt')
  await writeFile(path, 'a')
  const source = await openFile(path)
  await assert.rejects(push({ urll: 'http://x/', source } as unknown as PushOptions), {
    code: 'usage',
    message: 'push: urll is not known; the nearest is url',
  })
  await assert.rejects(server.listen({ prot: 0 } as object), {
    message: 'listen: prot is not known; the nearest is port',
  })
  const dir = await tempDir(t)
  await assert.rejects(LocalStorage.open({ dir, onConfict: 'reject' } as LocalStorageOptions), {
    message: 'LocalStorage.open: onConfict is not known; the nearest is onConflict',
  })
  assert.throws(() => disk({ dir, fsink: false } as DiskOptions), {
    message: 'disk: fsink is not known; the nearest is fsync',
  })
  assert.throws(() => memory({ maximum: 1 } as MemoryOptions), {
    message: 'memory: maximum is not known',
  })
  assert.throws(() => new MemoryProgressStore({ maxx: 1 } as MemoryProgressOptions), {
    message: 'MemoryProgressStore: maxx is not known; the nearest is max',
  })
  await assert.rejects(
    LocalStorage.open({ dir, onConflict: 'overwrite' } as unknown as LocalStorageOptions),
    {
      message: 'LocalStorage.open: onConflict is not one of rename, replace, reject',
    },
  )
  assert.throws(() => memory({ max: -1 }), { message: 'memory: max is not a number, 0 or more' })
  await assert.rejects(server.shutdown({ grace: '5s' } as unknown as object), {
    message: 'shutdown: grace is not a number, 0 or more',
  })
  await assert.rejects(server.shutdown({ garce: 0 } as object), {
    message: 'shutdown: garce is not known; the nearest is grace',
  })
})

test('serve does not start with a handler that has a wrong name, and says the nearest', async t => {
  const module = join(await tempDir(t), 'handler.mjs')
  await writeFile(module, `export default { name: 'x', opne(file, next) { return next(file) } }`)
  await assert.rejects(serve(t, ['--handler', module]), {
    message: new RegExp(
      `^serve exited with 2: .*--handler ${module}: opne is not known; the nearest is open\n`,
    ),
  })
})
