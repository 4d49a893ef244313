#!/usr/bin/env python3
"""Compares our logits and our greedy answers with the live transformers library (CPU, float32), on the same
weights rounded to bf16. Not part of ctest, which needs no Python.

    pip install torch transformers                 (for a .gguf: accelerate gguf too)
    python3 tests/parity/compare_transformers.py --inflight build/inflight --random all
    python3 tests/parity/compare_transformers.py --inflight build/inflight --model models/gemma-3-270m/gemma-3-270m.gguf

--random takes llama3, qwen2, qwen3, gemma3, qwen2-yarn or all: small models that transformers initialises and saves.
--model takes a Hugging Face folder or a .gguf, which transformers reads by itself, tokenizer included (that takes a
minute or two): nothing of ours prepares the reference. For every prompt the logits of every position: max |a - b| /
max |b| of a row must stay below 1e-4. Then 64 tokens of `inflight generate --greedy` against `generate` of
transformers: equal, unless the reference's best two logits lie within 1e-4; such a token is counted, and both go on
from the reference's. Last, `inflight export`: transformers must load the folder with the same weights and compute the
same with them, and its AutoTokenizer must give the ids of the original's for 200 strings and the prompts. The
comparison must notice a mutant: one weight moved.
Exit status 1 when anything differs."""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

os.environ.setdefault("TQDM_DISABLE", "1")  # read when transformers is imported

import numpy as np
import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "golden"))
import make_models  # noqa: E402
import make_tokenizers  # noqa: E402

BOUND = 1e-4
GREEDY_TOKENS = 64
STRINGS = 200
PROSE = ("The old lighthouse keeper counted the ships each evening. On Monday there were seven, on Tuesday twelve, and "
         "by the end of the week he had written down forty-one names in a small grey book. ")
PROMPTS = ["The capital of France is", "2 + 5 = 7\n8 - 3 = 5\n6 + 7 = 13\n9 - 9 = 0\n4 + 8 =",
           "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
           "Die Würde des Menschen ist", "日本の首都は", PROSE * 16]  # the last one is longer than Gemma's window


def as_list(ids):
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


class Ours:
    def __init__(self, inflight, driver, threads):
        self.inflight, self.driver, self.threads = inflight, driver, threads

    def logits(self, model, sequences, vocabulary):
        """A float32 array [n, V] per sequence, mapped from a file that lives as long as the arrays."""
        with tempfile.TemporaryDirectory() as folder:
            requests, out = os.path.join(folder, "ids"), os.path.join(folder, "logits")
            with open(requests, "wb") as f:
                for ids in sequences:
                    f.write(np.array([len(ids)] + ids, np.int32).tobytes())
            subprocess.run([self.driver, "logits", model, requests, out], check=True)
            rows = sum(len(ids) for ids in sequences)
            flat = np.memmap(out, np.float32, "r", shape=(rows, vocabulary))
            if os.path.getsize(out) != flat.nbytes:
                sys.exit(f"{self.driver}: {os.path.getsize(out)} bytes of logits, wanted {flat.nbytes}")
        at = np.cumsum([0] + [len(ids) for ids in sequences])
        return [flat[a:b] for a, b in zip(at, at[1:])]

    def greedy(self, model, ids, n):
        out = subprocess.run([self.inflight, "generate", "--model", model, "--tokens", ",".join(map(str, ids)), "--greedy",
                              "--json", "--max-new-tokens", str(n), "--threads", str(self.threads)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if out.returncode:
            sys.exit(out.stderr.decode())
        return json.loads(out.stdout)["tokens"]

    def export(self, model, folder):
        subprocess.run([self.inflight, "export", "--model", model, "--out", folder], check=True)


def load(path, dtype=torch.float32):
    """The model as transformers reads it. `dtype` is given at load: casting later would round RoPE tables too."""
    options = {"dtype": dtype, "attn_implementation": "eager"}
    if os.path.isdir(path):
        return transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()
    # Without dequantize the weights stay packed, and the matrix products are another library's.
    config = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        os.path.dirname(path) or ".", gguf_file=os.path.basename(path), quantization_config=config, **options).eval()


def load_tokenizer(path):
    """None when the model has none."""
    if not os.path.isdir(path):
        return transformers.AutoTokenizer.from_pretrained(os.path.dirname(path) or ".", gguf_file=os.path.basename(path))
    return transformers.AutoTokenizer.from_pretrained(path) if os.path.exists(os.path.join(path, "tokenizer.json")) else None


def round_weights(model):
    """Rounds every parameter to bf16, to nearest even, in place; gives the count of changed values."""
    changed = 0
    with torch.no_grad():
        for p in model.parameters():
            rounded = p.to(torch.bfloat16).to(torch.float32)
            changed += int((rounded != p).sum())
            p.copy_(rounded)
    return changed


def row_error(got, want):
    """max |a - b| / max |b| of each row; a value that is not finite gives infinity."""
    got, want = torch.from_numpy(np.array(got)), want.to(torch.float32)
    error = (got - want).abs().amax(-1) / want.abs().amax(-1)
    return torch.where(torch.isfinite(got).all(-1) & torch.isfinite(error), error, torch.inf)


def compare_logits(reference, ours, path, sequences):
    worst, rows = 0.0, 0
    got = ours.logits(path, sequences, reference.config.vocab_size)
    for ids, mine in zip(sequences, got):
        with torch.no_grad():
            hidden = reference.model(torch.tensor([ids])).last_hidden_state[0]
            for at in range(0, len(ids), 128):  # the head in blocks: 1,000 rows of Gemma's are a gigabyte
                want = reference.lm_head(hidden[at:at + 128])
                if getattr(reference.config, "final_logit_softcapping", None):
                    cap = reference.config.final_logit_softcapping
                    want = torch.tanh(want / cap) * cap
                worst = max(worst, float(row_error(mine[at:at + 128], want).max()))
        rows += len(ids)
    return worst, rows


def reference_gap(reference, ids):
    with torch.no_grad():
        best = reference(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


def compare_greedy(reference, ours, path, prompt, eos):
    """64 tokens, going on behind an end of sequence, where both stop. Gives (tokens, close calls, failures)."""
    n, close, bad, ids = 0, 0, 0, list(prompt)
    while n < GREEDY_TOKENS:
        left = GREEDY_TOKENS - n
        mine = ours.greedy(path, ids, left)
        batch = torch.tensor([ids])
        theirs = reference.generate(batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=left,
                                    eos_token_id=eos or None, pad_token_id=0)[0, len(ids):].tolist()
        same = next((k for k, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
        ids, n = ids + theirs[:same], n + same
        if same == len(mine) == len(theirs):
            continue
        if same == len(theirs):  # equal so far, but one side went on behind its end
            print(f"  greedy: after {n} tokens ours went on and the reference stopped at {eos}")
            return n, close, bad + 1
        gap = reference_gap(reference, ids)
        if gap >= BOUND or same == len(mine):
            print(f"  greedy: token {n} is {mine[same:same + 1]}, wanted {theirs[same]} (gap {gap:.3g})")
            bad += 1
        else:
            close += 1
        ids, n = ids + theirs[same:same + 1], n + 1
    return n, close, bad


def check_export(reference, ours, path, prompts, want):
    """The exported folder in transformers: parameters and what they compute, then the ids of its AutoTokenizer against
    those of `want`, the original's. Gives the count of differences."""
    bad = 0
    with tempfile.TemporaryDirectory() as parent:
        folder = os.path.join(parent, "exported")
        ours.export(path, folder)
        exported = load(folder)
        left, right = dict(exported.named_parameters()), dict(reference.named_parameters())
        differing = sorted(left.keys() ^ right.keys()) + [n for n in left if n in right and not torch.equal(left[n], right[n])]
        sequence = torch.tensor([prompts[-1]])
        with torch.no_grad():
            same = torch.equal(exported.model(sequence).last_hidden_state, reference.model(sequence).last_hidden_state)
        print(f"  export: {type(exported).__name__}, {len(left)} tensors, {len(differing)} differ {differing[:3]}; hidden "
              f"states of {sequence.shape[1]} tokens {'equal' if same else 'DIFFER'}")
        bad += len(differing) + (not same) + (type(exported) is not type(reference))
        got = load_tokenizer(folder)
        if want is None or got is None:
            return bad + (want is not got)
        texts = PROMPTS + [b.decode("utf-8", errors="replace") for b in make_tokenizers.strings(9, STRINGS)]
        wrong = [t for t in texts if got(t).input_ids != want(t).input_ids]
        for t in wrong[:3]:
            print(f"    {t!r:.100}\n      wanted {want(t).input_ids!r:.200}\n      got    {got(t).input_ids!r:.200}")
        roles = [(k, getattr(got, k), getattr(want, k)) for k in ("bos_token_id", "eos_token_id")
                 if getattr(got, k) != getattr(want, k)]
        print(f"  AutoTokenizer of the export: {type(got).__name__}, {len(texts)} strings, {len(wrong)} differ; "
              f"roles differing: {roles}")
        bad += len(wrong) + len(roles)
    return bad


def notices_a_mutant(reference, ours, path, sequences):
    """The comparison's own failing direction: one weight of the reference, moved, must break the bound."""
    p = reference.get_parameter("model.layers.0.mlp.down_proj.weight")
    with torch.no_grad():
        kept = p[0, 0].clone()
        p[0, 0] += 8 * p.abs().max()
        worst, _ = compare_logits(reference, ours, path, sequences)
        p[0, 0] = kept
    print(f"  mutant: one weight moved gives {worst:.2e}, which must not pass")
    return worst >= BOUND


def compare(name, path, ours, prompts=None):
    reference = load(path)
    changed = round_weights(reference)
    n = sum(p.numel() for p in reference.parameters())
    print(f"{name}: {type(reference).__name__}, {n} parameters, {changed} changed by rounding to bf16")
    eos = as_list(reference.generation_config.eos_token_id) or as_list(reference.config.eos_token_id)
    tokenizer = load_tokenizer(path)
    if prompts is None:
        if tokenizer is None:
            sys.exit(f"{path}: no tokenizer to make prompts with")
        prompts = [tokenizer(text).input_ids for text in PROMPTS]
    worst, rows = compare_logits(reference, ours, path, prompts)
    print(f"  logits: {len(prompts)} prompts, {rows} rows, worst max|a-b|/max|b| = {worst:.2e} (bound {BOUND:g})")
    good = worst < BOUND
    good &= notices_a_mutant(reference, ours, path, prompts[:1])
    counts = np.array([compare_greedy(reference, ours, path, ids, eos) for ids in prompts])
    tokens, close, bad = counts.sum(0)
    print(f"  greedy: {len(prompts)} x {GREEDY_TOKENS} tokens: {tokens - close - bad} of {tokens} equal, {close} where the "
          f"reference's gap is below {BOUND:g}, {bad} wrong")
    good &= bad == 0
    good &= check_export(reference, ours, path, prompts, tokenizer) == 0
    return bool(good)


def compare_random(name, config, seed, ours):
    generator = torch.Generator().manual_seed(seed)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    make_models.randomise(model, config, generator)
    prompts = [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in (5, 17, 60, 150, 190)]
    with tempfile.TemporaryDirectory() as folder:
        model.to(torch.float32).save_pretrained(folder)  # float32: ours must round by itself
        return compare(f"{name} (random, seed {seed})", folder, ours, prompts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inflight", required=True, help="the binary, as built")
    parser.add_argument("--driver", help="test_model_golden (default: tests/test_model_golden beside the binary)")
    parser.add_argument("--model", action="append", default=[], help="a Hugging Face folder or a .gguf; may be repeated")
    parser.add_argument("--random", action="append", default=[], metavar="FAMILY", help="a family's name, or all")
    parser.add_argument("--seed", type=int, default=1, help="of the random models")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if not args.model and not args.random:
        parser.error("wanted --model PATH or --random FAMILY")
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    driver = args.driver or os.path.join(os.path.dirname(os.path.abspath(args.inflight)), "tests", "test_model_golden")
    ours = Ours(os.path.abspath(args.inflight), driver, args.threads)
    families = dict(make_models.families())
    names = list(families) if "all" in args.random else args.random
    unknown = [n for n in names if n not in families]
    if unknown:
        parser.error(f"--random {unknown[0]}: wanted one of {', '.join(families)} or all")
    results = {n: compare_random(n, families[n], args.seed, ours) for n in names}
    results |= {path: compare(path, path, ours) for path in args.model}
    for name, good in results.items():
        print(f"{'ok  ' if good else 'FAIL'} {name}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
