import { createHash, randomBytes } from 'node:crypto'
import { constants, readFileSync, readlinkSync, type Stats } from 'node:fs'
import { access, lstat, mkdir, readdir, rename, rm, rmdir, stat } from 'node:fs/promises'
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
 * machine cannot be seen; it keeps its folder's mtime fresh, and a folder long silent is dead. Both
 * times are those of the file system that the folder is on: machines' clocks differ.
 */
export class Workspace {
  readonly path: string
  /** As it was made; anew where somebody took it away. */
  #made: Stats
  readonly #heartbeat: NodeJS.Timeout
  #beating: Promise<unknown> | undefined
  #isOver = false

  private constructor(path: string, made: Stats) {
    this.path = path
    this.#made = made
    this.#heartbeat = setInterval(() => {
      this.#beating = beat(path).catch(() => {})
    }, HEARTBEAT_MS).unref()
  }

  /** Makes a workspace below `parent`, which is made too where it is missing. */
  static async create(parent: string): Promise<Workspace> {
    await makeFolder(parent)
    const path = join(parent, ownName())
    await mkdir(path, { mode: 0o700 })
    return new Workspace(path, await lstat(path))
  }

  /** The number of its file system, as it was when the folder was made. */
  get device(): number {
    return this.#made.dev
  }

  /** The workspaces beside it whose servers are gone. Those of other users and links are left alone. */
  async abandoned(): Promise<string[]> {
    const found: string[] = []
    const parent = dirname(this.path)
    for (const entry of await readdir(parent, { withFileTypes: true })) {
      const match = entry.isDirectory() && NAME.exec(entry.name)
      if (!match) continue
      const path = join(parent, entry.name)
      const stats = await lstat(path).catch(() => undefined)
      if (!stats?.isDirectory() || (process.getuid && stats.uid !== process.getuid())) continue
      const [, pid, started, boot, machine] = match
      const age = this.#made.mtimeMs - stats.mtimeMs
      if (isDead(Number(pid), String(started), String(boot), String(machine), age)) found.push(path)
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
    await beat(adopted)
    return adopted
  }

  /**
   * Why nothing can be put into it, where nothing can. Where it has been taken away it is made anew first, with
   * the folders above it; not on another file system than before: what was mounted there may come back.
   */
  async health(): Promise<string | undefined> {
    try {
      const there = await lstat(this.path).catch(() => undefined)
      if (!there?.isDirectory() && !this.#isOver) await this.#renew({ device: this.device })
      await access(this.path, constants.W_OK | constants.X_OK)
      return undefined
    } catch (error) {
      return why(error)
    }
  }

  /** Removes the folder and what is in it. */
  async remove(): Promise<void> {
    await this.#end()
    await rm(this.path, { recursive: true, force: true })
  }

  /** Removes the folder if nothing is in it; what is in it is for the next start to recover. */
  async removeIfEmpty(): Promise<void> {
    await this.#end()
    await rmdir(this.path).catch(() => {})
  }

  async #renew(where: { device: number }): Promise<void> {
    await makeFolder(dirname(this.path), where)
    await makeFolder(this.path, { ...where, mode: 0o700, own: true })
    this.#made = await lstat(this.path)
  }

  async #end(): Promise<void> {
    this.#isOver = true
    clearInterval(this.#heartbeat)
    await this.#beating
  }
}

/** Makes the folder's mtime the present moment by its file system's own clock, which no call can name. */
async function beat(path: string): Promise<void> {
  const moment = join(path, 'alive')
  await mkdir(moment).catch(error => {
    // A server that died within these two lines.
    if (error.code !== 'EEXIST') throw error
  })
  await rmdir(moment)
}

/** An error in words for an operator, without a path: whoever asks for health may be a stranger. */
export function why(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException
  return code ?? message
}

function ownName(): string {
  const { started, boot, machine } = identity(process.pid)
  return `${PREFIX}${process.pid}-${started}-${boot}-${machine}-${randomBytes(6).toString('hex')}`
}

/** `age`: milliseconds since the folder was touched. */
function isDead(pid: number, started: string, boot: string, machine: string, age: number): boolean {
  const here = identity(pid)
  if (machine === here.machine && boot === here.boot) return here.started !== started
  // Older than this boot says something of a process of this machine, and nothing of another's.
  return age > SILENT_MS || (machine === here.machine && age > os.uptime() * 1000)
}

/** What tells a process from every other that had or will have its pid, here and on other machines. */
function identity(pid: number): { started: string; boot: string; machine: string } {
  const machineId = attempt(() => readFileSync('/etc/machine-id', 'utf8')) ?? ''
  const space = attempt(() => readlinkSync('/proc/self/ns/pid')) ?? ''
  return {
    started: startTime(pid),
    boot: shortHash(attempt(() => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8')) ?? os.hostname()),
    machine: shortHash(`${os.hostname()} ${machineId} ${space}`),
  }
}

/**
 * Clock ticks from boot to the start of the process (proc(5), field 22 of stat); `0` where /proc is missing. A zombie
 * (Z, or X on its way out of it) is gone: it lives on as a number until its parent asks, which may be never.
 */
function startTime(pid: number): string {
  const stat = attempt(() => readFileSync(`/proc/${pid}/stat`, 'utf8'))
  // The second field is the command in parentheses and may hold anything, parentheses included.
  const [state, ...numbers] = stat?.slice(stat.lastIndexOf(')') + 2).split(' ') ?? []
  if (state) return 'ZX'.includes(state) ? 'gone' : (numbers[18] ?? '0')
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
 * `own` asks for a folder that nobody else has put there, and where it is not, or would not be, on
 * the file system that has the number `device`.
 */
export async function makeFolder(
  path: string,
  { mode = 0o777, own = false, device }: { mode?: number; own?: boolean; device?: number } = {},
): Promise<void> {
  if (device !== undefined && (await nearest(path)).dev !== device) {
    throw new Error('a folder is on another file system than before, or what was mounted there is gone')
  }
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
  if (!stats.isDirectory()) throw Object.assign(new Error(`${path} is not a folder`), { code: 'ENOTDIR' })
}

/** The folder, or the next above it that there is. */
async function nearest(path: string): Promise<Stats> {
  const there = await stat(path).catch(() => undefined)
  return there ?? (dirname(path) === path ? stat(path) : nearest(dirname(path)))
}

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    stats => stats.isDirectory(),
    () => false,
  )
}
