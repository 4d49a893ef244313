/* The numerics contract of one model as an object: everything that decides a bit of a recorded
 * log-prob, in named parts, and one hash over all of them (ifl_model.profile).
 *
 *   orders           the words of kernels/profile.h
 *   block sizes      the constants that cut reductions, from the headers that the kernels use
 *   dtypes           of weights, activations, KV cache and sums
 *   rope table       every value of it
 *   model constants  eps, scales, soft cap, window, activation and which layers slide
 *   functions        what exp, log, both gated activations, soft cap and RoPE give at fixed inputs
 *   row sums         what log-sum-exps, their merges and norms give at fixed inputs
 *   forward pass     the log-probs of a small model of the same architecture for fixed tokens
 *   sampling         how temperature, top-k and top-p make the distribution that is recorded
 *
 * Functions, row sums and forward pass are computed when a model is made, by the very kernels that
 * it will run on: a kernel whose bits have changed is noticed although its words have not, and so
 * is a host that computes otherwise. The values of temperature, top-k and top-p belong to a task:
 * they travel in leases and trajectories, and are compared there (learner/dispatch_desk.c). */
#ifndef IFL_KERNELS_CONTRACT_H
#define IFL_KERNELS_CONTRACT_H

#include <stdio.h>

#include "kernels/model.h"

/* Fills in model->parts and model->profile. For ifl_model_create. */
ifl_status ifl_contract_make(ifl_model *model, ifl_error *err);

/* One line per part, for people: name, hash and what it is made of. */
void ifl_contract_print(const ifl_model *model, FILE *f);

/* The computed parts on a given op table of the model's profile. */
uint64_t ifl_contract_functions(const ifl_ops *ops);
uint64_t ifl_contract_row_sums(const ifl_ops *ops);
ifl_status ifl_contract_forward(const ifl_model *model, const ifl_ops *ops, uint64_t *out,
                                ifl_error *err);

/* ifl_model_create without the contract, of which the small model of ifl_contract_forward has no
 * need. */
ifl_status ifl_model_create_plain(ifl_model **out, const ifl_model_config *config,
                                  int32_t max_positions, ifl_profile numerics, ifl_error *err);

#endif
