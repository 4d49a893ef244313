/* The RoPE tables, made by our own arithmetic so that they hold the same bits on every host. */
#ifndef IFL_KERNELS_ROPE_TABLE_H
#define IFL_KERNELS_ROPE_TABLE_H

#include "common/model_config.h"

/* cos and sin [n_positions, head_dim / 2] of position * frequency_i, each rounded once from double.
 * frequency_i = theta^(-2i / head_dim), then scaled as `rope` says: linear (all / factor), llama3 (smooth
 * between the two wavelengths, as in Llama 3.1), yarn (Peng et al. 2023, eq. 17-23). */
void ifl_rope_table(float *cos_out, float *sin_out, const ifl_rope *rope, int32_t head_dim,
                    int32_t n_positions);

#endif
