#include "learner/bias_interval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/rng.h"
#include "learner/eval_stats.h"

#define SEED 1
#define RNG_INDEX 2 /* 0 and 1 choose trajectories and positions */

typedef struct resample_sums {
    double log_r, k3, kl, n_kl;
} resample_sums;

struct ifl_bias_bootstrap {
    int64_t n_answers;
    int64_t n_kl[IFL_BIAS_MEANS]; /* not resampled: says which estimate stands */
    double n[IFL_BIAS_RESAMPLES];
    resample_sums sums[IFL_BIAS_MEANS][IFL_BIAS_RESAMPLES];
    double sorted[IFL_BIAS_RESAMPLES];
};

/* --- One answer
 * ------------------------------------------------------------------------------------- */

ifl_bias_part ifl_bias_part_of(const ifl_bias_record *one, uint64_t serial, int32_t sample) {
    ifl_bias_part part = {.serial = serial, .sample = sample, .n = one->n_tokens};
    for (int m = 0; m < IFL_BIAS_MEANS; m++) {
        const ifl_bias_sums *s = ifl_bias_mean_sums(one, m);
        part.means[m].log_r = s->log_r;
        part.means[m].k3 = s->k3;
        part.means[m].kl = s->kl;
        part.means[m].n_kl = s->n_kl;
    }
    return part;
}

void ifl_bias_part_fields(ifl_bias_part *part, ifl_bias_field_fn field, void *context) {
    field(context, "tokens", &part->n, NULL);
    for (int m = 0; m < IFL_BIAS_MEANS; m++) {
        char prefix[32], name[48];
        ifl_bias_mean_name(m, prefix);
        snprintf(name, sizeof name, "%s/kl_n", prefix);
        field(context, name, &part->means[m].n_kl, NULL);
        snprintf(name, sizeof name, "%s/log_r", prefix);
        field(context, name, NULL, &part->means[m].log_r);
        snprintf(name, sizeof name, "%s/k3", prefix);
        field(context, name, NULL, &part->means[m].k3);
        snprintf(name, sizeof name, "%s/kl", prefix);
        field(context, name, NULL, &part->means[m].kl);
    }
}

static void field_read(void *row, const char *name, int64_t *integer, double *real) {
    const json_t *value = json_object_get(row, name);
    if (integer)
        *integer = (int64_t)json_integer_value(value);
    else
        *real = json_number_value(value);
}

bool ifl_bias_part_of_row(ifl_bias_part *out, const json_t *row) {
    const char *kind = json_string_value(json_object_get(row, "kind"));
    if (!kind || strcmp(kind, "trajectory") != 0) return false;
    *out = (ifl_bias_part){.serial = (uint64_t)json_integer_value(json_object_get(row, "serial")),
                           .sample = (int32_t)json_integer_value(json_object_get(row, "sample"))};
    ifl_bias_part_fields(out, field_read,
                         (json_t *)(uintptr_t)row); /* jansson's getters take it so */
    return true;
}

/* --- Resampling
 * ------------------------------------------------------------------------------------- */

ifl_status ifl_bias_bootstrap_create(ifl_bias_bootstrap **out, ifl_error *err) {
    *out = ifl_alloc(1, sizeof **out);
    return *out ? IFL_OK : ifl_fail(err, IFL_NOMEM, "bias ledger: out of memory for intervals");
}

void ifl_bias_bootstrap_free(ifl_bias_bootstrap *b) {
    ifl_free(b);
}

void ifl_bias_bootstrap_reset(ifl_bias_bootstrap *b) {
    memset(b, 0, sizeof *b);
}

/* Poisson(1) by the inverse of its distribution function, of which these are floor(2^32 P(w <= k)).
 */
static int32_t poisson(uint32_t word) {
    static const uint32_t upto[13] = {0x5e2d58d8, 0xbc5ab1b1, 0xeb715e1d, 0xfb239797, 0xff1025f5,
                                      0xffd90f3b, 0xfffa8b71, 0xffff540c, 0xffffed1f, 0xfffffe21,
                                      0xffffffd4, 0xfffffffc, 0xffffffff};
    int32_t w = 0;
    while (w < 13 && word >= upto[w])
        w++;
    return w;
}

void ifl_bias_bootstrap_add(ifl_bias_bootstrap *b, const ifl_bias_part *part) {
    if (part->n < 1) return;
    ifl_rng_key key = {SEED, ifl_trajectory_stream(part->serial, part->sample, IFL_PURPOSE_TRAIN),
                       IFL_RNG_LEDGER};
    b->n_answers++;
    for (int m = 0; m < IFL_BIAS_MEANS; m++)
        b->n_kl[m] += part->means[m].n_kl;
    for (int r = 0; r < IFL_BIAS_RESAMPLES; r += 4) {
        uint32_t words[4];
        ifl_rng_words(&key, (uint64_t)r, RNG_INDEX, words);
        for (int i = 0; i < 4 && r + i < IFL_BIAS_RESAMPLES; i++) {
            double w = poisson(words[i]);
            if (w == 0.0) continue;
            b->n[r + i] += w * (double)part->n;
            for (int m = 0; m < IFL_BIAS_MEANS; m++) {
                resample_sums *s = &b->sums[m][r + i];
                s->log_r += w * part->means[m].log_r;
                s->k3 += w * part->means[m].k3;
                s->kl += w * part->means[m].kl;
                s->n_kl += w * (double)part->means[m].n_kl;
            }
        }
    }
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Resamples without a token, or a position, say nothing about the mean. */
static void interval_of(ifl_bias_bootstrap *b, int m, bool nats, double *low, double *high) {
    ifl_bias_estimate estimate = nats ? ifl_bias_estimate_of(m, b->n_kl[m]) : IFL_BIAS_BY_K1;
    int32_t n = 0;
    for (int r = 0; r < IFL_BIAS_RESAMPLES; r++) {
        const resample_sums *s = &b->sums[m][r];
        double over = estimate == IFL_BIAS_BY_KL ? s->n_kl : b->n[r];
        if (over <= 0.0) continue;
        b->sorted[n++] = estimate == IFL_BIAS_BY_KL   ? s->kl / over
                         : estimate == IFL_BIAS_BY_K3 ? s->k3 / over
                                                      : 0.0 - s->log_r / over;
    }
    *low = *high = (double)NAN;
    if (b->n_answers < 2 || n < 2) return;
    qsort(b->sorted, (size_t)n, sizeof *b->sorted, compare_doubles);
    *low = ifl_sorted_quantile(b->sorted, n, 0.025);
    *high = ifl_sorted_quantile(b->sorted, n, 0.975);
}

void ifl_bias_bootstrap_get(ifl_bias_bootstrap *b, ifl_bias_record *record) {
    record->n_resampled = b->n_answers;
    for (int m = 0; m < IFL_BIAS_MEANS; m++) {
        ifl_bias_interval *i = &record->intervals[m];
        interval_of(b, m, true, &i->nats_low, &i->nats_high);
        interval_of(b, m, false, &i->k1_low, &i->k1_high);
    }
}
