#include "common/trajectory.h"

#include <math.h>
#include <string.h>

#define CHECK_FAIL(...) return ifl_fail(err, IFL_FORMAT, __VA_ARGS__)

static bool check_text(const char *text, size_t cap) {
    return memchr(text, 0, cap) != NULL;
}

static ifl_status check_scalars(const ifl_trajectory *t, ifl_error *err) {
    if (t->group_size < 1 || t->group_size > 0xffff)
        CHECK_FAIL("group_size is %d, wanted 1 to 65535", t->group_size);
    if (t->sample < 0 || t->sample >= t->group_size)
        CHECK_FAIL("sample %d lies outside its group of %d", t->sample, t->group_size);
    if (t->purpose > IFL_PURPOSE_EVAL) CHECK_FAIL("purpose %d is unknown", t->purpose);
    if (!check_text(t->task_id, sizeof t->task_id) || !check_text(t->actor, sizeof t->actor) ||
        !check_text(t->reward.checker, sizeof t->reward.checker))
        CHECK_FAIL("a text has no end");
    if (!isfinite(t->temperature) || t->temperature < 0.0f)
        CHECK_FAIL("temperature is %g, wanted a finite number >= 0", (double)t->temperature);
    if (!(t->top_p > 0.0f && t->top_p <= 1.0f))
        CHECK_FAIL("top_p is %g, wanted (0, 1]", (double)t->top_p);
    if (t->top_k < 0) CHECK_FAIL("top_k is %d, wanted >= 0", t->top_k);
    if (t->max_new_tokens < 0) CHECK_FAIL("max_new_tokens is %d, wanted >= 0", t->max_new_tokens);
    if ((unsigned)t->finish > IFL_FINISH_ABORTED)
        CHECK_FAIL("finish %d is unknown", (int)t->finish);
    const ifl_reward *r = &t->reward;
    if ((unsigned)r->tier >= IFL_TIER_COUNT) CHECK_FAIL("sandbox tier %d is unknown", (int)r->tier);
    if (r->tests_passed < 0 || r->tests_passed > r->tests_total)
        CHECK_FAIL("%d of %d tests passed", r->tests_passed, r->tests_total);
    if ((unsigned)r->status >= IFL_REWARD_STATUS_COUNT)
        CHECK_FAIL("reward status %d is unknown", (int)r->status);
    if (!isfinite(r->reward)) CHECK_FAIL("reward is not finite");
    if (!isfinite(r->queued_s) || !isfinite(r->run_s)) CHECK_FAIL("reward times are not finite");
    if (r->n_components < 0 || r->n_components > IFL_COMPONENTS_MAX)
        CHECK_FAIL("%d reward components, limit %d", r->n_components, IFL_COMPONENTS_MAX);
    for (int32_t i = 0; i < r->n_components; i++)
        if (!check_text(r->components[i].name, sizeof r->components[i].name) ||
            !isfinite(r->components[i].value))
            CHECK_FAIL("reward component %d is malformed", i);
    return IFL_OK;
}

/* Spans lie in order, cover [0, n_tokens), the prompt first and only first, neighbours differ. */
static ifl_status check_spans(const ifl_trajectory *t, ifl_error *err) {
    if (t->n_spans < 1 || t->n_spans > IFL_SPANS_MAX)
        CHECK_FAIL("%d spans, wanted 1 to %d", t->n_spans, IFL_SPANS_MAX);
    int32_t at = 0;
    for (int32_t i = 0; i < t->n_spans; i++) {
        const ifl_span *span = &t->spans[i];
        if (span->source > IFL_SOURCE_ENVIRONMENT ||
            (span->source == IFL_SOURCE_PROMPT) != (i == 0))
            CHECK_FAIL("span %d has source %d: the prompt comes first, and only there", i,
                       span->source);
        if (i && span->source == t->spans[i - 1].source)
            CHECK_FAIL("spans %d and %d have one source and are not one span", i - 1, i);
        if (span->begin != at || span->n_tokens < 1 || span->n_tokens > t->n_tokens - at)
            CHECK_FAIL("span %d is [%d, + %d), wanted it to begin at %d and end by %d", i,
                       span->begin, span->n_tokens, at, t->n_tokens);
        at += span->n_tokens;
    }
    if (at != t->n_tokens) CHECK_FAIL("spans cover %d of %d tokens", at, t->n_tokens);
    return IFL_OK;
}

static ifl_status check_columns(const ifl_trajectory *t, int32_t vocab_size, ifl_error *err) {
    for (int32_t i = 0; i < t->n_spans; i++) {
        const ifl_span *span = &t->spans[i];
        for (int32_t p = span->begin; p < span->begin + span->n_tokens; p++) {
            float logprob = t->logprobs[p], weight = t->loss_weights[p];
            if (t->tokens[p] < 0 || t->tokens[p] >= vocab_size)
                CHECK_FAIL("token %d at position %d lies outside the vocabulary of %d",
                           t->tokens[p], p, vocab_size);
            if (!isfinite(logprob) || logprob > 0.0f)
                CHECK_FAIL("log-prob at position %d is %g, wanted a finite number <= 0", p,
                           (double)logprob);
            if (!isfinite(weight) || weight < 0.0f)
                CHECK_FAIL("loss weight at position %d is %g, wanted a finite number >= 0", p,
                           (double)weight);
            if (span->source != IFL_SOURCE_POLICY && (logprob != 0.0f || weight != 0.0f))
                CHECK_FAIL("position %d was not sampled but has log-prob %g and loss weight %g", p,
                           (double)logprob, (double)weight);
        }
    }
    return IFL_OK;
}

/* Version runs cover exactly the policy tokens, in order; versions never go back. */
static ifl_status check_runs(const ifl_trajectory *t, ifl_error *err) {
    if (t->n_runs < 0 || t->n_runs > IFL_RUNS_MAX)
        CHECK_FAIL("%d version runs, limit %d", t->n_runs, IFL_RUNS_MAX);
    int32_t r = 0;
    int64_t newest = 0;
    for (int32_t i = 0; i < t->n_spans; i++) {
        const ifl_span *span = &t->spans[i];
        if (span->source != IFL_SOURCE_POLICY) continue;
        int32_t at = span->begin, end = span->begin + span->n_tokens;
        while (at < end) {
            if (r == t->n_runs) CHECK_FAIL("policy token at position %d has no version", at);
            const ifl_version_run *run = &t->runs[r];
            if (run->begin != at || run->n_tokens < 1 || run->n_tokens > end - at)
                CHECK_FAIL("version run %d is [%d, + %d), wanted it inside [%d, %d)", r, run->begin,
                           run->n_tokens, at, end);
            if (run->version < newest)
                CHECK_FAIL("version run %d has version %lld after %lld", r, (long long)run->version,
                           (long long)newest);
            newest = run->version;
            at += run->n_tokens;
            r++;
        }
    }
    if (r != t->n_runs) CHECK_FAIL("%d version runs lie outside the policy spans", t->n_runs - r);
    return IFL_OK;
}

static ifl_status check_kv_events(const ifl_trajectory *t, ifl_error *err) {
    if (t->n_kv_events < 0 || t->n_kv_events > IFL_RUNS_MAX)
        CHECK_FAIL("%d KV events, limit %d", t->n_kv_events, IFL_RUNS_MAX);
    int32_t at = 0;
    for (int32_t i = 0; i < t->n_kv_events; i++) {
        const ifl_kv_event *e = &t->kv_events[i];
        if (e->kind > IFL_KV_REBUILT) CHECK_FAIL("KV event %d has kind %d", i, e->kind);
        if (e->at < at || e->at > t->n_tokens)
            CHECK_FAIL("KV event %d is at %d, wanted %d to %d", i, e->at, at, t->n_tokens);
        if (e->from < 0 || e->to < e->from || e->to > t->n_tokens)
            CHECK_FAIL("KV event %d covers [%d, %d) of %d tokens", i, e->from, e->to, t->n_tokens);
        if (e->version < 0) CHECK_FAIL("KV event %d has version %lld", i, (long long)e->version);
        at = e->at;
    }
    return IFL_OK;
}

/* Truncated sampling has left its kept sets, and nothing else has: strictly ascending ids of the
 * vocabulary, the sampled token among them; the set's log-prob is no less than the full one, up to
 * the rounding of two sums. */
static ifl_status check_kept_sets(const ifl_trajectory *t, int32_t vocab_size, ifl_error *err) {
    if (!t->kept_ends != !t->full_logprobs) CHECK_FAIL("a column of the kept sets is missing");
    if (!t->kept_ends) {
        if (ifl_trajectory_is_truncated(t))
            CHECK_FAIL("sampled with top_k %d, top_p %g, but without the kept sets", t->top_k,
                       (double)t->top_p);
        return IFL_OK;
    }
    if (!ifl_trajectory_is_truncated(t))
        CHECK_FAIL("kept sets, though top_k is %d, top_p %g and temperature %g", t->top_k,
                   (double)t->top_p, (double)t->temperature);
    if (t->n_kept_ids < 0 || t->n_kept_ids > IFL_KEPT_IDS_MAX || (t->n_kept_ids && !t->kept_ids))
        CHECK_FAIL("%d tokens in kept sets, limit %d", t->n_kept_ids, IFL_KEPT_IDS_MAX);
    for (int32_t p = 0, begin = 0; p < t->n_tokens; begin = t->kept_ends[p++]) {
        int32_t end = t->kept_ends[p], n = end - begin;
        if (end < begin || end > t->n_kept_ids || n > IFL_KEPT_SET_MAX ||
            (p == t->n_tokens - 1 && end != t->n_kept_ids))
            CHECK_FAIL("kept set at position %d is [%d, %d) of %d", p, begin, end, t->n_kept_ids);
        bool sampled = ifl_trajectory_version_at(t, p) >= 0, found = n == 0;
        float full = t->full_logprobs[p];
        if (!sampled && (n > 0 || full != 0.0f))
            CHECK_FAIL("position %d was not sampled but has a kept set of %d and log-prob %g", p, n,
                       (double)full);
        if (!isfinite(full) || full > 0.0f || full > t->logprobs[p] + 1e-3f)
            CHECK_FAIL("full log-prob at position %d is %g, wanted a finite number up to the kept "
                       "set's %g",
                       p, (double)full, (double)t->logprobs[p]);
        for (int32_t i = begin; i < end; i++) {
            if (t->kept_ids[i] < 0 || t->kept_ids[i] >= vocab_size ||
                (i > begin && t->kept_ids[i] <= t->kept_ids[i - 1]))
                CHECK_FAIL("kept set at position %d has token %d, wanted ascending ones below %d",
                           p, t->kept_ids[i], vocab_size);
            found |= t->kept_ids[i] == t->tokens[p];
        }
        if (!found) CHECK_FAIL("kept set at position %d lacks its token %d", p, t->tokens[p]);
    }
    return IFL_OK;
}

ifl_status ifl_trajectory_check(const ifl_trajectory *traj, int32_t vocab_size, ifl_error *err) {
    ifl_status st = IFL_OK;
    if (traj->n_tokens < 1 || traj->n_tokens > IFL_TOKENS_MAX) {
        st = ifl_fail(err, IFL_LIMIT, "%d tokens, wanted 1 to %d", traj->n_tokens, IFL_TOKENS_MAX);
        goto done;
    }
    if (!traj->tokens || !traj->logprobs || !traj->loss_weights ||
        (traj->n_spans > 0 && !traj->spans) || (traj->n_runs > 0 && !traj->runs) ||
        (traj->n_kv_events > 0 && !traj->kv_events)) {
        st = ifl_fail(err, IFL_FORMAT, "a column is missing");
        goto done;
    }
    IFL_TRY_GOTO(st, check_scalars(traj, err), done);
    IFL_TRY_GOTO(st, check_spans(traj, err), done);
    IFL_TRY_GOTO(st, check_columns(traj, vocab_size, err), done);
    IFL_TRY_GOTO(st, check_runs(traj, err), done);
    IFL_TRY_GOTO(st, check_kv_events(traj, err), done);
    IFL_TRY_GOTO(st, check_kept_sets(traj, vocab_size, err), done);
    int32_t n_policy = ifl_trajectory_n_policy(traj);
    if (traj->max_new_tokens > 0 && n_policy > traj->max_new_tokens)
        st = ifl_fail(err, IFL_FORMAT, "%d sampled tokens, max_new_tokens is %d", n_policy,
                      traj->max_new_tokens);
done:
    if (st != IFL_OK)
        ifl_error_wrap(err, "trajectory of task %llu, sample %d",
                       (unsigned long long)traj->task_serial, traj->sample);
    return st;
}
