#!/usr/bin/env python3
"""Writes losses.txt: policy losses, corrections, KL terms and advantages, with gradients by automatic differentiation.

An independent computation for tests/unit/test_loss.c and test_advantage.c: PyTorch in float64, written from the
papers' formulas (learner/loss.h names them), knowing nothing of the C code. Needs torch.
usage: make_losses.py > losses.txt
"""
import torch

torch.set_default_dtype(torch.float64)
CAP, L_MAX = 5.0, 40
CLIPS = {"dapo": (0.2, 0.28), "gspo": (3e-2, 4e-2), "cispo": (0.5, 1.0)}
KINDS = ["reinforce", "grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo", "decoupled_ppo", "sapo"]
CORRECTIONS = {"tis_token": (0, 1.2), "tis_sequence": (0, 1.02), "icepop": (0.9, 1.3), "mis_sequence": (0, 1.04),
               "geometric": (0.99, 1.005), "k3": (0, 0.02)}
OVER_TOKENS = ("dapo", "reinforce_pp", "cispo", "decoupled_ppo")


def f32(x):
    """What the C side sees: values rounded to float."""
    return torch.as_tensor(x).float().double()


def advantages(kind, rewards, valid):
    out = torch.zeros(len(rewards))
    r = rewards[valid]
    if len(r) < 2 or bool((r == r[0]).all()):
        return out
    if kind in ("reinforce", "rloo"):
        a = r - (r.sum() - r) / (len(r) - 1)
    elif kind in ("dr_grpo", "reinforce_pp"):
        a = r - r.mean()
    else:
        a = (r - r.mean()) / (r.std() + 1e-4)
    out[valid] = a
    return out


def per_sequence(x, owner, n):
    return torch.zeros(n).index_add(0, owner, x)


def correction(kind, bounds, logq, logmu, owner, counted, lengths):
    """M for every token, a constant."""
    low, high = bounds
    log_k = logq - logmu
    n = len(lengths)
    if kind == "none":
        return torch.ones_like(log_k)
    product = per_sequence(log_k * counted, owner, n).clamp(-20, 20).exp()[owner]
    geometric = (per_sequence(log_k * counted, owner, n) / lengths).exp()[owner]
    k3 = (per_sequence((log_k.exp() - 1 - log_k) * counted, owner, n) / lengths)[owner]
    k = log_k.exp()
    zero, one = torch.zeros_like(k), torch.ones_like(k)
    if kind == "tis_token":
        return k.clamp(max=high)
    if kind == "tis_sequence":
        return product.clamp(max=high)
    if kind == "icepop":
        return torch.where((k >= low) & (k <= high), k, zero)
    if kind == "mis_sequence":
        return torch.where(product <= high, product, zero)
    if kind == "geometric":
        return torch.where((geometric >= low) & (geometric <= high), one, zero)
    if kind == "k3":
        return torch.where(k3 <= high, one, zero)
    raise ValueError(kind)


def loss(kind, corr, bounds, dppo, kl, t, lengths):
    logp, logmu, logq, logref, lw, a, owner = (t[x] for x in ("logp", "logmu", "logq", "logref", "lw", "a", "owner"))
    low, high = CLIPS.get(kind, (0.2, 0.2))
    n = len(lengths)
    counted = (lw != 0).double()
    m = correction(corr, bounds, logq, logmu, owner, counted, lengths)
    corrected = corr != "none" or kind == "decoupled_ppo"
    log_r = logp - (logq if corrected else logmu)
    if kind == "decoupled_ppo":
        m = (logq - logmu).exp()
    if dppo is not None:
        difference = logp.detach().exp() - logmu.exp()
        m = torch.where((a > 0) & (difference > dppo[1]), torch.zeros_like(m), m)
        m = torch.where((a <= 0) & (difference < -dppo[0]), torch.zeros_like(m), m)
    r = log_r.exp()
    if kind == "reinforce":
        terms = r.detach().clamp(max=CAP) * a * logp
    elif kind == "rloo":
        terms = a * logp
    elif kind == "cispo":
        terms = r.detach().clamp(1 - low, 1 + high) * a * logp
    elif kind == "sapo":
        tau = torch.where(a > 0, torch.tensor(1.0), torch.tensor(1.05))
        terms = 4 / tau * torch.sigmoid(tau * (r - 1)) * a
    else:
        if kind == "gspo":  # the token form of the sequence ratio: s sg(1/p) p (2507.18071)
            s = (per_sequence(lw * log_r, owner, n) / lengths).exp()[owner]
            r = s.detach() * (logp - logp.detach()).exp()
        terms = torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)
    objective = m * terms
    if kl is not None:
        estimator, coef = kl
        d = logp - logref
        k = {"k1": d, "k2": d * d / 2, "k3": (-d).exp() - 1 + d}[estimator]
        objective = objective - coef * k
    if kind in OVER_TOKENS:
        value = -(lw * objective).sum() / t["N"]
    else:
        rows = per_sequence(lw * objective, owner, n)
        if kind in ("grpo", "gspo", "sapo"):
            rows = rows / lengths
        if kind == "dr_grpo":
            rows = rows / L_MAX
        value = -rows.sum() / t["B"]
    return value, m


def print_advantages(g):
    groups = []
    for i in range(6):
        rewards = torch.rand(4, generator=g) if i % 2 else (torch.rand(4, generator=g) < 0.5) * 1.0
        valid = torch.rand(4, generator=g) < 0.85
        if i == 3:
            rewards[:] = 0.7
        if i == 4:
            valid[:] = False
            valid[1] = True
        groups.append((f32(rewards), valid, torch.randint(1, 12, (4,), generator=g)))
    for kind in KINDS:
        print(f"advantages {kind} {len(groups)}")
        all_a, all_n, all_ok = [], [], []
        for rewards, valid, tokens in groups:
            a = advantages(kind, rewards, valid)
            ok = valid if valid.sum() >= 2 else torch.zeros_like(valid)
            all_a.append(f32(a)), all_n.append(tokens), all_ok.append(ok)
            print("group", len(rewards))
            for i in range(len(rewards)):
                print(f"{rewards[i]:.9g} {int(valid[i])} {a[i]:.17g}")
        if kind == "reinforce_pp":
            a, n, ok = torch.cat(all_a), torch.cat(all_n), torch.cat(all_ok)
            tokens = torch.repeat_interleave(a[ok], n[ok])
            mean, std = tokens.mean(), tokens.var(unbiased=False).clamp(min=1e-8).sqrt()
            print("normalised", len(a))
            for i in range(len(a)):
                print(f"{a[i]:.9g} {int(ok[i])} {n[i]} {((a[i] - mean) / std if ok[i] else a[i]):.17g}")


def print_tokens(g):
    """Sequences near and far from the policy, with tokens on every side of every bound; some weights are not 1."""
    lengths, owner, gaps = [], [], []
    for i in range(20):
        n = int(torch.randint(1, 10, (1,), generator=g))
        scale = (0.0, 0.02, 0.1, 0.5)[i % 4]
        lengths.append(n)
        owner += [i] * n
        gaps.append(torch.randn(n, generator=g) * scale)
    owner = torch.tensor(owner)
    n = len(owner)
    logmu = f32(-torch.rand(n, generator=g) * 4)
    logq = f32(logmu + torch.cat(gaps))
    far = torch.where(torch.rand(n, generator=g) < 0.1, 6.0, 1.0)
    logp = f32(logq + torch.randn(n, generator=g) * 0.15 * far)
    same = torch.rand(n, generator=g) < 0.15
    logq = torch.where(same, logmu, logq)
    logp = torch.where(same, logmu, logp)
    logref = f32(logp + torch.randn(n, generator=g) * 0.5)
    lw = torch.where(torch.rand(n, generator=g) < 0.1, 0.5, 1.0)
    a = f32(torch.randn(len(lengths), generator=g))
    t = {"logp": logp, "logmu": logmu, "logq": logq, "logref": logref, "lw": lw, "a": a[owner], "owner": owner,
         "B": 23, "N": n + 9}
    print(f"tokens {n} trajectories {t['B']} loss_tokens {t['N']}")
    for i in range(n):
        print(f"{owner[i]} {lengths[owner[i]]} {lw[i]} {t['a'][i]:.9g} {logp[i]:.9g} {logmu[i]:.9g} {logq[i]:.9g} "
              f"{logref[i]:.9g}")
    w = torch.exp(logp - logmu)
    d = logp - logmu
    print(f"statistics ess {float(w.sum() ** 2 / (n * (w * w).sum())):.17g} k3 {(w - 1 - d).mean():.17g} "
          f"abs {d.abs().mean():.17g} max {w.max():.17g}")
    return t, torch.tensor(lengths).double()


def main():
    g = torch.Generator().manual_seed(20250)
    print("# advantages of every loss; tokens; then a value and gradients for every case: see make_losses.py")
    print_advantages(g)
    t, lengths = print_tokens(g)
    cases = []
    for kind in KINDS:
        cases.append((kind, "none", None, None))
        cases.append((kind, "none", (0.02, 0.03), None))
        for estimator in ("k1", "k2", "k3"):
            cases.append((kind, "none", None, (estimator, 0.05)))
        if kind != "decoupled_ppo":
            for corr in CORRECTIONS:
                cases.append((kind, corr, None, None))
    cases.append(("dapo", "tis_token", (0.02, 0.03), ("k3", 0.1)))
    print("cases", len(cases))
    for kind, corr, dppo, kl in cases:
        bounds = CORRECTIONS.get(corr, (0, 0))
        logp = t["logp"].clone().requires_grad_(True)
        value, m = loss(kind, corr, bounds, dppo, kl, {**t, "logp": logp}, lengths)
        (grad,) = torch.autograd.grad(value, logp)
        low, high = CLIPS.get(kind, (0.2, 0.2))
        dl, dh = dppo or (0, 0)
        estimator, coef = kl or ("k2", 0)
        print(f"case {kind} {low} {high} {corr} {bounds[0]} {bounds[1]} {dl} {dh} {estimator} {coef} "
              f"value {value.item():.17g} masked {(m == 0).double().mean():.17g} weight {m.mean():.17g}")
        print(" ".join(f"{x:.9g}" for x in grad.tolist()))


main()
