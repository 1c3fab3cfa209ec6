import stringWidth from 'string-width'
import type { PushProgress } from '../client/push.ts'
import { formatDuration, formatSize } from '../units.ts'
import type { LiveLine } from './output.ts'
import { percent } from './percent.ts'

export interface BarState extends PushProgress {
  /** As `Output.shown` gives it. */
  name: string
  /** Bytes per second; undefined while it is too early to say. */
  rate: number | undefined
}

const NAME_MIN = 8
const BAR_MIN = 8
const BAR_MAX = 60
/** A rate below this, in bytes per second, is no rate to predict from. */
const RATE_MIN = 1
const ETA_WIDTH = 'eta 59m59s'.length

/** What a bar, a spinner and an ellipsis are drawn with. */
export interface Glyphs {
  full: string
  empty: string
  dot: string
  ellipsis: string
  /** One of ora's. */
  spinner: 'dots' | 'line'
}

const UNICODE: Glyphs = { full: '█', empty: '░', dot: '·', ellipsis: '…', spinner: 'dots' }
const ASCII: Glyphs = { full: '#', empty: '-', dot: '.', ellipsis: '...', spinner: 'line' }

export function glyphsOf(unicode: boolean): Glyphs {
  return unicode ? UNICODE : ASCII
}

/** One line, narrower than `columns`: name, bar, and as many of the numbers as fit, the least important dropped first. */
export function barLine(state: BarState, columns: number, glyphs: Glyphs): LiveLine {
  // The last column stays free: some terminals wrap as soon as it is written.
  const width = Math.max(1, columns - 1)
  const numbers = fitNumbers(state, width)
  const tail = numbers.join('  ')
  const room = width - stringWidth(tail) - 4
  const nameWidth = Math.max(NAME_MIN, Math.min(stringWidth(state.name), Math.floor(room / 2), 40))
  const barWidth = Math.min(BAR_MAX, room - nameWidth)
  if (barWidth < BAR_MIN) return ['', '', cutToWidth(tail, width, glyphs.ellipsis)]
  const name = padToWidth(cutToWidth(state.name, nameWidth, glyphs.ellipsis), nameWidth)
  const [before, filled, after] = drawBar(state, barWidth, glyphs)
  return [`${name}  ${before}`, filled, `${after}  ${tail}`]
}

function fitNumbers(state: BarState, width: number): string[] {
  const share = percent(state)
  const { received, size, rate, source } = state
  const of = size === undefined ? '' : ` / ${formatSize(size)}`
  // In order of appearance, each with its rank: 0 is dropped last. Each keeps its width, so that the
  // bar beside them does too.
  const numbers = [
    { rank: 0, text: share === undefined ? sizeColumn(received) : `${String(share).padStart(3)}%` },
    { rank: 3, text: share === undefined ? '' : `${sizeColumn(received)}${of}` },
    { rank: 2, text: rate === undefined ? ' '.repeat(10) : `${sizeColumn(rate)}/s` },
    { rank: 4, text: size === undefined ? '' : eta(state).padEnd(ETA_WIDTH) },
    { rank: 1, text: source === 'client' ? 'sent' : '' },
  ].filter(({ text }) => text !== '')
  const wide = () => stringWidth(numbers.map(({ text }) => text).join('  ')) + 4 + NAME_MIN + BAR_MIN > width
  while (numbers.length > 1 && wide()) {
    const last = Math.max(...numbers.map(({ rank }) => rank))
    numbers.splice(
      numbers.findIndex(({ rank }) => rank === last),
      1,
    )
  }
  return numbers.map(({ text }) => text)
}

function sizeColumn(bytes: number): string {
  return formatSize(bytes).padStart('9.99 MiB'.length)
}

function eta({ received, size = 0, rate }: BarState): string {
  if (rate === undefined) return ''
  if (rate < RATE_MIN) return received > 0 ? 'stalled' : ''
  const seconds = Math.max(1, Math.round((size - received) / rate))
  return seconds < 100 * 3600 ? `eta ${formatDuration(seconds * 1000).replace('.0', '')}` : ''
}

function drawBar(state: BarState, width: number, { full, empty, dot }: Glyphs): LiveLine {
  const { received, size } = state
  if (size === undefined) {
    // Nothing to be a part of: a mark that moves with every 256 KiB received.
    const place = Math.floor(received / (256 * 1024)) % Math.max(1, width - 2)
    return [dot.repeat(place), full.repeat(3), dot.repeat(Math.max(0, width - 3 - place))]
  }
  const filled = Math.floor((Math.min(99, percent(state) ?? 0) / 100) * width)
  return ['', full.repeat(filled), empty.repeat(width - filled)]
}

const graphemes = new Intl.Segmenter(undefined, { granularity: 'grapheme' })

/** Cut to a display width, with an ellipsis where something is missing. */
export function cutToWidth(text: string, width: number, ellipsis: string): string {
  if (stringWidth(text) <= width) return text
  const end = ellipsis.slice(0, Math.max(0, width))
  let cut = ''
  let used = end.length
  for (const { segment } of graphemes.segment(text)) {
    used += stringWidth(segment)
    if (used > width) break
    cut += segment
  }
  return cut + end
}

/** Broken at blanks into lines that fit, what follows the first set in; a word that is wider stays whole. */
export function wrapToWidth(text: string, width: number): string[] {
  const lines: string[] = []
  let line: string | undefined
  for (const word of text.split(' ')) {
    const longer: string = line === undefined ? word : `${line} ${word}`
    if (line !== undefined && stringWidth(longer) > width) {
      lines.push(line)
      line = `  ${word}`
    } else line = longer
  }
  return [...lines, line ?? '']
}

function padToWidth(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - stringWidth(text)))
}
