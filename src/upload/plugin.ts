import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { UploadError } from '../errors.ts'
import { edits, type NamesOf, unknownName } from '../names.ts'
import type { UploadHandler } from './handler.ts'

type Method = Exclude<keyof UploadHandler, 'name'>

const METHODS = Object.keys({
  begin: true,
  open: true,
  complete: true,
  published: true,
  interrupt: true,
} satisfies NamesOf<Record<Method, unknown>>) as Method[]

/** `close` is what the built-in disk handler has for whoever made it. */
const NAMES: readonly string[] = ['name', ...METHODS, 'close']

/**
 * A user's handler: the default export of an ES module, an UploadHandler or a function that makes
 * one. A path is taken from the working directory; a bare name is a package. Errors begin with `giver`.
 */
export async function loadHandler(specifier: string, giver: string): Promise<UploadHandler> {
  const isPath = /^[./\\]|^[A-Za-z]:|\.[cm]?js$/.test(specifier)
  const url = isPath ? pathToFileURL(resolve(specifier)).href : specifier
  const where = `${giver} ${specifier}`
  let exported: unknown
  try {
    exported = (await import(url)).default
    if (typeof exported === 'function') exported = await exported()
  } catch (error) {
    throw new UploadError('usage', `${where}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    })
  }
  checkHandler(where, exported)
  return exported
}

/**
 * Refuses what is no handler, or has a method that nobody would ever call. All names of a plain object
 * are meant for us, but for those that begin with `_`; an instance of a class has names of its own, so
 * there only one that is nearly a method's is taken for a mistake.
 */
export function checkHandler(where: string, handler: unknown): asserts handler is UploadHandler {
  const fail = (why: string) => new UploadError('usage', `${where}: ${why}`)
  if (typeof handler !== 'object' || handler === null) {
    throw fail('an upload handler is an object, the default export where it is a module')
  }
  const { name } = handler as UploadHandler
  if (typeof name !== 'string' || name === '') throw fail('the handler has no name')
  for (const method of METHODS) {
    const value = (handler as UploadHandler)[method]
    if (value !== undefined && typeof value !== 'function') throw fail(`${method} is not a function`)
  }
  const prototype = Object.getPrototypeOf(handler)
  const isPlain = prototype === null || Object.getPrototypeOf(prototype) === null
  for (const name of namesOf(handler)) {
    if (NAMES.includes(name) || name.startsWith('_')) continue
    if (isPlain || METHODS.some(method => isMistyped(name, method))) throw unknownName(where, name, NAMES)
  }
}

/** `opne`, `completed`; not `on`, which is as near to `open` as it is short. */
function isMistyped(name: string, method: string): boolean {
  return edits(name, method) <= method.length / 4
}

/** An object's own names and those of its classes. */
function namesOf(object: object): string[] {
  const names: string[] = []
  for (let at = object; at && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    names.push(...Object.getOwnPropertyNames(at).filter(name => name !== 'constructor'))
  }
  return names
}
