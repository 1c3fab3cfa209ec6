import { extname } from 'node:path'
import { UploadError } from '../errors.ts'
import { trimBlanks } from './filename.ts'
import type { UploadHandler } from './handler.ts'

export interface KindRules {
  /** Media types, `image/png` or `image/*`; empty allows every one. The client declares them: a hint, no proof. */
  allowTypes: readonly string[]
  denyTypes: readonly string[]
  /** Extensions without the dot, in any case; empty allows every one, and names without any. */
  allowExtensions: readonly string[]
  denyExtensions: readonly string[]
}

/** Every kind is accepted. */
export const ALL_KINDS: KindRules = { allowTypes: [], denyTypes: [], allowExtensions: [], denyExtensions: [] }

/** Refuses files by declared media type and by extension, before their bytes are stored. */
export function kinds(rules: KindRules): UploadHandler {
  const types = { allow: rules.allowTypes.map(lower), deny: rules.denyTypes.map(lower) }
  const extensions = { allow: rules.allowExtensions.map(bare), deny: rules.denyExtensions.map(bare) }
  const none = Object.values(rules).every(list => list.length === 0)
  if (none) return { name: 'kinds' }
  /** The extension for which a name is refused, '' for none at all; undefined where it is not. */
  const refusedOf = (name: string): string | undefined => {
    // Windows, and some web servers, look at every extension: `shell.php.jpg`.
    const all = lower(name).split('.').slice(1).map(trimBlanks)
    const denied = all.find(each => extensions.deny.includes(each))
    if (denied !== undefined || extensions.allow.length === 0) return denied
    const extension = bare(extname(name))
    return extensions.allow.includes(extension) ? undefined : extension
  }
  return {
    name: 'kinds',
    open(file, next) {
      const type = lower(file.type)
      const isOf = (pattern: string) =>
        pattern === type || (pattern.endsWith('/*') && type.startsWith(pattern.slice(0, -1)))
      if (types.deny.some(isOf) || (types.allow.length > 0 && !types.allow.some(isOf))) {
        throw new UploadError('type_not_allowed', `${file.name} is ${file.type}, which is not accepted here`)
      }
      const { name, storedAs } = file
      for (const each of storedAs === undefined ? [name] : [name, storedAs]) {
        const refused = refusedOf(each)
        if (refused === undefined) continue
        const what = refused === '' ? 'no extension' : `the extension .${refused}`
        const told = each === name ? name : `${name}, which the disk can only have as ${each},`
        throw new UploadError('extension_not_allowed', `${told} has ${what}, which is not accepted here`)
      }
      return next(file)
    },
  }
}

function lower(text: string): string {
  return text.toLowerCase()
}

function bare(extension: string): string {
  return trimBlanks(lower(extension).replace(/^\./, ''))
}
