#!/usr/bin/env bash
# A whole RL step, ours beside TRL's GRPOTrainer: 4 prompts x 8 samples x 64 new tokens, one optimizer step; the
# same model, prompts, reward and CPUs, in alternating turns. Uses what is installed; fetches nothing.
#
#   tests/bench/rl_step.sh --inflight BIN --model HF_FOLDER --python PY [--cpus 0-3] [--rounds 3] [--steps 2]
#       [--dtypes "bf16 f32"] [--prompts 4] [--samples 8] [--new-tokens 64] [--work FOLDER]
#       [--set KEY=VALUE]...   keys of our configuration
#
# Ours is `inflight train` in sync mode, one actor process and the learner on the same CPUs; a step lasts from one
# step's row in metrics.jsonl to the next: generation, rewards, forward, backward, AdamW, the new weights on their way
# to the actor, log and audit. TRL's lasts from the end of a step to the end of the next. The first step of a run is left
# out when it has more than one. PY needs torch, transformers, trl and datasets.
set -euo pipefail

usage() {
    sed -n '5,7s/^# *//p' "$0" >&2
    exit 64
}
inflight='' model='' python='' cpus='' rounds=3 steps=2 dtypes='bf16 f32' prompts=4 samples=8 new=64 work='' keys=()
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case "$1" in
    --inflight) inflight=$2 ;;
    --model) model=$2 ;;
    --python) python=$2 ;;
    --cpus) cpus=$2 ;;
    --rounds) rounds=$2 ;;
    --steps) steps=$2 ;;
    --dtypes) dtypes=$2 ;;
    --prompts) prompts=$2 ;;
    --samples) samples=$2 ;;
    --new-tokens) new=$2 ;;
    --work) work=$2 ;;
    --set) keys+=("$2") ;;
    *) usage ;;
    esac
    shift 2
done
[ -x "$inflight" ] || { echo "--inflight: no program at \"$inflight\"" >&2; exit 64; }
[ -f "$model/config.json" ] || { echo "--model: \"$model\" is no Hugging Face folder (inflight export makes one)" >&2; exit 64; }
python=$(command -v "$python") || { echo "--python: no such program" >&2; exit 64; }
[[ $python == /* ]] || python=$PWD/$python # not realpath: a virtual environment is known by the name of its link
here=$(cd "$(dirname "$0")" && pwd)
inflight=$(realpath "$inflight")
model=$(realpath "$model")
cpus=${cpus:-$(taskset -cp $$ | sed 's/.*: //')}
threads=$(taskset -c "$cpus" nproc)
own=$(mktemp -d "${work:-${TMPDIR:-/tmp}}/rl-step.XXXXXX")
trap 'rm -rf "$own"' EXIT
cd "$own"

"$python" "$here/rl_step_tasks.py" tasks.jsonl --count 64
# Our side has no end-of-sequence token, so that every answer has all its tokens; TRL's side has min_new_tokens.
"$python" - "$model" endless <<'PYTHON'
import json, os, sys
source, target = sys.argv[1:]
os.mkdir(target)
for name in os.listdir(source):
    if name not in ("config.json", "generation_config.json"):
        os.symlink(os.path.join(source, name), os.path.join(target, name))
        continue
    with open(os.path.join(source, name)) as f:
        config = json.load(f)
    config["eos_token_id"] = None
    with open(os.path.join(target, name), "w") as f:
        json.dump(config, f)
PYTHON

cat >rl.yaml <<YAML
config_version: 1
run: {name: rl-step, dir: runs, mode: sync, steps: $steps, overwrite: true}
model: {path: endless}
data:
  train: [{name: words, path: tasks.jsonl}]
rollout: {prompts_per_step: $prompts, group_size: $samples, temperature: 1, max_new_tokens: $new}
actor: {count: 1, threads: $threads, sequences_max: $((prompts * samples)), kv_tokens: $((prompts * samples * (new + 32) + prompts * 512))}
reward: {workers: 1}
learner: {threads: $threads, loss: grpo, learning_rate: 1.0e-6, warmup_steps: 0, pack_tokens: 1280}
eval: {before: false, after: false}
parity: {audit: 0.02, versions_kept: 2, versions_gib: 2}
checkpoint: {every_steps: 0, keep: 1}
transport: {bind: "ipc://$own/control"}
YAML

ours() { # DTYPE: appends a JSON line to ours.jsonl
    taskset -c "$cpus" "$inflight" train --config rl.yaml "model.numerics=$1" "${keys[@]}" >ours.log 2>&1 || {
        tail -n 20 ours.log >&2
        exit 1
    }
    "$python" - "$1" >>ours.jsonl <<'PYTHON'
import json, sys
rows = [json.loads(line) for line in open("runs/rl-step/metrics.jsonl")]
rows = [r for r in rows if r["kind"] == "step"]
summary = json.load(open("runs/rl-step/summary.json"))
steps, last = [], None
for r in rows:
    seconds = r["time/step"] if last is None else r["time_s"] - last
    last = r["time_s"]
    steps.append({"seconds": seconds, "generate_s": r["time/wait_for_batch"],
                  "train_s": r["time/forward_backward"] + r["time/optimizer"]})
print(json.dumps({"dtype": sys.argv[1], "steps": steps, "new": summary["tokens_trained"] / len(steps),
                  "backward": summary["tokens_backward"] / len(steps),
                  "differing": summary["parity_tokens_differing"],
                  "peak_gib": summary["memory_rss_peak_bytes"] / 2**30}))
PYTHON
    rm -rf runs
    sync # a checkpoint is on its way to the disk; it must not slow the other side's turn
}
theirs() {
    taskset -c "$cpus" "$python" "$here/rl_step_trl.py" --model "$model" --tasks tasks.jsonl --dtype "$1" \
        --threads "$threads" --steps "$steps" --prompts "$prompts" --samples "$samples" --new-tokens "$new" \
        >trl.out 2>trl.log || {
        tail -n 20 trl.log >&2
        exit 1
    }
    sed -n '/"what": "rl-step"/p' trl.out >>theirs.jsonl
}

echo "CPUs $cpus ($threads threads), $rounds rounds of $steps steps, load $(cut -d' ' -f1 /proc/loadavg)"
for ((round = 1; round <= rounds; round++)); do
    for dtype in $dtypes; do
        ours "$dtype"
        theirs "$dtype"
        echo "round $round $dtype done, load $(cut -d' ' -f1 /proc/loadavg)" >&2
    done
done

"$python" - <<'PYTHON'
import json, statistics
ours, theirs = ([json.loads(line) for line in open(name)] for name in ("ours.jsonl", "theirs.jsonl"))
kept = lambda run: run["steps"][1:] or run["steps"]
middle = lambda runs, key: statistics.median(s[key] for r in runs for s in kept(r))
print(theirs[0]["versions"])
print(f"{'dtype':6} {'side':5} {'s/step':>8} {'min':>8} {'max':>8} {'generate':>9} {'train':>8} {'new tokens':>11} "
      f"{'trained':>8} {'peak GiB':>9}")
for dtype in dict.fromkeys(r["dtype"] for r in ours):
    a, b = ([r for r in runs if r["dtype"] == dtype] for runs in (ours, theirs))
    for name, runs in (("ours", a), ("TRL", b)):
        seconds = [s["seconds"] for r in runs for s in kept(r)]
        if name == "ours":
            new, trained = statistics.mean(r["new"] for r in runs), statistics.mean(r["backward"] for r in runs)
        else:
            new = statistics.mean(s["new"] for r in runs for s in r["steps"])
            trained = new  # TRL's backward takes every trajectory, whatever its advantage
        print(f"{dtype:6} {name:5} {statistics.median(seconds):8.3f} {min(seconds):8.3f} {max(seconds):8.3f} "
              f"{middle(runs, 'generate_s'):9.3f} {middle(runs, 'train_s'):8.3f} {new:11.0f} {trained:8.0f} "
              f"{max(r['peak_gib'] for r in runs):9.2f}")
    ratios = [statistics.median(s["seconds"] for s in kept(y)) / statistics.median(s["seconds"] for s in kept(x))
              for x, y in zip(a, b)]
    print(f"{dtype:6} ratio {statistics.median(ratios):.2f}, of each round: " + " ".join(f"{r:.2f}" for r in ratios))
    ours_trained = statistics.mean(r["backward"] for r in a)
    if ours_trained < 0.95 * trained:
        print(f"{dtype:6} NOT EQUAL WORK: ours trained {ours_trained:.0f} of {trained:.0f} tokens; the rewards of a "
              "group were all the same. More samples or steps, or another seed")
    if any(r["differing"] for r in a):
        raise SystemExit(f"{dtype}: the audit of our run found differing tokens")
print("peak: ours is the learner's, without the actor's; trained: tokens with a gradient")
PYTHON
