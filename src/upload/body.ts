import type { IncomingMessage } from 'node:http'
import { Socket, type SocketConstructorOpts } from 'node:net'
import type { Awaitable } from '../protocol.ts'

/** Takes a chunk. Its memory is used again once the call has settled. */
export type Take = (chunk: Buffer) => Awaitable<void>

/** The body of one request, on its way from the connection to whoever takes its chunks. */
export abstract class Body {
  readonly #counted: (bytes: number) => void
  #take!: Take
  #settle: { resolve: () => void; reject: (reason: unknown) => void } | undefined
  #waiting = false
  #ended = false
  /** In an object: anything can be thrown, undefined too. */
  #failure: { reason: unknown } | undefined

  /** `counted` is told of all bytes as they arrive. */
  constructor(counted: (bytes: number) => void) {
    this.#counted = counted
  }

  /**
   * Gives every chunk to `take`, in order, never while an earlier call is unsettled. Resolves when all
   * were taken; rejects with what `take` threw, or `fail` was told, once no call is unsettled any more.
   */
  read(take: Take): Promise<void> {
    this.#take = take
    return new Promise((resolve, reject) => {
      this.#settle = { resolve, reject }
      this.start()
    })
  }

  /** Ends the reading. */
  fail(reason: unknown): void {
    if (this.#failure) return
    this.#failure = { reason }
    this.stop()
    this.#settleIfDone()
  }

  /** Whether a chunk is being taken: while it is, silence is not the client's. */
  get waiting(): boolean {
    return this.#waiting
  }

  get hasFailed(): boolean {
    return this.#failure !== undefined
  }

  /** Begins to `give`, and goes on with it whenever it was told `taken`, until `stop`. */
  protected abstract start(): void
  protected abstract taken(): void
  protected abstract stop(): void

  protected count(bytes: number): boolean {
    try {
      this.#counted(bytes)
      return true
    } catch (error) {
      this.fail(error)
      return false
    }
  }

  /** True where the chunk has been taken at once; otherwise `taken` comes, unless the reading has failed. */
  protected give(chunk: Buffer): boolean {
    try {
      const wait = this.#take(chunk)
      if (!wait) return true
      this.#waiting = true
      wait.then(
        () => this.#took(),
        reason => {
          this.#waiting = false
          this.fail(reason)
          this.#settleIfDone()
        },
      )
    } catch (error) {
      this.fail(error)
    }
    return false
  }

  protected end(): void {
    this.#ended = true
    this.#settleIfDone()
  }

  #took(): void {
    this.#waiting = false
    if (!this.#failure) this.taken()
    this.#settleIfDone()
  }

  #settleIfDone(): void {
    if (this.#waiting) return
    if (this.#failure) this.#settle?.reject(this.#failure.reason)
    else if (this.#ended) this.#settle?.resolve()
  }
}

/** A body as node hands it out. */
class HttpBody extends Body {
  readonly #req: IncomingMessage

  constructor(req: IncomingMessage, counted: (bytes: number) => void) {
    super(counted)
    this.#req = req
  }

  protected start(): void {
    this.#req.on('data', this.#onData)
    this.#req.on('end', this.#onEnd)
  }

  protected taken(): void {
    this.#req.resume()
  }

  protected stop(): void {
    this.#req.off('data', this.#onData)
    this.#req.off('end', this.#onEnd)
    this.#req.pause()
  }

  readonly #onData = (chunk: Buffer): void => {
    if (this.count(chunk.length) && !this.give(chunk)) this.#req.pause()
  }

  readonly #onEnd = (): void => {
    if (this.#req.complete) this.end()
  }
}

/** From this length on a body is read directly, unless told otherwise. Below, a connection that is kept is worth more. */
const DIRECT_MIN = 4 * 1024 * 1024
/** A body read directly fills blocks of this size; smaller ones where many are read at once. */
const BLOCK_MAX = 1024 * 1024
const BLOCK_MIN = 64 * 1024
const BLOCKS_TOTAL = 96 * 1024 * 1024
/** A block with less room than this is full: small reads cost as much as large ones. */
const ROOM_MIN = 32 * 1024
/** Full blocks that wait to be taken before no more is read. */
const WAITING_MAX = 1
/** So many bytes are given at once, whether or not their block is full. */
const WORTHWHILE = 256 * 1024
/** How long, in milliseconds, a block may fill before it is given as it is. */
const FILL_MS = 10
/** Where bytes go that nobody wants. */
const waste = Buffer.allocUnsafeSlow(BLOCK_MIN)

/** How many bodies are read directly now. */
let directBodies = 0

const direct = new WeakMap<IncomingMessage, DirectBody>()

/**
 * A large body, read from the connection into blocks that are used again and again, past node's
 * parser. node reads 64 KiB at a time and copies each into a buffer of its own; here a read is up to a
 * megabyte, not copied, and written to the file from where it is. That takes 0.5 s of CPU a GiB less.
 *
 * node's parser never sees the end of such a body, so the connection closes after its answer.
 */
class DirectBody extends Body {
  readonly #req: IncomingMessage
  readonly #socket: Socket
  #blockSize = 0
  /** Bytes that have not arrived. */
  #left: number
  /** The block that is being filled; up to where it is, and up to where that was given. */
  #block: Buffer = waste
  #filled = 0
  #given = 0
  /** Full blocks in order, and the part of each that was not given. */
  readonly #waitingBlocks: { block: Buffer; rest: Buffer }[] = []
  readonly #freeBlocks: Buffer[] = []
  /** A full block whose last bytes are being taken. */
  #leaving: Buffer | undefined
  /** Runs while there are bytes in a block that is not full; when it is over they are given. */
  #filling: NodeJS.Timeout | undefined
  #isDue = false
  #stopped = false
  #isDropping = false

  constructor(req: IncomingMessage, size: number, counted: (bytes: number) => void) {
    super(counted)
    this.#req = req
    this.#socket = req.socket
    this.#left = size
  }

  get complete(): boolean {
    return this.#left === 0
  }

  /** Reads on for nobody. */
  drop(): void {
    this.#isDropping = true
    this.#socket.resume()
  }

  protected start(): void {
    directBodies++
    this.#req.once('close', () => directBodies--)
    const share = BLOCKS_TOTAL / 2 / directBodies
    this.#blockSize = Math.max(BLOCK_MIN, Math.min(BLOCK_MAX, 2 ** Math.floor(Math.log2(share))))
    // Later: node's parser may be in the midst of a read of its own.
    setImmediate(() => {
      if (this.#stopped || this.#req.destroyed) return
      this.#block = Buffer.allocUnsafeSlow(this.#blockSize)
      // A short one may be here already; then node's parser has gone on to what follows.
      if (!this.#req.complete) this.#takeOver()
      // What came with the head. node 26 hands it out piece by piece.
      for (let early = this.#req.read() as Buffer | null; early; early = this.#req.read() as Buffer | null) {
        this.#left -= early.length
        if (!this.count(early.length)) return
        this.#waitingBlocks.push({ block: early, rest: early })
      }
      this.#pump()
      this.#socket.resume()
    })
  }

  #takeOver(): void {
    direct.set(this.#req, this)
    readInto(this.#socket, { buffer: this.#room, callback: this.#onRead })
  }

  protected taken(): void {
    this.#free()
    this.#pump()
    if (this.#waitingBlocks.length < WAITING_MAX) this.#socket.resume()
  }

  protected stop(): void {
    this.#stopped = true
    clearTimeout(this.#filling)
    this.#socket.pause()
  }

  /** Where the next read may write. */
  readonly #room = (): Buffer => {
    if (this.#isDropping || this.#left === 0) return waste
    return this.#block.subarray(this.#filled)
  }

  /** Told of every read; false for no more of them. */
  readonly #onRead = (bytes: number): boolean => {
    if (this.#isDropping) return true
    if (this.#stopped) return false
    // More than its length is nobody's: the connection closes after this request.
    const own = Math.min(bytes, this.#left)
    if (own === 0) return true
    this.#left -= own
    this.#filled += own
    if (!this.count(own)) return false
    if (this.#filled > this.#blockSize - ROOM_MIN) this.#changeBlock()
    this.#pump()
    return this.#waitingBlocks.length < WAITING_MAX
  }

  #changeBlock(): void {
    const block = this.#block
    if (this.#given < this.#filled) {
      this.#waitingBlocks.push({ block, rest: block.subarray(this.#given, this.#filled) })
    } else if (this.waiting) this.#leaving = block
    else this.#freeBlocks.push(block)
    this.#block = this.#freeBlocks.pop() ?? Buffer.allocUnsafeSlow(this.#blockSize)
    this.#filled = 0
    this.#given = 0
  }

  #pump(): void {
    while (!this.waiting && !this.#stopped) {
      const chunk = this.#nextBlock() ?? this.#nextOfBlock()
      if (!chunk) {
        if (this.#left === 0) this.end()
        return
      }
      if (!this.give(chunk)) return
      this.#free()
    }
  }

  #nextBlock(): Buffer | undefined {
    const waiting = this.#waitingBlocks.shift()
    this.#leaving = waiting?.block
    return waiting?.rest
  }

  /** What is in the block that is being filled, where it is the end or has waited long enough to become more. */
  #nextOfBlock(): Buffer | undefined {
    const bytes = this.#filled - this.#given
    if (bytes === 0) return undefined
    if (bytes < WORTHWHILE && this.#left > 0 && !this.#isDue) {
      this.#filling ??= setTimeout(this.#due, FILL_MS)
      return undefined
    }
    this.#isDue = false
    const chunk = this.#block.subarray(this.#given, this.#filled)
    this.#given = this.#filled
    return chunk
  }

  readonly #due = (): void => {
    this.#filling = undefined
    this.#isDue = true
    this.#pump()
  }

  #free(): void {
    if (this.#leaving?.length === this.#blockSize) this.#freeBlocks.push(this.#leaving)
    this.#leaving = undefined
  }
}

/** The body of a request of `size` bytes; `counted` is told of them as they arrive, and may throw. */
export function bodyOf(
  req: IncomingMessage,
  size: number | undefined,
  counted: (bytes: number) => void,
  directMin = DIRECT_MIN,
): Body {
  const isLarge = size !== undefined && size >= directMin
  return isLarge && canReadInto(req.socket) ? new DirectBody(req, size, counted) : new HttpBody(req, counted)
}

/** Whether all of a request's body has arrived. node alone does not know it of one that was read directly. */
export function hasArrived(req: IncomingMessage): boolean {
  return req.complete || (direct.get(req)?.complete ?? false)
}

/** Whether the connection can be used for another request. */
export function isReusable(req: IncomingMessage): boolean {
  return !direct.has(req)
}

/** Reads for nobody what still comes on a connection: the rest of a request's body, and what is behind it. */
export function dropRest(socket: Socket, req?: IncomingMessage): void {
  const body = req && direct.get(req)
  if (body) return body.drop()
  // What makes node's parser let go of the connection. It alone can start a connection again that it has stopped.
  const take = () => void socket.removeAllListeners('data').on('data', () => {})
  if (!socket.isPaused()) return take()
  socket.once('resume', take)
  socket.resume()
}

interface OnRead {
  buffer: () => Buffer
  callback: (bytes: number) => boolean
}

/** What node keeps of a socket's documented option `onread`, which it offers to outgoing connections alone. */
const ONREAD_KEYS = Object.getOwnPropertySymbols(new Socket()).filter(({ description }) =>
  ['kBuffer', 'kBufferCb', 'kBufferGen'].includes(description ?? ''),
)

interface Inside {
  [key: symbol]: unknown
  _handle?: { useUserBuffer?: (buffer: Buffer) => void } | null
}

/** Whether this node's sockets are as `readInto` knows them: those of 20 to 26 are. */
function canReadInto(socket: Socket): boolean {
  const inside = socket as unknown as Inside
  return (
    ONREAD_KEYS.length === 3 &&
    ONREAD_KEYS.every(key => inside[key] === null) &&
    typeof inside._handle?.useUserBuffer === 'function'
  )
}

/** Gives an accepted connection that node's http parser reads the option `onread`, for the rest of its life. */
function readInto(socket: Socket, onread: OnRead): void {
  const inside = socket as unknown as Inside
  const donor = new Socket({ onread } as SocketConstructorOpts) as unknown as Inside
  // What makes node's parser let go of the connection.
  socket.on('data', () => {})
  const first = onread.buffer()
  for (const key of ONREAD_KEYS) inside[key] = donor[key] === true ? first : donor[key]
  inside._handle?.useUserBuffer?.(first)
}
