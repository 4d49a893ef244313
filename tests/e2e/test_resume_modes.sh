#!/usr/bin/env bash
# Killed and resumed in the lock-step modes where the log's answers name other versions than a resumed run asks for: with
# another k or smaller batches, and after actors were lost in mid-batch, so that its work was pinned to a newer version. And
# with a damaged log: that costs the books and what came before the damage, and not the run.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false parity.audit=0)
kill_all() { # PID...
    {
        kill -KILL "$@" $(processes ' actor ')
        [ $# = 0 ] || wait "$@"
    } 2>/dev/null || true
}
same_again() { # RUN
    books "runs/$1"
    grep -q '"generated_again": *0,' books.txt || fail "$1: acknowledged answers were generated again"
    grep -q '"versions_remade": *0,' books.txt || fail "$1: versions were made again with other weights"
}

for change in async:1/async:4 sync/async:2 async:4/sync; do
    name=${change//[:\/]/}
    train_start "$name" "${quiet[@]}" checkpoint.every_steps=10 run.steps=40 "run.mode=${change%/*}"
    until_true 60 "step 25" has_row "runs/$name" 25
    kill_all "$trainer"
    train "$name" "${quiet[@]}" checkpoint.every_steps=10 run.steps=40 "run.mode=${change#*/}" run.resume=true
    has "$name.err.txt" "stored answers are back from the log"
    same_again "$name"
    echo "$change: $(sed -n 's/.*learner | \(.*are back.*\)/\1/p' "$name.err.txt")"
done

# Fewer groups a step, or another mode, than when the checkpoint's groups were opened: what is stored of them is trained, and
# said to be older than the mode allows; all else keeps to the mode.
for change in rollout.prompts_per_step=3 run.mode=sync; do
    name=less-${change%%=*}
    train_start "$name" "${quiet[@]}" run.mode=async:2 run.steps=40
    until_true 60 "step 12" has_row "runs/$name" 12
    kill -TERM "$trainer"
    wait "$trainer" || true
    train "$name" "${quiet[@]}" run.mode=async:2 run.steps=40 "$change" run.resume=true
    books "runs/$name"
    most=2
    [ "$change" = run.mode=sync ] && most=0
    lag=$(column "runs/$name" stats/max_lag | tail -n 12 | sort -n | tail -n 1)
    holds "$lag <= $most" "lag at the end of $name"
    has "$name.err.txt" "groups were open at the checkpoint; run.mode and rollout.prompts_per_step"
    has "$name.err.txt" "some are trained at a lag of up to"
done

# All actors are lost, twice, with a version published in between.
pins=("${quiet[@]}" checkpoint.every_steps=0 run.steps=24 run.mode=async:2 actor.sequences_max=4)
mkdir -p sockets
endpoint=ipc://$work/sockets/s.sock
learner_start() {
    "$inflight" learner --config small.yaml model.path=start run.name=pins "transport.bind=$endpoint" "${pins[@]}" "$@" \
        >>learner.txt 2>&1 &
    learner=$!
}
n=0
two_actors() {
    local i
    for i in 1 2; do
        n=$((n + 1))
        INFLIGHT_FAILPOINT="actor.step=sleep(1)@1+" actor_start "actor-$n" "${pins[@]}"
    done
}
lost_after() { # STEP
    until_true 60 "step $1" has_row runs/pins "$1"
    kill_all
    two_actors
}
learner_start
two_actors
lost_after 4
lost_after "$(($(step_rows runs/pins | tail -n 1) + 1))"
lost_after "$(($(step_rows runs/pins | tail -n 1) + 1))"
until_true 60 "another step" has_row runs/pins "$(($(step_rows runs/pins | tail -n 1) + 2))"
kill_all "$learner"
has learner.txt "no actor has version"
learner_start run.resume=true
two_actors
ended "$learner" 0 learner
has learner.txt "stored answers are back from the log"
same_again pins

# One bit of an old record.
damaged=("${quiet[@]}" checkpoint.every_steps=10 run.steps=40 run.mode=sync)
train_start damaged "${damaged[@]}"
until_true 60 "step 25" has_row runs/damaged 25
kill_all "$trainer"
log=runs/damaged/rollouts/000001.ifl
at=$(($(stat -c %s $log) / 3))
flipped=$(($(od -An -tu1 -j "$at" -N1 "$log") ^ 4))
printf "\\$(printf %03o "$flipped")" | dd of=$log bs=1 "seek=$at" conv=notrunc 2>/dev/null
for again in 1 2; do
    train damaged "${damaged[@]}" run.resume=true
    has damaged.err.txt "some is done anew: runs/damaged/rollouts/000001.ifl: offset"
    has damaged.err.txt "books cannot be balanced"
    [ "$(step_rows runs/damaged | tail -n 1)" = 40 ] || fail "not at its end"
    has runs/damaged/summary.json '"trajectories_lost": null'
    expect 65 "$inflight" rollouts damaged --check
done
