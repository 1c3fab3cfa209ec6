import { closeSync, constants, fsync, mkdirSync, openSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { promisify } from 'node:util'

/** What each of the npm servers is started with: its directory, and whether it answers only for what is on disk. */
export const dir = process.argv[2]
const durable = process.argv[3] === 'fsync'

mkdirSync(dir, { recursive: true })
const directory = openSync(dir, constants.O_RDONLY | constants.O_DIRECTORY)
process.once('exit', () => closeSync(directory))
const sync = promisify(fsync)

/** Puts a stored file and its name on disk, in the mode that does so. */
export async function settle(path) {
  if (!durable) return
  const file = await open(path, 'r+')
  try {
    await file.datasync()
  } finally {
    await file.close()
  }
  await sync(directory)
}

/** Listens on a free port and prints the URL, which is what the benchmark waits for. */
export function listen(server) {
  server.listen(0, '127.0.0.1', () => process.stdout.write(`http://127.0.0.1:${server.address().port}/\n`))
}
