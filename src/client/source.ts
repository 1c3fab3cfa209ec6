import { createHash } from 'node:crypto'
import { type BigIntStats, close, constants, fstat, open, read, readFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { basename } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { isatty } from 'node:tty'
import { promisify } from 'node:util'
import { UploadError } from '../errors.ts'
import { type Hasher, inlineHasher, threadHasher } from './hasher.ts'

/** What is to be sent: a name, a length if it is known, and the bytes, once. */
export interface Source {
  readonly name: string
  /** Why `name` is not quite what the file is called. */
  readonly renamed?: string
  /** Bytes; undefined for a pipe. */
  readonly size: number | undefined
  /**
   * The bytes, once. A chunk is valid only until the next one is asked for: its buffer is used again.
   * Throws an UploadError `local_file` where the file cannot be read or is shorter than its size.
   */
  read(): AsyncIterable<Uint8Array>
  /** Of the bytes read; to be asked for at their end, once. Lower-case hexadecimal. */
  sha256(): Promise<string>
  /** What became of the file between its opening and its last byte, as words that follow its name; undefined for nothing. */
  readonly change?: string | undefined
  /** Lets go of it, in the middle of a read too: nothing of it keeps the process from ending. */
  close(): Promise<void>
}

/** These are filled in turns. 1 MiB: 4219 MiB/s into a sink, where fresh 64 KiB buffers make 895. */
const CHUNK_SIZE = 1024 * 1024
/** One that is filled, one that is sent, one that is hashed. */
const CHUNKS = 3
/** From here on a thread for the digest is worth its start, 30 ms. */
const THREAD_MIN = 32 * CHUNK_SIZE
/** What is read of a file that says it is empty. Those of /proc say so, and are not. */
const UNSURE_SIZE = 64 * 1024
/** How long a device that has nothing yet is left alone. */
const RETRY_MS = 20

/** No open and no read waits: for the writer of a FIFO, for a key. */
const FLAGS = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0) | (constants.O_NOCTTY ?? 0)

/** Descriptors rather than FileHandles: what the event loop shall wait for, a FIFO, must be one. */
const files = {
  open: promisify(open),
  read: promisify(read),
  close: promisify(close),
  stat: (fd: number) =>
    new Promise<BigIntStats>((resolve, reject) => {
      fstat(fd, { bigint: true }, (error, stats) => (error ? reject(error) : resolve(stats)))
    }),
}

/** A file by its path, as text or bytes; what is no regular file (a FIFO, a device) is read to its end. */
export async function openFile(path: string | Buffer): Promise<Source> {
  // An empty path is an unset variable of a shell's, and is to be seen.
  const shown = path.toString() || '""'
  const fd = await files.open(path, FLAGS).catch(cause => {
    throw localError(shown, cause)
  })
  try {
    const stats = await files.stat(fd)
    if (stats.isDirectory()) throw new UploadError('local_file', `${shown} is a directory`)
    const source = stats.isFIFO()
      ? streamSource(new Socket({ fd, readable: true, writable: false }), basename(shown))
      : await FileSource.of(fd, shown, stats)
    const exact = typeof path === 'string' || Buffer.from(shown).equals(path)
    return exact ? source : Object.assign(source, { renamed: 'its name is not UTF-8' })
  } catch (error) {
    await files.close(fd)
    throw error
  }
}

const STDIN = 0

/**
 * Standard input. What comes when it comes (a pipe, a socket, a key) is a stream; everything else is read as any
 * file is, from where its last reader stopped: node's own stream of a block device or a folder is an empty one.
 */
export async function openInput(host: { readonly stdin: AsyncIterable<Uint8Array> }): Promise<Source> {
  const name = 'stdin'
  const stats = await files.stat(STDIN)
  if (stats.isDirectory()) throw new UploadError('local_file', `${name} is a directory`)
  if (stats.isFIFO() || stats.isSocket() || isatty(STDIN)) return streamSource(host.stdin, name)
  return FileSource.of(STDIN, name, stats, position(STDIN))
}

/** Where the next read begins, which the shell and what it started before share; undefined where the system does not tell. */
function position(fd: number): number | undefined {
  try {
    const [, digits] = /^pos:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1')) ?? []
    return digits === undefined ? undefined : Number(digits)
  } catch {
    return undefined
  }
}

/** A stream of unknown length, such as a pipe. */
export function streamSource(stream: AsyncIterable<Uint8Array>, name: string): Source {
  const hash = createHash('sha256')
  return {
    name,
    size: undefined,
    async *read() {
      try {
        for await (const chunk of stream) {
          hash.update(chunk)
          yield chunk
        }
      } catch (cause) {
        throw cause instanceof UploadError ? cause : localError(name, cause)
      }
    },
    sha256: async () => hash.digest('hex'),
    async close() {
      // Who reads it may wait for a chunk that never comes: an iterator can only be asked to return after it.
      const { destroy } = stream as { destroy?: unknown }
      if (typeof destroy === 'function') destroy.call(stream)
    },
  }
}

class FileSource implements Source {
  readonly name: string
  readonly size: number | undefined
  readonly #fd: number
  readonly #path: string
  /** What was known of it when it was opened, and when all of it was read. */
  readonly #opened: BigIntStats
  #read: BigIntStats | undefined
  /** What was read to know how much there is: of a small file, all. */
  readonly #first: Uint8Array
  readonly #whole: boolean
  #hasher: Hasher | undefined
  #reading: Promise<unknown> | undefined
  #closed = false

  private constructor(
    fd: number,
    path: string,
    opened: BigIntStats,
    start: { size: number | undefined; first: Uint8Array; whole: boolean },
  ) {
    this.#fd = fd
    this.#path = path
    this.name = basename(path)
    this.#opened = opened
    this.size = start.size
    this.#first = start.first
    this.#whole = start.whole
  }

  /**
   * What a small file's size says is not believed: files of /proc say 0, those of /sys 4096, whatever
   * they hold. They are read here, as far as a chunk goes; and so is every other file that small.
   */
  static async of(
    fd: number,
    path: string,
    stats: BigIntStats,
    from: number | undefined = 0,
  ): Promise<FileSource> {
    const said = from === undefined ? Number.POSITIVE_INFINITY : Math.max(0, Number(stats.size) - from)
    if (!stats.isFile() || said > CHUNK_SIZE) {
      const size = stats.isFile() && from !== undefined ? said : undefined
      return new FileSource(fd, path, stats, { size, first: Buffer.alloc(0), whole: false })
    }
    const room = Buffer.allocUnsafeSlow(said || UNSURE_SIZE)
    const { bytes: first, ended } = await fill(fd, path, room, room.length, () => false)
    // A file that says 0 and fills the room goes on, nobody knows how far; so does one that has nothing more yet.
    const whole = said > 0 ? ended || first.length === said : ended
    return new FileSource(fd, path, stats, { size: whole ? first.length : undefined, first, whole })
  }

  async *read(): AsyncGenerator<Uint8Array> {
    const large = this.size === undefined ? !this.#opened.isFile() : this.size >= THREAD_MIN
    const shared = large ? new SharedArrayBuffer(CHUNKS * CHUNK_SIZE) : undefined
    const hasher = shared ? threadHasher(shared) : inlineHasher()
    this.#hasher = hasher
    if (this.#first.length > 0) {
      hasher.update(this.#first)
      yield this.#first
    }
    if (!this.#whole) yield* this.#rest(shared, hasher)
    this.#read = await files.stat(this.#fd)
  }

  /**
   * While the socket drains one buffer and the hasher reads it, the next read fills another. undici asks
   * for the next chunk only when the last one has drained, as a chunk is larger than its high-water
   * mark; so every chunk but the last has to be full, and test/push.test.ts guards the rest.
   */
  async *#rest(shared: SharedArrayBuffer | undefined, hasher: Hasher): AsyncGenerator<Uint8Array> {
    const memory = shared ? Buffer.from(shared) : Buffer.allocUnsafeSlow(CHUNKS * CHUNK_SIZE)
    const buffers = Array.from({ length: CHUNKS }, (_, i) => {
      return { bytes: memory.subarray(i * CHUNK_SIZE, (i + 1) * CHUNK_SIZE), hashed: undefined as Waiting }
    })
    // What a file grows by while it is sent is not sent: the length was promised.
    const end = this.size ?? Number.POSITIVE_INFINITY
    const next = ({ bytes, hashed }: (typeof buffers)[number], from: number) => {
      const filling = Promise.resolve(hashed).then(() =>
        fill(this.#fd, this.#path, bytes, Math.min(bytes.length, end - from), () => !this.#closed),
      )
      // Nobody may wait for it any more; but the descriptor is not given up under it.
      this.#reading = filling.catch(() => {})
      return filling
    }
    let position = this.#first.length
    for (let turn = 0, filling = next(at(buffers, turn), position); position < end; turn++) {
      const { bytes: chunk, ended } = await filling
      position += chunk.length
      // A terminal has an end as often as it is asked.
      if (position < end && !ended) filling = next(at(buffers, turn + 1), position)
      if (chunk.length > 0) {
        at(buffers, turn).hashed = hasher.update(chunk)
        yield chunk
      }
      if (ended) break
    }
    if (this.size !== undefined && position < this.size) {
      const sizes = `from ${this.size} to ${position} bytes`
      throw new UploadError('local_file', `${this.#path} shrank ${sizes} while it was sent`)
    }
  }

  sha256(): Promise<string> {
    return (this.#hasher ?? inlineHasher()).digest()
  }

  get change(): string | undefined {
    // What is no regular file has times of its own: a terminal, of the last key.
    if (!this.#opened.isFile()) return undefined
    const [before, after = before] = [this.#opened, this.#read]
    if (after.size !== before.size) return `went from ${before.size} to ${after.size} bytes`
    if (after.mtimeNs !== before.mtimeNs) return 'was written to'
    // The time of the content can be set back; that of the inode cannot, but a new name changes it, too.
    return after.ctimeNs === before.ctimeNs ? undefined : 'was changed, or renamed or the like,'
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#reading
    await this.#hasher?.close()
    if (this.#fd !== STDIN) await files.close(this.#fd)
  }
}

/** Reads until `wanted` bytes are there, or the file ends, or has no more yet and nobody waits; a single read may return less. */
async function fill(
  fd: number,
  path: string,
  buffer: Uint8Array,
  wanted: number,
  waits: () => boolean,
): Promise<{ bytes: Uint8Array; ended: boolean }> {
  let filled = 0
  let ended = false
  while (filled < wanted && !ended) {
    try {
      // A pipe has no positions, and nobody else reads here.
      const { bytesRead } = await files.read(fd, buffer, filled, wanted - filled, null)
      filled += bytesRead
      ended = bytesRead === 0
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EAGAIN') throw localError(path, cause)
      if (waits()) await delay(RETRY_MS)
      if (!waits()) break
    }
  }
  return { bytes: buffer.subarray(0, filled), ended }
}

type Waiting = Promise<void> | undefined

function at<T>(ring: readonly T[], turn: number): T {
  return ring[turn % ring.length] as T
}

const REASONS: Record<string, string> = {
  ENOENT: 'no such file',
  EACCES: 'permission denied',
  EISDIR: 'is a directory',
  EIO: 'the disk cannot read it',
}

function localError(path: string, cause: unknown): UploadError {
  const { code, message } = cause as NodeJS.ErrnoException
  return new UploadError('local_file', `${path}: ${REASONS[code ?? ''] ?? message}`, { cause })
}
