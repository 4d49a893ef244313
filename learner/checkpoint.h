/* Checkpoints: <dir>/step_S/ means that step S is finished and holds version S; a run resumes at
 * step S + 1.
 *
 *   masters.f32, moment1.f32, moment2.f32
 *                     raw little-endian f32, canonical order
 *   state.json        the caller's own text
 *   model.json        the architecture, as a Hugging Face config.json
 *   checkpoint.json   format, step, updates, model fingerprint; size and XXH3-128 of every block of
 *                     IFL_CHECKPOINT_BLOCK bytes of the files above
 *   COMPLETE          written last: format, step and the hash of checkpoint.json
 *
 * A checkpoint is written beside its place (step_S.tmp<pid>), every file and the folder are
 * fsynced, and one rename makes it visible: a reader sees all of it or nothing. */
#ifndef IFL_LEARNER_CHECKPOINT_H
#define IFL_LEARNER_CHECKPOINT_H

#include "learner/optimizer.h"

#define IFL_CHECKPOINT_FORMAT 1
#define IFL_CHECKPOINT_BLOCK (4 << 20)
#define IFL_CHECKPOINT_STATE_BYTES_MAX (64 << 20)
#define IFL_CHECKPOINT_LIST_MAX 4096

/* Writes step_<step> under `dir` (made if absent) and then removes all but the newest `keep`
 * complete ones (keep < 1 keeps all) and left-over temporary folders. `state_json` is an opaque
 * JSON text of the caller's. Free disk space is checked first. An existing step_<step> is replaced.
 * On failure the older checkpoints are as before and the temporary folder is removed. */
ifl_status ifl_checkpoint_save(const char *dir, int64_t step, const ifl_model *model,
                               ifl_optimizer *optimizer, const char *state_json, int32_t keep,
                               ifl_error *err);

/* Loads the newest checkpoint under `dir` that proves whole (step < 0), or step_<step> and no
 * other. Everything is validated before the optimizer is touched: format, marker, sizes,
 * fingerprint, hashes. With step < 0 a broken one is logged (file, offset, wanted and got hash) and
 * the one before it is tried; IFL_NOTFOUND when there is none at all, the newest one's error when
 * all are broken. *state_json: owned (free()). The optimizer's masters, moments and update count
 * are filled in and rounded. */
ifl_status ifl_checkpoint_load(const char *dir, int64_t step, const ifl_model *model,
                               ifl_optimizer *optimizer, int64_t *step_out, char **state_json,
                               ifl_error *err);

/* What a checkpoint folder says, without its tensors; model_json and state_json are owned. */
typedef struct ifl_checkpoint_info {
    int64_t step, n_updates, n_elements;
    char *model_json, *state_json;
} ifl_checkpoint_info;
ifl_status ifl_checkpoint_info_read(ifl_checkpoint_info *out, const char *folder, ifl_error *err);
void ifl_checkpoint_info_clear(ifl_checkpoint_info *info);

/* Reads and verifies the masters of one folder into masters[model->n_elements]. */
ifl_status ifl_checkpoint_read_masters(const char *folder, const ifl_model *model, float *masters,
                                       ifl_error *err);

/* Steps of the checkpoints under `dir` whose marker exists, ascending; returns how many (at most
 * max). 0 when there is no such folder. */
int32_t ifl_checkpoint_list(const char *dir, int64_t *steps, int32_t max);

#endif
