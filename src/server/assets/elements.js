/** What the modules of the page do alike to its elements. */

export const byId = id => document.getElementById(id)

/** Shows or hides a button, and does not leave the keyboard's focus on nothing. */
export function offer(button, wanted) {
  const focused = !wanted && button === document.activeElement
  button.hidden = !wanted
  if (!focused) return
  queueMicrotask(() => (button.parentElement.querySelector('button:not([hidden])') ?? byId('file')).focus())
}

/** Shows a bar at so many percent; hides it where there are none. */
export function showBar(bar, percent) {
  bar.hidden = percent === undefined
  bar.setAttribute('aria-valuenow', percent ?? 0)
  // By way of the object model, as the policy allows no style attributes.
  bar.firstElementChild.style.setProperty('--done', percent ?? 0)
}
