/* What this instruction set can do at most: the yardsticks of kernels/bench_ops.c. */

/* Twelve independent chains of 16 lanes (fewer would wait for the latency of an fma); returns the
 * number of floating-point operations done. *out keeps the work from being removed. */
int64_t IFL_PEAK_FMA(int64_t iterations, float *out) {
    lanes acc[12], a = lanes_set(0.999f), b = lanes_set(*out);
    for (int i = 0; i < 12; i++)
        acc[i] = lanes_set((float)i);
    for (int64_t n = 0; n < iterations; n++) {
#pragma GCC unroll 12
        for (int i = 0; i < IFL_PEAK_CHAINS; i++)
            acc[i] = lanes_fma(acc[i], a, b);
    }
    lanes sum = lanes_zero();
    for (int i = 0; i < IFL_PEAK_CHAINS; i++)
        sum = lanes_add(sum, acc[i]);
    *out = lanes_tree(sum);
    return iterations * IFL_PEAK_CHAINS * IFL_LANES * 2;
}

/* Reads n floats (a multiple of 256) once, as four streams side by side: one core's prefetchers bring four streams
 * faster than one (22 against 15 GB/s on a Zen 3). */
float IFL_PEAK_READ(const float *x, int64_t n) {
    lanes max[4];
    int64_t stream = n / 4;
    for (int i = 0; i < 4; i++)
        max[i] = lanes_zero();
    for (int64_t i = 0; i + 64 <= stream; i += 64) {
        const float *at = x + i;
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++, at += stream) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                max[j] = lanes_max(lanes_load(at + j * 16), max[j]);
        }
    }
    return lanes_tree(lanes_max(lanes_max(max[0], max[1]), lanes_max(max[2], max[3])));
}
