#!/usr/bin/env bash
# The command line as a user meets it: help, mistakes with their exit status and a text that says what to do,
# --dry-run, and a run folder that is never overwritten by accident.
. "$(dirname "$0")/lib.sh"
small_config

# wrong STATUS "TEXT" COMMAND...: refused with that status and text, in short time and without a run folder.
wrong() {
    local status=$1 text=$2
    shift 2
    expect "$status" timeout 60 "$inflight" "$@"
    has err.txt "$text"
    [ -z "$(ls -A runs 2>/dev/null)" ] || fail "$*: a refused command left $(ls -A runs) in runs/"
}

commands=(train sft generate eval score parity bench export rollouts report learner actor keys)
# Help, on standard output, with every option and an example or a sentence on what it does.
expect 0 "$inflight" --help
cp out.txt commands.txt
for command in "${commands[@]}"; do
    has commands.txt "  $command "
    expect 0 "$inflight" "$command" --help
    has out.txt "Usage: inflight $command"
    [ ! -s err.txt ] || fail "$command --help writes to standard error: $(cat err.txt)"
    [ "$(wc -l <out.txt)" -gt 8 ] || fail "$command --help is too short to help"
done
for command in "${commands[@]}"; do
    expect 0 "$inflight" "$command" --help
    for option in --config --dry-run --help-config --verbose; do has out.txt "$option"; done
    has out.txt "[key=value ...]"
done
expect 0 "$inflight" train --help-config
for key in run.mode rollout.prompts_per_step actor.kv learner.loss parity.flip_bit checkpoint.every_steps; do
    has out.txt "$key"
done
expect 0 "$inflight" --version

# Mistakes on the command line: 64.
wrong 64 "COMMAND" # no command at all
wrong 64 'unknown command "frobnicate"' frobnicate
wrong 64 "--nope" train --nope
wrong 64 'unexpected argument "extra"' train --config small.yaml extra
wrong 64 "did you mean run.name?" train --config small.yaml rum.name=x
wrong 64 'got "many", wanted an integer' train --config small.yaml run.steps=many
wrong 64 "wanted an integer 1 .." train --config small.yaml run.steps=-1
wrong 64 "inflight score --list" train --config small.yaml reward.checker=nosuch
wrong 64 "none|frozen|shuffled" train --config small.yaml learner.control=nothing
wrong 64 "async:K" train --config small.yaml run.mode=async:0
wrong 64 "give --model PATH" generate --prompt 1
wrong 64 "--prompt TEXT" generate --model start
wrong 64 "wanted RUN" rollouts
wrong 64 "wanted decode" bench fly
wrong 64 "--checkpoint" export --out x

# Mistakes in files and values: 65, with the place.
wrong 65 "none.yaml" train --config none.yaml
printf 'run:\n  name: x\n  stepz: 3\n' >bad.yaml
wrong 65 "bad.yaml:3:3: key run.stepz" train --config bad.yaml
has err.txt "did you mean run.steps?"
printf 'run: {name: x\n' >bad.yaml
wrong 65 "bad.yaml:2:1: not YAML" train --config bad.yaml
wrong 65 "data.train" train
wrong 65 "nowhere" train --config small.yaml model.path=nowhere
wrong 65 "nowhere.jsonl" train --config small.yaml data.train.0.path=nowhere.jsonl
wrong 65 "nowhere.jsonl" train --config small.yaml data.eval.0.path=nowhere.jsonl
echo '{"id":"a","prompt":7}' >broken.jsonl
wrong 65 "broken.jsonl:1" train --config small.yaml data.train.0.path=broken.jsonl
wrong 65 "give the folder itself" train --config small.yaml model.path=start/config.json
wrong 65 "rollout.group_size" train --config small.yaml rollout.group_size=1
wrong 65 "rollout.top_k" train --config small.yaml rollout.top_p=0.9 rollout.max_new_tokens=5000 actor.kv_tokens=8192 learner.pack_tokens=8192 model.max_positions=8192
wrong 65 "one trajectory must fit" train --config small.yaml actor.kv_tokens=64
wrong 65 "memory.limit_gib" train --config small.yaml memory.limit_gib=0.001
wrong 65 "nowhere" eval --config small.yaml model.path=nowhere
wrong 65 "no such run" rollouts nowhere
wrong 65 "no such run" report nowhere
wrong 65 "nowhere" parity --model nowhere
wrong 65 "no such run to resume" train --config small.yaml run.resume=true
wrong 65 "has no token" generate --model start --prompt "hello"

# Links between hosts are refused without keys (test_keys.sh has the rest).
wrong 64 "not a loopback address" learner --config small.yaml transport.bind=tcp://0.0.0.0:5555
wrong 64 "not a loopback address" actor --config small.yaml --connect tcp://192.0.2.1:5555
wrong 64 "wanted ipc:///path or tcp://host:port" learner --config small.yaml transport.bind=junk

# --dry-run: the whole configuration, what follows from it, and one example as the model will see it.
for command in train learner; do
    expect 0 "$inflight" "$command" --config small.yaml model.path=start run.steps=7 --dry-run
    has out.txt "  steps: 7"
    has out.txt "8 prompts x 4 = 32 trajectories per step"
    has out.txt "# first training task t"
    # Token 0 is padding; after it come the characters of model.characters in their order.
    prompt=$(sed -n 's/^# | //p' out.txt)
    ids=$(sed -n 's/^# prompt, 9 tokens: //p' out.txt)
    [[ $prompt =~ ^[0-9]{3}\+[0-9]\*[0-9]{2}=$ ]] || fail "$command --dry-run shows the prompt '$prompt'"
    wanted=$(awk -v p="$prompt" 'BEGIN { for (i = 1; i <= length(p); i++)
        printf "%s%d", (i > 1 ? " " : ""), index("0123456789+*=#", substr(p, i, 1)) }')
    [ "$ids" = "$wanted" ] || fail "$command --dry-run shows '$prompt' as '$ids', wanted '$wanted'"
    [ -z "$(ls -A runs 2>/dev/null)" ] || fail "a dry run wrote $(ls -A runs)"
done
declare -A needs=([bench]=decode [score]="--checker exact --pair 1 2" [export]="--out nothing" [rollouts]=nobody [report]=nobody)
mkdir -p runs/nobody
for command in sft generate eval score parity bench export rollouts report actor; do
    # shellcheck disable=SC2086
    expect 0 "$inflight" "$command" ${needs[$command]:-} --config small.yaml model.path=start run.seed=12 --dry-run
    has out.txt "prompts_per_step: 8"
    has out.txt "  path: \"start\""
    has out.txt "  seed: 12"
    "$inflight" train --config out.txt model.path=start run.seed=12 --dry-run >again.txt || fail "$command: what --dry-run prints is no configuration"
    # A wrong key or value is the same mistake everywhere, with or without a file.
    for file in "--config small.yaml" ""; do
        # shellcheck disable=SC2086
        expect 64 "$inflight" "$command" ${needs[$command]:-} $file model.path=start rum.seed=1
        has err.txt "did you mean run.seed?"
        # shellcheck disable=SC2086
        expect 64 "$inflight" "$command" ${needs[$command]:-} $file model.path=start run.seed=soon
        has err.txt "key run.seed: got \"soon\", wanted an integer"
    done
    # shellcheck disable=SC2086
    expect 65 "$inflight" "$command" ${needs[$command]:-} --config none.yaml --dry-run
    has err.txt "none.yaml"
    [ "$(ls -A runs)" = nobody ] && [ -z "$(ls -A runs/nobody)" ] && [ ! -e nothing ] || fail "$command --dry-run wrote something"
done
expect 0 "$inflight" rollouts --config small.yaml run.name=nobody --dry-run
has out.txt "# reads   runs/nobody/rollouts/"
expect 0 "$inflight" report --config small.yaml run.name=nobody --dry-run
has out.txt "# writes  runs/nobody/report.html"
expect 64 "$inflight" report --dry-run
has err.txt "wanted RUN"
expect 0 "$inflight" rollouts nobody --dry-run
expect 0 "$inflight" rollouts run.name=nobody --dir ./runs --dry-run
has out.txt "# reads   ./runs/nobody/rollouts/"
expect 0 "$inflight" export --model start --out nothing --dry-run
has out.txt "# writes  nothing/"
expect 64 "$inflight" export --model start --out runs --dry-run
has err.txt "exists already"
rm -r runs/nobody

# An option that stands for a key goes over the file and over key=value, wherever it is written.
expect 0 "$inflight" generate --seed 7 --config small.yaml run.seed=5 --model start model.path=other --stop '\n' --stop '##' \
    --top-k 3 --greedy --threads 2 --max-new-tokens 11 --dry-run
for line in "  seed: 7" "  path: \"start\"" "  top_k: 3" "  temperature: 0" "  threads: 2" "  max_new_tokens: 11"; do has out.txt "$line"; done
grep -A 2 '^  stops:' out.txt >stops.txt
has stops.txt '\n'
has stops.txt '##'
expect 0 "$inflight" generate --config small.yaml 'rollout.stops=["a","b"]' --stop c --dry-run
! grep -A 3 '^  stops:' out.txt | grep -q '"[ab]"' || fail "--stop adds to the stops of the file"
expect 0 "$inflight" bench train --config small.yaml --threads 3 --pack-tokens 128 --dry-run
[ "$(grep -c '^  threads: 3' out.txt)" = 2 ] || fail "bench --threads is not both learner.threads and actor.threads"
has out.txt "  pack_tokens: 128"
expect 0 "$inflight" score --workers 5 reward.workers=4 --pair 1 1 --checker exact --dry-run
has out.txt "  workers: 5"
expect 64 "$inflight" score --workers 0 --pair 1 1 --checker exact
has err.txt "--workers"
has err.txt "key reward.workers"
expect 64 "$inflight" generate --model start --prompt 1 --top-k -1
has err.txt "--top-k"
expect 0 "$inflight" actor --config small.yaml transport.connect=tcp://127.0.0.1:1 --connect tcp://127.0.0.1:2 --dry-run
has out.txt "tcp://127.0.0.1:2"

# They take what the file says, and do with it what the options do.
printf 'rollout: {max_new_tokens: 5, temperature: 0}\nmodel: {path: start}\n' >answers.yaml
expect 0 "$inflight" generate --config answers.yaml --prompt "123+4*05=" --json
cp out.txt first.txt
expect 0 "$inflight" generate --model start --max-new-tokens 5 --greedy --prompt "123+4*05=" --json
cmp out.txt first.txt || fail "the same generation by options and by file differs"
expect 0 "$inflight" parity --config small.yaml model.path=tiny-llama --tokens 12
expect 0 "$inflight" parity --config small.yaml --tokens 12 # a new policy of the file's shape
has out.txt "total"
expect 0 "$inflight" bench decode --config small.yaml --batch 2 --new-tokens 2 --repeat 1 --json
has out.txt '"model":"llama"'
printf 'reward: {checker: numeric}\n' >numeric.yaml
echo '{"id":"a","prompt":"x","answer":"7"}' >no-checker.jsonl
echo '{"id":"a","completion":"it is 7."}' >answer.jsonl
expect 64 "$inflight" score --tasks no-checker.jsonl --completions answer.jsonl
has err.txt "names no checker"
expect 0 "$inflight" score --config numeric.yaml --tasks no-checker.jsonl --completions answer.jsonl
has out.txt '"reward":1.0'
expect 64 "$inflight" score reward.checker=nosuch --tasks no-checker.jsonl --completions answer.jsonl
has err.txt "reward.checker"
# What it prints is a configuration that reads to the same.
"$inflight" train --config small.yaml model.path=start run.steps=7 --dry-run >first.yaml
"$inflight" train --config first.yaml --dry-run >second.yaml
cmp first.yaml second.yaml || fail "the resolved configuration reads to another one"

# The socket files of a train lie in a folder of their own; one that was killed leaves it to the next one to remove, and
# what is in use is left alone.
mkdir sockets
export XDG_RUNTIME_DIR=$work/sockets
train_start killed run.steps=1000
killed=$trainer
until_true 30 "the killed run's first step" has_row runs/killed 1
train_start alive run.steps=1000
until_true 30 "the other run's first step" has_row runs/alive 1
[ "$(ls sockets | wc -l)" = 2 ] || fail "wanted two folders of sockets: $(ls sockets)"
[ "$(stat -c %a sockets/* | sort -u)" = 700 ] || fail "sockets others can reach: $(stat -c '%a %n' sockets/*)"
kill -KILL "$killed"
wait "$killed" 2>/dev/null || true
[ "$(ls sockets | wc -l)" = 2 ] || fail "a killed run cleaned up?"
train after-kill run.steps=1
[ "$(ls sockets | wc -l)" = 1 ] || fail "after a killed run: $(ls sockets)"
until_true 30 "steps of a run whose neighbour cleaned up" has_row runs/alive 3
kill -TERM "$trainer"
wait "$trainer" && fail "a run that was stopped ended with 0" || true
[ -z "$(ls -A sockets)" ] || fail "sockets stay behind: $(ls -R sockets)"
until_true 20 "the killed run's actors to end" is_gone
unset XDG_RUNTIME_DIR
rm -r runs

# A run that exists is left alone unless told otherwise.
train kept run.steps=1
cksum runs/kept/summary.json >before.txt
expect 64 "$inflight" train --config small.yaml model.path=start run.name=kept run.steps=1
has err.txt "run.overwrite=true"
has err.txt "run.resume=true"
cksum runs/kept/summary.json | cmp - before.txt || fail "a refused run changed the folder"
train kept run.steps=1 run.overwrite=true
[ -d runs/kept.1 ] || fail "the older run was not moved aside"
cksum <runs/kept.1/summary.json | cmp - <(cut -d' ' -f1,2 before.txt) || fail "the run that was moved aside changed"

# A model that a run made can be exported, evaluated and asked.
weights_of runs/kept kept.model
has kept.model/tokenizer_config.json '"pad_token": "<pad>"'
has start/tokenizer_config.json '"pad_token": "<pad>"'
expect 0 "$inflight" eval --config small.yaml model.path=kept.model
accuracy=$(sed -n 's/^greedy accuracy \([0-9.]*\) .*/\1/p' out.txt)
holds "${accuracy:-2} == $(awk -v a="$(number runs/kept/summary.json accuracy_after)" 'BEGIN { printf "%.4f", a }')" \
    "eval and the run's own evaluation of the same weights"
expect 0 "$inflight" generate --model kept.model --prompt "123+4*05=" --greedy --max-new-tokens 8
[ -s out.txt ] || fail "generate said nothing"
expect 0 "$inflight" generate --model kept.model --prompt "123+4*05=" --seed 7 --n 2 --json --max-new-tokens 8
[ "$(wc -l <out.txt)" = 2 ] || fail "wanted two answers"
cp out.txt first.txt
expect 0 "$inflight" generate --model kept.model --prompt "123+4*05=" --seed 7 --n 2 --json --max-new-tokens 8 --threads 2
[ "$(sed -E 's/.*"text":"(([^"\\]|\\.)*)".*/\1/' out.txt)" = "$(sed -E 's/.*"text":"(([^"\\]|\\.)*)".*/\1/' first.txt)" ] ||
    fail "the same seed gave other answers"
# Checkpoints that the disk has no room for are noticed before the first step.
expect 65 "$inflight" train --config small.yaml model.path=start run.name=large run.steps=100000000 \
    checkpoint.every_steps=1 checkpoint.keep=1000000
has err.txt "checkpoint.keep"
[ ! -s runs/large/metrics.jsonl ] || fail "it trained before it looked"
echo ok
