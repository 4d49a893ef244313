#!/usr/bin/env bash
# The worker for reasoning-gym's tasks and the script that makes them. Needs a python3 with reasoning-gym
# of the worker's version; IFL_REASONING_GYM_PYTHON may name one.
set -euo pipefail
inflight=$1
source_dir=$2
python=${IFL_REASONING_GYM_PYTHON:-python3}
if ! "$python" -c "import reasoning_gym" 2>/dev/null; then
    echo "SKIPPED: no python3 with reasoning-gym (set IFL_REASONING_GYM_PYTHON)"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
make_tasks() { "$python" "$source_dir/deploy/get-procedural" "$@"; }

generators="chain_sum gcd prime_factorization number_sorting letter_counting spell_backward rubiks_cube boxnet"
make_tasks $generators --count 10 --seed 7 --to a/tasks.jsonl
make_tasks $generators --count 10 --seed 7 --to again.jsonl
cmp a/tasks.jsonl again.jsonl || { echo "FAIL: the same seed made other tasks" >&2; exit 1; }
for refused in game_of_life_halting coin_flip; do
    if make_tasks $refused --count 1 --to bad.jsonl 2>err.txt || ! grep -q refused err.txt; then
        echo "FAIL: $refused was not refused" >&2
        exit 1
    fi
done
[[ ! -e bad.jsonl && ! -e bad.jsonl.part ]] || { echo "FAIL: a task file was left behind" >&2; exit 1; }

"$python" - "$python" "$source_dir/deploy/workers/reasoning_gym_worker.py" a/tasks.jsonl <<'PYTHON'
import json, subprocess, sys

python, worker, path = sys.argv[1:]
tasks = [json.loads(line) for line in open(path)]
process = subprocess.Popen([python, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
hello = json.loads(process.stdout.readline())
assert hello["protocol"] == 1 and hello["version"] and "error" not in hello, hello
n = 0


def ask(task, completion, **meta):
    global n
    n += 1
    request = {"id": n, "prompt": task["prompt"], "completion": completion, "gold": task["answer"],
               "meta": {**task["meta"], **meta}, "deadline_ms": 10000}
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    reply = json.loads(process.stdout.readline())
    assert reply["id"] == n, reply
    return reply["status"], reply["reward"]


def expect(got, wanted, *what):
    assert got == wanted, (got, wanted, *what)


assert len(tasks) == 80, len(tasks)
for t in tasks:
    g = t["answer"]
    if g:  # rubiks_cube and boxnet store no answer
        expect(ask(t, g), ("ok", 1.0), t)
        expect(ask(t, f"<think>1 2 3</think>so\n<answer> {g} </answer>"), ("ok", 1.0), t)
        expect(ask(t, f"<answer>{g}</answer><answer>banana</answer>"), ("no_answer", 0.0), t)
        expect(ask({**t, "answer": g + "1"}, g), ("bad_task", 0.0), t)
    for junk in "banana", "0 apples", "x" * 1000, "[" * 10000, "0", "[]", "1e999999999", "9**9**9**9", "\x00", "9" * 5000:
        if junk == g:
            continue
        status, reward = ask(t, junk)
        assert status in ("wrong", "bad_format", "no_answer") and reward == 0.0, (status, reward, junk, t)
    expect(ask(t, ""), ("no_answer", 0.0), t)
    expect(ask(t, "x" * 100000), ("no_answer", 0.0), t)
t = tasks[0]
expect(ask(t, t["answer"], question_sha256="0"), ("bad_task", 0.0))
expect(ask(t, t["answer"], generator="no_such"), ("bad_task", 0.0))
expect(ask(t, t["answer"], generator="game_of_life_halting"), ("bad_task", 0.0))
expect(ask(t, t["answer"], index=-1), ("bad_task", 0.0))
expect(ask(t, t["answer"], index=10**9), ("bad_task", 0.0))
expect(ask(t, t["answer"], config={"no_such": 1}), ("bad_task", 0.0))
expect(ask(t, t["answer"], config={"seed": 1}), ("bad_task", 0.0))
expect(ask(t, t["answer"], threshold=0), ("bad_task", 0.0))
# Junk credit: some scorers pay a little for anything; the threshold decides.
spell = next(t for t in tasks if t["meta"]["generator"] == "letter_counting")
status, reward = ask(spell, "999", threshold=0.001)
assert status in ("ok", "wrong") and reward < 0.2, (status, reward)
process.stdin.close()
assert process.wait(10) == 0
print(f"procedural: {n} answers as they should be")
PYTHON

# --- As a checker of the shipped configuration ------------------------------------------------------------------------
# The command of the configuration, with this python and from any folder.
full=$("$python" -c "import sys; print(sys.executable)")
sed "s|\[python3, deploy/workers/|[$full, $source_dir/deploy/workers/|" \
    "$source_dir/deploy/configs/reasoning-gym-gemma-270m.yaml" >procedural.yaml
grep -qF "command: [$full," procedural.yaml || { echo "FAIL: the configuration has another command" >&2; exit 1; }
score() { "$inflight" score --config procedural.yaml --timeout-ms 30000 "$@"; }
make_tasks chain_sum gcd prime_factorization number_sorting letter_counting spell_backward --count 8 --seed 3 --to b/tasks.jsonl
"$python" - b/tasks.jsonl <<'PYTHON'
import json, sys

tasks = [json.loads(line) for line in open(sys.argv[1])]
assert len(tasks) == 48
out, completions, wanted = [], [], []


def add(task, completion, status, reward, **meta):
    out.append({**task, "id": str(len(out)), "meta": {**task["meta"], **meta}})
    completions.append({"completion": completion})
    wanted.append([status, reward])


for t in tasks:
    add(t, t["answer"], "ok", 1.0)
    add(t, f"<think>0</think> <answer>{t['answer']}</answer>", "ok", 1.0)
    add(t, f"<answer>{t['answer']}</answer> or <answer>banana</answer>", "no_answer", 0.0)
    add(t, "", "no_answer", 0.0)
t = tasks[0]
add(t, t["answer"], "bad_task", None, generator="no_such")
add(t, t["answer"], "bad_task", None, generator="game_of_life_halting")
add(t, t["answer"], "bad_task", None, index=7)
add(t, t["answer"], "bad_task", None, seed=4)
with open("tasks.jsonl", "w") as f:
    f.writelines(json.dumps(r) + "\n" for r in out)
with open("completions.jsonl", "w") as f:
    f.writelines(json.dumps(r) + "\n" for r in completions)
json.dump(wanted, open("wanted.json", "w"))
PYTHON
score --tasks tasks.jsonl --completions completions.jsonl --out out.jsonl 2>err.txt || { cat err.txt >&2; exit 1; }
"$python" - <<'PYTHON'
import json

rows, wanted = [json.loads(line) for line in open("out.jsonl")], json.load(open("wanted.json"))
assert len(rows) == len(wanted)
for row, (status, reward) in zip(rows, wanted):
    assert (row["status"], row["reward"]) == (status, reward), (row, status, reward)
    assert row["checker"] == "procedural=procedural/0.1.25", row
assert "game_of_life_halting is refused" in rows[-3]["reason"], rows[-3]
print(f"procedural: {len(rows)} more through the pool")
PYTHON

# A scorer that raises is the checker's failure, never a zero: reasoning-gym in a version whose scorers all do.
mkdir broken
cat >broken/sitecustomize.py <<'PYTHON'
import sys
if "reasoning_gym_worker.py" in " ".join(sys.orig_argv):
    import reasoning_gym.arithmetic.chain_sum as chain_sum
    def score_answer(self, answer, entry): raise RuntimeError("out of order")
    chain_sum.ChainSumDataset.score_answer = score_answer
PYTHON
sed "s|start_ms: 60000|start_ms: 60000, env: {PYTHONPATH: $work/broken}|" procedural.yaml >broken.yaml
head -n 1 b/tasks.jsonl >one.jsonl
echo '{"completion": "1"}' >one.completion
status=0
"$inflight" score --config broken.yaml --timeout-ms 30000 --tasks one.jsonl --completions one.completion >out.txt 2>err.txt || status=$?
[[ $status == 69 ]] && grep -qF '"status":"checker_error","reward":null' out.txt && grep -qF 'RuntimeError: out of order' out.txt ||
    { echo "FAIL: a scorer that raises: $status: $(cat out.txt err.txt)" >&2; exit 1; }

# Without the package a run ends at its start, and says what to do.
cat >bare.py <<PYTHON
import importlib.metadata, runpy, sys
def version(name): raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
runpy.run_path("$source_dir/deploy/workers/reasoning_gym_worker.py", run_name="__main__")
PYTHON
sed "s|\[$full, [^]]*\]|[$full, $work/bare.py]|" procedural.yaml >bare.yaml
status=0
"$inflight" score --config bare.yaml --checker procedural --pair 1 1 >out.txt 2>err.txt || status=$?
[[ $status == 69 ]] && grep -qF 'checker procedural' err.txt && grep -qF 'pip install reasoning-gym==0.1.25' err.txt ||
    { echo "FAIL: without reasoning-gym: $status: $(cat out.txt err.txt)" >&2; exit 1; }
echo "procedural: a scorer that raises and a missing package are told"
