/* The training side: teacher forcing of a pack gives the sampler's bits, and gradients have the
 * same bytes each time, for any thread count and on any instruction set. */
#include <string.h>

#include "actor/parity_internal.h"
#include "common/memory.h"

#define SCALAR_PRODUCTS_MAX 3000000

/* A pack of three sequences: the one under test cut at a shared prompt, another continuation of
 * that prompt, and a stranger in front. */
typedef struct parity_pack {
    int32_t n, n_rows; /* targets, rows */
    int32_t *tokens, *pages, *rows;
    float *coefficients;
    ifl_batch_seq seqs[4];
    ifl_pack pack;
} parity_pack;

static void pack_clear(parity_pack *k) {
    ifl_free(k->coefficients);
    ifl_free(k->rows);
    ifl_free(k->pages);
    ifl_free(k->tokens);
}

static ifl_status pack_make(parity *p, parity_pack *k, ifl_error *err) {
    int32_t n = p->n_tokens - 1, shared = n / 2, n_rows = 8 + n + 4;
    *k = (parity_pack){.n = n, .n_rows = n_rows};
    k->tokens = ifl_alloc((size_t)n_rows, sizeof *k->tokens);
    k->pages = ifl_alloc((size_t)n_rows * 3, sizeof *k->pages);
    k->rows = ifl_alloc((size_t)n, sizeof *k->rows);
    k->coefficients = ifl_alloc((size_t)n, sizeof *k->coefficients);
    if (!k->tokens || !k->pages || !k->rows || !k->coefficients)
        return ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    /* Rows: 8 strangers, the prompt, the other continuation, the rest of the sequence under test.
     */
    memcpy(k->tokens, p->others + 8, 8 * sizeof *k->tokens);
    memcpy(k->tokens + 8, p->tokens, (size_t)shared * sizeof *k->tokens);
    memcpy(k->tokens + 8 + shared, p->others + 16, 4 * sizeof *k->tokens);
    memcpy(k->tokens + 12 + shared, p->tokens + shared, (size_t)(n - shared) * sizeof *k->tokens);
    int32_t *stranger = k->pages, *other = k->pages + n_rows, *own = k->pages + 2 * n_rows;
    for (int32_t i = 0; i < 8; i++)
        stranger[i] = i;
    for (int32_t i = 0; i < n; i++) {
        own[i] = i < shared ? 8 + i : 12 + i;
        other[i] = 8 + i;
        k->rows[i] = own[i];
        k->coefficients[i] = (float)(i % 7 - 3) / 4.0f;
    }
    for (int32_t i = n; i < shared + 4; i++)
        other[i] = 8 + i;
    k->seqs[0] = (ifl_batch_seq){0, 8, 0, stranger};
    k->seqs[1] = (ifl_batch_seq){8, shared, 0, own};
    k->seqs[2] = (ifl_batch_seq){8 + shared, 4, shared, other};
    k->seqs[3] = (ifl_batch_seq){12 + shared, n - shared, shared, own};
    k->pack = (ifl_pack){n_rows, 4, n, k->tokens, k->seqs, k->rows, p->tokens + 1, p->ones, NULL};
    return IFL_OK;
}

/* --- Gradients
 * -------------------------------------------------------------------------------------------- */

typedef struct gradients {
    float *all;       /* [n_elements]; NULL for large models */
    uint64_t *hashes; /* [n_params] */
} gradients;

static void gradients_note(parity *p, gradients *want, const float *got, const char *what,
                           int64_t value) {
    const ifl_model *model = p->model;
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_param *param = &model->params[i];
        int64_t n = param->spec.rows * param->spec.cols, differing = 0, at = -1;
        const float *g = got + param->offset;
        if (!want->all) {
            differing = ifl_hash64(g, (size_t)n * sizeof *g) != want->hashes[i];
            ifl_parity_count(p, 1, differing);
        } else {
            for (int64_t e = 0; e < n; e++)
                if (memcmp(&g[e], &want->all[param->offset + e], sizeof *g) != 0) {
                    if (differing++ == 0) at = e;
                }
            ifl_parity_count(p, n, differing);
        }
        char *first = differing ? ifl_parity_first(p) : NULL;
        if (!first) continue;
        if (at < 0)
            snprintf(first, sizeof p->report->rows[0].first, "%s %lld: gradient of %s", what,
                     (long long)value, param->spec.name);
        else
            snprintf(first, sizeof p->report->rows[0].first,
                     "%s %lld: gradient %lld of %s is %.9g, wanted %.9g", what, (long long)value,
                     (long long)at, param->spec.name, (double)g[at],
                     (double)want->all[param->offset + at]);
    }
}

/* Forward and backward of the pack; the first call keeps the gradients, later ones compare. */
static ifl_status gradients_run(parity *p, const parity_pack *k, ifl_thread_pool *pool,
                                const ifl_ops *ops, const char *what, int64_t value,
                                gradients *want, bool first, ifl_error *err) {
    ifl_trainer *trainer;
    IFL_TRY(
        ifl_trainer_create(&trainer, p->model, k->n_rows, IFL_ACTIVATION_BYTES, pool, ops, err));
    ifl_status st = ifl_trainer_forward(trainer, p->weights, &k->pack, p->logprobs, err);
    if (st == IFL_OK)
        st = ifl_trainer_backward(trainer, p->weights, &k->pack, k->coefficients, err);
    const float *got = st == IFL_OK ? ifl_trainer_gradients(trainer) : NULL;
    if (got && !first) gradients_note(p, want, got, what, value);
    if (got && first && want->all)
        memcpy(want->all, got, (size_t)p->model->n_elements * sizeof *got);
    for (int32_t i = 0; got && first && i < p->model->n_params; i++) {
        const ifl_param *param = &p->model->params[i];
        want->hashes[i] = ifl_hash64(got + param->offset,
                                     (size_t)(param->spec.rows * param->spec.cols) * sizeof *got);
    }
    ifl_trainer_free(trainer);
    return st;
}

static ifl_status check_gradients(parity *p, const parity_pack *k, ifl_error *err) {
    ifl_parity_begin(p, "gradients again, by threads and kernels");
    gradients want = {0};
    const ifl_ops *list[16];
    int n_ops = ifl_ops_list(p->model->numerics, list, 16);
    ifl_status st;
    bool large = ifl_parity_large(p);
    want.hashes = ifl_alloc((size_t)p->model->n_params, sizeof *want.hashes);
    if (!large) want.all = ifl_alloc((size_t)p->model->n_elements, sizeof *want.all);
    if (!want.hashes || (!large && !want.all)) {
        st = ifl_fail(err, IFL_NOMEM, "parity: out of memory for gradients");
        goto done;
    }
    IFL_TRY_GOTO(st, gradients_run(p, k, p->pool, p->ops, "", 0, &want, true, err), done);
    IFL_TRY_GOTO(st, gradients_run(p, k, p->pool, p->ops, "run", 2, &want, false, err), done);
    for (int32_t n = 1; n <= 3 && n <= p->threads_max && !large; n += 2) {
        ifl_thread_pool *pool;
        IFL_TRY_GOTO(st, ifl_thread_pool_create(&pool, n, err), done);
        st = gradients_run(p, k, pool, p->ops, "threads", n, &want, false, err);
        ifl_thread_pool_free(pool);
        if (st != IFL_OK) goto done;
    }
    for (int i = 0; i < n_ops && !large; i++) {
        /* The scalar reference takes a second for ten million products of a weight and a row. */
        if (strcmp(list[i]->name, "ref") == 0 &&
            p->model->n_elements * k->n_rows > SCALAR_PRODUCTS_MAX)
            continue;
        IFL_TRY_GOTO(st, gradients_run(p, k, p->pool, list[i], list[i]->name, i, &want, false, err),
                     done);
    }
    st = IFL_OK;
done:
    ifl_free(want.all);
    ifl_free(want.hashes);
    return st;
}

ifl_status ifl_parity_check_trainer(parity *p, ifl_error *err) {
    parity_pack k;
    ifl_trainer *trainer = NULL;
    ifl_status st;
    ifl_parity_begin(p, "packed teacher forcing of the trainer");
    IFL_TRY_GOTO(st, pack_make(p, &k, err), done);
    IFL_TRY_GOTO(st,
                 ifl_trainer_create(&trainer, p->model, k.n_rows, IFL_ACTIVATION_BYTES, p->pool,
                                    p->ops, err),
                 done);
    IFL_TRY_GOTO(st, ifl_trainer_forward(trainer, p->weights, &k.pack, p->logprobs, err), done);
    for (int32_t i = 0; i < k.n; i++)
        ifl_parity_compare(p, i + 1, p->logprobs[i].logprob, "target", i);
    ifl_trainer_free(trainer);
    trainer = NULL; /* its memory first: the next one is as large */
    st = check_gradients(p, &k, err);
done:
    ifl_trainer_free(trainer);
    pack_clear(&k);
    return st;
}
