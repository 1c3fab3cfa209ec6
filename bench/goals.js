import { references } from './compare.js'

const big = ['big1g', 'big256']
const small = ['small64k', 'small1k', 'many64k', 'many1k']

/** What the figures are meant to show, each goal with the figure that a report has for it. */
export function goals(report) {
  const found = []
  const goal = (text, value, bound, atLeast = true) => {
    if (value === undefined || Number.isNaN(value)) return
    found.push({ text, value, bound, atLeast, met: atLeast ? value >= bound : value <= bound })
  }
  const workloads = new Map(report.comparisons.map(each => [each.name, each.results]))
  const of = (workload, name) => workloads.get(workload)?.find(each => each.name === name)
  const over = (a, b, key = 'mibPerSecond') => (a && b ? a[key] / b[key] : undefined)
  const refs = workload => references(workloads.get(workload) ?? [])

  for (const workload of big) {
    const { nginx, npm } = refs(workload)
    const bare = of(workload, 'uploadr bare')
    const defaults = of(workload, 'uploadr defaults')
    goal(`${workload}, bare / nginx PUT`, over(bare, nginx), 1.4)
    goal(`${workload}, bare / ${npm?.name}`, over(bare, npm), 2)
    goal(`${workload}, bare / django`, over(bare, of(workload, 'django')), 4)
    goal(`${workload}, bare, CPU / nginx PUT`, over(bare, nginx, 'cpuPerGib'), 1, false)
    goal(`${workload}, defaults / nginx PUT`, over(defaults, nginx), 1)
    goal(`${workload}, defaults / ${npm?.name}`, over(defaults, npm), 1.5)
  }
  for (const workload of small) {
    const { nginx, durable } = refs(workload)
    goal(`${workload}, durable / ${durable?.name}`, over(of(workload, 'uploadr durable'), durable), 2)
    goal(`${workload}, defaults / ${durable?.name}`, over(of(workload, 'uploadr defaults'), durable), 2)
    goal(`${workload}, bare / nginx PUT`, over(of(workload, 'uploadr bare'), nginx), 0.8)
  }
  for (const mode of ['uploadr bare', 'uploadr defaults']) {
    const rush = of('rush20m', mode)
    goal(`rush20m, ${mode} / nginx PUT`, over(rush, refs('rush20m').nginx), 1)
    goal(`rush20m, ${mode}, peak MiB`, rush?.peakMib, 300, false)
    for (const name of ['adv-boundary', 'adv-dashes', 'adv-returns'])
      goal(`${name} / big256, ${mode}`, over(of(name, mode), of('big256', mode)), 0.5)
  }
  for (const { name, ratio } of report.pairs)
    goal(`${name}, with / without`, ratio, name === 'polling' ? 0.98 : 0.97)
  for (const { name, results } of report.clients) {
    const [ours, curl] = results
    if (name === 'push1g' || name === 'push256') goal(`${name}, push / curl -F, speed`, curl.ms / ours.ms, 1)
    if (name === 'startup') goal('uploadr --version, ms', ours.ms, 100, false)
  }
  return found
}
