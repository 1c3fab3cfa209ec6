const KIB = 1024
const MIB = 1024 * KIB
const GIB = 1024 * MIB

/**
 * What is sent in one run. Single files go to the disk, many to tmpfs, which shows what the server
 * costs and not the journal of a file system.
 * @typedef {object} Workload
 * @property {string} name
 * @property {string} title
 * @property {number} size  of one file
 * @property {string} [kind]  of payload, random by default
 * @property {'full' | 'curl'} [boundary]  full by default
 * @property {number} connections
 * @property {number} requests  in a run, at most
 * @property {number} [seconds]  after which a run begins no more requests
 * @property {'tmpfs' | 'disk'} where
 * @property {number} runs  in each of the two passes
 * @property {number} warmUp  requests before the first run, at most
 * @property {boolean} [durable]  compare durability alone as well
 */

const single = { connections: 1, requests: 1, where: 'disk', runs: 4, warmUp: 3 }
const many = { connections: 16, where: 'tmpfs', runs: 2, seconds: 1.2 }
const small = { ...many, durable: true, requests: 20_000, warmUp: 20_000 }

/** @type {readonly Workload[]} */
export const WORKLOADS = [
  { ...single, name: 'big1g', title: 'one file of 1 GiB', size: GIB, runs: 3, warmUp: 1 },
  { ...single, name: 'big256', title: 'one file of 256 MiB', size: 256 * MIB },
  {
    ...single,
    name: 'curl256',
    title: "one file of 256 MiB, with a boundary like curl's",
    size: 256 * MIB,
    boundary: 'curl',
  },
  {
    ...many,
    name: 'mid20m',
    title: '16 connections, files of 20 MiB',
    size: 20 * MIB,
    requests: 64,
    warmUp: 16,
  },
  {
    ...many,
    name: 'mid2m',
    title: '16 connections, files of 2 MiB',
    size: 2 * MIB,
    requests: 640,
    warmUp: 64,
  },
  { ...small, name: 'small64k', title: '16 connections, files of 64 KiB', size: 64 * KIB },
  { ...small, name: 'small1k', title: '16 connections, files of 1 KiB', size: KIB },
  { ...small, name: 'many64k', title: '64 connections, files of 64 KiB', size: 64 * KIB, connections: 64 },
  { ...small, name: 'many1k', title: '64 connections, files of 1 KiB', size: KIB, connections: 64 },
  {
    ...single,
    name: 'rush20m',
    title: '200 files of 20 MiB at once',
    size: 20 * MIB,
    connections: 200,
    requests: 200,
    runs: 1,
    warmUp: 20,
  },
  {
    ...single,
    name: 'adv-boundary',
    title: 'one file of 256 MiB, all near-boundaries',
    size: 256 * MIB,
    kind: 'near-boundary',
    runs: 2,
  },
  {
    ...single,
    name: 'adv-dashes',
    title: 'one file of 256 MiB, all CR LF - -',
    size: 256 * MIB,
    kind: 'dashes',
    runs: 2,
  },
  {
    ...single,
    name: 'adv-returns',
    title: 'one file of 256 MiB, all CR',
    size: 256 * MIB,
    kind: 'returns',
    runs: 2,
  },
]
