#!/usr/bin/env python3
"""A reward of your own: one line of JSON in, one line out (rewards/PLUGINS.md). What it pays here is what the built-in
`exact` pays: 1 if the text behind the last marker is the gold answer, and the answer was not cut."""
import json, sys

print(json.dumps({"protocol": 1, "name": "reward.py", "version": "1"}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    marker = task["meta"].get("after")
    text = task["completion"].rpartition(marker) if marker else ("", "found", task["completion"])
    whole = task["finish"] in ("eos", "stop") or not task["meta"].get("end")
    right = bool(text[1]) and whole and text[2].strip(" \t\n\v\f\r") == task["gold"].strip(" \t\n\v\f\r")
    print(json.dumps({"id": task["id"], "status": "ok" if right else "wrong", "reward": float(right)}), flush=True)
