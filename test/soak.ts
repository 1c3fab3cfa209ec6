/**
 * Mixed load on the real binary for a long while: `npm run soak`. Memory and descriptors must stay flat.
 * SOAK_MINUTES says how long (25). Draws docs/soak.svg and writes docs/soak.md from what it measured.
 */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { Receipt } from '../src/index.ts'
import {
  assertStored,
  connect,
  getProgress,
  multipart,
  type Part,
  post,
  ROOT,
  randomFile,
  readAnswer,
  serve,
  TITLE,
  temporaryFiles,
  until,
} from './support.ts'

const MINUTES = Number(process.env['SOAK_MINUTES'] ?? 25)
const CLIENTS = 12
const SAMPLE_MS = 5000
/** Modules are loaded, code is compiled and pools are filled after this share of the time. */
const WARM_UP = 0.2
/** What counts as flat: how far the median of the last fifth may be above that of the fifth after the warm-up. */
const GROWTH_MAX = 1.15

interface Sample {
  /** Minutes from the start. */
  at: number
  /** MiB. */
  rss: number
  descriptors: number
}

test(`mixed load for ${MINUTES} minutes`, { timeout: (MINUTES + 5) * 60_000 }, async t => {
  const server = await serve(t, [
    ...['--no-fsync', '--idle-timeout', '5s', '--header-timeout', '10s', '--max-size', '16mib'],
    ...['--deny-extension', 'php', '--log', 'json'],
  ])
  const { url, dir } = server
  const files = [10, 3000, 70_000, 300_000, 3_000_000, 9_000_000].map(randomFile)
  const seen = new Map<string, number>()
  const samples: Sample[] = []
  const started = performance.now()
  const minutes = () => (performance.now() - started) / 60_000
  const status = () => readFileSync(`/proc/${server.pid}/status`, 'utf8')
  const descriptors = () => readdirSync(`/proc/${server.pid}/fd`).length
  const measure = () => {
    const rss = Number(/VmRSS:\s+(\d+)/.exec(status())?.[1]) / 1024
    samples.push({ at: minutes(), rss, descriptors: descriptors() })
  }
  const some = (most: number) => files[randomInt(most)] as Buffer
  const part = (body: Buffer, filename = `f${randomInt(50)}.bin`): Part => {
    return { name: 'file', filename, type: 'application/octet-stream', body }
  }
  const head = (length: number, id = `soak-${randomInt(2 ** 40)}`) =>
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: ${id}\r\nContent-Length: ${length}\r\n` +
    'Connection: close\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n'

  async function stored(parts: Part[], options: Parameters<typeof post>[2] = {}) {
    await check(await post(url, multipart([TITLE, ...parts]), options), parts)
  }
  async function check(answer: Awaited<ReturnType<typeof post>>, parts: Part[]) {
    assert.equal(answer.status, 201, answer.text)
    for (const [i, file] of (answer.json as Receipt).files.entries()) {
      await assertStored(dir, file, parts[i]?.body as Buffer)
      await rm(join(dir, file.name))
    }
  }
  async function refused(code: string, body: Buffer, options: Parameters<typeof post>[2] = {}) {
    const answer = await post(url, body, options)
    assert.equal(answer.json?.code, code, answer.text)
  }

  /** Each with how often it comes. */
  const work: [string, number, () => Promise<void>][] = [
    ['stored: small', 30, () => stored([part(some(3))], { chunked: randomInt(2) === 0 })],
    [
      'stored: several files',
      10,
      () => stored(Array.from({ length: 2 + randomInt(20) }, () => part(some(3)))),
    ],
    ['stored: large', 8, () => stored([part(some(6)), part(some(5))], { chunk: 65_536 })],
    ['stored: in tiny pieces', 4, () => stored([part(some(2))], { chunk: 1 + randomInt(40) })],
    [
      'stored: slow',
      6,
      async () => {
        const parts = [part(files[3] as Buffer)]
        const form = multipart([TITLE, ...parts])
        const socket = connect(url)
        const answer = readAnswer(socket)
        socket.write(head(form.length))
        const pieces = 10
        for (let i = 0; i < pieces; i++) {
          socket.write(form.subarray((form.length * i) / pieces, (form.length * (i + 1)) / pieces))
          await delay(200 + randomInt(1500))
        }
        await check(await answer, parts)
      },
    ],
    [
      'refused: malformed',
      10,
      () => {
        const headers = 'Content-Disposition form-data; name="file"'
        return refused('malformed_body', multipart([TITLE, part(some(5)), { headers, body: 'x' }]))
      },
    ],
    ['refused: cut', 5, () => refused('truncated_body', multipart([TITLE, part(some(5))]).subarray(0, -30))],
    [
      'refused: too large',
      5,
      () => {
        const form = multipart([TITLE, part(some(6)), part(files[5] as Buffer), part(files[5] as Buffer)])
        return refused('body_too_large', form, { chunked: randomInt(2) === 0, chunk: 262_144 })
      },
    ],
    [
      'refused: extension',
      5,
      () => refused('extension_not_allowed', multipart([TITLE, part(some(5), 'a.php.jpg')])),
    ],
    [
      'refused: fields',
      3,
      () =>
        refused('too_many_fields', multipart(Array.from({ length: 1001 }, () => ({ name: 'a', body: 'b' })))),
    ],
    [
      'refused: silent',
      3,
      async () => {
        const form = multipart([TITLE, part(some(6))])
        const socket = connect(url)
        const answer = readAnswer(socket)
        socket.write(head(form.length))
        socket.write(form.subarray(0, form.length / 2))
        assert.equal((await answer).json?.code, 'idle_timeout')
      },
    ],
    [
      'left in the middle',
      12,
      async () => {
        const form = multipart([TITLE, part(some(6))])
        const id = `left-${randomInt(2 ** 40)}`
        const socket = connect(url)
        socket.write(head(form.length, id))
        socket.write(form.subarray(0, randomInt(form.length)))
        await delay(randomInt(300))
        socket.destroy()
        await once(socket, 'close')
      },
    ],
    [
      'page, metrics and progress',
      10,
      async () => {
        for (const path of ['', 'metrics', `progress/soak-${randomInt(100)}`]) {
          await (await fetch(new URL(path, url))).arrayBuffer()
        }
      },
    ],
    [
      'idle connection',
      4,
      async () => {
        const socket = connect(url)
        if (randomInt(2) === 0) socket.write('POST / HTTP/1.1\r\nHost: localh')
        await delay(randomInt(15_000))
        socket.destroy()
      },
    ],
  ]
  const deck = work.flatMap(([name, often, act]) => Array.from({ length: often }, () => ({ name, act })))

  async function client() {
    while (minutes() < MINUTES) {
      const { name, act } = deck[randomInt(deck.length)] as (typeof deck)[number]
      await act()
      seen.set(name, (seen.get(name) ?? 0) + 1)
      await delay(randomInt(500))
    }
  }

  // The worker for digests has descriptors of its own and starts with the first large file.
  await stored([part(files[5] as Buffer)])
  const atRest = descriptors()
  measure()
  const sampling = setInterval(measure, SAMPLE_MS)
  t.after(() => clearInterval(sampling))
  await Promise.all(Array.from({ length: CLIENTS }, client))
  clearInterval(sampling)

  const running = async () => (await fetch(new URL('metrics', url))).text()
  await until(running, text => text.includes('uploadr_uploads_running 0\n'))
  assert.deepEqual(await getProgress(url, 'unknown'), { state: 'starting' })
  // Connections that fetch keeps alive are closed by the server, after five seconds.
  await until(descriptors, count => count <= atRest)
  const atEnd = descriptors()
  assert.deepEqual(await temporaryFiles({ dir }), [])
  const flat = fifths(samples)
  await writeFile(join(ROOT, 'docs/soak.svg'), chart(samples))
  await writeFile(join(ROOT, 'docs/soak.md'), report(samples, seen, { atRest, atEnd }))
  for (const [name, count] of seen) t.diagnostic(`${name}: ${count}`)
  for (const key of ['rss', 'descriptors'] as const) {
    const medians = flat.map(part => median(part, key))
    t.diagnostic(`${key}, medians of fifths: ${medians.map(value => value.toFixed(0)).join(', ')}`)
    const [, early = 0] = medians
    assert.ok((medians.at(-1) ?? 0) <= early * GROWTH_MAX, `${key} grows`)
  }
})

/** The samples in five parts of equal length; the first is the warm-up. */
function fifths(samples: readonly Sample[]): Sample[][] {
  const part = samples.length * WARM_UP
  return Array.from({ length: 5 }, (_, i) => samples.slice(i * part, (i + 1) * part))
}

function median(samples: readonly Sample[], key: 'rss' | 'descriptors'): number {
  const sorted = samples.map(sample => sample[key]).sort((a, b) => a - b)
  return sorted[sorted.length >> 1] ?? 0
}

function report(
  samples: readonly Sample[],
  seen: ReadonlyMap<string, number>,
  { atRest, atEnd }: { atRest: number; atEnd: number },
): string {
  const row = (key: 'rss' | 'descriptors') =>
    fifths(samples)
      .map(part => median(part, key).toFixed(0))
      .join(' | ')
  const total = [...seen.values()].reduce((sum, count) => sum + count, 0)
  const work = [...seen].sort().map(([name, count]) => `| ${name} | ${count} |`)
  return `# Soak: mixed load for ${MINUTES} minutes

Made by \`npm run soak\` on ${new Date().toISOString().slice(0, 10)}: Node ${process.version}, ${os.cpus().length} cores.
${CLIENTS} clients, ${total} times something of the table below, in random order, against one
\`uploadr serve --no-fsync --idle-timeout 5s --header-timeout 10s --max-size 16mib --deny-extension php\`.
Every stored file was compared byte for byte with what was sent. At the end no upload was running and no
temporary file was left; the server had ${atRest} descriptors open before the first client came and ${atEnd} after the last had gone.

![Memory and descriptors over time](soak.svg)

| medians of | first fifth (warm-up) | second | third | fourth | last |
|---|---|---|---|---|---|
| memory (RSS), MiB | ${row('rss')} |
| open descriptors | ${row('descriptors')} |

| what clients did | times |
|---|---|
${work.join('\n')}
`
}

function chart(samples: readonly Sample[]): string {
  const width = 860
  const panel = 190
  const left = 60
  const last = samples.at(-1)?.at ?? 1
  const x = (at: number) => left + ((width - left - 20) * at) / last
  const panels = [
    { key: 'rss' as const, title: 'Memory of the server (RSS, MiB)', color: '#2563eb' },
    { key: 'descriptors' as const, title: 'Open descriptors', color: '#c2410c' },
  ].map(({ key, title, color }, i) => {
    const top = 40 + i * (panel + 70)
    const highest = niceCeiling(Math.max(...samples.map(sample => sample[key])))
    const y = (value: number) => top + panel - (panel * value) / highest
    const grid = [0, 0.25, 0.5, 0.75, 1].map(share => {
      const value = highest * share
      const at = y(value).toFixed(1)
      return (
        `<line x1="${left}" x2="${width - 20}" y1="${at}" y2="${at}" stroke="#e5e7eb"/>` +
        `<text x="${left - 8}" y="${Number(at) + 4}" text-anchor="end">${Number(value.toFixed(1))}</text>`
      )
    })
    const points = samples.map(sample => `${x(sample.at).toFixed(1)},${y(sample[key]).toFixed(1)}`)
    return [
      `<text x="${left}" y="${top - 14}" font-weight="600">${title}</text>`,
      ...grid,
      `<polyline fill="none" stroke="${color}" stroke-width="1.5" points="${points.join(' ')}"/>`,
    ].join('\n')
  })
  const height = 40 + 2 * panel + 70 + 50
  const step = Math.max(1, Math.round(last / 8))
  const ticks = Array.from({ length: Math.floor(last / step) + 1 }, (_, i) => i * step).map(
    at => `<text x="${x(at).toFixed(1)}" y="${height - 28}" text-anchor="middle">${at}</text>`,
  )
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif" font-size="13" fill="#111827">
<title>uploadr serve under mixed load: memory and open descriptors over ${Math.round(last)} minutes</title>
<rect width="${width}" height="${height}" fill="#ffffff"/>
${panels.join('\n')}
${ticks.join('\n')}
<text x="${(left + width) / 2}" y="${height - 8}" text-anchor="middle">minutes</text>
</svg>
`
}

/** The next of 1, 2, 4, 5, 8 times a power of ten: an axis that divides by four into round numbers. */
function niceCeiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 4, 5, 8, 10].find(step => step * power >= value) ?? 10) * power
}
