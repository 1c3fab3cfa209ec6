/** What a file is called: how clients send names, and what of them is stored. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cleanFileName } from '../src/upload/filename.ts'
import { multipart, type Part, post, published, startServer, TITLE } from './support.ts'

/** A file whose disposition has these parameters beside its name. */
const file = (parameters: string): Part => ({
  headers: `Content-Disposition: form-data; name="file"; ${parameters}\r\nContent-Type: application/octet-stream`,
  body: 'x',
})

test('names, as clients send them', async t => {
  const at = await startServer(t)
  const base64 = (text: string) => Buffer.from(text).toString('base64')
  const rows: [string, string, string][] = [
    ['a blank of CJK', 'filename="a\u3000b.txt"', 'a\u3000b.txt'],
    ['a blank that does not break', 'filename="a\u00a0b.txt"', 'a\u00a0b.txt'],
    ['a screenshot of macOS', 'filename="9.41\u202fAM.png"', '9.41\u202fAM.png'],
    ['blanks around a name', 'filename="\u3000\u00a0\u2800a.txt\u202f\u2800"', 'a.txt'],
    ['emoji that are joined', 'filename="👩\u200d🚀.png"', '👩\u200d🚀.png'],
    ['a heart that is red', 'filename="❤\ufe0f.png"', '❤\ufe0f.png'],
    ['a keycap', 'filename="1\ufe0f\u20e3.png"', '1\ufe0f\u20e3.png'],
    ['Persian', 'filename="می\u200cخواهم.txt"', 'می\u200cخواهم.txt'],
    ['Hindi', 'filename="क्\u200dष.txt"', 'क्\u200dष.txt'],
    ['a variant of a letter', 'filename="葛\u{e0100}城.txt"', '葛\u{e0100}城.txt'],
    ['bidi controls', 'filename="a\u202etxt.\u2066exe\u2069"', 'atxt.exe'],
    ['controls, C0 and C1', `filename*=utf-8''a%1B%07%C2%9Bb.txt`, 'ab.txt'],
    ['line and paragraph separators', 'filename="a\u2028b\u2029c.txt"', 'abc.txt'],
    ['fillers', 'filename="a\u3164b\u115fc\uffa0.txt"', 'abc.txt'],
    ['.NET', `filename="=?utf-8?B?${base64('Übung>>>???.txt')}?="`, 'Übung>>>???.txt'],
    ['.NET, a name with a path', `filename="=?utf-8?B?${base64('../../Ü.txt')}?="`, 'Ü.txt'],
    ['an encoded word in Latin-1', 'filename="=?iso-8859-1?Q?=DCbung_1.txt?="', 'Übung 1.txt'],
    ['two encoded words', `filename="=?utf-8?B?${base64('Üb')}?= =?UTF-8?q?ung.txt?="`, 'Übung.txt'],
    ['an encoded word with a language', 'filename="=?utf-8*de?Q?=C3=9C.txt?="', 'Ü.txt'],
    ['an encoded word nobody knows', 'filename="=?nope?B?a/b+c==?="', '=?nope?B?a_b+c==?='],
    [
      'aiohttp, needle, older undici: a browser means it so',
      'filename="%C3%9Cbung%201.txt"',
      '%C3%9Cbung%201.txt',
    ],
    ['a browser’s quote and line ends', 'filename="%22a%22%0D%0A%0a.txt"', '"a".txt'],
    ['and its percent sign', 'filename="100%25.txt"', '100%25.txt'],
    ['%22 in filename* is a quote once', `filename*=utf-8''100%2522.txt`, '100%22.txt'],
    ['filename beside a filename* in no charset', `filename="a.txt"; filename*=nope''b.txt`, 'a.txt'],
    ['beside one that is no UTF-8', `filename="a.txt"; filename*=utf-8''%FF.txt`, 'a.txt'],
    ['beside one with a broken escape', `filename*=utf-8''%zz.txt; filename="a.txt"`, 'a.txt'],
    ['beside one without a charset', `filename="a.txt"; filename*=b.txt`, 'a.txt'],
    ['filename* in another charset', `filename*=windows-1251''%CF.txt`, 'П.txt'],
    ['filename* in quotes', `filename*="utf-8''%C3%9C.txt"`, 'Ü.txt'],
    ['filename* rather than continuations', `filename*0="a"; filename*=utf-8''b.txt`, 'b.txt'],
    ['continuations rather than filename', `filename="a"; filename*0="b"; filename*1=".txt"`, 'b.txt'],
    ['filename beside broken continuations', `filename="a.txt"; filename*0*=nope''b`, 'a.txt'],
    [
      'a backslash that the plain name has not',
      `filename="back_slash.txt"; filename*=UTF-8''back%5Cslash.txt`,
      'back\\slash.txt',
    ],
    ['one at the end', `filename="trail_"; filename*=UTF-8''trail%5C`, 'trail\\'],
    ['and a folder before it', `filename="a_b"; filename*=UTF-8''..%2F..%2Fa%5Cb`, 'a\\b'],
    ['a path in filename* alone', `filename*=UTF-8''C%3A%5Cdir%5Ca.txt`, 'a.txt'],
    ['a path in both', `filename="C:\\dir\\a.txt"; filename*=UTF-8''C%3A%5Cdir%5Ca.txt`, 'a.txt'],
    [
      'a path in both, as .NET sends it',
      `filename="=?utf-8?B?${base64('C:\\dir\\Ü.txt')}?="; filename*=utf-8''C%3A%5Cdir%5C%C3%9C.txt`,
      'Ü.txt',
    ],
    [
      'joined at the cut',
      `filename="${'é'.repeat(121)}\u{1f469}\u200d\u{1f680}.txt"`,
      `${'é'.repeat(121)}\u{1f469}.txt`,
    ],
    ['a backslash at the end, as browsers send it', 'filename="a.txt\\"; x=y', 'file.bin'],
  ]
  for (const [row, parameters, name] of rows) {
    await t.test(row, async () => {
      const answer = await post(at.url, multipart([TITLE, file(parameters)]))
      assert.equal(answer.status, 201, answer.text)
      assert.equal(answer.json.files[0].sentAs, name)
    })
  }
})

test('a filename* that cannot be read, alone, refuses the form', async t => {
  const at = await startServer(t)
  for (const parameter of [`filename*=nope''a.txt`, `filename*=utf-8''%FF`, `filename*0*=utf-8''%FF`]) {
    const answer = await post(at.url, multipart([TITLE, file(parameter)]))
    assert.equal(answer.json.code, 'malformed_body', answer.text)
    assert.match(answer.json.detail, /^part 2 has a filename\* that cannot be read, and no filename: /)
  }
  assert.deepEqual(await published(at.dir), [])
})

test('names that differ are not stored over each other', async t => {
  const at = await startServer(t, { onConflict: 'replace' })
  const names = ['a\u3000b.txt', 'a\u00a0b.txt', 'a b.txt', 'ab.txt', 'می\u200cخ.txt', 'میخ.txt']
  for (const name of names) await post(at.url, multipart([TITLE, file(`filename="${name}"`)]))
  assert.deepEqual(await published(at.dir), names.sort())
})

test('nothing that cannot be seen hides an extension, or is a name', async t => {
  const at = await startServer(t, { kinds: { denyExtensions: ['php'] } })
  const invisible = [
    '\u3164',
    '\u115f',
    '\uffa0',
    '\u2800',
    '\u200d',
    '\u200c',
    '\ufe0f',
    '\u00ad',
    '\u180e',
    '\u{e0100}',
    '\u3000',
  ]
  for (const each of invisible) {
    for (const name of [`shell.php${each}`, `shell.php${each}.`, `${each}.php`, `shell.php${each}${each}`]) {
      const answer = await post(at.url, multipart([TITLE, file(`filename="${name}"`)]))
      assert.equal(answer.json.code, 'extension_not_allowed', `${escape(name)} ${answer.text}`)
    }
    if (each !== '\u3000' && each !== '\u2800') assert.equal(cleanFileName(`shell.p${each}hp`), 'shell.php')
    for (const name of [each, `${each} ${each}`, `.${each}.`.slice(0, -1)]) {
      assert.equal(cleanFileName(name), undefined, escape(name))
    }
    const answer = await post(at.url, multipart([TITLE, file(`filename="${each}"`)]))
    assert.equal(answer.json.files[0].sentAs, 'file.bin')
  }
  // Joiners that join nothing, however they are piled up.
  for (const name of [
    '\u3164\u200dé',
    'é\u200d\u200dé',
    'é\u200d\u2060é',
    '\u2800\u200dé',
    'é\u200d',
    'é\u200d.x',
  ])
    assert.doesNotMatch(String(cleanFileName(name)), /\u200d/, escape(name))
  assert.deepEqual(
    new Set((await published(at.dir)).map(name => name.replace(/_\w{7}/, ''))),
    new Set(['file.bin']),
  )
})

test('a name is cleaned in time that grows with its length', () => {
  const blanks = '\u3000'.repeat(200_000)
  // Tried from each of them to the end, they would take hours.
  assert.equal(cleanFileName(`${blanks}a${blanks}b${blanks}`), 'a')
})
