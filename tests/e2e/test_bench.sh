#!/usr/bin/env bash
# inflight bench: its tables, comparisons with peers that behave and that do not, and the counting of instructions.
# The peers are shell scripts. Arguments: the binary, the source folder.
. "$(dirname "$0")/lib.sh"

gguf=$source_dir/tests/golden/models/gemma3/model.gguf
quick="--seconds 0.005 --repeat 1 --threads 1"
program() { cat >"$1" && chmod +x "$1"; }

# --- tables
# shellcheck disable=SC2086
expect 0 "$inflight" bench model --model tiny-llama $quick --batch 1,4 --new-tokens 4 --sequences 2 --sequence-tokens 16
[ "$(grep -cE '^(decode|prefill|train)' out.txt)" = 5 ] || fail "the model's table has not five rows: $(cat out.txt)"
grep -qE '^train, last 4 +2 +16 ' out.txt || fail "no row of training on the last quarter"
expect 0 "$inflight" bench ops $quick --case "N 16 K 128" --isa generic model.numerics=bf16
grep -qE '^matmul M 32 N 16 K 128 .*%$' out.txt || fail "no row of the op: $(cat out.txt)"
has out.txt "peaks after the cases"
expect 65 "$inflight" bench ops --case "no such op"
has err.txt 'no op case is called like "no such op"'
expect 64 "$inflight" bench decode --count
expect 64 "$inflight" bench train --trained-last x

# --- transport: every way over both paths, the same as JSON; ratios are to the raw socket
expect 0 "$inflight" bench transport --repeat 2 --size-mib 16
for path in ipc tcp; do
    for way in "raw socket" "raw socket, checked" "weight plane" "weight plane, keys" "libzmq alone, keys"; do
        grep -qE "^$path +$way +[0-9.]+ " out.txt || fail "no row of $way over $path: $(cat out.txt)"
    done
done
expect 0 "$inflight" bench transport --repeat 1 --size-mib 16 --case plane --json
[ "$(grep -c '"bench":"transport".*"gbyte_per_s_median"' out.txt)" = 6 ] || fail "rows: $(cat out.txt)"
[ "$(grep -c '"way":"raw",.*"ratio_to_raw_median":1.0' out.txt)" = 2 ] || fail "raw: $(cat out.txt)"
grep -q '"way":"plane"' out.txt || fail "no row of the plane"
! grep -q '"way":"plane_curve"' out.txt || fail "--case plane ran others"
expect 64 "$inflight" bench transport --against torch

# --- new weights in the middle of decoding
for kv in keep recompute; do
    # shellcheck disable=SC2086
    expect 0 "$inflight" bench swap --model tiny-llama --every 0.05 --repeat 2 --threads 1 --batch 4 --prompt-tokens 24 \
        --new-tokens 16 actor.kv=$kv
    has out.txt "tiny-llama, kv $kv, 4 sequences, 1 threads, a version every 0.05 s"
    grep -qE '^[1-9][0-9]* swaps: stall between two decode steps p50' out.txt || fail "$kv: no swap: $(cat out.txt)"
done
grep -qE '^coding of 2 versions \(patches of [0-9.]+ % of dense\): encode [0-9]+ core-ms a version' out.txt ||
    fail "no core time: $(cat out.txt)"
grep -qE '^rebuilding [1-9][0-9]* tokens of one group took' out.txt || fail "nothing was rebuilt: $(cat out.txt)"
expect 0 "$inflight" bench swap --model tiny-llama --every 0.05 --repeat 1 --threads 1 --batch 4 --prompt-tokens 24 \
    --new-tokens 16 --json
grep -q '"bench":"swap".*"ratio_median":.*"encode_core_ms_median":.*"apply_core_ms_median":' out.txt ||
    fail "no figures: $(cat out.txt)"
expect 65 "$inflight" bench swap --model tiny-llama --versions "$PWD" --threads 1 --batch 1
has err.txt "no versions (v*.ifw)"

# --- llama.cpp: a table as llama-batched-bench prints it, one row for each batch named
program llama-batched-bench <<'SH'
#!/bin/sh
echo "$@" >>llama.args
while [ $# -gt 1 ]; do
    case "$1" in -npp) pp=$2 ;; -ntg) tg=$2 ;; -npl) pl=$2 ;; esac
    shift
done
echo "a line before the table"
echo "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |"
echo "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|"
for b in $(echo "$pl" | tr , ' '); do
    n=$((n + 1))
    printf '|%6d | %6d | %4d | %6d | %8.3f | %8.2f | %8.3f | %8.2f | %8.3f | %8.2f |\n' "$pp" "$tg" "$b" 64 0.1 \
        "$((4000 * n))" 0.2 "$((1000 * n))" 0.3 1.0
done
SH
# shellcheck disable=SC2086
expect 0 "$inflight" bench decode --against "llama.cpp=$work,$gguf" $quick --repeat 2 --batch 1,2 --new-tokens 3
has out.txt "rounds in turns, 1 threads on CPUs"
has out.txt "llama-batched-bench does not sample"
[ "$(grep -cE '^decode +[12] +3 .* 2000.0 +2000.0 +2000.0 ' out.txt)" = 2 ] || fail "rows: $(cat out.txt)"
[ "$(grep -c '^round [12] of 2, decode, batch [12]: ours ' err.txt)" = 4 ] || fail "not four turns: $(cat err.txt)"
[ "$(grep -c -- "-m $gguf -c 256 .*-npp 32 -ntg 3 -npl 1,1 -t 1 -tb 1" llama.args)" = 2 ] || fail "called: $(cat llama.args)"
# shellcheck disable=SC2086
expect 0 "$inflight" bench prefill --model "$gguf" --against "llama.cpp=$work/llama-batched-bench" $quick --prompt-tokens 24
grep -qE '^prefill +1 +24 .* 8000.0 ' out.txt || fail "no row of prefill: $(cat out.txt)"

# --- what goes wrong ends with the command and the reason, and leaves nothing running
compare() { # STATUS: with the program `peer`
    # shellcheck disable=SC2086
    expect "$1" "$inflight" bench decode --against "llama.cpp=$work/peer,$gguf" $quick --batch 1 --new-tokens 2 --peer-timeout 20
}
program peer <<'SH'
#!/bin/sh
for i in 1 2 3 4 5 6 7 8 9; do echo "line $i" >&2; done
echo "the last word" >&2
exit 3
SH
compare 69
has err.txt "ended with status 3"
has err.txt "the last word"
has err.txt "command: $work/peer -m $gguf"
! grep -q 'line 1$' err.txt || fail "more than the last lines are shown"
printf '#!/bin/sh\nkill -SEGV $$\n' | program peer
compare 69
has err.txt "died of signal 11"
printf '#!/bin/sh\necho no table\n' | program peer
compare 69
has err.txt "printed 0 rows of its table"
printf '#!/no/such/shell\n' | program peer
compare 65
has err.txt "cannot be executed"
# shellcheck disable=SC2016
printf '#!/bin/sh\nsleep 600 & echo $! >sleeper\necho waiting >&2\nwait\n' | program peer
# shellcheck disable=SC2086
expect 75 "$inflight" bench decode --against "llama.cpp=$work/peer,$gguf" $quick --batch 1 --new-tokens 2 --peer-timeout 3
has err.txt "did not end within 3 s and was killed"
has err.txt "waiting"
sleeper_is_gone() { ! kill -0 "$(cat sleeper)" 2>/dev/null; }
until_true 10 "the end of what the peer started" sleeper_is_gone
# Ctrl-C ends the peer too.
rm sleeper
# shellcheck disable=SC2086
"$inflight" bench decode --against "llama.cpp=$work/peer,$gguf" $quick --batch 1 --new-tokens 2 >out.txt 2>err.txt &
bench=$!
until_true 60 "the peer's start" test -s sleeper
kill -INT "$bench"
wait "$bench" && fail "a stopped comparison ends with 0"
until_true 10 "the end of the stopped peer" sleeper_is_gone
has err.txt "stopped while"

expect 65 "$inflight" bench decode --against "llama.cpp=$work/absent"
has err.txt "no program at"
expect 65 "$inflight" bench decode --against "llama.cpp=$work,$source_dir/tests/golden/models/quants.gguf"
has err.txt "wanted BF16"
expect 64 "$inflight" bench decode --model tiny-llama --against "llama.cpp=$work"
has err.txt "convert_hf_to_gguf.py"
expect 64 "$inflight" bench decode --against vllm
expect 64 "$inflight" bench ops --against "llama.cpp=$work,$gguf"
expect 64 "$inflight" bench train --against "llama.cpp=$work,$gguf"

# --- torch: the script gets the model's shape, the dtype and the mask
program python <<'SH'
#!/bin/sh
echo "$@" >torch.args
while [ $# -gt 1 ]; do [ "$1" = --config ] && cp "$2/config.json" . && echo "$2" >folder; shift; done
echo "a warning"
echo '{"torch": "9.9", "model": "Fake", "tokens_per_s": 125.5}'
SH
train="bench train --model tiny-qwen3 $quick --sequences 3 --sequence-tokens 16 --trained-last 5"
# shellcheck disable=SC2086
expect 0 "$inflight" $train --against "torch=$work/python" model.numerics=bf16
grep -qE '^train, last 5 +3 +16 .* 125.5 ' out.txt || fail "no row of training: $(cat out.txt)"
has out.txt "torch 9.9, Fake"
has torch.args "/torch_train.py --config "
has torch.args "--dtype bf16 --threads 1 --sequences 3 --tokens 16 --trained-last 5 --head all --steps 1 --warmup 1"
has config.json '"qwen3"'
[ ! -e "$(cat folder)" ] || fail "the temporary folder is left behind"
# shellcheck disable=SC2086
expect 0 "$inflight" $train --against "torch=$work/python" --torch-dtype f32 --torch-head trained --script "$work/python"
has torch.args "$work/python --config"
has torch.args "--dtype f32"
has torch.args "--head trained"
printf '#!/bin/sh\necho %s\n' "'{\"torch\": \"9.9\", \"model\": \"Fake\"}'" | program python
# shellcheck disable=SC2086
expect 69 "$inflight" $train --against "torch=$work/python"
has err.txt "no tokens_per_s above 0"
printf '#!/bin/sh\necho Traceback; exit 1\n' | program python
# shellcheck disable=SC2086
expect 69 "$inflight" $train --against "torch=$work/python"
has err.txt "Traceback"
[ ! -e "$(sed 's/.*--config \([^ ]*\) .*/\1/' err.txt | tail -n 1)" ] || fail "a failed peer leaves its folder"
# shellcheck disable=SC2086
expect 65 "$inflight" $train --against "torch=$work/python" --script "$work/absent.py"

# --- instructions
mkdir none
PATH=$work/none expect 65 "$inflight" bench ops --count
has err.txt "apt-get install valgrind"
expect 65 "$inflight" bench ops --count --isa avx512
has err.txt "no AVX-512"
if command -v valgrind >/dev/null && ! grep -q __asan_init "$inflight"; then
    expect 0 "$inflight" bench ops --count --case "matmul M 32 N 16" --isa generic
    row=$(grep '^matmul M 32 N 16 K 128 ' out.txt) || fail "no row: $(cat out.txt)"
    # A multiply-add of bf16 with a software fma: some instructions, not none and not thousands.
    holds "$(awk '{print $(NF - 1)}' <<<"$row") > 0.05 && $(awk '{print $(NF - 1)}' <<<"$row") < 200" "$row"
fi
echo "bench: ok"
