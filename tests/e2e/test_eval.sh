#!/usr/bin/env bash
# What is said about accuracy: per source, by a run and by `inflight eval`, which agree; the paired difference of two
# evaluations with its interval, by both; and that an answer whose checker failed is left out and counted.
. "$(dirname "$0")/lib.sh"
small_config
small_tasks other.jsonl 300 12
sed -i 's/{/{"data_source":"elsewhere",/' other.jsonl # the configuration's name counts
two_sources='data.eval=[{name: even, path: held.jsonl}, {name: other, path: other.jsonl}]'
size=(eval.tasks=44 eval.tasks_mid=20 eval.every_steps=2)
evaluate() { expect 0 "$inflight" eval --config small.yaml "${size[@]}" "$@"; }
# first KEY: the first number under a key of out.txt, a JSON object.
first() { grep -o "\"$1\":[-0-9.e]*" out.txt | head -n 1 | cut -d: -f2; }

# --- A run
train measured run.steps=3 eval.samples=2 "$two_sources" "${size[@]}"
summary=runs/measured/summary.json
before=$(number $summary accuracy_before) after=$(number $summary accuracy_after) gain=$(number $summary accuracy_gain)
holds "$gain - ($after - $before) < 1e-9 && $gain - ($after - $before) > -1e-9" "the gain is that of the accuracies"
holds "$(number $summary accuracy_gain_low) <= $gain && $gain <= $(number $summary accuracy_gain_high)"
[ "$(number $summary accuracy_gain_tasks)" = 44 ] || fail "not all tasks are paired"
for text in "gain: " "  even: " "  other: "; do has measured.out.txt "$text"; done
[ "$(grep -c '"kind":"eval"' runs/measured/metrics.jsonl)" = 3 ] || fail "wanted evaluations before, in between and after"
[ "$(grep '"kind":"eval"' runs/measured/metrics.jsonl | grep -c '"eval/even/accuracy":.*"eval/other/n":')" = 3 ] ||
    fail "metrics.jsonl: no accuracy per source"
[ "$(grep -c '"name": "other"' $summary)" = 4 ] || fail "summary.json: 3 evaluations and the gain, each by source"
for when in before after; do
    [ "$(wc -l <runs/measured/evals/$when.jsonl)" = 45 ] || fail "evals/$when.jsonl: wanted a head and 44 tasks"
done
"$inflight" report runs/measured >report.txt
has runs/measured/report.html '<td>other</td><td>12</td>'

# --- The same by `inflight eval`: same tasks, same answers, same figures
evaluate model.path=start "$two_sources" --out start.jsonl --json
[ "$(first accuracy)" = "$before" ] || fail "accuracy $(first accuracy), the run said $before"
has out.txt '"name":"other"'
tail -n 44 start.jsonl | sed 's/}$//' >a.txt # in the same order, but without samples
tail -n 44 runs/measured/evals/before.jsonl | sed 's/,"samples.*//' >b.txt
cmp a.txt b.txt || fail "the run kept other answers than inflight eval gets: $(diff a.txt b.txt | head -n 4)"
weights_of runs/measured trained
evaluate model.path=trained "$two_sources" --compare start.jsonl --json
[ "$(first gain)" = "$gain" ] || fail "the gain is $(first gain), the run said $gain"
[ "$(first accuracy)" = "$after" ] || fail "accuracy $(first accuracy), the run said $after"
evaluate --from runs/measured/evals/after.jsonl --compare runs/measured/evals/before.jsonl --json
[ "$(first gain)" = "$gain" ] || fail "the saved files give $(first gain), the run said $gain"
evaluate --from start.jsonl --compare start.jsonl
has out.txt 'paired difference: +0.0 points (95 %: +0.0 to +0.0)'
has out.txt '  other: '
evaluate model.path=start "$two_sources" --dry-run --out nowhere/x --compare nowhere
has out.txt 'name: "other"'

# --- A failed checker is never a zero
sed '2s/"regex":"[^"]*"/"regex":"("/' held.jsonl >bad.jsonl
expect 69 "$inflight" eval --config small.yaml model.path=start 'data.eval=[{name: even, path: bad.jsonl}]' --samples 3 \
    --json --out bad.out.jsonl
grep -q '"n":31,.*"unscored":1,"k":3,.*"pass@k_left_out":1,"samples_unscored":3' out.txt || fail "bad task: $(cat out.txt)"
has bad.out.jsonl '"status":"bad_task","reward":null'
evaluate --from bad.out.jsonl --compare start.jsonl --json
grep -q '"compare":{"n":31,"gain":0.0,.*"only_before":13,"only_after":1' out.txt || fail "$(cat out.txt)"
sed -i 's/"task":"[0-9a-f]*","status":"bad_task"/"task":"'"$(sed -n 's/.*"id":"t101".*"task":"\([0-9a-f]*\)".*/\1/p' start.jsonl)"'","status":"bad_task"/' bad.out.jsonl
evaluate --from bad.out.jsonl --compare start.jsonl --json
grep -q '"compare":{"n":31,"gain":0.0,.*"unscored":1,"only_before":12,"only_after":0' out.txt || fail "$(cat out.txt)"

# A run leaves the same task out, and of its gain, too.
train unscored run.steps=1 eval.samples=2 'data.eval=[{name: even, path: bad.jsonl}]'
[ "$(number runs/unscored/summary.json accuracy_gain_tasks) $(number runs/unscored/summary.json accuracy_gain_unscored)" = "31 1" ] ||
    fail "the gain of a run with a bad task"
[ "$(grep -c '"eval/n":31,"eval/unscored":1,.*"eval/pass@k_left_out":1,' runs/unscored/metrics.jsonl)" = 2 ] ||
    fail "metrics of a run with a bad task: $(grep '"kind":"eval"' runs/unscored/metrics.jsonl)"
has unscored.out.txt 'left out: 1 not judged, 0 on one side only'
has runs/unscored/evals/after.jsonl '"status":"bad_task"'

# --- Mistakes are told before anything is generated
expect 65 "$inflight" eval --config small.yaml model.path=start --compare nowhere.jsonl
expect 65 "$inflight" eval --config small.yaml model.path=start --compare tasks.jsonl
has err.txt 'tasks.jsonl:1'
expect 65 "$inflight" eval --config small.yaml model.path=start 'data.eval=[{name: new, path: held.jsonl}]' --compare start.jsonl
has err.txt 'none of its 44 tasks'
expect 74 "$inflight" eval --config small.yaml model.path=start --out nowhere/x.jsonl
expect 64 "$inflight" eval --config small.yaml model.path=start --out runs/
has err.txt 'this is a folder'
expect 64 "$inflight" eval --from start.jsonl --out copy.jsonl
[ ! -s out.txt ] || fail "it evaluated first"

# --- After a resume the results from before it are still there; without them there is no figure
train parts run.steps=1 eval.tasks=16
train parts run.steps=2 run.resume=true eval.tasks=16
[ "$(number runs/parts/summary.json accuracy_gain_tasks)" = 16 ] || fail "no gain after a resume"
train parts run.steps=3 run.resume=true eval.tasks=24
[ "$(number runs/parts/summary.json accuracy_gain)" = null ] || fail "a gain between different tasks"
has parts.err.txt 'not of the same tasks'
rm runs/parts/evals/before.jsonl
train parts run.steps=4 run.resume=true eval.tasks=16
[ "$(number runs/parts/summary.json accuracy_gain)" = null ] || fail "a gain over nothing"
has parts.err.txt 'no paired gain'
is_gone || fail "processes are left over: $(processes)"
echo "ok: gain $gain, by the run and by inflight eval"
