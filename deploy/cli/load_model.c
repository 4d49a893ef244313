#include "deploy/cli/load_model.h"

#include "common/memory.h"
#include "common/model_file.h"
#include "kernels/random_model.h"

static void notes_model(const ifl_load_options *o, const char *path, const ifl_model *model,
                        const char *format) {
    const ifl_model_config *c = &model->config;
    if (!o->notes) return;
    fprintf(o->notes,
            "model: %s (%s, %s): %.1f M parameters, %d layers, vocabulary %d, %d positions\n", path,
            format, ifl_family_name(c->family), (double)model->n_elements * 1e-6, c->n_layers,
            c->vocab_size, c->max_positions);
}

static void notes_rounding(const ifl_load_options *o, const ifl_rounding_stats *sum,
                           int32_t n_tensors, int32_t n_changed) {
    if (!o->notes) return;
    if (n_changed == 0)
        fprintf(o->notes, "weights: all %d tensors hold bf16 values already\n", n_tensors);
    else
        fprintf(o->notes,
                "weights: rounded to bf16 once: %d of %d tensors changed, largest relative change "
                "%.3g\n",
                n_changed, n_tensors, sum->max_relative);
}

/* Tensors lie one after another in the canonical flat order. */
static ifl_status load_weights(ifl_weights *weights, const ifl_model_file *file,
                               const ifl_load_options *o, ifl_error *err) {
    enum { CHUNK = 1 << 18 };
    const ifl_model *model = weights->model;
    uint16_t *chunk = ifl_alloc(CHUNK, sizeof *chunk);
    if (!chunk) return ifl_fail(err, IFL_NOMEM, "weights: out of memory");
    ifl_status st = IFL_OK;
    ifl_rounding_stats sum = {0};
    int32_t n_changed = 0;
    for (int32_t i = 0; i < model->n_params; i++) {
        const ifl_param *p = &model->params[i];
        int64_t n_elements = p->spec.rows * p->spec.cols, before = sum.n_changed;
        for (int64_t at = 0; at < n_elements; at += CHUNK) {
            int64_t n = n_elements - at < CHUNK ? n_elements - at : CHUNK;
            IFL_TRY_GOTO(st, ifl_model_file_read_bf16(file, i, at, n, chunk, &sum, err), done);
            ifl_weights_put(weights, p->offset + at, n, chunk);
        }
        n_changed += sum.n_changed > before;
    }
    notes_rounding(o, &sum, model->n_params, n_changed);
done:
    ifl_free(chunk);
    return st;
}

static ifl_status load_random(ifl_loaded_model *out, const char *name, const ifl_load_options *o,
                              ifl_error *err) {
    ifl_model_config config;
    ifl_random_model_config(name, &config);
    IFL_TRY(ifl_model_create(&out->model, &config, o->max_positions, o->numerics, err));
    notes_model(o, name, out->model, "random weights");
    IFL_TRY(ifl_weights_create(&out->weights, out->model, err));
    return ifl_random_weights(out->weights, o->seed, err);
}

static ifl_status load_file(ifl_loaded_model *out, const char *path, const ifl_load_options *o,
                            ifl_error *err) {
    ifl_model_file *file = NULL;
    ifl_status st;
    IFL_TRY_GOTO(st, ifl_model_file_open(&file, path, err), done);
    IFL_TRY_GOTO(st,
                 ifl_model_create(&out->model, ifl_model_file_config(file), o->max_positions,
                                  o->numerics, err),
                 done);
    notes_model(o, path, out->model, ifl_model_file_format(file));
    IFL_TRY_GOTO(st, ifl_weights_create(&out->weights, out->model, err), done);
    IFL_TRY_GOTO(st, load_weights(out->weights, file, o, err), done);
    st = ifl_model_file_tokenizer(file, &out->tokenizer, err);
    if (st == IFL_NOTFOUND) st = IFL_OK; /* token ids still work */
done:
    ifl_model_file_close(file);
    return st;
}

ifl_status ifl_load_model(ifl_loaded_model *out, const char *path, const ifl_load_options *options,
                          ifl_error *err) {
    *out = (ifl_loaded_model){0};
    ifl_model_config config;
    bool random = options->allow_random && ifl_random_model_config(path, &config);
    ifl_status st =
        random ? load_random(out, path, options, err) : load_file(out, path, options, err);
    if (st == IFL_OK)
        out->weights->version = options->version;
    else
        ifl_loaded_model_clear(out);
    return st;
}

void ifl_loaded_model_clear(ifl_loaded_model *loaded) {
    ifl_tokenizer_free(loaded->tokenizer);
    ifl_weights_free(loaded->weights);
    ifl_model_free(loaded->model);
    *loaded = (ifl_loaded_model){0};
}

/* --- Memory plan
 * ---------------------------------------------------------------------------------------- */

void ifl_memory_plan_add(ifl_memory_plan *plan, const char *name, int64_t bytes) {
    IFL_ASSERT(plan->n < IFL_MEMORY_PLAN_MAX && bytes >= 0);
    snprintf(plan->items[plan->n].name, sizeof plan->items[plan->n].name, "%s", name);
    plan->items[plan->n++].bytes = bytes;
}

int64_t ifl_memory_plan_total(const ifl_memory_plan *plan) {
    int64_t sum = 0;
    for (int32_t i = 0; i < plan->n; i++)
        sum += plan->items[i].bytes;
    return sum;
}

int64_t ifl_weights_bytes(const ifl_model *model) {
    return model->n_panel_elements * (int64_t)sizeof(uint16_t) +
           model->n_vector_elements * (int64_t)sizeof(float);
}

ifl_status ifl_memory_plan_check(const ifl_memory_plan *plan, double limit_gib, FILE *f,
                                 ifl_error *err) {
    int64_t total = ifl_memory_plan_total(plan);
    int32_t largest = 0;
    for (int32_t i = 0; i < plan->n; i++)
        if (plan->items[i].bytes > plan->items[largest].bytes) largest = i;
    if (f) {
        fprintf(f, "memory plan: %.2f GiB", (double)total / 1073741824.0);
        for (int32_t i = 0; i < plan->n; i++)
            fprintf(f, "%s %s %.1f MiB", i ? "," : " =", plan->items[i].name,
                    (double)plan->items[i].bytes / 1048576.0);
        fprintf(f, "\n");
    }
    if (limit_gib > 0 && (double)total > limit_gib * 1073741824.0)
        return ifl_fail(
            err, IFL_LIMIT,
            "memory plan: %.2f GiB exceed memory.limit_gib %.2f; the largest part is %s, %.2f "
            "GiB",
            (double)total / 1073741824.0, limit_gib, plan->items[largest].name,
            (double)plan->items[largest].bytes / 1073741824.0);
    return IFL_OK;
}
