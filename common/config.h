/* One YAML file -> one struct. The table in config.c gives every key its type, range, unit, default and
 * one line of help; unknown keys are errors with line and column; `key=value` overrides use the same
 * table; the resolved configuration can be written back as YAML that reads to the same struct. */
#ifndef IFL_COMMON_CONFIG_H
#define IFL_COMMON_CONFIG_H

#include <stdio.h>

#include "common/status.h"

#define IFL_PATH_MAX 1024
#define IFL_NAME_MAX 128
#define IFL_SOURCES_MAX 16
#define IFL_STOPS_MAX 8
#define IFL_CHECKERS_BYTES_MAX 65536 /* of reward.checkers, with the NUL */

typedef enum { IFL_MODE_PIPELINE, IFL_MODE_SYNC, IFL_MODE_ASYNC } ifl_mode;
typedef enum { IFL_KV_MODE_KEEP, IFL_KV_MODE_RECOMPUTE } ifl_kv_mode;
typedef enum {
    IFL_LOSS_REINFORCE,
    IFL_LOSS_GRPO,
    IFL_LOSS_DR_GRPO,
    IFL_LOSS_DAPO,
    IFL_LOSS_RLOO,
    IFL_LOSS_REINFORCE_PP,
    IFL_LOSS_GSPO,
    IFL_LOSS_CISPO,
    IFL_LOSS_DECOUPLED_PPO,
    IFL_LOSS_SAPO,
} ifl_loss_kind;
typedef enum {
    IFL_CORRECTION_NONE,
    IFL_CORRECTION_TIS_TOKEN,
    IFL_CORRECTION_TIS_SEQUENCE,
    IFL_CORRECTION_ICEPOP,
    IFL_CORRECTION_MIS_SEQUENCE,
    IFL_CORRECTION_GEOMETRIC,
    IFL_CORRECTION_K3,
} ifl_correction_kind;
typedef enum { IFL_KL_K1, IFL_KL_K2, IFL_KL_K3 } ifl_kl_estimator;
typedef enum { IFL_KL_IN_LOSS, IFL_KL_IN_REWARD } ifl_kl_place;

/* A source of tasks: a JSONL file, or a procedural generator. */
typedef struct ifl_source_config {
    char name[IFL_NAME_MAX];      /* data_source of its tasks */
    char path[IFL_PATH_MAX];      /* JSONL; relative to the current folder; exclusive with generator */
    char generator[IFL_NAME_MAX]; /* ladder | sums */
    char split[32];               /* generator: train | heldout (disjoint by hash) */
    double ratio;                 /* share of this source among those listed */
    int64_t count;                /* generator: number of tasks, 0 = endless; file: first so many, 0 = all */
    int32_t digits;               /* sums: digits of both operands */
    int32_t steps_max;            /* ladder: longest chain k */
    char template_text[2048];     /* "{prompt}" stands for the task's text; empty: as it is */
    char few_shot[4096];          /* put before the rendered template */
    char checker[64];             /* overrides the task's own */
} ifl_source_config;

typedef struct ifl_config {
    int64_t config_version;

    struct { /* run */
        char name[IFL_NAME_MAX];
        char dir[IFL_PATH_MAX];  /* folder of all runs */
        int64_t seed;
        ifl_mode mode;           /* run.mode: pipeline | sync | async:K */
        int32_t async_k;
        int64_t steps;           /* optimizer steps */
        bool resume;
        bool overwrite;          /* an existing run folder of that name is moved aside, else an error */
    } run;

    struct { /* model */
        char path[IFL_PATH_MAX]; /* Hugging Face folder or GGUF; empty: init from the shape below */
        char numerics[8];        /* f32 | bf16: the numerics profile */
        char family[32];         /* llama | qwen2 | qwen3 | gemma3 */
        int32_t d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff, max_positions;
        double rope_theta;
        bool tied_head;
        char characters[1024];   /* init: the character tokenizer's alphabet */
    } model;

    struct { /* data */
        int32_t n_train, n_eval;
        ifl_source_config train[IFL_SOURCES_MAX];
        ifl_source_config eval[IFL_SOURCES_MAX];
        char sampler[32];        /* uniform | ratio | pass_rate */
        double pass_rate_min, pass_rate_max;
        char chat_format[32];    /* none | llama3 | chatml | gemma */
        int32_t prompt_tokens_max; /* longer prompts are refused, counted */
    } data;

    struct { /* rollout */
        int32_t prompts_per_step; /* groups of one optimizer step */
        int32_t group_size;       /* trajectories per prompt */
        bool dynamic_sampling;    /* learner/dynamic_sampling.h */
        int32_t dynamic_sampling_max; /* batches drawn for one step, at most */
        double temperature;
        int32_t top_k;
        double top_p;
        int32_t max_new_tokens;
        int32_t n_stops;
        char stops[IFL_STOPS_MAX][64]; /* stop strings; kept in the trajectory, cut from the answer */
    } rollout;

    struct { /* actor */
        int32_t count;            /* local actor processes that `train` starts */
        int32_t threads;          /* per actor; 0 = all CPUs it may use */
        int32_t sequences_max;    /* decoded together */
        int32_t drain_s;
        int32_t kv_tokens;        /* capacity of the KV cache, tokens */
        int32_t page_tokens;      /* 1 .. 1024, a power of two */
        int32_t prefill_chunk_tokens; /* most prompt or rebuild rows of one decode step */
        ifl_kv_mode kv;
        char cpus[64];            /* e.g. "1-3": pin; empty: none */
    } actor;

    struct { /* reward */
        char checker[64];         /* default checker of tasks that name none */
        int32_t workers;          /* processes per actor */
        int32_t timeout_ms;       /* per answer */
        char on_error[16];        /* mask | retry | fail */
        int32_t retries;          /* on_error retry: of one answer */
        double errors_max_share;  /* of failures among the last answers; beyond it the run ends */
        int32_t errors_window;    /* answers */
        char sandbox_require[16]; /* ns | cgroup: rewards/sandbox/sandbox.h */
        int32_t cache_mib;        /* of verdicts kept, per actor; 0 = none */
        char checkers[IFL_CHECKERS_BYTES_MAX]; /* JSON; rewards/spec.h says what it holds */
        char route[4096];         /* JSON: {data source: checker}; ifl_config_checker looks it up */
    } reward;

    struct { /* learner */
        int32_t threads;
        char cpus[64];
        ifl_loss_kind loss;
        double importance_cap;    /* reinforce, and foreign answers: w is cut at this */
        double clip_low, clip_high; /* -1: the loss's own; ifl_loss_options_of resolves */
        ifl_correction_kind correction;
        double correction_low, correction_high; /* -1: the correction's own */
        double dppo_low, dppo_high; /* 0 = off */
        double sapo_tau_positive, sapo_tau_negative;
        char truncated[8];        /* train | mask */
        int32_t overlong_tokens;  /* 0 = off */
        double learning_rate;
        int32_t warmup_steps;
        double final_ratio;       /* of learning_rate, at the last step */
        double beta1, beta2, adam_eps, weight_decay, grad_clip;
        int32_t pack_tokens;      /* rows of one pack */
        double activation_gib;    /* of a forward, kept for its backward */
        char control[16];         /* none | frozen | shuffled */
        int32_t groups_in_flight; /* 0: from prompts_per_step and the mode */
    } learner;

    struct { /* eval */
        int64_t every_steps;      /* 0: only before and after */
        int32_t tasks;            /* before and after */
        int32_t tasks_mid;        /* in between */
        int32_t samples;          /* k of avg@k and pass@k; 0 = greedy only */
        bool before, after;
    } eval;

    struct { /* parity */
        double audit;             /* share of trained trajectories that are re-scored */
        double audit_swapped;     /* the same of those that more than one version has sampled */
        char mismatch[8];         /* refuse | admit: actors of another numerics profile */
        char flip_bit[8];         /* false | audit | train; test hook: one bit of one recorded log-prob is flipped */
        int32_t versions_kept;    /* ring of the version store */
        double versions_gib;      /* its bound in memory */
    } parity;

    struct { /* ledger: the bias ledger (learner/bias_ledger.h) */
        double sample;            /* share of trained trajectories; 0 = none */
        int32_t positions;        /* of each, where the exact KL is taken */
        double budget_truncation, budget_stale_kv, budget_lag, budget_total; /* nats per token; 0 = none */
    } ledger;

    struct { /* staleness: of what is trained, in versions; only in pipeline mode */
        int32_t max_versions;     /* 0 = no bound */
        char policy[12];          /* throttle | wait | drop | mask */
    } staleness;

    struct { /* archive: of the policy versions, for `inflight replay` */
        double versions_gib;      /* of each learner process; 0 = none */
    } archive;

    struct { /* checkpoint */
        int64_t every_steps;
        int32_t keep;
    } checkpoint;

    struct { /* transport */
        char bind[256];           /* learner; e.g. tcp://127.0.0.1:5555, or ipc://...; weights: port + 1 */
        char connect[256];        /* actor, relay */
        char relays[1024];        /* actor, relay: [NAME=]ENDPOINT,... */
        int32_t relay_mib;        /* relay: weights that it keeps */
        char keys[IFL_PATH_MAX];  /* folder, common/keys.h; empty: none */
        char key[32];             /* actor: which of the folder's; empty: as ifl_key_actor_name chooses */
        bool insecure;            /* links to other hosts without keys */
        int32_t heartbeat_ms, heartbeat_misses;
        int32_t lease_s;
        int32_t trajectory_mib;   /* of one actor, sent and not answered */
        int32_t chunk_kib;
        int32_t patch_versions;   /* kept as patches; 0 = dense always */
        int32_t patch_percent;    /* of a dense version: what they may take together */
    } transport;

    struct { /* kl: to a reference policy */
        double coef;              /* 0 = none */
        ifl_kl_place in;
        ifl_kl_estimator estimator;
        char reference[IFL_PATH_MAX]; /* empty: the model that the run starts from */
    } kl;

    struct { /* memory */
        double limit_gib;         /* per process; 0 = none */
    } memory;

    struct { /* sft */
        int64_t steps;
        int32_t batch_tokens;     /* padded tokens of one length-bucketed batch */
        double learning_rate, final_ratio;
        int32_t warmup_steps;
        double beta1, beta2, weight_decay, grad_clip;
        double worked_share;      /* ladder: share of worked answers */
        char out[IFL_PATH_MAX];   /* exported model folder */
    } sft;
} ifl_config;

/* learner.activation_gib in bytes. */
static inline int64_t ifl_config_activation_bytes(const ifl_config *config) {
    return (int64_t)(config->learner.activation_gib * 1073741824.0);
}

/* The checker of a task: its own, else the one that reward.route names for its data source, else
 * reward.checker; "" when there is none. Either name may be NULL. `out` holds 64 bytes. */
void ifl_config_checker(const ifl_config *config, const char *own, const char *data_source,
                        char out[64]);

/* Fills in the defaults. */
void ifl_config_defaults(ifl_config *config);

/* Reads `path` over the defaults, then the overrides "a.b=value" in order, then checks ranges and
 * cross-field rules. Errors name file, line, column, key, got and wanted. path NULL: defaults only. */
ifl_status ifl_config_load(ifl_config *config, const char *path, const char *const *overrides,
                           int n_overrides, ifl_error *err);

/* Sets one key from text; the key may index lists: data.train.0.path. */
ifl_status ifl_config_set(ifl_config *config, const char *key, const char *value, ifl_error *err);

/* Writes YAML with every key, its unit and help as comments if `comments`. */
ifl_status ifl_config_write(const ifl_config *config, FILE *f, bool comments, ifl_error *err);

/* What a run that trains needs beyond ifl_config_load: tasks, untruncated sampling, groups of two or
 * more, batch sizes that fit each other. train and learner call it. */
ifl_status ifl_config_check_training(const ifl_config *config, ifl_error *err);

/* Every key with its default, range, unit and help, by section. */
void ifl_config_help(FILE *f);

/* Derived numbers in words ("32 prompts x 8 = 256 trajectories per step, ..."). */
void ifl_config_describe(const ifl_config *config, FILE *f);

#endif
