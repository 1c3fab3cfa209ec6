import http from 'node:http'
import express from 'express'
import multer from 'multer'
import { dir, listen, settle } from './parts.js'

const upload = multer({ dest: dir })

const app = express().disable('x-powered-by')
app.post('/', upload.single('file'), async (req, res) => {
  await settle(req.file.path)
  res.status(201).json({ title: req.body.title, name: req.file.filename, size: req.file.size })
})

listen(http.createServer(app))
