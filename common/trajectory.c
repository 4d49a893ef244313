#include "common/trajectory.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "common/memory.h"

static ifl_status trajectory_reserve(ifl_trajectory *traj, int32_t n_more, ifl_error *err) {
    if (n_more < 0 || n_more > IFL_TOKENS_MAX - traj->n_tokens)
        return ifl_fail(err, IFL_LIMIT,
                        "trajectory of task %llu, sample %d: %d + %d tokens, limit %d",
                        (unsigned long long)traj->task_serial, traj->sample, traj->n_tokens, n_more,
                        IFL_TOKENS_MAX);
    size_t want = (size_t)traj->n_tokens + (size_t)n_more;
    if (want <= (size_t)traj->n_tokens_cap) return IFL_OK;
    /* The columns grow together; the common capacity is set only when all of them have it. */
    size_t cap_tokens = (size_t)traj->n_tokens_cap;
    size_t cap_logprobs = cap_tokens, cap_weights = cap_tokens;
    size_t cap_ends = cap_tokens, cap_full = cap_tokens;
    IFL_TRY(ifl_grow((void **)&traj->tokens, &cap_tokens, want, sizeof *traj->tokens, err));
    IFL_TRY(ifl_grow((void **)&traj->logprobs, &cap_logprobs, want, sizeof *traj->logprobs, err));
    IFL_TRY(ifl_grow((void **)&traj->loss_weights, &cap_weights, want, sizeof *traj->loss_weights,
                     err));
    if (traj->kept_ends) {
        IFL_TRY(ifl_grow((void **)&traj->kept_ends, &cap_ends, want, sizeof *traj->kept_ends, err));
        IFL_TRY(ifl_grow((void **)&traj->full_logprobs, &cap_full, want,
                         sizeof *traj->full_logprobs, err));
    }
    traj->n_tokens_cap = (int32_t)cap_tokens;
    return IFL_OK;
}

static ifl_status trajectory_grow_list(void **list, int32_t *cap, int32_t n, int32_t n_max,
                                       size_t size, const char *what, ifl_error *err) {
    if (n >= n_max)
        return ifl_fail(err, IFL_LIMIT, "trajectory has %d %s, the most there can be", n, what);
    size_t grown = (size_t)*cap;
    IFL_TRY(ifl_grow(list, &grown, (size_t)n + 1, size, err));
    *cap = (int32_t)grown;
    return IFL_OK;
}

/* Makes room for a new span; without one, nothing changes. */
static ifl_status trajectory_reserve_span(ifl_trajectory *traj, ifl_error *err) {
    return trajectory_grow_list((void **)&traj->spans, &traj->n_spans_cap, traj->n_spans,
                                IFL_SPANS_MAX, sizeof *traj->spans, "spans", err);
}

static void trajectory_extend_span(ifl_trajectory *traj, uint8_t source, int32_t n_tokens) {
    ifl_span *last = traj->n_spans ? &traj->spans[traj->n_spans - 1] : NULL;
    if (last && last->source == source)
        last->n_tokens += n_tokens;
    else
        traj->spans[traj->n_spans++] = (ifl_span){source, traj->n_tokens, n_tokens};
}

ifl_status ifl_trajectory_create(ifl_trajectory **out, const int32_t *prompt, int32_t n_prompt,
                                 ifl_error *err) {
    *out = NULL;
    if (n_prompt < 1 || n_prompt > IFL_TOKENS_MAX)
        return ifl_fail(err, IFL_LIMIT, "a trajectory's prompt has %d tokens, wanted 1 to %d",
                        n_prompt, IFL_TOKENS_MAX);
    ifl_trajectory *traj = calloc(1, sizeof *traj);
    if (!traj) return ifl_fail(err, IFL_NOMEM, "out of memory: a trajectory");
    ifl_status st;
    IFL_TRY_GOTO(st, trajectory_reserve(traj, n_prompt, err), done);
    IFL_TRY_GOTO(st, trajectory_reserve_span(traj, err), done);
    memcpy(traj->tokens, prompt, (size_t)n_prompt * sizeof *prompt);
    memset(traj->logprobs, 0, (size_t)n_prompt * sizeof *traj->logprobs);
    memset(traj->loss_weights, 0, (size_t)n_prompt * sizeof *traj->loss_weights);
    trajectory_extend_span(traj, IFL_SOURCE_PROMPT, n_prompt);
    traj->n_tokens = n_prompt;
    traj->group_size = 1;
    traj->temperature = 1.0f;
    traj->top_p = 1.0f;
    traj->finish = IFL_FINISH_NONE;
    traj->reward.status = IFL_REWARD_NONE;
    *out = traj;
    traj = NULL; /* the caller owns it now */
done:
    ifl_trajectory_free(traj);
    return st;
}

void ifl_trajectory_free(ifl_trajectory *traj) {
    if (!traj) return;
    free(traj->tokens);
    free(traj->logprobs);
    free(traj->loss_weights);
    free(traj->spans);
    free(traj->runs);
    free(traj->kv_events);
    free(traj->kept_ends);
    free(traj->full_logprobs);
    free(traj->kept_ids);
    free(traj);
}

ifl_status ifl_trajectory_append(ifl_trajectory *traj, int32_t token, float logprob,
                                 int64_t version, ifl_error *err) {
    IFL_TRY(trajectory_reserve(traj, 1, err));
    IFL_TRY(trajectory_reserve_span(traj, err));
    IFL_TRY(trajectory_grow_list((void **)&traj->runs, &traj->n_runs_cap, traj->n_runs,
                                 IFL_RUNS_MAX, sizeof *traj->runs, "version runs", err));
    int32_t at = traj->n_tokens;
    ifl_version_run *run = traj->n_runs ? &traj->runs[traj->n_runs - 1] : NULL;
    if (run && run->version == version && run->begin + run->n_tokens == at)
        run->n_tokens++;
    else
        traj->runs[traj->n_runs++] = (ifl_version_run){at, 1, version};
    trajectory_extend_span(traj, IFL_SOURCE_POLICY, 1);
    traj->tokens[at] = token;
    traj->logprobs[at] = logprob;
    traj->loss_weights[at] = 1.0f;
    if (traj->kept_ends) {
        traj->kept_ends[at] = traj->n_kept_ids;
        traj->full_logprobs[at] = logprob;
    }
    traj->n_tokens++;
    return IFL_OK;
}

/* --- Truncated sampling
 * ------------------------------------------------------------------------------ */

bool ifl_trajectory_is_truncated(const ifl_trajectory *traj) {
    return traj->temperature > 0.0f && (traj->top_k > 0 || traj->top_p < 1.0f);
}

ifl_status ifl_trajectory_keep_sets(ifl_trajectory *traj, ifl_error *err) {
    IFL_ASSERT(!traj->kept_ends);
    traj->kept_ends = calloc((size_t)traj->n_tokens_cap, sizeof *traj->kept_ends);
    traj->full_logprobs = calloc((size_t)traj->n_tokens_cap, sizeof *traj->full_logprobs);
    if (traj->kept_ends && traj->full_logprobs) return IFL_OK;
    free(traj->kept_ends);
    free(traj->full_logprobs);
    traj->kept_ends = NULL;
    traj->full_logprobs = NULL;
    return ifl_fail(err, IFL_NOMEM, "out of memory: kept sets of a trajectory");
}

ifl_status ifl_trajectory_append_kept(ifl_trajectory *traj, int32_t token, float logprob,
                                      float full_logprob, ifl_kept_set kept, int64_t version,
                                      ifl_error *err) {
    IFL_ASSERT(traj->kept_ends && kept.n >= 0 && kept.n <= IFL_KEPT_SET_MAX);
    if (kept.n > IFL_KEPT_IDS_MAX - traj->n_kept_ids)
        return ifl_fail(err, IFL_LIMIT,
                        "trajectory of task %llu, sample %d: %d + %d tokens in its kept sets, "
                        "limit %d; set rollout.top_k",
                        (unsigned long long)traj->task_serial, traj->sample, traj->n_kept_ids,
                        kept.n, IFL_KEPT_IDS_MAX);
    size_t cap = (size_t)traj->n_kept_ids_cap;
    IFL_TRY(ifl_grow((void **)&traj->kept_ids, &cap, (size_t)traj->n_kept_ids + (size_t)kept.n,
                     sizeof *traj->kept_ids, err));
    traj->n_kept_ids_cap = (int32_t)cap;
    IFL_TRY(ifl_trajectory_append(traj, token, logprob, version, err));
    if (kept.n > 0)
        memcpy(traj->kept_ids + traj->n_kept_ids, kept.ids, (size_t)kept.n * sizeof *kept.ids);
    traj->n_kept_ids += kept.n;
    traj->kept_ends[traj->n_tokens - 1] = traj->n_kept_ids;
    traj->full_logprobs[traj->n_tokens - 1] = full_logprob;
    return IFL_OK;
}

ifl_kept_set ifl_trajectory_kept(const ifl_trajectory *traj, int32_t position) {
    if (!traj->kept_ends) return (ifl_kept_set){NULL, 0};
    int32_t begin = position > 0 ? traj->kept_ends[position - 1] : 0;
    int32_t n = traj->kept_ends[position] - begin;
    return (ifl_kept_set){n > 0 ? traj->kept_ids + begin : NULL, n};
}

ifl_status ifl_trajectory_append_environment(ifl_trajectory *traj, const int32_t *tokens, int32_t n,
                                             ifl_error *err) {
    if (n == 0) return IFL_OK;
    IFL_TRY(trajectory_reserve(traj, n, err));
    IFL_TRY(trajectory_reserve_span(traj, err));
    trajectory_extend_span(traj, IFL_SOURCE_ENVIRONMENT, n);
    size_t at = (size_t)traj->n_tokens;
    memcpy(traj->tokens + at, tokens, (size_t)n * sizeof *tokens);
    memset(traj->logprobs + at, 0, (size_t)n * sizeof *traj->logprobs);
    memset(traj->loss_weights + at, 0, (size_t)n * sizeof *traj->loss_weights);
    if (traj->kept_ends) {
        memset(traj->full_logprobs + at, 0, (size_t)n * sizeof *traj->full_logprobs);
        for (int32_t i = 0; i < n; i++)
            traj->kept_ends[at + (size_t)i] = traj->n_kept_ids;
    }
    traj->n_tokens += n;
    return IFL_OK;
}

ifl_status ifl_trajectory_kv_event(ifl_trajectory *traj, ifl_kv_event event, ifl_error *err) {
    ifl_kv_event *last = traj->n_kv_events ? &traj->kv_events[traj->n_kv_events - 1] : NULL;
    if (last && event.kind == IFL_KV_BUILT && last->kind == IFL_KV_BUILT &&
        last->version == event.version && last->to == event.from) {
        last->to = event.to;
        return IFL_OK;
    }
    IFL_TRY(trajectory_grow_list((void **)&traj->kv_events, &traj->n_kv_events_cap,
                                 traj->n_kv_events, IFL_RUNS_MAX, sizeof *traj->kv_events,
                                 "KV events", err));
    traj->kv_events[traj->n_kv_events++] = event;
    return IFL_OK;
}

int32_t ifl_trajectory_n_policy(const ifl_trajectory *traj) {
    int32_t n = 0;
    for (int32_t i = 0; i < traj->n_spans; i++)
        if (traj->spans[i].source == IFL_SOURCE_POLICY) n += traj->spans[i].n_tokens;
    return n;
}

int32_t ifl_trajectory_n_prompt(const ifl_trajectory *traj) {
    return traj->n_spans && traj->spans[0].source == IFL_SOURCE_PROMPT ? traj->spans[0].n_tokens
                                                                       : 0;
}

int64_t ifl_trajectory_version_at(const ifl_trajectory *traj, int32_t position) {
    int32_t low = 0, high = traj->n_runs; /* the first run that begins behind `position` */
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (traj->runs[middle].begin <= position)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0) return -1;
    const ifl_version_run *run = &traj->runs[low - 1];
    return position - run->begin < run->n_tokens ? run->version : -1;
}

int64_t ifl_trajectory_version_oldest(const ifl_trajectory *traj) {
    int64_t oldest = -1;
    for (int32_t i = 0; i < traj->n_runs; i++)
        if (oldest < 0 || traj->runs[i].version < oldest) oldest = traj->runs[i].version;
    return oldest;
}

uint64_t ifl_trajectory_stream(uint64_t task_serial, int32_t sample, uint8_t purpose) {
    /* 44 bits of serial, 16 of sample, 4 of purpose: two trajectories of a run never share a
     * stream. */
    return task_serial << 20 | (uint64_t)((uint32_t)sample & 0xffffu) << 4 | (purpose & 15u);
}

void ifl_reward_set_reason(ifl_reward *reward, const char *text) {
    size_t used = 0, n = strlen(text);
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &c);
        bool plain = k > 0 && c >= 0x20 && c != 0x7f;
        size_t n_out = plain ? (size_t)k : 1;
        if (used + n_out >= sizeof reward->reason) break;
        memcpy(reward->reason + used, plain ? text + i : "?", n_out);
        used += n_out;
        i += k > 0 ? (size_t)k : 1;
    }
    reward->reason[used] = '\0';
}

const char *ifl_finish_name(ifl_finish finish) {
    switch (finish) {
    case IFL_FINISH_NONE:
        return "none";
    case IFL_FINISH_EOS:
        return "eos";
    case IFL_FINISH_STOP:
        return "stop";
    case IFL_FINISH_LENGTH:
        return "length";
    case IFL_FINISH_ABORTED:
        return "aborted";
    }
    return "unknown";
}

static const char *const status_names[IFL_REWARD_STATUS_COUNT] = {
    [IFL_REWARD_OK] = "ok",
    [IFL_REWARD_NONE] = "none",
    [IFL_REWARD_UNDECIDED] = "undecided",
    [IFL_REWARD_BAD_TASK] = "bad_task",
    [IFL_REWARD_CHECKER_ERROR] = "checker_error",
    [IFL_REWARD_UNAVAILABLE] = "unavailable",
    [IFL_REWARD_WRONG] = "wrong",
    [IFL_REWARD_NO_ANSWER] = "no_answer",
    [IFL_REWARD_BAD_FORMAT] = "bad_format",
    [IFL_REWARD_TIME_LIMIT] = "time_limit",
    [IFL_REWARD_MEMORY_LIMIT] = "memory_limit",
    [IFL_REWARD_OUTPUT_LIMIT] = "output_limit",
    [IFL_REWARD_RUNTIME_ERROR] = "runtime_error",
    [IFL_REWARD_COMPILE_ERROR] = "compile_error",
    [IFL_REWARD_SANDBOX_VIOLATION] = "sandbox_violation",
};

const char *ifl_reward_status_name(ifl_reward_status status) {
    return (unsigned)status < IFL_REWARD_STATUS_COUNT ? status_names[status] : "unknown";
}

bool ifl_reward_status_parse(const char *name, ifl_reward_status *out) {
    for (int i = 0; i < IFL_REWARD_STATUS_COUNT; i++) {
        if (strcmp(status_names[i], name) != 0) continue;
        *out = (ifl_reward_status)i;
        return true;
    }
    return false;
}

static const char *const tier_names[IFL_TIER_COUNT] = {"none", "rlimit", "landlock", "ns",
                                                       "cgroup"};

const char *ifl_sandbox_tier_name(ifl_sandbox_tier tier) {
    return (unsigned)tier < IFL_TIER_COUNT ? tier_names[tier] : "unknown";
}

ifl_sandbox_tier ifl_sandbox_tier_parse(const char *name) {
    for (int i = 0; i < IFL_TIER_COUNT; i++)
        if (strcmp(tier_names[i], name) == 0) return (ifl_sandbox_tier)i;
    return IFL_TIER_NONE;
}
