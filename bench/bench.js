import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { CLIENT_SIZES, clientTable, compareClients, compareStarts } from './clients.js'
import { compare, comparisonTable } from './compare.js'
import { CONTENDERS, killAll } from './contenders.js'
import { format, table } from './figures.js'
import { goals } from './goals.js'
import { comparePair, PAIRS, pairsAgainst, pairTable } from './pairs.js'
import { Payloads } from './payload.js'
import { Scratch } from './scratch.js'
import { WORKLOADS } from './workloads.js'

const here = fileURLToPath(new URL('./', import.meta.url))
const root = fileURLToPath(new URL('../', import.meta.url))

const HELP = `npm run bench -- [options]

  --only NAMES      of what follows, separated by commas; also: servers, pairs, clients
  --servers NAMES   uploadr, npm, nginx, limit, or single ones
  --mode MODES      of uploadr: defaults (progress polled, sha-256, fsync), bare (none of them),
                    durable (fsync alone; its npm peers sync too)
  --runs N          in each pass             --passes N   of every server (2)
  --rounds N        of pairs and clients     --seconds N  a run of many requests lasts
  --poll one|each   in defaults: 10 times a second for one upload in flight, in turn, or for each
  --serve OPTIONS   more options for uploadr serve, one string
  --tmpfs DIR       (/dev/shm)               --disk DIR   (/var/tmp)
  --against DIR     this checkout and another one, built, by turns, and nothing else
  --quick           a part of it, in a few minutes
  --no-build        measure dist/ as it is, be it older than src/
`

const QUICK = {
  only: 'big256,mid20m,small64k,small1k,polling,chain,push256,push1,startup',
  runs: '2',
  seconds: '0.7',
  rounds: '8',
}

const given = parse({
  options: {
    ...Object.fromEntries(
      ['only', 'servers', 'mode', 'runs', 'passes', 'rounds', 'seconds', 'serve', 'against'].map(name => [
        name,
        { type: 'string' },
      ]),
    ),
    poll: { type: 'string', default: 'one' },
    tmpfs: { type: 'string', default: '/dev/shm' },
    disk: { type: 'string', default: '/var/tmp' },
    quick: { type: 'boolean', default: false },
    'no-build': { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})

if (given.help) {
  const names = [...WORKLOADS, ...PAIRS, ...CLIENT_SIZES, { name: 'startup', title: 'time to start and end' }]
  const lines = [...names.map(({ name, title }) => `  ${name.padEnd(14)}${title}`)]
  process.stdout.write(
    `${HELP}\n${lines.join('\n')}\n\nServers: ${CONTENDERS.map(({ name }) => name).join(', ')}\n`,
  )
} else {
  await main({ ...(given.quick ? QUICK : {}), ...given })
}

function parse(config) {
  try {
    return parseArgs(config).values
  } catch (error) {
    process.stderr.write(`bench: ${error.message}; --help tells what there is\n`)
    return process.exit(2)
  }
}

async function main(options) {
  prepare(options)
  const scratch = new Scratch({ tmpfs: options.tmpfs, disk: options.disk })
  const abandon = signal => {
    killAll()
    scratch.remove()
    process.exit(signal === 'SIGINT' ? 130 : 143)
  }
  process.on('SIGINT', abandon).on('SIGTERM', abandon)
  try {
    await measureAll(options, scratch)
  } finally {
    killAll()
    scratch.remove()
  }
}

/** What has to be there: the peers from npm, a build of uploadr that is not older than its source. */
function prepare(options) {
  if (!existsSync(`${here}node_modules/.package-lock.json`)) {
    const { status } = spawnSync('npm', ['ci', '--prefix', here, '--no-audit', '--no-fund'], {
      stdio: 'inherit',
    })
    if (status !== 0) throw new Error('npm ci failed in bench/')
  }
  if (!existsSync('/usr/bin/gunicorn') || !existsSync('/usr/bin/http')) {
    throw new Error('peers from Debian are missing: run bench/install-debian-packages')
  }
  if (options['no-build']) return
  const newest = folder =>
    Math.max(
      ...readdirSync(folder, { recursive: true })
        .filter(name => /\.[jt]s$/.test(name))
        .map(name => statSync(join(folder, name)).mtimeMs),
    )
  if (!existsSync(`${root}dist/src`) || newest(`${root}dist/src`) < newest(`${root}src`)) {
    execFileSync('npm', ['run', 'build', '--silent'], { cwd: root, stdio: 'inherit' })
  }
}

async function measureAll(options, scratch) {
  const number = name => (options[name] === undefined ? undefined : Number(options[name]))
  const wanted = chooser(options.only)
  const serve = options.serve?.split(/\s+/).filter(Boolean) ?? []
  const context = {
    scratch,
    payloads: new Payloads(scratch.fresh('tmpfs', 'payload')),
    passes: number('passes') ?? 2,
    seconds: number('seconds'),
    rounds: number('rounds'),
    poll: options.poll,
    options: serve,
    say: text => process.stderr.write(`${new Date().toISOString().slice(11, 19)} ${text}\n`),
  }
  const report = { machine: machine(), options, comparisons: [], pairs: [], clients: [] }
  const show = text => process.stdout.write(`${text}\n`)
  const showPair = async pair => {
    const compared = await comparePair(pair, context)
    report.pairs.push(compared)
    publish(report)
    show(pairTable(compared))
  }
  show(`${Object.values(report.machine).join(' · ')}\n`)
  if (options.against !== undefined) {
    for (const pair of pairsAgainst(options.against)) await showPair(pair)
    return
  }
  for (const workload of WORKLOADS.filter(({ name }) => wanted(name, 'servers'))) {
    const contenders = contendersFor(workload, options, serve)
    const runs = number('runs') ?? workload.runs
    const comparison = await compare(workload, contenders, { ...context, runs })
    report.comparisons.push(comparison)
    publish(report)
    show(comparisonTable(comparison))
  }
  for (const pair of PAIRS.filter(({ name }) => wanted(name, 'pairs'))) await showPair(pair)
  for (const size of CLIENT_SIZES.filter(({ name }) => wanted(name, 'clients'))) {
    const compared = await compareClients(size, context)
    report.clients.push(compared)
    publish(report)
    show(clientTable(compared))
  }
  if (wanted('startup', 'clients')) {
    const compared = await compareStarts(context)
    report.clients.push(compared)
    publish(report)
    show(clientTable(compared))
  }
  if (report.goals?.length > 0) show(goalTable(report.goals))
}

/** A predicate over names and groups; each name given must be one that exists. */
function chooser(list) {
  if (list === undefined) return () => true
  const names = new Set(list.split(','))
  const known = [...WORKLOADS, ...PAIRS, ...CLIENT_SIZES].map(({ name }) => name)
  const all = new Set([...known, 'startup', 'servers', 'pairs', 'clients'])
  for (const name of names)
    if (!all.has(name)) throw new Error(`--only ${name}: no such work; --help lists it`)
  return (name, group) => names.has(name) || names.has(group)
}

function contendersFor(workload, options, serve) {
  const servers = options.servers?.split(',')
  const modes = options.mode?.split(',')
  for (const name of servers ?? []) {
    if (!CONTENDERS.some(each => each.name === name || each.group === name))
      throw new Error(`--servers ${name}: no such server; --help lists them`)
  }
  // A name that is both a server's and a group's means the server.
  const groups = new Set(CONTENDERS.map(({ group }) => group))
  for (const { name } of CONTENDERS) groups.delete(name)
  return CONTENDERS.filter(({ name, group, mode }) => {
    if (servers && !servers.includes(name) && !(groups.has(group) && servers.includes(group))) return false
    if (modes && mode && !modes.includes(mode)) return false
    if (mode === 'durable' && !workload.durable && !modes) return false
    if (servers) return true
    // One connection is one worker's; a body that is hard to parse is a question to parsers.
    if (workload.connections === 1 && name === 'nginx-1') return false
    if (!workload.durable && /^node/.test(name)) return false
    if (workload.kind && (group === 'limit' || group === 'django' || /^tus|-progress$/.test(name)))
      return false
    return true
  }).map(each => (each.group === 'uploadr' ? withOptions(each, serve) : each))
}

function withOptions(contender, serve) {
  const command = place => {
    const made = contender.command(place)
    return { ...made, args: [...made.args, ...serve] }
  }
  return { ...contender, command }
}

function machine() {
  const versionOf = name =>
    JSON.parse(readFileSync(`${here}node_modules/${name}/package.json`, 'utf8')).version
  const peers = ['multer', 'formidable', 'fastify', '@fastify/multipart', '@tus/server', 'tus-js-client']
  const said = (command, ...args) => {
    const { stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' })
    return `${stdout}${stderr}`.trim().split('\n')[0]
  }
  return {
    date: new Date().toISOString().slice(0, 19),
    load: `load average ${os.loadavg()[0].toFixed(2)} before`,
    cpu: `${os.availableParallelism()} × ${os.cpus()[0]?.model}`,
    memory: `${Math.round(os.totalmem() / 1024 ** 3)} GiB`,
    kernel: `${os.type()} ${os.release()}`,
    node: `Node ${process.version}`,
    nginx: said('nginx', '-v').replace('nginx version: ', ''),
    curl: said('curl', '--version').split(' ').slice(0, 2).join(' '),
    httpie: `httpie ${said('/usr/bin/http', '--version')}`,
    django: `Django ${said('/usr/bin/python3', '-c', 'import django; print(django.__version__)')}`,
    gunicorn: said('/usr/bin/python3', '/usr/bin/gunicorn', '--version'),
    npm: peers.map(name => `${name} ${versionOf(name)}`).join(', '),
  }
}

function goalTable(list) {
  const rows = list.map(({ text, value, bound, atLeast, met }) => [
    text,
    value < 10 ? value.toFixed(3) : format(value),
    `${atLeast ? '≥' : '≤'} ${bound}`,
    met ? 'yes' : 'NO',
  ])
  return `### Goals\n\n${table(['', 'measured', 'goal', 'met'], rows)}\n`
}

/** Writes what there is so far: a run that is broken off has not been for nothing. */
function publish(report) {
  report.goals = goals(report)
  const folder = `${here}results`
  mkdirSync(folder, { recursive: true })
  const base = join(folder, report.machine.date.replaceAll(':', ''))
  const text = [
    `${Object.values(report.machine).join(' · ')}\n`,
    ...report.comparisons.map(comparisonTable),
    ...report.pairs.map(pairTable),
    ...report.clients.map(clientTable),
    goalTable(report.goals),
  ]
  writeFileSync(`${base}.md`, text.join('\n'))
  writeFileSync(`${base}.json`, `${JSON.stringify(report)}\n`)
}
