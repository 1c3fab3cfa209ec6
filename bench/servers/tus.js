import http from 'node:http'
import { join } from 'node:path'
import { FileStore } from '@tus/file-store'
import { Server } from '@tus/server'
import { dir, listen, settle } from './parts.js'

const tus = new Server({
  path: '/',
  datastore: new FileStore({ directory: dir }),
  onUploadFinish: async (_, upload) => {
    await settle(join(dir, upload.id))
    return {}
  },
})

listen(http.createServer(tus.handle.bind(tus)))
