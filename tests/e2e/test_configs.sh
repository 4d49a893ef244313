#!/usr/bin/env bash
# Every shipped configuration is whole: --dry-run takes it, and two steps of it train a small model of random weights on
# task files of the form that deploy/get-data and deploy/get-procedural write. What is for evaluation only cannot be
# trained on. With IFL_DATA (a folder with the data sets' own files, one folder each) get-data makes the real ones, and
# with a python3 that has reasoning-gym get-procedural does.
. "$(dirname "$0")/lib.sh"
python=${IFL_REASONING_GYM_PYTHON:-python3}
ln -s "$source_dir/deploy" deploy
mkdir configs

# The form of each data set; what random weights say is hardly ever right.
form() { # NAME SPLIT: a task with @ for its number
    case "$1" in
    gsm8k | svamp) echo '{"data_source":"'"$1"'","prompt":"'"$2"' @ and 3?","checker":"numeric","answer":"7@3"}' ;;
    aqua) echo '{"data_source":"aqua","prompt":"'"$2"' @?\nA) 1\nB) 2","checker":"choice","answer":"B","meta":{"options":["1","2"]}}' ;;
    mbpp) echo '{"data_source":"mbpp","prompt":"'"$2"' @","checker":"code_unit","answer":"{\"tests\":[\"assert f(1) == @\"]}","meta":{"bare":true}}' ;;
    humaneval) echo '{"data_source":"humaneval","prompt":"def f@(x):","checker":"code_unit","answer":"{\"entry\":\"f@\",\"prompt\":\"def f@(x):\",\"check\":\"def check(c):\\n    assert c(1) == 1\"}","meta":{"bare":true},"eval_only":true}' ;;
    esac
}
task_file() { # NAME SPLIT
    mkdir -p "data/$1"
    for i in 1 2 3 4 5 6 7 8; do form "$1" "$2" | sed "s/@/$i/g"; done >"data/$1/$2.jsonl"
}
for name in gsm8k svamp aqua mbpp humaneval; do
    for split in train test; do
        [ "$name $split" = "humaneval train" ] || task_file $name $split
    done
    [ -z "${IFL_DATA:-}" ] || expect 0 deploy/get-data $name --from "$IFL_DATA/$name" --to data
done
[ -z "${IFL_DATA:-}" ] || [ "$(cat data/{mbpp,humaneval}/*.jsonl | wc -l)" = 1128 ] || fail "MBPP and HumanEval are not whole"
# The small model's vocabulary has few characters beyond ASCII, and no tab.
for file in data/*/*.jsonl; do
    LC_ALL=C grep -v '[^ -~]\|\\[tu]' "$file" >ascii.jsonl
    mv ascii.jsonl "$file"
done
procedural=0
if "$python" -c "import reasoning_gym" 2>/dev/null; then
    procedural=1
    full=$("$python" -c "import sys; print(sys.executable)")
    mix=$(sed -n 's/^#   mix="\(.*\)"$/\1/p' deploy/configs/reasoning-gym-gemma-270m.yaml)
    expect 0 "$python" deploy/get-procedural $mix --count 4 --seed 1 --to data/procedural/train.jsonl
    # Seed 2 gives most of seed 1's tasks again.
    expect 0 "$python" deploy/get-procedural $mix --count 4 --seed 2 --without data/procedural/train.jsonl --to apart.jsonl
    holds "$(wc -l <apart.jsonl) >= 8 && $(wc -l <apart.jsonl) < 32" "tasks of seed 2 that are none of seed 1"
    expect 0 "$python" deploy/get-procedural $mix --count 4 --seed 1000000 --without data/procedural/train.jsonl \
        --to data/procedural/test.jsonl
    [ "$(cat data/procedural/train.jsonl | wc -l)" = 32 ] || fail "the mix has other generators than named"
fi

short="model.path=tiny-gemma3 run.steps=2 rollout.prompts_per_step=2 rollout.group_size=2 rollout.max_new_tokens=16
    actor.sequences_max=4 actor.kv_tokens=8192 data.prompt_tokens_max=2000 learner.pack_tokens=2048 learner.threads=1
    actor.threads=1 eval.tasks=6 eval.tasks_mid=2 eval.every_steps=0 checkpoint.every_steps=0 parity.audit=1
    learner.warmup_steps=1 reward.timeout_ms=60000"
n=0
for config in deploy/configs/*.yaml; do
    name=$(basename "$config" .yaml)
    case "$name" in
    quickstart) expect 0 "$inflight" train --config "$config" --dry-run && continue ;;
    reasoning-gym-*)
        [ $procedural = 1 ] || { echo "left out, no python3 with reasoning-gym: $name" && continue; }
        sed "s|\[python3, deploy|[$full, deploy|" "$config" >"configs/$name.yaml"
        config=configs/$name.yaml ;;
    esac
    expect 0 "$inflight" train --config "$config" $short --dry-run
    expect 0 "$inflight" train --config "$config" $short
    run=runs/$name
    [ "$(number "$run/summary.json" steps)" = 2 ] || fail "$name: not two steps"
    [ "$(number "$run/summary.json" parity_tokens_differing)" = 0 ] || fail "$name: tokens differ"
    books "$run"
    # Every answer has been judged, by a checker that could judge it: random weights are wrong, not unjudged.
    "$inflight" rollouts "$run" --json >rollouts.json
    [ "$(grep -c '"fate":"trained"' rollouts.json)" = 8 ] || fail "$name: wanted 8 answers trained"
    "$inflight" rollouts "$run" --json --eval >>rollouts.json
    ! grep -E '"reward_status":"(undecided|bad_task|checker_error|unavailable)"|"reward":null' rollouts.json ||
        fail "$name: answers without a verdict"
    case "$name" in
    mbpp-*) has rollouts.json '"checker":"code_unit/' ;;
    aqua-*) has rollouts.json '"checker":"choice/' ;;
    reasoning-gym-*) has rollouts.json '"checker":"procedural=procedural/' ;;
    esac
    n=$((n + 1))
done

# A benchmark is no training data, however its file is named.
cp data/humaneval/test.jsonl data/innocent.jsonl
for command in train sft; do
    expect 65 "$inflight" $command --config deploy/configs/mbpp-gemma-270m.yaml $short run.name=cheat sft.out=cheat \
        'data.train=[{name: mine, path: data/innocent.jsonl}]'
    has err.txt "data/innocent.jsonl:1: this task is for evaluation only"
done
[ ! -e runs/cheat/checkpoints ] || [ -z "$(ls -A runs/cheat/checkpoints)" ] || fail "it was trained on all the same"
[ ! -e cheat ] || fail "it was trained on all the same"
echo "ok: $n configurations, two steps each"
