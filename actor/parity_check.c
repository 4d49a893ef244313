#include "actor/parity_check.h"

#include <stdlib.h>
#include <string.h>

#include "actor/parity_internal.h"
#include "common/memory.h"
#include "kernels/random_model.h"

#define PARITY_BATCH_MAX 64

const ifl_ops *ifl_parity_mutant(const ifl_ops *base) {
    int n;
    return ifl_mutant_ops(&ifl_mutants(&n)[0], base);
}

/* --- Report
 * --------------------------------------------------------------------------------------------- */

void ifl_parity_begin(parity *p, const char *check) {
    ifl_parity_report *r = p->report;
    IFL_ASSERT(r->n_rows < IFL_PARITY_ROWS_MAX);
    snprintf(r->rows[r->n_rows++].check, sizeof r->rows[0].check, "%s", check);
}

void ifl_parity_count(parity *p, int64_t n_compared, int64_t n_differing) {
    ifl_parity_report *r = p->report;
    r->rows[r->n_rows - 1].n_compared += n_compared;
    r->rows[r->n_rows - 1].n_differing += n_differing;
    r->n_compared += n_compared;
    r->n_differing += n_differing;
}

char *ifl_parity_first(parity *p) {
    char *first = p->report->rows[p->report->n_rows - 1].first;
    return first[0] ? NULL : first;
}

void ifl_parity_compare(parity *p, int32_t t, float got, const char *what, int64_t value) {
    float want = p->reference[t];
    bool same = memcmp(&got, &want, sizeof got) == 0;
    ifl_parity_count(p, 1, !same);
    char *first = same ? NULL : ifl_parity_first(p);
    if (!first) return;
    uint32_t got_bits, want_bits;
    memcpy(&got_bits, &got, sizeof got);
    memcpy(&want_bits, &want, sizeof want);
    snprintf(first, sizeof p->report->rows[0].first,
             "%s %lld, token %d: %.9g (%08x), wanted %.9g (%08x)", what, (long long)value, t,
             (double)got, got_bits, (double)want, want_bits);
}

void ifl_parity_report_print(const ifl_parity_report *r, FILE *f) {
    fprintf(f, "%-42s %12s %12s\n", "check", "compared", "differing");
    for (int32_t i = 0; i < r->n_rows; i++) {
        fprintf(f, "%-42s %12lld %12lld\n", r->rows[i].check, (long long)r->rows[i].n_compared,
                (long long)r->rows[i].n_differing);
        if (r->rows[i].first[0]) fprintf(f, "    first: %s\n", r->rows[i].first);
    }
    fprintf(f, "%-42s %12lld %12lld\n", "total", (long long)r->n_compared,
            (long long)r->n_differing);
}

ifl_status ifl_parity_report_status(const ifl_parity_report *r, ifl_error *err) {
    for (int32_t i = 0; i < r->n_rows; i++)
        if (r->rows[i].n_differing > 0)
            return ifl_fail(err, IFL_PARITY, "%lld of %lld values differ; first in %s: %s",
                            (long long)r->n_differing, (long long)r->n_compared, r->rows[i].check,
                            r->rows[i].first);
    return IFL_OK;
}

/* --- One sequence on one path
 * --------------------------------------------------------------------------- */

typedef struct parity_path {
    const ifl_ops *ops;
    ifl_thread_pool *pool;
    int32_t page_tokens;
    bool shuffle;        /* physical pages in another order */
    const int32_t *cuts; /* chunk ends, ascending, the last one n_tokens - 1 */
    const char *what;    /* for the report */
    int64_t value;
} parity_path;

static ifl_status path_run_with(parity *p, const parity_path *path, ifl_workspace *ws,
                                ifl_kv_store *kv, int32_t *pages, ifl_error *err) {
    int32_t n_rows = p->n_tokens - 1;
    for (int32_t i = 0; i < kv->n_pages; i++)
        pages[i] = path->shuffle ? (int32_t)ifl_rng_permute(p->options->seed, 1,
                                                            (uint64_t)kv->n_pages, (uint64_t)i)
                                 : i;
    for (int32_t begin = 0, c = 0; begin < n_rows; begin = path->cuts[c++]) {
        int32_t n = path->cuts[c] - begin;
        ifl_batch_seq seq = {0, n, begin, pages};
        ifl_batch batch = {n, 1, n, p->tokens + begin, &seq, p->iota};
        const float *hidden;
        IFL_TRY(ifl_forward(ws, p->weights, kv, &batch, &hidden, err));
        IFL_TRY(ifl_head_logprobs(ws, p->weights, hidden, n, p->tokens + begin + 1, p->ones,
                                  p->logprobs, err));
        for (int32_t i = 0; i < n; i++) {
            if (p->reference_ready)
                ifl_parity_compare(p, begin + 1 + i, p->logprobs[i].logprob, path->what,
                                   path->value);
            else
                p->reference[begin + 1 + i] = p->logprobs[i].logprob;
        }
    }
    return IFL_OK;
}

static ifl_status path_run(parity *p, const parity_path *path, ifl_error *err) {
    ifl_workspace *ws = NULL;
    ifl_kv_store *kv = NULL;
    ifl_status st;
    int32_t n_pages = (p->n_tokens + path->page_tokens - 1) / path->page_tokens;
    int32_t *pages = ifl_alloc((size_t)n_pages, sizeof *pages);
    if (!pages) return ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    IFL_TRY_GOTO(st, ifl_workspace_create(&ws, p->model, p->n_tokens, path->pool, path->ops, err),
                 done);
    IFL_TRY_GOTO(st, ifl_kv_store_create(&kv, p->model, n_pages, path->page_tokens, err), done);
    st = path_run_with(p, path, ws, kv, pages, err);
done:
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
    ifl_free(pages);
    return st;
}

/* The whole sequence in one chunk. */
static parity_path path_whole(parity *p) {
    p->cuts[0] = p->n_tokens - 1;
    return (parity_path){
        .ops = p->ops, .pool = p->pool, .page_tokens = 16, .cuts = p->cuts, .what = "whole"};
}

/* Token by token: what a decode of batch size 1 does. Everything else is compared with it. */
static ifl_status check_reference(parity *p, ifl_error *err) {
    parity_path path = path_whole(p);
    path.pool = NULL;
    for (int32_t i = 0; i < p->n_tokens; i++)
        p->cuts[i] = i + 1;
    IFL_TRY(path_run(p, &path, err));
    p->reference_ready = true;
    return IFL_OK;
}

static ifl_status check_splits(parity *p, ifl_error *err) {
    ifl_parity_begin(p, "prefill in every split in two");
    int32_t n = p->n_tokens - 1;
    /* Of long sequences: only the cuts near the borders of pages, KV splits and attention tiles. */
    for (int32_t cut = 1; cut <= n; cut++) {
        bool near = cut % 16 <= 1 || cut % 16 == 15;
        if (n > 64 && cut > 20 && (!near || (n > 256 && cut % 64 > 1 && cut % 64 != 63))) continue;
        if (p->options->quick && cut % 7 != 1 && cut % 64 > 1) continue;
        parity_path path = path_whole(p);
        p->cuts[0] = cut;
        p->cuts[1] = n;
        path.what = "cut at";
        path.value = cut;
        IFL_TRY(path_run(p, &path, err));
    }
    ifl_parity_begin(p, "prefill in random chunks");
    ifl_rng_key key = {p->options->seed, 2, IFL_RNG_TEST};
    for (int32_t round = 0; round < (p->options->quick ? 4 : 16); round++) {
        parity_path path = path_whole(p);
        int32_t n_cuts = 0;
        for (int32_t at = 0; at < n; n_cuts++) {
            uint64_t widest = round % 4 == 0 ? 3 : round % 4 == 1 ? 9 : 70;
            at += 1 + (int32_t)ifl_rng_below(&key, (uint64_t)at, (uint32_t)round, widest);
            p->cuts[n_cuts] = at < n ? at : n;
        }
        path.what = "round";
        path.value = round;
        IFL_TRY(path_run(p, &path, err));
    }
    return IFL_OK;
}

static ifl_status check_pages(parity *p, ifl_error *err) {
    ifl_parity_begin(p, "pages of 1, 16, 128 tokens, shuffled too");
    static const int32_t sizes[] = {1, 16, 128};
    for (int i = 0; i < 6; i++) {
        parity_path path = path_whole(p);
        path.page_tokens = sizes[i % 3];
        path.shuffle = i >= 3;
        path.what = "pages of";
        path.value = path.page_tokens;
        IFL_TRY(path_run(p, &path, err));
    }
    return IFL_OK;
}

static ifl_status check_threads(parity *p, ifl_error *err) {
    ifl_parity_begin(p, "threads 1..n");
    for (int n = 1; n <= p->threads_max; n++) {
        ifl_thread_pool *pool;
        IFL_TRY(ifl_thread_pool_create(&pool, n, err));
        parity_path path = path_whole(p);
        path.pool = pool;
        path.what = "threads";
        path.value = n;
        ifl_status st = path_run(p, &path, err);
        ifl_thread_pool_free(pool);
        IFL_TRY(st);
    }
    return IFL_OK;
}

static ifl_status check_instruction_sets(parity *p, ifl_error *err) {
    const ifl_ops *list[16];
    char name[64] = "instruction sets";
    int n = ifl_ops_list(p->model->numerics, list, 16);
    for (int i = 0; i < n; i++) {
        size_t at = strlen(name);
        snprintf(name + at, sizeof name - at, "%s%s", i ? ", " : ": ", list[i]->name);
    }
    ifl_parity_begin(p, name);
    for (int i = 0; i < n; i++) {
        /* The scalar reference is a thousand times slower: small models only. */
        if (strcmp(list[i]->name, "ref") == 0 && ifl_parity_large(p)) continue;
        parity_path path = path_whole(p);
        path.ops = list[i];
        path.what = list[i]->name;
        path.value = i;
        IFL_TRY(path_run(p, &path, err));
    }
    return IFL_OK;
}

/* --- Batches
 * -------------------------------------------------------------------------------------------- */

/* One row of the sequence under test among B - 1 rows of others, which sit at other positions. */
static ifl_status batch_run(parity *p, ifl_workspace *ws, ifl_kv_store *kv, const int32_t *pages,
                            int32_t position, int32_t n_batch, ifl_error *err) {
    ifl_batch_seq seqs[PARITY_BATCH_MAX];
    int32_t tokens[PARITY_BATCH_MAX], targets[PARITY_BATCH_MAX];
    int32_t own = (position * 5 + n_batch * 3) % n_batch,
            pages_each = kv->n_pages / PARITY_BATCH_MAX;
    for (int32_t i = 0; i < n_batch; i++) {
        int32_t other = i < own ? i + 1 : i; /* store slot 0 is the sequence under test */
        int32_t at = i == own ? position : other % 8;
        int32_t slot = i == own ? 0 : other;
        tokens[i] = i == own ? p->tokens[at] : p->others[other * 8 + at];
        targets[i] = p->tokens[position + 1];
        seqs[i] = (ifl_batch_seq){i, 1, at, pages + slot * pages_each};
    }
    ifl_batch batch = {n_batch, n_batch, n_batch, tokens, seqs, p->iota};
    const float *hidden;
    IFL_TRY(ifl_forward(ws, p->weights, kv, &batch, &hidden, err));
    IFL_TRY(ifl_head_logprobs(ws, p->weights, hidden, n_batch, targets, p->ones, p->logprobs, err));
    ifl_parity_compare(p, position + 1, p->logprobs[own].logprob, "batch of", n_batch);
    return IFL_OK;
}

static ifl_status check_batches(parity *p, ifl_error *err) {
    ifl_parity_begin(p, "decode in batches of 1..64");
    ifl_workspace *ws = NULL;
    ifl_kv_store *kv = NULL;
    ifl_status st;
    int32_t pages_each = (p->n_tokens + 15) / 16, n_pages = pages_each * PARITY_BATCH_MAX;
    int32_t rows = p->n_tokens > PARITY_BATCH_MAX ? p->n_tokens : PARITY_BATCH_MAX;
    int32_t *pages = ifl_alloc((size_t)n_pages, sizeof *pages);
    if (!pages) return ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    for (int32_t i = 0; i < n_pages; i++)
        pages[i] = i;
    IFL_TRY_GOTO(st, ifl_workspace_create(&ws, p->model, rows, p->pool, p->ops, err), done);
    IFL_TRY_GOTO(st, ifl_kv_store_create(&kv, p->model, n_pages, 16, err), done);
    for (int32_t slot = 0; slot < PARITY_BATCH_MAX; slot++) {
        int32_t n = slot == 0 ? p->n_tokens - 1 : 8;
        ifl_batch_seq seq = {0, n, 0, pages + slot * pages_each};
        ifl_batch batch = {n, 1, 0, slot == 0 ? p->tokens : p->others + slot * 8, &seq, p->iota};
        const float *hidden;
        IFL_TRY_GOTO(st, ifl_forward(ws, p->weights, kv, &batch, &hidden, err), done);
    }
    int32_t last = p->n_tokens - 2;
    const int32_t positions[] = {0, 1, last / 3, last / 2, last - 1, last};
    int n_positions = p->model->n_elements > 20000000 ? 2 : 6; /* the last ones tell most */
    for (int i = 6 - n_positions; i < 6; i++)
        for (int32_t n = 1; n <= PARITY_BATCH_MAX; n += p->options->quick && n > 4 ? 15 : 1)
            IFL_TRY_GOTO(st, batch_run(p, ws, kv, pages, positions[i], n, err), done);
done:
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
    ifl_free(pages);
    return st;
}

/* --- All
 * ------------------------------------------------------------------------------------------------
 */

static void parity_clear(parity *p) {
    ifl_thread_pool_free(p->pool);
    ifl_free(p->logprobs);
    ifl_free(p->ones);
    ifl_free(p->iota);
    ifl_free(p->cuts);
    ifl_free(p->reference);
    ifl_free(p->others);
    ifl_free(p->tokens);
}

static ifl_status parity_open(parity *p, ifl_error *err) {
    const ifl_parity_options *o = p->options;
    p->n_tokens = o->n_tokens ? o->n_tokens : 40;
    if (p->n_tokens < 8 || p->n_tokens > 1024 || p->n_tokens > p->model->config.max_positions)
        return ifl_fail(err, IFL_USAGE, "parity: %d tokens, wanted 8 to %d", p->n_tokens,
                        p->model->config.max_positions < 1024 ? p->model->config.max_positions
                                                              : 1024);
    size_t n = (size_t)p->n_tokens + PARITY_BATCH_MAX;
    p->tokens = ifl_alloc(n, sizeof *p->tokens);
    p->others = ifl_alloc(PARITY_BATCH_MAX * 8, sizeof *p->others);
    p->reference = ifl_alloc(n, sizeof *p->reference);
    p->cuts = ifl_alloc(n, sizeof *p->cuts);
    p->iota = ifl_alloc(n, sizeof *p->iota);
    p->ones = ifl_alloc(n, sizeof *p->ones);
    p->logprobs = ifl_alloc(n, sizeof *p->logprobs);
    if (!p->tokens || !p->others || !p->reference || !p->cuts || !p->iota || !p->ones ||
        !p->logprobs)
        return ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    ifl_rng_key key = {o->seed, 0, IFL_RNG_TEST};
    uint64_t vocab = (uint64_t)p->model->config.vocab_size;
    for (size_t i = 0; i < n; i++) {
        p->iota[i] = (int32_t)i;
        p->ones[i] = 1;
        p->tokens[i] = (int32_t)ifl_rng_below(&key, i, 0, vocab);
    }
    for (uint64_t i = 0; i < PARITY_BATCH_MAX * 8; i++)
        p->others[i] = (int32_t)ifl_rng_below(&key, i, 1, vocab);
    IFL_TRY(ifl_thread_pool_create(&p->pool, o->threads_max, err));
    p->threads_max = ifl_thread_pool_size(p->pool);
    p->ops = o->ops ? o->ops : ifl_ops_best(p->model->numerics);
    p->engine_ops = p->ops;
    int n_mutants;
    const ifl_mutant *mutant = o->mutate ? &ifl_mutants(&n_mutants)[0] : o->mutant;
    if (mutant) p->engine_ops = ifl_mutant_ops(mutant, p->ops);
    if (mutant && !mutant->sampler_only) p->ops = p->engine_ops;
    return IFL_OK;
}

ifl_status ifl_parity_run(const ifl_model *model, const ifl_weights *weights,
                          const ifl_parity_options *options, ifl_parity_report *report,
                          ifl_error *err) {
    memset(report, 0, sizeof *report);
    parity p = {.model = model, .weights = weights, .options = options, .report = report};
    ifl_status st;
    IFL_TRY_GOTO(st, parity_open(&p, err), done);
    IFL_TRY_GOTO(st, check_reference(&p, err), done);
    IFL_TRY_GOTO(st, check_batches(&p, err), done);
    IFL_TRY_GOTO(st, check_splits(&p, err), done);
    IFL_TRY_GOTO(st, check_pages(&p, err), done);
    IFL_TRY_GOTO(st, check_threads(&p, err), done);
    IFL_TRY_GOTO(st, check_instruction_sets(&p, err), done);
    IFL_TRY_GOTO(st, ifl_parity_check_definition(&p, err), done);
    IFL_TRY_GOTO(st, ifl_parity_check_trainer(&p, err), done);
    st = ifl_parity_check_engine(&p, err);
done:
    parity_clear(&p);
    return st;
}

/* --- Mutation
 * --------------------------------------------------------------------------------------------- */

static void mutation_print(const ifl_mutant *mutant, const ifl_parity_report *r, FILE *out) {
    const char *first = "", *check = "";
    fprintf(out, "%-19s %10lld %10lld  ", mutant->name, (long long)r->n_compared,
            (long long)r->n_differing);
    if (r->n_differing == 0) fprintf(out, "NOT NOTICED");
    for (int32_t i = 0, n = 0; i < r->n_rows; i++) {
        if (r->rows[i].n_differing == 0) continue;
        if (n++ == 0) first = r->rows[i].first, check = r->rows[i].check;
        fprintf(out, "%s%s (%lld)", n > 1 ? "; " : "", r->rows[i].check,
                (long long)r->rows[i].n_differing);
    }
    fprintf(out, "\n");
    if (first[0]) fprintf(out, "    first: %s: %s\n", check, first);
}

ifl_status ifl_parity_mutate(const ifl_model *model, const ifl_weights *weights,
                             const ifl_parity_options *options, FILE *out,
                             ifl_parity_mutation_result *result, ifl_error *err) {
    int n;
    const ifl_mutant *all = ifl_mutants(&n);
    ifl_parity_report *report = ifl_alloc(1, sizeof *report);
    if (!report) return ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    memset(result, 0, sizeof *result);
    if (out) fprintf(out, "%-19s %10s %10s  %s\n", "mutant", "compared", "differing", "noticed by");
    ifl_status st = IFL_OK;
    for (int i = 0; i < n && st == IFL_OK; i++) {
        const char *why_not;
        if (!ifl_mutant_applies(&all[i], model, &why_not)) {
            if (out) fprintf(out, "%-19s left out: %s\n", all[i].name, why_not);
            result->n_left_out++;
            continue;
        }
        ifl_parity_options mutated = *options;
        mutated.mutate = false;
        mutated.mutant = &all[i];
        mutated.quick = true;
        if (mutated.n_tokens < all[i].n_tokens_min) mutated.n_tokens = all[i].n_tokens_min;
        st = ifl_parity_run(model, weights, &mutated, report, err);
        if (st != IFL_OK) break;
        if (out) mutation_print(&all[i], report, out);
        result->n_mutants++;
        result->n_noticed += report->n_differing > 0;
        size_t at = strlen(result->survivors);
        if (report->n_differing == 0)
            snprintf(result->survivors + at, sizeof result->survivors - at, "%s%s", at ? ", " : "",
                     all[i].name);
    }
    ifl_free(report);
    return st;
}

ifl_status ifl_parity_mutation_status(const ifl_parity_mutation_result *r, ifl_error *err) {
    if (r->n_noticed < r->n_mutants)
        return ifl_fail(err, IFL_INTERNAL,
                        "%d of %d mutants passed every check: %s; the checks are blind to them",
                        r->n_mutants - r->n_noticed, r->n_mutants, r->survivors);
    return ifl_fail(err, IFL_PARITY, "bits differ, as they must: all %d mutants were noticed",
                    r->n_mutants);
}
