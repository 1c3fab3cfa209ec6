/** The real binary in a real terminal: a pty, and xterm's own screen to read. */
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import stringWidth from 'string-width'
import { MemoryProgressStore, type Progress, tap, type UploadHandler } from '../src/index.ts'
import { barLine, cutToWidth, glyphsOf } from '../src/terminal/layout.ts'
import { ofFile, percent } from '../src/terminal/percent.ts'
import { RateMeter } from '../src/terminal/rate.ts'
import { inTerminal, type Terminal, type TerminalOptions } from './pty.ts'
import {
  BINARY,
  gate,
  getProgress,
  published,
  randomFile,
  startServer,
  tempDir,
  temporaryFiles,
  until,
  uploadr,
} from './support.ts'

/** `uploadr push …` in a terminal of its own. */
function pushing(t: TestContext, args: string[], options?: TerminalOptions): Terminal {
  return inTerminal(t, [process.execPath, BINARY, 'push', ...args], options)
}

/** No place of the cursor is saved, no cursor hidden, no wrapping switched off: whatever ends it, the terminal is as it was. */
function assertNothingToGiveBack(terminal: Terminal): void {
  assert.doesNotMatch(terminal.raw(), /\x1b(?:[78]|\[[su]|\[\?(?:25|7|1049|2026)[hl])/)
}

const shownPercent = (screen: string[]) => /(\d+)%/.exec(screen.join('\n'))?.[1]

async function aFile(t: TestContext, size: number, name = 'file.bin'): Promise<string> {
  const path = join(await tempDir(t), name)
  await writeFile(path, randomFile(size))
  return path
}

/** Stops at every quarter of a file until told to go on. */
function quarters(size: number): { handler: UploadHandler; next(): void } {
  let go = () => {}
  let permitted = size / 4
  const handler: UploadHandler = {
    name: 'quarters',
    async open(file, next) {
      const inner = await next(file)
      let taken = 0
      return tap(inner, {
        async write(chunk) {
          while (taken >= permitted) await new Promise<void>(resolve => (go = resolve))
          taken += chunk.length
          await inner.write(chunk)
        },
      })
    },
  }
  return {
    handler,
    next() {
      permitted += size / 4
      go()
    },
  }
}

test('the bar shows the server’s count, not the socket’s, and never 100 % before done', async t => {
  const size = 64 * 1024 * 1024
  const slow = quarters(size)
  const answers: Progress[] = []
  // Everything the server ever told the client, in order.
  class Overheard extends MemoryProgressStore {
    override get(id: string): Progress {
      const answer = super.get(id)
      answers.push(answer)
      return answer
    }
  }
  /** Of the file, as the bar has it. */
  const shareOf = (answer: Progress) => {
    if (answer.state !== 'uploading' || answer.size === undefined) return undefined
    return percent(ofFile({ ...answer, overhead: answer.size - size } as never))
  }
  const { url } = await startServer(t, { handlers: [slow.handler], progress: new Overheard() })
  const terminal = pushing(t, [await aFile(t, size), '--url', url, '--interval', '20ms'])
  const shown: number[] = []
  terminal.onDraw(() => {
    const share = shownPercent(terminal.screen())
    if (share === undefined) return
    shown.push(Number(share))
    // Within one poll: what is on the screen is one of the shares the server has told, the last ones first.
    const told = answers.map(shareOf)
    assert.ok(share === '0' || told.includes(Number(share)), `${share} % was never the server's`)
    const latest = told.findLast(each => each !== undefined) ?? 0
    assert.ok(Number(share) <= latest, `the bar shows ${share} %, the server has ${latest} %`)
  })
  for (let quarter = 1; quarter <= 4; quarter++) {
    // The server stands still; so must the bar, at the very same number.
    const share = await until(
      () => {
        const now = answers.slice(-3).map(answer => (answer.state === 'uploading' ? answer.received : -1))
        const still = now.length === 3 && now.every(each => each === now[0] && each >= (quarter * size) / 4)
        return still ? shareOf(answers.at(-1) as Progress) : undefined
      },
      value => value !== undefined || quarter === 4,
    )
    if (quarter < 4)
      await until(
        () => shownPercent(terminal.screen()),
        value => value === String(share),
      )
    slow.next()
  }
  assert.equal(await terminal.exited, 0)
  assert.ok(
    shown.every((each, i) => each <= 99 && (i === 0 || each >= (shown[i - 1] as number))),
    shown.join(),
  )
  assert.ok(new Set(shown).size >= 3, `only saw ${[...new Set(shown)]}`)
  assert.match(terminal.screen()[0] ?? '', /^file\.bin: 64\.0 MiB in .+, verified sha-256$/)
})

for (const columns of [20, 40, 80, 200]) {
  test(`a hostile, wide name stays on one line of ${columns} columns, and the terminal unharmed`, async t => {
    const slow = gate()
    const { url } = await startServer(t, { handlers: [slow.handler] })
    const name = `日本\x1b[31m\x1b]0;owned\x07\u202Egpj.exe\r\n👩‍👩‍👧 ${'宽'.repeat(20)}.bin`
    const terminal = pushing(t, [await aFile(t, 30_000_000, name), '--url', url], { columns })
    await slow.reached
    await until(
      () => shownPercent(terminal.screen()),
      share => share !== undefined,
    )
    const lines = terminal.screen().filter(line => line !== '')
    assert.equal(lines.length, 1, lines.join('|'))
    assert.ok(stringWidth(lines[0] as string) < columns)
    slow.open()
    assert.equal(await terminal.exited, 0)
    for (const bad of ['\x1b]0;', '\x1b[31m', '\u202e']) assert.ok(!terminal.raw().includes(bad))
  })
}

test('resizing in mid-upload redraws within the new width', async t => {
  const slow = gate()
  const { url } = await startServer(t, { handlers: [slow.handler] })
  const terminal = pushing(t, [await aFile(t, 30_000_000), '--url', url], { columns: 120 })
  await slow.reached
  const line = () => terminal.screen().filter(each => each.includes('%'))
  await until(line, lines => lines.length === 1 && (lines[0] as string).length > 80)
  terminal.resize(44)
  await until(line, lines => lines.length === 1 && (lines[0] as string).length < 44)
  terminal.resize(100)
  await until(line, lines => lines.length === 1 && (lines[0] as string).length > 70)
  slow.open()
  assert.equal(await terminal.exited, 0)
})

for (const [key, where] of [
  ['\x03', 'while bytes move'],
  ['\x03\x03', 'twice'],
] as const) {
  test(`Ctrl-C ${where}: 130, the terminal as it was, nothing left on the server`, async t => {
    const slow = gate()
    const { url, dir, tmp } = await startServer(t, { handlers: [slow.handler] })
    const terminal = pushing(t, [await aFile(t, 30_000_000), '--url', url, '--id', 'ctrl-c'])
    await slow.reached
    await until(
      () => shownPercent(terminal.screen()),
      share => share !== undefined,
    )
    terminal.press(key)
    assert.equal(await terminal.exited, 130)
    assertNothingToGiveBack(terminal)
    assert.match(terminal.screen().join('\n'), /uploadr: interrupted/)
    slow.open()
    await until(
      () => getProgress(url, 'ctrl-c'),
      ({ state }) => state === 'error',
    )
    assert.deepEqual([await published(dir), await temporaryFiles({ dir, tmp })], [[], []])
  })
}

test('NO_COLOR: no colour; TERM=dumb and CI: plain lines', async t => {
  const file = await aFile(t, 20_000_000)
  // Long enough for a bar to be drawn.
  const inBar = async (env: Record<string, string>) => {
    const slow = gate()
    const { url } = await startServer(t, { handlers: [slow.handler] })
    const terminal = pushing(t, [file, '--url', url], { env })
    await until(
      () => shownPercent(terminal.screen()),
      share => share !== undefined,
    )
    slow.open()
    assert.equal(await terminal.exited, 0)
    return terminal
  }
  const colored = await inBar({})
  // biome-ignore lint/complexity/useRegexLiterals: an escape sequence, spelled once
  const sgr = new RegExp('\x1b\\[(3[0-9]|9[0-9])m')
  assert.match(colored.raw(), sgr)
  const plain = await inBar({ NO_COLOR: '1' })
  assert.doesNotMatch(plain.raw(), sgr)
  const { url } = await startServer(t)
  for (const env of [{ TERM: 'dumb' }, { CI: 'true' }]) {
    const dumb = pushing(t, [file, '--url', url], { env })
    assert.equal(await dumb.exited, 0)
    assert.doesNotMatch(dumb.raw(), /\x1b/)
    assert.match(dumb.raw(), /file\.bin: uploading 19\.1 MiB/)
  }
})

test('the server is storing: a spinner says so after the bar', async t => {
  let release = () => {}
  const released = new Promise<void>(resolve => (release = resolve))
  const storing: UploadHandler = { name: 'storing', complete: () => released }
  const { url } = await startServer(t, { handlers: [storing] })
  const terminal = pushing(t, [await aFile(t, 5_000_000), '--url', url])
  await until(
    () => terminal.screen().join('\n'),
    text => /storing file\.bin/.test(text),
  )
  assert.doesNotMatch(terminal.raw(), /100%/)
  release()
  assert.equal(await terminal.exited, 0)
  assert.equal(terminal.screen().filter(line => line !== '').length, 1)
})

test('without a terminal: plain lines on stderr, the result alone on stdout', async t => {
  const { url } = await startServer(t)
  const running = uploadr(t, ['push', await aFile(t, 3_000_000), '--url', url])
  assert.equal(await running.exited, 0)
  assert.match(running.stdout(), /^file\.bin: 2\.86 MiB in .+\n$/)
  assert.match(
    running.stderr(),
    /^file\.bin: connecting to 127\.0\.0\.1:\d+\nfile\.bin: uploading 2\.86 MiB\n/,
  )
  assert.doesNotMatch(running.stderr(), /\x1b/)
  const json = uploadr(t, ['push', await aFile(t, 3_000_000), '--url', url, '--progress', 'json'])
  assert.equal(await json.exited, 0)
  const events = json
    .stderr()
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  assert.deepEqual([events[0].event, events[0].phase], ['progress', 'connecting'])
  const none = uploadr(t, ['push', await aFile(t, 3_000_000), '--url', url, '--progress', 'none'])
  assert.equal(await none.exited, 0)
  assert.equal(none.stderr(), '')
})

/** Every choice of one of each. */
function all<A, B, C, D>(as: A[], bs: B[], cs: readonly C[], ds: D[]): [A, B, C, D][] {
  return as.flatMap(a => bs.flatMap(b => cs.flatMap(c => ds.map((d): [A, B, C, D] => [a, b, c, d]))))
}

test('a line fits any width, for any state', () => {
  const names = ['a', 'file.bin', '日本語'.repeat(30), '👩‍👩‍👧'.repeat(20), '\x1b[2J', 'e\u0301'.repeat(50)]
  const sizes = [undefined, 1, 5_000_000, 9e15]
  const sources = ['server', 'client'] as const
  for (let columns = 1; columns <= 210; columns++) {
    for (const [name, size, source, unicode] of all(names, sizes, sources, [true, false])) {
      const received = size === undefined ? 123_456_789 : Math.floor(size / 3)
      const state = {
        phase: 'uploading' as const,
        name,
        size,
        received,
        sent: 0,
        overhead: 0,
        rate: 1e9,
        source,
      }
      const line = barLine(state, columns, glyphsOf(unicode)).join('')
      assert.ok(stringWidth(line) <= Math.max(1, columns - 1), `${columns}: ${line}`)
    }
  }
  assert.equal(percent({ received: 10, size: 10 }), 99)
  assert.equal(cutToWidth('日本語', 4, '…'), '日…')
  assert.equal(cutToWidth('file.bin', 6, '...'), 'fil...')
  assert.equal(cutToWidth('file.bin', 2, '...'), '..')
})

test('for people the counts are those of the file, for machines those of the body', async t => {
  const { url } = await startServer(t)
  const path = join(await tempDir(t), 'a.txt')
  await writeFile(path, 'hello\n')
  const lines = uploadr(t, ['push', path, '--url', url])
  assert.equal(await lines.exited, 0)
  assert.match(lines.stderr(), /^a\.txt: uploading 6 B$/m)
  // A rate of so few bytes is noise.
  assert.match(lines.stdout(), /^a\.txt: 6 B in [\d.]+ m?s, verified sha-256\n$/)
  const json = uploadr(t, ['push', path, '--url', url, '--progress', 'json'])
  assert.equal(await json.exited, 0)
  const sizes = Array.from(json.stderr().matchAll(/"phase":"uploading".*"size":(\d+)/g), ([, size]) => size)
  assert.ok(sizes.length > 0 && sizes.every(size => Number(size) > 100), json.stderr())
  const of = (received: number, size?: number) =>
    ofFile({ phase: 'uploading', received, sent: received, size, overhead: 400, source: 'server' })
  assert.deepEqual([of(100, 1400).received, of(1000, 1400).received, of(1400, 1400).received], [0, 600, 1000])
  assert.deepEqual([of(1000).received, of(1000).size, percent(of(400, 400))], [600, undefined, 0])
})

for (const columns of [20, 40, 58, 80]) {
  test(`a result is broken between words at a terminal's ${columns} columns, and is one line as JSON`, async t => {
    const { url } = await startServer(t)
    const path = await aFile(t, 3_000_000, `a name of a few words, ${'宽'.repeat(4)}, and more.bin`)
    const terminal = pushing(t, [path, '--url', url, '--progress', 'none'], { columns })
    assert.equal(await terminal.exited, 0)
    const lines = terminal.screen().filter(line => line !== '')
    assert.equal(lines.length > 1, stringWidth(lines.join('')) > columns - 8, lines.join('|'))
    assert.match(
      lines.map((line, i) => (i === 0 ? line : line.trimStart())).join(' '),
      /^a name of a few words, 宽宽宽宽, and more\.bin: 2\.86 MiB in .+\/s, verified sha-256$/,
    )
    const json = pushing(t, [path, '--url', url, '--progress', 'none', '--json'], { columns, rows: 80 })
    assert.equal(await json.exited, 0)
    assert.equal(json.raw().trimEnd().split('\r\n').length, 1)
  })
}

test('a rate follows the last seconds and falls when nothing comes', () => {
  let now = 0
  const meter = new RateMeter({ now: () => now })
  assert.equal(meter.update(0), undefined)
  for (now = 100; now <= 5000; now += 100) meter.update(now * 1000)
  assert.ok(Math.abs((meter.update(5_000_000) as number) - 1e6) < 1e5)
  for (now = 5100; now <= 9000; now += 100) meter.update(5_000_000)
  assert.equal(meter.update(5_000_000), 0)
})
