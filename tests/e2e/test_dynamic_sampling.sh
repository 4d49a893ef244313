#!/usr/bin/env bash
# Dynamic sampling: a step trains on prompts_per_step groups whose rewards differ, in every mode, or says that it reached
# its bound; what is passed over has its fate in the log; sync repeats bit for bit, also when it is killed on its way.
. "$(dirname "$0")/lib.sh"
small_config
quiet=(eval.before=false eval.after=false rollout.group_size=2 rollout.dynamic_sampling=true)

# chosen RUN STEPS BOUND: every step has 8 groups that tell something, out of at most BOUND drawn, or it has drawn them all.
chosen() {
    local run=runs/$1 steps=$2 bound=$3
    [ "$(step_rows "$run" | sort -nu | wc -l)" = "$steps" ] || fail "$1: steps are missing"
    paste -d ' ' <(column "$run" sampling/groups_trained) <(column "$run" sampling/groups_drawn) \
        <(column "$run" sampling/skipped_right) <(column "$run" sampling/skipped_wrong) \
        <(column "$run" sampling/skipped_unjudged) <(column "$run" stats/groups_skipped) >counts.txt
    awk -v bound="$bound" '$1 + $3 + $4 + $5 != $2 || $2 > bound || ($1 != 8 && $2 != bound) || $1 > 8' counts.txt >wrong.txt
    [ ! -s wrong.txt ] || fail "$1: groups trained, drawn, all right, all wrong, unjudged: $(cat wrong.txt)"
    books "$run"
    # Two answers for each group, trained or dropped; a step that is done again counts once.
    if [ "$(step_rows "$run" | wc -l)" = "$steps" ]; then
        # Of what was chosen some may have become too old by the time that it is trained on (policy drop).
        local chosen trained stale
        chosen=$(awk '{ n += 2 * $1 } END { print n + 0 }' counts.txt) trained=$(number "$run/summary.json" trajectories_trained)
        stale=$(dropped "$run" stale)
        holds "$chosen >= $trained && $chosen <= $trained + $stale" "$1: trained"
        holds "$(awk '{ n += 2 * ($3 + $4) } END { print n + 0 }' counts.txt) == $(dropped "$run" zero_variance)" "$1: passed over"
        holds "$(number "$run/summary.json" groups_skipped) == $(awk '{ n += $2 - $1 } END { print n + 0 }' counts.txt)" "$1: skipped"
        # A process that was killed before its step's own row leaves rows of its groups, which come again: the last ones count.
        awk '/"task\/trained":/ { row[n++] = $0 }
            match($0, /"sampling\/groups_drawn":[0-9]+/) {
                drawn = substr($0, RSTART + 24, RLENGTH - 24)
                for (i = n > drawn ? n - drawn : 0; i < n; i++) print row[i]
                n = 0
            }' "$run/metrics.jsonl" >groups.txt
        holds "$(grep -c '"task/trained":1' groups.txt) == $(number "$run/summary.json" groups_trained)" "$1: its group rows"
        holds "$(grep -c '"task/trained":' groups.txt) == $(number "$run/summary.json" groups_drawn)" "$1: its group rows"
    fi
}
dropped() { # RUN REASON
    "$inflight" rollouts "$1" --check | tr -d ' \n' | sed -n "s/.*\"dropped_by_reason\":{[^}]*\"$2\":\([0-9]*\).*/\1/p" | grep . || echo 0
}

train sync run.mode=sync run.steps=8 "${quiet[@]}"
chosen sync 8 80
[ "$(number runs/sync/summary.json steps_short)" = 0 ] || fail "sync: a step was short"
[ "$(dropped runs/sync zero_variance)" -gt 20 ] || fail "sync: hardly any group was passed over: $(cat counts.txt)"
[ "$(column runs/sync stats/max_lag | sort -nu | tr -d '\n')" = 0 ] || fail "sync: lag $(column runs/sync stats/max_lag | tr '\n' ' ')"
[ "$(column runs/sync rl/zero_variance_share | sort -g | tail -n 1)" != 0.0 ] || fail "sync: rl/zero_variance_share speaks of what is drawn"
# What is drawn, beside what trains: half of the answers of a pair that tells something are right.
holds "$(column runs/sync rl/reward | head -n 1) == 0.5"
holds "$(column runs/sync sampling/drawn_reward | head -n 1) != 0.5"
weights_of runs/sync sync.model
train again run.mode=sync run.steps=8 "${quiet[@]}" actor.count=1 actor.sequences_max=7
chosen again 8 80
weights_of runs/again again.model
cmp sync.model/model.safetensors again.model/model.safetensors || fail "sync: not repeatable"

for k in 1 2; do
    train "async-$k" "run.mode=async:$k" run.steps=8 "${quiet[@]}"
    chosen "async-$k" 8 80
    [ "$(column "runs/async-$k" stats/max_lag | sort -n | tail -n 1)" -le "$k" ] || fail "async:$k: a lag above $k"
done
train async-twice run.mode=async:2 run.steps=8 "${quiet[@]}" actor.count=1
weights_of runs/async-2 async.model
weights_of runs/async-twice twice.model
cmp async.model/model.safetensors twice.model/model.safetensors || fail "async: not repeatable"

train pipeline run.steps=12 "${quiet[@]}"
chosen pipeline 12 80
# With a bound on age and few groups under way, more are taken than may be under way at a time.
for policy in wait drop; do
    train "$policy" run.steps=12 "${quiet[@]}" staleness.max_versions=1 "staleness.policy=$policy" learner.learning_rate=0
    chosen "$policy" 12 80
    [ "$(column "runs/$policy" stats/max_lag | sort -n | tail -n 1)" -le 1 ] || fail "$policy: older than asked"
done
# Losses that normalise over the step see it whole.
train whole run.steps=4 "${quiet[@]}" learner.loss=reinforce_pp
chosen whole 4 80

# Tasks that are never right: the bound ends each step, with a warning, and no weight moves.
sed 's/\[02468\]/[z]/' tasks.jsonl >never.jsonl
for mode in sync pipeline; do
    train "never-$mode" "run.mode=$mode" run.steps=3 "${quiet[@]}" rollout.dynamic_sampling_max=2 \
        'data.train=[{name: never, path: never.jsonl}]'
    chosen "never-$mode" 3 16
    [ "$(number "runs/never-$mode/summary.json" steps_short)" = 3 ] || fail "never-$mode: steps_short"
    [ "$(number "runs/never-$mode/summary.json" groups_skipped_wrong)" = 48 ] || fail "never-$mode: all wrong"
    [ "$(number "runs/never-$mode/summary.json" trajectories_trained)" = 0 ] || fail "never-$mode: something was trained"
    grep -qh "of 16 groups drawn only 0 have rewards that differ" "never-$mode.err.txt" "runs/never-$mode"/logs/* || fail "no warning"
done

# Killed on its way: what a step has taken it takes again, and draws the same again.
train calm run.mode=sync run.steps=60 "${quiet[@]}" checkpoint.every_steps=5
weights_of runs/calm calm.model
RANDOM=${SEED:-3}
for mode in sync pipeline; do
    for kill in 1 2 3 4; do
        resume=()
        [ -d "runs/killed-$mode" ] && resume=(run.resume=true)
        train_start "killed-$mode" "run.mode=$mode" run.steps=60 "${resume[@]}" "${quiet[@]}" checkpoint.every_steps=5
        sleep "0.$((RANDOM % 40 + 30))"
        {
            kill -KILL "$trainer"
            kill -KILL $(processes ' actor ')
            wait "$trainer"
        } 2>/dev/null || true
        [ ! -s "runs/killed-$mode/summary.json" ] || break
    done
    train "killed-$mode" "run.mode=$mode" run.steps=60 run.resume=true "${quiet[@]}" checkpoint.every_steps=5
    chosen "killed-$mode" 60 80
    grep -q '"generated_again": *0,' books.txt || fail "$mode: acknowledged answers were generated again"
    grep -q '"versions_remade": *0,' books.txt || fail "$mode: versions were made again with other weights"
    # Counts outlive a resume: those of each step's last row.
    for key in trained drawn; do
        counted=$(paste <(step_rows "runs/killed-$mode") <(column "runs/killed-$mode" sampling/groups_$key) |
            awk '{ n[$1] = $2 } END { for (s in n) sum += n[s]; print sum }')
        [ "$(number "runs/killed-$mode/summary.json" groups_$key)" = "$counted" ] || fail "$mode: groups_$key is not $counted"
    done
done
weights_of runs/killed-sync killed.model
cmp calm.model/model.safetensors killed.model/model.safetensors || fail "sync: other weights than undisturbed"

# Asked to stop in the midst of a step: the groups that it had opened beyond its batch are no more than it needs.
for stop in 1 2 3; do
    resume=()
    [ -d runs/stopped ] && resume=(run.resume=true)
    train_start stopped run.mode=sync run.steps=60 "${resume[@]}" "${quiet[@]}"
    sleep "0.$((RANDOM % 40 + 30))"
    kill -TERM "$trainer" 2>/dev/null || true
    wait "$trainer" || true
    until_true 20 "the end of its actors" is_gone
done
train stopped run.mode=sync run.steps=60 run.resume=true "${quiet[@]}"
chosen stopped 60 80
weights_of runs/stopped stopped.model
cmp calm.model/model.safetensors stopped.model/model.safetensors || fail "sync: other weights than without stops"

expect 65 "$inflight" train --config small.yaml model.path=start run.name=x "${quiet[@]}" learner.control=shuffled
has err.txt "rollout.dynamic_sampling"
