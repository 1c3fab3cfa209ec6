#!/bin/sh
# The main job on one screen: a server comes up, a real file is pushed to it with its bar, and the
# stored file is compared with the one that was sent. Run by `npm run demo`.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || :; wait "$server" || :; fi; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Node's own program: a large file that is on every machine that can run this.
file=$(node -p process.execPath)

# Loopback is over before a bar can be seen, so a handler holds the server back to 25 MiB/s.
cat >"$work/pace.mjs" <<'HANDLER'
import { setTimeout as sleep } from 'node:timers/promises'

const BYTES_PER_MS = (25 * 1024 * 1024) / 1000

export default {
  name: 'pace',
  async open(file, next) {
    const sink = await next(file)
    const began = performance.now()
    let bytes = 0
    return {
      async write(chunk) {
        bytes += chunk.length
        const ahead = bytes / BYTES_PER_MS - (performance.now() - began)
        if (ahead > 20) await sleep(ahead)
        await sink.write(chunk)
      },
      close: () => sink.close(),
      abort: reason => sink.abort(reason),
    }
  },
}
HANDLER

say() { printf '\n$ %s\n' "$*"; }

mkfifo "$work/address"
say "uploadr serve --port 0 --dir uploads --handler pace.mjs"
node bin/uploadr.js serve --port 0 --dir "$work/uploads" --handler "$work/pace.mjs" \
  >"$work/address" 2>"$work/log" &
server=$!
if ! read -r url <"$work/address"; then
  cat "$work/log" >&2
  exit 1
fi
echo "$url"

say "uploadr push --url $url $file"
node bin/uploadr.js push --url "$url" "$file"

stored="$work/uploads/$(basename "$file")"
say "cmp $file uploads/$(basename "$file")"
cmp "$file" "$stored"
echo "equal: $(wc -c <"$stored" | tr -d ' ') bytes sent, stored and compared"

say "cat uploads/.uploadr/records/*.json"
cat "$work"/uploads/.uploadr/records/*.json
