import type { PushProgress } from '../client/push.ts'

/** Percent, as much as may be claimed while the server has not said done: never 100. Undefined for an unknown size. */
export function percent({ received, size }: Pick<PushProgress, 'received' | 'size'>): number | undefined {
  return size === undefined ? undefined : Math.min(99, Math.floor((received / size) * 100))
}
