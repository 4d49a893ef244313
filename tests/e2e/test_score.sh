#!/usr/bin/env bash
# `inflight score` as a user runs it: matching by id, order, verdicts, exit codes.
set -euo pipefail
binary=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    echo "FAIL: $*" >&2
    exit 1
}
expect_exit() {
    local wanted=$1 got=0
    shift
    "$@" >out.txt 2>err.txt || got=$?
    [[ $got == "$wanted" ]] || { cat err.txt >&2; fail "exit $got, wanted $wanted: $*"; }
}
expect_text() { grep -qF -- "$2" "$1" || { cat "$1" >&2; fail "no '$2' in $1"; }; }

cat >tasks.jsonl <<'TEXT'
{"id":"a","prompt":"2 + 5 =","answer":"7","checker":"exact"}
{"id":"b","prompt":"How many?","answer":"1,080","checker":"numeric"}
{"id":"c","prompt":"Which?","answer":"none","checker":"numeric"}
TEXT
cat >answers.jsonl <<'TEXT'
{"id":"b","completion":"#### $1080."}
{"id":"c","completion":"5"}
{"id":"a","completion":" 7\n"}
{"id":"a","completion":" 8\n"}
{"id":"b","completion":"\\boxed{1080} or \\boxed{1081}"}
{"id":"b","completion":"nul\u0000 1080"}
TEXT
expect_exit 0 "$binary" score --tasks tasks.jsonl --completions answers.jsonl --out results.jsonl
cat >wanted.jsonl <<'TEXT'
{"id":"b","status":"ok","reward":1.0,"checker":"numeric/1"}
{"id":"c","status":"bad_task","reward":null,"checker":"numeric/1","reason":"checker numeric/1: the task's answer 'none' is not one number"}
{"id":"a","status":"ok","reward":1.0,"checker":"exact/1"}
{"id":"a","status":"wrong","reward":0.0,"checker":"exact/1"}
{"id":"b","status":"no_answer","reward":0.0,"checker":"numeric/1","reason":"checker numeric/1: several answers that differ"}
{"id":"b","status":"ok","reward":1.0,"checker":"numeric/1"}
TEXT
grep -cE ',"queued_s":[0-9.e-]+,"run_s":[0-9.e-]+' results.jsonl | grep -qx 6 || fail "a result without its times"
sed 's/,"queued_s":[^,}]*,"run_s":[^,}]*//' results.jsonl | diff wanted.jsonl - || fail "results differ"
expect_text err.txt "6 completions, 5 scored, 3 right, mean reward 0.6000, 1 bad_task, 1 no_answer"

# One answer; words that look like options or overrides are answers.
expect_exit 0 "$binary" score --checker numeric --pair -5 x=-5
expect_text out.txt '"reward":1.0'
expect_exit 0 "$binary" score --checker exact --pair a.b=5 a.b=6
expect_text out.txt '"reward":0.0'
expect_exit 0 "$binary" score --checker exact --meta '{"after":"#"}' --pair 501 '1#501'
expect_text out.txt '"reward":1.0'
expect_exit 0 "$binary" score --list
expect_text out.txt 'numeric'

# Mistakes name their place.
echo '{"id":"x","completion":"5"}' >wrong.jsonl
expect_exit 65 "$binary" score --tasks tasks.jsonl --completions wrong.jsonl
expect_text err.txt "wrong.jsonl:1: id: there is no task 'x'"
printf '{"completion":"1"}\n{"completion":"2"}\n{"completion":"3"}\n\n{"completion":"4"}\n' >wrong.jsonl
expect_exit 65 "$binary" score --tasks tasks.jsonl --completions wrong.jsonl
expect_text err.txt "wrong.jsonl:5: completion 4 has no task"
printf '{"completion":"1"}\n{"id":"a","completion":"2"}\n' >wrong.jsonl
expect_exit 65 "$binary" score --tasks tasks.jsonl --completions wrong.jsonl
expect_text err.txt "wrong.jsonl:2: id: present, unlike"
echo '{"completion":7}' >wrong.jsonl
expect_exit 65 "$binary" score --tasks tasks.jsonl --completions wrong.jsonl
expect_exit 64 "$binary" score --checker nonsense --tasks tasks.jsonl --completions answers.jsonl
expect_exit 64 "$binary" score --pair 5
expect_exit 65 "$binary" score --tasks missing.jsonl --completions answers.jsonl

# A checker that fails is neither a zero nor a success.
echo '{"id":"a","prompt":"x","answer":"sleep"}' >tasks.jsonl
echo '{"id":"a","completion":"x"}' >answers.jsonl
export IFL_REWARD_TEST_FAULTS=1
expect_exit 69 "$binary" score --checker test_fault --timeout-ms 200 --tasks tasks.jsonl --completions answers.jsonl
expect_text out.txt '"status":"checker_error","reward":null'
expect_text out.txt "timeout: no result within 200 ms"
echo "score: all fine"
