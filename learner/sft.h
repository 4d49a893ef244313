/* Supervised fine-tuning: the warm start before RL, and random initialisation of small policies.
 *
 * A fixed number of steps, never seconds; every draw is keyed by the seed; so the same
 * configuration gives the same bytes on any host with any number of threads. */
#ifndef IFL_LEARNER_SFT_H
#define IFL_LEARNER_SFT_H

#include "common/config.h"
#include "learner/optimizer.h"

/* --- A new policy
 * ----------------------------------------------------------------------------------- */

/* The architecture that config.model describes (model.family and the shape keys), for a vocabulary
 * of vocab_size tokens. bos_id or eos_id -1 = none. Checked. */
ifl_status ifl_init_model_config(ifl_model_config *out, const ifl_config *config,
                                 int32_t vocab_size, int32_t bos_id, int32_t eos_id,
                                 ifl_error *err);

/* Fills masters[n_elements]: embedding normal with deviation 0.5 (0.02 when the head is tied to
 * it), projections 1 / sqrt(inputs), those that write into the residual stream (o, down) half of
 * that, head 0.02, norm gains 1, biases 0. A pure function of (seed, shape). */
void ifl_init_masters(const ifl_model *model, uint64_t seed, float *masters);

/* --- Examples and batches
 * --------------------------------------------------------------------------- */

/* tokens: owned by the receiver, ifl_free(). The loss is on tokens [n_prompt, n_tokens). */
typedef struct ifl_sft_example {
    int32_t *tokens;
    int32_t n_tokens, n_prompt;
} ifl_sft_example;

/* Makes the example with running number `serial`: a pure function of it. */
typedef ifl_status (*ifl_sft_example_fn)(void *context, uint64_t serial, ifl_sft_example *out,
                                         ifl_error *err);

/* Length-bucketed batches: IFL_SFT_POOL examples are sorted by length, cut where (examples x
 * longest) would exceed batch_tokens, and the batches of the pool are taken in a keyed order; then
 * the next IFL_SFT_POOL. Padding is only counted, never computed: a pack has no padding. */
#define IFL_SFT_POOL 1024
typedef struct ifl_sft_batches ifl_sft_batches;

ifl_status ifl_sft_batches_create(ifl_sft_batches **out, int32_t batch_tokens, uint64_t seed,
                                  ifl_sft_example_fn example, void *context, ifl_error *err);
void ifl_sft_batches_free(ifl_sft_batches *batches); /* NULL is fine */

/* The next batch as a pack of at most batch_tokens rows, valid until the next call. An example that
 * is longer than batch_tokens is IFL_LIMIT; one without completion or context is IFL_FORMAT. */
ifl_status ifl_sft_batches_next(ifl_sft_batches *batches, ifl_pack *out, ifl_error *err);

/* --- The loop
 * --------------------------------------------------------------------------------------- */

typedef struct ifl_sft_progress {
    int64_t step, n_steps;
    double loss; /* mean -log p over this batch's target tokens, nats */
    double grad_norm, learning_rate;
    int64_t n_rows, n_targets; /* of this batch */
    int64_t tokens_total;      /* rows since the start */
    double seconds, tokens_per_s, eta_s;
} ifl_sft_progress;

/* Called after every step; anything but IFL_OK ends the run with that status. */
typedef ifl_status (*ifl_sft_progress_fn)(void *context, const ifl_sft_progress *progress,
                                          ifl_error *err);

typedef struct ifl_sft_options {
    int64_t n_steps;
    int32_t batch_tokens;
    int64_t activation_bytes; /* as ifl_trainer_create takes it */
    uint64_t seed;
} ifl_sft_options;

/* Trains the optimizer's masters for n_steps; forward and backward run on the rounded weights. The
 * optimizer (its schedule included) is the caller's; its masters must be filled. `weights` receives
 * every version and holds the last one, n_steps. */
ifl_status ifl_sft_run(const ifl_model *model, ifl_optimizer *optimizer, ifl_weights *weights,
                       const ifl_sft_options *options, ifl_sft_example_fn example,
                       void *example_context, ifl_sft_progress_fn progress, void *progress_context,
                       ifl_thread_pool *pool, const ifl_ops *ops, ifl_error *err);

#endif
