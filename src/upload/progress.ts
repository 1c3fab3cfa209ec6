import type { ProgressStore } from '../progress/store.ts'
import type { Upload, UploadHandler } from './handler.ts'

/** What a record keeps of an error's words, in characters: it may name many files. */
const DETAIL_MAX = 1000

/**
 * Keeps a progress store up to date: one call when an upload begins and one when it ended. In between
 * the store reads the upload itself when somebody asks, so counting costs nothing per chunk.
 */
export function progress(store: ProgressStore): UploadHandler {
  return {
    name: 'progress',
    begin: upload => store.begin(upload.id, { from: upload.from, progress: () => snapshot(upload) }),
    // A chunked body announces no size; at its end the size is what came.
    published: ({ id, size, received }) => store.end(id, { state: 'done', received, size: size ?? received }),
    interrupt: ({ id, size, received }, { status, code, message }) =>
      store.end(id, {
        state: 'error',
        status,
        code,
        detail: message.slice(0, DETAIL_MAX),
        received,
        ...(size !== undefined && { size }),
      }),
  }
}

function snapshot({ received, size, phase }: Upload) {
  return { state: 'uploading' as const, received, ...(size !== undefined && { size }), phase }
}
