import type { IncomingHttpHeaders } from 'node:http'
import type { UploadError } from '../errors.ts'
import type { Awaitable, Phase, StoredFile } from '../protocol.ts'
import type { StagedFile } from '../storage/storage.ts'
import type { WantedDigest } from './content-digest.ts'

/** One request on its way in, as handlers see it. Its numbers move while it runs. */
export interface Upload {
  /** The progress id, the client's or one made for it. */
  readonly id: string
  /** The request's Content-Length in bytes, undefined for a chunked body. */
  readonly size: number | undefined
  /** Raw body bytes that have arrived: preambles and boundaries included, so that the end is `size`. */
  readonly received: number
  readonly phase: Phase
  readonly headers: IncomingHttpHeaders
  /** The client's address. */
  readonly from: string
  /** When the request arrived. */
  readonly time: Date
}

/** A file part, as its headers announce it. */
export interface FileInfo {
  readonly field: string
  /** Cleaned: one plain path component of at most 255 UTF-8 bytes. */
  readonly name: string
  /** The name that it will be stored under, where the disk cannot have `name`; that of a taken one is another still. */
  readonly storedAs?: string
  /** The declared media type without parameters; `text/plain` for none (RFC 7578, 4.4). Never trust it. */
  readonly type: string
  /** What the part's head says of its bytes, in Content-Digest or Content-MD5; it is compared before `close`. */
  readonly digests?: readonly WantedDigest[]
}

/**
 * Where the bytes of one file go. The receiver calls `write` for every chunk, in order, never while
 * an earlier call is unsettled; a promise returned is back-pressure all the way to the client. The
 * chunk is lent: once the call has settled its memory is used again, so a sink copies what it keeps.
 * Then comes exactly one of `close` or `abort`, never during a write.
 */
export interface FileSink {
  write(chunk: Uint8Array): Awaitable<void>
  /**
   * The file is whole. Resolves to what was staged, or to undefined where the file is to be skipped.
   * A close that rejects has released and removed everything, as abort does.
   */
  close(): Awaitable<StagedFile | undefined>
  /** The upload failed: release and remove everything. */
  abort(reason: UploadError): Awaitable<void>
}

/** Opens a sink in the rest of the chain. */
export type OpenFile = (file: FileInfo) => Awaitable<FileSink>

/**
 * One link of the chain that an upload runs through, after Django's upload handlers; every method is
 * optional. Throwing an UploadError from any of them but `interrupt` refuses the upload with that
 * error; throwing anything else fails it with `handler_failed`.
 */
export interface UploadHandler {
  readonly name: string
  /** Before a byte of the body is asked for, in chain order: the place to refuse early. */
  begin?(upload: Upload): Awaitable<void>
  /**
   * For every file. Return `next(file)` to pass it on, a `tap` of that to look at or change the bytes,
   * or a sink of your own to claim the file: then no later handler sees it.
   */
  open?(file: FileInfo, next: OpenFile, upload: Upload): Awaitable<FileSink>
  /** Every file is staged and the form is right; nothing is visible yet. The last place to refuse. */
  complete?(upload: Upload, files: readonly StagedFile[]): Awaitable<void>
  /** The files have their names; the answer is about to be sent. An error here is logged and changes nothing. */
  published?(upload: Upload, files: readonly StoredFile[]): Awaitable<void>
  /** The upload failed after this handler's `begin`. Called once, on every kind of failure. An error here is logged and changes nothing. */
  interrupt?(upload: Upload, reason: UploadError): Awaitable<void>
}

/** A sink that does what `inner` does except where `own` says otherwise; `own` calls `inner` as it likes. */
export function tap(inner: FileSink, own: Partial<FileSink>): FileSink {
  return {
    write: own.write?.bind(own) ?? (chunk => inner.write(chunk)),
    close: own.close?.bind(own) ?? (() => inner.close()),
    abort: own.abort?.bind(own) ?? (reason => inner.abort(reason)),
  }
}

/**
 * Several handlers as one: `open` nested from the last to the first, the others called in order. A
 * handler costs nothing where it has no method, and no turn of the event loop where it gives no promise.
 */
export function compose(handlers: readonly UploadHandler[]): Required<UploadHandler> {
  const opening = handlers.filter(handler => handler.open).reverse()
  /** How many of the handlers have begun an upload. */
  const begun = new WeakMap<Upload, number>()
  return {
    name: handlers.map(handler => handler.name).join(' > '),
    async begin(upload) {
      for (const [i, handler] of handlers.entries()) {
        if (!handler.begin) continue
        begun.set(upload, i)
        const wait = handler.begin(upload)
        if (wait) await wait
      }
      begun.set(upload, handlers.length)
    },
    open(file, next, upload) {
      let open = next
      for (const handler of opening) {
        const rest = open
        open = info => (handler.open as Required<UploadHandler>['open'])(info, rest, upload)
      }
      return open(file)
    },
    async complete(upload, files) {
      for (const handler of handlers) {
        const wait = handler.complete?.(upload, files)
        if (wait) await wait
      }
    },
    published(upload, files) {
      return tell(handlers, handler => handler.published?.(upload, files))
    },
    interrupt(upload, reason) {
      // A handler whose own begin refused has nothing to undo; the ones after it never heard of the upload.
      const told = handlers.slice(0, begun.get(upload) ?? 0)
      return tell(told, handler => handler.interrupt?.(upload, reason))
    },
  }
}

/** The news is for everyone: memory gives back here what it holds. What any of them throws comes after the last has heard. */
async function tell(
  handlers: readonly UploadHandler[],
  call: (handler: UploadHandler) => Awaitable<void>,
): Promise<void> {
  const errors: unknown[] = []
  for (const handler of handlers) {
    try {
      const wait = call(handler)
      if (wait) await wait
    } catch (error) {
      errors.push(error)
    }
  }
  if (errors.length > 1) throw new AggregateError(errors, 'several handlers failed')
  if (errors.length === 1) throw errors[0]
}
