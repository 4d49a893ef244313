#!/usr/bin/env bash
# A bf16 actor beside an f32 learner: the weights are the same bytes, the arithmetic is not. It is refused with both
# hashes and the parts that differ; with parity.mismatch=admit its answers are trained on with importance weights,
# counted, and left out of audit and train guard, while the others are compared bit for bit as ever.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false)

learner_start() { # NAME [key=value ...]: its pid in $learner, its endpoint in $endpoint
    local name=$1
    shift
    "$inflight" learner --config small.yaml model.path=start "run.name=$name" transport.bind=tcp://127.0.0.1:0 \
        "${quiet[@]}" "$@" >"learner-$name.txt" 2>&1 &
    learner=$!
    until_true 30 "the learner to listen" grep -sq "listening on" "learner-$name.txt"
    endpoint=$(sed -n 's/.*listening on \(tcp:[^ ]*\).*/\1/p' "learner-$name.txt")
}

# Refused, which is the default; the learner goes on with whoever computes as it does.
learner_start strict run.steps=3
actor_start refused model.numerics=bf16
ended "$actor" 65 refused
for text in "actor refused has numerics profile" "differing: orders, dtypes, functions, forward pass" \
    "parity.mismatch=admit"; do
    has refused.txt "$text"
done
has runs/strict/numerics.txt "forward pass"
hashes=$(sed -n 's/.*has numerics profile \([0-9a-f]\{32\}\), the learner \([0-9a-f]\{32\}\).*/\1 \2/p' refused.txt | head -n 1)
has runs/strict/numerics.txt "numerics profile f32, ${hashes#* }"
[ "${#hashes}" = 65 ] && [ "${hashes% *}" != "${hashes#* }" ] || fail "both hashes: '$hashes'"
actor_start own
ended "$learner" 0 learner-strict
ended "$actor" 0 own
[ "$(number runs/strict/summary.json foreign_trajectories)" = 0 ] || fail "a refused actor's answers were taken"
holds "$(number runs/strict/summary.json parity_lag0_tokens_checked) > 0"

# Admitted, beside one of the learner's own profile.
learner_start mixed run.steps=24 parity.mismatch=admit learner.learning_rate=1e-4
actor_start stranger model.numerics=bf16
stranger=$actor
until_true 30 "the stranger to join" grep -sq "stranger joined" learner-mixed.txt
kill -STOP "$stranger" # with its leases, so that the run does not end before the other one has begun
actor_start native
until_true 30 "the native actor to join" grep -sq "native joined" learner-mixed.txt
kill -CONT "$stranger"
ended "$learner" 0 learner-mixed
ended "$stranger" 0 stranger
ended "$actor" 0 native
has learner-mixed.txt "actor stranger has numerics profile"
has stranger.txt "corrected by importance weights"
! grep -q "importance weights" native.txt || fail "the native actor was told to be foreign"
books runs/mixed
summary=runs/mixed/summary.json
figures() { # of the share that was recorded by another arithmetic
    holds "$(number "$summary" foreign_trajectories) > 0"
    holds "$(number "$summary" foreign_tokens) > 0"
    # bf16 and f32 differ by little, but they differ: the ratio is there, and near 1.
    holds "$(number "$summary" foreign_k3) > 0 && $(number "$summary" foreign_k3) < 0.1"
    holds "$(number "$summary" foreign_ess) < 1 && $(number "$summary" foreign_ess) > 0.5"
    holds "$(number "$summary" foreign_weight_mean) != 1 && $(number "$summary" foreign_weight_mean) > 0.5 && $(number "$summary" foreign_weight_mean) < 2"
    [ "$(number "$summary" parity_tokens_differing)" = 0 ] || fail "the audit compared what it must not"
    [ "$(number "$summary" parity_lag0_tokens_differing)" = 0 ] || fail "the guard compared what it must not"
    # An audit of 1.0: every token was either replayed or is foreign.
    holds "$(number "$summary" parity_tokens_checked) + $(number "$summary" foreign_tokens_not_audited) == $(number "$summary" tokens_trained)"
    holds "$(number "$summary" foreign_tokens_not_audited) == $(number "$summary" foreign_tokens)"
}
figures
holds "$(number "$summary" foreign_trajectories) < $(number "$summary" trajectories_trained)" "all of them are foreign"
holds "$(number "$summary" parity_tokens_checked) > 0"
holds "$(column runs/mixed foreign/tokens | awk '{ n += $1 } END { print n }') == $(number "$summary" foreign_tokens)"
"$inflight" report runs/mixed >report.txt 2>&1 || fail "report: $(tail -n 3 report.txt)"
has runs/mixed/report.html "of another numerics profile"

# Alone, and lock-step: with lag 0 the ratio is the arithmetic's, and nothing but it.
learner_start alone run.mode=sync run.steps=3 parity.mismatch=admit learner.loss=grpo
actor_start only model.numerics=bf16
ended "$learner" 0 learner-alone
ended "$actor" 0 only
summary=runs/alone/summary.json
figures
holds "$(number "$summary" foreign_tokens) == $(number "$summary" tokens_trained)"
holds "$(number "$summary" lag_max) == 0 && $(number "$summary" parity_lag0_tokens_checked) == 0"
holds "$(number "$summary" ess_mean) < 1"
echo "ok: k3 of the arithmetic alone $(number "$summary" foreign_k3), ESS $(number "$summary" foreign_ess)," \
    "mean weight $(number "$summary" foreign_weight_mean)"
