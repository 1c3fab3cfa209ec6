import { isatty } from 'node:tty'
import type { Host } from './options.ts'

export type EndSignal = 'SIGINT' | 'SIGTERM' | 'SIGHUP'

/**
 * Calls `end` for every signal that asks for an end, until the function that it returns is called.
 *
 * SIGHUP tells that the terminal is gone; without one there is nothing to lose, and work goes on. That is what
 * nohup(1) asks for by ignoring the signal, but node sets an ignored SIGHUP back to its default before a line of
 * ours runs (ResetSignalHandlers in src/node.cc). What nohup leaves to be seen is a process none of whose
 * standard streams is a terminal.
 */
export function onEndSignals(host: Host, end: (signal: EndSignal) => void): () => void {
  const hasTerminal = [0, 1, 2].some(isatty)
  const hungUp = (signal: EndSignal) => {
    if (hasTerminal) end(signal)
  }
  host.on('SIGINT', end)
  host.on('SIGTERM', end)
  host.on('SIGHUP', hungUp)
  return () => {
    host.off('SIGINT', end)
    host.off('SIGTERM', end)
    host.off('SIGHUP', hungUp)
  }
}

/** Runs `before` whenever the terminal asks the process to stop (Ctrl-Z), and then stops; until the function that it returns is called. */
export function onStop(host: Host, before: () => void): () => void {
  const stop = () => {
    before()
    // By the signal's own default, so that a shell sees a job stopped by the terminal and orphans are left alone.
    host.off('SIGTSTP', stop)
    host.kill(host.pid, 'SIGTSTP')
    host.on('SIGTSTP', stop)
  }
  host.on('SIGTSTP', stop)
  return () => host.off('SIGTSTP', stop)
}
