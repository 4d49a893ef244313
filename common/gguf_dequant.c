/* Block layouts and arithmetic of the GGUF tensor types. A product and a subtraction are rounded
 * separately (no contraction), as in ggml's reference. */
#include <string.h>

#include "common/gguf.h"
#include "common/rounding.h"

typedef struct type_row {
    const char *name;
    uint8_t n_elements_log2; /* of a block */
    uint8_t n_bytes;         /* of a block; 0: known by name only */
} type_row;

static const type_row type_rows[] = {
    [0] = {"F32", 0, 4},     [1] = {"F16", 0, 2},      [2] = {"Q4_0", 5, 18},
    [3] = {"Q4_1", 0, 0},    [6] = {"Q5_0", 5, 22},    [7] = {"Q5_1", 0, 0},
    [8] = {"Q8_0", 5, 34},   [9] = {"Q8_1", 0, 0},     [10] = {"Q2_K", 0, 0},
    [11] = {"Q3_K", 0, 0},   [12] = {"Q4_K", 8, 144},  [13] = {"Q5_K", 8, 176},
    [14] = {"Q6_K", 8, 210}, [15] = {"Q8_K", 0, 0},    [16] = {"IQ2_XXS", 0, 0},
    [17] = {"IQ2_XS", 0, 0}, [18] = {"IQ3_XXS", 0, 0}, [19] = {"IQ1_S", 0, 0},
    [20] = {"IQ4_NL", 0, 0}, [21] = {"IQ3_S", 0, 0},   [22] = {"IQ2_S", 0, 0},
    [23] = {"IQ4_XS", 0, 0}, [24] = {"I8", 0, 0},      [25] = {"I16", 0, 0},
    [26] = {"I32", 0, 0},    [27] = {"I64", 0, 0},     [28] = {"F64", 0, 0},
    [29] = {"IQ1_M", 0, 0},  [30] = {"BF16", 0, 2},    [34] = {"TQ1_0", 0, 0},
    [35] = {"TQ2_0", 0, 0},  [39] = {"MXFP4", 0, 0},
};
#define N_TYPE_ROWS (sizeof type_rows / sizeof *type_rows)

const char *ifl_gguf_type_name(uint32_t type) {
    return type < N_TYPE_ROWS && type_rows[type].name ? type_rows[type].name : "unknown";
}

bool ifl_gguf_type_block(uint32_t type, int32_t *n_elements, int32_t *n_bytes) {
    if (type >= N_TYPE_ROWS || type_rows[type].n_bytes == 0) return false;
    *n_elements = 1 << type_rows[type].n_elements_log2;
    *n_bytes = type_rows[type].n_bytes;
    return true;
}

static uint16_t load_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}
static float load_f16(const uint8_t *p) {
    return ifl_f16_to_f32(load_u16(p));
}

static uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* 32 elements: f16 scale, 16 bytes; byte j holds element j low and j + 16 high. */
static void dequant_q4_0(const uint8_t *b, float *out) {
    float d = load_f16(b);
    for (int j = 0; j < 16; j++) {
        out[j] = (float)((b[2 + j] & 15) - 8) * d;
        out[j + 16] = (float)((b[2 + j] >> 4) - 8) * d;
    }
}

/* As Q4_0, with the fifth bits of all 32 elements in one word after the scale. */
static void dequant_q5_0(const uint8_t *b, float *out) {
    float d = load_f16(b);
    uint32_t high = load_u32(b + 2);
    for (int j = 0; j < 16; j++) {
        int lo = (b[6 + j] & 15) | (int)((high >> j) & 1) << 4;
        int hi = (b[6 + j] >> 4) | (int)((high >> (j + 16)) & 1) << 4;
        out[j] = (float)(lo - 16) * d;
        out[j + 16] = (float)(hi - 16) * d;
    }
}

static void dequant_q8_0(const uint8_t *b, float *out) {
    float d = load_f16(b);
    for (int j = 0; j < 32; j++)
        out[j] = (float)(int8_t)b[2 + j] * d;
}

/* The 6-bit scale and minimum of sub-block k, of 8, from the 12 packed bytes of Q4_K and Q5_K. */
static void k_scale(const uint8_t *s, int k, int *scale, int *min) {
    if (k < 4) {
        *scale = s[k] & 63;
        *min = s[k + 4] & 63;
    } else {
        *scale = (s[k + 4] & 15) | (s[k - 4] >> 6) << 4;
        *min = (s[k + 4] >> 4) | (s[k] >> 6) << 4;
    }
}

/* 256 elements: f16 d, f16 dmin, 12 bytes of scales, 128 bytes. Each 32 bytes hold two sub-blocks.
 */
static void dequant_q4_k(const uint8_t *b, float *out) {
    float d = load_f16(b), dmin = load_f16(b + 2);
    for (int k = 0; k < 8; k++) {
        const uint8_t *q = b + 16 + 32 * (k / 2);
        int scale, min;
        k_scale(b + 4, k, &scale, &min);
        float ds = d * (float)scale, dm = dmin * (float)min;
        for (int j = 0; j < 32; j++)
            out[32 * k + j] = ds * (float)(k % 2 ? q[j] >> 4 : q[j] & 15) - dm;
    }
}

/* As Q4_K, with 32 bytes before the low bits: bit k of byte j is the fifth bit of element 32 k + j.
 */
static void dequant_q5_k(const uint8_t *b, float *out) {
    float d = load_f16(b), dmin = load_f16(b + 2);
    const uint8_t *high = b + 16;
    for (int k = 0; k < 8; k++) {
        const uint8_t *q = b + 48 + 32 * (k / 2);
        int scale, min;
        k_scale(b + 4, k, &scale, &min);
        float ds = d * (float)scale, dm = dmin * (float)min;
        for (int j = 0; j < 32; j++) {
            int value = (k % 2 ? q[j] >> 4 : q[j] & 15) | ((high[j] >> k) & 1) << 4;
            out[32 * k + j] = ds * (float)value - dm;
        }
    }
}

/* 256 elements: 128 bytes of low bits, 64 of high pairs, 16 signed scales, f16 d. In each half,
 * byte l of the high bits serves elements l, l + 32, l + 64 and l + 96. */
static void dequant_q6_k(const uint8_t *b, float *out) {
    float d = load_f16(b + 208);
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = b + 64 * half, *high = b + 128 + 32 * half;
        const int8_t *scale = (const int8_t *)(b + 192 + 8 * half);
        float *y = out + 128 * half;
        for (int quarter = 0; quarter < 4; quarter++)
            for (int l = 0; l < 32; l++) {
                uint8_t byte = low[l + 32 * (quarter & 1)];
                int value = (quarter < 2 ? byte & 15 : byte >> 4) | ((high[l] >> (2 * quarter)) & 3)
                                                                        << 4;
                float ds = d * (float)scale[2 * quarter + l / 16];
                y[32 * quarter + l] = ds * (float)(value - 32);
            }
    }
}

void ifl_gguf_dequant(ifl_gguf_type type, const uint8_t *blocks, int64_t n_blocks, float *out) {
    int32_t n = 0, n_bytes = 0;
    IFL_ASSERT(ifl_gguf_type_block(type, &n, &n_bytes)); /* opening refuses the others */
    for (int64_t i = 0; i < n_blocks; i++, blocks += n_bytes, out += n) {
        switch (type) {
        case IFL_GGUF_F32:
            memcpy(out, blocks, 4);
            break;
        case IFL_GGUF_F16:
            *out = load_f16(blocks);
            break;
        case IFL_GGUF_BF16:
            *out = ifl_bf16_to_f32(load_u16(blocks));
            break;
        case IFL_GGUF_Q4_0:
            dequant_q4_0(blocks, out);
            break;
        case IFL_GGUF_Q5_0:
            dequant_q5_0(blocks, out);
            break;
        case IFL_GGUF_Q8_0:
            dequant_q8_0(blocks, out);
            break;
        case IFL_GGUF_Q4_K:
            dequant_q4_k(blocks, out);
            break;
        case IFL_GGUF_Q5_K:
            dequant_q5_k(blocks, out);
            break;
        case IFL_GGUF_Q6_K:
            dequant_q6_k(blocks, out);
            break;
        }
    }
}
