#include "kernels/score.h"

#include "common/memory.h"
#include "kernels/teacher.h"

static ifl_status score_check(const ifl_weights *weights, int32_t n, int32_t from, ifl_error *err) {
    if (from < 1 || from > n)
        return ifl_fail(err, IFL_USAGE, "score: from %d of %d tokens, wanted 1 to %d", from, n, n);
    if (n > weights->model->config.max_positions)
        return ifl_fail(err, IFL_LIMIT, "score: %d tokens, the model has %d positions", n,
                        weights->model->config.max_positions);
    return IFL_OK;
}

ifl_status ifl_score(ifl_workspace *workspace, const ifl_weights *weights, const int32_t *tokens,
                     int32_t n, int32_t from, float temperature, ifl_logprob *out, ifl_error *err) {
    IFL_TRY(score_check(weights, n, from, err));
    if (!(temperature > 0))
        return ifl_fail(err, IFL_USAGE, "score: temperature %g, wanted above 0",
                        (double)temperature);
    if (from == n) return IFL_OK;
    ifl_teacher *teacher = NULL;
    float *temperatures = NULL;
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_teacher_create(&teacher, workspace, weights->model, n - 1, err), done);
    temperatures = ifl_alloc((size_t)teacher->rows_max, sizeof *temperatures);
    if (!temperatures) {
        st = ifl_fail(err, IFL_NOMEM, "score: out of memory");
        goto done;
    }
    for (int32_t i = 0; i < teacher->rows_max; i++)
        temperatures[i] = temperature;
    /* Row p gives the distribution of token p + 1. */
    for (int32_t begin = 0, end; begin < n - 1; begin = end) {
        end = n - 1 - begin > teacher->rows_max ? begin + teacher->rows_max : n - 1;
        int32_t out_begin = from - 1 > begin ? from - 1 : begin;
        if (out_begin > end) out_begin = end;
        const float *hidden;
        IFL_TRY_GOTO(
            st, ifl_teacher_rows(teacher, weights, tokens, begin, end, out_begin, &hidden, err),
            done);
        if (out_begin < end)
            IFL_TRY_GOTO(st,
                         ifl_head_logprobs(workspace, weights, hidden, end - out_begin,
                                           tokens + out_begin + 1, temperatures,
                                           out + (out_begin + 1 - from), err),
                         done);
    }
done:
    ifl_free(temperatures);
    ifl_teacher_free(teacher);
    return st;
}

ifl_status ifl_score_top(ifl_workspace *workspace, const ifl_weights *weights,
                         const int32_t *tokens, int32_t n, int32_t from, int32_t k, int32_t *ids,
                         float *logprobs, ifl_error *err) {
    IFL_TRY(score_check(weights, n, from, err));
    if (k < 1 || k > IFL_TOP_K_MAX)
        return ifl_fail(err, IFL_USAGE, "score: top %d, wanted 1 to %d", k, IFL_TOP_K_MAX);
    if (from == n) return IFL_OK;
    ifl_teacher *teacher = NULL;
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_teacher_create(&teacher, workspace, weights->model, n - 1, err), done);
    for (int32_t begin = 0, end; begin < n - 1; begin = end) {
        end = n - 1 - begin > teacher->rows_max ? begin + teacher->rows_max : n - 1;
        int32_t out_begin = from - 1 > begin ? from - 1 : begin;
        if (out_begin > end) out_begin = end;
        const float *hidden;
        IFL_TRY_GOTO(
            st, ifl_teacher_rows(teacher, weights, tokens, begin, end, out_begin, &hidden, err),
            done);
        size_t at = (size_t)(out_begin + 1 - from) * (size_t)k;
        if (out_begin < end)
            IFL_TRY_GOTO(st,
                         ifl_head_top(workspace, weights, hidden, end - out_begin, k, ids + at,
                                      logprobs + at, err),
                         done);
    }
done:
    ifl_teacher_free(teacher);
    return st;
}
