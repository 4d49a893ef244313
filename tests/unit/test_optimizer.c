/* AdamW against a plain double-precision computation; clipping, schedules, refusal, threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/bf16.h"
#include "common/memory.h"
#include "common/rng.h"
#include "kernels/random_model.h"
#include "learner/optimizer.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

static void assert_close(double got, double want, double relative) {
    if (!(fabs(got - want) <= relative * (fabs(want) + 1e-30)))
        fail_msg("got %.9g, wanted %.9g", got, want);
}

static ifl_model *model;
static ifl_weights *weights;
static float *gradients;

static int setup(void **state) {
    (void)state;
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-qwen2", &config)); /* biases, norms, matrices */
    config.d_ff *= 16;
    assert_ok(ifl_model_create(&model, &config, 64, IFL_PROFILE_F32, &err));
    assert_true(model->n_elements > 3 * 65536); /* several chunks, so that threads have a choice */
    assert_ok(ifl_weights_create(&weights, model, &err));
    assert_ok(ifl_random_weights(weights, 1, &err));
    gradients = ifl_alloc((size_t)model->n_elements, sizeof *gradients);
    assert_non_null(gradients);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    ifl_free(gradients);
    ifl_weights_free(weights);
    ifl_model_free(model);
    return 0;
}

static void draw_gradients(uint64_t step, double size) {
    ifl_rng_key key = {9, step, IFL_RNG_TEST};
    for (int64_t i = 0; i < model->n_elements; i++)
        gradients[i] = (float)(size * ifl_rng_normal(&key, (uint64_t)i, 0));
}

static const ifl_optimizer_options plain = {.learning_rate = 1e-3,
                                            .beta1 = 0.9,
                                            .beta2 = 0.95,
                                            .eps = 1e-8,
                                            .weight_decay = 0.1,
                                            .grad_clip = 1.0,
                                            .warmup_steps = 4};

static ifl_optimizer *make(const ifl_optimizer_options *options, ifl_thread_pool *pool) {
    ifl_optimizer *o;
    assert_ok(ifl_optimizer_create(&o, model, options, pool, ifl_ops_best(IFL_PROFILE_F32), &err));
    ifl_optimizer_start(o, weights);
    return o;
}

static bool is_decayed(int64_t element) {
    for (int32_t p = model->n_params - 1; p >= 0; p--)
        if (model->params[p].offset <= element) return model->params[p].spec.is_matrix;
    return false;
}

static void test_updates_match_adamw_in_double(void **state) {
    (void)state;
    size_t n = (size_t)model->n_elements;
    double *w = calloc(n, sizeof *w), *m = calloc(n, sizeof *m), *v = calloc(n, sizeof *v);
    ifl_optimizer *o = make(&plain, NULL);
    for (size_t i = 0; i < n; i++)
        w[i] = (double)ifl_optimizer_masters(o)[i];
    int64_t n_vectors = 0;
    for (int t = 1; t <= 6; t++) {
        draw_gradients((uint64_t)t, t == 3 ? 1e-6 : 0.1); /* step 3 stays below the clip */
        ifl_optimizer_report r;
        assert_ok(ifl_optimizer_step(o, gradients, &r, &err));
        double squares = 0;
        for (size_t i = 0; i < n; i++)
            squares += (double)gradients[i] * (double)gradients[i];
        double norm = sqrt(squares), scale = norm > 1.0 ? 1.0 / (norm + 1e-6) : 1.0;
        double rate = 1e-3 * (t < 4 ? t / 4.0 : 1.0);
        assert_close(r.grad_norm, norm, 1e-6);
        assert_close(r.grad_scale, scale, 1e-6);
        assert_close(r.learning_rate, rate, 1e-12);
        assert_int_equal(r.n_updates, t);
        for (size_t i = 0; i < n; i++) {
            double g = (double)gradients[i] * scale;
            bool decayed = is_decayed((int64_t)i);
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            w[i] -= rate * (m[i] / (1 - pow(0.9, t)) / (sqrt(v[i] / (1 - pow(0.95, t))) + 1e-8) +
                            (decayed ? 0.1 * w[i] : 0.0));
            n_vectors += t == 1 && !decayed;
        }
    }
    assert_true(n_vectors > 0); /* the claim about decay had both kinds */
    /* f32 rounding in w of order 1 over six updates of 1e-3. */
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)ifl_optimizer_masters(o)[i] - w[i]) <= 2e-6 * (1 + fabs(w[i]))))
            fail_msg("element %zu: got %.9g, wanted %.9g", i, (double)ifl_optimizer_masters(o)[i],
                     w[i]);
    free(w);
    free(m);
    free(v);
    ifl_optimizer_free(o);
}

static void test_published_weights_are_the_rounded_masters(void **state) {
    (void)state;
    ifl_optimizer *o = make(&plain, NULL);
    draw_gradients(1, 0.1);
    assert_ok(ifl_optimizer_step(o, gradients, NULL, &err));
    ifl_weights *next;
    assert_ok(ifl_weights_create(&next, model, &err));
    ifl_optimizer_publish(o, next, 17);
    assert_int_equal(next->version, 17);
    uint16_t *got = ifl_alloc((size_t)model->n_elements, sizeof *got);
    ifl_weights_get(next, 0, model->n_elements, got);
    for (int64_t i = 0; i < model->n_elements; i++)
        assert_int_equal(got[i], ifl_bf16_from_f32(ifl_optimizer_masters(o)[i]));
    assert_memory_equal(got, ifl_optimizer_bf16(o), (size_t)model->n_elements * sizeof *got);
    assert_false(ifl_hash_equal(ifl_weights_hash(next), ifl_weights_hash(weights)));
    ifl_free(got);
    ifl_weights_free(next);
    ifl_optimizer_free(o);
}

static void test_any_thread_count_gives_the_same_bytes(void **state) {
    (void)state;
    size_t bytes = (size_t)model->n_elements * sizeof(float);
    float *first = malloc(bytes);
    double norm = 0;
    for (int threads = 1; threads <= 5; threads += 2) {
        ifl_thread_pool *pool;
        assert_ok(ifl_thread_pool_create(&pool, threads, &err));
        ifl_optimizer *o = make(&plain, pool);
        ifl_optimizer_report r;
        for (int t = 1; t <= 3; t++) {
            draw_gradients((uint64_t)t, 1.0);
            assert_ok(ifl_optimizer_step(o, gradients, &r, &err));
        }
        if (threads == 1) {
            memcpy(first, ifl_optimizer_masters(o), bytes);
            norm = r.grad_norm;
        }
        assert_memory_equal(first, ifl_optimizer_masters(o), bytes);
        assert_true(norm == r.grad_norm);
        ifl_optimizer_free(o);
        ifl_thread_pool_free(pool);
    }
    free(first);
}

static void test_non_finite_gradient_is_refused(void **state) {
    (void)state;
    ifl_optimizer *o = make(&plain, NULL);
    size_t bytes = (size_t)model->n_elements * sizeof(float);
    float *before = malloc(bytes);
    draw_gradients(1, 0.1);
    assert_ok(ifl_optimizer_step(o, gradients, NULL, &err));
    memcpy(before, ifl_optimizer_masters(o), bytes);
    const float bad[2] = {NAN, INFINITY};
    for (int k = 0; k < 2; k++) {
        const ifl_param *p = &model->params[2];
        gradients[p->offset + 3] = bad[k];
        ifl_optimizer_report r;
        assert_int_equal(ifl_optimizer_step(o, gradients, &r, &err), IFL_LIMIT);
        assert_non_null(strstr(err.text, p->spec.name));
        assert_non_null(strstr(err.text, "element 3"));
        assert_int_equal(r.n_refused, k + 1);
        assert_int_equal(r.n_updates, 1);
    }
    assert_memory_equal(before, ifl_optimizer_masters(o), bytes);
    draw_gradients(2, 0.1);
    assert_ok(ifl_optimizer_step(o, gradients, NULL, &err)); /* and goes on afterwards */
    assert_int_equal(ifl_optimizer_updates(o), 2);
    free(before);
    ifl_optimizer_free(o);
}

static void test_learning_rate_zero_changes_no_weight(void **state) {
    (void)state;
    ifl_optimizer_options frozen = plain;
    frozen.learning_rate = 0;
    ifl_optimizer *o = make(&frozen, NULL);
    ifl_weights *next;
    assert_ok(ifl_weights_create(&next, model, &err));
    for (int t = 1; t <= 3; t++) {
        draw_gradients((uint64_t)t, 1.0);
        assert_ok(ifl_optimizer_step(o, gradients, NULL, &err));
    }
    ifl_optimizer_publish(o, next, 3);
    assert_true(ifl_hash_equal(ifl_weights_hash(next), ifl_weights_hash(weights)));
    ifl_weights_free(next);
    ifl_optimizer_free(o);
}

static void test_frozen_parameters_never_move(void **state) {
    (void)state;
    model->params[1].trainable = false;
    ifl_optimizer *o = make(&plain, NULL);
    const ifl_param *p = &model->params[1];
    draw_gradients(1, 1.0);
    gradients[p->offset] = NAN; /* nobody computes it */
    ifl_optimizer_report r;
    ifl_status st = ifl_optimizer_step(o, gradients, &r, &err);
    model->params[1].trainable = true;
    assert_int_equal(st, IFL_OK);
    for (int64_t i = 0; i < p->spec.rows * p->spec.cols; i++)
        assert_true(ifl_optimizer_moment1(o)[p->offset + i] == 0.0f);
    assert_true(ifl_optimizer_moment1(o)[model->params[0].offset] != 0.0f);
    assert_true(isfinite(r.grad_norm));
    ifl_optimizer_free(o);
}

static void test_schedules(void **state) {
    (void)state;
    ifl_optimizer_options o = {.learning_rate = 2.0, .warmup_steps = 4};
    assert_close(ifl_optimizer_rate(&o, 1), 0.5, 1e-12);
    assert_close(ifl_optimizer_rate(&o, 4), 2.0, 1e-12);
    assert_close(ifl_optimizer_rate(&o, 1000), 2.0, 1e-12);
    o.schedule = IFL_SCHEDULE_LINEAR;
    o.total_steps = 100;
    o.final_ratio = 0.1;
    assert_close(ifl_optimizer_rate(&o, 1), 0.5, 1e-12);
    assert_close(ifl_optimizer_rate(&o, 51), 1.0, 1e-12);
    assert_close(ifl_optimizer_rate(&o, 100), 0.2, 1e-12);
    o.warmup_steps = 0;
    assert_close(ifl_optimizer_rate(&o, 1), 2.0, 1e-12);
}

static void test_options_are_checked(void **state) {
    (void)state;
    ifl_optimizer_options o = plain;
    o.beta2 = 1.0;
    assert_int_equal(ifl_optimizer_options_check(&o, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "beta2"));
    o = plain;
    o.learning_rate = NAN;
    assert_int_equal(ifl_optimizer_options_check(&o, &err), IFL_USAGE);
    o = plain;
    o.schedule = IFL_SCHEDULE_LINEAR;
    assert_int_equal(ifl_optimizer_options_check(&o, &err), IFL_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_updates_match_adamw_in_double),
        cmocka_unit_test(test_published_weights_are_the_rounded_masters),
        cmocka_unit_test(test_any_thread_count_gives_the_same_bytes),
        cmocka_unit_test(test_non_finite_gradient_is_refused),
        cmocka_unit_test(test_learning_rate_zero_changes_no_weight),
        cmocka_unit_test(test_frozen_parameters_never_move),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_options_are_checked),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
