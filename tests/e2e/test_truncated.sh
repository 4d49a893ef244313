#!/usr/bin/env bash
# Training on truncated sampling: the recorded log-probs, over the kept sets, are the learner's to the bit; the records
# can be generated again, sets and all; and a truncated run is another run than a plain one.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false run.steps=4)

exact() { # RUN: nothing that was compared differs, and something was compared
    local key
    for key in parity_tokens lag0; do
        [ "$key" = lag0 ] && key=parity_lag0_tokens
        [ "$(number "$1/summary.json" "${key}_differing")" = 0 ] || fail "$1: ${key}_differing"
        holds "$(number "$1/summary.json" "${key}_checked") > 0" "$1: ${key}_checked"
    done
    [ "$(number "$1/summary.json" parity_tokens_not_checkable)" = 0 ] || fail "$1: not checkable"
    books "$1"
    expect 0 "$inflight" replay "$1"
    has out.txt " 0 differ in token or log-prob; 0 trajectories not replayable"
}

for what in top_p=0.9 top_k=3; do
    train "${what%=*}" run.mode=sync "rollout.$what" "${quiet[@]}"
    exact "runs/${what%=*}"
    # On policy: every ratio is 1, not nearly 1.
    [ "$(column "runs/${what%=*}" rl/mean_abs_log_ratio_new_old | sort -u | awk '{ print $1 + 0 }')" = 0 ] || fail "$what: off policy"
    [ "$(column "runs/${what%=*}" rl/ess | sort -u | awk '{ print $1 + 0 }')" = 1 ] || fail "$what: ESS below 1"
    holds "$(column "runs/${what%=*}" optim/grad_norm | sort -g | tail -n 1) > 0" "$what: a gradient"
done
weights_of runs/top_p top_p.model
train plain run.mode=sync "${quiet[@]}"
weights_of runs/plain plain.model
cmp -s top_p.model/model.safetensors plain.model/model.safetensors && fail "top_p 0.9 trained as no truncation does"
# Bytes repeat, whatever the threads.
train again run.mode=sync rollout.top_p=0.9 actor.count=1 learner.threads=3 "${quiet[@]}"
weights_of runs/again again.model
cmp -s top_p.model/model.safetensors again.model/model.safetensors || fail "one seed, two runs"

# With lag, a KL to a reference (over the same sets) and weights that change under way.
train lag run.mode=async:2 rollout.top_p=0.9 rollout.temperature=0.7 kl.coef=0.2 "${quiet[@]}"
exact runs/lag
[ "$(column runs/lag rl/kl | head -n 1 | awk '{ print $1 + 0 }')" = 0 ] || fail "step 1 is off the reference"
for kv in keep recompute; do
    train "swap-$kv" "actor.kv=$kv" rollout.top_k=5 rollout.top_p=0.95 "${quiet[@]}"
    exact "runs/swap-$kv"
done
