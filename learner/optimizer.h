/* AdamW on f32 masters, and the bf16 weights that are published from them.
 *
 * The masters are the truth; what actors and the learner's own forward use is each master rounded
 * once to bf16. Every array is in the model's canonical flat order. Threads split that order at
 * fixed chunk borders and the norm is added chunk by chunk in order, so that the thread count
 * decides no bit. */
#ifndef IFL_LEARNER_OPTIMIZER_H
#define IFL_LEARNER_OPTIMIZER_H

#include "kernels/model.h"

typedef struct ifl_optimizer ifl_optimizer;

/* Learning rate of update t = 1, 2, ...: rate * min(1, t / warmup_steps) * shape(t), where shape is
 * 1 (constant) or max(final_ratio, 1 - (t - 1) / total_steps) (linear). */
typedef enum { IFL_SCHEDULE_CONSTANT, IFL_SCHEDULE_LINEAR } ifl_schedule;

typedef struct ifl_optimizer_options {
    double learning_rate; /* >= 0; 0 is allowed (a control) and changes no weight */
    double beta1, beta2;  /* [0, 1) */
    double eps;           /* > 0 */
    double
        weight_decay; /* decoupled, on matrices only: norms and biases have no reason to shrink */
    double grad_clip; /* global norm; 0 = off */
    int64_t warmup_steps; /* 0 = none */
    ifl_schedule schedule;
    int64_t total_steps; /* linear */
    double final_ratio;  /* linear */
} ifl_optimizer_options;

typedef struct ifl_optimizer_report {
    double grad_norm;     /* before clipping, trainable parameters */
    double grad_scale;    /* what clipping multiplied by; 1 = untouched */
    double learning_rate; /* of this update */
    int64_t n_updates;    /* t after the call */
    int64_t n_refused;    /* since creation */
} ifl_optimizer_report;

/* Borrows model, pool and ops. Masters and moments start at zero: fill the masters with one of the
 * functions below, or by ifl_checkpoint_load. */
ifl_status ifl_optimizer_create(ifl_optimizer **out, const ifl_model *model,
                                const ifl_optimizer_options *options, ifl_thread_pool *pool,
                                const ifl_ops *ops, ifl_error *err);
void ifl_optimizer_free(ifl_optimizer *optimizer); /* NULL is fine */
int64_t ifl_optimizer_bytes(const ifl_model *model);

/* Masters = the weights' bf16 values, widened; moments and the update count = 0. */
void ifl_optimizer_start(ifl_optimizer *optimizer, const ifl_weights *weights);

/* One update from gradients of a loss that is minimised ([n_elements], canonical; borrowed,
 * unchanged). A gradient with a NaN or an infinity is refused: IFL_LIMIT naming the first tensor
 * and element, nothing changes but n_refused, and *report (may be NULL) is still filled. Frozen
 * parameters never move. */
ifl_status ifl_optimizer_step(ifl_optimizer *optimizer, const float *gradients,
                              ifl_optimizer_report *report, ifl_error *err);

/* Writes the rounded masters into `weights` (fresh or recycled) and stamps them with `version`. */
void ifl_optimizer_publish(ifl_optimizer *optimizer, ifl_weights *weights, int64_t version);

/* The masters rounded now, canonical, [n_elements]; valid until the next call. For export: takes
 * memory that training does without, 2 bytes an element, when first called. NULL: out of memory. */
const uint16_t *ifl_optimizer_bf16(ifl_optimizer *optimizer);

/* State, for checkpoints; canonical, [n_elements] each. After writing to them call
 * ifl_optimizer_refresh with the number of updates that they stand for. */
float *ifl_optimizer_masters(ifl_optimizer *optimizer);
float *ifl_optimizer_moment1(ifl_optimizer *optimizer);
float *ifl_optimizer_moment2(ifl_optimizer *optimizer);
int64_t ifl_optimizer_updates(const ifl_optimizer *optimizer);
void ifl_optimizer_refresh(ifl_optimizer *optimizer, int64_t n_updates);

/* Learning rate of update t under these options. Pure. */
double ifl_optimizer_rate(const ifl_optimizer_options *options, int64_t t);

/* Checks the ranges above. */
ifl_status ifl_optimizer_options_check(const ifl_optimizer_options *options, ifl_error *err);

#endif
