import { type Command, InvalidArgumentError, Option } from 'commander'
import { UploadError } from '../errors.ts'
import { unknownName } from '../names.ts'
import { DURATION_MAX, formatSize, parseDuration, parseSize } from '../units.ts'
import { textOf } from './argument-bytes.ts'

/** What a command is given of the process it runs in. No stream to write to: what is printed goes through `Output`. */
export type Host = Pick<NodeJS.Process, 'stdin' | 'env' | 'on' | 'off' | 'exit' | 'kill' | 'pid'>

/** Strict parsers: each takes the whole value or names it in the error. */
export function size(text: string): number {
  const bytes = parseSize(text)
  if (bytes === undefined)
    throw new InvalidArgumentError(`"${text}" is not a size such as 2621440, 2.5mb or 1gib.`)
  return bytes
}

export function sizeUpTo(max: number) {
  return (text: string): number => {
    const bytes = size(text)
    if (bytes > max) throw new InvalidArgumentError(`"${text}" is more than ${formatSize(max)}.`)
    return bytes
  }
}

export function duration(text: string): number {
  const ms = parseDuration(text)
  if (ms === undefined)
    throw new InvalidArgumentError(`"${text}" is not a duration such as 250ms, 30s or 5m.`)
  if (ms > DURATION_MAX)
    throw new InvalidArgumentError(`"${text}" is longer than 24.8 days, the most that can be waited.`)
  return ms
}

export function integer(min: number, max: number) {
  return (text: string): number => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN
    if (!(value >= min && value <= max)) {
      throw new InvalidArgumentError(`"${text}" is not a whole number from ${min} to ${max}.`)
    }
    return value
  }
}

const LINK = 'is made by Kubernetes for a service called uploadr: enableServiceLinks: false keeps it away'
/** Of another service that begins with uploadr, too: UPLOADR_WEB_PORT_8000_TCP_ADDR. */
const LINK_NAME = /_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)$/
const LINK_VALUE = /^(tcp|udp|sctp):\/\//

/** Its variable is that of a service link, too. */
export function port(text: string): number {
  if (LINK_VALUE.test(text)) throw new InvalidArgumentError(`"${text}" ${LINK}.`)
  return integer(0, 65535)(text)
}

/** Permissions in octal that let the owner read and write. */
export function fileMode(text: string): number {
  const mode = /^0?[0-7]{3}$/.test(text) ? Number.parseInt(text, 8) : 0
  if ((mode & 0o600) !== 0o600) {
    throw new InvalidArgumentError(`"${text}" is not a mode such as 0644 that lets the owner read and write.`)
  }
  return mode
}

export function text(value: string): string {
  if (value === '') throw new InvalidArgumentError('It is empty.')
  return value
}

/** Text of which something is to be seen. */
export function visible(value: string): string {
  if (text(value).trim() === '') throw new InvalidArgumentError('It is blank.')
  return value
}

/** What `check` throws `usage` for. */
export function checked(check: (value: string) => unknown) {
  return (value: string): string => {
    try {
      check(visible(value))
    } catch (error) {
      if (error instanceof UploadError) throw new InvalidArgumentError(error.message)
      throw error
    }
    return value
  }
}

/** A value that may be given several times, or once in the environment, separated by commas. */
export function list(value: string, previous: readonly string[] = []): string[] {
  return [...previous, ...value.split(',').map(text)]
}

const PREFIX = 'UPLOADR_'

/** An option that the environment can set too, as UPLOADR_ and its long name. */
export function option(
  flags: string,
  description: string,
  // biome-ignore lint/suspicious/noExplicitAny: what came before is of the parser's own type
  parse?: (value: string, previous: any) => unknown,
): Option {
  const made = new Option(flags, description)
  const name = made.long?.slice(2).replaceAll('-', '_').toUpperCase()
  if (parse) made.argParser((value, previous) => parse(textOf(value), previous))
  return made.env(`${PREFIX}${name}`)
}

const TRUE = new Set(['1', 'true', 'yes', 'on'])
const FALSE = new Set(['0', 'false', 'no', 'off'])

/** What an option's value came from: its variable or its flag. */
export function giver(command: Command, name: string): string {
  const { long, envVar } = command.options.find(each => each.attributeName() === name) ?? {}
  return String(command.getOptionValueSource(name) === 'env' ? envVar : long)
}

/** Reads what commander does not, or reads wrong, in the environment. */
export function readEnvironment(command: Command, env: NodeJS.ProcessEnv): void {
  refuseUnknown(command, env)
  readFlags(command, env)
}

/** A variable under a wrong name would be a limit that is none, and nothing would tell. */
function refuseUnknown(command: Command, env: NodeJS.ProcessEnv): void {
  const commands = command.parent?.commands ?? [command]
  const known = commands.flatMap(({ options }) => options.flatMap(({ envVar }) => envVar ?? []))
  for (const name of Object.keys(env)) {
    if (!name.startsWith(PREFIX) || known.includes(name)) continue
    if (LINK_NAME.test(name) || LINK_VALUE.test(env[name] ?? ''))
      throw new UploadError('usage', `environment: ${name} ${LINK}`)
    throw unknownName('environment', name, known, PREFIX)
  }
}

/** Commander takes a flag's variable for set whatever its value, `0` included: this reads the value. */
function readFlags(command: Command, env: NodeJS.ProcessEnv): void {
  for (const each of command.options) {
    const name = each.attributeName()
    if (each.required || each.optional || !each.envVar || command.getOptionValueSource(name) !== 'env')
      continue
    const value = (env[each.envVar] ?? '').toLowerCase()
    if (!TRUE.has(value) && !FALSE.has(value)) {
      command.error(`error: ${each.envVar} is "${env[each.envVar]}", neither 1 nor 0`)
    }
    command.setOptionValueWithSource(name, TRUE.has(value) !== each.negate, 'env')
  }
}
