import { createWriteStream } from 'node:fs'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import multipart from '@fastify/multipart'
import fastify from 'fastify'
import { dir, settle } from './parts.js'

const app = fastify({ bodyLimit: 2 ** 40 })
await app.register(multipart, { limits: { fileSize: 2 ** 40 } })

// The way its documentation shows: the title comes first, so its value is there with the file.
app.post('/', async (request, reply) => {
  const part = await request.file()
  const path = join(dir, part.filename)
  await pipeline(part.file, createWriteStream(path))
  await settle(path)
  return reply.code(201).send({ title: part.fields.title.value, name: part.filename })
})

process.stdout.write(`${await app.listen({ host: '127.0.0.1', port: 0 })}/\n`)
