/* The safetensors reader and writer, and the rounding to bf16. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file_write.h"
#include "common/rng.h"
#include "common/safetensors.h"

static char folder[] = "/tmp/ifl-safetensors-XXXXXX";
static char path[256];

static int setup(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/a.safetensors", folder);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* Writes header and data as they come, with a length word of our choice (-1: the true one). */
static size_t put_file(const char *to, const char *header, int64_t length, size_t n_data) {
    static uint8_t bytes[70000];
    size_t n = strlen(header);
    uint64_t said = length < 0 ? n : (uint64_t)length;
    assert_true(8 + n + n_data <= sizeof bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(said >> (8 * i));
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < n_data; i++)
        bytes[8 + n + i] = (uint8_t)(i * 37 + 1);
    assert_int_equal(ifl_file_write_whole(to, bytes, 8 + n + n_data, NULL), IFL_OK);
    return 8 + n + n_data;
}

static void expect_refused(const char *header, int64_t length, size_t n_data, ifl_status want,
                           const char *words) {
    ifl_safetensors *st = NULL;
    ifl_error err = {0};
    put_file(path, header, length, n_data);
    ifl_status got = ifl_safetensors_open(&st, path, &err);
    if (got != want || !strstr(err.text, words))
        fail_msg("got %d \"%s\", wanted %d with \"%s\" for %.200s", (int)got, err.text, (int)want,
                 words, header);
    assert_null(st);
}

#define T(name, dtype, shape, begin, end)                                                          \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end \
    "]}"

static void test_a_plain_file_is_read(void **state) {
    (void)state;
    ifl_safetensors *st = NULL;
    ifl_error err = {0};
    put_file(path,
             "{" T("b", "U8", "[3]", 8, 11) "," T("a", "F32", "[1,2]", 0, 8) "," T(
                 "empty", "F32", "[0,9]", 8, 8) ",\"__metadata__\":{\"format\":\"pt\"}}   ",
             -1, 11);
    assert_int_equal(ifl_safetensors_open(&st, path, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_count(st), 3);
    assert_int_equal(ifl_safetensors_find(st, "nothing"), -1);
    int32_t a = ifl_safetensors_find(st, "a");
    const ifl_safetensors_entry *e = ifl_safetensors_at(st, a);
    assert_true(e->n_dims == 2 && e->dims[1] == 2 && e->n_elements == 2 &&
                e->dtype == IFL_DTYPE_F32);
    float value[2];
    assert_int_equal(ifl_safetensors_read_f32(st, a, 0, 2, value, &err), IFL_OK);
    uint8_t want[8];
    for (int i = 0; i < 8; i++)
        want[i] = (uint8_t)(i * 37 + 1);
    assert_memory_equal(value, want, 8);
    /* Outside the tensor, though inside the file. */
    assert_int_equal(ifl_safetensors_read_f32(st, a, 1, 2, value, &err), IFL_LIMIT);
    assert_int_equal(ifl_safetensors_read_f32(st, a, -1, 1, value, &err), IFL_LIMIT);
    assert_int_equal(ifl_safetensors_read_f32(st, a, INT64_MAX, INT64_MAX, value, &err), IFL_LIMIT);
    /* A dtype that is listed but not read. */
    int32_t b = ifl_safetensors_find(st, "b");
    assert_int_equal(ifl_safetensors_read_f32(st, b, 0, 1, value, &err), IFL_UNSUPPORTED);
    assert_non_null(strstr(err.text, "U8"));
    ifl_safetensors_close(st);
}

static void test_lying_headers_are_refused(void **state) {
    (void)state;
    expect_refused("{}", 3, 0, IFL_FORMAT, "bytes at");
    expect_refused("{}", 100000001, 0, IFL_LIMIT, "limit 100000000");
    expect_refused("{}", INT64_MAX, 0, IFL_LIMIT, "limit");
    expect_refused(" {}", -1, 0, IFL_FORMAT, "{");
    expect_refused("{}", -1, 1, IFL_FORMAT, "end at");
    expect_refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", -1, 12,
                   IFL_FORMAT, "overlap");
    expect_refused("{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[1]", 12, 16) "}", -1, 16,
                   IFL_FORMAT, "gap");
    expect_refused("{" T("a", "F32", "[2]", 4, 12) "}", -1, 12, IFL_FORMAT, "gap");
    expect_refused("{" T("a", "F32", "[2]", 0, 8) "}", -1, 12, IFL_FORMAT, "end at");
    expect_refused("{" T("a", "F32", "[2]", 0, 8) "}", -1, 7, IFL_FORMAT, "data_offsets");
    expect_refused("{" T("a", "F32", "[3]", 0, 8) "}", -1, 8, IFL_FORMAT, "shape");
    expect_refused("{" T("a", "F32", "[4294967296,4294967296]", 0, 0) "}", -1, 0, IFL_LIMIT,
                   "product");
    expect_refused("{" T("a", "F64", "[2305843009213693952]", 0, 0) "}", -1, 0, IFL_FORMAT,
                   "shape");
    expect_refused("{" T("a", "F32", "[-2,-1]", 0, 8) "}", -1, 8, IFL_FORMAT, ">= 0");
    expect_refused("{" T("a", "F32", "[2.0]", 0, 8) "}", -1, 8, IFL_FORMAT, "integer");
    expect_refused("{" T("a", "F33", "[2]", 0, 8) "}", -1, 8, IFL_UNSUPPORTED, "F33");
    expect_refused("{" T("a", "F32", "[2]", 0, 8) "," T("a", "F32", "[2]", 8, 16) "}", -1, 16,
                   IFL_FORMAT, "duplicate");
    expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", -1, 8, IFL_FORMAT, "data_offsets");
    expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", -1, 8,
                   IFL_FORMAT, "data_offsets");
    expect_refused("{\"a\":7}", -1, 0, IFL_FORMAT, "object");
    expect_refused("{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", -1, 4, IFL_LIMIT,
                   "dimensions");
}

static void test_every_truncation_is_refused(void **state) {
    (void)state;
    const char *header = "{" T("a", "BF16", "[2,3]", 0, 12) "," T("b", "F32", "[2]", 12, 20) "}";
    size_t n = put_file(path, header, -1, 20);
    for (size_t cut = n; cut-- > 0;) {
        assert_int_equal(truncate(path, (off_t)cut), 0);
        ifl_safetensors *st = NULL;
        ifl_error err = {0};
        assert_int_equal(ifl_safetensors_open(&st, path, &err), IFL_FORMAT);
        assert_non_null(strstr(err.text, path));
    }
}

static void test_flipped_bits_never_crash(void **state) {
    (void)state;
    const char *header = "{" T("a", "BF16", "[2,3]", 0, 12) "," T("b", "F32", "[2]", 12, 20) "}";
    size_t n = put_file(path, header, -1, 20);
    uint8_t good[512], bad[512];
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(good, 1, sizeof good, f), n);
    fclose(f);
    ifl_rng_key key = {.seed = 2, .stream = 1, .purpose = IFL_RNG_TEST};
    int n_opened = 0;
    for (uint64_t i = 0; i < 4000; i++) {
        memcpy(bad, good, n);
        for (uint32_t flip = 0; flip <= i % 3; flip++) {
            uint64_t bit = ifl_rng_below(&key, i, flip, n * 8);
            bad[bit / 8] ^= (uint8_t)(1 << (bit % 8));
        }
        f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bad, 1, n, f), n);
        fclose(f);
        ifl_safetensors *st = NULL;
        if (ifl_safetensors_open(&st, path, NULL) != IFL_OK) continue;
        n_opened++;
        for (int32_t t = 0; t < ifl_safetensors_count(st); t++) {
            float values[64];
            int64_t m = ifl_safetensors_at(st, t)->n_elements;
            if (m <= 64) ifl_safetensors_read_f32(st, t, 0, m, values, NULL);
        }
        ifl_safetensors_close(st);
    }
    assert_in_range(n_opened, 1, 2000); /* names and data may change, structure may not */
}

static void test_written_files_read_back(void **state) {
    (void)state;
    ifl_safetensors_spec specs[] = {
        {.name = "a\"\\", .dtype = IFL_DTYPE_F32, .n_dims = 2, .dims = {2, 2}},
        {.name = "none", .dtype = IFL_DTYPE_F32, .n_dims = 1, .dims = {0}},
        {.name = "b", .dtype = IFL_DTYPE_BF16, .n_dims = 1, .dims = {3}},
    };
    const float a[4] = {1.5f, -0.0f, 3e38f, 1e-40f};
    const uint16_t b[3] = {0x3f80, 0x8000, 0x0001};
    ifl_safetensors_writer *w = NULL;
    ifl_error err = {0};
    unlink(path);
    assert_int_equal(ifl_safetensors_writer_begin(&w, path, specs, 3, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_writer_write(w, a, 5, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_writer_write(w, (const uint8_t *)a + 5, 11, &err), IFL_OK);
    assert_int_equal(access(path, F_OK), -1); /* not visible before it is whole */
    assert_int_equal(ifl_safetensors_writer_write(w, b, 6, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_writer_write(w, b, 1, &err), IFL_MISMATCH);
    assert_int_equal(ifl_safetensors_writer_finish(w, &err), IFL_OK);
    ifl_safetensors *st = NULL;
    assert_int_equal(ifl_safetensors_open(&st, path, &err), IFL_OK);
    float a2[4];
    uint16_t b2[3];
    int32_t i = ifl_safetensors_find(st, "a\"\\");
    assert_int_equal(ifl_safetensors_at(st, i)->offset % 8, 0);
    assert_int_equal(ifl_safetensors_read_f32(st, i, 0, 4, a2, &err), IFL_OK);
    assert_memory_equal(a, a2, sizeof a);
    i = ifl_safetensors_find(st, "b");
    assert_int_equal(ifl_safetensors_read_bf16(st, i, 0, 3, b2, NULL, &err), IFL_OK);
    assert_memory_equal(b, b2, sizeof b);
    ifl_safetensors_close(st);
}

static void test_unfinished_files_never_appear(void **state) {
    (void)state;
    ifl_safetensors_spec specs[] = {
        {.name = "a", .dtype = IFL_DTYPE_F32, .n_dims = 1, .dims = {2}},
        {.name = "b", .dtype = IFL_DTYPE_BF16, .n_dims = 1, .dims = {2}}};
    ifl_safetensors_writer *w = NULL;
    ifl_error err = {0};
    char other[256];
    snprintf(other, sizeof other, "%s/other.safetensors", folder);
    assert_int_equal(ifl_safetensors_writer_begin(&w, other, specs, 2, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_writer_write(w, "abcd", 4, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_writer_finish(w, &err), IFL_MISMATCH);
    assert_int_equal(access(other, F_OK), -1);
    ifl_safetensors_spec swapped[] = {specs[1], specs[0]};
    assert_int_equal(ifl_safetensors_writer_begin(&w, other, swapped, 2, &err), IFL_USAGE);
    swapped[0] = specs[0];
    assert_int_equal(ifl_safetensors_writer_begin(&w, other, swapped, 2, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "twice"));
    snprintf(other, sizeof other, "%s/no/such/folder.safetensors", folder);
    assert_int_equal(ifl_safetensors_writer_begin(&w, other, specs, 2, &err), IFL_IO);
}

static void test_folders_with_and_without_an_index(void **state) {
    (void)state;
    char dir[160], one[200], two[200], index[200], single[200];
    snprintf(dir, sizeof dir, "%s/folder", folder);
    assert_int_equal(mkdir(dir, 0755), 0);
    snprintf(one, sizeof one, "%s/m-1.safetensors", dir);
    snprintf(two, sizeof two, "%s/m-2.safetensors", dir);
    snprintf(index, sizeof index, "%s/model.safetensors.index.json", dir);
    snprintf(single, sizeof single, "%s/model.safetensors", dir);
    ifl_safetensors *st = NULL;
    ifl_error err = {0};
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_NOTFOUND);
    put_file(one, "{" T("a", "F32", "[2]", 0, 8) "}", -1, 8);
    put_file(two, "{" T("b", "F32", "[1]", 0, 4) "}", -1, 4);
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_count(st), 2);
    float value;
    assert_int_equal(
        ifl_safetensors_read_f32(st, ifl_safetensors_find(st, "b"), 0, 1, &value, &err), IFL_OK);
    ifl_safetensors_close(st);

#define INDEX(text)                                                                                \
    assert_int_equal(ifl_file_write_whole(index, text, strlen(text), NULL), IFL_OK);               \
    memset(&err, 0, sizeof err)
    INDEX("{\"weight_map\":{\"b\":\"m-2.safetensors\"}}");
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_count(st), 1); /* only the files of the index */
    ifl_safetensors_close(st);
    INDEX("{\"weight_map\":{\"a\":\"m-2.safetensors\"}}");
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_FORMAT);
    INDEX("{\"weight_map\":{\"a\":\"../a.safetensors\"}}");
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_FORMAT);
    assert_non_null(strstr(err.text, "plain name"));
    INDEX("{\"weight_map\":{\"a\":\"gone.safetensors\"}}");
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_NOTFOUND);
    INDEX("{\"weight_map\":[]}");
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_FORMAT);
    unlink(index);
    put_file(two, "{" T("a", "F32", "[1]", 0, 4) "}", -1, 4);
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_FORMAT);
    assert_non_null(strstr(err.text, "m-1.safetensors"));
    put_file(single, "{" T("c", "F32", "[1]", 0, 4) "}", -1, 4);
    assert_int_equal(ifl_safetensors_open(&st, dir, &err), IFL_OK); /* it alone counts */
    assert_int_equal(ifl_safetensors_count(st), 1);
    ifl_safetensors_close(st);
    assert_int_equal(ifl_safetensors_open(&st, "/no/such/file", &err), IFL_NOTFOUND);
}

static void test_a_shortened_file_is_an_error_and_no_signal(void **state) {
    (void)state;
    put_file(path, "{" T("a", "F32", "[10000]", 0, 40000) "}", -1, 40000);
    ifl_safetensors *st = NULL;
    ifl_error err = {0};
    float value[4];
    assert_int_equal(ifl_safetensors_open(&st, path, &err), IFL_OK);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(ifl_safetensors_read_f32(st, 0, 9990, 4, value, &err), IFL_IO);
    assert_non_null(strstr(err.text, "shortened"));
    ifl_safetensors_close(st);
}

static void test_rounding_is_counted(void **state) {
    (void)state;
    const float in[] = {1.0f, 1.0f + 0x1p-8f, 1.0f + 0x1p-9f, -3.0f, 3.4e38f, NAN, 0.0f};
    uint16_t out[7];
    ifl_rounding_stats stats = {0};
    ifl_round_to_bf16(in, 7, out, &stats);
    assert_int_equal(stats.n_values, 7);
    assert_int_equal(stats.n_changed,
                     3); /* two ties or roundings, one overflow; NaN is no change */
    assert_int_equal(stats.n_nonfinite, 2);
    assert_int_equal(out[1], 0x3f80); /* tie to even */
    assert_int_equal(out[5], 0x7fc0);
    assert_true(stats.max_relative > 0.0038 && stats.max_relative < 0.0039);
}

static void test_every_f16_value_is_exact(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float got = ifl_f16_to_f32((uint16_t)h);
        _Float16 half;
        uint16_t bits = (uint16_t)h;
        memcpy(&half, &bits, 2);
        float want = (float)half;
        if (isnan(want))
            assert_true(isnan(got));
        else
            assert_memory_equal(&got, &want, 4);
    }
}

static void test_integers_are_read(void **state) {
    (void)state;
    ifl_safetensors *st = NULL;
    ifl_error err = {0};
    put_file(path, "{" T("a", "I64", "[1]", 0, 8) "," T("b", "I32", "[2]", 8, 16) "}", -1, 16);
    assert_int_equal(ifl_safetensors_open(&st, path, &err), IFL_OK);
    int64_t a, b[2];
    assert_int_equal(ifl_safetensors_read_i64(st, 0, 0, 1, &a, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_read_i64(st, 1, 0, 2, b, &err), IFL_OK);
    int32_t want; /* bytes 8.. of the pattern */
    uint8_t bytes[4] = {(uint8_t)(8 * 37 + 1), (uint8_t)(9 * 37 + 1), (uint8_t)(10 * 37 + 1),
                        (uint8_t)(11 * 37 + 1)};
    memcpy(&want, bytes, 4);
    assert_true(b[0] == want);
    assert_int_equal(ifl_safetensors_read_i64(st, 0, 0, 2, b, &err), IFL_LIMIT);
    ifl_safetensors_close(st);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_plain_file_is_read),
        cmocka_unit_test(test_lying_headers_are_refused),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_flipped_bits_never_crash),
        cmocka_unit_test(test_written_files_read_back),
        cmocka_unit_test(test_unfinished_files_never_appear),
        cmocka_unit_test(test_folders_with_and_without_an_index),
        cmocka_unit_test(test_a_shortened_file_is_an_error_and_no_signal),
        cmocka_unit_test(test_rounding_is_counted),
        cmocka_unit_test(test_every_f16_value_is_exact),
        cmocka_unit_test(test_integers_are_read),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
