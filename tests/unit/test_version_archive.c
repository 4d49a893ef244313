/* learner/version_archive.h: what goes in comes out, from any end; what is damaged is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/memory.h"
#include "common/rng.h"
#include "kernels/random_model.h"
#include "learner/version_archive.h"

#define CHUNK_ELEMENTS 3001 /* odd: payloads lie at any address */

typedef struct shelf {
    char folder[256];
    ifl_model *model;
    ifl_version_archive *archive;
    uint16_t *flat, *before; /* canonical */
    int64_t last;
} shelf;

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

static void shelf_open(shelf *s, int64_t bytes_max) {
    ifl_error err = {0};
    ifl_model_config config;
    memset(s, 0, sizeof *s);
    s->last = -1;
    assert_true(ifl_random_model_config("tiny-qwen3", &config));
    must(ifl_model_create(&s->model, &config, 0, IFL_PROFILE_F32, &err), &err);
    snprintf(s->folder, sizeof s->folder, "/tmp/inflight-test-XXXXXX");
    assert_non_null(mkdtemp(s->folder));
    strncat(s->folder, "/versions/000001", sizeof s->folder - strlen(s->folder) - 1);
    must(ifl_version_archive_open(&s->archive, s->folder, s->model, bytes_max, &err), &err);
    size_t n = (size_t)s->model->n_elements;
    s->flat = calloc(n, 2);
    s->before = calloc(n, 2);
}

static void shelf_close(shelf *s) {
    char command[320];
    *strstr(s->folder, "/versions") = 0;
    snprintf(command, sizeof command, "rm -rf %s", s->folder);
    assert_int_equal(system(command), 0);
    ifl_version_archive_close(s->archive);
    ifl_model_free(s->model);
    free(s->flat);
    free(s->before);
}

/* Content as a function of the version. */
static void content_of(const shelf *s, int64_t version, uint16_t *out) {
    for (int64_t i = 0; i < s->model->n_elements; i++)
        out[i] = ifl_bf16_at_place(ifl_bf16_place(0x3c00) + (int32_t)(i % 50) +
                                   (int32_t)((version * 7 + i) / 11 % 40));
}

static ifl_status put(shelf *s, int64_t version, ifl_error *err) {
    ifl_manifest *m;
    int64_t n = s->model->n_elements;
    int32_t n_chunks = (int32_t)((n + CHUNK_ELEMENTS - 1) / CHUNK_ELEMENTS);
    must(ifl_manifest_create(&m, 1, n_chunks, err), err);
    content_of(s, version, s->flat);
    if (s->last >= 0) content_of(s, s->last, s->before);
    m->version = version;
    m->n_elements = n;
    m->content = ifl_hash_bytes(s->flat, (size_t)n * 2);
    bool dense = s->last < 0 || ifl_version_archive_wants_dense(s->archive, s->last);
    ifl_archive_chunk *chunks = calloc((size_t)n_chunks, sizeof *chunks);
    uint8_t **codes = calloc((size_t)n_chunks, sizeof *codes);
    for (int32_t i = 0; i < n_chunks; i++) {
        ifl_manifest_chunk *c = &m->chunks[i];
        c->begin = (int64_t)i * CHUNK_ELEMENTS;
        c->n_elements = n - c->begin < CHUNK_ELEMENTS ? n - c->begin : CHUNK_ELEMENTS;
        c->hash = ifl_hash_bytes(s->flat + c->begin, (size_t)c->n_elements * 2);
        chunks[i] =
            (ifl_archive_chunk){IFL_CODEC_DENSE, s->flat + c->begin, (size_t)c->n_elements * 2};
        if (dense || i % 5 == 4) continue; /* a patch may have dense chunks too */
        ifl_patch patch = {0};
        size_t cap = 0, n_bytes;
        must(ifl_patch_diff(&patch, s->before + c->begin, s->flat + c->begin, c->n_elements, err),
             err);
        must(ifl_patch_encode(&patch, &codes[i], &cap, &n_bytes, err), err);
        ifl_patch_free(&patch);
        chunks[i] = (ifl_archive_chunk){IFL_CODEC_ULP_GAP, codes[i], n_bytes};
    }
    ifl_status st = ifl_version_archive_put(s->archive, m, dense ? -1 : s->last, chunks, err);
    for (int32_t i = 0; i < n_chunks; i++)
        free(codes[i]);
    free(codes);
    free(chunks);
    ifl_manifest_free(m);
    s->last = version;
    return st;
}

static void assert_version(shelf *s, ifl_version_reader *reader, int64_t version) {
    ifl_error err = {0};
    const ifl_weights *w;
    must(ifl_version_reader_get(reader, version, &w, &err), &err);
    assert_int_equal(w->version, version);
    content_of(s, version, s->before);
    ifl_weights_get(w, 0, s->model->n_elements, s->flat);
    assert_memory_equal(s->flat, s->before, (size_t)s->model->n_elements * 2);
}

static void test_every_version_comes_back_in_any_order(void **state) {
    (void)state;
    shelf s;
    ifl_error err = {0};
    shelf_open(&s, INT64_MAX);
    for (int64_t v = 0; v < 150; v++)
        must(put(&s, v + v / 70, &err), &err); /* one number is left out: a version was skipped */
    ifl_version_archive_stats stats = ifl_version_archive_stats_get(s.archive);
    assert_true(stats.n_versions == 150 && stats.oldest == 0 && stats.newest == 151);
    for (int32_t n_cached = 1; n_cached <= 5; n_cached += 2) {
        ifl_version_reader *reader;
        must(ifl_version_reader_open(&reader, s.folder, s.model, n_cached, &err), &err);
        for (int i = 0; i < 25; i++) {
            ifl_rng_key key = {.seed = (uint64_t)n_cached, .purpose = IFL_RNG_TEST};
            int64_t v = (int64_t)ifl_rng_below(&key, (uint64_t)i, 0, 150);
            assert_version(&s, reader, v + v / 70);
        }
        assert_version(&s, reader, 63); /* the last patch before a dense one, and that */
        assert_version(&s, reader, 64);
        const ifl_weights *w;
        assert_int_equal(ifl_version_reader_get(reader, 70, &w, &err), IFL_NOTFOUND);
        assert_non_null(strstr(err.text, "version 70 is gone"));
        assert_version(&s, reader, 71); /* and a refusal leaves nothing behind */
        ifl_version_reader_close(reader);
    }
    shelf_close(&s);
}

static void test_the_byte_limit_takes_the_oldest_with_all_that_needs_it(void **state) {
    (void)state;
    shelf s;
    ifl_error err = {0};
    shelf_open(&s, 1);
    for (int64_t v = 0; v < 130; v++)
        must(put(&s, v, &err), &err);
    ifl_version_archive_stats stats = ifl_version_archive_stats_get(s.archive);
    assert_true(stats.oldest == 128 && stats.newest == 129 && stats.n_gone == 128);
    ifl_version_reader *reader;
    must(ifl_version_reader_open(&reader, s.folder, s.model, 2, &err), &err);
    const ifl_weights *w;
    assert_int_equal(ifl_version_reader_get(reader, 127, &w, &err), IFL_NOTFOUND);
    assert_version(&s, reader, 129);
    int n_files = 0;
    DIR *d = opendir(s.folder);
    for (struct dirent *e; (e = readdir(d));)
        n_files += strstr(e->d_name, ".ifw") != NULL;
    closedir(d);
    assert_int_equal(n_files, 2);
    ifl_version_reader_close(reader);
    shelf_close(&s);
}

/* A bit anywhere in a file, an end cut off, another model: a status, never other weights. */
static void test_damage_is_noticed_wherever_it_is(void **state) {
    (void)state;
    shelf s;
    ifl_error err = {0};
    shelf_open(&s, INT64_MAX);
    for (int64_t v = 0; v < 3; v++)
        must(put(&s, v, &err), &err);
    char path[300];
    snprintf(path, sizeof path, "%s/v%010d.ifw", s.folder, 1);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    static uint8_t bytes[4 << 20];
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    assert_true(n > 1000 && n < sizeof bytes);
    for (int i = 0; i < 200; i++) {
        ifl_rng_key key = {.seed = 3, .purpose = IFL_RNG_TEST};
        size_t at = i < 64 ? (size_t)i : (size_t)ifl_rng_below(&key, (uint64_t)i, 0, n);
        size_t n_left = i % 10 == 9 ? at : n;
        bytes[at] ^= 0x10;
        f = fopen(path, "wb");
        assert_int_equal(fwrite(bytes, 1, n_left, f), n_left);
        fclose(f);
        bytes[at] ^= 0x10;
        ifl_version_reader *reader;
        must(ifl_version_reader_open(&reader, s.folder, s.model, 2, &err), &err);
        const ifl_weights *w;
        ifl_status st = ifl_version_reader_get(reader, 2, &w, &err);
        bool reserved = at >= 36 && at < 40; /* in the hash too, but no field of ours reads it */
        if (st == IFL_OK) fail_msg("byte %zu of %zu%s", at, n, reserved ? " (reserved)" : "");
        assert_true(st == IFL_FORMAT || st == IFL_MISMATCH || st == IFL_NOTFOUND);
        ifl_version_reader_close(reader);
    }
    shelf_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_version_comes_back_in_any_order),
        cmocka_unit_test(test_the_byte_limit_takes_the_oldest_with_all_that_needs_it),
        cmocka_unit_test(test_damage_is_noticed_wherever_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
