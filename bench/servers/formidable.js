import http from 'node:http'
import formidable from 'formidable'
import { dir, listen, settle } from './parts.js'

const limits = { maxFileSize: 2 ** 40, maxTotalFileSize: 2 ** 40 }

const server = http.createServer(async (req, res) => {
  try {
    const [fields, files] = await formidable({ uploadDir: dir, ...limits }).parse(req)
    const [file] = files.file
    await settle(file.filepath)
    const body = JSON.stringify({ title: fields.title[0], name: file.newFilename, size: file.size })
    res.writeHead(201, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) })
    res.end(body)
  } catch (error) {
    res.writeHead(500).end(String(error))
  }
})

listen(server)
