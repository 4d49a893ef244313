#!/usr/bin/env bash
# `inflight replay`: trajectories of a run with swaps in their middle come out again bit for bit, in both KV modes and
# after a resume; a changed record, a changed or missing version are told.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false)

# Slow actors: new weights must find them in the middle of something.
export INFLIGHT_FAILPOINT="actor.step=sleep(1)@1+"
for kv in keep recompute; do
    train "$kv" "actor.kv=$kv" run.steps=10 checkpoint.every_steps=5 learner.groups_in_flight=80 actor.sequences_max=6 "${quiet[@]}"
    expect 0 "$inflight" replay "$kv"
    n=$(sed -n 's/^replayed \([0-9]*\) traj.*; 0 differ in token or log-prob; 0 trajectories not replayable$/\1/p' out.txt)
    holds "${n:-0} >= 320" "$kv: $(cat out.txt)"
    swapped=$(sed -n 's/^replayed [0-9]* trajectories, \([0-9]*\) of them.*/\1/p' out.txt)
    holds "$swapped > 0" "$kv: no trajectory took in new weights"
    expect 0 "$inflight" replay "$kv" --swapped --json
    [ "$(grep -c '"differing":0,"replayed":true' out.txt)" = "$swapped" ] || fail "$kv: $(head -n 3 out.txt)"
    expect 0 "$inflight" replay "$kv" --random 20 --seed 3
    has out.txt "replayed 20 trajectories"
done
unset INFLIGHT_FAILPOINT
# One by its name, and one that doesn't exist.
name=$("$inflight" rollouts keep --tail 1 --json | sed 's|.*"serial":\([0-9]*\),"sample":\([0-9]*\).*|\1/\2|')
expect 0 "$inflight" replay keep "$name"
has out.txt "$name: "
expect 65 "$inflight" replay keep 99999999/0
has err.txt "no such trajectory"
expect 64 "$inflight" replay keep one
has err.txt "wanted SERIAL/SAMPLE"

# A second process goes on; what it has taken over from the first may name versions that only that one has archived.
# Killed where the actors have long sampled from a version, and its publisher has got no further than to announce it.
kill_after() {
    export INFLIGHT_FAILPOINT="publish.announced=sleep(60000)@7"
    train_start resumed run.steps=30 checkpoint.every_steps=4 run.seed=5 "${quiet[@]}"
    unset INFLIGHT_FAILPOINT
    until_true 60 "step 7" has_row runs/resumed 7
    kill -KILL "$trainer" $(processes ' actor ')
    wait "$trainer" || true
}
kill_after 2>/dev/null
train resumed run.steps=10 checkpoint.every_steps=4 run.seed=5 run.resume=true "${quiet[@]}"
[ "$(ls runs/resumed/versions | wc -l)" = 2 ] || fail "two processes, $(ls runs/resumed/versions | wc -l) archives"
expect 0 "$inflight" replay resumed
has out.txt "; 0 differ in token or log-prob; 0 trajectories not replayable"

# A version that was changed is noticed by its hash; one that is gone is named; the others still work.
file=$(ls runs/keep/versions/*/v0000000003.ifw)
cp "$file" saved.ifw
printf '\377' | dd of="$file" bs=1 seek=$(($(stat -c %s "$file") - 9)) conv=notrunc status=none
"$inflight" replay keep >out.txt 2>err.txt || true
has out.txt "has another hash than it says"
rm "$file"
expect 0 "$inflight" replay keep
has out.txt "version 3 is gone"
cp saved.ifw "$file"
expect 0 "$inflight" replay keep
has out.txt "; 0 trajectories not replayable"

# Without an archive there is nothing to replay from, and it says so.
train none archive.versions_gib=0 run.steps=2 "${quiet[@]}"
expect 65 "$inflight" replay none
has out.txt "the run kept no versions"
# With little room the oldest go.
train little archive.versions_gib=0.0002 run.steps=4 transport.patch_versions=0 "${quiet[@]}"
[ "$(ls runs/little/versions/*/*.ifw | wc -l)" -lt 5 ] || fail "the byte limit does not hold"
