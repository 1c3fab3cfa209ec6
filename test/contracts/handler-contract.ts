import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { type TestContext, test } from 'node:test'
import { compose, type FileSink, type StagedFile, UploadError, type UploadHandler } from '../../src/index.ts'

export interface HandlerUnderTest {
  handler: UploadHandler
  /** Whatever the handler has left in files, rows, buckets: empty when every staged file is discarded. */
  leftovers?(): Promise<readonly string[]>
}

export interface ContractOptions {
  /** The Content-Length its uploads have; absent for none. */
  size?: number
}

/** What every upload handler must do. Call it once per kind, in a file that node:test runs. */
export function handlerContract(
  kind: string,
  make: (t: TestContext) => Promise<HandlerUnderTest>,
  { size }: ContractOptions = {},
): void {
  const reason = new UploadError('truncated_body', 'the client left')
  const file = { field: 'file', name: 'ünï code.bin', type: 'a/b' }
  const upload = () => ({
    id: 'contract',
    size,
    received: 0,
    phase: 'receiving' as const,
    headers: {},
    from: '127.0.0.1',
    time: new Date(),
  })

  async function begin(t: TestContext) {
    const under = await make(t)
    const chain = compose([under.handler])
    const running = upload()
    await chain.begin(running)
    const unclaimed = () => {
      throw new UploadError('handler_failed', 'the handler passed the file on to nobody')
    }
    return {
      chain,
      running,
      open: async (name = file.name) => chain.open({ ...file, name }, unclaimed, running),
      leftovers: async () => (await under.leftovers?.()) ?? [],
    }
  }

  async function bytesOf(staged: StagedFile): Promise<Uint8Array> {
    return staged.bytes ?? readFile(String(staged.path))
  }

  async function assertStaged(staged: StagedFile | undefined, name: string, bytes: Buffer): Promise<void> {
    assert.ok(staged, 'the file was staged')
    assert.deepEqual([staged.field, staged.name, staged.type], [file.field, name, file.type])
    assert.equal(staged.size, bytes.length)
    assert.equal(staged.sha256, createHash('sha256').update(bytes).digest('hex'))
    assert.ok(bytes.equals(await bytesOf(staged)), 'what was staged is what was written')
  }

  async function writeAll(sink: FileSink, bytes: Buffer, chunk: number): Promise<void> {
    for (let at = 0; at < bytes.length; at += chunk) await sink.write(bytes.subarray(at, at + chunk))
  }

  for (const [length, chunk] of [
    [0, 1],
    [1, 1],
    [5000, 1],
    [65_536, 65_536],
    [65_537, 4096],
    [3_000_000, 65_536],
    [5_000_000, 1000],
  ] as const) {
    test(`handler ${kind}: ${length} bytes in chunks of ${chunk}`, async t => {
      const { open, leftovers, chain, running } = await begin(t)
      const bytes = randomBytes(length)
      const sink = await open()
      await writeAll(sink, bytes, chunk)
      const staged = await sink.close()
      await assertStaged(staged, file.name, bytes)
      await staged?.discard()
      await staged?.discard()
      await chain.interrupt(running, reason)
      assert.deepEqual(await leftovers(), [])
    })
  }

  test(`handler ${kind}: a write it does not wait for may be followed at once; the chunk is the sink's`, async t => {
    const { open } = await begin(t)
    const chunks = Array.from({ length: 200 }, (_, i) => randomBytes(1 + ((i * 977) % 30_000)))
    const sink = await open()
    for (const chunk of chunks) {
      const wait = sink.write(chunk)
      if (wait) await wait
    }
    const staged = await sink.close()
    await assertStaged(staged, file.name, Buffer.concat(chunks))
    await staged?.discard()
  })

  test(`handler ${kind}: many files of one upload at once, one name for two of them`, async t => {
    const { open, leftovers } = await begin(t)
    const names = ['a', 'a', 'b', 'c', '.hidden', '字'.repeat(85)]
    const bodies = names.map((_, i) => randomBytes(i * 40_000 + 1))
    const sinks = await Promise.all(names.map(name => open(name)))
    await Promise.all(sinks.map((sink, i) => writeAll(sink, bodies[i] as Buffer, 7000)))
    const staged = await Promise.all(sinks.map(sink => sink.close()))
    for (const [i, each] of staged.entries())
      await assertStaged(each, names[i] as string, bodies[i] as Buffer)
    for (const each of staged) await each?.discard()
    assert.deepEqual(await leftovers(), [])
  })

  for (const length of [0, 100, 200_000, 4_000_000]) {
    test(`handler ${kind}: aborted after ${length} bytes it leaves nothing`, async t => {
      const { open, leftovers, chain, running } = await begin(t)
      const sink = await open()
      await writeAll(sink, randomBytes(length), 65_536)
      await sink.abort(reason)
      await chain.interrupt(running, reason)
      assert.deepEqual(await leftovers(), [])
    })
  }
}
