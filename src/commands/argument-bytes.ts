import { existsSync, readFileSync } from 'node:fs'

/**
 * Paths as they were typed. node reads the command line as UTF-8 and puts U+FFFD for what is none, so
 * that a file whose name is not UTF-8 cannot be found again; Linux still has the bytes.
 */
export function argumentBytes(paths: readonly string[]): (string | Buffer)[] {
  const typed = paths.some(path => path.includes('\ufffd')) ? commandLine() : []
  return paths.map(path => {
    if (!path.includes('\ufffd')) return path
    // Several names may be one as text. Those that exist are what is meant, in their order.
    const at = typed.findIndex(bytes => bytes.toString() === path && existsSync(bytes))
    return at < 0 ? path : (typed.splice(at, 1)[0] as Buffer)
  })
}

/** Empty where the system does not tell. */
function commandLine(): Buffer[] {
  try {
    const text = readFileSync('/proc/self/cmdline', 'latin1')
    return text.split('\0').map(argument => Buffer.from(argument, 'latin1'))
  } catch {
    return []
  }
}
