/** How forms of many parts share the thread, by what happens in which order; no clock is looked at. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FormParser } from '../src/upload/form-parser.ts'
import { multipart } from './support.ts'

/** A form of so many fields, and how many of them, and of the chunks they come in, were read so far. */
function form(fields: number) {
  const body = multipart(Array.from({ length: fields }, (_, i) => ({ name: `f${i}`, body: 'x' })))
  const state = { read: 0, taken: 0, ended: false, isOver: false }
  const parser = new FormParser(
    'multipart/form-data; boundary=BOUNDARY',
    { partHead: 1000 },
    {
      get isOver() {
        return state.isOver
      },
      file: () => assert.fail('no file'),
      fileData: () => assert.fail('no file'),
      fileEnd: () => assert.fail('no file'),
      fieldData: () => {},
      field: () => {
        state.read++
      },
    },
  )
  const parse = async (chunk = body.length) => {
    for (let at = 0; at < body.length; at += chunk) {
      const wait = parser.write(body.subarray(at, at + chunk))
      state.taken++
      if (wait) await wait
    }
    parser.end()
    state.ended = true
  }
  return { state, parse }
}

const turn = () => new Promise(resolve => setImmediate(resolve))

test('a form of many parts in one chunk is read over many turns, a few parts in each', async () => {
  const { state, parse } = form(1000)
  const parsed = parse()
  let turns = 0
  for (let before = state.read; !state.ended; turns++) {
    await turn()
    assert.ok(state.read - before <= 64, `${state.read - before} parts in a turn`)
    before = state.read
  }
  await parsed
  assert.equal(state.read, 1000)
  assert.ok(turns > 10, `${turns} turns`)
})

test('a form in chunks of one byte is read over many turns, however little they hold', async () => {
  const { state, parse } = form(1000)
  const parsed = parse(1)
  let turns = 0
  for (let before = state.taken; !state.ended; turns++) {
    await turn()
    assert.ok(state.taken - before <= 1000, `${state.taken - before} chunks in a turn`)
    before = state.taken
  }
  await parsed
  assert.equal(state.read, 1000)
  assert.ok(turns > 50, `${turns} turns`)
})

test('what one of them spends, all have: a hundred forms take no more of a turn than one', async () => {
  const forms = Array.from({ length: 100 }, () => form(100))
  const parsed = Promise.all(forms.map(({ parse }) => parse()))
  const read = () => forms.reduce((total, { state }) => total + state.read, 0)
  // The first parts of each, which wait for nothing, are read already.
  assert.ok(read() < 5000, `${read()} parts at once`)
  for (let before = read(); before < 10_000; ) {
    await turn()
    const now = read()
    assert.ok(now - before <= 64, `${now - before} parts in a turn`)
    before = now
  }
  await parsed
})

test('they wait in line: a smaller form does not wait for a large one to be done', async () => {
  for (const [parts, before] of [
    [3, 100],
    [100, 1000],
  ] as const) {
    const large = form(10_000)
    const small = form(parts)
    const parsing = large.parse()
    await small.parse()
    assert.equal(large.state.ended, false)
    assert.ok(large.state.read < before, `${large.state.read} parts were before it`)
    await parsing
  }
})

test('a form that has failed while it waits is not read on', async () => {
  const { state, parse } = form(10_000)
  const parsed = parse()
  await turn()
  state.isOver = true
  const before = state.read
  // Its form is not at its end; that is what the error says.
  await assert.rejects(parsed, { code: 'truncated_body' })
  assert.equal(state.read, before)
})
