#!/usr/bin/env bash
# A run that is resumed with another learning rate can't do again what it did: it says so, and generates the rest anew, no
# more of it at a time than a run does that was never interrupted (else all that was open would be old before it is trained).
# Killed and resumed once more, it does again what came after that, and not what came before.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false run.steps=60 checkpoint.every_steps=0 parity.audit=0)
kill_all() {
    {
        kill -KILL "$trainer"
        kill -KILL $(processes ' actor ')
        wait "$trainer"
    } 2>/dev/null || true
}
count() { "$inflight" rollouts a --check | sed -n "s/^ *\"$1\": *\([0-9]*\).*/\1/p"; }

train calm "${quiet[@]}"
usual=$(column runs/calm stats/max_lag | sort -n | tail -n 1)

train_start a "${quiet[@]}"
until_true 60 "step 40" has_row runs/a 40
kill_all
stored=$(count stored)
rows=$(wc -l <runs/a/metrics.jsonl)
other=("${quiet[@]}" learner.learning_rate=9e-4 checkpoint.every_steps=10)
train_start a run.resume=true "${other[@]}"
until_true 60 "step 25 again" sh -c "tail -n +$((rows + 1)) runs/a/metrics.jsonl | grep -q '\"step\":25,'"
kill_all
# The first one that was published: one that is overtaken at once never is.
grep -q "cannot be done again: version [1-9] has other weights than then" a.err.txt || fail "nothing differs: $(tail -n 3 a.err.txt)"
lag=$(tail -n +$((rows + 1)) runs/a/metrics.jsonl >later.jsonl && mkdir -p later && mv later.jsonl later/metrics.jsonl &&
    column later stats/max_lag | sort -n | tail -n 1)
holds "$lag <= $usual + 2" "lag after giving up, and of a run that was never interrupted"
train a run.resume=true "${other[@]}"
has a.err.txt "stored answers are back from the log"
# What the first process had, once, but for the answers of version 0, and nothing that the second one had.
again=$(count generated_again)
[ "$again" -le "$stored" ] || fail "$stored answers were stored by the first process, generated again were $again"
books runs/a
echo "lag $lag after giving up, $usual without; $again of $stored answers generated again"
