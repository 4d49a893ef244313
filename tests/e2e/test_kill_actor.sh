#!/usr/bin/env bash
# Actors may vanish at any time: one is killed, another freezes and comes back; the run ends well, nothing is
# lost and nothing is trained twice.
. "$(dirname "$0")/lib.sh"
small_config
steps=300

# The freeze must outlast the heartbeat's patience (3 x 200 ms), so that the learner gives the actor up.
train_start killed "run.steps=$steps" eval.before=false eval.after=false transport.heartbeat_ms=200 \
    transport.heartbeat_misses=3
until_true 60 "step 3" has_row runs/killed 3
victim=$(processes ' actor .*--name actor-1 ')
[ -n "$victim" ] || fail "no process of actor-1"
kill -KILL "$victim"
until_true 60 "actor-1 to be started again" grep -sq "starting it again" killed.err.txt
sleeper=$(processes ' actor .*--name actor-2 ')
[ -n "$sleeper" ] || fail "no process of actor-2"
kill -STOP "$sleeper"
until_true 60 "the frozen actor to be given up" grep -sq "actor-2 is gone" killed.err.txt
kill -CONT "$sleeper"
status=0
wait "$trainer" || status=$?
[ "$status" = 0 ] || fail "train ended with $status: $(tail -n 5 killed.err.txt)"
[ "$(number runs/killed/summary.json steps)" = "$steps" ] || fail "wanted $steps steps"
books runs/killed
has books.txt '"trained_twice": 0'
has books.txt '"conflicting": 0'
renewed=$(sed -n 's/.*"leases_renewed": \([0-9]*\).*/\1/p' books.txt)
[ "$renewed" -gt 0 ] || fail "no lease was renewed: the kill came too late to mean anything"
[ "$(number runs/killed/summary.json parity_tokens_differing)" = 0 ] || fail "parity differs"
until_true 10 "all processes to end" is_gone

# Killed as often as it is started, until it is given up: the other one does the work.
kill_again() {
    local pid
    for pid in $(processes ' actor .*--name actor-1 '); do kill -KILL "$pid" 2>/dev/null || true; done
    grep -q "not starting it again" often.err.txt
}
train_start often run.steps=300 eval.before=false eval.after=false
until_true 60 "actor-1 to be given up" kill_again
status=0
wait "$trainer" || status=$?
[ "$status" = 0 ] || fail "train ended with $status: $(tail -n 5 often.err.txt)"
[ "$(number runs/often/summary.json steps)" = 300 ] || fail "often: wanted 300 steps"
books runs/often
echo "ok: $renewed leases renewed"
