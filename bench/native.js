import { execFileSync } from 'node:child_process'
import { mkdirSync, renameSync, statSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const folder = fileURLToPath(new URL('./', import.meta.url))

/** The path of one of the C programs in native/, compiled when its source is newer. */
export function native(name) {
  const source = `${folder}native/${name}.c`
  const program = `${folder}build/${name}`
  const built = statSync(program, { throwIfNoEntry: false })
  if (!built || built.mtimeMs < statSync(source).mtimeMs) {
    mkdirSync(`${folder}build`, { recursive: true })
    // Under another name first: the old one may be running.
    execFileSync('gcc', ['-O2', '-Wall', '-Wextra', '-o', `${program}.new`, source], { stdio: 'inherit' })
    renameSync(`${program}.new`, program)
  }
  return program
}
