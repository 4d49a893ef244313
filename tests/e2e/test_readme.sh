#!/usr/bin/env bash
# Every command of README.md works as written. Its ```sh blocks are run in order, each command by itself, in a
# copy of what a fresh clone has after the build; the copy's quickstart is cut short, and commands on real models run two
# steps on random weights of the model's shape (readme_blocks.sh says how a block is marked).
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/readme_blocks.sh"

# A model's shape needs its real memory and time: two steps take some 40 s. Under a sanitizer the family's
# smallest shape has to do.
shape=gemma-3-270m
! grep -q __asan_init "$inflight" || shape=tiny-gemma3
short="run.steps=2 rollout.prompts_per_step=4 rollout.group_size=4 actor.sequences_max=8 data.prompt_tokens_max=512 \
eval.before=false eval.after=false eval.every_steps=0 checkpoint.every_steps=0 parity.audit=1"

# short_form COMMAND: of a long one.
short_form() {
    local line=${1//models\/gemma-3-270m\/gemma-3-270m.gguf/$shape}
    if [[ $line == "build/inflight train "* ]]; then line+=" model.path=$shape $short"; fi
    if [[ $line == *" --soak "* ]]; then line="${line%% --soak *} --soak 0.05"; fi
    echo "$line"
}

# look_up COMMAND: the program is there, knows every option, and every configuration named is there.
look_up() {
    local words=($1) word help
    case "${words[0]}" in
    build/inflight) "${words[@]:0:2}" --help >help.txt 2>&1 ;;
    deploy/*) "${words[0]}" --help >help.txt 2>&1 ;;
    *) echo "$1: wanted a command of build/ or deploy/" && return 1 ;;
    esac || { echo "$1: ${words[*]:0:2} --help fails: $(head -n 3 help.txt)" && return 1; }
    for word in "${words[@]:1}"; do
        case "$word" in
        --*) grep -qE -- "(^|[^a-z-])${word%%=*}([^a-z-]|\$)" help.txt || { echo "$1: ${words[0]} knows no ${word%%=*}" && return 1; } ;;
        deploy/*) [ -e "$word" ] || { echo "$1: no $word" && return 1; } ;;
        esac
    done
}

# run_document FILE: prints what fails and returns 1. Counts in n_run and n_skipped.
run_document() {
    local line where="" marker="" environment=()
    n_run=0 n_skipped=0
    readme_blocks "$1" >commands.txt || return 1
    while IFS= read -r line <&3; do
        if [[ $line != $'\t'* ]]; then
            where=${line%% *} marker=${line#* } environment=()
            case "$marker" in
            "" | long | "long "?* | "skip "?*) ;;
            "env "?*) environment=(${marker#env }) ;;
            *) echo "line $where: unknown marker '$marker'" && return 1 ;;
            esac
            continue
        fi
        line=${line#$'\t'}
        if [[ $marker == skip* ]]; then
            echo "skipped (${marker#skip }): $line"
            n_skipped=$((n_skipped + 1))
            look_up "$line" || return 1
            continue
        fi
        if [[ $marker == long* ]]; then
            look_up "$line" || return 1
            if readme_fetches "$line"; then
                echo "looked up: $line"
                n_skipped=$((n_skipped + 1))
                continue
            fi
            line=$(short_form "$line")
        fi
        echo "running: $line"
        n_run=$((n_run + 1))
        env "${environment[@]}" bash -c "$line" >command.out.txt 2>&1 ||
            { echo "block after line $where: status $? of: $line"; tail -n 20 command.out.txt; return 1; }
    done 3<commands.txt
    [ $((n_run + n_skipped)) -gt 0 ] || { echo "no commands in $1" && return 1; }
}

# A tree as a clone has it after the build. Nothing is installed or built here: the binary under test stands in
# the place of the one that would be built.
mkdir -p tree/build bin
cp -R "$source_dir/deploy" tree/deploy
rm -rf tree/deploy/cli
ln -s "$inflight" tree/build/inflight
touch tree/build/build.ninja
printf '#!/bin/sh\nprintf installed\n' >bin/dpkg-query
printf '#!/bin/sh\nexit 0\n' >bin/ninja
chmod +x bin/*
export PATH=$work/bin:$PATH
# The quickstart as it is, but for its length.
shorten() { # PATTERN REPLACEMENT: one line of the configuration
    [ "$(grep -cE "$1" tree/deploy/configs/quickstart.yaml)" = 1 ] || fail "quickstart.yaml: wanted one line like $1"
    sed -i -E "s/$1/$2/" tree/deploy/configs/quickstart.yaml
}
shorten '^  steps: 40$' '  steps: 2'
shorten '^  steps: 1200$' '  steps: 12'
shorten '^  tasks: 512$' '  tasks: 32'
shorten '^  tasks_mid: [0-9]+$' '  tasks_mid: 32'
shorten '^  prompts_per_step: [0-9]+$' '  prompts_per_step: 8'
cd tree
# Task files of the form that deploy/get-data writes. What random weights say ends with any character of
# their vocabulary: half of them are right, so that groups differ and the learner has something to train on.
mkdir -p data/svamp
for split in train test; do
    for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
        echo "{\"id\":\"$split-$i\",\"data_source\":\"svamp\",\"prompt\":\"$split: how many are $i and $((i * 7 % 5))?\",\"checker\":\"format\",\"answer\":\"$i\",\"meta\":{\"type\":\"Sum\",\"regex\":\"[\\\\x{4e00}-\\\\x{57c0}\\\\x{6200}-\\\\x{25000}]\\\\z\"}}"
    done >data/svamp/$split.jsonl
done

# What this test is worth: a broken command, option, file or marker makes it red.
good() { printf '%b' "$1" >document.md && run_document document.md >report.txt || fail "a good document is refused: $(cat report.txt)"; }
bad() { printf '%b' "$1" >document.md && ! run_document document.md >report.txt 2>&1 || fail "goes through: $1"; }
good 'text\n\n```sh\ntrue\nbuild/inflight \\\n  --version\n# a comment\n```\n```\nfalse\n```\n'
[ "$n_run" = 2 ] || fail "ran $n_run commands of 2"
good '<!-- test: env A=x B=y -->\n```sh\n[ "$A$B" = xy ]\n```\n'
good '<!-- test: skip long -->\n```sh\ndeploy/quickstart --seed 1\n```\n'
[ "$n_run $n_skipped" = "0 1" ] || fail "a skipped command was run"
good '<!-- test: long -->\n```sh\ndeploy/get-model gemma-3-270m\nbuild/inflight train --dry-run --config deploy/configs/arith-gemma-270m.yaml\n```\n'
[ "$n_run $n_skipped" = "1 1" ] || fail "of a long block ran $n_run commands and looked up $n_skipped"
grep -q '^  steps: 2 ' command.out.txt && grep -q "path: \"$shape\"" command.out.txt || fail "a long command was not shortened"
bad '```sh\ntrue\nfalse\n```\n'
bad '<!-- test: long -->\n```sh\nbuild/inflight train --no-such-option\n```\n'
bad '<!-- test: long -->\n```sh\nbuild/inflight train model.path=nowhere data.train=[]\n```\n'
bad '<!-- test: skip long -->\n\n```sh\nfalse\n```\n'
bad '```sh\nbuild/inflight train --no-such-option\n```\n'
bad '<!-- test: skip long -->\n```sh\nbuild/inflight train --no-such-option\n```\n'
bad '<!-- test: skip long -->\n```sh\ndeploy/no-such-script\n```\n'
bad '<!-- test: skip long -->\n```sh\nbuild/inflight train --config deploy/configs/none.yaml\n```\n'
bad '<!-- test: maybe -->\n```sh\ntrue\n```\n'
bad '```sh\ntrue\n'
bad 'no commands\n'

if [ ! -f "$source_dir/README.md" ]; then
    echo "there is no README.md: nothing to run"
    exit 0
fi
run_document "$source_dir/README.md" || fail "README.md has a command that does not work"
[ "$n_run" -gt 0 ] || fail "README.md: every command is skipped"
for script in quickstart check; do
    grep -q "deploy/$script" commands.txt || fail "README.md does not show deploy/$script"
done
for run in arith-gemma-270m svamp-gemma-270m; do
    [ "$(number runs/$run/summary.json steps)" = 2 ] || fail "$run: not two steps"
    [ "$(number runs/$run/summary.json trajectories_lost)" = 0 ] || fail "$run: trajectories were lost"
    [ "$(number runs/$run/summary.json parity_tokens_differing)" = 0 ] || fail "$run: tokens differ"
    holds "$(number runs/$run/summary.json parity_tokens_checked) > 0" "$run: audited tokens"
done
largest=$(column runs/svamp-gemma-270m optim/grad_norm | sort -g | tail -n 1)
holds "${largest:-0} > 0" "svamp-gemma-270m: a gradient"
[ -s runs/quickstart/summary.json ] && [ -s runs/quickstart/report.html ] || fail "no summary or report of the quickstart"
echo "ok: $n_run commands run, $n_skipped looked up"
