import { createHash } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { basename } from 'node:path'
import { UploadError } from '../errors.ts'
import { type Hasher, inlineHasher, threadHasher } from './hasher.ts'

/** What is to be sent: a name, a length if it is known, and the bytes, once. */
export interface Source {
  readonly name: string
  /** Bytes; undefined for a pipe. */
  readonly size: number | undefined
  /**
   * The bytes, once. A chunk is valid only until the next one is asked for: its buffer is used again.
   * Throws an UploadError `local_file` where the file cannot be read or is shorter than its size.
   */
  read(): AsyncIterable<Uint8Array>
  /** Of the bytes read; to be asked for at their end, once. Lower-case hexadecimal. */
  sha256(): Promise<string>
  close(): Promise<void>
}

/** These are filled in turns. 1 MiB: 4219 MiB/s into a sink, where fresh 64 KiB buffers make 895. */
const CHUNK_SIZE = 1024 * 1024
/** One that is filled, one that is sent, one that is hashed. */
const CHUNKS = 3
/** From here on a thread for the digest is worth its start, 30 ms. */
const THREAD_MIN = 32 * CHUNK_SIZE

/** A file by its path; what is no regular file (a FIFO, a device) is read to its end. */
export async function openFile(path: string): Promise<Source> {
  let handle: FileHandle
  try {
    handle = await open(path, 'r')
  } catch (cause) {
    throw localError(path, cause)
  }
  const stats = await handle.stat()
  if (stats.isDirectory()) {
    await handle.close()
    throw new UploadError('local_file', `${path} is a directory`)
  }
  return new FileSource(handle, path, stats.isFile() ? stats.size : undefined)
}

/** A stream of unknown length, such as standard input. */
export function streamSource(stream: AsyncIterable<Uint8Array>, name: string): Source {
  const hash = createHash('sha256')
  return {
    name,
    size: undefined,
    async *read() {
      for await (const chunk of stream) {
        hash.update(chunk)
        yield chunk
      }
    },
    sha256: async () => hash.digest('hex'),
    async close() {},
  }
}

class FileSource implements Source {
  readonly name: string
  readonly size: number | undefined
  readonly #handle: FileHandle
  readonly #path: string
  readonly #memory = new SharedArrayBuffer(CHUNKS * CHUNK_SIZE)
  readonly #hasher: Hasher
  #reading: Promise<unknown> | undefined

  constructor(handle: FileHandle, path: string, size: number | undefined) {
    this.#handle = handle
    this.#path = path
    this.name = basename(path)
    this.size = size
    this.#hasher = size !== undefined && size < THREAD_MIN ? inlineHasher() : threadHasher(this.#memory)
  }

  /**
   * While the socket drains one buffer and the hasher reads it, the next read fills another. undici asks
   * for the next chunk only when the last one has drained, as a chunk is larger than its high-water
   * mark; so every chunk but the last has to be full, and test/push.test.ts guards the rest.
   */
  async *read(): AsyncGenerator<Uint8Array> {
    const buffers = Array.from({ length: CHUNKS }, (_, i) => {
      return { bytes: Buffer.from(this.#memory, i * CHUNK_SIZE, CHUNK_SIZE), hashed: undefined as Waiting }
    })
    // What a file grows by while it is sent is not sent: the length was promised.
    const end = this.size ?? Number.POSITIVE_INFINITY
    const fill = async ({ bytes, hashed }: (typeof buffers)[number], from: number) => {
      await hashed
      return this.#fill(bytes, from, end)
    }
    let position = 0
    for (let turn = 0, filling = fill(at(buffers, turn), 0); position < end; turn++) {
      const chunk = await filling
      if (chunk.length === 0) break
      position += chunk.length
      if (position < end) filling = this.#ahead(fill(at(buffers, turn + 1), position))
      at(buffers, turn).hashed = this.#hasher.update(chunk)
      yield chunk
    }
    if (this.size !== undefined && position < this.size) {
      const sizes = `from ${this.size} to ${position} bytes`
      throw new UploadError('local_file', `${this.#path} shrank ${sizes} while it was sent`)
    }
  }

  sha256(): Promise<string> {
    return this.#hasher.digest()
  }

  async close(): Promise<void> {
    await this.#reading
    await this.#hasher.close()
    await this.#handle.close()
  }

  /** A read that nobody waits for yet: a consumer that stops asking does not see it reject. */
  #ahead<T>(reading: Promise<T>): Promise<T> {
    this.#reading = reading.catch(() => {})
    return reading
  }

  /** Reads until the buffer is full or the file ends; a single read may return less. */
  async #fill(buffer: Buffer, position: number, end: number): Promise<Uint8Array> {
    const wanted = Math.min(buffer.length, end - position)
    let filled = 0
    try {
      while (filled < wanted) {
        // A pipe has no positions.
        const at = this.size === undefined ? null : position + filled
        const { bytesRead } = await this.#handle.read(buffer, filled, wanted - filled, at)
        if (bytesRead === 0) break
        filled += bytesRead
      }
    } catch (cause) {
      throw localError(this.#path, cause)
    }
    return buffer.subarray(0, filled)
  }
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
