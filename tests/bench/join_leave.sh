#!/usr/bin/env bash
# What it costs a running job that an actor joins, and that it leaves again: how long the newcomer takes until its
# first token, and the learner's time for a trained token (step time less waiting for answers, so that the length of
# answers and the number of actors don't count) with and without it. Learner and actors have CPUs of their own.
#
#   tests/bench/join_leave.sh LEARNER_CPU ACTOR_CPU NEWCOMER_CPU [ROUNDS] [key=value ...]
#   tests/bench/join_leave.sh 0 1 2 5
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 64; }
learner_cpu=$1 actor_cpu=$2 newcomer_cpu=$3 rounds=${4:-5}
shift $(( $# < 4 ? $# : 4 ))
config=${CONFIG:-deploy/configs/quickstart.yaml} inflight=${INFLIGHT:-build/inflight} steps=${STEPS:-8}
out=$(mktemp -d)
leave() { kill -KILL $(jobs -p) 2>/dev/null || true; rm -rf "$out"; }
trap leave EXIT
options=(run.dir="$out" run.name=job run.steps=100000 "transport.bind=ipc://$out/sock" eval.before=false eval.after=false
    eval.every_steps=0 checkpoint.every_steps=0 "$@")

if [ -z "${MODEL:-}" ]; then
    "$inflight" sft --config "$config" run.name=start sft.out="$out/start" learner.threads=2 >"$out/log" 2>&1 ||
        { tail -n 20 "$out/log"; exit 1; }
    MODEL=$out/start
fi
rows() { grep -c '^{"kind":"step",' "$out/job/metrics.jsonl" 2>/dev/null || true; }
await_rows() { until [ "$(rows)" -ge "$1" ]; do kill -0 "$learner" || { tail -n 5 "$out/learner.txt"; exit 1; }; sleep 0.2; done; }
actor() { # NAME CPU
    "$inflight" actor --config "$config" model.path="$MODEL" --name "$1" actor.cpus="$2" actor.threads=1 "${options[@]}" \
        >"$out/$1.txt" 2>&1 &
}
"$inflight" learner --config "$config" model.path="$MODEL" learner.cpus="$learner_cpu" learner.threads=1 "${options[@]}" \
    >"$out/learner.txt" 2>&1 &
learner=$!
until grep -sq "listening on" "$out/learner.txt"; do sleep 0.1; done
actor resident "$actor_cpu"
await_rows 4

: >"$out/changes" # steps done when the number of actors changed, and what it was from then on
for round in $(seq "$rounds"); do
    echo "$(rows) 1" >>"$out/changes"
    await_rows $(($(rows) + steps))
    echo "$(rows) 2" >>"$out/changes"
    actor "newcomer-$round" "$newcomer_cpu"
    newcomer=$!
    await_rows $(($(rows) + steps))
    echo "$(rows) 1" >>"$out/changes"
    kill -TERM "$newcomer"
    wait "$newcomer" || { echo "the newcomer left with status $?"; tail -n 3 "$out/newcomer-$round.txt"; exit 1; }
    await_rows $(($(rows) + steps / 2))
    sed -n 's/.*| \(generating .*\)/joined: \1/p; s/.*| asked to stop: \(.*\)/left: \1/p' "$out/newcomer-$round.txt"
done
kill -TERM "$learner"
wait "$learner" || true
# Each change against the steps right before it, so that neither the growth of answers nor a slow stretch of the machine
# counts; geometric means over all changes, with 95 % intervals.
awk '
    function value(key,  t) { t = $0; if (!sub(".*\"" key "\":", "", t)) return 0; sub(/[,}].*/, "", t); return t + 0 }
    function median(first, last,  n, i, j, t, list) {
        for (i = first; i <= last; i++) if (cost[i] > 0) list[++n] = cost[i]
        for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j] < list[j - 1]; j--) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
        return n == 0 ? 0 : n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    function add(kind, ratio) { if (ratio > 0) { n[kind]++; sum[kind] += log(ratio); squares[kind] += log(ratio) ^ 2 } }
    function show(kind, what,  m, se) {
        if (n[kind] < 2) return
        m = sum[kind] / n[kind]; se = sqrt((squares[kind] / n[kind] - m * m) / (n[kind] - 1))
        printf "%-46s %.3f [%.3f, %.3f] of the steps before, %d times\n", what, exp(m), exp(m - 1.96 * se), exp(m + 1.96 * se), n[kind]
    }
    FNR == NR { from[++n_changes] = $1; actors[n_changes] = $2; next }
    /^{"kind":"step"/ {
        step++
        total = value("stats/tokens"); tokens = total - before; before = total
        if (tokens > 0) cost[step] = (value("time/step") - value("time/wait_for_batch")) / tokens
    }
    END {
        for (c = 2; c <= n_changes; c++) { # the first one only tells with how many it began
            at = from[c] + 1 # the step under way at the change
            base = median(at - width, at - 1)
            if (base == 0 || actors[c] == actors[c - 1]) continue
            add(actors[c] "during", cost[at] / base)
            add(actors[c] "after", median(at + 1, at + width) / base)
        }
        printf "learner: %.1f us of a trained token in the median\n", median(1, step) * 1e6
        show("2during", "the step in which an actor joins:")
        show("2after", "steps with two actors:")
        show("1during", "the step in which it leaves:")
        show("1after", "steps with one again:")
    }' width=$((steps / 2)) "$out/changes" "$out/job/metrics.jsonl"
