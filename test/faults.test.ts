/** What is around the server fails: no partial file, a clear error, and it serves on afterwards. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { type TestContext, test } from 'node:test'
import type { UploadHandler } from '../src/index.ts'
import { tap } from '../src/index.ts'
import {
  assertStored,
  BINARY,
  connect,
  getProgress,
  multipart,
  post,
  published,
  randomFile,
  readAnswer,
  records,
  run,
  serve,
  smallFileSystem,
  startServer,
  TITLE,
  tempDir,
  temporaryFiles,
  until,
} from './support.ts'

const file = (body: Buffer, filename = 'a.bin') => ({ name: 'file', filename, type: 'x/y', body })
const SMALL = randomFile(1000)
const FORM = multipart([TITLE, file(SMALL)])

async function assertServes(url: string, dir: string): Promise<void> {
  const answer = await post(url, FORM)
  assert.equal(answer.status, 201, answer.text)
  await assertStored(dir, answer.json.files[0], SMALL)
  await rm(join(dir, answer.json.files[0].name))
}

async function assertFailed(url: string, form: Buffer, code: string, status: number): Promise<void> {
  for (const chunked of [false, true]) {
    const answer = await post(url, form, { chunked, chunk: 65_536 })
    assert.deepEqual([answer.json?.code, answer.status], [code, status], answer.text)
    // What is wrong, and no path of the server's.
    assert.doesNotMatch(answer.text, /\/tmp|uploadr-|at .*\.js/)
  }
}

test('ENOSPC: 507, and again room once there is', async t => {
  const dir = await smallFileSystem(t, '3m')
  if (dir === undefined) return
  for (const args of [[], ['--memory-max', '10mib']]) {
    const { url } = await serve(t, ['--min-free', '0', ...args], { dir })
    await assertFailed(
      url,
      multipart([TITLE, file(randomFile(300_000)), file(randomFile(4_000_000))]),
      'disk_full',
      507,
    )
    assert.deepEqual(await published(dir), [])
    assert.deepEqual(await temporaryFiles({ dir }), [])
    await assertServes(url, dir)
  }
})

test('EROFS: a file system that turns read-only, and back', async t => {
  const dir = await smallFileSystem(t, '20m')
  if (dir === undefined) return
  for (const args of [
    ['--memory-max', '0'],
    ['--memory-max', '10mib'],
  ]) {
    const { url, child, exited } = await serve(t, args.concat('--min-free', '0', '--no-fsync'), { dir })
    const { code, stderr } = await run('mount', ['-o', 'remount,ro', dir])
    assert.equal(code, 0, stderr)
    const form = multipart([TITLE, file(randomFile(3_000_000))])
    const answer = await post(url, form, { chunk: 65_536 })
    assert.equal(answer.status, 500, answer.text)
    assert.match(answer.json.detail, /EROFS/)
    await run('mount', ['-o', 'remount,rw', dir])
    assert.deepEqual(await published(dir), [])
    assert.deepEqual(await temporaryFiles({ dir }), [])
    await assertServes(url, dir)
    child.kill('SIGTERM')
    assert.equal(await exited, 0)
  }
})

/** The binary below a shell that sets limits first, or closes what it gets. */
async function serveFromShell(
  t: TestContext,
  script: string,
): Promise<{ url: string; dir: string; pid: number; stderr(): string }> {
  const dir = join(await tempDir(t), 'uploads')
  const child = spawn('sh', ['-c', script, 'sh', process.execPath, BINARY, dir], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stderr = ''
  child.stderr.on('data', chunk => (stderr += chunk))
  t.after(async () => {
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'close')
  })
  const lines = createInterface({ input: child.stdout })
  const [url] = await Promise.race([
    once(lines, 'line'),
    once(child, 'exit').then(([code]) => assert.fail(`${code}: ${stderr}`)),
  ])
  return { url: String(url), dir, pid: child.pid as number, stderr: () => stderr }
}

async function descriptors(pid: number): Promise<number> {
  return (await readdir(`/proc/${pid}/fd`)).length
}

test('EMFILE: no descriptor left, and again some', async t => {
  // What node itself has open, and the worker, is about 25.
  const script = 'ulimit -n 44; exec "$1" "$2" serve --port 0 --no-fsync --memory-max 0 --dir "$3"'
  const { url, dir, pid } = await serveFromShell(t, script)
  await assertServes(url, dir)
  const before = await descriptors(pid)
  await t.test('a form of more files than can be open', async () => {
    const files = Array.from({ length: 60 }, (_, i) => file(SMALL, `${i}`))
    const { status, json } = await post(url, multipart([TITLE, ...files]))
    assert.equal(status, 500)
    assert.match(json.detail, /EMFILE/)
    assert.deepEqual(await published(dir), [])
    assert.deepEqual(await temporaryFiles({ dir }), [])
    await assertServes(url, dir)
  })
  await t.test('more connections than can be open', async () => {
    const sockets = Array.from({ length: 100 }, () => connect(url))
    await Promise.all(sockets.map(socket => once(socket, 'connect')))
    for (const socket of sockets) socket.destroy()
    // It hears one after the other that they are gone, and until then may have to turn others away.
    await until(
      async () => (await post(url, Buffer.from('no form'))).status,
      status => status === 400,
    )
    await until(
      () => descriptors(pid),
      count => count <= before,
    )
    await assertServes(url, dir)
  })
})

test('a directory removed under a running server', async t => {
  await t.test('the one of temporary files, in the middle of an upload', async t => {
    const tmp = join(await tempDir(t), 'tmp')
    const { url, dir } = await serve(t, ['--tmp', tmp, '--memory-max', '100kb', '--no-fsync'])
    const form = multipart([TITLE, file(randomFile(3_000_000))])
    const socket = connect(url)
    const answer = readAnswer(socket)
    socket.write(
      `POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${form.length}\r\nConnection: close\r\n` +
        'Content-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
    )
    socket.write(form.subarray(0, 2_500_000))
    await until(
      () => temporaryFiles({ dir, tmp }),
      left => left.length === 1,
    )
    await rm(tmp, { recursive: true })
    socket.write(form.subarray(2_500_000))
    const { status, json } = await answer
    assert.equal(status, 500)
    assert.match(json.code, /^(storage|handler)_failed$/)
    assert.deepEqual(await published(dir), [])
    assert.deepEqual(await records(dir), [])
    // What needs no temporary file goes on.
    await assertServes(url, dir)
  })
})

test('stdout and stderr that nobody reads any more, or that were never open', async t => {
  await t.test('closed while it runs', async t => {
    const { url, dir, child, exited } = await serve(t)
    child.stdout?.destroy()
    child.stderr?.destroy()
    for (let i = 0; i < 20; i++) await assertServes(url, dir)
    assert.equal((await post(url, Buffer.from('no form'))).status, 400)
    child.kill('SIGTERM')
    assert.equal(await exited, 0)
  })
  await t.test('stderr never open', async t => {
    const { url, dir } = await serveFromShell(t, 'exec "$1" "$2" serve --port 0 --dir "$3" 2>&-')
    for (let i = 0; i < 5; i++) await assertServes(url, dir)
  })
  await t.test('stderr on a full device', async t => {
    const { url, dir } = await serveFromShell(t, 'exec "$1" "$2" serve --port 0 --dir "$3" 2>/dev/full')
    for (let i = 0; i < 5; i++) await assertServes(url, dir)
  })
})

test('handlers that throw, reject or are refused, in every method', async t => {
  const failures: Record<string, () => never | Promise<never>> = {
    throws: () => {
      throw new Error('broken')
    },
    rejects: () => Promise.reject(new Error('broken')),
    'throws no error': () => {
      throw undefined
    },
  }
  for (const [how, fail] of Object.entries(failures)) {
    const handlers: Record<string, UploadHandler> = {
      begin: { name: 'h', begin: fail },
      open: { name: 'h', open: fail },
      write: { name: 'h', open: async (info, next) => tap(await next(info), { write: fail }) },
      complete: { name: 'h', complete: fail },
      'interrupt, after another failure': { name: 'h', complete: fail, interrupt: fail },
    }
    for (const [where, handler] of Object.entries(handlers)) {
      await t.test(`${where} ${how}`, async t => {
        for (const memoryMax of [0, 10_000_000]) {
          const at = await startServer(t, { handlers: [handler], memoryMax, limits: { uploads: 1 } })
          for (let i = 0; i < 2; i++) {
            const { status, json } = await post(at.url, FORM)
            assert.deepEqual([json?.code, status], ['handler_failed', 500])
          }
          assert.deepEqual(await published(at.dir), [])
          assert.deepEqual(await temporaryFiles(at), [])
        }
      })
    }
    await t.test(`published ${how}: the upload is stored all the same`, async t => {
      const at = await startServer(t, { handlers: [{ name: 'h', published: fail }], limits: { uploads: 1 } })
      for (let i = 0; i < 2; i++) await assertServes(at.url, at.dir)
    })
  }
})

test('a handler that never settles holds its own upload, nobody else, and not the end', async t => {
  const module = join(await tempDir(t), 'hangs.mjs')
  await writeFile(
    module,
    "export default { name: 'hangs', begin: ({ id }) => (id === 'stuck' ? new Promise(() => {}) : undefined) }",
  )
  const { url, dir, child, exited, stderr } = await serve(t, ['--handler', module, '--grace', '0'])
  const socket = connect(url)
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: stuck\r\nContent-Length: ${FORM.length}\r\n` +
      'Content-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
  )
  await until(
    () => getProgress(url, 'stuck'),
    ({ state }) => state === 'uploading',
  )
  for (let i = 0; i < 10; i++) await assertServes(url, dir)
  child.kill('SIGTERM')
  await until(
    () => stderr(),
    text => text.includes('stopping'),
  )
  child.kill('SIGTERM')
  assert.equal(await exited, 'SIGTERM')
  assert.deepEqual(await temporaryFiles({ dir }), [])
})

test('handlers that never settle: once the grace is over they are given up, and named', async t => {
  const module = join(await tempDir(t), 'hangs.mjs')
  await writeFile(
    module,
    `
    const never = new Promise(() => {})
    const at = place => ({ id }) => {
      if (id !== place) return
      console.error(JSON.stringify({ event: 'hangs', id }))
      return never
    }
    export default {
      name: 'hangs',
      begin: at('begin'),
      async open(file, next, upload) {
        await at('open')(upload)
        const sink = await next(file)
        return {
          write: chunk => (upload.received > 200_000 && at('write')(upload)) || sink.write(chunk),
          close: async () => (await at('close')(upload), sink.close()),
          abort: async reason => (await at('abort')(upload), sink.abort(reason)),
        }
      },
      complete: at('complete'),
      published: at('published'),
      interrupt: at('interrupt'),
    }`,
  )
  const server = await serve(t, ['--handler', module, '--grace', '0', '--memory-max', '0', '--log', 'json'])
  const { url, dir, child, exited, stderr } = server
  const form = multipart([TITLE, file(randomFile(300_000))])
  const untitled = multipart([file(randomFile(300_000))])
  // The last two hang when their outcome is known.
  const places: Record<string, { form: Buffer; status: number; abandoned: boolean }> = {
    begin: { form, status: 503, abandoned: true },
    open: { form, status: 503, abandoned: true },
    write: { form, status: 503, abandoned: true },
    close: { form, status: 503, abandoned: true },
    abort: { form: form.subarray(0, -100), status: 503, abandoned: true },
    complete: { form, status: 503, abandoned: true },
    interrupt: { form: untitled, status: 422, abandoned: true },
    published: { form, status: 201, abandoned: false },
  }
  const answers = Object.entries(places).map(([id, { form: body }]) => {
    const socket = connect(url)
    const announced = id === 'abort' ? form.length : body.length
    socket.write(
      `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: ${id}\r\nContent-Length: ${announced}\r\n` +
        'Connection: close\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
    )
    socket.write(body)
    return readAnswer(socket)
  })
  const logged = (name: string): string[] => {
    const entries = Array.from(stderr().matchAll(/.*\n/g), ([line]) => JSON.parse(line))
    return entries.filter(({ event }) => event === name).map(({ id }) => id)
  }
  // All but the one that is to be aborted first.
  await until(
    () => logged('hangs').length,
    count => count === answers.length - 1,
  )
  await until(
    () => getProgress(url, 'abort'),
    progress => progress.state === 'uploading' && progress.received === form.length - 100,
  )
  child.kill('SIGTERM')
  assert.deepEqual(
    (await Promise.all(answers)).map(({ status }) => status),
    Object.values(places).map(({ status }) => status),
  )
  assert.equal(await exited, 0, stderr())
  const named = Object.keys(places).filter(id => places[id]?.abandoned)
  assert.deepEqual(logged('abandoned an upload').sort(), named.sort())
  // What was stored before the end is stored, and nothing of the others is left.
  assert.deepEqual(await published(dir), ['a.bin'])
  assert.equal((await records(dir)).length, 1)
  assert.deepEqual(await temporaryFiles({ dir }), [])
})

test('memory pressure: large, many and never-ending things in a small heap', async t => {
  const script =
    'exec "$1" --max-old-space-size=48 "$2" serve --port 0 --no-fsync --idle-timeout 2s --memory-total 8mib --dir "$3"'
  const { url, dir, pid } = await serveFromShell(t, script)
  const large = randomFile(30_000_000)
  const answer = await post(url, multipart([TITLE, file(large)]), { chunk: 262_144 })
  await assertStored(dir, answer.json.files[0], large)
  const medium = multipart([TITLE, file(randomFile(2_000_000))])
  const answers = await Promise.all(Array.from({ length: 40 }, () => post(url, medium, { chunk: 65_536 })))
  for (const { status, text } of answers) assert.equal(status, 201, text)
  const fields = multipart(
    Array.from({ length: 3000 }, (_, i) => ({ name: `f${i}`, body: 'x'.repeat(1000) })),
  )
  for (const { json } of await Promise.all(Array.from({ length: 20 }, () => post(url, fields)))) {
    // Of all forms together, or of one.
    assert.match(json.code, /^(too_many_fields|fields_too_large|too_many_uploads)$/)
  }
  assert.doesNotThrow(() => process.kill(pid, 0))
  await assertServes(url, dir)
})

test('what fields take of memory is held until the answer that says them again is out', async t => {
  const { url } = await serve(t, ['--memory-total', '8mib', '--no-fsync'])
  // Six bytes each in JSON: more than sockets buffer.
  const large = multipart([TITLE, { name: 'note', body: Buffer.alloc(2_600_000, 1) }, file(SMALL)])
  const request = (id: string, form: Buffer) =>
    Buffer.concat([
      Buffer.from(
        `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: ${id}\r\nContent-Length: ${form.length}\r\n` +
          'Content-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
      ),
      form,
    ])
  const ended = (id: string) =>
    until(
      () => getProgress(url, id),
      ({ state }) => state === 'done' || state === 'error',
    )
  for (const id of ['read', 'left']) {
    const socket = connect(url)
    socket.write(request(id, large))
    await ended(id)
    const refused = await post(url, FORM)
    assert.equal(refused.json?.code, 'too_many_uploads', refused.text)
    if (id === 'read') socket.resume()
    else socket.destroy()
    await until(
      () => post(url, large),
      ({ status }) => status === 201,
    )
  }
})
