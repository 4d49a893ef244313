#!/usr/bin/env python3
"""Writes the tasks of rl_step.sh: seeded word problems after two worked ones, about 100 tokens each. The reward says
whether an answer has an even number of characters: about half of any policy's answers, so that the rewards of a
group differ and every trajectory has a gradient.

    rl_step_tasks.py OUT.jsonl [--count N] [--seed N] [--short]"""

import argparse
import json
import random

NAMES = ["Ada", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"]
THINGS = ["apples", "books", "coins", "marbles", "pencils", "stamps", "stones", "tickets"]
EVEN = r"(?s)\A(?:..)*\z"  # the checker `format`: a pattern that must match


def problem(rng):
    name, other = rng.sample(NAMES, 2)
    thing, a, b = rng.choice(THINGS), rng.randint(20, 60), rng.randint(2, 19)
    return (f"Question: {name} has {a} {thing} and gives {b} to {other}. How many {thing} are left?\nAnswer:",
            f" {a} - {b} = {a - b}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="no worked problems before")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    shots = "" if args.short else "".join(q + a + "\n\n" for q, a in (problem(rng) for _ in range(2)))
    seen = set()
    with open(args.out, "w") as f:
        while len(seen) < args.count:
            question, answer = problem(rng)
            if question in seen:
                continue
            seen.add(question)
            f.write(json.dumps({"id": f"p{len(seen)}", "prompt": shots + question, "checker": "format",
                                "answer": answer, "meta": {"regex": EVEN}}) + "\n")


if __name__ == "__main__":
    main()
