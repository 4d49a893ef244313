#include "common/weight_patch.h"

#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "common/byte_io.h"
#include "common/class_ranks.h"
#include "common/memory.h"

#define BLOCK 64  /* numbers that share a Rice parameter */
#define ESCAPE 24 /* zeros of an unary part that announce a number in full */
#define K_MAX 31  /* of the 5 bits */
#define HEADER_BYTES 8
#define ELEMENTS_MAX (1ll << 30)
#define STEP_MAX 65535

void ifl_patch_free(ifl_patch *patch) {
    if (!patch) return;
    free(patch->at);
    free(patch->steps);
    free(patch->ranks);
    free(patch->ranked_steps);
    *patch = (ifl_patch){0};
}

static ifl_status patch_reserve(ifl_patch *patch, int64_t n, ifl_error *err) {
    void *at = patch->at, *steps = patch->steps;
    ifl_status st = ifl_grow(&at, &patch->at_cap, (size_t)n, sizeof *patch->at, err);
    if (st == IFL_OK)
        st = ifl_grow(&steps, &patch->steps_cap, (size_t)n, sizeof *patch->steps, err);
    patch->at = at;
    patch->steps = steps;
    return st;
}

/* --- Differences ------------------------------------------------------------------------------ */

#define STRIDE 64 /* elements that are compared at once */

/* One bit for each of n (at most STRIDE) elements that differ. */
static uint64_t differing(const uint16_t *a, const uint16_t *b, int64_t n) {
    uint64_t mask = 0;
    for (int64_t i = 0; i < n; i++)
        mask |= (uint64_t)(a[i] != b[i]) << i;
    return mask;
}

/* The same of STRIDE. */
static inline uint64_t differing_stride(const uint16_t *a, const uint16_t *b) {
#ifdef __SSE2__
    uint64_t same = 0;
    for (int i = 0; i < STRIDE; i += 16) {
        __m128i x[2];
        for (int j = 0; j < 2; j++)
            x[j] = _mm_cmpeq_epi16(_mm_loadu_si128((const __m128i *)(const void *)(a + i + 8 * j)),
                                   _mm_loadu_si128((const __m128i *)(const void *)(b + i + 8 * j)));
        same |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_packs_epi16(x[0], x[1])) << i;
    }
    return ~same;
#else
    return memcmp(a, b, STRIDE * sizeof *a) == 0 ? 0 : differing(a, b, STRIDE);
#endif
}

ifl_status ifl_patch_diff(ifl_patch *out, const uint16_t *base, const uint16_t *now,
                          int64_t n_elements, ifl_error *err) {
    IFL_ASSERT(n_elements >= 0 && n_elements <= ELEMENTS_MAX);
    out->n = 0;
    for (int64_t begin = 0; begin < n_elements; begin += STRIDE) {
        int64_t left = n_elements - begin;
        uint64_t mask = left >= STRIDE ? differing_stride(base + begin, now + begin)
                                       : differing(base + begin, now + begin, left);
        if (mask == 0) continue;
        size_t most = (size_t)out->n + STRIDE;
        if (most > out->at_cap || most > out->steps_cap)
            IFL_TRY(patch_reserve(out, (int64_t)most, err));
        for (; mask; mask &= mask - 1) {
            int64_t i = begin + __builtin_ctzll(mask);
            out->at[out->n] = (uint32_t)i;
            out->steps[out->n++] = ifl_bf16_place(now[i]) - ifl_bf16_place(base[i]);
        }
    }
    return IFL_OK;
}

ifl_status ifl_patch_merge(ifl_patch *out, const ifl_patch *first, const ifl_patch *second,
                           ifl_error *err) {
    IFL_ASSERT(out != first && out != second);
    IFL_TRY(patch_reserve(out, (int64_t)first->n + second->n + 1, err));
    int32_t i = 0, j = 0, n = 0;
    while (i < first->n || j < second->n) {
        uint32_t a = i < first->n ? first->at[i] : UINT32_MAX,
                 b = j < second->n ? second->at[j] : UINT32_MAX;
        out->at[n] = a < b ? a : b;
        out->steps[n] = (a <= b ? first->steps[i] : 0) + (b <= a ? second->steps[j] : 0);
        i += a <= b;
        j += b <= a;
        n += out->steps[n] != 0;
    }
    out->n = n;
    return IFL_OK;
}

ifl_status ifl_patch_apply(const ifl_patch *patch, uint16_t *elements, ifl_error *err) {
    for (int32_t i = 0; i < patch->n; i++) {
        uint16_t *element = elements + patch->at[i];
        int32_t place = ifl_bf16_place(*element) + patch->steps[i];
        if (place < INT16_MIN || place > INT16_MAX)
            return ifl_fail(err, IFL_FORMAT, "a patch moves element %u by %d, out of bf16",
                            patch->at[i], patch->steps[i]);
        *element = ifl_bf16_at_place(place);
    }
    return IFL_OK;
}

/* --- Writing bits ----------------------------------------------------------------------------- */

/* The caller has seen to the room. */
typedef struct bit_writer {
    uint8_t *at;
    uint64_t bits;
    int n; /* in `bits`, below 8 between calls */
} bit_writer;

static inline void bits_put(bit_writer *w, uint64_t value, int n) { /* n <= 56 */
    w->bits |= value << w->n;
    w->n += n;
    uint64_t out = htole64(w->bits);
    memcpy(w->at, &out, sizeof out);
    int bytes = w->n >> 3;
    w->at += bytes;
    w->bits >>= 8 * bytes;
    w->n &= 7;
}

/* The best k lies near the logarithm of the mean, or a little below. Numbers are below 2^31. */
static int rice_parameter(const uint32_t *v, int n) {
    enum { TRIED = 4 };
    uint64_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += v[i];
    uint64_t mean = sum / (uint64_t)n;
    int high = mean > 1 ? 63 - __builtin_clzll(mean) : 0, best = high;
    int32_t best_bits = INT32_MAX;
    for (int k = high; k >= 0 && k > high - TRIED; k--) {
        int32_t bits = n * (1 + k);
        for (int i = 0; i < n; i++) {
            int32_t q = (int32_t)(v[i] >> k);
            bits += q < ESCAPE ? q : ESCAPE + 31 - k;
        }
        if (bits >= best_bits) continue;
        best = k;
        best_bits = bits;
    }
    return best;
}

static void rice_put_block(bit_writer *to, const uint32_t *v, int n) {
    int k = rice_parameter(v, n);
    bit_writer w = *to; /* a copy that the compiler keeps in registers */
    bits_put(&w, (uint64_t)k, 5);
    for (int i = 0; i < n; i++) {
        uint32_t q = v[i] >> k;
        if (q < ESCAPE) {
            uint64_t low = v[i] & ((1ull << k) - 1);
            bits_put(&w, (low << 1 | 1) << q, (int)q + 1 + k);
        } else {
            bits_put(&w, 0, ESCAPE);
            bits_put(&w, v[i], 32);
        }
    }
    *to = w;
}

/* Most bytes of n numbers, one bit of sign each included. */
static size_t code_bytes_max(size_t n) {
    return n * (ESCAPE + 32 + 1) / 8 + (n / BLOCK + 2) + 16;
}

/* --- Reading bits ----------------------------------------------------------------------------- */

typedef struct bit_reader {
    const uint8_t *at, *end;
    uint64_t bits;
    int n;            /* in `bits` */
    int64_t n_beyond; /* of which came after the end: zeros, and the caller compares at the end */
} bit_reader;

/* The same at the end of the bytes. */
static __attribute__((noinline)) uint64_t bits_last(const bit_reader *r) {
    uint64_t next = 0;
    memcpy(&next, r->at, (size_t)(r->end - r->at));
    return le64toh(next);
}

/* At least 56 bits are there afterwards. */
static inline void bits_fill(bit_reader *r) {
    size_t left = (size_t)(r->end - r->at), bytes = (size_t)(63 - r->n) >> 3;
    uint64_t next;
    if (left >= sizeof next) {
        memcpy(&next, r->at, sizeof next);
        next = le64toh(next);
    } else {
        next = bits_last(r);
    }
    r->bits |= next << r->n;
    r->n += 8 * (int)bytes;
    if (bytes > left) {
        r->n_beyond += 8 * (int64_t)(bytes - left);
        bytes = left;
    }
    r->at += bytes;
}

static inline uint64_t bits_take(bit_reader *r, int n) { /* n <= 32, and there */
    uint64_t value = r->bits & ((1ull << n) - 1);
    r->bits >>= n;
    r->n -= n;
    return value;
}

/* One number, of which at least the first 25 + k bits are there. */
static inline uint32_t rice_take(bit_reader *r, int k, uint64_t low) {
    int q = __builtin_ctzll(r->bits | 1ull << ESCAPE);
    if (q < ESCAPE) {
        uint32_t v = (uint32_t)((uint64_t)q << k | (r->bits >> q >> 1 & low));
        r->bits = r->bits >> q >> 1 >> k;
        r->n -= q + 1 + k;
        return v;
    }
    bits_fill(r);
    (void)bits_take(r, ESCAPE);
    return (uint32_t)bits_take(r, 32);
}

static void rice_take_block(bit_reader *from, uint32_t *v, int n) {
    enum { AT_ONCE = 4 }; /* of one filling, mostly: a number takes six bits or so */
    bit_reader r = *from; /* a copy that the compiler keeps in registers */
    bits_fill(&r);
    int k = (int)bits_take(&r, 5), i = 0;
    uint64_t low = (1ull << k) - 1;
    for (; i + AT_ONCE <= n; i += AT_ONCE) {
        bits_fill(&r);
        v[i] = rice_take(&r, k, low);
        for (int j = 1; j < AT_ONCE; j++) {
            if (__builtin_expect(r.n < ESCAPE + 1 + k, 0)) bits_fill(&r);
            v[i + j] = rice_take(&r, k, low);
        }
    }
    for (; i < n; i++) {
        bits_fill(&r);
        v[i] = rice_take(&r, k, low);
    }
    *from = r;
}

/* --- Lists ------------------------------------------------------------------------------------ */

static inline bool is_large(int32_t step) {
    return (uint32_t)step + 1 > 2;
}

/* Numbers that come one by one, in blocks. */
typedef struct rice_list {
    bit_writer *w;
    uint32_t v[BLOCK];
    int n;
} rice_list;

static void list_end(rice_list *list) {
    if (list->n > 0) rice_put_block(list->w, list->v, list->n);
    list->n = 0;
}

static void list_put(rice_list *list, uint32_t v) {
    list->v[list->n++] = v;
    if (list->n == BLOCK) list_end(list);
}

/* Ascending places as gaps. */
static void places_put(bit_writer *w, const uint32_t *at, int32_t n) {
    rice_list list = {.w = w};
    uint32_t next = 0; /* the first place that may be named */
    for (int32_t i = 0; i < n; i++) {
        list_put(&list, at[i] - next);
        next = at[i] + 1;
    }
    list_end(&list);
}

static void signs_put(bit_writer *w, const int32_t *steps, int32_t n) {
    for (int32_t i = 0; i < n;) {
        uint64_t bits = 0;
        int here = n - i < 32 ? n - i : 32;
        for (int j = 0; j < here; j++, i++)
            bits |= (uint64_t)(steps[i] < 0) << j;
        bits_put(w, bits, here);
    }
}

static void large_put(bit_writer *w, const int32_t *steps, int32_t n) {
    rice_list list = {.w = w};
    int32_t begin = 0;
    for (int32_t i = 0; i < n; i++) { /* without a branch that nobody can foresee */
        bool large = is_large(steps[i]);
        list.v[list.n] = (uint32_t)(i - begin);
        list.n += large;
        begin = large ? i + 1 : begin;
        if (list.n == BLOCK) list_end(&list);
    }
    list_end(&list);
    for (int32_t i = 0; i < n; i++) {
        list.v[list.n] = (uint32_t)abs(steps[i]) - 2;
        list.n += is_large(steps[i]);
        if (list.n == BLOCK) list_end(&list);
    }
    list_end(&list);
}

static uint32_t large_count(const int32_t *steps, int32_t n) {
    uint32_t count = 0;
    for (int32_t i = 0; i < n; i++)
        count += is_large(steps[i]);
    return count;
}

static ifl_status places_take(bit_reader *r, uint32_t *at, int32_t n, int64_t n_places,
                              ifl_error *err) {
    uint32_t v[BLOCK];
    int64_t next = 0;
    for (int32_t i = 0; i < n;) {
        int block = n - i < BLOCK ? n - i : BLOCK;
        rice_take_block(r, v, block);
        for (int j = 0; j < block; j++, i++) {
            next += v[j];
            if (next >= n_places)
                return ifl_fail(err, IFL_FORMAT, "patch: change %d is of element %lld of %lld", i,
                                (long long)next, (long long)n_places);
            at[i] = (uint32_t)next++;
        }
    }
    return IFL_OK;
}

static void signs_take(bit_reader *r, int32_t *steps, int32_t n) {
    for (int32_t i = 0; i < n;) {
        int here = n - i < 32 ? n - i : 32;
        bits_fill(r);
        uint64_t bits = bits_take(r, here);
        for (int j = 0; j < here; j++, i++)
            steps[i] = 1 - 2 * (int32_t)(bits >> j & 1);
    }
}

/* steps: +-1 before, by their signs. `more` is added to what is read. */
static ifl_status size_apply(int32_t *step, uint32_t v, uint32_t more, ifl_error *err) {
    if (v > STEP_MAX - more)
        return ifl_fail(err, IFL_FORMAT, "patch: a step of %u, the most is %d", v, STEP_MAX);
    int32_t sign = *step >> 31;
    *step = ((int32_t)(v + more) ^ sign) - sign;
    return IFL_OK;
}

static ifl_status large_take(bit_reader *r, int32_t *steps, int32_t n, uint32_t n_large,
                             ifl_error *err) {
    uint32_t v[BLOCK];
    /* The places lie in the steps themselves until the sizes come: +-2 marks one. */
    int64_t next = 0;
    for (uint32_t i = 0; i < n_large;) {
        int block = n_large - i < BLOCK ? (int)(n_large - i) : BLOCK;
        rice_take_block(r, v, block);
        for (int j = 0; j < block; j++, i++) {
            next += v[j];
            if (next >= n)
                return ifl_fail(err, IFL_FORMAT, "patch: a large step is number %lld of %d",
                                (long long)next, n);
            steps[next++] *= 2;
        }
    }
    int32_t at = 0, places[BLOCK];
    for (uint32_t left = n_large; left > 0;) {
        int block = left < BLOCK ? (int)left : BLOCK;
        rice_take_block(r, v, block);
        for (int j = 0; j < block; at++) {
            places[j] = at;
            j += is_large(steps[at]);
        }
        for (int j = 0; j < block; j++)
            IFL_TRY(size_apply(&steps[places[j]], v[j], 2, err));
        left -= (uint32_t)block;
    }
    return IFL_OK;
}

/* `begin`: where it began. All bytes are used, and no bit beyond them. */
static ifl_status reader_ends(const bit_reader *r, const uint8_t *begin, ifl_error *err) {
    int64_t n_bytes = r->end - begin, taken = 8 * (r->at - begin) + r->n_beyond - r->n;
    if ((taken + 7) / 8 == n_bytes) return IFL_OK;
    return ifl_fail(err, IFL_FORMAT, "patch: its code has %lld bits, %lld bytes came",
                    (long long)taken, (long long)n_bytes);
}

static ifl_status code_reserve(uint8_t **bytes, size_t *cap, size_t n, ifl_error *err) {
    void *grown = *bytes;
    ifl_status st = ifl_grow(&grown, cap, n, 1, err);
    *bytes = grown;
    return st;
}

/* --- Plain ------------------------------------------------------------------------------------ */

ifl_status ifl_patch_encode(const ifl_patch *patch, uint8_t **bytes, size_t *cap, size_t *n_bytes,
                            ifl_error *err) {
    uint32_t n_large = large_count(patch->steps, patch->n);
    IFL_TRY(code_reserve(
        bytes, cap, HEADER_BYTES + code_bytes_max((size_t)patch->n) + 2 * code_bytes_max(n_large),
        err));
    ifl_byte_writer header = {.at = *bytes, .end = *bytes + HEADER_BYTES};
    ifl_put_u32(&header, (uint32_t)patch->n);
    ifl_put_u32(&header, n_large);
    bit_writer w = {.at = *bytes + HEADER_BYTES};
    places_put(&w, patch->at, patch->n);
    signs_put(&w, patch->steps, patch->n);
    large_put(&w, patch->steps, patch->n);
    *n_bytes = (size_t)(w.at - *bytes) + (w.n > 0);
    return IFL_OK;
}

ifl_status ifl_patch_decode(ifl_patch *out, const uint8_t *bytes, size_t n_bytes,
                            int64_t n_elements, ifl_error *err) {
    IFL_ASSERT(n_elements >= 0 && n_elements <= ELEMENTS_MAX);
    ifl_byte_reader header = {.at = bytes, .end = bytes + n_bytes};
    uint32_t n = ifl_take_u32(&header), n_large = ifl_take_u32(&header);
    /* Each change has two bits at least. */
    if (header.bad || n > n_elements || n_large > n || n > (n_bytes - HEADER_BYTES) * 4)
        return ifl_fail(err, IFL_FORMAT,
                        "patch: %zu bytes for %u changes, %u of them large, among %lld elements",
                        n_bytes, n, n_large, (long long)n_elements);
    IFL_TRY(patch_reserve(out, (int64_t)n + 1, err));
    out->n = (int32_t)n;
    bit_reader r = {.at = header.at, .end = header.end};
    IFL_TRY(places_take(&r, out->at, out->n, n_elements, err));
    signs_take(&r, out->steps, out->n);
    IFL_TRY(large_take(&r, out->steps, out->n, n_large, err));
    return reader_ends(&r, bytes + HEADER_BYTES, err);
}

/* --- In bytes --------------------------------------------------------------------------------- */

#define GROUP_BITS 7
#define CHANGE_BYTES_MAX (5 + 3) /* 32 bits and 17 */

static uint8_t *groups_put(uint8_t *to, uint32_t v) {
    for (; v >> GROUP_BITS; v >>= GROUP_BITS)
        *to++ = (uint8_t)(v | 1u << GROUP_BITS);
    *to++ = (uint8_t)v;
    return to;
}

ifl_status ifl_patch_pack(const ifl_patch *patch, uint8_t **bytes, size_t *cap, size_t *n_bytes,
                          ifl_error *err) {
    IFL_TRY(code_reserve(bytes, cap, (size_t)patch->n * CHANGE_BYTES_MAX + 1, err));
    uint8_t *to = *bytes;
    uint32_t next = 0;
    for (int32_t i = 0; i < patch->n; i++) {
        uint32_t gap = patch->at[i] - next,
                 step = (uint32_t)patch->steps[i] << 1 ^ (uint32_t)(patch->steps[i] >> 31);
        next = patch->at[i] + 1;
        to = groups_put(groups_put(to, gap), step);
    }
    *n_bytes = (size_t)(to - *bytes);
    return IFL_OK;
}

/* False: they end in the middle, or the number has more than 32 bits. */
static inline bool groups_take(const uint8_t **at, const uint8_t *end, uint32_t *v) {
    *v = 0;
    for (int shift = 0; *at < end && shift < 32; shift += GROUP_BITS) {
        uint32_t byte = *(*at)++;
        *v |= (byte & ((1u << GROUP_BITS) - 1)) << shift;
        if (!(byte >> GROUP_BITS)) return true;
    }
    return false;
}

ifl_status ifl_patch_unpack(ifl_patch *out, const uint8_t *bytes, size_t n_bytes,
                            int64_t n_elements, ifl_error *err) {
    IFL_ASSERT(n_elements >= 0 && n_elements <= ELEMENTS_MAX);
    IFL_TRY(patch_reserve(out, (int64_t)(n_bytes / 2) + 1, err));
    const uint8_t *at = bytes, *end = bytes + n_bytes;
    int64_t next = 0;
    out->n = 0;
    while (at < end) {
        uint32_t gap, step;
        if (!groups_take(&at, end, &gap) || !groups_take(&at, end, &step) ||
            gap >= n_elements - next || step == 0 || step > 2 * STEP_MAX)
            return ifl_fail(err, IFL_FORMAT, "patch: change %d of %zu bytes is none", out->n,
                            n_bytes);
        next += gap;
        out->at[out->n] = (uint32_t)next++;
        out->steps[out->n++] = (int32_t)(step >> 1) ^ -(int32_t)(step & 1);
    }
    return IFL_OK;
}

/* --- By class --------------------------------------------------------------------------------- */

#define CLASSES IFL_CLASSES
#define CLASS_BYTES 5 /* of the header */

/* Changes sorted by class, in each by rank. The columns are the patch's scratch memory. */
typedef struct classed {
    int32_t begin[CLASSES + 1]; /* of each class, in the columns */
    uint32_t *ranks;
    int32_t *steps;
} classed;

/* Room for n changes, and for n_more ranks and classes. */
static ifl_status classed_begin(classed *c, ifl_patch *patch, int64_t n, int64_t n_more,
                                ifl_error *err) {
    void *ranks = patch->ranks, *steps = patch->ranked_steps;
    ifl_status st =
        ifl_grow(&ranks, &patch->ranks_cap, (size_t)(n + 2 * n_more) + 1, sizeof *c->ranks, err);
    if (st == IFL_OK)
        st = ifl_grow(&steps, &patch->ranked_steps_cap, (size_t)n + 1, sizeof *c->steps, err);
    c->ranks = patch->ranks = ranks;
    c->steps = patch->ranked_steps = steps;
    return st;
}

static void classed_fill(classed *c, const ifl_patch *patch, const uint16_t *base,
                         int64_t n_elements) {
    int32_t n_of[CLASSES] = {0}, at[CLASSES];
    uint32_t *ranks = c->ranks + patch->n; /* in the order of the patch */
    uint8_t *classes = (uint8_t *)(ranks + patch->n);
    ifl_class_ranks(base, n_elements, patch->at, patch->n, classes, ranks);
    for (int32_t i = 0; i < patch->n; i++)
        n_of[classes[i]]++;
    c->begin[0] = 0;
    for (int x = 0; x < CLASSES; x++) {
        at[x] = c->begin[x];
        c->begin[x + 1] = c->begin[x] + n_of[x];
    }
    for (int32_t i = 0; i < patch->n; i++) {
        int32_t to = at[classes[i]]++;
        c->ranks[to] = ranks[i];
        c->steps[to] = patch->steps[i];
    }
}

/* --- Sizes by Huffman code
 * -------------------------------------------------------------------------------- */

#define SYMBOLS 112
#define CODE_MAX 11    /* bits */
#define EXTRA_MAX 12   /* bits after one */
#define HUFFMAN_MIN 48 /* sizes that are worth a code of their own */
#define CODE_HEADER_BYTES ((7 + 4 * SYMBOLS + 7) / 8)

typedef struct size_code {
    uint8_t lengths[SYMBOLS]; /* 0 = unused */
    uint16_t codes[SYMBOLS];  /* their first bit lowest, as they are written */
    int n;                    /* 1 + the highest symbol used */
} size_code;

static inline int size_symbol(uint32_t v, int *n_extra) {
    int e = 31 - __builtin_clz(v | 8); /* from 8 to 15 both rules give the same */
    *n_extra = e - 3;
    return 8 * (e - 2) + (int)(v >> (e - 3) & 7) - 8 * (v < 8);
}

/* Huffman's lengths for those that occur. */
static int code_depths(const uint32_t counts[SYMBOLS], uint8_t lengths[SYMBOLS]) {
    uint64_t weight[2 * SYMBOLS];
    int parent[2 * SYMBOLS], n = 0, symbols[SYMBOLS], depth_max = 0;
    for (int s = 0; s < SYMBOLS; s++)
        if (counts[s] > 0) {
            symbols[n] = s;
            weight[n++] = counts[s];
        }
    int n_leaves = n, n_nodes = n;
    bool open[2 * SYMBOLS];
    for (int i = 0; i < n; i++)
        open[i] = true;
    for (int left = n; left > 1; left--) {
        int a = -1, b = -1; /* the two lightest, earlier ones first */
        for (int i = 0; i < n_nodes; i++) {
            if (!open[i]) continue;
            if (a < 0 || weight[i] < weight[a]) {
                b = a;
                a = i;
            } else if (b < 0 || weight[i] < weight[b]) {
                b = i;
            }
        }
        open[a] = open[b] = false;
        parent[a] = parent[b] = n_nodes;
        weight[n_nodes] = weight[a] + weight[b];
        open[n_nodes++] = true;
    }
    memset(lengths, 0, SYMBOLS);
    for (int i = 0; i < n_leaves; i++) {
        int depth = n_leaves == 1;
        for (int at = i; at != n_nodes - 1; at = parent[at])
            depth++;
        lengths[symbols[i]] = (uint8_t)depth;
        if (depth > depth_max) depth_max = depth;
    }
    return depth_max;
}

/* Canonical codes of the lengths, the first bit lowest. False: the lengths are no code's, or leave
 * some out. */
static bool code_assign(size_code *code) {
    int count[CODE_MAX + 1] = {0}, next[CODE_MAX + 2] = {0}, n_used = 0, room = 0;
    for (int s = 0; s < code->n; s++) {
        if (code->lengths[s] > CODE_MAX) return false;
        count[code->lengths[s]]++;
        n_used += code->lengths[s] > 0;
    }
    count[0] = 0;
    for (int l = 1; l <= CODE_MAX; l++) {
        room += count[l] << (CODE_MAX - l);
        next[l + 1] = (next[l] + count[l]) << 1;
    }
    /* One symbol alone has one bit, and the other half of the codes is not used. */
    bool alone = n_used == 1 && count[1] == 1;
    if (!alone && room != 1 << CODE_MAX) return false;
    for (int s = 0; s < code->n; s++) {
        int l = code->lengths[s];
        if (l == 0) continue;
        int forward = next[l]++, back = 0;
        for (int i = 0; i < l; i++)
            back |= (forward >> i & 1) << (l - 1 - i);
        code->codes[s] = (uint16_t)back;
    }
    return true;
}

static void code_make(size_code *code, const int32_t *steps, int32_t n) {
    uint32_t counts[SYMBOLS] = {0};
    int extra;
    for (int32_t i = 0; i < n; i++)
        counts[size_symbol((uint32_t)abs(steps[i]) - 1, &extra)]++;
    *code = (size_code){0};
    /* Flatter counts give shorter codes; equal ones for 112 symbols have 7 bits. */
    while (code_depths(counts, code->lengths) > CODE_MAX)
        for (int s = 0; s < SYMBOLS; s++)
            counts[s] = (counts[s] + 1) / 2;
    for (int s = 0; s < SYMBOLS; s++)
        if (code->lengths[s] > 0) code->n = s + 1;
    bool sound = code_assign(code);
    IFL_ASSERT(sound);
}

static void huffman_put(bit_writer *to, const int32_t *steps, int32_t n) {
    size_code code;
    code_make(&code, steps, n);
    bit_writer w = *to;
    bits_put(&w, (uint64_t)code.n, 7);
    for (int s = 0; s < code.n; s++)
        bits_put(&w, code.lengths[s], 4);
    for (int32_t i = 0; i < n; i++) {
        uint32_t v = (uint32_t)abs(steps[i]) - 1;
        int n_extra, s = size_symbol(v, &n_extra), length = code.lengths[s];
        bits_put(&w, code.codes[s] | (uint64_t)(v & ((1u << n_extra) - 1)) << length,
                 length + n_extra);
    }
    *to = w;
}

/* What the next bits say: the size's first value, how many bits follow that are added to it, and
 * how many those before have (0: no code begins so). */
typedef struct size_entry {
    uint16_t first;
    uint8_t n_extra, length;
} size_entry;

static ifl_status huffman_read(bit_reader *r, size_entry table[1 << CODE_MAX], int *n_bits,
                               ifl_error *err) {
    size_code code = {0};
    bits_fill(r);
    code.n = (int)bits_take(r, 7);
    if (code.n > SYMBOLS)
        return ifl_fail(err, IFL_FORMAT, "patch: a code of %d symbols, the most is %d", code.n,
                        SYMBOLS);
    *n_bits = 0;
    for (int s = 0; s < code.n; s++) {
        bits_fill(r);
        code.lengths[s] = (uint8_t)bits_take(r, 4);
        if (code.lengths[s] > *n_bits) *n_bits = code.lengths[s];
    }
    if (!code_assign(&code)) return ifl_fail(err, IFL_FORMAT, "patch: lengths that are no code's");
    memset(table, 0, sizeof *table << *n_bits);
    for (int s = 0; s < code.n; s++) {
        int length = code.lengths[s], n_extra = s < 16 ? 0 : 1 + (s - 16) / 8;
        uint32_t first = s < 16 ? (uint32_t)s : (8u | (uint32_t)(s - 16) % 8) << n_extra;
        size_entry entry = {(uint16_t)first, (uint8_t)n_extra, (uint8_t)length};
        for (int at = code.codes[s]; length > 0 && at < 1 << *n_bits; at += 1 << length)
            table[at] = entry;
    }
    return IFL_OK;
}

static ifl_status huffman_take(bit_reader *from, int32_t *steps, int32_t n, ifl_error *err) {
    size_entry table[1 << CODE_MAX];
    int n_bits = 0;
    IFL_TRY(huffman_read(from, table, &n_bits, err));
    bit_reader r = *from;
    uint64_t mask = (1ull << n_bits) - 1;
    for (int32_t i = 0; i < n; i++) {
        if (r.n < CODE_MAX + EXTRA_MAX) bits_fill(&r);
        size_entry entry = table[r.bits & mask];
        if (entry.length == 0) return ifl_fail(err, IFL_FORMAT, "patch: bits that are no size");
        (void)bits_take(&r, entry.length);
        uint32_t v = entry.first + (uint32_t)bits_take(&r, entry.n_extra);
        IFL_TRY(size_apply(&steps[i], v, 1, err));
    }
    *from = r;
    return IFL_OK;
}

/* --- One class -------------------------------------------------------------------------------- */

typedef enum { SIZES_PLACES, SIZES_RICE, SIZES_HUFFMAN } sizes_mode;

/* Sizes of all cost at least a bit each, places of large ones some bits more for each of those. */
static sizes_mode sizes_choose(uint32_t n_large, int32_t n) {
    if (n_large <= (uint32_t)n / 3) return SIZES_PLACES;
    return n < HUFFMAN_MIN ? SIZES_RICE : SIZES_HUFFMAN;
}

/* Of a class in which most change, the places of those that don't. */
static void kept_put(bit_writer *w, const uint32_t *ranks, int32_t n, uint32_t n_kept) {
    rice_list list = {.w = w};
    uint32_t next = 0, rank = 0; /* the first place that may be named; the place looked at */
    bits_put(w, n_kept, 32);
    for (int32_t i = 0; i < n; i++, rank++)
        for (; rank < ranks[i]; rank++) {
            list_put(&list, rank - next);
            next = rank + 1;
        }
    list_end(&list);
}

static ifl_status kept_take(bit_reader *r, uint32_t *ranks, int32_t n, int64_t n_elements,
                            ifl_error *err) {
    bits_fill(r);
    uint32_t n_kept = (uint32_t)bits_take(r, 32), v[BLOCK];
    if (n_kept >= (uint32_t)n || (int64_t)n_kept + n > n_elements)
        return ifl_fail(err, IFL_FORMAT, "patch: %u weights kept, %d changed, of %lld", n_kept, n,
                        (long long)n_elements);
    int64_t rank = 0;
    int32_t i = 0;
    for (uint32_t k = 0; k < n_kept;) {
        int block = n_kept - k < BLOCK ? (int)(n_kept - k) : BLOCK;
        rice_take_block(r, v, block);
        for (int j = 0; j < block; j++, k++, rank++)
            for (uint32_t gap = v[j]; gap > 0; gap--) {
                if (i == n) return ifl_fail(err, IFL_FORMAT, "patch: more than %d changes", n);
                ranks[i++] = (uint32_t)rank++;
            }
    }
    while (i < n)
        ranks[i++] = (uint32_t)rank++;
    return IFL_OK;
}

static void class_put(bit_writer *w, const uint32_t *ranks, const int32_t *steps, int32_t n) {
    uint32_t n_large = large_count(steps, n);
    sizes_mode mode = sizes_choose(n_large, n);
    uint32_t n_kept = ranks[n - 1] + 1 - (uint32_t)n;
    bool most_change = n_kept < (uint32_t)n;
    bits_put(w, most_change, 1);
    if (most_change)
        kept_put(w, ranks, n, n_kept);
    else
        places_put(w, ranks, n);
    signs_put(w, steps, n);
    bits_put(w, mode, 2);
    if (mode == SIZES_HUFFMAN) {
        huffman_put(w, steps, n);
    } else if (mode == SIZES_RICE) {
        rice_list list = {.w = w};
        for (int32_t i = 0; i < n; i++)
            list_put(&list, (uint32_t)abs(steps[i]) - 1);
        list_end(&list);
    } else {
        bits_put(w, n_large, 32);
        large_put(w, steps, n);
    }
}

static ifl_status class_take(bit_reader *r, uint32_t *ranks, int32_t *steps, int32_t n,
                             int64_t n_elements, ifl_error *err) {
    bits_fill(r);
    if (bits_take(r, 1))
        IFL_TRY(kept_take(r, ranks, n, n_elements, err));
    else
        IFL_TRY(places_take(r, ranks, n, n_elements, err));
    signs_take(r, steps, n);
    bits_fill(r);
    uint64_t mode = bits_take(r, 2);
    if (mode == SIZES_HUFFMAN) return huffman_take(r, steps, n, err);
    if (mode > SIZES_HUFFMAN) return ifl_fail(err, IFL_FORMAT, "patch: sizes of kind 3");
    if (mode == SIZES_PLACES) {
        uint32_t n_large = (uint32_t)bits_take(r, 32);
        if (n_large > (uint32_t)n)
            return ifl_fail(err, IFL_FORMAT, "patch: %u large steps of %d", n_large, n);
        return large_take(r, steps, n, n_large, err);
    }
    uint32_t v[BLOCK];
    for (int32_t i = 0; i < n;) {
        int block = n - i < BLOCK ? n - i : BLOCK;
        rice_take_block(r, v, block);
        for (int j = 0; j < block; j++, i++)
            IFL_TRY(size_apply(&steps[i], v[j], 1, err));
    }
    return IFL_OK;
}

ifl_status ifl_patch_encode_classes(ifl_patch *patch, const uint16_t *base, int64_t n_elements,
                                    uint8_t **bytes, size_t *cap, size_t *n_bytes, ifl_error *err) {
    IFL_ASSERT(patch->n == 0 || patch->at[patch->n - 1] < n_elements);
    classed c = {0};
    IFL_TRY(classed_begin(&c, patch, patch->n, patch->n, err));
    /* Every class's lists may end in the middle of a block. */
    size_t most = HEADER_BYTES + CLASSES * (CLASS_BYTES + 68 + CODE_HEADER_BYTES) +
                  3 * code_bytes_max((size_t)patch->n);
    IFL_TRY(code_reserve(bytes, cap, most, err));
    classed_fill(&c, patch, base, n_elements);
    ifl_byte_writer header = {.at = *bytes, .end = *bytes + most};
    uint32_t n_classes = 0;
    for (int x = 0; x < CLASSES; x++)
        n_classes += c.begin[x + 1] > c.begin[x];
    ifl_put_u32(&header, (uint32_t)patch->n);
    ifl_put_u32(&header, n_classes);
    for (int x = 0; x < CLASSES; x++) {
        if (c.begin[x + 1] == c.begin[x]) continue;
        ifl_put_u8(&header, (uint8_t)x);
        ifl_put_u32(&header, (uint32_t)(c.begin[x + 1] - c.begin[x]));
    }
    bit_writer w = {.at = header.at};
    for (int x = 0; x < CLASSES; x++)
        if (c.begin[x + 1] > c.begin[x])
            class_put(&w, c.ranks + c.begin[x], c.steps + c.begin[x], c.begin[x + 1] - c.begin[x]);
    *n_bytes = (size_t)(w.at - *bytes) + (w.n > 0);
    return IFL_OK;
}

/* The header after the counts: exponents ascending, counts that add up. */
static ifl_status classed_header(classed *c, ifl_byte_reader *header, uint32_t n,
                                 uint32_t n_classes, ifl_error *err) {
    uint32_t count[CLASSES] = {0}, sum = 0;
    int last = -1;
    for (uint32_t i = 0; i < n_classes; i++) {
        int x = ifl_take_u8(header);
        uint32_t here = ifl_take_u32(header);
        if (header->bad || x <= last || here < 1 || here > n - sum)
            return ifl_fail(err, IFL_FORMAT, "patch: class %d has %u of %u changes", x, here, n);
        count[x] = here;
        sum += here;
        last = x;
    }
    if (sum != n)
        return ifl_fail(err, IFL_FORMAT, "patch: its classes have %u changes, not %u", sum, n);
    for (int x = 0; x < CLASSES; x++)
        c->begin[x + 1] = c->begin[x] + (int32_t)count[x];
    return IFL_OK;
}

ifl_status ifl_patch_decode_classes(ifl_patch *out, const uint8_t *bytes, size_t n_bytes,
                                    const uint16_t *base, int64_t n_elements, ifl_error *err) {
    IFL_ASSERT(n_elements >= 0 && n_elements <= ELEMENTS_MAX);
    ifl_byte_reader header = {.at = bytes, .end = bytes + n_bytes};
    uint32_t n = ifl_take_u32(&header), n_classes = ifl_take_u32(&header);
    /* Each change has a bit at least, its sign. */
    if (header.bad || n > n_elements || n_classes > CLASSES || n > (n_bytes - HEADER_BYTES) * 8)
        return ifl_fail(err, IFL_FORMAT,
                        "patch: %zu bytes for %u changes in %u classes among %lld elements",
                        n_bytes, n, n_classes, (long long)n_elements);
    classed c = {0};
    ifl_status st = classed_begin(&c, out, n, 0, err);
    if (st == IFL_OK) st = classed_header(&c, &header, n, n_classes, err);
    if (st == IFL_OK) st = patch_reserve(out, (int64_t)n + 1, err);
    bit_reader r = {.at = header.at, .end = header.end};
    for (int x = 0; x < CLASSES && st == IFL_OK; x++)
        if (c.begin[x + 1] > c.begin[x])
            st = class_take(&r, c.ranks + c.begin[x], c.steps + c.begin[x],
                            c.begin[x + 1] - c.begin[x], n_elements, err);
    if (st == IFL_OK) st = reader_ends(&r, header.at, err);
    if (st != IFL_OK) return st;
    out->n = ifl_class_places(base, n_elements, c.begin, c.ranks, c.steps, out->at, out->steps);
    if (out->n == (int32_t)n) return IFL_OK;
    return ifl_fail(err, IFL_FORMAT, "patch: %d of %u changes lie outside of their class",
                    (int32_t)n - out->n, n);
}
