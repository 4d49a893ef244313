/* Packing for the backward products, gradients of the elementwise ops, the optimizer step. */

/* --- Packing --------------------------------------------------------------------------------- */

BODY void pack_f32_body(float *b_panels, const float *b, int64_t ldb, int64_t k, int64_t n,
                        int64_t panel_begin, int64_t panel_end) {
    for (int64_t p = panel_begin; p < panel_end; p++) {
        int64_t columns = matmul_min(IFL_PANEL, n - p * IFL_PANEL);
        int64_t low = matmul_min(columns, 16), high = columns - low;
        for (int64_t kk = 0; kk < k; kk++) {
            float *out = b_panels + (p * k + kk) * IFL_PANEL;
            const float *in = b + kk * ldb + p * IFL_PANEL;
            if (columns == IFL_PANEL) {
                lanes_store(out, lanes_load(in));
                lanes_store(out + 16, lanes_load(in + 16));
            } else {
                lanes_store(out, lanes_load_n(in, low));
                lanes_store(out + 16, high > 0 ? lanes_load_n(in + 16, high) : lanes_zero());
            }
        }
    }
}

BODY void pack_f32_transposed_body(float *b_panels, const float *b, int64_t ldb, int64_t k,
                                   int64_t n, int64_t panel_begin, int64_t panel_end) {
    static const float zeros[IFL_LANES] = {0};
    float block[IFL_LANES * IFL_LANES];
    for (int64_t p = panel_begin; p < panel_end; p++)
        for (int64_t half = 0; half < IFL_PANEL; half += 16)
            for (int64_t k0 = 0; k0 < k; k0 += 16) {
                int64_t depth = matmul_min(16, k - k0), column = p * IFL_PANEL + half;
                float *out = b_panels + (p * k + k0) * IFL_PANEL + half;
                if (depth == 16) {
                    const void *rows[IFL_LANES];
                    for (int j = 0; j < 16; j++)
                        rows[j] = column + j < n ? b + (column + j) * ldb + k0 : zeros;
                    lanes_transpose(block, rows);
                    for (int64_t kk = 0; kk < 16; kk++)
                        lanes_store(out + kk * IFL_PANEL, lanes_load(block + kk * 16));
                } else {
                    for (int64_t kk = 0; kk < depth; kk++)
                        for (int64_t j = 0; j < 16; j++)
                            out[kk * IFL_PANEL + j] =
                                column + j < n ? b[(column + j) * ldb + k0 + kk] : 0.0f;
                }
            }
}

BODY void unpack_for_dx_body(float *out_panels, const uint16_t *w_panels, int64_t n_total,
                             int64_t k, int64_t n_begin, int64_t n_end, int64_t panel_begin,
                             int64_t panel_end) {
    (void)n_total;
    float block[IFL_LANES * IFL_LANES], widened[IFL_LANES * IFL_LANES];
    const void *rows[IFL_LANES];
    for (int j = 0; j < 16; j++)
        rows[j] = widened + j * 16;
    int64_t depth = n_end - n_begin;
    /* 16 x 16 blocks: rows n of w become rows of the output, columns k its columns. */
    for (int64_t kp = panel_begin; kp < panel_end; kp++)
        for (int64_t half = 0; half < IFL_PANEL; half += 16)
            for (int64_t n0 = n_begin; n0 < n_end; n0 += 16) {
                int64_t column = kp * IFL_PANEL + half, n_rows = matmul_min(16, n_end - n0);
                const uint16_t *in = w_panels + ifl_panel_row(n0, k) + ifl_panel_k(column);
                for (int64_t j = 0; j < 16; j += 2) { /* what lies past k holds +0 */
                    lanes_store(widened + j * 16, lanes_load_even(in + j * IFL_PANEL));
                    lanes_store(widened + (j + 1) * 16, lanes_load_odd(in + j * IFL_PANEL));
                }
                lanes_transpose(block, rows);
                for (int64_t r = 0; r < n_rows; r++)
                    lanes_store(out_panels + (kp * depth + n0 - n_begin + r) * IFL_PANEL + half,
                                lanes_load(block + r * 16));
            }
}

/* --- Gradients ------------------------------------------------------------------------------- */

BODY void rmsnorm_backward_body(float *dx, int64_t lddx, float *dw, const float *dy, int64_t lddy,
                                const float *x, int64_t ldx, const float *w, float offset,
                                const float *r, int64_t m, int64_t n, bool accumulate_dx) {
    lanes offsets = lanes_set(offset);
    for (int64_t row = 0; row < m; row++) {
        const float *dyr = dy + row * lddy, *xr = x + row * ldx;
        float *dxr = dx + row * lddx;
        float s[IFL_LANES];
        lanes acc = lanes_zero(), factor = lanes_set(r[row]);
        int64_t c = 0;
        for (; c + 16 <= n; c += 16) {
            lanes g = lanes_mul(lanes_load(dyr + c), lanes_add(offsets, lanes_load(w + c)));
            acc = lanes_fma(g, lanes_mul(lanes_load(xr + c), factor), acc);
        }
        lanes_store(s, acc);
        for (int l = 0; c + l < n; l++)
            s[l] = __builtin_fmaf(dyr[c + l] * (offset + w[c + l]), xr[c + l] * r[row], s[l]);
        lanes mean = lanes_set(lanes_tree_of(s) / (float)n);
        LANES_LOOP(n, {
            lanes d = LOAD(dyr);
            lanes g = lanes_mul(d, lanes_add(offsets, LOAD(w)));
            lanes xhat = lanes_mul(LOAD(xr), factor);
            lanes value = lanes_mul(factor, lanes_sub(g, lanes_mul(xhat, mean)));
            if (dw) STORE(dw, lanes_fma(d, xhat, LOAD(dw)));
            if (accumulate_dx) value = lanes_add(LOAD(dxr), value);
            STORE(dxr, value);
        });
    }
}

BODY void silu_mul_backward_body(float *dgate, float *dup, const float *dy, const float *gate,
                                 const float *up, int64_t n) {
    lanes one = lanes_set(1.0f);
    LANES_LOOP(n, {
        lanes g = LOAD(gate), d = LOAD(dy), u = LOAD(up);
        lanes s = lanes_div(one, lanes_add(one, lanes_exp(lanes_neg(g))));
        lanes slope = lanes_mul(s, lanes_fma(g, lanes_sub(one, s), one));
        STORE(dup, lanes_mul(d, lanes_mul(g, s)));
        STORE(dgate, lanes_mul(lanes_mul(d, u), slope));
    });
}

BODY void gelu_mul_backward_body(float *dgate, float *dup, const float *dy, const float *gate,
                                 const float *up, int64_t n) {
    lanes one = lanes_set(1.0f), half_one = lanes_set(0.5f);
    LANES_LOOP(n, {
        lanes g = LOAD(gate), d = LOAD(dy), u = LOAD(up);
        lanes t = lanes_gelu_tanh(g);
        lanes half = lanes_mul(half_one, lanes_add(one, t));
        lanes square = lanes_mul(lanes_set(3.0f * IFL_GELU_B), g);
        lanes dz = lanes_mul(lanes_set(IFL_GELU_A), lanes_fma(square, g, one));
        lanes slope =
            lanes_mul(lanes_mul(half_one, g), lanes_mul(lanes_sub(one, t), lanes_add(one, t)));
        STORE(dup, lanes_mul(d, lanes_mul(g, half)));
        STORE(dgate, lanes_mul(lanes_mul(d, u), lanes_fma(slope, dz, half)));
    });
}

BODY void softmax_backward_body(float *p, float *ds, const float *score, const float *dp,
                                float scale, ifl_lse lse, float delta, int64_t n) {
    lanes scales = lanes_set(scale), max = lanes_set(lse.max), sum = lanes_set(lse.sum);
    lanes deltas = lanes_set(delta);
    LANES_LOOP(n, {
        lanes x = lanes_sub(lanes_mul(LOAD(score), scales), max), d = LOAD(dp);
        lanes pt = lanes_div(lanes_exp(x), sum);
        STORE(p, pt);
        STORE(ds, lanes_mul(lanes_mul(pt, lanes_sub(d, deltas)), scales));
    });
}

BODY void logprob_backward_body(float *y, const float *x, float coefficient, ifl_lse lse,
                                int64_t target, int64_t n) {
    lanes factor = lanes_set(coefficient), max = lanes_set(lse.max), sum = lanes_set(lse.sum);
    bool inside = target >= 0 && target < n;
    float at_target = inside ? x[target] : 0.0f; /* y may be x */
    LANES_LOOP(n, {
        lanes pt = lanes_div(lanes_exp(lanes_sub(LOAD(x), max)), sum);
        STORE(y, lanes_mul(factor, lanes_sub(lanes_zero(), pt)));
    });
    if (inside) y[target] = coefficient * (1.0f - ifl_exp_scalar(at_target - lse.max) / lse.sum);
}

BODY double sum_squares_body(const float *x, int64_t n) {
    double s[IFL_LANES] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++)
            s[l] = s[l] + (double)x[i + l] * (double)x[i + l];
    for (int l = 0; i + l < n; l++)
        s[l] = s[l] + (double)x[i + l] * (double)x[i + l];
    for (int step = IFL_LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++)
            s[l] = s[l] + s[l + step];
    return s[0];
}

/* --- Optimizer ------------------------------------------------------------------------------- */

BODY void adamw_body(float *w, float *m, float *v, uint16_t *w_bf16, const float *grad,
                     float grad_scale, float lr, float b1, float b2, float eps, float weight_decay,
                     float bias1, float bias2, int64_t n) {
    lanes grad_scales = lanes_set(grad_scale), rate = lanes_set(lr),
          decay = lanes_set(weight_decay);
    lanes beta1 = lanes_set(b1), beta2 = lanes_set(b2), epsilon = lanes_set(eps);
    lanes rest1 = lanes_set(1.0f - b1), rest2 = lanes_set(1.0f - b2);
    lanes bias_m = lanes_set(bias1), bias_v = lanes_set(bias2);
    LANES_LOOP(n, {
        lanes g = lanes_mul(LOAD(grad), grad_scales), wi = LOAD(w);
        lanes mi = lanes_add(lanes_mul(beta1, LOAD(m)), lanes_mul(rest1, g));
        lanes vi = lanes_add(lanes_mul(beta2, LOAD(v)), lanes_mul(lanes_mul(rest2, g), g));
        lanes root = lanes_add(lanes_sqrt(lanes_div(vi, bias_v)), epsilon);
        lanes step = lanes_div(lanes_div(mi, bias_m), root);
        wi = lanes_sub(wi, lanes_mul(rate, lanes_add(step, lanes_mul(decay, wi))));
        STORE(m, mi);
        STORE(v, vi);
        STORE(w, wi);
    });
    if (w_bf16)
        for (int64_t i = 0; i < n; i++)
            w_bf16[i] = ifl_bf16_from_f32(w[i]);
}
