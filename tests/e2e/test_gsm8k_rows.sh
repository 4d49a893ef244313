#!/usr/bin/env bash
# Every row of GSM8K's training split through the checker gsm8k: its own answer is right, the answer
# plus one is wrong, and so for the bare numbers. Needs the file that `deploy/get-data gsm8k` makes, in
# data/gsm8k or in the folder that IFL_GSM8K names, and python3.
set -euo pipefail
binary=$1
data=${IFL_GSM8K:-$2/data/gsm8k}
if [[ ! -f $data/train.jsonl ]]; then
    echo "SKIPPED: no $data/train.jsonl (deploy/get-data gsm8k)"
    exit 77
fi
command -v python3 >/dev/null || { echo "SKIPPED: no python3"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -I - "$data/train.jsonl" "$work" <<'PYTHON'
import json, sys
from decimal import Decimal

path, work = sys.argv[1:]
with open(path, encoding="utf-8") as rows, open(f"{work}/tasks.jsonl", "w") as tasks, \
        open(f"{work}/own.jsonl", "w") as own, open(f"{work}/next.jsonl", "w") as following:
    for row in map(json.loads, rows):
        worked, answer = row["completion"].rsplit("#### ", 1)
        plus_one = format(Decimal(answer.strip().replace(",", "")) + 1, "f")
        task = {"id": row["id"], "prompt": row["prompt"], "checker": "gsm8k"}
        for name, gold in ("", row["answer"]), ("-worked", row["completion"]):
            tasks.write(json.dumps(task | {"id": row["id"] + name, "answer": gold}) + "\n")
            for out, said in (own, answer), (following, plus_one):
                out.write(json.dumps({"id": row["id"] + name, "completion": worked + "#### " + said}) + "\n")
PYTHON
n=$(wc -l <"$work/tasks.jsonl")
[[ $n == 14946 ]] || { echo "FAIL: $n tasks, wanted twice 7473" >&2; exit 1; }
for side in own:1.0:ok next:0.0:wrong; do
    IFS=: read -r name reward status <<<"$side"
    "$binary" score --tasks "$work/tasks.jsonl" --completions "$work/$name.jsonl" --out "$work/results.jsonl"
    got=$(grep -c "\"status\":\"$status\",\"reward\":$reward," "$work/results.jsonl" || true)
    [[ $got == "$n" ]] || { echo "FAIL: $got of $n rows are $status with reward $reward ($name)" >&2; exit 1; }
done
echo "gsm8k: $n own answers right, $n answers plus one wrong"
