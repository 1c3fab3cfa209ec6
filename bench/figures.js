const MIB = 1024 ** 2
const GIB = 1024 ** 3

export function median(values) {
  return quantile(values, 0.5)
}

/** Linear between the two nearest, as most statistics programs do it. */
export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (sorted.length - 1) * q
  const below = sorted[Math.floor(at)]
  return below + (sorted[Math.ceil(at)] - below) * (at % 1)
}

/** One contender's runs of one workload, as the figures that are compared. */
export function summarize(runs, peakBytes) {
  const sum = key => runs.reduce((total, run) => total + run[key], 0)
  const latencies = runs.flatMap(run => run.latencies)
  const rates = runs.map(run => run.bytes / MIB / run.seconds)
  return {
    mibPerSecond: median(rates),
    slowest: Math.min(...rates),
    fastest: Math.max(...rates),
    requestsPerSecond: median(runs.map(run => run.completed / run.seconds)),
    p50Ms: quantile(latencies, 0.5),
    p99Ms: quantile(latencies, 0.99),
    cpuPerGib: (sum('cpu') * GIB) / sum('bytes'),
    cpuMsPerRequest: (sum('cpu') * 1000) / sum('completed'),
    cores: sum('cpu') / sum('seconds'),
    loadCores: sum('loadCpu') / sum('seconds'),
    peakMib: peakBytes / MIB,
    polls: sum('polls'),
    pollsWhileUploading: sum('uploading'),
    slowestPollMs: Math.max(...runs.map(run => run.slowestPollMs)),
    runs: runs.map(({ latencies, ...run }) => run),
  }
}

/** A number in as few characters as still tell it: three significant digits or more. */
export function format(value) {
  if (value === undefined || !Number.isFinite(value)) return ''
  if (Math.abs(value) >= 100) return String(Math.round(value))
  return value.toFixed(Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 0.1 ? 2 : 3)
}

/** A markdown table, its columns padded; the first is text, the others are numbers. */
export function table(head, rows) {
  const cells = [head, ...rows].map(row =>
    row.map(cell => (typeof cell === 'number' ? format(cell) : (cell ?? ''))),
  )
  const widths = head.map((_, i) => Math.max(3, ...cells.map(row => row[i].length)))
  const line = row =>
    `| ${row.map((cell, i) => (i ? cell.padStart(widths[i]) : cell.padEnd(widths[i]))).join(' | ')} |`
  const rule = widths.map((width, i) => (i ? `${'-'.repeat(width - 1)}:` : '-'.repeat(width)))
  return [line(cells[0]), `| ${rule.join(' | ')} |`, ...cells.slice(1).map(line)].join('\n')
}
