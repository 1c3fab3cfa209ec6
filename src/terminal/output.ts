import { UploadError } from '../errors.ts'
import { ascii, type LineSink, printable, printableLines } from '../log.ts'
import { isForeground } from './foreground.ts'

/** A terminal, or what stands where one is expected. */
export interface OutputStream extends NodeJS.WritableStream {
  isTTY?: boolean
  columns?: number
  /** Bytes that wait to be written. */
  writableLength?: number
}

/** A line that is drawn over and over: what stands before, within and behind its coloured part. */
export type LiveLine = readonly [before: string, colored: string, after: string]

const COLOR = '\x1b[36m'
const PLAIN = '\x1b[39m'
const CLEAR_RIGHT = '\x1b[K'
const CLEAR_LINE = `\r${CLEAR_RIGHT}`
const CLEAR_BELOW = '\x1b[J'
/** What may wait for a reader that does not read: a pager, a terminal that is held (Ctrl-S). More is lost. */
const WAITING_MAX = 1024 * 1024
/** How long such a reader is given at the end. */
const FLUSH_MS = 200

/**
 * Everything that is printed goes out here, made harmless: a terminal obeys whatever a name, an argument
 * or a server's answer holds. Commands are handed no stream, so there is no other way out.
 *
 * The upload matters more than what is told of it: a message that cannot be written is lost, and a result
 * whose reader has left (`| head -1`) is none of its business; one that is lost otherwise is an error in the end.
 */
export class Output {
  /** Whether letters beyond ASCII may be drawn: the locale is one of UTF-8, found as setlocale(3) finds it. */
  readonly unicode: boolean
  readonly #stdout: OutputStream
  readonly #stderr: OutputStream
  /** https://no-color.org: present and not empty. */
  readonly #color: boolean
  /** The columns that the live line was drawn for; 0 while none has been. */
  #drawnFor = 0
  /** Whether the terminal has been another's since the last drawing. */
  #away = false
  #unwritten: NodeJS.ErrnoException | undefined

  constructor({
    stdout,
    stderr,
    env,
  }: { stdout: OutputStream; stderr: OutputStream; env: NodeJS.ProcessEnv }) {
    this.#stdout = stdout
    this.#stderr = stderr
    this.#color = !env['NO_COLOR']
    this.unicode = /utf-?8/i.test(env['LC_ALL'] || env['LC_CTYPE'] || env['LANG'] || '')
    stdout.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') this.#unwritten ??= error
    })
    stderr.on('error', () => {})
    unblock(stdout)
    unblock(stderr)
  }

  /** Whether a person is there to see what is drawn. */
  get isTerminal(): boolean {
    return this.#stderr.isTTY === true
  }

  get columns(): number {
    return this.#stderr.columns || 80
  }

  /** Of the terminal that results go to; undefined where they go elsewhere. */
  get resultColumns(): number | undefined {
    return this.#stdout.isTTY ? this.#stdout.columns || 80 : undefined
  }

  /** Text from outside as the live line shows it: what is laid out by its width must be that already. */
  shown(text: string): string {
    return this.#harmless(this.#stderr, printable(text))
  }

  /** One line on standard output. */
  result(text: string): void {
    this.#print(this.#stdout, `${printable(text)}\n`)
  }

  /** One line on standard error. */
  message(text: string): void {
    this.#print(this.#stderr, `${printable(text)}\n`)
  }

  /** Text of several lines that are all our own, such as help: on standard output, or on standard error. */
  readonly page = { write: (text: string): void => this.#print(this.#stdout, text) } satisfies LineSink
  readonly log = { write: (text: string): void => this.#print(this.#stderr, text) } satisfies LineSink

  /** Resolves when the results are written or their reader has left; rejects where they could not be. */
  async written(): Promise<void> {
    await new Promise<void>(resolve => this.#stdout.write('', () => resolve()))
    const cause = this.#unwritten
    if (cause)
      throw new UploadError('output_lost', `cannot write to standard output: ${cause.message}`, { cause })
  }

  /** Resolves when the messages are written, or nobody reads them. */
  async flushed(): Promise<void> {
    if (!this.#stderr.writableLength) return
    await new Promise<void>(resolve => {
      setTimeout(resolve, FLUSH_MS)
      this.#stderr.write('', () => resolve())
    })
  }

  /**
   * Draws the live line in the cursor's, and leaves the cursor at its beginning: what others print there
   * takes its place, what the terminal echoes (^C) does not wrap, and there is nothing to give back.
   * A job in the background draws nothing.
   */
  draw(line: LiveLine): void {
    // The old one is not to be seen yet.
    if (this.#stderr.writableLength) return
    if (!isForeground()) {
      this.#away = true
      return
    }
    if (this.#away) {
      // Of a new size only the foreground is told (SIGWINCH), and whoever asks: the next drawing has it.
      this.#away = false
      process.kill(process.pid, 'SIGWINCH')
      return
    }
    const [before, colored, after] = line.map(part => this.shown(part)) as [string, string, string]
    const painted = this.#color && colored !== '' ? `${COLOR}${colored}${PLAIN}` : colored
    // What a terminal of another width made of the old line is in the cursor's line and below.
    const clear = this.#drawnFor > 0 && this.#drawnFor !== this.columns ? CLEAR_BELOW : ''
    this.#drawnFor = this.columns
    this.#stderr.write(`\r${clear}${before}${painted}${after}${CLEAR_RIGHT}\r`)
  }

  /** Takes the live line away. */
  erase(): void {
    const clear = this.#clear(this.#stderr)
    if (clear) this.#stderr.write(clear)
  }

  /** Takes the live line away, and the terminal is another's for a while. */
  leave(): void {
    this.erase()
    this.#away = true
  }

  #print(stream: OutputStream, text: string): void {
    if (stream === this.#stderr && (stream.writableLength ?? 0) > WAITING_MAX) return
    stream.write(this.#clear(stream) + this.#harmless(stream, printableLines(text)))
  }

  /** Makes room where a live line may stand, and be it that of another push in the same terminal. */
  #clear(stream: OutputStream): string {
    return this.#drawnFor > 0 && stream.isTTY && isForeground() ? CLEAR_LINE : ''
  }

  /** A terminal of one byte a letter takes the bytes of UTF-8 for controls: U+4E9B is E4 BA 9B, and 9B begins a sequence. */
  #harmless(stream: OutputStream, text: string): string {
    return stream.isTTY && !this.unicode ? ascii(text) : text
  }
}

/**
 * node writes to a terminal blockingly: one that is held would hold every upload. Only where libuv has opened it
 * anew, under a number of its own, is it ours alone: any other is the shell's too, whose reads would no longer wait.
 */
function unblock(stream: OutputStream): void {
  const { _handle: handle } = stream as { _handle?: { fd: number; setBlocking?(blocking: boolean): unknown } }
  if (stream.isTTY && handle && handle.fd > 2) handle.setBlocking?.(false)
}
