/** A real terminal: a pty, and xterm's own screen to read. */
import type { TestContext } from 'node:test'
import pty from '@lydell/node-pty'
import xterm from '@xterm/headless'

export interface Terminal {
  pid: number
  /** The screen's lines, without trailing blanks. */
  screen(): string[]
  /** Everything written, escapes and all. */
  raw(): string
  /** Called after every write that the screen has taken in. */
  onDraw(draw: () => void): void
  resize(columns: number): void
  press(keys: string): void
  /** Takes the terminal away from whoever runs in it. */
  hangUp(): void
  /** Exit code, or 128 and the number of the signal, as shells have it. */
  exited: Promise<number>
}

export interface TerminalOptions {
  columns?: number
  rows?: number
  env?: Record<string, string>
  cwd?: string
}

/** A program in a terminal of its own; killed when the test ends. */
export function inTerminal(
  t: TestContext,
  [program, ...args]: [string, ...string[]],
  options: TerminalOptions = {},
): Terminal {
  const { columns = 80, rows = 12, env = {}, cwd } = options
  const { CI: _, NO_COLOR: __, ...inherited } = process.env
  const child = pty.spawn(program, args, {
    cols: columns,
    rows,
    name: env['TERM'] ?? 'xterm-256color',
    env: { ...(inherited as Record<string, string>), LC_ALL: 'C.UTF-8', ...env },
    ...(cwd !== undefined && { cwd }),
  })
  const terminal = new xterm.Terminal({ cols: columns, rows, allowProposedApi: true })
  let raw = ''
  let draw = () => {}
  child.onData(data => {
    raw += data
    terminal.write(data, () => draw())
  })
  const exited = new Promise<number>(resolve => {
    child.onExit(({ exitCode, signal }) =>
      terminal.write('', () => resolve(signal ? 128 + signal : exitCode)),
    )
  })
  t.after(async () => {
    try {
      child.kill('SIGKILL')
    } catch {}
    await exited
    terminal.dispose()
  })
  return {
    pid: child.pid,
    screen: () => {
      const { active } = terminal.buffer
      return Array.from({ length: active.length }, (_, y) => active.getLine(y)?.translateToString(true) ?? '')
    },
    raw: () => raw,
    onDraw: listener => (draw = listener),
    resize: to => {
      terminal.resize(to, rows)
      child.resize(to, rows)
    },
    press: keys => child.write(keys),
    hangUp: () => (child as unknown as { destroy(): void }).destroy(),
    exited,
  }
}
