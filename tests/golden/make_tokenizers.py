#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/: small tokenizer.json files and what the `tokenizers` library does with them.

    pip install tokenizers
    python3 tests/golden/make_tokenizers.py

All text is generated here. `strings` is also what tests/parity/compare_tokenizer.py compares live."""

import collections
import json
import os
import random

QWEN2 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA3 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
CHARACTERS = "0123456789+-*/=()., \n?:abcdefghijklmnopqrstuvwxyz"
CHAR_SPECIALS = ["<pad>", "<bos>", "<eos>"]

SYLLABLES = "ba be bi co cu da de di fo ga ge ha in is ka la le lo ma me na ne no on or pa ra re ri sa se so ta te ti to un ur va wo".split()
ENGLISH = ("the of and to in is that it was for on are as with his they at be this have from or one had by word but not "
           "what all were we when your can said there use an each which she do how their if will up other about out many "
           "then them these so some her would make like him into time has look two more write go see number no way could "
           "people my than first water been call who oil its now find long down day did get come made may part").split()
CODE = ["for (int i = 0; i < n; i++) {\n    sum += a[i];\n}\n", "def f(x, y=None):\n\treturn x ** 2 if y else -x\n",
        "#include <stdio.h>\r\n", "x = {'a': [1, 2.5e-3], \"b\": None}  # note\n", "SELECT * FROM t WHERE id >= 10;",
        "<div class=\"x\">&nbsp;</div>", "a->b != c && !(d || e) ? ~f : g << 3", "    \tif x:\n\n\n        pass",
        "printf(\"%d\\n\", 0xFFu);", "https://example.org/a_b?c=d&e=%20f#g", "$$\\frac{1}{2} \\boxed{42}$$"]
SCRIPTS = [(0x41, 0x5a), (0x61, 0x7a), (0xc0, 0x24f), (0x370, 0x3ff), (0x400, 0x4ff), (0x531, 0x58f), (0x590, 0x5ff),
           (0x600, 0x6ff), (0x700, 0x74f), (0x900, 0x97f), (0x980, 0x9ff), (0xb80, 0xbff), (0xe00, 0xe7f), (0xf00, 0xfda),
           (0x1000, 0x109f), (0x10a0, 0x10ff), (0x1100, 0x11ff), (0x1200, 0x137f), (0x13a0, 0x13ff), (0x1780, 0x17ff),
           (0x1e00, 0x1fff), (0x2070, 0x218f), (0x2190, 0x23ff), (0x2460, 0x24ff), (0x3040, 0x30ff), (0x3100, 0x312f),
           (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xf900, 0xfaff), (0xfb00, 0xfb4f), (0xff00, 0xffef), (0x10300, 0x1034a),
           (0x10400, 0x1044f), (0x105c0, 0x105f3), (0x10d40, 0x10d8f), (0x12000, 0x123ff), (0x16d40, 0x16d79),
           (0x1d400, 0x1d7ff), (0x1e4d0, 0x1e4f9), (0x20000, 0x2a6df), (0x2ebf0, 0x2ee5d), (0x31350, 0x323af)]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2009",
          "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff"]
EMOJI = ["\U0001f600", "\U0001f469\u200d\U0001f4bb", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
         "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f",
         "\U0001fae8", "\U0001fa77"]
COMBINING = [0x300, 0x301, 0x308, 0x30a, 0x316, 0x323, 0x327, 0x328, 0x334, 0x345, 0x5b0, 0x5bc, 0x64b, 0x651, 0x93c, 0x94d,
             0xe38, 0xe48, 0x302a, 0x3099, 0x309a, 0x1d165, 0x1d16d]
COMPOSING = ["e\u0301", "A\u030a", "\u212b", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0958", "\u2126", "o\u0302\u0323",
             "q\u0307\u0323", "\u1e9b\u0323", "\ufb01", "\u00bd", "\u0344", "\u2adc", "\U0001d15e", "\u03d3", "\u0cc6\u0cc2"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "<|begin_of_text|>",
            "<|eot_id|>", "<|start_header_id|>", "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>",
            "\u2581", "<0x41>", "<0x0A>", "[lst]", "[rst]", "[word]", "[N\u00e9]", "[Ne\u0301]"]
CONTRACTIONS = ["it's", "I'LL", "we've", "don'T", "he'd", "'re", "they'\u017f", "o'clock", "'S", "rock'n'roll", "\u2019s"]
BROKEN = [b"\xff", b"\xfe\xfe", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
          b"\x80\x80", b"\xe0\x80\xaf", b"\xf8\x88\x80\x80\x80", b"\xf0\x9f\x98\xe4\xb8\xad", b"\x00", b"a\x00b"]


def word(r):
    return "".join(r.choice(SYLLABLES) for _ in range(r.randint(1, 4)))


def script_word(r):
    low, high = r.choice(SCRIPTS)
    return "".join(chr(r.randint(low, high)) for _ in range(r.randint(1, 8)))


def number(r):
    return r.choice([str(r.randint(0, 10 ** r.randint(1, 20))), f"{r.random():.6f}", f"{r.randint(1, 999)},{r.randint(0, 999):03d}",
                     f"1e-{r.randint(1, 300)}", hex(r.getrandbits(40)), "\u0663\u0664\u0665", "\u00b2\u2154\u2167\u2460",
                     f"{r.randint(0, 99)}%", f"-{r.randint(0, 9)}.{r.randint(0, 9)}"])


def sentence(r):
    words = [r.choice(ENGLISH) if r.random() < 0.7 else word(r) for _ in range(r.randint(2, 12))]
    if r.random() < 0.5:
        words[0] = words[0].capitalize()
    return " ".join(words) + r.choice([".", "?", "!", ",", ":", "...", "", ".\n", ".\n\n"])


def repeat(r):
    return r.choice(["a", " ", "\n", "=", "-", "ab", "9", "\u3042", "\U0001f600", ". ", "\t", "\n ", "\u2581", "e\u0301", "\u0301"]) \
        * r.choice([2, 3, 7, 16, 31, 32, 33, 50, 200, 1000])


PIECES = [(sentence, 6), (number, 2), (script_word, 5), (word, 2), (repeat, 1), (lambda r: r.choice(CODE), 2),
          (lambda r: "".join(r.choice(SPACES) for _ in range(r.randint(1, 5))), 3), (lambda r: r.choice(EMOJI), 2),
          (lambda r: r.choice(COMPOSING), 1), (lambda r: r.choice("aeoyAOn\u0e01\u05d0\u0627\u0915") +
                                               "".join(chr(r.choice(COMBINING)) for _ in range(r.randint(1, 6))), 1),
          (lambda r: r.choice(CONTRACTIONS), 1), (lambda r: r.choice(SPECIALS), 1),
          (lambda r: "".join(chr(r.randint(0, 0x7f)) for _ in range(r.randint(1, 12))), 1),
          (lambda r: chr(r.choice([r.randint(0x80, 0xd7ff), r.randint(0xe000, 0x1ffff), r.randint(0x20000, 0x10ffff)])), 1)]


def strings(seed, n):
    """n byte strings, most of them UTF-8, that look for trouble."""
    r = random.Random(seed)
    makers = [m for m, weight in PIECES for _ in range(weight)]
    out = [b""]
    while len(out) < n:
        s = b""
        for _ in range(r.choice([1, 1, 2, 3, 4, 6, 10])):
            s += r.choice(makers)(r).encode("utf-8")
            if r.random() < 0.3:
                s += b" "
            if r.random() < 0.04:
                s += r.choice(BROKEN)
        if r.random() < 0.04 and s:
            cut = r.randrange(len(s))
            s = s[:cut] if r.random() < 0.5 else s[:cut] + bytes([r.randrange(256)]) + s[cut + 1:]
        out.append(s)
    return out


def char_strings(seed, n):
    r = random.Random(seed)
    out = [b""]
    while len(out) < n:
        s = "".join(r.choice(CHARACTERS + CHARACTERS[:16] * 2) for _ in range(r.randint(0, 60)))
        if r.random() < 0.2:
            cut = r.randint(0, len(s))
            s = s[:cut] + r.choice(CHAR_SPECIALS) + s[cut:]
        out.append(s.encode())
    return out


def corpus(seed, n):
    r = random.Random(seed)
    for _ in range(n):
        yield " ".join(r.choice([sentence, sentence, sentence, script_word, number, lambda q: q.choice(CODE)])(r)
                       for _ in range(r.randint(1, 5)))


def added(tokenizer, special, plain):
    from tokenizers import AddedToken
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    tokenizer.add_tokens([AddedToken("[lst]", lstrip=True, normalized=False), AddedToken("[rst]", rstrip=True, normalized=False),
                          AddedToken("[word]", single_word=True, normalized=False), AddedToken("[N\u00e9]", normalized=True)])


def byte_level(pattern, vocab_size, special, plain, nfc, ignore_merges, bos):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if nfc:
        t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus(1, 3000), trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    added(t, special, plain)
    level = processors.ByteLevel(trim_offsets=False)
    if bos:
        t.post_processor = processors.Sequence([level, processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, t.token_to_id(bos))])])
    else:
        t.post_processor = level
    return json.loads(t.to_str())


def sentencepiece(vocab_size):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    base = ["<pad>", "<eos>", "<bos>", "<unk>"]
    counts = collections.Counter(c for line in corpus(2, 3000) for c in line.replace(" ", "\u2581"))
    alphabet = sorted(counts, key=lambda c: (-counts[c], c))[:400]  # the trainer's own choice isn't repeatable
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")  # for training only
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.train_from_iterator(corpus(2, 3000), trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        special_tokens=base + [f"<0x{b:02X}>" for b in range(256)] + ["<start_of_turn>", "<end_of_turn>"]))
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos>:1 $B:1",
                                                     special_tokens=[("<bos>", 2)])
    d = json.loads(t.to_str())
    d["added_tokens"] = [a for a in d["added_tokens"] if not a["content"].startswith("<0x")]
    t = Tokenizer.from_str(json.dumps(d))
    added(t, [], ["\n" * k for k in range(2, 8)])
    return json.loads(t.to_str())


def characters():
    vocab = {t: i for i, t in enumerate(CHAR_SPECIALS + list(CHARACTERS))}
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                              "special": True} for i, t in enumerate(CHAR_SPECIALS)],
            "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": vocab, "merges": []}}


def legacy_merges(d):
    """The older spelling of merges, "a b": both must load."""
    d["model"]["merges"] = [" ".join(m) for m in d["model"]["merges"]]
    return d


def golden(t, texts, with_plain):
    rows = []
    for b in texts:
        s = b.decode("utf-8", errors="replace")
        t.encode_special_tokens = False
        ids = t.encode(s, add_special_tokens=True).ids
        t.encode_special_tokens = True
        row = {"hex": b.hex(), "ids": ids, "text": t.decode(ids, skip_special_tokens=True)}
        plain = t.encode(s, add_special_tokens=False).ids
        t.encode_special_tokens = False
        if with_plain and plain != t.encode(s, add_special_tokens=False).ids:
            row["plain"] = plain  # the ids when special tokens in the text are text
        rows.append(row)
    return rows


def main():
    from tokenizers import Tokenizer
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")
    os.makedirs(folder, exist_ok=True)
    made = {
        "qwen": byte_level(QWEN2, 1500, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                           ["<tool_call>", "</tool_call>", "<think>", "</think>"], True, False, None),
        "llama3": legacy_merges(byte_level(
            LLAMA3, 1500, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            [], False, True, "<|begin_of_text|>")),
        "gemma": sentencepiece(2000),
        "char": characters(),
    }
    for name, d in made.items():
        text = json.dumps(d, ensure_ascii=False, separators=(",", ":"))
        with open(os.path.join(folder, name + ".json"), "w", encoding="utf-8", newline="") as f:
            f.write(text)
        t = Tokenizer.from_str(text)
        texts = char_strings(7, 60) if name == "char" else [b for b in strings(7, 200) if len(b) < 200][:120]
        with open(os.path.join(folder, name + ".golden.json"), "w", encoding="utf-8", newline="") as f:
            rows = golden(t, texts, name != "char")  # the library drops unknown characters, we refuse them
            f.write("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
