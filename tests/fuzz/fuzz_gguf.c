/* common/gguf.h, and what is made of a file's metadata: configuration and tokenizer. */
#include "common/gguf.h"
#include "common/model_file.h"
#include "tests/fuzz/fuzz.h"

#define ELEMENTS_MAX 4096
#define PATH "/dev/null" /* is there, and is no folder; its content is ours */

static void read_tensors(const ifl_gguf *gguf) {
    ifl_error err = {0};
    for (int32_t i = 0; i < ifl_gguf_count(gguf); i++) {
        const ifl_gguf_tensor *t = ifl_gguf_at(gguf, i);
        FUZZ_CHECK(ifl_gguf_find(gguf, t->name) == i);
        if (t->n_elements > ELEMENTS_MAX) continue;
        size_t n = (size_t)t->n_elements, half = n / 2;
        float *whole = malloc(n ? n * 4 : 1), *part = malloc(n - half ? (n - half) * 4 : 1);
        if (!whole || !part) abort();
        FUZZ_CHECK(ifl_gguf_read_f32(gguf, i, 0, t->n_elements, whole, &err) == IFL_OK);
        FUZZ_CHECK(ifl_gguf_read_f32(gguf, i, (int64_t)half, (int64_t)(n - half), part, &err) ==
                   IFL_OK);
        FUZZ_CHECK(n == half || memcmp(whole + half, part, (n - half) * 4) == 0);
        FUZZ_CHECK(ifl_gguf_read_f32(gguf, i, 1, t->n_elements, whole, &err) != IFL_OK);
        free(whole);
        free(part);
    }
}

static void use_tokenizer(const ifl_tokenizer *tok) {
    static const char text[] = "Hello, w\xc3\xb6rld <s>  42\n\xff";
    ifl_error err = {0};
    ifl_token_ids ids = {0};
    ifl_token_text back = {0};
    if (ifl_tokenizer_encode(tok, text, sizeof text - 1,
                             IFL_ENCODE_SPECIAL | IFL_ENCODE_PARSE_SPECIAL, &ids, &err) == IFL_OK)
        (void)ifl_tokenizer_decode(tok, ids.ids, ids.n, 0, &back, &err);
    char *json = NULL;
    (void)ifl_tokenizer_to_json(tok, &json, NULL, &err);
    free(json);
    ifl_token_ids_free(&ids);
    ifl_token_text_free(&back);
}

static void read_model(const ifl_model_file *file) {
    ifl_error err = {0};
    ifl_tokenizer *tok = NULL;
    uint16_t row[256];
    ifl_rounding_stats stats = {0};
    for (int32_t i = 0; i < ifl_model_file_count(file); i++) {
        const ifl_tensor_spec *spec = ifl_model_file_spec(file, i);
        int64_t n = spec->rows * spec->cols;
        (void)ifl_model_file_read_bf16(file, i, 0, n < 256 ? n : 256, row, &stats, &err);
    }
    if (ifl_model_file_tokenizer(file, &tok, &err) == IFL_OK) use_tokenizer(tok);
    ifl_tokenizer_free(tok);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ifl_gguf *gguf = NULL;
    ifl_model_file *file = NULL;
    ifl_error err = {0};
    fuzz_file_put(PATH, fuzz_input_of(data, size));
    if (ifl_gguf_open(&gguf, PATH, &err) == IFL_OK) read_tensors(gguf);
    ifl_gguf_close(gguf);
    if (ifl_model_file_open(&file, PATH, &err) == IFL_OK) read_model(file);
    ifl_model_file_close(file);
    fuzz_files_clear();
    return 0;
}
