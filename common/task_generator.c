#include "common/task_generator.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "common/memory.h"
#include "common/rng.h"

#define LADDER_X 700
#define LADDER_D_MIN 2
#define LADDER_D 8
#define HELDOUT_CLASSES 16
#define DRAW_ATTEMPTS_MAX                                                                          \
    65536 /* 1 in 16 tasks is held out: a miss of all these has P < 1e-1800                        \
           */

typedef struct sum_item {
    int32_t a, b;
    bool minus;
} sum_item;

/* The equations shown as few-shots: the prompt format with which a 270M base model was measured. */
static const sum_item sums_shown[2][4] = {
    {{2, 5, false}, {8, 3, true}, {6, 7, false}, {9, 9, true}},
    {{21, 34, false}, {68, 25, true}, {47, 19, false}, {90, 38, true}},
};
static const char *const sums_few_shot[2] = {
    "2 + 5 = 7\n8 - 3 = 5\n6 + 7 = 13\n9 - 9 = 0\n",
    "21 + 34 = 55\n68 - 25 = 43\n47 + 19 = 66\n90 - 38 = 52\n",
};

static void ladder_unpack(uint32_t item, int32_t *x, int32_t *d, int32_t *k) {
    *x = (int32_t)(item % LADDER_X);
    *d = LADDER_D_MIN + (int32_t)(item / LADDER_X % LADDER_D);
    *k = 1 + (int32_t)(item / (LADDER_X * LADDER_D));
}

static int32_t sums_low(const ifl_generator *g) {
    return g->digits == 1 ? 1 : 10;
}
static int32_t sums_n(const ifl_generator *g) {
    return g->digits == 1 ? 9 : 90;
}

static sum_item sums_unpack(const ifl_generator *g, uint32_t item) {
    uint32_t n = (uint32_t)sums_n(g);
    sum_item s = {sums_low(g) + (int32_t)(item / n % n), sums_low(g) + (int32_t)(item % n),
                  item / (n * n) == 1};
    return s;
}

/* The hash class decides the split. The text that is hashed is part of the format: changing it
 * would move held-out tasks into training. Commuted sums share a class, else 5 + 3 would give away
 * 3 + 5. */
static bool generator_is_heldout(const ifl_generator *g, uint32_t item) {
    char text[64];
    int n;
    uint64_t classes = 1;
    if (g->kind == IFL_GENERATOR_LADDER) {
        int32_t x, d, k;
        ladder_unpack(item, &x, &d, &k);
        n = snprintf(text, sizeof text, "ladder %d %d %d", x, d, k);
    } else {
        sum_item s = sums_unpack(g, item);
        int32_t low = s.a < s.b ? s.a : s.b, high = s.a < s.b ? s.b : s.a;
        n = snprintf(text, sizeof text, "sums %d %c %d", high, s.minus ? '-' : '+', low);
        if (g->digits == 1)
            classes = 6; /* 34 of 122 tasks: a sixteenth would be too few to measure */
    }
    return ifl_hash64(text, (size_t)n) % HELDOUT_CLASSES < classes;
}

bool ifl_generator_has(const ifl_generator *g, uint32_t item) {
    if (item >= g->n_space) return false;
    if (g->kind == IFL_GENERATOR_SUMS) {
        sum_item s = sums_unpack(g, item);
        if (s.minus && s.a < s.b) return false;
        for (int i = 0; i < 4; i++) {
            const sum_item *shown = &sums_shown[g->digits - 1][i];
            if (s.a == shown->a && s.b == shown->b && s.minus == shown->minus) return false;
        }
    }
    return generator_is_heldout(g, item) == g->heldout;
}

static uint32_t scale32(uint32_t word, uint32_t n) {
    return (uint32_t)((uint64_t)word * n >> 32);
}

static uint32_t generator_propose(const ifl_generator *g, uint64_t index, uint32_t attempt) {
    ifl_rng_key key = {g->seed, g->stream, IFL_RNG_TASK};
    uint32_t w[4];
    ifl_rng_words(&key, index, attempt, w);
    if (g->kind == IFL_GENERATOR_LADDER) {
        uint64_t at = (uint64_t)(((unsigned __int128)w[2] * g->k_weights[g->steps_max - 1]) >> 32);
        uint32_t k = 0;
        while (at >= g->k_weights[k])
            k++;
        return (k * LADDER_D + scale32(w[1], LADDER_D)) * LADDER_X + scale32(w[0], LADDER_X);
    }
    uint32_t n = (uint32_t)sums_n(g);
    uint32_t a = scale32(w[0], n), b = scale32(w[1], n), minus = scale32(w[2], 2);
    if (minus && a < b) {
        uint32_t t = a;
        a = b;
        b = t;
    }
    return (minus * n + a) * n + b;
}

static uint32_t generator_draw_endless(const ifl_generator *g, uint64_t index) {
    for (uint32_t attempt = 0; attempt < DRAW_ATTEMPTS_MAX; attempt++) {
        uint32_t item = generator_propose(g, index, attempt);
        if (ifl_generator_has(g, item)) return item;
    }
    IFL_ASSERT(!"a split of a generator has no task within the attempts");
    return 0;
}

uint32_t ifl_generator_draw(const ifl_generator *g, uint64_t index) {
    if (g->n_items == 0) return generator_draw_endless(g, index);
    IFL_ASSERT(index < (uint64_t)g->n_items);
    return g->items[index];
}

/* A finite set is the first `count` distinct draws, so its mix is the endless one's as far as the
 * split has enough tasks of each kind; what rare draws leave missing is filled up in item order. */
static ifl_status generator_fill(ifl_generator *g, int64_t count, const char *where,
                                 ifl_error *err) {
    ifl_status st = IFL_OK;
    int64_t n_split = 0;
    for (uint32_t item = 0; item < g->n_space; item++)
        n_split += ifl_generator_has(g, item);
    if (count > n_split || count > IFL_GENERATOR_COUNT_MAX)
        return ifl_fail(
            err, IFL_LIMIT,
            "%s.count: got %lld, but the %s split of generator %s has %lld distinct tasks "
            "and a finite set holds at most %d: use a smaller count, or 0 for endless draws",
            where, (long long)count, g->heldout ? "heldout" : "train", ifl_generator_name(g),
            (long long)n_split, IFL_GENERATOR_COUNT_MAX);
    uint8_t *seen = ifl_alloc(g->n_space, 1);
    g->items = ifl_alloc((size_t)count, sizeof *g->items);
    if (!seen || !g->items) {
        st = ifl_fail(err, IFL_NOMEM, "%s: no memory for %lld tasks", where, (long long)count);
        goto done;
    }
    int64_t n = 0;
    for (uint64_t index = 0; n < count && index < (uint64_t)count * 16; index++) {
        uint32_t item = generator_draw_endless(g, index);
        if (seen[item]) continue;
        seen[item] = 1;
        g->items[n++] = item;
    }
    for (uint32_t item = 0; n < count; item++)
        if (!seen[item] && ifl_generator_has(g, item)) g->items[n++] = item;
    g->n_items = count;
done:
    ifl_free(seen);
    return st;
}

ifl_status ifl_generator_init(ifl_generator *g, const ifl_source_config *source, uint64_t seed,
                              uint64_t stream, const char *where, ifl_error *err) {
    memset(g, 0, sizeof *g);
    g->seed = seed;
    g->stream = stream;
    if (strcmp(source->split, "heldout") == 0) {
        g->heldout = true;
    } else if (strcmp(source->split, "train") != 0 && source->split[0] != '\0') {
        return ifl_fail(err, IFL_USAGE, "%s.split: got '%s', wanted train or heldout", where,
                        source->split);
    }
    if (source->count < 0)
        return ifl_fail(err, IFL_USAGE, "%s.count: got %lld, wanted 0 (endless) or more", where,
                        (long long)source->count);
    if (strcmp(source->generator, "ladder") == 0) {
        g->kind = IFL_GENERATOR_LADDER;
        g->steps_max = source->steps_max ? source->steps_max : 16;
        if (g->steps_max < 1 || g->steps_max > IFL_LADDER_STEPS_MAX)
            return ifl_fail(err, IFL_USAGE,
                            "%s.steps_max: got %d, wanted 1 .. %d (answers have three digits)",
                            where, g->steps_max, IFL_LADDER_STEPS_MAX);
        g->n_space = (uint32_t)(LADDER_X * LADDER_D * g->steps_max);
        /* Whole millionths: no draw depends on the last bits of pow. */
        uint64_t sum = 0;
        for (int k = 1; k <= g->steps_max; k++) {
            sum += (uint64_t)llround(1e6 * pow((double)k, -0.8));
            g->k_weights[k - 1] = sum;
        }
    } else if (strcmp(source->generator, "sums") == 0) {
        g->kind = IFL_GENERATOR_SUMS;
        g->digits = source->digits ? source->digits : 1;
        if (g->digits < 1 || g->digits > 2)
            return ifl_fail(err, IFL_USAGE, "%s.digits: got %d, wanted 1 or 2", where, g->digits);
        g->n_space = (uint32_t)(2 * sums_n(g) * sums_n(g));
    } else {
        return ifl_fail(err, IFL_USAGE, "%s.generator: got '%s', wanted ladder or sums", where,
                        source->generator);
    }
    if (source->count > 0) return generator_fill(g, source->count, where, err);
    return IFL_OK;
}

void ifl_generator_clear(ifl_generator *g) {
    ifl_free(g->items);
    memset(g, 0, sizeof *g);
}

void ifl_generator_prompt(const ifl_generator *g, uint32_t item, char out[IFL_GENERATOR_TEXT_MAX]) {
    if (g->kind == IFL_GENERATOR_LADDER) {
        int32_t x, d, k;
        ladder_unpack(item, &x, &d, &k);
        snprintf(out, IFL_GENERATOR_TEXT_MAX, "%03d+%d*%02d=", x, d, k);
        return;
    }
    sum_item s = sums_unpack(g, item);
    snprintf(out, IFL_GENERATOR_TEXT_MAX, "%d %c %d =", s.a, s.minus ? '-' : '+', s.b);
}

void ifl_generator_answer(const ifl_generator *g, uint32_t item, char out[IFL_GENERATOR_TEXT_MAX]) {
    if (g->kind == IFL_GENERATOR_LADDER) {
        int32_t x, d, k;
        ladder_unpack(item, &x, &d, &k);
        snprintf(out, IFL_GENERATOR_TEXT_MAX, "%03d", x + d * k);
        return;
    }
    sum_item s = sums_unpack(g, item);
    snprintf(out, IFL_GENERATOR_TEXT_MAX, "%d", s.minus ? s.a - s.b : s.a + s.b);
}

void ifl_generator_completion(const ifl_generator *g, uint32_t item, bool worked,
                              char out[IFL_GENERATOR_TEXT_MAX]) {
    if (g->kind == IFL_GENERATOR_LADDER) {
        int32_t x, d, k;
        ladder_unpack(item, &x, &d, &k);
        size_t n = 0;
        if (worked) {
            for (int32_t left = k - 1; left >= 0; left--)
                n += (size_t)snprintf(out + n, IFL_GENERATOR_TEXT_MAX - n,
                                      "%03d+%d*%02d=", x + d * (k - left), d, left);
        }
        snprintf(out + n, IFL_GENERATOR_TEXT_MAX - n, "#%03d\n", x + d * k);
        return;
    }
    char answer[IFL_GENERATOR_TEXT_MAX];
    ifl_generator_answer(g, item, answer);
    snprintf(out, IFL_GENERATOR_TEXT_MAX, " %s\n", answer);
}

const char *ifl_generator_name(const ifl_generator *g) {
    return g->kind == IFL_GENERATOR_LADDER ? "ladder" : "sums";
}

const char *ifl_generator_few_shot(const ifl_generator *g) {
    return g->kind == IFL_GENERATOR_LADDER ? "" : sums_few_shot[g->digits - 1];
}

const char *ifl_generator_checker(const ifl_generator *g) {
    (void)g;
    return "exact";
}

const char *ifl_generator_meta(const ifl_generator *g) {
    return g->kind == IFL_GENERATOR_LADDER ? "{\"after\":\"#\",\"end\":true}" : "{\"end\":true}";
}
