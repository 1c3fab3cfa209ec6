/** The thread behind `Digester`: reads growing files and hashes them, see digest.ts. */

import { createHash, type Hash } from 'node:crypto'
import { readSync } from 'node:fs'
import { parentPort } from 'node:worker_threads'
import type { DigestReply, DigestRequest } from './digest.ts'

const buffer = Buffer.allocUnsafeSlow(1024 * 1024)
const files = new Map<number, { hash: Hash; position: number; failure?: NodeJS.ErrnoException }>()

parentPort?.on('message', ({ id, fd, end, then }: DigestRequest) => {
  const file = files.get(id) ?? { hash: createHash('sha256'), position: 0 }
  files.set(id, file)
  try {
    while (file.position < end && file.failure === undefined) {
      const read = readSync(fd, buffer, 0, Math.min(buffer.length, end - file.position), file.position)
      if (read === 0)
        throw new Error(`the temporary file ends at ${file.position} bytes, ${end} were written`)
      file.hash.update(buffer.subarray(0, read))
      file.position += read
    }
  } catch (error) {
    file.failure = error as Error
  }
  if (then === 'follow') return
  files.delete(id)
  const reply: DigestReply =
    file.failure && then === 'finish'
      ? {
          id,
          error: file.failure.message,
          ...(file.failure.code !== undefined && { code: file.failure.code }),
        }
      : { id, sha256: finalDigest(file.hash, then) }
  parentPort?.postMessage(reply)
})

function finalDigest(hash: Hash, then: DigestRequest['then']): string {
  return then === 'finish' ? hash.digest('hex') : ''
}
