#include "common/config_table.h"

#include <string.h>

#define AT(field) offsetof(ifl_config, field)
#define SIZE(field) sizeof(((ifl_config *)0)->field)
#define INT32(key, field, lo, hi, fallback, unit, help)                                            \
    { key, IFL_CONFIG_INT32, AT(field), 0, lo, hi, fallback, "", unit, help }
#define INT64(key, field, lo, hi, fallback, unit, help)                                            \
    { key, IFL_CONFIG_INT64, AT(field), 0, lo, hi, fallback, "", unit, help }
#define DOUBLE(key, field, lo, hi, fallback, unit, help)                                           \
    { key, IFL_CONFIG_DOUBLE, AT(field), 0, lo, hi, fallback, "", unit, help }
#define BOOL(key, field, fallback, help)                                                           \
    { key, IFL_CONFIG_BOOL, AT(field), 0, 0, 0, fallback, "", "", help }
#define TEXT(key, field, fallback, help)                                                           \
    { key, IFL_CONFIG_TEXT, AT(field), SIZE(field), 0, 0, fallback, "", "", help }
#define CHOICE(key, field, fallback, choices, help)                                                \
    { key, IFL_CONFIG_CHOICE, AT(field), SIZE(field), 0, 0, fallback, choices, "", help }
#define ENUM(key, field, fallback, choices, help)                                                  \
    { key, IFL_CONFIG_ENUM, AT(field), 0, 0, 0, fallback, choices, "", help }

/* Integers stay below 2^53, so that JSON readers of the run's files keep every digit. */
#define INTEGER_MAX 9007199254740992.0

const ifl_config_row ifl_config_rows[] = {
    INT64("config_version", config_version, 1, 1, "1", "", "format of this file"),

    TEXT("run.name", run.name, "run", "folder of the run below run.dir"),
    TEXT("run.dir", run.dir, "runs", "folder of all runs"),
    INT64("run.seed", run.seed, 0, INTEGER_MAX, "1", "", "the whole randomness of the run"),
    {"run.mode", IFL_CONFIG_MODE, 0, 0, 1, 64, "pipeline", "pipeline|sync|async:K", "",
     "weights change in flight | generate, then train | K steps behind"},
    INT64("run.steps", run.steps, 1, 1e9, "100", "optimizer steps", "length of the run"),
    BOOL("run.resume", run.resume, "false", "go on from the last checkpoint"),
    BOOL("run.overwrite", run.overwrite, "false",
         "move an existing run folder of that name aside instead of refusing"),

    TEXT("model.path", model.path, "",
         "Hugging Face folder or GGUF file; empty: a new model of the shape below"),
    CHOICE("model.numerics", model.numerics, "f32", "f32|bf16",
           "numerics profile: f32 activations | bf16 products with f32 sums"),
    CHOICE("model.family", model.family, "llama", "llama|qwen2|qwen3|gemma3", "new model: family"),
    INT32("model.d_model", model.d_model, 8, 65536, "128", "", "new model: width"),
    INT32("model.n_layers", model.n_layers, 1, 256, "4", "layers", "new model: depth"),
    INT32("model.n_heads", model.n_heads, 1, 512, "4", "heads", "new model: query heads"),
    INT32("model.n_kv_heads", model.n_kv_heads, 1, 512, "4", "heads",
          "new model: key and value heads; divides n_heads"),
    INT32("model.head_dim", model.head_dim, 2, 1024, "32", "", "new model: width of a head; even"),
    INT32("model.d_ff", model.d_ff, 8, 1048576, "336", "", "new model: width of the MLP"),
    INT32("model.max_positions", model.max_positions, 8, 1048576, "256", "tokens",
          "new model: longest sequence"),
    DOUBLE("model.rope_theta", model.rope_theta, 1, 1e9, "10000", "", "new model: RoPE base"),
    BOOL("model.tied_head", model.tied_head, "false", "new model: the head is the embedding"),
    TEXT("model.characters", model.characters, "0123456789+*=#\n",
         "new model: alphabet of its character tokenizer; newline is the end of sequence"),

    {"data.train", IFL_CONFIG_SOURCES, AT(data.train), 0, 0, IFL_SOURCES_MAX, "[]", "", "sources",
     "where training tasks come from"},
    {"data.eval", IFL_CONFIG_SOURCES, AT(data.eval), 0, 0, IFL_SOURCES_MAX, "[]", "", "sources",
     "where held-out tasks come from; disjoint from data.train by hash"},
    CHOICE("data.sampler", data.sampler, "ratio", "uniform|ratio|pass_rate",
           "how sources mix: by size | by their ratio | tasks inside the pass-rate band"),
    DOUBLE("data.pass_rate_min", data.pass_rate_min, 0, 1, "0", "",
           "pass_rate sampler: tasks solved less often rest"),
    DOUBLE("data.pass_rate_max", data.pass_rate_max, 0, 1, "1", "",
           "pass_rate sampler: tasks solved more often rest"),
    CHOICE("data.chat_format", data.chat_format, "none", "none|llama3|chatml|gemma",
           "how messages become text; none: the prompt as it is"),
    INT32("data.prompt_tokens_max", data.prompt_tokens_max, 1, 1048576, "1024", "tokens",
          "longer prompts are refused and counted"),

    INT32("rollout.prompts_per_step", rollout.prompts_per_step, 1, 65536, "32", "prompts",
          "groups of one optimizer step"),
    INT32("rollout.group_size", rollout.group_size, 1, 1024, "8", "trajectories",
          "trajectories of one prompt"),
    BOOL("rollout.dynamic_sampling", rollout.dynamic_sampling, "false",
         "groups with equal rewards don't count towards a step, further ones are drawn (DAPO); "
         "a selection by reward: sampling/* in metrics.jsonl has what was drawn beside what trains"),
    INT32("rollout.dynamic_sampling_max", rollout.dynamic_sampling_max, 1, 1000, "10", "batches",
          "drawn for one step at most (prompts_per_step each); then it trains on what there is"),
    DOUBLE("rollout.temperature", rollout.temperature, 0, 100, "1", "",
           "logits are divided by it; 0 = greedy, not for training"),
    INT32("rollout.top_k", rollout.top_k, 0, 1024, "0", "tokens",
          "keep the k best tokens; 0 = all"),
    DOUBLE("rollout.top_p", rollout.top_p, 0.001, 1, "1", "",
           "keep the smallest set of this mass; 1 = all"),
    INT32("rollout.max_new_tokens", rollout.max_new_tokens, 1, 1048575, "160", "tokens",
          "longer answers are cut and marked truncated"),
    {"rollout.stops", IFL_CONFIG_STOPS, AT(rollout.stops), 0, 0, IFL_STOPS_MAX, "[]", "", "strings",
     "texts that end an answer; kept in the trajectory, cut from the answer"},

    INT32("actor.count", actor.count, 1, 256, "2", "processes",
          "local actors that `inflight train` starts"),
    INT32("actor.threads", actor.threads, 0, 1024, "1", "threads",
          "per actor; 0 = as many as it has CPUs"),
    INT32("actor.sequences_max", actor.sequences_max, 1, 65536, "128", "trajectories",
          "decoded together"),
    INT32("actor.kv_tokens", actor.kv_tokens, 64, 1073741824, "65536", "tokens",
          "capacity of the KV cache"),
    INT32("actor.page_tokens", actor.page_tokens, 1, 1024, "16", "tokens",
          "size of a KV page; a power of two"),
    INT32("actor.prefill_chunk_tokens", actor.prefill_chunk_tokens, 1, 1048576, "256", "tokens",
          "most prompt or rebuild rows of one decode step"),
    ENUM("actor.kv", actor.kv, "keep", "keep|recompute",
         "KV at a swap: goes on as it is | is rebuilt under the new weights"),
    INT32("actor.drain_s", actor.drain_s, 0, 3600, "10", "seconds",
          "how long an actor that is asked to stop may take to hand over what it has"),
    TEXT("actor.cpus", actor.cpus, "",
         "CPUs to pin actors to, e.g. 1-3; with ; between, one list for each, e.g. 1;2; empty: "
         "none"),

    TEXT("reward.checker", reward.checker, "exact", "checker of tasks that name none"),
    INT32("reward.workers", reward.workers, 1, 256, "1", "processes", "reward workers per actor"),
    INT32("reward.timeout_ms", reward.timeout_ms, 1, 3600000, "2000", "ms",
          "per answer; a worker past it is killed"),
    CHOICE("reward.on_error", reward.on_error, "mask", "mask|retry|fail",
           "an answer that cannot be judged: leaves its group | is tried again first where the "
           "checker failed | ends the run"),
    INT32("reward.retries", reward.retries, 1, 100, "2", "times",
          "on_error retry: how often one answer is tried again"),
    DOUBLE("reward.errors_max_share", reward.errors_max_share, 0.001, 1, "0.5", "",
           "the run ends when more than this of the last errors_window answers had failing "
           "checkers; 1 = never"),
    INT32("reward.errors_window", reward.errors_window, 1, 65536, "64", "answers",
          "what errors_max_share is a share of"),
    CHOICE("reward.sandbox_require", reward.sandbox_require, "ns", "ns|cgroup",
           "the least isolation for programs of the policy's: namespaces | with a delegated cgroup "
           "too; a run whose checkers run programs is refused below it"),
    INT32("reward.cache_mib", reward.cache_mib, 0, 4096, "16", "MiB",
          "verdicts of pure checkers kept for answers that come again, per actor; 0 = none"),
    {"reward.checkers", IFL_CONFIG_JSON, AT(reward.checkers), SIZE(reward.checkers), 0, 0, "{}", "",
     "",
     "checkers of your own by name: built-ins with options, sums, products, plug-ins; "
     "rewards/PLUGINS.md has the keys"},
    {"reward.route", IFL_CONFIG_JSON, AT(reward.route), SIZE(reward.route), 0, 0, "{}", "", "",
     "checkers by data source, {gsm8k: strict}, for tasks that name none"},

    INT32("learner.threads", learner.threads, 0, 1024, "1", "threads",
          "0 = as many as it has CPUs"),
    TEXT("learner.cpus", learner.cpus, "", "CPUs to pin the learner to, e.g. 0; empty: none"),
    ENUM("learner.loss", learner.loss, "reinforce",
         "reinforce|grpo|dr_grpo|dapo|rloo|reinforce_pp|gspo|cispo|decoupled_ppo|sapo",
         "policy loss; formulas in learner/loss.h"),
    DOUBLE("learner.importance_cap", learner.importance_cap, 1, 1e6, "5", "",
           "reinforce, and answers of another numerics profile: importance weights are cut at "
           "this"),
    DOUBLE("learner.clip_low", learner.clip_low, -1, 1, "-1", "",
           "ratio >= 1 - this; -1: the loss's own (0.2; gspo 3e-4; cispo 1)"),
    DOUBLE("learner.clip_high", learner.clip_high, -1, 100, "-1", "",
           "ratio <= 1 + this; -1: the loss's own (0.2; dapo 0.28; gspo 4e-4; cispo 4)"),
    ENUM("learner.correction", learner.correction, "none",
         "none|tis_token|tis_sequence|icepop|mis_sequence|geometric|k3",
         "weight for what lies between sampling and this step; none: it is part of the ratio"),
    DOUBLE("learner.correction_low", learner.correction_low, -1, 1e6, "-1", "",
           "icepop, geometric: below is masked; -1: their own (0.5, 0.999)"),
    DOUBLE("learner.correction_high", learner.correction_high, -1, 1e6, "-1", "",
           "cut (tis: 2) or masked (icepop 5, mis_sequence 3, geometric 1.001, k3 0.01) above; -1: "
           "these"),
    DOUBLE("learner.dppo_low", learner.dppo_low, 0, 1, "0", "",
           "a bad token whose probability fell by more is masked; 0 = off (prime-rl: 0.2)"),
    DOUBLE("learner.dppo_high", learner.dppo_high, 0, 1, "0", "",
           "a good token whose probability rose by more is masked; 0 = off (prime-rl: 0.2)"),
    DOUBLE("learner.sapo_tau_positive", learner.sapo_tau_positive, 1e-6, 1e6, "1", "",
           "sapo: temperature of the gate where the advantage is positive"),
    DOUBLE("learner.sapo_tau_negative", learner.sapo_tau_negative, 1e-6, 1e6, "1.05", "",
           "sapo: and where it is not"),
    CHOICE("learner.truncated", learner.truncated, "train", "train|mask",
           "answers that ran into the token limit: mask keeps them out of the loss"),
    INT32("learner.overlong_tokens", learner.overlong_tokens, 0, 1048576, "0", "tokens",
          "the last so many tokens before the limit cost reward, in a line to -1 (DAPO); 0 = off"),
    DOUBLE("learner.learning_rate", learner.learning_rate, 0, 10, "0.0003", "per step",
           "AdamW, after warm-up"),
    INT32("learner.warmup_steps", learner.warmup_steps, 0, 1000000000, "5", "optimizer steps",
          "linear warm-up"),
    DOUBLE(
        "learner.final_ratio", learner.final_ratio, 0, 1, "1", "",
        "the learning rate falls in a line to this share of itself at the last step; 1 = constant"),
    DOUBLE("learner.beta1", learner.beta1, 0, 0.999999, "0.9", "", "AdamW"),
    DOUBLE("learner.beta2", learner.beta2, 0, 0.99999999, "0.95", "", "AdamW"),
    DOUBLE("learner.adam_eps", learner.adam_eps, 1e-30, 1, "1e-08", "", "AdamW"),
    DOUBLE("learner.weight_decay", learner.weight_decay, 0, 10, "0", "", "AdamW, decoupled"),
    DOUBLE("learner.grad_clip", learner.grad_clip, 0, 1e9, "1", "",
           "largest global gradient norm; 0 = no clipping"),
    INT32("learner.pack_tokens", learner.pack_tokens, 16, 1048576, "4096", "tokens",
          "rows of one pack; at least one whole trajectory"),
    DOUBLE("learner.activation_gib", learner.activation_gib, 0, 65536, "0.7", "GiB",
           "of a forward, kept for its backward; the rest is computed again (never other bits)"),
    CHOICE("learner.control", learner.control, "none", "none|frozen|shuffled",
           "control runs: learning rate 0 | rewards permuted across the batch"),
    INT32("learner.groups_in_flight", learner.groups_in_flight, 0, 1048576, "0", "prompts",
          "groups leased at a time; 0 = from prompts_per_step and the mode"),

    INT64("eval.every_steps", eval.every_steps, 0, 1e9, "0", "optimizer steps",
          "0 = only before and after"),
    INT32("eval.tasks", eval.tasks, 1, 1048576, "512", "prompts", "evaluated before and after"),
    INT32("eval.tasks_mid", eval.tasks_mid, 1, 1048576, "128", "prompts", "evaluated in between"),
    INT32("eval.samples", eval.samples, 0, 1024, "0", "trajectories",
          "k of avg@k and pass@k per prompt; 0 = greedy only"),
    BOOL("eval.before", eval.before, "true", "evaluate the start"),
    BOOL("eval.after", eval.after, "true", "evaluate the end"),

    DOUBLE("parity.audit", parity.audit, 0, 1, "0.02", "",
           "share of trained trajectories that are scored again, bit for bit; a difference ends "
           "the run"),
    DOUBLE("parity.audit_swapped", parity.audit_swapped, 0, 1, "0", "",
           "the same share of trajectories that took in new weights, where it is more than "
           "parity.audit"),
    CHOICE("parity.mismatch", parity.mismatch, "refuse", "refuse|admit",
           "an actor of another numerics profile: is refused | is admitted, corrected by "
           "importance weights and counted"),
    CHOICE("parity.flip_bit", parity.flip_bit, "false", "false|audit|train",
           "test hook, one bit of one recorded log-prob is flipped: before the audit | before the "
           "step that trains on it"),
    INT32("parity.versions_kept", parity.versions_kept, 1, 4096, "16", "versions",
          "ring of old weights for the audit"),
    DOUBLE("parity.versions_gib", parity.versions_gib, 0.001, 65536, "1", "GiB",
           "bound of that ring"),

    DOUBLE("ledger.sample", ledger.sample, 0, 1, "0.015625", "",
           "share of trained trajectories whose off-policyness is split by cause, into "
           "ledger.jsonl; 0 = none"),
    INT32("ledger.positions", ledger.positions, 0, 64, "4", "tokens",
          "of each, for the exact KL over the vocabulary"),
    DOUBLE("ledger.budget_truncation", ledger.budget_truncation, 0, 1000, "0", "nats per token",
           "KL of a step's sample above which it warns and counts an alarm; 0 = none, as the next"),
    DOUBLE("ledger.budget_stale_kv", ledger.budget_stale_kv, 0, 1000, "0", "nats per token",
           "the same of KV that other versions have built"),
    DOUBLE("ledger.budget_lag", ledger.budget_lag, 0, 1000, "0", "nats per token",
           "the same of the weights' age"),
    DOUBLE("ledger.budget_total", ledger.budget_total, 0, 1000, "0", "nats per token",
           "the same of all together; 0.05 / length keeps nine tenths of an answer's weight"),

    INT64("checkpoint.every_steps", checkpoint.every_steps, 0, 1e9, "20", "optimizer steps",
          "0 = only at the end"),
    INT32("checkpoint.keep", checkpoint.keep, 1, 1000000, "2", "checkpoints",
          "older ones are removed"),

    TEXT("transport.bind", transport.bind, "tcp://127.0.0.1:5555",
         "learner: control address; weights use the next port"),
    TEXT("transport.connect", transport.connect, "", "actor: the learner's address; empty: bind's"),
    TEXT("transport.relays", transport.relays, "",
         "actor, relay: [NAME=]ENDPOINT,...: whom to ask for weights before the learner (inflight "
         "relay)"),
    INT32("transport.relay_mib", transport.relay_mib, 16, 1048576, "4096", "MiB",
          "relay: weights that it keeps to hand on"),
    TEXT("transport.keys", transport.keys, "",
         "folder of keys (inflight keys); links are then encrypted and authenticated; needed "
         "between hosts"),
    TEXT("transport.key", transport.key, "",
         "actor: name of its key in that folder; empty: the only one there, or --name's"),
    BOOL("transport.insecure", transport.insecure, "false",
         "other hosts may link without keys, and whoever reaches the port can read and write"),
    INT32("transport.heartbeat_ms", transport.heartbeat_ms, 10, 600000, "1000", "ms",
          "interval of pings"),
    INT32("transport.heartbeat_misses", transport.heartbeat_misses, 1, 1000, "10", "pings",
          "silent for so many intervals: gone"),
    INT32("transport.lease_s", transport.lease_s, 1, 86400, "60", "s",
          "an actor whose engine stands still for so long loses its leases"),
    INT32("transport.trajectory_mib", transport.trajectory_mib, 1, 1024, "16", "MiB",
          "answers that one actor may have sent and the learner not acknowledged yet"),
    INT32("transport.chunk_kib", transport.chunk_kib, 4, 16384, "4096", "KiB",
          "size of a chunk of weights"),
    INT32("transport.patch_versions", transport.patch_versions, 0, 64, "16", "versions",
          "how far back new weights are sent as a patch of the old; 0: always all of them"),
    INT32("transport.patch_percent", transport.patch_percent, 1, 1000, "75", "percent",
          "of all weights: memory for those patches; beyond it the oldest go"),

    DOUBLE("archive.versions_gib", archive.versions_gib, 0, 65536, "8", "GiB",
           "policy versions kept on disk for inflight replay, as patches; the oldest go; 0 = none"),

    INT32("staleness.max_versions", staleness.max_versions, 0, 1024, "0", "versions",
          "pipeline: how old a trained token may be, counted from what samples it; 0 = no bound"),
    CHOICE("staleness.policy", staleness.policy, "throttle", "throttle|wait|drop|mask",
           "throttle bounds what is in flight, and so the mean; wait trains nothing else until the "
           "oldest is in; drop and mask leave old answers, or old tokens, out"),

    DOUBLE("kl.coef", kl.coef, 0, 1e6, "0", "",
           "KL to the reference; 0 = none, and no reference is held"),
    ENUM("kl.in", kl.in, "loss", "loss|reward",
         "where it goes; learner/loss.h says what each does"),
    ENUM("kl.estimator", kl.estimator, "k2", "k1|k2|k3", "of KL; k1 does nothing in the loss"),
    TEXT("kl.reference", kl.reference, "", "model that it is measured to; empty: the start"),

    DOUBLE("memory.limit_gib", memory.limit_gib, 0, 65536, "0", "GiB",
           "per process, refused beyond; 0 = none"),

    INT64("sft.steps", sft.steps, 1, 1e9, "1200", "optimizer steps", "length of the warm start"),
    INT32("sft.batch_tokens", sft.batch_tokens, 16, 1073741824, "1024", "tokens",
          "padded tokens of one length-bucketed batch"),
    DOUBLE("sft.learning_rate", sft.learning_rate, 0, 10, "0.0025", "per step", "AdamW"),
    DOUBLE("sft.final_ratio", sft.final_ratio, 0, 1, "0.1", "",
           "the learning rate falls linearly to this share"),
    INT32("sft.warmup_steps", sft.warmup_steps, 0, 1000000000, "30", "optimizer steps",
          "linear warm-up"),
    DOUBLE("sft.beta1", sft.beta1, 0, 0.999999, "0.9", "", "AdamW"),
    DOUBLE("sft.beta2", sft.beta2, 0, 0.99999999, "0.95", "", "AdamW"),
    DOUBLE("sft.weight_decay", sft.weight_decay, 0, 10, "0", "", "AdamW, decoupled"),
    DOUBLE("sft.grad_clip", sft.grad_clip, 0, 1e9, "1", "",
           "largest global gradient norm; 0 = no clipping"),
    DOUBLE("sft.worked_share", sft.worked_share, 0, 1, "0.4", "",
           "ladder: share of worked answers; the rest are bare"),
    TEXT("sft.out", sft.out, "", "where the model folder is written; empty: run.dir/NAME-start"),
};
const int ifl_config_n_rows = (int)(sizeof ifl_config_rows / sizeof *ifl_config_rows);
_Static_assert(sizeof ifl_config_rows / sizeof *ifl_config_rows <= IFL_CONFIG_ROWS_MAX,
               "raise IFL_CONFIG_ROWS_MAX");

#undef AT
#undef SIZE
#define AT(field) offsetof(ifl_source_config, field)
#define SIZE(field) sizeof(((ifl_source_config *)0)->field)

const ifl_config_row ifl_config_source_rows[] = {
    TEXT("name", name, "", "data_source of its tasks"),
    TEXT("path", path, "", "JSONL file; this or generator"),
    CHOICE("generator", generator, "", "|ladder|sums", "procedural tasks; this or path"),
    CHOICE("split", split, "train", "train|heldout", "generator: disjoint by hash"),
    DOUBLE("ratio", ratio, 0.000001, 1e6, "1", "", "share among the listed sources"),
    INT64("count", count, 0, 1e12, "0", "tasks",
          "generator: so many, 0 = endless; file: the first so many, 0 = all"),
    INT32("digits", digits, 1, 2, "1", "digits", "sums: of both operands"),
    INT32("steps_max", steps_max, 1, 33, "16", "", "ladder: longest chain"),
    TEXT("template", template_text, "", "text with {prompt} in it; empty: the prompt as it is"),
    TEXT("few_shot", few_shot, "", "text before the rendered template"),
    TEXT("checker", checker, "", "overrides the task's own"),
};
const int ifl_config_n_source_rows =
    (int)(sizeof ifl_config_source_rows / sizeof *ifl_config_source_rows);

static int row_find(const ifl_config_row *rows, int n_rows, const char *key) {
    for (int i = 0; i < n_rows; i++)
        if (!strcmp(rows[i].key, key)) return i;
    return -1;
}

int ifl_config_row_find(const char *key) {
    return row_find(ifl_config_rows, ifl_config_n_rows, key);
}

int ifl_config_source_row_find(const char *key) {
    return row_find(ifl_config_source_rows, ifl_config_n_source_rows, key);
}

#define NEAR_KEY_MAX 64

/* Levenshtein distance, or more than `most` when it is more; long keys are not worth a suggestion.
 */
static size_t edit_distance(const char *a, const char *b, size_t most) {
    size_t n = strlen(a), m = strlen(b);
    if (n > NEAR_KEY_MAX || m > NEAR_KEY_MAX || n > m + most || m > n + most) return most + 1;
    size_t row[NEAR_KEY_MAX + 1];
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0], least = i;
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
            if (best < least) least = best;
        }
        if (least > most) return most + 1;
    }
    return row[m];
}

const char *ifl_config_near(const ifl_config_row *rows, int n_rows, const char *key) {
    const char *best = NULL;
    size_t best_distance = strlen(key) / 4 + 1;
    if (best_distance > 4) best_distance = 4;
    for (int i = 0; i < n_rows; i++) {
        size_t d = edit_distance(key, rows[i].key, best_distance);
        if (d <= best_distance && (!best || d < best_distance)) {
            best = rows[i].key;
            best_distance = d;
        }
    }
    if (best) return best;
    /* The right name in the wrong section, or without one. */
    const char *tail = strrchr(key, '.');
    tail = tail ? tail + 1 : key;
    for (int i = 0; i < n_rows; i++) {
        const char *row_tail = strrchr(rows[i].key, '.');
        row_tail = row_tail ? row_tail + 1 : rows[i].key;
        if (!strcmp(tail, row_tail)) return rows[i].key;
    }
    return NULL;
}
