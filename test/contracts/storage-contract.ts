import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { type TestContext, test } from 'node:test'
import type { StagedFile, Storage, UploadFacts } from '../../src/index.ts'

/** What a storage under test is made of; `t.after` is where it cleans up. */
export interface StorageUnderTest {
  storage: Storage
  /** The bytes published under a name; undefined where there is nothing. */
  read(name: string): Promise<Uint8Array | undefined>
  /** Names of everything published. */
  names(): Promise<string[]>
  /** Ids of the uploads that have a record. */
  ids(): Promise<string[]>
  /** Everything else it has left lying about. */
  leftovers(): Promise<string[]>
  /** Stages bytes in a file instead of in memory, where the storage can take those. */
  stageInFile?(bytes: Uint8Array): Promise<string>
}

/** What every Storage must do. Call it once per kind, in a file that node:test runs. */
export function storageContract(kind: string, make: (t: TestContext) => Promise<StorageUnderTest>): void {
  const stage = async (name: string, bytes: Uint8Array, path?: string): Promise<StagedFile> => ({
    field: 'file',
    name,
    type: 'application/octet-stream',
    size: bytes.length,
    sha256: createHash('sha256').update(bytes).digest('hex'),
    handler: 'contract',
    ...(path === undefined ? { bytes } : { path }),
    discard() {},
  })
  let uploads = 0
  const facts = (): UploadFacts => ({
    id: `upload-${uploads++}`,
    title: 'a title',
    time: new Date(),
    from: '127.0.0.1',
  })

  test(`storage ${kind}: what was published is there, and recorded`, async t => {
    const under = await make(t)
    const bodies = [randomBytes(1), randomBytes(100_000), Buffer.from('x')]
    const files = await Promise.all(
      bodies.map(async (bytes, i) =>
        stage(`${i}.bin`, bytes, i === 1 ? await under.stageInFile?.(bytes) : undefined),
      ),
    )
    const upload = facts()
    const stored = await under.storage.publish(upload, files)
    assert.deepEqual(
      stored,
      files.map(({ field, name, size, type, sha256, handler }) => {
        return { field, name, sentAs: name, size, type, sha256, handler }
      }),
    )
    for (const [i, { name }] of stored.entries()) {
      assert.ok(Buffer.from((await under.read(name)) ?? []).equals(bodies[i] as Buffer), name)
    }
    assert.deepEqual((await under.names()).sort(), ['0.bin', '1.bin', '2.bin'])
    assert.deepEqual(await under.ids(), [upload.id])
    assert.deepEqual(await under.leftovers(), [])
  })

  test(`storage ${kind}: every one of many at once gets a file of its own or an error, and no file is mixed`, async t => {
    const under = await make(t)
    const bodies = Array.from({ length: 20 }, () => randomBytes(2000))
    const results = await Promise.allSettled(
      bodies.map(async (bytes, i) => under.storage.publish(facts(), [await stage(`${i % 10}.txt`, bytes)])),
    )
    const names = await under.names()
    assert.ok(names.length >= 10)
    for (const [i, result] of results.entries()) {
      if (result.status === 'rejected') assert.equal(result.reason.code, 'name_taken')
      else assert.equal(result.value[0]?.size, bodies[i]?.length)
    }
    for (const name of names) {
      const bytes = Buffer.from((await under.read(name)) ?? [])
      assert.ok(
        bodies.some(body => body.equals(bytes)),
        `${name} is none of what was sent`,
      )
    }
    assert.deepEqual(await under.leftovers(), [])
  })

  test(`storage ${kind}: a publication that fails leaves nothing`, async t => {
    const under = await make(t)
    const good = await stage('good.bin', randomBytes(3_000_000))
    const broken = await stage('broken.bin', randomBytes(10), '/nonexistent/staged')
    const inFiles = await Promise.all(
      Array.from({ length: 10 }, async (_, i) => {
        const bytes = randomBytes(1_000_000)
        return stage(`${i}.bin`, bytes, await under.stageInFile?.(bytes))
      }),
    )
    for (const files of [
      [good, broken],
      [broken, good],
      [broken, ...inFiles],
      [good, { ...good, name: '../evil' }],
    ]) {
      await assert.rejects(under.storage.publish(facts(), files), {
        name: 'UploadError',
        code: 'storage_failed',
      })
      assert.deepEqual(await under.names(), [])
      assert.deepEqual(await under.ids(), [])
      assert.deepEqual(await under.leftovers(), [])
    }
  })

  test(`storage ${kind}: an upload without files has a record all the same`, async t => {
    const under = await make(t)
    const upload = facts()
    assert.deepEqual(await under.storage.publish(upload, []), [])
    assert.deepEqual(await under.ids(), [upload.id])
  })
}
