import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { CONTENDERS, Server, uploadr } from './contenders.js'
import { median, table } from './figures.js'
import { clear, verify } from './load.js'
import { native } from './native.js'

const run = promisify(execFile)
const BIN = fileURLToPath(new URL('../bin/uploadr.js', import.meta.url))
const TUS = fileURLToPath(new URL('./clients/tus.js', import.meta.url))
const MIB = 1024 ** 2

/** Commands that send a file, each to the server it is made for. */
const CLIENTS = [
  { name: 'push', args: (file, url) => [process.execPath, BIN, 'push', file, '--url', url] },
  {
    name: 'curl -F',
    args: (file, url) => ['curl', '-sSf', '-F', 'title=a benchmark', '-F', `file=@${file}`, url],
  },
  { name: 'tus-js-client', tus: true, args: (file, url) => [process.execPath, TUS, file, url] },
  {
    name: 'httpie',
    // Debian's own Python, which has Debian's packages.
    args: (file, url) => [
      ...[
        '/usr/bin/python3',
        '/usr/bin/http',
        '--ignore-stdin',
        '--check-status',
        '--multipart',
        'POST',
        url,
      ],
      ...['title=a benchmark', `file@${file}`],
    ],
  },
]

const STARTS = [
  { name: 'uploadr --version', args: [process.execPath, BIN, '--version'] },
  { name: 'curl --version', args: ['curl', '--version'] },
  { name: 'node -e 0 (the limit)', args: [process.execPath, '-e', '0'] },
]

export const CLIENT_SIZES = [
  { name: 'push1g', title: 'clients sending 1 GiB', size: 1024 * MIB, rounds: 4 },
  { name: 'push256', title: 'clients sending 256 MiB', size: 256 * MIB, rounds: 8 },
  { name: 'push1', title: 'clients sending one byte', size: 1, rounds: 25 },
]

async function measure(dir, args) {
  const output = join(dir, 'output')
  const report = JSON.parse((await run(native('measure'), [output, ...args])).stdout)
  if (report.exit !== 0) {
    throw new Error(
      `${args.join(' ')} ended with ${report.exit}: ${readFileSync(output, 'utf8').slice(-2000)}`,
    )
  }
  return report
}

function summarize(name, reports) {
  return {
    name,
    ms: median(reports.map(each => each.seconds * 1000)),
    cpuMs: median(reports.map(each => (each.user + each.system) * 1000)),
    peakMib: median(reports.map(each => each.peakKiB / 1024)),
    runs: reports,
  }
}

/** Clients by turns, the order reversed in every other round, against servers that stay up. */
export async function compareClients(
  { name, title, size, rounds },
  { scratch, payloads, rounds: wanted, options, say },
) {
  const payload = payloads.get({ size })
  const servers = {
    uploadr: await Server.start(uploadr('defaults', { options }), scratch, 'disk'),
    tus: await Server.start(
      CONTENDERS.find(each => each.name === 'tus'),
      scratch,
      'disk',
    ),
  }
  const reports = new Map(CLIENTS.map(client => [client, []]))
  const total = Math.min(rounds, wanted ?? rounds)
  try {
    for (let round = -1; round < total; round++) {
      say(`${name}: round ${round + 1} of ${total}`)
      for (const client of round % 2 ? CLIENTS.toReversed() : CLIENTS) {
        const server = client.tus ? servers.tus : servers.uploadr
        const { root, port } = server.place
        const report = await measure(root, client.args(payload.path, `http://127.0.0.1:${port}/`))
        // The last round's bytes are hashed: a digest takes too long to be between runs.
        verify(server, { payload }, 1, round === total - 1)
        clear(server)
        if (round >= 0) reports.get(client).push(report)
      }
    }
  } finally {
    for (const server of Object.values(servers)) await server.stop()
  }
  return { name, title, size, results: CLIENTS.map(client => summarize(client.name, reports.get(client))) }
}

export async function compareStarts({ scratch, rounds = 25, say }) {
  const dir = scratch.fresh('tmpfs', 'start')
  const reports = new Map(STARTS.map(start => [start, []]))
  for (let round = -1; round < rounds; round++) {
    say(`startup: round ${round + 1} of ${rounds}`)
    for (const start of STARTS) {
      const report = await measure(dir, start.args)
      if (round >= 0) reports.get(start).push(report)
    }
  }
  return {
    name: 'startup',
    title: 'time to start and end',
    size: 0,
    results: STARTS.map(start => summarize(start.name, reports.get(start))),
  }
}

export function clientTable({ name, title, size, results }) {
  const curl = results.find(each => each.name.startsWith('curl'))
  const rows = results.map(each => [
    each.name,
    each.ms,
    size > 1 ? size / MIB / (each.ms / 1000) : '',
    each.cpuMs,
    each.peakMib,
    `${(each.ms / curl.ms).toFixed(2)} ×`,
  ])
  return `### ${name}: ${title}\n\n${table(['', 'ms', 'MiB/s', 'CPU ms', 'peak MiB', 'time / curl'], rows)}\n`
}
