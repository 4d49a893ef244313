/* Models on disk: folders and GGUF files give the same tensors; export writes what opening reads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file_map.h"
#include "common/file_write.h"
#include "common/model_file.h"
#include "common/rng.h"
#include "common/safetensors.h"

static const char *const families[] = {"llama3", "qwen2", "qwen3", "gemma3", "qwen2-yarn"};
#define N_FAMILIES 5

static char folder[] = "/tmp/ifl-model-file-XXXXXX";

static int setup(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static ifl_model_file *open_ok(const char *path) {
    ifl_model_file *file = NULL;
    ifl_error err = {0};
    if (ifl_model_file_open(&file, path, &err) != IFL_OK) fail_msg("%s", err.text);
    return file;
}

static ifl_model_file *open_golden(const char *family, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/models/%s%s", IFL_GOLDEN_DIR, family, name);
    return open_ok(path);
}

static void expect_refused(const char *path, ifl_status want, const char *words) {
    ifl_model_file *file = NULL;
    ifl_error err = {0};
    ifl_status got = ifl_model_file_open(&file, path, &err);
    if (got != want || !strstr(err.text, words))
        fail_msg("got %d \"%s\", wanted %d with \"%s\"", (int)got, err.text, (int)want, words);
    assert_null(file);
}

static int64_t elements(const ifl_model_file *file, int32_t i) {
    const ifl_tensor_spec *spec = ifl_model_file_spec(file, i);
    return spec->rows * spec->cols;
}

static uint16_t *read_bf16(const ifl_model_file *file, int32_t i, ifl_rounding_stats *stats) {
    uint16_t *out = calloc((size_t)elements(file, i), sizeof *out);
    ifl_error err = {0};
    assert_non_null(out);
    if (ifl_model_file_read_bf16(file, i, 0, elements(file, i), out, stats, &err) != IFL_OK)
        fail_msg("%s", err.text);
    return out;
}

/* --- Reading --- */

static void test_folders_and_gguf_files_hold_the_same_model(void **state) {
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        ifl_model_file *a = open_golden(families[f], ""),
                       *b = open_golden(families[f], "/model.gguf");
        assert_string_equal(ifl_model_file_format(a), "safetensors");
        assert_string_equal(ifl_model_file_format(b), "gguf");
        if (memcmp(ifl_model_file_config(a), ifl_model_file_config(b), sizeof(ifl_model_config)) !=
            0) {
            char *ja, *jb;
            ifl_model_config_to_json(ifl_model_file_config(a), &ja, NULL);
            ifl_model_config_to_json(ifl_model_file_config(b), &jb, NULL);
            fail_msg("%s: %s\n%s", families[f], ja, jb);
        }
        assert_int_equal(ifl_model_file_count(a), ifl_model_file_count(b));
        for (int32_t i = 0; i < ifl_model_file_count(a); i++) {
            ifl_rounding_stats stats = {0};
            uint16_t *x = read_bf16(a, i, &stats), *y = read_bf16(b, i, &stats);
            assert_int_equal(stats.n_values, 2 * elements(a, i));
            assert_int_equal(stats.n_changed, 0);
            if (memcmp(x, y, (size_t)elements(a, i) * 2) != 0)
                fail_msg("%s: tensor %s differs", families[f], ifl_model_file_spec(a, i)->name);
            free(x);
            free(y);
        }
        ifl_model_file_close(a);
        ifl_model_file_close(b);
    }
}

static void test_pieces_equal_the_whole(void **state) {
    (void)state;
    ifl_model_file *file = open_golden("llama3", "/model.gguf"); /* with permuted rows */
    ifl_error err = {0};
    for (int32_t i = 0; i < ifl_model_file_count(file); i++) {
        int64_t n = elements(file, i);
        uint16_t *whole = read_bf16(file, i, NULL), *pieces = calloc((size_t)n, 2);
        assert_non_null(pieces);
        for (int64_t at = 0, step = 1; at < n; at += step, step = (step * 3) % 1000 + 1) {
            if (step > n - at) step = n - at;
            assert_int_equal(ifl_model_file_read_bf16(file, i, at, step, pieces + at, NULL, &err),
                             IFL_OK);
        }
        assert_memory_equal(whole, pieces, (size_t)n * 2);
        assert_int_equal(ifl_model_file_read_bf16(file, i, n, 1, pieces, NULL, &err), IFL_LIMIT);
        assert_int_equal(ifl_model_file_read_bf16(file, i, -1, 1, pieces, NULL, &err), IFL_LIMIT);
        free(whole);
        free(pieces);
    }
    ifl_model_file_close(file);
}

static void test_golden_references_fit_the_models(void **state) {
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        ifl_model_file *file = open_golden(families[f], "");
        char path[512], name[IFL_TENSOR_NAME_MAX + 8];
        ifl_safetensors *st = NULL;
        ifl_error err = {0};
        snprintf(path, sizeof path, "%s/models/%s/reference.safetensors", IFL_GOLDEN_DIR,
                 families[f]);
        assert_int_equal(ifl_safetensors_open(&st, path, &err), IFL_OK);
        for (int32_t i = 0; i < ifl_model_file_count(file); i++) {
            snprintf(name, sizeof name, "grad:%s", ifl_model_file_spec(file, i)->name);
            int32_t t = ifl_safetensors_find(st, name);
            assert_true(t >= 0);
            assert_true(ifl_safetensors_at(st, t)->n_elements == elements(file, i));
        }
        int64_t ids[80];
        int32_t t = ifl_safetensors_find(st, "seq0.ids");
        assert_int_equal(ifl_safetensors_read_i64(st, t, 0, 80, ids, &err), IFL_OK);
        for (int k = 0; k < 80; k++)
            assert_in_range(ids[k], 0, ifl_model_file_config(file)->vocab_size - 1);
        ifl_safetensors_close(st);
        ifl_model_file_close(file);
    }
}

/* --- Folders that are wrong --- */

typedef struct tensor_edit {
    const char *name;   /* of the canonical tensor, or NULL */
    const char *rename; /* NULL: left out */
    const char *extra;  /* a further tensor of two elements */
    int64_t cols_less;  /* shrinks the last dimension */
    bool as_f32;        /* written as F32, with a value between two bf16 values at the front */
    float front;
} tensor_edit;

/* A copy of a golden folder with one thing changed; names get `prefix` in the place of "model.". */
static const char *make_folder(const char *family, const char *prefix, const tensor_edit *edit) {
    static char path[512];
    static int serial;
    char command[1200], file_path[600];
    snprintf(path, sizeof path, "%s/edit%d", folder, serial++);
    snprintf(command, sizeof command, "mkdir %s && cp %s/models/%s/*config.json %s", path,
             IFL_GOLDEN_DIR, family, path);
    assert_int_equal(system(command), 0);
    ifl_model_file *file = open_golden(family, "");
    ifl_error err = {0};
    int32_t n = ifl_model_file_count(file), n_out = 0;
    ifl_safetensors_spec *specs = calloc((size_t)n + 1, sizeof *specs);
    char(*names)[256] = calloc((size_t)n + 1, sizeof *names);
    assert_true(specs && names);
    uint8_t *data = calloc(1, 1 << 20);
    assert_non_null(data);
    size_t n_data = 0;
    for (int pass = 0; pass < 2; pass++) /* F32 goes first */
        for (int32_t i = 0; i < n; i++) {
            const ifl_tensor_spec *spec = ifl_model_file_spec(file, i);
            bool edited = edit->name && strcmp(edit->name, spec->name) == 0;
            bool wide = edited && edit->as_f32;
            if (wide != (pass == 0)) continue;
            if (edited && !edit->rename && !edit->cols_less && !wide) continue;
            const char *rest = spec->name;
            if (prefix && strncmp(rest, "model.", 6) == 0) rest += 6;
            snprintf(names[n_out], 256, "%s%s", prefix ? prefix : "",
                     edited && edit->rename ? edit->rename : rest);
            int64_t cols = spec->cols - (edited ? edit->cols_less : 0);
            specs[n_out] =
                (ifl_safetensors_spec){.name = names[n_out],
                                       .dtype = wide ? IFL_DTYPE_F32 : IFL_DTYPE_BF16,
                                       .n_dims = spec->is_matrix ? 2 : 1,
                                       .dims = {spec->is_matrix ? spec->rows : cols, cols}};
            int64_t m = spec->rows * cols;
            if (wide) {
                float *values = (float *)(void *)(data + n_data);
                assert_int_equal(ifl_model_file_read_f32(file, i, 0, m, values, &err), IFL_OK);
                values[0] = edit->front;
            } else {
                assert_int_equal(ifl_model_file_read_bf16(file, i, 0, m,
                                                          (uint16_t *)(void *)(data + n_data), NULL,
                                                          &err),
                                 IFL_OK);
            }
            n_data += (size_t)m * (wide ? 4 : 2);
            n_out++;
        }
    if (edit->extra) {
        specs[n_out++] = (ifl_safetensors_spec){
            .name = edit->extra, .dtype = IFL_DTYPE_BF16, .n_dims = 1, .dims = {2}};
        n_data += 4;
    }
    ifl_safetensors_writer *w = NULL;
    snprintf(file_path, sizeof file_path, "%s/model.safetensors", path);
    if (ifl_safetensors_writer_begin(&w, file_path, specs, n_out, &err) != IFL_OK)
        fail_msg("%s", err.text);
    assert_int_equal(ifl_safetensors_writer_write(w, data, n_data, &err), IFL_OK);
    assert_int_equal(ifl_safetensors_writer_finish(w, &err), IFL_OK);
    free(data);
    free(specs);
    free(names);
    ifl_model_file_close(file);
    return path;
}

static void test_missing_extra_and_misshapen_tensors_are_named(void **state) {
    (void)state;
    tensor_edit missing = {.name = "model.layers.1.mlp.up_proj.weight"};
    expect_refused(make_folder("qwen3", NULL, &missing), IFL_FORMAT,
                   "model.layers.1.mlp.up_proj.weight is missing, wanted [72, 40]");
    tensor_edit head = {.name = "lm_head.weight"};
    expect_refused(make_folder("qwen3", NULL, &head), IFL_FORMAT, "tie_word_embeddings");
    tensor_edit extra = {.extra = "model.layers.0.self_attn.q_proj.bias"};
    expect_refused(make_folder("qwen3", NULL, &extra), IFL_FORMAT, "q_proj.bias has no place");
    tensor_edit layer = {.extra = "model.layers.2.mlp.up_proj.weight"};
    expect_refused(make_folder("qwen3", NULL, &layer), IFL_FORMAT, "model.layers.2");
    tensor_edit shape = {.name = "model.layers.0.mlp.down_proj.weight", .cols_less = 1};
    expect_refused(make_folder("qwen3", NULL, &shape), IFL_FORMAT,
                   "is [40, 71], config.json wants [40, 72]");
    tensor_edit vector = {.name = "model.norm.weight", .cols_less = 1};
    expect_refused(make_folder("qwen3", NULL, &vector), IFL_FORMAT,
                   "is [39], config.json wants [40]");
}

static void test_harmless_tensors_are_counted(void **state) {
    (void)state;
    static const struct {
        const char *family, *prefix, *extra;
    } cases[] = {
        {"qwen3", NULL, "model.layers.0.self_attn.rotary_emb.inv_freq"},
        {"qwen2", NULL, "lm_head.weight"},
        {"gemma3", "language_model.model.", "vision_tower.vision_model.embeddings.x"},
        {"gemma3", "model.language_model.", "model.multi_modal_projector.x"},
        {"gemma3", "", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tensor_edit edit = {.extra = cases[i].extra};
        ifl_model_file *file = open_ok(make_folder(cases[i].family, cases[i].prefix, &edit));
        assert_int_equal(ifl_model_file_ignored(file), cases[i].extra ? 1 : 0);
        ifl_model_file_close(file);
    }
    tensor_edit twice = {.extra = "norm.weight"}; /* beside model.norm.weight */
    expect_refused(make_folder("qwen3", NULL, &twice), IFL_FORMAT, "are the same one");
    tensor_edit vision = {.extra = "vision_tower.x"};
    expect_refused(make_folder("qwen3", NULL, &vision), IFL_FORMAT, "vision_tower.x");
}

static void test_rounding_of_f32_weights_is_reported(void **state) {
    (void)state;
    tensor_edit edit = {.name = "model.norm.weight", .as_f32 = true, .front = 1.001f};
    ifl_model_file *file = open_ok(make_folder("qwen3", NULL, &edit));
    ifl_rounding_stats stats = {0};
    for (int32_t i = 0; i < ifl_model_file_count(file); i++)
        free(read_bf16(file, i, &stats));
    assert_int_equal(stats.n_changed, 1);
    assert_true(stats.max_relative > 0.00099 && stats.max_relative < 0.001);
    ifl_model_file_close(file);
}

static void test_values_that_are_not_finite_are_refused(void **state) {
    (void)state;
    tensor_edit edit = {.name = "model.norm.weight", .as_f32 = true, .front = __builtin_inff()};
    ifl_model_file *file = open_ok(make_folder("qwen3", NULL, &edit));
    ifl_error err = {0};
    uint16_t out[2];
    float wide[2];
    for (int32_t i = 0; i < ifl_model_file_count(file); i++) {
        bool bad = strcmp(ifl_model_file_spec(file, i)->name, "model.norm.weight") == 0;
        assert_int_equal(ifl_model_file_read_bf16(file, i, 0, 2, out, NULL, &err),
                         bad ? IFL_FORMAT : IFL_OK);
        assert_int_equal(ifl_model_file_read_f32(file, i, 0, 2, wide, &err),
                         bad ? IFL_FORMAT : IFL_OK);
    }
    assert_non_null(strstr(err.text, "model.norm.weight"));
    ifl_model_file_close(file);
}

static void test_paths_that_are_no_model_say_so(void **state) {
    (void)state;
    char path[512];
    expect_refused("/no/such/model", IFL_NOTFOUND, "/no/such/model");
    expect_refused(folder, IFL_NOTFOUND, "config.json");
    snprintf(path, sizeof path, "%s/models/qwen3/model.safetensors", IFL_GOLDEN_DIR);
    expect_refused(path, IFL_FORMAT, "the folder itself");
    tensor_edit none = {0};
    snprintf(path, sizeof path, "%s/generation_config.json", make_folder("qwen3", NULL, &none));
    assert_int_equal(ifl_file_write_whole(path, "{\"eos_token_id\":[9,3]}", 22, NULL), IFL_OK);
    *strrchr(path, '/') = '\0';
    ifl_model_file *file = open_ok(path); /* ids of both files, once each */
    assert_int_equal(ifl_model_file_config(file)->n_eos, 2);
    assert_int_equal(ifl_model_file_config(file)->eos_ids[1], 9);
    char *json;
    assert_int_equal(ifl_model_file_tokenizer_json(file, &json, NULL, NULL), IFL_NOTFOUND);
    ifl_model_file_close(file);
    strcat(path, "/generation_config.json");
    assert_int_equal(ifl_file_write_whole(path, "{\"eos_token_id\":1000}", 21, NULL), IFL_OK);
    *strrchr(path, '/') = '\0';
    expect_refused(path, IFL_LIMIT, "generation_config.json");
}

/* Both files of a folder, one bit at a time; whatever opens must also be readable to its last
 * element. */
static void test_flipped_bits_in_a_folder_never_crash(void **state) {
    (void)state;
    tensor_edit none = {0};
    const char *dir = make_folder("gemma3", NULL, &none);
    ifl_rng_key key = {.seed = 5, .stream = 1, .purpose = IFL_RNG_TEST};
    int n_refused = 0;
    for (int part = 0; part < 2; part++) {
        char path[600], *good;
        size_t n;
        snprintf(path, sizeof path, "%s/%s", dir, part ? "config.json" : "model.safetensors");
        assert_int_equal(ifl_file_read_text(path, 1 << 20, &good, &n, NULL), IFL_OK);
        FILE *f = fopen(path, "r+b");
        assert_non_null(f);
        for (uint64_t i = 0; i < 1000; i++) {
            uint64_t bit = ifl_rng_below(&key, i, (uint32_t)part, (n < 6000 ? n : 6000) * 8);
            fseek(f, (long)(bit / 8), SEEK_SET);
            fputc((uint8_t)good[bit / 8] ^ (1 << (bit % 8)), f);
            fflush(f);
            ifl_model_file *file = NULL;
            if (ifl_model_file_open(&file, dir, NULL) != IFL_OK) n_refused++;
            for (int32_t t = 0; file && t < ifl_model_file_count(file); t++) {
                uint16_t last;
                ifl_model_file_read_bf16(file, t, elements(file, t) - 1, 1, &last, NULL, NULL);
            }
            ifl_model_file_close(file);
            fseek(f, (long)(bit / 8), SEEK_SET);
            fputc((uint8_t)good[bit / 8], f);
            fflush(f);
        }
        fclose(f);
        free(good);
    }
    assert_in_range(n_refused, 500, 1999);
    ifl_model_file_close(open_ok(dir)); /* restored */
}

/* --- Export --- */

typedef struct export_from {
    const ifl_model_file *file;
    int64_t fail_at; /* -1: never */
} export_from;

static ifl_status export_read(void *context, int64_t begin, int64_t n, uint16_t *bf16,
                              ifl_error *err) {
    export_from *from = context;
    if (from->fail_at >= 0 && begin >= from->fail_at) return ifl_fail(err, IFL_PEER, "gone");
    int64_t at = 0;
    for (int32_t i = 0; i < ifl_model_file_count(from->file); i++) {
        if (begin < at + elements(from->file, i))
            return ifl_model_file_read_bf16(from->file, i, begin - at, n, bf16, NULL, err);
        at += elements(from->file, i);
    }
    return ifl_fail(err, IFL_USAGE, "range outside the model");
}

static void test_export_reads_back_equal(void **state) {
    (void)state;
    for (int f = 0; f < N_FAMILIES; f++) {
        ifl_model_file *a = open_golden(families[f], "");
        export_from from = {.file = a, .fail_at = -1};
        const char *tokenizer = "{\"version\":\"1.0\"}";
        ifl_model_export_source source = {.config = ifl_model_file_config(a),
                                          .read = export_read,
                                          .context = &from,
                                          .tokenizer_json = tokenizer,
                                          .n_tokenizer_json = strlen(tokenizer),
                                          .eos_token = "<eos>",
                                          .pad_token = "<pad>"};
        ifl_error err = {0};
        char path[512];
        snprintf(path, sizeof path, "%s/export-%s/", folder, families[f]);
        if (ifl_model_export(path, &source, &err) != IFL_OK) fail_msg("%s", err.text);
        ifl_model_file *b = open_ok(path);
        assert_memory_equal(ifl_model_file_config(a), ifl_model_file_config(b),
                            sizeof(ifl_model_config));
        for (int32_t i = 0; i < ifl_model_file_count(a); i++) {
            uint16_t *x = read_bf16(a, i, NULL), *y = read_bf16(b, i, NULL);
            assert_memory_equal(x, y, (size_t)elements(a, i) * 2);
            free(x);
            free(y);
        }
        char *json = NULL;
        assert_int_equal(ifl_model_file_tokenizer_json(b, &json, NULL, &err), IFL_OK);
        assert_string_equal(json, tokenizer);
        free(json);
        char roles[600];
        snprintf(roles, sizeof roles, "%s/tokenizer_config.json", path);
        assert_int_equal(ifl_file_read_text(roles, 4096, &json, NULL, &err), IFL_OK);
        assert_non_null(strstr(json, "\"eos_token\": \"<eos>\""));
        assert_non_null(strstr(json, "\"pad_token\": \"<pad>\""));
        assert_null(strstr(json, "bos_token"));
        free(json);
        ifl_model_file_close(b);
        /* What is there is never overwritten. */
        assert_int_equal(ifl_model_export(path, &source, &err), IFL_USAGE);
        ifl_model_file_close(a);
    }
}

static void test_a_failed_export_leaves_nothing(void **state) {
    (void)state;
    ifl_model_file *a = open_golden("qwen3", "");
    export_from from = {.file = a, .fail_at = 10000};
    ifl_model_export_source source = {
        .config = ifl_model_file_config(a), .read = export_read, .context = &from};
    ifl_error err = {0};
    char path[512], temp[600];
    snprintf(path, sizeof path, "%s/failed", folder);
    snprintf(temp, sizeof temp, "%s.tmp%ld", path, (long)getpid());
    assert_int_equal(ifl_model_export(path, &source, &err), IFL_PEER);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(temp, F_OK), -1);
    ifl_model_file_close(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folders_and_gguf_files_hold_the_same_model),
        cmocka_unit_test(test_pieces_equal_the_whole),
        cmocka_unit_test(test_golden_references_fit_the_models),
        cmocka_unit_test(test_missing_extra_and_misshapen_tensors_are_named),
        cmocka_unit_test(test_harmless_tensors_are_counted),
        cmocka_unit_test(test_rounding_of_f32_weights_is_reported),
        cmocka_unit_test(test_values_that_are_not_finite_are_refused),
        cmocka_unit_test(test_paths_that_are_no_model_say_so),
        cmocka_unit_test(test_flipped_bits_in_a_folder_never_crash),
        cmocka_unit_test(test_export_reads_back_equal),
        cmocka_unit_test(test_a_failed_export_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
