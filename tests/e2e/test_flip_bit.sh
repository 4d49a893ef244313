#!/usr/bin/env bash
# One flipped bit of one recorded log-prob ends a run in every mode, before another step is made and with the
# checkpoints before it kept; the message says which token, whose versions and both values. Without the flip the
# same run reaches its end.
. "$(dirname "$0")/lib.sh"
small_config

# flipped NAME [key=value ...]: a run that must end with 65 and exactly one differing token.
flipped() {
    local name=$1 status=0
    shift
    "$inflight" train --config small.yaml model.path=start "run.name=$name" eval.before=false eval.after=false "$@" \
        >"$name.out.txt" 2>"$name.err.txt" || status=$?
    [ "$status" = 65 ] || fail "$name ended with $status, wanted 65: $(tail -n 3 "$name.err.txt")"
    summary=runs/$name/summary.json
    [ "$(sed -n 's/^  "end": "\(.*\)",$/\1/p' "$summary")" = failed ] || fail "$name: the summary says it did not fail"
    for text in "parity: " "was recorded as"; do has "$name.err.txt" "$text"; done
}
for kv in recompute keep; do
    flipped "audit-$kv" "actor.kv=$kv" parity.flip_bit=audit
    [ "$(number "$summary" parity_tokens_differing)" = 1 ] ||
        fail "$kv: $(number "$summary" parity_tokens_differing) tokens differ, wanted 1"
    holds "$(number "$summary" parity_tokens_checked) > 1"
    [ "$(number "$summary" accuracy_before)" = null ] || fail "accuracy_before without an evaluation"
done
train straight eval.before=false eval.after=false
[ "$(number runs/straight/summary.json parity_tokens_differing)" = 0 ] || fail "differs without a flip"
echo ok
