#!/usr/bin/env bash
# The controls of an experiment: frozen (learning rate 0) changes no weight and gains nothing; shuffled
# (rewards permuted across the batch) trains, but not what a plain run trains.
. "$(dirname "$0")/lib.sh"
small_config

train frozen run.steps=5 learner.control=frozen
summary=runs/frozen/summary.json
[ "$(number $summary control)" = '"frozen"' ] || fail "the summary does not say which control it was"
[ "$(number $summary accuracy_before)" = "$(number $summary accuracy_after)" ] ||
    fail "frozen: accuracy went from $(number $summary accuracy_before) to $(number $summary accuracy_after)"
holds "$(column runs/frozen optim/grad_norm | sort -g | tail -n 1) > 0" "a run without gradients would be frozen anyway"
weights_of runs/frozen frozen.model
cmp start/model.safetensors frozen.model/model.safetensors || fail "frozen: the weights changed"
train moved run.steps=1 eval.before=false eval.after=false
weights_of runs/moved moved.model
cmp -s start/model.safetensors moved.model/model.safetensors && fail "a step without a control changed no weight"
books runs/frozen

train plain run.mode=sync run.steps=5
train shuffled run.mode=sync run.steps=5 learner.control=shuffled
weights_of runs/plain plain.model
weights_of runs/shuffled shuffled.model
cmp -s plain.model/model.safetensors shuffled.model/model.safetensors && fail "shuffled rewards changed nothing"
# Both saw the same first batch: the same rewards in another order.
first() { column "runs/$1" "$2" | head -n 1; }
[ "$(first plain rl/reward)" = "$(first shuffled rl/reward)" ] || fail "shuffled: the mean reward of step 1 differs"
[ "$(first plain optim/grad_norm)" != "$(first shuffled optim/grad_norm)" ] || fail "shuffled: the same gradient"
books runs/shuffled
echo ok
