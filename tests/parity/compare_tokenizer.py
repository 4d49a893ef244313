#!/usr/bin/env python3
"""Compares our tokenizers with the `tokenizers` library, live, on generated strings.

    pip install tokenizers                     (for --gguf: gguf transformers too)
    python3 tests/parity/compare_tokenizer.py --driver build/tests/test_tokenizer [--n 10000]
    python3 tests/parity/compare_tokenizer.py --driver ... --gguf gemma.gguf      (a whole vocabulary)
    python3 tests/parity/compare_tokenizer.py --driver ... --json tokenizer.json  (any file)

For each tokenizer: n strings encoded (special tokens parsed and added; then neither), the ids decoded (with and
without special tokens), and n lists of random ids decoded. Exit status 1 when anything differs."""

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "golden"))
import make_tokenizers  # noqa: E402

ENCODE, DECODE, TO_JSON = 1, 2, 3


class Driver:
    """Our tokenizer in a child process. All requests are written to a file, then all answers read."""

    def __init__(self, program, kind, path):
        self.command = [program, "serve", kind, path]

    def ask(self, requests):
        with tempfile.TemporaryFile() as f:
            for kind, flags, payload in requests:
                if kind == DECODE:
                    f.write(struct.pack("<III", kind, flags, len(payload)) + struct.pack(f"<{len(payload)}i", *payload))
                else:
                    f.write(struct.pack("<III", kind, flags, len(payload)) + payload)
            f.seek(0)
            out = subprocess.run(self.command, stdin=f, stdout=subprocess.PIPE, check=True).stdout
        at, answers = 0, []
        for kind, _, _ in requests:
            status, n = struct.unpack_from("<II", out, at)
            at += 8
            if kind == ENCODE:
                answers.append((status, list(struct.unpack_from(f"<{n}i", out, at))))
                at += 4 * n
            else:
                text = out[at:at + n]
                at += n
                same = None
                if kind == DECODE:
                    same = struct.unpack_from("<I", out, at)[0]
                    at += 4
                answers.append((status, text, same))
        assert at == len(out)
        return answers


def whole_runs_valid(reference, ids, skip):
    """False when a run of byte tokens is ill-formed: there streaming and decoding differ by design."""
    run = bytearray()
    for i in list(ids) + [None]:
        token = reference.id_to_token(i) if i is not None else None
        if i is not None and token is None:
            continue
        if token and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            run.append(int(token[3:5], 16))
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            return False
        run.clear()
    return True


def compare(name, program, kind, path, reference, texts, all_flags=(3, 0), seed=5):
    r = random.Random(seed)
    wanted, requests = [], []
    for b in texts:
        s = b.decode("utf-8", errors="replace")
        for flags in all_flags:
            reference.encode_special_tokens = flags == 0
            wanted.append((b, reference.encode(s, add_special_tokens=flags == 3).ids))
            requests.append((ENCODE, flags, b))
    reference.encode_special_tokens = False
    size = reference.get_vocab_size()
    bytes_ids = [i for i in (reference.token_to_id(f"<0x{b:02X}>") for b in range(256)) if i is not None] or [0]
    lists = [ids for _, ids in wanted]
    for _ in texts:
        lists.append([r.choice(bytes_ids) if r.random() < 0.4 else r.randrange(size + 2) for _ in range(r.randint(0, 30))])
    for ids in lists:
        for skip in (0, 1):
            wanted.append((ids, reference.decode(ids, skip_special_tokens=bool(skip))))
            requests.append((DECODE, skip, ids))
    answers = Driver(program, kind, path).ask(requests)
    bad = {"encode": 0, "decode": 0, "stream": 0}
    for (given, want), (what, flags, _), answer in zip(wanted, requests, answers):
        if what == ENCODE:
            ok = answer[0] == 0 and answer[1] == want
            key = "encode"
        else:
            ok = answer[0] == 0 and answer[1] == want.encode()
            key = "decode"
            if not answer[2] and whole_runs_valid(reference, given, flags):
                bad["stream"] += 1
                if bad["stream"] <= 3:
                    print(f"  stream differs: {given}")
        if not ok:
            bad[key] += 1
            if bad[key] <= 3:
                print(f"  {key} flags {flags} differs: {given!r:.300}\n    wanted {want!r:.300}\n    got    {answer!r:.300}")
    n = {key: sum(q[0] == k for q in requests) for key, k in (("encode", ENCODE), ("decode", DECODE))}
    print(f"{name}: {len(texts)} strings: {n['encode']} encodings, {bad['encode']} differ; {n['decode']} decodings, "
          f"{bad['decode']} differ, {bad['stream']} differ when streamed")
    return sum(bad.values())


def text_of(name):
    with open(os.path.join(HERE, "..", "golden", "tokenizer", name + ".json"), encoding="utf-8", newline="") as f:
        return f.read()


def notices_a_mutant(program, path, text, texts):
    """The comparison's own failing direction: a tokenizer with two merges exchanged must not compare equal."""
    from tokenizers import Tokenizer
    d = json.loads(text)
    merges = d["model"]["merges"]
    merges[0], merges[60] = merges[60], merges[0]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(d, f)
    print("a mutant, which must differ:")
    return compare("mutant", program, "json", path, Tokenizer.from_str(text), texts) > 0


def variants():
    """The committed fixtures and what can be made from them: components that no fixture has."""
    base = {name: text_of(name) for name in ("qwen", "llama3", "gemma", "char")}
    yield from base.items()

    def changed(name, change):
        d = json.loads(base[name])
        change(d)
        return json.dumps(d, ensure_ascii=False)

    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

    def llama2(d):
        d["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace]}
        d["pre_tokenizer"] = None
        d["decoder"]["decoders"].append(strip)

    def metaspace(scheme, split):
        def change(d):
            stage = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}
            d["normalizer"], d["pre_tokenizer"], d["decoder"] = None, stage, stage
        return change

    def no_bytes(fuse):
        def change(d):
            d["model"]["byte_fallback"] = False
            d["model"]["fuse_unk"] = fuse
        return change

    def gpt2(prefix):
        def change(d):
            d["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": prefix},
                {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}]}
        return change

    def form(name):
        def change(d):
            d["normalizer"] = {"type": name}
        return change

    def split(behavior, invert):
        def change(d):
            d["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "[\\s\\d]|\\p{Lu}\\p{Ll}+"}, "behavior": behavior,
                                  "invert": invert}
        return change

    def no_decoder(d):
        d["decoder"] = None

    yield "llama2 (Prepend, Strip)", changed("gemma", llama2)
    for scheme in ("always", "first", "never"):
        yield f"metaspace {scheme}", changed("gemma", metaspace(scheme, scheme != "first"))
    yield "unknown token, fused", changed("gemma", no_bytes(True))
    yield "unknown token, single", changed("gemma", no_bytes(False))
    yield "gpt2, digits", changed("llama3", gpt2(False))
    yield "gpt2, prefix space, single digits", changed("llama3", gpt2(True))
    for name in ("NFD", "NFKC", "NFKD"):
        yield name, changed("qwen", form(name))
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        yield f"split {behavior}", changed("gemma", split(behavior, False))
    yield "split Removed inverted", changed("gemma", split("Removed", True))
    yield "no decoder", changed("gemma", no_decoder)


def write_vocab(gguf_path, path):
    """The tokenizer's arrays of a GGUF file in the driver's form."""
    import gguf
    fields = gguf.GGUFReader(gguf_path).fields

    def get(key, absent=None):
        f = fields.get("tokenizer.ggml." + key)
        return absent if f is None else f.contents()

    tokens = get("tokens")
    model = get("model")
    with open(path, "wb") as f:
        for text in (model, get("pre", "default")):
            f.write(struct.pack("<I", len(text.encode())) + text.encode())
        f.write(struct.pack("<4i", get("bos_token_id", -1), get("eos_token_id", -1), get("padding_token_id", -1),
                            get("unknown_token_id", -1)))
        f.write(struct.pack("<3I", get("add_bos_token", model == "llama"), get("add_eos_token", False),
                            get("add_space_prefix", model == "llama")))
        scores, types = get("scores") or [0.0] * len(tokens), get("token_type") or [1] * len(tokens)
        f.write(struct.pack("<I", len(tokens)))
        for token, score, kind in zip(tokens, scores, types):
            f.write(struct.pack("<I", len(token.encode())) + token.encode() + struct.pack("<fi", score, kind))
        merges = get("merges") or []
        f.write(struct.pack("<I", len(merges)))
        for merge in merges:
            f.write(struct.pack("<I", len(merge.encode())) + merge.encode())


def gguf_reference(gguf_path):
    from transformers import AutoTokenizer
    folder, name = os.path.split(os.path.abspath(gguf_path))
    return AutoTokenizer.from_pretrained(folder, gguf_file=name).backend_tokenizer


def main():
    from tokenizers import Tokenizer
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", required=True, help="the built tests/unit/test_tokenizer")
    parser.add_argument("--n", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="compare this tokenizer.json instead of the fixtures")
    parser.add_argument("--gguf", help="compare the vocabulary of this GGUF file instead of the fixtures")
    parser.add_argument("--reference", help="a tokenizer.json that stands for the GGUF file's (saves its conversion)")
    args = parser.parse_args()
    texts = make_tokenizers.strings(args.seed, args.n)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokenizer")
        if args.gguf:
            write_vocab(args.gguf, path)
            reference = Tokenizer.from_file(args.reference) if args.reference else gguf_reference(args.gguf)
            bad += compare(os.path.basename(args.gguf), args.driver, "vocab", path, reference, texts)
            written = Driver(args.driver, "vocab", path).ask([(TO_JSON, 0, b"")])[0][1]
            with open(path + ".json", "wb") as f:
                f.write(written)
            bad += compare("its tokenizer.json, written by us and read by us", args.driver, "json", path + ".json", reference,
                           texts)
            bad += compare("its tokenizer.json, written by us and read by the library", args.driver, "vocab", path,
                           Tokenizer.from_str(written.decode()), texts)
        elif args.json:
            bad += compare(os.path.basename(args.json), args.driver, "json", args.json, Tokenizer.from_file(args.json), texts)
        else:
            for name, text in variants():
                with open(path, "w", encoding="utf-8", newline="") as f:
                    f.write(text)
                start = time.time()
                some = make_tokenizers.char_strings(args.seed, args.n) if name == "char" else texts
                # with special tokens unparsed, "<" is a character that "char" doesn't know
                bad += compare(name, args.driver, "json", path, Tokenizer.from_str(text), some,
                               (3,) if name == "char" else (3, 0))
                print(f"  {time.time() - start:.1f} s")
            bad += not notices_a_mutant(args.driver, path, text_of("qwen"), texts[:300])
    print("all equal" if bad == 0 else f"{bad} differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
