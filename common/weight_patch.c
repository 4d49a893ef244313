#include "common/weight_patch.h"

#include <stdlib.h>
#include <string.h>

#include "common/byte_io.h"
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

/* --- Lists ------------------------------------------------------------------------------------ */

static bool is_large(int32_t step) {
    return step > 1 || step < -1;
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
    for (int32_t i = 0; i < n; i++)
        bits_put(w, steps[i] < 0, 1);
}

static void large_put(bit_writer *w, const int32_t *steps, int32_t n) {
    rice_list list = {.w = w};
    int32_t begin = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!is_large(steps[i])) continue;
        list_put(&list, (uint32_t)(i - begin));
        begin = i + 1;
    }
    list_end(&list);
    for (int32_t i = 0; i < n; i++)
        if (is_large(steps[i])) list_put(&list, (uint32_t)abs(steps[i]) - 2);
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
    for (int32_t i = 0; i < n; i++) {
        if (r->n < 1) bits_fill(r);
        steps[i] = bits_take(r, 1) ? -1 : 1;
    }
}

/* steps: +-1 before, by their signs. `more` is added to what is read. */
static ifl_status size_apply(int32_t *step, uint32_t v, uint32_t more, ifl_error *err) {
    if (v > STEP_MAX - more)
        return ifl_fail(err, IFL_FORMAT, "patch: a step of %u, the most is %d", v, STEP_MAX);
    *step = *step < 0 ? -(int32_t)(v + more) : (int32_t)(v + more);
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
    int block = 0, used = 0;
    uint32_t left = n_large;
    for (int32_t i = 0; i < n && n_large > 0; i++) {
        if (!is_large(steps[i])) continue;
        if (used == block) {
            block = left < BLOCK ? (int)left : BLOCK;
            left -= (uint32_t)block;
            rice_take_block(r, v, block);
            used = 0;
        }
        IFL_TRY(size_apply(&steps[i], v[used++], 2, err));
    }
    return IFL_OK;
}

static ifl_status reader_ends(const bit_reader *r, size_t n_bytes, ifl_error *err) {
    if ((size_t)((r->taken + 7) / 8) == n_bytes) return IFL_OK;
    return ifl_fail(err, IFL_FORMAT, "patch: its code has %lld bits, %zu bytes came",
                    (long long)r->taken, n_bytes);
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
    return reader_ends(&r, n_bytes - HEADER_BYTES, err);
}

/* --- By class --------------------------------------------------------------------------------- */

#define CLASSES 256
#define CLASS_BYTES 5 /* of the header */

static inline unsigned class_of(uint16_t bf16) {
    return (bf16 >> 7) & 0xffu;
}

/* Changes sorted by class, in each by rank: its number among the class's weights. */
typedef struct classed {
    int32_t begin[CLASSES + 1]; /* of each class, in the columns */
    uint32_t *ranks;
    int32_t *steps;
} classed;

static void classed_free(classed *c) {
    free(c->ranks);
    free(c->steps);
}

static ifl_status classed_create(classed *c, int32_t n, ifl_error *err) {
    c->ranks = malloc(sizeof *c->ranks * ((size_t)n + 1));
    c->steps = malloc(sizeof *c->steps * ((size_t)n + 1));
    if (c->ranks && c->steps) return IFL_OK;
    return ifl_fail(err, IFL_NOMEM, "patch: out of memory for %d changes", n);
}

static void classed_fill(classed *c, const ifl_patch *patch, const uint16_t *base) {
    int32_t at[CLASSES] = {0};
    /* Four counts of each class, so that equal classes in a row don't wait for each other. */
    uint32_t seen[4][CLASSES] = {0};
    for (int32_t i = 0; i < patch->n; i++)
        at[class_of(base[patch->at[i]])]++;
    c->begin[0] = 0;
    for (int x = 0; x < CLASSES; x++) {
        c->begin[x + 1] = c->begin[x] + at[x];
        at[x] = c->begin[x];
    }
    uint32_t element = 0;
    for (int32_t i = 0; i < patch->n; i++) {
        for (; element + 4 <= patch->at[i]; element += 4)
            for (int lane = 0; lane < 4; lane++)
                seen[lane][class_of(base[element + (uint32_t)lane])]++;
        for (; element < patch->at[i]; element++)
            seen[0][class_of(base[element])]++;
        unsigned x = class_of(base[element]);
        c->ranks[at[x]] = seen[0][x] + seen[1][x] + seen[2][x] + seen[3][x];
        c->steps[at[x]++] = patch->steps[i];
    }
}

/* --- Sizes by Huffman code
 * -------------------------------------------------------------------------------- */

#define SYMBOLS 112
#define CODE_MAX 11    /* bits */
#define HUFFMAN_MIN 48 /* sizes that are worth a code of their own */
#define CODE_HEADER_BYTES ((7 + 4 * SYMBOLS + 7) / 8)

typedef struct size_code {
    uint8_t lengths[SYMBOLS]; /* 0 = unused */
    uint16_t codes[SYMBOLS];  /* their first bit lowest, as they are written */
    int n;                    /* 1 + the highest symbol used */
} size_code;

static int size_symbol(uint32_t v, int *n_extra) {
    *n_extra = 0;
    if (v < 16) return (int)v;
    int e = 31 - __builtin_clz(v);
    *n_extra = e - 3;
    return 16 + 8 * (e - 4) + (int)(v >> (e - 3) & 7);
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

static void huffman_put(bit_writer *w, const int32_t *steps, int32_t n) {
    size_code code;
    code_make(&code, steps, n);
    bits_put(w, (uint64_t)code.n, 7);
    for (int s = 0; s < code.n; s++)
        bits_put(w, code.lengths[s], 4);
    for (int32_t i = 0; i < n; i++) {
        uint32_t v = (uint32_t)abs(steps[i]) - 1;
        int n_extra, s = size_symbol(v, &n_extra);
        bits_put(w, code.codes[s], code.lengths[s]);
        bits_put(w, v & ((1u << n_extra) - 1), n_extra);
    }
}

static ifl_status huffman_take(bit_reader *r, int32_t *steps, int32_t n, ifl_error *err) {
    size_code code = {0};
    uint8_t symbols[1 << CODE_MAX];
    bits_fill(r);
    code.n = (int)bits_take(r, 7);
    if (code.n > SYMBOLS)
        return ifl_fail(err, IFL_FORMAT, "patch: a code of %d symbols, the most is %d", code.n,
                        SYMBOLS);
    for (int s = 0; s < code.n; s++) {
        bits_fill(r);
        code.lengths[s] = (uint8_t)bits_take(r, 4);
    }
    if (!code_assign(&code)) return ifl_fail(err, IFL_FORMAT, "patch: lengths that are no code's");
    memset(symbols, SYMBOLS, sizeof symbols);
    for (int s = 0; s < code.n; s++)
        for (int at = code.codes[s], l = code.lengths[s]; l > 0 && at < 1 << CODE_MAX; at += 1 << l)
            symbols[at] = (uint8_t)s;
    for (int32_t i = 0; i < n; i++) {
        bits_fill(r);
        int s = symbols[r->bits & ((1u << CODE_MAX) - 1)];
        if (s == SYMBOLS) return ifl_fail(err, IFL_FORMAT, "patch: bits that are no size");
        (void)bits_take(r, code.lengths[s]);
        uint32_t v = (uint32_t)s;
        if (s >= 16) {
            int e = 4 + (s - 16) / 8;
            v = (8u | (uint32_t)(s - 16) % 8) << (e - 3) | (uint32_t)bits_take(r, e - 3);
        }
        IFL_TRY(size_apply(&steps[i], v, 1, err));
    }
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

ifl_status ifl_patch_encode_classes(const ifl_patch *patch, const uint16_t *base,
                                    int64_t n_elements, uint8_t **bytes, size_t *cap,
                                    size_t *n_bytes, ifl_error *err) {
    IFL_ASSERT(patch->n == 0 || patch->at[patch->n - 1] < n_elements);
    classed c = {0};
    ifl_status st = classed_create(&c, patch->n, err);
    /* Every class's lists may end in the middle of a block. */
    size_t most = HEADER_BYTES + CLASSES * (CLASS_BYTES + 68 + CODE_HEADER_BYTES) +
                  3 * code_bytes_max((size_t)patch->n);
    if (st == IFL_OK) st = code_reserve(bytes, cap, most, err);
    if (st != IFL_OK) {
        classed_free(&c);
        return st;
    }
    classed_fill(&c, patch, base);
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
    classed_free(&c);
    return IFL_OK;
}

/* Walks the base once, counting each class down to its next change. */
static ifl_status classed_merge(ifl_patch *out, const classed *c, const uint16_t *base,
                                int64_t n_elements, ifl_error *err) {
    int32_t at[CLASSES];
    uint32_t left[CLASSES]; /* of no more changes: more than there are elements */
    for (int x = 0; x < CLASSES; x++) {
        at[x] = c->begin[x];
        left[x] = c->begin[x + 1] > c->begin[x] ? c->ranks[at[x]] : UINT32_MAX;
    }
    int32_t n = 0;
    for (int64_t i = 0; i < n_elements && n < out->n; i++) {
        unsigned x = class_of(base[i]);
        if (left[x]-- > 0) continue;
        int32_t this = at[x]++;
        out->at[n] = (uint32_t)i;
        out->steps[n++] = c->steps[this];
        left[x] = at[x] < c->begin[x + 1] ? c->ranks[at[x]] - c->ranks[this] - 1 : UINT32_MAX;
    }
    if (n == out->n) return IFL_OK;
    return ifl_fail(err, IFL_FORMAT, "patch: %d of %d changes lie outside of their class",
                    out->n - n, out->n);
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
    ifl_status st = classed_create(&c, (int32_t)n, err);
    if (st == IFL_OK) st = classed_header(&c, &header, n, n_classes, err);
    if (st == IFL_OK) st = patch_reserve(out, (int64_t)n + 1, err);
    bit_reader r = {.at = header.at, .end = header.end};
    for (int x = 0; x < CLASSES && st == IFL_OK; x++)
        if (c.begin[x + 1] > c.begin[x])
            st = class_take(&r, c.ranks + c.begin[x], c.steps + c.begin[x],
                            c.begin[x + 1] - c.begin[x], n_elements, err);
    if (st == IFL_OK) st = reader_ends(&r, (size_t)(header.end - header.at), err);
    if (st == IFL_OK) {
        out->n = (int32_t)n;
        st = classed_merge(out, &c, base, n_elements, err);
    }
    classed_free(&c);
    return st;
}
