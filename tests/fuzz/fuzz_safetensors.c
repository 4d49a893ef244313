/* common/safetensors.h, and a Hugging Face folder of such files (common/model_file.h).
 *
 *   u8 mode     bit 0 clear: the rest is one file. Set: a folder: u16 bytes of the index, the
 * index, u16 bytes of a.safetensors, that, and the rest is b.safetensors. Bit 2: the folder has a
 * config.json and a generation_config.json too, which come first in the same way
 *
 * A file's header is as long as the file says, unless bit 1 of the mode has it measured. */
#include "common/model_file.h"
#include "common/safetensors.h"
#include "tests/fuzz/fuzz.h"

#define ELEMENTS_MAX 4096

/* Sets the header's length to where its braces close. */
static void file_measure(uint8_t *bytes, size_t n) {
    size_t end = 8;
    for (int64_t depth = 0; end < n; end++) {
        depth += bytes[end] == '{';
        depth -= bytes[end] == '}';
        if (depth <= 0) break;
    }
    for (int i = 0; i < 8 && end < n; i++)
        bytes[i] = (uint8_t)((uint64_t)(end - 7) >> (8 * i));
}

static void file_put(const char *folder, const char *name, fuzz_input content, bool measure) {
    char path[600];
    snprintf(path, sizeof path, folder ? "%s/%s" : "%s%s", folder ? folder : "", name);
    uint8_t *copy = fuzz_copy(content);
    if (measure) file_measure(copy, fuzz_left(&content));
    fuzz_file_put(path, fuzz_input_of(copy, fuzz_left(&content)));
    free(copy);
}

static void read_all(const ifl_safetensors *st) {
    ifl_error err = {0};
    ifl_rounding_stats stats = {0};
    for (int32_t i = 0; i < ifl_safetensors_count(st); i++) {
        const ifl_safetensors_entry *e = ifl_safetensors_at(st, i);
        FUZZ_CHECK(ifl_safetensors_find(st, e->name) == i);
        FUZZ_CHECK(e->n_elements >= 0 && ifl_safetensors_path(st, e->file));
        if (e->n_elements > ELEMENTS_MAX) continue;
        size_t n = (size_t)e->n_elements;
        int64_t *out = malloc(n ? n * 8 : 1);
        if (!out) abort();
        (void)ifl_safetensors_read_i64(st, i, 0, e->n_elements, out, &err);
        free(out);
        out = malloc(n ? n * 4 : 1);
        if (!out) abort();
        (void)ifl_safetensors_read_f32(st, i, 0, e->n_elements, (float *)(void *)out, &err);
        (void)ifl_safetensors_read_f32(st, i, e->n_elements / 2, e->n_elements - e->n_elements / 2,
                                       (float *)(void *)out, &err);
        free(out);
        out = malloc(n ? n * 2 : 1);
        if (!out) abort();
        (void)ifl_safetensors_read_bf16(st, i, 0, e->n_elements, (uint16_t *)(void *)out, &stats,
                                        &err);
        FUZZ_CHECK(ifl_safetensors_read_bf16(st, i, 1, e->n_elements, (uint16_t *)(void *)out, NULL,
                                             &err) != IFL_OK);
        free(out);
    }
}

static void read_model(const char *path) {
    ifl_model_file *file = NULL;
    ifl_error err = {0};
    uint16_t row[64];
    if (ifl_model_file_open(&file, path, &err) == IFL_OK)
        for (int32_t i = 0; i < ifl_model_file_count(file); i++) {
            const ifl_tensor_spec *spec = ifl_model_file_spec(file, i);
            int64_t n = spec->rows * spec->cols;
            (void)ifl_model_file_read_bf16(file, i, 0, n < 64 ? n : 64, row, NULL, &err);
        }
    ifl_model_file_close(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size);
    int mode = (int)fuzz_take(&in, 1);
    bool measure = mode & 2;
    const char *path = "model.safetensors";
    if (mode & 1) {
        path = fuzz_folder(); /* there, and empty: the files in it are ours */
        if (mode & 4) {
            fuzz_input config = fuzz_take_part(&in, fuzz_take(&in, 2));
            fuzz_input generation = fuzz_take_part(&in, fuzz_take(&in, 2));
            file_put(path, "config.json", config, false);
            file_put(path, "generation_config.json", generation, false);
        }
        fuzz_input index = fuzz_take_part(&in, fuzz_take(&in, 2));
        fuzz_input first = fuzz_take_part(&in, fuzz_take(&in, 2));
        file_put(path, "model.safetensors.index.json", index, false);
        file_put(path, "a.safetensors", first, measure);
        file_put(path, "b.safetensors", in, measure);
    } else {
        file_put(NULL, path, in, measure);
    }
    ifl_safetensors *st = NULL;
    ifl_error err = {0};
    if (ifl_safetensors_open(&st, path, &err) == IFL_OK) read_all(st);
    ifl_safetensors_close(st);
    if ((mode & 5) == 5) read_model(path);
    fuzz_files_clear();
    return 0;
}
