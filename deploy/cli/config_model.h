/* The model that a configuration means. */
#ifndef IFL_CLI_CONFIG_MODEL_H
#define IFL_CLI_CONFIG_MODEL_H

#include "common/config.h"
#include "deploy/cli/load_model.h"

/* model.path: a Hugging Face folder, a GGUF file, or a random shape's name (kernels/random_model.h;
 * it gets a tokenizer of one character a token). Empty: a new random policy of the shape in
 * `model`, with the character tokenizer over model.characters. Notes (parameter count, rounding) go
 * to `notes` (NULL: none). Clear *out in any case. */
ifl_status ifl_config_model(ifl_loaded_model *out, const ifl_config *config, FILE *notes,
                            ifl_error *err);

/* The same with room for max_positions (0: the model's own), and a random shape without a
 * tokenizer: for commands that have no tasks. */
ifl_status ifl_config_model_bare(ifl_loaded_model *out, const ifl_config *config,
                                 int32_t max_positions, FILE *notes, ifl_error *err);

/* Gives a model without a tokenizer one that has a character for every token. */
ifl_status ifl_config_model_tokenizer(ifl_loaded_model *loaded, ifl_error *err);

/* What to call it in a line of output: model.path, or the family of the new policy. */
const char *ifl_config_model_name(const ifl_config *config);

#endif
