/* metrics.jsonl: one JSON object per line, {"kind": ..., "step": ..., "time_s": ..., name: value,
 * ...}. Names are free; those below are the ones this program writes, with PipelineRL's, prime-rl's
 * and TRL's spelling where one of them has the figure. Rows of kind "eval" have the figures of each
 * source as well: "eval/<source>/accuracy" and so on. Not thread-safe. */
#ifndef IFL_COMMON_METRICS_H
#define IFL_COMMON_METRICS_H

#include <jansson.h>

#include "common/status.h"

/* name, unit, meaning. Rows of kind "step" unless the meaning says another kind. */
#define IFL_METRICS(X)                                                                             \
    X("rl/reward", "", "mean reward of the step's trajectories")                                   \
    X("rl/reward_std", "", "its standard deviation")                                               \
    X("rl/loss", "", "policy loss")                                                                \
    X("rl/ess", "", "effective sample size over loss tokens, before the clamp, as a share")        \
    X("rl/entropy", "nats", "mean entropy of the policy at the step's loss tokens")                \
    X("rl/kl_new_old", "nats", "mean of w - 1 - log w, w = p / mu")                                \
    X("rl/mean_abs_log_ratio_new_old", "nats", "mean |log p - log mu|")                            \
    X("rl/ratio_new_old_max", "", "largest w")                                                     \
    X("rl/clamp_share", "", "share of loss tokens whose weight was cut")                           \
    X("rl/advantage", "", "mean advantage")                                                        \
    X("rl/zero_variance_share", "", "groups whose members all have the same reward")               \
    X("rl/reward_correct_length", "tokens", "mean answer length where the reward is positive")     \
    X("rl/reward_wrong_length", "tokens", "mean answer length elsewhere")                          \
    X("stats/lag", "versions", "mean lag of the step's loss tokens: (step - 1) - version")         \
    X("stats/max_lag", "versions", "largest lag of them")                                          \
    X("stats/min_actor_version", "version", "oldest version that an actor uses")                   \
    X("stats/max_actor_version", "version", "newest version that an actor uses")                   \
    X("stats/multi_version_share", "", "trajectories that span two or more versions")              \
    X("stats/samples", "trajectories", "trained so far")                                           \
    X("stats/tokens", "tokens", "trained so far")                                                  \
    X("stats/time_waiting_for_data", "s", "of the step")                                           \
    X("stats/queue/batches", "groups", "complete groups waiting")                                  \
    X("stats/masked", "trajectories", "of the step: left their group by their reward status")      \
    X("stats/groups_skipped", "groups", "of the step: fewer than two valid members")               \
    X("stats/actors", "actors", "live sessions that are theirs")                                   \
    X("stats/namesakes", "actors", "those of them that share their name with another")             \
    X("transport/rejected", "HELLOs", "refused: build, protocol, key, banned, full")               \
    X("transport/malformed", "messages", "that broke the format: damaged or hostile")              \
    X("transport/fenced", "messages", "of sessions that had ended")                                \
    X("transport/out_of_sequence", "messages", "lost ones before them, or said again")             \
    X("transport/refused", "trajectories", "that broke the rules of a trajectory or of its lease") \
    X("transport/keys_refused", "links", "with a key that is not on the list")                     \
    X("transport/links_refused", "links", "that ended before their handshake did")                 \
    X("completions/mean_length", "tokens", "answers of the step")                                  \
    X("completions/p95_length", "tokens", "answers of the step")                                   \
    X("completions/max_length", "tokens", "answers of the step")                                   \
    X("completions/truncated_share", "", "answers cut by the token limit")                         \
    X("throughput/actor_tokens_per_s", "tokens/s", "sampled by all actors")                        \
    X("throughput/learner_tokens_per_s", "tokens/s", "trained, over the whole step")               \
    X("throughput/sec_per_step", "s", "")                                                          \
    X("optim/grad_norm", "", "before clipping")                                                    \
    X("optim/lr", "", "learning rate of the step")                                                 \
    X("rl/masked_share", "share", "tokens without a policy term: correction or dppo")              \
    X("rl/correction_mean", "", "mean weight of learner.correction")                               \
    X("rl/kl", "nats", "mean estimate of KL to the reference, per token")                          \
    X("rl/kl_reward", "nats", "what kl.in = reward measured, per answer")                          \
    X("staleness/dropped", "answers", "left out for age")                                          \
    X("staleness/tokens_masked", "tokens", "left out for age, of answers that train")              \
    X("staleness/drawn_length", "tokens",                                                          \
      "mean of all judged answers, beside completions/mean_length")                                \
    X("swap/stall_ms_p50", "ms", "time between two decode steps that a swap took")                 \
    X("swap/stall_ms_p99", "ms", "the same")                                                       \
    X("swap/count", "swaps", "so far, all actors")                                                 \
    X("swap/patch_version", "version", "newest one made into a patch; the next three are its")     \
    X("swap/patch_bytes", "bytes", "what an actor fetches that has the version before")            \
    X("swap/patch_share", "share", "of all the weights' bytes")                                    \
    X("swap/changed_share", "share", "weights whose bf16 value is another")                        \
    X("swap/patch_ms", "ms", "comparing and coding, beside training")                              \
    X("actor/decode_step_ms_p50", "ms", "one decode step of a full batch")                         \
    X("actor/sequences", "trajectories", "being decoded, all actors")                              \
    X("parity/tokens_checked", "tokens", "re-scored so far")                                       \
    X("parity/tokens_differing", "tokens", "of those, log-probs with other bits")                  \
    X("bias/tokens", "tokens", "of the step: scored for the bias ledger (learner/bias_ledger.h)")  \
    X("bias/numerics_nats", "nats", "per token: recorded against replayed log-probs; 0")           \
    X("bias/truncation_nats", "nats", "the same: kept set against the whole vocabulary")           \
    X("bias/stale_kv_nats", "nats", "the same: KV as it was against KV of the token's version")    \
    X("bias/lag_nats", "nats", "the same: the token's version against the step's")                 \
    X("bias/total_nats", "nats", "the same: all of these together")                                \
    X("bias/total_ess", "", "effective sample size of the total, as a share")                      \
    X("bias/correction", "", "mean of p/mu less the weight that the loss uses")                    \
    X("bias/alarms", "alarms", "so far: ledger.budget_* exceeded, or numerics not 0")              \
    X("time/ledger", "s", "scoring for the bias ledger")                                           \
    X("time/step", "s", "wall time of the step")                                                   \
    X("time/wait_for_batch", "s", "learner idle: rollout-bound when high")                         \
    X("time/forward_backward", "s", "")                                                            \
    X("time/optimizer", "s", "")                                                                   \
    X("time/broadcast_weights", "s", "publication")                                                \
    X("time/save_checkpoint", "s", "")                                                             \
    X("memory/rss_gib", "GiB", "learner, resident")                                                \
    X("eval/accuracy", "", "kind eval: greedy, held-out, of a fixed version")                      \
    X("eval/accuracy_low", "", "kind eval: Wilson 95 % interval")                                  \
    X("eval/accuracy_high", "", "kind eval: Wilson 95 % interval")                                 \
    X("eval/n", "prompts", "kind eval")                                                            \
    X("eval/unscored", "prompts", "kind eval: checkers failed; in no other figure")                \
    X("eval/version", "version", "kind eval: the evaluated policy")                                \
    X("eval/train_s", "s", "kind eval: training time until then, evaluations not counted")         \
    X("eval/avg@k", "", "kind eval: mean over k samples at the training temperature")              \
    X("eval/pass@k", "", "kind eval: at least one of k")                                           \
    X("eval/pass@k_left_out", "prompts", "kind eval: fewer than k samples were judged")            \
    X("task/id", "", "kind group: the task")                                                       \
    X("task/pass_rate", "", "kind group: share of its trajectories with a positive reward")        \
    X("task/mean_length", "tokens", "kind group")

/* Unit and meaning of one of the names above; false when it is none of them. */
bool ifl_metric_describe(const char *name, const char **unit, const char **meaning);

typedef struct ifl_metrics ifl_metrics;

/* Opens for appending; a torn last line of a crashed run is closed off. Beyond `rotate_bytes` (0 =
 * 64 MiB) the file becomes <path>.1, .2, ... (ascending age order: .1 is the oldest) and a new one
 * begins. */
ifl_status ifl_metrics_open(ifl_metrics **out, const char *path, int64_t rotate_bytes,
                            ifl_error *err);
void ifl_metrics_close(ifl_metrics *metrics); /* NULL is fine */

/* One row: begin, any number of adds, end. A second add of a name replaces the first. Values that
 * are not finite are written as null. Adds never fail: what went wrong is told by the end. */
void ifl_metrics_begin(ifl_metrics *metrics, const char *kind, int64_t step);
void ifl_metrics_add(ifl_metrics *metrics, const char *name, double value);
void ifl_metrics_add_int(ifl_metrics *metrics, const char *name, int64_t value);
void ifl_metrics_add_text(ifl_metrics *metrics, const char *name, const char *text);
ifl_status ifl_metrics_end(ifl_metrics *metrics, ifl_error *err);

/* The value last written under a name, of any kind; `otherwise` when there is none. */
double ifl_metrics_last(const ifl_metrics *metrics, const char *name, double otherwise);

/* Calls `row` with each line, rotated files first; lines that are no JSON object are counted in
 * *n_skipped. `row` borrows; anything but IFL_OK from it ends the reading and is returned. */
ifl_status ifl_metrics_read(const char *path, ifl_status (*row)(const json_t *row, void *user),
                            void *user, int64_t *n_skipped, ifl_error *err);

#endif
