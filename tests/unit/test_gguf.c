/* GGUF: metadata, tensors, dequantisation bit for bit against the reference package, and hostile
 * files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file_map.h"
#include "common/file_write.h"
#include "common/gguf.h"
#include "common/model_file.h"
#include "common/rng.h"
#include "common/safetensors.h"

static char folder[] = "/tmp/ifl-gguf-XXXXXX";
static char path[256];

static int setup(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/a.gguf", folder);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static ifl_gguf *open_quants(void) {
    ifl_gguf *g = NULL;
    ifl_error err = {0};
    if (ifl_gguf_open(&g, IFL_GOLDEN_DIR "/models/quants.gguf", &err) != IFL_OK)
        fail_msg("%s", err.text);
    return g;
}

static void test_every_type_dequantises_bit_for_bit(void **state) {
    (void)state;
    ifl_gguf *g = open_quants();
    ifl_safetensors *want = NULL;
    ifl_error err = {0};
    assert_int_equal(ifl_safetensors_open(&want, IFL_GOLDEN_DIR "/models/quants.safetensors", &err),
                     IFL_OK);
    assert_int_equal(ifl_gguf_count(g), 9);
    static float a[4096], b[4096];
    for (int32_t i = 0; i < 9; i++) {
        const ifl_gguf_tensor *t = ifl_gguf_at(g, i);
        int32_t w = ifl_safetensors_find(want, t->name);
        assert_true(w >= 0 && t->n_elements <= 4096);
        assert_true(ifl_safetensors_at(want, w)->dims[1] == t->dims[0]);
        assert_int_equal(t->offset % 64, 0); /* the file's own alignment */
        assert_int_equal(ifl_gguf_read_f32(g, i, 0, t->n_elements, a, &err), IFL_OK);
        assert_int_equal(ifl_safetensors_read_f32(want, w, 0, t->n_elements, b, &err), IFL_OK);
        for (int64_t k = 0; k < t->n_elements; k++)
            if (memcmp(&a[k], &b[k], 4) != 0)
                fail_msg("%s[%lld]: %.9g, wanted %.9g", t->name, (long long)k, (double)a[k],
                         (double)b[k]);
        /* Any range, in the middle of a block too. */
        for (int64_t at = 0, n = 1; at + n <= t->n_elements; at += 29, n = n * 7 % 301) {
            memset(a, 0, sizeof a);
            assert_int_equal(ifl_gguf_read_f32(g, i, at, n, a, &err), IFL_OK);
            assert_memory_equal(a, b + at, (size_t)n * 4);
            assert_true(n == 0 || a[n] == 0.0f); /* nothing behind the range */
        }
        assert_int_equal(ifl_gguf_read_f32(g, i, t->n_elements, 1, a, &err), IFL_LIMIT);
        assert_int_equal(ifl_gguf_read_f32(g, i, INT64_MAX, INT64_MAX, a, &err), IFL_LIMIT);
    }
    ifl_safetensors_close(want);
    ifl_gguf_close(g);
}

static void test_metadata_is_typed(void **state) {
    (void)state;
    ifl_gguf *g = open_quants();
    ifl_error err = {0};
    ifl_gguf_text text = {0}, texts[3];
    int64_t n = 77;
    int32_t numbers[3];
    bool on = false;
    double real = 0.5;
    assert_int_equal(ifl_gguf_get_text(g, "general.architecture", &text, &err), IFL_OK);
    assert_true(ifl_gguf_text_is(text, "llama") && !ifl_gguf_text_is(text, "llam"));
    assert_int_equal(ifl_gguf_get_int(g, "test.negative", -10, 10, &n, &err), IFL_OK);
    assert_int_equal(n, -7);
    assert_int_equal(ifl_gguf_get_double(g, "test.negative", -10, 10, &real, &err), IFL_OK);
    assert_true(real == -7.0);
    assert_int_equal(ifl_gguf_get_bool(g, "test.on", &on, &err), IFL_OK);
    assert_true(on);
    assert_int_equal(ifl_gguf_array_count(g, "test.texts", &n, &err), IFL_OK);
    assert_int_equal(n, 3);
    assert_int_equal(ifl_gguf_array_text(g, "test.texts", 3, texts, &err), IFL_OK);
    assert_true(ifl_gguf_text_is(texts[0], "a") && texts[1].n_bytes == 0 &&
                ifl_gguf_text_is(texts[2], "bc"));
    assert_int_equal(ifl_gguf_array_int32(g, "test.numbers", 3, numbers, &err), IFL_OK);
    assert_int_equal(numbers[2], 3);
    /* Absent: the default stays. Wrong type, range or count: named. */
    n = 5;
    assert_int_equal(ifl_gguf_get_int(g, "test.absent", 0, 1, &n, &err), IFL_OK);
    assert_int_equal(n, 5);
    assert_int_equal(ifl_gguf_get_int(g, "test.negative", 0, 10, &n, &err), IFL_FORMAT);
    assert_int_equal(ifl_gguf_get_int(g, "test.on", 0, 10, &n, &err), IFL_FORMAT);
    assert_int_equal(ifl_gguf_get_int(g, "test.text", 0, 10, &n, &err), IFL_FORMAT);
    assert_int_equal(ifl_gguf_get_bool(g, "test.negative", &on, &err), IFL_FORMAT);
    assert_int_equal(ifl_gguf_get_text(g, "test.texts", &text, &err), IFL_FORMAT);
    assert_int_equal(ifl_gguf_array_int32(g, "test.numbers", 2, numbers, &err), IFL_FORMAT);
    assert_int_equal(ifl_gguf_array_int32(g, "test.texts", 3, numbers, &err), IFL_FORMAT);
    assert_int_equal(ifl_gguf_array_text(g, "test.numbers", 3, texts, &err), IFL_FORMAT);
    assert_non_null(strstr(err.text, "test.numbers"));
    ifl_gguf_close(g);
}

/* --- Files made by hand --- */

typedef struct maker {
    uint8_t bytes[4096];
    size_t n;
} maker;

static void put(maker *m, uint64_t value, int n) {
    for (int i = 0; i < n; i++)
        m->bytes[m->n++] = (uint8_t)(value >> (8 * i));
}

static void put_text(maker *m, const char *text) {
    put(m, strlen(text), 8);
    memcpy(m->bytes + m->n, text, strlen(text));
    m->n += strlen(text);
}

static maker make_header(uint32_t version, uint64_t n_tensors, uint64_t n_kvs) {
    maker m = {.n = 0};
    memcpy(m.bytes, "GGUF", 4);
    m.n = 4;
    put(&m, version, 4);
    put(&m, n_tensors, 8);
    put(&m, n_kvs, 8);
    return m;
}

static void put_tensor(maker *m, const char *name, uint64_t dim0, uint64_t dim1, uint32_t type,
                       uint64_t offset) {
    put_text(m, name);
    put(m, 2, 4);
    put(m, dim0, 8);
    put(m, dim1, 8);
    put(m, type, 4);
    put(m, offset, 8);
}

static void put_data(maker *m, size_t n) {
    m->n = (m->n + 31) & ~(size_t)31;
    m->n += n;
}

static void write_file(const maker *m) {
    assert_int_equal(ifl_file_write_whole(path, m->bytes, m->n, NULL), IFL_OK);
}

static void expect_opened(const maker *m) {
    ifl_gguf *g = NULL;
    ifl_error err = {0};
    write_file(m);
    if (ifl_gguf_open(&g, path, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_gguf_close(g);
}

static void expect_refused(const maker *m, ifl_status want, const char *words) {
    ifl_gguf *g = NULL;
    ifl_error err = {0};
    write_file(m);
    ifl_status got = ifl_gguf_open(&g, path, &err);
    if (got != want || !strstr(err.text, words) || !strstr(err.text, path))
        fail_msg("got %d \"%s\", wanted %d with \"%s\"", (int)got, err.text, (int)want, words);
    assert_null(g);
}

static void test_lying_headers_are_refused(void **state) {
    (void)state;
    maker m = make_header(2, 0, 0);
    expect_opened(&m);
    m = make_header(1, 0, 0);
    expect_refused(&m, IFL_UNSUPPORTED, "version 1");
    m = make_header(0x03000000, 0, 0);
    expect_refused(&m, IFL_UNSUPPORTED, "big-endian");
    m.bytes[0] = 'X';
    expect_refused(&m, IFL_FORMAT, "not a GGUF");
    m = make_header(3, UINT64_MAX, 0);
    expect_refused(&m, IFL_LIMIT, "limits");
    m = make_header(3, 0, 65536);
    expect_refused(&m, IFL_FORMAT, "ends at"); /* within the limit, but nothing there */
    m = make_header(3, 65536, 0);
    expect_refused(&m, IFL_FORMAT, "ends at");

    m = make_header(3, 0, 1); /* a key longer than the file, then one that wraps the sum */
    put(&m, 200, 8);
    expect_refused(&m, IFL_FORMAT, "ends at");
    m = make_header(3, 0, 1);
    put(&m, UINT64_MAX - 3, 8);
    expect_refused(&m, IFL_LIMIT, "limit 255");
    m = make_header(3, 0, 1);
    put_text(&m, "k");
    put(&m, 13, 4);
    expect_refused(&m, IFL_FORMAT, "value type 13");
    m = make_header(3, 0, 1); /* an array of 2^62 u64: the product wraps to 0 */
    put_text(&m, "k");
    put(&m, 9, 4);
    put(&m, 10, 4);
    put(&m, 1ull << 61, 8);
    expect_refused(&m, IFL_LIMIT, "array of");
    m = make_header(3, 0, 1); /* arrays in arrays: recursion without end */
    put_text(&m, "k");
    put(&m, 9, 4);
    put(&m, 9, 4);
    put(&m, 1, 8);
    expect_refused(&m, IFL_UNSUPPORTED, "array");
    m = make_header(3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_text(&m, "same");
        put(&m, 0, 4);
        put(&m, 1, 1);
    }
    expect_refused(&m, IFL_FORMAT, "twice");
    m = make_header(3, 0, 1);
    put_text(&m, "general.alignment");
    put(&m, 4, 4);
    put(&m, 24, 4);
    expect_refused(&m, IFL_FORMAT, "power of two");
}

static void test_lying_tensors_are_refused(void **state) {
    (void)state;
    maker m = make_header(3, 2, 0);
    put_tensor(&m, "a", 4, 2, IFL_GGUF_F32, 0);
    put_tensor(&m, "b", 32, 1, IFL_GGUF_Q8_0, 32);
    put_data(&m, 66);
    expect_opened(&m);
    m.n--; /* one byte short */
    expect_refused(&m, IFL_FORMAT, "behind the file");
#define ONE(dim0, dim1, type, offset, status, words)                                               \
    m = make_header(3, 1, 0);                                                                      \
    put_tensor(&m, "a", dim0, dim1, type, offset);                                                 \
    put_data(&m, 64);                                                                              \
    expect_refused(&m, status, words)
    ONE(4, 1, 3, 0, IFL_UNSUPPORTED, "Q4_1");
    ONE(4, 1, 99, 0, IFL_UNSUPPORTED, "unknown");
    ONE(1ull << 32, 1ull << 32, IFL_GGUF_F32, 0, IFL_LIMIT, "product");
    ONE(1ull << 62, 1, IFL_GGUF_F32, 0, IFL_LIMIT, "size");
    ONE(UINT64_MAX, 1, IFL_GGUF_F32, 0, IFL_LIMIT, "2^63");
    ONE(31, 1, IFL_GGUF_Q8_0, 0, IFL_FORMAT, "multiple of the 32");
    ONE(4, 1, IFL_GGUF_F32, 8, IFL_FORMAT, "alignment");
    ONE(4, 1, IFL_GGUF_F32, 64, IFL_FORMAT, "behind the file");
    ONE(4, 1, IFL_GGUF_F32, UINT64_MAX - 31, IFL_FORMAT, "behind the file");
    ONE(4, 1ull << 40, IFL_GGUF_F32, 0, IFL_FORMAT, "behind the file");
    m = make_header(3, 2, 0);
    put_tensor(&m, "a", 16, 1, IFL_GGUF_F32, 0);
    put_tensor(&m, "b", 4, 1, IFL_GGUF_F32, 32);
    put_data(&m, 64);
    expect_refused(&m, IFL_FORMAT, "overlaps");
    m = make_header(3, 2, 0);
    put_tensor(&m, "a", 4, 1, IFL_GGUF_F32, 0);
    put_tensor(&m, "a", 4, 1, IFL_GGUF_F32, 32);
    put_data(&m, 64);
    expect_refused(&m, IFL_FORMAT, "twice");
    m = make_header(3, 1, 0);
    put_text(&m, "a");
    put(&m, 5, 4);
    expect_refused(&m, IFL_LIMIT, "5 dimensions");
}

static void read_everything(const ifl_gguf *g) {
    static float values[8192];
    for (int32_t i = 0; i < ifl_gguf_count(g); i++) {
        int64_t n = ifl_gguf_at(g, i)->n_elements;
        ifl_gguf_read_f32(g, i, 0, n < 8192 ? n : 8192, values, NULL);
    }
}

static void test_every_truncation_is_refused(void **state) {
    (void)state;
    char *bytes;
    size_t n;
    assert_int_equal(
        ifl_file_read_text(IFL_GOLDEN_DIR "/models/quants.gguf", 1 << 20, &bytes, &n, NULL),
        IFL_OK);
    assert_int_equal(ifl_file_write_whole(path, bytes, n, NULL), IFL_OK);
    int n_opened = 0;
    for (size_t cut = n; cut-- > 0;) {
        assert_int_equal(truncate(path, (off_t)cut), 0);
        ifl_gguf *g = NULL;
        if (ifl_gguf_open(&g, path, NULL) == IFL_OK) n_opened++;
        ifl_gguf_close(g);
    }
    assert_true(n_opened < 64); /* only the padding behind the last tensor may go */
    free(bytes);
}

static void test_flipped_bits_never_crash(void **state) {
    (void)state;
    char *good, *bad;
    size_t n;
    assert_int_equal(
        ifl_file_read_text(IFL_GOLDEN_DIR "/models/quants.gguf", 1 << 20, &good, &n, NULL), IFL_OK);
    bad = malloc(n);
    assert_non_null(bad);
    ifl_rng_key key = {.seed = 3, .stream = 1, .purpose = IFL_RNG_TEST};
    int n_refused = 0;
    for (uint64_t i = 0; i < 4000; i++) {
        memcpy(bad, good, n);
        for (uint32_t flip = 0; flip <= i % 4; flip++) { /* in the header, where it matters */
            uint64_t bit = ifl_rng_below(&key, i, flip, 1000 * 8);
            bad[bit / 8] ^= (char)(1 << (bit % 8));
        }
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bad, 1, n, f), n);
        fclose(f);
        ifl_gguf *g = NULL;
        if (ifl_gguf_open(&g, path, NULL) == IFL_OK)
            read_everything(g);
        else
            n_refused++;
        ifl_gguf_close(g);
    }
    assert_in_range(n_refused, 1000, 3999);
    free(good);
    free(bad);
}

/* As above, one level up: names, shapes, hyper-parameters and the tokenizer's arrays of a whole
 * model. */
static void test_flipped_bits_in_a_model_never_crash(void **state) {
    (void)state;
    char *good, *bad;
    size_t n;
    assert_int_equal(
        ifl_file_read_text(IFL_GOLDEN_DIR "/models/gemma3/model.gguf", 1 << 20, &good, &n, NULL),
        IFL_OK);
    bad = malloc(n);
    assert_non_null(bad);
    ifl_rng_key key = {.seed = 4, .stream = 1, .purpose = IFL_RNG_TEST};
    int n_refused = 0;
    for (uint64_t i = 0; i < 1500; i++) {
        memcpy(bad, good, n);
        uint64_t bit = ifl_rng_below(&key, i, 0, (i % 2 ? 1500 : 9000) * 8);
        bad[bit / 8] ^= (char)(1 << (bit % 8));
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bad, 1, n, f), n);
        fclose(f);
        ifl_model_file *file = NULL;
        if (ifl_model_file_open(&file, path, NULL) != IFL_OK) {
            n_refused++;
            continue;
        }
        uint16_t values[64];
        for (int32_t t = 0; t < ifl_model_file_count(file); t++) {
            const ifl_tensor_spec *spec = ifl_model_file_spec(file, t);
            int64_t m = spec->rows * spec->cols;
            ifl_model_file_read_bf16(file, t, m > 64 ? m - 64 : 0, m > 64 ? 64 : m, values, NULL,
                                     NULL);
        }
        ifl_tokenizer *tok = NULL;
        if (ifl_model_file_tokenizer(file, &tok, NULL) == IFL_OK) ifl_tokenizer_free(tok);
        ifl_model_file_close(file);
    }
    assert_in_range(n_refused, 100, 1499);
    free(good);
    free(bad);
}

/* A golden model in which the bytes `skip` behind the first `find` are replaced: behind a key come
 * four bytes of type, and for a string eight of length. */
static void expect_patched_refused(const char *family, const char *find, int skip,
                                   const void *bytes, size_t n_patch, ifl_status want,
                                   const char *words) {
    char name[512], *text;
    size_t n;
    snprintf(name, sizeof name, "%s/models/%s/model.gguf", IFL_GOLDEN_DIR, family);
    assert_int_equal(ifl_file_read_text(name, 1 << 20, &text, &n, NULL), IFL_OK);
    char *at = memmem(text, n, find, strlen(find));
    assert_non_null(at);
    memcpy(at + strlen(find) + skip, bytes, n_patch);
    assert_int_equal(ifl_file_write_whole(path, text, n, NULL), IFL_OK);
    free(text);
    ifl_model_file *file = NULL;
    ifl_error err = {0};
    ifl_status got = ifl_model_file_open(&file, path, &err);
    if (got != want || !strstr(err.text, words))
        fail_msg("got %d \"%s\", wanted %d with \"%s\"", (int)got, err.text, (int)want, words);
}

static void test_gguf_models_that_do_not_fit_are_named(void **state) {
    (void)state;
    const uint32_t seven = 7, wide = 72;
    expect_patched_refused("qwen3", "general.architecture", 12, "qwen9", 5, IFL_UNSUPPORTED,
                           "qwen9");
    expect_patched_refused("qwen3", "blk.1.ffn_u", 0, "x", 1, IFL_FORMAT,
                           "blk.1.ffn_up.weight is missing");
    expect_patched_refused("gemma3", "attention.sliding_windo", 0, "x", 1, IFL_FORMAT,
                           "gemma3.attention.sliding_window: missing");
    expect_patched_refused("qwen3", "qwen3.feed_forward_length", 4, &seven, 4, IFL_FORMAT,
                           "metadata wants [7, 40]");
    expect_patched_refused("llama3", "llama.attention.value_length", 4, &wide, 4, IFL_UNSUPPORTED,
                           "values of 72");
    expect_patched_refused("qwen2-yarn", "qwen2.rope.scaling.type", 12, "what", 4, IFL_UNSUPPORTED,
                           "what");
    /* Divisors of Llama 3's scaling that no such scaling gives: the first becomes 1.5. */
    ifl_gguf *g = NULL;
    char *text;
    size_t n;
    const float factor = 1.5f;
    assert_int_equal(ifl_gguf_open(&g, IFL_GOLDEN_DIR "/models/llama3/model.gguf", NULL), IFL_OK);
    uint64_t offset = ifl_gguf_at(g, ifl_gguf_find(g, "rope_freqs.weight"))->offset;
    ifl_gguf_close(g);
    assert_int_equal(
        ifl_file_read_text(IFL_GOLDEN_DIR "/models/llama3/model.gguf", 1 << 20, &text, &n, NULL),
        IFL_OK);
    memcpy(text + offset, &factor, 4);
    assert_int_equal(ifl_file_write_whole(path, text, n, NULL), IFL_OK);
    free(text);
    ifl_model_file *file = NULL;
    ifl_error err = {0};
    assert_int_equal(ifl_model_file_open(&file, path, &err), IFL_UNSUPPORTED);
    assert_non_null(strstr(err.text, "rope_freqs"));
}

static void test_the_tokenizer_of_a_gguf_file_is_built(void **state) {
    (void)state;
    static const char *const families[] = {"llama3", "qwen2", "qwen3", "gemma3", "qwen2-yarn"};
    for (int f = 0; f < 5; f++) {
        char name[512];
        ifl_model_file *file = NULL;
        ifl_tokenizer *tok = NULL;
        ifl_error err = {0};
        snprintf(name, sizeof name, "%s/models/%s/model.gguf", IFL_GOLDEN_DIR, families[f]);
        if (ifl_model_file_open(&file, name, &err) != IFL_OK) fail_msg("%s", err.text);
        if (ifl_model_file_tokenizer(file, &tok, &err) != IFL_OK) fail_msg("%s", err.text);
        const ifl_model_config *c = ifl_model_file_config(file);
        assert_int_equal(ifl_tokenizer_vocab_size(tok), c->vocab_size);
        assert_int_equal(ifl_tokenizer_eos(tok), c->eos_ids[0]);
        if (c->bos_id >= 0) assert_int_equal(ifl_tokenizer_bos(tok), c->bos_id);
        assert_int_equal(ifl_tokenizer_id(tok, "t7", 2), 7);
        ifl_tokenizer_free(tok);
        ifl_model_file_close(file);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type_dequantises_bit_for_bit),
        cmocka_unit_test(test_metadata_is_typed),
        cmocka_unit_test(test_lying_headers_are_refused),
        cmocka_unit_test(test_lying_tensors_are_refused),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_flipped_bits_never_crash),
        cmocka_unit_test(test_flipped_bits_in_a_model_never_crash),
        cmocka_unit_test(test_gguf_models_that_do_not_fit_are_named),
        cmocka_unit_test(test_the_tokenizer_of_a_gguf_file_is_built),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
