/* inflight export: writes a checkpoint or a model file as a Hugging Face folder. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bf16.h"
#include "common/file_map.h"
#include "common/memory.h"
#include "common/model_file.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/export_model.h"
#include "deploy/cli/options.h"
#include "learner/checkpoint.h"

typedef struct export_args {
    const char *checkpoint; /* NULL: model.path is what is exported */
    const char *out;
    const char *tokenizer; /* NULL: the run's */
    const char *model;     /* model.path. With a checkpoint, "" stands for that of the run */
    bool overwrite, has_model, has_base;
    ifl_options *options;
} export_args;

enum {
    KEY_CHECKPOINT = 'c',
    KEY_MODEL = 'm',
    KEY_OUT = 'o',
    KEY_TOKENIZER = 't',
    KEY_BASE = 'b',
    KEY_OVERWRITE = 1
};

static const struct argp_option export_options[] = {
    {"checkpoint", KEY_CHECKPOINT, "FOLDER", 0, "runs/NAME/checkpoints/step_S", 0},
    {"model", KEY_MODEL, "MODEL", 0,
     "model.path, instead of a checkpoint: a GGUF file or a folder, rounded to bf16 as at every "
     "load",
     0},
    {"out", KEY_OUT, "FOLDER", 0, "where the model folder is written", 0},
    {"tokenizer", KEY_TOKENIZER, "FILE", 0,
     "tokenizer.json (default: the run's or the model's own)", 0},
    {"base", KEY_BASE, "MODEL", 0,
     "model.path, with a checkpoint: the model the run started from, for its position limit "
     "(default: what the run's configuration says)",
     0},
    {"overwrite", KEY_OVERWRITE, NULL, 0, "run.overwrite: move an existing folder aside", 0},
    {0}};

static const ifl_option_key export_keys[] = {{KEY_OVERWRITE, "run.overwrite", "true"}, {0}};

static ifl_status export_option(int key, const char *arg, void *user, ifl_error *err) {
    export_args *a = user;
    switch (key) {
    case KEY_CHECKPOINT:
        a->checkpoint = arg;
        return IFL_OK;
    case KEY_MODEL:
        a->has_model = true;
        return ifl_options_set(a->options, "model.path", arg, err);
    case KEY_OUT:
        a->out = arg;
        return IFL_OK;
    case KEY_TOKENIZER:
        a->tokenizer = arg;
        return IFL_OK;
    case KEY_BASE:
        a->has_base = true;
        return ifl_options_set(a->options, "model.path", arg, err);
    default:
        return IFL_USAGE;
    }
}

/* runs/NAME/checkpoints/step_S -> runs/NAME/<name> */
static ifl_status run_file(char out[IFL_PATH_MAX], const char *checkpoint, const char *name,
                           ifl_error *err) {
    int n = snprintf(out, IFL_PATH_MAX, "%s/../../%s", checkpoint, name);
    if (n < 0 || n >= IFL_PATH_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: path of %d bytes, limit %d", checkpoint, n,
                        IFL_PATH_MAX - 1);
    return IFL_OK;
}

/* model.path of the run's resolved configuration; "" when there is none to be read. */
static ifl_status base_of_run(char out[IFL_PATH_MAX], const char *checkpoint, ifl_error *err) {
    char path[IFL_PATH_MAX];
    out[0] = '\0';
    IFL_TRY(run_file(path, checkpoint, "config.yaml", err));
    ifl_config *config = ifl_alloc(1, sizeof *config);
    if (!config) return ifl_fail(err, IFL_NOMEM, "export: out of memory");
    if (ifl_config_load(config, path, NULL, 0, NULL) == IFL_OK)
        memcpy(out, config->model.path, IFL_PATH_MAX);
    ifl_free(config);
    return IFL_OK;
}

/* The tokenizer's text: as told, else the run's, else the base's. */
static ifl_status tokenizer_text(char **out, size_t *n, const export_args *a, const char *base,
                                 ifl_error *err) {
    char path[IFL_PATH_MAX];
    if (a->tokenizer)
        return ifl_file_read_text(a->tokenizer, IFL_TOKENIZER_JSON_BYTES_MAX, out, n, err);
    IFL_TRY(run_file(path, a->checkpoint, "tokenizer.json", err));
    ifl_status st = ifl_file_read_text(path, IFL_TOKENIZER_JSON_BYTES_MAX, out, n, err);
    if (st != IFL_NOTFOUND) return st;
    ifl_model_file *file = NULL;
    if (*base && ifl_model_file_open(&file, base, NULL) == IFL_OK) {
        st = ifl_model_file_tokenizer_json(file, out, n, err);
        ifl_model_file_close(file);
        if (st != IFL_NOTFOUND) return st;
    }
    return ifl_fail(err, IFL_NOTFOUND,
                    "%s: no such file, and the base model has no tokenizer.json: give one with "
                    "--tokenizer",
                    path);
}

static ifl_status masters_round(const ifl_model *model, const char *checkpoint, uint16_t **out,
                                ifl_error *err) {
    float *masters = ifl_alloc((size_t)model->n_elements, sizeof *masters);
    uint16_t *bf16 = ifl_alloc((size_t)model->n_elements, sizeof *bf16);
    ifl_status st = masters && bf16 ? IFL_OK : ifl_fail(err, IFL_NOMEM, "export: out of memory");
    if (st == IFL_OK) st = ifl_checkpoint_read_masters(checkpoint, model, masters, err);
    for (int64_t i = 0; st == IFL_OK && i < model->n_elements; i++)
        bf16[i] = ifl_bf16_from_f32(masters[i]);
    ifl_free(masters);
    if (st != IFL_OK) {
        ifl_free(bf16);
        bf16 = NULL;
    }
    *out = bf16;
    return st;
}

static ifl_status export_model(const export_args *a, ifl_error *err) {
    ifl_status st = IFL_OK;
    ifl_model_file *file = NULL;
    char *tokenizer = NULL;
    size_t n_tokenizer = 0;
    ifl_rounding_stats rounding = {0};
    if (!a->overwrite) IFL_TRY_GOTO(st, ifl_export_model_room(a->out, false, err), done);
    IFL_TRY_GOTO(st, ifl_model_file_open(&file, a->model, err), done);
    if (a->tokenizer)
        st = ifl_file_read_text(a->tokenizer, IFL_TOKENIZER_JSON_BYTES_MAX, &tokenizer,
                                &n_tokenizer, err);
    else
        st = ifl_export_file_tokenizer(file, &tokenizer, &n_tokenizer, err);
    if (st != IFL_OK) goto done;
    /* Behind all reading by name: the folder moved aside may be the model itself. */
    IFL_TRY_GOTO(st, ifl_export_model_room(a->out, a->overwrite, err), done);
    IFL_TRY_GOTO(st, ifl_export_file_write(a->out, file, tokenizer, n_tokenizer, &rounding, err),
                 done);
    printf("export: %s, %lld of %lld parameters changed by rounding to bf16 -> %s\n", a->model,
           (long long)rounding.n_changed, (long long)rounding.n_values, a->out);
done:
    free(tokenizer);
    ifl_model_file_close(file);
    return st;
}

static ifl_status export_checkpoint(const export_args *a, ifl_error *err) {
    ifl_status st = IFL_OK;
    char base[IFL_PATH_MAX];
    char *tokenizer = NULL;
    size_t n_tokenizer = 0;
    ifl_checkpoint_info info = {0};
    ifl_model_config config;
    ifl_model *model = NULL;
    uint16_t *bf16 = NULL;
    /* Looked at now, moved at the end: a failure leaves an older folder in its place. */
    if (!a->overwrite) IFL_TRY_GOTO(st, ifl_export_model_room(a->out, false, err), done);
    IFL_TRY_GOTO(st, ifl_checkpoint_info_read(&info, a->checkpoint, err), done);
    IFL_TRY_GOTO(st,
                 ifl_model_config_from_json(&config, info.model_json, strlen(info.model_json), err),
                 done);
    IFL_TRY_GOTO(st, ifl_model_create(&model, &config, 0, IFL_PROFILE_F32, err), done);
    IFL_TRY_GOTO(st, masters_round(model, a->checkpoint, &bf16, err), done);
    IFL_TRY_GOTO(st, base_of_run(base, a->checkpoint, err), done);
    if (a->model[0]) snprintf(base, sizeof base, "%s", a->model);
    IFL_TRY_GOTO(st, tokenizer_text(&tokenizer, &n_tokenizer, a, base, err), done);
    const ifl_export_model source = {.model = model,
                                     .bf16 = bf16,
                                     .tokenizer_json = tokenizer,
                                     .n_tokenizer_json = n_tokenizer,
                                     .base = base};
    IFL_TRY_GOTO(st, ifl_export_model_room(a->out, a->overwrite, err), done);
    IFL_TRY_GOTO(st, ifl_export_model_write(a->out, &source, err), done);
    char hash[33];
    ifl_hash_text(ifl_hash_bytes(bf16, (size_t)model->n_elements * sizeof *bf16), hash);
    printf("export: step %lld, %lld parameters, weights %s -> %s\n", (long long)info.step,
           (long long)model->n_elements, hash, a->out);
done:
    free(tokenizer);
    ifl_free(bf16);
    ifl_model_free(model);
    ifl_checkpoint_info_clear(&info);
    return st;
}

static ifl_status export_check(const ifl_options *options, export_args *a, ifl_error *err) {
    a->model = options->config->model.path;
    a->overwrite = options->config->run.overwrite;
    if (!a->out || (a->checkpoint ? a->has_model : !a->model[0]))
        return ifl_fail(err, IFL_USAGE,
                        "wanted --out FOLDER and one of --checkpoint FOLDER and --model MODEL");
    if (!a->checkpoint && a->has_base)
        return ifl_fail(err, IFL_USAGE, "--base goes with --checkpoint, not with --model");
    return IFL_OK;
}

static ifl_status export_work(const ifl_options *options, void *user, ifl_error *err) {
    export_args *a = user;
    IFL_TRY(export_check(options, a, err));
    return a->checkpoint ? export_checkpoint(a, err) : export_model(a, err);
}

static ifl_status export_dry_run(const ifl_options *options, void *user, ifl_error *err) {
    export_args *a = user;
    ifl_options_print(options, stdout);
    IFL_TRY(export_check(options, a, err));
    printf("# reads   %s\n# writes  %s/\n", a->checkpoint ? a->checkpoint : a->model, a->out);
    return a->overwrite ? IFL_OK : ifl_export_model_room(a->out, false, err);
}

int ifl_cmd_export(int argc, char **argv) {
    export_args a = {0};
    const ifl_options_spec spec = {
        .doc = "Writes a checkpoint's policy, or a model file, as a Hugging Face folder (bf16 "
               "safetensors, config, tokenizer) that transformers loads.",
        .extra = export_options,
        .keys = export_keys,
        .on_option = export_option,
        .parsing = &a.options,
        .user = &a,
        .work = export_work,
        .dry_run = export_dry_run,
    };
    return ifl_options_run(argc, argv, &spec);
}
