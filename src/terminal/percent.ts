import type { PushProgress } from '../client/push.ts'

/** Percent, as much as may be claimed while the server has not said done: never 100. Undefined for an unknown size. */
export function percent({ received, size }: Pick<PushProgress, 'received' | 'size'>): number | undefined {
  return size === undefined ? undefined : Math.min(99, Math.floor((received / Math.max(1, size)) * 100))
}

/** The counts as those of the file: people know its size, not that of the form around it. */
export function ofFile(progress: PushProgress): PushProgress {
  const { overhead } = progress
  const size = progress.size === undefined ? undefined : progress.size - overhead
  const within = (count: number) => Math.min(size ?? count, Math.max(0, count - overhead))
  return { ...progress, received: within(progress.received), sent: within(progress.sent), size, overhead: 0 }
}
