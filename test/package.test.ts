/** What others get: the command out of a fresh clone, and what `npm pack` makes, installed where it is to be used. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import os from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, type TestContext, test } from 'node:test'
import { ROOT, randomFile, run, sha256, tempDir } from './support.ts'

const PACKAGE = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
const README = readFileSync(join(ROOT, 'README.md'), 'utf8')

/** npm as a person starts it: not as part of the `npm test` that may be running this. */
const ENV = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^npm_(?!config_(cache|registry|userconfig)$)/i.test(name)),
)

async function npm(cwd: string, ...args: string[]): Promise<string> {
  const quietly = ['--no-audit', '--no-fund', '--no-update-notifier', '--prefer-offline']
  const { code, stdout, stderr } = await run('npm', [...args, ...quietly], { cwd, env: ENV })
  assert.equal(code, 0, `npm ${args.join(' ')}: ${stdout}${stderr}`)
  return stdout
}

/** What `git clone` would give of the files as they are now, with nothing installed and nothing built. */
async function clone(into: string): Promise<void> {
  const files = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: ROOT,
  })
  for (const name of String(files)
    .split('\0')
    .filter(name => existsSync(join(ROOT, name)) && name !== '')) {
    await mkdir(dirname(join(into, name)), { recursive: true })
    await copyFile(join(ROOT, name), join(into, name))
  }
}

/** The code block of the README that has all of these words. */
function example(...words: string[]): string {
  const blocks = Array.from(README.matchAll(/^```\w*\n([\s\S]*?)^```$/gm), ([, code = '']) => code)
  const found = blocks.filter(code => words.every(word => code.includes(word)))
  assert.equal(found.length, 1, `the README has one block with ${words.join(', ')}`)
  return String(found[0])
}

const root = await mkdtemp(join(os.tmpdir(), 'uploadr-package-'))
after(() => rm(root, { recursive: true, force: true }))
const CLONE = join(root, 'clone')
await clone(CLONE)

test('in a fresh clone the command says what is to be done first', async () => {
  const { code, stderr } = await run(process.execPath, [join(CLONE, 'bin/uploadr.js'), '--version'])
  assert.equal(code, 1)
  assert.match(stderr, /^uploadr: it is not built yet, .* run npm install in its folder\n$/)
})

test('npm install --global . in a fresh clone, as the README has it: the command and its pages', async () => {
  assert.equal(existsSync(join(CLONE, 'node_modules')) || existsSync(join(CLONE, 'dist')), false)
  const prefix = join(root, 'global')
  assert.equal(example('npm install --global'), 'npm install --global .\n')
  await npm(CLONE, 'install', '--global', '.', '--prefix', prefix)
  const { code, stdout, stderr } = await run(join(prefix, 'bin/uploadr'), ['--version'])
  assert.deepEqual([code, stdout.trim(), stderr], [0, PACKAGE.version, ''])
  for (const page of readdirSync(join(ROOT, 'man')))
    assert.ok(existsSync(join(prefix, 'share/man/man1', page)), page)
})

/** The tarball, made by the first who asks in the clone that the test above has built; and what is in it. */
let packed: Promise<{ tarball: string; files: string[] }> | undefined
function pack(): Promise<{ tarball: string; files: string[] }> {
  packed ??= (async () => {
    // Of a source that is no more. It must not be published for ever.
    await writeFile(join(CLONE, 'dist/src/stale.js'), '')
    const [made] = JSON.parse(await npm(CLONE, 'pack', '--json', '--silent', '--pack-destination', root))
    return { tarball: join(root, made.filename), files: made.files.map(({ path }: { path: string }) => path) }
  })()
  return packed
}

test('npm install --global . again, in a clone whose dependencies are those of yesterday', async () => {
  await rm(join(CLONE, 'node_modules/commander'), { recursive: true })
  const prefix = join(root, 'global')
  await npm(CLONE, 'install', '--global', '.', '--prefix', prefix)
  const { code, stderr } = await run(join(prefix, 'bin/uploadr'), ['--version'])
  assert.deepEqual([code, stderr], [0, ''])
  assert.ok(
    (await readFile(join(CLONE, 'package-lock.json'))).equals(
      await readFile(join(ROOT, 'package-lock.json')),
    ),
  )
})

test('npm pack: what was compiled of today’s sources, the pages and the documents, and nothing else', async () => {
  const { files } = await pack()
  const sources = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
  const compiled = sources
    .filter(name => /\.\w+$/.test(name))
    .flatMap(name =>
      name.endsWith('.ts') ? [name.replace(/\.ts$/, '.js'), name.replace(/\.ts$/, '.d.ts')] : [name],
    )
  const documents = files.filter(name => /^(docs\/)?[\w-]+\.(md|svg)$/.test(name))
  const expected = [
    ...['LICENSE', 'package.json', 'bin/uploadr.js'],
    ...compiled.map(name => `dist/src/${name}`),
    ...readdirSync(join(ROOT, 'man')).map(name => `man/${name}`),
    ...documents,
  ]
  assert.deepEqual(files.toSorted(), expected.toSorted())
  assert.ok(documents.includes('README.md') && documents.includes('CHANGELOG.md'))
})

test('what the packed documents link to is packed, too', async () => {
  const { files } = await pack()
  let links = 0
  for (const path of files.filter(name => name.endsWith('.md'))) {
    const text = await readFile(join(ROOT, path), 'utf8')
    for (const [, target = ''] of text.matchAll(/\]\(([^)#\s]+)[^)]*\)/g)) {
      if (/^[a-z]+:/.test(target)) continue
      links++
      assert.ok(files.includes(join(dirname(path), target)), `${path} links to ${target}`)
    }
  }
  assert.ok(links > 0)
})

/** A project of somebody else's, in which the tarball is installed. */
async function project(t: TestContext): Promise<string> {
  const { tarball } = await pack()
  const folder = join(await tempDir(t), 'project')
  await mkdir(folder)
  await writeFile(join(folder, 'package.json'), '{"name": "project", "private": true, "type": "module"}')
  await npm(folder, 'install', tarball)
  return folder
}

test('installed from the tarball: the README’s library example runs in a project in JavaScript', async t => {
  const folder = await project(t)
  const bytes = randomFile(100_000)
  await writeFile(join(folder, 'photo.raw'), bytes)
  await writeFile(join(folder, 'example.js'), example('createServer', 'openFile', 'shutdown'))
  const { code, stdout, stderr } = await run(process.execPath, ['example.js'], { cwd: folder })
  assert.deepEqual([code, stderr], [0, ''])
  assert.ok(stdout.endsWith(`photo.raw ${bytes.length} ${sha256(bytes)}\n`), stdout)
  assert.ok((await readFile(join(folder, 'uploads/photo.raw'))).equals(bytes))
})

test('installed from the tarball for everybody: the command serves with the README’s handlers, and pushes', async t => {
  // The handlers import the copy in their own folder: it is another one than the command's.
  const folder = await project(t)
  const { tarball } = await pack()
  const prefix = join(folder, 'global')
  await npm(folder, 'install', '--global', tarball, '--prefix', prefix)
  for (const page of readdirSync(join(ROOT, 'man')))
    assert.ok(existsSync(join(prefix, 'share/man/man1', page)), page)
  const command = join(prefix, 'bin/uploadr')
  await writeFile(join(folder, 'no-duplicates.mjs'), example("name: 'no-duplicates'"))
  await writeFile(join(folder, 'pdf-only.mjs'), example("name: 'pdf-only'"))
  await writeFile(join(folder, 'a.pdf'), '%PDF-1.7')
  await writeFile(join(folder, 'b.pdf'), 'a letter')
  await writeFile(join(folder, 'c.pdf'), '%P')
  const server = spawn(
    command,
    ['serve', '--port', '0', '--handler', './no-duplicates.mjs', '--handler', './pdf-only.mjs'],
    {
      cwd: folder,
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  const exited = once(server, 'close')
  t.after(() => server.kill('SIGKILL'))
  const lines = createInterface({ input: server.stdout })
  const [url] = await Promise.race([
    once(lines, 'line'),
    exited.then(([code]) => assert.fail(`serve exited with ${code}`)),
  ])
  const push = (file: string) => run(command, ['push', file, '--url', String(url)], { cwd: folder })
  const codes = []
  for (const file of ['a.pdf', 'b.pdf', 'c.pdf', 'a.pdf']) {
    const { code, stderr } = await push(file)
    codes.push([code, /is not a PDF|has been stored before/.exec(stderr)?.[0]])
  }
  assert.deepEqual(codes, [
    [0, undefined],
    [6, 'is not a PDF'],
    [6, 'is not a PDF'],
    [6, 'has been stored before'],
  ])
  // What is shown in a browser is in it as well.
  const page = await fetch(String(url), { headers: { accept: 'text/html' } })
  const [, script = ''] = /src="([^"]+\.js)"/.exec(await page.text()) ?? []
  for (const name of readdirSync(join(ROOT, 'src/server/assets'))) {
    const { status } = await fetch(new URL(name, new URL(script, String(url))))
    assert.equal(status, 200, name)
  }
  server.kill('SIGTERM')
  assert.deepEqual(await exited, [0, null])
})

/** Everything that is exported, used as its types say. */
const CONSUMER = `
import {
  type Awaitable, compose, createLogger, createServer, disk, type ErrorCode, type FieldError, type FileInfo, type FileSink,
  type Limits, type LiveUpload, LocalStorage, type Logger, MemoryProgressStore, memory, type OnConflict, type OpenFile,
  openFile, type Outcome, type Problem, type Progress, type ProgressStore, progress, push, type PushOptions,
  type PushProgress, type PushResult, type Receipt, type ServerOptions, type Source, type StagedFile, type Storage,
  type StoredFile, streamSource, tap, type Upload, UploadError, type UploadFacts, type UploadHandler, type UploadRecord,
  type UploadServer,
} from 'uploadr'

const counts: number[] = []
class Counting implements UploadHandler {
  readonly name = 'counting'
  begin(upload: Upload): Awaitable<void> {
    if (upload.size === 0) throw new UploadError('virus_found', 'nothing at all', { status: 422 })
  }
  async open(file: FileInfo, next: OpenFile, _upload: Upload): Promise<FileSink> {
    const sink = await next(file)
    return tap(sink, {
      write(chunk: Uint8Array) {
        counts.push(chunk.length)
        return sink.write(chunk)
      },
    })
  }
}
const limits: Partial<Limits> = { files: 3 }
const conflict: OnConflict = 'reject'
const store: ProgressStore = new MemoryProgressStore({ ttl: 1000 })
const lines: string[] = []
const log: Logger = createLogger({ stream: { write: (line: string) => lines.push(line) }, format: 'json' })
const storage: Storage = await LocalStorage.open({ dir: 'uploads', onConflict: conflict })
const options: ServerOptions = {
  storage, progress: store, log, limits, handlers: [compose([new Counting(), progress(new MemoryProgressStore())]), memory()],
}
const server: UploadServer = await createServer(options)
const url: string = await server.listen({ port: 0 })
const source: Source = await openFile('typed.ts')
const seen: PushProgress[] = []
const pushing: PushOptions = { url, source, onProgress: progress => void seen.push(progress) }
const result: PushResult = await push(pushing)
const receipt: Receipt = result.receipt
const [file]: StoredFile[] = receipt.files
let code: ErrorCode | string = 'none'
try {
  await push({ url, source: streamSource((async function* () { yield new Uint8Array(1) })(), 'typed.ts') })
} catch (error) {
  if (error instanceof UploadError) code = error.code
}
await server.shutdown({ grace: 1000 })
const scratch = disk({ dir: 'uploads', fsync: false })
await scratch.close()
export type Rest = [FieldError, LiveUpload, Outcome, Problem, Progress, StagedFile, UploadFacts, UploadRecord]
console.log(JSON.stringify({ name: file?.name, verified: result.verified, code, counted: counts.length > 0, seen: seen.length > 0, logged: lines.length > 0 }))
`

test('installed from the tarball: a strict project in TypeScript compiles, every declaration looked at, and runs', async t => {
  const folder = await project(t)
  await mkdir(join(folder, 'node_modules/@types'))
  await symlink(join(ROOT, 'node_modules/@types/node'), join(folder, 'node_modules/@types/node'))
  await writeFile(join(folder, 'typed.ts'), CONSUMER)
  const compilerOptions = {
    ...{
      strict: true,
      module: 'NodeNext',
      target: 'es2023',
      skipLibCheck: false,
      verbatimModuleSyntax: true,
    },
    ...{
      exactOptionalPropertyTypes: true,
      noUncheckedIndexedAccess: true,
      noPropertyAccessFromIndexSignature: true,
    },
  }
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['typed.ts'] }))
  const compiled = await run(join(ROOT, 'node_modules/.bin/tsc'), ['--project', folder])
  assert.deepEqual([compiled.code, compiled.stdout], [0, ''])
  const { code, stdout, stderr } = await run(process.execPath, ['typed.js'], { cwd: folder })
  assert.deepEqual([code, stderr], [0, ''])
  assert.deepEqual(JSON.parse(stdout), {
    ...{ name: 'typed.ts', verified: true, code: 'name_taken', counted: true, seen: true, logged: true },
  })
})
