/* Turns the functions <op>_body of the including file into an ifl_ops table named IFL_OPS_TABLE,
 * each behind an entry that sets the rounding mode. The bodies are noinline so that no arithmetic
 * can move across the change of mode. */
#include "kernels/cpu/rounding.h"

#define IFL_GUARD(name, params, args)                                                              \
    static void name##_entry params {                                                              \
        uint32_t saved = ifl_rounding_enter();                                                     \
        name##_body args;                                                                          \
        ifl_rounding_leave(saved);                                                                 \
    }
#define IFL_GUARD_RESULT(type, name, params, args)                                                 \
    static type name##_entry params {                                                              \
        uint32_t saved = ifl_rounding_enter();                                                     \
        type result = name##_body args;                                                            \
        ifl_rounding_leave(saved);                                                                 \
        return result;                                                                             \
    }

#define IFL_GUARD_FLUSH(name, params, args)                                                        \
    static void name##_entry params {                                                              \
        uint32_t saved = ifl_rounding_enter_flush();                                               \
        name##_body args;                                                                          \
        ifl_rounding_leave_flush(saved);                                                           \
    }

IFL_GUARD(matmul,
          (float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels, int64_t m,
           int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end),
          (y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end))
IFL_GUARD_FLUSH(matmul_x32,
                (float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels,
                 int64_t m, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end),
                (y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end))
IFL_GUARD(rmsnorm,
          (float *y, int64_t ldy, const float *x, int64_t ldx, const float *w, float offset,
           float eps, int64_t m, int64_t n, float *r),
          (y, ldy, x, ldx, w, offset, eps, m, n, r))
IFL_GUARD(rope,
          (float *x, int64_t ldx, const float *cosines, const float *sines, int64_t m,
           int64_t head_dim),
          (x, ldx, cosines, sines, m, head_dim))
IFL_GUARD(silu_mul, (float *y, const float *gate, const float *up, int64_t n), (y, gate, up, n))
IFL_GUARD(gelu_mul, (float *y, const float *gate, const float *up, int64_t n), (y, gate, up, n))
IFL_GUARD(add, (float *y, const float *x, int64_t n), (y, x, n))
IFL_GUARD(add_bias, (float *y, int64_t ldy, const float *bias, int64_t m, int64_t n),
          (y, ldy, bias, m, n))
IFL_GUARD(scale, (float *y, const float *x, float factor, int64_t n), (y, x, factor, n))
IFL_GUARD(attention,
          (float *const *o, const float *const *q, const int32_t *pos, int64_t n_rows,
           const ifl_kv_view *view, int64_t head_dim, float scale, int32_t window, ifl_lse *lse),
          (o, q, pos, n_rows, view, head_dim, scale, window, lse))
/* Flushes in its products alone. */
IFL_GUARD(attention_x32,
          (float *const *o, const float *const *q, const int32_t *pos, int64_t n_rows,
           const ifl_kv_view *view, int64_t head_dim, float scale, int32_t window, ifl_lse *lse),
          (o, q, pos, n_rows, view, head_dim, scale, window, lse))
IFL_GUARD(temper, (float *y, const float *x, float temperature, float softcap, int64_t n),
          (y, x, temperature, softcap, n))
IFL_GUARD_RESULT(ifl_lse, block_lse, (const float *x, int64_t n, float *p), (x, n, p))
IFL_GUARD_RESULT(ifl_lse, merge_lse, (const ifl_lse *blocks, int64_t n_blocks), (blocks, n_blocks))
IFL_GUARD(exp, (float *y, const float *x, int64_t n), (y, x, n))
IFL_GUARD(log, (float *y, const float *x, int64_t n), (y, x, n))
IFL_GUARD(matmul_f32,
          (float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_col,
           const float *b_panels, int64_t m, int64_t n, int64_t k, int64_t panel_begin,
           int64_t panel_end, bool accumulate),
          (c, ldc, a, a_row, a_col, b_panels, m, n, k, panel_begin, panel_end, accumulate))
IFL_GUARD(rmsnorm_backward,
          (float *dx, int64_t lddx, float *dw, const float *dy, int64_t lddy, const float *x,
           int64_t ldx, const float *w, float offset, const float *r, int64_t m, int64_t n,
           bool accumulate_dx),
          (dx, lddx, dw, dy, lddy, x, ldx, w, offset, r, m, n, accumulate_dx))
IFL_GUARD(silu_mul_backward,
          (float *dgate, float *dup, const float *dy, const float *gate, const float *up,
           int64_t n),
          (dgate, dup, dy, gate, up, n))
IFL_GUARD(gelu_mul_backward,
          (float *dgate, float *dup, const float *dy, const float *gate, const float *up,
           int64_t n),
          (dgate, dup, dy, gate, up, n))
IFL_GUARD(softmax_backward,
          (float *p, float *ds, const float *score, const float *dp, float scale, ifl_lse lse,
           float delta, int64_t n),
          (p, ds, score, dp, scale, lse, delta, n))
IFL_GUARD(logprob_backward,
          (float *y, const float *x, float coefficient, ifl_lse lse, int64_t target, int64_t n),
          (y, x, coefficient, lse, target, n))
IFL_GUARD_RESULT(double, sum_squares, (const float *x, int64_t n), (x, n))
IFL_GUARD(adamw,
          (float *w, float *m, float *v, uint16_t *w_bf16, const float *grad, float grad_scale,
           float lr, float b1, float b2, float eps, float weight_decay, float bias1, float bias2,
           int64_t n),
          (w, m, v, w_bf16, grad, grad_scale, lr, b1, b2, eps, weight_decay, bias1, bias2, n))

/* What the tables of both profiles share. The copies (kv_store, the packings) and the
 * rounding, all integer work, need no guard. */
#define IFL_OPS_SHARED                                                                             \
    .rmsnorm = rmsnorm_entry, .rope = rope_entry, .silu_mul = silu_mul_entry,                      \
    .gelu_mul = gelu_mul_entry, .add = add_entry, .add_bias = add_bias_entry,                      \
    .scale = scale_entry, .temper = temper_entry, .block_lse = block_lse_entry,                    \
    .merge_lse = merge_lse_entry, .exp = exp_entry, .log = log_entry,                              \
    .matmul_f32 = matmul_f32_entry, .rmsnorm_backward = rmsnorm_backward_entry,                    \
    .silu_mul_backward = silu_mul_backward_entry, .gelu_mul_backward = gelu_mul_backward_entry,    \
    .softmax_backward = softmax_backward_entry, .logprob_backward = logprob_backward_entry,        \
    .sum_squares = sum_squares_entry, .adamw = adamw_entry, .pack_f32 = pack_f32_body,             \
    .pack_f32_transposed = pack_f32_transposed_body, .unpack_for_dx = unpack_for_dx_body

static const ifl_ops IFL_OPS_TABLE[IFL_PROFILE_COUNT] = {
    [IFL_PROFILE_F32] = {.name = IFL_OPS_NAME,
                         .profile = IFL_PROFILE_F32,
                         .task_rows = IFL_TASK_ROWS(false),
                         .matmul = matmul_entry,
                         .attention = attention_entry,
                         .round = round_f32_body,
                         .kv_store = kv_store_body,
                         IFL_OPS_SHARED},
    [IFL_PROFILE_BF16] = {.name = IFL_OPS_NAME,
                          .profile = IFL_PROFILE_BF16,
                          .task_rows = IFL_TASK_ROWS(true),
                          .matmul = matmul_x32_entry,
                          .attention = attention_x32_entry,
                          .round = round_bf16_body,
                          .kv_store = kv_store_bf16_body,
                          IFL_OPS_SHARED},
};
