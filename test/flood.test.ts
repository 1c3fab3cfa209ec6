/**
 * Floods, each beside a normal push, which must complete. UPLOADR_FLOOD_MEASURE=1 measures how fast the
 * push is beside each and alone; without it nothing here looks at a clock.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import type net from 'node:net'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import {
  BINARY,
  connect,
  multipart,
  post,
  randomFile,
  run,
  SETTINGS,
  serve,
  sha256,
  TITLE,
  tempDir,
  until,
} from './support.ts'

const MEASURE = SETTINGS['UPLOADR_FLOOD_MEASURE'] === '1'
const THOUSAND = 1000
const PUSHED = randomFile(MEASURE ? 256 * 1024 ** 2 : 32 * 1024 ** 2)
const ROUNDS = MEASURE ? 3 : 1

interface Target {
  url: string
  dir: string
  path: string
}

async function target(t: TestContext): Promise<Target> {
  const { url, dir } = await serve(t, [
    ...['--no-fsync', '--max-uploads', '2000', '--max-uploads-per-client', '2000'],
    ...['--max-connections-per-client', '3000', '--on-conflict', 'replace', '--log', 'json'],
  ])
  const path = join(await tempDir(t), 'pushed.bin')
  await writeFile(path, PUSHED)
  return { url, dir, path }
}

/** The real push, as often as is measured; MiB a second, the median. */
async function push({ url, path }: Target): Promise<number> {
  const speeds: number[] = []
  for (let i = 0; i < ROUNDS; i++) {
    const started = performance.now()
    const { code, stdout, stderr } = await run(process.execPath, [
      BINARY,
      'push',
      path,
      '--json',
      '--url',
      url,
    ])
    assert.equal(code, 0, stderr)
    assert.match(stdout, new RegExp(sha256(PUSHED)))
    speeds.push(PUSHED.length / 1024 ** 2 / ((performance.now() - started) / 1000))
  }
  return speeds.sort((a, b) => a - b)[speeds.length >> 1] as number
}

/** The flood goes on until the push is done. */
async function beside(
  t: TestContext,
  flood: (at: Target, open: net.Socket[]) => Promise<() => Promise<void> | void>,
): Promise<void> {
  const at = await target(t)
  const alone = MEASURE ? await push(at) : 0
  const open: net.Socket[] = []
  t.after(() => {
    for (const socket of open) socket.destroy()
  })
  const stop = await flood(at, open)
  const speed = await push(at)
  await stop()
  for (const socket of open) socket.destroy()
  if (MEASURE) {
    const ratio = (speed / alone).toFixed(2)
    t.diagnostic(`${speed.toFixed(0)} MiB/s beside it, ${alone.toFixed(0)} alone: ${ratio}`)
  }
  // All gone, and it still serves.
  await until(
    async () => (await fetch(new URL('metrics', at.url))).text(),
    text => text.includes('uploadr_uploads_running 0\n'),
  )
  assert.equal((await fetch(at.url)).status, 200)
}

async function connected(url: string, count: number, open: net.Socket[]): Promise<void> {
  const sockets = Array.from({ length: count }, () => connect(url))
  open.push(...sockets)
  await Promise.all(sockets.map(socket => once(socket, 'connect')))
}

/** Writes a little to every socket, again and again. */
function trickle(open: readonly net.Socket[], text: string): () => void {
  const timer = setInterval(() => {
    for (const socket of open) if (!socket.destroyed) socket.write(text)
  }, 500)
  return () => clearInterval(timer)
}

const uploadHead =
  'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n' +
  'Content-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n'
const begun = multipart([TITLE, { name: 'file', filename: 'slow', type: 'x/y', body: '' }]).subarray(0, -16)

test('slowloris: a thousand heads that never end', t =>
  beside(t, async ({ url }, open) => {
    await connected(url, THOUSAND, open)
    for (const socket of open) socket.write('POST / HTTP/1.1\r\nHost: localhost\r\n')
    return trickle(open, 'X-More: 1\r\n')
  }))

test('a thousand idle connections', t =>
  beside(t, async ({ url }, open) => {
    await connected(url, THOUSAND, open)
    return () => {}
  }))

test('a thousand slow uploads', t =>
  beside(t, async ({ url }, open) => {
    await connected(url, THOUSAND, open)
    for (const socket of open) socket.write(Buffer.concat([Buffer.from(uploadHead), begun]))
    await until(
      async () => (await fetch(new URL('metrics', url))).text(),
      text => text.includes(`uploadr_uploads_running ${THOUSAND}\n`),
    )
    return trickle(open, 'x'.repeat(100))
  }))

test('a flood of tiny parts', t =>
  beside(t, async ({ url }) => {
    const fields = Array.from({ length: 999 }, (_, i) => ({ name: `f${i}`, body: 'x' }))
    const files = Array.from({ length: 101 }, (_, i) => ({ name: 'file', filename: `${i}`, body: 'x' }))
    const form = multipart([TITLE, ...fields, ...files])
    let going = true
    const clients = Array.from({ length: 4 }, async () => {
      while (going) assert.equal((await post(url, form)).json?.code, 'too_many_files')
    })
    return async () => {
      going = false
      await Promise.all(clients)
    }
  }))
