import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { LiveUpload, Outcome, ProgressStore } from '../../src/index.ts'

/** What every ProgressStore must do. Call it once per kind, in a file that node:test runs. */
export function progressContract(kind: string, make: (t: TestContext) => Promise<ProgressStore>): void {
  const upload = (received: number, size?: number, from = '192.0.2.1'): LiveUpload => ({
    from,
    progress: () => ({
      state: 'uploading',
      received,
      ...(size !== undefined && { size }),
      phase: 'receiving',
    }),
  })
  const done = (size: number): Outcome => ({ state: 'done', received: size, size })
  const failed: Outcome = {
    state: 'error',
    status: 413,
    code: 'body_too_large',
    detail: 'too large',
    received: 3,
  }

  test(`progress store ${kind}: an id nobody used is starting`, async t => {
    const store = await make(t)
    for (const id of ['never', '__proto__', 'constructor'])
      assert.deepEqual(await store.get(id), { state: 'starting' })
  })

  test(`progress store ${kind}: starting, uploading, done`, async t => {
    const store = await make(t)
    await store.begin('a', upload(5, 10))
    assert.deepEqual(await store.get('a'), { state: 'uploading', received: 5, size: 10, phase: 'receiving' })
    await store.end('a', done(10))
    assert.deepEqual(await store.get('a'), done(10))
    assert.deepEqual(await store.get('b'), { state: 'starting' })
  })

  test(`progress store ${kind}: an error keeps its status, code and numbers; no size is no size`, async t => {
    const store = await make(t)
    await store.begin('a', upload(3))
    assert.deepEqual(await store.get('a'), { state: 'uploading', received: 3, phase: 'receiving' })
    await store.end('a', failed)
    assert.deepEqual(await store.get('a'), failed)
  })

  test(`progress store ${kind}: a live id is taken, and its upload is left alone`, async t => {
    const store = await make(t)
    await store.begin('a', upload(5, 10))
    await assert.rejects(async () => store.begin('a', upload(0, 99)), {
      code: 'progress_id_in_use',
      status: 409,
    })
    assert.deepEqual(await store.get('a'), { state: 'uploading', received: 5, size: 10, phase: 'receiving' })
  })

  test(`progress store ${kind}: an ended id may be used again, and shows the new upload`, async t => {
    const store = await make(t)
    await store.begin('a', upload(5, 10))
    await store.end('a', failed)
    await store.begin('a', upload(1, 2))
    assert.deepEqual(await store.get('a'), { state: 'uploading', received: 1, size: 2, phase: 'receiving' })
    await store.end('a', done(2))
    assert.deepEqual(await store.get('a'), done(2))
  })

  test(`progress store ${kind}: an ended id is its client's own for as long as it is remembered`, async t => {
    const store = await make(t)
    for (const outcome of [done(10), failed]) {
      await store.begin('a', upload(5, 10))
      await store.end('a', outcome)
      await assert.rejects(async () => store.begin('a', upload(0, 99, '192.0.2.2')), {
        code: 'progress_id_in_use',
        status: 409,
      })
      assert.deepEqual(await store.get('a'), outcome)
    }
    await store.begin('b', upload(0, 99, '192.0.2.2'))
    await store.begin('a', upload(1, 2))
    await store.end('a', done(2))
    // An outcome that was never live is nobody's.
    await store.end('c', failed)
    await store.begin('c', upload(0, 99, '192.0.2.2'))
  })

  test(`progress store ${kind}: uploads are apart, and hostile ids are ids`, async t => {
    const store = await make(t)
    const ids = ['a', 'A', 'a.', '__proto__', 'toString', '~'.repeat(128)]
    for (const [i, id] of ids.entries()) await store.begin(id, upload(i, 10))
    for (const [i, id] of ids.entries()) {
      assert.deepEqual(await store.get(id), { state: 'uploading', received: i, size: 10, phase: 'receiving' })
    }
  })
}
