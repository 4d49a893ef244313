#!/usr/bin/env bash
# The learner is killed in the middle of a run: no actor outlives it, and run.resume=true goes on from the last
# checkpoint to a run whose books balance. A request to stop ends a run in order.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false checkpoint.every_steps=1)

# check_resumed RUN STEPS AT: every step is there, those from AT on perhaps twice, and the books balance.
check_resumed() {
    local run=$1 steps=$2 at=$3
    [ "$(number "$run/summary.json" steps)" = "$steps" ] || fail "$run: wanted $steps steps"
    [ "$(step_rows "$run" | sort -nu | tr '\n' ' ')" = "$(seq -s ' ' 1 "$steps") " ] ||
        fail "$run: a step has no row: $(step_rows "$run" | tr '\n' ' ')"
    [ "$(step_rows "$run" | sort -n | uniq -d | awk -v at="$at" '$1 <= at')" = "" ] ||
        fail "$run: a step before the checkpoint of step $at was done again: $(step_rows "$run" | tr '\n' ' ')"
    books "$run"
    has books.txt '"trained_twice": 0'
    has books.txt '"ended": true'
    [ "$(number "$run/summary.json" parity_tokens_differing)" = 0 ] || fail "$run: parity differs"
    # Counts are those of the whole run, not of its last process.
    holds "$(number "$run/summary.json" tokens_trained) >= 32 * $steps"
    holds "$(number "$run/summary.json" tokens_generated) >= $(number "$run/summary.json" tokens_trained)"
    holds "$(number "$run/summary.json" parity_tokens_checked) == $(number "$run/summary.json" tokens_trained)"
    holds "$(number "$run/summary.json" parity_trajectories) == 32 * $steps"
    holds "$(number "$run/summary.json" swaps) >= 1" "an actor may skip versions on a busy machine, but not all of them"
    [ -z "$(ls "$run/checkpoints" | grep -v '^step_[0-9]*$')" ] || fail "$run: $(ls "$run/checkpoints") in checkpoints"
}

# Twice over, so that a resumed run is killed, too.
train_start killed run.steps=200 "${quiet[@]}"
until_true 60 "step 5" has_row runs/killed 5
kill -KILL "$trainer"
wait "$trainer" 2>/dev/null || true
until_true 10 "actors and reward workers to end with the learner" is_gone
at=$(newest_checkpoint runs/killed)
[ "$at" -ge 4 ] || fail "the newest checkpoint is of step ${at:-none}"
[ ! -e runs/killed/summary.json ] || fail "a killed run has a summary"
expect 64 "$inflight" train --config small.yaml model.path=start run.name=killed run.steps=200
has err.txt run.resume=true

train_start killed run.steps=200 run.resume=true "${quiet[@]}"
until_true 60 "step $((at + 5))" has_row runs/killed $((at + 5))
has killed.err.txt "resumed from step $at"
kill -KILL "$trainer"
wait "$trainer" 2>/dev/null || true
until_true 10 "actors and reward workers to end with the learner" is_gone
second=$(newest_checkpoint runs/killed)
train killed run.steps=$((second + 5)) run.resume=true "${quiet[@]}"
has killed.err.txt "resumed from step $second"
check_resumed runs/killed $((second + 5)) "$at"
has books.txt '"processes": 3'

# A run that was finished can be made longer.
train killed run.steps=$((second + 8)) run.resume=true "${quiet[@]}"
check_resumed runs/killed $((second + 8)) "$at"

# Asked to stop: it ends in order, with a checkpoint and a summary, and says how to go on.
for signal in TERM INT; do
    name=stopped-$signal
    train_start "$name" run.steps=400 eval.before=false eval.after=false
    until_true 60 "step 3" has_row "runs/$name" 3
    kill -"$signal" "$trainer"
    status=0
    wait "$trainer" || status=$?
    [ "$status" = 75 ] || fail "$signal: a stopped run ended with $status, wanted 75"
    has "$name.err.txt" "run.resume=true"
    until_true 10 "all processes to end" is_gone
    at=$(newest_checkpoint "runs/$name")
    [ "$at" = "$(number "runs/$name/summary.json" steps)" ] || fail "$signal: the checkpoint is of step ${at:-none}"
    [ "$(number "runs/$name/summary.json" end)" = '"stopped"' ] || fail "$signal: not marked as stopped"
    books "runs/$name"
    train "$name" run.steps=$((at + 3)) run.resume=true eval.before=false eval.after=false
    check_resumed "runs/$name" $((at + 3)) "$at"
done

# It does not wait for actors that never come.
"$inflight" learner --config small.yaml model.path=start run.name=alone "transport.bind=ipc://$work/alone.sock" \
    >alone.out.txt 2>alone.err.txt &
learner=$!
until_true 30 "the learner to listen" grep -sq "listening on" alone.err.txt
asked=$SECONDS
kill -TERM "$learner"
status=0
wait "$learner" || status=$?
[ "$status" = 75 ] || fail "a learner without actors ended with $status, wanted 75"
[ $((SECONDS - asked)) -le 20 ] || fail "a learner without actors took $((SECONDS - asked)) s to stop"
[ "$(newest_checkpoint runs/alone)" = 0 ] || fail "no checkpoint of step 0"
train alone run.steps=2 run.resume=true
[[ $(number runs/alone/summary.json accuracy_before) =~ ^0 ]] || fail "accuracy_before was not measured after resuming"
check_resumed runs/alone 2 0

# sync is the same run with and without an interruption.
train whole run.mode=sync run.steps=6 "${quiet[@]}"
train parts run.mode=sync run.steps=3 "${quiet[@]}"
train parts run.mode=sync run.steps=6 run.resume=true "${quiet[@]}"
weights_of runs/whole whole.model
weights_of runs/parts parts.model
cmp whole.model/model.safetensors parts.model/model.safetensors || fail "sync: an interruption changed the weights"
check_resumed runs/parts 6 3
echo ok
