/* Replay: computes a trajectory's log-probs again from its record (tokens, version runs, KV events) and
 * compares 32-bit patterns. Sampling is keyed by (seed, task serial, sample, position), so that under
 * top-k, top-p or greedy sampling the drawn tokens are compared too, and with them the kept sets and the
 * log-probs over the full vocabulary. */
#ifndef IFL_KERNELS_REPLAY_H
#define IFL_KERNELS_REPLAY_H

#include "common/trajectory.h"
#include "kernels/model.h"

/* Gives the weights of a version, valid until the next call with the same context; NULL when that version
 * is gone. */
typedef const ifl_weights *(*ifl_weights_get_fn)(void *context, int64_t version);

typedef struct ifl_replay_result {
    int64_t n_checked;         /* policy tokens compared */
    int64_t n_differing;       /* of them, those whose 32 bits (or whose draw, see above) differ */
    int64_t n_after_swap;      /* checked tokens that lie after a change of version inside the trajectory */
    int32_t first_differing;   /* position; -1 none */
    float first_recorded, first_replayed; /* nats */
} ifl_replay_result;

/* Follows the KV events: each one's rows run under that event's version into one KV cache, and the
 * log-prob of position t is read off row t - 1 in the event that was current when t was sampled. Holds
 * for `keep` and `recompute` alike. logprobs_out (may be NULL): [n_tokens], 0 outside policy spans.
 * Whatever lies in the record, nothing crashes: an inconsistent one is IFL_FORMAT, a version that `get`
 * does not have IFL_NOTFOUND, too many tokens for the model IFL_LIMIT. Differing bits are no error: look
 * at *result. */
ifl_status ifl_replay(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                      const ifl_trajectory *traj, float *logprobs_out, ifl_replay_result *result,
                      ifl_error *err);

/* The same, and every token is drawn again from its keyed numbers, also at a temperature over the whole
 * vocabulary (where the log-prob alone would do): a generation in everything but that a token that comes out
 * otherwise is counted, and the record's goes on. */
ifl_status ifl_replay_generate(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                               const ifl_trajectory *traj, ifl_replay_result *result, ifl_error *err);

/* The independent path for `recompute` trajectories: reads no KV events; each version's forward runs over
 * the whole prefix and is read only at that version's positions. */
ifl_status ifl_replay_recompute(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                                const ifl_trajectory *traj, float *logprobs_out,
                                ifl_replay_result *result, ifl_error *err);

/* --- Scoring: what the bias ledger reads (learner/bias_ledger.h) --------------------------------------- */

typedef enum {
    IFL_HISTORY_RECORDED, /* the KV events' versions, as ifl_replay */
    IFL_HISTORY_OWN,      /* each token under its own version, over KV that this version has built */
    IFL_HISTORY_ONE,      /* all tokens under one version and its KV */
    IFL_HISTORY_MOVED,    /* each token as if one version had sampled it: the KV events' versions are as
                           * far behind that one as they were behind the token's own */
} ifl_replay_history;

typedef struct ifl_replay_scores {
    float *logprobs;          /* [n_tokens] over the recorded kept sets; 0 outside policy spans */
    float *full_logprobs;     /* [n_tokens] over the full vocabulary, at the trajectory's temperature */
    int32_t n_positions;
    const int32_t *positions; /* [n_positions] policy tokens whose distribution is wanted, ascending */
    float *logits;            /* [n_positions][vocabulary], before temperature */
} ifl_replay_scores;

/* IFL_HISTORY_MOVED: which version stands for a KV event's, for tokens that `own` has sampled. What is
 * newer than they are comes after them, and moves to `version` itself. */
static inline int64_t ifl_replay_moved(int64_t event, int64_t own, int64_t version) {
    return event < own ? version - (own - event) : version;
}

/* Scores the policy tokens under a history; nothing is drawn and nothing compared. `version`: of
 * IFL_HISTORY_ONE and IFL_HISTORY_MOVED, whose cost grows with the number of versions that sampled
 * tokens. Errors as in ifl_replay. */
ifl_status ifl_replay_score(ifl_workspace *workspace, ifl_weights_get_fn get, void *context,
                            const ifl_trajectory *traj, ifl_replay_history history, int64_t version,
                            const ifl_replay_scores *scores, ifl_error *err);

#endif
