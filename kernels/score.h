/* score: log-probs of given tokens under any loaded weights. The one function behind audits, KL,
 * evaluation and `inflight score`. Teacher forcing through the same forward pass as generation, so the
 * bits are those an actor records. */
#ifndef IFL_KERNELS_SCORE_H
#define IFL_KERNELS_SCORE_H

#include "kernels/model.h"

/* Log-probs of tokens[t] given tokens[0 .. t) for t in [from, n), to out[n - from]. 1 <= from <= n;
 * temperature > 0. The workspace sets the chunk size, which changes no bit; the KV cache of the n
 * positions is allocated inside. Not thread-safe per workspace. IFL_LIMIT when n exceeds the model's
 * positions or a token its vocabulary. */
ifl_status ifl_score(ifl_workspace *workspace, const ifl_weights *weights, const int32_t *tokens,
                     int32_t n, int32_t from, float temperature, ifl_logprob *out, ifl_error *err);

/* The k best next tokens (temperature 1, best first) in place of each of tokens[from .. n): ids and
 * logprobs are [n - from, k]. 1 <= k <= IFL_TOP_K_MAX. */
ifl_status ifl_score_top(ifl_workspace *workspace, const ifl_weights *weights, const int32_t *tokens,
                         int32_t n, int32_t from, int32_t k, int32_t *ids, float *logprobs,
                         ifl_error *err);

#endif
