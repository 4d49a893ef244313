#!/usr/bin/env bash
# Actors come and go: one that is asked to leave hands over what it has begun, and another goes on from there, in every
# mode and in both KV modes; no answer is lost, every one can be replayed, and sync trains to the weights of the
# undisturbed run.
. "$(dirname "$0")/lib.sh"
small_config
# Slow actors (a pause in each decode step), and a learner that waits for them: they have begun something whenever they are
# asked to leave.
quiet=(eval.before=false eval.after=false learner.groups_in_flight=60 learner.learning_rate=1e-5 parity.audit=0
    actor.sequences_max=16)

# run_with_leavers NAME STEPS [key=value ...]: two actors; again and again one comes and the older one is asked to leave.
run_with_leavers() {
    local name=$1 steps=$2 actors=() n=0
    shift 2
    mkdir -p sockets
    endpoint=ipc://$work/sockets/$name.sock
    "$inflight" learner --config small.yaml model.path=start "run.name=$name" "run.steps=$steps" \
        "transport.bind=$endpoint" "${quiet[@]}" "$@" >"$name.learner.txt" 2>&1 &
    learner=$!
    until_true 30 "the learner to listen" grep -sq "listening on" "$name.learner.txt"
    INFLIGHT_FAILPOINT="actor.step=sleep(1)@1+" actor_start "$name-0" "${quiet[@]}" "$@" && actors+=("$actor")
    until_true 60 "step 2" has_row "runs/$name" 2
    for n in 1 2 3 4; do
        INFLIGHT_FAILPOINT="actor.step=sleep(1)@1+" actor_start "$name-$n" "${quiet[@]}" "$@" && actors+=("$actor")
        until_true 30 "$name-$n to join" grep -sq "$name-$n joined" "$name.learner.txt"
        until_true 30 "answers of $name-$n" has_answer_of "$name" "$name-$n"
        kill -TERM "${actors[n - 1]}" 2>/dev/null || break
        ended "${actors[n - 1]}" 0 "$name-$((n - 1))"
        grep -q "asked to stop: all answers are handed over" "$name-$((n - 1)).txt" ||
            fail "$name-$((n - 1)): $(tail -n 2 "$name-$((n - 1)).txt")"
    done
    [ "$n" = 4 ] || fail "$name was over when actor $n had come: more steps"
    ended "$learner" 0 "$name.learner"
    books "runs/$name"
    tokens=$(sed -n 's/.*had begun [0-9]* of them: others go on from its \([0-9]*\) tokens/\1/p' "$name.learner.txt" |
        awk '{ n += $1 } END { print n + 0 }')
    # Lock-step modes have moments without work.
    [ "$tokens" -gt 0 ] || [ "$name" = sync ] || fail "$name: nobody handed anything over that was begun"
    expect 0 "$inflight" replay "$name"
    has out.txt "; 0 differ in token or log-prob; 0 trajectories not replayable"
    echo "$name: 4 left, $tokens tokens handed on; $(tail -n 1 out.txt)"
}
has_answer_of() { "$inflight" rollouts "$1" --json 2>/dev/null | grep "\"actor\":\"$2\"" >/dev/null; }

run_with_leavers keep 60 actor.kv=keep
run_with_leavers recompute 60 actor.kv=recompute
run_with_leavers async 40 run.mode=async:2
run_with_leavers sync 30 run.mode=sync
train calm run.mode=sync run.steps=30 "${quiet[@]}"
weights_of runs/sync sync.model
weights_of runs/calm calm.model
cmp sync.model/model.safetensors calm.model/model.safetensors || fail "sync: other weights than undisturbed"
