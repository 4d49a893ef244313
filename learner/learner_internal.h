/* The learner's insides, shared by learner.c (its life: setup, the loop, one step), learner_train.c
 * (the groups of a step), learner_state.c (what a checkpoint holds besides weights), learner_eval.c
 * (evaluations and the gain between them) and learner_report.c (metrics, live status,
 * summary.json). Not for other files. */
#ifndef IFL_LEARNER_LEARNER_INTERNAL_H
#define IFL_LEARNER_LEARNER_INTERNAL_H

#include <jansson.h>

#include "common/metrics.h"
#include "common/rollout_ledger.h"
#include "common/status_line.h"
#include "learner/audit.h"
#include "learner/bias_interval.h"
#include "learner/bias_ledger.h"
#include "learner/dispatch.h"
#include "learner/dynamic_sampling.h"
#include "learner/eval_figures.h"
#include "learner/eval_results.h"
#include "learner/held_versions.h"
#include "learner/learner.h"
#include "learner/publisher.h"
#include "learner/step.h"
#include "learner/version_store.h"

#define IDLE_S 120.0 /* nothing from any actor for so long ends the run with an error */
#define OPEN_SERIALS_MAX 65536

/* What adds up over a run; kept in checkpoints. */
typedef struct run_totals {
    int64_t tokens_trained, tokens_backward, trajectories, n_multi_version, steps_refused;
    double ess_sum, lag_token_sum, reward_sum;
    int64_t ess_n, lag_max, n_steps;
    double accuracy_before, accuracy_after; /* NAN = not measured */
    int64_t n_foreign, tokens_foreign;      /* trained, of another numerics profile */
    ifl_loss_sums foreign;                  /* their weights: .foreign alone */
    int64_t guard_checked, guard_differing; /* learner/guard.h */
    ifl_sampling_counts sampling;           /* with dynamic sampling */
    int64_t steps_short;                    /* that reached its bound */
    double train_s;                         /* wall time of the training loop alone */
    double wall_s;                          /* of earlier processes of this run */
} run_totals;

typedef struct learner {
    const ifl_learner_options *options;
    const ifl_config *config;
    const ifl_model *model;
    ifl_thread_pool *pool;
    ifl_optimizer *optimizer;
    ifl_version_store *store;
    ifl_stepper *stepper;
    ifl_audit *audit;
    ifl_bias_options bias_options;
    ifl_bias_ledger *bias; /* NULL: none */
    ifl_bias_bootstrap *bias_bootstrap;
    ifl_held_versions bias_versions;
    ifl_metrics *bias_file;
    ifl_bias_record bias_step; /* of the last step; no tokens: none was scored */
    int64_t bias_alarms;
    ifl_server *server;
    ifl_publisher *publisher;
    ifl_version_archive *archive; /* NULL: none */
    ifl_task_set *train_set, *eval_set;
    ifl_rollout_log *log;
    ifl_dispatch *dispatch;
    ifl_metrics *metrics;
    ifl_status_line *line;
    ifl_status_view view;
    run_totals totals;
    ifl_sampling_counts sampling;  /* of the step; drawn 0: none, or without dynamic sampling */
    ifl_audit_counts audit_before; /* of earlier processes of this run, as the next */
    ifl_dispatch_stats desk_before;
    char run_uuid[33];
    uint64_t run_epoch;  /* of this process; with run_uuid the name of its history of versions */
    int64_t step;        /* finished */
    int64_t checkpoint;  /* newest one's step; -1 = none yet */
    bool checkpoint_due; /* the last one found no room on the disk */
    int32_t async_k;     /* lock-step modes: versions behind; -1 = pipeline */
    double started_s;
    json_t *evals;        /* array for summary.json */
    bool has_gain;        /* of this run's evaluations before and after, on the same tasks */
    ifl_eval_gain gain;   /* with has_gain */
    json_t *gain_sources; /* array for summary.json; NULL without has_gain */
    /* From a checkpoint. */
    uint64_t next_serial;
    uint64_t *open_serials;
    ifl_task_pick *open_picks; /* [n_open_serials]; NULL: their serials decide */
    char *pass_rates;          /* ifl_task_set_rates; NULL: none */
    int32_t n_open_serials;
    ifl_groups_counts counts;
    bool resumed;
    ifl_redo *redo; /* what the log says has happened since; NULL = nothing */
} learner;

/* Counts of the whole run: those of earlier processes and of this one. */
ifl_audit_counts learner_audit_counts(const learner *l);
ifl_dispatch_stats learner_desk_stats(const learner *l);

/* JSON text, to be freed; NULL = out of memory. */
char *learner_state(learner *l);
ifl_status learner_restore(learner *l, const char *text, ifl_error *err);

/* Greedy and sampled answers to the first n_tasks of the held-out tasks, recorded in metrics,
 * status and summary. `results` is zeroed, and to be cleared in any case. */
ifl_status learner_evaluate(learner *l, int32_t n_tasks, const char *when,
                            ifl_eval_results *results, double *accuracy, ifl_error *err);
/* The evaluations at both ends of a run ("before", "after") are kept, and the later one is
 * compared. */
ifl_status learner_evaluate_end(learner *l, const char *when, double *accuracy, ifl_error *err);

/* Scores the sampled ones of what step `step` trained; before the groups are given back. */
ifl_status learner_bias(learner *l, int64_t step, ifl_error *err);
ifl_status learner_bias_open(learner *l, ifl_error *err);
void learner_bias_close(learner *l);

void learner_update_view(learner *l, const ifl_step_report *r, double step_s);
ifl_status learner_metrics(learner *l, const ifl_step_report *r, double step_s, double wait_s,
                           double publish_s, ifl_error *err);
/* One line per group: what share of its answers was right, how long they were, and whether dynamic
 * sampling has passed it over. */
ifl_status learner_group_metrics(learner *l, ifl_group **groups, int32_t n, ifl_error *err);

/* What a step takes, and what becomes of it. */
typedef struct learner_batch {
    ifl_group **groups, **spare;   /* [n_max] */
    ifl_member_outcome **outcomes; /* [n_max][group_size] */
    bool *skipped;                 /* [n_max] */
    int32_t n, n_max;
    ifl_member_outcome *storage;
} learner_batch;

/* learner_train.c. Room for all that a step can take. To be cleared in any case. */
ifl_status learner_batch_create(learner_batch *batch, const ifl_config *config, ifl_error *err);
void learner_batch_clear(learner_batch *batch);

/* Takes the groups of a step and trains on them under `weights`; *wait_s: what it waited. */
ifl_status learner_train(learner *l, int64_t step, const ifl_weights *weights, learner_batch *batch,
                         double *wait_s, ifl_step_report *report, ifl_error *err);
/* end: "finished", "stopped" or "failed". */
ifl_status learner_summary(learner *l, const char *end, ifl_error *err);

#endif
