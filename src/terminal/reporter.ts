import type { PushProgress } from '../client/push.ts'
import type { Output } from './output.ts'

/** Shows one push while it runs. After `stop` nothing more is shown and the terminal is as it was. */
export interface Reporter {
  update(progress: PushProgress): void
  stop(): void
}

export interface ReporterOptions {
  out: Output
  /** The file's name, as it came. */
  name: string
  /** What is connected to, for people. */
  host: string
}

export const silentReporter: Reporter = { update() {}, stop() {} }
