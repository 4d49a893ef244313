#!/usr/bin/env bash
# The learner and its actors are killed again and again, wherever they are: `sync` ends with the weights of the undisturbed
# run, bit for bit; in all modes the books hold, nothing is trained twice, no answer that was acknowledged is generated again,
# and every version that is published again is the same weights again. In async:k with slow actors, so that a kill finds
# batches of several versions half done. KILLS=20 STEPS=500 for the long form.
. "$(dirname "$0")/lib.sh"
small_config
kills_wanted=${KILLS:-5} steps=${STEPS:-200}
quiet=(eval.before=false eval.after=false checkpoint.every_steps=${EVERY:-5} "run.steps=$steps")
RANDOM=${SEED:-7}

train calm run.mode=sync "${quiet[@]}"
weights_of runs/calm calm.model
for mode in sync pipeline async:1 async:2; do
    kills=0 name=${mode/:/}
    [ "$mode" != async:1 ] || { # a third of the steps: these actors are slow
        quiet=(eval.before=false eval.after=false checkpoint.every_steps=${EVERY:-5} "run.steps=$((steps / 3))"
            eval.every_steps=7 actor.sequences_max=8)
        export INFLIGHT_FAILPOINT="actor.step=sleep(1)@1+"
        steps=$((steps / 3))
    }
    while [ "$kills" -lt "$kills_wanted" ] && [ ! -s "runs/$name/summary.json" ]; do
        resume=()
        [ -d "runs/$name" ] && resume=(run.resume=true)
        train_start "$name" "run.mode=$mode" "${resume[@]}" "${quiet[@]}"
        sleep "0.$((RANDOM % 60 + 20))"
        {
            kill -KILL "$trainer" && kills=$((kills + 1))
            kill -KILL $(processes ' actor ')
            wait "$trainer"
        } 2>/dev/null || true
        grep -h 'done again' "$name.err.txt" >>redone.txt || true
    done
    [ "$kills" = "$kills_wanted" ] || fail "$mode was over after $kills kills: more STEPS"
    train "$name" "run.mode=$mode" run.resume=true "${quiet[@]}"
    [ "$(step_rows "runs/$name" | sort -nu | wc -l)" = "$steps" ] || fail "$mode: steps are missing"
    books "runs/$name"
    echo "$mode: $kills kills, $(ls "runs/$name/versions" | wc -l) processes; $(tr -d ' \n' <books.txt | head -c 160)"
    grep -q '"generated_again": *0,' books.txt || fail "$mode: acknowledged answers were generated again"
    grep -q '"versions_remade": *0,' books.txt || fail "$mode: versions were made again with other weights"
    weights_of "runs/$name" "$name.model"
done
[ -s redone.txt ] || fail "no process had anything to do again"
cmp sync.model/model.safetensors calm.model/model.safetensors || fail "sync: other weights than undisturbed"
