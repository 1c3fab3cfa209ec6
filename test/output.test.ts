/** What is printed, and whether anything else is: hostile text, streams that fail, JSON, usage and help. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import os from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { inTerminal } from './pty.ts'
import {
  BINARY,
  connect,
  gate,
  IN_CI,
  published,
  ROOT,
  randomFile,
  readAnswer,
  run,
  serve,
  sha256,
  startServer,
  tempDir,
  until,
  uploadr,
} from './support.ts'

/** An escape sequence, C1's beginnings of two, an override of direction, two ends of a line and a line of our own. */
const HOSTILE = 'a\x1b]0;owned\x07\u009b31m\u009d\u202egpj\u2028\r\nuploadr: forged'
/** What can move a cursor, reorder or end a line; the end of a line itself apart. */
const UNPRINTABLE = /(?!\n)[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u

function assertHarmless(text: string, what: string): void {
  assert.doesNotMatch(text, UNPRINTABLE, `${what}: ${JSON.stringify(text)}`)
  assert.doesNotMatch(text, /^uploadr: forged/m, `${what}: ${JSON.stringify(text)}`)
}

function jsonLines(text: string) {
  return text
    .trimEnd()
    .split('\n')
    .map(line => JSON.parse(line))
}

/** A server that is not ours: takes every upload, and answers and reports as the test says. */
async function fakeServer(t: TestContext, status: number, answer: object, progress: object): Promise<string> {
  const server = http.createServer((req, res) => {
    if (req.method === 'GET') return void res.end(JSON.stringify(progress))
    req.resume().once('end', () => res.writeHead(status).end(JSON.stringify(answer)))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
}

async function aFile(t: TestContext, bytes: string | Buffer = 'hello', name = 'file.bin'): Promise<string> {
  const path = join(await tempDir(t), name)
  await writeFile(path, bytes)
  return path
}

test('hostile text in arguments and variables is told without harm', async t => {
  const module = await aFile(t, `throw new Error(${JSON.stringify(HOSTILE)})`, 'throws.mjs')
  const later = await aFile(
    t,
    `export default { name: 'later' }; setImmediate(() => { throw new Error(${JSON.stringify(HOSTILE)}) })`,
    'later.mjs',
  )
  const dir = join(await tempDir(t), 'uploads')
  const misspelled = await aFile(t, `export default { [${JSON.stringify(HOSTILE)}]() {} }`, 'misspelled.mjs')
  const cases: [args: string[], env?: Record<string, string>][] = [
    [[HOSTILE]],
    [['help', HOSTILE]],
    [['push', `--${HOSTILE}`]],
    [['push', `-${HOSTILE}`]],
    [['push', `--timeout=${HOSTILE}`, 'file']],
    [['push', '--id', HOSTILE, 'file']],
    [['push', '--type', HOSTILE, 'file']],
    [['push', '--url', HOSTILE, module]],
    [['push', HOSTILE]],
    [['push', HOSTILE, `${HOSTILE}2`]],
    [['push', 'file'], { UPLOADR_TIMEOUT: HOSTILE }],
    [['push', 'file'], { UPLOADR_JSON: HOSTILE }],
    [['push', 'file'], { [`UPLOADR_${HOSTILE}`]: '1' }],
    [['serve', `--log=${HOSTILE}`]],
    [['serve', '--dir', `/proc/${HOSTILE}`]],
    [['serve', '--host', HOSTILE]],
    [['serve', '--handler', `./${HOSTILE}`]],
    [['serve', '--port', '0', '--handler', module]],
    [['serve', '--port', '0', '--handler', misspelled]],
    // What nobody catches.
    [['serve', '--port', '0', '--dir', dir, '--handler', later]],
  ]
  for (const [args, env = {}] of cases) {
    const what = JSON.stringify([args, env])
    const running = uploadr(t, args, { env })
    assert.notEqual(await running.exited, 0, what)
    assertHarmless(running.stdout() + running.stderr(), what)
    // And as JSON, where that is what is asked for.
    const json = uploadr(t, args, { env: { ...env, UPLOADR_PROGRESS: 'json', UPLOADR_LOG: 'json' } })
    assert.notEqual(await json.exited, 0, what)
    assertHarmless(json.stdout() + json.stderr(), what)
    const told = args[0] === 'push' || (args[0] === 'serve' && !args[1]?.startsWith('--log'))
    if (told) assert.ok(jsonLines(json.stderr()).length > 0, what)
  }
})

test('hostile text of a server, in receipt, refusal and progress, is told without harm, and whole to machines', async t => {
  const path = await aFile(t)
  const file = { field: 'file', name: HOSTILE, sentAs: HOSTILE, size: 5, type: '', handler: 'x' }
  const receipt = { id: 'x', title: HOSTILE, files: [{ ...file, sha256: sha256(Buffer.from('hello')) }] }
  const problem = {
    detail: HOSTILE,
    code: HOSTILE,
    errors: { [HOSTILE]: [{ message: HOSTILE, code: HOSTILE }] },
  }
  const failed = { state: 'error', status: 422, received: 0, ...problem }
  const urls = [
    await fakeServer(t, 201, receipt, { state: 'starting' }),
    await fakeServer(t, 422, { ...problem, code: 'invalid_form' }, failed),
    await fakeServer(t, 507, problem, failed),
    await fakeServer(t, 201, { ...receipt, files: [{ ...file, size: 4 }] }, failed),
  ]
  for (const url of urls) {
    for (const args of [[], ['--json'], ['--progress', 'json'], ['--json', '--progress', 'json']]) {
      const running = uploadr(t, ['push', path, '--url', url, '--interval', '1ms', ...args])
      await running.exited
      assertHarmless(running.stdout() + running.stderr(), args.join(' '))
      if (!args.includes('--json')) continue
      const [result] = jsonLines(running.stdout())
      // Escaped, it parses to the same text.
      const told = result.ok ? result.name : result.error.message
      assert.ok(told.includes(HOSTILE), JSON.stringify(result))
    }
  }
})

test('hostile text on a terminal: nothing but the bar’s own sequences, whatever the file is called', async t => {
  const slow = gate()
  const { url } = await startServer(t, { handlers: [slow.handler] })
  const path = await aFile(t, randomFile(20_000_000), HOSTILE.replaceAll('/', ''))
  const terminal = inTerminal(t, [process.execPath, BINARY, 'push', path, '--url', url])
  await slow.reached
  await until(terminal.raw, raw => raw.includes('%'))
  slow.open()
  assert.equal(await terminal.exited, 0)
  assertHarmless(
    terminal
      .raw()
      .replace(/\r\n/g, '\n')
      .replace(/\x1b\[(?:[JK]|3[69]m)|\r/g, ''),
    'bar',
  )
})

for (const format of ['text', 'json']) {
  test(`hostile text in the log, as ${format}`, async t => {
    const server = await serve(t, ['--log', format])
    const socket = connect(server.url)
    const answer = readAnswer(socket)
    const path = Buffer.from(HOSTILE.replace(/[\r\n ]/g, ''))
    socket.write(
      Buffer.concat([
        Buffer.from('GET /'),
        path,
        Buffer.from(' HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'),
      ]),
    )
    await answer
    server.child.kill('SIGTERM')
    assert.equal(await server.exited, 0)
    assertHarmless(server.stderr(), format)
    if (format === 'json') assert.ok(jsonLines(server.stderr()).length > 0)
  })
}

test('no secret is repeated: mistyped options, options that are refused', async t => {
  const here = await aFile(t)
  const cases: [args: string[], env?: Record<string, string>][] = [
    [['push', '--tokne=hunter2', 'file']],
    [['push', "--tokne=it's=hunter2", 'file']],
    [['push', '-thunter2', 'file']],
    [['--token=hunter2', 'push', 'file']],
    [['serve', '--tokens=hunter2']],
    [['push', '--url', 'http://x:hunter2@host:99999/', here]],
    [['push', '--url', 'x:hunter2@host', here]],
    [['push', '--url', 'ftp://x:hunter2@host/', here]],
    [['push', here], { UPLOADR_URL: 'http://x:hunter2@ho st/' }],
    [['push', '--token', 'hunter2\n', here]],
    [['push', here], { UPLOADR_TOKEN: 'hunter2日' }],
    [['push', '--url', 'http://x:hunter2@host/', '--token', 'hunter2', here]],
    [['push', 'file'], { UPLOADR_TOKNE: 'hunter2' }],
  ]
  for (const [args, env = {}] of cases) {
    const running = uploadr(t, args, { env })
    assert.equal(await running.exited, 2, args.join(' '))
    assert.match(running.stderr(), /^uploadr: /)
    assert.doesNotMatch(running.stdout() + running.stderr(), /hunter2/)
  }
})

test('a message that cannot be written is lost, and the upload goes on', async t => {
  const { url, dir } = await startServer(t)
  const command = `'${process.execPath}' '${BINARY}' push '${await aFile(t, randomFile(3_000_000))}' --url ${url}`
  const script = [
    `${command} 2>/dev/full`,
    `${command} --progress json 2>&1 >/dev/null | true; exit $PIPESTATUS`,
    `${command} 2>&-`,
  ]
  for (const [i, line] of script.entries()) {
    const { code, stderr } = await run('bash', ['-c', line])
    assert.equal(code, 0, `${line}: ${stderr}`)
    assert.equal((await published(dir)).length, i + 1, line)
  }
})

test('a result that cannot be written is told and an error; one whose reader has left is neither', async t => {
  const { url, dir } = await startServer(t)
  const file = await aFile(t)
  const command = `'${process.execPath}' '${BINARY}' push '${file}' '${file}' --url ${url} --progress none`
  for (const option of ['', '--json']) {
    const full = await run('bash', ['-c', `${command} ${option} >/dev/full`])
    assert.equal(full.code, 1)
    assert.match(full.stderr, /^uploadr: cannot write to standard output: .*ENOSPC.*\n$/)
    const left = await run('bash', ['-c', `${command} ${option} | true; exit $PIPESTATUS`])
    assert.deepEqual([left.code, left.stderr], [0, ''])
  }
  const json = await run('bash', ['-c', `${command} --progress json >/dev/full`])
  assert.equal(jsonLines(json.stderr).at(-1).error.code, 'output_lost')
  // The second of two is sent whatever became of what was told of the first.
  assert.equal((await published(dir)).length, 10)
})

test('results that are lost are told beside a failure', async t => {
  const { url } = await startServer(t)
  const file = await aFile(t)
  const command = `'${process.execPath}' '${BINARY}' push '${file}' /nothing --url ${url} --progress`
  const text = await run('bash', ['-c', `${command} none >/dev/full`])
  assert.equal(text.code, 8)
  assert.match(text.stderr, /^uploadr: cannot write to standard output: .*ENOSPC.*\nuploadr: 1 of 2 files/m)
  const json = await run('bash', ['-c', `${command} json >/dev/full`])
  assert.equal(json.code, 8)
  const [lost, end] = jsonLines(json.stderr).slice(-2)
  assert.deepEqual([lost.event, lost.error.code, end.error.code], ['lost', 'output_lost', 'some_failed'])
})

test('a pipe of messages that nobody reads keeps no push', async t => {
  const { url, dir } = await startServer(t)
  const file = await aFile(t)
  // Filled to the last byte, by a reader that holds it and does not read.
  const script = `import os, subprocess, sys
r, w = os.pipe(); os.set_blocking(w, False)
for n in (4096, 1):
    try:
        while True: os.write(w, b'x' * n)
    except BlockingIOError: pass
os.set_blocking(w, True)
sys.exit(subprocess.run(sys.argv[1:], stderr=w).returncode)`
  for (const [how, path, exit] of [
    ['lines', file, 0],
    ['none', '/nothing', 3],
  ] as const) {
    const push = [process.execPath, BINARY, 'push', path, '--url', url, '--progress', how]
    assert.equal((await run('python3', ['-c', script, ...push])).code, exit)
  }
  assert.deepEqual(await published(dir), ['file.bin'])
})

test('a terminal that is held (Ctrl-S) holds neither a push nor a server', async t => {
  const folder = await tempDir(t)
  const file = await aFile(t, randomFile(30_000_000))
  const terminal = inTerminal(t, [
    process.execPath,
    BINARY,
    'serve',
    '--port',
    '0',
    '--dir',
    join(folder, 'up'),
  ])
  const screen = await until(
    () => terminal.screen().join('\n'),
    text => /http:\S+\/\n(.*\n)*.*listening/.test(text),
  )
  const url = /http:\S+\//.exec(screen)?.[0] as string
  terminal.press('\x13')
  for (let i = 0; i < 2; i++) {
    const pushing = uploadr(t, ['push', file, '--url', url, '--progress', 'none'])
    assert.equal(await pushing.exited, 0, pushing.stderr())
  }
  const slow = gate()
  const at = await startServer(t, { handlers: [slow.handler] })
  const push = inTerminal(t, [process.execPath, BINARY, 'push', file, '--url', at.url])
  await until(push.raw, raw => raw.includes('%'))
  push.press('\x13')
  slow.open()
  await until(
    () => published(at.dir),
    names => names.length === 1,
  )
  push.press('\x11')
  assert.equal(await push.exited, 0)
  assert.match(push.screen().join('\n'), /^file\.bin: 28\.6 MiB in .*verified sha-256$/m)
})

test('--progress json: every line is JSON, and the last says how it ended', async t => {
  const { url } = await startServer(t, { limits: { body: 1_000_000 } })
  const file = await aFile(t)
  const large = await aFile(t, randomFile(2_000_000))
  const cases: [args: string[], exit: number, events: string[]][] = [
    [[file, '--url', url], 0, ['stored', 'end']],
    [[large, '--url', url], 6, ['failed', 'end']],
    [[file, large, '--url', url], 8, ['stored', 'failed', 'summary', 'end']],
    [[file, '--url', 'http://127.0.0.1:1/'], 4, ['failed', 'end']],
    [['/nothing', '--url', url], 3, ['failed', 'end']],
    [[file, '--id', 'no/id'], 2, ['end']],
    [[file, '--timeout', 'long'], 2, ['end']],
    [[], 2, ['end']],
    [[file, '--no-such'], 2, ['end']],
    [[file, '--interval', '30d'], 2, ['end']],
  ]
  for (const [args, exit, expected] of cases) {
    for (const json of [
      ['--progress', 'json'],
      ['--progress=json', '--json'],
    ]) {
      const running = uploadr(t, ['push', ...args, ...json])
      assert.equal(await running.exited, exit, running.stderr())
      const events = jsonLines(running.stderr()).filter(({ event }) => event !== 'progress')
      assert.deepEqual(
        events.map(({ event }) => event),
        expected,
        args.join(' '),
      )
      const { ok, exitCode, error } = events.at(-1)
      assert.deepEqual([ok, exitCode, error?.exitCode], [exit === 0, exit, exit === 0 ? undefined : exit])
    }
  }
})

test('what looks like an option and is the value of another, or a file, is none', async t => {
  const { url } = await startServer(t)
  const cwd = join(await aFile(t, 'hello', 'hello'), '..')
  for (const args of [
    ['--title', '--progress', 'json', 'hello'],
    ['hello', '--', '--progress', 'json'],
  ]) {
    const running = uploadr(t, ['push', '--url', url, ...args], { cwd })
    assert.notEqual(await running.exited, 0)
    assert.doesNotMatch(running.stderr(), /^\{/m)
    assert.match(running.stderr(), /^uploadr: /m)
  }
})

test('a time that no timer can wait is refused, by the library too', async t => {
  for (const option of ['--grace', '--keep-alive', '--idle-timeout']) {
    const running = uploadr(t, ['serve', option, '25d'])
    assert.equal(await running.exited, 2)
    assert.match(running.stderr(), new RegExp(`^uploadr: ${option}: "25d" is longer than 24\\.8 days`))
  }
  const tooLong = { code: 'usage' }
  await assert.rejects(startServer(t, { keepAlive: 2 ** 31 }), tooLong)
  await assert.rejects(startServer(t, { limits: { idle: 2 ** 31 } }), tooLong)
  const { server } = await startServer(t)
  await assert.rejects(server.shutdown({ grace: 2 ** 31 }), tooLong)
})

test('what a server failed of is told in a line a file, without a trace of ours', async t => {
  const problem = { code: 'internal', detail: 'internal error', id: 'x' }
  const url = await fakeServer(t, 500, problem, { state: 'error', status: 500, received: 0, ...problem })
  const file = await aFile(t)
  const running = uploadr(t, ['push', file, file, '--url', url, '--progress', 'none'])
  assert.equal(await running.exited, 9)
  assert.equal(running.stderr().trimEnd().split('\n').length, 3, running.stderr())
})

test('--log json: every line is JSON, the token that was made included', async t => {
  // The loopback address, but not by a name that is known for one.
  const server = await serve(t, ['--host', '::ffff:127.0.0.1', '--log', 'json'])
  server.child.kill('SIGTERM')
  assert.equal(await server.exited, 0)
  const command = jsonLines(server.stderr()).find(({ event }) => event === 'push to it with')?.command
  assert.match(command, /^UPLOADR_TOKEN=\S{24} uploadr push FILE --url http:/)
})

for (const host of ['0.0.0.0', '::']) {
  test(`a server on ${host} prints an address that it can be reached at, the same as in the token's hint`, async t => {
    const isThere = Object.values(os.networkInterfaces()).some(list =>
      list?.some(({ family }) => (host === '::' ? family === 'IPv6' : true)),
    )
    if (!isThere) return t.skip('this machine has no IPv6')
    const server = await serve(t, ['--host', host])
    assert.notEqual(
      new URL(server.url).hostname,
      new URL(`http://${host === '::' ? '[::]' : host}/`).hostname,
    )
    await until(server.stderr, text => text.includes(`uploadr push FILE --url ${server.url}\n`))
    const token = /UPLOADR_TOKEN=(\S+)/.exec(server.stderr())?.[1] as string
    const { code } = await run(process.execPath, [
      BINARY,
      'push',
      await aFile(t),
      '--url',
      server.url,
      '--token',
      token,
    ])
    assert.equal(code, 0)
  })
}

test('the JSON of results and errors has the fields that the README and the page name, and no others', async t => {
  const { url } = await startServer(t)
  // The second time its name is taken, and there is a reason for its other one.
  const file = await aFile(t)
  const running = uploadr(t, ['push', file, file, '/nothing', '--json', '--url', url])
  assert.equal(await running.exited, 8)
  const [, stored, failed] = jsonLines(running.stdout())
  const [, section = ''] = (await readFile(join(ROOT, 'README.md'), 'utf8')).split('\n### JSON\n')
  const documented = Array.from(section.split('\n```')[0]?.matchAll(/^\| `(\w+)` \| (\w+) \|/gm) ?? [])
  const named = (...where: string[]) =>
    documented.flatMap(([, name, place]) => (where.includes(String(place)) ? [name] : []))
  assert.deepEqual(Object.keys(stored), named('both', 'stored'))
  assert.deepEqual(Object.keys(failed), named('both', 'failed'))
  const page = await readFile(join(ROOT, 'man/uploadr-push.1'), 'utf8')
  const [json = ''] = page.split('.Ss JSON\n')[1]?.split('.Fl -progress Cm json') ?? []
  const items = Array.from(json.matchAll(/^\.It Li (\w+)$/gm), ([, name]) => name)
  assert.deepEqual(items, named('both', 'stored', 'failed'))
})

test('the recipe for the stored name works as the page prints it, with a server and without', async t => {
  const probe = await run('sh', ['-c', 'command -v jq'])
  if (probe.code !== 0 && !IN_CI) return t.skip('jq is not installed')
  const page = await readFile(join(ROOT, 'man/uploadr-push.1'), 'utf8')
  const recipe = /^\.Dl \$ (uploadr push --json .*)$/m.exec(page)?.[1] as string
  const { url } = await startServer(t)
  const cwd = join(await aFile(t, 'raw', 'photo.raw'), '..')
  const inShell = (at: string) =>
    run('sh', ['-c', `uploadr() { '${process.execPath}' '${BINARY}' "$@" --url ${at}; }; ${recipe}`], { cwd })
  assert.deepEqual(await inShell(url), { code: 0, stdout: 'photo.raw\n', stderr: '' })
  const down = await inShell('http://127.0.0.1:1/')
  assert.notEqual(down.code, 0)
  assert.equal(down.stdout, '')
  assert.match(down.stderr, /^uploadr: .*ECONNREFUSED/)
})

test('a file that is stored under another name is told so, and why; several end with a summary', async t => {
  const { url } = await startServer(t)
  const push = async (...args: string[]) => {
    const running = uploadr(t, ['push', ...args, '--url', url, '--progress', 'none'])
    assert.equal(await running.exited, 0, running.stderr())
    return running.stdout().trimEnd().split('\n')
  }
  const one = await aFile(t, 'one', 'one.txt')
  assert.match((await push(one))[0] ?? '', /^one\.txt: 3 B in [\d.]+ m?s, verified sha-256$/)
  const [first, second, last] = await push(one, one)
  const taken = /^one\.txt stored as one_[A-Za-z0-9]{7}\.txt \(name taken\): 3 B in .+, verified sha-256$/
  assert.match(first ?? '', taken)
  assert.match(second ?? '', taken)
  assert.match(last ?? '', /^2 files stored: 6 B in [\d.]+ m?s$/)
  const long = `${'n'.repeat(300)}.txt`
  assert.match(
    (await push(one, '--name', long))[0] ?? '',
    /^n{300}\.txt stored as n{251}\.txt \(name shortened\): /,
  )
  assert.match((await push(one, '--name', long))[0] ?? '', /\(name shortened, name taken\): /)
  const cleaned = await push(one, '--name', 'a\u202eb.txt')
  assert.match(cleaned[0] ?? '', /^a\\u202eb\.txt stored as ab\.txt \(name cleaned\): /)
  const some = uploadr(t, ['push', one, '/nothing', '--url', url, '--progress', 'none'])
  assert.equal(await some.exited, 8)
  assert.match(some.stdout(), /^1 of 2 files stored: 3 B in [\d.]+ m?s\n$/m)
  assert.match(some.stderr(), /^uploadr: 1 of 2 files were not stored\n$/m)
  const none = uploadr(t, ['push', '/nothing', '/nothing', '--url', url])
  assert.equal(await none.exited, 3)
  assert.equal(none.stdout(), '')
  assert.match(none.stderr(), /^uploadr: none of 2 files was stored\n$/m)
})

test('a variable of no option is refused at start, with the nearest that is one; those of the other command are known', async t => {
  const file = await aFile(t)
  const { url } = await startServer(t)
  const of = (args: string[], env: Record<string, string>) => uploadr(t, args, { env })
  const push = ['push', file, '--url', url]
  const cases: [args: string[], variable: string, nearest: string][] = [
    [['serve', '--port', '0'], 'UPLOADR_MAX_SZIE', 'UPLOADR_MAX_SIZE'],
    [push, 'UPLOADR_URI', 'UPLOADR_URL'],
  ]
  for (const [args, variable, nearest] of cases) {
    const refused = of(args, { [variable]: '' })
    assert.equal(await refused.exited, 2)
    assert.match(refused.stderr(), new RegExp(`^uploadr: .*\\b${variable} .*\\b${nearest}$`, 'm'))
  }
  assert.equal(await of(push, { UPLOADR_MAX_SIZE: '1gib', UPLOADR_PORT: 'not looked at' }).exited, 0)
  // A typo is no reason to keep help from whoever looks for the right name.
  assert.equal(await of(['--help'], { UPLOADR_MAX_SZIE: '1' }).exited, 0)
})

test('a variable that nothing is near to is told without a nearest; one of Kubernetes with what keeps it away', async t => {
  const file = await aFile(t)
  const cases: [args: string[], variable: string, value: string, told: RegExp][] = [
    [['push', file], 'UPLOADR_FOO', '1', /^uploadr: environment: UPLOADR_FOO is not known\n/],
    [['push', file], 'UPLOADR_SERVICE_HOST', '1', /UPLOADR_SERVICE_HOST .*enableServiceLinks: false/],
    [['push', file], 'UPLOADR_SERVICE_PORT_HTTP', '80', /UPLOADR_SERVICE_PORT_HTTP .*enableServiceLinks: f/],
    [['serve'], 'UPLOADR_PORT_8000_TCP', 'tcp://10.0.0.1:8000', /UPLOADR_PORT_8000_TCP .*enableServiceLinks/],
    [['serve'], 'UPLOADR_WEB_PORT', 'tcp://10.0.0.1:8000', /UPLOADR_WEB_PORT .*enableServiceLinks: false/],
    [['serve'], 'UPLOADR_PORT', 'tcp://10.0.0.1:8000', /UPLOADR_PORT: .*enableServiceLinks: false/],
  ]
  for (const [args, variable, value, told] of cases) {
    const running = uploadr(t, args, { env: { [variable]: value } })
    assert.equal(await running.exited, 2, variable)
    assert.match(running.stderr(), told)
    assert.doesNotMatch(running.stderr(), /the nearest is/)
  }
})

test('a wrong value is told by the option or the variable that gave it, nothing is sent, and all usage errors end alike', async t => {
  const file = await aFile(t)
  const { url, dir } = await startServer(t)
  const long = 'x'.repeat(51)
  const values: [option: string, value: string, told: RegExp][] = [
    ['title', '', /It is empty\./],
    ['title', ' ', /It is blank\./],
    ['title', long, /a title has at most 50 characters, this one has 51/],
    ['name', '   ', /It is blank\./],
    ['id', 'a/b', /a\/b: a progress id is /],
    ['type', 'text', /text is not a media type/],
    ['url', 'ftp://host/', /ftp:\/\/host\/ is not an http or https URL/],
    ['token', 'a b', /the token has a blank/],
    ['timeout', 'long', /"long" is not a duration/],
    ['progress', 'bra', /"bra" is none of auto, bar,/],
  ]
  const told = async (args: string[], env: Record<string, string> = {}) => {
    const running = uploadr(t, args, { env })
    assert.equal(await running.exited, 2, running.stderr())
    assert.equal(running.stdout(), '')
    const [line = '', ...rest] = running.stderr().trimEnd().split('\n')
    assert.deepEqual(rest, ['(--help tells more)'], running.stderr())
    return line.replace(/^uploadr: /, '')
  }
  for (const [option, value, why] of values) {
    const at = option === 'url' ? [] : ['--url', url]
    const variable = `UPLOADR_${option.toUpperCase()}`
    const byOption = await told(['push', file, ...at, `--${option}`, value])
    assert.ok(byOption.startsWith(`--${option}: `), byOption)
    assert.match(byOption, why)
    const byVariable = await told(['push', file, ...at], { [variable]: value })
    assert.ok(byVariable.startsWith(`${variable}: `), byVariable)
    assert.match(byVariable, why)
  }
  assert.match(await told(['push', file, file], { UPLOADR_ID: 'x' }), /^UPLOADR_ID is for one file$/)
  assert.match(await told(['push', file, file, '--name', 'x']), /^--name is for one file$/)
  assert.match(await told(['serve'], { UPLOADR_HANDLER: './none.mjs' }), /^UPLOADR_HANDLER \.\/none\.mjs: /)
  await told(['bogus'])
  await told(['push', file], { UPLOADR_URI: url })
  assert.deepEqual(await published(dir), [])
})

test('an empty file and an empty name are told as what they are', async t => {
  const { url } = await startServer(t)
  const told = async (path: string) => {
    const running = uploadr(t, ['push', path, '--url', url, '--progress', 'none'])
    await running.exited
    return running.stderr()
  }
  const empty = await aFile(t, '', 'empty')
  assert.match(await told(empty), /^uploadr: \/.*\/empty: The submitted file is empty\./)
  assert.equal(await told(''), 'uploadr: "": no such file\n')
})

test('help of every command, by every way to ask for it; push alone shows its usage', async t => {
  const of = async (...args: string[]) => {
    const running = uploadr(t, args)
    const code = await running.exited
    return { code, stdout: running.stdout(), stderr: running.stderr() }
  }
  const { version } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'))
  for (const flag of ['-V', '--version'])
    assert.deepEqual(await of(flag), { code: 0, stdout: `${version}\n`, stderr: '' })
  for (const command of ['serve', 'push']) {
    const { code, stdout } = await of('help', command)
    assert.equal(code, 0)
    assert.match(stdout, new RegExp(`^Usage: uploadr ${command} `))
    assert.deepEqual(await of(command, '--help'), { code: 0, stdout, stderr: '' })
  }
  const whole = await of('help')
  assert.equal(whole.code, 0)
  assert.deepEqual(await of('--help'), whole)
  assert.match(whole.stdout, /^ {2}help \[command\] /m)
  assert.equal((await of()).code, 2)
  const alone = await of('push')
  assert.deepEqual([alone.code, alone.stdout], [2, ''])
  assert.match(
    alone.stderr,
    /^uploadr: missing required argument 'file'\nUsage: uploadr push \[options\] <file\.\.\.>\n/,
  )
})

for (const columns of [30, 40, 60, 80, 132]) {
  test(`help wraps at a terminal's ${columns} columns`, async t => {
    for (const command of [[], ['serve'], ['push']]) {
      const help = [process.execPath, BINARY, ...command, '--help'] as [string, ...string[]]
      const terminal = inTerminal(t, help, { columns, rows: 400 })
      assert.equal(await terminal.exited, 0)
      const lines = terminal.raw().split('\r\n')
      // Flags with what they take, and single words, are not broken.
      const long = lines.filter(line => line.length > columns && !/^Usage|^ *(-\S+( <\S+>)?|\S+)$/.test(line))
      assert.deepEqual(long, [])
    }
  })
}
