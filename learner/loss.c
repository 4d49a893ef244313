#include "learner/loss.h"

#include <math.h>
#include <string.h>

/* What the sum over a trajectory's tokens is multiplied with. */
static double loss_norm(const ifl_loss_options *options, const ifl_loss_counts *counts,
                        int32_t trajectory_tokens) {
    double per_trajectory = 1.0 / (double)counts->n_trajectories;
    switch (options->kind) {
    case IFL_LOSS_REINFORCE:
        return per_trajectory;
    case IFL_LOSS_GRPO:
        return per_trajectory / trajectory_tokens;
    case IFL_LOSS_DR_GRPO:
        return per_trajectory / options->max_new_tokens;
    case IFL_LOSS_DAPO:
        return 1.0 / (double)counts->n_loss_tokens;
    }
    return 0.0;
}

typedef struct token_term {
    double objective; /* what L is minus the normed sum of */
    double weight;    /* times A: the objective's derivative by log p */
    bool clipped_low, clipped_high;
} token_term;

static token_term reinforce_term(double cap, double w, double a, double logprob) {
    double truncated = w < cap ? w : cap;
    return (token_term){
        .objective = truncated * a * logprob, .weight = truncated, .clipped_high = w > cap};
}

/* min(w A, clip(w) A). The clipped branch is smaller, and constant, only on the side that A points
 * to. */
static token_term clipped_term(double low, double high, double w, double a) {
    if (a > 0.0 && w > 1.0 + high)
        return (token_term){.objective = (1.0 + high) * a, .clipped_high = true};
    if (a < 0.0 && w < 1.0 - low)
        return (token_term){.objective = (1.0 - low) * a, .clipped_low = true};
    return (token_term){.objective = w * a, .weight = w};
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

void ifl_loss_coefficients(const ifl_loss_options *options, const ifl_loss_counts *counts,
                           const ifl_loss_tokens *tokens, int64_t step, float *coefficients,
                           ifl_loss_sums *sums) {
    IFL_ASSERT(counts->n_trajectories >= 1);
    IFL_ASSERT(options->kind != IFL_LOSS_DAPO || counts->n_loss_tokens >= 1);
    for (int32_t i = 0; i < tokens->n; i++) {
        float p = tokens->logprobs[i].logprob, mu = tokens->behaviour_logprobs[i];
        if (!isfinite(p) || !isfinite(mu)) {
            coefficients[i] = NAN;
            sums->n_non_finite++;
            continue;
        }
        double log_ratio = (double)p - (double)mu;
        double distance = fabs(log_ratio);
        sums->n_exact += same_bits(p, mu);
        sums->abs_log_ratio += distance;
        sums->abs_log_ratio_max = fmax(sums->abs_log_ratio_max, distance);
        if (distance > IFL_LOSS_LOG_RATIO_MAX) {
            log_ratio = copysign(IFL_LOSS_LOG_RATIO_MAX, log_ratio);
            sums->n_ratio_cut++;
        }
        double w = exp(log_ratio), a = (double)tokens->advantages[i];
        bool foreign = tokens->foreign && tokens->foreign[i];
        double cut = foreign && w > options->importance_cap ? options->importance_cap : w;
        token_term term = options->kind == IFL_LOSS_REINFORCE
                              ? reinforce_term(options->importance_cap, w, a, (double)p)
                              : clipped_term(options->clip_low, options->clip_high, cut, a);
        double norm = loss_norm(options, counts, tokens->trajectory_tokens[i]) *
                      (double)tokens->loss_weights[i];
        coefficients[i] = (float)(-norm * (term.weight * a));

        sums->n_tokens++;
        sums->loss -= norm * term.objective;
        sums->n_clipped_low += term.clipped_low;
        sums->n_clipped_high += term.clipped_high;
        sums->w += w;
        sums->w2 += w * w;
        sums->w_max = fmax(sums->w_max, w);
        sums->k3 += w - 1.0 - log_ratio;
        if (foreign) {
            sums->foreign.n_tokens++;
            sums->foreign.w += w;
            sums->foreign.w2 += w * w;
            sums->foreign.k3 += w - 1.0 - log_ratio;
            sums->foreign.weight += term.weight;
        }
        sums->entropy += (double)tokens->logprobs[i].entropy;
        if (tokens->versions) {
            int64_t lag = step - 1 - tokens->versions[i];
            sums->lag += (double)lag;
            if (lag > sums->lag_max) sums->lag_max = lag;
        }
    }
}

ifl_loss_foreign ifl_loss_foreign_get(const ifl_loss_sums *sums) {
    ifl_loss_foreign f = {sums->foreign.n_tokens, 1.0, 1.0, 0.0};
    if (f.n_tokens == 0) return f;
    double n = (double)f.n_tokens;
    f.weight_mean = sums->foreign.weight / n;
    f.ess = sums->foreign.w * sums->foreign.w / (n * sums->foreign.w2);
    f.k3 = sums->foreign.k3 / n;
    return f;
}

void ifl_loss_foreign_add(ifl_loss_sums *to, const ifl_loss_sums *from) {
    to->foreign.n_tokens += from->foreign.n_tokens;
    to->foreign.w += from->foreign.w;
    to->foreign.w2 += from->foreign.w2;
    to->foreign.k3 += from->foreign.k3;
    to->foreign.weight += from->foreign.weight;
}

ifl_loss_report ifl_loss_report_get(const ifl_loss_sums *sums) {
    ifl_loss_report report = {
        .n_tokens = sums->n_tokens,
        .loss = sums->loss,
        .ess = 1.0,
        .ratio_max = sums->w_max,
        .abs_log_ratio_max = sums->abs_log_ratio_max,
        .lag_max = sums->lag_max,
        .n_non_finite = sums->n_non_finite,
    };
    report.foreign = ifl_loss_foreign_get(sums);
    if (sums->n_tokens == 0) return report;
    double n = (double)sums->n_tokens;
    report.ess = sums->w * sums->w / (n * sums->w2);
    report.ratio_mean = sums->w / n;
    report.clip_low = (double)sums->n_clipped_low / n;
    report.clip_high = (double)sums->n_clipped_high / n;
    report.abs_log_ratio_mean = sums->abs_log_ratio / n;
    report.k3 = sums->k3 / n;
    report.entropy = sums->entropy / n;
    report.lag_mean = sums->lag / n;
    report.exact_share = (double)sums->n_exact / n;
    return report;
}
