/** One file of the list, from chosen to stored: its row, and its being sent. */
import { byId, offer, showBar } from './elements.js'
import { duration, Rate } from './rate.js'
import { inWords, isWorthAnotherTry, refusal, refused, refusedOnTheWay } from './rules.js'
import { formatSizePlainly as size } from './units.js'
import { base, outcome, watch } from './watch.js'

/** How long the answer may take once the server has told, by its progress, that the upload has ended. */
const ANSWER_GRACE_MS = 1000
/** Where a row has room for how fast it goes. */
const roomy = matchMedia('(min-width: 32rem)')

export class Upload {
  #page
  #state
  #title = ''
  #control
  #rate
  #began = 0
  #percent = 0
  /** Whether another try may help. */
  #again = false

  /** `page` is told what has `changed`, what to `say`, of `titleRefused`, and of the wishes of its buttons. */
  constructor({ file, folder }, page) {
    this.file = file
    this.folder = folder
    this.#page = page
    /** Bytes that the server has, as far as it said. */
    this.received = 0
    this.row = byId('row').content.firstElementChild.cloneNode(true)
    this.#part('.folder').textContent = folder
    this.#part('.own').textContent = file.name
    this.#part('.name').title = folder + file.name
    this.#part('.bar').setAttribute('aria-label', file.name)
    for (const [button, word, act] of [
      ['.cancel', 'Cancel', () => page.cancel([this])],
      ['.retry', 'Retry', () => page.retry([this])],
      ['.remove', 'Remove', () => page.remove(this)],
    ]) {
      this.#part(button).addEventListener('click', act)
      this.#part(button).setAttribute('aria-label', `${word} ${file.name}`)
    }
    const why = refusal(file)
    if (why === undefined) this.#ready()
    else this.#show('failed', why)
  }

  get state() {
    return this.#state
  }

  /** On its way, or waiting for it. */
  get active() {
    return this.#state === 'queued' || this.sending
  }

  get sending() {
    return this.#state === 'sending' || this.#state === 'storing'
  }

  get retryable() {
    return this.#again && !this.active
  }

  /** To be sent, where it was sent before under the same title. */
  queue(title = this.#title) {
    this.#title = title
    this.#again = false
    this.#percent = 0
    this.received = 0
    this.#show('queued', `${size(this.file.size)} · waiting`)
  }

  /** What has arrived whole cannot be called back. */
  cancel() {
    if (this.#state === 'sending') this.#control.abort()
    if (this.#state === 'queued') this.#cancelled()
  }

  async send(token) {
    const id = randomId()
    const control = new AbortController()
    this.#control = control
    this.#rate = new Rate()
    this.#began = performance.now()
    this.#show('sending', `${size(this.file.size)} · starting`)
    let ended
    let grace
    const stop = watch(id, progress => {
      if (progress.state === 'uploading') this.#advance(progress)
      if (progress.state === 'done' || progress.state === 'error') {
        ended = progress
        // The answer says more, but a browser reads none before it has sent everything.
        grace ??= setTimeout(() => control.abort(), ANSWER_GRACE_MS)
      }
    })
    try {
      const response = await fetch(base, {
        method: 'POST',
        headers: { Accept: 'application/json', 'X-Progress-ID': id, 'X-CSRFToken': token.value },
        body: this.#body(token),
        signal: control.signal,
      })
      const answer = asJson(await response.text())
      // Ours alone: a browser sends a form again by itself where a kept connection breaks.
      if (answer?.code === 'progress_id_in_use') await this.#judge(await outcome(id))
      else this.#answered(response.status, answer)
    } catch {
      const cancelled = control.signal.aborted && !ended
      await this.#judge(ended ?? (await outcome(id)), cancelled)
    } finally {
      clearTimeout(grace)
      stop()
    }
  }

  #body(token) {
    const data = new FormData()
    data.append(token.name, token.value)
    data.append('title', this.#title)
    // By its name alone: Chromium sends a file of a folder under its path there.
    data.append('file', this.file, this.file.name)
    return data
  }

  #advance({ received, size: total, phase }) {
    const all = size(this.file.size)
    const rate = this.#rate.note(received)
    this.received = Math.min(received, this.file.size)
    // Never 100 before the server says done; never back.
    if (total) this.#percent = Math.max(this.#percent, Math.min(99, Math.floor((received / total) * 100)))
    if (phase === 'storing') return this.#show('storing', `${all} · storing`)
    const facts = [`${size(this.received)} of ${all}`]
    if (rate > 0 && roomy.matches) facts.push(`${size(rate)}/s`)
    if (rate > 0) facts.push(`${duration((total - received) / rate)}\u00a0left`)
    this.#show('sending', facts.join(' · '))
  }

  #answered(status, answer) {
    if (status === 201 && answer?.files) this.#stored(answer.files[0])
    else if (answer?.code) this.#refused({ ...answer, status })
    else this.#failed(refusedOnTheWay(status), isWorthAnotherTry(status))
  }

  #refused(error) {
    const { title, ...others } = error.errors ?? {}
    const own = Object.values(others).flat()
    if (own.length > 0) return this.#failed(inWords('file', own))
    // Nothing is wrong with the file: under another title it can be sent.
    if (!title) return this.#failed(refused(error), isWorthAnotherTry(error.status))
    this.#ready()
    this.#page.titleRefused(inWords('title', title))
  }

  /** What became of it, where the answer did not come through. */
  async #judge(progress, cancelled) {
    if (progress?.state === 'done') return this.#stored()
    if (cancelled) return this.#cancelled()
    if (progress?.state === 'error' && progress.code !== 'truncated_body') return this.#refused(progress)
    if (!(await isReadable(this.file))) {
      return this.#failed('This file was changed or moved since it was chosen. Choose it again.')
    }
    const perhaps = this.#state === 'storing' ? ' It may be stored all the same.' : ''
    this.#failed(`The connection to the server broke.${perhaps}`, true)
  }

  #ready() {
    this.#show('ready', size(this.file.size))
  }

  #cancelled() {
    this.#again = true
    this.#show('cancelled', `${size(this.file.size)} · cancelled`)
    this.#page.say(`${this.file.name}: cancelled`)
  }

  #stored(file) {
    this.received = this.file.size
    const facts = [size(this.file.size), `stored in ${duration((performance.now() - this.#began) / 1000)}`]
    if (file && file.name !== this.file.name) facts.push(`as ${file.name}`)
    // A handler of the server's may have changed it as well; what arrived is what was sent.
    const arrived = (file?.arrived ?? file ?? this.file).size
    if (arrived !== this.file.size) facts.push(`changed while it was sent: ${size(arrived)}`)
    this.#show('stored', facts.join(' · '))
  }

  #failed(why, again = false) {
    this.#again = again
    this.#show('failed', why)
    this.#page.say(`${this.file.name}: ${why}`)
  }

  #show(state, facts) {
    this.#state = state
    this.row.dataset.state = state
    this.#part('.facts').textContent = facts
    this.#part('.percent').textContent = this.sending ? `${this.#percent} %` : ''
    showBar(this.#part('.bar'), this.sending ? this.#percent : undefined)
    offer(this.#part('.cancel'), this.active && state !== 'storing')
    offer(this.#part('.retry'), this.retryable)
    offer(this.#part('.remove'), !this.active)
    this.#page.changed(this)
  }

  #part(selector) {
    return this.row.querySelector(selector)
  }
}

/** 128 random bits: whoever knows the id can watch. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return Array.from(bytes, byte => byte.toString(16).padStart(2, '0')).join('')
}

function asJson(text) {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** A file that was changed or removed on disk is not sent, and the browser says no more than of a broken network. */
function isReadable(file) {
  return file
    .slice(0, 1)
    .arrayBuffer()
    .then(
      () => true,
      () => false,
    )
}
