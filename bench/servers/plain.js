import { writeFile } from 'node:fs/promises'
import http from 'node:http'
import { basename, join } from 'node:path'

/** What Node's own http server can do at most: bodies are dropped, or gathered and written in one call. */
const [dir, stores] = process.argv.slice(2)

const server = http.createServer((req, res) => {
  const chunks = []
  if (stores) req.on('data', chunk => chunks.push(chunk))
  else req.resume()
  req.on('end', async () => {
    if (stores) await writeFile(join(dir, basename(req.url)), Buffer.concat(chunks))
    res.writeHead(201, { 'Content-Length': 0 }).end()
  })
})

server.listen(0, '127.0.0.1', () => process.stdout.write(`http://127.0.0.1:${server.address().port}/\n`))
