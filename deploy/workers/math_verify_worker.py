#!/usr/bin/env python3
"""Mathematics that the checker `math` leaves undecided, by Math-Verify: a worker over JSON lines.

    reward:
      checkers:
        verify: {use: process, command: [python3, deploy/workers/math_verify_worker.py], memory_gib: 8}
        proved: {use: first, pass_on: [undecided], parts: [{checker: math}, {checker: verify}]}

It speaks the protocol of rewards/PLUGINS.md. What counts is the last \\boxed{} behind the end of thinking,
else what follows the last #### or Answer: on its line; a number that is merely mentioned never does. It
says ok, wrong, no_answer or undecided. Each question is worked on in a child that is killed when four
fifths of the pool's time are over: what a policy makes too long for it is undecided, not an error of the
checker. (No SIGALRM: an alarm cannot end what doesn't come back to Python, and is lost in threads.) Needs
Math-Verify (see the cure in its hello).
"""
import json
import logging
import os
import re
import select
import signal
import sys

PROTOCOL = 1
CURE = "pip install 'math-verify[antlr4_13_2]==0.9.0'"
LINE_BYTES_MAX = 16 << 20
TIME_SHARE = 0.8
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
        # What the parser learns of its grammar here need not be learnt in every child.
        warm = ("\\frac{1}{2}", "\\int_0^1 x^2 dx", "\\sum_{k=1}^{3} k", "\\lim_{x \\to 0} \\sin x", "\\sqrt{2}+\\pi", "(1,2]",
                "x=\\{1,-2\\}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\ln(x)^2", "e^{-x}\\cos x", "5!", "x \\le 3.5")
        for text in warm:
            self.parse(text)
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


def score_said(judge, request, to):
    """In the child: the score as JSON."""
    try:
        said = judge.score(request.get("gold") or "", request["completion"])
    except (RecursionError, MemoryError) as e:
        said = "undecided", 0.0, f"too much for Math-Verify: {type(e).__name__}"
    except Exception as e:
        said = "checker_error", 0.0, f"{type(e).__name__}: {e}"
    os.write(to, json.dumps([said[0], said[1], said[2][:500]]).encode())


def score_apart(judge, request):
    """(status, reward, info) by a child of our own."""
    get, put = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(get)
            score_said(judge, request, put)
        finally:
            os._exit(0)
    os.close(put)
    try:
        if not select.select([get], [], [], TIME_SHARE * request["deadline_ms"] / 1000)[0]:
            return "undecided", 0.0, "it takes Math-Verify too long"
        said = os.read(get, 8192)
        return json.loads(said) if said else ("undecided", 0.0, "too much for Math-Verify: its process has died")
    finally:
        os.close(get)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def answer_line(judge, line):
    request = json.loads(line)
    status, reward, info = score_apart(judge, request)
    return json.dumps({"id": request["id"], "status": status, "reward": reward, "info": info})


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
