#!/usr/bin/env bash
# Learner and actors started apart, over TCP: an actor that comes late takes part, one that is asked to leave
# hands its work back, one with another seed or model is refused, and all end when the learner does.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false)

steps=400
# Port 0: the system chooses, the log says which.
"$inflight" learner --config small.yaml model.path=start run.name=apart "run.steps=$steps" \
    transport.bind=tcp://127.0.0.1:0 "${quiet[@]}" >learner.txt 2>&1 &
learner=$!
until_true 30 "the learner to listen" grep -sq "listening on" learner.txt
endpoint=$(sed -n 's/.*listening on \(tcp:[^ ]*\).*/\1/p' learner.txt)
[[ $endpoint =~ ^tcp://127\.0\.0\.1:[1-9][0-9]*$ ]] || fail "the learner listens on '$endpoint'"

actor_start one
one=$actor
until_true 60 "step 3" has_row runs/apart 3
actor_start late
late=$actor
until_true 30 "the late actor to join" grep -sq "late joined" learner.txt
actor_start seed run.seed=2
ended "$actor" 65 seed
"$inflight" sft --config small.yaml model.n_layers=1 'data.train=[{name: ladder, generator: ladder, split: train, steps_max: 3}]' \
    sft.steps=1 sft.out=other >sft.txt 2>&1 || fail "sft: $(tail -n 3 sft.txt)"
actor_start other model.path=other
ended "$actor" 65 other
kill -TERM "$one"
ended "$one" 0 one
ended "$learner" 0 learner
ended "$late" 0 late
[ "$(number runs/apart/summary.json steps)" = "$steps" ] || fail "wanted $steps steps"
books runs/apart
"$inflight" rollouts apart --json >rollouts.txt
for name in one late; do
    grep -q "\"actor\":\"$name\"" rollouts.txt || fail "no answer of $name was used"
done
is_gone || fail "processes are left over: $(processes)"

# The learner is killed between two checkpoints and goes on from the last one: it makes other weights under
# version numbers that its actors know already. One actor meets it at once; the other one sleeps until those
# numbers have been used again, and wakes with half-done answers of the lost history to tasks that are still open:
# not one of them may be trained on.
mkdir sockets
endpoint=ipc://$work/sockets/again.sock
again_start() { # [key=value ...]: the learner, its pid in $learner
    "$inflight" learner --config small.yaml model.path=start run.name=again "transport.bind=$endpoint" \
        transport.heartbeat_ms=100 transport.heartbeat_misses=10 checkpoint.every_steps=20 run.steps=100000 \
        learner.learning_rate=1e-4 learner.groups_in_flight=60 parity.versions_kept=256 "${quiet[@]}" "$@" >"learner-$1.txt" 2>&1 &
    learner=$!
}
again_start run.seed=1
many=(actor.sequences_max=100 actor.kv_tokens=16384)
actor_start awake "${many[@]}"
awake=$actor
actor_start asleep "${many[@]}"
asleep=$actor
until_true 60 "step 25" has_row runs/again 25
kill -STOP "$asleep"
kill -KILL "$learner"
wait "$learner" 2>/dev/null || true
at=$(newest_checkpoint runs/again)
last=$(step_rows runs/again | tail -n 1)
[ "$last" -gt "$at" ] || fail "killed at step $last, right at the checkpoint of step $at"
again_start run.resume=true
until_true 60 "step $((last + 1)) of the resumed run" has_row runs/again $((last + 1))
kill -STOP "$awake" # the learner has to wait: the tasks stay open
has learner-run.resume=true.txt "resumed from step $at"
kill -CONT "$asleep"
until_true 30 "the other actor to join" grep -sq "asleep joined" learner-run.resume=true.txt
kill -CONT "$awake"
from=$(step_rows runs/again | tail -n 1)
until_true 60 "more steps" has_row runs/again $((from + 40))
kill -TERM "$learner"
ended "$learner" 75 learner-run.resume=true
ended "$awake" 0 awake
ended "$asleep" 0 asleep
has awake.txt "started anew"
has asleep.txt "started anew"
books runs/again
has books.txt '"processes": 2'
for key in parity_tokens_differing parity_tokens_not_checkable; do
    [ "$(number runs/again/summary.json $key)" = 0 ] || fail "$key: $(number runs/again/summary.json $key)"
done
holds "$(number runs/again/summary.json parity_tokens_checked) == $(number runs/again/summary.json tokens_trained)"
# Both took part again.
"$inflight" rollouts again --json >rollouts.txt
for name in awake asleep; do
    newest=$(sed -n "/\"actor\":\"$name\"/s/.*\"fate\":\"trained\".*\"step\":\([0-9]*\),.*/\1/p" rollouts.txt | sort -n | tail -n 1)
    [ "${newest:-0}" -gt "$from" ] || fail "no answer of $name was trained on after step $from, but until ${newest:-none}"
done

# Sockets in a folder leave no file behind.
endpoint=ipc://$work/sockets/learner.sock
"$inflight" learner --config small.yaml model.path=start run.name=ipc run.steps=3 "transport.bind=$endpoint" \
    "${quiet[@]}" >learner.txt 2>&1 &
learner=$!
actor_start one
ended "$learner" 0 learner
ended "$actor" 0 one
books runs/ipc
echo ok
