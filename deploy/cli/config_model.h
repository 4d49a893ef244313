/* The model that a configuration means. */
#ifndef IFL_CLI_CONFIG_MODEL_H
#define IFL_CLI_CONFIG_MODEL_H

#include "common/config.h"
#include "deploy/cli/load_model.h"

/* model.path: a Hugging Face folder, a GGUF file, or a random shape's name (kernels/random_model.h;
 * it gets a tokenizer of printable characters). Empty: a new random policy of the shape in `model`,
 * with the character tokenizer over model.characters. Notes (parameter count, rounding) go to
 * `notes` (NULL: none). Clear *out in any case. */
ifl_status ifl_config_model(ifl_loaded_model *out, const ifl_config *config, FILE *notes,
                            ifl_error *err);

#endif
