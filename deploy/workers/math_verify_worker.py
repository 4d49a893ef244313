#!/usr/bin/env python3
"""Mathematics that the checker `math` leaves undecided, by Math-Verify: a worker over JSON lines.

    reward:
      checkers:
        verify: {use: process, command: [python3, deploy/workers/math_verify_worker.py], memory_gib: 8}
        proved: {use: first, pass_on: [undecided], parts: [{checker: math}, {checker: verify}]}

It speaks the protocol of rewards/PLUGINS.md. What counts is the last \\boxed{} behind the end of thinking,
else what follows the last #### or Answer: on its line; a number that is merely mentioned never does. It
says ok, wrong, no_answer or undecided; the time limit is the pool's, which kills it (no SIGALRM here: it
would be lost in the first thread that isn't the main one). Needs Math-Verify (see the cure in its hello).
"""
import json
import logging
import os
import re
import sys

PROTOCOL = 1
CURE = "pip install 'math-verify[antlr4_13_2]==0.9.0'"
LINE_BYTES_MAX = 16 << 20
ANSWER_BYTES_MAX = 4096
# What Math-Verify takes for equal after rounding must be so by this much, relative (1/2004! is not 1/2006!).
TOLERANCE, DIGITS = "1e-9", 60
ANCHOR = re.compile(r"(?:####|answer\s*(?:is)?\s*:)[ \t]*(\S[^\n]*)", re.IGNORECASE)


def boxes(text):
    """What the balanced \\boxed{...} of a text hold, each with the end of its place."""
    out = []
    for m in re.finditer(r"\\f?boxed\s*\{", text):
        depth, at = 1, m.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            at += 1
        if not depth:
            out.append((text[m.end():at - 1].strip(), m.start(), at))
    return out


def stated_answer(completion):
    """(answer, "") or (None, why)."""
    text = completion.rsplit("</think>", 1)[-1]
    found = boxes(text)
    if found:
        answer, begin, _ = found[-1]
        # Two boxes that stand together are two answers.
        for other, _, end in found[:-1]:
            if other != answer and "\n" not in text[end:begin] and begin - end < 40:
                return None, "several answers that differ"
    else:
        anchors = ANCHOR.findall(text)
        if not anchors:
            return None, "no \\boxed{}, no #### and no Answer:"
        answer = anchors[-1].strip().strip("$").rstrip(".")
    if not answer:
        return None, "nothing was answered"
    if len(answer.encode("utf-8", "surrogatepass")) > ANSWER_BYTES_MAX:
        return None, f"an answer of more than {ANSWER_BYTES_MAX} bytes"
    return answer, ""


class Judge:
    def __init__(self):
        import math_verify
        import sympy

        self.verify, self.sympy = math_verify.verify, sympy
        config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
        self.parse = lambda s: [e for e in math_verify.parse(
            "\\boxed{" + s + "}", extraction_config=config, extraction_mode="first_match",
            fallback_mode="no_fallback", parsing_timeout=None) if not isinstance(e, str)]
        if not self.verify(self.parse("\\frac{1}{2}"), self.parse("0.5"), timeout_seconds=None):
            raise ImportError("it doesn't find that 1/2 is 0.5")

    def close(self, gold, answer):
        """Whether two numbers are as near as we ask; True for what is no number."""
        pairs = [(g, a) for g in gold for a in answer if getattr(g, "is_number", False) and getattr(a, "is_number", False)]
        return not pairs or any(
            abs(self.sympy.N(g - a, DIGITS)) <= self.sympy.Float(TOLERANCE) * abs(self.sympy.N(g, DIGITS)) for g, a in pairs)

    def score(self, gold_text, completion):
        """(status, reward, info)"""
        text, why = stated_answer(completion)
        if text is None:
            return "no_answer", 0.0, why
        gold_text = (boxes(gold_text) or [(gold_text.strip().strip("$"),)])[-1][0]
        gold, answer = self.parse(gold_text), self.parse(text)
        if not gold:
            return "undecided", 0.0, "Math-Verify can't read the task's answer"
        if not answer:
            return "undecided", 0.0, "Math-Verify can't read the answer"
        if any(isinstance(e, (bool, self.sympy.logic.boolalg.BooleanAtom)) for e in gold + answer):
            return "undecided", 0.0, "a statement that is merely true or false"
        try:
            same = self.verify(gold, answer, timeout_seconds=None, raise_on_error=True)
            if same and not self.close(gold, answer):
                return "undecided", 0.0, "equal after rounding alone"
        except Exception as e:
            return "undecided", 0.0, f"Math-Verify gave up: {type(e).__name__}"
        return ("ok", 1.0, "") if same else ("wrong", 0.0, "")


def answer_line(judge, line):
    request = json.loads(line)
    try:
        status, reward, info = judge.score(request.get("gold") or "", request["completion"])
    except RecursionError:
        status, reward, info = "undecided", 0.0, "nested too deep for Math-Verify"
    except Exception as e:
        status, reward, info = "checker_error", 0.0, f"{type(e).__name__}: {e}"
    return json.dumps({"id": request["id"], "status": status, "reward": reward, "info": info[:500]})


def main():
    from importlib.metadata import PackageNotFoundError, version

    # What a library prints must not get among the answers.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    hello = {"protocol": PROTOCOL, "name": "math_verify", "version": "0"}
    try:
        hello["version"] = version("math-verify")
        judge = Judge()
    except (PackageNotFoundError, ImportError) as e:
        error = f"Math-Verify cannot be used by {sys.executable} ({type(e).__name__}: {e}): {CURE}, or name a " \
                "python that has it in the checker's command"
        print(json.dumps({**hello, "error": error}), file=out, flush=True)
        sys.exit(1)
    print(json.dumps(hello), file=out, flush=True)
    while line := sys.stdin.buffer.readline(LINE_BYTES_MAX):
        if not line.endswith(b"\n"):
            sys.exit("a line that is too long or has no end")
        print(answer_line(judge, line), file=out, flush=True)


if __name__ == "__main__":
    main()
