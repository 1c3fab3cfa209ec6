import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { LocalStorage, type LocalStorageOptions, type StagedFile } from '../src/index.ts'
import { alternativeName, fitName, isPlainName } from '../src/storage/name.ts'
import { Workspace } from '../src/storage/workspace.ts'
import { type StorageUnderTest, storageContract } from './contracts/storage-contract.ts'
import { leftovers, published, records, sha256, tempDir, until } from './support.ts'

async function local(
  t: TestContext,
  options: Omit<LocalStorageOptions, 'dir'> & { elsewhere?: string } = {},
): Promise<StorageUnderTest & { dir: string }> {
  const dir = join(await tempDir(t), 'uploads')
  const { elsewhere, ...storageOptions } = options
  const storage = await LocalStorage.open({ dir, ...storageOptions })
  t.after(() => storage.close())
  const temporary =
    elsewhere === undefined ? await tempDir(t) : await mkdtemp(join(elsewhere, 'uploadr-test-'))
  t.after(() => rm(temporary, { recursive: true, force: true }))
  let staged = 0
  return {
    dir,
    storage,
    read: name => readFile(join(dir, name)).catch(() => undefined),
    names: () => published(dir),
    ids: async () => (await records(dir)).map(({ id }) => id),
    leftovers: () => leftovers(join(dir, '.uploadr')),
    async stageInFile(bytes) {
      const path = join(temporary, `${staged++}.part`)
      await writeFile(path, bytes, { mode: 0o600 })
      return path
    },
  }
}

for (const onConflict of ['rename', 'replace', 'reject'] as const) {
  for (const fsync of [true, false]) {
    storageContract(`local, ${onConflict}, fsync ${fsync}`, t => local(t, { onConflict, fsync }))
  }
}
storageContract('local, staged on another file system', async t => local(t, { elsewhere: '/dev/shm' }))

function staged(name: string, text: string, path?: string): StagedFile {
  const bytes = Buffer.from(text)
  const where = path === undefined ? { bytes } : { path }
  return {
    field: 'file',
    name,
    type: 'a/b',
    size: bytes.length,
    sha256: sha256(bytes),
    handler: 'x',
    ...where,
    discard() {},
  }
}
const facts = (id: string) => ({ id, title: 't', time: new Date(), from: '127.0.0.1' })

test('rename: a taken name becomes a free one in Django’s form, whoever took it', async t => {
  const { storage, dir, names } = await local(t)
  await mkdir(join(dir, 'folder.d'))
  await symlink('/nonexistent', join(dir, 'link'))
  await writeFile(join(dir, 'a.tar.gz'), 'old')
  for (const [name, pattern] of [
    ['a.tar.gz', /^a\.tar_[A-Za-z0-9]{7}\.gz$/],
    ['folder.d', /^folder_[A-Za-z0-9]{7}\.d$/],
    ['link', /^link_[A-Za-z0-9]{7}$/],
  ] as const) {
    const [file] = await storage.publish(facts(name), [staged(name, 'new')])
    assert.match(String(file?.name), pattern)
    assert.equal(file?.sentAs, name)
    assert.equal(await readFile(join(dir, String(file?.name)), 'utf8'), 'new')
  }
  assert.equal(await readFile(join(dir, 'a.tar.gz'), 'utf8'), 'old')
  assert.equal((await names()).length, 6)
})

for (const onConflict of ['rename', 'replace'] as const) {
  test(`${onConflict}: two files of one name in one upload are both kept`, async t => {
    const { storage, dir, leftovers } = await local(t, { onConflict })
    await writeFile(join(dir, 'a.txt'), 'old')
    const files = await storage.publish(facts('x'), [staged('a.txt', 'one'), staged('a.txt', 'two')])
    const texts = await Promise.all(files.map(({ name }) => readFile(join(dir, name), 'utf8')))
    assert.deepEqual(texts, ['one', 'two'])
    assert.equal(await readFile(join(dir, 'a.txt'), 'utf8'), onConflict === 'replace' ? 'one' : 'old')
    assert.deepEqual((await records(dir))[0]?.files, files)
    assert.deepEqual(await leftovers(), [])
  })
}

test('replace: the old file makes way in one step, and comes back where the upload fails', async t => {
  const { storage, dir, leftovers } = await local(t, { onConflict: 'replace' })
  await storage.publish(facts('1'), [staged('a.txt', 'old')])
  await storage.publish(facts('2'), [staged('a.txt', 'new')])
  assert.equal(await readFile(join(dir, 'a.txt'), 'utf8'), 'new')
  await mkdir(join(dir, 'folder'))
  const failing = storage.publish(facts('3'), [
    staged('a.txt', 'newer'),
    staged('b', 'b'),
    staged('folder', 'x'),
  ])
  await assert.rejects(failing, { code: 'name_taken', status: 409 })
  assert.equal(await readFile(join(dir, 'a.txt'), 'utf8'), 'new')
  assert.deepEqual(await published(dir), ['a.txt', 'folder'])
  assert.deepEqual(
    (await records(dir)).map(({ id }) => id),
    ['1', '2'],
  )
  assert.deepEqual(await leftovers(), [])
})

test('reject: refused before the bytes and at the last moment, and nothing of the upload stays', async t => {
  const { storage, dir, leftovers } = await local(t, { onConflict: 'reject' })
  await storage.accepts?.('a.txt')
  await storage.publish(facts('1'), [staged('a.txt', 'old')])
  await assert.rejects(async () => storage.accepts?.('a.txt'), { code: 'name_taken' })
  await assert.rejects(storage.publish(facts('2'), [staged('b.txt', 'b'), staged('a.txt', 'new')]), {
    code: 'name_taken',
  })
  assert.deepEqual(await published(dir), ['a.txt'])
  assert.equal(await readFile(join(dir, 'a.txt'), 'utf8'), 'old')
  assert.deepEqual(await leftovers(), [])
})

test('files are 0644 whatever the umask and the mode they were staged with, hidden folders are private', async t => {
  const umask = process.umask(0o077)
  t.after(() => process.umask(umask))
  const { storage, dir, stageInFile } = await local(t)
  await storage.publish(facts('1'), [
    staged('m', 'm'),
    staged('d', 'd', await stageInFile?.(Buffer.from('d'))),
  ])
  for (const name of ['m', 'd']) assert.equal((await stat(join(dir, name))).mode & 0o777, 0o644)
  assert.equal((await stat(join(dir, '.uploadr'))).mode & 0o777, 0o700)
})

test('a record holds what the upload was', async t => {
  const { storage, dir } = await local(t)
  const time = new Date('2024-02-03T04:05:06.789Z')
  const files = await storage.publish({ id: 'i', title: 'ü', time, from: '::1' }, [staged('a', 'abc')])
  assert.deepEqual(await records(dir), [
    { id: 'i', title: 'ü', time: '2024-02-03T04:05:06.789Z', from: '::1', files },
  ])
})

test('the hidden folder is not a name that can be stored over', async t => {
  const { storage, dir } = await local(t, { onConflict: 'replace' })
  await assert.rejects(storage.publish(facts('1'), [staged('.uploadr', 'x')]), { code: 'name_taken' })
  assert.ok((await stat(join(dir, '.uploadr'))).isDirectory())
})

test('names', () => {
  assert.match(alternativeName('a.tar.gz'), /^a\.tar_[A-Za-z0-9]{7}\.gz$/)
  assert.match(alternativeName('.hidden'), /^\.hidden_[A-Za-z0-9]{7}$/)
  for (const name of ['字'.repeat(85), `${'a'.repeat(251)}.txt`, `${'🚀'.repeat(60)}.jpeg`]) {
    const alternative = alternativeName(name)
    assert.ok(Buffer.byteLength(alternative) <= 255, name)
    assert.ok(isPlainName(alternative))
    assert.equal(Buffer.from(alternative).toString(), alternative, 'characters are cut whole')
  }
  assert.equal(fitName('short.txt'), 'short.txt')
  for (const name of ['', '.', '..', 'a/b', 'a\0b', 'a'.repeat(256)]) assert.equal(isPlainName(name), false)
})

test('a workspace is abandoned when its process is gone, and only then', async t => {
  const parent = await tempDir(t)
  const mine = await Workspace.create(parent)
  t.after(() => mine.remove())
  const name = mine.path.slice(parent.length + 1)
  const dead = join(parent, name.replace(/^uploadr-\d+-\d+/, 'uploadr-0-1'))
  const reused = join(parent, name.replace(/^(uploadr-\d+)-\d+/, '$1-1'))
  const foreign = join(parent, name.replace(/-[0-9a-f]{8}-([0-9a-f]{12})$/, '-00000000-$1'))
  for (const path of [dead, reused, foreign, join(parent, 'somebody-elses')]) await mkdir(path)
  await symlink(parent, join(parent, name.replace(/^uploadr-\d+/, 'uploadr-1')))
  assert.deepEqual((await mine.abandoned()).sort(), [dead, reused].sort())
  const adopted = await Workspace.adopt(dead)
  assert.equal(await Workspace.adopt(dead), undefined)
  assert.deepEqual(await mine.abandoned(), [reused])
  assert.ok((await stat(String(adopted))).isDirectory())
})

test('a workspace of a zombie is abandoned: its parent does not wait, and the process is dead', async t => {
  const parent = await tempDir(t)
  const mine = await Workspace.create(parent)
  t.after(() => mine.remove())
  // The shell becomes a sleep, which never asks for its child. That ends when its standard input does.
  const shell = spawn('sh', ['-c', 'cat <&3 3<&- & echo $!; exec 3<&-; exec sleep 1000'], {
    stdio: ['ignore', 'pipe', 'inherit', 'pipe'],
  })
  const ended = once(shell, 'exit')
  t.after(async () => {
    shell.kill('SIGKILL')
    await ended
  })
  const pid = String((await once(shell.stdout as Readable, 'data'))[0]).trim()
  const stat = async () => (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ') ?? []
  const started = (await stat())[19]
  const theirs = join(
    parent,
    mine.path.slice(parent.length + 1).replace(/^uploadr-\d+-\d+/, `uploadr-${pid}-${started}`),
  )
  await mkdir(theirs)
  assert.deepEqual(await mine.abandoned(), [])
  ;(shell.stdio[3] as Writable).end()
  await until(stat, ([state]) => state === 'Z')
  assert.deepEqual(await mine.abandoned(), [theirs])
})
