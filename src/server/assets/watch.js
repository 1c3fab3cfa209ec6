/** How far an upload is, by the server's own count. */

/** How often the server is asked where it cannot tell by itself. */
const POLL_MS = 250

// Without the user name and password that the address may hold: fetch refuses those.
export const base = new URL('./', location.origin + location.pathname)

/** Hears of an upload from the server until the returned function is called: told by it, or asking it. */
export function watch(id, heard) {
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

/**
 * What became of an upload whose answer did not come. Of one that has arrived whole the end is waited for:
 * the server stores it whether or not anybody listens. Undefined where nobody knows.
 */
export async function outcome(id) {
  for (;;) {
    const progress = await ask(id).catch(() => undefined)
    if (progress?.state !== 'uploading' || progress.received !== progress.size) return progress
    await new Promise(resolve => setTimeout(resolve, POLL_MS))
  }
}

async function ask(id) {
  const url = new URL(`progress/${id}`, base)
  const response = await fetch(url, { headers: { Accept: 'application/json' }, cache: 'no-store' })
  if (!response.ok) throw new Error(`HTTP ${response.status}`)
  return response.json()
}
