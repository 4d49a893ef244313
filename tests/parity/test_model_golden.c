/* The forward and the backward against references that tests/golden/make_models.py made with
 * Hugging Face transformers and PyTorch in float32, on the same bf16 weights.
 *
 * "logits MODEL REQUESTS OUT" as arguments makes it the driver of compare_transformers.py: REQUESTS
 * holds sequences of token ids, each an int32 count and its int32 ids; OUT gets the float32 logits
 * of every position, in that order. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/file_map.h"
#include "common/memory.h"
#include "common/model_file.h"
#include "common/safetensors.h"
#include "kernels/model.h"
#include "tests/golden_bits.h"
#include "tests/testing.h"

static const char *const families[] = {"llama3", "qwen2",      "qwen3",
                                       "gemma3", "qwen2-yarn", "qwen3-wide"};

/* f32: float32 against float32 in another order of summation; some three times what is measured,
 * far below the acceptance's 1e-4 and 1e-3, which would let a wrong tail of one block pass. bf16:
 * every product's input is rounded to 8 bits, up to 2^-9 of it each time, some 10 times a layer at
 * random: 1 to 5 % of the largest logit in models as narrow as these; gradients have those errors
 * twice. */
static const struct {
    double logits, logprobs, gradients;
} bounds[IFL_PROFILE_COUNT] = {
    [IFL_PROFILE_F32] = {1e-5, 3e-5, 2e-5}, [IFL_PROFILE_BF16] = {9e-2, 3e-1, 1e-1}};

typedef struct golden {
    ifl_model *model;
    ifl_weights *weights;
    ifl_safetensors *reference;
    ifl_thread_pool *pool;
} golden;

#define OK(expr)                                                                                   \
    do {                                                                                           \
        ifl_error e_ = {0};                                                                        \
        ifl_error *err = &e_;                                                                      \
        if ((expr) != IFL_OK) fail_msg("%s", e_.text);                                             \
    } while (0)

static char *read_text(const char *path) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = calloc(1, 65536);
    assert_non_null(text);
    assert_true(fread(text, 1, 65535, f) > 0);
    fclose(f);
    return text;
}

static void golden_open(golden *g, const char *family, int n_threads, ifl_profile profile) {
    char path[512];
    snprintf(path, sizeof path, "%s/models/%s/config.json", IFL_GOLDEN_DIR, family);
    char *text = read_text(path);
    ifl_model_config config;
    OK(ifl_model_config_from_json(&config, text, strlen(text), err));
    free(text);
    OK(ifl_model_create(&g->model, &config, 0, profile, err));
    OK(ifl_weights_create(&g->weights, g->model, err));
    snprintf(path, sizeof path, "%s/models/%s/model.safetensors", IFL_GOLDEN_DIR, family);
    ifl_safetensors *st;
    OK(ifl_safetensors_open(&st, path, err));
    for (int32_t i = 0; i < g->model->n_params; i++) {
        const ifl_param *p = &g->model->params[i];
        int64_t n = p->spec.rows * p->spec.cols;
        int32_t at = ifl_safetensors_find(st, p->spec.name);
        if (at < 0) fail_msg("%s: no tensor %s", path, p->spec.name);
        uint16_t *bf16 = ifl_alloc((size_t)n, 2);
        OK(ifl_safetensors_read_bf16(st, at, 0, n, bf16, NULL, err));
        ifl_weights_put(g->weights, p->offset, n, bf16);
        ifl_free(bf16);
    }
    ifl_safetensors_close(st);
    snprintf(path, sizeof path, "%s/models/%s/reference.safetensors", IFL_GOLDEN_DIR, family);
    OK(ifl_safetensors_open(&g->reference, path, err));
    OK(ifl_thread_pool_create(&g->pool, n_threads, err));
}

static void golden_close(golden *g) {
    ifl_thread_pool_free(g->pool);
    ifl_safetensors_close(g->reference);
    ifl_weights_free(g->weights);
    ifl_model_free(g->model);
}

static float *golden_f32(const golden *g, const char *name, int64_t *n) {
    int32_t at = ifl_safetensors_find(g->reference, name);
    if (at < 0) fail_msg("reference: no tensor %s", name);
    *n = ifl_safetensors_at(g->reference, at)->n_elements;
    float *out = ifl_alloc((size_t)*n, sizeof *out);
    OK(ifl_safetensors_read_f32(g->reference, at, 0, *n, out, err));
    return out;
}

static int32_t *golden_ids(const golden *g, const char *name, int32_t *n) {
    int32_t at = ifl_safetensors_find(g->reference, name);
    if (at < 0) fail_msg("reference: no tensor %s", name);
    int64_t count = ifl_safetensors_at(g->reference, at)->n_elements;
    int64_t *wide = ifl_alloc((size_t)count, sizeof *wide);
    int32_t *out = ifl_alloc((size_t)count, sizeof *out);
    OK(ifl_safetensors_read_i64(g->reference, at, 0, count, wide, err));
    for (int64_t i = 0; i < count; i++)
        out[i] = (int32_t)wide[i];
    ifl_free(wide);
    *n = (int32_t)count;
    return out;
}

static int32_t *identity(int32_t n) {
    int32_t *out = ifl_alloc((size_t)n, sizeof *out);
    for (int32_t i = 0; i < n; i++)
        out[i] = i;
    return out;
}

/* Logits of every position of `ids`, [n, V], by one packed forward. */
static float *all_logits(const golden *g, const ifl_ops *ops, const int32_t *ids, int32_t n) {
    ifl_workspace *ws;
    ifl_kv_store *kv;
    OK(ifl_workspace_create(&ws, g->model, n, g->pool, ops, err));
    OK(ifl_kv_store_create(&kv, g->model, n, 1, err));
    int32_t *rows = identity(n);
    ifl_batch_seq seq = {0, n, 0, rows};
    ifl_batch batch = {n, 1, n, ids, &seq, rows};
    const float *hidden;
    OK(ifl_forward(ws, g->weights, kv, &batch, &hidden, err));
    float *logits = ifl_alloc((size_t)n * (size_t)g->model->config.vocab_size, sizeof *logits);
    OK(ifl_head_logits(ws, g->weights, hidden, n, logits, err));
    ifl_free(rows);
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
    return logits;
}

static void test_logits_match_transformers(void **state) {
    (void)state;
    const ifl_ops *ops[16];
    int n_ops = testing_list_both(ops);
    for (size_t f = 0; f < sizeof families / sizeof *families; f++)
        for (int o = 0; o < n_ops; o++) {
            golden g;
            golden_open(&g, families[f], 2, ops[o]->profile);
            double worst = 0.0;
            int n_rows = 0;
            for (int s = 0;; s++) {
                char name[64];
                snprintf(name, sizeof name, "seq%d.ids", s);
                if (ifl_safetensors_find(g.reference, name) < 0) break;
                int32_t n;
                int64_t n_logits;
                int32_t *ids = golden_ids(&g, name, &n);
                snprintf(name, sizeof name, "seq%d.logits", s);
                float *want = golden_f32(&g, name, &n_logits);
                int64_t v = g.model->config.vocab_size;
                assert_int_equal(n_logits, n * v);
                float *got = all_logits(&g, ops[o], ids, n);
                for (int64_t t = 0; t < n; t++, n_rows++) {
                    double difference = 0.0, scale = 0.0;
                    for (int64_t i = 0; i < v; i++) {
                        double a = (double)got[t * v + i], b = (double)want[t * v + i];
                        assert_true(isfinite(a) && isfinite(b));
                        difference = fmax(difference, fabs(a - b));
                        scale = fmax(scale, fabs(b));
                    }
                    worst = fmax(worst, difference / scale);
                }
                ifl_free(got);
                ifl_free(want);
                ifl_free(ids);
            }
            print_message("%-7s %-4s %-8s %4d rows, worst max|a-b|/max|b| = %.2e\n", families[f],
                          ifl_profile_name(ops[o]->profile), ops[o]->name, n_rows, worst);
            assert_int_equal(n_rows, strcmp(families[f], "qwen3-wide") == 0 ? 17 : 120);
            assert_true(worst < bounds[ops[o]->profile].logits);
            golden_close(&g);
        }
}

static void test_greedy_continuation_matches_transformers(void **state) {
    (void)state;
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        golden g;
        golden_open(&g, families[f], 1, IFL_PROFILE_F32);
        int32_t n_prompt, n_want;
        int64_t n_gap;
        int32_t *prompt = golden_ids(&g, "greedy.prompt", &n_prompt);
        int32_t *want = golden_ids(&g, "greedy.tokens", &n_want);
        float *gap = golden_f32(&g, "greedy.gap", &n_gap);
        assert_int_equal(n_want, 64);
        ifl_workspace *ws;
        ifl_kv_store *kv;
        int32_t n_all = n_prompt + n_want;
        OK(ifl_workspace_create(&ws, g.model, n_all, g.pool, NULL, err));
        OK(ifl_kv_store_create(&kv, g.model, (n_all + 15) / 16, 16, err));
        int32_t *pages = identity(n_all);
        int32_t *ids = ifl_alloc((size_t)n_all, sizeof *ids);
        memcpy(ids, prompt, (size_t)n_prompt * sizeof *ids);
        int close_calls = 0;
        for (int32_t t = 0; t < n_want; t++) {
            int32_t from = t == 0 ? 0 : n_prompt + t - 1, n = n_prompt + t - from, out_row = n - 1;
            ifl_batch_seq seq = {0, n, from, pages};
            ifl_batch batch = {n, 1, 1, ids + from, &seq, &out_row};
            const float *hidden;
            OK(ifl_forward(ws, g.weights, kv, &batch, &hidden, err));
            ifl_sampling greedy = {0.0f, 0, 1.0f};
            ifl_rng_key key = {0};
            int64_t position = n_prompt + t;
            ifl_sample sample;
            OK(ifl_head_sample(ws, g.weights, hidden, 1, &greedy, &key, &position, &sample, err));
            if (sample.token != want[t]) {
                if (!((double)gap[t] < 1e-4))
                    fail_msg("%s: step %d gave %d, wanted %d (gap %g)", families[f], t,
                             sample.token, want[t], (double)gap[t]);
                close_calls++;
            }
            ids[n_prompt + t] = want[t];
        }
        print_message("%-7s 64 greedy tokens equal, %d within a gap of 1e-4\n", families[f],
                      close_calls);
        ifl_free(ids);
        ifl_free(pages);
        ifl_kv_store_free(kv);
        ifl_workspace_free(ws);
        ifl_free(gap);
        ifl_free(want);
        ifl_free(prompt);
        golden_close(&g);
    }
}

/* Gradients of the sequence, cut as `cut` says: position `cut` starts a second sequence that shares
 * the rows before it, as a group's samples share their prompt. cut 0 = one sequence. */
static float *gradients_of(const golden *g, const ifl_ops *ops, const int32_t *ids, int32_t n,
                           const float *coefficients, int32_t cut, float *logprobs) {
    ifl_trainer *trainer;
    OK(ifl_trainer_create(&trainer, g->model, n, IFL_ACTIVATION_BYTES, g->pool, ops, err));
    int32_t rows_n = n - 1;
    int32_t *rows = identity(rows_n);
    ifl_batch_seq seqs[2] = {{0, rows_n, 0, rows}, {0}};
    if (cut > 0) {
        seqs[0].n_rows = cut;
        seqs[1] = (ifl_batch_seq){cut, rows_n - cut, cut, rows};
    }
    float *ones = ifl_alloc((size_t)rows_n, sizeof *ones);
    for (int32_t i = 0; i < rows_n; i++)
        ones[i] = 1.0f;
    ifl_pack pack = {rows_n, cut > 0 ? 2 : 1, rows_n, ids, seqs, rows, ids + 1, ones, NULL};
    ifl_logprob *out = ifl_alloc((size_t)rows_n, sizeof *out);
    OK(ifl_trainer_forward(trainer, g->weights, &pack, out, err));
    OK(ifl_trainer_backward(trainer, g->weights, &pack, coefficients, err));
    for (int32_t i = 0; i < rows_n; i++)
        logprobs[i] = out[i].logprob;
    float *gradients = ifl_alloc((size_t)g->model->n_elements, sizeof *gradients);
    memcpy(gradients, ifl_trainer_gradients(trainer),
           (size_t)g->model->n_elements * sizeof *gradients);
    ifl_free(out);
    ifl_free(ones);
    ifl_free(rows);
    ifl_trainer_free(trainer);
    return gradients;
}

/* Near PyTorch's, and to the bit those that hosts of other kinds have computed. */
static void test_gradients_match_pytorch_and_other_hosts(void **state) {
    (void)state;
    int differing = 0;
    for (size_t f = 0; f < IFL_PROFILE_COUNT * sizeof families / sizeof *families; f++) {
        golden g;
        const char *family = families[f / IFL_PROFILE_COUNT];
        ifl_profile profile = (ifl_profile)(f % IFL_PROFILE_COUNT);
        golden_open(&g, family, 2, profile);
        int32_t n;
        int64_t n_c;
        int32_t *ids = golden_ids(&g, "grad.ids", &n);
        float *coefficients = golden_f32(&g, "grad.coefficients", &n_c);
        float *want_logprobs = golden_f32(&g, "grad.logprobs", &n_c);
        assert_int_equal(n_c, n - 1);
        float *logprobs = ifl_alloc((size_t)n, sizeof *logprobs);
        float *got = gradients_of(&g, NULL, ids, n, coefficients, 0, logprobs);
        double logprob_error = 0.0;
        for (int32_t i = 0; i < n - 1; i++) {
            assert_true(isfinite(logprobs[i]));
            logprob_error =
                fmax(logprob_error, fabs((double)logprobs[i] - (double)want_logprobs[i]));
        }
        double worst = 0.0;
        const char *worst_name = "";
        for (int32_t i = 0; i < g.model->n_params; i++) {
            const ifl_param *p = &g.model->params[i];
            char name[IFL_TENSOR_NAME_MAX + 8];
            snprintf(name, sizeof name, "grad:%s", p->spec.name);
            int64_t count;
            float *want = golden_f32(&g, name, &count);
            assert_int_equal(count, p->spec.rows * p->spec.cols);
            double difference = 0.0, norm = 0.0;
            for (int64_t e = 0; e < count; e++) {
                double a = (double)got[p->offset + e], b = (double)want[e];
                assert_true(isfinite(a));
                difference += (a - b) * (a - b);
                norm += b * b;
            }
            double relative = sqrt(difference / norm);
            if (!(relative <= worst)) {
                worst = relative;
                worst_name = p->spec.name;
            }
            ifl_free(want);
        }
        print_message(
            "%-7s %-4s %d tensors, worst relative gradient error %.2e (%s), log-prob %.2e\n",
            family, ifl_profile_name(profile), g.model->n_params, worst, worst_name, logprob_error);
        assert_true(logprob_error < bounds[profile].logprobs);
        assert_true(worst < bounds[profile].gradients);
        char key[96];
        snprintf(key, sizeof key, "model %s %s logprobs", ifl_profile_name(profile), family);
        differing +=
            golden_bits_differ(key, ifl_hash_bytes(logprobs, (size_t)(n - 1) * sizeof *logprobs));
        snprintf(key, sizeof key, "model %s %s gradients", ifl_profile_name(profile), family);
        differing +=
            golden_bits_differ(key, ifl_hash_bytes(got, (size_t)g.model->n_elements * sizeof *got));
        ifl_free(got);
        ifl_free(logprobs);
        ifl_free(want_logprobs);
        ifl_free(coefficients);
        ifl_free(ids);
        golden_close(&g);
    }
    assert_int_equal(differing, 0);
}

/* Same bytes for every thread count and instruction set; a shared prompt changes no log-prob bit
 * and agrees in the gradient up to the order of two partial sums. */
static void test_gradients_do_not_depend_on_threads_or_instruction_set(void **state) {
    (void)state;
    for (size_t f = 0; f < IFL_PROFILE_COUNT * sizeof families / sizeof *families; f++) {
        const char *family = families[f / IFL_PROFILE_COUNT];
        const ifl_ops *ops[8];
        int n_ops = ifl_ops_list((ifl_profile)(f % IFL_PROFILE_COUNT), ops, 8);
        float *first = NULL, *first_logprobs = NULL;
        for (int o = 0; o < n_ops; o++)
            for (int threads = 1; threads <= 3; threads += 2) {
                golden g;
                golden_open(&g, family, threads, ops[o]->profile);
                int32_t n;
                int64_t n_c;
                int32_t *ids = golden_ids(&g, "grad.ids", &n);
                float *coefficients = golden_f32(&g, "grad.coefficients", &n_c);
                float *logprobs = ifl_alloc((size_t)n, sizeof *logprobs);
                float *got = gradients_of(&g, ops[o], ids, n, coefficients, 0, logprobs);
                float *cut_logprobs = ifl_alloc((size_t)n, sizeof *logprobs);
                float *cut = gradients_of(&g, ops[o], ids, n, coefficients, n / 3, cut_logprobs);
                assert_memory_equal(logprobs, cut_logprobs, (size_t)(n - 1) * sizeof *logprobs);
                double difference = 0.0, norm = 0.0;
                for (int64_t e = 0; e < g.model->n_elements; e++) {
                    difference +=
                        ((double)got[e] - (double)cut[e]) * ((double)got[e] - (double)cut[e]);
                    norm += (double)got[e] * (double)got[e];
                }
                assert_true(sqrt(difference / norm) < 1e-5);
                ifl_free(cut);
                ifl_free(cut_logprobs);
                if (first) {
                    if (memcmp(first_logprobs, logprobs, (size_t)(n - 1) * sizeof *logprobs) != 0)
                        fail_msg("%s: log-probs differ on %s with %d threads", family, ops[o]->name,
                                 threads);
                    if (memcmp(first, got, (size_t)g.model->n_elements * sizeof *got) != 0)
                        fail_msg("%s: gradients differ on %s with %d threads", family, ops[o]->name,
                                 threads);
                    ifl_free(got);
                    ifl_free(logprobs);
                } else {
                    first = got;
                    first_logprobs = logprobs;
                }
                ifl_free(coefficients);
                ifl_free(ids);
                golden_close(&g);
            }
        ifl_free(first);
        ifl_free(first_logprobs);
    }
}

/* --- Driver of compare_transformers.py --- */

static ifl_status driver_load(ifl_model **model, ifl_weights **weights, const char *path,
                              ifl_error *err) {
    ifl_model_file *file = NULL;
    uint16_t *bf16 = NULL;
    ifl_status st = IFL_OK;
    IFL_TRY_GOTO(st, ifl_model_file_open(&file, path, err), done);
    IFL_TRY_GOTO(st, ifl_model_create(model, ifl_model_file_config(file), 0, IFL_PROFILE_F32, err),
                 done);
    IFL_TRY_GOTO(st, ifl_weights_create(weights, *model, err), done);
    for (int32_t i = 0; i < (*model)->n_params; i++) {
        const ifl_param *p = &(*model)->params[i];
        int64_t n = p->spec.rows * p->spec.cols;
        ifl_free(bf16);
        bf16 = ifl_alloc((size_t)n, sizeof *bf16);
        if (!bf16) {
            st = ifl_fail(err, IFL_NOMEM, "%s: out of memory", p->spec.name);
            goto done;
        }
        IFL_TRY_GOTO(st, ifl_model_file_read_bf16(file, i, 0, n, bf16, NULL, err), done);
        ifl_weights_put(*weights, p->offset, n, bf16);
    }
done:
    ifl_free(bf16);
    ifl_model_file_close(file);
    return st;
}

/* One sequence; the head goes in blocks, since 1,000 rows of 262,144 logits are a gigabyte. */
static ifl_status driver_sequence(const ifl_model *model, const ifl_weights *weights,
                                  ifl_thread_pool *pool, const int32_t *ids, int32_t n, FILE *out,
                                  ifl_error *err) {
    enum { HEAD_ROWS = 32 };
    int64_t d = model->config.d_model, v = model->config.vocab_size;
    ifl_workspace *ws = NULL;
    ifl_kv_store *kv = NULL;
    ifl_status st = IFL_OK;
    float *kept = ifl_alloc((size_t)(n * d), sizeof *kept);
    float *logits = ifl_alloc((size_t)(HEAD_ROWS * v), sizeof *logits);
    int32_t *rows = ifl_alloc((size_t)n, sizeof *rows);
    if (!kept || !logits || !rows) {
        st = ifl_fail(err, IFL_NOMEM, "%d rows: out of memory", n);
        goto done;
    }
    for (int32_t i = 0; i < n; i++)
        rows[i] = i;
    IFL_TRY_GOTO(st, ifl_workspace_create(&ws, model, n, pool, NULL, err), done);
    IFL_TRY_GOTO(st, ifl_kv_store_create(&kv, model, n, 1, err), done);
    ifl_batch_seq seq = {0, n, 0, rows};
    ifl_batch batch = {n, 1, n, ids, &seq, rows};
    const float *hidden;
    IFL_TRY_GOTO(st, ifl_forward(ws, weights, kv, &batch, &hidden, err), done);
    memcpy(kept, hidden, (size_t)(n * d) * sizeof *kept); /* hidden lives until the next call */
    for (int32_t at = 0; at < n; at += HEAD_ROWS) {
        int32_t m = n - at < HEAD_ROWS ? n - at : HEAD_ROWS;
        IFL_TRY_GOTO(st, ifl_head_logits(ws, weights, kept + at * d, m, logits, err), done);
        if (fwrite(logits, sizeof *logits, (size_t)(m * v), out) != (size_t)(m * v)) {
            st = ifl_fail(err, IFL_IO, "the logits could not be written");
            goto done;
        }
    }
done:
    ifl_kv_store_free(kv);
    ifl_workspace_free(ws);
    ifl_free(rows);
    ifl_free(logits);
    ifl_free(kept);
    return st;
}

static int driver_logits(const char *model_path, const char *requests, const char *out_path) {
    ifl_error error = {0}, *err = &error;
    ifl_model *model = NULL;
    ifl_weights *weights = NULL;
    ifl_thread_pool *pool = NULL;
    int32_t *ids = NULL, n;
    ifl_status st = IFL_OK;
    FILE *in = fopen(requests, "rb"), *out = fopen(out_path, "wb");
    if (!in || !out) {
        st = ifl_fail(err, IFL_IO, "%s or %s: cannot open", requests, out_path);
        goto done;
    }
    IFL_TRY_GOTO(st, ifl_thread_pool_create(&pool, 0, err), done);
    IFL_TRY_GOTO(st, driver_load(&model, &weights, model_path, err), done);
    ids = ifl_alloc((size_t)model->config.max_positions, sizeof *ids);
    if (!ids) {
        st = ifl_fail(err, IFL_NOMEM, "out of memory");
        goto done;
    }
    while (fread(&n, sizeof n, 1, in) == 1) {
        if (n < 1 || n > model->config.max_positions ||
            fread(ids, sizeof *ids, (size_t)n, in) != (size_t)n) {
            st = ifl_fail(err, IFL_FORMAT, "%s: a sequence of %d ids, wanted 1 .. %d", requests, n,
                          model->config.max_positions);
            goto done;
        }
        IFL_TRY_GOTO(st, driver_sequence(model, weights, pool, ids, n, out, err), done);
    }
done:
    ifl_free(ids);
    ifl_weights_free(weights);
    ifl_model_free(model);
    ifl_thread_pool_free(pool);
    if (in) fclose(in);
    if (out && fclose(out) != 0 && st == IFL_OK)
        st = ifl_fail(err, IFL_IO, "%s: cannot write", out_path);
    if (st != IFL_OK) fprintf(stderr, "logits: %s\n", error.text);
    return st == IFL_OK ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "logits") == 0)
        return driver_logits(argv[2], argv[3], argv[4]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_match_transformers),
        cmocka_unit_test(test_greedy_continuation_matches_transformers),
        cmocka_unit_test(test_gradients_match_pytorch_and_other_hosts),
        cmocka_unit_test(test_gradients_do_not_depend_on_threads_or_instruction_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
