#!/usr/bin/env bash
# The whole job on a very small policy: SFT, then RL with two actor processes that take in new weights in the
# middle of a generation; its summary, books, metrics and report; with kv recompute and with kv keep, and in both
# numerics profiles.
. "$(dirname "$0")/lib.sh"
small_config
# Slow actors: new weights must find them in the middle of something, on every host. All versions stay for the audit.
export INFLIGHT_FAILPOINT="actor.step=sleep(1)@1+"
all="parity.versions_kept=32"

check_run() {
    local run=$1 steps=$2 key summary=$1/summary.json
    for key in steps wall_s accuracy_before accuracy_after tokens_generated tokens_trained swaps \
        swaps_mid_trajectory swap_stall_ms_p50 swap_stall_ms_p99 decode_step_ms_p50 lag_mean lag_max ess_mean \
        parity_tokens_checked parity_tokens_differing parity_tokens_after_swap trajectories_leased \
        trajectories_trained trajectories_lost trajectories_multi_version; do
        [[ $(number "$summary" "$key") =~ ^-?[0-9][0-9.e+-]*$ ]] || fail "$summary: $key is no number"
    done
    [ "$(number "$summary" steps)" = "$steps" ] || fail "$run: wanted $steps steps"
    holds "$(number "$summary" trajectories_trained) == 32 * $steps" "trained: 8 groups of 4 a step"
    holds "$(number "$summary" tokens_trained) >= $(number "$summary" trajectories_trained)"
    holds "$(number "$summary" tokens_generated) >= $(number "$summary" tokens_trained)"
    # Every recorded log-prob is scored again, segment by segment, and has the same 32 bits.
    [ "$(number "$summary" parity_tokens_differing)" = 0 ] || fail "$run: parity differs"
    holds "$(number "$summary" parity_tokens_checked) == $(number "$summary" tokens_trained)" "audit of all"
    holds "$(number "$summary" parity_tokens_after_swap) > 0" "tokens after a swap"
    holds "$(number "$summary" trajectories_multi_version) > 0" "trajectories of several versions"
    holds "$(number "$summary" lag_max) >= 1" "pipeline mode has lag"
    holds "$(number "$summary" ess_mean) > 0.2 && $(number "$summary" ess_mean) <= 1.000001"
    holds "$(number "$summary" swaps) >= 2" "two actors; on a busy machine they may skip versions"
    holds "$(number "$summary" swaps_mid_trajectory) >= $(number "$summary" trajectories_multi_version)"
    holds "$(number "$summary" decode_step_ms_p50) > 0"
    books "$run"
    [ "$(step_rows "$run" | tr '\n' ' ')" = "$(seq -s ' ' 1 "$steps") " ] || fail "$run: step rows $(step_rows "$run")"
    for key in rl/reward rl/loss rl/ess rl/entropy rl/zero_variance_share stats/lag stats/max_lag \
        completions/mean_length completions/truncated_share optim/grad_norm optim/lr swap/stall_ms_p50 \
        parity/tokens_differing throughput/learner_tokens_per_s time/forward_backward; do
        [ "$(column "$run" "$key" | wc -l)" = "$steps" ] || fail "$run: metrics have no $key in each step row"
    done
    [ "$(grep -c '"kind":"group"' "$run/metrics.jsonl")" = $((8 * steps)) ] || fail "$run: a row for each group"
    [ "$(grep -c '"kind":"eval"' "$run/metrics.jsonl")" = 2 ] || fail "$run: evaluation before and after"
    holds "$(column "$run" optim/grad_norm | sort -g | tail -n 1) > 0" "something was learned from"
    [ -s "$run/config.yaml" ] && [ -s "$run/tokenizer.json" ] || fail "$run: no config.yaml or tokenizer.json"

    # Trajectories can be read, and those that span versions say so.
    "$inflight" rollouts "$run" --json >rollouts.txt
    [ "$(wc -l <rollouts.txt)" -ge "$(number "$summary" trajectories_trained)" ] || fail "$run: too few rollouts"
    grep -q '"fate":"trained".*"versions":\[{[^]]*},{' rollouts.txt || fail "$run: no rollout has two versions"
    "$inflight" rollouts "$run" --eval --json >rollouts.txt
    [ "$(wc -l <rollouts.txt)" = 64 ] || fail "$run: wanted 2 x 32 evaluation answers"

    # One file that needs nothing else.
    "$inflight" report "$run" >report.txt 2>&1 || fail "report: $(tail -n 3 report.txt)"
    has "$run/report.html" "<svg"
    if grep -Eiq '(src|href)="(https?:)?//|<link|@import|<script[^>]* src' "$run/report.html"; then
        fail "$run/report.html refers to something outside of it"
    fi
}

steps=16
# All groups of the run in flight from its start, and few at a time: a learner that a busy machine holds up must not find its actors idle
# at every swap.
for kv in recompute keep; do
    train "$kv" run.steps=$steps "actor.kv=$kv" learner.groups_in_flight=$((8 * steps)) actor.sequences_max=6 $all
    check_run "runs/$kv" $steps
    is_gone || fail "processes are left over after $kv: $(processes)"
done
[ "$(number runs/recompute/summary.json accuracy_before)" = "$(number runs/keep/summary.json accuracy_before)" ] ||
    fail "the same start evaluates differently"
# The other numerics profile, with the same promise.
train bf16 run.steps=$steps actor.kv=recompute learner.groups_in_flight=$((8 * steps)) actor.sequences_max=6 model.numerics=bf16 $all
check_run runs/bf16 $steps
echo "ok: $(number runs/recompute/summary.json parity_tokens_after_swap) and" \
    "$(number runs/keep/summary.json parity_tokens_after_swap) tokens after a swap, all bits equal"
