/* What a report shows, read from a run's folder: metrics.jsonl, ledger.jsonl, summary.json and
 * rollouts/.
 * Whatever is missing is left out: a run that is still going, or that failed, has a report too. */
#ifndef IFL_DEPLOY_CLI_REPORT_DATA_H
#define IFL_DEPLOY_CLI_REPORT_DATA_H

#include <jansson.h>

#include "deploy/cli/report_rollouts.h"
#include "learner/bias_ledger.h"

/* Metrics that have a place in the report; the order of IFL_REPORT_<id>. */
#define IFL_REPORT_METRICS(X)                                                                      \
    X(REWARD, "rl/reward")                                                                         \
    X(LAG, "stats/lag")                                                                            \
    X(LAG_MAX, "stats/max_lag")                                                                    \
    X(LENGTH, "completions/mean_length")                                                           \
    X(LENGTH_P95, "completions/p95_length")                                                        \
    X(LENGTH_MAX, "completions/max_length")                                                        \
    X(ESS, "rl/ess")                                                                               \
    X(ENTROPY, "rl/entropy")                                                                       \
    X(ACTOR_TOKENS, "throughput/actor_tokens_per_s")                                               \
    X(LEARNER_TOKENS, "throughput/learner_tokens_per_s")                                           \
    X(STALL_P50, "swap/stall_ms_p50")                                                              \
    X(STALL_P99, "swap/stall_ms_p99")                                                              \
    X(ZERO_VARIANCE, "rl/zero_variance_share")                                                     \
    X(TRUNCATED, "completions/truncated_share")                                                    \
    X(PARITY_CHECKED, "parity/tokens_checked")                                                     \
    X(PARITY_DIFFERING, "parity/tokens_differing")

typedef enum {
#define IFL_REPORT_ENUM(id, name) IFL_REPORT_##id,
    IFL_REPORT_METRICS(IFL_REPORT_ENUM)
#undef IFL_REPORT_ENUM
        IFL_REPORT_N_METRICS
} ifl_report_metric;

typedef struct ifl_report_step {
    int64_t step;
    double values[IFL_REPORT_N_METRICS]; /* NAN = not in the row */
} ifl_report_step;

typedef struct ifl_report_accuracy {
    int64_t n;
    double accuracy, low, high; /* NAN = unknown */
} ifl_report_accuracy;

typedef struct ifl_report_eval {
    int64_t step, version;
    ifl_report_accuracy all;
    ifl_report_accuracy sources[IFL_SOURCES_MAX]; /* as the data's sources */
    double avg_at_k, pass_at_k;                   /* NAN = unknown */
} ifl_report_eval;

#define IFL_REPORT_STEPS_MAX (1 << 20)
#define IFL_REPORT_SAMPLES 4
#define IFL_REPORT_SEGMENTS_MAX 64

/* A rollout to look at. The answer is cut where the version changes. */
typedef struct ifl_report_sample {
    int64_t step;
    char task_id[IFL_TASK_ID_MAX];
    uint64_t task_serial;
    int32_t n_answer;
    bool scored;
    double reward;
    const char *finish; /* static */
    bool has_lag;
    double lag_max;
    char *prompt; /* owned */
    int32_t n_segments;
    struct {
        char *text; /* owned */
        int64_t version;
    } segments[IFL_REPORT_SEGMENTS_MAX];
    bool cut; /* the answer is longer than what is shown */
} ifl_report_sample;

typedef struct ifl_report_lengths {
    int64_t step_from, step_to;
    int32_t *tokens; /* owned */
    size_t n, cap;
} ifl_report_lengths;

typedef struct ifl_report_data {
    char name[IFL_NAME_MAX];
    ifl_config *config; /* owned; NULL: unreadable */
    json_t *summary;    /* owned; NULL: none yet */
    ifl_report_step *steps;
    size_t n_steps, steps_cap;
    ifl_report_eval *evals;
    size_t n_evals, evals_cap;
    int32_t n_sources; /* of held-out tasks; further ones are left out */
    char sources[IFL_SOURCES_MAX][IFL_NAME_MAX];
    int64_t n_lines_skipped; /* of metrics.jsonl */
    ifl_bias_record bias;    /* of the run */
    int64_t n_bias_steps;    /* 0: no ledger.jsonl, or nothing in it */
    bool has_rollouts;
    ifl_rollout_balance balance;
    int64_t n_multi_version; /* trained trajectories of two or more versions */
    ifl_report_lengths first_lengths, last_lengths;
    int32_t n_first, n_last;
    ifl_report_sample first[IFL_REPORT_SAMPLES], last[IFL_REPORT_SAMPLES];
} ifl_report_data;

ifl_status ifl_report_data_load(ifl_report_data **out, const ifl_run_dir *run, ifl_error *err);
void ifl_report_data_free(ifl_report_data *data); /* NULL is fine */

/* A number of summary.json; `otherwise` when it is not there. */
double ifl_report_summary(const ifl_report_data *data, const char *key, double otherwise);

#endif
