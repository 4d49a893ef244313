/* How sure the bias ledger's means are: bootstrap intervals over whole answers, since the tokens of
 * one answer are not independent (Efron & Tibshirani 1993; resampled as in the Poisson bootstrap,
 * Oza & Russell 2001: an answer counts w times in a resample, w ~ Poisson(1), so that answers can
 * come one by one and in any order). The weights are keyed by the answer and the resample alone:
 * the same answers give the same intervals, in every process, and two runs are resampled alike.
 * Pure. */
#ifndef IFL_LEARNER_BIAS_INTERVAL_H
#define IFL_LEARNER_BIAS_INTERVAL_H

#include "learner/bias_ledger.h"

#define IFL_BIAS_RESAMPLES 1000

/* What one answer adds to each mean: to the entries, and behind them to those in the other order.
 */
typedef struct ifl_bias_part {
    uint64_t serial;
    int32_t sample;
    int64_t n; /* tokens; 0: a row of an earlier build, which does not say */
    struct {
        double log_r, k3, kl;
        int64_t n_kl;
    } means[IFL_BIAS_MEANS];
} ifl_bias_part;

/* Of a record that holds one trajectory. */
ifl_bias_part ifl_bias_part_of(const ifl_bias_record *one, uint64_t serial, int32_t sample);

/* The fields of its row, but for serial and sample; as ifl_bias_fields. */
void ifl_bias_part_fields(ifl_bias_part *part, ifl_bias_field_fn field, void *context);

/* Fills in *out from a row of kind "trajectory"; false when it is of another kind. */
bool ifl_bias_part_of_row(ifl_bias_part *out, const json_t *row);

typedef struct ifl_bias_bootstrap ifl_bias_bootstrap;
ifl_status ifl_bias_bootstrap_create(ifl_bias_bootstrap **out, ifl_error *err);
void ifl_bias_bootstrap_free(ifl_bias_bootstrap *bootstrap); /* NULL is fine */
void ifl_bias_bootstrap_reset(ifl_bias_bootstrap *bootstrap);
/* Parts without tokens are left out. */
void ifl_bias_bootstrap_add(ifl_bias_bootstrap *bootstrap, const ifl_bias_part *part);

/* Sets the record's intervals: the 2.5 % and 97.5 % quantiles over the resamples; NAN with fewer
 * than two answers. */
void ifl_bias_bootstrap_get(ifl_bias_bootstrap *bootstrap, ifl_bias_record *record);

#endif
