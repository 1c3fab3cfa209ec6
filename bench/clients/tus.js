import { createReadStream } from 'node:fs'
import { Upload } from 'tus-js-client'

const [path, endpoint] = process.argv.slice(2)

const upload = new Upload(createReadStream(path), {
  endpoint,
  retryDelays: null,
  onError: error => {
    process.stderr.write(`${error}\n`)
    process.exitCode = 1
  },
})
upload.start()
