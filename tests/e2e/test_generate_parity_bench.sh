#!/usr/bin/env bash
# generate, parity and bench as a user calls them. Arguments: the binary, the source folder.
set -u
inflight=$1
golden=$2/tests/golden/models
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
expect() { # status, words...
    local want=$1
    shift
    "$@" >"$work/out" 2>"$work/err"
    local got=$?
    [ "$got" = "$want" ] || { cat "$work/out" "$work/err" >&2; fail "status $got, wanted $want: $*"; }
}

expect 0 "$inflight" parity --model tiny-qwen2 --tokens 24
grep -q 'total .* 0$' "$work/out" || fail "parity prints no total of 0 differences"
expect 65 "$inflight" parity --model tiny-qwen2 --tokens 24 --mutate
grep -q 'first: ' "$work/out" || fail "a mutated parity names no first difference"
expect 64 "$inflight" parity --isa none
expect 0 "$inflight" parity --model tiny-gemma3 --soak 0.02 model.numerics=bf16
grep -q ' 0 differing$' "$work/out" || fail "a soak prints no count of 0 differing log-probs"
expect 65 "$inflight" parity --model tiny-gemma3 --soak 0.02 --mutate
grep -q 'first in round .* lies in layer 0 of 3' "$work/err" || fail "a mutated soak names no layer: $(cat "$work/err")"
expect 64 "$inflight" parity --soak soon

# The same seed gives the same tokens for any number of threads and answers, kernels and pages.
expect 0 "$inflight" generate --model "$golden/gemma3" --tokens 3,7,9 -n 30 --json --seed 5
cp "$work/out" "$work/first"
for options in "--threads 1" "--threads 3 --page-tokens 1" "--isa generic" "--isa ref"; do
    # shellcheck disable=SC2086
    expect 0 "$inflight" generate --model "$golden/gemma3" --tokens 3,7,9 -n 30 --json --seed 5 $options
    cmp -s "$work/first" "$work/out" || fail "other tokens with $options"
done
expect 0 "$inflight" generate --model "$golden/gemma3" --tokens 3,7,9 -n 30 --json --seed 5 --n 4
[ "$(wc -l <"$work/out")" = 4 ] || fail "--n 4 gives not four answers"
grep -qxF "$(cat "$work/first")" "$work/out" || fail "sample 0 of four differs from sample 0 alone"
expect 0 "$inflight" generate --model "$golden/gemma3" --tokens 3,7,9 -n 30 --json --seed 6
cmp -s "$work/first" "$work/out" && fail "another seed gives the same tokens"
expect 0 "$inflight" generate --model "$golden/llama3" --tokens 3,7 --greedy -n 4 --logprobs
expect 64 "$inflight" generate --model "$golden/llama3"
expect 64 "$inflight" generate --tokens 1
expect 64 "$inflight" generate --model "$golden/llama3" --tokens 1,x
expect 65 "$inflight" generate --model "$golden/llama3" --tokens 1,100000
expect 65 "$inflight" generate --model "$golden/llama3" --tokens 1 --memory-gib 0.000001

# More of bench in test_bench.sh.
expect 0 "$inflight" bench decode --model tiny-llama --batch 1,4 --new-tokens 4 --repeat 1 --seconds 0.01 --json
[ "$(grep -c '"tokens_per_s_median"' "$work/out")" = 2 ] || fail "bench decode prints not one line a batch"
expect 64 "$inflight" bench everything
expect 64 "$inflight" bench decode --batch 0
echo "generate, parity and bench: ok"
