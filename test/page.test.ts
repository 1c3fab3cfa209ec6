/** The page in a real browser: Debian's Chromium, as a person uses it. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, readFile, stat, truncate, utimes, writeFile } from 'node:fs/promises'
import http from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import test, { after, before, type TestContext } from 'node:test'
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core'
import {
  type ErrorCode,
  type ServerOptions,
  tap,
  type Upload,
  UploadError,
  type UploadHandler,
} from '../src/index.ts'
import { formatLimit } from '../src/units.ts'
import {
  gate,
  getProgress,
  IN_CI,
  published,
  randomFile,
  records,
  serve,
  startServer,
  type TestServer,
  tempDir,
  temporaryFiles,
  until,
} from './support.ts'

const CHROMIUM = '/usr/bin/chromium'
const skip = !existsSync(CHROMIUM) && !IN_CI && `${CHROMIUM} is not installed`
const options = { skip, timeout: 90_000 }

const MARKUP = `<img src=x onerror="alert(1)">&amp;'.txt`

let browser: Browser

before(async () => {
  if (skip) return
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--host-resolver-rules=MAP rebound.example 127.0.0.1',
    ],
  })
})

after(() => browser?.close())

/** A tab of its own, that has opened the form; what the page's policy had to forbid fails the test. */
async function visit(
  t: TestContext,
  { url }: TestServer,
  context: BrowserContextOptions = {},
): Promise<Page> {
  const own = await browser.newContext({ reducedMotion: 'reduce', ...context })
  const page = await own.newPage()
  page.setDefaultTimeout(30_000)
  // From the start: a chooser that opens while the browser is still being told to hand it over is lost.
  page.on('filechooser', () => {})
  const faults: string[] = []
  page.on('pageerror', error => faults.push(error.message))
  page.on('console', message => {
    if (/Content Security Policy/.test(message.text())) faults.push(message.text())
  })
  t.after(async () => {
    await own.close()
    assert.deepEqual(faults, [])
  })
  await page.goto(url)
  return page
}

async function start(t: TestContext, handlers: UploadHandler[] = [], more: ServerOptions = {}) {
  return startServer(t, { handlers, ...more })
}

function file(name: string, buffer: Buffer | string = 'hello', mimeType = 'text/plain') {
  return { name, mimeType, buffer: Buffer.from(buffer) }
}

/** A file too large to be handed to the browser as bytes. */
async function onDisk(t: TestContext, name: string, size: number): Promise<string> {
  const path = join(await tempDir(t), name)
  await writeFile(path, 'not all of it is holes')
  await truncate(path, size)
  return path
}

function row(page: Page, name: string) {
  return page.locator('.row', { has: page.getByText(name, { exact: true }) })
}

/** Waits until so many files are in a state. */
async function reach(page: Page, state: string, count: number): Promise<void> {
  await until(
    () => page.locator(`[data-state=${state}]`).count(),
    found => found === count,
  )
}

/** A gate that is open at the latest when the test ends, so that a test that fails ends. */
function heldBack(t: TestContext) {
  const held = gate()
  t.after(held.open)
  return held
}

async function percent(page: Page): Promise<number> {
  return Number(await page.locator('.row .bar').first().getAttribute('aria-valuenow'))
}

test('upload by click', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  await page.fill('#title', '  A walk 🚶 ')
  const chosen = page.waitForEvent('filechooser')
  await page.click('#drop')
  await (await chosen).setFiles([file('a.txt')])
  await page.click('#send')
  await page.waitForSelector('[data-state=stored]')
  assert.equal(await page.isVisible('.row .check'), true)
  assert.equal(await page.locator('#status').textContent(), 'a.txt: stored')
  assert.equal(await page.inputValue('#title'), '  A walk 🚶 ')
  const [record] = await records(server.dir)
  assert.equal(record?.title, 'A walk 🚶')
  assert.deepEqual(await readFile(join(server.dir, 'a.txt')), Buffer.from('hello'))
})

test('upload by drop, anywhere on the page', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  await page.fill('#title', 'dropped')
  const dataTransfer = await page.evaluateHandle(`(() => {
    const data = new DataTransfer()
    for (const name of ['one.txt', 'two.txt']) data.items.add(new File([name], name, { type: 'text/plain' }))
    return data
  })()`)
  await page.dispatchEvent('header', 'dragenter', { dataTransfer })
  assert.match(String(await page.getAttribute('#drop', 'class')), /over/)
  await page.dispatchEvent('header', 'drop', { dataTransfer })
  assert.doesNotMatch(String(await page.getAttribute('#drop', 'class')), /over/)
  assert.equal(await page.textContent('#send'), 'Upload 2 files')
  await page.click('#send')
  await reach(page, 'stored', 2)
  assert.deepEqual(await published(server.dir), ['one.txt', 'two.txt'])
})

test('upload by keyboard alone, and the focus is never lost', options, async t => {
  const { handler, reached, open } = heldBack(t)
  const server = await start(t, [handler])
  const page = await visit(t, server)
  const focused = () =>
    page.evaluate(
      `(({ id, ariaLabel, textContent }) => id || ariaLabel || textContent)(document.activeElement)`,
    )
  await page.keyboard.press('Tab')
  assert.equal(await focused(), 'title')
  await page.keyboard.type('typed')
  await page.keyboard.press('Tab')
  assert.equal(await focused(), 'file')
  const chosen = page.waitForEvent('filechooser')
  await page.keyboard.press('Enter')
  await (await chosen).setFiles([file('a.txt'), file('b.txt')])
  for (const next of ['choose-folder', 'Clear list', 'Remove a.txt']) {
    await page.keyboard.press('Tab')
    assert.equal(await focused(), next)
  }
  await page.keyboard.press('Enter')
  assert.equal(await focused(), 'Remove b.txt')
  await page.keyboard.press('Tab')
  assert.equal(await focused(), 'send')
  await page.keyboard.press('Enter')
  await reached
  await page.keyboard.press('Shift+Tab')
  assert.equal(await focused(), 'Cancel b.txt')
  open()
  await page.waitForSelector('[data-state=stored]')
  assert.equal(await focused(), 'Remove b.txt')
  await page.keyboard.press('Enter')
  assert.equal(await focused(), 'file')
  assert.deepEqual(await published(server.dir), ['b.txt'])
})

test('several files, each an upload of its own', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  const files = Array.from({ length: 7 }, (_, i) => file(`${i}.bin`, randomFile(1 + i * 100_000)))
  await page.fill('#title', 'seven')
  await page.setInputFiles('#file', files)
  await page.click('#send')
  await reach(page, 'stored', 7)
  for (const { name, buffer } of files) assert.ok((await readFile(join(server.dir, name))).equals(buffer))
  const all = await records(server.dir)
  assert.equal(new Set(all.map(({ id }) => id)).size, 7)
  for (const { id, title } of all) assert.match(`${id} ${title}`, /^[0-9a-f]{32} seven$/)
})

test('the bar of 300 MB follows a slow server, and not the socket', options, async t => {
  const size = 300 * 1024 ** 2
  const path = await onDisk(t, 'large.bin', size)
  // Takes a part of the file, then waits to be told to take the next.
  let upload: Upload | undefined
  let allowed = 0
  let wake = () => {}
  const allow = (share: number) => {
    allowed = share * size
    wake()
  }
  const slow: UploadHandler = {
    name: 'slow',
    begin(begun) {
      upload = begun
    },
    async open(info, next) {
      const inner = await next(info)
      let taken = 0
      return tap(inner, {
        async write(chunk) {
          taken += chunk.length
          while (taken > allowed) await new Promise<void>(resolve => (wake = resolve))
          await inner.write(chunk)
        },
      })
    },
  }
  const server = await start(t, [slow])
  const page = await visit(t, server)
  await page.fill('#title', 'large')
  await page.setInputFiles('#file', path)
  await page.click('#send')
  await until(
    () => upload,
    begun => begun !== undefined,
  )
  const id = String(upload?.id)
  let seen = 0
  const counted = async () => {
    const progress = await getProgress(server.url, id)
    assert.ok(progress.state === 'uploading' && progress.size !== undefined)
    return Math.floor((progress.received / progress.size) * 100)
  }
  for (const share of [0.1, 0.25, 0.5, 0.75, 0.9]) {
    allow(share)
    // While it moves: never back, and never ahead of the server, whatever the sockets have swallowed.
    const settled = await until(
      async () => ({ shown: await percent(page), counted: await counted() }),
      ({ shown, counted }) => {
        assert.ok(shown >= seen, `the bar went back from ${seen} to ${shown}`)
        assert.ok(shown <= counted, `the bar shows ${shown}, the server has ${counted}`)
        seen = shown
        return shown === counted && counted >= share * 100
      },
    )
    // Where the server stands still, so does the bar, a few buffers beyond what was allowed.
    assert.ok(settled.counted < share * 100 + 5, `${settled.counted} at ${share}`)
  }
  assert.match(await page.title(), /^9\d % · uploadr$/)
  assert.match(String(await page.locator('.row .facts').textContent()), /^2\d\d\sMB of 315\sMB · /)
  allow(2)
  await page.waitForSelector('[data-state=stored]')
  assert.equal((await stat(join(server.dir, 'large.bin'))).size, size)
  assert.equal(await page.title(), 'uploadr')
})

test('no 100 % before the server has stored it', options, async t => {
  let finish = () => {}
  const finished = new Promise<void>(resolve => (finish = resolve))
  const server = await start(t, [{ name: 'thinking', complete: () => finished }])
  const page = await visit(t, server)
  await page.fill('#title', 't')
  await page.setInputFiles('#file', [file('a.txt')])
  await page.click('#send')
  await page.waitForSelector('[data-state=storing]')
  assert.equal(await percent(page), 99)
  assert.equal(await page.locator('.percent').textContent(), '99 %')
  finish()
  await page.waitForSelector('[data-state=stored]')
})

test('the bar follows by polling where events do not come through', options, async t => {
  const { handler, reached, open } = heldBack(t)
  const server = await start(t, [handler])
  const page = await visit(t, server)
  await page.route('**/progress/*', route => {
    const events = route.request().headers()['accept']?.includes('text/event-stream')
    return events ? route.abort() : route.continue()
  })
  await page.fill('#title', 't')
  await page.setInputFiles('#file', [file('a.bin', randomFile(500_000))])
  await page.click('#send')
  await reached
  await until(
    () => percent(page),
    shown => shown > 0,
  )
  open()
  await page.waitForSelector('[data-state=stored]')
})

test('errors of both fields at once, beside them, and what was typed is kept', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  await page.click('#send')
  assert.equal(await page.textContent('#title-error'), 'Enter a title.')
  assert.equal(await page.textContent('#file-error'), 'Choose a file.')
  assert.equal(await page.getAttribute('#title', 'aria-invalid'), 'true')
  assert.equal(await page.evaluate('document.activeElement.id'), 'title')
  await page.fill('#title', '😀'.repeat(51))
  assert.equal(await page.isVisible('#title-error'), false)
  await page.setInputFiles('#file', [file('full.txt')])
  await page.click('#send')
  assert.equal(await page.textContent('#title-error'), 'Too long: a title has at most 50 characters.')
  assert.equal(await page.inputValue('#title'), '😀'.repeat(51))
  assert.deepEqual(await published(server.dir), [])
  await page.fill('#title', '😀'.repeat(50))
  await page.click('#send')
  await page.waitForSelector('[data-state=stored]')
  assert.deepEqual(await published(server.dir), ['full.txt'])
})

test('what the server says is shown in the row, and retried on request', options, async t => {
  let attempts = 0
  const fussy: UploadHandler = {
    name: 'fussy',
    open(info, next) {
      if (attempts++ === 0) throw new UploadError('disk_full', 'no space is left <b>here</b>')
      return next(info)
    },
  }
  const server = await start(t, [fussy])
  const page = await visit(t, server)
  await page.fill('#title', 'kept')
  await page.setInputFiles('#file', [file('a.txt')])
  await page.click('#send')
  await page.waitForSelector('[data-state=failed]')
  assert.equal(await page.textContent('.row .facts'), 'Not stored: no space is left <b>here</b>')
  await page.getByRole('button', { name: 'Retry a.txt' }).click()
  await page.waitForSelector('[data-state=stored]')
  const [record] = await records(server.dir)
  assert.equal(record?.title, 'kept')
})

test('a file that is too large is refused early, and the page says why', options, async t => {
  // With the form around it, which the page does not count.
  const size = 30_000_000
  const server = await start(t, [], { limits: { body: size } })
  const page = await visit(t, server)
  await page.setInputFiles('#file', await onDisk(t, 'big.bin', size))
  await page.click('#send')
  await page.waitForSelector('[data-state=failed]')
  assert.match(
    String(await page.textContent('.row .facts')),
    /^Too large: a file has to be smaller than 30\sMB/,
  )
  assert.equal(await page.isVisible('.row .retry'), false)
  assert.deepEqual(await published(server.dir), [])
})

test(
  'what the server would refuse is refused before anything is sent, and holds up nothing else',
  options,
  async t => {
    const server = await start(t, [], {
      limits: { body: 1024 ** 2, nameBytes: 100 },
      kinds: { allowTypes: ['text/*', 'image/png'], denyExtensions: ['PHP', '.exe'] },
    })
    const page = await visit(t, server)
    const posted: string[] = []
    page.on('request', request => {
      if (request.method() === 'POST') posted.push(request.url())
    })
    assert.equal(
      await page.textContent('#file-hint'),
      'Up to 1.04\u00a0MB per file; only text, image/png; no .PHP, .exe',
    )
    assert.equal(await page.getAttribute('#file', 'accept'), 'text/*,image/png')
    const refused: [name: string, type: string, body: Buffer | string, words: string][] = [
      ['empty.txt', 'text/plain', '', 'This file is empty.'],
      [
        'big.txt',
        'text/plain',
        Buffer.alloc(1024 ** 2 + 1),
        'Too large: a file has to be smaller than 1.04\u00a0MB.',
      ],
      [
        `${'ä'.repeat(49)}.txt`,
        'text/plain',
        'x',
        'The name is too long. Give the file a shorter one and choose it again.',
      ],
      ['a.bin', '', 'x', 'Files of this kind are not accepted here.'],
      ['a.Exe', 'text/plain', 'x', 'Files of this kind are not accepted here.'],
      ['shell.php.txt', 'text/plain', 'x', 'Files of this kind are not accepted here.'],
    ]
    await page.setInputFiles('#file', [
      ...refused.map(([name, type, body]) => file(name, body, type)),
      file('good.txt'),
      file('a.png', 'png', 'image/png'),
    ])
    for (const [name, , , words] of refused) {
      const its = row(page, name)
      assert.equal(await its.getAttribute('data-state'), 'failed', name)
      assert.equal(await its.locator('.facts').textContent(), words, name)
      assert.equal(await its.locator('.retry').isVisible(), false, name)
      assert.equal(await its.locator('.remove').isVisible(), true, name)
    }
    assert.equal(await page.textContent('#send'), 'Upload 2 files')
    await page.click('#send')
    await reach(page, 'stored', 2)
    assert.deepEqual(await published(server.dir), ['a.png', 'good.txt'])
    assert.equal(posted.length, 2)
    assert.equal(await page.textContent('#summary .facts'), '2 stored · 6 failed')
    assert.equal(await page.textContent('#status'), '2 stored · 6 failed')
  },
)

test('empty files, where the server takes them', options, async t => {
  const server = await start(t, [], { allowEmpty: true })
  const page = await visit(t, server)
  await page.setInputFiles('#file', [file('empty.txt', ''), file('void.txt', '')])
  await page.click('#send')
  await reach(page, 'stored', 2)
  assert.deepEqual(await published(server.dir), ['empty.txt', 'void.txt'])
})

test('a limit in words is never more than what is allowed', () => {
  const words = [1, 999, 1000, 1_048_576, 2_621_440, 999_999_999, 16 * 1024 ** 3, 10 ** 15].map(formatLimit)
  assert.deepEqual(
    words.map(text => text.replace('\u00a0', ' ')),
    ['1 B', '999 B', '1 kB', '1.04 MB', '2.62 MB', '999 MB', '17.1 GB', '1000 TB'],
  )
})

test('an extension that is not accepted: its rule is the server’s', options, async t => {
  const server = await start(t, [], { kinds: { allowExtensions: ['tar', '.Gz'] } })
  const page = await visit(t, server)
  assert.equal(await page.getAttribute('#file', 'accept'), '.tar,.Gz')
  const names = ['a.tar', 'b.GZ', 'c.tar.gz', 'd.gz.txt', '.gz', 'none', 'dot.']
  await page.setInputFiles(
    '#file',
    names.map(name => file(name)),
  )
  // What the page lets pass the server takes, and what it does not the server would not.
  for (const name of names) {
    const form = new FormData()
    form.append('title', 't')
    form.append('file', new File(['x'], name))
    const { status } = await fetch(server.url, { method: 'POST', body: form })
    const state = await row(page, name).getAttribute('data-state')
    assert.equal(state === 'ready' ? 201 : 415, status, name)
  }
})

test(
  'a title that the server refuses is shown at its field, and the file can be sent under another',
  options,
  async t => {
    const server = await start(t)
    const page = await visit(t, server)
    await page.setInputFiles('#file', [file('a.txt')])
    // As if the page's own check had let it pass.
    await page.route(server.url, (route, request) =>
      request.method() === 'POST'
        ? route.continue({
            postData:
              request
                .postDataBuffer()
                ?.toString()
                .replace(/name="title"/, 'name="other"') ?? '',
          })
        : route.continue(),
    )
    await page.click('#send')
    await page.waitForSelector('#title-error:not([hidden])')
    assert.equal(await page.textContent('#title-error'), 'Enter a title.')
    assert.equal(await row(page, 'a.txt').getAttribute('data-state'), 'ready')
    await page.unroute(server.url)
    await page.fill('#title', 'another')
    await page.click('#send')
    await page.waitForSelector('[data-state=stored]')
  },
)

test('cancel leaves nothing behind', options, async t => {
  const { handler, reached, open } = heldBack(t)
  let id = ''
  const noting: UploadHandler = {
    name: 'noting',
    begin(upload) {
      id = upload.id
    },
  }
  const server = await start(t, [noting, handler])
  const page = await visit(t, server)
  await page.fill('#title', 't')
  await page.setInputFiles('#file', [
    await onDisk(t, 'first.bin', 20_000_000),
    await onDisk(t, 'second.bin', 20_000_000),
    await onDisk(t, 'third.bin', 1),
  ])
  await page.click('#send')
  await reached
  assert.equal(await row(page, 'third.bin').getAttribute('data-state'), 'queued')
  for (const name of ['third.bin', 'first.bin', 'second.bin']) {
    await page.getByRole('button', { name: `Cancel ${name}` }).click()
  }
  await reach(page, 'cancelled', 3)
  open()
  await until(
    () => temporaryFiles(server),
    files => files.length === 0,
  )
  await until(
    () => getProgress(server.url, id),
    progress => progress.state === 'error' && progress.code === 'truncated_body',
  )
  assert.deepEqual(await published(server.dir), [])
  assert.deepEqual(await records(server.dir), [])
})

test('leaving in the middle of an upload is asked about', options, async t => {
  const { handler, reached, open } = heldBack(t)
  const server = await start(t, [handler])
  const page = await visit(t, server)
  const asked: string[] = []
  page.on('dialog', dialog => {
    asked.push(dialog.type())
    void dialog.dismiss()
  })
  await page.fill('#title', 't')
  await page.setInputFiles('#file', [file('a.txt')])
  await page.click('#send')
  await reached
  await Promise.all([page.waitForEvent('dialog'), page.close({ runBeforeUnload: true })])
  assert.deepEqual(asked, ['beforeunload'])
  open()
  await page.waitForSelector('[data-state=stored]')
  await page.reload()
  assert.equal(asked.length, 1)
})

test('a file name full of markup is text', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  page.on('dialog', () => assert.fail('a script from a file name ran'))
  await page.fill('#title', '<script>alert(2)</script>')
  await page.setInputFiles('#file', [file(MARKUP)])
  await page.click('#send')
  await page.waitForSelector('[data-state=stored]')
  assert.equal(await page.textContent('.row .name'), MARKUP)
  assert.equal(await page.locator('.row img').count(), 0)
  assert.deepEqual(await published(server.dir), [MARKUP])
})

test('without JavaScript: a post, back to the form, and a message once', options, async t => {
  const server = await start(t)
  const page = await visit(t, server, { javaScriptEnabled: false })
  await page.fill('#title', '<i>plain</i>')
  await page.setInputFiles('#file', [file(MARKUP), file('b.txt', 'two')])
  const [answer] = await Promise.all([page.waitForResponse(server.url), page.click('#send')])
  assert.equal(answer.status(), 303)
  assert.equal(await answer.headerValue('location'), './')
  await page.waitForSelector('.notice')
  assert.equal(page.url(), server.url)
  assert.equal(await page.textContent('.notice p'), 'Stored 2 files as <i>plain</i>:')
  assert.deepEqual(await page.locator('.notice li').allTextContents(), [
    `${MARKUP} 5\u00a0B`,
    'b.txt 3\u00a0B',
  ])
  assert.equal(await page.locator('.notice img, .notice i').count(), 0)
  assert.equal(await page.inputValue('#title'), '<i>plain</i>')
  assert.deepEqual(await published(server.dir), [MARKUP, 'b.txt'])
  await page.reload()
  assert.equal(await page.locator('.notice').count(), 0)
})

test('without JavaScript: errors beside the fields, and what was typed is kept', options, async t => {
  const server = await start(t)
  const page = await visit(t, server, { javaScriptEnabled: false })
  const typed = `"><b>${'x'.repeat(60)}`
  await page.fill('#title', typed)
  await page.setInputFiles('#file', [file('empty.txt', '')])
  const [answer] = await Promise.all([page.waitForResponse(server.url), page.click('#send')])
  assert.equal(answer.status(), 422)
  await page.waitForSelector('#title-error:not([hidden])')
  assert.equal(await page.inputValue('#title'), typed)
  assert.match(
    String(await page.textContent('#title-error')),
    /^Too long: a title has at most 50 characters\.$/,
  )
  assert.equal(await page.textContent('#file-error'), 'This file is empty.')
  assert.equal(await page.getAttribute('#title', 'aria-invalid'), 'true')
  // And it goes on from there.
  await page.fill('#title', 'short')
  await page.setInputFiles('#file', [file('full.txt')])
  await page.click('#send')
  await page.waitForSelector('.notice')
  assert.deepEqual(await published(server.dir), ['full.txt'])
})

test('without JavaScript: any other refusal is told in words, with the form', options, async t => {
  const refusing: UploadHandler = {
    name: 'refusing',
    open() {
      throw new UploadError('disk_full', 'no space is left')
    },
  }
  const server = await start(t, [refusing])
  const page = await visit(t, server, { javaScriptEnabled: false })
  await page.fill('#title', 'kept')
  await page.setInputFiles('#file', [file('a.txt')])
  const [answer] = await Promise.all([page.waitForResponse(server.url), page.click('#send')])
  assert.equal(answer.status(), 507)
  await page.waitForSelector('.notice.bad')
  assert.equal((await page.textContent('.notice'))?.trim(), 'Nothing was stored: no space is left.')
  assert.equal(await page.inputValue('#title'), 'kept')
  await page.goto(`${server.url}nowhere/at/all`)
  assert.equal(await page.textContent('h2'), 'Not found')
  assert.equal(await page.evaluate('getComputedStyle(document.querySelector("main")).maxWidth'), '608px')
})

test('a form on another origin is refused, and stores nothing', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  const form = `<!doctype html><form method="post" action="${server.url}" enctype="multipart/form-data">
    <input name="title" value="forged"><input name="csrfmiddlewaretoken" value="${'x'.repeat(43)}">
    <input type="file" name="file" id="file"><button>Go</button></form>`
  const evil = http.createServer((_, res) => res.setHeader('content-type', 'text/html').end(form))
  await new Promise<void>(resolve => evil.listen(0, () => resolve()))
  t.after(() => evil.close().closeAllConnections())
  const { port } = evil.address() as AddressInfo
  // Another port is another origin of the same site: the browser sends our cookie along. Another name is another site.
  for (const host of ['127.0.0.1', 'localhost', 'rebound.example']) {
    await page.goto(`http://${host}:${port}/`)
    await page.setInputFiles('#file', [file('forged.txt')])
    const [answer] = await Promise.all([page.waitForResponse(server.url), page.click('button')])
    assert.equal(answer.status(), 403, host)
    await page.waitForSelector('.notice.bad')
    assert.match(String(await page.textContent('.notice')), /another origin/)
  }
  assert.deepEqual(await published(server.dir), [])
  assert.deepEqual(await temporaryFiles(server), [])
})

test('a name that somebody points at this machine is not answered', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  const answer = await page.goto(`http://rebound.example:${server.port}/`)
  assert.equal(answer?.status(), 403)
  assert.match(String(await page.textContent('.card')), /not known as "rebound\.example"/)
  assert.equal(await page.locator('form').count(), 0)
})

test('with a token: the browser asks for it, and everything works behind it', options, async t => {
  const server = await start(t, [], { token: 'secret' })
  assert.equal((await fetch(server.url)).status, 401)
  const page = await visit(t, server, { httpCredentials: { username: 'anybody', password: 'secret' } })
  await page.fill('#title', 't')
  await page.setInputFiles('#file', [file('a.txt')])
  await page.click('#send')
  await page.waitForSelector('[data-state=stored]')
})

test('an optional title', options, async t => {
  const server = await start(t, [], { titleRequired: false })
  const page = await visit(t, server)
  await page.setInputFiles('#file', [file('a.txt')])
  await page.click('#send')
  await page.waitForSelector('[data-state=stored]')
  const [record] = await records(server.dir)
  assert.equal(record?.title, '')
})

test('the page and its parts: a strict policy, cached for ever, nothing from elsewhere', options, async t => {
  const server = await start(t)
  const answer = await fetch(server.url)
  const policy = answer.headers.get('content-security-policy') ?? ''
  for (const rule of [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "frame-ancestors 'none'",
  ]) {
    assert.ok(policy.includes(rule), rule)
  }
  assert.doesNotMatch(policy, /unsafe|\*|https?:|data:/)
  assert.equal(answer.headers.get('x-content-type-options'), 'nosniff')
  assert.equal(answer.headers.get('x-frame-options'), 'DENY')
  assert.equal(answer.headers.get('cache-control'), 'no-store')
  const text = await answer.text()
  assert.doesNotMatch(text, / (?:style|on\w+)=|<style|https?:\/\//)
  const links = [...text.matchAll(/(?:src|href)="(\.\/assets\/[^"]+)"/g)].map(match => String(match[1]))
  assert.ok(links.length >= 3)
  for (const link of links) {
    const asset = await fetch(new URL(link, server.url))
    assert.equal(asset.status, 200, link)
    assert.match(link, /^\.\/assets\/[\w-]{16}\/\w+\.(css|js|svg)$/)
    assert.equal(asset.headers.get('cache-control'), 'public, max-age=31536000, immutable')
    assert.equal(asset.headers.get('x-content-type-options'), 'nosniff')
  }
  assert.equal((await fetch(new URL('assets/page.js', server.url))).status, 404)
  assert.equal((await fetch(new URL('assets/0123456789abcdef/page.js', server.url))).status, 404)
  assert.equal((await fetch(new URL('assets/../../package.json', server.url))).status, 404)
  const requested: string[] = []
  const page = await visit(t, server)
  page.on('request', request => requested.push(request.url()))
  await page.reload()
  assert.ok(requested.length > 0)
  for (const url of requested) assert.ok(url.startsWith(server.url), url)
})

/** axe-core's serious and critical findings, as text. */
async function findings(page: Page): Promise<string[]> {
  const source = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
  await page.evaluate(source)
  const { violations } = (await page.evaluate('axe.run()')) as {
    violations: { id: string; impact: string; nodes: { html: string; failureSummary: string }[] }[]
  }
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => `${id}: ${html}\n${failureSummary}`))
}

test(
  'where files go stands at the top, and the server says it otherwise where asked to',
  options,
  async t => {
    const page = await visit(t, await start(t))
    assert.match(
      String(await page.textContent('header p')),
      /^Your files go to the people who run this server; nobody else/,
    )
    for (const [args, env] of [
      [['--welcome', 'For <b>Ada</b> & me.'], {}],
      [[], { UPLOADR_WELCOME: 'For <b>Ada</b> & me.' }],
    ] as const) {
      const { url } = await serve(t, args, { env })
      await page.goto(url)
      assert.equal(await page.textContent('header p'), 'For <b>Ada</b> & me.')
    }
  },
)

test(
  'the title is filled in from what was chosen, until somebody types one, and kept after sending',
  options,
  async t => {
    const server = await start(t)
    const page = await visit(t, server)
    const titled = () => page.inputValue('#title')
    const choose = (...names: string[]) =>
      page.setInputFiles(
        '#file',
        names.map(name => file(name, name)),
      )
    await choose('holiday.txt')
    assert.equal(await titled(), 'holiday.txt')
    assert.equal(await page.textContent('#title-hint'), '11 of 50 characters')
    await choose('b.txt', 'c.txt', 'unwanted.txt')
    await page.getByRole('button', { name: 'Remove unwanted.txt' }).click()
    assert.equal(await titled(), 'holiday.txt and 2 more')
    await page.click('#send')
    await reach(page, 'stored', 3)
    assert.equal(await titled(), 'holiday.txt and 2 more')
    // Nobody typed it: it gives way to what is chosen next.
    const long = `${'😀'.repeat(60)}.txt`
    await choose(long)
    assert.equal(await titled(), '😀'.repeat(50))
    await page.getByRole('button', { name: `Remove ${long}` }).click()
    await page.fill('#title', 'typed')
    await choose('d.txt')
    assert.equal(await titled(), 'typed')
    await page.click('#send')
    await reach(page, 'stored', 4)
    await choose('e.txt')
    assert.equal(await titled(), 'typed')
    await page.fill('#title', '')
    await choose('f.txt')
    assert.equal(await titled(), 'e.txt and 1 more')
    const titles = (await records(server.dir)).map(({ title }) => title)
    assert.deepEqual(titles.sort(), [...Array(3).fill('holiday.txt and 2 more'), 'typed'])
  },
)

/** A folder on disk with folders in it, more files than one reading of a directory gives, and an empty one. */
async function folderOnDisk(t: TestContext): Promise<string> {
  const folder = join(await tempDir(t), 'Trip')
  await mkdir(join(folder, 'day 1', 'deep'), { recursive: true })
  await mkdir(join(folder, 'nothing'))
  for (let i = 0; i < 120; i++) await writeFile(join(folder, 'day 1', `${i}.txt`), `picture ${i}`)
  await writeFile(join(folder, 'day 1', 'deep', 'last.txt'), 'last')
  await writeFile(join(folder, 'empty.txt'), '')
  return folder
}

async function assertTripStored(page: Page, server: TestServer): Promise<void> {
  await until(
    () => page.locator('.row').count(),
    count => count === 122,
  )
  assert.equal(await page.inputValue('#title'), 'Trip')
  assert.deepEqual((await page.locator('.row .name').allTextContents()).slice(0, 3), [
    'Trip/day 1/0.txt',
    'Trip/day 1/1.txt',
    'Trip/day 1/2.txt',
  ])
  assert.equal(await row(page, 'empty.txt').getAttribute('data-state'), 'failed')
  await page.click('#send')
  await reach(page, 'stored', 121)
  const names = [...Array.from({ length: 120 }, (_, i) => `${i}.txt`), 'last.txt']
  assert.deepEqual(await published(server.dir), names.sort())
  for (const { files } of await records(server.dir)) assert.equal(files[0]?.sentAs, files[0]?.name)
}

test('a folder that was chosen: its files, and those of its folders', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  const chosen = page.waitForEvent('filechooser')
  await page.click('#choose-folder')
  await (await chosen).setFiles(await folderOnDisk(t))
  await assertTripStored(page, server)
})

/** What a person drops from another window. */
async function dropFromDisk(page: Page, ...files: string[]): Promise<void> {
  const session = await page.context().newCDPSession(page)
  const data = { items: [], files, dragOperationsMask: 1 }
  for (const type of ['dragEnter', 'dragOver', 'drop'] as const) {
    await session.send('Input.dispatchDragEvent', { type, x: 300, y: 30, data })
  }
}

test('a folder that was dropped: its files, and those of its folders', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  await dropFromDisk(page, await folderOnDisk(t))
  await assertTripStored(page, server)
})

test('dropped together: files, folders, and a folder that holds none', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  const folder = await folderOnDisk(t)
  await dropFromDisk(page, join(folder, 'nothing'))
  await page.waitForSelector('#file-error:not([hidden])')
  assert.equal(await page.textContent('#file-error'), 'There are no files in it.')
  await dropFromDisk(
    page,
    join(folder, 'day 1', 'deep'),
    join(folder, 'day 1', '7.txt'),
    join(folder, 'nothing'),
  )
  await until(
    () => page.locator('.row .name').allTextContents(),
    names => names.length === 2,
  )
  assert.deepEqual(await page.locator('.row .name').allTextContents(), ['deep/last.txt', '7.txt'])
  assert.equal(await page.isVisible('#file-error'), false)
  assert.equal(await page.inputValue('#title'), 'last.txt and 1 more')
})

test(
  'many files: totals, the list scrolls and the page does not, and all are cancelled at once',
  options,
  async t => {
    const { handler, reached, open } = heldBack(t)
    const server = await start(t, [handler])
    const page = await visit(t, server, { viewport: { width: 1000, height: 900 } })
    await page.setInputFiles('#file', [
      await onDisk(t, '0.txt', 20_000_000),
      await onDisk(t, '1.txt', 20_000_000),
    ])
    const { height } = (await page.locator('form').boundingBox()) ?? { height: 0 }
    await page.setInputFiles(
      '#file',
      Array.from({ length: 198 }, (_, i) => file(`${i + 2}.txt`, 'x'.repeat(1000))),
    )
    assert.equal(await page.textContent('#summary .facts'), '200 files, 40.2\u00a0MB')
    const list = page.locator('#rows')
    assert.ok(await list.evaluate('rows.scrollHeight > 5 * rows.clientHeight'))
    const grown = (await page.locator('form').boundingBox())?.height ?? 0
    assert.ok(grown < 3 * height, `the form grew from ${height} to ${grown} px`)
    assert.ok(await page.evaluate('document.scrollingElement.scrollHeight < 1.5 * innerHeight'))
    await page.click('#send')
    await reached
    assert.match(
      String(await page.textContent('#summary .facts')),
      /^0 of 200 files stored · .+ of 40\.2\sMB/,
    )
    assert.equal(await page.textContent('#send'), 'Uploading…')
    // A second click is none.
    await page.click('#send', { force: true })
    assert.equal(await page.isVisible('#file-error'), false)
    await page.getByRole('button', { name: 'Cancel all' }).click()
    await reach(page, 'cancelled', 200)
    assert.equal(await page.textContent('#summary .facts'), '200 cancelled')
    assert.equal(await page.textContent('#status'), '200 cancelled')
    open()
    await until(
      () => temporaryFiles(server),
      files => files.length === 0,
    )
    assert.deepEqual(await published(server.dir), [])
    // The focus is where something can be done, and all of them can be sent again, or dropped from the list.
    assert.equal(await page.evaluate('document.activeElement.textContent'), 'Retry all')
    await page.keyboard.press('Enter')
    await reach(page, 'stored', 200)
    assert.equal((await published(server.dir)).length, 200)
    assert.equal(await page.textContent('#summary .facts'), '200 stored')
    // What was sent last is in sight.
    assert.ok(await list.evaluate('rows.scrollTop + rows.clientHeight > rows.scrollHeight - 200'))
    await page.getByRole('button', { name: 'Clear list' }).click()
    assert.equal(await page.locator('.row').count(), 0)
    assert.equal(await page.evaluate('document.activeElement.id'), 'file')
  },
)

test('another try is offered where it may help, and nowhere else', options, async t => {
  const codes: [code: ErrorCode, again: boolean][] = [
    ['malformed_body', false],
    ['forbidden', false],
    ['name_taken', false],
    ['too_many_files', false],
    ['type_not_allowed', false],
    ['idle_timeout', true],
    ['too_many_uploads_of_client', true],
    ['storage_failed', true],
    ['too_many_uploads', true],
    ['disk_full', true],
  ]
  const refusing: UploadHandler = {
    name: 'refusing',
    open(info) {
      throw new UploadError(info.name as ErrorCode, `${info.name} is not for us`)
    },
  }
  const page = await visit(t, await start(t, [refusing]))
  await page.setInputFiles(
    '#file',
    codes.map(([code]) => file(code)),
  )
  await page.click('#send')
  await reach(page, 'failed', codes.length)
  for (const [code, again] of codes) {
    assert.equal(await row(page, code).locator('.retry').isVisible(), again, code)
    assert.equal(await row(page, code).locator('.remove').isVisible(), true, code)
  }
  // A name stands in a sentence as it is.
  assert.equal(
    await row(page, 'name_taken').locator('.facts').textContent(),
    'Not stored: name_taken is not for us',
  )
  assert.equal(await page.getByRole('button', { name: 'Retry all' }).isVisible(), true)
})

/** A proxy before a server, below a path of its own; `judge` may answer a request in the server's place. */
async function proxy(
  t: TestContext,
  { port }: TestServer,
  judge: (req: http.IncomingMessage, res: http.ServerResponse) => boolean = () => false,
): Promise<string> {
  const front = http.createServer((req, res) => {
    if (judge(req, res)) return
    const path = (req.url ?? '').replace(/^\/files\/here/, '')
    const options = { port, path, method: req.method, headers: req.headers }
    const back = http.request(options, answer => {
      res.writeHead(answer.statusCode ?? 502, answer.headers)
      answer.pipe(res)
    })
    back.on('error', () => res.destroy())
    req.pipe(back)
    res.on('close', () => back.destroy())
  })
  await new Promise<void>(resolve => front.listen(0, '127.0.0.1', () => resolve()))
  t.after(() => front.close().closeAllConnections())
  return `http://127.0.0.1:${(front.address() as AddressInfo).port}/files/here/`
}

for (const [status, words, again] of [
  [200, 'Something on the way to this server answered in its place. Reload this page.', false],
  [403, 'A proxy on the way to this server refused it (HTTP 403).', false],
  [
    413,
    'Too large for a proxy on the way to this server. Whoever runs the server can raise the limit there.',
    false,
  ],
  [429, 'The server cannot be reached just now (HTTP 429).', true],
  [502, 'The server cannot be reached just now (HTTP 502).', true],
] as const) {
  test(`a proxy that answers ${status} in the server's place is told from the server`, options, async t => {
    const url = await proxy(t, await start(t), (req, res) => {
      if (req.method !== 'POST') return false
      // As nginx does: the answer at once, the body read and dropped.
      req.resume()
      res.writeHead(status, { 'Content-Type': 'text/html' })
      res.end(`<html>\r\n<head><title>${status}</title></head>\r\n</html>\r\n`)
      return true
    })
    const page = await visit(t, { url } as TestServer)
    await page.setInputFiles('#file', [file('a.txt')])
    await page.click('#send')
    await page.waitForSelector('[data-state=failed]')
    assert.equal(await page.textContent('.row .facts'), words)
    assert.equal(await page.isVisible('.row .retry'), again)
  })
}

test(
  'below a proxy’s path: the page, an upload with the script and without it, and an error',
  options,
  async t => {
    const server = await start(t)
    const url = await proxy(t, server)
    const page = await visit(t, { ...server, url })
    await page.setInputFiles('#file', [file('a.txt')])
    await page.click('#send')
    await page.waitForSelector('[data-state=stored]')
    const plain = await visit(t, { ...server, url }, { javaScriptEnabled: false })
    await plain.fill('#title', 'plain')
    await plain.setInputFiles('#file', [file('b.txt')])
    await plain.click('#send')
    await plain.waitForSelector('.notice')
    assert.equal(plain.url(), url)
    assert.deepEqual(await published(server.dir), ['a.txt', 'b.txt'])
    for (const path of ['nowhere', 'nowhere/at/all']) {
      await plain.goto(url + path)
      assert.equal(await plain.textContent('.card p'), `The server says: there is nothing at /${path}.`)
      assert.equal(await plain.evaluate('getComputedStyle(document.querySelector("main")).maxWidth'), '608px')
      await plain.click('.card a')
      assert.equal(plain.url(), url)
    }
  },
)

test('a server that is gone, and an answer that is lost', options, async t => {
  const server = await start(t)
  let gone = false
  const cut = await proxy(t, server, (req, res) => {
    if (req.method !== 'POST') return false
    if (gone) return req.socket.destroy() !== undefined
    // The head of the answer, and no more: without one Chromium sends a form again by itself.
    res.end = () => res
    res.write = () => {
      res.flushHeaders()
      res.socket?.end()
      return true
    }
    return false
  })
  const page = await visit(t, { ...server, url: cut })
  await page.setInputFiles('#file', [file('lost.txt')])
  await page.click('#send')
  // Stored: the progress record says so.
  await page.waitForSelector('[data-state=stored]')
  assert.deepEqual(await published(server.dir), ['lost.txt'])
  gone = true
  await page.setInputFiles('#file', [file('gone.txt')])
  await page.click('#send')
  await page.waitForSelector('[data-state=failed]')
  assert.equal(
    await row(page, 'gone.txt').locator('.facts').textContent(),
    'The connection to the server broke.',
  )
  assert.equal(await row(page, 'gone.txt').locator('.retry').isVisible(), true)
  assert.deepEqual(await published(server.dir), ['lost.txt'])
})

test('a form that the browser sends again by itself is stored once', options, async t => {
  const { handler, reached, open } = heldBack(t)
  const server = await start(t, [handler])
  let sent = 0
  const url = await proxy(t, server, req => {
    // A kept connection breaks once the server has the form.
    if (req.method === 'POST' && sent++ === 0) void reached.then(() => req.socket.destroy())
    return false
  })
  const page = await visit(t, { ...server, url })
  await page.setInputFiles('#file', [file('a.txt')])
  const again = page.waitForResponse(answer => answer.status() === 409)
  await page.click('#send')
  await again
  open()
  await page.waitForSelector('[data-state=stored]')
  assert.deepEqual(await published(server.dir), ['a.txt'])
  assert.equal(sent, 2)
})

test('a file that was changed since it was chosen, or while it was sent', options, async t => {
  const server = await start(t)
  const page = await visit(t, server)
  const path = await onDisk(t, 'a.txt', 1000)
  const long = new Date('2020-01-01')
  await utimes(path, long, long)
  await page.setInputFiles('#file', path)
  await writeFile(path, 'shorter')
  await page.click('#send')
  await page.waitForSelector('[data-state=failed]')
  const said = () => page.textContent('.row .facts')
  assert.equal(await said(), 'This file was changed or moved since it was chosen. Choose it again.')
  assert.equal(await page.isVisible('.row .retry'), false)
  assert.deepEqual(await published(server.dir), [])
  // By its time it is what it was, so Chromium sends what is there.
  await truncate(path, 1000)
  await utimes(path, long, long)
  await page.click('.row .remove')
  await page.setInputFiles('#file', path)
  await truncate(path, 7)
  await utimes(path, long, long)
  await page.click('#send')
  await page.waitForSelector('[data-state=stored]')
  assert.match(String(await said()), /^1\.00\skB · stored in .+ · changed while it was sent: 7\sB$/)
  assert.equal((await stat(join(server.dir, 'a.txt'))).size, 7)
})

test('cancelled when all of it has arrived: it is stored, and said to be', options, async t => {
  const { handler, reached, open } = heldBack(t)
  const server = await start(t, [handler])
  const page = await visit(t, server)
  await page.setInputFiles('#file', [file('a.txt')])
  await page.click('#send')
  await reached
  await page.click('.row .cancel')
  open()
  await page.waitForSelector('[data-state=stored]')
  assert.deepEqual(await published(server.dir), ['a.txt'])
})

test('without the token the page says how to enter it, and asks for nothing else', options, async t => {
  const server = await start(t, [], { token: 'secret' })
  // Asked twice a browser has no more to say, and shows what was answered: as where a person gives up.
  const own = await browser.newContext({ httpCredentials: { username: 'anybody', password: 'wrong' } })
  t.after(() => own.close())
  const page = await own.newPage()
  const asked: string[] = []
  page.on('request', request => asked.push(request.url()))
  for (const path of ['', 'somewhere/else']) {
    asked.length = 0
    const answer = await page.goto(server.url + path)
    assert.equal(answer?.status(), 401)
    assert.match(
      String(await page.textContent('main')),
      /any user name will do, and the password is the token/,
    )
    assert.match(String(await page.textContent('main')), /printed where uploadr serve was started/)
    assert.deepEqual(await findings(page), [])
    // A style or an image would be refused too, and a browser would ask for the token again for each.
    assert.deepEqual([...new Set(asked.filter(url => !url.endsWith('favicon.ico')))], [server.url + path])
    const href = String(await page.getByRole('link').getAttribute('href'))
    assert.equal(new URL(href, page.url()).href, server.url)
  }
})

test('without JavaScript: a name stands in a refusal as it is', options, async t => {
  const server = await start(t, [], { kinds: { denyExtensions: ['exe'] } })
  const page = await visit(t, server, { javaScriptEnabled: false })
  await page.fill('#title', 't')
  await page.setInputFiles('#file', [file('photo.exe')])
  await page.click('#send')
  await page.waitForSelector('.notice.bad')
  assert.match(
    String(await page.textContent('.notice')),
    /^\s*Nothing was stored: photo\.exe has the extension \.exe/,
  )
})

for (const colorScheme of ['light', 'dark'] as const) {
  for (const width of [1000, 375]) {
    test(`accessible and within its width: ${colorScheme}, ${width} px`, options, async t => {
      const { handler, reached, open } = heldBack(t)
      const server = await start(t, [handler])
      const page = await visit(t, server, { colorScheme, viewport: { width, height: 700 } })
      const check = async (state: string) => {
        assert.deepEqual(await findings(page), [], state)
        assert.equal(await page.evaluate('document.scrollingElement.scrollWidth'), width, state)
      }
      await check('empty')
      await page.click('#send')
      await check('errors')
      await page.fill('#title', 'x'.repeat(50))
      await page.setInputFiles('#file', [
        await onDisk(t, `${'long'.repeat(40)}.bin`, 20_000_000),
        await onDisk(t, 'b.txt', 10),
        await onDisk(t, 'c.txt', 10),
      ])
      await check('chosen')
      await page.click('#send')
      await reached
      await page.getByRole('button', { name: 'Cancel c.txt' }).click()
      await check('in the middle')
      open()
      await reach(page, 'stored', 2)
      await check('stored')
      await page.setInputFiles(
        '#file',
        Array.from({ length: 20 }, (_, i) => file(`${i}.txt`)),
      )
      await check('more than fit')
    })
  }
}
