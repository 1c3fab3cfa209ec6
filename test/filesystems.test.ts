/**
 * The real binary on file systems that are not ext4, each mounted for real: some have no hard links, some no modes,
 * some refuse to sync a folder, some refuse names. Nothing is lost on any of them, and no upload is answered with 5xx.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import os, { constants } from 'node:os'
import { extname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, type TestContext, test } from 'node:test'
import type { Receipt } from '../src/index.ts'
import {
  assertStored,
  IN_CI,
  multipart,
  post,
  published,
  ROOT,
  randomFile,
  records,
  run,
  serve,
  sha256,
  TITLE,
  tempDir,
  temporaryFiles,
  until,
} from './support.ts'

/** Mounts one; the folder, or the reason why it cannot be had here. */
type Mount = (t: TestContext) => Promise<{ folder: string } | { missing: string }>

async function mountpoint(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(os.tmpdir(), 'uploadr-mount-'))
  t.after(async () => {
    // Lazily: what still holds it open, a server that is killed next, must not hold up the test.
    await run('umount', ['-l', folder])
    await rm(folder, { recursive: true, force: true })
  })
  return folder
}

/** A file system in a file of its own, by way of a loop device. */
function onLoop(make: readonly string[], mount: readonly string[]): Mount {
  return async t => {
    const image = join(await tempDir(t), 'image')
    const folder = await mountpoint(t)
    const script = `
      set -e
      truncate -s 128M ${image}
      device=$(losetup --find --show ${image})
      # Freed when nothing uses it any more, or by what is below where the mount fails.
      trap 'losetup --detach $device' EXIT
      ${make.join(' ')} $device >&2
      ${mount.join(' ')} $device ${folder} >&2`
    const { code, stderr } = await run('sh', ['-c', script])
    return code === 0 ? { folder } : { missing: stderr }
  }
}

const encfs: Mount = async t => {
  const folder = await mountpoint(t)
  const { code, stderr } = await run('encfs', ['--standard', '--stdinpass', await tempDir(t), folder], {
    input: Buffer.from('a password\n'),
  })
  return code === 0 ? { folder } : { missing: stderr }
}

/** Two folders as one. As it is mounted by default, its inodes are not the folders', and each name has its own. */
const mergerfs: Mount = async t => {
  const folder = await mountpoint(t)
  const branches = [await tempDir(t), await tempDir(t)]
  const { code, stderr } = await run('mergerfs', ['-o', 'minfreespace=0', branches.join(':'), folder])
  return code === 0 ? { folder } : { missing: stderr }
}

const fixtures = await mkdtemp(join(os.tmpdir(), 'uploadr-fixtures-'))
after(() => rm(fixtures, { recursive: true, force: true }))
const program = join(fixtures, 'pass-through')
const compiled = run('sh', [
  '-c',
  `gcc -Wall -Wextra -Werror -O2 -o ${program} ${join(ROOT, 'test/fixtures/pass-through.c')} $(pkg-config fuse3 --cflags --libs)`,
])

/** test/fixtures/pass-through.c, with what it is to refuse. */
function passThrough(faults: Record<string, string | number>): Mount {
  return async t => {
    const { code, stderr } = await compiled
    if (code !== 0) return { missing: stderr }
    const env = Object.fromEntries(Object.entries(faults).map(([name, value]) => [name, String(value)]))
    const folder = await mountpoint(t)
    const child = spawn(program, [folder, '-f'], {
      env: { ...process.env, LOWER: await tempDir(t), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let said = ''
    child.stderr.on('data', chunk => (said += chunk))
    const exited = once(child, 'close')
    t.after(() => child.kill('SIGKILL'))
    const first = await Promise.race([once(createInterface({ input: child.stdout }), 'line'), exited])
    return first[0] === 'mounted' ? { folder } : { missing: said }
  }
}

const { EACCES, EPERM, EXDEV, EIO, EINVAL, EMLINK, ENOENT } = constants.errno
const CHARS = ':?*<>|"'

/** In memory until it is published, and through a temporary file. */
const SIZES = [1000, 3_000_000]
const HARD_NAMES = [
  'a:b?.txt',
  'a<b>|*.txt',
  `${'x'.repeat(251)}.txt`,
  `${'é'.repeat(125)}.txt`,
  `${'漢'.repeat(83)}.txt`,
  'con.txt',
  'a dot at the end.',
  'two  spaces.txt',
]

const file = (filename: string, body: Buffer) => ({ name: 'file', filename, type: 'x/y', body })

/** Stored under a name of the disk's, with these bytes; the receipt's first file. */
async function stored(at: { url: string; dir: string }, ...files: ReturnType<typeof file>[]) {
  const { status, json, text } = await post(at.url, multipart([TITLE, ...files]))
  assert.equal(status, 201, text)
  for (const [i, { body }] of files.entries()) await assertStored(at.dir, json.files[i], body)
  return (json as Receipt).files
}

async function stop({ child, exited }: Awaited<ReturnType<typeof serve>>): Promise<void> {
  child.kill('SIGTERM')
  assert.equal(await exited, 0)
}

async function storesEverything(t: TestContext, dir: string): Promise<void> {
  const at = await serve(t, ['--min-free', '0'], { dir })
  const [small, large] = SIZES.map(size => randomFile(size)) as [Buffer, Buffer]
  await stored(at, file('small.bin', small))
  await stored(at, file('large.bin', large))
  await stored(at, file('one.bin', small), file('other.bin', large))
  for (const body of [small, large]) {
    for (const name of HARD_NAMES) {
      const [first] = await stored(at, file(name, body))
      // Windows has no names that end with a dot.
      const extension = extname(name.replace(/\.$/, ''))
      assert.equal(extname(String(first?.name).replace(/\.$/, '')), extension, `${name} is ${first?.name}`)
    }
  }
  const names = (await records(dir)).flatMap(({ files }) => files.map(({ name }) => name))
  assert.deepEqual(await published(dir), names.toSorted())
  assert.equal(new Set(names).size, 4 + 2 * HARD_NAMES.length)
  assert.deepEqual(await temporaryFiles({ dir }), [])
  await stop(at)
}

async function keepsWhatIsThere(t: TestContext, dir: string): Promise<void> {
  const bodies = SIZES.flatMap(size => [randomFile(size), randomFile(size)])
  const renaming = await serve(t, ['--min-free', '0'], { dir })
  const names = []
  for (const body of bodies) names.push((await stored(renaming, file('a.bin', body)))[0]?.name)
  assert.equal(new Set(names).size, bodies.length)
  for (const [i, body] of bodies.entries())
    assert.ok((await readFile(join(dir, String(names[i])))).equals(body))
  await stop(renaming)

  const rejecting = await serve(t, ['--min-free', '0', '--on-conflict', 'reject'], { dir })
  const before = await published(dir)
  for (const body of bodies) {
    const form = multipart([TITLE, file('b.bin', body), file('a.bin', body)])
    const { status, json, text } = await post(rejecting.url, form)
    assert.deepEqual([status, json?.code], [409, 'name_taken'], text)
  }
  assert.deepEqual(await published(dir), before)
  assert.ok((await readFile(join(dir, 'a.bin'))).equals(bodies[0] as Buffer))
  await stop(rejecting)

  const replacing = await serve(t, ['--min-free', '0', '--on-conflict', 'replace'], { dir })
  for (const body of bodies) {
    const [first] = await stored(replacing, file('a.bin', body))
    assert.equal(first?.name, 'a.bin')
  }
  // The second of one upload cannot have a folder's name: the first is taken back, and the old file is there again.
  await mkdir(join(dir, 'folder'))
  const form = multipart([TITLE, file('a.bin', randomFile(2000)), file('folder', randomFile(2000))])
  const { status, text } = await post(replacing.url, form)
  assert.equal(status, 409, text)
  assert.ok((await readFile(join(dir, 'a.bin'))).equals(bodies.at(-1) as Buffer))
  assert.deepEqual(await published(dir), [...before, 'folder'].sort())
  // One name to a disk that folds case, and two files of one upload: both are wanted.
  await stored(replacing, file('case.bin', bodies[0] as Buffer), file('CASE.BIN', bodies[1] as Buffer))
  assert.deepEqual(await temporaryFiles({ dir }), [])
  await stop(replacing)
}

/** Temporary files on another disk than the folder's: one of them is of the other kind. */
async function copies(t: TestContext, dir: string): Promise<void> {
  const ordinary = await tempDir(t)
  for (const [folder, other] of [
    [dir, ordinary],
    [ordinary, dir],
  ] as const) {
    const places = { dir: join(folder, 'uploads'), tmp: join(other, 'tmp') }
    const at = await serve(t, ['--min-free', '0', '--memory-max', '0', '--tmp', places.tmp], places)
    for (const size of SIZES)
      await stored(at, file('a.bin', randomFile(size)), file('a:b.bin', randomFile(size)))
    assert.equal((await published(places.dir)).length, 2 * SIZES.length)
    assert.deepEqual(await temporaryFiles(places), [])
    await stop(at)
  }
}

async function recovers(t: TestContext, dir: string): Promise<void> {
  const receipts: Receipt[] = []
  const forms = SIZES.map(size =>
    multipart([TITLE, file('a.bin', randomFile(size)), file('b.bin', randomFile(size))]),
  )
  // Killed in the middle of what the first start recovers from, and of what it took on since.
  for (let round = 1; round <= 2; round++) {
    const server = await serve(t, ['--min-free', '0'], { dir })
    const clients = forms.concat(forms).map(async form => {
      for (;;) {
        const answer = await post(server.url, form).catch(() => undefined)
        if (!answer?.status) return
        assert.equal(answer.status, 201, answer.text)
        if (answer.json) receipts.push(answer.json)
      }
    })
    await Promise.race([
      until(
        () => receipts.length,
        count => count >= 4 * round,
      ),
      // Not before the kill: one of them has failed.
      Promise.all(clients),
    ])
    server.child.kill('SIGKILL')
    await Promise.all(clients)
    await server.exited
  }
  const next = await serve(t, ['--min-free', '0'], { dir })
  const recorded = (await records(dir)).flatMap(({ files }) => files)
  assert.deepEqual(await published(dir), recorded.map(({ name }) => name).toSorted())
  for (const { name, sha256: digest } of recorded)
    assert.equal(sha256(await readFile(join(dir, name))), digest, name)
  const kept = new Set(recorded.map(({ name }) => name))
  for (const { files } of receipts)
    for (const { name } of files) assert.ok(kept.has(name), `${name} was acknowledged`)
  assert.deepEqual(await temporaryFiles({ dir }), [])
  await stop(next)
}

type Scenario = (t: TestContext, dir: string) => Promise<void>

/** By what is tried on it. What is refused at the start makes no difference to the rest but by what it is about. */
const FILE_SYSTEMS: Record<string, [mount: Mount, ...scenarios: Scenario[]]> = {
  exFAT: [onLoop(['mkfs.exfat'], ['mount.exfat-fuse']), copies, storesEverything, keepsWhatIsThere, recovers],
  'NTFS, with the names of Windows': [
    onLoop(['mkfs.ntfs', '--quick', '--force'], ['ntfs-3g', '-o', 'windows_names']),
    ...[storesEverything, keepsWhatIsThere, recovers],
  ],
  encfs: [encfs, storesEverything, keepsWhatIsThere, recovers],
  mergerfs: [mergerfs, storesEverything, keepsWhatIsThere, recovers],
  'nothing refused': [passThrough({}), storesEverything],
  'links refused with EACCES': [passThrough({ LINK: EACCES }), keepsWhatIsThere, recovers],
  'links refused with EPERM': [passThrough({ LINK: EPERM }), keepsWhatIsThere],
  'links refused with EXDEV': [passThrough({ LINK: EXDEV }), keepsWhatIsThere],
  'links refused with EIO': [passThrough({ LINK: EIO }), keepsWhatIsThere],
  'links refused with EINVAL': [passThrough({ LINK: EINVAL }), keepsWhatIsThere],
  'links refused with EMLINK': [passThrough({ LINK: EMLINK }), keepsWhatIsThere],
  'links that cannot be told to be one file': [
    passThrough({ INODE_PER_NAME: 1 }),
    keepsWhatIsThere,
    recovers,
  ],
  'modes refused with EPERM': [passThrough({ CHMOD: EPERM }), copies, storesEverything],
  'the sync of a folder refused with EINVAL': [passThrough({ FSYNCDIR: EINVAL }), storesEverything],
  'long names refused': [passThrough({ NAME_MAX: 143 }), storesEverything],
  'characters refused with EINVAL': [
    passThrough({ NAME_CHARS: CHARS, NAME_ERRNO: EINVAL }),
    storesEverything,
  ],
  'characters refused with ENOENT': [
    passThrough({ NAME_CHARS: CHARS, NAME_ERRNO: ENOENT }),
    storesEverything,
  ],
  'all of it refused': [
    passThrough({
      ...{
        LINK: EPERM,
        CHMOD: EPERM,
        FSYNCDIR: EINVAL,
        NAME_MAX: 143,
        NAME_CHARS: CHARS,
        NAME_ERRNO: EINVAL,
      },
    }),
    ...[copies, storesEverything, keepsWhatIsThere, recovers],
  ],
}

for (const [name, [mount, ...scenarios]] of Object.entries(FILE_SYSTEMS)) {
  test(`on a file system of another kind: ${name}`, async t => {
    const mounted = await mount(t)
    if ('missing' in mounted) {
      assert.ok(!IN_CI, `CI must be able to mount it: ${mounted.missing}`)
      return t.skip(mounted.missing.trim())
    }
    for (const scenario of scenarios) {
      await t.test(scenario.name, t => scenario(t, join(mounted.folder, scenario.name)))
    }
  })
}
