import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, openSync, readdirSync, readSync, statSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { POLL_HEAD } from './contenders.js'
import { native } from './native.js'

const run = promisify(execFile)

/** Requests are numbered through, so that no two of them name the same file or the same progress id. */
let nextNumber = 1

/**
 * Sends one run of requests to a server and says how it went.
 * @param {import('./contenders.js').Server} server
 * @param {object} work
 * @param {{ path: string, size: number }} work.payload
 * @param {string} work.boundary
 * @param {number} work.connections
 * @param {number} work.requests  at most so many
 * @param {number} [work.seconds]  and none begun after this time
 * @param {'one' | 'each'} [work.poll]  ask 10 times a second for one upload in flight, or for each
 */
export async function load(server, work) {
  const { root, port } = server.place
  const { path, size } = work.payload
  const { head, tail } = server.contender.request(size, work.boundary)
  const file = (name, text) => {
    writeFileSync(join(root, name), text)
    return join(root, name)
  }
  const args = [port, work.connections, work.requests, work.seconds ?? 0, path, size]
  args.push(file('head', head), file('tail', tail), nextNumber)
  if (work.poll) args.push(file('poll', POLL_HEAD), 100, work.poll)
  nextNumber += work.requests
  const before = server.cpu()
  const { stdout } = await run(native('load'), args.map(String), { maxBuffer: 2 ** 28 })
  const cpu = server.cpu() - before
  const { cpu: loadCpu, ...result } = JSON.parse(stdout)
  const failed = why => new Error(`${server.contender.name}: ${why}`)
  if (result.failed > 0) throw failed(`${result.failed} requests failed, the first with: ${result.failure}`)
  if (result.pollsFailed > 0) throw failed(`${result.pollsFailed} of ${result.polls} polls failed`)
  return { ...result, cpu, loadCpu, bytes: result.completed * size }
}

/** What has been stored, by path. */
export function storedFiles(server) {
  const { folders, ignore } = server.contender
  const [files] = folders(server.place)
  return files === undefined ? undefined : list(files, ignore)
}

function list(folder, ignore) {
  return readdirSync(folder, { withFileTypes: true })
    .filter(entry => entry.isFile() && !ignore?.test(entry.name))
    .map(entry => join(folder, entry.name))
}

/** Removes what has been stored, and what was noted beside it. */
export function clear(server) {
  for (const folder of server.contender.folders(server.place))
    for (const path of list(folder)) unlinkSync(path)
}

/** Throws unless as many files are stored as were sent, all of the right size and, with `digest`, one of the right bytes. */
export function verify(server, { payload, boundary }, completed, digest) {
  const files = storedFiles(server)
  if (files === undefined) return
  const { name, offset } = server.contender
  const from = offset?.(payload.size, boundary) ?? 0
  const whole = from === 0 ? payload.size : from + payload.size + `\r\n--${boundary}--\r\n`.length
  if (files.length !== completed) throw new Error(`${name} stored ${files.length} files of ${completed}`)
  for (const path of files) {
    const { size } = statSync(path)
    if (size !== whole) throw new Error(`${name} stored ${size} bytes of ${whole} in ${path}`)
  }
  if (digest && sha256(files[files.length - 1], from, payload.size) !== payload.sha256) {
    throw new Error(`${name} stored other bytes than were sent`)
  }
}

function sha256(path, from, size) {
  const hash = createHash('sha256')
  const buffer = Buffer.allocUnsafe(1024 * 1024)
  const fd = openSync(path, 'r')
  for (let done = 0; done < size; ) {
    const read = readSync(fd, buffer, 0, Math.min(buffer.length, size - done), from + done)
    if (read === 0) break
    hash.update(buffer.subarray(0, read))
    done += read
  }
  closeSync(fd)
  return hash.digest('hex')
}
