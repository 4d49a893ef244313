/* common/weight_patch.h.
 *
 *   u8 mode     0: the rest is a plain code; 1: the base's elements, then a code by class;
 *               2: two versions of a chunk (and a third made of both)
 *   u16 n_elements (mod 512), then elements as they are needed, then the code
 *
 * A code that is accepted names elements in order inside the chunk, and encodes to one that is
 * accepted and means the same; any difference survives both codes. */
#include "common/weight_patch.h"
#include "tests/fuzz/fuzz.h"

static uint16_t *elements_take(fuzz_input *in, int64_t n) {
    uint16_t *elements = malloc(n ? (size_t)n * 2 : 1);
    if (!elements) abort();
    for (int64_t i = 0; i < n; i++)
        elements[i] = (uint16_t)fuzz_take(in, 2);
    return elements;
}

static void check_same(const ifl_patch *a, const ifl_patch *b) {
    FUZZ_CHECK(a->n == b->n);
    if (a->n == 0) return;
    FUZZ_CHECK(memcmp(a->at, b->at, (size_t)a->n * sizeof *a->at) == 0);
    FUZZ_CHECK(memcmp(a->steps, b->steps, (size_t)a->n * sizeof *a->steps) == 0);
}

static void check_sound(const ifl_patch *p, int64_t n_elements) {
    FUZZ_CHECK(p->n >= 0 && p->n <= n_elements);
    for (int32_t i = 0; i < p->n; i++) {
        FUZZ_CHECK(p->at[i] < n_elements && (i == 0 || p->at[i] > p->at[i - 1]));
        FUZZ_CHECK(p->steps[i] != 0 && abs(p->steps[i]) <= 65535);
    }
}

/* Both codes give the patch back. */
static void check_codes(ifl_patch *p, const uint16_t *base, int64_t n) {
    ifl_error err = {0};
    ifl_patch back = {0};
    uint8_t *code = NULL;
    size_t cap = 0, n_code = 0;
    FUZZ_CHECK(ifl_patch_encode(p, &code, &cap, &n_code, &err) == IFL_OK);
    uint8_t *exact = fuzz_copy(fuzz_input_of(code, n_code));
    FUZZ_CHECK(ifl_patch_decode(&back, exact, n_code, n, &err) == IFL_OK);
    check_same(p, &back);
    free(exact);
    FUZZ_CHECK(ifl_patch_encode_classes(p, base, n, &code, &cap, &n_code, &err) == IFL_OK);
    exact = fuzz_copy(fuzz_input_of(code, n_code));
    FUZZ_CHECK(ifl_patch_decode_classes(&back, exact, n_code, base, n, &err) == IFL_OK);
    check_same(p, &back);
    free(exact);
    FUZZ_CHECK(ifl_patch_pack(p, &code, &cap, &n_code, &err) == IFL_OK);
    exact = fuzz_copy(fuzz_input_of(code, n_code));
    FUZZ_CHECK(ifl_patch_unpack(&back, exact, n_code, n, &err) == IFL_OK);
    check_same(p, &back);
    free(exact);
    free(code);
    ifl_patch_free(&back);
}

static void fuzz_code(fuzz_input in, int64_t n, bool by_class) {
    ifl_error err = {0};
    ifl_patch p = {0};
    uint16_t *base = NULL;
    if (by_class) {
        base = elements_take(&in, n);
    } else {
        base = calloc(n ? (size_t)n : 1, 2);
        if (!base) abort();
    }
    size_t n_code = fuzz_left(&in);
    uint8_t *code = fuzz_copy(in);
    fuzz_memory_begin();
    ifl_status st = by_class ? ifl_patch_decode_classes(&p, code, n_code, base, n, &err)
                             : ifl_patch_decode(&p, code, n_code, n, &err);
    FUZZ_CHECK(fuzz_memory_peak() <= (by_class ? 128 : 64) * (int64_t)n_code + 1024);
    ifl_patch unpacked = {0};
    if (ifl_patch_unpack(&unpacked, code, n_code, n, &err) == IFL_OK) check_sound(&unpacked, n);
    ifl_patch_free(&unpacked);
    if (st == IFL_OK) {
        check_sound(&p, n);
        check_codes(&p, base, n);
        (void)ifl_patch_apply(&p, base, &err); /* out of bf16's range at most */
    }
    ifl_patch_free(&p);
    free(code);
    free(base);
}

static void fuzz_versions(fuzz_input in, int64_t n) {
    ifl_error err = {0};
    ifl_patch first = {0}, second = {0}, merged = {0}, direct = {0};
    uint16_t *a = elements_take(&in, n), *b = elements_take(&in, n), *c = elements_take(&in, n);
    for (int64_t i = 0; i < n; i++) { /* most weights stay as they are */
        if ((b[i] & 7) < 5) b[i] = a[i];
        if ((c[i] & 7) < 5) c[i] = b[i];
        if ((c[i] & 7) == 5) c[i] = a[i];
    }
    FUZZ_CHECK(ifl_patch_diff(&first, a, b, n, &err) == IFL_OK);
    FUZZ_CHECK(ifl_patch_diff(&second, b, c, n, &err) == IFL_OK);
    FUZZ_CHECK(ifl_patch_diff(&direct, a, c, n, &err) == IFL_OK);
    FUZZ_CHECK(ifl_patch_merge(&merged, &first, &second, &err) == IFL_OK);
    check_same(&merged, &direct);
    check_sound(&first, n);
    check_codes(&first, a, n);
    check_codes(&merged, a, n);
    FUZZ_CHECK(ifl_patch_apply(&first, a, &err) == IFL_OK);
    FUZZ_CHECK(n == 0 || memcmp(a, b, (size_t)n * 2) == 0);
    FUZZ_CHECK(ifl_patch_apply(&second, a, &err) == IFL_OK);
    FUZZ_CHECK(n == 0 || memcmp(a, c, (size_t)n * 2) == 0);
    ifl_patch_free(&first);
    ifl_patch_free(&second);
    ifl_patch_free(&merged);
    ifl_patch_free(&direct);
    free(a);
    free(b);
    free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size);
    int mode = (int)(fuzz_take(&in, 1) % 3);
    int64_t n = (int64_t)(fuzz_take(&in, 2) % 512);
    if (mode == 2)
        fuzz_versions(in, n);
    else
        fuzz_code(in, n, mode == 1);
    return 0;
}
