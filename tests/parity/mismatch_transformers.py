"""Hugging Face transformers' side of mismatch.py: log-probs as `generate` with its KV cache saw them when it
sampled, against teacher-forced forwards of the same weights by the same library. Loads what is installed."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # read when transformers is imported

import torch
import transformers


def versions():
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def logprobs(logits, tokens):
    """[..., V] and [...] -> [...] in f32, by the same function at sampling and at scoring."""
    return torch.log_softmax(logits.float(), -1).gather(-1, tokens[..., None])[..., 0]


class Sampled:
    """One model in one dtype, and the sequences that it sampled."""

    def __init__(self, folder, dtype, threads):
        torch.set_num_threads(threads)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        # Sequences of one length: no token ends a sequence, so the distribution sampled is the model's own.
        self.model.generation_config.eos_token_id = None

    def sample(self, prompts, new_tokens, seed):
        """Left-padded batch; returns the log-probs [B, new_tokens] of the tokens that were drawn."""
        longest = max(map(len, prompts))
        self.prompts, self.new_tokens = prompts, new_tokens
        padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        torch.manual_seed(seed)
        out = self.model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=new_tokens, do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
        self.ids, self.drawn = out.sequences, out.sequences[:, longest:]
        assert self.drawn.shape[1] == new_tokens, "generate stopped early"
        self.mask = torch.cat([mask, torch.ones_like(self.drawn)], 1)
        return torch.stack([logprobs(l, self.drawn[:, i]) for i, l in enumerate(out.logits)], 1)

    def score_padded(self, rows=slice(None)):
        """Teacher forcing of the same left-padded batch (or some rows of it)."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(input_ids=self.ids[rows], attention_mask=self.mask[rows], position_ids=positions[rows],
                            use_cache=False, logits_to_keep=self.new_tokens + 1).logits
        return logprobs(logits[:, :-1], self.drawn[rows])

    def score_alone(self):
        """One sequence a forward, without padding."""
        out = []
        for i, prompt in enumerate(self.prompts):
            ids = self.ids[i:i + 1, -(len(prompt) + self.new_tokens):]
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=self.new_tokens + 1).logits
            out.append(logprobs(logits[:, :-1], self.drawn[i:i + 1]))
        return torch.cat(out)


def measure(folder, numerics, prompts, new_tokens, seed, threads):
    """Yields (what is compared, reference, other): float32 numpy arrays [B, new_tokens]."""
    with torch.inference_mode():
        model = Sampled(folder, {"f32": torch.float32, "bf16": torch.bfloat16}[numerics], threads)
        sampled = model.sample(prompts, new_tokens, seed)
        padded = model.score_padded()
        yield (f"sampled with KV cache, batch {len(prompts)}", "teacher forced, same padded batch", sampled.numpy(),
               padded.numpy())
        alone = model.score_alone()
        yield (f"sampled with KV cache, batch {len(prompts)}", "teacher forced, one by one", sampled.numpy(),
               alone.numpy())
        yield (f"teacher forced, batch {len(prompts)}", "teacher forced, one by one", padded.numpy(), alone.numpy())
        yield (f"teacher forced, batch {len(prompts)}", "the same again (control)", padded.numpy(),
               model.score_padded().numpy())
