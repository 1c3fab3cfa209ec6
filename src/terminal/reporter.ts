import type { PushProgress } from '../client/push.ts'

/** A terminal, or what stands where one is expected. */
export interface TerminalStream extends NodeJS.WritableStream {
  isTTY?: boolean
  columns?: number
}

/** Shows one push while it runs. After `stop` nothing more is shown and the terminal is as it was. */
export interface Reporter {
  update(progress: PushProgress): void
  stop(): void
}

export interface ReporterOptions {
  stream: TerminalStream
  /** The file's name, as it came. */
  name: string
  /** What is connected to, for people. */
  host: string
  /** Whether colours may be used. */
  color: boolean
}

export const silentReporter: Reporter = { update() {}, stop() {} }
