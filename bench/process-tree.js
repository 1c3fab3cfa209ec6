import { readdirSync, readFileSync } from 'node:fs'

// The kernel's USER_HZ, the same on every architecture that Node runs on.
const TICKS_PER_SECOND = 100

/** Field n of /proc/PID/stat, counted as proc(5) does; the command name may hold spaces, so from its end. */
function statFields(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const rest = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return n => Number(rest[n - 3])
  } catch {
    return undefined
  }
}

/** What a process and all its descendants have used. */
export class ProcessTree {
  #root
  /** The largest VmHWM seen, KiB by pid: a worker that has ended still counts. */
  #peaks = new Map()

  constructor(root) {
    this.#root = root
  }

  #pids() {
    const children = new Map()
    for (const name of readdirSync('/proc')) {
      if (!/^\d+$/.test(name)) continue
      const parent = statFields(name)?.(4)
      if (parent === undefined) continue
      children.set(parent, [...(children.get(parent) ?? []), Number(name)])
    }
    const pids = [this.#root]
    for (const pid of pids) pids.push(...(children.get(pid) ?? []))
    return pids
  }

  /** Seconds of CPU so far, user and system, threads and waited-for children included. */
  cpu() {
    let ticks = 0
    for (const pid of this.#pids()) {
      const field = statFields(pid)
      // Descendants that have ended are in their parent's cutime and cstime.
      if (field) ticks += field(14) + field(15) + field(16) + field(17)
    }
    return ticks / TICKS_PER_SECOND
  }

  /** Bytes: the peaks of all processes, summed. */
  peakMemory() {
    for (const pid of this.#pids()) {
      try {
        const [, kib] = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1')) ?? []
        if (kib) this.#peaks.set(pid, Number(kib))
      } catch {
        // It has just ended.
      }
    }
    return [...this.#peaks.values()].reduce((sum, kib) => sum + kib * 1024, 0)
  }
}
