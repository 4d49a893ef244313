/* A policy as a Hugging Face folder. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_write.h"
#include "common/json_util.h"
#include "common/memory.h"
#include "common/model_file.h"
#include "common/safetensors.h"

#define EXPORT_BLOCK (1 << 20) /* elements asked for at a time */

/* The files of an export; also what is removed again from a temporary folder. */
static const char *const export_names[] = {"config.json", "generation_config.json",
                                           "model.safetensors", "tokenizer.json",
                                           "tokenizer_config.json"};

static ifl_status export_write_text(const char *folder, const char *name, const char *text,
                                    size_t n, ifl_error *err) {
    char *path;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return ifl_fail(err, IFL_NOMEM, "out of memory");
    ifl_status st = ifl_file_write_whole(path, text, n, err);
    free(path);
    return st;
}

static ifl_status export_write_json(const char *folder, const char *name, json_t *object,
                                    ifl_error *err) {
    char *text = object ? json_dumps(object, JSON_INDENT(2)) : NULL;
    json_decref(object);
    if (!text)
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory, or a text that is not UTF-8", name);
    ifl_status st = export_write_text(folder, name, text, strlen(text), err);
    free(text);
    return st;
}

static ifl_status export_configs(const char *folder, const ifl_model_export_source *source,
                                 ifl_error *err) {
    const ifl_model_config *c = source->config;
    char *text;
    IFL_TRY(ifl_model_config_to_json(c, &text, err));
    ifl_status st = export_write_text(folder, "config.json", text, strlen(text), err);
    free(text);
    IFL_TRY(st);
    json_t *eos = json_array();
    for (int32_t i = 0; i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos_ids[i]));
    json_t *generation = json_object();
    if (c->bos_id >= 0) json_object_set_new(generation, "bos_token_id", json_integer(c->bos_id));
    if (c->n_eos > 0) json_object_set(generation, "eos_token_id", eos);
    json_decref(eos);
    return export_write_json(folder, "generation_config.json", generation, err);
}

static ifl_status export_tokenizer(const char *folder, const ifl_model_export_source *source,
                                   ifl_error *err) {
    if (!source->tokenizer_json) return IFL_OK;
    IFL_TRY(export_write_text(folder, "tokenizer.json", source->tokenizer_json,
                              source->n_tokenizer_json, err));
    json_t *o = json_pack("{s:s, s:i, s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
                          "model_max_length", (int)source->config->max_positions,
                          "clean_up_tokenization_spaces", 0);
    const struct {
        const char *name, *spelling;
    } roles[] = {{"bos_token", source->bos_token},
                 {"eos_token", source->eos_token},
                 {"pad_token", source->pad_token}};
    bool ok = o != NULL;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (roles[i].spelling)
            ok = ok && !json_object_set_new(o, roles[i].name, json_string(roles[i].spelling));
    if (!ok) {
        json_decref(o);
        return ifl_fail(err, IFL_FORMAT,
                        "the bos, eos or pad token is not UTF-8, or memory is out");
    }
    return export_write_json(folder, "tokenizer_config.json", o, err);
}

/* --- Weights --- */

static ifl_status export_stream(ifl_safetensors_writer *w, const ifl_model_export_source *source,
                                const ifl_tensor_spec *specs, int32_t n, uint16_t *block,
                                ifl_error *err) {
    int64_t at = 0; /* in the flat order */
    for (int32_t i = 0; i < n; i++) {
        int64_t end = at + specs[i].rows * specs[i].cols;
        while (at < end) {
            int64_t m = end - at < EXPORT_BLOCK ? end - at : EXPORT_BLOCK;
            IFL_TRY(source->read(source->context, at, m, block, err));
            IFL_TRY(ifl_safetensors_writer_write(w, block, (size_t)m * sizeof *block, err));
            at += m;
        }
    }
    return IFL_OK;
}

static ifl_status export_weights(const char *folder, const ifl_model_export_source *source,
                                 ifl_error *err) {
    ifl_status st;
    ifl_safetensors_writer *w = NULL;
    char *path = NULL;
    int32_t n = ifl_model_config_tensors(source->config, NULL);
    ifl_tensor_spec *specs = ifl_alloc((size_t)n, sizeof *specs);
    ifl_safetensors_spec *entries = ifl_alloc((size_t)n, sizeof *entries);
    uint16_t *block = ifl_alloc(EXPORT_BLOCK, sizeof *block);
    if (!specs || !entries || !block || asprintf(&path, "%s/model.safetensors", folder) < 0) {
        path = NULL;
        st = ifl_fail(err, IFL_NOMEM, "out of memory");
        goto done;
    }
    ifl_model_config_tensors(source->config, specs);
    for (int32_t i = 0; i < n; i++)
        entries[i] = specs[i].is_matrix
                         ? (ifl_safetensors_spec){.name = specs[i].name,
                                                  .dtype = IFL_DTYPE_BF16,
                                                  .n_dims = 2,
                                                  .dims = {specs[i].rows, specs[i].cols}}
                         : (ifl_safetensors_spec){.name = specs[i].name,
                                                  .dtype = IFL_DTYPE_BF16,
                                                  .n_dims = 1,
                                                  .dims = {specs[i].cols}};
    IFL_TRY_GOTO(st, ifl_safetensors_writer_begin(&w, path, entries, n, err), done);
    IFL_TRY_GOTO(st, export_stream(w, source, specs, n, block, err), done);
    st = ifl_safetensors_writer_finish(w, err);
    w = NULL;
done:
    ifl_safetensors_writer_abort(w);
    ifl_free(block);
    ifl_free(entries);
    ifl_free(specs);
    free(path);
    return st;
}

/* --- The folder --- */

/* Absent, or an empty folder, which rename replaces. */
static ifl_status export_check_place(const char *path, ifl_error *err) {
    DIR *dir = opendir(path);
    if (!dir && errno == ENOENT) return IFL_OK;
    if (!dir) return ifl_fail(err, IFL_USAGE, "%s: cannot export there: %s", path, strerror(errno));
    bool empty = true;
    for (struct dirent *d; (d = readdir(dir));)
        if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0) empty = false;
    closedir(dir);
    if (!empty)
        return ifl_fail(err, IFL_USAGE, "%s: not empty; remove it or export to another folder",
                        path);
    return IFL_OK;
}

static void export_remove(const char *folder) {
    for (size_t i = 0; i < sizeof export_names / sizeof *export_names; i++) {
        char *path;
        if (asprintf(&path, "%s/%s", folder, export_names[i]) < 0) continue;
        unlink(path);
        free(path);
    }
    rmdir(folder);
}

ifl_status ifl_model_export(const char *path, const ifl_model_export_source *source,
                            ifl_error *err) {
    char *temp;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    IFL_TRY(ifl_model_config_check(source->config, err));
    IFL_TRY(export_check_place(path, err));
    if (asprintf(&temp, "%.*s.tmp%ld", (int)n, path, (long)getpid()) < 0)
        return ifl_fail(err, IFL_NOMEM, "out of memory");
    ifl_status st = IFL_OK;
    export_remove(temp); /* what an interrupted export of this process id may have left */
    if (mkdir(temp, 0755) != 0)
        st = ifl_fail(err, IFL_IO, "%s: cannot create: %s", temp, strerror(errno));
    if (st == IFL_OK) st = export_configs(temp, source, err);
    if (st == IFL_OK) st = export_tokenizer(temp, source, err);
    if (st == IFL_OK) st = export_weights(temp, source, err);
    if (st == IFL_OK && rename(temp, path) != 0)
        st = ifl_fail(err, IFL_IO, "%s: cannot rename to %s: %s", temp, path, strerror(errno));
    if (st == IFL_OK) {
        temp[n] = '\0'; /* the path without its trailing slashes: its folder is synced */
        st = ifl_file_sync_folder_of(temp, err);
    } else {
        export_remove(temp);
    }
    free(temp);
    return st;
}
