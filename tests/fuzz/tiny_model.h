/* The smallest model that has it all: some 300 elements, a matrix of more than one panel. */
#ifndef IFL_TESTS_FUZZ_TINY_MODEL_H
#define IFL_TESTS_FUZZ_TINY_MODEL_H

#include <math.h>

#include "kernels/model.h"
#include "tests/fuzz/fuzz.h"

/* Lives as long as the process. */
static inline const ifl_model *tiny_model(void) {
    static ifl_model *model;
    if (model) return model;
    ifl_model_config c = {.family = IFL_FAMILY_LLAMA,
                          .vocab_size = 40,
                          .d_model = 4,
                          .n_layers = 1,
                          .n_heads = 1,
                          .n_kv_heads = 1,
                          .head_dim = 2,
                          .d_ff = 4,
                          .max_positions = 8,
                          .norm_eps = 1e-6f,
                          .rope = {.theta = 10000, .attention_factor = 1},
                          .tied_head = true,
                          .embed_scale = 1,
                          .attention_scale = 1 / sqrtf(2.0f),
                          .bos_id = -1};
    c.rope_local = c.rope;
    ifl_error err = {0};
    if (ifl_model_create(&model, &c, 0, IFL_PROFILE_F32, &err) != IFL_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return model;
}

#endif
