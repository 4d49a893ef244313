#include "deploy/cli/export_model.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/run_dir.h"
#include "common/tokenizer.h"

#define ASIDE_MAX 10000
#define SPELLING_MAX (IFL_TOKEN_BYTES_MAX + 1)

static ifl_status export_read(void *context, int64_t begin, int64_t n, uint16_t *bf16,
                              ifl_error *err) {
    const ifl_export_model *source = context;
    if (begin < 0 || n < 0 || begin > source->model->n_elements - n)
        return ifl_fail(err, IFL_USAGE, "export: elements %lld .. %lld of %lld", (long long)begin,
                        (long long)(begin + n), (long long)source->model->n_elements);
    memcpy(bf16, source->bf16 + begin, (size_t)n * sizeof *bf16);
    return IFL_OK;
}

/* The token's spelling, NUL-terminated; NULL when there is no such token or it holds a NUL. */
static const char *token_spelling(const ifl_tokenizer *tokenizer, int32_t id,
                                  char out[SPELLING_MAX]) {
    size_t n = 0;
    const char *text = id >= 0 && tokenizer ? ifl_tokenizer_token(tokenizer, id, &n) : NULL;
    if (!text || n == 0 || n >= SPELLING_MAX || memchr(text, '\0', n)) return NULL;
    memcpy(out, text, n);
    out[n] = '\0';
    return out;
}

/* The spellings behind an export's role names. */
typedef struct export_roles {
    char bos[SPELLING_MAX], eos[SPELLING_MAX], pad[SPELLING_MAX];
} export_roles;

static void roles_spell(export_roles *roles, const ifl_tokenizer *tokenizer,
                        const ifl_model_config *config, ifl_model_export_source *out) {
    out->bos_token = token_spelling(tokenizer, config->bos_id, roles->bos);
    out->eos_token =
        token_spelling(tokenizer, config->n_eos > 0 ? config->eos_ids[0] : -1, roles->eos);
    out->pad_token =
        token_spelling(tokenizer, tokenizer ? ifl_tokenizer_pad(tokenizer) : -1, roles->pad);
}

/* A base that cannot be opened any more costs nothing but its longer position limit. */
static void positions_restore(ifl_model_config *config, const char *base) {
    ifl_model_file *file = NULL;
    if (!base || !*base || ifl_model_file_open(&file, base, NULL) != IFL_OK) return;
    int32_t positions = ifl_model_file_config(file)->max_positions;
    if (positions > config->max_positions) config->max_positions = positions;
    ifl_model_file_close(file);
}

static ifl_status parents_create(const char *path, ifl_error *err) {
    char parent[IFL_PATH_MAX];
    size_t n = strlen(path);
    if (n >= sizeof parent)
        return ifl_fail(err, IFL_LIMIT, "%s: path of %zu bytes, limit %d", path, n,
                        IFL_PATH_MAX - 1);
    memcpy(parent, path, n + 1);
    while (n > 1 && parent[n - 1] == '/')
        parent[--n] = '\0';
    char *slash = strrchr(parent, '/');
    if (!slash || slash == parent) return IFL_OK;
    *slash = '\0';
    return ifl_dir_create(parent, err);
}

ifl_status ifl_export_model_write(const char *out, const ifl_export_model *source, ifl_error *err) {
    ifl_model_config config = source->model->config;
    ifl_tokenizer *tokenizer = NULL;
    export_roles roles;
    IFL_TRY(parents_create(out, err));
    positions_restore(&config, source->base);
    if (source->tokenizer_json)
        IFL_TRY(ifl_tokenizer_from_json(&tokenizer, source->tokenizer_json,
                                        source->n_tokenizer_json, err));
    ifl_model_export_source to_write = {
        .config = &config,
        .read = export_read,
        .context = (void *)source,
        .tokenizer_json = source->tokenizer_json,
        .n_tokenizer_json = source->n_tokenizer_json,
    };
    roles_spell(&roles, tokenizer, &config, &to_write);
    ifl_status st = ifl_model_export(out, &to_write, err);
    ifl_tokenizer_free(tokenizer);
    return st;
}

/* Walks the tensors while the writer asks for the flat order's ascending ranges. */
typedef struct file_cursor {
    const ifl_model_file *file;
    int32_t tensor;
    int64_t tensor_begin; /* of that tensor, in the flat order */
    ifl_rounding_stats *stats;
} file_cursor;

static ifl_status file_read(void *context, int64_t begin, int64_t n, uint16_t *bf16,
                            ifl_error *err) {
    file_cursor *at = context;
    for (; at->tensor < ifl_model_file_count(at->file); at->tensor++) {
        const ifl_tensor_spec *spec = ifl_model_file_spec(at->file, at->tensor);
        int64_t n_tensor = spec->rows * spec->cols;
        if (begin < at->tensor_begin + n_tensor) break;
        at->tensor_begin += n_tensor;
    }
    IFL_ASSERT(begin >= at->tensor_begin && at->tensor < ifl_model_file_count(at->file));
    return ifl_model_file_read_bf16(at->file, at->tensor, begin - at->tensor_begin, n, bf16,
                                    at->stats, err);
}

ifl_status ifl_export_file_tokenizer(const ifl_model_file *file, char **out, size_t *n_bytes,
                                     ifl_error *err) {
    ifl_tokenizer *tokenizer = NULL;
    *out = NULL;
    *n_bytes = 0;
    ifl_status st = ifl_model_file_tokenizer_json(file, out, n_bytes, err);
    if (st != IFL_NOTFOUND) return st;
    st = ifl_model_file_tokenizer(file, &tokenizer, err);
    if (st == IFL_OK) st = ifl_tokenizer_to_json(tokenizer, out, n_bytes, err);
    ifl_tokenizer_free(tokenizer);
    return st == IFL_NOTFOUND ? IFL_OK : st;
}

ifl_status ifl_export_file_write(const char *out, const ifl_model_file *file,
                                 const char *tokenizer_json, size_t n_tokenizer_json,
                                 ifl_rounding_stats *stats, ifl_error *err) {
    const ifl_model_config *config = ifl_model_file_config(file);
    ifl_status st = IFL_OK;
    ifl_tokenizer *tokenizer = NULL;
    export_roles roles;
    file_cursor cursor = {.file = file, .stats = stats};
    IFL_TRY_GOTO(st, parents_create(out, err), done);
    if (tokenizer_json)
        IFL_TRY_GOTO(st, ifl_tokenizer_from_json(&tokenizer, tokenizer_json, n_tokenizer_json, err),
                     done);
    ifl_model_export_source to_write = {
        .config = config,
        .read = file_read,
        .context = &cursor,
        .tokenizer_json = tokenizer_json,
        .n_tokenizer_json = n_tokenizer_json,
    };
    roles_spell(&roles, tokenizer, config, &to_write);
    st = ifl_model_export(out, &to_write, err);
done:
    ifl_tokenizer_free(tokenizer);
    return st;
}

static bool folder_is_empty(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return false;
    bool empty = true;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) empty = false;
    closedir(dir);
    return empty;
}

ifl_status ifl_export_model_room(const char *out, bool move_aside, ifl_error *err) {
    struct stat info;
    if (lstat(out, &info) != 0) {
        if (errno == ENOENT) return IFL_OK;
        return ifl_fail(err, IFL_IO, "%s: %s", out, strerror(errno));
    }
    if (S_ISDIR(info.st_mode) && folder_is_empty(out)) return IFL_OK;
    if (!move_aside)
        return ifl_fail(
            err, IFL_USAGE,
            "%s exists already: choose another place, remove it, or have it moved aside "
            "(--overwrite; for sft run.overwrite=true)",
            out);
    char aside[IFL_PATH_MAX];
    for (int i = 1; i < ASIDE_MAX; i++) {
        int n = snprintf(aside, sizeof aside, "%s.%d", out, i);
        if (n < 0 || (size_t)n >= sizeof aside) break;
        if (lstat(aside, &info) == 0) continue;
        if (rename(out, aside) == 0) return IFL_OK;
        return ifl_fail(err, IFL_IO, "%s: cannot move aside to %s: %s", out, aside,
                        strerror(errno));
    }
    return ifl_fail(err, IFL_LIMIT, "%s: no free name to move it aside", out);
}
