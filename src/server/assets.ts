import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'

const TYPES: Record<string, string> = {
  css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  svg: 'image/svg+xml',
}

/** The folder of the routes at which assets are served. */
export const ASSETS = '/assets'

export interface Asset {
  type: string
  body: Buffer
}

/**
 * What the page consists of beside itself: one folder whose name is the digest of all that is in it. So
 * it can be cached for ever, and the script's modules find each other by relative names. An import map,
 * which modules with a digest each would need, is an inline script, and the policy allows none.
 */
export class Assets {
  readonly #folder: string
  readonly #assets: ReadonlyMap<string, Asset>

  private constructor(folder: string, assets: ReadonlyMap<string, Asset>) {
    this.#folder = folder
    this.#assets = assets
  }

  /** Reads the files that the build puts beside this one, and how sizes are written: for the page as for the terminal. */
  static async load(): Promise<Assets> {
    const folder = new URL('assets/', import.meta.url)
    const files = (await readdir(folder)).sort().map(name => new URL(name, folder))
    const assets = new Map<string, Asset>()
    const hash = createHash('sha256')
    for (const file of [...files, new URL('../units.js', import.meta.url)]) {
      const name = file.pathname.replace(/.*\//, '')
      const type = TYPES[name.replace(/.*\./, '')]
      if (type === undefined) continue
      const body = await readFile(file)
      hash.update(`${name} ${body.length}\n`).update(body)
      assets.set(name, { type, body })
    }
    return new Assets(`${ASSETS}/${hash.digest('base64url').slice(0, 16)}`, assets)
  }

  /** What is served at a path. */
  get(path: string): Asset | undefined {
    const [name = ''] = path.split('/').slice(-1)
    return this.path(name) === path ? this.#assets.get(name) : undefined
  }

  /** An asset's path. */
  path(name: string): string {
    return `${this.#folder}/${name}`
  }
}
