/** Disks that are not ext4, folders that others reach into, and names they cannot have: the real binary on them. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmod,
  chown,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { type TestContext, test } from 'node:test'
import { faults } from './fixtures/faults.ts'
import {
  assertStored,
  BINARY,
  connect,
  getProgress,
  IN_CI,
  multipart,
  post,
  published,
  type RawAnswer,
  randomFile,
  readAnswer,
  records,
  run,
  serve,
  smallFileSystem,
  TITLE,
  tempDir,
  temporaryFiles,
  until,
  uploadr,
} from './support.ts'

const MIB = 1024 ** 2
const [EPERM, EIO, EACCES, EXDEV, EINVAL, EMLINK, EOPNOTSUPP] = [1, 5, 13, 18, 22, 31, 95]

const file = (body: Buffer | string, filename = 'a.bin') => ({ name: 'file', filename, type: 'x/y', body })
const SMALL = randomFile(1000)
const LARGE = randomFile(6 * MIB)
const form = (...files: ReturnType<typeof file>[]) => multipart([TITLE, ...files])

interface At {
  url: string
  dir: string
}

/** A small and a large file are stored, and nothing else is left. */
async function assertServes({ url, dir }: At): Promise<void> {
  for (const bytes of [SMALL, LARGE]) {
    const { status, json, text } = await post(url, form(file(bytes, 'serves.bin')))
    assert.equal(status, 201, text)
    await assertStored(dir, json.files[0], bytes)
    await rm(join(dir, json.files[0].name))
  }
  assert.deepEqual(await temporaryFiles({ dir }), [])
}

function assertRefused({ status, json, text }: RawAnswer, code: string, detail: RegExp): void {
  assert.deepEqual([json?.code, status], [code, code === 'storage_failed' ? 500 : 409], text)
  assert.match(json.detail, detail)
}

async function health(url: string): Promise<[number, { ok: boolean; why?: string }]> {
  const answer = await fetch(new URL('healthz', url))
  return [answer.status, (await answer.json()) as { ok: boolean; why?: string }]
}

async function end({ child, exited }: Awaited<ReturnType<typeof serve>>): Promise<void> {
  child.kill('SIGTERM')
  assert.equal(await exited, 0)
}

/** Each step of a publication that a crash may come before, by the call that takes it; and whether the record was safe. */
const STEPS: { [step: string]: { fault: string; safe: boolean; only?: RegExp } } = {
  'the first file is made': { fault: 'open */staging/*.0', safe: false },
  'the second file is written': { fault: 'write */staging/*.1', safe: false },
  'the record is made': { fault: 'open */staging/*.json', safe: false },
  // From here on recovery may find it: it is whole.
  'the record is synced': { fault: 'fdatasync */staging/*.json', safe: true },
  'the staging folder is synced': { fault: 'fsync */staging/*', safe: true },
  'the first name is tried': { fault: 'link *>*/a.bin', safe: true, only: /^(?!.*without)/ },
  'the old file is linked': { fault: 'link */a.bin>*.old', safe: true, only: /replace(?!.*without)/ },
  'the old file is moved aside': { fault: 'rename */a.bin>*.old', safe: true, only: /replace.*without/ },
  'the new file is linked, to take its place': {
    fault: 'link *.0>*.new',
    safe: true,
    only: /replace(?!.*without)/,
  },
  'the new file takes its place': { fault: 'rename *.new>*/a.bin', safe: true, only: /replace(?!.*without)/ },
  'the new file moves to its place': { fault: 'rename *.0>*/a.bin', safe: true, only: /replace.*without/ },
  'the record names it differently': { fault: 'rename *.json.new>*.json', safe: true, only: /rename/ },
  'the second name is given': { fault: 'link *>*/b.bin', safe: true, only: /^(?!.*without)/ },
  'the second file moves to its place': { fault: 'rename *.1>*/b.bin', safe: true, only: /without/ },
  'the record moves': { fault: 'rename *.json>*/records/*', safe: true },
  'the folder is synced': { fault: 'fsync */uploads', safe: true },
  'the records are synced': { fault: 'fsync */records', safe: true },
  'the first file is announced': { fault: 'open */uploads/a*.bin', safe: true },
  'the first link is removed': { fault: 'unlink */staging/*.0', safe: true },
  'the second link is removed': { fault: 'unlink */staging/*.1', safe: true, only: /^(?!.*without)/ },
  'the old file is removed': { fault: 'unlink */staging/*.old', safe: true, only: /replace/ },
}

for (const onConflict of ['rename', 'replace'] as const) {
  for (const links of ['', ' without hard links']) {
    const way = `${onConflict}${links}`
    test(`killed before each step, ${way}: all of the upload is there after the next start, or what was there before`, async t => {
      const disk = await faults(t)
      if (!disk) return
      const always = links ? [`link * ${EPERM} 0`] : []
      for (const [step, { fault, safe, only }] of Object.entries(STEPS)) {
        if (only && !only.test(way)) continue
        await t.test(step, async t => {
          const args = ['--on-conflict', onConflict]
          await disk.set(...always)
          const server = await serve(t, args, { env: disk.env })
          const { url, dir } = server
          assert.equal((await post(url, form(file('old')))).status, 201)
          await disk.set(`${fault} -1 0`, ...always)
          const answer = await post(url, form(file('new'), file('more', 'b.bin')))
          assert.equal(answer.text, '', 'no answer')
          assert.equal(await server.exited, 'SIGKILL')

          await disk.set(...always)
          const next = await serve(t, args, { env: disk.env, dir })
          const stored = Object.fromEntries(
            await Promise.all(
              (await published(dir)).map(async name => [name, await readFile(join(dir, name), 'utf8')]),
            ),
          )
          const kept = await records(dir)
          assert.equal(kept.length, safe ? 2 : 1)
          const [first = '', second = ''] = kept[1]?.files.map(({ name }) => name) ?? []
          if (!safe) assert.deepEqual(stored, { 'a.bin': 'old' })
          else if (onConflict === 'replace') {
            assert.deepEqual(stored, { 'a.bin': 'new', 'b.bin': 'more' })
            assert.deepEqual([first, second], ['a.bin', 'b.bin'])
          } else assert.deepEqual(stored, { 'a.bin': 'old', [first]: 'new', [second]: 'more' })
          assert.deepEqual(await temporaryFiles({ dir }), [])
          assert.equal((await readdir(join(dir, '.uploadr/staging'))).length, 1)
          await assertServes(next)
          await end(next)
        })
      }
    })
  }
}

test('replace, cut by a crash: what another server has stored since is not overwritten', async t => {
  const disk = await faults(t)
  if (!disk) return
  const args = ['--on-conflict', 'replace']
  const [server, other] = [await serve(t, args, { env: disk.env }), await serve(t, args)]
  const { url, dir } = server
  await end(other)
  assert.equal((await post(url, form(file('old')))).status, 201)
  const live = await serve(t, args, { dir })
  await disk.set('rename *.new>*/a.bin -1 0')
  await post(url, form(file('cut')))
  assert.equal(await server.exited, 'SIGKILL')
  assert.equal((await post(live.url, form(file('newest')))).status, 201)
  await serve(t, args, { dir })
  const names = await published(dir)
  assert.equal(await readFile(join(dir, 'a.bin'), 'utf8'), 'newest')
  const [variant = ''] = names.filter(name => name !== 'a.bin')
  assert.match(variant, /^a_[A-Za-z0-9]{7}\.bin$/)
  assert.equal(await readFile(join(dir, variant), 'utf8'), 'cut')
})

/** The name and what is under it, or undefined. */
const under = (dir: string, name = 'x') => readFile(join(dir, name), 'utf8').catch(() => undefined)

for (const links of ['', ' without hard links']) {
  for (const before of ['old', undefined]) {
    const there = before === undefined ? 'a free name' : 'a taken name'
    test(`replace, many refused uploads at once, ${there}${links}: what was there is there`, async t => {
      const disk = await faults(t)
      if (!disk) return
      const always = links ? [`link * ${EPERM} 0`] : []
      await disk.set(...always)
      const { url, dir } = await serve(t, ['--on-conflict', 'replace'], { env: disk.env })
      await mkdir(join(dir, 'folder'))
      for (const [second, status, late] of [
        ['folder', 409, []],
        ['.uploadr', 409, []],
        // Nothing says beforehand that it will be refused.
        ['late', 500, [`link *.1>*/late ${EIO} 0`, `rename *.1>*/late ${EIO} 0`]],
      ] as const) {
        await disk.set(...always, ...late)
        for (let round = 0; round < 8; round++) {
          await rm(join(dir, 'x'), { force: true })
          if (before !== undefined) await writeFile(join(dir, 'x'), before)
          const forms = ['a', 'b', 'c', 'd', 'e'].map(text => form(file(text, 'x'), file('z', second)))
          const answers = await Promise.all(forms.map(body => post(url, body)))
          assert.deepEqual(
            answers.map(answer => answer.status),
            answers.map(() => status),
          )
          assert.equal(await under(dir), before, `round ${round}, ${second}`)
        }
      }
      assert.deepEqual(await records(dir), [])
      assert.deepEqual(await temporaryFiles({ dir }), [])
    })
  }

  for (const [how, ...rest] of [
    ['the first fails, then the second', 'old', undefined],
    ['the first fails, then the second is stored', 'second'],
    ['the first is killed before it lets go, then the second fails', 'first'],
    ['the first is killed when it has let go, then the second fails', 'first'],
  ] as const) {
    // Without links the file itself is gone once it is let go, and there is nothing to complete.
    if (links && how.includes('has let go')) continue
    for (const before of how.includes('killed') ? ['old'] : ['old', undefined]) {
      const there = before === undefined ? 'a free name' : 'a taken name'
      test(`replace, two servers, one replaces what the other still may take back: ${how}, ${there}${links}`, async t => {
        const [one, other] = [await faults(t), await faults(t)]
        if (!one || !other) return
        const always = links ? [`link * ${EPERM} 0`] : []
        for (const disk of [one, other]) await disk.set(...always)
        const args = ['--on-conflict', 'replace']
        const first = await serve(t, args, { env: one.env })
        const { dir } = first
        const second = await serve(t, args, { env: other.env, dir })
        if (before !== undefined) await writeFile(join(dir, 'x'), before)

        // Each waits with `late` until the other has come where it is wanted: its call is as slow as that.
        const slow = (ms: number) => [`link *.1>*/late ${EIO} ${ms}`, `rename *.1>*/late ${EIO} ${ms}`]
        const kill = how.includes('before it lets go')
          ? ['rename *.old>*.old -1 0']
          : how.includes('killed')
            ? ['unlink */staging/*.json -1 0']
            : []
        await one.set(...kill, ...slow(1500), ...always)
        await other.set(...(how.includes('stored') ? [] : slow(4000)), ...always)
        const refused = post(first.url, form(file('first', 'x'), file('z', 'late')))
        await until(
          () => under(dir),
          text => text === 'first',
        )
        let isOver = false
        const replacing = post(
          second.url,
          form(file('second', 'x'), file('z', how.includes('stored') ? 'other' : 'late')),
        ).finally(() => {
          isOver = true
        })
        await until(
          () => under(dir),
          text => text === 'second',
        )
        const { status } = await refused
        assert.equal(status, how.includes('killed') ? Number.NaN : 500)
        if (!how.includes('stored')) assert.equal(isOver, false, 'the second is still at it')
        assert.equal(await under(dir), 'second')
        assert.equal((await replacing).status, how.includes('stored') ? 201 : 500)
        if (how.includes('killed')) {
          assert.equal(await first.exited, 'SIGKILL')
          await one.set(...always)
          await serve(t, args, { env: one.env, dir })
        }
        assert.equal(await under(dir), rest[0] === 'old' ? before : rest[0])
        const kept = (await records(dir)).flatMap(({ files }) => files.map(({ name }) => name))
        assert.deepEqual(
          await published(dir),
          [...kept, ...(rest[0] === 'old' && before ? ['x'] : [])].sort(),
        )
        assert.deepEqual(await temporaryFiles({ dir }), [])
      })
    }
  }
}

for (const step of ['link *.1>*/b.bin', 'rename *.json>*/records/*']) {
  test(`the staging folder is taken away while an upload gets its names, and it fails: nothing of it is left (${step})`, async t => {
    const disk = await faults(t)
    if (!disk) return
    const { url, dir } = await serve(t, [], { env: disk.env })
    await disk.set(`${step} ${EIO} 1000`)
    const answer = post(url, form(file('a'), file('b', 'b.bin')))
    await until(
      () => published(dir),
      names => names.includes('a.bin'),
    )
    await rm(join(dir, '.uploadr/staging'), { recursive: true })
    assertRefused(await answer, 'storage_failed', /EIO/)
    assert.deepEqual(await published(dir), [])
    assert.deepEqual(await records(dir), [])
  })
}

test('kinds are judged by the name that the disk can have, too', async t => {
  const disk = await faults(t)
  if (!disk) return
  await disk.set('name-max 143')
  const { url, dir } = await serve(t, ['--deny-extension', 'php'], { env: disk.env })
  const name = `${'A'.repeat(139)}.php${'x'.repeat(80)}`
  for (const body of [SMALL, LARGE]) {
    const { status, json, text } = await post(url, form(file(body, name)))
    assert.deepEqual([status, json?.code], [415, 'extension_not_allowed'], text)
    assert.match(
      json.detail,
      /A{139}\.phpx{80}, which the disk can only have as A{139}\.php, has the extension \.php/,
    )
  }
  assert.deepEqual(await published(dir), [])
  assert.equal((await post(url, form(file(SMALL, `${'A'.repeat(200)}.txt`)))).status, 201)
})

/** The binary as another user, who owns the folder and nothing else. */
async function serveAs(
  t: TestContext,
  user: number,
  args: string[],
  options: { dir: string; env?: Record<string, string> },
) {
  const { dir, env } = options
  const as = ['--reuid', String(user), '--regid', String(user), '--clear-groups']
  const child = spawn(
    'setpriv',
    [...as, process.execPath, BINARY, 'serve', '--port', '0', '--dir', dir, ...args],
    {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    },
  )
  const exited = once(child, 'exit')
  t.after(async () => {
    child.kill('SIGKILL')
    await exited
  })
  let stderr = ''
  child.stderr.on('data', chunk => (stderr += chunk))
  const first = await Promise.race([
    once(createInterface({ input: child.stdout }), 'line'),
    exited.then(() => assert.fail(stderr)),
  ])
  return { url: String(first[0]), dir, child }
}

const isRoot = process.getuid?.() === 0
const USER = 12_345

test('replace, a file of another owner: it comes back as it was where the upload fails', {
  skip: !isRoot && 'only root can be several users',
}, async t => {
  const dir = join(await tempDir(t), 'uploads')
  await chmod(join(dir, '..'), 0o755)
  await mkdir(dir)
  await chown(dir, USER, USER)
  await writeFile(join(dir, 'theirs.txt'), 'theirs', { mode: 0o600 })
  const before = await stat(join(dir, 'theirs.txt'))
  await mkdir(join(dir, 'folder'))
  const { url } = await serveAs(t, USER, ['--on-conflict', 'replace'], { dir })
  const answer = await post(url, form(file('new', 'theirs.txt'), file('x', 'folder')))
  assertRefused(answer, 'name_taken', /a folder named folder is stored already/)
  const after = await stat(join(dir, 'theirs.txt'))
  assert.deepEqual(
    [after.ino, after.uid, after.mode, after.mtimeMs],
    [before.ino, 0, before.mode, before.mtimeMs],
  )
  assert.equal(await readFile(join(dir, 'theirs.txt'), 'utf8'), 'theirs')
  assert.deepEqual(await published(dir), ['folder', 'theirs.txt'])
  assert.deepEqual(await records(dir), [])
  assert.deepEqual(await temporaryFiles({ dir }), [])

  assert.equal((await post(url, form(file('new', 'theirs.txt')))).status, 201)
  assert.equal(await readFile(join(dir, 'theirs.txt'), 'utf8'), 'new')
  assert.deepEqual(await temporaryFiles({ dir }), [])
})

test('replace, a file that cannot be moved away: refused before anything is', {
  skip: !isRoot && 'only root can make a file immutable',
}, async t => {
  const { url, dir } = await serve(t, ['--on-conflict', 'replace'])
  await writeFile(join(dir, 'fixed'), 'fixed')
  const { code, stderr } = await run('chattr', ['+i', join(dir, 'fixed')])
  if (code !== 0) return t.skip(`no immutable files here: ${stderr.trim()}`)
  t.after(() => run('chattr', ['-i', join(dir, 'fixed')]))
  const answer = await post(url, form(file('b', 'b'), file('new', 'fixed')))
  assertRefused(answer, 'name_taken', /fixed is stored already and cannot be replaced: EPERM/)
  assert.deepEqual(await published(dir), ['fixed'])
  assert.equal(await readFile(join(dir, 'fixed'), 'utf8'), 'fixed')
  assert.deepEqual(await temporaryFiles({ dir }), [])
  await run('chattr', ['-i', join(dir, 'fixed')])
})

test('replace, a name that cannot be given back: nothing is lost, and the next start completes the upload', async t => {
  const disk = await faults(t)
  if (!disk) return
  await disk.set(`link * ${EPERM} 0`)
  const server = await serve(t, ['--on-conflict', 'replace'], { env: disk.env })
  const { url, dir, child, exited } = server
  assert.equal((await post(url, form(file('old')))).status, 201)
  await disk.set(`link * ${EPERM} 0`, `rename *.0>*/a.bin ${EIO} 0`, `rename *.old>*/a.bin ${EIO} 0`)
  assertRefused(await post(url, form(file('new'))), 'storage_failed', /EIO/)
  assert.deepEqual(
    (await temporaryFiles({ dir })).map(path => path.replace(/.*\d\./, '')).sort(),
    ['json', 'old', '0'].sort(),
  )
  child.kill('SIGKILL')
  await exited
  await disk.set(`link * ${EPERM} 0`)
  await serve(t, ['--on-conflict', 'replace'], { env: disk.env, dir })
  assert.equal(await readFile(join(dir, 'a.bin'), 'utf8'), 'new')
  assert.equal((await records(dir)).length, 2)
  assert.deepEqual(await temporaryFiles({ dir }), [])
})

test('hard links refused, whatever for: found out at the start, told once, and done without', async t => {
  const disk = await faults(t)
  if (!disk) return
  for (const [name, errno] of Object.entries({ EPERM, EACCES, EXDEV, EIO, EINVAL, EMLINK, EOPNOTSUPP })) {
    await t.test(name, async t => {
      await disk.set(`link * ${errno} 0`)
      const server = await serve(t, [], { env: disk.env })
      assert.equal(server.stderr().match(/hard links/g)?.length, 1, server.stderr())
      await assertServes(server)
      const { json } = await post(server.url, form(file('one'), file('two'), file('three')))
      const names: string[] = json.files.map((stored: { name: string }) => stored.name)
      assert.equal(new Set(names).size, 3)
      assert.deepEqual(await Promise.all(names.map(stored => readFile(join(server.dir, stored), 'utf8'))), [
        'one',
        'two',
        'three',
      ])
      await end(server)
    })
  }
})

test('hard links refused, replace: the old file comes back where the upload fails', async t => {
  const disk = await faults(t)
  if (!disk) return
  await disk.set(`link * ${EPERM} 0`)
  const server = await serve(t, ['--on-conflict', 'replace'], { env: disk.env })
  const { url, dir } = server
  assert.equal((await post(url, form(file('old')))).status, 201)
  const before = await stat(join(dir, 'a.bin'))
  await mkdir(join(dir, 'folder'))
  assertRefused(await post(url, form(file('new'), file('x', 'folder'))), 'name_taken', /folder/)
  assert.equal(await readFile(join(dir, 'a.bin'), 'utf8'), 'old')
  assert.equal((await stat(join(dir, 'a.bin'))).ino, before.ino)
  const twice = await post(url, form(file('one'), file('two')))
  assert.deepEqual(
    await Promise.all(
      twice.json.files.map(({ name }: { name: string }) => readFile(join(dir, name), 'utf8')),
    ),
    ['one', 'two'],
  )
  assert.deepEqual(await temporaryFiles({ dir }), [])
  await end(server)
})

test('neither links nor moves into the folder: no server starts', async t => {
  const disk = await faults(t)
  if (!disk) return
  const dir = join(await tempDir(t), 'uploads')
  await disk.set(`link * ${EXDEV} 0`, `rename */staging/*>*/uploads/.* ${EXDEV} 0`)
  const { exited, stderr } = uploadr(t, ['serve', '--port', '0', '--dir', dir], { env: disk.env })
  assert.equal(await exited, 1)
  assert.match(stderr(), /cannot use .*EXDEV/)
  assert.deepEqual(await published(dir), [])
})

test('temporary files that cannot be made: no server starts', async t => {
  const disk = await faults(t)
  if (!disk) return
  const dir = join(await tempDir(t), 'uploads')
  await disk.set(`open */.uploadr/tmp/* ${EINVAL} 0`)
  const { exited, stderr } = uploadr(t, ['serve', '--port', '0', '--dir', dir], { env: disk.env })
  assert.equal(await exited, 1)
  assert.match(stderr(), /temporary files cannot be made: EINVAL/)
  assert.deepEqual(await temporaryFiles({ dir }), [])
})

test('a disk that is full at the start: uploads are told so, until there is room', async t => {
  const disk = await smallFileSystem(t, '20m')
  if (disk === undefined) return
  const full = join(disk, 'full')
  await writeFile(full, Buffer.alloc(21 * MIB)).catch(error => assert.equal(error.code, 'ENOSPC'))
  for (const args of [[], ['--tmp', join(disk, 'tmp')]]) {
    const dir = args.length === 0 ? join(disk, 'dir') : join(await tempDir(t), 'uploads')
    const server = await serve(t, ['--min-free', '0', ...args], { dir })
    const { status, json } = await post(server.url, form(file(LARGE)))
    assert.deepEqual([status, json?.code], [507, 'disk_full'])
    await rm(full)
    await assertServes(server)
    await end(server)
    await writeFile(full, Buffer.alloc(21 * MIB)).catch(error => assert.equal(error.code, 'ENOSPC'))
  }
})

test('modes and syncs of folders refused: found out at the start, told, and done without', async t => {
  const disk = await faults(t)
  if (!disk) return
  for (const [what, fault, told] of [
    ['chmod', `chmod * ${EPERM} 0`, /the mode of files/],
    ['the sync of a folder', `fsync * ${EINVAL} 0`, /names synced to disk/],
    ['the sync of a temporary file', `fdatasync */.uploadr/tmp/* ${EINVAL} 0`, /--tmp is without/],
  ] as const) {
    await t.test(what, async t => {
      await disk.set(fault)
      const elsewhere = join(await tempDir(t), 'tmp')
      for (const args of [[], ['--tmp', '/dev/shm'], ['--tmp', elsewhere]]) {
        const server = await serve(t, args, { env: disk.env })
        if (!what.includes('temporary') || args.length === 0) assert.match(server.stderr(), told)
        await assertServes(server)
        await end(server)
      }
    })
  }
})

test('names that the disk refuses are made into ones that it takes, before a byte of the file', async t => {
  const disk = await faults(t)
  if (!disk) return
  const refused = ['"', '\\*', ':', '<', '>', '\\?', '|', '\\\\'].map(
    each => `open */staging/*/names/*${each}* ${EINVAL} 0`,
  )
  for (const onConflict of ['rename', 'replace', 'reject']) {
    await t.test(onConflict, async t => {
      await disk.set('name-max 143', ...refused, `open */uploads/*[:?]* ${EINVAL} 0`)
      const server = await serve(t, ['--on-conflict', onConflict], { env: disk.env })
      const { url, dir } = server
      assert.match(server.stderr(), /more than 143 bytes/)
      for (const [sent, stored] of [
        ['a:b?.txt', 'a_b_.txt'],
        ['plain.txt', 'plain.txt'],
        ['<|>.tar.gz', '___.tar.gz'],
        [`${'x'.repeat(200)}.jpeg`, `${'x'.repeat(138)}.jpeg`],
        [`${'字'.repeat(60)}.txt`, `${'字'.repeat(46)}.txt`],
      ] as const) {
        for (const bytes of [SMALL, LARGE]) {
          const { status, json, text } = await post(url, form(file(bytes, sent)))
          if (onConflict === 'reject' && bytes === LARGE) {
            assertRefused({ status, json, text } as RawAnswer, 'name_taken', /stored already/)
            continue
          }
          assert.equal(status, 201, text)
          const [one] = json.files
          assert.equal(one.sentAs, sent)
          if (onConflict === 'rename' && bytes === LARGE) {
            assert.match(one.name, /_[A-Za-z0-9]{7}\.[a-z]+$/)
            assert.ok(Buffer.byteLength(one.name) <= 143)
          } else assert.equal(one.name, stored)
          await assertStored(dir, one, bytes)
        }
      }
      assert.deepEqual(await temporaryFiles({ dir }), [])
      await end(server)
    })
  }
})

test('reject: what is taken, and by what, is told', async t => {
  const { url, dir } = await serve(t, ['--on-conflict', 'reject'])
  await mkdir(join(dir, 'a-folder'))
  assert.equal((await post(url, form(file('one', 'stored.txt')))).status, 201)
  assertRefused(
    await post(url, form(file('x', 'a-folder'))),
    'name_taken',
    /^a folder named a-folder is stored already$/,
  )
  assertRefused(
    await post(url, form(file('x', 'stored.txt'))),
    'name_taken',
    /^a file named stored.txt is stored already$/,
  )
  const twice = await post(url, form(file('x', 'b.txt'), file('y', 'b.txt')))
  assertRefused(twice, 'name_taken', /^the upload has two files named b.txt$/)
  assert.deepEqual(await published(dir), ['a-folder', 'stored.txt'])
})

test('a watched folder: every file is reported as written, under its name, when it is there and recorded', async t => {
  const probe = await run('inotifywait', ['--help'])
  if (probe.code > 1 || !/close_write/.test(probe.stdout)) {
    assert.ok(!IN_CI, 'CI must have inotifywait')
    return t.skip('inotifywait is not installed')
  }
  for (const onConflict of ['rename', 'replace', 'reject']) {
    await t.test(onConflict, async t => {
      const { url, dir } = await serve(t, ['--on-conflict', onConflict])
      const watch = spawn('inotifywait', ['-m', '-e', 'close_write,moved_to', '--format', '%f', dir])
      t.after(() => watch.kill())
      let [seen, told] = ['', '']
      watch.stdout.on('data', chunk => (seen += chunk))
      watch.stderr.on('data', chunk => (told += chunk))
      await until(
        () => told,
        text => text.includes('established'),
      )
      const stored: string[] = []
      for (const [i, bytes] of [SMALL, LARGE, SMALL].entries()) {
        const name = onConflict === 'reject' ? `${i}.bin` : 'a.bin'
        const { json } = await post(url, form(file(bytes, name), file(bytes, `b${i}.bin`)))
        stored.push(...json.files.map((one: { name: string }) => one.name))
      }
      await until(
        () => seen.split('\n').slice(0, -1),
        names => stored.every(name => names.includes(name)),
      )
      // And of nothing that is not one's business.
      assert.deepEqual([...new Set(seen.split('\n').slice(0, -1))].sort(), [...new Set(stored)].sort())
    })
  }
})

test('what takes each file away as soon as it is reported, as scanners and importers do', async t => {
  const { url, dir } = await serve(t)
  const away = join(await tempDir(t), 'away')
  await mkdir(away)
  const script =
    'inotifywait -q -m -e close_write --format %f "$1" | while read -r name; do mv "$1/$name" "$2/"; done'
  const taker = spawn('sh', ['-c', script, 'sh', dir, away], { detached: true })
  t.after(() => process.kill(-(taker.pid as number)))
  // Until it watches, nothing is taken.
  for (let i = 0; (await readdir(away)).length === 0; i++) {
    assert.equal((await post(url, form(file(SMALL, `first-${i}`)))).status, 201)
  }
  for (let i = 0; i < 20; i++) assert.equal((await post(url, form(file(SMALL, `${i}`)))).status, 201)
  await until(
    async () => (await readdir(away)).filter(name => !name.startsWith('first')),
    names => names.length === 20,
  )
  assert.deepEqual(await temporaryFiles({ dir }), [])
})

test('the mode and the group of files: as asked for and as the folder says, for large and small ones alike', async t => {
  const root = await tempDir(t)
  const places = {
    'the usual place': [],
    'elsewhere on the disk': ['--tmp', join(root, 'tmp')],
    'another disk': ['--tmp', '/dev/shm'],
  }
  for (const [where, args] of Object.entries(places)) {
    for (const mode of ['0644', '660', '0600']) {
      await t.test(`${where}, ${mode}`, async t => {
        const dir = join(root, `${where} ${mode}`)
        await mkdir(dir)
        if (isRoot) {
          await chown(dir, 0, USER)
          await chmod(dir, 0o2775)
        }
        // Of a server before the folder was given to a group.
        if (isRoot && mode === '660') await mkdir(join(dir, '.uploadr'), { mode: 0o700 })
        if (isRoot && mode === '660') await chmod(join(dir, '.uploadr'), 0o700)
        const { url } = await serve(t, [...args, '--mode', mode], { dir })
        const answer = await post(url, form(file(SMALL, 'small'), file(LARGE, 'large')))
        assert.equal(answer.status, 201, answer.text)
        const alone = await post(url, form(file(SMALL, 'memory')))
        assert.equal(alone.json.files[0].handler, 'memory')
        for (const name of ['small', 'large', 'memory']) {
          const stats = await stat(join(dir, name))
          assert.equal(stats.mode & 0o7777, Number.parseInt(mode, 8), name)
          if (isRoot) assert.equal(stats.gid, USER, name)
        }
      })
    }
  }
  for (const mode of ['0444', '0200', '644x', '9', '07777']) {
    const { exited, stderr } = uploadr(t, ['serve', '--mode', mode])
    assert.equal(await exited, 2)
    assert.match(stderr(), new RegExp(`"${mode}" is not a mode`))
  }
})

test('folders taken away while it runs are made again', async t => {
  for (const what of ['.', '.uploadr', '.uploadr/staging', '.uploadr/records', '.uploadr/tmp']) {
    for (const how of ['removed', 'replaced', 'removed, and health is asked first']) {
      await t.test(`${what} ${how}`, async t => {
        const server = await serve(t)
        const { url, dir } = server
        await assertServes(server)
        const path = join(dir, what)
        if (how === 'replaced') {
          await rename(path, join(await tempDir(t), 'away'))
          await mkdir(path)
        } else await rm(path, { recursive: true })
        if (how.includes('health')) assert.deepEqual(await health(url), [200, { ok: true }])
        await assertServes(server)
        assert.deepEqual(await health(url), [200, { ok: true }])
        // Whoever put another in its place has said who may read it.
        if (how !== 'replaced') assert.equal((await stat(join(dir, '.uploadr'))).mode & 0o777, 0o700)
        await assertServes(server)
        // Both files of the last time; those of before went with the folder, or did not.
        assert.ok((await records(dir)).length >= 2)
        await end(server)
      })
    }
  }
})

test('temporary files on a disk that a cleaner empties: the next upload makes the folder again', async t => {
  const tmp = join(await tempDir(t), 'tmp')
  const server = await serve(t, ['--tmp', tmp, '--memory-max', '0'])
  const { url, dir } = server
  const body = form(file(LARGE))
  const socket = connect(url)
  const answer = readAnswer(socket)
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: cut\r\nContent-Length: ${body.length}\r\n` +
      'Connection: close\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
  )
  socket.write(body.subarray(0, 4 * MIB))
  await until(
    () => getProgress(url, 'cut'),
    progress => progress.state === 'uploading' && progress.received === 4 * MIB,
  )
  for (const name of await readdir(tmp)) await rm(join(tmp, name), { recursive: true })
  await assertServes(server)
  // What was in the file is gone: said, not stored short.
  socket.write(body.subarray(4 * MIB))
  assertRefused(await answer, 'storage_failed', /ENOENT/)
  await rm(tmp, { recursive: true })
  assert.deepEqual(await health(url), [200, { ok: true }])
  await assertServes(server)
  assert.deepEqual(await published(dir), [])
  await end(server)
})

test('what cannot be made again is told by /healthz and in the refusal, and is found again when it is back', async t => {
  await t.test('another disk in its place', async t => {
    const dir = await smallFileSystem(t, '20m')
    if (dir === undefined) return
    const server = await serve(t, ['--min-free', '0', '--no-fsync'], { dir })
    const { url } = server
    await assertServes(server)
    await run('umount', ['-l', dir])
    for (let i = 0; i < 2; i++) {
      const [status, { ok, why }] = await health(url)
      assert.deepEqual([status, ok], [503, false])
      assert.match(String(why), /another file system than before/)
      for (const bytes of [SMALL, LARGE]) {
        assertRefused(await post(url, form(file(bytes))), 'storage_failed', /./)
      }
      // Nothing goes below the place where it was mounted.
      assert.deepEqual(await readdir(dir), [])
    }
    const { code, stderr } = await run('mount', ['-t', 'tmpfs', '-o', 'size=20m', 'uploadr-test', dir])
    assert.equal(code, 0, stderr)
  })
  await t.test('a link in the place of a folder', async t => {
    const server = await serve(t, ['--min-free', '0'])
    const { url, dir } = server
    const elsewhere = await tempDir(t)
    await rm(join(dir, '.uploadr'), { recursive: true })
    await symlink(elsewhere, join(dir, '.uploadr'))
    assert.deepEqual(await health(url), [503, { ok: false, why: 'ENOTDIR' }])
    for (const bytes of [SMALL, LARGE])
      assertRefused(await post(url, form(file(bytes))), 'storage_failed', /./)
    assert.deepEqual(await readdir(elsewhere), [])
    await rm(join(dir, '.uploadr'))
    assert.deepEqual(await health(url), [200, { ok: true }])
    await assertServes(server)
  })
  await t.test('a file system that turns read-only', async t => {
    const dir = await smallFileSystem(t, '20m')
    if (dir === undefined) return
    const server = await serve(t, ['--min-free', '0', '--no-fsync'], { dir })
    await run('mount', ['-o', 'remount,ro', dir])
    assert.deepEqual(await health(server.url), [503, { ok: false, why: 'EROFS' }])
    await run('mount', ['-o', 'remount,rw', dir])
    assert.deepEqual(await health(server.url), [200, { ok: true }])
  })
})

test('two machines on one folder, the second up for eight seconds: what belongs to the first is left alone', {
  skip: !isRoot && 'only root can pretend to be another machine',
}, async t => {
  const root = await tempDir(t)
  const dir = join(root, 'uploads')
  const server = await serve(t, ['--memory-max', '0'], { dir })
  const body = form(file(LARGE))
  const socket = connect(server.url)
  const answer = readAnswer(socket)
  socket.write(
    `POST / HTTP/1.1\r\nHost: localhost\r\nX-Progress-ID: on\r\nContent-Length: ${body.length}\r\n` +
      'Connection: close\r\nContent-Type: multipart/form-data; boundary=BOUNDARY\r\n\r\n',
  )
  socket.write(body.subarray(0, 4 * MIB))
  await until(
    () => getProgress(server.url, 'on'),
    progress => progress.state === 'uploading' && progress.received === 4 * MIB,
  )
  // As between two beats.
  const ago = new Date(Date.now() - 25_000)
  for (const folder of ['tmp', 'staging']) {
    const [own = ''] = await readdir(join(dir, '.uploadr', folder))
    await utimes(join(dir, '.uploadr', folder, own), ago, ago)
  }
  const facts = {
    uptime: '8.00 8.00\n',
    boot: '11111111-2222-3333-4444-555555555555\n',
    id: `${'0'.repeat(32)}\n`,
  }
  for (const [name, text] of Object.entries(facts)) await writeFile(join(root, name), text)
  const script = `
    mount --bind "$1/uptime" /proc/uptime && mount --bind "$1/boot" /proc/sys/kernel/random/boot_id &&
    mount --bind "$1/id" /etc/machine-id && hostname other && shift && exec "$@"`
  const command = [process.execPath, BINARY, 'serve', '--port', '0', '--dir', dir]
  const other = spawn('unshare', ['--mount', '--uts', 'sh', '-c', script, 'sh', root, ...command], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.after(() => other.kill('SIGKILL'))
  let stderr = ''
  other.stderr.on('data', chunk => (stderr += chunk))
  const [url] = await Promise.race([
    once(createInterface({ input: other.stdout }), 'line'),
    once(other, 'exit').then(() => assert.fail(stderr)),
  ])
  assert.doesNotMatch(stderr, /dead server|recovered|removed/)
  assert.equal((await post(String(url), form(file(SMALL, 'other')))).status, 201)
  socket.write(body.subarray(4 * MIB))
  assert.equal((await answer).status, 201)
  await assertStored(
    dir,
    (await records(dir)).flatMap(({ files }) => files).find(({ name }) => name === 'a.bin') as never,
    LARGE,
  )
})

test('an upgrade in place under a running server: it goes on with the code it was started with', async t => {
  const copy = join(await tempDir(t), 'package')
  await mkdir(copy)
  const root = join(BINARY, '../..')
  for (const part of ['bin', 'dist/src', 'package.json']) {
    await mkdir(join(copy, part, '..'), { recursive: true })
    const { code, stderr } = await run('cp', ['-R', join(root, part), join(copy, part)])
    assert.equal(code, 0, stderr)
  }
  await symlink(join(root, 'node_modules'), join(copy, 'node_modules'))
  const dir = join(copy, 'uploads')
  const child = spawn(
    process.execPath,
    [join(copy, 'bin/uploadr.js'), 'serve', '--port', '0', '--dir', dir],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  )
  const exited = once(child, 'exit')
  t.after(() => child.kill('SIGKILL'))
  const [url] = await once(createInterface({ input: child.stdout }), 'line')
  for (const part of ['bin', 'dist', 'node_modules', 'package.json'])
    await rm(join(copy, part), { recursive: true })
  await assertServes({ url: String(url), dir })
  for (const path of ['', 'metrics', 'healthz', 'progress/a']) {
    assert.equal((await fetch(new URL(path, String(url)))).status, 200)
  }
  const page = await (await fetch(String(url))).text()
  for (const [, asset] of page.matchAll(/(?:src|href)="([^"]*assets[^"]*)"/g)) {
    assert.equal((await fetch(new URL(String(asset), String(url)))).status, 200)
  }
  assert.equal((await post(String(url), Buffer.from('no form'))).status, 400)
  child.kill('SIGTERM')
  assert.deepEqual(await exited, [0, null])
})
