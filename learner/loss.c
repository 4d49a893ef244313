#include "learner/loss.h"

#include <math.h>
#include <string.h>

#define LOG_PRODUCT_MAX 20.0 /* of a product of k over a trajectory */

/* --- Constants -------------------------------------------------------------------------------- */

typedef struct bounds {
    double low, high;
} bounds;

static bounds loss_clips(ifl_loss_kind kind) {
    switch (kind) {
    case IFL_LOSS_DAPO:
        return (bounds){0.2, 0.28};
    case IFL_LOSS_GSPO:
        return (bounds){3e-4, 4e-4};
    case IFL_LOSS_CISPO:
        return (bounds){1.0, 4.0};
    default:
        return (bounds){0.2, 0.2};
    }
}

static bounds correction_bounds(ifl_correction_kind kind) {
    switch (kind) {
    case IFL_CORRECTION_ICEPOP:
        return (bounds){0.5, 5.0};
    case IFL_CORRECTION_MIS_SEQUENCE:
        return (bounds){0.0, 3.0};
    case IFL_CORRECTION_GEOMETRIC:
        return (bounds){0.999, 1.001};
    case IFL_CORRECTION_K3:
        return (bounds){0.0, 0.01};
    default:
        return (bounds){0.0, 2.0};
    }
}

ifl_loss_options ifl_loss_options_of(const ifl_config *config) {
    bounds clip = loss_clips(config->learner.loss),
           correction = correction_bounds(config->learner.correction);
    return (ifl_loss_options){
        .kind = config->learner.loss,
        .importance_cap = config->learner.importance_cap,
        .clip_low = config->learner.clip_low >= 0.0 ? config->learner.clip_low : clip.low,
        .clip_high = config->learner.clip_high >= 0.0 ? config->learner.clip_high : clip.high,
        .max_new_tokens = config->rollout.max_new_tokens,
        .sapo_tau_positive = config->learner.sapo_tau_positive,
        .sapo_tau_negative = config->learner.sapo_tau_negative,
        .correction = config->learner.correction,
        .correction_low =
            config->learner.correction_low >= 0.0 ? config->learner.correction_low : correction.low,
        .correction_high = config->learner.correction_high >= 0.0 ? config->learner.correction_high
                                                                  : correction.high,
        .dppo_low = config->learner.dppo_low,
        .dppo_high = config->learner.dppo_high,
        .kl_estimator = config->kl.estimator,
        .kl_coef = config->kl.in == IFL_KL_IN_LOSS ? config->kl.coef : 0.0,
    };
}

bool ifl_loss_is_over_tokens(ifl_loss_kind kind) {
    return kind == IFL_LOSS_DAPO || kind == IFL_LOSS_REINFORCE_PP || kind == IFL_LOSS_CISPO ||
           kind == IFL_LOSS_DECOUPLED_PPO;
}

/* What the sum over a trajectory's tokens is multiplied with. */
static double loss_norm(const ifl_loss_options *options, const ifl_loss_counts *counts,
                        int32_t trajectory_tokens) {
    if (ifl_loss_is_over_tokens(options->kind)) return 1.0 / (double)counts->n_loss_tokens;
    double per_trajectory = 1.0 / (double)counts->n_trajectories;
    switch (options->kind) {
    case IFL_LOSS_GRPO:
    case IFL_LOSS_GSPO:
    case IFL_LOSS_SAPO:
        return per_trajectory / trajectory_tokens;
    case IFL_LOSS_DR_GRPO:
        return per_trajectory / options->max_new_tokens;
    default:
        return per_trajectory;
    }
}

/* --- One token's term ------------------------------------------------------------------------- */

typedef struct token_term {
    double objective; /* what L is minus the normed sum of */
    double weight;    /* times A: the objective's derivative by log p */
    bool clipped_low, clipped_high;
} token_term;

/* min(w A, clip(w) A). The clipped branch is smaller, and constant, only on the side that A points
 * to. */
static token_term clipped_term(double low, double high, double w, double a) {
    if (a > 0.0 && w > 1.0 + high)
        return (token_term){.objective = (1.0 + high) * a, .clipped_high = true};
    if (a < 0.0 && w < 1.0 - low)
        return (token_term){.objective = (1.0 - low) * a, .clipped_low = true};
    return (token_term){.objective = w * a, .weight = w};
}

/* sg(w) A log p, w cut to [low, high]. */
static token_term weighted_term(double low, double high, double w, double a, double logprob) {
    double cut = w < low ? low : w > high ? high : w;
    return (token_term){.objective = cut * a * logprob,
                        .weight = cut,
                        .clipped_low = w<low, .clipped_high = w> high};
}

static token_term sapo_term(double tau, double w, double a) {
    double gate = 1.0 / (1.0 + exp(-tau * (w - 1.0)));
    return (token_term){.objective = 4.0 / tau * gate * a, .weight = 4.0 * gate * (1.0 - gate) * w};
}

static token_term loss_term(const ifl_loss_options *o, double w, double a, double logprob) {
    switch (o->kind) {
    case IFL_LOSS_REINFORCE:
        return weighted_term(0.0, o->importance_cap, w, a, logprob);
    case IFL_LOSS_RLOO:
        return weighted_term(0.0, (double)INFINITY, w, a, logprob);
    case IFL_LOSS_CISPO:
        return weighted_term(1.0 - o->clip_low, 1.0 + o->clip_high, w, a, logprob);
    case IFL_LOSS_SAPO:
        return sapo_term(a > 0.0 ? o->sapo_tau_positive : o->sapo_tau_negative, w, a);
    default:
        return clipped_term(o->clip_low, o->clip_high, w, a);
    }
}

double ifl_loss_kl(ifl_kl_estimator estimator, double d, double *derivative) {
    double k = d, dk = 1.0;
    if (estimator == IFL_KL_K2) {
        k = 0.5 * d * d;
        dk = d;
    } else if (estimator == IFL_KL_K3) {
        double inverse = exp(d < -IFL_LOSS_LOG_RATIO_MAX ? IFL_LOSS_LOG_RATIO_MAX : -d);
        k = inverse - 1.0 + d;
        dk = 1.0 - inverse;
    }
    if (derivative) *derivative = dk;
    return k;
}

/* --- One trajectory --------------------------------------------------------------------------- */

/* Logarithms of a token's ratios, cut where exp would overflow. */
typedef struct token_ratios {
    double behaviour; /* p/mu, for the statistics */
    double policy;    /* r */
    double off;       /* k */
    bool cut;
} token_ratios;

static double ratio_log(double log_ratio, bool *cut) {
    if (fabs(log_ratio) <= IFL_LOSS_LOG_RATIO_MAX) return log_ratio;
    *cut = true;
    return copysign(IFL_LOSS_LOG_RATIO_MAX, log_ratio);
}

static token_ratios token_ratios_of(const ifl_loss_options *o, const ifl_loss_tokens *tokens,
                                    int32_t i) {
    token_ratios r = {0};
    double p = (double)tokens->logprobs[i].logprob, mu = (double)tokens->behaviour_logprobs[i];
    double q = tokens->proximal_logprobs ? (double)tokens->proximal_logprobs[i] : p;
    double cap = tokens->foreign && tokens->foreign[i] ? log(o->importance_cap) : (double)INFINITY;
    bool corrected = o->correction != IFL_CORRECTION_NONE || o->kind == IFL_LOSS_DECOUPLED_PPO;
    r.behaviour = ratio_log(p - mu, &r.cut);
    if (corrected) {
        bool ignored = false;
        r.policy = ratio_log(p - q, &ignored);
        r.off = fmin(ratio_log(q - mu, &ignored), cap);
    } else {
        r.policy = fmin(r.behaviour, cap);
    }
    return r;
}

static bool token_finite(const ifl_loss_tokens *tokens, int32_t i) {
    return isfinite(tokens->logprobs[i].logprob) && isfinite(tokens->behaviour_logprobs[i]) &&
           (!tokens->proximal_logprobs || isfinite(tokens->proximal_logprobs[i])) &&
           (!tokens->reference_logprobs || isfinite(tokens->reference_logprobs[i]));
}

/* What a trajectory's tokens share. */
typedef struct sequence_figures {
    double policy_mean;  /* (1/L) sum lw log r */
    double off_sum;      /* sum log k of the loss tokens */
    double off_mean, k3; /* means of log k and of k - 1 - log k */
} sequence_figures;

static sequence_figures sequence_figures_of(const ifl_loss_options *o,
                                            const ifl_loss_tokens *tokens, int32_t begin,
                                            int32_t end) {
    sequence_figures f = {0};
    for (int32_t i = begin; i < end; i++) {
        if (tokens->loss_weights[i] == 0.0f || !token_finite(tokens, i)) continue;
        token_ratios r = token_ratios_of(o, tokens, i);
        f.policy_mean += (double)tokens->loss_weights[i] * r.policy;
        f.off_sum += r.off;
        f.k3 += exp(r.off) - 1.0 - r.off;
    }
    double n = tokens->trajectory_tokens[begin];
    f.policy_mean /= n;
    f.off_mean = f.off_sum / n;
    f.k3 /= n;
    return f;
}

static double sequence_product(const sequence_figures *f) {
    return exp(f->off_sum > LOG_PRODUCT_MAX    ? LOG_PRODUCT_MAX
               : f->off_sum < -LOG_PRODUCT_MAX ? -LOG_PRODUCT_MAX
                                               : f->off_sum);
}

/* M of one token. */
static double correction_weight(const ifl_loss_options *o, const sequence_figures *f, double k) {
    double product;
    switch (o->correction) {
    case IFL_CORRECTION_TIS_TOKEN:
        return fmin(k, o->correction_high);
    case IFL_CORRECTION_TIS_SEQUENCE:
        return fmin(sequence_product(f), o->correction_high);
    case IFL_CORRECTION_ICEPOP:
        return k >= o->correction_low && k <= o->correction_high ? k : 0.0;
    case IFL_CORRECTION_MIS_SEQUENCE:
        product = sequence_product(f);
        return product <= o->correction_high ? product : 0.0;
    case IFL_CORRECTION_GEOMETRIC:
        return exp(f->off_mean) >= o->correction_low && exp(f->off_mean) <= o->correction_high
                   ? 1.0
                   : 0.0;
    case IFL_CORRECTION_K3:
        return f->k3 <= o->correction_high ? 1.0 : 0.0;
    case IFL_CORRECTION_NONE:
        break;
    }
    return o->kind == IFL_LOSS_DECOUPLED_PPO ? k : 1.0;
}

static bool dppo_masks(const ifl_loss_options *o, double p, double mu, double a) {
    if (a > 0.0) return o->dppo_high > 0.0 && exp(p) - exp(mu) > o->dppo_high;
    return o->dppo_low > 0.0 && exp(p) - exp(mu) < -o->dppo_low;
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

/* How one token counts, before norms. */
typedef struct token_weight {
    token_ratios ratios;
    token_term term;
    double m; /* the correction; 0: no policy term */
} token_weight;

static token_weight token_weigh(const ifl_loss_options *options, const ifl_loss_tokens *tokens,
                                int32_t i, const sequence_figures *sequence) {
    token_weight t = {.ratios = token_ratios_of(options, tokens, i)};
    double p = (double)tokens->logprobs[i].logprob, mu = (double)tokens->behaviour_logprobs[i];
    double a = (double)tokens->advantages[i];
    bool foreign = tokens->foreign && tokens->foreign[i];
    double r = exp(options->kind == IFL_LOSS_GSPO ? sequence->policy_mean : t.ratios.policy);
    if (options->kind == IFL_LOSS_RLOO && !foreign) r = 1.0;
    t.term = loss_term(options, r, a, p);
    t.m = correction_weight(options, sequence, exp(t.ratios.off));
    if (dppo_masks(options, p, mu, a)) t.m = 0.0;
    return t;
}

static float loss_token(const ifl_loss_options *options, const ifl_loss_counts *counts,
                        const ifl_loss_tokens *tokens, int64_t step, int32_t i,
                        const sequence_figures *sequence, ifl_loss_sums *sums) {
    float p = tokens->logprobs[i].logprob, mu = tokens->behaviour_logprobs[i];
    if (!token_finite(tokens, i)) {
        sums->n_non_finite++;
        return NAN;
    }
    token_weight weighed = token_weigh(options, tokens, i, sequence);
    token_ratios ratios = weighed.ratios;
    token_term term = weighed.term;
    double m = weighed.m, a = (double)tokens->advantages[i], w = exp(ratios.behaviour);
    bool foreign = tokens->foreign && tokens->foreign[i];
    double norm =
        loss_norm(options, counts, tokens->trajectory_tokens[i]) * (double)tokens->loss_weights[i];
    double coefficient = -norm * (m * term.weight * a), loss = -norm * m * term.objective;
    if (tokens->reference_logprobs) {
        double dk, k = ifl_loss_kl(options->kl_estimator,
                                   (double)p - (double)tokens->reference_logprobs[i], &dk);
        coefficient += norm * options->kl_coef * dk;
        loss += norm * options->kl_coef * k;
        sums->kl += k;
        sums->n_kl++;
    }

    double distance = fabs((double)p - (double)mu);
    sums->n_exact += same_bits(p, mu);
    sums->abs_log_ratio += distance;
    sums->abs_log_ratio_max = fmax(sums->abs_log_ratio_max, distance);
    sums->n_ratio_cut += ratios.cut;
    sums->n_tokens++;
    sums->loss += loss;
    sums->n_clipped_low += term.clipped_low;
    sums->n_clipped_high += term.clipped_high;
    sums->n_masked += m == 0.0;
    sums->correction += m;
    sums->w += w;
    sums->w2 += w * w;
    sums->w_max = fmax(sums->w_max, w);
    sums->k3 += w - 1.0 - ratios.behaviour;
    if (foreign) {
        sums->foreign.n_tokens++;
        sums->foreign.w += w;
        sums->foreign.w2 += w * w;
        sums->foreign.k3 += w - 1.0 - ratios.behaviour;
        sums->foreign.weight += m * term.weight;
    }
    sums->entropy += (double)tokens->logprobs[i].entropy;
    if (tokens->versions) {
        int64_t lag = step - 1 - tokens->versions[i];
        sums->lag += (double)lag;
        if (lag > sums->lag_max) sums->lag_max = lag;
    }
    return (float)coefficient;
}

/* Tokens [begin, returned) are one trajectory's. */
static int32_t trajectory_end(const ifl_loss_tokens *tokens, int32_t begin) {
    int32_t end = begin + 1;
    while (end < tokens->n && tokens->trajectories[end] == tokens->trajectories[begin])
        end++;
    return end;
}

void ifl_loss_weights(const ifl_loss_options *options, const ifl_loss_tokens *tokens,
                      double *weights) {
    for (int32_t begin = 0, end; begin < tokens->n; begin = end) {
        end = trajectory_end(tokens, begin);
        sequence_figures sequence = sequence_figures_of(options, tokens, begin, end);
        for (int32_t i = begin; i < end; i++) {
            weights[i] = (double)NAN;
            if (!token_finite(tokens, i)) continue;
            token_weight t = token_weigh(options, tokens, i, &sequence);
            weights[i] = t.m * t.term.weight;
        }
    }
}

void ifl_loss_coefficients(const ifl_loss_options *options, const ifl_loss_counts *counts,
                           const ifl_loss_tokens *tokens, int64_t step, float *coefficients,
                           ifl_loss_sums *sums) {
    IFL_ASSERT(counts->n_trajectories >= 1);
    IFL_ASSERT(!ifl_loss_is_over_tokens(options->kind) || counts->n_loss_tokens >= 1);
    for (int32_t begin = 0, end; begin < tokens->n; begin = end) {
        end = trajectory_end(tokens, begin);
        sequence_figures sequence = sequence_figures_of(options, tokens, begin, end);
        for (int32_t i = begin; i < end; i++)
            coefficients[i] = loss_token(options, counts, tokens, step, i, &sequence, sums);
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
    report.correction_mean = 1.0;
    if (sums->n_tokens == 0) return report;
    double n = (double)sums->n_tokens;
    report.masked = (double)sums->n_masked / n;
    report.correction_mean = sums->correction / n;
    if (sums->n_kl > 0) report.kl = sums->kl / (double)sums->n_kl;
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
