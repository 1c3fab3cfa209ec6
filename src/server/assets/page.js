/**
 * The page, livelier: a row for each file, sent as an upload of its own, with a bar drawn from the
 * server's count. Without this script the form is an ordinary form.
 */
import { ofFolder, onDrop } from './drop.js'
import { byId } from './elements.js'
import { rules, titleError } from './rules.js'
import { buttons, sendTogether, showAll } from './summary.js'
import { plural } from './units.js'
import { Upload } from './upload.js'

/** Uploads sent at a time. Each holds two of the six connections that a browser has for a server. */
const AT_ONCE = 2

const form = byId('upload')
const title = byId('title')
const picker = byId('file')
const folder = byId('folder')
const drop = byId('drop')
const rows = byId('rows')
const send = byId('send')
const titleHint = byId('title-hint').textContent

const uploads = new Set()
const those = wanted => [...uploads].filter(wanted)
const isReady = ({ state }) => state === 'ready'
const isActive = ({ active }) => active

/** What uploads tell the page. */
const page = {
  changed: update,
  say,
  titleRefused(error) {
    showError(title, error)
  },
  retry(again) {
    sendTogether(again)
    for (const upload of again) upload.queue()
    sendNext()
  },
  cancel(unwanted) {
    for (const upload of unwanted) upload.cancel()
    sendNext()
  },
  remove(upload) {
    const next = upload.row.nextElementSibling ?? upload.row.previousElementSibling
    uploads.delete(upload)
    upload.row.remove()
    showError(picker, '')
    fillTitle()
    const button = next?.querySelector('button:not([hidden])')
    ;(button ?? picker).focus()
    update()
  },
}

function add(files) {
  const added = files.map(each => new Upload(each, page))
  for (const upload of added) uploads.add(upload)
  rows.append(...added.map(({ row }) => row))
  showError(picker, '')
  fillTitle()
  const refused = added.length - added.filter(isReady).length
  if (added.length > 0)
    say(`${plural(added.length, 'file')} added${refused > 0 ? `, ${refused} of them cannot be sent` : ''}`)
  update()
}

async function addDropped(reading) {
  const { files, unread } = await reading
  add(files)
  if (unread.length > 0) showError(picker, `Could not be read: ${unread.join(', ')}.`)
  else if (files.length === 0) showError(picker, 'There are no files in it.')
}

/** The title that was filled in last; a person who typed another keeps it. */
let filled = ''

/** What is ready names itself, while nobody has: the name is there to be sent, or to be changed. */
function fillTitle() {
  const ready = those(isReady)
  if (!rules.titleRequired || ready.length === 0) return
  if (title.value.trim() !== '' && title.value !== filled) return
  const [{ file, folder }] = ready
  const [top = ''] = folder.split('/')
  const inOne = top !== '' && ready.every(each => each.folder.startsWith(`${top}/`))
  const more = ready.length > 1 && !inOne ? ` and ${ready.length - 1} more` : ''
  const name = Array.from(inOne ? top : file.name).slice(0, rules.titleMax - more.length)
  // As the field has it: a name may hold what a line of text cannot.
  title.value = name.join('').trim() + more
  filled = title.value
  showError(title, '')
  countTitle()
}

function submit() {
  const ready = those(isReady)
  // A second click.
  if (ready.length === 0 && those(isActive).length > 0) return
  // Both fields at once, and the focus where the first error is.
  showError(picker, ready.length === 0 ? rules.words['file.required'] : '')
  const error = titleError(title.value.trim())
  showError(title, error)
  if (error !== '') return title.focus()
  if (ready.length === 0) return picker.focus()
  sendTogether(ready)
  for (const upload of ready) upload.queue(title.value.trim())
  sendNext()
}

function sendNext() {
  const waiting = those(({ state }) => state === 'queued')
  const free = AT_ONCE - those(({ sending }) => sending).length
  for (const upload of waiting.slice(0, Math.max(0, free))) {
    follow(upload.row)
    upload.send(form.querySelector('input[type=hidden]')).then(sendNext)
  }
}

/** Keeps what is being sent in sight, unless somebody is looking elsewhere in the list. */
function follow(row) {
  if (rows.matches(':hover, :focus-within')) return
  rows.scrollTop = row.offsetTop - (rows.clientHeight - row.offsetHeight) / 2
}

let updating = false
let wasActive = false

/** All that is said of all files, once for however many have changed. */
function update() {
  if (updating) return
  updating = true
  queueMicrotask(() => {
    updating = false
    const all = [...uploads]
    const ready = those(isReady).length
    const text = showAll(all)
    const active = all.some(isActive)
    form.classList.toggle('listed', all.length > 0)
    send.textContent = ready > 0 ? `Upload ${plural(ready, 'file')}` : active ? 'Uploading…' : 'Upload'
    send.setAttribute('aria-disabled', ready === 0 && active)
    // Of one that failed its reason was said.
    if (wasActive && !active && all.length > 1) say(text)
    else if (wasActive && !active && all[0].state === 'stored') say(`${all[0].file.name}: stored`)
    wasActive = active
  })
}

function countTitle() {
  const length = [...title.value.trim()].length
  byId('title-hint').textContent = length === 0 ? titleHint : `${length} of ${rules.titleMax} characters`
}

function showError(field, text) {
  const line = byId(`${field.id}-error`)
  line.textContent = text
  line.hidden = text === ''
  if (text === '') field.removeAttribute('aria-invalid')
  else field.setAttribute('aria-invalid', 'true')
  if (field === picker) drop.classList.toggle('invalid', text !== '')
}

function say(text) {
  byId('status').textContent = text
}

document.documentElement.classList.add('js')
form.noValidate = true
picker.removeAttribute('required')
byId('file-hint').textContent = rules.words.hint

form.addEventListener('submit', event => {
  event.preventDefault()
  submit()
})

picker.addEventListener('change', () => {
  add(Array.from(picker.files, file => ({ file, folder: '' })))
  // So that the same file can be chosen again; the list has it now.
  picker.value = ''
})

byId('choose-folder').hidden = !('webkitdirectory' in folder)
byId('choose-folder').addEventListener('click', () => folder.click())
folder.addEventListener('change', () => {
  add(ofFolder(folder.files))
  folder.value = ''
})

onDrop(drop, addDropped)

title.addEventListener('input', () => {
  showError(title, '')
  countTitle()
})

buttons.cancel.addEventListener('click', () => page.cancel(those(isActive)))
buttons.retry.addEventListener('click', () => page.retry(those(({ retryable }) => retryable)))

buttons.remove.addEventListener('click', () => {
  for (const { row } of uploads) row.remove()
  uploads.clear()
  showError(picker, '')
  picker.focus()
  update()
})

addEventListener('beforeunload', event => {
  if (those(isActive).length > 0) event.preventDefault()
})

// What the browser filled in again after a reload or a step back.
countTitle()
if (picker.files.length > 0) picker.dispatchEvent(new Event('change'))
