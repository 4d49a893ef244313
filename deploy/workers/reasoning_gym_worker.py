#!/usr/bin/env python3
"""Scores answers to tasks of reasoning-gym's generators: a worker over JSON lines.

    reward: {checkers: {procedural: {use: process, command: [python3, deploy/workers/reasoning_gym_worker.py]}}}

It speaks the protocol of rewards/PLUGINS.md: a hello, then a line out for each line in. It ends when its
input does. Needs reasoning-gym of the version below (pip install), since another may make other tasks of
the same seeds; without it, its hello is the error that says so.

meta: "generator", "seed", "index", "size" and "config" make the task again, and "question_sha256" and
the gold prove that it is the same. "threshold" (1): scores below it pay nothing, since some scorers
credit junk; scores from it on pay what they are. Of the completion counts what follows </think>, in
that the text in <answer>...</answer> if there is such; several that differ are no answer.
"""
import hashlib
import json
import math
import os
import re
import sys
from collections import OrderedDict

WANTED = "0.1.25"
PROTOCOL = 1
DATASETS_KEPT = 64
LINE_BYTES_MAX = 16 << 20
ANSWER_BYTES_MAX = 65536
SIZE_MAX = 1 << 20
# Measured: what pays in full whatever the task.
REFUSED = {"game_of_life_halting": "its scorer takes any text for right",
           "coin_flip": "its scorer takes 0 for right in 96 tasks of 100"}
# Fractions and integers of such size take a scorer minutes.
HUGE = re.compile(r"[eE][+-]?[0-9_]{4}|[0-9)]\s*\*\*\s*[0-9(]")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class BadTask(Exception):
    pass


class Unusable(Exception):
    pass


def library():
    """reasoning_gym in the version wanted; Unusable says what is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("reasoning-gym")
    except PackageNotFoundError:
        raise Unusable(f"reasoning-gym is not installed for {sys.executable}: pip install reasoning-gym=={WANTED}"
                       ", or name a python that has it in the checker's command")
    if found != WANTED:
        raise Unusable(f"reasoning-gym {found} is installed, and would make other tasks: "
                       f"pip install reasoning-gym=={WANTED}")
    try:
        import reasoning_gym
    except ImportError as e:
        raise Unusable(f"reasoning-gym cannot be loaded: {e}") from e

    return reasoning_gym


def fixed_hashes():
    """Some generators walk through sets: their order must be the same in every process."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])


class Tasks:
    """Generators by their meta, the last ones used kept."""

    def __init__(self, gym):
        self.gym = gym
        self.kept = OrderedDict()

    def dataset(self, generator, seed, size, config):
        if generator in REFUSED:
            raise BadTask(f"generator {generator} is refused: {REFUSED[generator]}")
        key = json.dumps([generator, seed, size, config], sort_keys=True)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        try:
            made = self.gym.create_dataset(generator, seed=seed, size=size, **config)
        except Exception as e:
            raise BadTask(f"generator {generator} can't be made: {type(e).__name__}: {e}") from e
        self.kept[key] = made
        if len(self.kept) > DATASETS_KEPT:
            self.kept.popitem(last=False)
        return made

    def entry(self, meta, gold):
        if not isinstance(meta, dict):
            raise BadTask("meta: wanted an object")
        generator, config = meta.get("generator"), meta.get("config", {})
        seed, index = meta.get("seed"), meta.get("index")
        if not isinstance(generator, str) or not isinstance(config, dict):
            raise BadTask("meta: wanted generator (a name) and config (an object)")
        if not all(isinstance(x, int) and not isinstance(x, bool) and x >= 0 for x in (seed, index)):
            raise BadTask("meta: wanted seed and index, integers from 0")
        size = meta.get("size", index + 1)
        if not isinstance(size, int) or not index < size <= SIZE_MAX:
            raise BadTask(f"meta.size: wanted an integer from index + 1 to {SIZE_MAX}")
        if {"seed", "size"} & config.keys():
            raise BadTask("meta.config: seed and size stand in meta itself")
        dataset = self.dataset(generator, seed, size, config)
        try:
            entry = dataset[index]
        except Exception as e:
            raise BadTask(f"task {index} can't be made: {type(e).__name__}: {e}") from e
        wanted = meta.get("question_sha256")
        if wanted is not None and wanted != hash_of(entry["question"]):
            raise BadTask("the generator makes another question of this seed and index")
        if gold and gold != answer_text(entry):
            raise BadTask("the generator makes another answer of this seed and index")
        return dataset, entry


def hash_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


def answer_text(entry):
    """Five generators store none: their scorers compute what is right."""
    return "" if entry["answer"] is None else str(entry["answer"])


def stated_answer(completion):
    """What the completion states; (None, why) if nothing or several things."""
    text = completion.rsplit("</think>", 1)[-1]
    tagged = {t.strip() for t in ANSWER.findall(text)}
    if len(tagged) > 1:
        return None, "several answers that differ"
    text = tagged.pop() if tagged else text.strip()
    if not text:
        return None, "nothing was answered"
    if len(text.encode("utf-8", "surrogatepass")) > ANSWER_BYTES_MAX:
        return None, f"an answer of more than {ANSWER_BYTES_MAX} bytes"
    return text, ""


def sane(score):
    return isinstance(score, (int, float)) and math.isfinite(score) and 0 <= score <= 1


def score(tasks, request):
    """(status, reward, components, info)"""
    meta, gold = request.get("meta") or {}, request.get("gold") or ""
    if isinstance(meta, str):
        meta = json.loads(meta)
    dataset, entry = tasks.entry(meta, gold)
    threshold = meta.get("threshold", 1.0)
    if not sane(threshold) or threshold <= 0:
        raise BadTask("meta.threshold: wanted a number above 0, at most 1")
    text, why = stated_answer(request["completion"])
    if text is None:
        return "no_answer", 0.0, {}, why
    if HUGE.search(text) and not HUGE.search(answer_text(entry)):
        return "bad_format", 0.0, {}, "a number with a huge exponent"
    try:
        value = dataset.score_answer(answer=text, entry=entry)
    except Exception as e:
        # A scorer that reads another answer and fails on this one can't read this one.
        if sane(dataset.score_answer(answer=answer_text(entry) or "none", entry=entry)):
            return "bad_format", 0.0, {}, f"the scorer can't read it: {type(e).__name__}"
        raise
    if not sane(value):
        return "checker_error", 0.0, {}, f"the scorer said {value!r}"
    value = float(value)
    if value < threshold:
        return "wrong", 0.0, {"score": value}, ""
    return "ok", value, {"score": value}, ""


def answer_line(tasks, line):
    request = json.loads(line)
    try:
        status, reward, components, info = score(tasks, request)
    except BadTask as e:
        status, reward, components, info = "bad_task", 0.0, {}, str(e)
    except RecursionError:
        status, reward, components, info = "bad_format", 0.0, {}, "nested too deep for the scorer"
    except Exception as e:
        status, reward, components, info = "checker_error", 0.0, {}, f"{type(e).__name__}: {e}"
    return json.dumps({"id": request.get("id"), "status": status, "reward": reward,
                       "components": components, "info": info[:500]}, allow_nan=False)


def main():
    fixed_hashes()
    # What a generator prints must not get among the answers.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    hello = {"protocol": PROTOCOL, "name": "procedural", "version": WANTED, "pure": True}
    try:
        tasks = Tasks(library())
    except Unusable as e:
        print(json.dumps({**hello, "error": str(e)}), file=out, flush=True)
        sys.exit(1)
    print(json.dumps(hello), file=out, flush=True)
    while line := sys.stdin.buffer.readline(LINE_BYTES_MAX):
        if not line.endswith(b"\n"):
            sys.exit("a line that is too long or has no end")
        print(answer_line(tasks, line), file=out, flush=True)


if __name__ == "__main__":
    main()
