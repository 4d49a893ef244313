#!/usr/bin/env bash
# The learner and its actors are killed again and again, wherever they are: `sync` ends with the weights of the undisturbed
# run, bit for bit; in all modes the books hold, nothing is trained twice, no answer that was acknowledged is generated again,
# and every version that is published again is the same weights again; also where the tasks drawn depend on what was learnt
# (data.sampler=pass_rate). In async:k with slow actors, so that a kill finds batches of several versions half done.
# KILLS=20 STEPS=500 for the long form.
. "$(dirname "$0")/lib.sh"
small_config
kills_wanted=${KILLS:-5} steps=${STEPS:-200}
quiet=(eval.before=false eval.after=false checkpoint.every_steps=${EVERY:-5})
rates=(data.sampler=pass_rate data.pass_rate_min=0.2 data.pass_rate_max=0.8)
RANDOM=${SEED:-7}

# often NAME KILLS STEPS CONFIG...: killed so many times on its way.
often() {
    local name=$1 wanted=$2 n=$3 kills=0
    shift 3
    while [ "$kills" -lt "$wanted" ] && [ ! -s "runs/$name/summary.json" ]; do
        resume=()
        [ -d "runs/$name" ] && resume=(run.resume=true)
        train_start "$name" "run.steps=$n" "${resume[@]}" "${quiet[@]}" "$@"
        # After a random while, but before the share of the steps that this life may have: hosts differ in speed.
        for ((left = RANDOM % 60 + 20; left > 0; left -= 2)); do
            sleep 0.02
            [ "$(step_rows "runs/$name" 2>/dev/null | wc -l)" -lt $((n * (kills + 1) / (wanted + 2))) ] || break
        done
        {
            kill -KILL "$trainer" && kills=$((kills + 1))
            kill -KILL $(processes ' actor ')
            wait "$trainer"
        } 2>/dev/null || true
        grep -h 'done again' "$name.err.txt" >>"$name.redone.txt" || true
    done
    [ "$kills" = "$wanted" ] || fail "$name was over after $kills kills: more STEPS"
    train "$name" "run.steps=$n" run.resume=true "${quiet[@]}" "$@"
    [ "$(step_rows "runs/$name" | sort -nu | wc -l)" = "$n" ] || fail "$name: steps are missing"
    books "runs/$name"
    echo "$name: $kills kills, $(ls "runs/$name/versions" | wc -l) processes; $(tr -d ' \n' <books.txt | head -c 160)"
    grep -q '"generated_again": *0,' books.txt || fail "$name: acknowledged answers were generated again"
    grep -q '"versions_remade": *0,' books.txt || fail "$name: versions were made again with other weights"
    weights_of "runs/$name" "$name.model"
}
undisturbed() { # NAME OTHER
    cmp "$1.model/model.safetensors" "$2.model/model.safetensors" || fail "$2: other weights than undisturbed"
}

train calm run.mode=sync "run.steps=$steps" "${quiet[@]}"
weights_of runs/calm calm.model
often sync "$kills_wanted" "$steps" run.mode=sync
often pipeline "$kills_wanted" "$steps" run.mode=pipeline
undisturbed calm sync

train calm_rates run.mode=sync "run.steps=$steps" "${quiet[@]}" "${rates[@]}"
weights_of runs/calm_rates calm_rates.model
! cmp -s calm.model/model.safetensors calm_rates.model/model.safetensors || fail "pass_rate draws no other tasks"
often sync_rates "$kills_wanted" "$steps" run.mode=sync "${rates[@]}"
often pipeline_rates "$kills_wanted" "$steps" run.mode=pipeline "${rates[@]}"
undisturbed calm_rates sync_rates
[ -s sync.redone.txt ] || [ -s pipeline.redone.txt ] || fail "no process had anything to do again"
[ -s sync_rates.redone.txt ] || [ -s pipeline_rates.redone.txt ] || fail "pass_rate: nothing was done again"

slow=$((steps / 3))
export INFLIGHT_FAILPOINT="actor.step=sleep(1)@1+"
for k in 1 2; do
    often "async$k" "$kills_wanted" "$slow" "run.mode=async:$k" eval.every_steps=7 actor.sequences_max=8
done
