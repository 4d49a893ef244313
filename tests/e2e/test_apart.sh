#!/usr/bin/env bash
# Learner and actors started apart, over TCP: an actor that comes late takes part, one that is asked to leave
# hands its work back, one with another seed or model is refused, and all end when the learner does.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false)

actor_start() { # NAME [key=value ...]: its pid in $actor
    local name=$1
    shift
    "$inflight" actor --config small.yaml model.path=start --connect "$endpoint" --name "$name" "$@" >"$name.txt" 2>&1 &
    actor=$!
}
ended() { # PID STATUS NAME
    local status=0
    wait "$1" || status=$?
    [ "$status" = "$2" ] || fail "$3 ended with $status, wanted $2: $(tail -n 3 "$3".txt)"
}

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

# Sockets in a folder leave no file behind.
endpoint=ipc://$work/sockets/learner.sock
mkdir sockets
"$inflight" learner --config small.yaml model.path=start run.name=ipc run.steps=3 "transport.bind=$endpoint" \
    "${quiet[@]}" >learner.txt 2>&1 &
learner=$!
actor_start one
ended "$learner" 0 learner
ended "$actor" 0 one
books runs/ipc
echo ok
