/* Models without files, for tests, parity runs and benchmarks: shapes by name and random weights. */
#ifndef IFL_KERNELS_RANDOM_MODEL_H
#define IFL_KERNELS_RANDOM_MODEL_H

#include "kernels/model.h"

/* Fills `config` for a name: tiny-llama, tiny-qwen2, tiny-qwen3, tiny-gemma3 (a few 10,000 parameters, each with
 * its family's features) or gemma-3-270m. False for any other name. */
bool ifl_random_model_config(const char *name, ifl_model_config *config);

/* The names, in that order; NULL past the end. */
const char *ifl_random_model_name(int i);

/* Normal weights of standard deviation 1 / sqrt(inputs) (embedding: such that activations stay of order
 * 1), norm gains near 1, biases near 0, rounded to bf16. A pure function of (seed, shape). */
ifl_status ifl_random_weights(ifl_weights *weights, uint64_t seed, ifl_error *err);

/* Adds normal noise of relative size `size` to every weight of `from`: a next policy version. */
ifl_status ifl_random_step(ifl_weights *to, const ifl_weights *from, uint64_t seed, double size,
                           ifl_error *err);

#endif
