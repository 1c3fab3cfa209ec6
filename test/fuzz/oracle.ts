import { Busboy } from '@fastify/busboy'

export interface Reading {
  /** It said that something is wrong. */
  failed: boolean
  files: { filename: string; bytes: Buffer }[]
  fields: [name: string, value: string][]
}

/** What another parser makes of a body. */
export function readWithFastifyBusboy(boundary: string, body: Buffer): Promise<Reading> {
  return new Promise(resolve => {
    const reading: Reading = { failed: false, files: [], fields: [] }
    const quoted = boundary.replace(/[\\"]/g, '\\$&')
    const parser = new Busboy({
      headers: { 'content-type': `multipart/form-data; boundary="${quoted}"` },
      limits: { headerSize: 16 * 1024 },
    })
    const done = () => resolve(reading)
    const fail = () => {
      reading.failed = true
      done()
    }
    parser.on('file', (_field, stream, filename) => {
      const chunks: Buffer[] = []
      stream.on('data', (chunk: Buffer) => chunks.push(chunk))
      stream.on('error', fail)
      stream.on('end', () => reading.files.push({ filename: filename ?? '', bytes: Buffer.concat(chunks) }))
    })
    parser.on('field', (name, value) => reading.fields.push([name, value]))
    parser.on('error', fail)
    parser.on('finish', done)
    parser.end(body)
  })
}
