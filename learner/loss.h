/* Policy losses as per-token coefficients, and the statistics of off-policyness.
 *
 * Sign: L is MINIMISED. A coefficient is c_i = dL/d(log p_i), so that ifl_trainer_backward, which
 * adds sum_i c_i * d(log p_i)/d(theta), leaves dL/d(theta) in the gradient buffer, and
 * ifl_optimizer_step walks against it. A token with positive advantage therefore has a negative
 * coefficient.
 *
 * Notation, per token: mu = recorded log-prob's probability (the policy version that sampled the
 * token, whatever mode the run is in), p = this step's fresh forward, q = the proximal policy (p as
 * it was before this step's first update: the same number, a constant, while a step has one
 * update), A the trajectory's advantage, lw the token's loss weight (1 for policy tokens), sg =
 * stop-gradient. Sums over t run over the tokens of trajectory i, over i over the step's B
 * trajectories; L_i = loss tokens (lw != 0) of trajectory i, N = of the step.
 *
 * The ratio is r = p/mu without a correction: it then carries lag and all else. With one it is r =
 * p/q, and the correction's weight M, a function of k = q/mu, multiplies the token's term.
 *
 *   reinforce      L = -(1/B) sum_i sum_t lw sg(min(r, cap)) A log p              cap 5
 *                  Truncated importance sampling, no std, no length norm (PipelineRL, arXiv
 *                  2509.19128; Ionides 2008)
 *   rloo           L = -(1/B) sum_i sum_t lw A log p          no ratio: lag is not corrected
 *                  (Ahmadian et al., arXiv 2402.14740; a correction may be added)
 *   grpo           L = -(1/B) sum_i (1/L_i) sum_t lw min(r A, clip(r, 1 - low, 1 + high) A)
 *                  0.2, 0.2 (arXiv 2402.03300 eq. 3)
 *   dr_grpo        the same with 1/L_max for 1/L_i, L_max = max_new_tokens; 0.2, 0.2 (2503.20783)
 *   dapo           L = -(1/N) sum_i sum_t lw min(r A, clip(r, 1 - low, 1 + high) A)
 *                  0.2, 0.28 (2503.14476 eq. 8)
 *   reinforce_pp   as dapo with 0.2, 0.2; advantages normalised over the step (REINFORCE++ with a
 *                  group baseline, 2501.03262)
 *   gspo           L = -(1/B) sum_i min(s A, clip(s, 1 - low, 1 + high) A), s = exp((1/L_i) sum_t
 *                  lw log r): one ratio for the whole answer; 3e-4, 4e-4 (2507.18071)
 *   cispo          L = -(1/N) sum_i sum_t lw sg(clip(r, 1 - low, 1 + high)) A log p
 *                  1 (off), 4 (2506.13585): no token loses its gradient
 *   decoupled_ppo  L = -(1/N) sum_i sum_t lw sg(q/mu) min(u A, clip(u, 1 - low, 1 + high) A), u =
 *                  p/q; 0.2, 0.2 (2110.00641; AReaL). Brings its own correction, takes no other.
 *   sapo           L = -(1/B) sum_i (1/L_i) sum_t lw f(r) A, f(r) = (4/tau) sigmoid(tau (r - 1)),
 *                  tau = 1.0 where A > 0, else 1.05 (2511.20347)
 *
 * Where a min or a clip is constant c = 0, as automatic differentiation gives; low and high are 1 -
 * and 1 + what the configuration says, or those above.
 *
 * Corrections M, from k = q/mu; products and means over a trajectory's loss tokens, log k cut at
 * +-20 for products (verl):
 *   tis_token      min(k, high)                                          high 2 (fengyao 2025)
 *   tis_sequence   min(prod k, high)                                     high 2 (verl)
 *   icepop         k if low <= k <= high, else 0                         0.5, 5 (2510.18855)
 *   mis_sequence   prod k if <= high, else 0                             high 3 (TRL)
 *   geometric      1 if low <= exp(mean log k) <= high, else 0           0.999, 1.001 (verl)
 *   k3             1 if mean(k - 1 - log k) <= high, else 0              high 0.01 (verl)
 *
 * dppo (2602.04879, as prime-rl has it): a token with A > 0 and p - mu > dppo_high, or A <= 0 and p
 * - mu < -dppo_low, gets no policy term (a difference of probabilities, not a ratio).
 *
 * KL to a reference, kl.in = loss: + kl_coef sum of lw K with the policy term's norm (gspo: 1/B
 * 1/L_i). With d = log p - log ref, what it is and differentiates to:
 *   k1  d               dK = 1: zero in expectation, so as a loss it says and does nothing
 *   k2  d^2 / 2         dK = d: the gradient of KL(p || ref)
 *   k3  e^-d - 1 + d    dK = 1 - e^-d: the gradient of KL(ref || p)
 * (Schulman 2020; the derivatives are worked out here.) kl.in = reward: kl_coef sum_t K, with mu
 * for p, leaves the reward before advantages are taken (learner/step.c).
 *
 *   B    trajectories of the step whose status trains, in groups that were not skipped; those with
 *        advantage 0 are counted, although they need no forward and no backward.
 *   N    of the groups whose rewards differ, since DAPO's sampling filters the others out; their
 *        members with advantage 0 are counted. reinforce_pp, and with KL in the loss: of all groups
 *        that were not skipped.
 *
 * A *foreign* token was recorded by an actor of another numerics profile (parity.mismatch: admit).
 * mu is then that actor's probability and r, or k, carries the mismatch beside the lag; in all
 * losses it is cut at `cap` before anything else, so that no token weighs more than that. They are
 * counted, with figures of their own.
 *
 * A token of truncated sampling (rollout.top_k, top_p) has its recorded kept set for a vocabulary:
 * p, mu, q and the reference are all of softmaxes over that set, whatever the weights, and so are
 * the gradient, the entropy, KL's d and dppo's difference. What the sets leave out of the policy is
 * no business of the loss; the bias ledger measures it (learner/bias_ledger.h).
 *
 * A length-cut trajectory trains like any other in all of them, unless learner.truncated is mask:
 * its reward says what it is worth. */
#ifndef IFL_LEARNER_LOSS_H
#define IFL_LEARNER_LOSS_H

#include "common/config.h"
#include "kernels/model.h"

#define IFL_LOSS_IMPORTANCE_CAP 5.0
/* |log p - log mu| is cut here before exp, so that w and w^2 stay finite; counted. */
#define IFL_LOSS_LOG_RATIO_MAX 60.0

/* The ranges are those of the configuration's keys, which are checked where it is read. */
typedef struct ifl_loss_options {
    ifl_loss_kind kind;
    double importance_cap;                       /* reinforce, and foreign tokens of all; > 0 */
    double clip_low, clip_high;                  /* >= 0; resolved, see ifl_loss_options_of */
    int32_t max_new_tokens;                      /* dr_grpo's L_max; >= 1 */
    double sapo_tau_positive, sapo_tau_negative; /* > 0 */
    ifl_correction_kind correction;
    double correction_low, correction_high; /* resolved */
    double dppo_low, dppo_high;             /* <= 0: off */
    ifl_kl_estimator kl_estimator;
    double kl_coef; /* 0: no KL in the loss */
} ifl_loss_options;

/* What the configuration says, with each loss's and correction's own constants for the keys that
 * are left open (-1). */
ifl_loss_options ifl_loss_options_of(const ifl_config *config);

/* True for the losses that divide by N, else by B. */
bool ifl_loss_is_over_tokens(ifl_loss_kind kind);

/* The constants of one optimizer step, known before its first pack. */
typedef struct ifl_loss_counts {
    int64_t n_trajectories; /* B; >= 1 */
    int64_t n_loss_tokens;  /* N; >= 1 for the losses over tokens */
} ifl_loss_counts;

/* Tokens of one pack, columns of n; all borrowed. Those of one trajectory lie side by side, all in
 * one pack. */
typedef struct ifl_loss_tokens {
    int32_t n;
    const ifl_logprob *logprobs;     /* fresh: log p and entropy */
    const float *behaviour_logprobs; /* recorded: log mu */
    const float *proximal_logprobs;  /* log q; NULL: the fresh ones */
    const float *reference_logprobs; /* NULL: no KL */
    const float *advantages;
    const float *loss_weights;
    const int32_t *trajectory_tokens; /* L_i of the token's trajectory, >= 1 */
    const int32_t *trajectories;      /* equal numbers side by side: one trajectory */
    const int64_t *versions;          /* that sampled each token; NULL: no lag statistics */
    const uint8_t *foreign;           /* 1: recorded under another numerics profile; NULL: none */
} ifl_loss_tokens;

/* Sums over the tokens seen in a step; ifl_loss_report_get makes means of them. Zero-initialise. */
typedef struct ifl_loss_sums {
    int64_t n_tokens, n_clipped_low, n_clipped_high, n_ratio_cut, n_non_finite, n_exact;
    int64_t n_masked, n_kl; /* by a correction or dppo; with a reference */
    double correction, kl;
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
    double masked;          /* share of tokens without a policy term: correction 0, or dppo */
    double correction_mean; /* of M, masked ones included; 1 without a correction */
    double kl;              /* mean of K; 0 without a reference */
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

/* What each token's A d(log p) really is multiplied with (corrections, clips and masks in), norm
 * and loss weight aside: 0 for one that was dropped, NaN where a log-prob isn't finite. Unbiased
 * would be p/mu. */
void ifl_loss_weights(const ifl_loss_options *options, const ifl_loss_tokens *tokens,
                      double *weights);

/* K of `estimator` for log p - log ref = d, and (derivative not NULL) dK/d(log p). */
double ifl_loss_kl(ifl_kl_estimator estimator, double d, double *derivative);

ifl_loss_report ifl_loss_report_get(const ifl_loss_sums *sums);

/* The foreign share's figures alone: over a step, or over a run whose steps' sums were added. */
ifl_loss_foreign ifl_loss_foreign_get(const ifl_loss_sums *sums);
void ifl_loss_foreign_add(ifl_loss_sums *to, const ifl_loss_sums *from);

#endif
