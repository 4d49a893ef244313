#!/usr/bin/env python3
"""Training steps in PyTorch, for `inflight bench train --against torch`.

Forward, backward and AdamW over random tokens, by transformers' model of the given shape with random weights: eager
mode, AdamW fused with states in the model's dtype. --trained-last N puts the loss on the last N tokens of each
sequence, by labels of -100 elsewhere; with --head trained only the logits of those positions are computed, which a
careful user can have too. Prints one line of JSON: rates in tokens/s over all tokens of the step, memory in bytes.
Needs torch and transformers; nothing of Inflight does.
"""
import argparse
import json
import os
import resource
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", help="folder with config.json; default: the shape of Gemma-3-270M")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
parser.add_argument("--sequences", type=int, default=8)
parser.add_argument("--tokens", type=int, default=256, help="of each sequence")
parser.add_argument("--trained-last", type=int, default=0, help="0: all positions")
parser.add_argument("--head", choices=["all", "trained"], default="all", help="positions whose logits are computed")
parser.add_argument("--attention", default="sdpa", help="attn_implementation of transformers")
parser.add_argument("--steps", type=int, default=1)
parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args()
if args.threads:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402  (reads OMP_NUM_THREADS)
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig  # noqa: E402

if args.threads:
    torch.set_num_threads(args.threads)
torch.manual_seed(0)
if args.config:
    config = AutoConfig.from_pretrained(args.config)
else:
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512, max_position_embeddings=32768,
        query_pre_attn_scalar=256)
dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
model = AutoModelForCausalLM.from_config(config, attn_implementation=args.attention).to(dtype)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
tokens = torch.randint(0, config.vocab_size, (args.sequences, args.tokens))
trained = args.trained_last or args.tokens - 1  # the first token has nothing to be predicted from
assert 1 <= trained < args.tokens, "--trained-last must be less than --tokens"
labels = tokens.clone()
labels[:, : args.tokens - trained] = -100


def loss_of_step():
    if args.head == "all":
        return model(input_ids=tokens, labels=labels, use_cache=False).loss
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=trained + 1).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, -trained:].flatten())


seconds = []
for step in range(args.warmup + args.steps):
    start = time.perf_counter()
    loss = loss_of_step()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step >= args.warmup:
        seconds.append(time.perf_counter() - start)
seconds.sort()
print(json.dumps({
    "torch": torch.__version__, "model": type(model).__name__, "dtype": args.dtype, "threads": torch.get_num_threads(),
    "sequences": args.sequences, "sequence_tokens": args.tokens, "trained_tokens": trained, "head": args.head,
    "seconds_median": seconds[len(seconds) // 2],
    "tokens_per_s": args.sequences * args.tokens / seconds[len(seconds) // 2], "loss": float(loss.detach()),
    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
