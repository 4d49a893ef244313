/* What a whole-model case must at least move and compute: the numerators of its roofline.
 *
 * FLOP. A row (token) costs 2 FLOP for each element of the layers' matrices, and in each layer 4 *
 * heads * head_dim for each key it sees (QK and PV; a sliding layer sees its window at most). The
 * head costs 2 * V * D for each row whose logits are wanted: every decoded row, the last one of a
 * prompt, every trained position. Norms, activations, softmax and sampling are not counted.
 * Training costs three times its forward (each product has two in the backward); what a trainer
 * computes again to save memory is not counted, nor is the optimizer.
 *
 * Bytes from memory. Decode, per step: all packed weights once (panels with their padding, the
 * head's among them; of an embedding that is no head only the rows that are looked up), and keys
 * and values of every visible position, in the profile's KV type, plus the new one's. Logits count
 * nothing: the head is fused over blocks of vocabulary whose logits stay in cache. Prefill: the
 * weights once. Training: the weights once, and 30 bytes a parameter for AdamW (master and two
 * moments read and written, gradient read, bf16 written). */
#include <unistd.h>

#include "deploy/cli/bench.h"

#define CACHE_BYTES_LEAST                                                                          \
    (64 << 20) /* taken for the last-level cache's size where the system doesn't tell */

typedef struct cost_model {
    const ifl_model *model;
    double layer_elements; /* of the matrices of all layers */
    double head_elements, weight_bytes;
    double kv_position_bytes; /* of one layer */
} cost_model;

static cost_model cost_model_of(const ifl_model *model) {
    cost_model m = {.model = model};
    const ifl_model_config *c = &model->config;
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_tensor_spec *s = &model->params[i].spec;
        if (s->is_matrix && i != model->embedding && i != model->head)
            m.layer_elements += (double)s->rows * (double)s->cols;
    }
    m.head_elements = (double)c->vocab_size * c->d_model;
    m.weight_bytes = (double)ifl_weights_bytes(model);
    if (model->head != model->embedding)
        m.weight_bytes -= 2 * (double)ifl_panels_elements(c->vocab_size, c->d_model);
    m.kv_position_bytes = (double)ifl_kv_store_bytes(model, 1, 1) / c->n_layers;
    return m;
}

/* Half as much again as the last-level cache: less than that may stay there from one step to the
 * next. */
static bool comes_from_memory(double bytes) {
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > 1.5 * (double)(cache > CACHE_BYTES_LEAST ? cache : CACHE_BYTES_LEAST);
}

/* Keys seen by one row that has n_keys positions up to and including its own, summed over the
 * layers. */
static double keys_seen(const cost_model *m, double n_keys) {
    const ifl_model_config *c = &m->model->config;
    double sum = 0;
    for (int32_t l = 0; l < c->n_layers; l++) {
        bool slides = c->layer_is_sliding[l] && c->sliding_window > 0 && c->sliding_window < n_keys;
        sum += slides ? c->sliding_window : n_keys;
    }
    return sum;
}

static double attention_flop(const cost_model *m, double n_keys) {
    const ifl_model_config *c = &m->model->config;
    return 4.0 * c->n_heads * c->head_dim * keys_seen(m, n_keys);
}

/* One sequence's positions 0 .. n - 1. */
static double sequence_flop(const cost_model *m, int32_t n, int32_t n_heads_wanted) {
    double flop = 2 * m->layer_elements * n + 2 * m->head_elements * n_heads_wanted;
    for (int32_t p = 1; p <= n; p++)
        flop += attention_flop(m, p);
    return flop;
}

ifl_bench_cost ifl_bench_cost_of(const ifl_model *model, const ifl_bench_model_case *c) {
    cost_model m = cost_model_of(model);
    ifl_bench_cost cost = {.from_memory = comes_from_memory(m.weight_bytes)};
    double batch = c->batch, embedding_row_bytes = 2.0 * model->config.d_model;
    switch (c->kind) {
    case IFL_BENCH_DECODE:
        cost.n_tokens = (int64_t)c->batch * c->new_tokens;
        for (int32_t i = 0; i < c->new_tokens; i++) {
            /* The first new token came with the prompt: the first timed row is that token's own. */
            double n_keys = (double)c->prompt_tokens + 1 + i;
            cost.flop +=
                batch * (2 * m.layer_elements + 2 * m.head_elements + attention_flop(&m, n_keys));
            cost.bytes += m.weight_bytes + batch * (embedding_row_bytes +
                                                    m.kv_position_bytes * keys_seen(&m, n_keys));
        }
        break;
    case IFL_BENCH_PREFILL:
        cost.n_tokens = (int64_t)c->batch * c->prompt_tokens;
        cost.flop = batch * sequence_flop(&m, c->prompt_tokens, 1);
        cost.bytes = m.weight_bytes;
        break;
    case IFL_BENCH_TRAIN:
        cost.n_tokens = (int64_t)c->batch * c->prompt_tokens;
        cost.flop = 3 * batch * sequence_flop(&m, c->prompt_tokens, c->trained_tokens);
        cost.bytes = m.weight_bytes + 30.0 * (double)model->n_elements;
        break;
    }
    return cost;
}
