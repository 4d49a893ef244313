/* The data model: what an actor produces and a learner consumes. A trajectory is token-aligned columns
 * cut into spans by source; the loss reads per-token weights, never "everything after the prompt". */
#ifndef IFL_COMMON_TRAJECTORY_H
#define IFL_COMMON_TRAJECTORY_H

#include "common/hash.h"
#include "common/kept_set.h"
#include "common/status.h"

#define IFL_TOKENS_MAX (1 << 20)   /* tokens of one trajectory */
#define IFL_SPANS_MAX 4096
#define IFL_RUNS_MAX 65536         /* version runs, KV events */
#define IFL_TASK_ID_MAX 128
#define IFL_COMPONENTS_MAX 16
#define IFL_REWARD_WHY_MAX 200         /* bytes, NUL included */
#define IFL_KEPT_IDS_MAX (1 << 22) /* tokens in the kept sets of one trajectory, together */

typedef enum { IFL_SOURCE_PROMPT, IFL_SOURCE_POLICY, IFL_SOURCE_ENVIRONMENT } ifl_source;

typedef enum {
    IFL_FINISH_NONE,     /* still running */
    IFL_FINISH_EOS,      /* an end-of-sequence token */
    IFL_FINISH_STOP,     /* a stop string */
    IFL_FINISH_LENGTH,   /* truncated: the token limit */
    IFL_FINISH_ABORTED,  /* handed back unfinished */
} ifl_finish;

/* What a checker found. Verdicts train; the others say that nobody knows how good the answer is,
 * and are never turned into a zero. The numbers are in files and on the wire. */
typedef enum {
    IFL_REWARD_OK,            /* a verdict: right, or as right as the reward says */
    IFL_REWARD_NONE,          /* none: not scored yet */
    IFL_REWARD_UNDECIDED,     /* none: beyond what the checker can tell */
    IFL_REWARD_BAD_TASK,      /* none: the task's answer or meta is malformed */
    IFL_REWARD_CHECKER_ERROR, /* none: the checker failed */
    IFL_REWARD_UNAVAILABLE,   /* none: there was no checker to ask */
    IFL_REWARD_WRONG,         /* verdicts from here on */
    IFL_REWARD_NO_ANSWER,     /* nothing that could be the answer, or several */
    IFL_REWARD_BAD_FORMAT,
    IFL_REWARD_TIME_LIMIT, /* these: of the answer's own program */
    IFL_REWARD_MEMORY_LIMIT,
    IFL_REWARD_OUTPUT_LIMIT,
    IFL_REWARD_RUNTIME_ERROR,
    IFL_REWARD_COMPILE_ERROR,
    IFL_REWARD_SANDBOX_VIOLATION,
    IFL_REWARD_STATUS_COUNT
} ifl_reward_status;

static inline bool ifl_reward_is_verdict(ifl_reward_status status) {
    return status == IFL_REWARD_OK ||
           (status >= IFL_REWARD_WRONG && status < IFL_REWARD_STATUS_COUNT);
}

/* How well a policy's programs were kept apart from the host and each other; rewards/sandbox.h
 * measures it. */
typedef enum {
    IFL_TIER_NONE, /* no program was run */
    IFL_TIER_RLIMIT,
    IFL_TIER_LANDLOCK,
    IFL_TIER_NS,
    IFL_TIER_CGROUP,
    IFL_TIER_COUNT
} ifl_sandbox_tier;

typedef enum { IFL_KV_BUILT, IFL_KV_KEPT, IFL_KV_REBUILT } ifl_kv_event_kind;

typedef struct ifl_span {
    uint8_t source; /* ifl_source */
    int32_t begin, n_tokens;
} ifl_span;

/* Tokens [begin, begin + n) were sampled by `version`. Prompt tokens have no run. */
typedef struct ifl_version_run {
    int32_t begin, n_tokens;
    int64_t version;
} ifl_version_run;

/* Before the token at position `at` was sampled, KV of positions [from, to) was computed under
 * `version`: BUILT first (prefill, decode), or REBUILT (after a swap, a preemption). KEPT marks a swap
 * that left [from, to) as it was. Events lie in time order; replay follows them. Positions decoded one by
 * one under one version merge into one BUILT event that grows (at = position of the first of them). */
typedef struct ifl_kv_event {
    int32_t at, from, to;
    int64_t version;
    uint8_t kind; /* ifl_kv_event_kind */
} ifl_kv_event;

typedef struct ifl_reward {
    ifl_reward_status status;
    float reward;
    int32_t n_components;
    struct {
        char name[32];
        float value;
    } components[IFL_COMPONENTS_MAX];
    float queued_s, run_s;
    char checker[64];                  /* name/version */
    uint64_t config;                   /* hash of the checker's options; 0 = it has none */
    int32_t tests_passed, tests_total; /* 0 / 0: not that kind of checker */
    uint8_t tier;                      /* ifl_sandbox_tier */
    char reason[IFL_REWARD_WHY_MAX];       /* why there is no verdict; UTF-8, shortened; "" beside one */
} ifl_reward;

/* Identity: (task serial, sample) inside a run. */
typedef struct ifl_trajectory {
    uint64_t task_serial; /* running number of the lease of a task; unique within (run, purpose) */
    int32_t sample;       /* 0 .. group_size - 1 */
    int32_t group_size;
    uint8_t purpose;      /* ifl_purpose */
    char task_id[IFL_TASK_ID_MAX];
    uint64_t lease_id;

    int32_t n_tokens, n_tokens_cap;
    int32_t *tokens;      /* [n_tokens] prompt and everything after it */
    float *logprobs;      /* [n_tokens] nats, of the distribution that was sampled; 0 outside policy spans */
    float *loss_weights;  /* [n_tokens] 1 on policy tokens that train, 0 elsewhere */
    int32_t n_spans, n_runs, n_kv_events;
    int32_t n_spans_cap, n_runs_cap, n_kv_events_cap;
    ifl_span *spans;
    ifl_version_run *runs;
    ifl_kv_event *kv_events;

    /* Truncated sampling (top-k, top-p); both columns NULL without. A token's log-prob is then that of its
     * kept set, and the learner's softmax runs over the same set: kernels/model.h. */
    int32_t *kept_ends;   /* [n_tokens] the set of token t is kept_ids[kept_ends[t - 1] .. kept_ends[t]) */
    float *full_logprobs; /* [n_tokens] nats, over the full vocabulary at the same temperature */
    int32_t n_kept_ids, n_kept_ids_cap;
    int32_t *kept_ids;    /* [n_kept_ids] */

    uint64_t seed;        /* with task_serial and sample: the whole randomness */
    float temperature;
    int32_t top_k;
    float top_p;
    int32_t max_new_tokens;
    ifl_finish finish;
    ifl_reward reward;
    ifl_hash profile;     /* numerics profile of the engine that made it */
    int64_t started_ms, finished_ms; /* wall clock, for people */
    char actor[32];
} ifl_trajectory;

typedef enum { IFL_PURPOSE_TRAIN, IFL_PURPOSE_EVAL } ifl_purpose;

/* Returns owned, with the prompt as first span (prompt tokens copied). */
ifl_status ifl_trajectory_create(ifl_trajectory **out, const int32_t *prompt, int32_t n_prompt,
                                 ifl_error *err);
void ifl_trajectory_free(ifl_trajectory *traj); /* NULL is fine */

/* Appends one sampled token, `logprob` in nats under `version`; extends the policy span and the version
 * run, or starts new ones. Amortised O(1). IFL_LIMIT past IFL_TOKENS_MAX. */
ifl_status ifl_trajectory_append(ifl_trajectory *traj, int32_t token, float logprob, int64_t version,
                                 ifl_error *err);

/* Whether its sampling leaves tokens out, so that it needs the two columns above. Greedy sampling does not: its
 * log-prob is of the full distribution. */
bool ifl_trajectory_is_truncated(const ifl_trajectory *traj);

/* Gives a trajectory of truncated sampling its columns; before its first sampled token. */
ifl_status ifl_trajectory_keep_sets(ifl_trajectory *traj, ifl_error *err);

/* As ifl_trajectory_append, for a trajectory that keeps sets: `kept` (copied) is what could be drawn, n = 0 the
 * full vocabulary. IFL_LIMIT past IFL_KEPT_IDS_MAX; the trajectory is then unchanged. */
ifl_status ifl_trajectory_append_kept(ifl_trajectory *traj, int32_t token, float logprob, float full_logprob,
                                      ifl_kept_set kept, int64_t version, ifl_error *err);

/* The kept set of the token at `position`, borrowed; n = 0 where nothing was left out or nothing sampled. */
ifl_kept_set ifl_trajectory_kept(const ifl_trajectory *traj, int32_t position);

/* Appends environment tokens (loss weight 0). */
ifl_status ifl_trajectory_append_environment(ifl_trajectory *traj, const int32_t *tokens, int32_t n,
                                             ifl_error *err);

/* Records a KV event. A BUILT event that continues the last one (same version, from == last.to) grows it. */
ifl_status ifl_trajectory_kv_event(ifl_trajectory *traj, ifl_kv_event event, ifl_error *err);

/* Number of tokens in policy spans; of the prompt span; version of the token at `position` (-1: none). */
int32_t ifl_trajectory_n_policy(const ifl_trajectory *traj);
int32_t ifl_trajectory_n_prompt(const ifl_trajectory *traj);
int64_t ifl_trajectory_version_at(const ifl_trajectory *traj, int32_t position);
int64_t ifl_trajectory_version_oldest(const ifl_trajectory *traj); /* -1 when it has no policy token */

/* The stream of ifl_rng_key for one trajectory. */
uint64_t ifl_trajectory_stream(uint64_t task_serial, int32_t sample, uint8_t purpose);

/* Checks the invariants (columns, spans in order and covering, runs inside policy spans, versions
 * monotone, log-probs finite and <= 0, KV events ordered, kept sets where sampling is truncated and only there,
 * ascending, in the vocabulary, with their token): everything that came over the wire passes here. */
ifl_status ifl_trajectory_check(const ifl_trajectory *traj, int32_t vocab_size, ifl_error *err);

/* Serialised form: msgpack meta (at most 64 KiB; IFL_LIMIT beyond) and one payload with the columns
 * (tokens i32, logprobs f32, loss weights f32, then spans, runs and KV events, then what truncated sampling kept;
 * little-endian; the layout is in trajectory_codec.c). Both owned by the caller (free()). Decoding checks structure; meaning is
 * ifl_trajectory_check's. */
ifl_status ifl_trajectory_encode(const ifl_trajectory *traj, uint8_t **meta, size_t *n_meta,
                                 uint8_t **payload, size_t *n_payload, ifl_error *err);
ifl_status ifl_trajectory_decode(ifl_trajectory **out, const uint8_t *meta, size_t n_meta,
                                 const uint8_t *payload, size_t n_payload, ifl_error *err);

/* Keeps what fits of a reason, as UTF-8 in one line. */
void ifl_reward_set_reason(ifl_reward *reward, const char *text);

const char *ifl_finish_name(ifl_finish finish);
const char *ifl_reward_status_name(ifl_reward_status status);
/* False for a name that is none. */
bool ifl_reward_status_parse(const char *name, ifl_reward_status *out);
const char *ifl_sandbox_tier_name(ifl_sandbox_tier tier);
ifl_sandbox_tier ifl_sandbox_tier_parse(const char *name); /* NONE for a name that is none */

#endif
