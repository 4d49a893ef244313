#!/usr/bin/env python3
"""Training steps of a Gemma-3-270M shape (random weights) in PyTorch, for compare_peers.sh.

Forward, backward and AdamW over random tokens, loss on all positions. Prints one JSON line.
Needs torch and transformers; nothing of Inflight does.
"""
import argparse
import json
import os
import resource
import time

parser = argparse.ArgumentParser()
parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
parser.add_argument("--sequences", type=int, default=8)
parser.add_argument("--tokens", type=int, default=256)
parser.add_argument("--steps", type=int, default=1)
parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args()
if args.threads:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402  (reads OMP_NUM_THREADS)
from transformers import Gemma3ForCausalLM, Gemma3TextConfig  # noqa: E402

torch.manual_seed(0)
vocabulary = 262144
config = Gemma3TextConfig(
    vocab_size=vocabulary, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
    num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512,
    max_position_embeddings=32768, query_pre_attn_scalar=256)
model = Gemma3ForCausalLM(config).to(torch.bfloat16 if args.dtype == "bf16" else torch.float32)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
tokens = torch.randint(0, vocabulary, (args.sequences, args.tokens))
seconds = []
for step in range(args.warmup + args.steps):
    start = time.perf_counter()
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step >= args.warmup:
        seconds.append(time.perf_counter() - start)
seconds.sort()
print(json.dumps({
    "torch": torch.__version__, "dtype": args.dtype, "threads": torch.get_num_threads(),
    "tokens_per_s": args.sequences * args.tokens / seconds[len(seconds) // 2],
    "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
