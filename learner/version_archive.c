#include "learner/version_archive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/byte_io.h"
#include "common/config.h"
#include "common/file_map.h"
#include "common/file_write.h"
#include "common/memory.h"
#include "common/run_dir.h"
#include "common/weight_patch.h"

#define MAGIC 0x564c4649u /* the bytes "IFLV" */
#define FORMAT 1
#define HEADER_BYTES 56
#define ENTRY_BYTES 56
#define HASH_BYTES 16

typedef struct archived {
    int64_t version, n_bytes;
    bool dense;
} archived;

struct ifl_version_archive {
    char folder[IFL_PATH_MAX];
    int64_t bytes_max, n_bytes, n_gone;
    archived *files; /* ascending by version */
    size_t n_files, files_cap;
    int32_t since_dense; /* patches behind the last dense one */
};

static ifl_status archive_path(char out[IFL_PATH_MAX], const char *folder, int64_t version,
                               ifl_error *err) {
    int n = snprintf(out, IFL_PATH_MAX, "%s/v%010lld.ifw", folder, (long long)version);
    if (n < 0 || n >= IFL_PATH_MAX) return ifl_fail(err, IFL_LIMIT, "%s: path too long", folder);
    return IFL_OK;
}

static void put_hash(ifl_byte_writer *w, ifl_hash hash) {
    ifl_put_u64(w, hash.low);
    ifl_put_u64(w, hash.high);
}

static ifl_hash take_hash(ifl_byte_reader *r) {
    ifl_hash hash;
    hash.low = ifl_take_u64(r);
    hash.high = ifl_take_u64(r);
    return hash;
}

/* --- Writing ---------------------------------------------------------------------------------- */

ifl_status ifl_version_archive_open(ifl_version_archive **out, const char *folder,
                                    const ifl_model *model, int64_t bytes_max, ifl_error *err) {
    *out = NULL;
    char path[IFL_PATH_MAX], *json = NULL;
    int n = snprintf(path, sizeof path, "%s/model.json", folder);
    if (n < 0 || n >= IFL_PATH_MAX) return ifl_fail(err, IFL_LIMIT, "%s: path too long", folder);
    IFL_TRY(ifl_dir_create(folder, err));
    IFL_TRY(ifl_model_config_to_json(&model->config, &json, err));
    ifl_status st = ifl_file_write_whole(path, json, strlen(json), err);
    free(json);
    if (st != IFL_OK) return st;
    ifl_version_archive *a = calloc(1, sizeof *a);
    if (!a) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", folder);
    snprintf(a->folder, sizeof a->folder, "%s", folder);
    a->bytes_max = bytes_max;
    *out = a;
    return IFL_OK;
}

void ifl_version_archive_close(ifl_version_archive *a) {
    if (!a) return;
    free(a->files);
    free(a);
}

bool ifl_version_archive_wants_dense(const ifl_version_archive *a, int64_t base) {
    return a->n_files == 0 || a->files[a->n_files - 1].version != base ||
           a->since_dense + 1 >= IFL_ARCHIVE_DENSE_EVERY;
}

/* The oldest dense version and its patches, as long as a later dense one is there. */
static void archive_evict(ifl_version_archive *a) {
    while (a->n_bytes > a->bytes_max) {
        size_t n = 1;
        while (n < a->n_files && !a->files[n].dense)
            n++;
        if (n == a->n_files) return;
        for (size_t i = 0; i < n; i++) {
            char path[IFL_PATH_MAX];
            if (archive_path(path, a->folder, a->files[i].version, NULL) == IFL_OK) unlink(path);
            a->n_bytes -= a->files[i].n_bytes;
        }
        a->n_gone += (int64_t)n;
        a->n_files -= n;
        memmove(a->files, a->files + n, a->n_files * sizeof *a->files);
    }
}

static ifl_status archive_write(const char *path, const uint8_t *head, size_t n_head,
                                const ifl_archive_chunk *chunks, int32_t n_chunks, ifl_error *err) {
    ifl_file_writer *w;
    IFL_TRY(ifl_file_writer_begin(&w, path, err));
    ifl_status st = ifl_file_writer_write(w, head, n_head, err);
    for (int32_t i = 0; st == IFL_OK && i < n_chunks; i++)
        st = ifl_file_writer_write(w, chunks[i].data, chunks[i].n_bytes, err);
    if (st == IFL_OK) return ifl_file_writer_finish(w, err);
    ifl_file_writer_abort(w);
    return st;
}

ifl_status ifl_version_archive_put(ifl_version_archive *a, const ifl_manifest *m, int64_t base,
                                   const ifl_archive_chunk *chunks, ifl_error *err) {
    char path[IFL_PATH_MAX];
    IFL_TRY(archive_path(path, a->folder, m->version, err));
    IFL_ASSERT(base == -1 || !ifl_version_archive_wants_dense(a, base));
    size_t n_head = HEADER_BYTES + (size_t)m->n_chunks * ENTRY_BYTES + HASH_BYTES;
    int64_t n_bytes = (int64_t)n_head;
    for (int32_t i = 0; i < m->n_chunks; i++)
        n_bytes += (int64_t)chunks[i].n_bytes;
    IFL_TRY(ifl_disk_headroom(a->folder, n_bytes, "a version of the weights", err));
    void *files = a->files;
    ifl_status st = ifl_grow(&files, &a->files_cap, a->n_files + 1, sizeof *a->files, err);
    a->files = files;
    uint8_t *head = st == IFL_OK ? malloc(n_head) : NULL;
    if (!head) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
    ifl_byte_writer w = {.at = head, .end = head + n_head};
    ifl_put_u32(&w, MAGIC);
    ifl_put_u32(&w, FORMAT);
    ifl_put_u64(&w, (uint64_t)m->version);
    ifl_put_u64(&w, (uint64_t)base);
    ifl_put_u64(&w, (uint64_t)m->n_elements);
    ifl_put_u32(&w, (uint32_t)m->n_chunks);
    ifl_put_u32(&w, 0);
    put_hash(&w, m->content);
    for (int32_t i = 0; i < m->n_chunks; i++) {
        ifl_put_u64(&w, (uint64_t)m->chunks[i].begin);
        ifl_put_u64(&w, (uint64_t)m->chunks[i].n_elements);
        ifl_put_u32(&w, (uint32_t)chunks[i].codec);
        ifl_put_u32(&w, (uint32_t)chunks[i].n_bytes);
        put_hash(&w, ifl_hash_bytes(chunks[i].data, chunks[i].n_bytes));
        put_hash(&w, m->chunks[i].hash);
    }
    put_hash(&w, ifl_hash_bytes(head, (size_t)(w.at - head)));
    IFL_ASSERT(!w.bad && w.at == w.end);
    st = archive_write(path, head, n_head, chunks, m->n_chunks, err);
    free(head);
    if (st != IFL_OK) return st;
    a->files[a->n_files++] = (archived){m->version, n_bytes, base < 0};
    a->since_dense = base < 0 ? 0 : a->since_dense + 1;
    a->n_bytes += n_bytes;
    archive_evict(a);
    return IFL_OK;
}

ifl_version_archive_stats ifl_version_archive_stats_get(const ifl_version_archive *a) {
    return (ifl_version_archive_stats){
        .n_versions = (int64_t)a->n_files,
        .n_bytes = a->n_bytes,
        .oldest = a->n_files ? a->files[0].version : -1,
        .newest = a->n_files ? a->files[a->n_files - 1].version : -1,
        .n_gone = a->n_gone,
    };
}

/* --- Reading ---------------------------------------------------------------------------------- */

typedef struct cached {
    ifl_weights *weights; /* NULL: free */
    int64_t used;
} cached;

struct ifl_version_reader {
    char folder[IFL_PATH_MAX];
    const ifl_model *model;
    int32_t n_cached;
    cached *cache; /* [n_cached] */
    int64_t clock;
    ifl_patch patch;
    uint16_t *elements; /* one chunk */
    size_t elements_cap;
};

/* One file, checked as far as its table goes. */
typedef struct version_file {
    ifl_file_map map;
    int64_t version, base;
    uint32_t n_chunks;
    ifl_hash content;
    const uint8_t *table;
    uint64_t data; /* offset */
} version_file;

ifl_status ifl_version_reader_open(ifl_version_reader **out, const char *folder,
                                   const ifl_model *model, int32_t n_cached, ifl_error *err) {
    *out = NULL;
    IFL_ASSERT(n_cached >= 1);
    ifl_version_reader *r = calloc(1, sizeof *r);
    cached *cache = calloc((size_t)n_cached, sizeof *cache);
    if (!r || !cache || snprintf(r->folder, sizeof r->folder, "%s", folder) >= IFL_PATH_MAX) {
        free(r);
        free(cache);
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory, or too long a path", folder);
    }
    r->model = model;
    r->cache = cache;
    r->n_cached = n_cached;
    *out = r;
    return IFL_OK;
}

void ifl_version_reader_close(ifl_version_reader *r) {
    if (!r) return;
    for (int32_t i = 0; i < r->n_cached; i++)
        ifl_weights_free(r->cache[i].weights);
    free(r->cache);
    ifl_patch_free(&r->patch);
    free(r->elements);
    free(r);
}

static ifl_status file_check(const ifl_version_reader *r, version_file *f, int64_t version,
                             ifl_error *err) {
    const uint8_t *bytes;
    IFL_TRY(ifl_file_map_range(&f->map, 0, HEADER_BYTES, &bytes, err));
    ifl_byte_reader in = {.at = bytes, .end = bytes + HEADER_BYTES};
    uint32_t magic = ifl_take_u32(&in), format = ifl_take_u32(&in);
    if (magic != MAGIC || format != FORMAT)
        return ifl_fail(err, IFL_FORMAT, "%s: not a version of weights of format %d", f->map.path,
                        FORMAT);
    f->version = (int64_t)ifl_take_u64(&in);
    f->base = (int64_t)ifl_take_u64(&in);
    int64_t n_elements = (int64_t)ifl_take_u64(&in);
    f->n_chunks = ifl_take_u32(&in);
    (void)ifl_take_u32(&in);
    f->content = take_hash(&in);
    if (f->version != version || f->base >= version || f->base < -1 ||
        n_elements != r->model->n_elements || f->n_chunks > IFL_WIRE_CHUNKS_MAX)
        return ifl_fail(err, IFL_MISMATCH,
                        "%s: version %lld on %lld, %lld elements in %u chunks; wanted version %lld "
                        "of %lld elements",
                        f->map.path, (long long)f->version, (long long)f->base,
                        (long long)n_elements, f->n_chunks, (long long)version,
                        (long long)r->model->n_elements);
    uint64_t n_head = HEADER_BYTES + (uint64_t)f->n_chunks * ENTRY_BYTES;
    IFL_TRY(ifl_file_map_range(&f->map, 0, n_head + HASH_BYTES, &bytes, err));
    in = (ifl_byte_reader){.at = bytes + n_head, .end = bytes + n_head + HASH_BYTES};
    if (!ifl_hash_equal(take_hash(&in), ifl_hash_bytes(bytes, n_head)))
        return ifl_fail(err, IFL_FORMAT, "%s: its table has another hash than it says",
                        f->map.path);
    f->table = bytes + HEADER_BYTES;
    f->data = n_head + HASH_BYTES;
    return IFL_OK;
}

static ifl_status file_open(const ifl_version_reader *r, int64_t version, version_file *f,
                            ifl_error *err) {
    char path[IFL_PATH_MAX];
    *f = (version_file){0};
    IFL_TRY(archive_path(path, r->folder, version, err));
    ifl_status st = ifl_file_map_open(&f->map, path, err);
    if (st == IFL_NOTFOUND)
        return ifl_fail(err, st, "version %lld is gone: no %s", (long long)version, path);
    if (st != IFL_OK) return st;
    st = file_check(r, f, version, err);
    if (st != IFL_OK) ifl_file_map_close(&f->map);
    return st;
}

static ifl_status reader_chunk(ifl_version_reader *r, ifl_weights *w, int64_t begin, int64_t n,
                               uint32_t codec, const uint8_t *bytes, size_t n_bytes,
                               ifl_error *err) {
    void *elements = r->elements;
    ifl_status st = ifl_grow(&elements, &r->elements_cap, (size_t)n, sizeof *r->elements, err);
    r->elements = elements;
    if (st != IFL_OK) return st;
    if (codec == IFL_CODEC_DENSE) {
        memcpy(r->elements, bytes, (size_t)n * 2); /* the file's bytes may lie at any address */
        ifl_weights_put(w, begin, n, r->elements);
        return IFL_OK;
    }
    if (codec == IFL_CODEC_ULP_GAP) {
        IFL_TRY(ifl_patch_decode(&r->patch, bytes, n_bytes, n, err));
    } else {
        ifl_weights_get(w, begin, n, r->elements);
        IFL_TRY(ifl_patch_decode_classes(&r->patch, bytes, n_bytes, r->elements, n, err));
    }
    return ifl_weights_patch(w, begin, &r->patch, err);
}

/* Applies a file to weights that hold its base, or anything where it is dense. */
static ifl_status reader_apply(ifl_version_reader *r, const version_file *f, ifl_weights *w,
                               ifl_error *err) {
    uint64_t offset = f->data;
    int64_t next = 0;
    ifl_byte_reader in = {.at = f->table, .end = f->table + (size_t)f->n_chunks * ENTRY_BYTES};
    for (uint32_t i = 0; i < f->n_chunks; i++) {
        int64_t begin = (int64_t)ifl_take_u64(&in), n = (int64_t)ifl_take_u64(&in);
        uint32_t codec = ifl_take_u32(&in), n_bytes = ifl_take_u32(&in);
        ifl_hash coded = take_hash(&in);
        (void)take_hash(&in);
        const uint8_t *bytes;
        if (begin != next || n < 1 || n > r->model->n_elements - begin || n > (1 << 30) ||
            (codec == IFL_CODEC_DENSE ? (int64_t)n_bytes != 2 * n
                                      : !ifl_codec_is_patch((int32_t)codec) || f->base < 0))
            return ifl_fail(err, IFL_FORMAT, "%s: chunk %u is [%lld, +%lld), codec %u, %u bytes",
                            f->map.path, i, (long long)begin, (long long)n, codec, n_bytes);
        IFL_TRY(ifl_file_map_range(&f->map, offset, n_bytes, &bytes, err));
        if (!ifl_hash_equal(ifl_hash_bytes(bytes, n_bytes), coded))
            return ifl_fail(err, IFL_FORMAT,
                            "%s: chunk %u (at byte %llu) has another hash than it says",
                            f->map.path, i, (unsigned long long)offset);
        IFL_TRY(reader_chunk(r, w, begin, n, codec, bytes, n_bytes, err));
        offset += n_bytes;
        next = begin + n;
    }
    if (next != r->model->n_elements)
        return ifl_fail(err, IFL_FORMAT, "%s: its chunks cover %lld elements of %lld", f->map.path,
                        (long long)next, (long long)r->model->n_elements);
    w->version = f->version;
    return IFL_OK;
}

static cached *reader_find(ifl_version_reader *r, int64_t version) {
    for (int32_t i = 0; i < r->n_cached; i++)
        if (r->cache[i].weights && r->cache[i].weights->version == version) return &r->cache[i];
    return NULL;
}

/* The place that was not asked for the longest. */
static ifl_status reader_room(ifl_version_reader *r, cached **out, ifl_error *err) {
    cached *oldest = &r->cache[0];
    for (int32_t i = 0; i < r->n_cached; i++) {
        if (!oldest->weights) break;
        if (!r->cache[i].weights || r->cache[i].used < oldest->used) oldest = &r->cache[i];
    }
    if (!oldest->weights) IFL_TRY(ifl_weights_create(&oldest->weights, r->model, err));
    oldest->weights->version = -1;
    *out = oldest;
    return IFL_OK;
}

ifl_status ifl_version_reader_get(ifl_version_reader *r, int64_t version, const ifl_weights **out,
                                  ifl_error *err) {
    *out = NULL;
    version_file files[IFL_ARCHIVE_DENSE_EVERY + 1];
    int32_t n = 0;
    cached *found = reader_find(r, version), *base = found;
    ifl_status st = IFL_OK;
    /* Back to a dense one, or to one that is here. */
    for (int64_t at = version; st == IFL_OK && !base; at = files[n - 1].base) {
        if (n > IFL_ARCHIVE_DENSE_EVERY) {
            st = ifl_fail(err, IFL_FORMAT, "%s: more than %d versions in a row are patches",
                          r->folder, IFL_ARCHIVE_DENSE_EVERY);
            break;
        }
        st = file_open(r, at, &files[n], err);
        if (st != IFL_OK) break;
        n++;
        if (files[n - 1].base < 0) break;
        base = reader_find(r, files[n - 1].base);
    }
    if (st == IFL_OK && !found) {
        if (base) base->used = ++r->clock; /* it must not make room for what is made of it */
        st = reader_room(r, &found, err);
        if (st == IFL_OK && base && base != found) ifl_weights_copy(found->weights, base->weights);
        for (int32_t i = n - 1; st == IFL_OK && i >= 0; i--) {
            st = reader_apply(r, &files[i], found->weights, err);
            if (st == IFL_OK && i == 0 &&
                !ifl_hash_equal(ifl_weights_hash(found->weights), files[0].content))
                st = ifl_fail(err, IFL_MISMATCH, "%s: the weights have another hash than it says",
                              files[0].map.path);
        }
        if (st != IFL_OK && found && found->weights) found->weights->version = -1;
    }
    for (int32_t i = 0; i < n; i++)
        ifl_file_map_close(&files[i].map);
    if (st != IFL_OK) return st;
    found->used = ++r->clock;
    *out = found->weights;
    return IFL_OK;
}
