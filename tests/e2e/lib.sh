# Sourced by tests/e2e/test_*.sh, which are run as `bash SCRIPT BINARY SOURCE_DIR`. Enters a folder of its own
# and leaves nothing behind, processes included. Everything a test starts has that folder as its working
# directory; that is how its processes are found again.
set -euo pipefail
inflight=$1
source_dir=$2
work=$(cd "$(mktemp -d)" && pwd -P)
cd "$work"

# processes [PATTERN]: pids of what runs in the test's folder and whose command line matches. A zombie has no
# command line and is none.
processes() {
    local link line
    while read -r link; do
        line=$(tr '\0' ' ' 2>/dev/null <"${link%/cwd}/cmdline") || continue
        [[ ${line%% *} =~ (^|/)inflight ]] || continue # else it is this script, or a command of it
        [[ $line =~ ${1:-.} ]] && link=${link%/cwd} && echo "${link#/proc/}"
    done < <(find /proc/[0-9]* -maxdepth 1 -name cwd -lname "$work" 2>/dev/null)
    return 0
}

leave() {
    local status=$? pid
    for pid in $(processes); do kill -KILL "$pid" 2>/dev/null || true; done
    if [ "$status" -ne 0 ]; then
        echo "--- what the test leaves behind" >&2
        tail -n 15 "$work"/*.txt "$work"/runs/*/logs/*.log >&2 2>/dev/null || true
    fi
    cd /
    rm -rf "$work"
}
trap leave EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# expect STATUS COMMAND...: runs it with out.txt and err.txt, wants that exit status.
expect() {
    local wanted=$1 got=0
    shift
    "$@" >out.txt 2>err.txt || got=$?
    [ "$got" -eq "$wanted" ] || fail "ended with $got, wanted $wanted: ${*}: $(tail -n 3 err.txt)"
}
has() { # FILE TEXT: the fixed text is in the file
    grep -qF -- "$2" "$1" || fail "no \"$2\" in $1: $(head -c 1500 "$1")"
}

# number FILE KEY: the value of a top-level key of a summary.json (one key a line, two spaces deep).
number() {
    local value
    value=$(sed -n "s/^  \"$2\": \(.*[^,]\),\{0,1\}\$/\1/p" "$1")
    [ -n "$value" ] || fail "$1: no key $2"
    echo "$value"
}
# holds "EXPRESSION OF NUMBERS": an awk condition.
holds() { awk "BEGIN { exit !($1) }" || fail "does not hold: $1${2:+ ($2)}"; }

# column RUN KEY: the values of a key in the step rows of metrics.jsonl, in order.
column() { sed -n "/\"kind\":\"step\"/s|.*\"$2\":\([^,}]*\)[,}].*|\1|p" "$1/metrics.jsonl"; }
step_rows() { sed -n 's/^{"kind":"step","step":\([0-9]*\),.*/\1/p' "$1/metrics.jsonl"; }

# until_true SECONDS WHAT COMMAND...: waits until the command succeeds.
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "waited in vain for $what"
        sleep 0.05
    done
}
is_gone() { [ -z "$(processes "$@")" ]; }
has_row() { # RUN STEP: its metrics have that step
    [ -f "$1/metrics.jsonl" ] && grep -q "^{\"kind\":\"step\",\"step\":$2," "$1/metrics.jsonl"
}

# A very small policy and tasks that it sometimes gets right: the reward is 1 for an answer that ends with an
# even digit, so that a few SFT steps are enough for rewards that differ within a group. Answers run from 1 to
# 96 tokens, far longer than the time between two steps.
small_tasks() { # FILE FIRST COUNT
    awk -v first="$2" -v n="$3" 'BEGIN {
        for (i = first; i < first + n; i++)
            printf "{\"id\":\"t%d\",\"prompt\":\"%03d+%d*%02d=\",\"checker\":\"format\",\"answer\":\"\",\"meta\":{\"regex\":\"[02468]\\\\s*\\\\z\"}}\n",
                i, i * 37 % 700, 2 + i % 8, 1 + i % 12
    }' >"$1"
}
small_config() {
    small_tasks tasks.jsonl 0 96
    small_tasks held.jsonl 100 32
    cat >small.yaml <<'YAML'
config_version: 1
run: {name: small, dir: runs, mode: pipeline, steps: 6}
model: {family: llama, d_model: 64, n_layers: 2, n_heads: 2, n_kv_heads: 2, head_dim: 32, d_ff: 128,
        max_positions: 128, tied_head: false, characters: "0123456789+*=#\n"}
data:
  train: [{name: even, path: tasks.jsonl}]
  eval: [{name: even, path: held.jsonl}]
rollout: {prompts_per_step: 8, group_size: 4, temperature: 1, max_new_tokens: 96}
actor: {count: 2, threads: 1, sequences_max: 20, kv_tokens: 5120, page_tokens: 16, kv: recompute}
reward: {workers: 1}
learner: {threads: 1, loss: reinforce, learning_rate: 1.0e-3, warmup_steps: 1, pack_tokens: 512}
eval: {tasks: 32, tasks_mid: 16, every_steps: 0}
parity: {audit: 1.0, versions_kept: 16}
checkpoint: {every_steps: 0, keep: 2}
memory: {limit_gib: 2}
sft: {steps: 60, batch_tokens: 512, learning_rate: 2.5e-3, warmup_steps: 5, worked_share: 0.8}
YAML
    "$inflight" sft --config small.yaml 'data.train=[{name: ladder, generator: ladder, split: train, steps_max: 12}]' \
        sft.out=start >sft.txt 2>&1 || fail "sft: $(tail -n 3 sft.txt)"
}
# train NAME [key=value ...]: one run in the foreground, wanted to end with 0.
train() {
    local name=$1
    shift
    "$inflight" train --config small.yaml model.path=start "run.name=$name" "$@" >"$name.out.txt" 2>"$name.err.txt" ||
        fail "train $name $*: status $?: $(tail -n 3 "$name.err.txt")"
}
# train_start NAME [key=value ...]: the same in the background; its pid in $trainer.
train_start() {
    local name=$1
    shift
    "$inflight" train --config small.yaml model.path=start "run.name=$name" "$@" >"$name.out.txt" 2>"$name.err.txt" &
    trainer=$!
}
# actor_start NAME [key=value ...]: an actor for the learner at $endpoint; its pid in $actor.
actor_start() {
    local name=$1
    shift
    "$inflight" actor --config small.yaml model.path=start --connect "$endpoint" --name "$name" "$@" >"$name.txt" 2>&1 &
    actor=$!
}
# ended PID STATUS NAME: waits for it, wants that exit status; its output is in NAME.txt.
ended() {
    local status=0
    wait "$1" || status=$?
    [ "$status" = "$2" ] || fail "$3 ended with $status, wanted $2: $(tail -n 3 "$3".txt)"
}
# books RUN: leased = trained + masked + dropped + in flight + lost, from the records alone, and none lost.
books() {
    "$inflight" rollouts "$1" --check >books.txt 2>&1 || fail "the books of $1 do not hold: $(tail -n 40 books.txt)"
    has books.txt '"holds": true'
    [ "$(number "$1/summary.json" trajectories_lost)" = 0 ] || fail "$1: trajectories were lost"
}
newest_checkpoint() { ls "$1/checkpoints" | sed -n 's/^step_\([0-9]*\)$/\1/p' | sort -n | tail -n 1; }
# weights_of RUN FOLDER: exports the last checkpoint.
weights_of() {
    local last
    last=$1/checkpoints/step_$(newest_checkpoint "$1")
    "$inflight" export --checkpoint "$last" --out "$2" >export.txt 2>&1 || fail "export $last: $(tail -n 3 export.txt)"
}
