import { readFileSync } from 'node:fs'

/**
 * Whether this process is of its terminal's foreground group. Asked anew each time, as `bg` and `fg` change it
 * without a word. True without a terminal to be of, and where there is no /proc to tell.
 */
export function isForeground(): boolean {
  try {
    // pid (comm) state ppid pgrp session tty_nr tpgid …; comm may hold blanks and brackets: proc(5).
    const stat = readFileSync('/proc/self/stat', 'latin1')
    const [, , group, , , foreground] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return foreground === '-1' || foreground === group
  } catch {
    return true
  }
}
