/** The documents say what the program does: options, defaults, variables, error codes, exit codes, links. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'node:test'
import type { Command, Option } from 'commander'
import { createProgram } from '../src/cli.ts'
import { Output } from '../src/terminal/output.ts'
import { IN_CI, ROOT, run } from './support.ts'

interface Documented {
  /** As commander writes them: `--host <address>`. */
  flags: string
  variable: string
  default: string
}

const read = (path: string) => readFileSync(join(ROOT, path), 'utf8')
const README = read('README.md')
const program = createProgram(process, new Output(process))
const subcommands = program.commands

/** The same three facts of an option, as the program has them. */
function actual(option: Option): Documented {
  const { flags, envVar, description, defaultValue, defaultValueDescription, negate } = option
  const inWords = /\(default: (.*)\)$/.exec(description)?.[1]
  const value = defaultValueDescription ?? inWords ?? (negate ? 'off' : (defaultValue ?? 'none'))
  // Help and version have no variable, and so nothing that a default could replace.
  return { flags, variable: envVar ?? '', default: envVar ? String(value) : '' }
}

function optionsOf(command: Command): Documented[] {
  // Help's own list: what `--help` shows, `--help` included.
  return command.createHelp().visibleOptions(command).map(actual).sort(byFlags)
}

function byFlags(a: Documented, b: Documented): number {
  return a.flags < b.flags ? -1 : 1
}

/** The list items of a page that are options: `.It Fl -host Ar address`, and the line with the variable. */
function optionsOfPage(path: string): Documented[] {
  const items = read(path).matchAll(/^\.It (Fl .+)\n(?:\.Pq Ev (\S+) ; No default: (.+)\n)?/gm)
  return Array.from(items, ([, macros = '', variable = '', value = '']) => {
    const [head = '', placeholder] = macros.split(' Ar ')
    const names = head.replace(/^Fl /, '').split(' , ')
    const flags = names.map(name => `-${name}`).join(', ') + (placeholder ? ` <${placeholder}>` : '')
    return { flags, variable, default: value }
  }).sort(byFlags)
}

/** The cells of the table under a heading of the README, without their backticks. */
function table(heading: string): string[][] {
  const [, after] = README.split(`\n${heading}\n`, 2)
  assert.ok(after !== undefined, `the README has no heading "${heading}"`)
  const [section = ''] = after.split(/^#/m, 1)
  const rows = section.split('\n').filter(line => line.startsWith('|'))
  return rows.slice(2).map(row =>
    row
      .slice(1, -1)
      .split('|')
      .map(cell => cell.trim().replaceAll('`', '')),
  )
}

for (const command of subcommands) {
  const name = command.name()

  test(`man/uploadr-${name}.1 has the options of ${name}, and no others`, () => {
    assert.deepEqual(optionsOfPage(`man/uploadr-${name}.1`), optionsOf(command))
  })

  test(`the README has the options of ${name}, and no others`, () => {
    const rows = table(`### Options of ${name}`)
    const documented = rows.map(([flags = '', value = '', variable = '']) => {
      return { flags, variable, default: value }
    })
    assert.deepEqual(documented.sort(byFlags), optionsOf(command))
  })

  test(`both name every choice of ${name}'s options`, () => {
    const page = read(`man/uploadr-${name}.1`)
    const rows = table(`### Options of ${name}`)
    for (const { flags, long, argChoices = [] } of command.options) {
      const [, item = ''] = page.split(`.It Fl ${long?.slice(1)} `)
      const [text = ''] = item.split(/^\.(?:It|El)/m, 1)
      const row = rows.find(([first]) => first === flags)?.at(-1) ?? ''
      for (const choice of argChoices) {
        assert.match(text, new RegExp(`^\\.Cm ${choice}\\b`, 'm'), `${long} in the page`)
        assert.match(row, new RegExp(`\\b${choice}\\b`), `${long} in the README`)
      }
    }
  })
}

test('man/uploadr.1 has the options of the program, and every subcommand', () => {
  const page = read('man/uploadr.1')
  assert.deepEqual(optionsOfPage('man/uploadr.1'), optionsOf(program))
  const named = Array.from(page.matchAll(/^\.It Cm (\S+)$/gm), match => match[1])
  const visible = program.createHelp().visibleCommands(program)
  assert.deepEqual(named.sort(), visible.map(command => command.name()).sort())
})

/** The rows of the table in src/errors.ts, which is that module's own affair. */
const errors = Array.from(
  read('src/errors.ts').matchAll(/^ {2}(\w+): \{ status: (\d+), exit: (\d+), title: /gm),
  ([, code = '', status = '', exit = '']) => ({ code, status, exit }),
)

test('the README has every error code a server can send, with its status and exit code, and no others', () => {
  const sent = errors.filter(({ status }) => status !== '0')
  assert.ok(sent.length > 0)
  const documented = table('### Error codes').map(([code, status, exit]) => ({ code, status, exit }))
  const byCode = (a: { code?: string | undefined }, b: { code?: string | undefined }) =>
    String(a.code) < String(b.code) ? -1 : 1
  assert.deepEqual(documented.sort(byCode), sent.sort(byCode))
})

test('README and man pages have every exit code, and the README every code of the client under its own', () => {
  const exits = [...new Set(['0', ...errors.map(({ exit }) => exit)])].sort()
  const rows = table('### Exit codes')
  assert.deepEqual(rows.map(([exit]) => exit).sort(), exits)
  for (const page of ['man/uploadr.1', 'man/uploadr-push.1']) {
    const items = Array.from(read(page).matchAll(/^\.It (\d+)$/gm), match => match[1])
    assert.deepEqual(items.sort(), exits, page)
  }
  for (const { code, exit } of errors.filter(({ status }) => status === '0')) {
    const row = rows.find(([first]) => first === exit)
    assert.ok(row?.at(-1)?.split(', ').includes(code), `${code} stands beside exit code ${exit}`)
  }
})

test('the man pages are clean under mandoc -Tlint -W warning', async t => {
  const probe = await run('sh', ['-c', 'command -v mandoc'])
  if (probe.code !== 0 && !IN_CI) return t.skip('mandoc is not installed')
  for (const page of readdirSync(join(ROOT, 'man'))) {
    const { code, stdout, stderr } = await run('mandoc', ['-Tlint', '-W', 'warning', join(ROOT, 'man', page)])
    assert.equal(code, 0, stdout + stderr)
  }
})

test('every man page is installed', () => {
  const { man } = JSON.parse(read('package.json'))
  assert.deepEqual(
    [...man].sort(),
    readdirSync(join(ROOT, 'man'))
      .map(name => `man/${name}`)
      .sort(),
  )
})

const DOCUMENTS = [
  ...['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md'],
  ...['docs/architecture.md', 'docs/clients.md'],
]

for (const path of DOCUMENTS) {
  test(`what ${path} links to exists`, () => {
    for (const [, target = ''] of read(path).matchAll(/\]\(([^)#\s]+)[^)]*\)/g)) {
      if (/^[a-z]+:/.test(target)) continue
      assert.ok(existsSync(join(ROOT, path, '..', target)), `${path} links to ${target}`)
    }
  })
}

/** The titles of a test file, as patterns: what a template puts in may be anything. */
function titlesOf(path: string): RegExp[] {
  const titles = read(path).matchAll(/\btest\(\s*(['"`])((?:\\.|(?!\1).)+)\1/g)
  return Array.from(titles, ([, , title = '']) => {
    const literal = title.split(/\$\{[^}]*\}/).map(text => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
    return new RegExp(`^${literal.join('.+')}$`)
  })
}

for (const path of ['SECURITY.md', 'docs/clients.md']) {
  test(`every test that ${path} names is there`, () => {
    const named = Array.from(read(path).matchAll(/`(test\/[\w./-]+)` "([^"]+)"/g))
    assert.ok(named.length > 0)
    for (const [, file = '', title = ''] of named) {
      assert.ok(existsSync(join(ROOT, file)), `${path} names ${file}`)
      assert.ok(
        titlesOf(file).some(pattern => pattern.test(title)),
        `${file} has a test "${title}"`,
      )
    }
  })
}

test('every row of the threats in SECURITY.md names a test', () => {
  const rows = read('SECURITY.md')
    .split('\n')
    .filter(line => line.startsWith('| ') && !line.startsWith('| attack '))
  assert.ok(rows.length > 0)
  for (const row of rows) {
    const [, shown = ''] = /\| ([^|]*) \|$/.exec(row) ?? []
    assert.match(shown, /^`test\/[\w./-]+` "[^"]+"/, row)
  }
})
