import assert from 'node:assert/strict'
import test from 'node:test'
import { UploadError } from '../src/errors.ts'
import { checkForm } from '../src/upload/form.ts'
import { multipart, post, published, startServer, TITLE, temporaryFiles } from './support.ts'

const REQUIRED = { message: 'This field is required.', code: 'required' }
const EMPTY = { message: 'The submitted file is empty.', code: 'empty' }
const FILE = { field: 'file', name: 'a.txt', size: 1 }

/** What the form says: the title it takes, or the errors of its fields. */
function check(title: string | undefined, files = [FILE], titleRequired?: boolean) {
  const fields = new Map(title === undefined ? [] : [['title', [title]]])
  try {
    return checkForm(fields, files, titleRequired === undefined ? {} : { titleRequired })
  } catch (error) {
    assert.ok(error instanceof UploadError)
    assert.equal(error.code, 'invalid_form')
    assert.equal(error.status, 422)
    return error.errors
  }
}

function tooLong(length: number) {
  return { message: `Ensure this value has at most 50 characters (it has ${length}).`, code: 'max_length' }
}

const NUL = { message: 'Null characters are not allowed.', code: 'null_characters_not_allowed' }

test('a title is stripped before it is judged', () => {
  assert.equal(check('  a title\t\n'), 'a title')
  assert.equal(check(`  ${'x'.repeat(50)}  `), 'x'.repeat(50))
})

test('a title is required, and blank is missing', () => {
  for (const title of [undefined, '', '   ', '\u3000\t'])
    assert.deepEqual(check(title), { title: [REQUIRED] })
})

test('a title has at most 50 code points', () => {
  assert.equal(check('😀'.repeat(50)), '😀'.repeat(50))
  assert.deepEqual(check('😀'.repeat(51)), { title: [tooLong(51)] })
  assert.deepEqual(check('x'.repeat(51)), { title: [tooLong(51)] })
})

test('a title has no NUL, and everything wrong with it is said', () => {
  assert.deepEqual(check('a\0b'), { title: [NUL] })
  assert.deepEqual(check(`${'x'.repeat(50)}\0b`), { title: [tooLong(52), NUL] })
})

test('the last of several titles counts', () => {
  assert.equal(checkForm(new Map([['title', ['first', 'last']]]), [FILE]), 'last')
})

test('an optional title may be missing, and is still checked', () => {
  assert.equal(check(undefined, [FILE], false), '')
  assert.equal(check('  ', [FILE], false), '')
  assert.deepEqual(check('x'.repeat(51), [FILE], false), { title: [tooLong(51)] })
})

test('a file is required, and none may be empty', () => {
  assert.deepEqual(check('t', []), { file: [REQUIRED] })
  assert.deepEqual(check('t', [{ ...FILE, size: 0 }]), { file: [EMPTY] })
})

test('each of several files is judged, and named', () => {
  const files = [FILE, { ...FILE, name: 'b.txt', size: 0 }, { ...FILE, name: 'c.txt', size: 0 }]
  assert.deepEqual(check('t', files), {
    file: [
      { ...EMPTY, file: 'b.txt' },
      { ...EMPTY, file: 'c.txt' },
    ],
  })
})

test('the errors of both fields come at once', () => {
  assert.deepEqual(check('', []), { title: [REQUIRED], file: [REQUIRED] })
})

test('a field called __proto__ is a field', () => {
  assert.deepEqual(Object.entries(check('t', [{ ...FILE, field: '__proto__', size: 0 }]) ?? {}), [
    ['__proto__', [EMPTY]],
  ])
})

test('over HTTP: a problem with the errors of the fields, and nothing stored', async t => {
  const server = await startServer(t)
  const cases = [
    { parts: [], errors: { title: [REQUIRED], file: [REQUIRED] } },
    { parts: [TITLE, { name: 'file', body: 'only text' }], errors: { file: [REQUIRED] } },
    { parts: [TITLE, { name: 'file', filename: '..', body: '' }], errors: { file: [REQUIRED] } },
    { parts: [TITLE, { name: 'file', filename: 'a.txt', body: '' }], errors: { file: [EMPTY] } },
    { parts: [{ name: 'file', filename: 'a.txt', body: 'x' }], errors: { title: [REQUIRED] } },
  ]
  for (const { parts, errors } of cases) {
    const answer = await post(server.url, multipart(parts))
    assert.equal(answer.status, 422)
    assert.equal(answer.headers.get('content-type'), 'application/problem+json')
    assert.equal(answer.json.code, 'invalid_form')
    assert.deepEqual(answer.json.errors, errors)
  }
  assert.deepEqual(await published(server.dir), [])
  assert.deepEqual(await temporaryFiles(server), [])
})

test('over HTTP: an upload without a title is stored where the title is optional', async t => {
  const { url, dir } = await startServer(t, { titleRequired: false })
  const answer = await post(url, multipart([{ name: 'file', filename: 'a.txt', body: 'x' }]))
  assert.equal(answer.status, 201)
  assert.equal(answer.json.title, '')
  assert.deepEqual(await published(dir), ['a.txt'])
})
