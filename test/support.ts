/** What tests share: temporary folders, servers on free ports, the real binary, raw requests. */
import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import net from 'node:net'
import os from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { TestContext } from 'node:test'
import { setImmediate as tick } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Progress, StoredFile, UploadRecord } from '../src/index.ts'
import { createServer, type ServerOptions, tap, type UploadHandler, type UploadServer } from '../src/index.ts'

/** The repository's root, from dist/test/. */
export const ROOT = fileURLToPath(new URL('../../', import.meta.url))
export const BINARY = join(ROOT, 'bin/uploadr.js')

/** Parts that come from Debian must be there in CI; elsewhere a test that needs one skips and says so. */
export const IN_CI = Boolean(process.env['CI'])

/** What the environment says to the tests. The binaries that they start would take it for theirs, and refuse it. */
export const SETTINGS: NodeJS.ProcessEnv = {}
for (const name of Object.keys(process.env).filter(each => each.startsWith('UPLOADR_'))) {
  SETTINGS[name] = process.env[name]
  delete process.env[name]
}

export async function tempDir(t: TestContext): Promise<string> {
  const dir = await mkdtemp(join(os.tmpdir(), 'uploadr-test-'))
  t.after(() => rm(dir, { recursive: true, force: true, maxRetries: 5 }))
  return dir
}

export interface TestServer {
  server: UploadServer
  url: string
  port: number
  dir: string
  tmp: string
}

/** A server in this process, on a free port, storing in a folder of its own. */
export async function startServer(t: TestContext, options: ServerOptions = {}): Promise<TestServer> {
  const root = await tempDir(t)
  const dir = options.dir ?? join(root, 'uploads')
  const tmp = options.tmp ?? join(root, 'tmp')
  const server = await createServer({ fsync: false, ...options, dir, tmp })
  const url = await server.listen({ port: 0 })
  t.after(() => server.shutdown())
  return { server, url, port: Number(new URL(url).port), dir, tmp }
}

export interface Running {
  child: ChildProcess
  pid: number
  stdout(): string
  stderr(): string
  /** Exit code, or the name of the signal that ended it. */
  exited: Promise<number | string>
}

/** The real binary as a child process; killed when the test ends. */
export function uploadr(
  t: TestContext,
  args: readonly string[],
  options: { env?: Record<string, string>; cwd?: string; stdin?: 'ignore' | 'pipe' } = {},
): Running {
  const env: NodeJS.ProcessEnv = { ...process.env, ...options.env }
  const child = spawn(process.execPath, [BINARY, ...args], {
    env,
    ...(options.cwd && { cwd: options.cwd }),
    stdio: [options.stdin ?? 'ignore', 'pipe', 'pipe'],
  })
  let stdout = ''
  let stderr = ''
  child.stdout?.on('data', chunk => (stdout += chunk))
  child.stderr?.on('data', chunk => (stderr += chunk))
  const exited = once(child, 'close').then(([code, signal]) => (code ?? signal) as number | string)
  t.after(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return { child, pid: child.pid as number, stdout: () => stdout, stderr: () => stderr, exited }
}

/** `uploadr serve` as a child process; resolves when it listens. */
export async function serve(
  t: TestContext,
  args: readonly string[] = [],
  options: { env?: Record<string, string>; dir?: string } = {},
): Promise<Running & { url: string; dir: string }> {
  const dir = options.dir ?? join(await tempDir(t), 'uploads')
  const running = uploadr(t, ['serve', '--port', '0', '--dir', dir, ...args], options)
  const lines = createInterface({ input: running.child.stdout as NodeJS.ReadableStream })
  const first = await Promise.race([once(lines, 'line'), running.exited])
  if (!Array.isArray(first)) throw new Error(`serve exited with ${first}: ${running.stderr()}`)
  return { ...running, url: String(first[0]), dir }
}

export interface Part {
  name?: string
  filename?: string
  type?: string
  body: string | Buffer
  /** Instead of the headers that the other fields make. */
  headers?: string
}

/** A multipart body, byte for byte as said. */
export function multipart(parts: readonly Part[], boundary = 'BOUNDARY'): Buffer {
  const chunks: (string | Buffer)[] = []
  for (const { name, filename, type, body, headers } of parts) {
    const disposition =
      `Content-Disposition: form-data; name="${name}"` +
      (filename === undefined ? '' : `; filename="${filename}"`)
    const head = headers ?? disposition + (type === undefined ? '' : `\r\nContent-Type: ${type}`)
    chunks.push(`--${boundary}\r\n${head}\r\n\r\n`, body, '\r\n')
  }
  chunks.push(`--${boundary}--\r\n`)
  return Buffer.concat(chunks.map(chunk => Buffer.from(chunk)))
}

export const TITLE: Part = { name: 'title', body: 'a title' }

export interface RawAnswer {
  status: number
  headers: Map<string, string>
  text: string
  // biome-ignore lint/suspicious/noExplicitAny: what a server answers is what the test says it is
  json: any
}

/** Posts a body over a socket of its own, in pieces of `chunk` bytes, with exactly the headers said. */
export async function post(
  url: string,
  body: Buffer,
  options: {
    headers?: Record<string, string>
    boundary?: string
    chunk?: number
    chunked?: boolean
    path?: string
  } = {},
): Promise<RawAnswer> {
  const { boundary = 'BOUNDARY', chunk = body.length || 1, chunked = false, path = '/' } = options
  const headers: Record<string, string> = {
    Host: new URL(url).host,
    'Content-Type': `multipart/form-data; boundary=${boundary}`,
    Connection: 'close',
    ...(chunked ? { 'Transfer-Encoding': 'chunked' } : { 'Content-Length': String(body.length) }),
    ...options.headers,
  }
  const socket = connect(url)
  const answer = readAnswer(socket)
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`POST ${path} HTTP/1.1\r\n${lines.join('')}\r\n`)
  for (let at = 0; at < body.length && !socket.destroyed; at += chunk) {
    const piece = body.subarray(at, at + chunk)
    const sent = chunked
      ? Buffer.concat([Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n')])
      : piece
    if (!socket.write(sent)) {
      await new Promise<void>(resolve => {
        const done = () => {
          socket.off('drain', done).off('close', done)
          resolve()
        }
        socket.on('drain', done).on('close', done)
      })
    }
    // Each piece as a read of its own on the other side.
    if (chunk < body.length) await tick()
  }
  if (chunked && !socket.destroyed) socket.write('0\r\n\r\n')
  return answer
}

export function connect(url: string): net.Socket {
  const { hostname, port } = new URL(url)
  const socket = net.connect(Number(port), hostname)
  socket.setNoDelay(true)
  socket.on('error', () => {})
  return socket
}

/** Reads one answer to the end of the connection. */
export async function readAnswer(socket: net.Socket): Promise<RawAnswer> {
  const chunks: Buffer[] = []
  socket.on('data', chunk => chunks.push(chunk))
  // Not events.once(), which rejects on a reset: what came before it is what counts.
  await new Promise<void>(resolve => socket.once('close', () => resolve()))
  return parseAnswer(Buffer.concat(chunks).toString())
}

export function parseAnswer(raw: string): RawAnswer {
  const [head = '', ...rest] = raw.replace(/^HTTP\/1\.1 100 Continue\r\n\r\n/, '').split('\r\n\r\n')
  const [statusLine = '', ...lines] = head.split('\r\n')
  const text = rest.join('\r\n\r\n')
  const headers = new Map<string, string>()
  for (const line of lines) {
    const name = line.slice(0, line.indexOf(':')).toLowerCase()
    const value = line.slice(line.indexOf(':') + 2)
    // What comes several times, as fetch has it.
    headers.set(name, headers.has(name) ? `${headers.get(name)}, ${value}` : value)
  }
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {}
  return { status: Number(statusLine.split(' ')[1]), headers, text, json }
}

export async function getProgress(url: string, id: string): Promise<Progress> {
  return (await fetch(new URL(`progress/${id}`, url))).json() as Promise<Progress>
}

/** Asks until the answer satisfies; a condition that never comes true is the runner's timeout. */
export async function until<T>(ask: () => T | Promise<T>, satisfied: (value: T) => boolean): Promise<T> {
  for (;;) {
    const value = await ask()
    if (satisfied(value)) return value
    await tick()
  }
}

/** Everything a server left that is not a published file or a record: must be empty after an upload has ended. */
export async function leftovers(...folders: string[]): Promise<string[]> {
  const found: string[] = []
  for (const folder of folders) {
    const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
    for (const entry of entries) if (entry.isFile()) found.push(join(entry.parentPath, entry.name))
  }
  return found.filter(
    path => folders.some(folder => path.startsWith(folder)) && !/\/\.uploadr\/records\//.test(path),
  )
}

/** The temporary and staging files of a test server. */
export async function temporaryFiles({ dir, tmp }: { dir: string; tmp?: string }): Promise<string[]> {
  return leftovers(join(dir, '.uploadr'), ...(tmp ? [tmp] : []))
}

export async function published(dir: string): Promise<string[]> {
  const entries = await readdir(dir).catch(() => [])
  return entries.filter(name => name !== '.uploadr').sort()
}

export async function records(dir: string): Promise<UploadRecord[]> {
  const folder = join(dir, '.uploadr', 'records')
  const names = (await readdir(folder)).sort()
  return Promise.all(names.map(async name => JSON.parse(await readFile(join(folder, name), 'utf8'))))
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

export function randomFile(size: number): Buffer {
  return randomBytes(size)
}

/** The stored file has exactly these bytes, and the receipt says so. */
export async function assertStored(dir: string, file: StoredFile, bytes: Buffer): Promise<void> {
  assert.equal(file.size, bytes.length)
  assert.equal(file.sha256, sha256(bytes))
  assert.ok((await readFile(join(dir, file.name))).equals(bytes), `${file.name} differs from what was sent`)
}

/** A handler whose files wait at the gate: nothing is written until it is opened. */
export function gate(): { handler: UploadHandler; reached: Promise<void>; open(): void } {
  let open = () => {}
  let reach = () => {}
  const opened = new Promise<void>(resolve => (open = resolve))
  const reached = new Promise<void>(resolve => (reach = resolve))
  const handler: UploadHandler = {
    name: 'gate',
    async open(file, next) {
      const inner = await next(file)
      return tap(inner, {
        async write(chunk) {
          reach()
          await opened
          await inner.write(chunk)
        },
      })
    },
  }
  return { handler, reached, open }
}

/** Runs a program to its end: code, stdout and stderr. */
export function run(
  command: string,
  args: readonly string[],
  options: { input?: Buffer; cwd?: string; env?: NodeJS.ProcessEnv } = {},
) {
  return new Promise<{ code: number; stdout: string; stderr: string }>(resolve => {
    const child = execFile(
      command,
      args,
      { maxBuffer: 64 * 1024 * 1024, cwd: options.cwd, env: options.env },
      (error, stdout, stderr) => {
        resolve({ code: error ? (typeof error.code === 'number' ? error.code : 1) : 0, stdout, stderr })
      },
    )
    child.stdin?.on('error', () => {})
    child.stdin?.end(options.input)
  })
}

/** A tmpfs of `size` of its own; undefined, and the test skipped, where mounting is not allowed. */
export async function smallFileSystem(t: TestContext, size: string): Promise<string | undefined> {
  const path = await mkdtemp(join(os.tmpdir(), 'uploadr-small-'))
  t.after(async () => {
    await run('umount', ['-l', path])
    await rm(path, { recursive: true, force: true })
  })
  const { code, stderr } = await run('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'uploadr-test', path])
  if (code === 0) return path
  assert.ok(!IN_CI, `CI must be able to mount a file system: ${stderr}`)
  t.skip(`cannot mount a small file system: ${stderr.trim()}`)
  return undefined
}
