import { execFileSync } from 'node:child_process'
import { unlinkSync } from 'node:fs'
import { join } from 'node:path'
import { Server } from './contenders.js'
import { summarize, table } from './figures.js'
import { clear, load, verify } from './load.js'
import { native } from './native.js'
import { BOUNDARIES } from './payload.js'

/**
 * One workload against all contenders: a block of runs each, in order, then in the opposite order.
 * Between the runs of a block there is nothing but the removal of the files of the run before: a
 * virtual machine's memory that is left idle is handed back to its host, and costs again when used.
 */
export async function compare(workload, contenders, { scratch, payloads, passes, runs, seconds, poll, say }) {
  const boundary = BOUNDARIES[workload.boundary ?? 'full']
  const payload = payloads.get({ ...workload, boundary })
  const work = {
    payload,
    boundary,
    connections: workload.connections,
    requests: workload.requests,
    seconds: workload.seconds && (seconds ?? workload.seconds),
  }
  const collected = new Map(contenders.map(({ name }) => [name, { runs: [], peak: 0 }]))
  for (let pass = 0; pass < passes; pass++) {
    for (const contender of pass % 2 ? contenders.toReversed() : contenders) {
      say(`${workload.name}: ${contender.name}, pass ${pass + 1} of ${passes}`)
      const kept = collected.get(contender.name)
      const block = await measureBlock(
        contender,
        workload,
        { ...work, ...(contender.polled && { poll }) },
        runs,
        scratch,
      )
      kept.runs.push(...block.runs)
      kept.peak = Math.max(kept.peak, block.peak)
    }
  }
  const results = contenders.map(({ name, group, mode }) => {
    const { runs, peak } = collected.get(name)
    return { name, group, mode: mode ?? '', ...summarize(runs, peak) }
  })
  if (workload.requests === 1) results.push(copy(payload, scratch, workload.where, passes * runs))
  if (workload.kind) payloads.drop(workload)
  return { name: workload.name, title: workload.title, results }
}

async function measureBlock(contender, workload, work, runs, scratch) {
  const server = await Server.start(contender, scratch, workload.where)
  const block = { runs: [], peak: 0 }
  try {
    await load(server, { ...work, requests: workload.warmUp })
    for (let i = 0; i < runs; i++) {
      clear(server)
      const run = await load(server, work)
      block.runs.push(run)
      verify(server, work, run.completed, i === runs - 1)
    }
    block.peak = server.peakMemory()
    clear(server)
  } finally {
    await server.stop()
  }
  return block
}

/** What cp needs for the same file, the limit of everything that writes it. */
function copy(payload, scratch, where, runs) {
  const dir = scratch.fresh(where, 'cp')
  const to = join(dir, 'copy')
  const measured = []
  for (let i = 0; i <= runs; i++) {
    const report = JSON.parse(execFileSync(native('measure'), [join(dir, 'output'), 'cp', payload.path, to]))
    unlinkSync(to)
    // The first warms up.
    if (i === 0) continue
    measured.push({
      ...{ seconds: report.seconds, completed: 1, bytes: payload.size, latencies: [report.seconds * 1000] },
      ...{ cpu: report.user + report.system, loadCpu: 0, polls: 0, uploading: 0, slowestPollMs: 0 },
    })
  }
  return { name: 'cp', group: 'limit', mode: '', ...summarize(measured, 0) }
}

/** The peers from npm that answer for what is durable are compared with one another, and so are the others. */
export function references(results) {
  const best = durable =>
    results
      .filter(({ group, mode }) => group === 'npm' && (mode === 'durable') === durable)
      .sort((a, b) => b.mibPerSecond - a.mibPerSecond)[0]
  return { nginx: results.find(({ name }) => name === 'nginx'), npm: best(false), durable: best(true) }
}

export function comparisonTable({ name, title, results }) {
  const { nginx, npm, durable } = references(results)
  const ratio = (a, b) => (b ? `${(a / b).toFixed(2)} ×` : '')
  const head = [
    '',
    'MiB/s',
    'spread',
    'req/s',
    'p50 ms',
    'p99 ms',
    'CPU s/GiB',
    'CPU ms/req',
    'cores',
    'load',
    'peak MiB',
  ]
  const rows = results.map(each => [
    each.name,
    each.mibPerSecond,
    `${Math.round((100 * (each.fastest - each.slowest)) / each.mibPerSecond)} %`,
    each.requestsPerSecond,
    each.p50Ms,
    each.p99Ms,
    each.cpuPerGib,
    each.cpuMsPerRequest,
    each.cores,
    each.loadCores,
    each.peakMib || '',
    ratio(each.mibPerSecond, nginx?.mibPerSecond),
    ratio(each.mibPerSecond, (each.mode === 'durable' ? durable : npm)?.mibPerSecond),
    ratio(each.cpuPerGib, nginx?.cpuPerGib),
  ])
  const columns = [...head, '/ nginx', '/ best npm', 'CPU / nginx']
  const polls = results
    .filter(each => each.polls > 0)
    .map(each => `${each.name}: ${each.polls} polls, the slowest answered in ${each.slowestPollMs} ms.\n`)
  return [`### ${name}: ${title}\n\n${table(columns, rows)}\n`, ...polls].join('\n')
}
