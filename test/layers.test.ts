/** The house rules of docs/architecture.md: who may import whom, and who may touch the process. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join, posix, sep } from 'node:path'
import test from 'node:test'
import { ROOT } from './support.ts'

/** A file or folder of src/ and its floor. A file imports from lower floors and its own folder, nothing else. */
const FLOORS: Record<string, number> = {
  'protocol.ts': 0,
  'errors.ts': 0,
  'limits.ts': 0,
  'log.ts': 0,
  'names.ts': 0,
  'units.ts': 0,
  progress: 1,
  storage: 1,
  upload: 2,
  client: 3,
  server: 3,
  terminal: 4,
  commands: 5,
  'cli.ts': 6,
  'index.ts': 6,
}

/** What a place may not import although it is on a lower floor. */
const FOREIGN: Record<string, readonly string[]> = {
  client: ['storage', 'upload', 'progress'],
  terminal: ['server', 'storage', 'upload', 'progress'],
}

/** Every package the product uses, and its one home. */
const HOMES: Record<string, readonly string[]> = {
  busboy: ['upload/part-reader.ts'],
  undici: ['client'],
  'cli-progress': ['terminal'],
  ora: ['terminal'],
  'string-width': ['terminal'],
  commander: ['commands', 'cli.ts'],
}

/** Facts of the process that are not its input or output, and so anybody's to ask. */
const PROCESS_FACTS = new Set(['pid', 'platform', 'getuid', 'kill', 'nextTick', 'hrtime', 'memoryUsage'])

/** The first component of a path in src/: what FLOORS names. */
function place(path: string): string {
  return path.split('/')[0] as string
}

/** Every module a source names: static, re-exported, dynamic, and by type alone. */
function importsOf(source: string): string[] {
  const found = source.matchAll(/(?:\bfrom\s+|\bimport\s*\(?\s*)(['"])([^'"\n]+)\1/g)
  return Array.from(found, match => match[2] as string)
}

function withoutComments(source: string): string {
  return source.replace(/\/\*\*?\s[\s\S]*?\*\//g, '').replace(/(^|\s)\/\/.*$/gm, '')
}

/** What is wrong with one file of src/, named by its path there. */
function violations(path: string, text: string): string[] {
  const source = withoutComments(text)
  const own = place(path)
  const floor = FLOORS[own]
  if (floor === undefined) return [`${path} stands on no floor`]
  const found: string[] = []
  for (const specifier of importsOf(source)) {
    const wrong = specifier.startsWith('.')
      ? wrongPlace(own, floor, posix.join(posix.dirname(path), specifier))
      : wrongPackage(path, own, specifier)
    if (wrong) found.push(`${path} imports ${specifier}: ${wrong}`)
  }
  for (const [, member] of source.matchAll(/(?<![\w.'"])process\b(?:\.(\w+))?(?!['"\w])/g)) {
    if (!PROCESS_FACTS.has(member ?? '')) found.push(`${path} touches process${member ? `.${member}` : ''}`)
  }
  if (/(?<![\w.'"])console\b/.test(source)) found.push(`${path} touches the console`)
  // What is printed goes through terminal/output.ts, which is handed the streams and makes it harmless.
  if (/\.\s*std(?:out|err)\b/.test(source)) found.push(`${path} touches a stream of the process`)
  return found
}

function wrongPlace(own: string, floor: number, target: string): string | undefined {
  const there = place(target)
  // A folder's files are one another's; a file at the top has no folder.
  if (there === own) return undefined
  const above = FLOORS[there]
  if (above === undefined) return 'it stands on no floor'
  if (FOREIGN[own]?.includes(there)) return `${own} knows nothing of ${there}`
  // The facts of floor 0 are one another's too.
  if (floor === 0 && above === 0) return undefined
  return above < floor ? undefined : `floor ${above} from floor ${floor}`
}

function wrongPackage(path: string, own: string, specifier: string): string | undefined {
  if (specifier === 'node:process' || specifier === 'node:console') {
    return 'the process is handed in by bin/uploadr.js'
  }
  if (specifier.startsWith('node:')) return undefined
  const homes = HOMES[specifier]
  if (!homes) return 'the package has no home'
  return homes.includes(own) || homes.includes(path) ? undefined : `its home is ${homes.join(', ')}`
}

test('every file imports from lower floors alone, and packages stay at home', () => {
  const src = join(ROOT, 'src')
  const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter(name => name.endsWith('.ts'))
  assert.ok(files.length > 0)
  const found = files.flatMap(name =>
    violations(name.split(sep).join('/'), readFileSync(join(src, name), 'utf8')),
  )
  assert.deepEqual(found, [])
})

test('every dependency has a home, and every home its dependency', () => {
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  assert.deepEqual(Object.keys(HOMES).sort(), Object.keys(dependencies).sort())
})

const BROKEN: [path: string, source: string][] = [
  ['client/push.ts', "import { receive } from '../upload/receiver.ts'"],
  ['client/push.ts', "import type { StagedFile } from '../storage/storage.ts'"],
  ['client/push.ts', "import { createServer } from '../server/server.ts'"],
  ['terminal/bar.ts', "const { a } = await import('../server/server.ts')"],
  ['server/server.ts', "import { push } from '../client/push.ts'"],
  ['progress/store.ts', "import type {\n  Awaitable,\n} from '../storage/storage.ts'"],
  ['upload/form.ts', "export { a } from '../server/page.ts'"],
  ['upload/handler.ts', 'let file: import("../server/page.ts").Page'],
  ['errors.ts', "import './upload/form.ts'"],
  ['upload/disk.ts', "import busboy from 'busboy'"],
  ['server/server.ts', "import { request } from 'undici'"],
  ['commands/push.ts', "import ora from 'ora'"],
  ['server/server.ts', "import express from 'express'"],
  ['utils/misc.ts', ''],
  ['server/server.ts', "const token = process.env['TOKEN']"],
  ['client/push.ts', 'const { argv } = process'],
  ['client/push.ts', "import { env } from 'node:process'"],
  ['upload/disk.ts', 'console.log(1)'],
  ['cli.ts', 'console.error(1)'],
  ['commands/serve.ts', 'process.exitCode = 1'],
  ['commands/serve.ts', "import { stderr } from 'node:process'"],
  ['commands/push.ts', 'host.stdout.write(text)'],
]

for (const [path, source] of BROKEN) {
  test(`refused: ${path}: ${source.replaceAll('\n', ' ')}`, () => {
    assert.equal(violations(path, source).length, 1)
  })
}

test('what is allowed is not refused', () => {
  const source = `
    /** Given \`process.stderr\` by the command. */
    import fs from 'node:fs'
    import { UploadError } from '../errors.ts'
    import { disk } from './disk.ts'
    process.nextTick(() => 'process')
    // console and process.env are not for us
  `
  assert.deepEqual(violations('upload/handler.ts', source), [])
})
