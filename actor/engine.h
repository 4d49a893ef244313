/* The generation engine: continuous batching over a paged KV cache, exact log-probs, weights swapped
 * between two decode steps. One thread calls it (it uses a thread pool inside). In-process: `generate`,
 * `eval`, `bench`, `parity` and the actor process all drive this one object. */
#ifndef IFL_ACTOR_ENGINE_H
#define IFL_ACTOR_ENGINE_H

#include "common/config.h"
#include "common/tokenizer.h"
#include "common/trajectory.h"
#include "kernels/model.h"

typedef struct ifl_engine ifl_engine;

typedef struct ifl_engine_options {
    int32_t sequences_max;        /* decoded together */
    int32_t kv_tokens;            /* KV capacity */
    int32_t page_tokens;
    int32_t prefill_chunk_tokens; /* most prefill or rebuild rows per step */
    ifl_kv_mode kv_mode;
    uint64_t seed;                /* of the run */
} ifl_engine_options;

/* Borrows model, pool, tokenizer (needed for stop strings; may be NULL without them). */
ifl_status ifl_engine_create(ifl_engine **out, const ifl_model *model, const ifl_tokenizer *tokenizer,
                             const ifl_engine_options *options, ifl_thread_pool *pool,
                             const ifl_ops *ops, ifl_error *err);
void ifl_engine_free(ifl_engine *engine);

/* A group: n_samples trajectories of one prompt, whose prefill they share. */
typedef struct ifl_engine_request {
    uint64_t task_serial;
    uint64_t lease_id;
    const char *task_id;
    uint8_t purpose;
    const int32_t *prompt;
    int32_t n_prompt;
    int32_t n_samples;            /* group size */
    const int32_t *samples;       /* which samples of the group [n_samples_now]; NULL = 0..n_samples-1 */
    int32_t n_samples_now;
    ifl_sampling sampling;
    int32_t max_new_tokens;
    int32_t n_stops;
    const char *const *stops;     /* stop strings */
    bool ignore_eos;
    void *user;                   /* given back with each finished trajectory */
    /* [n_samples_now], NULL without: the beginnings of samples that another engine has handed back
     * (ifl_engine_take_live). They go on from where they are, on KV that is rebuilt here, and end with the
     * tokens and log-probs that they would have had there. Those taken over are set to NULL. */
    ifl_trajectory **begun;
} ifl_engine_request;

/* Whether a beginning can go on here as `sample` of this request: its prompt, sampling and seed are the
 * request's, it has sampled something and may sample more, of no version newer than the engine's.
 * IFL_MISMATCH says what is wrong. */
ifl_status ifl_engine_check_begun(const ifl_engine *engine, const ifl_engine_request *request, int32_t sample,
                                  const ifl_trajectory *begun, ifl_error *err);

/* Queues a group. Truncated sampling (top-k, top-p) records what each token was drawn from (trajectory.h), unless
 * max_new_tokens times the largest set is above IFL_KEPT_IDS_MAX: such answers can be read, not trained on, and
 * ifl_config_check_training refuses to ask for them. IFL_LIMIT when it can never fit (prompt + max_new_tokens against positions and KV). */
ifl_status ifl_engine_submit(ifl_engine *engine, const ifl_engine_request *request, ifl_error *err);

/* Drops all sequences of a lease, running or queued. Returns how many. */
int32_t ifl_engine_cancel(ifl_engine *engine, uint64_t lease_id);

/* Sets the weights that new work uses; takes effect before the next step. Borrows `weights` until
 * ifl_engine_oldest_version() > the version they carry. First call: before any step.
 * keep: every sequence goes on under the new weights with its KV as it is.
 * recompute: each sequence decodes on under its old weights until its KV is rebuilt under the new ones
 * (in fresh pages, chunk by chunk, shared prompt once per group), then flips. Only one older version may
 * be in use: IFL_AGAIN while sequences of a version before the current one still live. */
ifl_status ifl_engine_swap(ifl_engine *engine, const ifl_weights *weights, ifl_error *err);

int64_t ifl_engine_version(const ifl_engine *engine);        /* newest given */
int64_t ifl_engine_oldest_version(const ifl_engine *engine); /* oldest any live sequence still uses */

/* One step: admit, prefill and rebuild within the chunk budget, decode every running sequence by one
 * token. *n_decoded = tokens sampled. IFL_OK with 0 and idle() true when there is nothing to do. */
ifl_status ifl_engine_step(ifl_engine *engine, int32_t *n_decoded, ifl_error *err);

/* Takes one finished trajectory (owned by the caller) or NULL. */
ifl_trajectory *ifl_engine_take_finished(ifl_engine *engine, void **user);

/* Takes a sequence that is not finished out of the engine, as far as it has come (finish ABORTED; owned by
 * the caller; perhaps without one sampled token), or NULL when there is none. Between two steps. */
ifl_trajectory *ifl_engine_take_live(ifl_engine *engine, void **user);

/* A view of a live sequence, NULL when there is none; valid until the next call on this engine. */
const ifl_trajectory *ifl_engine_peek(const ifl_engine *engine, uint64_t task_serial, int32_t sample);

bool ifl_engine_idle(const ifl_engine *engine);
int32_t ifl_engine_running(const ifl_engine *engine);  /* sequences in the batch */
int32_t ifl_engine_queued(const ifl_engine *engine);   /* sequences not yet admitted, parked ones included */

/* Parks a running sequence (its KV is freed; it resumes by re-prefill, exactly as after preemption). The
 * scheduler does the same by itself when pages run out: youngest first. For tests and drains. */
ifl_status ifl_engine_park(ifl_engine *engine, uint64_t task_serial, int32_t sample, ifl_error *err);

typedef struct ifl_engine_stats {
    int64_t steps, tokens_decoded, tokens_prefilled, tokens_rebuilt, tokens_shared;
    int64_t swaps, sequences_swapped;  /* sequences that span a swap */
    int64_t preemptions;
    double decode_s, prefill_s, rebuild_s, sample_s;
    double swap_stall_ms_last;         /* time between two decode steps that the swap itself took */
    double step_ms_last;
    int32_t pages_used, pages_total;
} ifl_engine_stats;
void ifl_engine_stats_get(const ifl_engine *engine, ifl_engine_stats *out);

int64_t ifl_engine_bytes(const ifl_model *model, const ifl_engine_options *options, int n_threads);

#endif
