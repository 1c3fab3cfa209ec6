// What is exported names types of node: whoever compiles against it needs them, too.
/// <reference types="node" preserve="true" />
export {
  type FileOptions,
  openSender,
  type PushOptions,
  type PushProgress,
  type PushResult,
  push,
  type Sender,
  type SenderOptions,
  StoredError,
} from './client/push.ts'
export { openFile, type Source, streamSource } from './client/source.ts'
export { type ErrorCode, UploadError } from './errors.ts'
export type { Limits } from './limits.ts'
export { createLogger, type LogFields, type LogFormat, type Logger, type LogLevel } from './log.ts'
export { type MemoryProgressOptions, MemoryProgressStore } from './progress/memory.ts'
export type { LiveUpload, Outcome, ProgressStore } from './progress/store.ts'
export type { Awaitable, FieldError, Problem, Progress, Receipt, StoredFile } from './protocol.ts'
export { createServer, type ServerOptions, type UploadServer } from './server/server.ts'
export { LocalStorage, type LocalStorageOptions } from './storage/local.ts'
export type { OnConflict, StagedFile, Storage, UploadFacts, UploadRecord } from './storage/storage.ts'
export { type DiskOptions, disk } from './upload/disk.ts'
export {
  compose,
  type FileInfo,
  type FileSink,
  type OpenFile,
  tap,
  type Upload,
  type UploadHandler,
} from './upload/handler.ts'
export { type MemoryOptions, memory } from './upload/memory.ts'
export { progress } from './upload/progress.ts'
