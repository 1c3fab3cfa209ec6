import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { type LiveUpload, MemoryProgressStore, type Outcome } from '../src/index.ts'
import { progressContract } from './contracts/progress-contract.ts'

progressContract('memory', async () => new MemoryProgressStore())

const live: LiveUpload = {
  from: '192.0.2.1',
  progress: () => ({ state: 'uploading', received: 1, phase: 'receiving' }),
}
const done: Outcome = { state: 'done', received: 1, size: 1 }

test('retention counts from the end, and a live upload never expires', () => {
  let now = 0
  const store = new MemoryProgressStore({ ttl: 1000, now: () => now })
  store.begin('a', live)
  now = 1_000_000
  assert.equal(store.get('a').state, 'uploading')
  store.end('a', done)
  now += 1000
  assert.equal(store.get('a').state, 'done')
  now += 1
  assert.equal(store.get('a').state, 'starting')
})

test('a forgotten id is free for everybody', () => {
  let now = 0
  const store = new MemoryProgressStore({ ttl: 1000, now: () => now })
  store.begin('a', live)
  store.end('a', done)
  now = 1000
  assert.throws(() => store.begin('a', { ...live, from: '192.0.2.2' }), { code: 'progress_id_in_use' })
  now = 1001
  store.begin('a', { ...live, from: '192.0.2.2' })
  assert.equal(store.get('a').state, 'uploading')
})

test('the number of records is bounded: ended ones make room, the oldest first, live ones fill it', () => {
  const store = new MemoryProgressStore({ max: 3 })
  for (const id of ['a', 'b', 'c']) {
    store.begin(id, live)
    store.end(id, done)
  }
  store.begin('d', live)
  assert.deepEqual(
    ['a', 'b', 'c', 'd'].map(id => store.get(id).state),
    ['starting', 'done', 'done', 'uploading'],
  )
  store.begin('e', live)
  store.begin('f', live)
  assert.equal(store.size, 3)
  assert.throws(() => store.begin('g', live), { code: 'too_many_uploads', status: 503 })
  assert.equal(store.live, 3)
  store.end('d', done)
  assert.equal(store.size, 3)
  store.begin('g', live)
  assert.equal(store.get('d').state, 'starting')
})

test('forgotten records are gone from memory, not only from sight', () => {
  let now = 0
  const store = new MemoryProgressStore({ ttl: 10, now: () => now })
  for (let i = 0; i < 1000; i++) {
    store.begin(`${i}`, live)
    store.end(`${i}`, done)
    now++
  }
  assert.ok(store.size <= 12, `${store.size} records are kept`)
})

test('ids used again and again leave nothing behind, while an older record is still remembered', () => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const store = new MemoryProgressStore({ ttl: 1e12, max: 1000 })
  store.end('remembered', done)
  const use = () => {
    for (let i = 0; i < 300_000; i++) {
      store.begin(`${i % 3}`, live)
      store.end(`${i % 3}`, done)
    }
    collect()
    return process.memoryUsage().heapUsed
  }
  const before = use()
  const grown = use() - before
  assert.ok(grown < 4 * 1024 ** 2, `${grown} bytes more`)
  assert.equal(store.get('remembered').state, 'done')
})
