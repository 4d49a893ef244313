#!/usr/bin/env python3
"""Writes kept.txt: loss and gradients of truncated tokens (top-k, top-p), by automatic differentiation.

An independent computation for tests/parity/test_truncated.c: Hugging Face transformers and PyTorch on the golden
models (make_models.py), in float64 but for the RoPE tables. A policy token's probability is that of the softmax over
its kept set alone; the loss is reinforce (learner/loss.h) with recorded log-probs that are somewhat off.
usage: make_kept.py > kept.txt
"""
import os

import torch
import transformers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
CAP, TOP_P = 5.0, 0.9


def kept_set(logits, temperature, top_k, top_p):
    p = torch.softmax(logits / temperature, -1)
    order = torch.argsort(p, descending=True, stable=True)
    if top_k:
        order = order[:top_k]
    mass = p[order].cumsum(0) / p[order].sum()
    n = int((mass < top_p).sum()) + 1 if top_p < 1 else len(order)
    return sorted(order[:n].tolist())


def main():
    torch.set_num_threads(1)
    for seed, (family, top_k, top_p) in enumerate([("llama3", 0, 0.9), ("gemma3", 20, 0.8)]):
        generator = torch.Generator().manual_seed(100 + seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            os.path.join(HERE, family), dtype=torch.float32, attn_implementation="eager").eval().double()
        vocab = model.config.vocab_size
        print(f"family {family} {top_k} {top_p}")
        terms, total, lines = [], 0, []
        for sample, (n_prompt, n_answer, advantage) in enumerate([(5, 12, 1.5), (5, 9, -0.75)]):
            temperature = 0.8
            ids = torch.randint(3, vocab, (n_prompt,), generator=torch.Generator().manual_seed(7)).tolist()
            sets = []
            with torch.no_grad():  # one token after the other, as it is sampled
                for _ in range(n_answer):
                    logits = model(torch.tensor([ids])).logits[0, -1]
                    s = kept_set(logits, temperature, top_k, top_p)
                    sets.append(s)
                    q = torch.softmax(logits[s] / temperature, -1)
                    ids.append(s[int(torch.multinomial(q, 1, generator=generator))])
            logits = model(torch.tensor([ids])).logits[0] / temperature
            lines.append(f"trajectory {n_prompt} {n_answer} {temperature} {advantage}")
            lines.append(" ".join(map(str, ids)))
            for t, s in enumerate(sets):
                x = logits[n_prompt - 1 + t]
                token = ids[n_prompt + t]
                logp = x[token] - torch.logsumexp(x[s], 0)
                full = x[token] - torch.logsumexp(x, 0)
                q = torch.softmax(x[s], 0)
                entropy = -(q * torch.log(q)).sum()
                off = 0.5 * torch.randn(1, generator=generator, dtype=torch.float64).item()
                mu = torch.tensor(min(0.0, logp.item() + off)).float().double()
                w = (logp - mu).exp()
                terms.append(w.detach().clamp(max=CAP) * advantage * logp)
                lines.append(f"{len(s)} {' '.join(map(str, s))} {mu.item():.9g} {logp.item():.12g} {full.item():.12g} "
                             f"{entropy.item():.12g}")
            total += 1
        loss = -sum(terms) / total
        loss.backward()
        print("\n".join(lines))
        print(f"loss {loss.item():.12g}")
        for name, p in model.named_parameters():
            g = p.grad.flatten()
            at = torch.randint(0, len(g), (6,), generator=generator).tolist()
            print(f"gradient {name} {g.norm().item():.9g} " + " ".join(f"{i} {g[i].item():.9g}" for i in at))
        print("end")


if __name__ == "__main__":
    main()
