#!/usr/bin/env bash
# The bias ledger: each cause alone moves its own entry and no other, exactly; the figures come out again when another
# process scores the record from the log and the archive, and by another route; budgets raise alarms.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false ledger.sample=1)

entry() { # RUN ENTRY FIELD: of the run's sum
    sed -n "s|.*\"$2/$3\":\([^,}]*\)[,}].*|\1|p" "$1.json"
}
ledger() { # RUN
    expect 0 "$inflight" ledger "runs/$1" --json
    cp out.txt "$1.json"
    expect 0 "$inflight" ledger "runs/$1" --check
    cp out.txt "$1.checked.txt"
    has out.txt " 0 of $(sed -n 's/.*: 0 of \([0-9]*\) figures differ.*/\1/p' out.txt) figures differ; by another route 0 of "
    has out.txt " log-probs differ; 0 steps not checkable"
    has out.txt " 0 log-probs with other bits than recorded, 0 sums that do not close"
    [ "$(entry "$1" total n)" -gt 500 ] || fail "$1: only $(entry "$1" total n) tokens"
    expect 0 "$inflight" report "runs/$1"
    has "runs/$1/report.html" "<b>Bias ledger</b>"
}
# In pipeline mode a version may be overtaken before it is published, and then it is in no archive.
checkable() { "$inflight" ledger "runs/$1" --check 2>&1 | grep -qF "; 0 steps not checkable"; }
only() { # RUN ENTRIES...: these have moved tokens, the others are 0 to the bit
    local run=$1 e field
    shift
    for e in numerics truncation stale_kv lag; do
        if [[ " $* " == *" $e "* ]]; then
            [ "$(entry "$run" $e moved)" -gt 0 ] || fail "$run: $e has not moved"
            holds "$(entry "$run" $e kl) > 0" "$run: exact KL of $e"
        else
            [ "$(entry "$run" $e moved)" = 0 ] || fail "$run: $e has moved"
            for field in log_r k3 max kl gain_positive gain_negative; do
                [ "$(entry "$run" $e $field)" = 0.0 ] || fail "$run: $e/$field is $(entry "$run" $e $field)"
            done
        fi
    done
}

same_reversed() { # RUN: the other order of causes gives the same, bit for bit
    local e field
    for e in truncation stale_kv lag; do
        for field in n moved above_2 kl_n log_r k3 w w2 max kl gain_positive gain_negative; do
            [ "$(entry "$1" "reversed_$e" $field)" = "$(entry "$1" $e $field)" ] ||
                fail "$1: $e/$field is $(entry "$1" $e $field), reversed $(entry "$1" "reversed_$e" $field)"
        done
    done
}
# intervals RUN ENTRY: of the run's mean, an interval with it inside; of an entry that has not moved, nothing but 0.
intervals() {
    local low high mean
    low=$(entry "$1" "$2" nats_low) high=$(entry "$1" "$2" nats_high)
    if [ "$(entry "$1" "$2" moved)" = 0 ]; then
        [ "$low $high" = "0.0 0.0" ] || fail "$1: $2 has not moved, and is $low to $high"
    else
        mean="$(entry "$1" "$2" kl) / $(entry "$1" "$2" kl_n)"
        holds "$low < $mean && $mean < $high && $low > 0" "$1: $2"
    fi
    mean="-($(entry "$1" "$2" log_r)) / $(entry "$1" "$2" n)"
    holds "$(entry "$1" "$2" k1_low) <= $mean && $mean <= $(entry "$1" "$2" k1_high)" "$1: k1 of $2"
}
differs_reversed() { # RUN ENTRY: the other order gives something else: they interact
    [ "$(entry "$1" "reversed_$2" k3)" != "$(entry "$1" "$2" k3)" ] || fail "$1: no interaction in $2"
}

train top_p run.mode=sync rollout.top_p=0.9 run.steps=4 "${quiet[@]}" ledger.budget_truncation=1e-9 ledger.budget_lag=1e-9
ledger top_p
only top_p truncation
same_reversed top_p
expect 0 "$inflight" ledger runs/top_p
has out.txt "reversed: lag, stale KV, truncation"
has runs/top_p/report.html "truncation, in the other order"
# log Z of a set of nine tenths of the mass, at least: a tenth of a nat, at most.
holds "$(entry top_p truncation max) <= 0.105361" "top_p 0.9 keeps 0.9"
grep -qh "the bias ledger's truncation is 0.0[0-9]* nats per token, ledger.budget_truncation is 1e-09" top_p.*.txt runs/top_p/logs/* ||
    fail "no warning"
[ "$(number runs/top_p/summary.json bias_alarms)" = 4 ] || fail "a budget below the cost is an alarm each step"


train lag run.mode=async:4 run.steps=8 "${quiet[@]}"
ledger lag
only lag lag
same_reversed lag
[ -z "$(entry lag lag_5 n)" ] || fail "async:4 has a lag above 4"
holds "$(entry lag lag_4 kl) / $(entry lag lag_4 kl_n) > $(entry lag lag_1 kl) / $(entry lag lag_1 kl_n)" "older costs more"
[ "$(number runs/lag/summary.json bias_alarms)" = 0 ] || fail "no budget, no alarm"

# Kept KV comes with lag: both, and numerics stay 0. Rebuilt KV leaves the lag alone.
for kv in keep recompute; do
    # On a busy machine actors may be through with an answer before new weights come: such a run shows nothing.
    for _ in 1 2 3 4 5 6; do
        train "$kv" "actor.kv=$kv" run.steps=16 run.overwrite=true learner.groups_in_flight=128 \
            learner.learning_rate=0.003 "${quiet[@]}"
        [ "$(number "runs/$kv/summary.json" trajectories_multi_version)" -gt 4 ] && checkable "$kv" && break
    done
    [ "$(number "runs/$kv/summary.json" trajectories_multi_version)" -gt 0 ] || fail "$kv: no swap under way"
    ledger "$kv"
done
only keep stale_kv lag
only recompute lag
same_reversed recompute
[ "$(entry keep reversed_stale_kv moved)" -gt 0 ] || fail "keep: stale KV has not moved in the other order"

# Two causes at a time: of the distribution that is cut off other weights make another one.
train both run.mode=async:4 run.steps=8 rollout.top_p=0.9 learner.learning_rate=0.003 "${quiet[@]}"
ledger both
only both truncation lag
differs_reversed both lag
differs_reversed both truncation
[ "$(entry both reversed_stale_kv moved)" = 0 ] || fail "both: stale KV without any"
for run in top_p lag keep both; do
    for e in truncation stale_kv lag total reversed_truncation reversed_stale_kv reversed_lag; do intervals $run $e; done
    [ "$(sed -n 's|.*"resampled":\([0-9]*\),.*|\1|p' $run.json)" -gt 100 ] || fail "$run: hardly an answer was resampled"
done
expect 0 "$inflight" ledger runs/both
has out.txt "95 % of the means over whole answers"
has runs/both/report.html "95 % of nats, over answers"
grep -q '"kind":"ledger".*"lag/nats_low":[0-9]' runs/lag/ledger.jsonl || fail "no interval of a step"

# A clipped loss: the chain is what it is, and the correction says what was cut.
train clip run.mode=async:4 run.steps=6 learner.loss=dapo learner.learning_rate=0.003 "${quiet[@]}"
ledger clip
only clip lag
holds "$(entry clip correction dropped) > 0 && $(entry clip correction mass_dropped) > 0" "clips drop tokens"

# A learner that is killed makes steps again, with other weights under the same numbers: they count once, and each
# process's answers are scored with its own versions.
for _ in 1 2 3 4; do
    rm -rf runs/resumed
    train_start resumed run.steps=9 actor.kv=keep checkpoint.every_steps=3 "${quiet[@]}"
    until_true 60 "step 5" has_row runs/resumed 5
    kill -KILL "$trainer" && wait "$trainer" 2>/dev/null || true
    until_true 20 "the end of its actors" is_gone
    "$inflight" train --config small.yaml model.path=start run.name=resumed run.steps=9 actor.kv=keep checkpoint.every_steps=3 \
        run.resume=true "${quiet[@]}" >resumed.out.txt 2>resumed.err.txt || fail "resume: $(tail -n 3 resumed.err.txt)"
    checkable resumed && break
done
ledger resumed
[ "$(grep -c '"kind":"ledger"' runs/resumed/ledger.jsonl)" -gt 9 ] || fail "no step was made again"
has resumed.checked.txt "runs/resumed: 9 steps with "

# Runs side by side.
expect 0 "$inflight" ledger runs/recompute runs/keep runs/top_p
has out.txt "1.00x"
[ "$(grep -c "pipeline, kv keep  " out.txt)" = 1 ] || fail "$(tail -n 6 out.txt)"

# Tampered with, it says so; without a sample there is nothing to see, and none was taken by default off.
sed -i '/"kind":"ledger"/s|"lag/k3":\([0-9]\)|"lag/k3":1\1|' runs/lag/ledger.jsonl
expect 65 "$inflight" ledger runs/lag --check
has out.txt "lag/k3: the file says"
sed -i '1s|"reversed_lag/log_r":\(-\{0,1\}\)\([0-9]\)|"reversed_lag/log_r":\11\2|' runs/both/ledger.jsonl
expect 65 "$inflight" ledger runs/both --check
has out.txt "reversed_lag/log_r: the file says"
has out.txt "the run, reversed_lag/k1_"
train none run.mode=sync run.steps=2 eval.before=false eval.after=false ledger.sample=0
[ ! -e runs/none/ledger.jsonl ] || fail "a ledger without a sample"
expect 65 "$inflight" ledger runs/none
has err.txt "ledger.sample"
