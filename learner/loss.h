/* Policy losses as per-token coefficients, and the statistics of off-policyness.
 *
 * Sign: L is MINIMISED. A coefficient is c_i = dL/d(log p_i), so that ifl_trainer_backward, which
 * adds sum_i c_i * d(log p_i)/d(theta), leaves dL/d(theta) in the gradient buffer, and
 * ifl_optimizer_step walks against it. A token with positive advantage therefore has a negative
 * coefficient.
 *
 * Notation, per token: mu = recorded log-prob's probability (the policy version that sampled the
 * token, whatever mode the run is in), p = this step's fresh forward, w = exp(log p - log mu), A
 * the trajectory's advantage, lw the token's loss weight (1 for policy tokens), sg = stop-gradient.
 *
 *   reinforce  L = -(1/B) sum_i sum_t lw sg(min(w, cap)) A log p        c = -(lw/B) min(w, cap) A
 *              cap 5. No std, no length norm, no KL. (truncated importance sampling: PipelineRL,
 *              arXiv 2509.19128; Ionides 2008)
 *   grpo       L = -(1/B) sum_i (1/L_i) sum_t lw min(w A, clip(w, 1 - low, 1 + high) A)
 *              low = high = 0.2. No KL term. (arXiv 2402.03300 eq. 3 with w in place of its ratio)
 *   dr_grpo    L = -(1/B) sum_i (1/L_max) sum_t lw min(w A, clip(w, 1 - low, 1 + high) A)
 *              L_max = the run's max_new_tokens, a constant; low = high = 0.2. (arXiv 2503.20783)
 *   dapo       L = -(1/N) sum_i sum_t lw min(w A, clip(w, 1 - low, 1 + high) A)
 *              low 0.2, high 0.28. (arXiv 2503.14476 eq. 8)
 *
 * For the last three c = -norm lw w A where the unclipped branch is the smaller one (A > 0:
 * w <= 1 + high; A < 0: w >= 1 - low), else 0: the derivative that automatic differentiation gives.
 * low and high come from the configuration; the figures above are the papers'.
 *
 *   B    trajectories of the step whose status trains, in groups that were not skipped; those with
 *        advantage 0 are counted, although they need no forward and no backward.
 *   L_i  loss tokens (loss weight != 0) of trajectory i.
 *   N    loss tokens of the step. For dapo: of the groups whose rewards differ, since its sampling
 *        filters the others out; their members with advantage 0 are counted.
 *
 * A *foreign* token was recorded by an actor of another numerics profile (parity.mismatch: admit).
 * mu is then that actor's probability and w carries the mismatch beside the lag; in all four losses
 * w is cut at `cap` before anything else, so that no token weighs more than that. They are counted,
 * with figures of their own.
 *
 * A length-cut trajectory trains like any other in all four: its reward says what it is worth. */
#ifndef IFL_LEARNER_LOSS_H
#define IFL_LEARNER_LOSS_H

#include "common/config.h"
#include "kernels/model.h"

#define IFL_LOSS_IMPORTANCE_CAP 5.0
#define IFL_LOSS_CLIP 0.2 /* grpo, dr_grpo: both sides; dapo: lower side */
#define IFL_LOSS_CLIP_HIGH_DAPO 0.28
/* |log p - log mu| is cut here before exp, so that w and w^2 stay finite; counted. */
#define IFL_LOSS_LOG_RATIO_MAX 60.0

/* The ranges are those of the configuration's keys, which are checked where it is read. */
typedef struct ifl_loss_options {
    ifl_loss_kind kind;
    double importance_cap;      /* reinforce, and foreign tokens of all; > 0 */
    double clip_low, clip_high; /* the others; 0 <= low <= 1, high >= 0 */
    int32_t max_new_tokens;     /* dr_grpo's L_max; >= 1 */
} ifl_loss_options;

/* The constants of one optimizer step, known before its first pack. */
typedef struct ifl_loss_counts {
    int64_t n_trajectories; /* B; >= 1 */
    int64_t n_loss_tokens;  /* N; >= 1 for dapo */
} ifl_loss_counts;

/* Tokens of one pack, columns of n; all borrowed. */
typedef struct ifl_loss_tokens {
    int32_t n;
    const ifl_logprob *logprobs;     /* fresh: log p and entropy */
    const float *behaviour_logprobs; /* recorded: log mu */
    const float *advantages;
    const float *loss_weights;
    const int32_t *trajectory_tokens; /* L_i of the token's trajectory, >= 1 */
    const int64_t *versions;          /* that sampled each token; NULL: no lag statistics */
    const uint8_t *foreign;           /* 1: recorded under another numerics profile; NULL: none */
} ifl_loss_tokens;

/* Sums over the tokens seen in a step; ifl_loss_report_get makes means of them. Zero-initialise. */
typedef struct ifl_loss_sums {
    int64_t n_tokens, n_clipped_low, n_clipped_high, n_ratio_cut, n_non_finite, n_exact;
    double loss, w, w2, w_max, abs_log_ratio, abs_log_ratio_max, k3, entropy, lag;
    int64_t lag_max;
    struct {
        int64_t n_tokens;
        double w, w2, k3, weight;
    } foreign;
} ifl_loss_sums;

/* Of the foreign share alone. */
typedef struct ifl_loss_foreign {
    int64_t n_tokens;
    double weight_mean; /* that was applied, after cap and clip; 1 when there are none */
    double ess, k3;     /* as below, before any clamp */
} ifl_loss_foreign;

typedef struct ifl_loss_report {
    int64_t n_tokens;
    double loss; /* L, summed over the packs */
    double ess;  /* (sum w)^2 / (n sum w^2), before any clamp; 1 when n = 0 */
    double ratio_mean, ratio_max;
    /* Shares of tokens whose gradient was cut. reinforce: high = w > cap, low = 0; the others:
     * low = A < 0 and w < 1 - low, high = A > 0 and w > 1 + high. */
    double clip_low, clip_high;
    double abs_log_ratio_mean, abs_log_ratio_max;
    double k3;      /* mean of w - 1 - log w over tokens drawn from mu: estimates
                     * KL(mu || p), never negative (Schulman 2020) */
    double entropy; /* nats, mean */
    double lag_mean;
    int64_t lag_max;
    double exact_share;   /* tokens with log p == log mu, bit for bit */
    int64_t n_non_finite; /* tokens with a log-prob that is NaN or infinite */
    ifl_loss_foreign foreign;
} ifl_loss_report;

/* Writes coefficients[n] = dL/d(log p) and adds to `sums`. `step` is s in lag = (s - 1) - version.
 * A non-finite log-prob gives a NaN coefficient (so the optimizer refuses the step), is counted,
 * and stays out of the other sums. Arithmetic in double, tokens ascending. Pure. */
void ifl_loss_coefficients(const ifl_loss_options *options, const ifl_loss_counts *counts,
                           const ifl_loss_tokens *tokens, int64_t step, float *coefficients,
                           ifl_loss_sums *sums);

ifl_loss_report ifl_loss_report_get(const ifl_loss_sums *sums);

/* The foreign share's figures alone: over a step, or over a run whose steps' sums were added. */
ifl_loss_foreign ifl_loss_foreign_get(const ifl_loss_sums *sums);
void ifl_loss_foreign_add(ifl_loss_sums *to, const ifl_loss_sums *from);

#endif
