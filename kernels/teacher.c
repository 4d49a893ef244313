#include "kernels/teacher.h"

#include "common/memory.h"

#define TEACHER_PAGE_TOKENS 16

ifl_status ifl_teacher_create(ifl_teacher **out, ifl_workspace *workspace, const ifl_model *model,
                              int32_t n_positions, ifl_error *err) {
    *out = NULL;
    if (n_positions < 1 || n_positions > model->config.max_positions)
        return ifl_fail(err, IFL_LIMIT, "teacher forcing: %d positions, the model has 1 to %d",
                        n_positions, model->config.max_positions);
    ifl_teacher *t = ifl_alloc(1, sizeof *t);
    if (!t) return ifl_fail(err, IFL_NOMEM, "teacher forcing: out of memory");
    ifl_status st = IFL_OK;
    int32_t n_pages = (n_positions + TEACHER_PAGE_TOKENS - 1) / TEACHER_PAGE_TOKENS;
    t->workspace = workspace;
    t->n_positions = n_positions;
    t->rows_max = ifl_workspace_rows_max(workspace);
    t->pages = ifl_alloc((size_t)n_pages, sizeof *t->pages);
    t->out_rows = ifl_alloc((size_t)t->rows_max, sizeof *t->out_rows);
    if (!t->pages || !t->out_rows) {
        st = ifl_fail(err, IFL_NOMEM, "teacher forcing: out of memory for %d positions",
                      n_positions);
        goto done;
    }
    for (int32_t i = 0; i < n_pages; i++)
        t->pages[i] = i;
    IFL_TRY_GOTO(st, ifl_kv_store_create(&t->kv, model, n_pages, TEACHER_PAGE_TOKENS, err), done);
    *out = t;
    t = NULL; /* the caller owns it now */
done:
    ifl_teacher_free(t);
    return st;
}

void ifl_teacher_free(ifl_teacher *teacher) {
    if (!teacher) return;
    ifl_kv_store_free(teacher->kv);
    ifl_free(teacher->out_rows);
    ifl_free(teacher->pages);
    ifl_free(teacher);
}

ifl_status ifl_teacher_rows(ifl_teacher *teacher, const ifl_weights *weights, const int32_t *tokens,
                            int32_t begin, int32_t end, int32_t out_begin, const float **hidden,
                            ifl_error *err) {
    IFL_ASSERT(0 <= begin && begin < end && end <= teacher->n_positions);
    IFL_ASSERT(end - begin <= teacher->rows_max && begin <= out_begin && out_begin <= end);
    for (int32_t p = out_begin; p < end; p++)
        teacher->out_rows[p - out_begin] = p - begin;
    ifl_batch_seq seq = {0, end - begin, begin, teacher->pages};
    ifl_batch batch = {end - begin, 1, end - out_begin, tokens + begin, &seq, teacher->out_rows};
    *hidden = NULL;
    return ifl_forward(teacher->workspace, weights, teacher->kv, &batch, hidden, err);
}
