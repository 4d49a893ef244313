#include "common/task_disjoint.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"

typedef struct keyed {
    ifl_hash key;
    int64_t index;
} keyed;

static int keyed_compare(const void *a, const void *b) {
    const keyed *x = a, *y = b;
    if (x->key.high != y->key.high) return x->key.high < y->key.high ? -1 : 1;
    if (x->key.low != y->key.low) return x->key.low < y->key.low ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static ifl_status keyed_make(const ifl_task_source *source, keyed **out, int64_t *n,
                             ifl_error *err) {
    ifl_hash *keys = NULL;
    *out = NULL;
    IFL_TRY(ifl_task_source_keys(source, &keys, n, err));
    *out = malloc(((size_t)*n + 1) * sizeof **out);
    if (!*out) {
        free(keys);
        return ifl_fail(err, IFL_NOMEM, "%s: no memory for its hashes", source->where);
    }
    for (int64_t i = 0; i < *n; i++)
        (*out)[i] = (keyed){keys[i], i};
    free(keys);
    qsort(*out, (size_t)*n, sizeof **out, keyed_compare);
    return IFL_OK;
}

/* Two sorted lists side by side. */
static ifl_status lists_compare(const ifl_task_source *eval, const keyed *a, int64_t n_a,
                                const ifl_task_source *train, const keyed *b, int64_t n_b,
                                ifl_error *err) {
    char here[IFL_PATH_MAX + 128], there[IFL_PATH_MAX + 128];
    int64_t n_shared = 0, first_a = 0, first_b = 0;
    for (int64_t i = 0, j = 0; i < n_a && j < n_b;) {
        if (ifl_hash_equal(a[i].key, b[j].key)) {
            if (n_shared == 0 || a[i].index < first_a) {
                first_a = a[i].index;
                first_b = b[j].index;
            }
            n_shared++;
            i++;
        } else if (keyed_compare(&(keyed){a[i].key, 0}, &(keyed){b[j].key, 0}) < 0) {
            i++;
        } else {
            j++;
        }
    }
    if (n_shared == 0) return IFL_OK;
    ifl_task_source_describe(eval, first_a, here);
    ifl_task_source_describe(train, first_b, there);
    return ifl_fail(
        err, IFL_MISMATCH,
        "%lld evaluation tasks are also trained on (same prompt and answer), the first: "
        "%.400s is %.400s: take them out of one of the two",
        (long long)n_shared, here, there);
}

ifl_status ifl_task_disjoint_check(const ifl_task_source *eval, int32_t n_eval,
                                   const ifl_config *config, ifl_error *err) {
    for (int32_t t = 0; t < config->data.n_train; t++) {
        ifl_task_source train;
        ifl_error why = {0};
        ifl_status st = ifl_task_source_open(&train, config, "train", t, NULL, 0, &why);
        if (st == IFL_NOTFOUND) {
            ifl_warn("%s; not checked against the evaluation tasks", why.text);
            continue;
        }
        if (st != IFL_OK) {
            if (err) *err = why;
            return st;
        }
        keyed *a = NULL, *b = NULL;
        int64_t n_a = 0, n_b = 0;
        st = keyed_make(&train, &b, &n_b, err);
        for (int32_t e = 0; e < n_eval && st == IFL_OK; e++) {
            st = keyed_make(&eval[e], &a, &n_a, err);
            if (st == IFL_OK) st = lists_compare(&eval[e], a, n_a, &train, b, n_b, err);
            free(a);
            a = NULL;
        }
        free(b);
        ifl_task_source_close(&train);
        if (st != IFL_OK) return st;
    }
    return IFL_OK;
}
