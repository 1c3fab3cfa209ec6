import { UploadError } from '../errors.ts'
import { isOrAre, plural } from '../units.ts'
import type { Upload, UploadHandler } from './handler.ts'

export interface AdmissionLimits {
  /** Uploads running at once, of everybody. */
  uploads: number
  /** Uploads running at once, of one address. */
  uploadsPerClient: number
}

/** Refuses uploads over the numbers that may run at once, before their bodies. */
export function admission(limits: AdmissionLimits): UploadHandler {
  const running = new Map<string, number>()
  let total = 0
  const leave = ({ from }: Upload) => {
    const left = (running.get(from) ?? 1) - 1
    total--
    if (left > 0) running.set(from, left)
    else running.delete(from)
  }
  return {
    name: 'admission',
    begin({ from }) {
      const own = running.get(from) ?? 0
      if (total >= limits.uploads) {
        throw new UploadError(
          'too_many_uploads',
          `${plural(total, 'upload')} ${isOrAre(total)} running already`,
        )
      }
      if (own >= limits.uploadsPerClient) {
        throw new UploadError(
          'too_many_uploads_of_client',
          `${plural(own, 'upload')} of ${from} ${isOrAre(own)} running already`,
        )
      }
      running.set(from, own + 1)
      total++
    },
    published: leave,
    interrupt: leave,
  }
}
