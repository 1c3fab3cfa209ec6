import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Server, uploadr } from './contenders.js'
import { format, median, quantile, summarize, table } from './figures.js'
import { clear, load, verify } from './load.js'
import { BOUNDARIES } from './payload.js'

const PASS_THROUGH = fileURLToPath(new URL('./pass-through.js', import.meta.url))
const MIB = 1024 ** 2

/**
 * Differences of a few per cent, which blocks are too coarse for: two servers, or one, run by turns,
 * A B B A, and what counts is the median of the ratios of neighbours. On tmpfs, which varies least.
 */
export const PAIRS = [
  {
    name: 'polling',
    title: 'progress asked 10 times a second, against never; one file of 1 GiB',
    a: { name: 'not polled', contender: () => uploadr('bare') },
    b: { name: 'polled', contender: undefined, poll: 'one' },
    work: { size: 1024 * MIB, connections: 1, requests: 1 },
    rounds: 14,
  },
  {
    name: 'chain',
    title: 'ten pass-through handlers against none; one file of 256 MiB',
    a: { name: 'no handler', contender: () => uploadr('bare') },
    b: { name: 'ten handlers', contender: tenHandlers },
    work: { size: 256 * MIB, connections: 1, requests: 1 },
    rounds: 40,
  },
  {
    name: 'chain-small',
    title: 'ten pass-through handlers against none; 16 connections, files of 64 KiB',
    a: { name: 'no handler', contender: () => uploadr('bare') },
    b: { name: 'ten handlers', contender: tenHandlers },
    work: { size: 64 * 1024, connections: 16, requests: 20_000, seconds: 0.6 },
    rounds: 16,
  },
]

/** This checkout against another one, built: what a change has cost. */
export function pairsAgainst(folder) {
  const other = () => uploadr('bare', { name: 'the other', bin: join(folder, 'bin/uploadr.js') })
  const a = { name: 'the other', contender: other }
  const b = { name: 'this one', contender: () => uploadr('bare') }
  const works = [
    { size: 1024 * MIB, connections: 1, requests: 1, rounds: 14, title: 'one file of 1 GiB' },
    ...[1024, 64 * 1024].map(size => {
      const title = `16 connections, files of ${size / 1024} KiB`
      return { size, connections: 16, requests: 20_000, seconds: 0.6, rounds: 24, title }
    }),
  ]
  return works.map(({ rounds, title, ...work }) => {
    const name = `against-${work.size / 1024}k`
    return { name, title: `this checkout against another; ${title}`, a, b, work, rounds }
  })
}

function tenHandlers() {
  return uploadr('bare', {
    name: 'ten handlers',
    options: Array(10).fill(['--handler', PASS_THROUGH]).flat(),
  })
}

export async function comparePair(pair, { scratch, payloads, rounds = pair.rounds, options, say }) {
  const { size, ...rest } = pair.work
  const boundary = BOUNDARIES.full
  const work = { payload: payloads.get({ size, boundary }), boundary, ...rest }
  const withOptions = contender => ({
    ...contender,
    command: async place => {
      const command = await contender.command(place)
      return { ...command, args: [...command.args, ...options] }
    },
  })
  const servers = []
  const start = async make => {
    const server = await Server.start(withOptions(make()), scratch, 'tmpfs')
    servers.push(server)
    return server
  }
  try {
    const a = { ...pair.a, server: await start(pair.a.contender), runs: [] }
    const b = { ...pair.b, server: pair.b.contender ? await start(pair.b.contender) : a.server, runs: [] }
    for (let round = -1; round < rounds; round++) {
      say(`${pair.name}: round ${round + 1} of ${rounds}`)
      for (const side of round % 2 ? [b, a] : [a, b]) {
        const run = await load(side.server, { ...work, ...(side.poll && { poll: side.poll }) })
        verify(side.server, work, run.completed, round === rounds - 1)
        clear(side.server)
        // The first round warms up.
        if (round >= 0) side.runs.push(run)
      }
    }
    const rate = run => run.bytes / run.seconds
    const ratios = b.runs.map((run, i) => rate(run) / rate(a.runs[i]))
    const costs = b.runs.map((run, i) => run.cpu / run.bytes / (a.runs[i].cpu / a.runs[i].bytes))
    return {
      name: pair.name,
      title: pair.title,
      sides: [a, b].map(side => ({ name: side.name, ...summarize(side.runs, side.server.peakMemory()) })),
      ratio: median(ratios),
      cpuRatio: median(costs),
      quartiles: [quantile(ratios, 0.25), quantile(ratios, 0.75)],
    }
  } finally {
    for (const server of servers) await server.stop()
  }
}

export function pairTable({ name, title, sides, ratio, cpuRatio, quartiles }) {
  const rows = sides.map(side => [
    side.name,
    side.mibPerSecond,
    side.requestsPerSecond,
    side.cpuPerGib,
    side.polls,
    side.polls > 0 ? side.slowestPollMs : '',
  ])
  const [low, high] = quartiles.map(value => value.toFixed(3))
  return (
    `### ${name}: ${title}\n\n${table(['', 'MiB/s', 'req/s', 'CPU s/GiB', 'polls', 'slowest ms'], rows)}\n\n` +
    `Ratio of neighbours, median ${ratio.toFixed(3)} (quartiles ${low} to ${high}), ` +
    `so ${format(Math.abs(100 * (1 - ratio)))} % ${ratio < 1 ? 'slower' : 'faster'}; of CPU a byte, ${cpuRatio.toFixed(3)}.\n`
  )
}
