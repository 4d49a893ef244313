/* Packing: trajectories of very different lengths become a few batches of at most pack_tokens rows,
 * with no padding and with a group's prompt stored once.
 *
 * A trajectory with n tokens needs rows for its tokens 0 .. t_last - 1, where t_last is its last
 * loss token (a token's log-prob is read at the row before it). Members of one task that follow
 * each other in the items, and whose prompts are equal, share the rows of prompt tokens 0 .. P-2:
 * the first sequence of the group holds those rows; each member's sequence starts at position P - 1
 * and its pages name the shared rows first. A row's bits do not depend on its neighbours
 * (kernels/ops.h), so sharing changes none. */
#ifndef IFL_LEARNER_PACK_H
#define IFL_LEARNER_PACK_H

#include "common/trajectory.h"
#include "kernels/model.h"
#include "learner/loss.h"

typedef struct ifl_pack_item {
    const ifl_trajectory *traj; /* borrowed while the packs live */
    float advantage;
} ifl_pack_item;

typedef struct ifl_pack_options {
    int32_t pack_tokens; /* rows of one pack, wanted */
    int32_t rows_max;    /* rows that the trainer takes (ifl_trainer_create); >= pack_tokens */
    bool keep_zero; /* also pack trajectories with advantage 0 (full statistics; no gradient) */
} ifl_pack_options;

/* One pack with the columns that the loss wants, all [pack.n_targets]. */
typedef struct ifl_packed {
    ifl_pack pack;                   /* for ifl_trainer_forward / _backward */
    ifl_loss_tokens loss_tokens;     /* .logprobs is NULL: point it at the forward's output */
    const int32_t *target_items;     /* index into the items given */
    const int32_t *target_positions; /* token position inside the trajectory */
    int32_t n_shared_rows;           /* rows saved by sharing prompts */
} ifl_packed;

typedef struct ifl_pack_set {
    int32_t n_packs;
    ifl_packed *packs;
    int64_t n_rows, n_targets, n_shared_rows;
    int32_t n_items;     /* packed */
    int32_t n_zero;      /* left out: advantage 0 */
    int32_t n_empty;     /* left out: no loss token */
    int32_t n_oversized; /* packs of one trajectory above pack_tokens */
    int32_t rows_max;    /* of the largest pack */
    int32_t targets_max;
    void *storage; /* private */
} ifl_pack_set;

/* Packs n items in the order given: the caller sorts by (task serial, sample), with ifl_pack_sort.
 * Next-fit: a pack closes when the next trajectory does not fit, and never opens again, so that the
 * content depends on the items alone. A trajectory above pack_tokens rows gets a pack of its own if
 * rows_max allows, else IFL_LIMIT naming the trajectory, its rows and learner.pack_tokens. Items
 * are checked against what packing needs (columns present, a policy token never at position 0); a
 * bad one is IFL_FORMAT. n = 0 or nothing to pack: IFL_OK with no packs. Returns owned. */
ifl_status ifl_pack_build(ifl_pack_set **out, const ifl_pack_item *items, int32_t n,
                          const ifl_pack_options *options, ifl_error *err);
void ifl_pack_set_free(ifl_pack_set *set); /* NULL is fine */

/* Sorts by (task serial, sample): the one order in which a step's bytes are repeatable. */
void ifl_pack_sort(ifl_pack_item *items, int32_t n);

/* Loss tokens (loss weight != 0) of a trajectory: L_i. */
int32_t ifl_pack_loss_tokens(const ifl_trajectory *traj);

#endif
