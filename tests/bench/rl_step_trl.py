#!/usr/bin/env python3
"""TRL's side of rl_step.sh: GRPOTrainer on the CPU, P prompts x G samples x exactly N new tokens, one optimizer step
after another; prints one JSON line with the seconds of each step. Uses what is installed (torch, transformers, trl,
datasets).

    rl_step_trl.py --model HF_FOLDER --tasks TASKS.jsonl [--dtype bf16] [--threads 4] [--steps 2]

A step lasts from the end of the one before to its own end; the first, which has no one before it, from the start of
training. Generation, loss and optimizer are those of the library; the generation's share is timed by a subclass that
calls the library's method. No gradient checkpointing, no KL model (beta 0), no truncation of the distribution."""

import argparse
import json
import os
import resource
import tempfile
import time

os.environ.setdefault("TQDM_DISABLE", "1")  # read when transformers is imported

import datasets
import torch
import transformers
import trl


class TimedTrainer(trl.GRPOTrainer):
    """Counts the seconds of generation and the tokens, and changes nothing."""

    generate_s = 0.0
    tokens = None

    def _generate_single_turn(self, *args, **kwargs):
        begin = time.perf_counter()
        out = super()._generate_single_turn(*args, **kwargs)
        self.generate_s += time.perf_counter() - begin
        return out

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        self.tokens = {"prompt": int(out["prompt_mask"].sum()), "new": int(out["completion_mask"].sum()),
                       "trajectories": len(out["completion_mask"]),
                       "with_advantage": int((out["advantages"] != 0).sum())}
        return out


class Clock(transformers.TrainerCallback):
    def __init__(self):
        self.steps, self.trainer = [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.steps.append({"seconds": now - self.last, "generate_s": self.trainer.generate_s, **self.trainer.tokens})
        self.last, self.trainer.generate_s = now, 0.0


def even_length(completions, **_):
    return [float(len(c) % 2 == 0) for c in completions]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = 0
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    with open(args.tasks) as f:
        tasks = datasets.Dataset.from_list([{"prompt": json.loads(line)["prompt"]} for line in f])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            output_dir=folder, per_device_train_batch_size=args.prompts * args.samples, num_generations=args.samples,
            max_completion_length=args.new_tokens, generation_kwargs={"min_new_tokens": args.new_tokens},
            temperature=1.0, top_k=0, top_p=1.0, beta=0.0, num_iterations=1, gradient_accumulation_steps=1,
            gradient_checkpointing=False, learning_rate=args.learning_rate, lr_scheduler_type="constant",
            max_steps=args.steps, use_cpu=True, bf16=False, fp16=False, save_strategy="no", report_to=[],
            logging_steps=1, disable_tqdm=True, seed=args.seed)
        trainer = TimedTrainer(model=model, reward_funcs=even_length, args=config, train_dataset=tasks,
                               processing_class=tokenizer, callbacks=[clock])
        clock.trainer = trainer
        trainer.train()
    for step in clock.steps:
        step["train_s"] = step["seconds"] - step["generate_s"]
    print(json.dumps({"what": "rl-step", "dtype": args.dtype, "threads": torch.get_num_threads(),
                      "versions": f"trl {trl.__version__}, transformers {transformers.__version__}, "
                                  f"torch {torch.__version__}",
                      "steps": clock.steps,
                      "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


if __name__ == "__main__":
    main()
