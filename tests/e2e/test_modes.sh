#!/usr/bin/env bash
# sync has lag 0, async:k has lag k from step k + 1 on; both give the same weights, bit for bit, for the same
# seed, whatever the number of actors and threads and however many sequences they decode at once.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false)

train sync run.mode=sync "${quiet[@]}"
[ "$(step_rows runs/sync | wc -l)" = 6 ] || fail "sync: wanted 6 step rows"
for key in stats/lag stats/max_lag; do
    [ "$(column runs/sync $key | sort -gu | awk '{ print $1 + 0 }')" = 0 ] || fail "sync: $key is $(column runs/sync $key | tr '\n' ' ')"
done
[ "$(number runs/sync/summary.json trajectories_multi_version)" = 0 ] || fail "sync: a trajectory has two versions"
[ "$(number runs/sync/summary.json parity_tokens_differing)" = 0 ] || fail "sync: parity"
books runs/sync
weights_of runs/sync sync.model

for k in 1 2; do
    train "async-$k" "run.mode=async:$k" "${quiet[@]}"
    wanted=$(for s in 1 2 3 4 5 6; do echo $((s - 1 < k ? s - 1 : k)); done | tr '\n' ' ')
    for key in stats/lag stats/max_lag; do
        got=$(column "runs/async-$k" $key | awk '{ print $1 + 0 }' | tr '\n' ' ')
        [ "$got" = "$wanted" ] || fail "async:$k: $key is $got, wanted $wanted"
    done
    [ "$(number "runs/async-$k/summary.json" trajectories_multi_version)" = 0 ] || fail "async:$k: two versions in one"
    books "runs/async-$k"
    weights_of "runs/async-$k" "async-$k.model"
    cmp -s "async-$k.model/model.safetensors" sync.model/model.safetensors && fail "async:$k trained as sync did"
done

# Nor does the lag depend on the actors' speed: both stand still most of the time, and one is lost and replaced.
limp() { # PATTERN: lets the process run for 20 ms of each 70
    local pid
    while pid=$(processes "$1") && [ -n "$pid" ]; do
        kill -STOP "$pid" 2>/dev/null || return 0
        sleep 0.05
        kill -CONT "$pid" 2>/dev/null || return 0
        sleep 0.02
    done
}
for k in 1 3; do
    train_start "limping-$k" "run.mode=async:$k" run.steps=16 actor.sequences_max=4 actor.count=2 \
        transport.heartbeat_ms=100 transport.heartbeat_misses=10 "${quiet[@]}"
    until_true 30 "step 1" has_row "runs/limping-$k" 1
    limp ' actor .*--name actor-1 ' &
    limp ' actor .*--name actor-2 ' &
    until_true 60 "step 6" has_row "runs/limping-$k" 6
    kill -KILL "$(processes ' actor .*--name actor-2 ')"
    wait "$trainer" || fail "async:$k with a slow actor: $(tail -n 3 "limping-$k.err.txt")"
    wait
    wanted=$(for s in $(seq 16); do echo $((s - 1 < k ? s - 1 : k)); done | tr '\n' ' ')
    for key in stats/lag stats/max_lag; do
        got=$(column "runs/limping-$k" $key | awk '{ print $1 + 0 }' | tr '\n' ' ')
        [ "$got" = "$wanted" ] || fail "async:$k with a slow actor: $key is $got, wanted $wanted"
    done
    books "runs/limping-$k"
done

# Same seed, same run.
again() { # NAME MODEL key=value...
    local name=$1 model=$2
    shift 2
    train "$name" "${quiet[@]}" "$@"
    weights_of "runs/$name" "$name.model"
    cmp "$name.model/model.safetensors" "$model/model.safetensors" || fail "$name: other weights with $*"
}
again sync-again sync.model run.mode=sync
again sync-one sync.model run.mode=sync actor.count=1 learner.threads=2 actor.sequences_max=7
again sync-many sync.model run.mode=sync actor.count=3 actor.threads=2 learner.threads=3 actor.page_tokens=64
again async-again async-2.model run.mode=async:2 actor.count=1 learner.threads=2
train other run.mode=sync run.seed=2 "${quiet[@]}"
weights_of runs/other other.model
cmp -s other.model/model.safetensors sync.model/model.safetensors && fail "the seed changed nothing"
echo ok
