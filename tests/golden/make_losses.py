#!/usr/bin/env python3
"""Writes losses.txt: policy losses and their gradients by automatic differentiation.

An independent computation for tests/unit/test_loss.c and test_advantage.c: PyTorch in float64, written
from the papers' formulas (see learner/loss.h), knowing nothing of the C code. Needs torch.
usage: make_losses.py > losses.txt
"""
import torch

torch.set_default_dtype(torch.float64)
CAP, LOW, HIGH, HIGH_DAPO, L_MAX = 5.0, 0.2, 0.2, 0.28, 40


def f32(x):
    """What the C side sees: values rounded to float."""
    return torch.tensor(x).float().double()


def advantages(kind, rewards, valid):
    out = torch.zeros(len(rewards))
    r = rewards[valid]
    if len(r) < 2:
        return out
    if kind == "reinforce":
        a = r - (r.sum() - r) / (len(r) - 1)
    elif kind == "dr_grpo":
        a = r - r.mean()
    else:
        a = (r - r.mean()) / (r.std() + 1e-4)
    out[valid] = a
    return out


def objective(kind, logp, logmu, a, owner, lengths, n_traj, n_tokens):
    w = torch.exp(logp - logmu)
    if kind == "reinforce":
        terms = torch.clamp(w.detach(), max=CAP) * a * logp
    else:
        high = HIGH_DAPO if kind == "dapo" else HIGH
        terms = torch.minimum(w * a, torch.clamp(w, 1 - LOW, 1 + high) * a)
    per = torch.zeros(len(lengths)).index_add(0, owner, terms)
    if kind == "reinforce":
        return -per.sum() / n_traj
    if kind == "grpo":
        return -(per / lengths).sum() / n_traj
    if kind == "dr_grpo":
        return -(per / L_MAX).sum() / n_traj
    return -terms.sum() / n_tokens


def main():
    g = torch.Generator().manual_seed(20250)
    print("# kind, then groups (size, rewards, valid, advantages), then tokens; see make_losses.py")
    for kind in ("reinforce", "grpo", "dr_grpo", "dapo"):
        groups, lengths, adv, n_tokens_dapo, n_traj = [], [], [], 0, 0
        for g_i in range(5):
            n = 4
            rewards = torch.rand(n, generator=g) if g_i % 2 else (torch.rand(n, generator=g) < 0.5) * 1.0
            rewards = f32(rewards.tolist())
            valid = torch.rand(n, generator=g) < 0.85
            if g_i == 3:
                rewards[:] = 0.7
                rewards = f32(rewards.tolist())
            if g_i == 4:
                valid[:] = False
                valid[1] = True
            a = advantages(kind, rewards, valid)
            if g_i == 3:
                a[:] = 0.0
            groups.append((rewards, valid, a))
            if valid.sum() < 2:
                continue
            varied = bool((rewards[valid] != rewards[valid][0]).any())
            for i in range(n):
                if not valid[i]:
                    continue
                length = int(torch.randint(1, 12, (1,), generator=g))
                n_traj += 1
                n_tokens_dapo += length if varied else 0
                lengths.append(length)
                adv.append(float(a[i]))
        lengths_t = torch.tensor(lengths).double()
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        n = len(owner)
        logmu = f32((-torch.rand(n, generator=g) * 4).tolist())
        # Mostly near on-policy, some far outside every clip, some exactly on it or bit-equal.
        gap = torch.randn(n, generator=g) * 0.3
        far = torch.rand(n, generator=g) < 0.15
        gap = torch.where(far, gap * 8, gap)
        gap = torch.where(torch.rand(n, generator=g) < 0.1, torch.zeros(n), gap)
        logp = f32((logmu + gap).tolist()).requires_grad_(True)
        a32 = f32(adv)
        loss = objective(kind, logp, logmu, a32[owner], owner, lengths_t, n_traj, n_tokens_dapo)
        (grad,) = torch.autograd.grad(loss, logp)
        w = torch.exp(logp.detach() - logmu)
        d = logp.detach() - logmu
        ess = float(w.sum() ** 2 / (n * (w * w).sum()))
        print(f"loss {kind} groups {len(groups)} tokens {n} trajectories {n_traj} dapo_tokens {n_tokens_dapo}")
        for rewards, valid, a in groups:
            print("group", len(rewards))
            for i in range(len(rewards)):
                print(f"{rewards[i]:.17g} {int(valid[i])} {a[i]:.17g}")
        print(f"value {loss.item():.17g} ess {ess:.17g} k3 {(w - 1 - d).mean().item():.17g} "
              f"abs {d.abs().mean().item():.17g} max {w.max().item():.17g}")
        for t in range(n):
            print(f"{logp[t].item():.17g} {logmu[t].item():.17g} {a32[owner[t]].item():.17g} "
                  f"{lengths[owner[t]]} {grad[t].item():.17g}")


main()
