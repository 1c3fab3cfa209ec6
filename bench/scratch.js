import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'

/** Fresh directories under one of ours on each of two file systems, all removed at the end. */
export class Scratch {
  #roots
  #count = 0

  /** @param {{ tmpfs: string, disk: string }} places */
  constructor(places) {
    this.#roots = Object.fromEntries(
      Object.entries(places).map(([where, parent]) => [where, mkdtempSync(join(parent, 'uploadr-bench-'))]),
    )
  }

  /** @param {'tmpfs' | 'disk'} where */
  fresh(where, name) {
    const path = join(this.#roots[where], `${++this.#count}-${name}`)
    mkdirSync(path)
    return path
  }

  remove() {
    for (const root of Object.values(this.#roots)) rmSync(root, { recursive: true, force: true })
  }
}
