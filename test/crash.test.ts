/** The real binary, killed: what the next start finds must be whole, and all that was promised must be there. */
import assert from 'node:assert/strict'
import { createHash, randomInt } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { lstat, mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { type TestContext, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { Receipt, UploadRecord } from '../src/index.ts'
import {
  assertStored,
  connect,
  getProgress,
  multipart,
  post,
  published,
  randomFile,
  records,
  SETTINGS,
  serve,
  sha256,
  TITLE,
  tempDir,
  temporaryFiles,
  until,
  uploadr,
} from './support.ts'

/** Kills per way of storing, and there are four; UPLOADR_CRASH_ROUNDS=50 is what a release is tried with. */
const ROUNDS = Number(SETTINGS['UPLOADR_CRASH_ROUNDS'] ?? 4)

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path), hash)
  return hash.digest('hex')
}

interface Places {
  dir: string
  tmp: string
}

/** After a recovery: every file whole and recorded, every record with its files, nothing else anywhere. */
async function assertWhole({ dir, tmp }: Places, serversRunning = 1): Promise<UploadRecord[]> {
  const names = new Set<string>()
  const all = await records(dir)
  for (const record of all) {
    for (const file of record.files) {
      assert.ok(!names.has(file.name), `two records name ${file.name}`)
      names.add(file.name)
      const stats = await lstat(join(dir, file.name))
      assert.equal(stats.size, file.size, file.name)
      assert.equal(stats.mode & 0o777, 0o644, file.name)
      assert.equal(stats.nlink, 1, file.name)
      assert.equal(await digest(join(dir, file.name)), file.sha256, file.name)
    }
  }
  assert.deepEqual(await published(dir), [...names].sort())
  assert.deepEqual(await temporaryFiles({ dir, tmp }), [])
  for (const folder of [join(dir, '.uploadr', 'staging'), tmp]) {
    assert.ok(
      (await readdir(folder)).length <= serversRunning,
      `folders of dead servers are left in ${folder}`,
    )
  }
  return all
}

/** A form of one to four files: some stay in memory, some go to disk, many names are taken already. */
function randomForm(): Buffer {
  const files = Array.from({ length: 1 + randomInt(4) }, () => {
    const size = randomInt(8) === 0 ? 2_700_000 + randomInt(300_000) : 1 + randomInt(70_000)
    return { name: 'file', filename: `f${randomInt(20)}.bin`, type: 'x/y', body: randomFile(size) }
  })
  return multipart([TITLE, ...files])
}

/** Uploads one form after the other until the server is gone; the receipts that arrived whole. */
async function uploadUntilDeath(url: string, receipts: Receipt[], forms: Buffer[]): Promise<void> {
  for (;;) {
    const form = forms[randomInt(forms.length)] as Buffer
    const answer = await post(url, form, { chunk: 65_536, chunked: randomInt(3) === 0 }).catch(
      () => undefined,
    )
    if (!answer?.status) return
    assert.equal(answer.status, 201, answer.text)
    // Cut by the kill, an answer promises nothing.
    if (answer.json) receipts.push(answer.json)
  }
}

const WAYS: Record<string, string[]> = {
  'one file system': ['--no-fsync'],
  'synced to disk': [],
  'temporary files on another file system': ['--no-fsync', '--tmp', 'elsewhere'],
  'replacing what is there': ['--no-fsync', '--on-conflict', 'replace'],
}
for (const [way, args] of Object.entries(WAYS)) {
  test(`killed ${ROUNDS} times at random moments, ${way}`, async t => {
    const dir = join(await tempDir(t), 'uploads')
    const elsewhere = join(await otherFileSystem(t), 'tmp')
    const options = args.map(arg => (arg === 'elsewhere' ? elsewhere : arg))
    const tmp = args.includes('elsewhere') ? elsewhere : join(dir, '.uploadr', 'tmp')
    const replacing = args.includes('replace')
    const forms = Array.from({ length: 8 }, randomForm)
    const receipts: Receipt[] = []
    for (let round = 0; round < ROUNDS; round++) {
      const server = await serve(t, options, { dir })
      const clients = Array.from({ length: 6 }, () => uploadUntilDeath(server.url, receipts, forms))
      // A random moment, but one at which uploads are being published.
      const acknowledged = receipts.length + randomInt(6)
      await until(
        () => receipts.length,
        count => count >= acknowledged,
      )
      await delay(randomInt(40))
      server.child.kill('SIGKILL')
      await Promise.all(clients)
      await server.exited
      // Now and then the next start is killed in the middle of its recovery.
      if (randomInt(3) === 0) {
        const interrupted = uploadr(t, ['serve', '--port', '0', '--dir', dir, ...options])
        await delay(randomInt(400))
        interrupted.child.kill('SIGKILL')
        await interrupted.exited
      }
      const next = await serve(t, options, { dir })
      if (replacing) await assertReplaced({ dir, tmp })
      else await assertKept(await assertWhole({ dir, tmp }), receipts)
      next.child.kill('SIGKILL')
      await next.exited
    }
    assert.ok(
      receipts.length > 0,
      'no upload was ever acknowledged: the kills came too early to show anything',
    )
    t.diagnostic(`${receipts.length} uploads were acknowledged before a kill`)
  })
}

async function assertKept(all: UploadRecord[], receipts: Receipt[]): Promise<void> {
  const byId = new Map(all.map(record => [record.id, record]))
  for (const { id, files } of receipts) assert.deepEqual(byId.get(id)?.files, files, `${id} was acknowledged`)
}

/** A file that replaces another leaves that one's record behind; every file is some record's, and whole. */
async function assertReplaced(places: Places): Promise<void> {
  const known = new Set(
    (await records(places.dir)).flatMap(({ files }) => files.map(f => `${f.name} ${f.sha256}`)),
  )
  const names = await published(places.dir)
  for (const { files } of await records(places.dir)) {
    for (const { name } of files) assert.ok(names.includes(name), `${name} has a record and is gone`)
  }
  for (const name of names) {
    assert.ok(known.has(`${name} ${await digest(join(places.dir, name))}`), `${name} is no upload's`)
  }
  assert.deepEqual(await temporaryFiles(places), [])
}

/** A folder on another file system than the temporary ones, where there is one. */
async function otherFileSystem(t: TestContext): Promise<string> {
  const { mkdtemp, rm } = await import('node:fs/promises')
  const path = await mkdtemp('/dev/shm/uploadr-test-').catch(() => tempDir(t))
  t.after(() => rm(path, { recursive: true, force: true }))
  return path
}

test('a client killed in mid-upload: temporary files gone, progress says error', async t => {
  for (const args of [[], ['--memory-max', '1gib', '--memory-total', '1gib']]) {
    const tmp = join(await tempDir(t), 'tmp')
    const server = await serve(t, ['--tmp', tmp, ...args])
    const client = uploadr(t, ['push', '-', '--name', 'endless', '--id', 'killed', '--url', server.url], {
      stdin: 'pipe',
    })
    client.child.stdin?.on('error', () => {})
    client.child.stdin?.write(randomFile(5_000_000))
    await until(
      () => getProgress(server.url, 'killed'),
      progress => progress.state === 'uploading' && progress.received > 4_000_000,
    )
    client.child.kill('SIGKILL')
    const progress = await until(
      () => getProgress(server.url, 'killed'),
      ({ state }) => state === 'error',
    )
    assert.equal(progress.state === 'error' && progress.code, 'truncated_body')
    assert.deepEqual(await temporaryFiles({ dir: server.dir, tmp }), [])
    assert.deepEqual(await published(server.dir), [])
  }
})

test('two live servers on one directory leave each other alone, and a third start too', async t => {
  const dir = join(await tempDir(t), 'uploads')
  const tmp = join(dir, '.uploadr', 'tmp')
  const first = await serve(t, ['--memory-max', '0', '--no-fsync'], { dir })
  const form = multipart([
    TITLE,
    { name: 'file', filename: 'slow.bin', type: 'x/y', body: randomFile(3_000_000) },
  ])
  const socket = connect(first.url)
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: slow\r\nContent-Length: ${form.length}\r\n` +
      'Connection: close\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
  )
  socket.write(form.subarray(0, 2_000_000))
  await until(
    () => getProgress(first.url, 'slow'),
    progress => progress.state === 'uploading' && progress.received === 2_000_000,
  )
  assert.equal((await temporaryFiles({ dir })).length, 1)

  // Another one starts, works, is killed, and a third cleans up after it: all while the first is at it.
  const second = await serve(t, ['--no-fsync'], { dir })
  const bytes = randomFile(10_000)
  const same = multipart([TITLE, { name: 'file', filename: 'slow.bin', type: 'x/y', body: bytes }])
  const answers = await Promise.all(
    Array.from({ length: 10 }, (_, i) => post(i % 2 ? first.url : second.url, same)),
  )
  for (const { json } of answers) await assertStored(dir, json.files[0], bytes)
  second.child.kill('SIGKILL')
  await second.exited
  const third = await serve(t, [], { dir })
  assert.equal((await temporaryFiles({ dir })).length, 1)

  const answer = new Promise<string>(resolve => socket.on('data', data => resolve(String(data))))
  socket.write(form.subarray(2_000_000))
  assert.match(await answer, /^HTTP\/1.1 201 /)
  assert.equal((await assertWhole({ dir, tmp }, 2)).length, 11)
  third.child.kill('SIGTERM')
  assert.equal(await third.exited, 0)
})

test('ten servers starting at once on what a dead one left: one recovers it, all of them start', async t => {
  const dir = join(await tempDir(t), 'uploads')
  const staging = join(dir, '.uploadr', 'staging')
  // As a killed server leaves it between writing the intent and giving the names. No process has pid 0.
  const dead = (await readdirAfterStart(t, dir)).replace(/^uploadr-\d+-\d+/, 'uploadr-0-1')
  const folder = join(staging, dead)
  await mkdir(folder)
  const bytes = randomFile(200_000)
  const record: UploadRecord = {
    id: 'left',
    title: 'left',
    time: new Date(0).toISOString(),
    from: '127.0.0.1',
    files: ['a', 'b'].map(name => ({
      field: 'file',
      name,
      sentAs: name,
      size: bytes.length,
      type: 'x/y',
      // One as `--no-sha256` leaves it.
      ...(name === 'a' && { sha256: sha256(bytes) }),
      handler: 'disk',
    })),
  }
  for (const i of [0, 1]) await writeFile(join(folder, `KEY.${i}`), bytes, { mode: 0o644 })
  await writeFile(join(folder, 'KEY.json'), JSON.stringify(record))
  await writeFile(join(folder, 'OTHER.0'), 'an upload without its intent')
  await writeFile(join(dir, 'b'), 'a name taken in the meantime')

  const servers = await Promise.all(Array.from({ length: 10 }, () => serve(t, [], { dir })))
  const [recovered, ...rest] = await records(dir)
  assert.deepEqual(rest, [])
  assert.equal(recovered?.files[0]?.name, 'a')
  assert.match(String(recovered?.files[1]?.name), /^b_[A-Za-z0-9]{7}$/)
  for (const { name } of recovered?.files ?? []) assert.ok((await readFile(join(dir, name))).equals(bytes))
  assert.equal(await readFile(join(dir, 'b'), 'utf8'), 'a name taken in the meantime')
  assert.deepEqual(await temporaryFiles({ dir }), [])
  for (const { child } of servers) child.kill('SIGTERM')
  await Promise.all(servers.map(({ exited }) => exited))
})

/** Starts and stops a server, for the name of its workspace. */
async function readdirAfterStart(t: TestContext, dir: string): Promise<string> {
  const server = await serve(t, [], { dir })
  const [name] = await readdir(join(dir, '.uploadr', 'staging'))
  server.child.kill('SIGTERM')
  await server.exited
  return String(name)
}
