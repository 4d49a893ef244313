#include "learner/pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"

/* What packing needs to know of one item. */
typedef struct item_shape {
    int32_t n_loss;   /* L_i */
    int32_t n_rows;   /* = position of the last loss token */
    int32_t n_prefix; /* rows that could be shared: prompt tokens 0 .. P-2 */
    int32_t pack;     /* -1: left out */
    bool leads;       /* first of a run of members with one prefix, inside one pack */
    bool shares;      /* its run has two or more members and a prefix */
} item_shape;

typedef struct pack_size {
    int64_t n_rows, n_seqs, n_targets, n_pages;
    int32_t n_shared;
} pack_size;

/* All columns of all packs lie in a few arrays, cut up in pack order. */
typedef struct pack_storage {
    item_shape *shapes;
    pack_size *sizes;
    int32_t *rows_i32; /* tokens */
    int32_t *pages;
    ifl_batch_seq *seqs;
    int32_t *targets_i32; /* five columns of n_targets: rows, tokens, L_i, items, positions */
    float *targets_f32;   /* four columns: temperatures, log mu, advantages, loss weights */
    int64_t *versions;
    ifl_kept_set *kept; /* NULL: no item is truncated */
} pack_storage;

int32_t ifl_pack_loss_tokens(const ifl_trajectory *traj) {
    int32_t n = 0;
    for (int32_t t = 0; t < traj->n_tokens; t++)
        n += traj->loss_weights[t] != 0.0f;
    return n;
}

static int item_compare(const void *a, const void *b) {
    const ifl_trajectory *x = ((const ifl_pack_item *)a)->traj,
                         *y = ((const ifl_pack_item *)b)->traj;
    if (x->task_serial != y->task_serial) return x->task_serial < y->task_serial ? -1 : 1;
    return (x->sample > y->sample) - (x->sample < y->sample);
}

void ifl_pack_sort(ifl_pack_item *items, int32_t n) {
    if (n > 1) qsort(items, (size_t)n, sizeof *items, item_compare);
}

static ifl_status item_fail(const ifl_trajectory *traj, int32_t t, const char *what,
                            ifl_error *err) {
    return ifl_fail(err, IFL_FORMAT, "trajectory (task serial %llu, sample %d), token %d: %s",
                    (unsigned long long)traj->task_serial, traj->sample, t, what);
}

static ifl_status item_measure(item_shape *out, const ifl_trajectory *traj, ifl_error *err) {
    *out = (item_shape){.pack = -1};
    if (traj->n_tokens < 0 || traj->n_tokens > IFL_TOKENS_MAX)
        return item_fail(traj, traj->n_tokens, "number of tokens out of range", err);
    if (traj->n_tokens > 0 && (!traj->tokens || !traj->logprobs || !traj->loss_weights))
        return item_fail(traj, 0, "a column is missing", err);
    int32_t first = -1, last = -1;
    for (int32_t t = 0; t < traj->n_tokens; t++) {
        if (traj->loss_weights[t] == 0.0f) continue;
        if (!isfinite(traj->loss_weights[t]))
            return item_fail(traj, t, "loss weight not finite", err);
        if (t == 0) return item_fail(traj, t, "a loss token at position 0 has no context", err);
        if (first < 0) first = t;
        last = t;
        out->n_loss++;
    }
    if (out->n_loss == 0) return IFL_OK;
    if (!(traj->temperature >= 0.0f && isfinite(traj->temperature)))
        return item_fail(traj, first, "temperature out of range", err);
    if (ifl_trajectory_is_truncated(traj) && !traj->kept_ends)
        return item_fail(traj, first,
                         "its log-prob is of a truncated distribution (top_k or top_p), whose kept "
                         "set is not recorded",
                         err);
    out->n_rows = last;
    int32_t n_prompt = ifl_trajectory_n_prompt(traj);
    int32_t prefix = (n_prompt < first ? n_prompt : first) - 1;
    out->n_prefix = prefix > 0 ? prefix : 0;
    return IFL_OK;
}

/* Whether b can read the prefix rows of a. */
static bool items_share(const ifl_trajectory *a, const item_shape *sa, const ifl_trajectory *b,
                        const item_shape *sb) {
    return a->task_serial == b->task_serial && sa->n_prefix > 0 && sa->n_prefix == sb->n_prefix &&
           memcmp(a->tokens, b->tokens, (size_t)sa->n_prefix * sizeof *a->tokens) == 0;
}

/* Next-fit over the items; gives each its pack and finds the runs that share a prefix. */
static ifl_status packs_assign(ifl_pack_set *set, item_shape *shapes, const ifl_pack_item *items,
                               int32_t n, const ifl_pack_options *options, ifl_error *err) {
    int32_t pack = -1, leader = -1;
    int64_t rows = 0;
    for (int32_t i = 0; i < n; i++) {
        item_shape *shape = &shapes[i];
        const ifl_trajectory *traj = items[i].traj;
        IFL_TRY(item_measure(shape, traj, err));
        if (shape->n_loss == 0) {
            set->n_empty++;
            continue;
        }
        if (items[i].advantage == 0.0f && !options->keep_zero) {
            set->n_zero++;
            continue;
        }
        if (shape->n_rows > options->rows_max)
            return ifl_fail(err, IFL_LIMIT,
                            "trajectory (task serial %llu, sample %d) needs %d rows, the trainer "
                            "takes %d: raise learner.pack_tokens or lower rollout.max_new_tokens",
                            (unsigned long long)traj->task_serial, traj->sample, shape->n_rows,
                            options->rows_max);
        bool share = leader >= 0 && items_share(items[leader].traj, &shapes[leader], traj, shape);
        int64_t added = share ? shape->n_rows - shape->n_prefix : shape->n_rows;
        if (pack < 0 || rows + added > options->pack_tokens) {
            pack++;
            rows = 0;
            share = false;
            added = shape->n_rows;
            set->n_oversized += added > options->pack_tokens;
        }
        shape->pack = pack;
        shape->leads = !share;
        if (share)
            shape->shares = shapes[leader].shares = true;
        else
            leader = i;
        rows += added;
        set->n_items++;
    }
    set->n_packs = pack + 1;
    return IFL_OK;
}

static void packs_measure(ifl_pack_set *set, const item_shape *shapes, int32_t n,
                          pack_size *sizes) {
    for (int32_t i = 0; i < n; i++) {
        const item_shape *shape = &shapes[i];
        if (shape->pack < 0) continue;
        pack_size *size = &sizes[shape->pack];
        size->n_seqs++;
        size->n_targets += shape->n_loss;
        size->n_pages += shape->n_rows;
        size->n_rows += shape->shares ? shape->n_rows - shape->n_prefix : shape->n_rows;
        if (!shape->shares) continue;
        if (shape->leads) { /* a sequence of its own for the prefix */
            size->n_seqs++;
            size->n_rows += shape->n_prefix;
            size->n_pages += shape->n_prefix;
        } else {
            size->n_shared += shape->n_prefix;
        }
    }
    for (int32_t p = 0; p < set->n_packs; p++) {
        set->n_rows += sizes[p].n_rows;
        set->n_targets += sizes[p].n_targets;
        set->n_shared_rows += sizes[p].n_shared;
        if (sizes[p].n_rows > set->rows_max) set->rows_max = (int32_t)sizes[p].n_rows;
        if (sizes[p].n_targets > set->targets_max) set->targets_max = (int32_t)sizes[p].n_targets;
    }
}

/* Where the next pack's columns begin. */
typedef struct pack_cursor {
    int64_t row, seq, target, page;
    int64_t n_targets; /* stride of the target columns */
} pack_cursor;

/* Adds the rows of tokens [from, traj rows) and their pages; `prefix_row` is where positions [0,
 * from) lie. */
static void pack_sequence(ifl_packed *packed, int32_t *tokens, int32_t *pages,
                          const ifl_trajectory *traj, ifl_batch_seq *seq, int32_t from,
                          int32_t n_rows, int32_t prefix_row) {
    int32_t row = packed->pack.n_rows;
    for (int32_t t = 0; t < from; t++)
        pages[t] = prefix_row + t;
    for (int32_t t = 0; t < n_rows; t++) {
        tokens[row + t] = traj->tokens[from + t];
        pages[from + t] = row + t;
    }
    *seq = (ifl_batch_seq){.row_begin = row, .n_rows = n_rows, .pos_begin = from, .pages = pages};
    packed->pack.n_rows += n_rows;
    packed->pack.n_seqs++;
}

static ifl_status pack_targets(ifl_packed *packed, const pack_storage *storage, pack_cursor *cursor,
                               const ifl_pack_item *item, int32_t index, const item_shape *shape,
                               int32_t row_of_position_0, ifl_error *err) {
    const ifl_trajectory *traj = item->traj;
    int64_t n = cursor->n_targets;
    int32_t run = 0;
    for (int32_t t = 1; t <= shape->n_rows; t++) {
        if (traj->loss_weights[t] == 0.0f) continue;
        while (run < traj->n_runs && traj->runs[run].begin + traj->runs[run].n_tokens <= t)
            run++;
        if (run == traj->n_runs || traj->runs[run].begin > t)
            return item_fail(traj, t, "a loss token that no policy version sampled", err);
        int64_t i = cursor->target++;
        storage->targets_i32[i] = row_of_position_0 + t - 1;
        storage->targets_i32[n + i] = traj->tokens[t];
        storage->targets_i32[2 * n + i] = shape->n_loss;
        storage->targets_i32[3 * n + i] = index;
        storage->targets_i32[4 * n + i] = t;
        /* Greedy tokens are recorded with their log-prob at temperature 1 (kernels/model.h). */
        storage->targets_f32[i] = traj->temperature > 0.0f ? traj->temperature : 1.0f;
        storage->targets_f32[n + i] = traj->logprobs[t];
        storage->targets_f32[2 * n + i] = item->advantage;
        storage->targets_f32[3 * n + i] = traj->loss_weights[t];
        storage->versions[i] = traj->runs[run].version;
        if (storage->kept) storage->kept[i] = ifl_trajectory_kept(traj, t);
        packed->pack.n_targets++;
    }
    return IFL_OK;
}

/* Fills pack p from its items, which are [*next, ...) in order. */
static ifl_status pack_fill(ifl_pack_set *set, int32_t p, const ifl_pack_item *items, int32_t n,
                            int32_t *next, pack_cursor *cursor, ifl_error *err) {
    pack_storage *storage = set->storage;
    ifl_packed *packed = &set->packs[p];
    int64_t n_all = cursor->n_targets, first = cursor->target;
    int32_t *tokens = storage->rows_i32 + cursor->row;
    packed->pack.tokens = tokens;
    packed->pack.seqs = storage->seqs + cursor->seq;
    packed->pack.target_rows = storage->targets_i32 + first;
    packed->pack.target_tokens = storage->targets_i32 + n_all + first;
    packed->pack.temperatures = storage->targets_f32 + first;
    packed->pack.kept = storage->kept ? storage->kept + first : NULL;
    packed->target_items = storage->targets_i32 + 3 * n_all + first;
    packed->target_positions = storage->targets_i32 + 4 * n_all + first;
    packed->n_shared_rows = storage->sizes[p].n_shared;

    int32_t prefix_row = 0;
    for (; *next < n; (*next)++) {
        const item_shape *shape = &storage->shapes[*next];
        if (shape->pack < 0) continue;
        if (shape->pack != p) break;
        const ifl_trajectory *traj = items[*next].traj;
        int32_t from = 0;
        if (shape->shares) {
            from = shape->n_prefix;
            if (shape->leads) {
                prefix_row = packed->pack.n_rows;
                pack_sequence(packed, tokens, storage->pages + cursor->page, traj,
                              &storage->seqs[cursor->seq++], 0, from, 0);
                cursor->page += from;
            }
        }
        int32_t row = packed->pack.n_rows;
        pack_sequence(packed, tokens, storage->pages + cursor->page, traj,
                      &storage->seqs[cursor->seq++], from, shape->n_rows - from, prefix_row);
        cursor->page += shape->n_rows;
        IFL_TRY(
            pack_targets(packed, storage, cursor, &items[*next], *next, shape, row - from, err));
    }
    cursor->row += packed->pack.n_rows;
    packed->loss_tokens = (ifl_loss_tokens){
        .n = packed->pack.n_targets,
        .behaviour_logprobs = storage->targets_f32 + n_all + first,
        .advantages = storage->targets_f32 + 2 * n_all + first,
        .loss_weights = storage->targets_f32 + 3 * n_all + first,
        .trajectory_tokens = storage->targets_i32 + 2 * n_all + first,
        .trajectories = packed->target_items,
        .versions = storage->versions + first,
    };
    IFL_ASSERT(packed->pack.n_rows == storage->sizes[p].n_rows);
    IFL_ASSERT(packed->pack.n_targets == storage->sizes[p].n_targets);
    return IFL_OK;
}

static ifl_status packs_allocate(ifl_pack_set *set, pack_storage *storage,
                                 const ifl_pack_item *items, int32_t n, ifl_error *err) {
    bool keeps_sets = false;
    for (int32_t i = 0; i < n; i++)
        keeps_sets |= storage->shapes[i].pack >= 0 && items[i].traj->kept_ends;
    size_t seqs = 0, pages = 0, targets = (size_t)set->n_targets;
    for (int32_t p = 0; p < set->n_packs; p++) {
        seqs += (size_t)storage->sizes[p].n_seqs;
        pages += (size_t)storage->sizes[p].n_pages;
    }
    storage->rows_i32 = ifl_alloc((size_t)set->n_rows, sizeof *storage->rows_i32);
    storage->pages = ifl_alloc(pages, sizeof *storage->pages);
    storage->seqs = ifl_alloc(seqs, sizeof *storage->seqs);
    storage->targets_i32 = ifl_alloc(targets * 5, sizeof *storage->targets_i32);
    storage->targets_f32 = ifl_alloc(targets * 4, sizeof *storage->targets_f32);
    storage->versions = ifl_alloc(targets, sizeof *storage->versions);
    if (keeps_sets) storage->kept = ifl_alloc(targets, sizeof *storage->kept);
    set->packs = ifl_alloc((size_t)set->n_packs, sizeof *set->packs);
    if (!storage->rows_i32 || !storage->pages || !storage->seqs || !storage->targets_i32 ||
        !storage->targets_f32 || !storage->versions || (keeps_sets && !storage->kept) ||
        !set->packs)
        return ifl_fail(err, IFL_NOMEM, "packing: out of memory for %lld rows and %lld targets",
                        (long long)set->n_rows, (long long)set->n_targets);
    return IFL_OK;
}

ifl_status ifl_pack_build(ifl_pack_set **out, const ifl_pack_item *items, int32_t n,
                          const ifl_pack_options *options, ifl_error *err) {
    *out = NULL;
    if (options->pack_tokens < 1 || options->rows_max < options->pack_tokens)
        return ifl_fail(err, IFL_USAGE,
                        "learner.pack_tokens: got %d, wanted 1 to the trainer's %d rows",
                        options->pack_tokens, options->rows_max);
    IFL_ASSERT(n >= 0);
    ifl_status st = IFL_OK;
    ifl_pack_set *set = ifl_alloc(1, sizeof *set);
    pack_storage *storage = ifl_alloc(1, sizeof *storage);
    if (set) set->storage = storage;
    if (!set || !storage) {
        ifl_free(storage);
        ifl_free(set);
        return ifl_fail(err, IFL_NOMEM, "packing: out of memory");
    }
    storage->shapes = ifl_alloc((size_t)n, sizeof *storage->shapes);
    if (!storage->shapes)
        IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "packing: out of memory"), done);
    IFL_TRY_GOTO(st, packs_assign(set, storage->shapes, items, n, options, err), done);
    storage->sizes = ifl_alloc((size_t)set->n_packs, sizeof *storage->sizes);
    if (!storage->sizes) IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "packing: out of memory"), done);
    packs_measure(set, storage->shapes, n, storage->sizes);
    IFL_TRY_GOTO(st, packs_allocate(set, storage, items, n, err), done);

    pack_cursor cursor = {.n_targets = set->n_targets};
    int32_t next = 0;
    for (int32_t p = 0; p < set->n_packs; p++)
        IFL_TRY_GOTO(st, pack_fill(set, p, items, n, &next, &cursor, err), done);
    *out = set;
    set = NULL;
done:
    ifl_pack_set_free(set);
    return st;
}

void ifl_pack_set_free(ifl_pack_set *set) {
    if (!set) return;
    pack_storage *storage = set->storage;
    ifl_free(storage->shapes);
    ifl_free(storage->sizes);
    ifl_free(storage->rows_i32);
    ifl_free(storage->pages);
    ifl_free(storage->seqs);
    ifl_free(storage->targets_i32);
    ifl_free(storage->targets_f32);
    ifl_free(storage->versions);
    ifl_free(storage->kept);
    ifl_free(storage);
    ifl_free(set->packs);
    ifl_free(set);
}
