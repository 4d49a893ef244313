#include "deploy/cli/config_model.h"

#include <stdlib.h>
#include <string.h>

#include "common/bf16.h"
#include "common/memory.h"
#include "learner/sft.h"

/* Pad takes id 0; the newline, last of model.characters by custom, ends an answer. */
static ifl_status config_tokenizer(ifl_tokenizer **out, const char *characters, int32_t *eos,
                                   ifl_error *err) {
    static const char *const specials[] = {"<pad>"};
    IFL_TRY(ifl_tokenizer_char(out, characters, strlen(characters), specials, 1, false, err));
    *eos = ifl_tokenizer_id(*out, "\n", 1);
    if (*eos < 0)
        return ifl_fail(err, IFL_USAGE,
                        "model.characters: no newline among them; it is the end of an answer");
    return ifl_tokenizer_set_roles(*out, -1, *eos, 0, err);
}

static ifl_status config_random_policy(ifl_loaded_model *out, const ifl_config *config, FILE *notes,
                                       ifl_error *err) {
    int32_t eos;
    IFL_TRY(config_tokenizer(&out->tokenizer, config->model.characters, &eos, err));
    ifl_model_config shape;
    IFL_TRY(ifl_init_model_config(&shape, config, ifl_tokenizer_vocab_size(out->tokenizer), -1, eos,
                                  err));
    ifl_profile numerics;
    IFL_TRY(ifl_profile_parse(&numerics, config->model.numerics, err));
    IFL_TRY(ifl_model_create(&out->model, &shape, 0, numerics, err));
    IFL_TRY(ifl_weights_create(&out->weights, out->model, err));
    int64_t n = out->model->n_elements;
    float *masters = ifl_alloc((size_t)n, sizeof *masters);
    uint16_t *bf16 = ifl_alloc((size_t)n, sizeof *bf16);
    if (masters && bf16) {
        ifl_init_masters(out->model, (uint64_t)config->run.seed, masters);
        for (int64_t i = 0; i < n; i++)
            bf16[i] = ifl_bf16_from_f32(masters[i]);
        ifl_weights_put(out->weights, 0, n, bf16);
        out->weights->version = 0;
    }
    bool enough = masters && bf16;
    ifl_free(masters);
    ifl_free(bf16);
    if (!enough)
        return ifl_fail(err, IFL_NOMEM, "model: out of memory for %lld parameters", (long long)n);
    if (notes)
        fprintf(notes, "new %s policy: %lld parameters, %d tokens\n", config->model.family,
                (long long)n, ifl_tokenizer_vocab_size(out->tokenizer));
    return IFL_OK;
}

ifl_status ifl_config_model_bare(ifl_loaded_model *out, const ifl_config *config,
                                 int32_t max_positions, FILE *notes, ifl_error *err) {
    memset(out, 0, sizeof *out);
    if (config->model.path[0] == '\0') return config_random_policy(out, config, notes, err);
    ifl_load_options options = {.max_positions = max_positions,
                                .seed = (uint64_t)config->run.seed,
                                .allow_random = true,
                                .notes = notes};
    IFL_TRY(ifl_profile_parse(&options.numerics, config->model.numerics, err));
    return ifl_load_model(out, config->model.path, &options, err);
}

const char *ifl_config_model_name(const ifl_config *config) {
    return config->model.path[0] ? config->model.path : config->model.family;
}

/* UTF-8 of a code point from U+0800 on. */
static size_t utf8_put(char *out, uint32_t c) {
    size_t n = c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((n == 3 ? 0xe0 : 0xf0) | c);
    return n;
}

/* A character for every id, so that whatever random weights sample has a text: printable ASCII and
 * the newline, then code points from U+4E00 on. */
static ifl_status shape_tokenizer(ifl_tokenizer **out, int32_t vocab_size, ifl_error *err) {
    char *characters = malloc(4 * (size_t)vocab_size + 128);
    if (!characters) return ifl_fail(err, IFL_NOMEM, "tokenizer: out of memory");
    size_t n = 0;
    for (int c = ' '; c <= '~'; c++)
        characters[n++] = (char)c;
    characters[n++] = '\n';
    int32_t n_tokens = (int32_t)n + 1; /* one for padding */
    for (uint32_t c = 0x4e00; n_tokens < vocab_size && c < 0x10fffe; c++) {
        if (c >= 0xd800 && c < 0xe000) continue; /* surrogates */
        n += utf8_put(characters + n, c);
        n_tokens++;
    }
    characters[n] = '\0';
    int32_t eos;
    ifl_status st = config_tokenizer(out, characters, &eos, err);
    free(characters);
    return st;
}

ifl_status ifl_config_model_tokenizer(ifl_loaded_model *loaded, ifl_error *err) {
    if (loaded->tokenizer) return IFL_OK;
    return shape_tokenizer(&loaded->tokenizer, loaded->model->config.vocab_size, err);
}

ifl_status ifl_config_model(ifl_loaded_model *out, const ifl_config *config, FILE *notes,
                            ifl_error *err) {
    int32_t positions = config->data.prompt_tokens_max + config->rollout.max_new_tokens;
    IFL_TRY(ifl_config_model_bare(out, config, positions, notes, err));
    return ifl_config_model_tokenizer(out, err);
}
