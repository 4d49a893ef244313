#include "actor/scheduler.h"

#include "common/memory.h"

/* --- Creation
 * ------------------------------------------------------------------------------------------ */

ifl_status ifl_scheduler_create(ifl_scheduler **out, const ifl_scheduler_options *options,
                                ifl_error *err) {
    *out = NULL;
    ifl_status st = IFL_OK;
    ifl_scheduler *s = ifl_alloc(1, sizeof *s);
    if (!s) return ifl_fail(err, IFL_NOMEM, "scheduler: out of memory");
    int32_t n = options->sequences_max;
    s->options = *options;
    s->current = -1;
    IFL_TRY_GOTO(st, ifl_kv_cache_create(&s->cache, options->n_pages, options->page_tokens, err),
                 done);
    s->active = ifl_alloc((size_t)n, sizeof *s->active);
    s->spare_tables = ifl_alloc((size_t)n * 2, sizeof *s->spare_tables);
    /* A sequence has at most two pieces of work (its row and its shadow's); each prompt's piece
     * takes at least one row of the chunk. */
    s->work_max = 2 * n + options->chunk_tokens + 1;
    s->work = ifl_alloc((size_t)s->work_max, sizeof *s->work);
    s->copies_max = 2 * n;
    s->copies = ifl_alloc((size_t)s->copies_max, sizeof *s->copies);
    if (!s->active || !s->spare_tables || !s->work || !s->copies) {
        st = ifl_fail(err, IFL_NOMEM, "scheduler: out of memory for %d sequences", n);
        goto done;
    }
    while (s->n_spare_tables < 2 * n) {
        IFL_TRY_GOTO(st,
                     ifl_page_table_create(&s->spare_tables[s->n_spare_tables],
                                           options->sequence_pages_max, err),
                     done);
        s->n_spare_tables++;
    }
    *out = s;
    s = NULL; /* the caller owns it now */
done:
    ifl_scheduler_free(s);
    return st;
}

void ifl_scheduler_free(ifl_scheduler *s) {
    if (!s) return;
    IFL_ASSERT(s->n_active == 0 && s->n_queued == 0 && !s->prefixes);
    for (int32_t i = 0; i < s->n_spare_tables; i++)
        ifl_page_table_free(&s->spare_tables[i]);
    ifl_free(s->copies);
    ifl_free(s->work);
    ifl_free(s->spare_tables);
    ifl_free(s->active);
    ifl_kv_cache_free(s->cache);
    ifl_free(s);
}

bool ifl_scheduler_fits(const ifl_scheduler *s, int32_t n_prompt, int32_t max_new_tokens) {
    /* The last token is sampled but never fed. One page more for the prompt's own partial page. */
    int64_t positions = (int64_t)n_prompt + max_new_tokens - 1;
    if (positions > (int64_t)s->options.n_pages * s->options.page_tokens) return false;
    int32_t pages = ifl_kv_cache_pages(s->cache, (int32_t)positions);
    bool partial = (n_prompt - 1) % s->options.page_tokens != 0;
    return pages <= s->options.sequence_pages_max && pages + partial <= s->options.n_pages;
}

ifl_status ifl_group_create(ifl_group **out, int32_t n_prompt, int32_t n_members_max, void *owner,
                            ifl_error *err) {
    ifl_group *g = ifl_alloc(1, sizeof *g);
    ifl_sequence **members = ifl_alloc((size_t)n_members_max, sizeof *members);
    if (!g || !members) {
        ifl_free(g);
        ifl_free(members);
        *out = NULL;
        return ifl_fail(err, IFL_NOMEM, "scheduler: out of memory for a group of %d",
                        n_members_max);
    }
    *g = (ifl_group){
        .n_prompt = n_prompt, .n_members_max = n_members_max, .members = members, .owner = owner};
    *out = g;
    return IFL_OK;
}

/* --- Prompts
 * -------------------------------------------------------------------------------------------- */

static int32_t prefix_positions(const ifl_prefix *p) {
    return p->group->n_prompt - 1;
}

static void prefix_unbind(ifl_sequence *seq) {
    if (!seq->prefix) return;
    seq->prefix->n_waiting--;
    seq->prefix = NULL;
}

static void prefix_free(ifl_scheduler *s, ifl_prefix *p) {
    IFL_ASSERT(p->n_waiting == 0);
    ifl_prefix **link = &s->prefixes;
    while (*link != p)
        link = &(*link)->next;
    *link = p->next;
    if (p->group->prefix == p) p->group->prefix = NULL;
    ifl_page_table_clear(&p->build.table, s->cache);
    ifl_page_table_free(&p->build.table);
    ifl_free(p);
}

/* Will some member of the group still adopt a prompt of the current version? */
static bool group_needs_prefix(const ifl_scheduler *s, const ifl_group *g) {
    for (int32_t i = 0; i < g->n_members_max; i++) {
        const ifl_sequence *m = g->members[i];
        if (!m) continue;
        if (m->state == IFL_SEQUENCE_QUEUED) return true;
        if (m->state == IFL_SEQUENCE_BUILDING && !m->live.adopted) return true;
        if (m->state == IFL_SEQUENCE_RUNNING && m->version != s->current && !m->shadow.adopted)
            return true;
    }
    return false;
}

static void prefix_drop_unneeded(ifl_scheduler *s, ifl_prefix *p) {
    if (p->n_waiting > 0) return;
    if (p->group->prefix == p && group_needs_prefix(s, p->group)) return;
    prefix_free(s, p);
}

static ifl_status prefix_create(ifl_scheduler *s, ifl_group *g, ifl_error *err) {
    ifl_prefix *p = ifl_alloc(1, sizeof *p);
    if (!p) return ifl_fail(err, IFL_NOMEM, "scheduler: out of memory for a prompt");
    ifl_status st =
        ifl_page_table_create(&p->build.table, ifl_kv_cache_pages(s->cache, g->n_prompt - 1), err);
    if (st != IFL_OK) {
        ifl_free(p);
        return st;
    }
    p->group = g;
    p->step_planned = -1;
    p->next = s->prefixes;
    s->prefixes = p;
    g->prefix = p;
    return IFL_OK;
}

/* --- Builds
 * --------------------------------------------------------------------------------------------- */

static void build_reset(ifl_scheduler *s, ifl_build *b) {
    ifl_page_table_clear(&b->table, s->cache);
    b->n_built = 0;
    b->n_runs = 0;
    b->adopted = false;
}

/* False when there is no room for one more version: the build must start again then. */
static bool build_extend(ifl_build *b, int32_t to, int64_t version) {
    if (b->n_runs == 0 || b->runs[b->n_runs - 1].version != version) {
        if (b->n_runs == IFL_BUILD_RUNS_MAX) return false;
        b->runs[b->n_runs++] = (ifl_kv_run){to, version};
    }
    b->runs[b->n_runs - 1].to = to;
    b->n_built = to;
    return true;
}

/* --- Sequences: queue and active set
 * ---------------------------------------------------------------------- */

static void queue_insert(ifl_scheduler *s, ifl_sequence *seq) {
    seq->state = IFL_SEQUENCE_QUEUED;
    s->n_queued++;
    ifl_sequence **link = &s->queue;
    if (s->queue_last && s->queue_last->serial < seq->serial) link = &s->queue_last->next;
    while (*link && (*link)->serial < seq->serial)
        link = &(*link)->next;
    seq->next = *link;
    *link = seq;
    if (!seq->next) s->queue_last = seq;
}

static void queue_remove(ifl_scheduler *s, ifl_sequence *seq) {
    ifl_sequence **link = &s->queue, *before = NULL;
    while (*link != seq) {
        before = *link;
        link = &(*link)->next;
    }
    *link = seq->next;
    if (s->queue_last == seq) s->queue_last = before;
    seq->next = NULL;
    s->n_queued--;
}

static void active_insert(ifl_scheduler *s, ifl_sequence *seq) {
    int32_t i = s->n_active++;
    for (; i > 0 && s->active[i - 1]->serial > seq->serial; i--)
        s->active[i] = s->active[i - 1];
    s->active[i] = seq;
    seq->state = IFL_SEQUENCE_BUILDING;
    seq->version = s->current;
    seq->live.table = s->spare_tables[--s->n_spare_tables];
    seq->shadow.table = s->spare_tables[--s->n_spare_tables];
}

static void active_remove(ifl_scheduler *s, ifl_sequence *seq) {
    ifl_prefix *p = seq->prefix;
    prefix_unbind(seq);
    build_reset(s, &seq->live);
    build_reset(s, &seq->shadow);
    s->spare_tables[s->n_spare_tables++] = seq->shadow.table;
    s->spare_tables[s->n_spare_tables++] = seq->live.table;
    seq->live.table = seq->shadow.table = (ifl_page_table){0};
    int32_t i = 0;
    while (s->active[i] != seq)
        i++;
    for (s->n_active--; i < s->n_active; i++)
        s->active[i] = s->active[i + 1];
    if (p && p->group->prefix != p) prefix_drop_unneeded(s, p);
}

void ifl_scheduler_submit(ifl_scheduler *s, ifl_group *group, ifl_sequence *seq) {
    int32_t i = 0;
    while (i < group->n_members_max && group->members[i])
        i++;
    IFL_ASSERT(i < group->n_members_max);
    group->members[i] = seq;
    group->n_members++;
    seq->group = group;
    seq->serial = s->serial_next++;
    seq->n_tokens = group->n_prompt;
    queue_insert(s, seq);
}

bool ifl_scheduler_remove(ifl_scheduler *s, ifl_sequence *seq) {
    ifl_group *g = seq->group;
    for (int32_t i = 0; i < g->n_members_max; i++)
        if (g->members[i] == seq) g->members[i] = NULL;
    g->n_members--;
    if (seq->state == IFL_SEQUENCE_QUEUED)
        queue_remove(s, seq);
    else
        active_remove(s, seq);
    seq->group = NULL;
    if (g->prefix) prefix_drop_unneeded(s, g->prefix);
    if (g->n_members > 0) return false;
    IFL_ASSERT(!g->prefix);
    ifl_free(g->members);
    ifl_free(g);
    return true;
}

void ifl_scheduler_park(ifl_scheduler *s, ifl_sequence *seq) {
    if (seq->state == IFL_SEQUENCE_QUEUED) return;
    active_remove(s, seq);
    queue_insert(s, seq);
    s->n_preemptions++;
}

void ifl_scheduler_sampled(ifl_scheduler *s, ifl_sequence *seq) {
    (void)s;
    seq->n_tokens++;
}

/* --- Pages
 * ------------------------------------------------------------------------------------------------
 */

/* Nobody at least as old as `serial` waits for it, and it has no rows in this step's plan. */
static bool prefix_evictable(const ifl_scheduler *s, const ifl_prefix *p, uint64_t serial) {
    if (p->step_planned == s->step) return false;
    if (p->n_waiting == 0) return true;
    for (int32_t i = 0; i < s->n_active && s->active[i]->serial <= serial; i++)
        if (s->active[i]->prefix == p) return false;
    return true;
}

static bool evict_prefix(ifl_scheduler *s, uint64_t serial) {
    for (ifl_prefix *p = s->prefixes; p; p = p->next) {
        if (!prefix_evictable(s, p, serial)) continue;
        for (int32_t i = 0; i < s->n_active; i++)
            if (s->active[i]->prefix == p) prefix_unbind(s->active[i]);
        prefix_free(s, p);
        return true;
    }
    return false;
}

static bool preempt_younger(ifl_scheduler *s, uint64_t serial) {
    for (int32_t i = s->n_active - 1; i >= 0 && s->active[i]->serial > serial; i--) {
        ifl_sequence *victim = s->active[i];
        if (victim->live.table.n_pages + victim->shadow.table.n_pages == 0) continue;
        ifl_scheduler_park(s, victim);
        return true;
    }
    return false;
}

/* Fills `table` up to n_tokens positions on behalf of `seq`. With force, others give way: the plan
 * goes from the oldest to the youngest, so that nobody who gives way is in it already. Without,
 * only free pages and prompts that nobody waits for. False: pages already taken stay in the table.
 */
static bool pages_reserve(ifl_scheduler *s, const ifl_sequence *seq, ifl_page_table *table,
                          int32_t n_tokens, bool force) {
    int32_t wanted = ifl_kv_cache_pages(s->cache, n_tokens);
    while (table->n_pages < wanted) {
        int32_t page = ifl_kv_cache_take(s->cache);
        if (page >= 0)
            ifl_page_table_push(table, page);
        else if (!evict_prefix(s, force ? seq->serial : UINT64_MAX) &&
                 !(force && preempt_younger(s, seq->serial)))
            return false;
    }
    return true;
}

/* --- Admission
 * -------------------------------------------------------------------------------------------- */

/* Pages that admitted work is going to take before it decodes. */
static int64_t pages_outstanding(const ifl_scheduler *s) {
    int64_t n = 0;
    int32_t pt = s->options.page_tokens;
    for (int32_t i = 0; i < s->n_active; i++) {
        const ifl_sequence *q = s->active[i];
        if (q->state != IFL_SEQUENCE_BUILDING) continue;
        int32_t held = q->live.adopted ? q->live.table.n_pages : (q->group->n_prompt - 1) / pt;
        n += ifl_kv_cache_pages(s->cache, q->n_tokens) - held;
    }
    for (const ifl_prefix *p = s->prefixes; p; p = p->next)
        n += ifl_kv_cache_pages(s->cache, prefix_positions(p)) - p->build.table.n_pages;
    return n;
}

static void plan_admit(ifl_scheduler *s) {
    int64_t outstanding =
        s->queue && s->n_active < s->options.sequences_max ? pages_outstanding(s) : 0;
    while (s->queue && s->n_active < s->options.sequences_max) {
        ifl_sequence *seq = s->queue;
        int32_t prompt = seq->group->n_prompt - 1;
        int64_t need =
            ifl_kv_cache_pages(s->cache, seq->n_tokens) - prompt / s->options.page_tokens;
        if (!seq->group->prefix) need += ifl_kv_cache_pages(s->cache, prompt);
        /* Alone it fits (checked at submission), cached prompts giving way. */
        if (s->n_active > 0 && s->cache->n_free - outstanding < need + s->n_active) return;
        outstanding += need;
        queue_remove(s, seq);
        active_insert(s, seq);
    }
}

/* --- The plan
 * --------------------------------------------------------------------------------------------- */

static void plan_add(ifl_scheduler *s, ifl_work work) {
    IFL_ASSERT(s->n_work < s->work_max);
    s->work[s->n_work++] = work;
}

typedef enum { PROMPT_READY, PROMPT_WAIT, PROMPT_NO_PAGES } prompt_state;

static void plan_prompt_rows(ifl_scheduler *s, ifl_prefix *p, int32_t n_rows, ifl_work_kind kind) {
    ifl_build *b = &p->build;
    int32_t begin = b->n_built;
    if (!build_extend(b, begin + n_rows, s->current)) {
        b->n_built = b->n_runs =
            0; /* swaps came faster than chunks: from the start, under one version */
        return;
    }
    p->step_planned = s->step;
    plan_add(s, (ifl_work){.group = p->group,
                           .pages = b->table.pages,
                           .version = s->current,
                           .begin = begin,
                           .n_rows = n_rows,
                           .kind = kind});
}

/* Shares the full pages, copies the partial one. */
static prompt_state plan_adopt(ifl_scheduler *s, ifl_sequence *seq, ifl_build *b, bool force) {
    ifl_prefix *p = seq->prefix;
    int32_t n_full = prefix_positions(p) / s->options.page_tokens;
    int32_t n_rest = prefix_positions(p) % s->options.page_tokens;
    for (int32_t i = 0; i < n_full; i++) {
        ifl_kv_cache_share(s->cache, p->build.table.pages[i]);
        ifl_page_table_push(&b->table, p->build.table.pages[i]);
    }
    if (n_rest > 0) {
        if (!pages_reserve(s, seq, &b->table, prefix_positions(p), force)) {
            ifl_page_table_clear(&b->table, s->cache);
            return PROMPT_NO_PAGES;
        }
        IFL_ASSERT(s->n_copies < s->copies_max);
        s->copies[s->n_copies++] =
            (ifl_page_copy){b->table.pages[n_full], p->build.table.pages[n_full], n_rest};
    }
    b->n_built = p->build.n_built;
    b->n_runs = p->build.n_runs;
    for (int32_t i = 0; i < b->n_runs; i++)
        b->runs[i] = p->build.runs[i];
    b->adopted = true;
    s->n_shared += b->n_built;
    prefix_unbind(seq);
    prefix_drop_unneeded(s, p);
    return PROMPT_READY;
}

/* Brings the group's prompt into build `b` of `seq`: makes it, goes on with it, waits for it or
 * adopts it. Its rows are readable from the step after the one that runs them. */
static ifl_status plan_prompt(ifl_scheduler *s, ifl_sequence *seq, ifl_build *b, int32_t *budget,
                              bool force, ifl_work_kind kind, prompt_state *state, ifl_error *err) {
    int32_t n = seq->group->n_prompt - 1;
    *state = PROMPT_READY;
    if (b->adopted) return IFL_OK;
    if (n == 0) {
        b->adopted = true;
        return IFL_OK;
    }
    if (!seq->prefix) {
        if (!seq->group->prefix) IFL_TRY(prefix_create(s, seq->group, err));
        seq->prefix = seq->group->prefix;
        seq->prefix->n_waiting++;
    }
    ifl_prefix *p = seq->prefix;
    *state = PROMPT_WAIT;
    if (p->step_planned == s->step) return IFL_OK;
    if (p->build.n_built == n) {
        *state = plan_adopt(s, seq, b, force);
        return IFL_OK;
    }
    int32_t n_rows = n - p->build.n_built < *budget ? n - p->build.n_built : *budget;
    if (n_rows == 0) return IFL_OK;
    if (!pages_reserve(s, seq, &p->build.table, p->build.n_built + n_rows, force)) {
        *state = PROMPT_NO_PAGES;
        return IFL_OK;
    }
    plan_prompt_rows(s, p, n_rows, kind);
    *budget -= n_rows;
    return IFL_OK;
}

static ifl_status plan_building(ifl_scheduler *s, ifl_sequence *seq, int32_t *budget,
                                ifl_error *err) {
    ifl_build *b = &seq->live;
    /* Its first build is a prefill; a sequence that has sampled is rebuilt. */
    ifl_work_kind kind = seq->n_tokens > seq->group->n_prompt ? IFL_WORK_REBUILD : IFL_WORK_PREFILL;
    prompt_state prompt;
    IFL_TRY(plan_prompt(s, seq, b, budget, true, kind, &prompt, err));
    if (prompt != PROMPT_READY) return IFL_OK;
    int32_t missing = seq->n_tokens - 1 - b->n_built, begin = b->n_built;
    int32_t n_rows = missing < *budget ? missing : *budget;
    bool starts = n_rows == missing;
    if (n_rows + starts == 0) return IFL_OK;
    if (!pages_reserve(s, seq, &b->table, begin + n_rows + starts, true)) return IFL_OK; /* waits */
    if (n_rows > 0 && !build_extend(b, begin + n_rows, s->current)) {
        build_reset(s, b);
        return IFL_OK;
    }
    *budget -= n_rows;
    if (starts) {
        seq->state = IFL_SEQUENCE_RUNNING;
        seq->restarted = false;
        b->n_built++; /* the sampled row */
    }
    plan_add(s, (ifl_work){.seq = seq,
                           .group = seq->group,
                           .pages = b->table.pages,
                           .version = s->current,
                           .begin = begin,
                           .n_rows = n_rows + starts,
                           .sample = starts,
                           .starts = starts,
                           .kind = kind});
    return IFL_OK;
}

static void build_swap(ifl_sequence *seq) {
    ifl_build b = seq->live;
    seq->live = seq->shadow;
    seq->shadow = b;
}

/* Gives up the old KV; what is there of the shadow becomes the build. */
static void plan_in_place(ifl_scheduler *s, ifl_sequence *seq) {
    build_swap(seq);
    build_reset(s, &seq->shadow);
    seq->state = IFL_SEQUENCE_BUILDING;
    seq->version = s->current;
}

/* *decode: whether the sequence goes on under its old version in this step. */
static ifl_status plan_shadow(ifl_scheduler *s, ifl_sequence *seq, int32_t *budget, bool *decode,
                              ifl_error *err) {
    ifl_build *b = &seq->shadow;
    prompt_state prompt;
    *decode = true;
    IFL_TRY(plan_prompt(s, seq, b, budget, false, IFL_WORK_REBUILD, &prompt, err));
    if (prompt == PROMPT_WAIT) return IFL_OK;
    int32_t missing = seq->n_tokens - 1 - b->n_built, begin = b->n_built;
    int32_t n_rows = missing < *budget ? missing : *budget;
    bool flips = n_rows == missing;
    if (prompt == PROMPT_NO_PAGES ||
        !pages_reserve(s, seq, &b->table, begin + n_rows + flips, false)) {
        plan_in_place(s, seq);
        *decode = false;
        return IFL_OK;
    }
    if (n_rows + flips == 0) return IFL_OK;
    bool extended = n_rows == 0 || build_extend(b, begin + n_rows, s->current);
    IFL_ASSERT(extended); /* a shadow has one version only */
    *budget -= n_rows;
    if (flips) {
        build_swap(seq);
        build_reset(s, &seq->shadow);
        seq->version = s->current;
        seq->live.n_built++;
        *decode = false;
        b = &seq->live;
    }
    plan_add(s, (ifl_work){.seq = seq,
                           .group = seq->group,
                           .pages = b->table.pages,
                           .version = s->current,
                           .begin = begin,
                           .n_rows = n_rows + flips,
                           .sample = flips,
                           .starts = flips,
                           .kind = IFL_WORK_REBUILD});
    return IFL_OK;
}

static ifl_status plan_running(ifl_scheduler *s, ifl_sequence *seq, int32_t *budget,
                               ifl_error *err) {
    bool decode = true;
    bool old = seq->version != s->current;
    if (old) IFL_TRY(plan_shadow(s, seq, budget, &decode, err));
    if (!decode) return IFL_OK;
    if (!pages_reserve(s, seq, &seq->live.table, seq->n_tokens, true)) {
        /* A current sequence waits: someone older has the pages. One with a shadow could be the
         * oldest and wait for itself. */
        if (old) plan_in_place(s, seq);
        return IFL_OK;
    }
    seq->live.n_built++;
    plan_add(s, (ifl_work){.seq = seq,
                           .group = seq->group,
                           .pages = seq->live.table.pages,
                           .version = seq->version,
                           .begin = seq->n_tokens - 1,
                           .n_rows = 1,
                           .sample = true,
                           .kind = IFL_WORK_DECODE});
    return IFL_OK;
}

/* What is left of the budget goes into the prompt that is next in the queue, so that its samples
 * decode in the step in which they get their slots. */
static ifl_status plan_ahead(ifl_scheduler *s, int32_t budget, ifl_error *err) {
    if (!s->queue || budget == 0) return IFL_OK;
    ifl_group *g = s->queue->group;
    int32_t n = g->n_prompt - 1;
    if (n == 0) return IFL_OK;
    int64_t free_pages = s->cache->n_free - pages_outstanding(s) - s->n_active;
    if (!g->prefix) {
        if (free_pages < ifl_kv_cache_pages(s->cache, n)) return IFL_OK;
        IFL_TRY(prefix_create(s, g, err));
    }
    ifl_prefix *p = g->prefix;
    int32_t n_rows = n - p->build.n_built < budget ? n - p->build.n_built : budget;
    if (p->step_planned == s->step || n_rows == 0) return IFL_OK;
    int32_t missing =
        ifl_kv_cache_pages(s->cache, p->build.n_built + n_rows) - p->build.table.n_pages;
    if (missing > s->cache->n_free - s->n_active) return IFL_OK;
    for (; missing > 0; missing--)
        ifl_page_table_push(&p->build.table, ifl_kv_cache_take(s->cache));
    plan_prompt_rows(s, p, n_rows,
                     s->queue->n_tokens > g->n_prompt ? IFL_WORK_REBUILD : IFL_WORK_PREFILL);
    return IFL_OK;
}

ifl_status ifl_scheduler_plan(ifl_scheduler *s, ifl_error *err) {
    s->step++;
    s->n_work = s->n_copies = 0;
    plan_admit(s);
    bool builds = false, shadows = false;
    for (int32_t i = 0; i < s->n_active; i++) {
        builds |= s->active[i]->state == IFL_SEQUENCE_BUILDING;
        shadows |=
            s->active[i]->state == IFL_SEQUENCE_RUNNING && s->active[i]->version != s->current;
    }
    /* Half for shadows while both want rows: neither may starve, since old weights live until the
     * last shadow is done. An odd row goes to each in turn. */
    int32_t chunk = s->options.chunk_tokens;
    int32_t shadow_budget = !shadows  ? 0
                            : !builds ? chunk
                                      : (int32_t)(((int64_t)chunk + (s->step & 1)) / 2);
    int32_t build_budget = chunk - shadow_budget;
    for (int32_t i = 0; i < s->n_active; i++) {
        ifl_sequence *seq = s->active[i];
        if (seq->state == IFL_SEQUENCE_BUILDING)
            IFL_TRY(plan_building(s, seq, &build_budget, err));
        else
            IFL_TRY(plan_running(s, seq, &shadow_budget, err));
    }
    return plan_ahead(s, build_budget, err);
}

/* --- Swap
 * -------------------------------------------------------------------------------------------------
 */

int64_t ifl_scheduler_oldest_version(const ifl_scheduler *s) {
    int64_t oldest = s->current;
    for (int32_t i = 0; i < s->n_active; i++)
        if (s->active[i]->version < oldest) oldest = s->active[i]->version;
    return oldest;
}

/* keep: whoever was admitted goes on with the prompt it waits for; later members make a new one. */
static void swap_keep(ifl_scheduler *s) {
    for (int32_t i = 0; i < s->n_active; i++)
        s->active[i]->version = s->current;
    for (ifl_prefix *p = s->prefixes, *next; p; p = next) {
        next = p->next;
        if (p->group->prefix == p) p->group->prefix = NULL;
        prefix_drop_unneeded(s, p);
    }
}

/* recompute: builds under way start again under the new version; running sequences keep their own
 * until their shadow is done. */
static void swap_recompute(ifl_scheduler *s) {
    for (int32_t i = 0; i < s->n_active; i++) {
        ifl_sequence *seq = s->active[i];
        prefix_unbind(seq);
        if (seq->state != IFL_SEQUENCE_BUILDING) continue;
        build_reset(s, &seq->live);
        seq->version = s->current;
        seq->restarted = true;
    }
    while (s->prefixes)
        prefix_free(s, s->prefixes);
}

ifl_status ifl_scheduler_swap(ifl_scheduler *s, int64_t version, ifl_error *err) {
    if (version <= s->current && s->n_active + s->n_queued > 0)
        return ifl_fail(err, IFL_USAGE, "swap: version %lld while sequences live under %lld",
                        (long long)version, (long long)s->current);
    if (s->options.recompute)
        for (int32_t i = 0; i < s->n_active; i++) {
            const ifl_sequence *seq = s->active[i];
            if (seq->version != s->current)
                return ifl_fail(
                    err, IFL_AGAIN,
                    "swap: version %lld is still being replaced by %lld; try again after "
                    "some steps",
                    (long long)seq->version, (long long)s->current);
            if (seq->state == IFL_SEQUENCE_BUILDING && seq->restarted)
                return ifl_fail(
                    err, IFL_AGAIN,
                    "swap: a prompt that the last swap interrupted is still being built; try "
                    "again after some steps");
        }
    s->current = version;
    if (s->options.recompute)
        swap_recompute(s);
    else
        swap_keep(s);
    return IFL_OK;
}
