#!/usr/bin/env python3
"""The mismatch between the log-prob recorded while sampling and the log-prob computed when training, in Hugging
Face transformers, in llama.cpp, and in this project: one table of the same measure over the same model.

    tests/parity/mismatch.py --model MODEL [--build build] [--numerics f32,bf16] [--json FILE]
        [--engines ours,llama.cpp,transformers] [--threads 2] [--peer-threads N]
        [--llama BUILD_FOLDER --llama-include FOLDER... [--gguf FILE.gguf]]

Ours: compiled from mismatch_ours.c against the build folder. transformers: what this Python has; the model is
exported with `inflight export` unless it is a Hugging Face folder. llama.cpp: mismatch_llama.c is compiled
against headers (--llama-include) and a libllama.so or static libraries (--llama); it scores the sequences that
ours sampled. Nothing is downloaded.

Per row: tokens, share whose log-prob differs in any bit, largest |d|, mean k3 = exp(d) - 1 - d, smallest and
largest ratio exp(d), and ESS/n of the sequence weights exp(sum d); d = other - reference, all in double.
Exit status 1 when a token of ours differs, or when our mutant (another order of sums) goes unnoticed."""

import argparse
import glob
import json
import os
import shlex
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WARNINGS = ["-O2", "-Wall", "-Wextra", "-Wshadow", "-Wdouble-promotion", "-Wvla", "-Wmissing-prototypes", "-Werror",
            "-D_GNU_SOURCE", "-std=gnu17", "-ffp-contract=off"]
PACKAGES = ["libzmq", "msgpack", "jansson", "yaml-0.1", "libpcre2-8", "libutf8proc", "libxxhash"]
# Of different lengths, so that a batch of them is padded.
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village between two rivers, there lived a clockmaker who",
    "Question: Ann has 12 apples and gives 5 of them to Tom. How many apples are left?\nAnswer: 12 - 5 = 7.\n"
    "Question: A box holds 6 eggs. How many eggs are in 4 boxes?\nAnswer:",
    "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
    "Water boils at 100 degrees Celsius because",
    "Die Hauptstadt von Österreich ist Wien. Die Stadt liegt an der Donau und",
    "List of the planets of the solar system, from the sun outwards: 1.",
    "6 + 7 = 13\n9 - 4 = 5\n3 + 8 =",
]


def run(command, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          **options)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\nended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def compile_ours(build, out):
    flags = run(["pkg-config", "--cflags", "--libs", *PACKAGES]).split()
    sources = [os.path.join(HERE, "mismatch_ours.c"), os.path.join(ROOT, "deploy/cli/load_model.c")]
    libraries = [os.path.join(build, f"libifl_{name}.a") for name in ("learner", "actor", "rewards", "kernels", "common")]
    for path in libraries:
        if not os.path.exists(path):
            sys.exit(f"{path}: not there; build first, or name the build folder with --build")
    run(["cc", *WARNINGS, f"-I{ROOT}", *sources, *libraries, *flags, "-lpthread", "-lm", "-o", out])


def compile_llama(folder, includes, out):
    """Links a shared libllama, or the static libraries of a build folder."""
    shared = glob.glob(os.path.join(folder, "**", "libllama.so"), recursive=True)
    flags = [f for i in includes for f in ("-isystem", i)]
    run(["cc", *WARNINGS, *flags, "-c", os.path.join(HERE, "mismatch_llama.c"), "-o", out + ".o"])
    if shared:
        place = os.path.dirname(shared[0])
        libraries = [f"-L{place}", f"-Wl,-rpath,{place}", "-lllama"]
    else:
        found = {os.path.basename(p): p for p in glob.glob(os.path.join(folder, "**", "lib*.a"), recursive=True)}
        names = ["libllama.a", "libggml.a", "libggml-cpu.a", "libggml-base.a"]
        missing = [n for n in names if n not in found]
        if missing:
            sys.exit(f"--llama {folder}: neither libllama.so nor {', '.join(missing)} below it")
        libraries = [found[n] for n in names]
    run(["c++", out + ".o", *libraries, "-fopenmp", "-lpthread", "-ldl", "-lm", "-o", out])


def passes(text):
    """Lines `PASS INDEX N_PROMPT N_TOKENS token... bits...` -> {pass: {index: (n_prompt, tokens, log-probs)}}."""
    out = {}
    for line in text.splitlines():
        name, index, n_prompt, n_tokens, *rest = line.split()
        n_prompt, n_tokens = int(n_prompt), int(n_tokens)
        bits = np.array([int(b, 16) for b in rest[n_tokens:]], np.uint32)
        assert len(bits) == n_tokens - n_prompt > 0, line[:80]
        out.setdefault(name, {})[int(index)] = (n_prompt, rest[:n_tokens], bits.view(np.float32))
    return out


def arrays(reference, other):
    """Two passes over the same sequences as [n, new tokens] each."""
    assert reference.keys() == other.keys(), "a sequence is missing"
    for i in reference:
        if reference[i][:2] != other[i][:2]:
            sys.exit(f"sequence {i}: two passes sampled different tokens")
    return [np.stack([p[i][2] for i in sorted(p)]) for p in (reference, other)]


def figures(reference, other):
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        sys.exit("a log-prob is not finite")
    differing = reference.view(np.uint32) != other.view(np.uint32)
    d = other.astype(np.float64) - reference.astype(np.float64)
    weights = np.exp(d.sum(1))
    return {"tokens": int(d.size), "differing": int(differing.sum()), "share": float(differing.mean()),
            "max_abs": float(np.abs(d).max()), "k3": float((np.expm1(d) - d).mean()),
            "ratio_min": float(np.exp(d.min())), "ratio_max": float(np.exp(d.max())),
            "ess": float(weights.sum() ** 2 / (len(weights) * (weights ** 2).sum()))}


class Table:
    def __init__(self):
        self.rows = []

    def add(self, engine, numerics, reference, other, a, b):
        row = {"engine": engine, "numerics": numerics, "reference": reference, "other": other, **figures(a, b)}
        self.rows.append(row)
        if len(self.rows) == 1:
            print("| engine | numerics | log-probs from | against | tokens | differ | max abs d | mean k3 | ratios | ESS/n |")
            print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        print(f"| {engine} | {numerics} | {reference} | {other} | {row['tokens']} | {100 * row['share']:.1f} % | "
              f"{row['max_abs']:.2g} | {row['k3']:.1e} | {row['ratio_min']:.6f} to {row['ratio_max']:.6f} | "
              f"{row['ess']:.6f} |", flush=True)
        return row


def run_ours(args, work, numerics, what):
    return run([os.path.join(work, "ours"), args.model, numerics, args.threads, args.new_tokens, args.seed,
                os.path.join(work, "prompts"), what])


def add_ours(table, args, work, numerics):
    """The rows of one profile; returns what failed."""
    got, failures = passes(run_ours(args, work, numerics, "all")), []
    for name, what in (("packed", "teacher forced, packed by the learner"), ("alone", "teacher forced, one by one"),
                       ("cache-1", "sampled again at batch 1"), ("cache-32", "sampled again at batch 32")):
        row = table.add("this project", numerics, "sampled with KV cache, batch 8", what,
                        *arrays(got["cache-8"], got[name]))
        if row["differing"]:
            failures.append(f"{numerics}, {what}: {row['differing']} tokens differ")
    mutant = table.add("this project", numerics, "sampled with KV cache, batch 8",
                       "packed, sums in another order on purpose (control)",
                       *arrays(got["cache-8"], got["packed-mutant"]))
    if not mutant["differing"]:
        failures.append(f"{numerics}: the mutant went unnoticed, so the zeros above show nothing")
    return failures


def add_llama(table, args, work):
    got = passes(run([os.path.join(work, "llama"), args.gguf, args.peer_threads, os.path.join(work, "sequences")]))
    for name, what in (("decode-8", "decoded, 8 sequences together"), ("decode-32", "decoded, 32 sequences together"),
                       ("chunk", "one prefill chunk"), ("decode-1-again", "the same again (control)")):
        table.add("llama.cpp", args.llama_numerics, "decoded, 1 sequence at a time", what,
                  *arrays(got["decode-1"], got[name]))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder or GGUF file")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"), help="our build folder")
    parser.add_argument("--numerics", default="f32,bf16", help="which of f32, bf16 (ours and transformers)")
    parser.add_argument("--engines", default="ours,llama.cpp,transformers",
                        help="which of them; llama.cpp also wants --llama")
    parser.add_argument("--llama", help="folder of libllama.so, or llama.cpp's build folder")
    parser.add_argument("--llama-include", action="append", default=[], help="folder of llama.h, of ggml.h")
    parser.add_argument("--gguf", help="what llama.cpp reads (default: --model)")
    parser.add_argument("--llama-numerics", default="bf16 weights", help="how the table calls that file")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=8, help="the first so many of the built-in ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-threads", type=int, help="of llama.cpp and torch (default: --threads)")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    args.gguf = args.gguf or args.model
    args.peer_threads = args.peer_threads or args.threads
    args.engines = args.engines.split(",")
    args.numerics = args.numerics.split(",")
    if not args.llama:
        args.engines = [e for e in args.engines if e != "llama.cpp"]
    if "llama.cpp" in args.engines and not os.path.isfile(args.gguf):
        parser.error("--llama wants a GGUF file: give --gguf")
    return args


def main():
    args = arguments()
    table, failures, conditions = Table(), [], []
    with tempfile.TemporaryDirectory() as work:
        compile_ours(args.build, os.path.join(work, "ours"))
        with open(os.path.join(work, "prompts"), "wb") as f:
            f.write(b"".join(p.encode() + b"\0" for p in PROMPTS[:args.prompts]))
        if "ours" in args.engines:
            for kind in args.numerics:
                failures += add_ours(table, args, work, kind)
        sampled = run_ours(args, work, args.numerics[0], "sample")  # what llama.cpp scores
        if "llama.cpp" in args.engines:
            with open(os.path.join(work, "sequences"), "w") as f:
                f.write(sampled)
            compile_llama(args.llama, args.llama_include, os.path.join(work, "llama"))
            add_llama(table, args, work)
        if "transformers" in args.engines:
            sys.path.insert(0, HERE)
            import mismatch_transformers
            conditions.append(mismatch_transformers.versions())
            folder = args.model
            if not os.path.isdir(folder):
                folder = os.path.join(work, "exported")
                run([os.path.join(args.build, "inflight"), "export", "--model", args.model, "--out", folder])
            # Four samples of each prompt: the first of each gives its ids.
            ids = passes(sampled)["cache-8"]
            prompts = [[int(t) for t in ids[i][1][:ids[i][0]]] for i in sorted(ids) if i % 4 == 0]
            for kind in args.numerics:
                for row in mismatch_transformers.measure(folder, kind, prompts, args.new_tokens, args.seed,
                                                         args.peer_threads):
                    table.add("transformers", kind, *row)
    if conditions:
        print("\n" + "; ".join(conditions))
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"model": args.model, "conditions": conditions, "new_tokens": args.new_tokens,
                       "rows": table.rows}, f, indent=1)
    for failure in failures:
        print("FAILED:", failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
