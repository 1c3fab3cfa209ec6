import { createHash } from 'node:crypto'
import type { UploadError } from '../errors.ts'
import type { StagedFile } from '../storage/storage.ts'
import { DigestCheck } from './content-digest.ts'
import { type FileInfo, type FileSink, tap, type UploadHandler } from './handler.ts'

/**
 * The user's handlers, between two links of the chain that know what of a file arrived and what came through.
 * Where a handler stands between the two, it may change the bytes: then what arrives is counted and hashed, and the
 * staged file says it where the stored bytes differ. Where the sink comes back as the rest of the chain gave it
 * nothing is done, nor paid. The digests that a part announces are compared here too.
 */
export function withArrivals(handlers: readonly UploadHandler[], hashing: boolean): UploadHandler[] {
  const opening = handlers.some(handler => handler.open)
  /** Sinks of the built-in handlers, as they were opened. */
  const own = new WeakSet<FileSink>()
  const before: UploadHandler = {
    name: 'arrivals',
    open(file, next) {
      if (!opening && !file.digests) return next(file)
      const watched = (sink: FileSink) =>
        own.has(sink) && !file.digests ? sink : watch(sink, file, hashing && !own.has(sink))
      const sink = next(file)
      return sink instanceof Promise ? sink.then(watched) : watched(sink)
    },
  }
  const after: UploadHandler = {
    name: 'unchanged',
    open(file, next) {
      const noted = (sink: FileSink) => {
        own.add(sink)
        return sink
      }
      const sink = next(file)
      return sink instanceof Promise ? sink.then(noted) : noted(sink)
    },
  }
  return opening ? [before, ...handlers, after] : [before, ...handlers]
}

function watch(sink: FileSink, file: FileInfo, hashing: boolean): FileSink {
  const hash = hashing ? createHash('sha256') : undefined
  const check = file.digests && new DigestCheck(file.digests)
  let size = 0
  return tap(sink, {
    write(chunk) {
      size += chunk.length
      hash?.update(chunk)
      check?.update(chunk)
      return sink.write(chunk)
    },
    async close() {
      const contentDigest = await checked(check, file, sink)
      const staged = await sink.close()
      if (!staged) return undefined
      if (contentDigest !== undefined) staged.contentDigest = contentDigest
      return noteArrived(staged, size, hash?.digest('hex'))
    },
  })
}

/** The digests that the part announced; a file with others is not closed. */
async function checked(
  check: DigestCheck | undefined,
  file: FileInfo,
  sink: FileSink,
): Promise<string | undefined> {
  try {
    return check?.finish(file.name)
  } catch (error) {
    await sink.abort(error as UploadError)
    throw error
  }
}

function noteArrived(staged: StagedFile, size: number, sha256: string | undefined): StagedFile {
  const isOther = size !== staged.size || (sha256 !== undefined && sha256 !== staged.sha256)
  if (isOther) staged.arrived = { size, ...(sha256 !== undefined && { sha256 }) }
  return staged
}
