#include "common/class_ranks.h"

#include <stdbool.h>
#include <stdlib.h>

#ifdef __x86_64__
#include <immintrin.h>
#define WIDE __attribute__((target("avx2,bmi,bmi2,popcnt")))
#endif

static int plain_only;

void ifl_class_ranks_test_plain(int plain) {
    plain_only = plain;
}

/* --- One by one ------------------------------------------------------------------------------- */

/* seen: of each class before element `from`. */
static void ranks_plain(const uint16_t *base, uint32_t from, const uint32_t *at, int32_t n,
                        uint32_t seen[IFL_CLASSES], uint8_t *classes, uint32_t *ranks) {
    for (int32_t i = 0; i < n; i++) {
        for (; from < at[i]; from++)
            seen[ifl_class_of(base[from])]++;
        classes[i] = (uint8_t)ifl_class_of(base[from]);
        ranks[i] = seen[classes[i]];
    }
}

/* What is looked for: of each class the next rank, and where it stands in the lists. */
typedef struct wanted {
    uint32_t seen[IFL_CLASSES]; /* before the element that is looked at */
    uint32_t next[IFL_CLASSES]; /* no more: more than there are elements */
    int32_t index[IFL_CLASSES];
    const int32_t *begin, *steps;
    const uint32_t *ranks;
} wanted;

static void wanted_begin(wanted *w, const int32_t *begin, const uint32_t *ranks,
                         const int32_t *steps) {
    w->begin = begin;
    w->ranks = ranks;
    w->steps = steps;
    for (int x = 0; x < IFL_CLASSES; x++) {
        w->seen[x] = 0;
        w->index[x] = begin[x];
        w->next[x] = begin[x + 1] > begin[x] ? ranks[begin[x]] : UINT32_MAX;
    }
}

/* The step of the change that is found; the next one is looked for then. */
static inline int32_t wanted_take(wanted *w, unsigned x) {
    int32_t this = w->index[x]++;
    w->next[x] = w->index[x] < w->begin[x + 1] ? w->ranks[w->index[x]] : UINT32_MAX;
    return w->steps[this];
}

static int32_t places_plain(wanted *w, const uint16_t *base, int64_t from, int64_t n_elements,
                            int32_t n, uint32_t *at, int32_t *to_steps) {
    int32_t n_all = w->begin[IFL_CLASSES];
    for (int64_t i = from; i < n_elements && n < n_all; i++) {
        unsigned x = ifl_class_of(base[i]);
        if (w->seen[x]++ != w->next[x]) continue;
        at[n] = (uint32_t)i;
        to_steps[n++] = wanted_take(w, x);
    }
    return n;
}

/* --- AVX2: 256 elements at a time ------------------------------------------------------------- */

#ifdef __x86_64__

enum { TILE = 256, VECTORS = TILE / 32, SAMPLE = 1021, WINDOW_MAX = 24 };

static bool is_wide(void) {
    return !plain_only && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("popcnt") &&
           /* There a pdep takes hundreds of cycles. */
           !__builtin_cpu_is("znver1") && !__builtin_cpu_is("znver2");
}

/* The classes low .. low + n - 1 are counted by comparing all elements with each of them: the
 * stretch of exponents that most of the chunk lies in. What lies outside is counted one by one. */
typedef struct window {
    int low, n;
} window;

static void window_choose(window *w, const uint16_t *base, int64_t n_elements) {
    uint32_t counts[IFL_CLASSES] = {0}, most = 0, sum = 0;
    for (int64_t i = 0; i < n_elements; i += SAMPLE)
        counts[ifl_class_of(base[i])]++;
    for (int x = 0; x < WINDOW_MAX; x++)
        sum += counts[x];
    w->low = 0;
    for (int x = 0;; x++) {
        if (sum > most) {
            most = sum;
            w->low = x;
        }
        if (x + WINDOW_MAX == IFL_CLASSES) break;
        sum += counts[x + WINDOW_MAX] - counts[x];
    }
    /* Ends of it that are nearly empty cost more than what they hold. */
    uint32_t few = (uint32_t)(n_elements / SAMPLE / 256);
    int end = w->low + WINDOW_MAX;
    while (end > w->low + 1 && counts[end - 1] <= few)
        end--;
    while (w->low < end - 1 && counts[w->low] <= few)
        w->low++;
    w->n = end - w->low;
}

typedef union tile {
    __m256i v[VECTORS];
    uint8_t classes[TILE];
} tile;

WIDE static inline void tile_load(tile *t, const uint16_t *base) {
    const __m256i low = _mm256_set1_epi16(0xff);
    for (int i = 0; i < VECTORS; i++) {
        const __m256i *from = (const __m256i *)(const void *)(base + 32 * i);
        __m256i a = _mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(from), 7), low),
                b = _mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(from + 1), 7), low);
        t->v[i] = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
    }
}

WIDE static inline uint32_t tile_count(const tile *t, unsigned x) {
    const __m256i all = _mm256_set1_epi8((char)x);
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < VECTORS; i++)
        sum = _mm256_sub_epi8(sum, _mm256_cmpeq_epi8(t->v[i], all));
    sum = _mm256_sad_epu8(sum, _mm256_setzero_si256());
    __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return (uint32_t)_mm_cvtsi128_si32(half) + (uint32_t)_mm_extract_epi32(half, 2);
}

WIDE static inline uint32_t tile_mask(const tile *t, int vector, unsigned x) {
    return (uint32_t)_mm256_movemask_epi8(
        _mm256_cmpeq_epi8(t->v[vector], _mm256_set1_epi8((char)x)));
}

/* One bit for each element of that vector outside of the window. */
WIDE static inline uint32_t tile_outside(const tile *t, int vector, const window *w) {
    __m256i x = _mm256_sub_epi8(t->v[vector], _mm256_set1_epi8((char)w->low));
    return (uint32_t)_mm256_movemask_epi8(
        _mm256_cmpeq_epi8(_mm256_max_epu8(x, _mm256_set1_epi8((char)w->n)), x));
}

WIDE static void ranks_wide(const uint16_t *base, int64_t n_elements, const uint32_t *at, int32_t n,
                            uint8_t *classes, uint32_t *ranks) {
    uint32_t seen[IFL_CLASSES] = {0};
    window w;
    window_choose(&w, base, n_elements);
    int64_t begin = 0;
    int32_t i = 0;
    for (; begin + TILE <= n_elements && i < n; begin += TILE) {
        tile t;
        tile_load(&t, base + begin);
        for (; i < n && at[i] < begin + TILE; i++) {
            int place = (int)(at[i] - begin), vector = 0;
            unsigned x = t.classes[place];
            uint32_t rank = seen[x];
            classes[i] = (uint8_t)x;
            for (; vector < place / 32; vector++)
                rank += (uint32_t)__builtin_popcount(tile_mask(&t, vector, x));
            ranks[i] = rank + (uint32_t)__builtin_popcount(
                                  _bzhi_u32(tile_mask(&t, vector, x), (unsigned)place % 32));
        }
        for (int x = w.low; x < w.low + w.n; x++)
            seen[x] += tile_count(&t, (unsigned)x);
        for (int vector = 0; vector < VECTORS; vector++)
            for (uint32_t mask = tile_outside(&t, vector, &w); mask; mask &= mask - 1)
                seen[t.classes[32 * vector + __builtin_ctz(mask)]]++;
    }
    ranks_plain(base, (uint32_t)begin, at + i, n - i, seen, classes + i, ranks + i);
}

/* The tile's changes of class x: a bit in `marks` and the step in its place. */
WIDE static inline void tile_find(wanted *w, const tile *t, unsigned x, uint32_t end,
                                  uint64_t marks[TILE / 64], int32_t steps[TILE]) {
    uint64_t masks[TILE / 64];
    for (int i = 0; i < TILE / 64; i++)
        masks[i] = (uint64_t)tile_mask(t, 2 * i + 1, x) << 32 | tile_mask(t, 2 * i, x);
    int i = 0;
    uint32_t before = w->seen[x], here = (uint32_t)__builtin_popcountll(masks[0]);
    while (w->next[x] < end) {
        while (w->next[x] - before >= here) {
            before += here;
            here = (uint32_t)__builtin_popcountll(masks[++i]);
        }
        uint64_t bit = _pdep_u64(1ull << (w->next[x] - before), masks[i]);
        marks[i] |= bit;
        steps[64 * i + __builtin_ctzll(bit)] = wanted_take(w, x);
    }
}

WIDE static int32_t places_wide(wanted *w, const uint16_t *base, int64_t n_elements, uint32_t *at,
                                int32_t *to_steps) {
    int32_t n = 0, n_all = w->begin[IFL_CLASSES], n_classes = 0;
    window in;
    window_choose(&in, base, n_elements);
    uint8_t classes[WINDOW_MAX]; /* of which anything is looked for */
    for (int x = in.low; x < in.low + in.n; x++)
        if (w->begin[x + 1] > w->begin[x]) classes[n_classes++] = (uint8_t)x;
    int64_t begin = 0;
    for (; begin + TILE <= n_elements && n < n_all; begin += TILE) {
        tile t;
        uint64_t marks[TILE / 64] = {0};
        int32_t steps[TILE];
        tile_load(&t, base + begin);
        for (int c = 0; c < n_classes; c++) {
            unsigned x = classes[c];
            uint32_t end = w->seen[x] + tile_count(&t, x);
            if (w->next[x] < end) tile_find(w, &t, x, end, marks, steps);
            w->seen[x] = end;
        }
        for (int vector = 0; vector < VECTORS; vector++)
            for (uint32_t mask = tile_outside(&t, vector, &in); mask; mask &= mask - 1) {
                int place = 32 * vector + __builtin_ctz(mask);
                unsigned x = t.classes[place];
                if (w->seen[x]++ != w->next[x]) continue;
                marks[place / 64] |= 1ull << place % 64;
                steps[place] = wanted_take(w, x);
            }
        for (int i = 0; i < TILE / 64; i++)
            for (uint64_t mask = marks[i]; mask; mask &= mask - 1) {
                int place = 64 * i + __builtin_ctzll(mask);
                at[n] = (uint32_t)(begin + place);
                to_steps[n++] = steps[place];
            }
    }
    return places_plain(w, base, begin, n_elements, n, at, to_steps);
}

#endif

/* --- Either ----------------------------------------------------------------------------------- */

void ifl_class_ranks(const uint16_t *base, int64_t n_elements, const uint32_t *at, int32_t n,
                     uint8_t *classes, uint32_t *ranks) {
    if (n == 0) return; /* a patch without changes may have no lists */
#ifdef __x86_64__
    if (is_wide()) {
        ranks_wide(base, n_elements, at, n, classes, ranks);
        return;
    }
#endif
    (void)n_elements;
    uint32_t seen[IFL_CLASSES] = {0};
    ranks_plain(base, 0, at, n, seen, classes, ranks);
}

int32_t ifl_class_places(const uint16_t *base, int64_t n_elements,
                         const int32_t begin[IFL_CLASSES + 1], const uint32_t *ranks,
                         const int32_t *steps, uint32_t *at, int32_t *to_steps) {
    wanted w;
    wanted_begin(&w, begin, ranks, steps);
#ifdef __x86_64__
    if (is_wide()) return places_wide(&w, base, n_elements, at, to_steps);
#endif
    return places_plain(&w, base, 0, n_elements, 0, at, to_steps);
}
