#include "common/weight_patch.h"

#include <stdlib.h>
#include <string.h>

#include "common/byte_io.h"
#include "common/memory.h"

#define BLOCK 64      /* numbers that share a Rice parameter */
#define ESCAPE 24     /* zeros of an unary part that announce a number in full */
#define K_MAX 31      /* of the 5 bits */
#define HEADER_BYTES 8
#define ELEMENTS_MAX (1ll << 30)
#define STEP_MAX 65535

void ifl_patch_free(ifl_patch *patch) {
    if (!patch) return;
    free(patch->at);
    free(patch->steps);
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

ifl_status ifl_patch_diff(ifl_patch *out, const uint16_t *base, const uint16_t *now,
                          int64_t n_elements, ifl_error *err) {
    enum { STRIDE = 32 };
    IFL_ASSERT(n_elements >= 0 && n_elements <= ELEMENTS_MAX);
    out->n = 0;
    for (int64_t begin = 0; begin < n_elements; begin += STRIDE) {
        int64_t end = begin + STRIDE < n_elements ? begin + STRIDE : n_elements;
        if (memcmp(base + begin, now + begin, (size_t)(end - begin) * sizeof *base) == 0) continue;
        if ((size_t)(out->n + STRIDE) > out->at_cap || (size_t)(out->n + STRIDE) > out->steps_cap)
            IFL_TRY(patch_reserve(out, out->n + STRIDE, err));
        for (int64_t i = begin; i < end; i++) {
            out->at[out->n] = (uint32_t)i;
            out->steps[out->n] = ifl_bf16_place(now[i]) - ifl_bf16_place(base[i]);
            out->n += base[i] != now[i];
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

static void bits_put(bit_writer *w, uint64_t value, int n) { /* n <= 56 */
    w->bits |= value << w->n;
    w->n += n;
    uint64_t out = htole64(w->bits);
    memcpy(w->at, &out, sizeof out);
    int bytes = w->n >> 3;
    w->at += bytes;
    w->bits >>= 8 * bytes;
    w->n &= 7;
}

static int64_t rice_bits(const uint32_t *v, int n, int k) {
    int64_t bits = (int64_t)n * (1 + k);
    for (int i = 0; i < n; i++) {
        uint32_t q = v[i] >> k;
        bits += q < ESCAPE ? (int64_t)q : ESCAPE + 31 - k;
    }
    return bits;
}

/* The best k lies near the logarithm of the mean. */
static int rice_parameter(const uint32_t *v, int n) {
    uint64_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += v[i];
    uint64_t mean = sum / (uint64_t)n;
    int k = 0;
    while (k < K_MAX && (mean >> (k + 1)) > 0)
        k++;
    int best = k;
    int64_t best_bits = rice_bits(v, n, k);
    for (int down = k - 1; down >= 0 && down >= k - 3; down--) {
        int64_t bits = rice_bits(v, n, down);
        if (bits >= best_bits) continue;
        best = down;
        best_bits = bits;
    }
    return best;
}

static void rice_put_block(bit_writer *w, const uint32_t *v, int n) {
    int k = rice_parameter(v, n);
    bits_put(w, (uint64_t)k, 5);
    for (int i = 0; i < n; i++) {
        uint32_t q = v[i] >> k;
        if (q < ESCAPE) {
            bits_put(w, 1ull << q, (int)q + 1);
            bits_put(w, v[i] & ((1ull << k) - 1), k);
        } else {
            bits_put(w, 0, ESCAPE);
            bits_put(w, v[i], 32);
        }
    }
}

/* Most bytes of n numbers, one bit of sign each included. */
static size_t code_bytes_max(size_t n) {
    return n * (ESCAPE + 32 + 1) / 8 + (n / BLOCK + 2) + 16;
}

/* --- Reading bits ----------------------------------------------------------------------------- */

typedef struct bit_reader {
    const uint8_t *at, *end;
    uint64_t bits;
    int n;         /* in `bits` */
    int64_t taken; /* in all; beyond the end there are zeros, and the caller compares at the end */
} bit_reader;

/* At least 56 bits are there afterwards. */
static void bits_fill(bit_reader *r) {
    uint64_t next = 0;
    size_t left = (size_t)(r->end - r->at);
    memcpy(&next, r->at, left < 8 ? left : 8);
    r->bits |= le64toh(next) << r->n;
    int bytes = (63 - r->n) >> 3;
    r->at += (size_t)bytes < left ? (size_t)bytes : left;
    r->n += 8 * bytes;
}

static uint64_t bits_take(bit_reader *r, int n) { /* n <= 32, and there */
    uint64_t value = r->bits & ((1ull << n) - 1);
    r->bits >>= n;
    r->n -= n;
    r->taken += n;
    return value;
}

static void rice_take_block(bit_reader *r, uint32_t *v, int n) {
    bits_fill(r);
    int k = (int)bits_take(r, 5);
    for (int i = 0; i < n; i++) {
        bits_fill(r);
        int q = __builtin_ctzll(r->bits | 1ull << ESCAPE);
        if (q < ESCAPE) {
            (void)bits_take(r, q + 1);
            v[i] = (uint32_t)((uint64_t)q << k | bits_take(r, k));
        } else {
            (void)bits_take(r, ESCAPE);
            v[i] = (uint32_t)bits_take(r, 32);
        }
    }
}

/* --- The code --------------------------------------------------------------------------------- */

static bool is_large(int32_t step) {
    return step > 1 || step < -1;
}

ifl_status ifl_patch_encode(const ifl_patch *patch, uint8_t **bytes, size_t *cap, size_t *n_bytes,
                            ifl_error *err) {
    uint32_t n_large = 0, v[BLOCK];
    for (int32_t i = 0; i < patch->n; i++)
        n_large += is_large(patch->steps[i]);
    void *grown = *bytes;
    size_t most = HEADER_BYTES + code_bytes_max((size_t)patch->n) + 2 * code_bytes_max(n_large);
    ifl_status st = ifl_grow(&grown, cap, most, 1, err);
    *bytes = grown;
    if (st != IFL_OK) return st;
    ifl_byte_writer header = {.at = *bytes, .end = *bytes + HEADER_BYTES};
    ifl_put_u32(&header, (uint32_t)patch->n);
    ifl_put_u32(&header, n_large);

    bit_writer w = {.at = *bytes + HEADER_BYTES};
    uint32_t next = 0; /* the first element that may be named */
    for (int32_t i = 0; i < patch->n;) {
        int n = 0;
        for (; n < BLOCK && i < patch->n; n++, i++) {
            v[n] = patch->at[i] - next;
            next = patch->at[i] + 1;
        }
        rice_put_block(&w, v, n);
    }
    for (int32_t i = 0; i < patch->n; i++)
        bits_put(&w, patch->steps[i] < 0, 1);
    int n = 0;
    int32_t begin = 0;
    for (int32_t i = 0; i < patch->n; i++) {
        if (!is_large(patch->steps[i])) continue;
        v[n++] = (uint32_t)(i - begin);
        begin = i + 1;
        if (n == BLOCK) {
            rice_put_block(&w, v, n);
            n = 0;
        }
    }
    if (n > 0) rice_put_block(&w, v, n);
    n = 0;
    for (int32_t i = 0; i < patch->n; i++) {
        if (!is_large(patch->steps[i])) continue;
        v[n++] = (uint32_t)abs(patch->steps[i]) - 2;
        if (n == BLOCK) {
            rice_put_block(&w, v, n);
            n = 0;
        }
    }
    if (n > 0) rice_put_block(&w, v, n);
    *n_bytes = (size_t)(w.at - *bytes) + (w.n > 0);
    return IFL_OK;
}

/* What follows a header whose counts were checked. */
static ifl_status patch_decode_bits(ifl_patch *out, bit_reader *r, uint32_t n_large,
                                    int64_t n_elements, ifl_error *err) {
    uint32_t v[BLOCK];
    int64_t next = 0;
    for (int32_t i = 0; i < out->n;) {
        int n = out->n - i < BLOCK ? out->n - i : BLOCK;
        rice_take_block(r, v, n);
        for (int j = 0; j < n; j++, i++) {
            next += v[j];
            if (next >= n_elements)
                return ifl_fail(err, IFL_FORMAT, "patch: change %d is of element %lld of %lld", i,
                                (long long)next, (long long)n_elements);
            out->at[i] = (uint32_t)next++;
        }
    }
    for (int32_t i = 0; i < out->n; i++) {
        if (r->n < 1) bits_fill(r);
        out->steps[i] = bits_take(r, 1) ? -1 : 1;
    }
    /* The places lie in the steps themselves until the sizes come: +-2 marks one. */
    next = 0;
    for (uint32_t i = 0; i < n_large;) {
        int n = n_large - i < BLOCK ? (int)(n_large - i) : BLOCK;
        rice_take_block(r, v, n);
        for (int j = 0; j < n; j++, i++) {
            next += v[j];
            if (next >= out->n)
                return ifl_fail(err, IFL_FORMAT, "patch: a large step is number %lld of %d",
                                (long long)next, out->n);
            out->steps[next++] *= 2;
        }
    }
    int n = 0, used = 0;
    uint32_t left = n_large;
    for (int32_t i = 0; i < out->n && n_large > 0; i++) {
        if (!is_large(out->steps[i])) continue;
        if (used == n) {
            n = left < BLOCK ? (int)left : BLOCK;
            left -= (uint32_t)n;
            rice_take_block(r, v, n);
            used = 0;
        }
        if (v[used] > STEP_MAX - 2)
            return ifl_fail(err, IFL_FORMAT, "patch: a step of %u, the most is %d", v[used],
                            STEP_MAX);
        int32_t size = (int32_t)v[used++] + 2;
        out->steps[i] = out->steps[i] < 0 ? -size : size;
    }
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
    bit_reader r = {.at = bytes + HEADER_BYTES, .end = bytes + n_bytes};
    IFL_TRY(patch_decode_bits(out, &r, n_large, n_elements, err));
    if ((size_t)((r.taken + 7) / 8) != n_bytes - HEADER_BYTES)
        return ifl_fail(err, IFL_FORMAT, "patch: its code has %lld bits, %zu bytes came",
                        (long long)r.taken, n_bytes - HEADER_BYTES);
    return IFL_OK;
}
