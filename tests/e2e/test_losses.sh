#!/usr/bin/env bash
# Every loss, correction and KL trains through the whole system, with its own figures; wrong pairs of them are refused.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false run.steps=3)

same=0
try() { # NAME key=value...
    local name=$1
    shift
    train "$name" run.mode=async:1 "$@" "${quiet[@]}"
    [ "$(number "runs/$name/summary.json" parity_tokens_differing)" = 0 ] || fail "$name: parity"
    [ "$(column "runs/$name" optim/grad_norm | awk '$1 > 0' | wc -l)" -ge 1 ] || fail "$name: no gradient"
    books "runs/$name"
    weights_of "runs/$name" "$name.model"
}
for loss in reinforce grpo dr_grpo dapo rloo reinforce_pp gspo cispo decoupled_ppo sapo; do
    try "$loss" "learner.loss=$loss"
done
for correction in tis_token tis_sequence icepop mis_sequence geometric k3; do
    try "$correction" learner.loss=grpo "learner.correction=$correction"
    [ "$(column "runs/$correction" rl/correction_mean | wc -l)" = 3 ] || fail "$correction: no figures"
done
# Each is itself: the weights after three steps differ from all others'. (On this policy masks that spare everything
# make the corrections equal to each other, so the losses are compared, and the corrections' figures above.)
for a in reinforce grpo dr_grpo dapo rloo reinforce_pp sapo; do
    for b in reinforce grpo dr_grpo dapo rloo reinforce_pp sapo; do
        [ "$a" = "$b" ] || ! cmp -s "$a.model/model.safetensors" "$b.model/model.safetensors" || same=$((same + 1))
    done
done
[ "$same" = 0 ] || fail "$same pairs of losses trained the same weights"

# KL: at step 1 the policy is the reference, so that the estimate is exactly 0; later it isn't.
for estimator in k2 k3; do
    try "kl-$estimator" kl.coef=0.5 "kl.estimator=$estimator" learner.learning_rate=0.01
    [ "$(column "runs/kl-$estimator" rl/kl | head -n 1 | awk '{ print $1 + 0 }')" = 0 ] || fail "kl: step 1 is off the reference"
    holds "$(column "runs/kl-$estimator" rl/kl | tail -n 1) > 0" "KL moves away from 0"
done
try kl-reward kl.coef=0.1 kl.in=reward kl.estimator=k1 learner.learning_rate=0.01
[ "$(column runs/kl-reward rl/kl_reward | head -n 1 | awk '{ print $1 + 0 }')" = 0 ] || fail "kl.in=reward: step 1 is off the reference"
holds "$(column runs/kl-reward rl/kl_reward | tail -n 1) != 0" "KL of the rewards moves away from 0"
try kl-reference kl.coef=0.5 "kl.reference=kl-k2.model"
holds "$(column runs/kl-reference rl/kl | head -n 1) > 0" "another reference is another distance"

# Length: the punishment lowers the mean reward; masked answers are counted, and not trained.
try overlong learner.overlong_tokens=8 rollout.max_new_tokens=8
try short rollout.max_new_tokens=8
holds "$(column runs/overlong rl/reward | head -n 1) < $(column runs/short rl/reward | head -n 1)" "long answers cost reward"
try masked learner.truncated=mask rollout.max_new_tokens=8
holds "$(column runs/masked stats/masked | head -n 1) > 0" "truncated answers are masked"

expect 65 "$inflight" train --config small.yaml run.name=no1 learner.loss=decoupled_ppo learner.correction=tis_token
has err.txt "which is a correction itself"
expect 65 "$inflight" train --config small.yaml run.name=no2 kl.coef=0.1 kl.estimator=k1
has err.txt "wanted k2 or k3"
expect 65 "$inflight" train --config small.yaml run.name=no3 learner.overlong_tokens=1000000
has err.txt "rollout.max_new_tokens"
