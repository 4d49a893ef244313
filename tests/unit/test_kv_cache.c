/* The page allocator and the scheduler, without a model: a fake store remembers in every cell which
 * token of which sequence was written there under which version, so that a stale, shared or foreign
 * page shows as a wrong cell. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "actor/scheduler.h"
#include "common/rng.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

/* --- Pages
 * ------------------------------------------------------------------------------------------------
 */

static void test_pages_come_back_when_the_last_reference_goes(void **state) {
    (void)state;
    ifl_kv_cache *cache;
    assert_ok(ifl_kv_cache_create(&cache, 3, 16, &err));
    int32_t a = ifl_kv_cache_take(cache), b = ifl_kv_cache_take(cache),
            c = ifl_kv_cache_take(cache);
    assert_int_equal(a, 0);
    assert_int_equal(b, 1);
    assert_int_equal(c, 2);
    assert_int_equal(ifl_kv_cache_take(cache), -1);
    ifl_kv_cache_share(cache, b);
    ifl_kv_cache_release(cache, b);
    assert_int_equal(ifl_kv_cache_take(cache), -1); /* still held once */
    ifl_kv_cache_release(cache, b);
    assert_int_equal(ifl_kv_cache_take(cache), b);
    assert_int_equal(ifl_kv_cache_pages(cache, 0), 0);
    assert_int_equal(ifl_kv_cache_pages(cache, 16), 1);
    assert_int_equal(ifl_kv_cache_pages(cache, 17), 2);
    ifl_kv_cache_free(cache);
}

static void test_pages_refuse_odd_sizes(void **state) {
    (void)state;
    ifl_kv_cache *cache;
    assert_int_equal(ifl_kv_cache_create(&cache, 0, 16, &err), IFL_USAGE);
    assert_int_equal(ifl_kv_cache_create(&cache, 4, 12, &err), IFL_USAGE);
    assert_int_equal(ifl_kv_cache_create(&cache, 4, 2048, &err), IFL_USAGE);
    assert_null(cache);
}

/* --- A fake engine over the scheduler
 * ---------------------------------------------------------------------- */

enum { SEQUENCES = 400, PAGES_MAX = 256, PAGE_MAX = 16, TOKENS_MAX = 200 };

typedef struct cell {
    int32_t owner; /* group + 1 for prompt positions 0 .. P-2, else 1000 + sequence */
    int32_t position;
    int64_t version;
} cell;

typedef struct fake_sequence {
    ifl_sequence seq;
    int32_t id, group_id, n_end; /* ends at this many tokens */
    bool live;
    int64_t version_last;
} fake_sequence;

typedef struct fake {
    ifl_scheduler *s;
    cell cells[PAGES_MAX][PAGE_MAX];
    fake_sequence seqs[SEQUENCES];
    int32_t n_seqs, n_groups, n_live;
    int64_t n_finished, n_decoded, n_flips;
} fake;

static int32_t owner_at(const ifl_work *w, int32_t position) {
    int32_t group = (int32_t)(intptr_t)w->group->owner;
    if (position < w->group->n_prompt - 1) return group + 1;
    return 1000 + ((const fake_sequence *)w->seq->owner)->id;
}

static void fake_submit(fake *f, int32_t n_prompt, int32_t n_new, int32_t n_samples) {
    assert_true(ifl_scheduler_fits(f->s, n_prompt, n_new));
    ifl_group *g;
    assert_ok(ifl_group_create(&g, n_prompt, n_samples, (void *)(intptr_t)f->n_groups, &err));
    for (int32_t i = 0; i < n_samples; i++) {
        fake_sequence *q = &f->seqs[f->n_seqs];
        assert_true(f->n_seqs < SEQUENCES);
        *q = (fake_sequence){
            .id = f->n_seqs++, .group_id = f->n_groups, .live = true, .n_end = n_prompt + n_new};
        q->seq.owner = q;
        ifl_scheduler_submit(f->s, g, &q->seq);
        f->n_live++;
    }
    f->n_groups++;
}

static void fake_remove(fake *f, fake_sequence *q) {
    ifl_scheduler_remove(f->s, &q->seq);
    q->live = false;
    f->n_live--;
}

/* Runs the plan on the fake store: reads must find what was written for them, writes must hit pages
 * that nobody else holds. Returns the rows of builds. */
static int32_t fake_step(fake *f) {
    ifl_scheduler *s = f->s;
    int32_t pt = s->options.page_tokens, n_build = 0;
    assert_ok(ifl_scheduler_plan(s, &err));
    assert_true(s->n_active <= s->options.sequences_max);
    for (int32_t i = 0; i < s->n_copies; i++)
        memcpy(f->cells[s->copies[i].to_page], f->cells[s->copies[i].from_page],
               (size_t)s->copies[i].n_tokens * sizeof(cell));
    for (int32_t i = 0; i < s->n_work; i++) {
        const ifl_work *w = &s->work[i];
        assert_true(w->n_rows >= 1);
        n_build += w->n_rows - w->sample;
        for (int32_t p = 0; p < w->begin + w->n_rows; p++) {
            int32_t page = w->pages[p / pt];
            cell *c = &f->cells[page][p % pt];
            if (p >= w->begin) {
                assert_int_equal(s->cache->refs[page], 1);
                *c = (cell){owner_at(w, p), p, w->version};
            } else {
                assert_int_equal(c->owner, owner_at(w, p));
                assert_int_equal(c->position, p);
                if (s->options.recompute) assert_int_equal(c->version, w->version);
            }
        }
        if (w->sample) {
            fake_sequence *q = w->seq->owner;
            assert_int_equal(w->begin + w->n_rows, q->seq.n_tokens);
            assert_true(w->version >= q->version_last);
            f->n_flips += w->version > q->version_last && q->seq.n_tokens > w->group->n_prompt;
            q->version_last = w->version;
        }
    }
    assert_true(n_build <= s->options.chunk_tokens);
    for (int32_t i = 0; i < s->n_work; i++) {
        if (!s->work[i].sample) continue;
        fake_sequence *q = s->work[i].seq->owner;
        ifl_scheduler_sampled(s, &q->seq);
        f->n_decoded++;
        if (q->seq.n_tokens < q->n_end) continue;
        fake_remove(f, q);
        f->n_finished++;
    }
    return n_build;
}

static fake *fake_create(ifl_scheduler_options options) {
    fake *f = calloc(1, sizeof *f);
    assert_non_null(f);
    assert_ok(ifl_scheduler_create(&f->s, &options, &err));
    assert_ok(ifl_scheduler_swap(f->s, 0, &err));
    return f;
}

static void fake_free(fake *f) {
    for (int32_t i = 0; i < f->n_seqs; i++)
        if (f->seqs[i].live) fake_remove(f, &f->seqs[i]);
    assert_int_equal(f->s->cache->n_free, f->s->cache->n_pages); /* nothing leaks */
    ifl_scheduler_free(f->s);
    free(f);
}

static void test_group_shares_its_prompt(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){8, 64, 4, 16, 64, false});
    fake_submit(f, 23, 10, 8);
    int32_t n_build = fake_step(f);
    assert_int_equal(n_build, 22);
    /* 22 positions are 5 full pages and a partial one: the second step shares 5 and copies 1 each.
     */
    n_build = fake_step(f);
    assert_int_equal(n_build, 0);
    assert_int_equal(f->n_decoded, 8);
    assert_int_equal(f->s->cache->n_pages - f->s->cache->n_free, 5 + 8);
    while (f->n_live)
        fake_step(f);
    fake_free(f);
}

static void test_prefill_keeps_to_its_chunk_beside_decoding(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){4, 64, 4, 32, 5, false});
    fake_submit(f, 2, 60, 1);
    fake_step(f);
    fake_step(f);
    assert_int_equal(f->n_decoded, 1);
    fake_submit(f, 31, 5, 2);
    for (int32_t i = 0; i < 6; i++)
        assert_int_equal(fake_step(f), 5);
    assert_int_equal(f->n_decoded, 7); /* the first sequence never paused */
    fake_step(f);
    assert_int_equal(f->n_decoded, 10);
    fake_free(f);
}

static void test_next_prompt_is_built_while_it_queues(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){2, 64, 4, 16, 16, false});
    fake_submit(f, 5, 4, 2);
    fake_submit(f, 9, 4, 2);
    fake_step(f); /* builds both prompts: 4 + 8 rows */
    for (int32_t i = 0; i < 4; i++)
        fake_step(f);
    assert_int_equal(f->n_finished, 2);
    fake_step(f); /* admits the second group, which decodes at once */
    assert_int_equal(f->n_decoded, 10);
    fake_free(f);
}

static void test_youngest_gives_way_and_comes_back_first(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){4, 10, 1, 10, 16, false});
    fake_submit(f, 2, 8, 1);
    fake_submit(f, 2, 7, 1);
    fake_submit(f, 2, 2, 1);
    for (int32_t i = 0; i < 9; i++)
        fake_step(f);
    assert_false(f->seqs[0].live); /* the oldest never paused */
    int32_t steps = 0;
    while (f->n_live && steps++ < 100)
        fake_step(f);
    assert_int_equal(f->n_live, 0);
    assert_true(f->s->n_preemptions >= 1);
    fake_free(f);
}

static void test_recompute_flips_without_a_pause(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){2, 64, 4, 16, 4, true});
    fake_submit(f, 9, 40, 2);
    while (f->n_decoded < 20)
        fake_step(f);
    assert_ok(ifl_scheduler_swap(f->s, 1, &err));
    assert_int_equal(ifl_scheduler_swap(f->s, 2, &err), IFL_AGAIN);
    int64_t before = f->n_decoded;
    int32_t steps = 0;
    while (ifl_scheduler_oldest_version(f->s) == 0) {
        fake_step(f);
        steps++;
        assert_int_equal(f->n_decoded, before + 2 * steps);
    }
    assert_true(steps > 4);
    assert_int_equal(f->n_flips, 2);
    assert_ok(ifl_scheduler_swap(f->s, 2, &err));
    fake_free(f);
}

static void test_recompute_without_free_pages_rebuilds_in_place(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){2, 12, 4, 12, 4, true});
    fake_submit(f, 9, 30, 1);
    while (f->n_decoded < 24) /* 32 of 48 positions: no room for a second copy */
        fake_step(f);
    assert_ok(ifl_scheduler_swap(f->s, 1, &err));
    int32_t steps = 0;
    while (f->n_live && steps++ < 60)
        fake_step(f);
    assert_int_equal(f->n_finished, 1);
    assert_int_equal(f->n_decoded, 30);
    assert_int_equal(f->n_flips, 1);
    fake_free(f);
}

/* The younger one's prompt is done but has no page left for the sample's own part; it holds pages
 * that the older one needs. */
static void test_oldest_takes_a_prompt_that_a_younger_one_waits_for(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){2, 10, 4, 10, 1, false});
    fake_submit(f, 1, 40, 1);
    while (f->n_decoded < 24)
        fake_step(f);
    fake_submit(f, 7, 5, 1);
    for (int32_t i = 0; i < 16; i++)
        fake_step(f);
    assert_int_equal(f->n_decoded, 40); /* never paused */
    assert_int_equal(f->n_finished, 1);
    for (int32_t i = 0; i < 12; i++)
        fake_step(f);
    assert_int_equal(f->n_finished, 2);
    fake_free(f);
}

static void test_admission_leaves_a_page_of_growth_for_each(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){8, 6, 4, 6, 64, false});
    for (int32_t i = 0; i < 6; i++)
        fake_submit(f, 1, 3, 1);
    fake_step(f); /* 1 page each and 1 page of growth for each that runs: three of six */
    assert_int_equal(f->s->n_active, 3);
    while (f->n_live)
        fake_step(f);
    assert_int_equal(f->s->n_preemptions, 0);
    fake_free(f);
}

static void test_fits_counts_the_prompts_own_page(void **state) {
    (void)state;
    fake *f = fake_create((ifl_scheduler_options){2, 4, 4, 4, 4, false});
    assert_true(ifl_scheduler_fits(f->s, 5, 12)); /* 16 positions, prompt ends on a page */
    assert_false(ifl_scheduler_fits(f->s, 5, 13));
    assert_true(ifl_scheduler_fits(f->s, 4, 9));
    assert_false(ifl_scheduler_fits(f->s, 4, 10)); /* 13 positions and the partial prompt page */
    assert_false(ifl_scheduler_fits(f->s, INT32_MAX, INT32_MAX));
    fake_free(f);
}

/* Random arrivals, swaps, parks and cancellations in a pool that is much too small: every sequence
 * ends, every read finds its own cells, no page leaks. */
static void soak(bool recompute, uint64_t seed, int32_t page_tokens) {
    int32_t n_pages = 160 / page_tokens + 2;
    fake *f = fake_create((ifl_scheduler_options){6, n_pages, page_tokens, n_pages,
                                                  1 + (int32_t)(seed % 7), recompute});
    ifl_rng_key key = {seed, 0, IFL_RNG_TEST};
    int64_t version = 0, cancelled = 0;
    for (uint64_t step = 0; step < 20000 && (step < 1200 || f->n_live); step++) {
        uint32_t r[4], v[4];
        ifl_rng_words(&key, step, 0, r);
        ifl_rng_words(&key, step, 1, v);
        if (step < 1200 && r[0] % 12 == 0 && f->n_seqs < SEQUENCES - 8) {
            int32_t prompt = 1 + (int32_t)(v[0] % 60);
            fake_submit(f, prompt, 1 + (int32_t)(v[1] % 80), 1 + (int32_t)(v[2] % 6));
        }
        if (r[1] % 6 == 0) {
            ifl_status st = ifl_scheduler_swap(f->s, version + 1, &err);
            assert_true(st == IFL_OK || (st == IFL_AGAIN && recompute));
            version += st == IFL_OK;
        }
        fake_sequence *any = f->n_seqs ? &f->seqs[r[2] % (uint32_t)f->n_seqs] : NULL;
        if (any && any->live && r[3] % 16 == 0) ifl_scheduler_park(f->s, &any->seq);
        if (any && any->live && r[3] % 64 == 1) {
            fake_remove(f, any);
            cancelled++;
        }
        fake_step(f);
    }
    assert_int_equal(f->n_live, 0);
    assert_int_equal(f->n_finished + cancelled, f->n_seqs);
    assert_true(f->n_flips > 20);
    fake_free(f);
}

static void test_soak_keep(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++)
        soak(false, seed, 1 << (seed % 4));
}

static void test_soak_recompute(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++)
        soak(true, seed, 1 << (seed % 4));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_come_back_when_the_last_reference_goes),
        cmocka_unit_test(test_pages_refuse_odd_sizes),
        cmocka_unit_test(test_group_shares_its_prompt),
        cmocka_unit_test(test_prefill_keeps_to_its_chunk_beside_decoding),
        cmocka_unit_test(test_next_prompt_is_built_while_it_queues),
        cmocka_unit_test(test_youngest_gives_way_and_comes_back_first),
        cmocka_unit_test(test_recompute_flips_without_a_pause),
        cmocka_unit_test(test_recompute_without_free_pages_rebuilds_in_place),
        cmocka_unit_test(test_oldest_takes_a_prompt_that_a_younger_one_waits_for),
        cmocka_unit_test(test_admission_leaves_a_page_of_growth_for_each),
        cmocka_unit_test(test_fits_counts_the_prompts_own_page),
        cmocka_unit_test(test_soak_keep),
        cmocka_unit_test(test_soak_recompute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
