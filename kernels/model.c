#include "kernels/model.h"

#include <stdio.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "common/bf16.h"
#include "common/memory.h"
#include "kernels/contract.h"
#include "kernels/cpu/rounding.h"
#include "kernels/rope_table.h"

/* --- Model
 * ------------------------------------------------------------------------------------------ */

static int32_t layer_find(const ifl_model *model, int32_t layer, const char *suffix) {
    char name[IFL_TENSOR_NAME_MAX];
    snprintf(name, sizeof name, "model.layers.%d.%s", layer, suffix);
    return ifl_model_find(model, name);
}

static void model_index_layers(ifl_model *model) {
    const ifl_model_config *c = &model->config;
    for (int32_t l = 0; l < c->n_layers; l++) {
        ifl_layer_params *p = &model->layers[l];
        p->norm_in = layer_find(model, l, "input_layernorm.weight");
        p->q = layer_find(model, l, "self_attn.q_proj.weight");
        p->k = layer_find(model, l, "self_attn.k_proj.weight");
        p->v = layer_find(model, l, "self_attn.v_proj.weight");
        p->q_bias = layer_find(model, l, "self_attn.q_proj.bias");
        p->k_bias = layer_find(model, l, "self_attn.k_proj.bias");
        p->v_bias = layer_find(model, l, "self_attn.v_proj.bias");
        p->q_norm = layer_find(model, l, "self_attn.q_norm.weight");
        p->k_norm = layer_find(model, l, "self_attn.k_norm.weight");
        p->o = layer_find(model, l, "self_attn.o_proj.weight");
        p->gate = layer_find(model, l, "mlp.gate_proj.weight");
        p->up = layer_find(model, l, "mlp.up_proj.weight");
        p->down = layer_find(model, l, "mlp.down_proj.weight");
        int32_t post = layer_find(model, l, "post_attention_layernorm.weight");
        if (c->sandwich_norms) {
            p->norm_attention_out = post;
            p->norm_mlp_in = layer_find(model, l, "pre_feedforward_layernorm.weight");
            p->norm_mlp_out = layer_find(model, l, "post_feedforward_layernorm.weight");
        } else {
            p->norm_attention_out = -1;
            p->norm_mlp_in = post;
            p->norm_mlp_out = -1;
        }
        IFL_ASSERT(p->norm_in >= 0 && p->q >= 0 && p->k >= 0 && p->v >= 0 && p->o >= 0);
        IFL_ASSERT(p->norm_mlp_in >= 0 && p->gate >= 0 && p->up >= 0 && p->down >= 0);
        IFL_ASSERT(!c->sandwich_norms || (post >= 0 && p->norm_mlp_out >= 0));
        IFL_ASSERT(!c->qkv_bias || (p->q_bias >= 0 && p->k_bias >= 0 && p->v_bias >= 0));
        IFL_ASSERT(!c->qk_norm || (p->q_norm >= 0 && p->k_norm >= 0));
    }
    model->embedding = ifl_model_find(model, "model.embed_tokens.weight");
    model->final_norm = ifl_model_find(model, "model.norm.weight");
    model->head = c->tied_head ? model->embedding : ifl_model_find(model, "lm_head.weight");
    IFL_ASSERT(model->embedding >= 0 && model->final_norm >= 0 && model->head >= 0);
}

static ifl_status model_layout(ifl_model *model, ifl_error *err) {
    ifl_tensor_spec *specs = ifl_alloc((size_t)model->n_params, sizeof *specs);
    if (!specs) return ifl_fail(err, IFL_NOMEM, "model: out of memory for the tensor table");
    ifl_model_config_tensors(&model->config, specs);
    for (int32_t i = 0; i < model->n_params; i++) {
        ifl_param *p = &model->params[i];
        p->spec = specs[i];
        p->trainable = true;
        p->offset = model->n_elements;
        model->n_elements += p->spec.rows * p->spec.cols;
        if (p->spec.is_matrix) {
            p->packed_offset = model->n_panel_elements;
            model->n_panel_elements += ifl_panels_elements(p->spec.rows, p->spec.cols);
        } else {
            p->packed_offset = model->n_vector_elements;
            /* Rounded up so that every vector starts on a cache line. */
            model->n_vector_elements += (p->spec.rows * p->spec.cols + 15) / 16 * 16;
        }
    }
    ifl_free(specs);
    return IFL_OK;
}

static ifl_status model_rope(ifl_model *model, int32_t n_positions, ifl_error *err) {
    const ifl_model_config *c = &model->config;
    size_t n = (size_t)n_positions * (size_t)(c->head_dim / 2);
    model->rope_cos = ifl_alloc(n, sizeof(float));
    model->rope_sin = ifl_alloc(n, sizeof(float));
    if (!model->rope_cos || !model->rope_sin)
        return ifl_fail(err, IFL_NOMEM, "model: out of memory for RoPE tables of %d positions",
                        n_positions);
    ifl_rope_table(model->rope_cos, model->rope_sin, &c->rope, c->head_dim, n_positions);
    bool has_local = false;
    for (int32_t l = 0; l < c->n_layers; l++)
        has_local |= c->layer_is_sliding[l] != 0;
    if (!has_local) {
        model->rope_local_cos = model->rope_cos;
        model->rope_local_sin = model->rope_sin;
        return IFL_OK;
    }
    model->rope_local_cos = ifl_alloc(n, sizeof(float));
    model->rope_local_sin = ifl_alloc(n, sizeof(float));
    if (!model->rope_local_cos || !model->rope_local_sin)
        return ifl_fail(err, IFL_NOMEM, "model: out of memory for RoPE tables of %d positions",
                        n_positions);
    ifl_rope_table(model->rope_local_cos, model->rope_local_sin, &c->rope_local, c->head_dim,
                   n_positions);
    return IFL_OK;
}

static ifl_status model_fingerprint(ifl_model *model, ifl_error *err) {
    const ifl_model_config *c = &model->config;
    ifl_hasher *architecture = ifl_hasher_create();
    if (!architecture) return ifl_fail(err, IFL_NOMEM, "model: out of memory for its fingerprint");
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_tensor_spec *s = &model->params[i].spec;
        ifl_hasher_add(architecture, s->name, strlen(s->name) + 1);
        ifl_hasher_add(architecture, &s->rows, sizeof s->rows);
        ifl_hasher_add(architecture, &s->cols, sizeof s->cols);
    }
    int32_t shape[] = {(int32_t)c->family, c->n_layers,  c->n_heads,
                       c->n_kv_heads,      c->head_dim,  (int32_t)c->activation,
                       c->sliding_window,  c->tied_head, c->norm_plus_one};
    float numbers[] = {c->norm_eps, c->embed_scale, c->attention_scale, c->logit_softcap};
    ifl_hasher_add(architecture, shape, sizeof shape);
    ifl_hasher_add(architecture, numbers, sizeof numbers);
    ifl_hasher_add(architecture, c->layer_is_sliding, (size_t)c->n_layers);
    model->fingerprint = ifl_hasher_finish(architecture);
    ifl_hasher_free(architecture);
    return IFL_OK;
}

ifl_status ifl_model_create_plain(ifl_model **out, const ifl_model_config *config,
                                  int32_t max_positions, ifl_profile numerics, ifl_error *err) {
    *out = NULL;
    IFL_TRY(ifl_model_config_check(config, err));
    if (config->head_dim > IFL_HEAD_DIM_MAX)
        return ifl_fail(err, IFL_LIMIT, "model: head_dim %d, at most %d", config->head_dim,
                        IFL_HEAD_DIM_MAX);
    ifl_model *model = ifl_alloc(1, sizeof *model);
    if (!model) return ifl_fail(err, IFL_NOMEM, "model: out of memory");
    ifl_status st;
    model->config = *config;
    model->numerics = numerics;
    if (max_positions > 0 && max_positions < model->config.max_positions)
        model->config.max_positions = max_positions;
    model->n_params = ifl_model_config_tensors(config, NULL);
    model->params = ifl_alloc((size_t)model->n_params, sizeof *model->params);
    model->layers = ifl_alloc((size_t)config->n_layers, sizeof *model->layers);
    if (!model->params || !model->layers) {
        st = ifl_fail(err, IFL_NOMEM, "model: out of memory for %d tensors", model->n_params);
        goto done;
    }
    IFL_TRY_GOTO(st, model_layout(model, err), done);
    model_index_layers(model);
    IFL_TRY_GOTO(st, model_rope(model, model->config.max_positions, err), done);
    IFL_TRY_GOTO(st, model_fingerprint(model, err), done);
    *out = model;
    model = NULL; /* the caller owns it now */
done:
    ifl_model_free(model);
    return st;
}

/* Not inline: the compiler knows nothing of MXCSR and could move arithmetic over its setting. */
__attribute__((noinline)) static ifl_status
model_create_body(ifl_model **out, const ifl_model_config *config, int32_t max_positions,
                  ifl_profile numerics, ifl_error *err) {
    IFL_TRY(ifl_model_create_plain(out, config, max_positions, numerics, err));
    ifl_status st = ifl_contract_make(*out, err);
    if (st == IFL_OK) return IFL_OK;
    ifl_model_free(*out);
    *out = NULL;
    return st;
}

/* The tables and the contract's probes must not see the caller's rounding or flushing: its
 * log-probs don't either, so the hash would tell two models apart that compute the same bits. */
ifl_status ifl_model_create(ifl_model **out, const ifl_model_config *config, int32_t max_positions,
                            ifl_profile numerics, ifl_error *err) {
    uint32_t rounding = ifl_rounding_enter();
    ifl_status st = model_create_body(out, config, max_positions, numerics, err);
    ifl_rounding_leave(rounding);
    return st;
}

void ifl_model_free(ifl_model *model) {
    if (!model) return;
    if (model->rope_local_cos != model->rope_cos) ifl_free(model->rope_local_cos);
    if (model->rope_local_sin != model->rope_sin) ifl_free(model->rope_local_sin);
    ifl_free(model->rope_cos);
    ifl_free(model->rope_sin);
    ifl_free(model->layers);
    ifl_free(model->params);
    ifl_free(model);
}

int32_t ifl_model_find(const ifl_model *model, const char *name) {
    for (int32_t i = 0; i < model->n_params; i++)
        if (strcmp(model->params[i].spec.name, name) == 0) return i;
    return -1;
}

/* --- Weights
 * ---------------------------------------------------------------------------------------- */

ifl_status ifl_weights_create(ifl_weights **out, const ifl_model *model, ifl_error *err) {
    *out = NULL;
    ifl_weights *w = ifl_alloc(1, sizeof *w);
    if (!w) return ifl_fail(err, IFL_NOMEM, "weights: out of memory");
    w->model = model;
    w->version = -1;
    w->panels = ifl_alloc((size_t)model->n_panel_elements, sizeof *w->panels);
    w->vectors = ifl_alloc((size_t)model->n_vector_elements, sizeof *w->vectors);
    if (!w->panels || !w->vectors) {
        ifl_weights_free(w);
        return ifl_fail(err, IFL_NOMEM, "weights: out of memory for %lld parameters",
                        (long long)model->n_elements);
    }
    *out = w;
    return IFL_OK;
}

void ifl_weights_copy(ifl_weights *to, const ifl_weights *from) {
    const ifl_model *m = from->model;
    IFL_ASSERT(to->model == m);
    memcpy(to->panels, from->panels, (size_t)m->n_panel_elements * sizeof *from->panels);
    memcpy(to->vectors, from->vectors, (size_t)m->n_vector_elements * sizeof *from->vectors);
    to->version = from->version;
}

void ifl_weights_free(ifl_weights *weights) {
    if (!weights) return;
    ifl_free(weights->panels);
    ifl_free(weights->vectors);
    ifl_free(weights);
}

/* The parameter that holds flat element `at`, by bisection over the ascending offsets. */
static int32_t weights_param_at(const ifl_model *model, int64_t at) {
    int32_t lo = 0, hi = model->n_params - 1;
    while (lo < hi) {
        int32_t mid = (lo + hi + 1) / 2;
        if (model->params[mid].offset <= at)
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

/* Both directions of one walk over the flat order. `flat` is read by put and written by get. */
typedef enum weights_way { WEIGHTS_PUT, WEIGHTS_GET } weights_way;

/* n elements of one output's row, from its k-th on. */
static void weights_row(weights_way way, uint16_t *panel_row, int64_t k, uint16_t *flat,
                        int64_t n) {
    if (way == WEIGHTS_PUT)
        for (int64_t i = 0; i < n; i++)
            panel_row[ifl_panel_k(k + i)] = flat[i];
    else
        for (int64_t i = 0; i < n; i++)
            flat[i] = panel_row[ifl_panel_k(k + i)];
}

#ifdef __SSE2__
/* Four rows by four pairs, both ways. */
static inline void weights_transpose(__m128i v[4]) {
    __m128i a = _mm_unpacklo_epi32(v[0], v[1]), b = _mm_unpacklo_epi32(v[2], v[3]),
            c = _mm_unpackhi_epi32(v[0], v[1]), d = _mm_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm_unpacklo_epi64(a, b);
    v[1] = _mm_unpackhi_epi64(a, b);
    v[2] = _mm_unpacklo_epi64(c, d);
    v[3] = _mm_unpackhi_epi64(c, d);
}

/* As many of the k elements of 32 rows as whole cache lines hold: 16 pairs of four rows at a time,
 * so that each line on either side is moved once and whole. Returns how many. */
static int64_t weights_panel_lines(weights_way way, uint16_t *panel, uint16_t *flat, int64_t k) {
    enum { PAIRS = 16, ROWS = 4 };
    int64_t n = k / (2 * PAIRS) * (2 * PAIRS);
    for (int64_t i = 0; i < n; i += 2 * PAIRS)
        for (int64_t row = 0; row < IFL_PANEL; row += ROWS)
            for (int64_t pair = 0; pair < PAIRS; pair += 4) {
                uint16_t *lines = panel + (i / 2 + pair) * (2 * IFL_PANEL) + 2 * row;
                uint16_t *rows = flat + row * k + i + 2 * pair;
                int64_t from_step = way == WEIGHTS_PUT ? k : 2 * IFL_PANEL,
                        to_step = way == WEIGHTS_PUT ? 2 * IFL_PANEL : k;
                uint16_t *from = way == WEIGHTS_PUT ? rows : lines,
                         *to = way == WEIGHTS_PUT ? lines : rows;
                __m128i v[4];
                for (int j = 0; j < 4; j++)
                    v[j] = _mm_loadu_si128((const __m128i *)(const void *)(from + j * from_step));
                weights_transpose(v);
                for (int j = 0; j < 4; j++)
                    _mm_storeu_si128((__m128i *)(void *)(to + j * to_step), v[j]);
            }
    return n;
}
#else
static int64_t weights_panel_lines(weights_way way, uint16_t *panel, uint16_t *flat, int64_t k) {
    (void)way, (void)panel, (void)flat, (void)k;
    return 0;
}
#endif

/* A whole panel: 32 rows of k elements, k even. Pairs move as 32-bit words, 32 of them to one place
 * in the panel; the rows are then read (or written) side by side, each line of them once. */
static void weights_panel(weights_way way, uint16_t *panel, uint16_t *flat, int64_t k) {
    int64_t done = weights_panel_lines(way, panel, flat, k);
    panel += done * IFL_PANEL;
    for (int64_t i = done; i < k; i += 2, panel += 2 * IFL_PANEL)
        for (int64_t row = 0; row < IFL_PANEL; row++) {
            uint16_t *at = flat + row * k + i;
            if (way == WEIGHTS_PUT)
                memcpy(panel + 2 * row, at, 2 * sizeof *at);
            else
                memcpy(at, panel + 2 * row, 2 * sizeof *at);
        }
}

static void weights_vector(weights_way way, float *vector, uint16_t *flat, int64_t n) {
    if (way == WEIGHTS_PUT)
        for (int64_t i = 0; i < n; i++)
            vector[i] = ifl_bf16_to_f32(flat[i]);
    else
        for (int64_t i = 0; i < n; i++)
            flat[i] = ifl_bf16_from_f32(vector[i]);
}

/* Walks the elements [at, stop) of one matrix, in whole panels where it can. */
static void weights_matrix(weights_way way, uint16_t *panels, const ifl_tensor_spec *spec,
                           int64_t at, int64_t stop, uint16_t *flat) {
    int64_t k = spec->cols;
    while (at < stop) {
        int64_t row = at / k, col = at % k, take;
        uint16_t *to = panels + ifl_panel_row(row, k);
        if (col == 0 && row % IFL_PANEL == 0 && k % 2 == 0 && stop - at >= IFL_PANEL * k) {
            take = IFL_PANEL * k;
            weights_panel(way, to, flat, k);
        } else {
            take = k - col < stop - at ? k - col : stop - at;
            weights_row(way, to, col, flat, take);
        }
        at += take;
        flat += take;
    }
}

static void weights_walk(weights_way way, const ifl_weights *w, int64_t begin, int64_t n,
                         uint16_t *flat) {
    const ifl_model *model = w->model;
    IFL_ASSERT(begin >= 0 && n >= 0 && begin + n <= model->n_elements);
    int64_t end = begin + n;
    for (int32_t i = weights_param_at(model, begin); begin < end; i++) {
        const ifl_param *p = &model->params[i];
        int64_t stop = p->offset + p->spec.rows * p->spec.cols;
        if (stop > end) stop = end;
        if (p->spec.is_matrix)
            weights_matrix(way, w->panels + p->packed_offset, &p->spec, begin - p->offset,
                           stop - p->offset, flat);
        else
            weights_vector(way, w->vectors + p->packed_offset + begin - p->offset, flat,
                           stop - begin);
        flat += stop - begin;
        begin = stop;
    }
}

void ifl_weights_put(ifl_weights *weights, int64_t begin, int64_t n, const uint16_t *bf16) {
    weights_walk(WEIGHTS_PUT, weights, begin, n, (uint16_t *)bf16);
}

void ifl_weights_get(const ifl_weights *weights, int64_t begin, int64_t n, uint16_t *bf16) {
    weights_walk(WEIGHTS_GET, weights, begin, n, bf16);
}

static bool weights_step(uint16_t *element, int32_t step) {
    int32_t place = ifl_bf16_place(*element) + step;
    if (place < INT16_MIN || place > INT16_MAX) return false;
    *element = ifl_bf16_at_place(place);
    return true;
}

ifl_status ifl_weights_patch(ifl_weights *weights, int64_t begin, const ifl_patch *patch,
                             ifl_error *err) {
    const ifl_model *model = weights->model;
    int32_t c = 0;
    while (c < patch->n) {
        int64_t at = begin + patch->at[c];
        if (at < 0 || at >= model->n_elements) break;
        const ifl_param *p = &model->params[weights_param_at(model, at)];
        int64_t stop = p->offset + p->spec.rows * p->spec.cols, k = p->spec.cols;
        int64_t row = -1, row_end = p->offset; /* of the row that the last change was in */
        bool inside = true;
        for (; c < patch->n && inside; c += inside) {
            at = begin + patch->at[c];
            if (at >= stop) break;
            if (!p->spec.is_matrix) {
                float *element = weights->vectors + p->packed_offset + at - p->offset;
                uint16_t bf16 = ifl_bf16_from_f32(*element);
                inside = weights_step(&bf16, patch->steps[c]);
                *element = ifl_bf16_to_f32(bf16);
                continue;
            }
            if (at >= row_end) {
                row = (at - p->offset) / k;
                row_end = p->offset + (row + 1) * k;
            }
            inside = weights_step(weights->panels + p->packed_offset + ifl_panel_row(row, k) +
                                      ifl_panel_k(at - (row_end - k)),
                                  patch->steps[c]);
        }
        if (!inside) break;
    }
    if (c == patch->n) return IFL_OK;
    return ifl_fail(err, IFL_FORMAT,
                    "a patch moves element %lld by %d: not a change of these weights",
                    (long long)(begin + patch->at[c]), patch->steps[c]);
}

ifl_hash ifl_weights_hash(const ifl_weights *weights) {
    enum { CHUNK = 1 << 15 };
    uint16_t *chunk = ifl_alloc(CHUNK, sizeof *chunk);
    ifl_hasher *hasher = ifl_hasher_create();
    IFL_ASSERT(chunk && hasher);
    for (int64_t at = 0; at < weights->model->n_elements; at += CHUNK) {
        int64_t n = weights->model->n_elements - at;
        if (n > CHUNK) n = CHUNK;
        ifl_weights_get(weights, at, n, chunk);
        ifl_hasher_add(hasher, chunk, (size_t)n * sizeof *chunk);
    }
    ifl_hash hash = ifl_hasher_finish(hasher);
    ifl_hasher_free(hasher);
    ifl_free(chunk);
    return hash;
}

/* --- KV storage
 * ------------------------------------------------------------------------------------- */

int64_t ifl_kv_store_bytes(const ifl_model *model, int32_t n_pages, int32_t page_tokens) {
    const ifl_model_config *c = &model->config;
    return (int64_t)c->n_layers * n_pages * c->n_kv_heads * 2 * page_tokens * c->head_dim *
           ifl_kv_element_bytes(model->numerics);
}

ifl_status ifl_kv_store_create(ifl_kv_store **out, const ifl_model *model, int32_t n_pages,
                               int32_t page_tokens, ifl_error *err) {
    *out = NULL;
    if (n_pages < 1 || page_tokens < 1 || page_tokens > 1024 ||
        (page_tokens & (page_tokens - 1)) != 0)
        return ifl_fail(
            err, IFL_USAGE,
            "KV cache: %d pages of %d tokens, wanted at least 1 page of a power of two up to 1024",
            n_pages, page_tokens);
    ifl_kv_store *kv = ifl_alloc(1, sizeof *kv);
    if (!kv) return ifl_fail(err, IFL_NOMEM, "KV cache: out of memory");
    const ifl_model_config *c = &model->config;
    *kv = (ifl_kv_store){.element_bytes = ifl_kv_element_bytes(model->numerics),
                         .n_layers = c->n_layers,
                         .n_kv_heads = c->n_kv_heads,
                         .head_dim = c->head_dim,
                         .n_pages = n_pages,
                         .page_tokens = page_tokens};
    kv->data = ifl_alloc((size_t)ifl_kv_store_bytes(model, n_pages, page_tokens), 1);
    if (!kv->data) {
        ifl_free(kv);
        return ifl_fail(
            err, IFL_NOMEM, "KV cache: out of memory for %d pages of %d tokens (%.1f MiB)", n_pages,
            page_tokens, (double)ifl_kv_store_bytes(model, n_pages, page_tokens) / 1048576.0);
    }
    *out = kv;
    return IFL_OK;
}

void ifl_kv_store_free(ifl_kv_store *kv) {
    if (!kv) return;
    ifl_free(kv->data);
    ifl_free(kv);
}

void ifl_kv_store_copy(ifl_kv_store *kv, int32_t to_page, int32_t from_page, int32_t n_tokens) {
    IFL_ASSERT(n_tokens <= kv->page_tokens && to_page < kv->n_pages && from_page < kv->n_pages);
    int64_t row = kv->head_dim * kv->element_bytes, pt = kv->page_tokens, head = 2 * pt * row;
    /* Whole blocks of K, whole pairs of V. */
    int64_t k_block = pt < 16 ? pt : 16, v_block = pt < 2 ? pt : 2;
    int64_t k_tokens = (n_tokens + k_block - 1) / k_block * k_block,
            v_tokens = (n_tokens + v_block - 1) / v_block * v_block;
    for (int64_t l = 0; l < kv->n_layers; l++)
        for (int64_t h = 0; h < kv->n_kv_heads; h++) {
            const char *from =
                kv->data + ((l * kv->n_pages + from_page) * kv->n_kv_heads + h) * head;
            char *to = kv->data + ((l * kv->n_pages + to_page) * kv->n_kv_heads + h) * head;
            memcpy(to, from, (size_t)(k_tokens * row));
            memcpy(to + pt * row, from + pt * row, (size_t)(v_tokens * row));
        }
}
