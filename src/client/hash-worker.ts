/** The thread behind `threadHasher`, see hasher.ts. */

import { createHash } from 'node:crypto'
import { parentPort, workerData } from 'node:worker_threads'
import type { HashReply, HashRequest } from './hasher.ts'

const memory = new Uint8Array(workerData as SharedArrayBuffer)
const hash = createHash('sha256')

parentPort?.on('message', (request: HashRequest) => {
  if (request === 'digest') return reply({ sha256: hash.digest('hex') })
  hash.update(memory.subarray(request.start, request.start + request.length))
  reply('hashed')
})

function reply(message: HashReply): void {
  parentPort?.postMessage(message)
}
