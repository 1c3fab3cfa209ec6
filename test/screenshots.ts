/** Renews docs/screenshots: the page in its states, light and dark, on a desk and on a phone. Then: `pngquant --ext .png --force 128`. */
import { mkdir, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import os from 'node:os'
import { join } from 'node:path'
import { type BrowserContextOptions, chromium, type Page } from 'playwright-core'
import { createServer, tap, UploadError, type UploadHandler } from '../src/index.ts'
import { ROOT } from './support.ts'

const folder = process.argv[2] ?? join(ROOT, 'docs/screenshots')
const work = await mkdtemp(join(os.tmpdir(), 'uploadr-screenshots-'))
const never = new Promise<never>(() => {})

/** Takes so much of every file and then no more, all of what is small, and nothing that is called a draft. */
const taking: UploadHandler = {
  name: 'taking',
  async open(file, next) {
    if (file.name.startsWith('draft')) throw new UploadError('disk_full', 'no space is left on the server')
    const inner = await next(file)
    let taken = 0
    return tap(inner, {
      async write(chunk) {
        taken += chunk.length
        await inner.write(chunk)
        if (taken > 41_000_000) await never
      },
    })
  },
}

async function file(name: string, size: number): Promise<string> {
  const path = join(work, name)
  await writeFile(path, '.')
  await truncate(path, size)
  return path
}

const STATES: Record<string, (page: Page) => Promise<void>> = {
  async empty() {},
  async errors(page) {
    await page.fill('#title', 'A title that is a good deal longer than the form allows it to be')
    await page.setInputFiles('#file', [
      await file('notes.txt', 0),
      await file('Everything since 2009.zip', 20_000_000_000),
      await file('contact sheet.pdf', 3_000_000),
    ])
    await page.click('#send')
  },
  async uploading(page) {
    await page.fill('#title', 'Porto')
    await page.setInputFiles('#file', [
      await file('contact sheet.pdf', 3_160_000),
      await file('notes.txt', 0),
      await file('draft 3.docx', 180_000),
      await file('Summer in Porto.mov', 90_400_000),
      await file('Field recordings.wav', 48_300_000),
      await file('Morning.jpg', 5_210_000),
    ])
    await page.click('#send')
    const moving = page.locator('.row[data-state=sending] .percent', { hasText: /[48]\d %/ })
    await moving.nth(1).waitFor({ state: 'attached' })
  },
  async many(page) {
    const names = Array.from({ length: 200 }, (_, i) => `IMG_${String(4200 + i)}.jpg`)
    const held = names.map((name, i) => file(name, i === 37 || i === 38 ? 60_000_000 : 400_000 + i * 9000))
    await page.fill('#title', 'Porto')
    await page.setInputFiles('#file', await Promise.all(held))
    await page.click('#send')
    const moving = page.locator('.row[data-state=sending] .percent', { hasText: /[67]\d %/ })
    await moving.nth(1).waitFor({ state: 'attached' })
  },
}

const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu'],
})
await mkdir(folder, { recursive: true })
const only = process.argv.slice(3)
for (const [state, reach] of Object.entries(STATES)) {
  if (only.length > 0 && !only.includes(state)) continue
  for (const [device, width, height] of [
    ['desktop', 1000, 700],
    ['phone', 375, 700],
  ] as const) {
    for (const colorScheme of ['light', 'dark'] as const) {
      const dir = await mkdtemp(join(work, 'uploads-'))
      const server = await createServer({ dir, fsync: false, handlers: [taking] })
      const options: BrowserContextOptions = {
        colorScheme,
        viewport: { width, height },
        reducedMotion: 'reduce',
      }
      const page = await browser.newPage(options)
      await page.goto(await server.listen({ port: 0 }))
      await reach(page)
      await page.screenshot({ path: join(folder, `${state}-${device}-${colorScheme}.png`), fullPage: true })
      await page.close({ runBeforeUnload: false })
      await server.shutdown()
    }
  }
}
await browser.close()
await rm(work, { recursive: true, force: true })
