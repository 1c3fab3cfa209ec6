import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { UploadError } from '../errors.ts'
import type { UploadHandler } from './handler.ts'

const METHODS = ['begin', 'open', 'complete', 'published', 'interrupt'] as const

/**
 * A user's handler: the default export of an ES module, an UploadHandler or a function that makes
 * one. A path is taken from the working directory; a bare name is a package.
 */
export async function loadHandler(specifier: string): Promise<UploadHandler> {
  const isPath = /^[./\\]|^[A-Za-z]:|\.[cm]?js$/.test(specifier)
  const url = isPath ? pathToFileURL(resolve(specifier)).href : specifier
  const fail = (why: string, cause?: unknown) =>
    new UploadError('usage', `--handler ${specifier}: ${why}`, { cause })
  let exported: unknown
  try {
    exported = (await import(url)).default
    if (typeof exported === 'function') exported = await exported()
  } catch (error) {
    throw fail(error instanceof Error ? error.message : String(error), error)
  }
  const handler = exported as UploadHandler
  if (typeof handler !== 'object' || handler === null)
    throw fail('its default export is not an upload handler')
  if (typeof handler.name !== 'string' || handler.name === '') throw fail('the handler has no name')
  for (const method of METHODS) {
    if (handler[method] !== undefined && typeof handler[method] !== 'function') {
      throw fail(`${method} is not a function`)
    }
  }
  return handler
}
