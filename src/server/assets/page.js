/**
 * The page, livelier: a row for each file, sent as an upload of its own, with a bar drawn from the
 * server's count. Without this script the form is an ordinary form.
 */

/** Uploads sent at a time. Each holds two of the six connections that a browser has for a server. */
const AT_ONCE = 2
/** How often the server is asked where it cannot tell by itself. */
const POLL_MS = 250
/** The rate is that of the last few seconds. */
const RATE_WINDOW_MS = 3000
/** How long the answer may take once the server has told, by its progress, that the upload failed. */
const ANSWER_GRACE_MS = 1000

const REQUIRED = 'This field is required.'
const EMPTY = 'The submitted file is empty.'

const byId = id => document.getElementById(id)
const form = byId('upload')
const title = byId('title')
const picker = byId('file')
const drop = byId('drop')
const rows = byId('rows')
const send = byId('send')
const status = byId('status')
const titleHint = byId('title-hint').textContent
const pageTitle = document.title.replace(/^Error: /, '')
// Without the user name and password that the address may hold: fetch refuses those.
const base = new URL('./', location.origin + location.pathname)

const uploads = new Set()

/** One file of the list, from chosen to stored. */
class Upload {
  #state = 'ready'
  #control
  #samples = []
  #began = 0
  #title = ''
  #percent = 0

  constructor(file) {
    this.file = file
    this.row = byId('row').content.firstElementChild.cloneNode(true)
    const name = this.#part('.name')
    name.textContent = file.name
    name.title = file.name
    this.#part('.bar').setAttribute('aria-label', file.name)
    for (const [button, act] of [
      ['cancel', () => this.cancel()],
      ['retry', () => this.retry()],
      ['remove', () => this.remove()],
    ]) {
      this.#part(`.${button}`).addEventListener('click', act)
      this.#part(`.${button}`).setAttribute('aria-label', `${capital(button)} ${file.name}`)
    }
    this.#show('ready', `${size(file.size)} · ready`)
  }

  get state() {
    return this.#state
  }

  get active() {
    return this.#state === 'queued' || this.sending
  }

  get sending() {
    return this.#state === 'sending' || this.#state === 'storing'
  }

  /** For the sum over all files: bytes that the server has, as far as it said. */
  get received() {
    return (this.#percent / 100) * this.file.size
  }

  queue(title) {
    this.#title = title
    this.#percent = 0
    this.#show('queued', `${size(this.file.size)} · waiting`)
  }

  retry() {
    // Under the title it was sent with, unless another was typed since.
    const typed = title.value.trim() !== ''
    if (typed && !checkTitle()) return title.focus()
    this.queue(typed ? title.value.trim() : this.#title)
    sendNext()
  }

  cancel() {
    if (this.#state === 'queued') this.#show('cancelled', 'Cancelled')
    else this.#control?.abort()
    sendNext()
  }

  remove() {
    const next = this.row.nextElementSibling ?? this.row.previousElementSibling
    uploads.delete(this)
    this.row.remove()
    showError(picker, '')
    const button = next?.querySelector('button:not([hidden])')
    ;(button ?? picker).focus()
    update()
  }

  async send() {
    const id = randomId()
    const control = new AbortController()
    this.#control = control
    this.#samples = []
    this.#began = performance.now()
    this.#show('sending', `${size(this.file.size)} · starting`)
    let outcome
    let grace
    const stop = watch(id, progress => {
      if (progress.state === 'uploading') this.#advance(progress)
      if (progress.state === 'done' || progress.state === 'error') {
        outcome = progress
        // The answer says more, but a browser reads none before it has sent everything.
        grace ??= setTimeout(() => control.abort(), ANSWER_GRACE_MS)
      }
    })
    try {
      const response = await fetch(base, {
        method: 'POST',
        headers: { Accept: 'application/json', 'X-Progress-ID': id, 'X-CSRFToken': token() },
        body: this.#body(),
        signal: control.signal,
      })
      const answer = await response.json()
      if (response.status === 201) this.#stored(answer.files[0])
      else this.#failed(answer.errors ?? {}, answer.detail)
    } catch {
      if (control.signal.aborted && !outcome) this.#show('cancelled', 'Cancelled', 'cancelled')
      else this.#judge(outcome ?? (await ask(id).catch(() => undefined)))
    } finally {
      clearTimeout(grace)
      stop()
    }
  }

  #body() {
    const data = new FormData()
    data.append(byToken().name, token())
    data.append('title', this.#title)
    data.append('file', this.file)
    return data
  }

  /** What became of it, where the answer did not come through. */
  #judge(progress) {
    if (progress?.state === 'done') this.#stored()
    else if (progress?.state === 'error' && progress.code !== 'truncated_body')
      this.#failed({}, progress.detail)
    else this.#failed({}, 'the connection to the server broke')
  }

  #advance({ received, size: total, phase }) {
    const now = performance.now()
    const samples = this.#samples
    samples.push({ now, received })
    while (samples.length > 2 && now - samples[1].now >= RATE_WINDOW_MS) samples.shift()
    const [first] = samples
    const rate = now > first.now ? ((received - first.received) / (now - first.now)) * 1000 : 0
    // Never 100 before the server says done; never back.
    if (total) this.#percent = Math.max(this.#percent, Math.min(99, Math.floor((received / total) * 100)))
    if (phase === 'storing') return this.#show('storing', `${size(this.file.size)} · storing`)
    const facts = [`${size(Math.min(received, this.file.size))} of ${size(this.file.size)}`]
    if (rate > 0) facts.push(`${size(rate)}/s`, `${duration((total - received) / rate)}\u00a0left`)
    this.#show('sending', facts.join(' · '))
  }

  #stored(file) {
    this.#percent = 100
    const facts = [size(this.file.size), `stored in ${duration((performance.now() - this.#began) / 1000)}`]
    if (file && file.name !== this.file.name) facts.push(`as ${file.name}`)
    this.#show('stored', facts.join(' · '), 'stored')
  }

  #failed({ title: titleErrors, ...others }, detail) {
    if (titleErrors) showError(title, words(titleErrors))
    const own = Object.values(others).flat()
    const said =
      own.length > 0 ? words(own) : titleErrors ? words(titleErrors) : capital(detail ?? 'it failed')
    this.#show('failed', said, 'failed')
  }

  #show(state, facts, spoken) {
    this.#state = state
    this.row.dataset.state = state
    this.#part('.facts').textContent = facts
    const begun = !['ready', 'queued'].includes(state)
    const bar = this.#part('.bar')
    bar.hidden = !begun
    bar.setAttribute('aria-valuenow', this.#percent)
    // By way of the object model, as the policy allows no style attributes.
    this.#part('.fill').style.setProperty('--done', this.#percent)
    const counts = this.sending || state === 'stored'
    this.#part('.percent').textContent = counts ? `${this.#percent} %` : ''
    this.#offer('cancel', this.active)
    this.#offer('retry', state === 'failed' || state === 'cancelled')
    this.#offer('remove', !this.active)
    if (spoken) say(`${this.file.name}: ${spoken}`)
    update()
  }

  /** Shows or hides a button, and does not leave the keyboard's focus on nothing. */
  #offer(name, wanted) {
    const button = this.#part(`.${name}`)
    const focused = !wanted && button === document.activeElement
    button.hidden = !wanted
    if (focused) queueMicrotask(() => this.row.querySelector('button:not([hidden])')?.focus())
  }

  #part(selector) {
    return this.row.querySelector(selector)
  }
}

/** Hears of an upload from the server until the returned function is called: told by it, or asking it. */
function watch(id, heard) {
  let over = false
  let timer
  const events = new EventSource(new URL(`progress/${id}`, base))
  const poll = async () => {
    const progress = await ask(id).catch(() => undefined)
    if (over) return
    if (progress) heard(progress)
    timer = setTimeout(poll, POLL_MS)
  }
  events.onmessage = ({ data }) => {
    const progress = JSON.parse(data)
    if (progress.state === 'done' || progress.state === 'error') events.close()
    heard(progress)
  }
  events.onerror = () => {
    events.close()
    poll()
  }
  return () => {
    over = true
    events.close()
    clearTimeout(timer)
  }
}

async function ask(id) {
  const url = new URL(`progress/${id}`, base)
  const response = await fetch(url, { headers: { Accept: 'application/json' }, cache: 'no-store' })
  if (!response.ok) throw new Error(`HTTP ${response.status}`)
  return response.json()
}

function add(files) {
  for (const file of files) {
    const upload = new Upload(file)
    uploads.add(upload)
    rows.append(upload.row)
  }
  if (files.length > 0) {
    showError(picker, '')
    say(`${plural(files.length)} added`)
  }
  update()
}

function sendNext() {
  const all = [...uploads]
  let free = AT_ONCE - all.filter(({ sending }) => sending).length
  for (const upload of all) {
    if (upload.state !== 'queued' || free-- <= 0) continue
    upload.send().then(sendNext)
  }
  update()
}

function submit() {
  const ready = [...uploads].filter(({ state }) => state === 'ready')
  const waiting = ready.filter(({ file }) => file.size > 0)
  const empty = ready.filter(({ file }) => file.size === 0)
  const fileError =
    empty.length > 0
      ? ready.length > 1
        ? empty.map(({ file }) => `${file.name}: ${EMPTY}`).join(' ')
        : EMPTY
      : ready.length === 0
        ? REQUIRED
        : ''
  // Both fields at once, and the focus where the first error is.
  showError(picker, fileError)
  const titleRight = checkTitle()
  if (!titleRight) return title.focus()
  if (fileError !== '') return picker.focus()
  for (const upload of waiting) upload.queue(title.value.trim())
  title.value = ''
  countTitle()
  sendNext()
}

function checkTitle() {
  const value = title.value.trim()
  const length = [...value].length
  const max = Number(title.dataset.max)
  let error = ''
  if (value === '' && title.required) error = REQUIRED
  if (length > max) error = `Ensure this value has at most ${max} characters (it has ${length}).`
  showError(title, error)
  return error === ''
}

function countTitle() {
  const length = [...title.value.trim()].length
  byId('title-hint').textContent = length === 0 ? titleHint : `${length} of ${title.dataset.max} characters`
}

function showError(field, text) {
  const line = byId(`${field.id}-error`)
  line.textContent = text
  line.hidden = text === ''
  if (text === '') field.removeAttribute('aria-invalid')
  else field.setAttribute('aria-invalid', 'true')
  if (field === picker) drop.classList.toggle('invalid', text !== '')
}

/** What is said of all files together: the button, the window's title. */
function update() {
  const all = [...uploads]
  const ready = all.filter(({ state }) => state === 'ready').length
  send.textContent = ready > 0 ? `Upload ${plural(ready)}` : 'Upload'
  const active = all.filter(({ active }) => active)
  const total = active.reduce((sum, { file }) => sum + file.size, 0)
  const received = active.reduce((sum, upload) => sum + upload.received, 0)
  const percent = total > 0 ? `${Math.floor((received / total) * 100)} % · ` : ''
  document.title = active.length > 0 ? `${percent}${pageTitle}` : pageTitle
}

function say(text) {
  status.textContent = text
}

const byToken = () => form.querySelector('input[type=hidden]')
const token = () => byToken().value

/** 128 random bits: whoever knows the id can watch. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('')
}

/** Three significant digits in binary units, as the terminal has them, not to be broken at the line's end. */
function size(bytes) {
  if (bytes < 1024) return `${Math.floor(bytes)}\u00a0B`
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  let value = bytes
  while (value >= 999.5 && unit < 4) {
    value /= 1024
    unit++
  }
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)}\u00a0${units[unit]}`
}

function duration(seconds) {
  if (seconds < 1) return 'under\u00a01\u00a0s'
  if (seconds < 59.5) return `${Math.round(seconds)}\u00a0s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 60) return `${minutes}\u00a0min`
  return `${Math.floor(minutes / 60)}\u00a0h\u00a0${minutes % 60}\u00a0min`
}

function plural(count) {
  return `${count} file${count === 1 ? '' : 's'}`
}

function words(errors) {
  return errors.map(({ message }) => message).join(' ')
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1)
}

/** The files of a drop. A folder comes as something that looks like a file and cannot be read. */
function dropped({ items, files }) {
  const folders = Array.from(items ?? [])
    .map(item => item.webkitGetAsEntry?.())
    .filter(entry => entry?.isDirectory)
    .map(entry => entry.name)
  if (folders.length > 0) showError(picker, `${folders.join(', ')}: a folder cannot be sent, only its files.`)
  return Array.from(files).filter(file => !folders.includes(file.name))
}

document.documentElement.classList.add('js')
form.noValidate = true
picker.removeAttribute('required')

form.addEventListener('submit', event => {
  event.preventDefault()
  submit()
})

picker.addEventListener('change', () => {
  add(Array.from(picker.files))
  // So that the same file can be chosen again; the list has it now.
  picker.value = ''
})

title.addEventListener('input', () => {
  showError(title, '')
  countTitle()
})

// Anywhere on the page: a file that misses the area would replace the page.
let depth = 0
const carriesFiles = event => event.dataTransfer?.types.includes('Files')
addEventListener('dragenter', event => {
  if (!carriesFiles(event)) return
  depth++
  drop.classList.add('over')
})
addEventListener('dragleave', event => {
  if (carriesFiles(event) && --depth <= 0) drop.classList.remove('over')
})
addEventListener('dragover', event => {
  if (carriesFiles(event)) event.preventDefault()
})
addEventListener('drop', event => {
  if (!carriesFiles(event)) return
  event.preventDefault()
  depth = 0
  drop.classList.remove('over')
  add(dropped(event.dataTransfer))
})

addEventListener('beforeunload', event => {
  if ([...uploads].some(({ active }) => active)) event.preventDefault()
})

// What the browser filled in again after a reload or a step back.
countTitle()
if (picker.files.length > 0) picker.dispatchEvent(new Event('change'))
