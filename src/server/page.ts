import { type FieldError, type Receipt, TITLE_MAX } from '../protocol.ts'
import { formatSize, plural } from '../units.ts'
import type { Headers } from './answer.ts'
import type { AssetName, Assets } from './assets.ts'
import { CSRF_FIELD } from './csrf.ts'
import { html, type Markup } from './html.ts'

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

export interface PageRules {
  titleRequired: boolean
  /** The largest request, in bytes. */
  bodyMax: number
}

/** What differs from one showing of the page to the next. */
export interface PageState {
  /** Goes into the form, for the post to bring back. */
  token: string
  /** What was typed. */
  title?: string
  errors?: Record<string, FieldError[]>
  /** A failure that belongs to no field. */
  failure?: string
  /** An upload that was just stored. */
  stored?: Receipt
}

/** The page with the form. */
export function renderForm(assets: Assets, rules: PageRules, state: PageState): string {
  const { title: titleErrors = [], ...others } = state.errors ?? {}
  // Files may come in any field; the form has one place for them.
  const fileErrors = Object.values(others).flat()
  const failed = state.failure !== undefined || state.errors !== undefined
  const body = html`
${state.stored && storedNotice(state.stored)}
${state.failure !== undefined && html`<div class="notice bad" role="alert"><p>${state.failure}</p></div>`}
<form class="card" id="upload" method="post" action="./" enctype="multipart/form-data">
  <input type="hidden" name="${CSRF_FIELD}" value="${state.token}">
  <div class="field">
    <div class="label">
      <label for="title">Title</label>
      <span class="aside" id="title-hint">${rules.titleRequired ? '' : 'optional, '}at most ${TITLE_MAX} characters</span>
    </div>
    <input type="text" id="title" name="title" value="${state.title ?? ''}" autocomplete="off"
      data-max="${TITLE_MAX}" aria-describedby="title-error title-hint"${rules.titleRequired && html` required`}${
        titleErrors.length > 0 && html` aria-invalid="true" autofocus`
      }>
    ${errorLine('title-error', titleErrors)}
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
        fileErrors.length > 0 && html` aria-invalid="true"`
      }${fileErrors.length > 0 && titleErrors.length === 0 && html` autofocus`}>
      <span class="hint" id="file-hint">Up to ${formatSize(rules.bodyMax).replace(/\.0+ /, ' ')} at a time</span>
    </div>
    ${errorLine('file-error', fileErrors)}
  </div>
  <ul class="rows" id="rows" aria-label="Chosen files"></ul>
  <button class="send" id="send">Upload</button>
  <p class="visually-hidden" id="status" role="status"></p>
</form>
<footer>The bars show what the server has received, counted by the server.</footer>
${rowTemplate()}`
  return layout(assets, failed ? 'Error: uploadr' : 'uploadr', body, true)
}

/** What went wrong, for a person who asked for something else than the form. */
export function renderError(assets: Assets, title: string, detail: string): string {
  const body = html`
<div class="card">
  <h2>${title}</h2>
  <p>${detail}</p>
  <p><a href="/">To the upload form</a></p>
</div>`
  return layout(assets, `${title}: uploadr`, body, false)
}

function layout(assets: Assets, title: string, body: Markup, script: boolean): string {
  // The form's are relative, so that it also works below a prefix; an error may be shown at any depth.
  const link = (name: AssetName) => (script ? assets.path(name).slice(1) : assets.path(name))
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
<link rel="icon" href="${link('icon.svg')}" type="image/svg+xml">
<link rel="stylesheet" href="${link('page.css')}">
${script && html`<script type="module" src="${link('page.js')}"></script>`}
</head>
<body>
<main>
<header>
  <img class="mark" src="${link('icon.svg')}" alt="">
  <div>
    <h1>uploadr</h1>
    <p>Send files and watch the server receive them.</p>
  </div>
</header>
${body}
</main>
</body>
</html>
`.toString()
}

function storedNotice({ title, files }: Receipt): Markup {
  const names = files.map(
    file => html`<li>${file.name} <span class="size">${formatSize(file.size)}</span></li>`,
  )
  return html`<div class="notice" role="status">
  <p>Stored ${plural(files.length, 'file')}${title !== '' && html` as <b>${title}</b>`}:</p>
  <ul>${names}</ul>
</div>`
}

/** Always there, so that the script has a place to write to and the field something to be described by. */
function errorLine(id: string, errors: readonly (FieldError & { file?: string })[]): Markup {
  const text = errors
    .map(({ message, file }) => (file === undefined ? message : `${file}: ${message}`))
    .join(' ')
  return html`<p class="error" id="${id}"${text === '' && html` hidden`}>${text}</p>`
}

/** One file in the list; the script fills in copies of it. */
function rowTemplate(): Markup {
  return html`<template id="row">
<li class="row">
  <div class="line">
    <span class="name"></span>
    <span class="percent"></span>
  </div>
  <div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" hidden><div class="fill"></div></div>
  <div class="line">
    <span class="facts"></span>
    <button type="button" class="cancel" hidden>Cancel</button>
    <button type="button" class="retry" hidden>Retry</button>
    <button type="button" class="remove" hidden><svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" aria-hidden="true"><path d="m7 7 10 10M17 7 7 17"/></svg></button>
  </div>
</li>
</template>`
}
