import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { lstat, mkdir, readdir, rename, rm, rmdir, stat, utimes } from 'node:fs/promises'
import os from 'node:os'
import { dirname, join } from 'node:path'

const PREFIX = 'uploadr-'
const NAME = /^uploadr-(\d+)-(\d+)-([0-9a-f]{8})-([0-9a-f]{8})-[0-9a-f]{12}$/
const HEARTBEAT_MS = 30_000
const SILENT_MS = 10 * HEARTBEAT_MS

/**
 * A private folder (0700) of one running server below a folder that several may share. The owner's
 * identity is in the name, so that the mkdir that makes the folder is also what claims it: after a
 * crash the next server knows whose it was and whether that process still lives.
 *
 * A process on this kernel is known by its pid and start time. One of another boot, container or
 * machine cannot be seen; it keeps its folder's mtime fresh, and a folder long silent is dead.
 */
export class Workspace {
  readonly path: string
  #heartbeat: NodeJS.Timeout

  private constructor(path: string) {
    this.path = path
    this.#heartbeat = setInterval(() => {
      const now = new Date()
      utimes(path, now, now).catch(() => {})
    }, HEARTBEAT_MS).unref()
  }

  /** Makes a workspace below `parent`, which is made too where it is missing. */
  static async create(parent: string): Promise<Workspace> {
    await makeFolder(parent)
    const path = join(parent, ownName())
    await mkdir(path, { mode: 0o700 })
    return new Workspace(path)
  }

  /** The workspaces below `parent` whose servers are gone. Those of other users and links are left alone. */
  static async abandoned(parent: string): Promise<string[]> {
    const found: string[] = []
    const entries = await readdir(parent, { withFileTypes: true }).catch(error => {
      if (error.code === 'ENOENT') return []
      throw error
    })
    for (const entry of entries) {
      const match = entry.isDirectory() && NAME.exec(entry.name)
      if (!match) continue
      const path = join(parent, entry.name)
      const stats = await lstat(path).catch(() => undefined)
      if (!stats?.isDirectory() || (process.getuid && stats.uid !== process.getuid())) continue
      const [, pid, started, boot, space] = match
      if (isDead(Number(pid), String(started), String(boot), String(space), stats.mtimeMs)) found.push(path)
    }
    return found
  }

  /**
   * Takes an abandoned workspace over, under a name of this process, so that nobody else does: the
   * path it has now, or undefined where somebody was quicker. Should we die too, it is abandoned again.
   */
  static async adopt(path: string): Promise<string | undefined> {
    const adopted = join(dirname(path), ownName())
    try {
      await rename(path, adopted)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
    const now = new Date()
    await utimes(adopted, now, now)
    return adopted
  }

  /** Removes the folder and what is in it. */
  async remove(): Promise<void> {
    clearInterval(this.#heartbeat)
    await rm(this.path, { recursive: true, force: true })
  }

  /** Removes the folder if nothing is in it; what is in it is for the next start to recover. */
  async removeIfEmpty(): Promise<void> {
    clearInterval(this.#heartbeat)
    await rmdir(this.path).catch(() => {})
  }
}

function ownName(): string {
  const { started, boot, space } = identity(process.pid)
  return `${PREFIX}${process.pid}-${started}-${boot}-${space}-${randomBytes(6).toString('hex')}`
}

function isDead(pid: number, started: string, boot: string, space: string, mtimeMs: number): boolean {
  const here = identity(pid)
  if (boot === here.boot && space === here.space) return here.started !== started
  const booted = Date.now() - os.uptime() * 1000
  return mtimeMs < booted || Date.now() - mtimeMs > SILENT_MS
}

/** What tells a process from every other that had or will have its pid. */
function identity(pid: number): { started: string; boot: string; space: string } {
  return {
    started: startTime(pid),
    boot: shortHash(attempt(() => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8')) ?? os.hostname()),
    space: shortHash(`${os.hostname()} ${attempt(() => readlinkSync('/proc/self/ns/pid')) ?? ''}`),
  }
}

/** Clock ticks from boot to the start of the process (proc(5), field 22 of stat); `0` where /proc is missing. */
function startTime(pid: number): string {
  const stat = attempt(() => readFileSync(`/proc/${pid}/stat`, 'utf8'))
  // The second field is the command in parentheses and may hold anything, parentheses included.
  if (stat) return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '0'
  if (process.platform === 'linux') return 'gone'
  return attempt(() => process.kill(pid, 0)) ? '0' : 'gone'
}

function attempt<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch {
    return undefined
  }
}

function shortHash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 8)
}

/**
 * Makes a folder, and those above it that are missing. Not by mkdir's own recursion, which never ends
 * where a parent exists and refuses (/proc). Throws where a link or a file stands in its place and
 * `own` asks for a folder that nobody else has put there.
 */
export async function makeFolder(path: string, { mode = 0o777, own = false } = {}): Promise<void> {
  try {
    await mkdir(path, { mode })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' && dirname(path) !== path && !(await isFolder(dirname(path)))) {
      await makeFolder(dirname(path))
      await mkdir(path, { mode })
    } else if (code !== 'EEXIST') {
      throw error
    }
  }
  const stats = own ? await lstat(path) : await stat(path)
  if (!stats.isDirectory()) throw new Error(`${path} is not a folder`)
}

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    stats => stats.isDirectory(),
    () => false,
  )
}
