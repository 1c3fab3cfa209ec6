/** What is said of all files together: above the list, and in the window's title. */
import { byId, offer, showBar } from './elements.js'
import { duration, Rate } from './rate.js'
import { plural, formatSizePlainly as size } from './units.js'

const summary = byId('summary')
const part = selector => summary.querySelector(selector)
const pageTitle = document.title.replace(/^Error: /, '')

export const buttons = { retry: part('.retry'), cancel: part('.cancel'), remove: part('.remove') }

/** The files sent since there was nothing to do, and how fast they are received. */
let batch = new Set()
let rate = new Rate()

/** These are sent together with what is still on its way. */
export function sendTogether(uploads) {
  if (![...batch].some(({ active }) => active)) {
    batch = new Set()
    rate = new Rate()
  }
  for (const upload of uploads) batch.add(upload)
}

/** Shows how all are; returns what to say once the last of several has ended, else an empty text. */
export function showAll(uploads) {
  const sent = [...batch]
  const active = sent.filter(upload => upload.active)
  const total = bytesOf(sent)
  const received = sent.reduce((sum, upload) => sum + upload.received, 0)
  const left = active.reduce((sum, upload) => sum + upload.file.size - upload.received, 0)
  // What failed or was cancelled is not waited for: it counts as done. Never 100 while there is something to do.
  const percent =
    active.length > 0 && total > 0 ? Math.min(99, Math.floor((1 - left / total) * 100)) : undefined
  const text = active.length > 0 ? moving(sent, received, total, left) : resting(uploads)
  document.title = percent === undefined ? pageTitle : `${percent} % · ${pageTitle}`
  summary.hidden = uploads.length < 2
  part('.facts').textContent = text
  showBar(part('.bar'), percent)
  offer(buttons.cancel, active.length > 0)
  offer(buttons.retry, active.length === 0 && uploads.filter(({ retryable }) => retryable).length > 1)
  offer(buttons.remove, active.length === 0)
  return text
}

function moving(sent, received, total, left) {
  const facts = [
    `${countOf(sent, 'stored')} of ${plural(sent.length, 'file')} stored`,
    `${size(received)} of ${size(total)}`,
  ]
  const speed = rate.note(received)
  if (speed > 0) facts.push(`${duration(left / speed)}\u00a0left`)
  return facts.join(' · ')
}

function resting(uploads) {
  const ready = uploads.filter(({ state }) => state === 'ready')
  const facts = ready.length > 0 ? [`${plural(ready.length, 'file')}, ${size(bytesOf(ready))}`] : []
  for (const state of ['stored', 'failed', 'cancelled']) {
    const count = countOf(uploads, state)
    if (count > 0) facts.push(`${count} ${state}`)
  }
  return facts.join(' · ')
}

function bytesOf(uploads) {
  return uploads.reduce((sum, { file }) => sum + file.size, 0)
}

function countOf(uploads, wanted) {
  return uploads.filter(({ state }) => state === wanted).length
}
