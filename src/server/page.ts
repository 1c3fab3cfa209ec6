import { type FieldError, type Receipt, TITLE_MAX } from '../protocol.ts'
import { formatLimit, formatSizePlainly, plural } from '../units.ts'
import type { KindRules } from '../upload/kinds.ts'
import type { Assets } from './assets.ts'
import { CSRF_FIELD } from './csrf.ts'
import { html, type Markup } from './html.ts'
import type { Headers } from './problem.ts'

/**
 * Nothing inline, nothing from elsewhere, no frame around it. `same-origin` is the strictest referrer
 * policy under which a browser still names the origin of a form post: with `no-referrer` it sends `null`.
 */
export const PAGE_HEADERS: Headers = {
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
  'Referrer-Policy': 'same-origin',
  'X-Frame-Options': 'DENY',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
}

/** What the server will say to an upload, so that the page can say it before anything is sent. */
export interface PageRules {
  /** One sentence: where files go and who sees them. */
  welcome: string
  titleRequired: boolean
  allowEmpty: boolean
  /** The largest request and the longest name of a file, in bytes. */
  bodyMax: number
  nameMax: number
  kinds: KindRules
}

/** True of every server, whatever it does with the files: none shows them to whoever uploads. */
export const WELCOME =
  'Your files go to the people who run this server; nobody else can see or download them here.'

/** What differs from one showing of the page to the next. */
export interface PageState {
  /** Goes into the form, for the post to bring back. */
  token: string
  /** What was typed. */
  title?: string
  errors?: Record<string, FieldError[]>
  /** Why nothing was stored, where it belongs to no field: a clause. */
  failure?: string
  /** An upload that was just stored. */
  stored?: Receipt
}

/** What the page takes, in a line; `each` says whether that is of one file or of all that are sent together. */
function hintOf({ bodyMax, kinds }: PageRules, each: 'per file' | 'in all'): string {
  const said: string[] = []
  if (Number.isFinite(bodyMax)) said.push(`up to ${formatLimit(bodyMax)} ${each}`)
  const plainly = (names: readonly string[]) => names.map(name => PLAIN_TYPES[name] ?? name).join(', ')
  const only = acceptOf(kinds)
  const never = [...extensions(kinds.denyExtensions), ...kinds.denyTypes]
  if (only.length > 0) said.push(`only ${plainly(only)}`)
  if (never.length > 0) said.push(`no ${plainly(never)}`)
  const text = said.join('; ')
  return text.charAt(0).toUpperCase() + text.slice(1)
}

const PLAIN_TYPES: Record<string, string> = {
  'image/*': 'images',
  'video/*': 'videos',
  'audio/*': 'sound',
  'text/*': 'text',
  'application/pdf': 'PDF',
}

/** What a chooser offers. It takes what is of any of them, so both lists together would offer too much. */
function acceptOf({ allowTypes, allowExtensions }: KindRules): readonly string[] {
  return allowExtensions.length > 0 ? extensions(allowExtensions) : allowTypes
}

function extensions(names: readonly string[]): string[] {
  return names.map(name => `.${name.replace(/^\./, '')}`)
}

/**
 * What the page says, by the code of an error; a form's with their field. The words in answers are
 * Django's, for machines, and clauses, for terminals: they stand where there are none here.
 */
function wordsOf(rules: PageRules): Record<string, string> {
  return {
    'title.required': 'Enter a title.',
    'title.max_length': `Too long: a title has at most ${TITLE_MAX} characters.`,
    'file.required': 'Choose a file.',
    'file.empty': 'This file is empty.',
    body_too_large: `Too large: a file has to be smaller than ${formatLimit(rules.bodyMax)}.`,
    name_too_long: 'The name is too long. Give the file a shorter one and choose it again.',
    type_not_allowed: 'Files of this kind are not accepted here.',
    extension_not_allowed: 'Files of this kind are not accepted here.',
    forbidden: 'The server does not know this page any more. Reload it and choose the files again.',
    unauthorized: 'The server asks for its token again. Reload this page to enter it.',
    hint: hintOf(rules, 'per file'),
  }
}

/** The page with the form. */
export function renderForm(assets: Assets, rules: PageRules, state: PageState): string {
  const { title: titleErrors = [], ...others } = state.errors ?? {}
  // Files may come in any field; the form has one place for them.
  const fileErrors = Object.values(others).flat()
  const words = wordsOf(rules)
  const failed = state.failure !== undefined || state.errors !== undefined
  const title = state.title ?? state.stored?.title ?? ''
  const accept = acceptOf(rules.kinds)
  const body = html`
${state.stored && storedNotice(state.stored)}
${
  state.failure !== undefined &&
  html`<div class="notice bad" role="alert"><p>Nothing was stored: ${state.failure}.</p></div>`
}
<form class="card" id="upload" method="post" action="./" enctype="multipart/form-data"
  data-rules="${JSON.stringify({ ...rules, titleMax: TITLE_MAX, words })}">
  <input type="hidden" name="${CSRF_FIELD}" value="${state.token}">
  <div class="field">
    <div class="label">
      <label for="title">Title</label>
      <span class="aside" id="title-hint">${rules.titleRequired ? '' : 'optional, '}at most ${TITLE_MAX} characters</span>
    </div>
    <input type="text" id="title" name="title" value="${title}" autocomplete="off"
      aria-describedby="title-error title-hint"${rules.titleRequired && html` required`}${
        titleErrors.length > 0 && html` aria-invalid="true" autofocus`
      }>
    ${errorLine('title', titleErrors, words)}
  </div>
  <div class="field">
    <div class="label">
      <label for="file">Files</label>
    </div>
    <div class="drop${fileErrors.length > 0 && ' invalid'}" id="drop">
      <span class="invite" aria-hidden="true">
        <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"><path d="M12 15V4m-4 4 4-4 4 4M4 15v3a2 2 0 0 0 2 2h12a2 2 0 0 0 2-2v-3"/></svg>
        <b>Choose files</b> or drop them here
      </span>
      <input type="file" id="file" name="file" multiple required aria-describedby="file-error file-hint"${
        accept.length > 0 && html` accept="${accept.join(',')}"`
      }${fileErrors.length > 0 && html` aria-invalid="true"`}${
        fileErrors.length > 0 && titleErrors.length === 0 && html` autofocus`
      }>
      <span class="hint" id="file-hint">${hintOf(rules, 'in all')}</span>
      <button type="button" class="folder" id="choose-folder" hidden>Choose a folder</button>
      <input type="file" id="folder" webkitdirectory hidden>
    </div>
    ${errorLine('file', fileErrors, words)}
  </div>
  ${summary()}
  <ul class="rows" id="rows" aria-label="Chosen files"></ul>
  <button class="send" id="send">Upload</button>
  <p class="visually-hidden" id="status" role="status"></p>
</form>
<footer>The bars show what the server has received, counted by the server.</footer>
${rowTemplate()}`
  return layout(failed ? 'Error: uploadr' : 'uploadr', body, { assets, welcome: rules.welcome, script: true })
}

/** What went wrong, for a person who asked for something else than the form. `root` leads from there to the form. */
export function renderError(assets: Assets, root: string, title: string, detail: string): string {
  const body = html`
<div class="card">
  <h2>${title}</h2>
  <p>The server says: ${detail}.</p>
  <p><a href="${root}">To the upload form</a></p>
</div>`
  return layout(`${title}: uploadr`, body, { assets, root })
}

/**
 * For a person who has closed the question for the token. It stands alone: a style or an image would be
 * refused as well, and the browser would ask once more for each.
 */
export function renderTokenNeeded(root: string): string {
  const body = html`
<h2>A token is needed</h2>
<p>Reload this page. Your browser then asks for a user name and a password:
any user name will do, and the password is the token.</p>
<p>The token was printed where <code>uploadr serve</code> was started, unless it was chosen there with <code>--token</code>
or <code>UPLOADR_TOKEN</code>. If somebody else runs this server, ask them for it.</p>
<p><a href="${root}">Enter the token</a></p>`
  return layout('A token is needed: uploadr', body, {})
}

/** Every link is relative, `root` leading to the form, so that all works below a proxy's path as well. */
function layout(
  title: string,
  body: Markup,
  {
    assets,
    root = './',
    welcome,
    script,
  }: { assets?: Assets; root?: string; welcome?: string; script?: boolean },
): string {
  const link = (name: string) => `${root}${assets?.path(name).slice(1)}`
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
${
  assets &&
  html`<link rel="icon" href="${link('icon.svg')}" type="image/svg+xml">
<link rel="stylesheet" href="${link('page.css')}">`
}
${script && html`<script type="module" src="${link('page.js')}"></script>`}
</head>
<body>
<main>
<header>
  <div class="brand">
    ${assets && html`<img class="mark" src="${link('icon.svg')}" alt="">`}
    <h1>uploadr</h1>
  </div>
  ${welcome !== undefined && html`<p>${welcome}</p>`}
</header>
${body}
</main>
</body>
</html>
`.toString()
}

function storedNotice({ title, files }: Receipt): Markup {
  const names = files.map(
    file => html`<li>${file.name} <span class="size">${formatSizePlainly(file.size)}</span></li>`,
  )
  return html`<div class="notice" role="status">
  <p>Stored ${plural(files.length, 'file')}${title !== '' && html` as <b>${title}</b>`}:</p>
  <ul>${names}</ul>
</div>`
}

/** Always there, so that the script has a place to write to and the field something to be described by. */
function errorLine(
  field: 'title' | 'file',
  errors: readonly (FieldError & { file?: string })[],
  words: Record<string, string>,
): Markup {
  const text = errors
    .map(({ message, code, file }) => {
      const said = words[`${field}.${code}`] ?? message
      return file === undefined ? said : `${file}: ${said}`
    })
    .join(' ')
  return html`<p class="error" id="${field}-error"${text === '' && html` hidden`}>${text}</p>`
}

/** What is said and done of all files together; the script shows it where there are several. */
function summary(): Markup {
  return html`<div class="summary" id="summary" role="group" aria-label="All files" hidden>
    <span class="facts"></span>
    <button type="button" class="retry" hidden>Retry all</button>
    <button type="button" class="cancel" hidden>Cancel all</button>
    <button type="button" class="remove" hidden>Clear list</button>
    ${bar('All files')}
  </div>`
}

/** One file in the list; the script fills in copies of it. */
function rowTemplate(): Markup {
  return html`<template id="row">
<li class="row">
  <div class="about">
    <div class="name"><span class="folder"></span><span class="own"></span></div>
    <div class="facts"></div>
  </div>
  <span class="percent"></span>
  <svg class="check" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2.2" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="m5 12.5 4.5 4.5L19 7.5"/></svg>
  <button type="button" class="cancel" hidden>Cancel</button>
  <button type="button" class="retry" hidden>Retry</button>
  <button type="button" class="remove" hidden><svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" aria-hidden="true"><path d="m7 7 10 10M17 7 7 17"/></svg></button>
  ${bar('')}
</li>
</template>`
}

function bar(label: string): Markup {
  return html`<div class="bar" role="progressbar" aria-label="${label}" aria-valuemin="0" aria-valuemax="100" hidden><div class="fill"></div></div>`
}
