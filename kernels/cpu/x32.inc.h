/* The chain of profile `bf16`, x32 of kernels/ops.h, on FMA: for each block of 32 k an even chain
 * and an odd chain from +0, which the total then takes. The tile of one half-chain fills the
 * registers; the even half rests on the stack while the odd one runs, the total too. A zero step
 * (where K ends inside a block) only turns -0 into +0, so one addition of +0 stands for all of
 * them. All of these run with denormals flushed: see rounding.h. */

/* The array stays in memory: the registers are for the half-chains. */
#define X32_IN_MEMORY(array) __asm__ volatile("" : : "r"(array) : "memory")

/* acc over i in [0, n) of A(i) x B(i), from zero; then the zero steps. */
#define X32_HALF(R, C, N, A, LOAD_B, AHEAD)                                                        \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) acc[r][c] = lanes_zero();            \
    }                                                                                              \
    for (int i = 0; i < (N); i++) {                                                                \
        MATMUL_TILE_STEP(R, C, A, LOAD_B)                                                          \
        AHEAD;                                                                                     \
    }                                                                                              \
    if ((N) < IFL_DEPTH / 2) {                                                                     \
        _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                   \
            _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) acc[r][c] =                      \
                lanes_add(acc[r][c], lanes_zero());                                                \
        }                                                                                          \
    }

/* total[r * C + c] takes one block of `depth` <= 32 k. A_EVEN .. LOAD_ODD are expressions of r, c
 * and i, the pair's number. */
#define X32_BLOCK(R, C, DEPTH, A_EVEN, LOAD_EVEN, A_ODD, LOAD_ODD, AHEAD)                          \
    do {                                                                                           \
        int n_even = ((DEPTH) + 1) / 2, n_odd = (DEPTH) / 2;                                       \
        float even[(R) * (C)*16] __attribute__((aligned(64)));                                     \
        lanes acc[R][C];                                                                           \
        X32_HALF(R, C, n_even, A_EVEN, LOAD_EVEN, AHEAD)                                           \
        _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                   \
            _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++)                                  \
                lanes_store(even + (r * (C) + c) * 16, acc[r][c]);                                 \
        }                                                                                          \
        X32_IN_MEMORY(even);                                                                       \
        X32_IN_MEMORY(total);                                                                      \
        X32_HALF(R, C, n_odd, A_ODD, LOAD_ODD, AHEAD)                                              \
        _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                   \
            _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                \
                float *at = total + (r * (C) + c) * 16;                                            \
                lanes block = lanes_add(lanes_load(even + (r * (C) + c) * 16), acc[r][c]);         \
                lanes_store(at, lanes_add(lanes_load(at), block));                                 \
            }                                                                                      \
        }                                                                                          \
    } while (0)

#define X32_BEGIN(R, C)                                                                            \
    float total[(R) * (C)*16] __attribute__((aligned(64)));                                        \
    for (int r = 0; r < (R); r++)                                                                  \
        for (int c = 0; c < (C); c++) {                                                            \
            int64_t n = columns - c * 16;                                                          \
            lanes from = !resume || n <= 0 ? lanes_zero()                                          \
                         : n >= 16         ? lanes_load(y + r * ldy + c * 16)                      \
                                           : lanes_load_n(y + r * ldy + c * 16, n);                        \
            lanes_store(total + (r * (C) + c) * 16, from);                                         \
        }
#define X32_END(R, C)                                                                              \
    for (int r = 0; r < (R); r++)                                                                  \
        for (int c = 0; c < (C); c++) {                                                            \
            int64_t n = columns - c * 16;                                                          \
            lanes out = lanes_load(total + (r * (C) + c) * 16);                                    \
            if (n >= 16)                                                                           \
                lanes_store(y + r * ldy + c * 16, out);                                            \
            else if (n > 0)                                                                        \
                lanes_store_n(y + r * ldy + c * 16, out, n);                                       \
        }

/* As matmul_direct_R and matmul_wide_R; k starts at a multiple of 32. */
#define X32_MATMUL(R)                                                                              \
    BODY void x32_direct_##R(float *y, int64_t ldy, const float *a, int64_t a_row,                 \
                             const uint16_t *b, int64_t b_panel, int64_t k, int64_t columns,       \
                             bool resume, uintptr_t ahead, int64_t ahead_step) {                   \
        enum { C = IFL_DIRECT_COLS(R) };                                                           \
        X32_BEGIN(R, C)                                                                            \
        for (int64_t k0 = 0; k0 < k; k0 += IFL_DEPTH) {                                            \
            X32_BLOCK(                                                                             \
                R, C, (int)matmul_min(IFL_DEPTH, k - k0), a[r * a_row + 2 * i],                    \
                lanes_load_even(b + i * 64 + (c / 2) * b_panel + (c % 2) * 32),                    \
                a[r * a_row + 2 * i + 1],                                                          \
                lanes_load_odd(b + i * 64 + (c / 2) * b_panel + (c % 2) * 32),                     \
                (__builtin_prefetch((const void *)ahead, 0, 2), ahead += (uintptr_t)ahead_step));  \
            a += IFL_DEPTH;                                                                        \
            b += IFL_DEPTH * IFL_PANEL;                                                            \
        }                                                                                          \
        X32_END(R, C)                                                                              \
    }                                                                                              \
    BODY void x32_wide_##R(float *y, int64_t ldy, const float *a, int64_t a_row, const float *b,   \
                           int64_t b_step, int64_t k, int64_t columns, bool resume) {              \
        enum { C = IFL_TILE_COLS };                                                                \
        X32_BEGIN(R, C)                                                                            \
        for (int64_t k0 = 0; k0 < k; k0 += IFL_DEPTH) {                                            \
            X32_BLOCK(R, C, (int)matmul_min(IFL_DEPTH, k - k0), a[r * a_row + 2 * i],              \
                      lanes_load(b + 2 * i * b_step + c * 16), a[r * a_row + 2 * i + 1],           \
                      lanes_load(b + (2 * i + 1) * b_step + c * 16), (void)0);                     \
            a += IFL_DEPTH;                                                                        \
            b += IFL_DEPTH * b_step;                                                               \
        }                                                                                          \
        X32_END(R, C)                                                                              \
    }
IFL_TILE_CASES(X32_MATMUL)
