#include "learner/redo.h"

#include <stdlib.h>
#include <string.h>

#include "common/memory.h"

typedef enum {
    EVENT_STEP_DONE,
    EVENT_TAKE,
    EVENT_ANSWER,
    EVENT_LEASED,
    EVENT_VERSION,
    EVENT_DRAWN
} event_kind;

typedef struct event {
    event_kind kind;
    int64_t step; /* done, take; version */
    union {
        struct {
            uint64_t *serials; /* owned */
            int32_t n;
        } take;
        ifl_redo_answer answer;
        uint64_t serial; /* leased */
        ifl_hash content;
        ifl_redo_draw draw;
    };
} event;

typedef struct event_list {
    event *items;
    size_t n, cap;
} event_list;

/* The history up to now: `settled` stands; `own` is what the present process has done, which stands
 * once it has caught up. Only what can matter to the run that goes on from `step` is kept, or a
 * resume would take memory for the whole log. */
typedef struct history {
    int64_t step;         /* that the run goes on from, ... */
    const uint64_t *open; /* [n_open] ascending: the groups that its checkpoint has open, ... */
    int32_t n_open;
    uint64_t next_serial; /* ... and its task cursor */
    event_list settled, own;
    size_t resumed_at; /* where in `settled` the present process began */
    bool caught_up;
    ifl_version_process *processes;
    int32_t n_processes;
    size_t processes_cap;
} history;

static void list_clear(event_list *list, size_t from) {
    for (size_t i = from; i < list->n; i++)
        if (list->items[i].kind == EVENT_TAKE) free(list->items[i].take.serials);
    list->n = from;
}

static ifl_status list_add(event_list *list, event e, ifl_error *err) {
    void *items = list->items;
    ifl_status st = ifl_grow(&items, &list->cap, list->n + 1, sizeof e, err);
    list->items = items;
    if (st == IFL_OK)
        list->items[list->n++] = e;
    else if (e.kind == EVENT_TAKE)
        free(e.take.serials);
    return st;
}

/* Behind the end of `step`; SIZE_MAX when the list hasn't got it. Step 0 ends before everything. */
static size_t list_find_step(const event_list *list, int64_t step) {
    if (step == 0) return 0;
    for (size_t i = list->n; i > 0; i--)
        if (list->items[i - 1].kind == EVENT_STEP_DONE && list->items[i - 1].step == step) return i;
    return SIZE_MAX;
}

static ifl_status history_settle(history *h, ifl_error *err) {
    list_clear(&h->settled, h->resumed_at);
    for (size_t i = 0; i < h->own.n; i++) {
        ifl_status st = list_add(&h->settled, h->own.items[i], err);
        if (st != IFL_OK) {
            /* What was moved belongs to the other list now, the one that failed to nobody. */
            memmove(h->own.items, h->own.items + i + 1, (h->own.n - i - 1) * sizeof *h->own.items);
            h->own.n -= i + 1;
            return st;
        }
    }
    h->own.n = 0;
    h->caught_up = true;
    return IFL_OK;
}

static ifl_status history_add(history *h, event e, ifl_error *err) {
    return list_add(h->caught_up ? &h->settled : &h->own, e, err);
}

static bool list_has_draw(const event_list *list, uint64_t serial) {
    for (size_t i = 0; i < list->n; i++)
        if (list->items[i].kind == EVENT_DRAWN && list->items[i].draw.task_serial == serial)
            return true;
    return false;
}

/* An answer is one whether its process has caught up or not: it was sampled by weights that had
 * been proven to be what they were, and an actor was told that it is stored. */
static ifl_status history_keep_answers(history *h, ifl_error *err) {
    for (size_t i = 0; i < h->own.n; i++) {
        const event *e = &h->own.items[i];
        bool kept = e->kind == EVENT_ANSWER || e->kind == EVENT_LEASED ||
                    (e->kind == EVENT_DRAWN && !list_has_draw(&h->settled, e->draw.task_serial));
        if (kept) IFL_TRY(list_add(&h->settled, *e, err));
    }
    return IFL_OK;
}

/* Damage: what lies before it is not known any more. */
static void history_forget(history *h) {
    list_clear(&h->settled, 0);
    list_clear(&h->own, 0);
    h->caught_up = true;
}

static ifl_status on_run_started(history *h, const ifl_record *r, ifl_error *err) {
    void *processes = h->processes;
    ifl_status st = ifl_grow(&processes, &h->processes_cap, (size_t)h->n_processes + 1,
                             sizeof *h->processes, err);
    h->processes = processes;
    if (st != IFL_OK) return st;
    h->processes[h->n_processes++] =
        (ifl_version_process){ifl_rollout_segment_number(r->file), r->step};
    IFL_TRY(history_keep_answers(h, err));
    list_clear(&h->own, 0);
    size_t at = list_find_step(&h->settled, r->step);
    /* A history of which nothing is known (or nothing that this process began from): it starts
     * with this one. */
    h->resumed_at = at == SIZE_MAX ? 0 : at;
    h->caught_up = false;
    if (at == SIZE_MAX) {
        list_clear(&h->settled, 0);
        IFL_TRY(list_add(&h->settled, (event){.kind = EVENT_STEP_DONE, .step = r->step}, err));
        h->resumed_at = 1;
    }
    if (h->resumed_at == h->settled.n) h->caught_up = true; /* nothing to be done again */
    return IFL_OK;
}

static int compare_serials(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Whether the group has to be open again. */
static bool history_wants(const history *h, uint64_t serial) {
    return serial >= h->next_serial ||
           bsearch(&serial, h->open, (size_t)h->n_open, sizeof *h->open, compare_serials) != NULL;
}

static ifl_status on_taken(history *h, const ifl_record *r, ifl_error *err) {
    if (r->step <= h->step) return IFL_OK;
    uint64_t *serials = malloc(sizeof *serials * (size_t)(r->n_keys + 1));
    if (!serials) return ifl_fail(err, IFL_NOMEM, "out of memory for a step's groups");
    for (int32_t i = 0; i < r->n_keys; i++)
        serials[i] = r->keys[i].task_serial;
    event e = {.kind = EVENT_TAKE, .step = r->step, .take = {serials, r->n_keys}};
    return history_add(h, e, err);
}

static void note_version(ifl_redo_answer *answer, int64_t version) {
    if (answer->version_newest < 0 || version < answer->version_oldest)
        answer->version_oldest = version;
    if (version > answer->version_newest) answer->version_newest = version;
}

static ifl_status on_trajectory(history *h, const ifl_record *r, ifl_error *err) {
    ifl_trajectory *traj = NULL;
    ifl_status st = ifl_trajectory_decode(&traj, r->meta, r->n_meta, r->payload, r->n_payload, err);
    if (st != IFL_OK) {
        ifl_error_wrap(err, "%s: offset %lld", r->file, (long long)r->offset);
        return st;
    }
    event e = {.kind = EVENT_ANSWER,
               .answer = {.task_serial = traj->task_serial,
                          .sample = traj->sample,
                          .segment = ifl_rollout_segment_number(r->file),
                          .offset = r->offset,
                          .version_oldest = -1,
                          .version_newest = -1}};
    for (int32_t i = 0; i < traj->n_runs; i++)
        note_version(&e.answer, traj->runs[i].version);
    for (int32_t i = 0; i < traj->n_kv_events; i++)
        note_version(&e.answer, traj->kv_events[i].version);
    bool wanted = traj->purpose == IFL_PURPOSE_TRAIN && history_wants(h, traj->task_serial);
    ifl_trajectory_free(traj);
    return wanted ? history_add(h, e, err) : IFL_OK;
}

/* Only what was decided about a member for itself: the other reasons follow from its step. */
static ifl_status on_dropped(history *h, const ifl_record *r, ifl_error *err) {
    bool invalid = strcmp(r->reason, ifl_drop_reason_name(IFL_DROP_INVALID)) == 0,
         attempts = strcmp(r->reason, ifl_drop_reason_name(IFL_DROP_ATTEMPTS)) == 0;
    if (r->key.purpose != IFL_PURPOSE_TRAIN || (!invalid && !attempts) ||
        !history_wants(h, r->key.task_serial))
        return IFL_OK;
    event e = {.kind = EVENT_ANSWER,
               .answer = {.task_serial = r->key.task_serial,
                          .sample = r->key.sample,
                          .dropped = true,
                          .drop_reason = invalid ? IFL_DROP_INVALID : IFL_DROP_ATTEMPTS,
                          .segment = ifl_rollout_segment_number(r->file),
                          .offset = r->offset,
                          .version_oldest = -1,
                          .version_newest = -1}};
    return history_add(h, e, err);
}

static ifl_status on_record(history *h, const ifl_record *r, ifl_error *err) {
    switch (r->type) {
    case IFL_RECORD_RUN_STARTED:
        return on_run_started(h, r, err);
    case IFL_RECORD_CAUGHT_UP:
        return h->caught_up ? IFL_OK : history_settle(h, err);
    case IFL_RECORD_TRAINED:
        return history_add(h, (event){.kind = EVENT_STEP_DONE, .step = r->step}, err);
    case IFL_RECORD_TAKEN:
        return on_taken(h, r, err);
    case IFL_RECORD_PUBLISHED:
        if (r->step < h->step) return IFL_OK;
        return history_add(
            h, (event){.kind = EVENT_VERSION, .step = r->step, .content = r->content}, err);
    case IFL_RECORD_TRAJECTORY:
        return on_trajectory(h, r, err);
    case IFL_RECORD_DROPPED:
        return on_dropped(h, r, err);
    case IFL_RECORD_LEASED:
        if (r->purpose != IFL_PURPOSE_TRAIN || r->task_serial < h->next_serial) return IFL_OK;
        return history_add(h, (event){.kind = EVENT_LEASED, .serial = r->task_serial}, err);
    case IFL_RECORD_DRAWN:
        if (!history_wants(h, r->task_serial)) return IFL_OK;
        return history_add(
            h, (event){.kind = EVENT_DRAWN, .draw = {r->task_serial, {r->source, r->item}}}, err);
    case IFL_RECORD_GROUP_CLOSED:
    case IFL_RECORD_MASKED:
    case IFL_RECORD_CHECKPOINT:
    case IFL_RECORD_RUN_ENDED:
        return IFL_OK;
    }
    return IFL_OK;
}

static int compare_answers(const void *a, const void *b) {
    const ifl_redo_answer *x = a, *y = b;
    if (x->task_serial != y->task_serial) return x->task_serial < y->task_serial ? -1 : 1;
    if (x->sample != y->sample) return x->sample < y->sample ? -1 : 1;
    /* Of one key the later record is the newer one: segments grow from process to process. */
    if (x->segment != y->segment) return x->segment < y->segment ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Takes over from the history what lies behind `from`, and the answers of groups that are open. */
static ifl_status redo_collect(ifl_redo *redo, event_list *list, size_t from, ifl_error *err) {
    uint64_t next_serial = redo->next_serial;
    redo->takes = calloc(list->n + 1, sizeof *redo->takes);
    redo->answers = calloc(list->n + 1, sizeof *redo->answers);
    redo->versions = calloc(list->n + 1, sizeof *redo->versions);
    redo->draws = calloc(list->n + 1, sizeof *redo->draws);
    if (!redo->takes || !redo->answers || !redo->versions || !redo->draws)
        return ifl_fail(err, IFL_NOMEM, "out of memory for what the run has to do again");
    for (size_t i = 0; i < list->n; i++) {
        event *e = &list->items[i];
        switch (e->kind) {
        case EVENT_TAKE:
            if (i < from) break;
            redo->takes[redo->n_takes++] = (ifl_redo_take){e->step, e->take.n, e->take.serials};
            e->take.serials = NULL; /* they are redo's now */
            break;
        case EVENT_ANSWER:
            redo->answers[redo->n_answers++] = e->answer;
            break;
        case EVENT_LEASED:
            /* Not one that is further off than groups can be open beside others. */
            if (e->serial >= redo->next_serial && e->serial - next_serial < IFL_GROUPS_MAX / 2)
                redo->next_serial = e->serial + 1;
            break;
        case EVENT_VERSION:
            redo->versions[redo->n_versions++] = (ifl_redo_version){e->step, e->content};
            if (e->step > redo->last_version) redo->last_version = e->step;
            break;
        case EVENT_DRAWN:
            redo->draws[redo->n_draws++] = e->draw;
            break;
        case EVENT_STEP_DONE:
            break;
        }
    }
    return IFL_OK;
}

/* One fate a member: the newest. An older one of the same key is the same answer, or of a process
 * after which the run could not be done again. Answers of versions that were never published are
 * left out; nobody could make those versions. */
static void redo_reduce(ifl_redo *redo) {
    qsort(redo->answers, (size_t)redo->n_answers, sizeof *redo->answers, compare_answers);
    int64_t n = 0;
    for (int64_t i = 0; i < redo->n_answers; i++) {
        const ifl_redo_answer *a = &redo->answers[i];
        if (a->version_newest > redo->last_version) continue;
        bool again = n > 0 && redo->answers[n - 1].task_serial == a->task_serial &&
                     redo->answers[n - 1].sample == a->sample;
        redo->answers[again ? n - 1 : n++] = *a;
    }
    redo->n_answers = n;
}

/* Reads all records into the history; of damage the first place is kept in redo->damage. */
static ifl_status redo_read_log(ifl_redo *redo, history *h, ifl_rollout_reader *reader,
                                ifl_error *err) {
    for (;;) {
        ifl_record record;
        ifl_error why = {0};
        ifl_status st = ifl_rollout_reader_next(reader, &record, &why);
        if (st == IFL_NOTFOUND) return IFL_OK;
        if (st == IFL_OK) st = on_record(h, &record, &why);
        if (st == IFL_OK) continue;
        if (st != IFL_FORMAT) {
            *err = why;
            return st;
        }
        if (!*redo->damage) snprintf(redo->damage, sizeof redo->damage, "%s", why.text);
        history_forget(h);
        ifl_rollout_reader_skip(reader);
    }
}

ifl_status ifl_redo_read(ifl_redo **out, const char *folder, int64_t step, const uint64_t *open,
                         int32_t n_open, uint64_t next_serial, ifl_error *err) {
    *out = NULL;
    history h = {.step = step, .n_open = n_open, .next_serial = next_serial, .caught_up = true};
    ifl_rollout_reader *reader = NULL;
    ifl_status st;
    uint64_t *sorted = malloc(sizeof *sorted * (size_t)(n_open + 1));
    ifl_redo *redo = calloc(1, sizeof *redo);
    if (!redo || !sorted) {
        st = ifl_fail(err, IFL_NOMEM, "out of memory for what the run has to do again");
        goto done;
    }
    redo->step = redo->last_version = step;
    redo->next_serial = next_serial;
    if (n_open > 0) memcpy(sorted, open, sizeof *sorted * (size_t)n_open);
    qsort(sorted, (size_t)n_open, sizeof *sorted, compare_serials);
    h.open = sorted;
    st = ifl_rollout_reader_open(&reader, folder, err);
    if (st == IFL_OK) IFL_TRY_GOTO(st, redo_read_log(redo, &h, reader, err), done);
    if (st != IFL_OK && st != IFL_NOTFOUND) goto done; /* no log at all is none to do again */
    IFL_TRY_GOTO(st, history_keep_answers(&h, err), done);
    size_t from = list_find_step(&h.settled, step);
    if (from != SIZE_MAX) {
        IFL_TRY_GOTO(st, redo_collect(redo, &h.settled, from, err), done);
        redo_reduce(redo);
    }
    redo->processes = h.processes;
    redo->n_processes = h.n_processes;
    h.processes = NULL; /* redo's now */
    *out = redo;
    redo = NULL; /* the caller owns it now */
done:
    ifl_rollout_reader_close(reader);
    free(h.processes);
    list_clear(&h.settled, 0);
    list_clear(&h.own, 0);
    free(h.settled.items);
    free(h.own.items);
    free(sorted);
    ifl_redo_free(redo);
    return st;
}

void ifl_redo_free(ifl_redo *redo) {
    if (!redo) return;
    for (int32_t i = 0; i < redo->n_takes; i++)
        free(redo->takes[i].serials);
    free(redo->takes);
    free(redo->answers);
    free(redo->versions);
    free(redo->draws);
    free(redo->processes);
    free(redo);
}

const ifl_hash *ifl_redo_version_content(const ifl_redo *redo, int64_t version) {
    for (int32_t i = redo->n_versions - 1; i >= 0; i--)
        if (redo->versions[i].version == version) return &redo->versions[i].content;
    return NULL;
}

const ifl_task_pick *ifl_redo_pick(const ifl_redo *redo, uint64_t task_serial) {
    for (int64_t i = redo->n_draws - 1; i >= 0; i--)
        if (redo->draws[i].task_serial == task_serial) return &redo->draws[i].pick;
    return NULL;
}
