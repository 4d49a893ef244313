#!/usr/bin/env bash
# The worker for reasoning-gym's tasks and the script that makes them. Needs a python3 with reasoning-gym
# of the worker's version; IFL_REASONING_GYM_PYTHON may name one.
set -euo pipefail
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
assert hello["protocol"] == "inflight-reward-1" and hello["version"], hello
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
