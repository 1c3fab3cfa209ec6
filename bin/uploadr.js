#!/usr/bin/env node
const { main } = await import('../dist/src/cli.js').catch(error => {
  if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error
  process.stderr.write(
    'uploadr: it is not built yet, or its dependencies are missing: run npm install in its folder\n',
  )
  process.exit(1)
})

main(process)
