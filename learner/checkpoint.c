#include "learner/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/config.h"
#include "common/fail_point.h"
#include "common/file_map.h"
#include "common/file_write.h"
#include "common/json_util.h"
#include "common/log.h"
#include "common/memory.h"

#define INDEX_NAME "checkpoint.json"
#define MARKER_NAME "COMPLETE"
#define MODEL_NAME "model.json"
#define STATE_NAME "state.json"
#define INDEX_BYTES_MAX (64 << 20)
#define MODEL_BYTES_MAX (1 << 20)
#define DISK_SLACK_BYTES (16 << 20)
#define FOLDER_PATH_MAX (IFL_PATH_MAX + 128)
#define FILE_PATH_MAX (FOLDER_PATH_MAX + 64)

static const char *const tensor_files[3] = {"masters.f32", "moment1.f32", "moment2.f32"};

/* --- Names
 * ------------------------------------------------------------------------------------------ */

static ifl_status path_join(char *out, size_t n_max, const char *folder, const char *name,
                            ifl_error *err) {
    int n = snprintf(out, n_max, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= n_max)
        return ifl_fail(err, IFL_LIMIT, "checkpoint: path of %d bytes, limit %zu: %s", n, n_max - 1,
                        folder);
    return IFL_OK;
}

static ifl_status path_of_step(char out[FOLDER_PATH_MAX], const char *dir, int64_t step,
                               ifl_error *err) {
    char name[64];
    snprintf(name, sizeof name, "step_%" PRId64, step);
    return path_join(out, FOLDER_PATH_MAX, dir, name, err);
}

/* The step of a folder name "step_12"; -1 for any other name. *rest: what follows the digits. */
static int64_t step_of_name(const char *name, const char **rest) {
    if (strncmp(name, "step_", 5) != 0 || name[5] < '0' || name[5] > '9') return -1;
    char *end;
    errno = 0;
    long long step = strtoll(name + 5, &end, 10);
    if (errno != 0) return -1;
    *rest = end;
    return step;
}

static ifl_status folder_make(const char *path, ifl_error *err) {
    char part[FOLDER_PATH_MAX];
    size_t n = strlen(path);
    if (n >= sizeof part) return ifl_fail(err, IFL_LIMIT, "%s: path too long", path);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0755) != 0 && errno != EEXIST)
            return ifl_fail(err, IFL_IO, "%s: cannot make the folder: %s", part, strerror(errno));
    }
    return IFL_OK;
}

/* Removes a folder of plain files; checkpoints hold no others. */
static void folder_remove(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    rmdir(path);
}

static ifl_status folder_sync(const char *path, ifl_error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 ? -1 : fsync(fd);
    int saved = errno;
    if (fd >= 0) close(fd);
    if (rc != 0) return ifl_fail(err, IFL_IO, "%s: cannot sync: %s", path, strerror(saved));
    return IFL_OK;
}

/* --- Writing
 * ---------------------------------------------------------------------------------------- */

/* Writes one file and adds {bytes, blocks: [hash]} to the index under its name. */
static ifl_status save_file(const char *folder, const char *name, const void *bytes, size_t n_bytes,
                            json_t *files, ifl_error *err) {
    char path[FILE_PATH_MAX];
    ifl_fail_point(IFL_FAIL_CHECKPOINT_FILE);
    IFL_TRY(path_join(path, sizeof path, folder, name, err));
    json_t *blocks = json_array();
    json_t *entry = json_pack("{s:I, s:o}", "bytes", (json_int_t)n_bytes, "blocks", blocks);
    if (!entry || json_object_set_new(files, name, entry) != 0)
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    ifl_file_writer *writer = NULL;
    IFL_TRY(ifl_file_writer_begin(&writer, path, err));
    ifl_status st = IFL_OK;
    for (size_t at = 0; at < n_bytes; at += IFL_CHECKPOINT_BLOCK) {
        size_t n = n_bytes - at < IFL_CHECKPOINT_BLOCK ? n_bytes - at : IFL_CHECKPOINT_BLOCK;
        const uint8_t *block = (const uint8_t *)bytes + at;
        char text[33];
        ifl_hash_text(ifl_hash_bytes(block, n), text);
        if (json_array_append_new(blocks, json_string(text)) != 0)
            IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "%s: out of memory", path), done);
        IFL_TRY_GOTO(st, ifl_file_writer_write(writer, block, n, err), done);
    }
    st = ifl_file_writer_finish(writer, err);
    writer = NULL;
done:
    ifl_file_writer_abort(writer);
    return st;
}

static ifl_status save_index(const char *folder, int64_t step, json_t *index, ifl_error *err) {
    char path[FILE_PATH_MAX], marker[128], hash[33];
    char *text = json_dumps(index, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", folder);
    ifl_hash_text(ifl_hash_bytes(text, strlen(text)), hash);
    ifl_status st = path_join(path, sizeof path, folder, INDEX_NAME, err);
    if (st == IFL_OK) st = ifl_file_write_whole(path, text, strlen(text), err);
    free(text);
    IFL_TRY(st);
    int n = snprintf(marker, sizeof marker, "inflight-checkpoint %d step %" PRId64 " xxh3 %s\n",
                     IFL_CHECKPOINT_FORMAT, step, hash);
    IFL_TRY(path_join(path, sizeof path, folder, MARKER_NAME, err));
    return ifl_file_write_whole(path, marker, (size_t)n, err);
}

static ifl_status save_folder(const char *folder, int64_t step, const ifl_model *model,
                              ifl_optimizer *optimizer, const char *state_json, ifl_error *err) {
    ifl_status st = IFL_OK;
    char fingerprint[33], profile[33];
    char *model_json = NULL;
    ifl_hash_text(model->fingerprint, fingerprint);
    ifl_hash_text(model->profile, profile);
    json_t *files = json_object();
    json_t *index = json_pack("{s:i, s:I, s:I, s:I, s:i, s:s, s:s, s:o}", "format",
                              IFL_CHECKPOINT_FORMAT, "step", (json_int_t)step, "n_updates",
                              (json_int_t)ifl_optimizer_updates(optimizer), "n_elements",
                              (json_int_t)model->n_elements, "block_bytes", IFL_CHECKPOINT_BLOCK,
                              "fingerprint", fingerprint, "profile", profile, "files", files);
    if (!index) IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "%s: out of memory", folder), done);
    const float *const tensors[3] = {ifl_optimizer_masters(optimizer),
                                     ifl_optimizer_moment1(optimizer),
                                     ifl_optimizer_moment2(optimizer)};
    for (int i = 0; i < 3; i++)
        IFL_TRY_GOTO(st,
                     save_file(folder, tensor_files[i], tensors[i],
                               (size_t)model->n_elements * sizeof(float), files, err),
                     done);
    IFL_TRY_GOTO(st, save_file(folder, STATE_NAME, state_json, strlen(state_json), files, err),
                 done);
    IFL_TRY_GOTO(st, ifl_model_config_to_json(&model->config, &model_json, err), done);
    IFL_TRY_GOTO(st, save_file(folder, MODEL_NAME, model_json, strlen(model_json), files, err),
                 done);
    ifl_fail_point(IFL_FAIL_CHECKPOINT_INDEX);
    IFL_TRY_GOTO(st, save_index(folder, step, index, err), done);
    st = folder_sync(folder, err);
done:
    free(model_json);
    json_decref(index);
    return st;
}

static ifl_status disk_check(const char *dir, int64_t n_bytes, ifl_error *err) {
    struct statvfs fs;
    if (statvfs(dir, &fs) != 0)
        return ifl_fail(err, IFL_IO, "%s: cannot read the free space: %s", dir, strerror(errno));
    int64_t free_bytes = (int64_t)fs.f_bavail * (int64_t)fs.f_frsize;
    if (free_bytes < n_bytes)
        return ifl_fail(err, IFL_FULL,
                        "%s: a checkpoint needs %lld MiB, %lld MiB are free: make room, or lower "
                        "checkpoint.keep",
                        dir, (long long)(n_bytes >> 20), (long long)(free_bytes >> 20));
    return IFL_OK;
}

/* Makes the finished folder visible under its name. An older one of that name is swapped out in one
 * system call, so that no crash leaves neither. */
static ifl_status folder_reveal(const char *temp, const char *folder, ifl_error *err) {
    if (renameat2(AT_FDCWD, temp, AT_FDCWD, folder, RENAME_EXCHANGE) == 0) {
        folder_remove(temp);
        return ifl_file_sync_folder_of(folder, err);
    }
    if (errno != ENOENT) /* a file system without exchange */
        folder_remove(folder);
    if (rename(temp, folder) != 0)
        return ifl_fail(err, IFL_IO, "%s: cannot rename to %s: %s", temp, folder, strerror(errno));
    return ifl_file_sync_folder_of(folder, err);
}

/* Old checkpoints beyond `keep`, and what killed writers left behind. */
static void folder_prune(const char *dir, int32_t keep) {
    char path[FOLDER_PATH_MAX];
    int64_t *steps = ifl_alloc(IFL_CHECKPOINT_LIST_MAX, sizeof *steps);
    int32_t n = steps ? ifl_checkpoint_list(dir, steps, IFL_CHECKPOINT_LIST_MAX) : 0;
    for (int32_t i = 0; keep >= 1 && i < n - keep; i++)
        if (path_of_step(path, dir, steps[i], NULL) == IFL_OK) folder_remove(path);
    ifl_free(steps);
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *entry; (entry = readdir(d));) {
        const char *rest;
        if (step_of_name(entry->d_name, &rest) < 0 || strncmp(rest, ".tmp", 4) != 0) continue;
        if (path_join(path, sizeof path, dir, entry->d_name, NULL) == IFL_OK) folder_remove(path);
    }
    closedir(d);
}

ifl_status ifl_checkpoint_save(const char *dir, int64_t step, const ifl_model *model,
                               ifl_optimizer *optimizer, const char *state_json, int32_t keep,
                               ifl_error *err) {
    IFL_ASSERT(step >= 0);
    size_t n_state = strlen(state_json);
    if (n_state > IFL_CHECKPOINT_STATE_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "checkpoint of step %lld: state of %zu bytes, limit %d",
                        (long long)step, n_state, IFL_CHECKPOINT_STATE_BYTES_MAX);
    char folder[FOLDER_PATH_MAX], temp[FOLDER_PATH_MAX];
    IFL_TRY(folder_make(dir, err));
    IFL_TRY(path_of_step(folder, dir, step, err));
    int n = snprintf(temp, sizeof temp, "%s.tmp%ld", folder, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof temp)
        return ifl_fail(err, IFL_LIMIT, "%s: path too long", folder);
    IFL_TRY(disk_check(dir, model->n_elements * 12 + (int64_t)n_state + DISK_SLACK_BYTES, err));
    folder_remove(temp);
    int fault = ifl_fail_point(IFL_FAIL_CHECKPOINT_BEGIN);
    if (fault > 0)
        return ifl_fail(err, fault == ENOSPC || fault == EDQUOT ? IFL_FULL : IFL_IO,
                        "%s: cannot make the folder: %s", temp, strerror(fault));
    IFL_TRY(folder_make(temp, err));
    ifl_status st = save_folder(temp, step, model, optimizer, state_json, err);
    ifl_fail_point(IFL_FAIL_CHECKPOINT_REVEAL);
    if (st == IFL_OK) st = folder_reveal(temp, folder, err);
    ifl_fail_point(IFL_FAIL_CHECKPOINT_DONE);
    if (st == IFL_OK)
        folder_prune(dir, keep);
    else
        folder_remove(temp);
    return st;
}

/* --- Reading
 * ---------------------------------------------------------------------------------------- */

typedef struct checkpoint_index {
    json_t *root; /* owned */
    int64_t step, n_updates, n_elements;
    const char *fingerprint, *profile;
    const json_t *files;
} checkpoint_index;

/* Reads the marker and the index, and proves that they belong together. */
static ifl_status index_read(checkpoint_index *out, const char *folder, ifl_error *err) {
    *out = (checkpoint_index){0};
    char path[FILE_PATH_MAX], want[33], got[33];
    char *marker = NULL, *text = NULL;
    size_t n_text = 0;
    int64_t format = 0;
    ifl_status st = IFL_OK;
    IFL_TRY(path_join(path, sizeof path, folder, MARKER_NAME, err));
    st = ifl_file_read_text(path, 4096, &marker, NULL, err);
    if (st == IFL_NOTFOUND)
        ifl_fail(err, st,
                 access(folder, F_OK) == 0 ? "%s: no %s marker: the checkpoint is half-written"
                                           : "%s: no such checkpoint (looked for its %s marker)",
                 folder, MARKER_NAME);
    if (st != IFL_OK) goto done;
    long long marker_format, marker_step;
    if (sscanf(marker, "inflight-checkpoint %lld step %lld xxh3 %32[0-9a-f]", &marker_format,
               &marker_step, want) != 3)
        IFL_TRY_GOTO(st, ifl_fail(err, IFL_FORMAT, "%s: not a checkpoint marker", path), done);
    if (marker_format != IFL_CHECKPOINT_FORMAT)
        IFL_TRY_GOTO(st,
                     ifl_fail(err, IFL_UNSUPPORTED,
                              "%s: checkpoint format %lld, this build reads %d", path,
                              marker_format, IFL_CHECKPOINT_FORMAT),
                     done);
    IFL_TRY_GOTO(st, path_join(path, sizeof path, folder, INDEX_NAME, err), done);
    IFL_TRY_GOTO(st, ifl_file_read_text(path, INDEX_BYTES_MAX, &text, &n_text, err), done);
    ifl_hash_text(ifl_hash_bytes(text, n_text), got);
    if (strcmp(want, got) != 0)
        IFL_TRY_GOTO(
            st, ifl_fail(err, IFL_MISMATCH, "%s: hash %s, the marker says %s", path, got, want),
            done);
    IFL_TRY_GOTO(st, ifl_json_parse_object(&out->root, text, n_text, INDEX_BYTES_MAX, path, err),
                 done);
    int64_t block_bytes = 0;
    out->step = -1;
    IFL_TRY_GOTO(st, ifl_json_int(out->root, "format", 0, INT32_MAX, &format, err), done);
    IFL_TRY_GOTO(st, ifl_json_int(out->root, "step", 0, INT64_MAX, &out->step, err), done);
    IFL_TRY_GOTO(st, ifl_json_int(out->root, "n_updates", 0, INT64_MAX, &out->n_updates, err),
                 done);
    IFL_TRY_GOTO(st, ifl_json_int(out->root, "n_elements", 1, INT64_MAX / 4, &out->n_elements, err),
                 done);
    IFL_TRY_GOTO(st, ifl_json_int(out->root, "block_bytes", 1, INT32_MAX, &block_bytes, err), done);
    IFL_TRY_GOTO(st, ifl_json_text(out->root, "fingerprint", &out->fingerprint, err), done);
    IFL_TRY_GOTO(st, ifl_json_text(out->root, "profile", &out->profile, err), done);
    IFL_TRY_GOTO(st, ifl_json_child(out->root, "files", &out->files, err), done);
    if (format != IFL_CHECKPOINT_FORMAT || block_bytes != IFL_CHECKPOINT_BLOCK ||
        out->step != marker_step || !out->fingerprint || !out->profile || !out->files)
        st = ifl_fail(
            err, IFL_FORMAT,
            "%s: format %lld, step %lld, blocks of %lld bytes; wanted format %d, step %lld, "
            "blocks of %d bytes, a fingerprint, a profile and a file table",
            path, (long long)format, (long long)out->step, (long long)block_bytes,
            IFL_CHECKPOINT_FORMAT, marker_step, IFL_CHECKPOINT_BLOCK);
done:
    free(marker);
    free(text);
    if (st != IFL_OK) {
        json_decref(out->root);
        *out = (checkpoint_index){0};
    }
    return st;
}

static ifl_status block_check(const char *path, int64_t at, const void *block, size_t n,
                              const json_t *want, ifl_error *err) {
    char got[33];
    ifl_hash_text(ifl_hash_bytes(block, n), got);
    const char *want_text = json_string_value(want);
    if (want_text && strcmp(want_text, got) == 0) return IFL_OK;
    return ifl_fail(err, IFL_MISMATCH, "%s: %zu bytes at offset %lld have hash %s, wanted %s", path,
                    n, (long long)at, got, want_text ? want_text : "(none)");
}

/* Reads `name` block by block, checking each; `into` (n_bytes) may be NULL: then it is only
 * checked. */
static ifl_status file_verify(const char *folder, const char *name, const checkpoint_index *index,
                              int64_t n_bytes, void *into, ifl_error *err) {
    char path[FILE_PATH_MAX];
    IFL_TRY(path_join(path, sizeof path, folder, name, err));
    const json_t *entry = json_object_get(index->files, name);
    const json_t *blocks = json_object_get(entry, "blocks");
    int64_t recorded = json_integer_value(json_object_get(entry, "bytes"));
    int64_t n_blocks = (n_bytes + IFL_CHECKPOINT_BLOCK - 1) / IFL_CHECKPOINT_BLOCK;
    if (recorded != n_bytes || (int64_t)json_array_size(blocks) != n_blocks)
        return ifl_fail(err, IFL_FORMAT,
                        "%s: the index says %lld bytes in %zu blocks, wanted %lld in %lld", path,
                        (long long)recorded, json_array_size(blocks), (long long)n_bytes,
                        (long long)n_blocks);
    FILE *f = fopen(path, "rbe");
    if (!f) return ifl_fail(err, IFL_IO, "%s: cannot open: %s", path, strerror(errno));
    ifl_status st = IFL_OK;
    struct stat info;
    uint8_t *buffer = NULL;
    if (fstat(fileno(f), &info) != 0 || info.st_size != n_bytes)
        IFL_TRY_GOTO(st,
                     ifl_fail(err, IFL_FORMAT, "%s: %lld bytes, wanted %lld", path,
                              (long long)info.st_size, (long long)n_bytes),
                     done);
    buffer = into ? NULL : ifl_alloc((size_t)(n_blocks > 1 ? IFL_CHECKPOINT_BLOCK : n_bytes), 1);
    if (!into && !buffer)
        IFL_TRY_GOTO(st, ifl_fail(err, IFL_NOMEM, "%s: out of memory", path), done);
    for (int64_t b = 0; b < n_blocks; b++) {
        int64_t at = b * IFL_CHECKPOINT_BLOCK;
        size_t n =
            (size_t)(n_bytes - at < IFL_CHECKPOINT_BLOCK ? n_bytes - at : IFL_CHECKPOINT_BLOCK);
        uint8_t *block = into ? (uint8_t *)into + at : buffer;
        if (fread(block, 1, n, f) != n)
            IFL_TRY_GOTO(st,
                         ifl_fail(err, IFL_IO, "%s: cannot read %zu bytes at offset %lld", path, n,
                                  (long long)at),
                         done);
        IFL_TRY_GOTO(st, block_check(path, at, block, n, json_array_get(blocks, (size_t)b), err),
                     done);
    }
done:
    ifl_free(buffer);
    fclose(f);
    return st;
}

/* Owned text of one of the small files, checked against the index. */
static ifl_status text_read(char **out, const char *folder, const char *name,
                            const checkpoint_index *index, int64_t n_bytes_max, ifl_error *err) {
    *out = NULL;
    char path[FILE_PATH_MAX];
    IFL_TRY(path_join(path, sizeof path, folder, name, err));
    int64_t n = json_integer_value(json_object_get(json_object_get(index->files, name), "bytes"));
    if (n < 0 || n > n_bytes_max)
        return ifl_fail(err, IFL_LIMIT, "%s: the index says %lld bytes, limit %lld", path,
                        (long long)n, (long long)n_bytes_max);
    struct stat info; /* memory for what is there, not for what the index says */
    if (stat(path, &info) != 0)
        return ifl_fail(err, IFL_IO, "%s: cannot read its size: %s", path, strerror(errno));
    if (info.st_size != n)
        return ifl_fail(err, IFL_FORMAT, "%s: %lld bytes, the index says %lld", path,
                        (long long)info.st_size, (long long)n);
    char *text = calloc((size_t)n + 1, 1);
    if (!text) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    ifl_status st = file_verify(folder, name, index, n, text, err);
    if (st != IFL_OK) {
        free(text);
        return st;
    }
    *out = text;
    return IFL_OK;
}

static ifl_status index_check_model(const checkpoint_index *index, const char *folder,
                                    const ifl_model *model, ifl_error *err) {
    char fingerprint[33];
    ifl_hash_text(model->fingerprint, fingerprint);
    if (index->n_elements != model->n_elements || strcmp(index->fingerprint, fingerprint) != 0)
        return ifl_fail(
            err, IFL_MISMATCH,
            "%s: made for a model of %lld elements, fingerprint %s; this model has %lld, %s: "
            "check model.* against the run's own configuration",
            folder, (long long)index->n_elements, index->fingerprint, (long long)model->n_elements,
            fingerprint);
    return IFL_OK;
}

/* A run that goes on must compute as it has so far: its figures and its audit are of one
 * arithmetic. */
static ifl_status index_check_profile(const checkpoint_index *index, const char *folder,
                                      const ifl_model *model, ifl_error *err) {
    char profile[33];
    ifl_hash_text(model->profile, profile);
    if (strcmp(index->profile, profile) == 0) return IFL_OK;
    return ifl_fail(
        err, IFL_MISMATCH,
        "%s: made under numerics profile %s; this run would go on under %s (%s): set "
        "model.numerics as it was, go on with the build that made it (a profile's hash changes "
        "with "
        "the program's arithmetic), or export the checkpoint and start a new run from it",
        folder, index->profile, profile, ifl_profile_name(model->numerics));
}

static ifl_status load_folder(const char *folder, int64_t step, const ifl_model *model,
                              ifl_optimizer *optimizer, char **state_json, ifl_error *err) {
    checkpoint_index index;
    char *state = NULL, *model_json = NULL;
    ifl_status st = IFL_OK;
    IFL_TRY(index_read(&index, folder, err));
    if (index.step != step)
        IFL_TRY_GOTO(
            st, ifl_fail(err, IFL_MISMATCH, "%s: holds step %lld", folder, (long long)index.step),
            done);
    IFL_TRY_GOTO(st, index_check_model(&index, folder, model, err), done);
    IFL_TRY_GOTO(st, index_check_profile(&index, folder, model, err), done);
    int64_t n_bytes = model->n_elements * (int64_t)sizeof(float);
    for (int i = 0; i < 3; i++)
        IFL_TRY_GOTO(st, file_verify(folder, tensor_files[i], &index, n_bytes, NULL, err), done);
    IFL_TRY_GOTO(st,
                 text_read(&state, folder, STATE_NAME, &index, IFL_CHECKPOINT_STATE_BYTES_MAX, err),
                 done);
    IFL_TRY_GOTO(st, text_read(&model_json, folder, MODEL_NAME, &index, MODEL_BYTES_MAX, err),
                 done);
    /* Only now is the optimizer touched; the second reading checks again what it copies. */
    float *const into[3] = {ifl_optimizer_masters(optimizer), ifl_optimizer_moment1(optimizer),
                            ifl_optimizer_moment2(optimizer)};
    for (int i = 0; i < 3; i++)
        IFL_TRY_GOTO(st, file_verify(folder, tensor_files[i], &index, n_bytes, into[i], err), done);
    ifl_optimizer_refresh(optimizer, index.n_updates);
    *state_json = state;
    state = NULL;
done:
    free(state);
    free(model_json);
    json_decref(index.root);
    return st;
}

ifl_status ifl_checkpoint_load(const char *dir, int64_t step, const ifl_model *model,
                               ifl_optimizer *optimizer, int64_t *step_out, char **state_json,
                               ifl_error *err) {
    *state_json = NULL;
    char folder[FOLDER_PATH_MAX];
    if (step >= 0) {
        IFL_TRY(path_of_step(folder, dir, step, err));
        IFL_TRY(load_folder(folder, step, model, optimizer, state_json, err));
        *step_out = step;
        return IFL_OK;
    }
    int64_t *steps = ifl_alloc(IFL_CHECKPOINT_LIST_MAX, sizeof *steps);
    if (!steps) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", dir);
    int32_t n = ifl_checkpoint_list(dir, steps, IFL_CHECKPOINT_LIST_MAX);
    ifl_status st = ifl_fail(err, IFL_NOTFOUND, "%s: no checkpoint there", dir);
    for (int32_t i = n - 1; i >= 0; i--) {
        ifl_error why = {0};
        ifl_status tried = path_of_step(folder, dir, steps[i], &why);
        if (tried == IFL_OK)
            tried = load_folder(folder, steps[i], model, optimizer, state_json, &why);
        if (tried == IFL_OK) {
            *step_out = steps[i];
            st = IFL_OK;
            break;
        }
        ifl_warn("checkpoint of step %lld is refused: %s", (long long)steps[i], why.text);
        if (i == n - 1) st = ifl_fail(err, tried, "%s", why.text);
        if (tried == IFL_NOMEM) break; /* says nothing about the checkpoint */
    }
    ifl_free(steps);
    return st;
}

ifl_status ifl_checkpoint_info_read(ifl_checkpoint_info *out, const char *folder, ifl_error *err) {
    *out = (ifl_checkpoint_info){0};
    checkpoint_index index;
    IFL_TRY(index_read(&index, folder, err));
    out->step = index.step;
    out->n_updates = index.n_updates;
    out->n_elements = index.n_elements;
    ifl_status st = text_read(&out->model_json, folder, MODEL_NAME, &index, MODEL_BYTES_MAX, err);
    if (st == IFL_OK)
        st = text_read(&out->state_json, folder, STATE_NAME, &index, IFL_CHECKPOINT_STATE_BYTES_MAX,
                       err);
    if (st != IFL_OK) ifl_checkpoint_info_clear(out);
    json_decref(index.root);
    return st;
}

void ifl_checkpoint_info_clear(ifl_checkpoint_info *info) {
    free(info->model_json);
    free(info->state_json);
    *info = (ifl_checkpoint_info){0};
}

ifl_status ifl_checkpoint_read_masters(const char *folder, const ifl_model *model, float *masters,
                                       ifl_error *err) {
    checkpoint_index index;
    IFL_TRY(index_read(&index, folder, err));
    ifl_status st = index_check_model(&index, folder, model, err);
    if (st == IFL_OK)
        st = file_verify(folder, tensor_files[0], &index,
                         model->n_elements * (int64_t)sizeof(float), masters, err);
    json_decref(index.root);
    return st;
}

static int step_compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int32_t ifl_checkpoint_list(const char *dir, int64_t *steps, int32_t max) {
    DIR *d = opendir(dir);
    if (!d) return 0;
    int32_t n = 0;
    for (struct dirent *entry; n < max && (entry = readdir(d));) {
        const char *rest;
        int64_t step = step_of_name(entry->d_name, &rest);
        if (step < 0 || *rest != '\0') continue;
        char folder[FOLDER_PATH_MAX], path[FILE_PATH_MAX];
        if (path_of_step(folder, dir, step, NULL) != IFL_OK ||
            path_join(path, sizeof path, folder, MARKER_NAME, NULL) != IFL_OK ||
            access(path, F_OK) != 0)
            continue;
        steps[n++] = step;
    }
    closedir(d);
    qsort(steps, (size_t)n, sizeof *steps, step_compare);
    return n;
}
