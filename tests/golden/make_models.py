#!/usr/bin/env python3
"""Makes the model fixtures under tests/golden/models: small randomly initialised models of each family, saved
in bf16, with references computed by transformers in float32 on the bf16-rounded weights.

    python3 tests/golden/make_models.py            (needs torch, transformers, safetensors, gguf, numpy)

Per family a folder with what a Hugging Face folder has, the same model as model.gguf, and
reference.safetensors:
    seq<k>.ids [n] I32, seq<k>.logits [n, V] F32          logits of every position
    greedy.prompt I32, greedy.tokens [64] I32, greedy.gap [64] F32   gap = best minus second-best logit
    grad.ids [n] I32, grad.coefficients [n - 1] F32, grad.logprobs [n - 1] F32
    grad:<tensor> F32     d(sum_t coefficients[t] * logprob(ids[t + 1] | ids[..t])) / d(tensor)
quants.gguf holds one tensor per GGUF type, quants.safetensors what the gguf package makes of it.
"""
import json
import os
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
GREEDY_STEPS = 64
SEED = 1004


def families():
    t = transformers
    yield "llama3", t.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
        # 32 original positions, so that 16-wide heads have frequencies on all three branches
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
        bos_token_id=1, eos_token_id=[2, 5])
    yield "qwen2", t.Qwen2Config(
        vocab_size=160, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, bos_token_id=None, eos_token_id=3)
    yield "qwen3", t.Qwen3Config(
        vocab_size=144, hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-6,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        bos_token_id=None, eos_token_id=3)
    yield "gemma3", t.Gemma3TextConfig(
        vocab_size=192, hidden_size=40, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-6,
        tie_word_embeddings=True, sliding_window=16, query_pre_attn_scalar=24,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
        bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0)
    yield "qwen2-yarn", t.Qwen2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                         "original_max_position_embeddings": 64}, bos_token_id=None, eos_token_id=3)
    # What the kernels cut into pieces comes in several: heads of two panels and a half, two blocks of
    # vocabulary, a training sequence of four attention tiles.
    yield "qwen3-wide", t.Qwen3Config(
        vocab_size=4100, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=80, max_position_embeddings=256, rms_norm_eps=1e-6,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        bos_token_id=None, eos_token_id=3)


def randomise(model, config, generator):
    """Scales at which attention is peaked, logits spread over a few nats, and a tied embedding does not make
    every token predict itself."""
    gemma = config.model_type == "gemma3_text"
    tied = config.tie_word_embeddings
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                mean, std = (0.0 if gemma else 1.0), 0.25
                if tied and name == "model.norm.weight":
                    mean = 4.0 if gemma else 2.5
                elif gemma and ".post_" in name:
                    mean = 1.0
            elif name.endswith(".bias"):
                mean, std = 0.0, 0.5
            elif "embed_tokens" in name or "lm_head" in name:
                mean, std = 0.0, ((0.06 if gemma else 0.12) if tied else 0.35)
            else:
                mean, std = 0.0, 1.6 / p.shape[1] ** 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * std + mean)


def f32(t):
    return np.ascontiguousarray(t.detach().to(torch.float32).numpy())


def reference(model, config, generator):
    out = {}
    v = config.vocab_size
    wide = v > 1000
    for k, n in enumerate((9, 5, 3) if wide else (80, 33, 7)):
        ids = torch.randint(0, v, (n,), generator=generator)
        with torch.no_grad():
            out[f"seq{k}.logits"] = f32(model(ids[None]).logits[0])
        out[f"seq{k}.ids"] = ids.to(torch.int32).numpy()
    ids = torch.randint(0, v, (12,), generator=generator)
    out["greedy.prompt"] = ids.to(torch.int32).numpy()
    gaps = []
    with torch.no_grad():
        for _ in range(GREEDY_STEPS):  # the whole prefix each time: no cache to differ
            best = model(ids[None]).logits[0, -1].topk(2)
            gaps.append(float(best.values[0] - best.values[1]))
            ids = torch.cat([ids, best.indices[:1]])
    out["greedy.tokens"] = ids[12:].to(torch.int32).numpy()
    out["greedy.gap"] = np.array(gaps, np.float32)

    ids = torch.randint(0, v, (110 if wide else 40,), generator=generator)
    coefficients = torch.randn(len(ids) - 1, generator=generator)
    model.zero_grad()
    logprobs = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
    (coefficients * logprobs).sum().backward()
    out["grad.ids"] = ids.to(torch.int32).numpy()
    out["grad.coefficients"] = f32(coefficients)
    out["grad.logprobs"] = f32(logprobs)
    for name, p in model.named_parameters():  # tied heads appear once, as the embedding
        out["grad:" + name] = f32(p.grad)
    return out


# --- GGUF, with the conversions that llama.cpp's converter makes -------------------------------------------

GGUF_NAMES = {
    "input_layernorm.weight": "attn_norm.weight", "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias", "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias", "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias", "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def gguf_name(name, gemma):
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}
    if name in top:
        return top[name]
    _, _, layer, rest = name.split(".", 3)
    if gemma:
        norms = {"post_attention_layernorm.weight": "post_attention_norm.weight",
                 "pre_feedforward_layernorm.weight": "ffn_norm.weight",
                 "post_feedforward_layernorm.weight": "post_ffw_norm.weight"}
    else:
        norms = {"post_attention_layernorm.weight": "ffn_norm.weight"}
    return f"blk.{layer}." + {**GGUF_NAMES, **norms}[rest]


def interleave(w, n_heads):
    """Rows of each head from (first half, second half) to pairs, as the "llama" architecture wants them."""
    return w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def llama3_factors(rope, head_dim):
    base = rope["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    wavelength = 2 * np.pi * base
    smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
        rope["high_freq_factor"] - rope["low_freq_factor"])
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def write_gguf(path, config, state):
    kind = config.model_type
    gemma = kind == "gemma3_text"
    arch = "gemma3" if gemma else kind
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    rope = config.rope_parameters
    if gemma:
        w.add_sliding_window(config.sliding_window)
        w.add_array(f"{arch}.attention.sliding_window_pattern",
                    [t == "sliding_attention" for t in config.layer_types])
        w.add_float32(f"{arch}.attention.scale", config.query_pre_attn_scalar ** -0.5)
        rope = rope["full_attention"]
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    w.add_rope_freq_base(rope["rope_theta"])
    if arch == "llama":
        w.add_vocab_size(config.vocab_size)
        w.add_rope_dimension_count(head_dim)
        w.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))
    w.add_tokenizer_model("llama" if gemma else "gpt2")
    tokens = [f"t{i}" for i in range(config.vocab_size)]
    if not gemma:
        tokens[60:80] = [f"t{i}t{i + 1}" for i in range(0, 40, 2)]
        w.add_tokenizer_pre("llama-bpe" if arch == "llama" else "qwen2")
        w.add_token_merges([f"t{i} t{i + 1}" for i in range(0, 40, 2)])
    else:
        w.add_token_scores([-float(i) for i in range(config.vocab_size)])
    w.add_token_list(tokens)
    w.add_token_types([1] * config.vocab_size)
    if config.bos_token_id is not None:
        w.add_bos_token_id(config.bos_token_id)
    eos = config.eos_token_id
    w.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    if isinstance(eos, list):
        w.add_eot_token_id(eos[1])
    w.add_add_bos_token(config.bos_token_id is not None)
    for name, t in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        a = f32(t)
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            a = interleave(a, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if gemma and name.endswith("norm.weight"):
            a = a + np.float32(1)
        if a.ndim == 1:
            w.add_tensor(gguf_name(name, gemma), a)
        else:
            bits = np.ascontiguousarray(gguf.quants.quantize(a, gguf.GGMLQuantizationType.BF16))
            w.add_tensor(gguf_name(name, gemma), bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_quants():
    rng = np.random.default_rng(7)
    q = gguf.GGMLQuantizationType
    expected = {}
    w = gguf.GGUFWriter(os.path.join(HERE, "quants.gguf"), "llama")
    w.add_string("test.text", "déjà vu")
    w.add_int64("test.negative", -7)
    w.add_bool("test.on", True)
    w.add_array("test.numbers", [1, 2, 3])
    w.add_array("test.texts", ["a", "", "bc"])
    w.add_custom_alignment(64)
    for kind in (q.F32, q.F16, q.BF16, q.Q8_0, q.Q4_0, q.Q5_0):
        x = (rng.standard_normal((3, 96)) * rng.lognormal(0, 2, (3, 1))).astype(np.float32)
        x[1, 32:64] = 0
        data = np.ascontiguousarray(gguf.quants.quantize(x, kind))
        w.add_tensor(kind.name.lower(), data, raw_dtype=kind)
        expected[kind.name.lower()] = np.ascontiguousarray(gguf.quants.dequantize(data, kind))
    for kind in (q.Q4_K, q.Q5_K, q.Q6_K):  # the package has no quantiser for these: random blocks
        _, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (3, 2 * size), dtype=np.uint8)
        blocks = data.reshape(-1, size)
        scales = (rng.standard_normal((len(blocks), 2)) * 0.01).astype(np.float16)
        if kind == q.Q6_K:
            blocks[:, -2:] = scales[:, :1].view(np.uint8)
        else:
            blocks[:, :4] = scales.view(np.uint8)
        w.add_tensor(kind.name.lower(), data, raw_dtype=kind)
        expected[kind.name.lower()] = np.ascontiguousarray(gguf.quants.dequantize(data, kind))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    save_file({k: v.astype(np.float32) for k, v in expected.items()}, os.path.join(HERE, "quants.safetensors"))


def main():
    torch.set_num_threads(1)
    os.makedirs(HERE, exist_ok=True)
    for seed, (name, config) in enumerate(families()):
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        folder = os.path.join(HERE, name)
        generator = torch.Generator().manual_seed(SEED + seed)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
        randomise(model, config, generator)
        model.to(torch.bfloat16).save_pretrained(folder)
        # Loaded again in float32: casting the model back would leave its RoPE frequencies rounded to bf16.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()
        out = reference(model, config, generator)
        save_file(out, os.path.join(folder, "reference.safetensors"))
        write_gguf(os.path.join(folder, "model.gguf"), config, model.state_dict())
        spread = out["seq0.logits"].std(-1).mean()
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logit spread {spread:.2f}, "
              f"smallest greedy gap {out['greedy.gap'].min():.4f}")
    write_quants()


if __name__ == "__main__":
    main()
