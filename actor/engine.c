#include "actor/engine.h"

#include <stdlib.h>
#include <string.h>

#include "actor/sampler_stop.h"
#include "actor/scheduler.h"
#include "common/clock.h"
#include "common/memory.h"

/* What the samples of one request share. Lives as long as its ifl_group. */
typedef struct engine_group {
    uint64_t lease_id;
    int32_t *prompt; /* owned */
    ifl_sampling sampling;
    int32_t max_new_tokens;
    bool ignore_eos;
    void *user;
} engine_group;

typedef struct engine_sequence {
    ifl_sequence seq;
    engine_group *group; /* NULL once finished */
    ifl_trajectory *traj;
    ifl_rng_key key;
    int32_t n_new;          /* policy tokens so far */
    ifl_stop_matcher *stop; /* NULL without stop strings */
    void *user;
    ifl_finish ends;                   /* other than NONE: it ends with the step under way */
    struct engine_sequence *next_ends; /* in the list of those */
    struct engine_sequence *next;      /* in the list of all, or of the finished */
    struct engine_sequence *before;
} engine_sequence;

struct ifl_engine {
    ifl_engine_options options;
    const ifl_model *model;
    const ifl_tokenizer *tokenizer;
    const ifl_weights *weights;     /* current */
    const ifl_weights *weights_old; /* of sequences that have not flipped yet; NULL: none */
    ifl_scheduler *scheduler;
    ifl_kv_store *kv;
    ifl_workspace *workspace;
    engine_sequence *live;
    engine_sequence *finished, *finished_last;
    bool broken; /* a step failed half-way: KV and books may disagree */
    /* One forward's batch. */
    int32_t rows_max, work_max;
    int32_t *tokens;     /* [rows_max] */
    ifl_batch_seq *seqs; /* [work_max] */
    int32_t *out_rows;   /* [sequences_max], as are those below */
    const ifl_work **out_work;
    ifl_sampling *samplings;
    ifl_rng_key *keys;
    int64_t *positions;
    ifl_sample *samples;
    ifl_engine_stats stats;
    bool swap_pending;       /* no decode step has run since the last swap */
    engine_sequence *ending; /* sequences that end with the step under way */
};

/* --- Creation
 * ------------------------------------------------------------------------------------------ */

static int32_t engine_pages(const ifl_engine_options *o) {
    return (int32_t)(((int64_t)o->kv_tokens + o->page_tokens - 1) / o->page_tokens);
}

static ifl_status engine_check(const ifl_engine_options *o, ifl_error *err) {
    if (o->sequences_max < 1 || o->sequences_max > IFL_QUEUE_MAX)
        return ifl_fail(err, IFL_USAGE, "engine: %d sequences at once, wanted 1 to %d",
                        o->sequences_max, IFL_QUEUE_MAX);
    if (o->page_tokens < 1 || o->page_tokens > 1024 || (o->page_tokens & (o->page_tokens - 1)) != 0)
        return ifl_fail(err, IFL_USAGE,
                        "engine: pages of %d tokens, wanted a power of two up to 1024",
                        o->page_tokens);
    if (o->kv_tokens < 2 || o->kv_tokens > (1 << 28))
        return ifl_fail(err, IFL_USAGE, "engine: KV cache of %d tokens, wanted 2 to %d",
                        o->kv_tokens, 1 << 28);
    if (o->prefill_chunk_tokens < 1 || o->prefill_chunk_tokens > (1 << 20))
        return ifl_fail(err, IFL_USAGE, "engine: prefill chunk of %d tokens, wanted 1 to %d",
                        o->prefill_chunk_tokens, 1 << 20);
    return IFL_OK;
}

int64_t ifl_engine_bytes(const ifl_model *model, const ifl_engine_options *options, int n_threads) {
    int64_t rows = (int64_t)options->sequences_max + options->prefill_chunk_tokens;
    return ifl_kv_store_bytes(model, engine_pages(options), options->page_tokens) +
           ifl_workspace_bytes(model, (int32_t)rows, n_threads);
}

ifl_status ifl_engine_create(ifl_engine **out, const ifl_model *model,
                             const ifl_tokenizer *tokenizer, const ifl_engine_options *options,
                             ifl_thread_pool *pool, const ifl_ops *ops, ifl_error *err) {
    *out = NULL;
    IFL_TRY(engine_check(options, err));
    ifl_engine *e = ifl_alloc(1, sizeof *e);
    if (!e) return ifl_fail(err, IFL_NOMEM, "engine: out of memory");
    ifl_status st;
    e->options = *options;
    e->model = model;
    e->tokenizer = tokenizer;
    int32_t n = options->sequences_max, n_pages = engine_pages(options);
    int32_t longest =
        (model->config.max_positions + options->page_tokens - 1) / options->page_tokens;
    ifl_scheduler_options so = {
        .sequences_max = n,
        .n_pages = n_pages,
        .page_tokens = options->page_tokens,
        .sequence_pages_max = longest < n_pages ? longest : n_pages,
        .chunk_tokens = options->prefill_chunk_tokens,
        .recompute = options->kv_mode == IFL_KV_MODE_RECOMPUTE,
    };
    IFL_TRY_GOTO(st, ifl_scheduler_create(&e->scheduler, &so, err), done);
    IFL_TRY_GOTO(st, ifl_kv_store_create(&e->kv, model, n_pages, options->page_tokens, err), done);
    e->rows_max = n + options->prefill_chunk_tokens;
    e->work_max = e->scheduler->work_max;
    IFL_TRY_GOTO(st, ifl_workspace_create(&e->workspace, model, e->rows_max, pool, ops, err), done);
    e->tokens = ifl_alloc((size_t)e->rows_max, sizeof *e->tokens);
    e->seqs = ifl_alloc((size_t)e->work_max, sizeof *e->seqs);
    e->out_rows = ifl_alloc((size_t)n, sizeof *e->out_rows);
    e->out_work = ifl_alloc((size_t)n, sizeof *e->out_work);
    e->samplings = ifl_alloc((size_t)n, sizeof *e->samplings);
    e->keys = ifl_alloc((size_t)n, sizeof *e->keys);
    e->positions = ifl_alloc((size_t)n, sizeof *e->positions);
    e->samples = ifl_alloc((size_t)n, sizeof *e->samples);
    if (!e->tokens || !e->seqs || !e->out_rows || !e->out_work || !e->samplings || !e->keys ||
        !e->positions || !e->samples) {
        st = ifl_fail(err, IFL_NOMEM, "engine: out of memory for %d sequences", n);
        goto done;
    }
    e->stats.pages_total = n_pages;
    *out = e;
    e = NULL; /* the caller owns it now */
done:
    ifl_engine_free(e);
    return st;
}

/* --- Sequences
 * ------------------------------------------------------------------------------------------ */

static void list_add(engine_sequence **list, engine_sequence *s) {
    s->before = NULL;
    s->next = *list;
    if (*list) (*list)->before = s;
    *list = s;
}

static void list_remove(engine_sequence **list, engine_sequence *s) {
    if (s->before)
        s->before->next = s->next;
    else
        *list = s->next;
    if (s->next) s->next->before = s->before;
    s->next = s->before = NULL;
}

static void group_free(engine_group *g) {
    if (!g) return;
    ifl_free(g->prompt);
    ifl_free(g);
}

static void sequence_free(engine_sequence *s) {
    if (!s) return;
    ifl_stop_matcher_free(s->stop);
    ifl_trajectory_free(s->traj);
    ifl_free(s);
}

/* Out of the scheduler and of the list; the caller does with it what it likes. */
static void sequence_detach(ifl_engine *e, engine_sequence *s) {
    engine_group *g = s->group;
    s->group = NULL;
    list_remove(&e->live, s);
    if (ifl_scheduler_remove(e->scheduler, &s->seq)) group_free(g);
}

void ifl_engine_free(ifl_engine *e) {
    if (!e) return;
    while (e->live) {
        engine_sequence *s = e->live;
        sequence_detach(e, s);
        sequence_free(s);
    }
    while (e->finished) {
        engine_sequence *s = e->finished;
        e->finished = s->next;
        sequence_free(s);
    }
    ifl_free(e->samples);
    ifl_free(e->positions);
    ifl_free(e->keys);
    ifl_free(e->samplings);
    ifl_free(e->out_work);
    ifl_free(e->out_rows);
    ifl_free(e->seqs);
    ifl_free(e->tokens);
    ifl_workspace_free(e->workspace);
    ifl_kv_store_free(e->kv);
    ifl_scheduler_free(e->scheduler);
    ifl_free(e);
}

static ifl_status request_check(const ifl_engine *e, const ifl_engine_request *r, ifl_error *err) {
    const ifl_model_config *c = &e->model->config;
    if (r->n_prompt < 1)
        return ifl_fail(err, IFL_USAGE, "request: empty prompt; a prompt has at least one token");
    for (int32_t i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= c->vocab_size)
            return ifl_fail(err, IFL_LIMIT,
                            "request: token %d of the prompt is %d, the vocabulary has %d", i,
                            r->prompt[i], c->vocab_size);
    if (r->max_new_tokens < 1)
        return ifl_fail(err, IFL_USAGE, "request: max_new_tokens %d, wanted at least 1",
                        r->max_new_tokens);
    if ((int64_t)r->n_prompt + r->max_new_tokens > c->max_positions)
        return ifl_fail(err, IFL_LIMIT,
                        "request: prompt of %d and %d new tokens, the model has %d positions",
                        r->n_prompt, r->max_new_tokens, c->max_positions);
    if (!ifl_scheduler_fits(e->scheduler, r->n_prompt, r->max_new_tokens))
        return ifl_fail(
            err, IFL_LIMIT,
            "request: prompt of %d and %d new tokens exceed the KV cache of %d pages of %d; "
            "raise actor.kv_tokens",
            r->n_prompt, r->max_new_tokens, e->kv->n_pages, e->kv->page_tokens);
    const ifl_sampling *s = &r->sampling;
    if (!(s->temperature >= 0 && s->temperature <= 1000) || !(s->top_p > 0 && s->top_p <= 1) ||
        s->top_k < 0 || s->top_k > IFL_TOP_K_MAX)
        return ifl_fail(
            err, IFL_USAGE,
            "request: temperature %g, top_p %g, top_k %d; wanted 0 to 1000, above 0 to 1, 0 "
            "to %d",
            (double)s->temperature, (double)s->top_p, s->top_k, IFL_TOP_K_MAX);
    int32_t n_now = r->samples ? r->n_samples_now : r->n_samples;
    if (r->n_samples < 1 || n_now < 1 || n_now > r->n_samples)
        return ifl_fail(err, IFL_USAGE, "request: %d of %d samples", n_now, r->n_samples);
    for (int32_t i = 0; r->samples && i < n_now; i++)
        if (r->samples[i] < 0 || r->samples[i] >= r->n_samples)
            return ifl_fail(err, IFL_USAGE, "request: sample %d of a group of %d", r->samples[i],
                            r->n_samples);
    if (e->scheduler->n_queued + e->scheduler->n_active > IFL_QUEUE_MAX - n_now)
        return ifl_fail(err, IFL_FULL, "engine: %d sequences are queued already, at most %d",
                        e->scheduler->n_queued, IFL_QUEUE_MAX);
    return IFL_OK;
}

static bool same_sampling(const ifl_trajectory *t, const ifl_sampling *s) {
    return memcmp(&t->temperature, &s->temperature, sizeof t->temperature) == 0 &&
           memcmp(&t->top_p, &s->top_p, sizeof t->top_p) == 0 && t->top_k == s->top_k;
}

ifl_status ifl_engine_check_begun(const ifl_engine *e, const ifl_engine_request *r, int32_t sample,
                                  const ifl_trajectory *t, ifl_error *err) {
    IFL_TRY(ifl_trajectory_check(t, e->model->config.vocab_size, err));
    int32_t n_policy = ifl_trajectory_n_policy(t);
    const char *wrong = NULL;
    if (t->task_serial != r->task_serial || t->sample != sample || t->purpose != r->purpose ||
        t->group_size != r->n_samples || t->seed != e->options.seed)
        wrong = "is of another trajectory";
    else if (t->n_spans > 2 || t->spans[0].n_tokens != r->n_prompt ||
             memcmp(t->tokens, r->prompt, (size_t)r->n_prompt * sizeof *t->tokens) != 0)
        wrong = "has another prompt";
    else if (!same_sampling(t, &r->sampling))
        wrong = "was sampled in another way";
    else if (!ifl_hash_equal(t->profile, e->model->profile))
        wrong = "was computed under another numerics profile";
    else if (n_policy < 1 || n_policy >= r->max_new_tokens)
        wrong = "has no token, or all that it may have";
    else if (t->runs[t->n_runs - 1].version > ifl_engine_version(e))
        wrong = "has tokens of a version that is not in use here yet";
    if (!wrong) return IFL_OK;
    return ifl_fail(err, IFL_MISMATCH, "the beginning of trajectory %llu/%d %s",
                    (unsigned long long)t->task_serial, t->sample, wrong);
}

/* What a sequence knows between two steps, from the tokens that it has. */
static ifl_status sequence_go_on(engine_sequence *s, ifl_error *err) {
    ifl_trajectory *t = s->traj;
    s->n_new = ifl_trajectory_n_policy(t);
    t->finish = IFL_FINISH_NONE;
    bool stopped = false;
    for (int32_t i = t->n_tokens - s->n_new; s->stop && i < t->n_tokens; i++)
        IFL_TRY(ifl_stop_matcher_add(s->stop, t->tokens[i], &stopped, err));
    return IFL_OK;
}

/* `begun`: NULL, or the sequence's beginning, which it takes over; freed on failure. */
static ifl_status sequence_create(ifl_engine *e, engine_sequence **out, const ifl_engine_request *r,
                                  engine_group *group, int32_t sample, ifl_trajectory *begun,
                                  ifl_error *err) {
    *out = NULL;
    engine_sequence *s = ifl_alloc(1, sizeof *s);
    if (!s) {
        ifl_trajectory_free(begun);
        return ifl_fail(err, IFL_NOMEM, "engine: out of memory for a sequence");
    }
    ifl_status st;
    s->traj = begun;
    if (!begun)
        IFL_TRY_GOTO(st, ifl_trajectory_create(&s->traj, r->prompt, r->n_prompt, err), done);
    if (r->n_stops > 0)
        IFL_TRY_GOTO(st, ifl_stop_matcher_create(&s->stop, e->tokenizer, r->stops, r->n_stops, err),
                     done);
    ifl_trajectory *t = s->traj;
    t->task_serial = r->task_serial;
    t->sample = sample;
    t->group_size = r->n_samples;
    t->purpose = r->purpose;
    if (r->task_id) strncpy(t->task_id, r->task_id, sizeof t->task_id - 1);
    t->lease_id = r->lease_id;
    t->seed = e->options.seed;
    t->temperature = r->sampling.temperature;
    t->top_k = r->sampling.top_k;
    t->top_p = r->sampling.top_p;
    t->max_new_tokens = r->max_new_tokens;
    t->profile = e->model->profile;
    t->reward.status = IFL_REWARD_NONE;
    if (!begun && ifl_trajectory_is_truncated(t) &&
        ifl_kept_ids_bound(t->max_new_tokens, t->top_k, (double)t->top_p,
                           e->model->config.vocab_size) <= IFL_KEPT_IDS_MAX)
        IFL_TRY_GOTO(st, ifl_trajectory_keep_sets(t, err), done);
    s->key = (ifl_rng_key){t->seed, ifl_trajectory_stream(t->task_serial, sample, t->purpose),
                           IFL_RNG_SAMPLE_TOKEN};
    if (begun) IFL_TRY_GOTO(st, sequence_go_on(s, err), done);
    s->group = group;
    s->user = r->user;
    s->seq.owner = s;
    *out = s;
    s = NULL;
done:
    sequence_free(s);
    return st;
}

ifl_status ifl_engine_submit(ifl_engine *e, const ifl_engine_request *r, ifl_error *err) {
    IFL_TRY(request_check(e, r, err));
    int32_t n_now = r->samples ? r->n_samples_now : r->n_samples;
    ifl_status st;
    ifl_group *sg = NULL;
    engine_sequence *made = NULL; /* all samples, before any is queued: all or none */
    engine_group *g = ifl_alloc(1, sizeof *g);
    if (!g) return ifl_fail(err, IFL_NOMEM, "engine: out of memory for a request");
    *g = (engine_group){.lease_id = r->lease_id,
                        .sampling = r->sampling,
                        .max_new_tokens = r->max_new_tokens,
                        .ignore_eos = r->ignore_eos,
                        .user = r->user};
    g->prompt = ifl_alloc((size_t)r->n_prompt, sizeof *g->prompt);
    if (!g->prompt) {
        st = ifl_fail(err, IFL_NOMEM, "engine: out of memory for a prompt of %d tokens",
                      r->n_prompt);
        goto done;
    }
    memcpy(g->prompt, r->prompt, (size_t)r->n_prompt * sizeof *g->prompt);
    for (int32_t i = n_now - 1; i >= 0; i--) {
        engine_sequence *s;
        int32_t sample = r->samples ? r->samples[i] : i;
        ifl_trajectory *begun = r->begun ? r->begun[i] : NULL;
        if (begun) IFL_TRY_GOTO(st, ifl_engine_check_begun(e, r, sample, begun, err), done);
        if (begun) r->begun[i] = NULL;
        IFL_TRY_GOTO(st, sequence_create(e, &s, r, g, sample, begun, err), done);
        s->next = made;
        made = s;
    }
    IFL_TRY_GOTO(st, ifl_group_create(&sg, r->n_prompt, n_now, g, err), done);
    g = NULL; /* lives with its members now */
    while (made) {
        engine_sequence *s = made;
        made = s->next;
        list_add(&e->live, s);
        ifl_scheduler_submit(e->scheduler, sg, &s->seq);
        s->seq.n_tokens = s->traj->n_tokens; /* as after a preemption */
    }
done:
    while (made) {
        engine_sequence *s = made;
        made = s->next;
        sequence_free(s);
    }
    group_free(g);
    return st;
}

ifl_trajectory *ifl_engine_take_live(ifl_engine *e, void **user) {
    engine_sequence *s = e->live;
    if (!s) return NULL;
    ifl_trajectory *traj = s->traj;
    s->traj = NULL;
    traj->finish = IFL_FINISH_ABORTED;
    if (user) *user = s->user;
    sequence_detach(e, s);
    sequence_free(s);
    return traj;
}

int32_t ifl_engine_cancel(ifl_engine *e, uint64_t lease_id) {
    int32_t n = 0;
    for (engine_sequence *s = e->live, *next; s; s = next) {
        next = s->next;
        if (s->group->lease_id != lease_id) continue;
        sequence_detach(e, s);
        sequence_free(s);
        n++;
    }
    return n;
}

static engine_sequence *sequence_find(const ifl_engine *e, uint64_t task_serial, int32_t sample) {
    for (engine_sequence *s = e->live; s; s = s->next)
        if (s->traj->task_serial == task_serial && s->traj->sample == sample) return s;
    return NULL;
}

const ifl_trajectory *ifl_engine_peek(const ifl_engine *e, uint64_t task_serial, int32_t sample) {
    const engine_sequence *s = sequence_find(e, task_serial, sample);
    return s ? s->traj : NULL;
}

ifl_status ifl_engine_park(ifl_engine *e, uint64_t task_serial, int32_t sample, ifl_error *err) {
    engine_sequence *s = sequence_find(e, task_serial, sample);
    if (!s)
        return ifl_fail(err, IFL_NOTFOUND, "engine: no live sequence of task %llu, sample %d",
                        (unsigned long long)task_serial, sample);
    ifl_scheduler_park(e->scheduler, &s->seq);
    return IFL_OK;
}

/* --- Swap
 * -----------------------------------------------------------------------------------------------
 */

static ifl_status engine_note_kept(ifl_engine *e, int64_t version, ifl_error *err) {
    for (int32_t i = 0; i < e->scheduler->n_active; i++) {
        const ifl_sequence *q = e->scheduler->active[i];
        if (q->state != IFL_SEQUENCE_RUNNING || q->n_tokens < 2) continue;
        engine_sequence *s = q->owner;
        ifl_kv_event event = {q->n_tokens, 0, q->n_tokens - 1, version, IFL_KV_KEPT};
        IFL_TRY(ifl_trajectory_kv_event(s->traj, event, err));
    }
    return IFL_OK;
}

ifl_status ifl_engine_swap(ifl_engine *e, const ifl_weights *weights, ifl_error *err) {
    int64_t start = ifl_clock_ns();
    if (weights->model != e->model)
        return ifl_fail(err, IFL_MISMATCH, "swap: version %lld belongs to another model object",
                        (long long)weights->version);
    if (weights->version < 0)
        return ifl_fail(err, IFL_USAGE, "swap: version %lld, wanted 0 or more",
                        (long long)weights->version);
    bool first = !e->weights;
    IFL_TRY(ifl_scheduler_swap(e->scheduler, weights->version, err));
    if (e->options.kv_mode == IFL_KV_MODE_KEEP && !first)
        IFL_TRY(engine_note_kept(e, weights->version, err));
    bool old_lives = ifl_scheduler_oldest_version(e->scheduler) != weights->version;
    e->weights_old = old_lives ? e->weights : NULL;
    e->weights = weights;
    if (first) return IFL_OK;
    e->stats.swaps++;
    e->stats.swap_stall_ms_last = (double)(ifl_clock_ns() - start) * 1e-6;
    e->swap_pending = true;
    return IFL_OK;
}

int64_t ifl_engine_version(const ifl_engine *e) {
    return e->weights ? e->weights->version : -1;
}

int64_t ifl_engine_oldest_version(const ifl_engine *e) {
    return e->weights ? ifl_scheduler_oldest_version(e->scheduler) : -1;
}

/* --- Step
 * -----------------------------------------------------------------------------------------------
 */

static void sequence_finish(ifl_engine *e, engine_sequence *s, ifl_finish finish) {
    s->traj->finish = finish;
    s->traj->finished_ms = ifl_clock_wall_ms();
    sequence_detach(e, s);
    if (e->finished_last)
        e->finished_last->next = s;
    else
        e->finished = s;
    e->finished_last = s;
}

static bool token_is_eos(const ifl_model *model, int32_t token) {
    for (int32_t i = 0; i < model->config.n_eos; i++)
        if (model->config.eos_ids[i] == token) return true;
    return false;
}

/* The end of a sequence, looked for in this order: end-of-sequence token, stop string, length. */
static ifl_status sequence_ends(ifl_engine *e, engine_sequence *s, int32_t token,
                                ifl_finish *finish, ifl_error *err) {
    bool stopped = false;
    if (s->stop) IFL_TRY(ifl_stop_matcher_add(s->stop, token, &stopped, err));
    if (!s->group->ignore_eos && token_is_eos(e->model, token))
        *finish = IFL_FINISH_EOS;
    else if (stopped)
        *finish = IFL_FINISH_STOP;
    else
        *finish = s->n_new >= s->group->max_new_tokens ? IFL_FINISH_LENGTH : IFL_FINISH_NONE;
    return IFL_OK;
}

/* Writes down how the KV came about that the sampled row read, then the token itself. */
static ifl_status sequence_append(ifl_engine *e, engine_sequence *s, const ifl_work *work,
                                  const ifl_sample *sample, ifl_error *err) {
    ifl_trajectory *t = s->traj;
    int32_t at = t->n_tokens;
    if (work->starts) {
        /* Only a first build is BUILT; whatever comes after one is a rebuild. */
        uint8_t kind = t->n_kv_events == 0 ? IFL_KV_BUILT : IFL_KV_REBUILT;
        const ifl_build *b = &s->seq.live;
        for (int32_t i = 0, from = 0; i < b->n_runs; from = b->runs[i].to, i++) {
            ifl_kv_event event = {at, from, b->runs[i].to, b->runs[i].version, kind};
            IFL_TRY(ifl_trajectory_kv_event(t, event, err));
        }
    }
    ifl_kv_event own = {at, at - 1, at, work->version, IFL_KV_BUILT};
    IFL_TRY(ifl_trajectory_kv_event(t, own, err));
    int32_t n_runs = t->n_runs;
    if (t->kept_ends)
        IFL_TRY(ifl_trajectory_append_kept(t, sample->token, sample->logprob, sample->full_logprob,
                                           (ifl_kept_set){sample->kept, sample->n_kept},
                                           work->version, err));
    else
        IFL_TRY(ifl_trajectory_append(t, sample->token, sample->logprob, work->version, err));
    if (n_runs == 1 && t->n_runs == 2) e->stats.sequences_swapped++;
    if (n_runs == 0) t->started_ms = ifl_clock_wall_ms();
    s->n_new++;
    ifl_scheduler_sampled(e->scheduler, &s->seq);
    ifl_finish finish;
    IFL_TRY(sequence_ends(e, s, sample->token, &finish, err));
    if (finish == IFL_FINISH_NONE) return IFL_OK;
    /* Not before all runs of this step are done: its group may have rows of the other version in
     * the plan, which read the group's prompt and this sequence's pages. */
    s->ends = finish;
    s->next_ends = e->ending;
    e->ending = s;
    return IFL_OK;
}

typedef struct batch_rows {
    int32_t decode, prefill, rebuild;
} batch_rows;

/* Gathers the plan's rows under one version. */
static void batch_gather(ifl_engine *e, int64_t version, ifl_batch *batch, batch_rows *rows) {
    const ifl_scheduler *sched = e->scheduler;
    *batch = (ifl_batch){.tokens = e->tokens, .seqs = e->seqs, .out_rows = e->out_rows};
    *rows = (batch_rows){0};
    for (int32_t i = 0; i < sched->n_work; i++) {
        const ifl_work *w = &sched->work[i];
        if (w->version != version) continue;
        const int32_t *tokens;
        if (w->seq)
            tokens = ((const engine_sequence *)w->seq->owner)->traj->tokens;
        else
            tokens = ((const engine_group *)w->group->owner)->prompt;
        IFL_ASSERT(batch->n_rows + w->n_rows <= e->rows_max && batch->n_seqs < e->work_max);
        e->seqs[batch->n_seqs++] = (ifl_batch_seq){batch->n_rows, w->n_rows, w->begin, w->pages};
        memcpy(e->tokens + batch->n_rows, tokens + w->begin, (size_t)w->n_rows * sizeof *tokens);
        batch->n_rows += w->n_rows;
        int32_t built = w->n_rows - w->sample;
        if (w->kind == IFL_WORK_REBUILD)
            rows->rebuild += built;
        else if (w->kind == IFL_WORK_PREFILL)
            rows->prefill += built;
        if (!w->sample) continue;
        engine_sequence *s = w->seq->owner;
        rows->decode++;
        int32_t o = batch->n_out++;
        e->out_rows[o] = batch->n_rows - 1;
        e->out_work[o] = w;
        e->samplings[o] = s->group->sampling;
        e->keys[o] = s->key;
        e->positions[o] = w->seq->n_tokens;
    }
}

static ifl_status engine_run(ifl_engine *e, const ifl_weights *weights, int32_t *n_decoded,
                             ifl_error *err) {
    ifl_batch batch;
    batch_rows rows;
    batch_gather(e, weights->version, &batch, &rows);
    if (batch.n_rows == 0) return IFL_OK;
    const float *hidden;
    double start = ifl_clock_s();
    IFL_TRY(ifl_forward(e->workspace, weights, e->kv, &batch, &hidden, err));
    double after_forward = ifl_clock_s();
    double per_row = (after_forward - start) / batch.n_rows;
    e->stats.decode_s += per_row * rows.decode;
    e->stats.prefill_s += per_row * rows.prefill;
    e->stats.rebuild_s += per_row * rows.rebuild;
    e->stats.tokens_prefilled += rows.prefill;
    e->stats.tokens_rebuilt += rows.rebuild;
    if (batch.n_out == 0) return IFL_OK;
    IFL_TRY(ifl_head_sample(e->workspace, weights, hidden, batch.n_out, e->samplings, e->keys,
                            e->positions, e->samples, err));
    e->stats.sample_s += ifl_clock_s() - after_forward;
    for (int32_t i = 0; i < batch.n_out; i++)
        IFL_TRY(
            sequence_append(e, e->out_work[i]->seq->owner, e->out_work[i], &e->samples[i], err));
    e->stats.tokens_decoded += batch.n_out;
    *n_decoded += batch.n_out;
    return IFL_OK;
}

static ifl_status engine_step(ifl_engine *e, int32_t *n_decoded, ifl_error *err) {
    IFL_TRY(ifl_scheduler_plan(e->scheduler, err));
    for (int32_t i = 0; i < e->scheduler->n_copies; i++) {
        const ifl_page_copy *c = &e->scheduler->copies[i];
        ifl_kv_store_copy(e->kv, c->to_page, c->from_page, c->n_tokens);
    }
    if (e->weights_old) IFL_TRY(engine_run(e, e->weights_old, n_decoded, err));
    IFL_TRY(engine_run(e, e->weights, n_decoded, err));
    while (e->ending) {
        engine_sequence *s = e->ending;
        e->ending = s->next_ends;
        sequence_finish(e, s, s->ends);
    }
    if (e->weights_old && ifl_scheduler_oldest_version(e->scheduler) == e->weights->version)
        e->weights_old = NULL;
    return IFL_OK;
}

ifl_status ifl_engine_step(ifl_engine *e, int32_t *n_decoded, ifl_error *err) {
    *n_decoded = 0;
    if (e->broken)
        return ifl_fail(err, IFL_USAGE, "engine: an earlier step failed; make a new engine");
    if (!e->weights)
        return ifl_fail(err, IFL_USAGE, "engine: no weights; call ifl_engine_swap first");
    if (ifl_engine_idle(e)) return IFL_OK;
    int64_t start = ifl_clock_ns();
    ifl_status st = engine_step(e, n_decoded, err);
    e->broken = st != IFL_OK;
    double ms = (double)(ifl_clock_ns() - start) * 1e-6;
    e->stats.steps++;
    e->stats.step_ms_last = ms;
    if (*n_decoded > 0)
        e->swap_pending = false;
    else if (e->swap_pending)
        e->stats.swap_stall_ms_last += ms; /* everybody was rebuilding: the swap's doing too */
    return st;
}

ifl_trajectory *ifl_engine_take_finished(ifl_engine *e, void **user) {
    engine_sequence *s = e->finished;
    if (!s) return NULL;
    e->finished = s->next;
    if (!e->finished) e->finished_last = NULL;
    ifl_trajectory *traj = s->traj;
    s->traj = NULL;
    if (user) *user = s->user;
    sequence_free(s);
    return traj;
}

/* --- Views
 * ---------------------------------------------------------------------------------------------- */

bool ifl_engine_idle(const ifl_engine *e) {
    return e->scheduler->n_active == 0 && e->scheduler->n_queued == 0;
}

int32_t ifl_engine_running(const ifl_engine *e) {
    return e->scheduler->n_active;
}
int32_t ifl_engine_queued(const ifl_engine *e) {
    return e->scheduler->n_queued;
}

void ifl_engine_stats_get(const ifl_engine *e, ifl_engine_stats *out) {
    *out = e->stats;
    out->preemptions = e->scheduler->n_preemptions;
    out->tokens_shared = e->scheduler->n_shared;
    out->pages_used = e->scheduler->cache->n_pages - e->scheduler->cache->n_free;
}
