/**
 * Random input from seeds: requests over a real socket, names, ids, options of the command line.
 * FUZZ_SECONDS says how long (20). A failure names its seed: FUZZ_SEED=… tries that one alone.
 */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { readFile, rm } from 'node:fs/promises'
import type net from 'node:net'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { main, type Process } from '../src/cli.ts'
import { duration, integer, list, size } from '../src/commands/options.ts'
import type { Receipt } from '../src/index.ts'
import { alternativeName, isPlainName } from '../src/storage/name.ts'
import { cleanFileName } from '../src/upload/filename.ts'
import { type FuzzCase, LIMITS, makeCase } from './fuzz/form.ts'
import { type Reading, readWithFastifyBusboy } from './fuzz/oracle.ts'
import { Random } from './fuzz/random.ts'
import { KEPT_SEEDS } from './fuzz/seeds.ts'
import {
  connect,
  getProgress,
  multipart,
  parseAnswer,
  published,
  type RawAnswer,
  readAnswer,
  sha256,
  startServer,
  type TestServer,
  TITLE,
  temporaryFiles,
  until,
} from './support.ts'

const SECONDS = Number(process.env['FUZZ_SECONDS'] ?? 20)
const ONE_SEED = process.env['FUZZ_SEED']
/** Seeds from here on, one after the other; at random where it is not set. */
const FROM = process.env['FUZZ_FROM']
/** Far beyond what any request may take here: whoever waits so long waits for ever. */
const HANG_MS = 20_000
/** Servers that are tried side by side; each has one client, so that everything in it is that client's. */
const LANES = 4

const GOOD_FILE = Buffer.from('a second request')
const GOOD = multipart([TITLE, { name: 'file', filename: 'second', type: 'x/y', body: GOOD_FILE }])
const GOOD_REQUEST = Buffer.concat([
  Buffer.from(
    'POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: multipart/form-data; ' +
      `boundary=BOUNDARY\r\nContent-Length: ${GOOD.length}\r\n\r\n`,
  ),
  GOOD,
])

/** Fails where a seed fails, with the command that tries it again. */
async function withSeed(seed: number, act: () => Promise<void> | void): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  // Whatever waits for ever, this side or the other parser included, names its seed too.
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('it does not end')), 3 * HANG_MS)
  })
  try {
    await Promise.race([act(), hang])
  } catch (cause) {
    const again = `FUZZ_SEED=${seed} node --test dist/test/fuzz.test.js`
    throw new Error(`seed ${seed}: ${(cause as Error).message}\nAgain with: ${again}`, { cause })
  } finally {
    clearTimeout(timer)
  }
}

/** Runs kept seeds, then new ones until the time is over; how many there were. */
async function forSeeds(share: number, act: (seed: number) => Promise<void> | void): Promise<number> {
  if (ONE_SEED !== undefined) {
    await withSeed(Number(ONE_SEED), () => act(Number(ONE_SEED)))
    return 1
  }
  const end = performance.now() + SECONDS * 1000 * share
  let count = 0
  let tried = 0
  for (const seed of KEPT_SEEDS) {
    await withSeed(seed, () => act(seed))
    count++
  }
  while (performance.now() < end) {
    const seed = FROM === undefined ? randomInt(2 ** 32) : Number(FROM) + tried++
    await withSeed(seed, () => act(seed))
    count++
  }
  return count
}

/** All answers on a connection, in order. */
function splitAnswers(raw: Buffer): RawAnswer[] {
  const answers: RawAnswer[] = []
  for (let rest = raw; rest.length > 0; ) {
    const end = rest.indexOf('\r\n\r\n')
    if (end < 0) break
    const length = Number(/content-length: (\d+)/i.exec(rest.subarray(0, end).toString('latin1'))?.[1] ?? 0)
    answers.push(parseAnswer(rest.subarray(0, end + 4 + length).toString()))
    rest = rest.subarray(end + 4 + length)
  }
  return answers
}

/** Sends what the case says, as it says; the answers, once the connection is closed. */
async function send(url: string, { contentType, body, sending }: FuzzCase): Promise<RawAnswer[]> {
  const socket = connect(url)
  await once(socket, 'connect')
  const id = `fuzz-${ids++}`
  const received: Buffer[] = []
  socket.on('data', data => received.push(data))
  const closed = new Promise<void>(resolve => socket.once('close', () => resolve()))
  const { chunked, lie, pipelined, leavesAfter, breaksChunk } = sending
  const length = chunked ? 'Transfer-Encoding: chunked' : `Content-Length: ${Math.max(0, body.length + lie)}`
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${contentType}\r\n${length}\r\nX-Progress-ID: ${id}\r\n` +
      `Connection: ${pipelined ? 'keep-alive' : 'close'}\r\n\r\n`,
  )
  let at = 0
  for (const [i, piece] of sending.pieces.entries()) {
    if (socket.destroyed) break
    const bytes = body.subarray(at, Math.min(at + piece, leavesAfter ?? body.length))
    if (bytes.length > 0) {
      const head = i === breaksChunk ? 'zz\r\n' : `${bytes.length.toString(16)}\r\n`
      const framed = chunked ? Buffer.concat([Buffer.from(head), bytes, Buffer.from('\r\n')]) : bytes
      if (!socket.write(framed)) await waitForDrain(socket)
    }
    at += piece
    if (leavesAfter !== undefined && at >= leavesAfter) break
    if (i % 16 === 0) await new Promise(resolve => setImmediate(resolve))
  }
  if (leavesAfter !== undefined) socket.destroy()
  else {
    if (chunked) socket.write('0\r\n\r\n')
    if (pipelined) socket.write(GOOD_REQUEST)
    // Who promised more than there is can only leave: half, so that an answer can still come.
    if (lie > 0) socket.end()
  }
  const hang = setTimeout(() => socket.destroy(new Error('hang')), HANG_MS)
  let error: Error | undefined
  socket.once('error', thrown => (error = thrown))
  await closed
  clearTimeout(hang)
  assert.notEqual(error?.message, 'hang', 'neither an answer nor an end')
  // Who leaves is gone before the server knows that he ever came.
  if (leavesAfter !== undefined) await ended(url, id)
  return splitAnswers(Buffer.concat(received))
}

async function ended(url: string, id: string): Promise<void> {
  const deadline = performance.now() + HANG_MS
  await until(
    () => getProgress(url, id),
    ({ state }) => {
      assert.ok(performance.now() < deadline, 'the upload of a client that left has no end')
      return state === 'done' || state === 'error'
    },
  )
}

let ids = 0

function waitForDrain(socket: net.Socket): Promise<void> {
  return new Promise(resolve => {
    const done = () => {
      socket.off('drain', done)
      socket.off('close', done)
      resolve()
    }
    socket.on('drain', done)
    socket.on('close', done)
  })
}

async function idle(at: TestServer): Promise<void> {
  const deadline = performance.now() + HANG_MS
  await until(
    async () => {
      assert.ok(performance.now() < deadline, 'uploads are still running')
      return (await fetch(new URL('metrics', at.url))).text()
    },
    text => text.includes('uploadr_uploads_running 0\n'),
  )
}

const digests = (files: readonly { bytes: Buffer }[]) => files.map(({ bytes }) => sha256(bytes)).sort()

/** All that a receipt speaks of, by digest; but for files that are texts to the other parser, and garbled by that. */
function contentsOf({ title, files, fields = {} }: Receipt, reading: Reading): string[] {
  const values = [title, ...Object.values(fields).flat()].filter(value => value !== '')
  const bytes = files.map(file => String(file.sha256))
  const garbled = valuesOf(reading).filter(value => value.includes('\ufffd') && !values.includes(value))
  const seen = new Set([...digests(reading.files), ...digests(textsOf(reading))])
  const unseen = bytes.filter(digest => !seen.has(digest)).slice(0, garbled.length)
  assert.equal(unseen.length, garbled.length, 'the other parser has more of it')
  const known = bytes.filter(digest => !unseen.includes(digest))
  return [...known, ...values.map(value => sha256(Buffer.from(value)))].sort()
}

/** The last title, stripped as the form strips it. */
function titleOf({ fields }: Reading): string | undefined {
  return fields.findLast(([name]) => name === 'title')?.[1].trim()
}

function valuesOf({ fields }: Reading): string[] {
  const title = fields.findLastIndex(([name]) => name === 'title')
  return fields.map(([, value], i) => (i === title ? value.trim() : value))
}

function textsOf(reading: Reading): { bytes: Buffer }[] {
  return valuesOf(reading)
    .filter(value => value !== '' && !value.includes('\ufffd'))
    .map(value => ({ bytes: Buffer.from(value) }))
}

async function tryCase(at: TestServer, made: FuzzCase): Promise<string> {
  const { verdict, sending } = made
  const answers = await send(at.url, made)
  await idle(at)
  assert.deepEqual(await temporaryFiles(at), [], 'temporary files are left')
  const [first, second] = answers
  const names = await published(at.dir)
  const there = new Map<string, string>()
  for (const name of names) there.set(name, sha256(await readFile(join(at.dir, name))))

  // What was stored is what receipts say, whole, and nothing else.
  const receipts = answers.filter(({ status }) => status === 201).map(({ json }) => json)
  const promised = new Map<string, string>()
  for (const { files } of receipts) {
    for (const { name, sha256 } of files) promised.set(name, sha256)
  }
  const isHonest = sending.lie === 0 && sending.breaksChunk === undefined
  if (sending.leavesAfter === undefined && isHonest) assert.deepEqual(there, promised)
  // Who breaks the framing may be reset before the answer arrives, but what is stored is whole.
  for (const [name, digest] of promised) assert.equal(there.get(name), digest)
  if (!isHonest && verdict === 'unknown' && made.isWhole) {
    const known = new Set([...made.files.map(({ bytes }) => sha256(bytes)), sha256(GOOD_FILE)])
    for (const [name, digest] of there) assert.ok(known.has(digest), `${name} is torn`)
  }

  if (verdict === 'stored') {
    assert.equal(first?.status, 201, first?.text)
    assert.equal(first?.json.title, made.title.trim())
    const files = (first?.json.files ?? []) as { name: string; sentAs: string; sha256: string }[]
    const wanted = made.files.map(({ name, bytes }) => [name, sha256(bytes)])
    assert.deepEqual(
      files.map(({ sentAs, sha256 }) => [sentAs, sha256]),
      wanted,
    )
    assert.deepEqual(first?.json.fields ?? {}, made.fields)
  } else if (verdict === 'refused') {
    assert.ok(first && first.status >= 400 && first.status < 500, `${first?.status} ${first?.text}`)
    assert.match(String(first.json?.code), /^[a-z_]+$/)
  }
  for (const { status, text } of answers) assert.ok(status < 500, text)
  if (second?.status === 201) assert.equal(second.json.files[0].sha256, sha256(GOOD_FILE))

  // The other parser, where it was all sent and as one body. Of one that is refused it may wait for the end for ever.
  const isLate = sending.leavesAfter !== undefined && names.length > 0
  if (isHonest && (verdict === 'stored' || first?.status === 201 || isLate)) {
    const reading = await readWithFastifyBusboy(made.boundary, made.body)
    const files = reading.files.filter(({ bytes }) => bytes.length > 0)
    if (first?.status === 201) {
      assert.equal(reading.failed, false, 'stored, and the other parser says it is broken')
      // Whether a part is a file or a field, it is there.
      assert.deepEqual(
        contentsOf(first.json, reading),
        [...digests(files), ...digests(textsOf(reading))].sort(),
      )
      assert.equal(first.json.title, titleOf(reading))
    }
    // Left after its last byte: all of it or nothing.
    if (isLate) {
      assert.deepEqual([...there.values()].sort(), digests(files))
    }
  }
  for (const name of names) await rm(join(at.dir, name))
  return first === undefined ? 'closed' : String(first.status)
}

test('requests', async t => {
  const outcomes = new Map<string, number>()
  const lane = async (_: unknown, i: number) => {
    const ways = [
      { memoryMax: 20_000, memoryTotal: 30_000 },
      { memoryMax: 20_000, directMin: 0 },
    ]
    const at = await startServer(t, { limits: LIMITS, ...ways[i % 2] })
    return forSeeds(0.8, async seed => {
      const outcome = await tryCase(at, makeCase(seed))
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
    })
  }
  const counts = await Promise.all(Array.from({ length: ONE_SEED ? 1 : LANES }, lane))
  report(t, 'requests', counts)
  t.diagnostic(JSON.stringify(Object.fromEntries([...outcomes].sort())))
})

function report(t: TestContext, what: string, counts: number[]): void {
  t.diagnostic(`${counts.reduce((sum, count) => sum + count, 0)} ${what}`)
}

/** Characters from every corner, lone surrogates among them. */
function anyText(random: Random, length: number): string {
  const ranges = [0x20, 0x7f, 0xa0, 0x7ff, 0x2010, 0x202f, 0x2066, 0xd800, 0xdfff, 0xe000, 0xfeff, 0x10ffff]
  return random
    .times(random.below(length), () => {
      if (random.chance(0.3))
        return random.pick([...'./\\%"\0\r\n\t ', '..', '%22', '%00', '\u202e', '\x1b[2J'])
      const from = random.pick([0, ...ranges])
      return String.fromCodePoint(Math.min(0x10ffff, from + random.below(64)))
    })
    .join('')
}

test('names', async t => {
  const count = await forSeeds(0.05, seed => {
    const random = new Random(seed)
    const sent = anyText(random, random.chance(0.1) ? 1000 : 40)
    const name = cleanFileName(sent)
    if (name === undefined) return
    assert.ok(isPlainName(name), JSON.stringify(name))
    assert.doesNotMatch(name, /(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029]/u)
    assert.doesNotMatch(name, /(?![\u200c\u200d])(?!\p{VS})\p{DI}/u)
    // Joiners stand between what they join: never first, last, twice, nor beside ASCII.
    assert.doesNotMatch(name, /(^|[\p{ASCII}\u200c\u200d])[\u200c\u200d]|[\u200c\u200d]($|\p{ASCII})/u)
    assert.match(name, /[^\s\p{DI}\u2800]/u)
    assert.ok(Buffer.byteLength(name) <= 255)
    assert.equal(Buffer.from(name).toString(), name, 'it is not what the disk gives back')
    const other = alternativeName(name)
    assert.ok(isPlainName(other) && other !== name, JSON.stringify(other))
  })
  report(t, 'names', [count])
})

test('ids', async t => {
  const at = await startServer(t)
  const count = await forSeeds(0.1, async seed => {
    const random = new Random(seed)
    const printable = random.text(1 + random.below(random.chance(0.1) ? 200 : 20), 'aZ09._~-')
    const id = random.chance(0.5) ? printable : anyText(random, 40)
    const isId = /^[A-Za-z0-9._~-]{1,128}$/.test(id)
    const encoded = Buffer.from(id).toString('latin1')
    const [line, header] = random.pick([
      [`GET /progress/${encoded} HTTP/1.1`, ''],
      [
        `GET /progress?X-Progress-ID=${random.chance(0.5) ? encodeURIComponent(Buffer.from(id).toString()) : encoded} HTTP/1.1`,
        '',
      ],
      ['GET /progress HTTP/1.1', `X-Progress-ID: ${encoded}\r\n`],
      ['POST / HTTP/1.1', `X-Progress-ID: ${encoded}\r\nContent-Length: 0\r\n`],
    ])
    const socket = connect(at.url)
    const answer = readAnswer(socket)
    socket.write(Buffer.from(`${line}\r\nHost: localhost\r\n${header}Connection: close\r\n\r\n`, 'latin1'))
    socket.end()
    const { status, json, text } = await answer
    if (isId && line?.startsWith('GET')) assert.deepEqual([status, typeof json.state], [200, 'string'], text)
    else if (isId) assert.equal(status, 415, text)
    // An id that ends the line, or the request, makes another request of it: never a server's error.
    else assert.ok(status < 500, `${status} ${text}`)
  })
  report(t, 'ids', [count])
})

test('options', async t => {
  const parsers = { size, duration, integer: integer(0, 65_535), list }
  const count = await forSeeds(0.05, async seed => {
    const random = new Random(seed)
    const text = random.chance(0.5)
      ? anyText(random, 12)
      : random.text(1 + random.below(8), '0123456789.,-+eExkKmMgGiIbBsShd ')
    for (const parse of Object.values(parsers)) {
      try {
        const value = parse(text)
        if (typeof value === 'number')
          assert.ok(Number.isSafeInteger(value) && value >= 0, `${text}: ${value}`)
      } catch (error) {
        assert.equal((error as { code?: string }).code, 'commander.invalidArgument', String(error))
      }
    }
    // A whole line that is wrong somewhere: 2, a word on stderr, nothing on stdout, no server.
    const flags = [
      '--max-size',
      '--idle-timeout',
      '--max-files',
      '--port',
      '--log',
      '--quota',
      '--title',
      '--min-free',
    ]
    const args = random.times(random.below(4), () => [random.pick(flags), anyText(random, 6)]).flat()
    const stdout = new PassThrough()
    const stderr = new PassThrough()
    const host = {
      ...{ stdin: process.stdin, stdout, stderr, env: {}, on: () => {}, off: () => {} },
      ...{ exit: () => {}, kill: () => assert.fail('it died'), exitCode: undefined as number | undefined },
      argv: ['node', 'uploadr', 'serve', ...args, '--max-fields', 'many'],
    }
    await main(host as unknown as Process)
    assert.equal(host.exitCode, 2, JSON.stringify(args))
    assert.equal(stdout.read(), null)
    assert.match(String(stderr.read()), /^uploadr: [^\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]+\n/u)
  })
  report(t, 'options', [count])
})
