/** What "stored" means, in the kernel's words: the order of the system calls of a publication, by strace. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import test, { type TestContext } from 'node:test'
import { BINARY, IN_CI, multipart, post, randomFile, run, TITLE, tempDir, until } from './support.ts'

/** A system call; with several threads another may begin before it has returned. */
interface Call {
  name: string
  /** As strace prints them, descriptors with their paths. */
  args: string
  /** The lines of the trace on which it begins and returns. */
  begin: number
  end: number
}

const TRACED = 'write,writev,pwrite64,pwritev,sendmsg,fsync,fdatasync,link,linkat,rename,renameat,renameat2'

/** The calls that succeeded, put together where strace had to cut them in two. */
function callsOf(trace: string): Call[] {
  const calls: Call[] = []
  /** By thread: what has begun and not returned. */
  const open = new Map<string, Call>()
  for (const [at, line] of trace.split('\n').entries()) {
    const [, thread = '', rest = ''] = /^(\d+) +(.*)$/.exec(line) ?? []
    const resumed = /^<\.\.\. \w+ resumed>(.*)$/.exec(rest)
    const started = /^(\w+)\((.*)$/.exec(rest)
    let call: Call | undefined
    if (resumed) {
      call = open.get(thread)
      open.delete(thread)
      if (call) Object.assign(call, { args: call.args + resumed[1], end: at })
    } else if (started) {
      const [, name = '', args = ''] = started
      call = { name, args: args.replace(/ ?<unfinished \.\.\.>$/, ''), begin: at, end: at }
      if (rest.endsWith('<unfinished ...>')) {
        open.set(thread, call)
        continue
      }
    }
    if (call && !/ = -1 E[A-Z]+ /.test(call.args)) calls.push(call)
  }
  return calls
}

/** The one call of these names whose arguments match. */
function only(calls: readonly Call[], names: RegExp, args: RegExp): Call {
  const found = calls.filter(call => names.test(call.name) && args.test(call.args))
  assert.equal(found.length, 1, `one ${names.source} of ${args}, not ${JSON.stringify(found, undefined, 1)}`)
  return found[0] as Call
}

/** Whether some sync of `path` began when all of `before` had returned, and returned before `after` began. */
function assertSynced(calls: readonly Call[], path: string, before: readonly Call[], after: Call): void {
  const from = Math.max(...before.map(({ end }) => end))
  const syncs = calls.filter(({ name, args }) => /^f(data)?sync$/.test(name) && args.includes(`<${path}>`))
  assert.ok(
    syncs.some(({ begin, end }) => begin > from && end < after.begin),
    `${path} is synced after line ${from} and before line ${after.begin}, not ${JSON.stringify(syncs)}`,
  )
}

function writesTo(calls: readonly Call[], path: string): Call[] {
  return calls.filter(({ name, args }) => /^p?writev?(64)?$/.test(name) && args.includes(`<${path}>`))
}

/** The trace of a real server that takes one file and ends. */
async function traced(t: TestContext, bytes: Buffer, args: readonly string[] = []) {
  // strace prints descriptors by the paths that the kernel knows.
  const root = await realpath(await tempDir(t))
  const dir = join(root, 'uploads')
  const output = join(root, 'trace')
  const program = [process.execPath, BINARY, 'serve', '--port', '0', '--dir', dir, ...args]
  // -D: the server is our own child, to which signals go, and strace its quiet companion.
  const child = spawn(
    'strace',
    ['-D', '-f', '-y', '-s', '16', '-e', `trace=${TRACED}`, '-o', output, ...program],
    {
      stdio: ['ignore', 'pipe', 'ignore'],
    },
  )
  const exited = once(child, 'exit')
  t.after(async () => {
    child.kill('SIGKILL')
    await exited
  })
  const lines = createInterface({ input: child.stdout })
  const [url] = await Promise.race([once(lines, 'line'), exited.then(() => assert.fail('serve ended'))])
  const answer = await post(
    String(url),
    multipart([TITLE, { name: 'file', filename: 'data.bin', body: bytes }]),
  )
  assert.equal(answer.status, 201, answer.text)
  child.kill('SIGTERM')
  assert.deepEqual(await exited, [0, null])
  const ended = new RegExp(`^${child.pid} +\\+\\+\\+ exited with 0`, 'm')
  const trace = await until(
    () => readFile(output, 'utf8'),
    text => ended.test(text),
  )
  return { dir, calls: callsOf(trace), handler: String(answer.json.files[0].handler) }
}

async function mayTrace(): Promise<string | false> {
  const probe = await run('strace', ['-f', '-o', '/dev/null', 'true'])
  if (probe.code === 0 || IN_CI) return false
  return `strace is not installed or may not trace: ${probe.stderr.trim()}`
}

const skip = await mayTrace()

/** A path as a regular expression's source. */
const literally = (path: string) => path.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

for (const { where, size } of [
  { where: 'memory', size: 100_000 },
  { where: 'disk', size: 5_000_000 },
]) {
  test(`system calls: a ${where}-held file is on disk before it has a name, its name before the answer`, {
    skip,
  }, async t => {
    const { dir, calls, handler } = await traced(t, randomFile(size))
    assert.equal(handler, where)
    const path = literally(dir)
    const named = only(calls, /^link(at)?$/, new RegExp(`"${path}/data\\.bin"`))
    const [, staged = '', staging = ''] = /"(([^"]+)\/[^"/]+\.0)"/.exec(named.args) ?? []
    assert.ok(staging.startsWith(join(dir, '.uploadr/staging/')), named.args)
    const intent = staged.replace(/\.0$/, '.json')
    const recorded = only(
      calls,
      /^rename/,
      new RegExp(`"${literally(intent)}".*"${path}/\\.uploadr/records/`),
    )
    const answered = only(calls, /^(write|writev|sendmsg)$/, /"HTTP\/1\.1 201/)

    // The data, where it was written: in place, or under a temporary name that then moved.
    const moved = calls.find(({ name, args }) => /^rename/.test(name) && args.includes(`"${staged}"`))
    assert.equal(moved !== undefined, where === 'disk')
    const [, temporary = ''] = /"([^"]+)"/.exec(moved?.args ?? '') ?? []
    const data = moved ? temporary : staged
    const written = writesTo(calls, data)
    assert.ok(written.length > 0, `something is written to ${data}`)
    assertSynced(calls, data, written, moved ?? named)

    const record = writesTo(calls, intent)
    assert.ok(record.length > 0, `something is written to ${intent}`)
    assertSynced(calls, intent, record, named)
    // Their names in the staging directory, by which recovery finds them.
    assertSynced(calls, staging, [...written, ...record, ...(moved ? [moved] : [])], named)

    assert.ok(named.end < recorded.begin, 'the record says published once the file has its name')
    assertSynced(calls, dir, [named], answered)
    assertSynced(calls, join(dir, '.uploadr/records'), [recorded], answered)
  })
}

test('system calls: --no-fsync syncs nothing, and publishes in the same order', { skip }, async t => {
  const { calls } = await traced(t, randomFile(5_000_000), ['--no-fsync'])
  assert.deepEqual(
    calls.filter(({ name }) => /sync$/.test(name)),
    [],
  )
  const named = only(calls, /^link(at)?$/, /data\.bin"/)
  const recorded = only(calls, /^rename/, /\/records\//)
  const answered = only(calls, /^(write|writev|sendmsg)$/, /"HTTP\/1\.1 201/)
  assert.ok(named.end < recorded.begin && recorded.end < answered.begin)
})
