import { isUtf8 } from 'node:buffer'
import { readFileSync } from 'node:fs'

/** A byte that is no UTF-8, as Python has it (PEP 383): 0xE9 is U+DCE9, which no text of UTF-8 holds. */
const ESCAPE = 0xdc00

/**
 * The command line as it was typed. node reads it as UTF-8 and puts U+FFFD for what is none, so that a file whose
 * name is not UTF-8 cannot be found again. Linux still has the bytes; each argument is looked up by its place, as
 * several may be one as text.
 */
export function exactArguments(argv: readonly string[]): string[] {
  if (!argv.some(argument => argument.includes('\ufffd'))) return [...argv]
  const typed = commandLine().slice(-argv.length)
  return argv.map((argument, i) => {
    const bytes = typed[i]
    return bytes?.toString() === argument ? escaped(bytes) : argument
  })
}

/** An exact argument as a path. */
export function pathOf(argument: string): string | Buffer {
  if (argument.isWellFormed()) return argument
  return Buffer.concat(
    Array.from(argument, character => {
      const byte = character.charCodeAt(0) - ESCAPE
      return character.isWellFormed() ? Buffer.from(character) : Buffer.from([byte])
    }),
  )
}

/** An exact argument as text, as node has it. */
export function textOf(argument: string): string {
  return argument.toWellFormed()
}

function escaped(bytes: Buffer): string {
  let text = ''
  for (let i = 0; i < bytes.length; ) {
    const length = [1, 2, 3, 4].find(n => i + n <= bytes.length && isUtf8(bytes.subarray(i, i + n)))
    text += length ? bytes.toString('utf8', i, i + length) : String.fromCharCode(ESCAPE + Number(bytes[i]))
    i += length ?? 1
  }
  return text
}

/** Empty where the system does not tell. */
function commandLine(): Buffer[] {
  try {
    const text = readFileSync('/proc/self/cmdline', 'latin1')
    // Each ends with a NUL, the last one too.
    return text
      .split('\0')
      .slice(0, -1)
      .map(argument => Buffer.from(argument, 'latin1'))
  } catch {
    return []
  }
}
