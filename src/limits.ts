/** What a server takes at most, of one upload, of one client and of everybody. All are on by default. */
export interface Limits {
  /** Bytes of a request's whole body. */
  body: number
  /** Files of one form. */
  files: number
  /** Fields of one form. */
  fields: number
  /** Bytes of all fields of one form together, names and values. */
  fieldBytes: number
  /** Bytes of the head of one part, PART_HEAD_MAX at most. */
  partHead: number
  /** Bytes of a file's name as it is sent; what is stored is cut to what a directory takes. */
  nameBytes: number
  /** Milliseconds without a byte from the client, while it is its turn to send; 0 for any. */
  idle: number
  /** Bytes a second that a client has to send at least, on average over twice `idle`; 0 for any rate. */
  minRate: number
  /** Uploads running at once, of everybody and of one address. */
  uploads: number
  uploadsPerClient: number
  /** Connections open at once, of everybody and from one address. */
  connections: number
  connectionsPerClient: number
  /** Bytes that stay free on the disks; 0 for none. */
  minFree: number
  /** Bytes that the stored files and their records may have together; 0 for any number. */
  quota: number
}

const MIB = 1024 ** 2

/** What busboy can read of a part's head, in bytes. */
export const PART_HEAD_MAX = 16 * 1024

/** Those of a form are Django's. */
export const DEFAULT_LIMITS: Limits = {
  body: 16 * 1024 * MIB,
  files: 100,
  fields: 1000,
  fieldBytes: 2_621_440,
  partHead: PART_HEAD_MAX,
  nameBytes: 4096,
  idle: 60_000,
  minRate: 128,
  uploads: 1024,
  uploadsPerClient: 256,
  connections: 4096,
  connectionsPerClient: 1024,
  minFree: 256 * MIB,
  quota: 0,
}

/** Django's FILE_UPLOAD_MAX_MEMORY_SIZE: bytes of the whole request that is kept in memory, inclusive. */
export const MEMORY_MAX = 2_621_440
/** Bytes that all requests in memory may hold together. */
export const MEMORY_TOTAL = 64 * MIB
