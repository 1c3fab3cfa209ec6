/** A hundred uploads at once through the real binary: nothing lost, nothing leaked. */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { openFile, push, streamSource } from '../src/index.ts'
import {
  assertStored,
  published,
  randomFile,
  records,
  serve,
  tempDir,
  temporaryFiles,
  until,
} from './support.ts'

const UPLOADS = 100
/** Resident size of the server; what it holds for uploads is bounded by 64 MiB in memory and 16 MiB of windows. */
const MEMORY_CEILING = 512 * 1024 * 1024

async function descriptors(pid: number): Promise<string[]> {
  return (await readdir(`/proc/${pid}/fd`)).sort()
}

async function peakMemory(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024
}

/** The sizes where things change, and everything in between. */
function sizeOf(i: number): number {
  const edges = [1, 2, 65_535, 65_536, 65_537, 1_048_576, 2_621_440, 2_621_441, 8_000_000]
  return edges[i] ?? (i % 5 === 0 ? randomInt(4_000_000) : randomInt(200_000)) + 1
}

async function hundredPushes(t: TestContext, url: string, dir: string, names: (i: number) => string) {
  const from = await tempDir(t)
  await Promise.all(
    Array.from({ length: UPLOADS }, async (_, i) => {
      const bytes = randomFile(sizeOf(i))
      const path = join(from, `${i}.bin`)
      await writeFile(path, bytes)
      // Every third has no length to announce.
      const source = i % 3 === 0 ? streamSource(chunksOf(bytes), `${i}.bin`) : await openFile(path)
      const result = await push({ url, source, name: names(i), interval: 50 })
      assert.equal(result.size, bytes.length)
      const [stored] = result.receipt.files
      assert.ok(stored)
      await assertStored(dir, stored, bytes)
    }),
  )
}

async function* chunksOf(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 50_000) yield bytes.subarray(at, at + 50_000)
}

test(`${UPLOADS} pushes at once of mixed sizes: every byte arrives, no descriptor stays open`, async t => {
  const server = await serve(t)
  const quiet = async () =>
    (await fetch(new URL('metrics', server.url), { headers: { connection: 'close' } })).text()
  // The first upload starts what is started once: the digest's thread, the thread pool.
  await push({ url: server.url, source: streamSource(chunksOf(randomFile(3_000_000)), 'first') })
  await until(quiet, text => /uploads_running 0/.test(text))
  const before = (await descriptors(server.pid)).length

  await hundredPushes(t, server.url, server.dir, i => `${i}.bin`)
  assert.equal((await published(server.dir)).length, UPLOADS + 1)
  // All under one name: each gets one of its own.
  await hundredPushes(t, server.url, server.dir, () => 'same.bin')
  const all = await records(server.dir)
  assert.equal(all.length, 2 * UPLOADS + 1)
  const names = all.flatMap(record => record.files.map(file => file.name))
  assert.deepEqual(await published(server.dir), names.sort())
  assert.deepEqual(await temporaryFiles(server), [])

  const after = await until(
    () => descriptors(server.pid),
    open => open.length <= before,
  )
  assert.ok(after.length <= before)
  const peak = await peakMemory(server.pid)
  t.diagnostic(`the server's memory peaked at ${Math.round(peak / 1024 / 1024)} MiB`)
  assert.ok(peak < MEMORY_CEILING, `${peak} bytes of memory`)
})
