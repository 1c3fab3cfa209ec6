/** A push among other jobs of a terminal: stopped, in the background, beside others that print, and by which signal it dies. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { appendFile, readFile, readlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { MemoryProgressStore, type Progress, type UploadHandler } from '../src/index.ts'
import { inTerminal, type Terminal } from './pty.ts'
import {
  BINARY,
  connect,
  gate,
  getProgress,
  IN_CI,
  published,
  randomFile,
  run,
  startServer,
  tempDir,
  until,
  uploadr,
} from './support.ts'

const PUSH = `'${process.execPath}' '${BINARY}' push`

/** A server at whose gate every upload waits, and which counts who comes and who asks. */
async function gated(t: TestContext) {
  const slow = gate()
  const begun: string[] = []
  let polls = 0
  class Counted extends MemoryProgressStore {
    override get(id: string): Progress {
      polls++
      return super.get(id)
    }
  }
  const counting: UploadHandler = { name: 'counting', begin: ({ id }) => void begun.push(id) }
  const server = await startServer(t, { handlers: [counting, slow.handler], progress: new Counted() })
  return {
    ...server,
    ...slow,
    begun,
    /** Resolves when a push has asked so often again; it draws as often as it asks, or would. */
    async polled(times: number): Promise<void> {
      const from = polls
      await until(
        () => polls,
        now => now >= from + times,
      )
    },
  }
}

async function aFile(t: TestContext, size = 30_000_000, name = 'file.bin'): Promise<string> {
  const path = join(await tempDir(t), name)
  await writeFile(path, randomFile(size))
  return path
}

/** A shell with job control, in a terminal of its own. */
function shell(t: TestContext, program: 'bash' | 'dash' = 'bash'): Terminal {
  const args = program === 'bash' ? ['--norc', '--noprofile', '-i'] : ['-i']
  return inTerminal(t, [program, ...args], {
    rows: 24,
    columns: 100,
    env: { PS1: '> ', ENV: '', HISTFILE: '' },
  })
}

const shows = (terminal: Terminal, pattern: RegExp) =>
  until(
    () => terminal.screen().join('\n'),
    text => pattern.test(text),
  )

/** A line of its own, or behind the prompt where it was typed ahead. */
const said = (text: string) => new RegExp(`^(?:> )?${text}$`, 'm')

const BAR = /file\.bin +█*░* +\d+%/

for (const program of ['bash', 'dash'] as const) {
  test(`Ctrl-C ends a loop of pushes in ${program}, typed or as a script, and the status is 130`, async t => {
    const probe = await run('sh', ['-c', `command -v ${program}`])
    if (probe.code !== 0 && !IN_CI) return t.skip(`${program} is not installed`)
    const { url, begun, reached } = await gated(t)
    const terminal = shell(t, program)
    const loop = `for i in 1 2 3; do ${PUSH} ${await aFile(t)} --url ${url} --id typed-$i; done`
    terminal.press(`${loop}\r`)
    await reached
    await shows(terminal, BAR)
    terminal.press('\x03')
    await shows(terminal, /uploadr: interrupted/)
    terminal.press('echo "status $?"\r')
    await shows(terminal, said('status 130'))
    assert.deepEqual(begun, ['typed-1'])

    const script = join(await tempDir(t), 'loop.sh')
    await writeFile(script, `${loop.replace('typed-', 'script-')}\necho the script goes on\n`)
    terminal.press(`clear; ${program} ${script}\r`)
    await until(
      () => begun,
      ids => ids.length === 2,
    )
    await shows(terminal, BAR)
    terminal.press('\x03')
    await shows(terminal, /uploadr: interrupted/)
    terminal.press('echo "status $?"\r')
    await shows(terminal, said('status 130'))
    assert.deepEqual(begun, ['typed-1', 'script-1'])
    assert.doesNotMatch(terminal.screen().join('\n'), /^the script goes on/m)
  })
}

test('Ctrl-Z gives the terminal back, bg draws nothing, fg draws anew', async t => {
  const { url, reached, open, polled } = await gated(t)
  const terminal = shell(t)
  terminal.press(`echo before\r`)
  await shows(terminal, said('before'))
  terminal.press(`${PUSH} ${await aFile(t)} --url ${url} --interval 50ms\r`)
  await reached
  await shows(terminal, BAR)
  terminal.press('\x1a')
  await shows(terminal, /Stopped/)
  assert.doesNotMatch(terminal.screen().join('\n'), BAR)
  terminal.press('echo stopped\r')
  await shows(terminal, said('stopped'))

  const drawn = () => terminal.raw().split('%').length
  const before = drawn()
  terminal.press('bg\r')
  await polled(20)
  terminal.press('echo in the back\r')
  await shows(terminal, said('in the back'))
  assert.equal(drawn(), before)

  terminal.press('fg\r')
  await shows(terminal, BAR)
  open()
  await shows(terminal, /^file\.bin: 28\.6 MiB in .*verified sha-256$/m)
  terminal.press('echo after\r')
  await shows(terminal, said('after'))
  const screen = terminal.screen().join('\n')
  const order = ['before', 'stopped', 'in the back', 'file\\.bin: .*', 'after'].map(text =>
    screen.search(said(text)),
  )
  assert.deepEqual(
    order,
    order.toSorted((a, b) => a - b),
    screen,
  )
  assert.ok(!order.includes(-1), screen)
  assert.doesNotMatch(screen, BAR)
  assert.doesNotMatch(terminal.raw(), /\x1b(?:[78]|\[[su]|\[\?(?:25|7)[hl])/)
})

for (const away of ['stopped', 'in the background']) {
  test(`a terminal that becomes narrower while the push is ${away}: it is drawn within the new width`, async t => {
    const { url, reached } = await gated(t)
    const terminal = shell(t)
    terminal.press(`${PUSH} ${await aFile(t)} --url ${url}\r`)
    await reached
    await shows(terminal, BAR)
    terminal.press('\x1a')
    await shows(terminal, /Stopped/)
    if (away !== 'stopped') {
      terminal.press('bg; clear\r')
      await shows(terminal, /^> ?$/m)
    }
    terminal.press('clear\r')
    terminal.resize(50)
    terminal.press('fg\r')
    await shows(terminal, BAR)
    const drawn = terminal.screen().filter(line => line.includes('░'))
    assert.equal(drawn.length, 1)
    assert.ok((drawn[0] as string).length < 50 && /%/.test(drawn[0] as string), drawn[0])
  })
}

test('a push in the background draws nothing from the start, and tells how it ended', async t => {
  const { url, dir, reached, open, polled } = await gated(t)
  const terminal = shell(t)
  terminal.press(`${PUSH} ${await aFile(t)} --url ${url} --interval 50ms &\r`)
  await reached
  await polled(20)
  assert.doesNotMatch(terminal.raw(), /%|\x1b\[K/)
  open()
  await shows(terminal, /file\.bin: 28\.6 MiB in .*verified sha-256$/m)
  assert.deepEqual(await published(dir), ['file.bin'])
})

test('lines of other jobs and Enter beside the bar: none is written over, and the result comes last', async t => {
  const { url, reached, open } = await gated(t)
  const file = await aFile(t)
  const terminal = inTerminal(
    t,
    ['bash', '-c', `seq -f 'before %g' 5; exec ${PUSH} '${file}' --url ${url}`],
    { rows: 30, columns: 100 },
  )
  await reached
  const drawnBelow = (text: string) =>
    until(
      () => terminal.screen(),
      screen =>
        screen.findLastIndex(line => BAR.test(line)) > screen.findLastIndex(line => line.startsWith(text)),
    )
  await drawnBelow('before 5')
  const tty = await readlink(`/proc/${terminal.pid}/fd/2`)
  for (let i = 1; i <= 3; i++) {
    await appendFile(tty, `short ${i}\n`)
    await drawnBelow(`short ${i}`)
    await appendFile(tty, `long ${i} ${'.'.repeat(120)}\n`)
    await drawnBelow(`long ${i}`)
    terminal.press('\r')
  }
  open()
  assert.equal(await terminal.exited, 0)
  const screen = terminal.screen().filter(line => line !== '')
  const others = screen.flatMap(line => /^(?:before|short|long) \d/.exec(line) ?? [])
  const theirs = [1, 2, 3].flatMap(i => [`short ${i}`, `long ${i}`])
  assert.deepEqual(others, [...[1, 2, 3, 4, 5].map(i => `before ${i}`), ...theirs])
  assert.match(screen.at(-1) ?? '', /^file\.bin: 28\.6 MiB in .*, verified sha-256$/)
  assert.equal(
    screen.filter(line => line.startsWith('before')).every(line => /^before \d$/.test(line)),
    true,
  )
})

test('two pushes and a server in one terminal: every result stands in a line of its own', async t => {
  const root = await tempDir(t)
  const one = await aFile(t, 40_000_000, 'one.bin')
  const two = await aFile(t, 30_000_000, 'two.bin')
  // Holds all uploads until it is told to go on.
  const handler = join(root, 'gate.mjs')
  await writeFile(
    handler,
    `const go = new Promise(resolve => process.once('SIGUSR2', resolve))
    export default {
      name: 'gate',
      async open(file, next) {
        const sink = await next(file)
        const write = async chunk => (await go, sink.write(chunk))
        return { write, close: () => sink.close(), abort: reason => sink.abort(reason) }
      },
    }`,
  )
  const script = join(root, 'script.sh')
  await writeFile(
    script,
    `mkfifo '${root}/url'
    '${process.execPath}' '${BINARY}' serve --port 0 --dir '${root}/uploads' --handler '${handler}' >'${root}/url' & server=$!
    read -r url <'${root}/url'
    echo server $server.
    ${PUSH} '${one}' --url $url & first=$!
    ${PUSH} '${two}' --url $url & second=$!
    wait $first && wait $second && kill $server && wait $server`,
  )
  const terminal = inTerminal(t, ['bash', script], { rows: 200, columns: 100 })
  const pid = Number(/^server (\d+)\.$/m.exec(await shows(terminal, /^server \d+\.$/m))?.[1])
  await until(terminal.raw, raw => /one\.bin .*%/.test(raw) && /two\.bin .*%/.test(raw))
  process.kill(pid, 'SIGUSR2')
  assert.equal(await terminal.exited, 0)
  const screen = terminal.screen().join('\n')
  assert.match(screen, /^server \d+\.$/m)
  for (const name of ['one', 'two'])
    assert.match(screen, new RegExp(`^${name}\\.bin: .*, verified sha-256$`, 'm'))
  // The server's lines too begin where lines begin.
  assert.match(screen, /^\S+Z INFO {2}listening /m)
  assert.match(screen, /^\S+Z INFO {2}stopping /m)
})

for (const [variable, value, ascii] of [
  ['LC_ALL', 'C', true],
  ['LC_CTYPE', 'POSIX', true],
  ['LANG', '', true],
  ['LANG', 'de_DE.UTF-8', false],
  ['LC_CTYPE', 'en_US.utf8', false],
] as const) {
  test(`${variable}=${value}: drawn in ${ascii ? 'ASCII' : 'Unicode'}`, async t => {
    const { url, reached, open } = await gated(t)
    const file = await aFile(t, 30_000_000, `Übung ${'些'.repeat(40)}.bin`)
    const env = { LC_ALL: '', LC_CTYPE: '', LANG: '', [variable]: value }
    const terminal = inTerminal(t, [process.execPath, BINARY, 'push', file, '--url', url], { env })
    await reached
    await shows(terminal, ascii ? /bung.*\.\.\. {2}#*-+ .*\d%/ : /Übung.*… {2}█*░+ .*\d%/)
    const line = terminal.screen().filter(each => each !== '')
    assert.equal(line.length, 1)
    open()
    assert.equal(await terminal.exited, 0)
    assert.equal(/^[\0-\x7f]*$/.test(terminal.raw()), ascii)
  })
}

test('one Ctrl-D ends a terminal that is sent, by its path and as standard input', async t => {
  const { url, dir } = await startServer(t)
  for (const source of ['/dev/tty', '-']) {
    const terminal = shell(t)
    terminal.press(`${PUSH} ${source} --url ${url} --id ${source.length} --name keys; echo "status $?"\r`)
    await until(
      async () => (await getProgress(url, String(source.length))).state,
      state => state === 'uploading',
    )
    terminal.press('abc\r\x04')
    await shows(terminal, said('status 0'))
  }
  for (const name of await published(dir)) assert.equal(await readFile(join(dir, name), 'utf8'), 'abc\n')
})

test('two signals end a server by the second one, and a shell’s loop with it', async t => {
  const terminal = shell(t)
  const folder = await tempDir(t)
  const serve = `'${process.execPath}' '${BINARY}' serve --port 0 --dir '${folder}/up' --grace 1m`
  terminal.press(`clear; for i in 1 2 3; do ${serve}; done; echo over\r`)
  const screen = await shows(terminal, /http:\S+\/$/m)
  const url = /http:\S+\/$/m.exec(screen)?.[0] as string
  // An upload that does not end by itself.
  const socket = connect(url)
  socket.write(
    'POST /?X-Progress-ID=x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 999\r\n\r\n--B\r\n',
  )
  t.after(() => socket.destroy())
  await until(
    async () => (await getProgress(url, 'x')).state,
    state => state === 'uploading',
  )
  terminal.press('\x03')
  await shows(terminal, /stopping/)
  terminal.press('\x03')
  terminal.press('echo "status $?"\r')
  await shows(terminal, said('status 130'))
  assert.equal(terminal.raw().match(/listening/g)?.length, 1)
})

test('SIGTERM and SIGINT: a push cleans up and dies of the signal it was sent; SIGHUP where a terminal is lost', async t => {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    const { url, reached } = await gated(t)
    const running = uploadr(t, ['push', await aFile(t), '--json', '--url', url])
    await reached
    running.child.kill(signal)
    assert.equal(await running.exited, signal)
    const { error } = JSON.parse(running.stdout())
    assert.deepEqual(
      [error.code, error.exitCode],
      signal === 'SIGINT' ? ['interrupted', 130] : ['terminated', 143],
    )
  }
  const { url, reached } = await gated(t)
  const terminal = inTerminal(t, [process.execPath, BINARY, 'push', await aFile(t), '--url', url])
  await reached
  process.kill(terminal.pid, 'SIGHUP')
  assert.equal(await terminal.exited, 129)
})

test('nohup: a hangup ends neither a push nor a server', async t => {
  const { url, dir, reached, open } = await gated(t)
  const file = await aFile(t)
  const terminal = shell(t)
  terminal.press(`nohup ${PUSH} '${file}' --url ${url} >/dev/null 2>&1 & echo pid $!.\r`)
  const pid = Number(/^pid (\d+)\.$/m.exec(await shows(terminal, /^pid \d+\.$/m))?.[1])
  await reached
  process.kill(pid, 'SIGHUP')
  terminal.hangUp()
  await terminal.exited
  open()
  await until(
    () => published(dir),
    names => names.length === 1,
  )

  const server = uploadr(t, ['serve', '--port', '0', '--dir', join(await tempDir(t), 'uploads')])
  const [line] = await once(server.child.stdout as NodeJS.ReadableStream, 'data')
  server.child.kill('SIGHUP')
  assert.equal((await fetch(new URL('healthz', String(line).trim()))).status, 200)
  server.child.kill('SIGTERM')
  assert.equal(await server.exited, 0)
  assert.doesNotMatch(server.stderr(), /SIGHUP/)
})

test('the terminal of a disowned job goes away: the upload does not', async t => {
  const { url, dir, reached, open } = await gated(t)
  const terminal = shell(t)
  terminal.press(`${PUSH} ${await aFile(t)} --url ${url} --progress json & disown\r`)
  await reached
  terminal.hangUp()
  await terminal.exited
  open()
  await until(
    () => published(dir),
    names => names.length === 1,
  )
})
