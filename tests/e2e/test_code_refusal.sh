#!/usr/bin/env bash
# Where user namespaces are blocked, code isn't run in a weaker way: answers are unavailable, never zero, and the
# reason names cause and cure.
set -euo pipefail
binary=$1

fail() {
    echo "FAIL: $*" >&2
    exit 1
}
pair=(score --checker code_unit --meta '{"bare": true}' --timeout-ms 60000
    --pair '{"tests": ["assert add(1, 2) == 3"]}' 'def add(a, b): return a + b')

got=$("$binary" "${pair[@]}")
[[ $got == *'"status":"ok","reward":1.0'* ]] || fail "with namespaces: $got"

# A namespace in which there may be no further ones; some hosts can't even do that.
if ! unshare -U --map-user=1000 --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces' 2>/dev/null; then
    echo "skipped: no namespace to try this in"
    exit 0
fi
got=$(unshare -U --map-user=1000 --keep-caps sh -c \
    'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"' sh "$binary" "${pair[@]}" 2>/dev/null || true)
[[ $got == *'"status":"unavailable","reward":null'* ]] || fail "without: $got"
[[ $got == *"user.max_user_namespaces=0"* ]] || fail "the cause is not named: $got"
[[ $got == *"use a remote checker"* ]] || fail "the cure is not named: $got"
