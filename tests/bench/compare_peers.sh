#!/bin/bash
# Ours beside llama.cpp (decode) and PyTorch (training step), on the same CPUs, in turns: on a shared host only
# figures of the same minutes compare. Calls what is installed; builds and fetches nothing.
#
# compare_peers.sh --inflight BIN [--cpus 0,1] [--rounds 3] [--new-tokens 64]
#                  [--llama FOLDER_WITH_llama-batched-bench --gguf BF16.gguf] [--python PY [--dtypes "bf16 f32"]]
# Without --gguf ours runs on random weights of the same shape; with it both read that file.
set -eu -o pipefail

inflight= llama= gguf= python= cpus=0,1 rounds=3 new=64 dtypes="bf16 f32"
while [ $# -gt 0 ]; do
    case "$1" in
    --inflight) inflight=$2 ;;
    --llama) llama=$2 ;;
    --gguf) gguf=$2 ;;
    --python) python=$2 ;;
    --cpus) cpus=$2 ;;
    --rounds) rounds=$2 ;;
    --new-tokens) new=$2 ;;
    --dtypes) dtypes=$2 ;;
    *) sed -n '2,7p' "$0" >&2; exit 64 ;;
    esac
    [ $# -ge 2 ] || { echo "$1 wants a value" >&2; exit 64; }
    shift 2
done
[ -x "$inflight" ] || { echo "--inflight: no program at \"$inflight\"" >&2; exit 64; }
[ -z "$llama" ] || [ -n "$gguf" ] || { echo "--llama wants --gguf, a BF16 GGUF of Gemma-3-270M" >&2; exit 64; }

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
threads=$(taskset -c "$cpus" nproc)
model=${gguf:-gemma-3-270m}
cpu() { taskset -c "$cpus" "$@"; }
note() { echo "$2" >>"$work/$1"; }

echo "CPUs $cpus ($threads threads), $rounds rounds, load $(cut -d' ' -f1 /proc/loadavg)"
for ((round = 1; round <= rounds; round++)); do
    if [ -n "$llama" ]; then
        cpu "$inflight" bench decode --model "$model" --threads "$threads" --batch 1,8,32 --prompt-tokens 96 \
            --new-tokens "$new" --repeat 1 --json 2>"$work/err" | while read -r line; do
            batch=$(sed 's/.*"batch":\([0-9]*\).*/\1/' <<<"$line")
            note "decode-$batch.ours" "$(sed 's/.*"median":\([0-9.]*\).*/\1/' <<<"$line")"
        done
        cpu "$llama/llama-batched-bench" -m "$gguf" -c 8192 -b 2048 -ub 512 -npp 96 -ntg "$new" -npl 1,8,32 \
            -t "$threads" -tb "$threads" 2>"$work/err" | awk -F'|' '$4 + 0 > 0 {print $4 + 0, $9 + 0}' |
            while read -r batch rate; do note "decode-$batch.llama.cpp" "$rate"; done
    fi
    if [ -n "$python" ]; then
        cpu "$inflight" bench train --model gemma-3-270m --threads "$threads" --sequences 8 --sequence-tokens 256 \
            --repeat 1 --json 2>"$work/err" | sed 's/.*"median":\([0-9.]*\).*/\1/' >>"$work/train.ours"
        for dtype in $dtypes; do
            cpu "$python" "$here/torch_train.py" --dtype "$dtype" --threads "$threads" --steps 1 2>"$work/err" |
                sed 's/.*"tokens_per_s": \([0-9.]*\).*/\1/' >>"$work/train.torch-$dtype"
        done
    fi
    echo "round $round done, load $(cut -d' ' -f1 /proc/loadavg)" >&2
done

# Median over the rounds, and the median of the ratios round by round.
median() { sort -g | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }
printf '%-10s %-14s %10s %10s %8s   %s\n' what peer "ours t/s" "peer t/s" ratio "ratio of each round"
for peer in "$work"/*.*; do
    name=$(basename "$peer")
    what=${name%%.*} who=${name#*.}
    [ "$who" != ours ] || continue
    ratios=$(paste "$work/$what.ours" "$peer" | awk '{printf "%.2f\n", $1 / $2}')
    printf '%-10s %-14s %10.1f %10.1f %8.2f   %s\n' "$what" "$who" "$(median <"$work/$what.ours")" \
        "$(median <"$peer")" "$(median <<<"$ratios")" "$(tr '\n' ' ' <<<"$ratios")"
done
