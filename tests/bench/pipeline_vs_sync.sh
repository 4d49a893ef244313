#!/usr/bin/env bash
# The default job in `pipeline` and in `sync` on the same pinned cores: trained tokens per second, and training
# time until a held-out accuracy is reached. A time-shared sync (learner and actors on all of the cores, which is
# what a synchronous trainer would do with them) is shown too.
#
#   tests/bench/pipeline_vs_sync.sh LEARNER_CPU ACTOR_CPUS [SEEDS] [key=value ...]
#   tests/bench/pipeline_vs_sync.sh 0 1 "1 2 3"
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 64; }
learner=$1 actors=$2 seeds=${3:-1 2 3}
shift $(( $# < 3 ? $# : 3 ))
config=deploy/configs/quickstart.yaml
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

one() { # NAME SEED MODE LEARNER_CPUS ACTOR_CPUS ...
    local name=$1 seed=$2 mode=$3 lcpu=$4 acpu=$5
    shift 5
    build/inflight train --config "$config" run.dir="$out" run.name="$name-$seed" run.seed="$seed" run.mode="$mode" \
        model.path="$out/start-$seed" learner.cpus="$lcpu" actor.cpus="$acpu" eval.every_steps=4 eval.tasks_mid=256 \
        eval.after=false checkpoint.every_steps=0 "$@" >"$out/log" 2>&1 || { tail -n 20 "$out/log"; exit 1; }
    awk -v name="$name" -v seed="$seed" '
        /"tokens_trained_per_s"/ { gsub(/[",]/, ""); rate = $2 }
        /"accuracy":/ { gsub(/[",]/, ""); accuracy = $2; if (accuracy > best) best = accuracy }
        /"train_s"/ { gsub(/[",]/, ""); t = $2; if (accuracy >= 0.9 && first == "" && t > 0) first = t }
        /"lag_mean"/ { gsub(/[",]/, ""); lag = $2 }
        END { printf "%-14s seed %s  %8.0f trained tokens/s  lag %.2f  best accuracy %.3f  0.9 reached after %s s of training\n",
              name, seed, rate, lag, best, first == "" ? "-" : sprintf("%.1f", first) }' "$out/$name-$seed/summary.json"
}

for seed in $seeds; do
    build/inflight sft --config "$config" run.seed="$seed" run.name=start sft.out="$out/start-$seed" learner.threads=2 \
        >"$out/log" 2>&1 || { tail -n 20 "$out/log"; exit 1; }
    one pipeline "$seed" pipeline "$learner" "$actors" "$@"
    one sync "$seed" sync "$learner" "$actors" "$@"
    one sync-shared "$seed" sync "$learner,$actors" "$learner,$actors" learner.threads=2 "$@"
done
