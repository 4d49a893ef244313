#!/usr/bin/env bash
# One flipped bit of one recorded log-prob ends a run in every mode, by the audit and by the train guard; the
# message says which token, whose versions and both values, and the checkpoint before it is kept and can be gone on
# from. Without the flip the same runs reach their end.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false)

# flipped NAME [key=value ...]: a run that must end with 65.
flipped() {
    local name=$1 status=0 text
    shift
    "$inflight" train --config small.yaml model.path=start "run.name=$name" "${quiet[@]}" "$@" \
        >"$name.out.txt" 2>"$name.err.txt" || status=$?
    [ "$status" = 65 ] || fail "$name ended with $status, wanted 65: $(tail -n 3 "$name.err.txt")"
    summary=runs/$name/summary.json
    has "$summary" '"end": "failed"'
    for text in "parity: the log-prob of token " " was recorded by actor " "bits " "Its tokens are of versions " \
        "inflight rollouts runs/$name --json"; do
        has "$name.err.txt" "$text"
    done
}
counted() { # KEY: exactly one differing token of more than one that was compared
    [ "$(number "$summary" "$1_differing")" = 1 ] ||
        fail "$summary: $(number "$summary" "$1_differing") tokens differ by $1, wanted 1"
    holds "$(number "$summary" "$1_checked") > 1"
}
n=0
for mode in pipeline sync async:1; do
    for kv in recompute keep; do
        flipped "audit$n" "run.mode=$mode" "actor.kv=$kv" parity.flip_bit=audit
        counted parity_tokens
        has "audit$n.err.txt" "the run has no checkpoint yet"
        [ "$(number "$summary" accuracy_before)" = null ] || fail "accuracy_before without an evaluation"
        n=$((n + 1))
    done
    # With the audit off: what the step's own forward shows.
    flipped "train$n" "run.mode=$mode" parity.flip_bit=train parity.audit=0
    counted parity_lag0_tokens
    has "train$n.err.txt" "step 1's own forward under version 0"
    [ "$(number "$summary" steps)" = 0 ] || fail "a step was made with a differing token"
    [ "$(number "$summary" parity_tokens_checked)" = 0 ] || fail "audited without an audit"
done

train straight run.steps=3 "${quiet[@]}"
flipped straight run.resume=true run.steps=6 parity.flip_bit=audit
has straight.err.txt "the checkpoint of step 3 is kept"
[ "$(newest_checkpoint runs/straight)" = 3 ] || fail "the checkpoint of step 3 is gone"
train straight run.resume=true run.steps=6 "${quiet[@]}"
[ "$(number "$summary" steps)" = 6 ] || fail "the run did not go on"
for key in parity_tokens_differing parity_lag0_tokens_differing; do
    [ "$(number "$summary" "$key")" = 0 ] || fail "$key: differs without a flip"
done
# Of each step's rows, cumulative: the guard has compared some, and never one too many.
holds "$(column runs/straight parity/lag0_tokens_checked | tail -n 1) == $(number "$summary" parity_lag0_tokens_checked)"
holds "$(number "$summary" parity_lag0_tokens_checked) > 0"
holds "$(number "$summary" parity_lag0_tokens_checked) <= $(number "$summary" tokens_backward)"
# Every token of `sync` is at lag 0.
train insync run.mode=sync run.steps=3 "${quiet[@]}"
summary=runs/insync/summary.json
holds "$(number "$summary" parity_lag0_tokens_checked) == $(number "$summary" tokens_backward)"
holds "$(number "$summary" parity_lag0_tokens_checked) > 0"
echo ok
