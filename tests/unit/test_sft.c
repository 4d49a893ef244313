/* Supervised fine-tuning: new policies, length-bucketed batches, and a loop that learns the same
 * bytes with any number of threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/memory.h"
#include "common/rng.h"
#include "learner/sft.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

enum { VOCAB = 12, END = 11 };

static ifl_config *config_small(const char *family) {
    static ifl_config config;
    memset(&config, 0, sizeof config);
    strcpy(config.model.family, family);
    config.model.d_model = 64;
    config.model.n_layers = 2;
    config.model.n_heads = 4;
    config.model.n_kv_heads = 2;
    config.model.head_dim = 16;
    config.model.d_ff = 128;
    config.model.max_positions = 64;
    config.model.rope_theta = 10000;
    return &config;
}

static ifl_model *model_small(const char *family) {
    ifl_model_config shape;
    ifl_model *model;
    assert_ok(ifl_init_model_config(&shape, config_small(family), VOCAB, -1, END, &err));
    assert_ok(ifl_model_create(&model, &shape, 0, IFL_PROFILE_F32, &err));
    return model;
}

/* --- A new policy
 * ----------------------------------------------------------------------------------- */

static double deviation(const float *w, int64_t n) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)w[i];
        squares += (double)w[i] * (double)w[i];
    }
    return sqrt(squares / (double)n - sum / (double)n * sum / (double)n);
}

static void check_deviation(const ifl_model *model, const float *w, const char *name, double want) {
    int32_t p = ifl_model_find(model, name);
    assert_true(p >= 0);
    const ifl_param *param = &model->params[p];
    int64_t n = param->spec.rows * param->spec.cols;
    double got = deviation(w + param->offset, n);
    /* The sample deviation of n normals has a relative error of 1 / sqrt(2 n). */
    if (!(fabs(got / want - 1) < 5 / sqrt(2.0 * (double)n)))
        fail_msg("%s: %g, wanted %g", name, got, want);
}

static void test_initial_weights_have_their_scale(void **state) {
    (void)state;
    ifl_model *model = model_small("llama");
    float *w = ifl_alloc((size_t)model->n_elements, sizeof *w);
    float *again = ifl_alloc((size_t)model->n_elements, sizeof *again);
    ifl_init_masters(model, 5, w);
    check_deviation(model, w, "model.embed_tokens.weight", 0.5);
    check_deviation(model, w, "lm_head.weight", 0.02);
    check_deviation(model, w, "model.layers.1.self_attn.q_proj.weight", 1 / 8.0);
    check_deviation(model, w, "model.layers.1.self_attn.o_proj.weight", 0.5 / 8.0);
    check_deviation(model, w, "model.layers.0.mlp.up_proj.weight", 1 / 8.0);
    check_deviation(model, w, "model.layers.0.mlp.down_proj.weight", 0.5 / sqrt(128));
    const ifl_param *norm = &model->params[ifl_model_find(model, "model.norm.weight")];
    for (int64_t i = 0; i < norm->spec.cols; i++)
        assert_true(w[norm->offset + i] == 1.0f);
    size_t bytes = (size_t)model->n_elements * sizeof *w;
    ifl_init_masters(model, 5, again);
    assert_memory_equal(w, again, bytes);
    ifl_init_masters(model, 6, again);
    assert_memory_not_equal(w, again, bytes);
    ifl_free(w);
    ifl_free(again);
    ifl_model_free(model);
}

static void test_every_family_can_be_new(void **state) {
    (void)state;
    const char *const families[] = {"llama", "qwen2", "qwen3", "gemma3"};
    for (int i = 0; i < 4; i++) {
        ifl_model *model = model_small(families[i]);
        assert_string_equal(ifl_family_name(model->config.family), families[i]);
        assert_int_equal(model->config.eos_ids[0], END);
        float *w = ifl_alloc((size_t)model->n_elements, sizeof *w);
        ifl_init_masters(model, 1, w);
        /* Gemma multiplies by 1 + w: its new gains are 0. */
        float gain = w[model->params[ifl_model_find(model, "model.norm.weight")].offset];
        assert_true(gain == (model->config.norm_plus_one ? 0.0f : 1.0f));
        ifl_free(w);
        ifl_model_free(model);
    }
    ifl_model_config shape;
    ifl_config *config = config_small("mamba");
    assert_int_equal(ifl_init_model_config(&shape, config, VOCAB, -1, END, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "mamba"));
    config = config_small("llama");
    config->model.n_layers = 100000;
    assert_int_equal(ifl_init_model_config(&shape, config, VOCAB, -1, END, &err), IFL_LIMIT);
    config = config_small("llama");
    config->model.n_kv_heads = 3;
    assert_int_not_equal(ifl_init_model_config(&shape, config, VOCAB, -1, END, &err), IFL_OK);
}

/* --- Batches
 * ---------------------------------------------------------------------------------------- */

/* "d d d .. END": a digit, then as often as it says; the prompt is (marker 10, digit). */
static ifl_status repeat_example(void *context, uint64_t serial, ifl_sft_example *out,
                                 ifl_error *e) {
    (void)e;
    int64_t *n_made = context;
    ifl_rng_key key = {3, 0, IFL_RNG_TEST};
    int32_t digit = 1 + (int32_t)ifl_rng_below(&key, serial, 0, 9);
    *out = (ifl_sft_example){ifl_alloc((size_t)digit + 3, sizeof(int32_t)), digit + 3, 2};
    out->tokens[0] = 10;
    for (int32_t i = 1; i <= digit + 1; i++)
        out->tokens[i] = digit;
    out->tokens[digit + 2] = END;
    if (n_made) ++*n_made;
    return IFL_OK;
}

static void test_a_pool_is_given_out_once_in_buckets(void **state) {
    (void)state;
    int64_t n_made = 0;
    ifl_sft_batches *b;
    assert_ok(ifl_sft_batches_create(&b, 100, 1, repeat_example, &n_made, &err));
    int32_t count[10] = {0}, n_examples = 0;
    int64_t wasted = 0;
    int order_changes = 0, last_longest = 0;
    while (n_examples < IFL_SFT_POOL) {
        ifl_pack p;
        assert_ok(ifl_sft_batches_next(b, &p, &err));
        int32_t longest = 0, row = 0, target = 0;
        for (int s = 0; s < p.n_seqs; s++) {
            const ifl_batch_seq *seq = &p.seqs[s];
            assert_int_equal(seq->row_begin, row);
            assert_int_equal(seq->pos_begin, 0);
            if (seq->n_rows > longest) longest = seq->n_rows;
            int32_t digit = p.tokens[row + 1];
            count[digit]++;
            assert_int_equal(seq->n_rows, digit + 2);
            for (int t = 0; t < seq->n_rows; t++) {
                assert_int_equal(seq->pages[t], row + t);
                assert_int_equal(p.tokens[row + t], t == 0 ? 10 : digit);
                if (t < 1) continue; /* the prompt's second token is no target */
                assert_int_equal(p.target_rows[target], row + t);
                assert_int_equal(p.target_tokens[target++], t <= digit ? digit : END);
            }
            row += seq->n_rows;
        }
        assert_int_equal(row, p.n_rows);
        assert_int_equal(target, p.n_targets);
        assert_true(p.n_seqs * (longest + 1) <= 100);
        wasted += p.n_seqs * longest - p.n_rows;
        order_changes += longest < last_longest;
        last_longest = longest;
        n_examples += p.n_seqs;
    }
    assert_int_equal(n_examples, IFL_SFT_POOL);
    assert_int_equal(n_made, IFL_SFT_POOL);
    for (int d = 1; d <= 9; d++)
        assert_true(count[d] > 60);
    assert_true(wasted < IFL_SFT_POOL / 10); /* bucketed by length */
    assert_true(order_changes > 20);         /* and then shuffled */
    ifl_sft_batches_free(b);
}

static ifl_status bad_example(void *context, uint64_t serial, ifl_sft_example *out, ifl_error *e) {
    (void)serial;
    (void)e;
    const int32_t *n = context; /* tokens, prompt tokens */
    *out = (ifl_sft_example){ifl_alloc((size_t)n[0], sizeof(int32_t)), n[0], n[1]};
    return IFL_OK;
}

static void test_bad_examples_are_refused(void **state) {
    (void)state;
    const struct {
        int32_t n[2];
        ifl_status want;
    } cases[] = {
        {{5, 5}, IFL_FORMAT}, {{5, 0}, IFL_FORMAT}, {{101, 3}, IFL_LIMIT}, {{100, 3}, IFL_OK}};
    for (int i = 0; i < 4; i++) {
        ifl_sft_batches *b;
        ifl_pack p;
        assert_ok(ifl_sft_batches_create(&b, 100, 1, bad_example, (void *)cases[i].n, &err));
        assert_int_equal(ifl_sft_batches_next(b, &p, &err), cases[i].want);
        ifl_sft_batches_free(b);
    }
    ifl_sft_batches *b;
    assert_int_equal(ifl_sft_batches_create(&b, 1, 1, bad_example, NULL, &err), IFL_USAGE);
}

/* --- The loop
 * --------------------------------------------------------------------------------------- */

typedef struct seen {
    double first, last;
    int64_t n, stop_at;
} seen;

static ifl_status see(void *context, const ifl_sft_progress *p, ifl_error *e) {
    seen *s = context;
    s->n++;
    assert_int_equal(p->step, s->n);
    if (p->step == 1) s->first = p->loss;
    s->last = p->loss;
    if (s->n == s->stop_at) return ifl_fail(e, IFL_STOPPED, "stopped by the test");
    return IFL_OK;
}

static ifl_status train(int threads, int64_t n_steps, uint64_t seed, seen *s, ifl_hash *hash) {
    ifl_model *model = model_small("llama");
    ifl_weights *weights;
    ifl_thread_pool *pool;
    ifl_optimizer *optimizer;
    const ifl_optimizer_options oo = {.learning_rate = 3e-3,
                                      .beta1 = 0.9,
                                      .beta2 = 0.95,
                                      .eps = 1e-8,
                                      .grad_clip = 1,
                                      .warmup_steps = 5};
    const ifl_sft_options options = {.n_steps = n_steps,
                                     .batch_tokens = 128,
                                     .activation_bytes = IFL_ACTIVATION_BYTES,
                                     .seed = seed};
    assert_ok(ifl_weights_create(&weights, model, &err));
    assert_ok(ifl_thread_pool_create(&pool, threads, &err));
    assert_ok(
        ifl_optimizer_create(&optimizer, model, &oo, pool, ifl_ops_best(IFL_PROFILE_F32), &err));
    ifl_init_masters(model, 1, ifl_optimizer_masters(optimizer));
    ifl_status st = ifl_sft_run(model, optimizer, weights, &options, repeat_example, NULL, see, s,
                                pool, ifl_ops_best(IFL_PROFILE_F32), &err);
    if (st == IFL_OK) assert_int_equal(weights->version, n_steps);
    *hash = ifl_weights_hash(weights);
    ifl_optimizer_free(optimizer);
    ifl_thread_pool_free(pool);
    ifl_weights_free(weights);
    ifl_model_free(model);
    return st;
}

static void test_it_learns_to_copy(void **state) {
    (void)state;
    seen s = {0};
    ifl_hash hash;
    assert_ok(train(2, 150, 1, &s, &hash));
    assert_int_equal(s.n, 150);
    assert_true(s.first > 2.0 && s.first < 3.5); /* ln 12 = 2.48 */
    if (!(s.last < 0.3)) fail_msg("loss %.3f after %.3f", s.last, s.first);
}

static void test_same_seed_same_bytes_for_any_thread_count(void **state) {
    (void)state;
    ifl_hash first = {0}, hash;
    for (int threads = 1; threads <= 4; threads++) {
        seen s = {0};
        assert_ok(train(threads, 8, 1, &s, &hash));
        if (threads == 1) first = hash;
        assert_true(ifl_hash_equal(first, hash));
    }
    seen s = {0};
    assert_ok(train(1, 8, 2, &s, &hash));
    assert_false(ifl_hash_equal(first, hash)); /* another order of batches */
}

static void test_progress_can_stop_it(void **state) {
    (void)state;
    seen s = {.stop_at = 3};
    ifl_hash hash;
    assert_int_equal(train(1, 8, 1, &s, &hash), IFL_STOPPED);
    assert_int_equal(s.n, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_initial_weights_have_their_scale),
        cmocka_unit_test(test_every_family_can_be_new),
        cmocka_unit_test(test_a_pool_is_given_out_once_in_buckets),
        cmocka_unit_test(test_bad_examples_are_refused),
        cmocka_unit_test(test_it_learns_to_copy),
        cmocka_unit_test(test_same_seed_same_bytes_for_any_thread_count),
        cmocka_unit_test(test_progress_can_stop_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
