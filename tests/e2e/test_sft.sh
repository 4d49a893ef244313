#!/usr/bin/env bash
# `inflight sft` as a user runs it: the same bytes for any number of threads, a folder that is read back, no
# overwriting by accident, and a clear refusal of an export without a checkpoint.
set -euo pipefail
inflight=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > small.yaml <<'YAML'
run: {name: small, dir: runs}
model: {family: llama, d_model: 64, n_layers: 2, n_heads: 2, n_kv_heads: 2, head_dim: 32, d_ff: 128, max_positions: 256}
data:
  train: [{name: ladder, generator: ladder, split: train, steps_max: 4}]
sft: {steps: 6, batch_tokens: 256}
YAML
fail() { echo "FAILED: $*" >&2; exit 1; }
expect() { # status, text in the error, command...
    local want=$1 text=$2 got=0
    shift 2
    "$@" > out.txt 2> err.txt || got=$?
    [ "$got" -eq "$want" ] || fail "$* ended with $got, wanted $want: $(cat err.txt)"
    grep -q -- "$text" err.txt || fail "$*: no \"$text\" in: $(cat err.txt)"
}

"$inflight" sft --config small.yaml --dry-run > dry.txt
grep -q "steps: 6" dry.txt || fail "dry run shows no steps"
[ ! -e runs ] || fail "a dry run wrote something"

"$inflight" sft --config small.yaml learner.threads=1 sft.out=one > one.txt
"$inflight" sft --config small.yaml learner.threads=3 sft.out=three > three.txt
"$inflight" sft --config small.yaml run.seed=2 sft.out=seed2 > seed2.txt
cmp one/model.safetensors three/model.safetensors || fail "the thread count changed the weights"
cmp -s one/model.safetensors seed2/model.safetensors && fail "the seed changed nothing"
[ "$(wc -l < one.metrics.jsonl)" -eq 6 ] || fail "metrics: wanted 6 rows"
for f in config.json tokenizer.json tokenizer_config.json generation_config.json; do
    [ -s "one/$f" ] || fail "no one/$f"
done

# What was written is read again: training goes on from it.
"$inflight" sft --config small.yaml model.path=one sft.out=two > two.txt
first() { sed -n 's/^sft step 1\/.*loss \([0-9.]*\) .*/\1/p' "$1"; }
awk -v a="$(first two.txt)" -v b="$(first one.txt)" 'BEGIN { exit !(a < b) }' ||
    fail "loss $(first two.txt) from the trained model, $(first one.txt) from a new one"

expect 64 "exists already" "$inflight" sft --config small.yaml sft.out=one
"$inflight" sft --config small.yaml sft.out=one run.overwrite=true > /dev/null
[ -d one.1 ] || fail "the older folder was not moved aside"

expect 65 "no such checkpoint" "$inflight" export --checkpoint runs/none/checkpoints/step_1 --out x
expect 64 "--checkpoint" "$inflight" export --out x
[ ! -e x ] || fail "a refused export wrote something"
echo ok
