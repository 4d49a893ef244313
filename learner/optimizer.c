#include "learner/optimizer.h"

#include <math.h>
#include <string.h>

#include "common/bf16.h"
#include "common/fail_point.h"
#include "common/memory.h"

/* Elements of one chunk. A constant: the norm is a sum over chunks in order, so this decides its
 * bits. */
#define CHUNK 65536

struct ifl_optimizer {
    const ifl_model *model; /* borrowed, as pool and ops */
    ifl_thread_pool *pool;
    const ifl_ops *ops;
    ifl_optimizer_options options;
    float *masters, *moment1, *moment2; /* [n_elements] */
    uint16_t *bf16;                     /* [n_elements], or NULL until somebody asks for it */
    int64_t n_chunks;
    double *chunk_squares; /* [n_chunks] */
    int64_t n_updates, n_refused;
    bool has_frozen;
};

ifl_status ifl_optimizer_options_check(const ifl_optimizer_options *o, ifl_error *err) {
    const struct {
        const char *key;
        double value, min, max;
    } ranges[] = {
        {"learning_rate", o->learning_rate, 0.0, 10.0}, {"beta1", o->beta1, 0.0, 0.999999},
        {"beta2", o->beta2, 0.0, 0.99999999},           {"adam_eps", o->eps, 1e-20, 1.0},
        {"weight_decay", o->weight_decay, 0.0, 10.0},   {"grad_clip", o->grad_clip, 0.0, 1e9},
        {"final_ratio", o->final_ratio, 0.0, 1.0},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (!(ranges[i].value >= ranges[i].min && ranges[i].value <= ranges[i].max))
            return ifl_fail(err, IFL_USAGE, "optimizer: %s is %g, wanted %g to %g", ranges[i].key,
                            ranges[i].value, ranges[i].min, ranges[i].max);
    if (o->warmup_steps < 0)
        return ifl_fail(err, IFL_USAGE, "optimizer: warmup_steps is %lld, wanted 0 or more",
                        (long long)o->warmup_steps);
    if (o->schedule == IFL_SCHEDULE_LINEAR && o->total_steps < 1)
        return ifl_fail(err, IFL_USAGE,
                        "optimizer: a linear schedule over %lld steps, wanted 1 or more",
                        (long long)o->total_steps);
    return IFL_OK;
}

double ifl_optimizer_rate(const ifl_optimizer_options *options, int64_t t) {
    double rate = options->learning_rate;
    if (t < options->warmup_steps) rate *= (double)t / (double)options->warmup_steps;
    if (options->schedule == IFL_SCHEDULE_LINEAR)
        rate *= fmax(options->final_ratio, 1.0 - (double)(t - 1) / (double)options->total_steps);
    return rate;
}

int64_t ifl_optimizer_bytes(const ifl_model *model) {
    return model->n_elements * (int64_t)(3 * sizeof(float));
}

ifl_status ifl_optimizer_create(ifl_optimizer **out, const ifl_model *model,
                                const ifl_optimizer_options *options, ifl_thread_pool *pool,
                                const ifl_ops *ops, ifl_error *err) {
    *out = NULL;
    IFL_TRY(ifl_optimizer_options_check(options, err));
    if (!ops->adamw || !ops->sum_squares)
        return ifl_fail(err, IFL_UNSUPPORTED, "optimizer: implementation %s has no adamw",
                        ops->name);
    ifl_optimizer *optimizer = ifl_alloc(1, sizeof *optimizer);
    if (!optimizer) return ifl_fail(err, IFL_NOMEM, "optimizer: out of memory");
    size_t n = (size_t)model->n_elements;
    optimizer->model = model;
    optimizer->pool = pool;
    optimizer->ops = ops;
    optimizer->options = *options;
    optimizer->n_chunks = (model->n_elements + CHUNK - 1) / CHUNK;
    optimizer->masters = ifl_alloc(n, sizeof(float));
    optimizer->moment1 = ifl_alloc(n, sizeof(float));
    optimizer->moment2 = ifl_alloc(n, sizeof(float));
    optimizer->chunk_squares = ifl_alloc((size_t)optimizer->n_chunks, sizeof(double));
    if (!optimizer->masters || !optimizer->moment1 || !optimizer->moment2 ||
        !optimizer->chunk_squares) {
        ifl_optimizer_free(optimizer);
        return ifl_fail(err, IFL_NOMEM,
                        "optimizer: out of memory, wanted %lld bytes for %lld elements",
                        (long long)ifl_optimizer_bytes(model), (long long)model->n_elements);
    }
    for (int32_t i = 0; i < model->n_params; i++)
        optimizer->has_frozen |= !model->params[i].trainable;
    *out = optimizer;
    return IFL_OK;
}

void ifl_optimizer_free(ifl_optimizer *optimizer) {
    if (!optimizer) return;
    ifl_free(optimizer->masters);
    ifl_free(optimizer->moment1);
    ifl_free(optimizer->moment2);
    ifl_free(optimizer->bf16);
    ifl_free(optimizer->chunk_squares);
    ifl_free(optimizer);
}

/* --- Loops over the flat order
 * ---------------------------------------------------------------------- */

/* The parameter that holds element `at`. */
static int32_t model_param_at(const ifl_model *model, int64_t at) {
    int32_t low = 0, high = model->n_params - 1;
    while (low < high) {
        int32_t mid = low + (high - low + 1) / 2;
        if (model->params[mid].offset <= at)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

/* Ends of the piece of [at, end) that lies inside parameter p. */
static int64_t param_piece_end(const ifl_param *p, int64_t end) {
    int64_t param_end = p->offset + p->spec.rows * p->spec.cols;
    return param_end < end ? param_end : end;
}

void ifl_optimizer_refresh(ifl_optimizer *optimizer, int64_t n_updates) {
    optimizer->n_updates = n_updates;
}

#define ROUNDED 8192 /* elements rounded at a time, on the stack */

static void optimizer_clear_moments(ifl_optimizer *optimizer) {
    size_t bytes = (size_t)optimizer->model->n_elements * sizeof(float);
    memset(optimizer->moment1, 0, bytes);
    memset(optimizer->moment2, 0, bytes);
}

void ifl_optimizer_start(ifl_optimizer *optimizer, const ifl_weights *weights) {
    int64_t n = optimizer->model->n_elements;
    uint16_t piece[ROUNDED];
    for (int64_t at = 0; at < n; at += ROUNDED) {
        int64_t n_piece = n - at < ROUNDED ? n - at : ROUNDED;
        ifl_weights_get(weights, at, n_piece, piece);
        for (int64_t i = 0; i < n_piece; i++)
            optimizer->masters[at + i] = ifl_bf16_to_f32(piece[i]);
    }
    optimizer_clear_moments(optimizer);
    optimizer->n_updates = 0;
}

typedef struct step_work {
    ifl_optimizer *optimizer;
    const float *gradients;
    float grad_scale, rate, bias1, bias2;
} step_work;

static void squares_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const step_work *work = context;
    ifl_optimizer *optimizer = work->optimizer;
    const ifl_model *model = optimizer->model;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        int64_t from = chunk * CHUNK, to = from + CHUNK;
        if (to > model->n_elements) to = model->n_elements;
        double sum = 0.0;
        if (!optimizer->has_frozen) {
            sum = optimizer->ops->sum_squares(work->gradients + from, to - from);
        } else {
            for (int32_t p = model_param_at(model, from); from < to; p++) {
                int64_t piece_end = param_piece_end(&model->params[p], to);
                if (model->params[p].trainable)
                    sum += optimizer->ops->sum_squares(work->gradients + from, piece_end - from);
                from = piece_end;
            }
        }
        optimizer->chunk_squares[chunk] = sum;
    }
}

static void update_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const step_work *work = context;
    ifl_optimizer *optimizer = work->optimizer;
    const ifl_optimizer_options *o = &optimizer->options;
    const ifl_model *model = optimizer->model;
    for (int32_t p = model_param_at(model, begin); begin < end; p++) {
        const ifl_param *param = &model->params[p];
        int64_t piece_end = param_piece_end(param, end);
        if (param->trainable)
            optimizer->ops->adamw(optimizer->masters + begin, optimizer->moment1 + begin,
                                  optimizer->moment2 + begin, NULL, work->gradients + begin,
                                  work->grad_scale, work->rate, (float)o->beta1, (float)o->beta2,
                                  (float)o->eps,
                                  param->spec.is_matrix ? (float)o->weight_decay : 0.0f,
                                  work->bias1, work->bias2, piece_end - begin);
        begin = piece_end;
    }
}

static ifl_status optimizer_refuse(ifl_optimizer *optimizer, const float *gradients,
                                   ifl_error *err) {
    const ifl_model *model = optimizer->model;
    optimizer->n_refused++;
    for (int32_t p = 0; p < model->n_params; p++) {
        const ifl_param *param = &model->params[p];
        int64_t n = param->spec.rows * param->spec.cols;
        for (int64_t i = 0; param->trainable && i < n; i++)
            if (!isfinite(gradients[param->offset + i]))
                return ifl_fail(
                    err, IFL_LIMIT,
                    "update %lld refused: the gradient of %s is %g at element %lld; the "
                    "weights are unchanged (a lower learning rate or grad_clip helps if "
                    "this comes back)",
                    (long long)optimizer->n_updates + 1, param->spec.name,
                    (double)gradients[param->offset + i], (long long)i);
    }
    return ifl_fail(
        err, IFL_LIMIT,
        "update %lld refused: the norm of the gradient overflows; the weights are unchanged",
        (long long)optimizer->n_updates + 1);
}

ifl_status ifl_optimizer_step(ifl_optimizer *optimizer, const float *gradients,
                              ifl_optimizer_report *report, ifl_error *err) {
    const ifl_optimizer_options *o = &optimizer->options;
    int64_t t = optimizer->n_updates + 1;
    step_work work = {.optimizer = optimizer, .gradients = gradients};
    ifl_parallel_for(optimizer->pool, optimizer->n_chunks, 1, squares_range, &work);
    double squares = 0.0;
    for (int64_t chunk = 0; chunk < optimizer->n_chunks; chunk++)
        squares += optimizer->chunk_squares[chunk];
    double norm = sqrt(squares), scale = 1.0;
    /* The 1e-6 is torch.nn.utils.clip_grad_norm_'s. */
    if (o->grad_clip > 0.0 && norm > o->grad_clip) scale = o->grad_clip / (norm + 1e-6);

    ifl_status st = IFL_OK;
    ifl_fail_point(IFL_FAIL_STEP_GRADIENTS);
    if (isfinite(norm)) {
        work.grad_scale = (float)scale;
        work.rate = (float)ifl_optimizer_rate(o, t);
        work.bias1 = (float)(1.0 - pow(o->beta1, (double)t));
        work.bias2 = (float)(1.0 - pow(o->beta2, (double)t));
        ifl_parallel_for(optimizer->pool, optimizer->model->n_elements, CHUNK, update_range, &work);
        optimizer->n_updates = t;
        ifl_fail_point(IFL_FAIL_STEP_UPDATED);
    } else {
        scale = 0.0;
        st = optimizer_refuse(optimizer, gradients, err);
    }
    if (report)
        *report = (ifl_optimizer_report){.grad_norm = norm,
                                         .grad_scale = scale,
                                         .learning_rate = ifl_optimizer_rate(o, t),
                                         .n_updates = optimizer->n_updates,
                                         .n_refused = optimizer->n_refused};
    return st;
}

static void round_piece(uint16_t *out, const float *masters, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        out[i] = ifl_bf16_from_f32(masters[i]);
}

typedef struct publish_work {
    const ifl_optimizer *optimizer;
    ifl_weights *weights;
} publish_work;

static void publish_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const publish_work *work = context;
    uint16_t piece[ROUNDED];
    for (int64_t at = begin; at < end; at += ROUNDED) {
        int64_t n = end - at < ROUNDED ? end - at : ROUNDED;
        round_piece(piece, work->optimizer->masters + at, n);
        ifl_weights_put(work->weights, at, n, piece);
    }
}

void ifl_optimizer_publish(ifl_optimizer *optimizer, ifl_weights *weights, int64_t version) {
    IFL_ASSERT(weights->model == optimizer->model);
    publish_work work = {optimizer, weights};
    ifl_parallel_for(optimizer->pool, optimizer->model->n_elements, CHUNK, publish_range, &work);
    weights->version = version;
}

const uint16_t *ifl_optimizer_bf16(ifl_optimizer *optimizer) {
    int64_t n = optimizer->model->n_elements;
    if (!optimizer->bf16) optimizer->bf16 = ifl_alloc((size_t)n, sizeof(uint16_t));
    if (optimizer->bf16) round_piece(optimizer->bf16, optimizer->masters, n);
    return optimizer->bf16;
}

float *ifl_optimizer_masters(ifl_optimizer *optimizer) {
    return optimizer->masters;
}

float *ifl_optimizer_moment1(ifl_optimizer *optimizer) {
    return optimizer->moment1;
}

float *ifl_optimizer_moment2(ifl_optimizer *optimizer) {
    return optimizer->moment2;
}

int64_t ifl_optimizer_updates(const ifl_optimizer *optimizer) {
    return optimizer->n_updates;
}
