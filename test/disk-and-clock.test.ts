/** A disk that fails or is slow, and a clock that is set: the real binary, with test/fixtures/faults.c below it. */
import assert from 'node:assert/strict'
import { mkdir, readFile, stat, utimes, writeFile } from 'node:fs/promises'
import type net from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { Workspace } from '../src/storage/workspace.ts'
import { faults } from './fixtures/faults.ts'
import {
  assertStored,
  connect,
  getProgress,
  multipart,
  post,
  published,
  type Running,
  randomFile,
  readAnswer,
  records,
  serve,
  TITLE,
  tempDir,
  temporaryFiles,
  until,
  uploadr,
} from './support.ts'

const EIO = 5
const MIB = 1024 ** 2

const file = (body: Buffer, filename = 'a.bin') => ({ name: 'file', filename, type: 'x/y', body })
const SMALL = randomFile(1000)
const LARGE = randomFile(20 * MIB)
const SMALL_FORM = multipart([TITLE, file(SMALL)])
const LARGE_FORM = multipart([TITLE, file(LARGE)])

type Served = Running & { url: string; dir: string }

async function assertServes({ url, dir }: Served): Promise<void> {
  const before = (await records(dir)).length
  for (const [form, bytes] of [
    [SMALL_FORM, SMALL],
    [LARGE_FORM, LARGE],
  ] as const) {
    const { status, json, text } = await post(url, form)
    assert.equal(status, 201, text)
    await assertStored(dir, json.files[0], bytes)
  }
  assert.equal((await records(dir)).length, before + 2)
  assert.deepEqual(await temporaryFiles({ dir }), [])
}

/** The head of an upload and the first `bytes` of its form, once the server has them. */
async function begin({ url }: Served, id: string, form: Buffer, bytes: number): Promise<net.Socket> {
  const socket = connect(url)
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: ${id}\r\nContent-Length: ${form.length}\r\n` +
      'Connection: close\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
  )
  socket.write(form.subarray(0, bytes))
  await until(
    () => getProgress(url, id),
    progress => progress.state === 'uploading' && progress.received === bytes,
  )
  return socket
}

/** Where the disk fails, what it fails for, and the code that the client is told. */
const BROKEN: Record<string, { fault: string; form: Buffer; code: string }> = {
  'the temporary file, opened': { fault: 'open */tmp/*', form: LARGE_FORM, code: 'storage_failed' },
  'the temporary file, written': { fault: 'write */tmp/*', form: LARGE_FORM, code: 'storage_failed' },
  'the temporary file, read for its digest': {
    fault: 'read */tmp/*',
    form: LARGE_FORM,
    code: 'storage_failed',
  },
  'the temporary file, synced': { fault: 'fdatasync */tmp/*', form: LARGE_FORM, code: 'storage_failed' },
  'the temporary file, synced while more of it comes': {
    fault: 'fdatasync */tmp/*',
    form: multipart([TITLE, file(Buffer.alloc(70 * MIB))]),
    code: 'storage_failed',
  },
  'its way into the staging folder': {
    fault: 'rename */tmp/*>*/staging/*',
    form: LARGE_FORM,
    code: 'storage_failed',
  },
  'a file held in memory, opened': { fault: 'open */staging/*.0', form: SMALL_FORM, code: 'storage_failed' },
  'a file held in memory, written': {
    fault: 'write */staging/*.0',
    form: SMALL_FORM,
    code: 'storage_failed',
  },
  'a file held in memory, synced': {
    fault: 'fdatasync */staging/*.0',
    form: SMALL_FORM,
    code: 'storage_failed',
  },
  'the record, written': { fault: 'write */staging/*.json', form: SMALL_FORM, code: 'storage_failed' },
  'the record, synced': { fault: 'fdatasync */staging/*.json', form: LARGE_FORM, code: 'storage_failed' },
  'the staging folder, synced': { fault: 'fsync */staging/*', form: SMALL_FORM, code: 'storage_failed' },
  'the name, given': { fault: 'link */uploads/a.bin', form: LARGE_FORM, code: 'storage_failed' },
  "the second file's name, given": {
    fault: 'link */uploads/b.bin',
    form: multipart([TITLE, file(SMALL), file(SMALL, 'b.bin')]),
    code: 'storage_failed',
  },
  'the record, moved': { fault: 'rename *>*/records/*', form: SMALL_FORM, code: 'storage_failed' },
  'the directory, synced': { fault: 'fsync */uploads', form: LARGE_FORM, code: 'storage_failed' },
  'the records, synced': { fault: 'fsync */records', form: SMALL_FORM, code: 'storage_failed' },
}

test('EIO: a disk that cannot be written, read or synced', async t => {
  const disk = await faults(t)
  if (!disk) return
  const server = await serve(t, [], { env: disk.env })
  const { url, dir, child, exited } = server
  for (const [where, { fault, form, code }] of Object.entries(BROKEN)) {
    await t.test(where, async () => {
      await disk.set(`${fault} ${EIO} 0`)
      for (const chunked of [false, true]) {
        const answer = await post(url, form, { chunked, chunk: 65_536 })
        assert.deepEqual([answer.json?.code, answer.status], [code, 500], answer.text)
        assert.match(answer.json.detail, /EIO/)
        // No path of the server's.
        assert.ok(!answer.text.includes(dir), answer.text)
        assert.deepEqual(await published(dir), [])
        assert.deepEqual(await records(dir), [])
        assert.deepEqual(await temporaryFiles({ dir }), [])
      }
    })
  }
  await t.test('in the middle of a file, as push sees it', async t => {
    await disk.set()
    const path = join(await tempDir(t), 'large.bin')
    await writeFile(path, LARGE)
    const socket = await begin(server, 'half', LARGE_FORM, 10 * MIB)
    await disk.set(`write */tmp/* ${EIO} 0`)
    const answer = readAnswer(socket)
    socket.write(LARGE_FORM.subarray(10 * MIB))
    assert.equal((await answer).status, 500)
    const progress = await getProgress(url, 'half')
    assert.deepEqual(progress.state === 'error' && [progress.status, progress.code], [500, 'storage_failed'])
    const push = uploadr(t, ['push', path, '--url', url])
    assert.equal(await push.exited, 9)
    assert.match(push.stderr(), /^uploadr: writing large\.bin: EIO$/m)
    assert.deepEqual(await temporaryFiles({ dir }), [])
  })
  await disk.set()
  await assertServes(server)
  child.kill('SIGTERM')
  assert.equal(await exited, 0)
})

test('a slow disk: the client waits, no longer than it has to and not to be told that it is slow', async t => {
  const disk = await faults(t)
  if (!disk) return
  await t.test('20 MiB, every write and sync a tenth of a second', async t => {
    const server = await serve(t, ['--memory-max', '0'], { env: disk.env })
    const { url, dir } = server
    await disk.set('write */tmp/* 0 100', 'fdatasync * 0 100', 'fsync * 0 100')
    const answer = post(url, LARGE_FORM, { headers: { 'X-Progress-ID': 'slow' }, chunk: 65_536 })
    let ended = false
    void answer.finally(() => (ended = true))
    let ahead = 0
    while (!ended) {
      const progress = await getProgress(url, 'slow')
      if (progress.state !== 'uploading') continue
      const [path] = await temporaryFiles({ dir })
      // Looked at later than the count: if anything, too much is on the disk.
      const written =
        path === undefined
          ? 0
          : await stat(path).then(
              stats => stats.size,
              () => undefined,
            )
      if (path && written !== undefined) ahead = Math.max(ahead, progress.received - written)
    }
    const { status, json, text } = await answer
    assert.equal(status, 201, text)
    await assertStored(dir, json.files[0], LARGE)
    // The window of 2 MiB, and what was in the parser and on its way to it.
    assert.ok(ahead > 0 && ahead < 4 * MIB, `${ahead} bytes were received and not written`)
  })
  await t.test('a write that takes longer than a client may be silent', async t => {
    const server = await serve(t, ['--memory-max', '0', '--idle-timeout', '1s', '--min-rate', '100mib'], {
      env: disk.env,
    })
    await disk.set('write */tmp/* 0 1500')
    const form = multipart([TITLE, file(LARGE.subarray(0, 3 * MIB))])
    const answer = await post(server.url, form, { chunk: 65_536 })
    assert.equal(answer.status, 201, answer.text)
    // Where the disk is not to blame.
    const socket = await begin(server, 'silent', form, 1000)
    assert.equal((await readAnswer(socket)).status, 408)
    await disk.set()
    await assertServes(server)
  })
})

test('the clock, set back and forward while it runs', async t => {
  const clock = await faults(t)
  if (!clock) return
  for (const seconds of [-3600, 3600, -86_400 * 400]) {
    await t.test(`by ${seconds} s`, async t => {
      await clock.set()
      const server = await serve(t, ['--idle-timeout', '5s', '--progress-ttl', '1h'], { env: clock.env })
      const brief = await serve(t, ['--idle-timeout', '200ms', '--progress-ttl', '200ms'], {
        env: clock.env,
      })
      const { url, dir } = server
      const ended = await post(url, SMALL_FORM, { headers: { 'X-Progress-ID': 'ended' } })
      assert.equal(ended.status, 201)
      const socket = await begin(server, 'running', LARGE_FORM, 10 * MIB)
      const silent = await begin(brief, 'silent', LARGE_FORM, 10 * MIB)
      await clock.set(`clock ${seconds}`)
      await t.test('a running upload goes on, and is remembered as long as before', async () => {
        assert.equal((await getProgress(url, 'running')).state, 'uploading')
        const answer = readAnswer(socket)
        socket.write(LARGE_FORM.subarray(10 * MIB))
        const { status, json } = await answer
        assert.equal(status, 201)
        await assertStored(dir, json.files[0], LARGE)
        for (const id of ['ended', 'running']) assert.equal((await getProgress(url, id)).state, 'done')
      })
      await t.test('silence ends an upload, and time a record', async () => {
        assert.equal((await readAnswer(silent)).status, 408)
        await until(
          () => getProgress(brief.url, 'silent'),
          ({ state }) => state === 'starting',
        )
      })
      await t.test('what comes next is stored under names of its own, by the time it is told', async () => {
        await assertServes(server)
        const times = (await records(dir)).map(({ time }) => Date.parse(time))
        assert.equal(times.length, 4)
        const [earliest = 0, latest = 0] = [Math.min(...times), Math.max(...times)]
        assert.equal(Math.round((latest - earliest) / 3600e3), Math.round(Math.abs(seconds) / 3600))
        assert.equal(new Set((await records(dir)).flatMap(({ files }) => files.map(f => f.name))).size, 4)
        // The clock of files is the kernel's.
        for (const name of await published(dir)) {
          assert.ok(Math.abs((await stat(join(dir, name))).mtimeMs - Date.now()) < 3600e3)
        }
      })
      server.child.kill('SIGTERM')
      assert.equal(await server.exited, 0)
    })
  }
})

test('the clock, set back between two servers: the dead one is cleared, the live one left alone', async t => {
  const clock = await faults(t)
  if (!clock) return
  const dir = join(await tempDir(t), 'uploads')
  const start = () => serve(t, ['--memory-max', '0'], { env: clock.env, dir })
  const live = await start()
  const dead = await start()
  const running = await begin(live, 'running', LARGE_FORM, 10 * MIB)
  await begin(dead, 'lost', LARGE_FORM, 10 * MIB)
  assert.equal((await temporaryFiles({ dir })).length, 2)
  dead.child.kill('SIGKILL')
  await dead.exited
  await clock.set('clock -3600')
  await start()
  assert.equal((await temporaryFiles({ dir })).length, 1)
  const answer = readAnswer(running)
  running.write(LARGE_FORM.subarray(10 * MIB))
  assert.equal((await answer).status, 201)
  assert.deepEqual(await published(dir), ['a.bin'])
  assert.ok((await readFile(join(dir, 'a.bin'))).equals(LARGE))
})

test('the clock, set back: the folder of a server that cannot be seen from here is no older for it', async t => {
  const parent = await tempDir(t)
  const mine = await Workspace.create(parent)
  t.after(() => mine.remove())
  // Of another container on this machine: judged by when it was touched last.
  const elsewhere = mine.path.replace(/-[0-9a-f]{8}-([0-9a-f]{12})$/, '-00000000-$1')
  await mkdir(elsewhere)
  const inAnHour = new Date(Date.now() + 3600e3)
  await utimes(elsewhere, inAnHour, inAnHour)
  assert.deepEqual(await mine.abandoned(), [])
})
