import { createRequire } from 'node:module'
import type { Client, Dispatcher } from 'undici'

/** One connection to one origin, and requests on it in turn. */
export interface Connection {
  request(options: Dispatcher.RequestOptions): Promise<Dispatcher.ResponseData>
  destroy(): Promise<void>
}

/**
 * undici's Client and nothing else of it: all of undici, with its fetch, caches and mocks, takes longer
 * to load than node to start. These two files are no public entry points, hence the exact version in
 * package.json. They are loaded at the first call: who only serves needs neither.
 */
export function openConnection(origin: string, options: Client.Options): Connection {
  const require = createRequire(import.meta.url)
  const UndiciClient = require('undici/lib/dispatcher/client.js') as typeof Client
  const request = require('undici/lib/api/api-request.js') as Connection['request']
  const client = new UndiciClient(origin, options)
  return {
    request: requestOptions => request.call(client, requestOptions),
    destroy: () => client.destroy(),
  }
}
