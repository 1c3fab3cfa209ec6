import assert from 'node:assert/strict'
import { mkdir, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import {
  compose,
  disk,
  type FileSink,
  MemoryProgressStore,
  memory,
  progress,
  tap,
  type Upload,
  UploadError,
  type UploadHandler,
} from '../src/index.ts'
import { handlerContract } from './contracts/handler-contract.ts'
import { ROOT, randomFile, run, tempDir } from './support.ts'

async function diskHandler(t: TestContext, fsync = true) {
  const dir = await tempDir(t)
  const handler = disk({ dir, fsync })
  t.after(() => handler.close())
  return { handler, dir, leftovers: () => readdir(dir) }
}

/** One handler of several, each asked in turn. */
const chained = (...handlers: UploadHandler[]): UploadHandler => compose(handlers)

/** Looks at everything and changes nothing. */
const watching: UploadHandler = {
  name: 'watching',
  async open(file, next) {
    const inner = await next(file)
    return tap(inner, { write: chunk => inner.write(chunk) })
  },
}

handlerContract('memory', async () => ({ handler: memory({ max: 2 ** 30, total: 2 ** 30 }) }), {
  size: 10_000_000,
})
for (const fsync of [true, false]) handlerContract(`disk, fsync ${fsync}`, t => diskHandler(t, fsync))
for (const max of [0, 1, 70_000, 2_621_440]) {
  handlerContract(`memory of ${max} spilling to disk`, async t => {
    const { handler, leftovers } = await diskHandler(t, false)
    return { handler: chained(memory({ max }), handler), leftovers }
  })
}
handlerContract(
  'disk behind memory that is too small for the length',
  async t => {
    const { handler, leftovers } = await diskHandler(t, false)
    return { handler: chained(memory(), handler), leftovers }
  },
  { size: 10_000_000 },
)
handlerContract('disk, tapped twice', async t => {
  const { handler, leftovers } = await diskHandler(t, false)
  return { handler: chained(watching, progress(new MemoryProgressStore()), watching, handler), leftovers }
})

const upload = (id = 'x', size?: number): Upload => ({
  id,
  size,
  received: 0,
  phase: 'receiving',
  headers: {},
  from: '',
  time: new Date(),
})
const FILE = { field: 'file', name: 'a', type: 'a/b' }

test('disk: temporary files are 0600', async t => {
  const { handler, dir } = await diskHandler(t)
  const sink = (await handler.open?.(FILE, () => assert.fail(), upload())) as FileSink
  await sink.write(randomFile(2_000_000))
  const [name] = await readdir(dir)
  assert.equal((await stat(join(dir, String(name)))).mode & 0o777, 0o600)
  await sink.abort(new UploadError('truncated_body', 'x'))
})

test('disk: a folder that is not there fails the write or the close, and close cleans up', async t => {
  const handler = disk({ dir: join(await tempDir(t), 'missing') })
  t.after(() => handler.close())
  const sink = (await handler.open?.(FILE, () => assert.fail(), upload())) as FileSink
  await assert.rejects(
    async () => {
      await sink.write(Buffer.from('x'))
      await sink.close()
    },
    { code: 'storage_failed', message: 'writing a: ENOENT' },
  )
})

test('disk: every descriptor is closed again', async t => {
  const { handler } = await diskHandler(t)
  const open = async () => (await readdir('/proc/self/fd')).length
  const cycle = async (i: number) => {
    const sink = (await handler.open?.(FILE, () => assert.fail(), upload())) as FileSink
    await sink.write(randomFile(100_000))
    if (i % 2) await sink.abort(new UploadError('truncated_body', 'x'))
    else await (await sink.close())?.discard()
  }
  await cycle(0)
  const before = await open()
  await Promise.all(Array.from({ length: 40 }, (_, i) => cycle(i)))
  assert.equal(await open(), before)
})

test('disk: alone in a process it still finishes its digest', async t => {
  const dir = join(await tempDir(t), 'tmp')
  await mkdir(dir)
  const script = `
    import { disk } from ${JSON.stringify(join(ROOT, 'dist/src/index.js'))}
    const handler = disk({ dir: process.argv[1], fsync: false })
    const sink = handler.open({ field: 'f', name: 'n', type: 't' }, undefined, { size: 4_000_000 })
    for (let i = 0; i < 40; i++) await sink.write(Buffer.alloc(100_000))
    const staged = await sink.close()
    process.stdout.write(staged.sha256)
  `
  const { code, stdout, stderr } = await run(process.execPath, ['--input-type=module', '-e', script, dir])
  assert.deepEqual([code, stdout.length, stderr], [0, 64, ''])
})

test('tap: what a wrapper does not override goes to the inner sink', async () => {
  const calls: string[] = []
  const inner: FileSink = {
    write: chunk => void calls.push(`write ${chunk.length}`),
    close: async () => void calls.push('close'),
    abort: async ({ code }) => void calls.push(`abort ${code}`),
  }
  const plain = tap(inner, {})
  await plain.write(Buffer.from('ab'))
  await plain.close()
  await plain.abort(new UploadError('internal', ''))
  assert.deepEqual(calls, ['write 2', 'close', 'abort internal'])
  const own = tap(inner, { write: chunk => inner.write(chunk.subarray(1)) })
  await own.write(Buffer.from('ab'))
  assert.equal(calls.at(-1), 'write 1')
})

/** A handler that writes down what it is asked, and refuses where it is told to. */
function witness(name: string, calls: string[], refuse?: string): UploadHandler {
  const called = (what: string) => {
    calls.push(`${name} ${what}`)
    if (what === refuse) throw new Error(`${name} refuses`)
  }
  return {
    name,
    begin: () => called('begin'),
    open(file, next) {
      called('open')
      return next(file)
    },
    complete: () => called('complete'),
    published: () => called('published'),
    interrupt: () => called('interrupt'),
  }
}

test('compose: in order, file by file through all of them to the last', async () => {
  const calls: string[] = []
  const chain = compose([witness('a', calls), { name: 'silent' }, witness('b', calls), memory()])
  const running = upload('x', 100)
  await chain.begin(running)
  const sink = await chain.open(FILE, () => assert.fail(), running)
  await sink.write(Buffer.from('x'))
  const staged = await sink.close()
  await chain.complete(running, staged ? [staged] : [])
  await chain.published(running, [])
  const rounds = ['begin', 'open', 'complete', 'published'].flatMap(what => [`a ${what}`, `b ${what}`])
  assert.deepEqual(calls, rounds)
  assert.equal(staged?.handler, 'memory')
})

test('compose: only those that began are interrupted, every one of them, whatever the others do', async () => {
  const calls: string[] = []
  const chain = compose([
    witness('a', calls, 'interrupt'),
    witness('b', calls),
    witness('c', calls, 'begin'),
    witness('d', calls),
  ])
  const running = upload()
  await assert.rejects(async () => chain.begin(running), /c refuses/)
  await assert.rejects(async () => chain.interrupt(running, new UploadError('internal', '')), /a refuses/)
  assert.deepEqual(calls, ['a begin', 'b begin', 'c begin', 'a interrupt', 'b interrupt'])
})

test('compose: everyone hears that the files are published, whatever the others do', async () => {
  const calls: string[] = []
  const chain = compose([witness('a', calls, 'published'), witness('b', calls)])
  await assert.rejects(async () => chain.published(upload(), []), /a refuses/)
  assert.deepEqual(calls, ['a published', 'b published'])
  const both = compose([witness('a', calls, 'published'), witness('b', calls, 'published')])
  await assert.rejects(
    async () => both.published(upload(), []),
    ({ errors }: AggregateError) => errors.join() === 'Error: a refuses,Error: b refuses',
  )
})
