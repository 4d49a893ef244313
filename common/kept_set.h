/* The kept set of one truncated token (top-k, top-p): the tokens that could have been drawn. Its
 * log-prob is that of the softmax over these alone; what the set left out of the full vocabulary's
 * mass is log Z = (log-prob over the full vocabulary) - (log-prob over the set). */
#ifndef IFL_COMMON_KEPT_SET_H
#define IFL_COMMON_KEPT_SET_H

#include <stdint.h>

#define IFL_KEPT_SET_MAX 1024 /* tokens of one set: sampling keeps no more (kernels/model.h) */

typedef struct ifl_kept_set {
    const int32_t *ids; /* [n], strictly ascending */
    int32_t n;          /* 0: the full vocabulary */
} ifl_kept_set;

/* Tokens that the sets of one answer can hold at most. */
static inline int64_t ifl_kept_ids_bound(int32_t max_new_tokens, int32_t top_k, double top_p,
                                         int32_t vocab_size) {
    if (top_k <= 0 && !(top_p < 1.0)) return 0;
    int32_t each = top_k > 0 && top_k < IFL_KEPT_SET_MAX ? top_k : IFL_KEPT_SET_MAX;
    if (vocab_size < each) each = vocab_size;
    return (int64_t)max_new_tokens * each;
}

#endif
