#!/usr/bin/env python3
"""Loads an exported folder with transformers and compares it with the model it came from: same class, same
weights bit for bit, same logits. Not part of ctest, which needs no Python.

    python3 tests/golden/check_export.py EXPORTED ORIGINAL [EXPORTED ORIGINAL ...]
"""
import sys

import torch
import transformers


def load(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert model.dtype == torch.bfloat16, f"{folder}: dtype {model.dtype}"
    return model.eval()


def check(exported, original):
    a, b = load(exported), load(original)
    assert type(a) is type(b), (type(a), type(b))
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    ids = torch.arange(64)[None] % b.config.vocab_size
    with torch.no_grad():
        assert torch.equal(a(ids).logits, b(ids).logits), "logits differ"
    ours, theirs = a.generation_config.eos_token_id, b.generation_config.eos_token_id
    as_list = lambda ids: ids if isinstance(ids, list) else [ids]
    assert as_list(ours) == as_list(theirs), (ours, theirs)
    print(f"{exported}: {type(a).__name__}, {len(left)} tensors equal, logits equal")


if __name__ == "__main__":
    if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
        sys.exit(__doc__)
    for k in range(1, len(sys.argv), 2):
        check(sys.argv[k], sys.argv[k + 1])
