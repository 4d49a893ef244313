#!/usr/bin/env bash
# Learner and actors on addresses that other hosts could reach: refused without keys; with them a run trains, a
# stranger and a peer without keys are turned away while it goes on, and the list may change meanwhile.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false)

# An address of this host that is not loopback; without one, all addresses through loopback.
address=$(ip -4 -o addr show scope global 2>/dev/null | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | head -n 1) || true
bind=tcp://0.0.0.0:0

# Keys: made once, readable by their user alone, copied as the command says.
expect 0 "$inflight" keys new keys
has out.txt "inflight keys new keys NAME"
expect 0 "$inflight" keys new keys gpu1
has out.txt "may join"
[ "$(stat -c %a keys/learner.secret keys/gpu1.secret | tr '\n' ' ')" = "600 600 " ] || fail "modes: $(ls -l keys)"
expect 64 "$inflight" keys new keys
has err.txt "never overwritten"
expect 64 "$inflight" keys new keys gpu1
expect 64 "$inflight" keys new keys ../x
expect 64 "$inflight" keys
expect 64 "$inflight" keys frobnicate keys
expect 65 "$inflight" keys list nowhere
mkdir -m 700 gpu1 && cp -p keys/gpu1.secret keys/learner.public gpu1
# A pair whose secret never leaves its host.
expect 0 "$inflight" keys new late late
has out.txt "inflight keys allow FOLDER late.public"
cp keys/learner.public late
expect 0 "$inflight" keys new stranger stranger
cp keys/learner.public stranger
expect 0 "$inflight" keys list keys
has out.txt "1 may join"

# Without keys nothing leaves the host, unless the user says so; and a secret must be one.
expect 64 "$inflight" learner --config small.yaml model.path=start --bind tcp://0.0.0.0:0
has err.txt "inflight keys new"
expect 64 "$inflight" actor --config small.yaml model.path=start --connect tcp://192.0.2.1:5555
has err.txt "transport.keys"
chmod 644 keys/learner.secret
expect 64 "$inflight" learner --config small.yaml model.path=start --bind "$bind" --keys keys
has err.txt "chmod 600 keys/learner.secret"
chmod 600 keys/learner.secret
[ ! -e runs/small ] || fail "a refused command left a run"

learner_start() { # NAME [key=value ...]: its pid in $learner, its address in $endpoint
    local name=$1
    shift
    "$inflight" learner --config small.yaml model.path=start "run.name=$name" --bind "$bind" --keys keys "${quiet[@]}" "$@" \
        >"$name.txt" 2>&1 &
    learner=$!
    until_true 30 "the learner to listen" grep -sq "listening on" "$name.txt"
    endpoint=$(sed -n 's/.*listening on \(tcp:[^ ]*\).*/\1/p' "$name.txt")
    endpoint=${endpoint/0.0.0.0/${address:-127.0.0.1}}
}
learner_start far run.steps=400
actor_start one --keys gpu1
one=$actor
until_true 60 "step 3" has_row runs/far 3
actor_start stranger --keys stranger
ended "$actor" 77 stranger
has stranger.txt "inflight keys allow FOLDER stranger.public"
insecure=transport.insecure=true
"$inflight" actor --config small.yaml model.path=start --connect "$endpoint" --name plain "$insecure" >plain.txt 2>&1 &
plain=$!
# Allowed while the run goes on.
expect 0 "$inflight" keys allow keys late/late.public
kill -HUP "$learner"
until_true 10 "the list to be read again" grep -q "2 actors' keys are allowed now" far.txt
actor_start late --keys late
late=$actor
until_true 30 "the late actor to join" grep -q "late joined" far.txt
ended "$learner" 0 far
ended "$one" 0 one
ended "$late" 0 late
kill -KILL "$plain" 2>/dev/null || true
! grep -q "plain joined\|stranger joined" far.txt || fail "someone without a key has joined"
grep -q "refused [0-9]* links" far.txt || fail "refused links are not in the learner's log"
[ "$(number runs/far/summary.json steps)" = 400 ] || fail "wanted 400 steps"
books runs/far
"$inflight" rollouts far --json >rollouts.txt
for name in one late; do
    grep -q "\"actor\":\"$name\"" rollouts.txt || fail "no answer of $name was used"
done

# `train` gives the actors that it starts itself a key of their own; others may join it.
train_start near --bind "tcp://0.0.0.0:${endpoint##*:}" --keys keys run.steps=300 "${quiet[@]}"
until_true 60 "step 3" has_row runs/near 3
endpoint=$(sed -n 's/.*listening on \(tcp:[^ ]*\).*/\1/p' near.err.txt)
endpoint=${endpoint/0.0.0.0/${address:-127.0.0.1}}
actor_start two --keys gpu1
until_true 30 "another host's actor to join" grep -q "two joined" near.err.txt
ended "$trainer" 0 near.err
ended "$actor" 0 two
books runs/near
is_gone || fail "processes are left over: $(processes)"
echo ok
