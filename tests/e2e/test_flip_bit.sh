#!/usr/bin/env bash
# The parity audit sees one flipped bit of one recorded log-prob: it counts exactly that token, whatever the
# mode of the KV cache; without the flip it counts none.
. "$(dirname "$0")/lib.sh"
small_config
for kv in recompute keep; do
    train "flipped-$kv" "actor.kv=$kv" parity.flip_bit=true eval.before=false eval.after=false
    summary=runs/flipped-$kv/summary.json
    [ "$(number "$summary" parity_tokens_differing)" = 1 ] ||
        fail "$kv: $(number "$summary" parity_tokens_differing) tokens differ, wanted 1"
    holds "$(number "$summary" parity_tokens_checked) > 1"
    [ "$(number "$summary" accuracy_before)" = null ] || fail "accuracy_before without an evaluation"
    [ "$(column "runs/flipped-$kv" parity/tokens_differing | tail -n 1)" = 1 ] || fail "$kv: metrics"
done
train straight eval.before=false eval.after=false
[ "$(number runs/straight/summary.json parity_tokens_differing)" = 0 ] || fail "differs without a flip"
echo ok
