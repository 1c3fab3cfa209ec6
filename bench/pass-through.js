import { tap } from '../dist/src/index.js'

/** A handler that takes part in everything and changes nothing. */
function passThrough() {
  return {
    name: 'pass-through',
    begin() {},
    async open(file, next) {
      const inner = await next(file)
      return tap(inner, { write: chunk => inner.write(chunk) })
    },
    complete() {},
    published() {},
    interrupt() {},
  }
}

// biome-ignore lint/style/noDefaultExport: what --handler loads is a module's default export.
export default passThrough
