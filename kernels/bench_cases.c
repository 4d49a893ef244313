#include "kernels/bench_cases.h"

#include <stdio.h>
#include <string.h>

#include "common/memory.h"

enum {
    TASK_ROWS = 192, /* of one task of a product, as in forward.c and trainer.c */
    TASKS_A_THREAD = 8,
    HEAD_LD = IFL_VOCAB_BLOCK + 16,
    ELEMENTS = 8192,     /* of an elementwise case: a few arrays of them lie in L2 */
    ROW_ELEMENTS = 1024, /* of a row of a norm */
};

#define MATMUL(m, n, k)                                                                            \
    { IFL_BENCH_MATMUL, NULL, m, n, k, 0, 0, false }
#define LAYER(m, n, k)                                                                             \
    { IFL_BENCH_MATMUL, NULL, m, n, k, 0, 0, true }
#define HEAD(m, n, k)                                                                              \
    { IFL_BENCH_HEAD, NULL, m, n, k, 0, 0, true }
#define LAYER_ROWS(n, k)                                                                           \
    LAYER(1, n, k), LAYER(8, n, k), LAYER(32, n, k), LAYER(128, n, k), LAYER(512, n, k)
#define ATTENTION(m, n, keys, d, page, streamed)                                                   \
    { IFL_BENCH_ATTENTION, NULL, m, n, keys, d, page, streamed }
#define ELEMENTWISE(op)                                                                            \
    { IFL_BENCH_ELEMENTWISE, op, 1, ELEMENTS, 1, 0, 0, false }

static const ifl_bench_case cases[] = {
    /* The small policy, weights in cache. */
    MATMUL(1, 384, 128),
    MATMUL(8, 384, 128),
    MATMUL(32, 384, 128),
    MATMUL(256, 384, 128),
    MATMUL(32, 16, 128),
    /* Gemma-3-270M: q, k and v, o, gate and up, down, head. */
    LAYER_ROWS(1024, 640),
    LAYER_ROWS(256, 640),
    LAYER_ROWS(640, 1024),
    LAYER_ROWS(2048, 640),
    LAYER_ROWS(640, 2048),
    HEAD(1, 262144, 640),
    HEAD(8, 262144, 640),
    HEAD(32, 262144, 640),
    HEAD(128, 262144, 640),
    HEAD(512, 262144, 640),
    {IFL_BENCH_DX, NULL, 256, 128, 384, 0, 0, false},
    {IFL_BENCH_DX, NULL, 512, 640, 2048, 0, 0, false},
    {IFL_BENCH_DX, NULL, 512, 2048, 640, 0, 0, false},
    {IFL_BENCH_DW, NULL, 384, 128, 256, 0, 0, false},
    {IFL_BENCH_DW, NULL, 2048, 640, 512, 0, 0, false},
    {IFL_BENCH_DW, NULL, 640, 2048, 512, 0, 0, false},
    ATTENTION(16, 1, 256, 32, 16, false),
    ATTENTION(16, 4, 512, 256, 16, true),
    ATTENTION(32, 4, 160, 256, 16, true),
    ATTENTION(4, 4, 8192, 256, 16, true),
    ATTENTION(1, 64, 512, 256, 16, false),
    ATTENTION(1, 64, 512, 256, 1, false),
    ATTENTION(1, 64, 256, 32, 1, false),
    ELEMENTWISE("rmsnorm"),
    ELEMENTWISE("rope"),
    ELEMENTWISE("silu_mul"),
    ELEMENTWISE("gelu_mul"),
    ELEMENTWISE("add"),
    ELEMENTWISE("round"),
    ELEMENTWISE("exp"),
    ELEMENTWISE("log"),
    ELEMENTWISE("temper"),
    ELEMENTWISE("block_lse"),
    ELEMENTWISE("rmsnorm_backward"),
    ELEMENTWISE("gelu_mul_backward"),
    ELEMENTWISE("softmax_backward"),
    ELEMENTWISE("logprob_backward"),
    ELEMENTWISE("adamw"),
};

const ifl_bench_case *ifl_bench_cases(int32_t *n) {
    *n = sizeof cases / sizeof *cases;
    return cases;
}

void ifl_bench_case_name(char *name, size_t size, const ifl_bench_case *c) {
    static const char *const kinds[] = {"matmul", "head", "matmul_f32 dX", "matmul_f32 dW",
                                        "attention"};
    if (c->kind == IFL_BENCH_ELEMENTWISE)
        snprintf(name, size, "%s %lld elements", c->op, (long long)c->n);
    else if (c->kind == IFL_BENCH_ATTENTION)
        snprintf(name, size, "attention %lldx%lld rows %lld keys D %lld page %d", (long long)c->m,
                 (long long)c->n, (long long)c->k, (long long)c->head_dim, (int)c->page_tokens);
    else
        snprintf(name, size, "%s M %lld N %lld K %lld", kinds[c->kind], (long long)c->m,
                 (long long)c->n, (long long)c->k);
}

double ifl_bench_case_flop(const ifl_bench_case *c) {
    double products = (double)c->m * (double)c->n * (double)c->k;
    if (c->kind == IFL_BENCH_ELEMENTWISE) return 0;
    return c->kind == IFL_BENCH_ATTENTION ? 4.0 * products * (double)c->head_dim : 2.0 * products;
}

int64_t ifl_bench_case_elements(const ifl_bench_case *c) {
    return c->kind == IFL_BENCH_ATTENTION ? c->m * c->n * c->head_dim : c->m * c->n;
}

/* Bytes of the operand that is streamed: weights, keys with values, f32 panels. */
static int64_t operand_bytes(const ifl_bench_case *c, ifl_profile profile) {
    switch (c->kind) {
    case IFL_BENCH_MATMUL:
    case IFL_BENCH_HEAD:
        return 2 * ifl_panels_elements(c->n, c->k);
    case IFL_BENCH_DX:
    case IFL_BENCH_DW:
        return 4 * ifl_panels(c->n) * c->k * IFL_PANEL;
    case IFL_BENCH_ATTENTION:
        return c->m * c->k * c->head_dim * 2 * ifl_kv_element_bytes(profile);
    case IFL_BENCH_ELEMENTWISE:
        break;
    }
    return 4 * c->n;
}

double ifl_bench_case_bytes(const ifl_bench_case *c, ifl_profile profile) {
    double m = (double)c->m, n = (double)c->n, k = (double)c->k;
    double operand = (double)operand_bytes(c, profile);
    switch (c->kind) {
    case IFL_BENCH_MATMUL:
        return operand + 4.0 * m * (n + k);
    case IFL_BENCH_HEAD: /* its outputs stay in cache */
        return operand + 4.0 * m * k;
    case IFL_BENCH_DX:
        return operand + 4.0 * m * (n + k);
    case IFL_BENCH_DW: /* reads what it adds to */
        return operand + 4.0 * m * (2 * n + k);
    case IFL_BENCH_ATTENTION:
        return operand + 8.0 * m * n * (double)c->head_dim;
    case IFL_BENCH_ELEMENTWISE:
        break;
    }
    return 0;
}

/* --- Operands
 * ------------------------------------------------------------------------------------- */

struct ifl_bench_run {
    const ifl_ops *ops;
    ifl_thread_pool *pool;
    ifl_bench_case c;
    float *a, *y;   /* inputs and outputs of the products; queries and outputs of attention */
    float *more[3]; /* of elementwise cases */
    uint16_t *own;  /* the operand, when no memory was given */
    int32_t *pages, *pos;
    const char *operand; /* the one that is taken now */
    const char *first;   /* and all of them */
    int64_t operand_step, n_operands, next_operand;
    int64_t row_tiles, panels_a_task, n_tasks;
};

static bool numbers_make(float **out, int64_t n, int64_t period, float scale) {
    *out = ifl_alloc((size_t)n, sizeof(float));
    for (int64_t i = 0; *out && i < n; i++)
        (*out)[i] = (float)(i % period - period / 2) * scale;
    return *out != NULL;
}

/* bf16 values of order 1; two of them make a float of order 1 too. */
static bool operand_make(ifl_bench_run *run, int64_t n_bytes) {
    run->own = ifl_alloc((size_t)n_bytes, 1);
    int64_t n = n_bytes / 2, block = n < 4096 ? n : 4096;
    for (int64_t i = 0; run->own && i < block; i++)
        run->own[i] = (uint16_t)(0x3f00 + i % 127);
    /* Copied: a loop over a head's weights would take an instruction counter longer than the op. */
    for (int64_t i = block; run->own && i < n; i += block)
        memcpy(run->own + i, run->own, (size_t)(n - i < block ? n - i : block) * 2);
    return run->own != NULL;
}

static void tasks_cut(ifl_bench_run *run) {
    const ifl_bench_case *c = &run->c;
    int n_threads = ifl_thread_pool_size(run->pool);
    int64_t panels = ifl_panels(c->n), want = TASKS_A_THREAD * n_threads;
    run->row_tiles = (c->m + TASK_ROWS - 1) / TASK_ROWS;
    if (c->kind == IFL_BENCH_HEAD)
        run->panels_a_task = IFL_VOCAB_BLOCK / IFL_PANEL;
    else if (n_threads == 1)
        run->panels_a_task = panels;
    else
        run->panels_a_task = panels * run->row_tiles / want;
    if (run->panels_a_task < 1) run->panels_a_task = 1;
    run->n_tasks = (panels + run->panels_a_task - 1) / run->panels_a_task * run->row_tiles;
}

static bool attention_make(ifl_bench_run *run) {
    const ifl_bench_case *c = &run->c;
    int64_t n_pages = c->m * c->k / c->page_tokens;
    run->pages = ifl_alloc((size_t)n_pages, sizeof *run->pages);
    run->pos = ifl_alloc((size_t)c->n, sizeof *run->pos);
    if (!run->pages || !run->pos) return false;
    /* Neighbouring pages of a sequence lie apart, as they do in a running cache. */
    for (int64_t i = 0; i < n_pages; i++)
        run->pages[i] = (int32_t)(i * 7919 % n_pages);
    for (int64_t r = 0; r < c->n; r++)
        run->pos[r] = (int32_t)(c->k - 1);
    return true;
}

static bool run_make(ifl_bench_run *run, const void *memory, int64_t n_memory_bytes) {
    const ifl_bench_case *c = &run->c;
    int64_t y = ifl_bench_case_elements(c), a = c->kind == IFL_BENCH_ATTENTION ? y : c->m * c->k,
            n_operand = operand_bytes(c, run->ops->profile);
    if (c->kind == IFL_BENCH_HEAD)
        y = (int64_t)ifl_thread_pool_size(run->pool) * TASK_ROWS * HEAD_LD;
    if (c->kind == IFL_BENCH_ELEMENTWISE) {
        a = c->n;
        for (int i = 0; i < 3; i++)
            if (!numbers_make(&run->more[i], c->n, 239, 0x1p-8f)) return false;
        bool turns = strcmp(c->op, "rope") == 0;
        for (int64_t i = 0; i < c->n; i++) {
            run->more[2][i] += 1; /* log and adamw want positive ones */
            if (!turns) continue;
            run->more[0][i] = 0.8f; /* a rotation: x keeps its order however often it is turned */
            run->more[1][i] = 0.6f;
        }
    }
    if (!numbers_make(&run->a, a, 251, 0x1p-8f) || !numbers_make(&run->y, y, 241, 0x1p-8f))
        return false;
    if (c->kind == IFL_BENCH_ATTENTION && !attention_make(run)) return false;
    run->n_operands = 1;
    run->operand_step = (n_operand + 63) / 64 * 64;
    if (c->streamed && memory && n_memory_bytes >= n_operand) {
        run->first = memory;
        run->n_operands = n_memory_bytes / run->operand_step;
        if (run->n_operands < 1) run->n_operands = 1;
    } else {
        if (!operand_make(run, n_operand)) return false;
        run->first = (const char *)run->own;
    }
    tasks_cut(run);
    return true;
}

ifl_status ifl_bench_run_create(ifl_bench_run **out, const ifl_bench_case *c, const ifl_ops *ops,
                                ifl_thread_pool *pool, const void *memory, int64_t n_memory_bytes,
                                ifl_error *err) {
    *out = NULL;
    ifl_bench_run *run = ifl_alloc(1, sizeof *run);
    if (!run) return ifl_fail(err, IFL_NOMEM, "bench: out of memory");
    run->ops = ops;
    run->pool = pool;
    run->c = *c;
    if (!run_make(run, memory, n_memory_bytes)) {
        char name[96];
        ifl_bench_case_name(name, sizeof name, c);
        ifl_bench_run_free(run);
        return ifl_fail(err, IFL_NOMEM, "bench: out of memory for the operands of %s", name);
    }
    *out = run;
    return IFL_OK;
}

void ifl_bench_run_free(ifl_bench_run *run) {
    if (!run) return;
    ifl_free(run->a);
    ifl_free(run->y);
    for (int i = 0; i < 3; i++)
        ifl_free(run->more[i]);
    ifl_free(run->own);
    ifl_free(run->pages);
    ifl_free(run->pos);
    ifl_free(run);
}

/* --- One repetition
 * ------------------------------------------------------------------------------- */

static void product_range(void *context, int64_t begin, int64_t end, int thread) {
    ifl_bench_run *run = context;
    const ifl_bench_case *c = &run->c;
    int64_t panels = ifl_panels(c->n);
    for (int64_t task = begin; task < end; task++) {
        int64_t row = task % run->row_tiles * TASK_ROWS;
        int64_t panel = task / run->row_tiles * run->panels_a_task,
                last = panel + run->panels_a_task;
        int64_t rows = c->m - row < TASK_ROWS ? c->m - row : TASK_ROWS;
        if (last > panels) last = panels;
        float *y = run->y + row * c->n;
        if (c->kind == IFL_BENCH_MATMUL) {
            run->ops->matmul(y, c->n, run->a + row * c->k, c->k, (const uint16_t *)run->operand,
                             rows, c->n, c->k, panel, last);
        } else if (c->kind == IFL_BENCH_HEAD) {
            /* As a matrix of its own: every block writes to the same tile. */
            const uint16_t *w = (const uint16_t *)run->operand + panel * ifl_panel_elements(c->k);
            int64_t n = c->n - panel * IFL_PANEL;
            run->ops->matmul(run->y + (int64_t)thread * TASK_ROWS * HEAD_LD, HEAD_LD,
                             run->a + row * c->k, c->k, w, rows,
                             n < IFL_VOCAB_BLOCK ? n : IFL_VOCAB_BLOCK, c->k, 0, last - panel);
        } else if (c->kind == IFL_BENCH_DX) {
            run->ops->matmul_f32(y, c->n, run->a + row * c->k, c->k, 1, (const float *)run->operand,
                                 rows, c->n, c->k, panel, last, false);
        } else {
            run->ops->matmul_f32(y, c->n, run->a + row, 1, c->m, (const float *)run->operand, rows,
                                 c->n, c->k, panel, last, true);
        }
    }
}

static void attention_range(void *context, int64_t begin, int64_t end, int thread) {
    ifl_bench_run *run = context;
    const ifl_bench_case *c = &run->c;
    (void)thread;
    int64_t n_pages = c->k / c->page_tokens, half = c->page_tokens * c->head_dim;
    for (int64_t s = begin; s < end; s++) {
        const void *k = run->operand,
                   *v = run->operand + half * ifl_kv_element_bytes(run->ops->profile);
        ifl_kv_view view = {k, v, 2 * half, run->pages + s * n_pages, c->page_tokens};
        const float *q[IFL_ATTENTION_ROWS_MAX];
        float *o[IFL_ATTENTION_ROWS_MAX];
        for (int64_t r = 0; r < c->n; r++) {
            q[r] = run->a + (s * c->n + r) * c->head_dim;
            o[r] = run->y + (s * c->n + r) * c->head_dim;
        }
        run->ops->attention(o, q, run->pos, c->n, &view, c->head_dim, 0.0625f, 0, NULL);
    }
}

static void elementwise_once(ifl_bench_run *run) {
    const ifl_ops *ops = run->ops;
    const char *op = run->c.op;
    int64_t n = run->c.n, d = ROW_ELEMENTS, rows = n / d;
    float *x = run->a, *y = run->y, *b = run->more[0], *e = run->more[1], *f = run->more[2];
    const ifl_lse lse = {1, 1000};
    if (!strcmp(op, "rmsnorm"))
        ops->rmsnorm(y, d, x, d, b, 0, 1e-6f, rows, d, NULL);
    else if (!strcmp(op, "rope"))
        ops->rope(y, 256, b, e, n / 256, 256);
    else if (!strcmp(op, "silu_mul"))
        ops->silu_mul(y, x, b, n);
    else if (!strcmp(op, "gelu_mul"))
        ops->gelu_mul(y, x, b, n);
    else if (!strcmp(op, "add"))
        ops->add(y, x, n);
    else if (!strcmp(op, "round"))
        ops->round(y, n);
    else if (!strcmp(op, "exp"))
        ops->exp(y, x, n);
    else if (!strcmp(op, "log"))
        ops->log(y, f, n);
    else if (!strcmp(op, "temper"))
        ops->temper(y, x, 0.7f, 0, n);
    else if (!strcmp(op, "block_lse"))
        for (int64_t i = 0; i < n; i += IFL_VOCAB_BLOCK)
            ops->block_lse(x + i, n - i < IFL_VOCAB_BLOCK ? n - i : IFL_VOCAB_BLOCK, y + i);
    else if (!strcmp(op, "rmsnorm_backward"))
        ops->rmsnorm_backward(y, d, f, x, d, b, d, e, 0, x + d, rows, d, false);
    else if (!strcmp(op, "gelu_mul_backward"))
        ops->gelu_mul_backward(y, f, x, b, e, n);
    else if (!strcmp(op, "softmax_backward"))
        ops->softmax_backward(y, f, x, b, 0.0625f, lse, 0.5f, n);
    else if (!strcmp(op, "logprob_backward"))
        ops->logprob_backward(y, x, 0.5f, lse, 3, n);
    else if (!strcmp(op, "adamw"))
        ops->adamw(y, e, f, (uint16_t *)b, x, 1, 1e-6f, 0.9f, 0.95f, 1e-8f, 0, 0.1f, 0.05f, n);
    else
        IFL_ASSERT(!"an elementwise case without its op");
}

void ifl_bench_run_once(ifl_bench_run *run) {
    run->operand = run->first + run->next_operand * run->operand_step;
    run->next_operand = (run->next_operand + 1) % run->n_operands;
    if (run->c.kind == IFL_BENCH_ELEMENTWISE)
        elementwise_once(run);
    else if (run->c.kind == IFL_BENCH_ATTENTION)
        ifl_parallel_for(run->pool, run->c.m, 1, attention_range, run);
    else
        ifl_parallel_for(run->pool, run->n_tasks, 1, product_range, run);
}

void ifl_bench_run_seek(ifl_bench_run *run, int64_t offset_bytes) {
    run->next_operand = offset_bytes / run->operand_step % run->n_operands;
}
