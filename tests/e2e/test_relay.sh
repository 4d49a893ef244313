#!/usr/bin/env bash
# Weights over relays: a run with actors behind them ends with the weights of one without, the learner's chunks go
# out once, a relay that is killed in mid-run is passed over, and links to relays have keys of their own.
. "$(dirname "$0")/lib.sh"
small_config
mkdir sockets
quiet=(eval.before=false eval.after=false)
patient=transport.heartbeat_ms=3000 # what a relay of a busy host gets for its announcement
endpoint=ipc://$work/sockets/learner
learner_start() { # NAME [key=value ...]: its pid in $learner
    local name=$1
    shift
    "$inflight" learner --config small.yaml model.path=start "run.name=$name" "transport.bind=$endpoint" \
        "${quiet[@]}" "$@" >"$name.txt" 2>&1 &
    learner=$!
    until_true 30 "the learner to listen" grep -sq "listening on" "$name.txt"
}
relay_start() { # NAME ENDPOINT [option ...]: its pid in $relay, where it listens
    local name=$1 at=$2
    shift 2
    "$inflight" relay --name "$name" --bind "$at" transport.relay_mib=64 "$@" >"$name.txt" 2>&1 &
    relay=$!
    until_true 30 "relay $name to listen" grep -sq "listening on" "$name.txt"
}
first=ipc://$work/sockets/first
second=ipc://$work/sockets/second

# What is mistyped is said at once.
expect 64 "$inflight" relay --bind "$first"
has err.txt "--learner"
expect 64 "$inflight" relay --learner "$endpoint" --bind tcp://192.0.2.1:5555
has err.txt "transport.keys"
expect 64 "$inflight" actor --config small.yaml model.path=start --connect "$endpoint" --relays tcp://192.0.2.1:5555
expect 64 "$inflight" actor --config small.yaml model.path=start --connect "$endpoint" --relays one,two

# `sync`, with two actors at the learner, and with two behind a relay: the same bits.
weights_of_run() { # NAME [key=value of the actors ...]
    local name=$1
    shift
    learner_start "$name" run.mode=sync run.steps=8 "$patient"
    if [ $# -gt 0 ]; then relay_start "$name-relay" "$first" --learner "$endpoint"; fi
    actor_start "$name-one" "$@"
    local one=$actor
    actor_start "$name-two" "$@"
    ended "$one" 0 "$name-one"
    ended "$actor" 0 "$name-two"
    ended "$learner" 0 "$name"
    if [ $# -gt 0 ]; then ended "$relay" 0 "$name-relay"; fi
    books "runs/$name"
    weights_of "runs/$name" "weights-$name"
}
weights_of_run plain
weights_of_run relayed --relays "$first"
cmp weights-plain/model.safetensors weights-relayed/model.safetensors || fail "other weights with a relay"
# What came in went out again, most of it twice (an actor that is held up may pass a version over).
line=$(grep " chunks, .* out; 0 refused" relayed-relay.txt | tail -n 1)
[[ $line =~ \ ([0-9]+)\ chunks,.*in\;\ ([0-9]+), ]] || fail "no count in relayed-relay.txt"
[ "${BASH_REMATCH[1]}" -gt 0 ] && [ "${BASH_REMATCH[2]}" -gt "${BASH_REMATCH[1]}" ] &&
    [ "${BASH_REMATCH[2]}" -le $((2 * BASH_REMATCH[1])) ] || fail "wanted chunks to go out up to twice: $line"

# A relay that alters what it hands on is found out, named, and not asked again; nothing else changes.
learner_start altered run.mode=sync run.steps=8 "$patient"
INFLIGHT_FAILPOINT="relay.chunk=error(EIO)@3+" relay_start altered-relay "$first" --learner "$endpoint"
actor_start altered-one --relays "$first"
one=$actor
actor_start altered-two --relays "$first"
ended "$one" 0 altered-one
ended "$actor" 0 altered-two
ended "$learner" 0 altered
ended "$relay" 0 altered-relay
weights_of runs/altered weights-altered
cmp weights-plain/model.safetensors weights-altered/model.safetensors || fail "other weights with a relay that alters them"
for name in one two; do
    [ "$(grep -c "warning: relay $first has sent a wrong chunk" "altered-$name.txt")" = 1 ] || fail "altered-$name: not named once"
done
books runs/altered

# Killed in mid-run, asleep in mid-run, back again: the run notices nothing.
learner_start killed run.steps=100000 learner.learning_rate=1e-4 transport.heartbeat_ms=200 transport.heartbeat_misses=30
relay_start first "$first" --learner "$endpoint"
first_pid=$relay
relay_start second "$second" --learner "$endpoint"
actor_start one --relays "$first,$second"
one=$actor
actor_start two --relays "$first,$second"
two=$actor
until_true 60 "step 10" has_row runs/killed 10
kill -KILL "$first_pid"
wait "$first_pid" 2>/dev/null || true
until_true 30 "the first relay to be missed" grep -q "relay $first: .*weights come from the next one" one.txt
at=$(step_rows runs/killed | tail -n 1)
until_true 60 "ten more steps" has_row runs/killed $((at + 10))
kill -STOP "$relay"
until_true 30 "the second relay to be missed" grep -q "relay $second: .*weights come from the next one" two.txt
at=$(step_rows runs/killed | tail -n 1)
until_true 60 "ten more steps" has_row runs/killed $((at + 10))
kill -CONT "$relay"
mv first.txt first-killed.txt
relay_start first "$first" --learner "$endpoint"
until_true 60 "the first relay to be of use again" grep -q "chunks, .* out" first.txt
kill -TERM "$learner"
ended "$learner" 75 killed
ended "$one" 0 one
ended "$two" 0 two
[ "$(number runs/killed/summary.json parity_tokens_differing)" = 0 ] || fail "tokens differ"
books runs/killed

# Keys: the relay has one pair for both sides, a list of its own, and actors its public key.
for name in keys rack gpu; do mkdir -m 700 "$name"; done
"$inflight" keys new keys >out.txt
"$inflight" keys new rack rack1 >out.txt
"$inflight" keys new gpu gpu1 >out.txt
cp keys/learner.public rack && cp keys/learner.public rack/rack1.public gpu
"$inflight" keys allow keys rack/rack1.public gpu/gpu1.public >out.txt
"$inflight" keys allow rack gpu/gpu1.public >out.txt
expect 0 "$inflight" keys list rack
has out.txt "1 may join"
endpoint=tcp://0.0.0.0:0
learner_start keyed run.steps=40 --keys keys
endpoint=$(sed -n 's/.*listening on \(tcp:[^ ]*\).*/\1/p' keyed.txt)
endpoint=${endpoint/0.0.0.0/127.0.0.1}
relay_start rack1 tcp://0.0.0.0:0 --learner "$endpoint" --keys rack
rack=$(sed -n 's/.*listening on \(tcp:[^ ]*\).*/\1/p' rack1.txt)
expect 64 "$inflight" actor --config small.yaml model.path=start --connect "$endpoint" --keys gpu --relays "${rack/0.0.0.0/127.0.0.1}"
has err.txt "NAME="
actor_start keyed-one --keys gpu --relays "rack1=${rack/0.0.0.0/127.0.0.1}"
ended "$learner" 0 keyed
ended "$actor" 0 keyed-one
ended "$relay" 0 rack1
has keyed-one.txt "relay rack1 is there"
grep -qE " [1-9][0-9]* chunks, .* out; [0-9]+ refused" rack1.txt || fail "nothing went over the relay with keys"
books runs/keyed
until_true 10 "all processes to end" is_gone
echo ok
