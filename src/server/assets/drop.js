/** Files from where a person has them: dropped anywhere on the page, alone or in folders, or a folder that was chosen. */

/** By path, numbers by their value: `2.jpg` before `10.jpg`. */
const { compare } = new Intl.Collator(undefined, { numeric: true })
const byPath = (a, b) => compare(a.folder + a.file.name, b.folder + b.file.name)

/** The files of a folder that a person chose, each with the path of its folder. */
export function ofFolder(files) {
  return Array.from(files, file => ({ file, folder: folderOf(file.webkitRelativePath) })).sort(byPath)
}

function folderOf(path) {
  return path.slice(0, path.lastIndexOf('/') + 1)
}

/** Calls `take` with a promise of what was dropped: its files, and the names of what could not be read. */
export function onDrop(area, take) {
  let depth = 0
  const listen = (name, heard) =>
    addEventListener(name, event => {
      if (event.dataTransfer?.types.includes('Files')) heard(event)
    })
  const over = entered => {
    depth = Math.max(0, depth + entered)
    area.classList.toggle('over', depth > 0)
  }
  listen('dragenter', () => over(1))
  listen('dragleave', () => over(-1))
  // Anywhere: a file that misses the area would replace the page.
  listen('dragover', event => event.preventDefault())
  listen('drop', event => {
    event.preventDefault()
    over(-depth)
    take(dropped(event.dataTransfer))
  })
}

async function dropped({ items }) {
  // All of them at once: when the event is over there are none any more.
  const found = Array.from(items, item => {
    const entry = item.webkitGetAsEntry?.()
    return entry?.isDirectory ? { entry } : { file: item.getAsFile() }
  })
  const files = []
  const unread = []
  for (const { entry, file } of found) {
    if (file) files.push({ file, folder: '' })
    if (!entry) continue
    const inside = []
    await walk(entry, inside, unread)
    files.push(...inside.sort(byPath))
  }
  return { files, unread }
}

/** Everything below a folder; what cannot be read is named. */
async function walk(entry, files, unread) {
  const path = entry.fullPath.slice(1)
  try {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject))
      return void files.push({ file, folder: folderOf(path) })
    }
    const reader = entry.createReader()
    for (;;) {
      // A hundred at a time; none is the end.
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))
      if (entries.length === 0) return
      for (const each of entries) await walk(each, files, unread)
    }
  } catch {
    unread.push(path)
  }
}
