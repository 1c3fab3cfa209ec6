import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'

const TYPES = {
  'page.css': 'text/css; charset=utf-8',
  'page.js': 'text/javascript; charset=utf-8',
  'icon.svg': 'image/svg+xml',
} as const

export type AssetName = keyof typeof TYPES

/** The folder of the routes at which assets are served. */
export const ASSETS = '/assets'

export interface Asset {
  type: string
  body: Buffer
}

/** What the page consists of beside itself, each at a path that changes with its content. */
export class Assets {
  readonly #paths = new Map<AssetName, string>()
  readonly #assets = new Map<string, Asset>()

  /** Reads the files that the build puts beside this one. */
  static async load(): Promise<Assets> {
    const assets = new Assets()
    for (const [name, type] of Object.entries(TYPES)) {
      const body = await readFile(new URL(`assets/${name}`, import.meta.url))
      const hash = createHash('sha256').update(body).digest('base64url').slice(0, 16)
      const path = `${ASSETS}/${name.replace('.', `.${hash}.`)}`
      assets.#paths.set(name as AssetName, path)
      assets.#assets.set(path, { type, body })
    }
    return assets
  }

  /** What is served at a path. */
  get(path: string): Asset | undefined {
    return this.#assets.get(path)
  }

  /** An asset's path. */
  path(name: AssetName): string {
    return this.#paths.get(name) as string
  }
}
