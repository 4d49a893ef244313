#!/usr/bin/env bash
# staleness.max_versions: with wait, drop and mask no trained token is older, through a kill and a resume; throttle keeps
# the mean low; without a bound there are older ones. STEPS=200 for the long form.
. "$(dirname "$0")/lib.sh"
small_config
steps=${STEPS:-24}
quiet=(eval.before=false eval.after=false checkpoint.every_steps=5 actor.kv=keep)
# A step is short beside a long answer, so that ages differ; the actors are made slow by having one sequence slot each.
slow=(rollout.prompts_per_step=2 actor.sequences_max=4 actor.count=2)

worst() { column "runs/$1" stats/max_lag | sort -g | tail -n 1 | awk '{ print $1 + 0 }'; }

train free run.steps="$steps" learner.groups_in_flight=24 "${slow[@]}" "${quiet[@]}"
holds "$(worst free) > 4" "without a bound some token is older than 4"

for policy in wait drop mask; do
    bound=(staleness.max_versions=4 "staleness.policy=$policy" learner.groups_in_flight=24 "run.steps=$steps")
    train_start "$policy" "${bound[@]}" "${slow[@]}" "${quiet[@]}"
    until_true 120 "step 8" has_row "runs/$policy" 8
    { kill -KILL "$trainer" $(processes ' actor ') && wait "$trainer"; } 2>/dev/null || true
    train "$policy" run.resume=true "${bound[@]}" "${slow[@]}" "${quiet[@]}"
    [ "$(step_rows "runs/$policy" | sort -nu | wc -l)" = "$steps" ] || fail "$policy: steps are missing"
    holds "$(worst "$policy") <= 4" "$policy: a token of lag $(worst "$policy") was trained"
    books "runs/$policy"
    echo "$policy: highest lag $(worst "$policy"); dropped $(column "runs/$policy" staleness/dropped | awk '{ n += $1 } END { print n }')," \
        "tokens masked $(column "runs/$policy" staleness/tokens_masked | awk '{ n += $1 } END { print n }');" \
        "mean length drawn $(column "runs/$policy" staleness/drawn_length | awk '{ n += $1 } END { printf "%.2f", n / NR }')," \
        "trained $(column "runs/$policy" completions/mean_length | awk '{ n += $1 } END { printf "%.2f", n / NR }')"
done
[ "$(column runs/wait staleness/dropped | awk '{ n += $1 } END { print n }')" = 0 ] || fail "wait dropped answers"

train throttle staleness.max_versions=1 learner.groups_in_flight=24 "run.steps=$steps" "${slow[@]}" "${quiet[@]}"
mean() { column "runs/$1" stats/lag | awk '{ n += $1 } END { print n / NR }'; }
holds "$(mean throttle) < $(mean free)" "throttle lowers the mean lag"

expect 65 "$inflight" train --config small.yaml run.name=no run.mode=sync staleness.max_versions=2
has err.txt "whose lag is what the mode says"
