import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { native } from './native.js'
import { ProcessTree } from './process-tree.js'

const BIN = fileURLToPath(new URL('../bin/uploadr.js', import.meta.url))
const HERE = fileURLToPath(new URL('./', import.meta.url))
const START_TIMEOUT_MS = 20_000
const STOP_TIMEOUT_MS = 10_000

/** Where the load generator writes a request's number. */
export const HOLE = '#########'

/**
 * A server to measure: what starts it, what a request to it looks like, where its files end up.
 * @typedef {object} Contender
 * @property {string} name
 * @property {string} group  uploadr, nginx, npm, django or limit
 * @property {'defaults' | 'bare' | 'durable' | undefined} [mode]  undefined: it has but one
 * @property {(place: Place) => Command | Promise<Command>} command
 * @property {(size: number, boundary: string) => { head: string, tail: string }} request
 * @property {(size: number, boundary: string) => number} [offset]  where in a stored file the payload begins
 * @property {(place: Place) => string[]} folders  whose files are the stored ones, then others to empty
 * @property {RegExp} [ignore]  files that are not uploads
 * @property {boolean} [polled]
 *
 * @typedef {{ root: string, files: string, tmp: string, port: number }} Place
 * @typedef {{ args: string[], env?: Record<string, string>, ready: 'prints' | 'connects' }} Command
 */

function multipart(size, boundary, headers = '') {
  const part = (disposition, type = '') =>
    `--${boundary}\r\nContent-Disposition: form-data; ${disposition}\r\n${type}\r\n`
  const before =
    `${part('name="title"')}a benchmark\r\n` +
    part(`name="file"; filename="${HOLE}.bin"`, 'Content-Type: application/octet-stream\r\n')
  const tail = `\r\n--${boundary}--\r\n`
  const head =
    `POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n${headers}` +
    `Content-Type: multipart/form-data; boundary=${boundary}\r\n` +
    `Content-Length: ${before.length + size + tail.length}\r\n\r\n`
  return { head: head + before, tail, offset: before.length }
}

function raw(method, path, size, headers = '') {
  return {
    head: `${method} ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n${headers}Content-Length: ${size}\r\n\r\n`,
    tail: '',
  }
}

/** What asks for the progress of the request with the number in the hole. */
export const POLL_HEAD = `GET /progress HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Progress-ID: bench-${HOLE}\r\n\r\n`

/** The options of `serve` by mode: as it comes, as the others do, and with only what makes the files durable. */
const SERVE = { defaults: [], bare: ['--no-fsync', '--no-sha256'], durable: ['--no-sha256'] }

/** @returns {Contender} */
export function uploadr(mode, { name = `uploadr ${mode}`, options = [], bin = BIN } = {}) {
  return {
    name,
    group: 'uploadr',
    mode,
    polled: mode === 'defaults',
    command: ({ files }) => ({
      args: [process.execPath, bin, 'serve', '--port', '0', '--dir', files, ...SERVE[mode], ...options],
      ready: 'prints',
    }),
    request: (size, boundary) => multipart(size, boundary, `X-Progress-ID: bench-${HOLE}\r\n`),
    folders: ({ files }) => [files, join(files, '.uploadr', 'records')],
  }
}

function npm(name, mode, request = multipart) {
  return {
    name: mode === 'durable' ? `${name} + fsync` : name,
    group: 'npm',
    ...(mode && { mode }),
    command: ({ files }) => ({
      args: [process.execPath, `${HERE}servers/${name}.js`, files, ...(mode === 'durable' ? ['fsync'] : [])],
      ready: 'prints',
    }),
    request,
    folders: ({ files }) => [files],
    ...(name === 'tus' && { ignore: /\.json$/ }),
  }
}

function tusRequest(size) {
  const headers = `Tus-Resumable: 1.0.0\r\nUpload-Length: ${size}\r\nContent-Type: application/offset+octet-stream\r\n`
  return raw('POST', '/', size, headers)
}

function nginx(name, workers, config, rest) {
  return {
    name,
    group: 'nginx',
    command(place) {
      const path = join(place.root, 'nginx.conf')
      writeFileSync(path, config(place, workers))
      return { args: ['nginx', '-p', place.root, '-c', path], ready: 'connects' }
    },
    folders: ({ files }) => [files],
    ...rest,
  }
}

/** As the package configures it, but without an access log and without an end to keep-alive. */
function nginxConfig({ root, tmp }, workers, before, inside) {
  return `${before}
daemon off;
${process.getuid() === 0 ? 'user root;' : ''}
worker_processes ${workers};
pid ${root}/nginx.pid;
error_log ${root}/error.log;
events { worker_connections 1024; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  types { }
  default_type application/octet-stream;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  client_body_temp_path ${tmp};
  proxy_temp_path ${root}/proxy; fastcgi_temp_path ${root}/fastcgi;
  uwsgi_temp_path ${root}/uwsgi; scgi_temp_path ${root}/scgi;
  ${inside}
}
`
}

const putConfig = (place, workers) =>
  nginxConfig(
    place,
    workers,
    '',
    `server { listen 127.0.0.1:${place.port}; location / { root ${place.files}; dav_methods PUT; } }`,
  )

/** The body goes to a file, unparsed, with its progress tracked; a second server stands for the application. */
const progressConfig = (place, workers) =>
  nginxConfig(
    { ...place, tmp: place.files },
    workers,
    'load_module /usr/lib/nginx/modules/ngx_http_uploadprogress_module.so;',
    `upload_progress uploads 1m;
  upstream application { server unix:${place.root}/application; keepalive 64; }
  server { listen unix:${place.root}/application; location / { return 201; } }
  server {
    listen 127.0.0.1:${place.port};
    location / {
      client_body_in_file_only on;
      proxy_pass http://application;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Content-Length "";
      proxy_set_header X-File $request_body_file;
      proxy_pass_request_body off;
      track_uploads uploads 30s;
    }
    location = /progress { report_uploads uploads; }
  }`,
  )

const put = { request: size => raw('PUT', `/${HOLE}.bin`, size) }

const django = {
  name: 'django',
  group: 'django',
  command: ({ port, files, tmp }) => ({
    // Debian's own Python, which has Debian's packages. gunicorn advises 2 workers a core and one more.
    args: [
      ...['/usr/bin/python3', '/usr/bin/gunicorn', '--bind', `127.0.0.1:${port}`],
      ...['--workers', String(2 * availableParallelism() + 1), '--timeout', '120', '--log-level', 'warning'],
      ...['--worker-tmp-dir', '/dev/shm', '--chdir', `${HERE}servers`, 'django_app:application'],
    ],
    env: { BENCH_FILES: files, BENCH_TMP: tmp, PYTHONDONTWRITEBYTECODE: '1' },
    ready: 'connects',
  }),
  request: multipart,
  folders: ({ files }) => [files],
}

function sink(name, stores) {
  return {
    name,
    group: 'limit',
    command: ({ files }) => ({ args: [native('sink'), ...(stores ? [files] : [])], ready: 'prints' }),
    ...put,
    folders: ({ files }) => (stores ? [files] : []),
  }
}

/** Node without a parser, for many small files only: it gathers a file in memory. */
function plainNode(name, stores) {
  return {
    name,
    group: 'limit',
    command: ({ files }) => ({
      args: [process.execPath, `${HERE}servers/plain.js`, files, ...(stores ? ['store'] : [])],
      ready: 'prints',
    }),
    ...put,
    folders: ({ files }) => (stores ? [files] : []),
  }
}

/** @type {readonly Contender[]} */
export const CONTENDERS = [
  uploadr('defaults'),
  uploadr('bare'),
  uploadr('durable'),
  nginx('nginx', 'auto', putConfig, put),
  nginx('nginx-1', '1', putConfig, put),
  nginx('nginx-progress', 'auto', progressConfig, {
    request: multipart,
    offset: (size, boundary) => multipart(size, boundary).offset,
  }),
  npm('multer'),
  npm('formidable'),
  npm('fastify'),
  npm('tus', undefined, tusRequest),
  npm('multer', 'durable'),
  npm('formidable', 'durable'),
  npm('fastify', 'durable'),
  npm('tus', 'durable', tusRequest),
  django,
  plainNode('node', false),
  plainNode('node-file', true),
  sink('sink', false),
  sink('sink-file', true),
]

const running = new Set()

/** A contender that runs, in a directory of its own. */
export class Server {
  /** @type {Contender} */ contender
  /** @type {Place} */ place
  #child
  #tree

  /** Resolves when it accepts connections. */
  static async start(contender, scratch, where) {
    const server = new Server()
    server.contender = contender
    const root = scratch.fresh(where, contender.name.replaceAll(/\W+/g, '-'))
    const place = { root, files: join(root, 'files'), tmp: join(root, 'tmp'), port: await freePort() }
    mkdirSync(place.files)
    mkdirSync(place.tmp)
    server.place = place
    const { args, env, ready } = await contender.command(place)
    const log = openSync(join(root, 'log'), 'w')
    const [program, ...rest] = args
    // A group of its own: what it starts is stopped with it.
    server.#child = spawn(program, rest, {
      detached: true,
      stdio: ['ignore', ready === 'prints' ? 'pipe' : log, log],
      env: { ...process.env, NODE_ENV: 'production', ...env },
    })
    closeSync(log)
    running.add(server)
    const failed = once(server.#child, 'exit').then(([code]) => {
      throw new Error(
        `${contender.name} ended with ${code}:\n${readFileSync(join(root, 'log'), 'utf8').slice(-2000)}`,
      )
    })
    failed.catch(() => {})
    const late = new AbortController()
    const patience = delay(START_TIMEOUT_MS, undefined, { signal: late.signal }).then(() => {
      throw new Error(`${contender.name} did not start in ${START_TIMEOUT_MS} ms`)
    })
    patience.catch(() => {})
    try {
      const started = ready === 'prints' ? server.#readPort() : server.#connect(late.signal)
      await Promise.race([started, failed, patience])
    } finally {
      late.abort()
    }
    server.#tree = new ProcessTree(server.#child.pid)
    return server
  }

  async #readPort() {
    const [line] = await once(createInterface({ input: this.#child.stdout }), 'line')
    this.place.port = Number(new URL(line).port)
  }

  async #connect(signal) {
    while (!signal.aborted) {
      const socket = net.connect(this.place.port, '127.0.0.1')
      const there = await once(socket, 'connect').then(
        () => true,
        () => false,
      )
      socket.destroy()
      if (there) return
      await delay(20)
    }
  }

  cpu() {
    return this.#tree.cpu()
  }

  peakMemory() {
    return this.#tree.peakMemory()
  }

  async stop() {
    running.delete(this)
    const child = this.#child
    if (child.exitCode !== null || child.signalCode !== null) return
    const ended = once(child, 'exit')
    const forced = setTimeout(() => this.kill(), STOP_TIMEOUT_MS)
    child.kill('SIGTERM')
    await ended
    clearTimeout(forced)
  }

  kill() {
    try {
      process.kill(-this.#child.pid, 'SIGKILL')
    } catch {
      // It has ended.
    }
  }
}

export function killAll() {
  for (const server of running) server.kill()
}

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}
