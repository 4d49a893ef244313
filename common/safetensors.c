/* The reader. The writer is in safetensors_write.c. */
#include "common/safetensors.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file_map.h"
#include "common/json_util.h"
#include "common/memory.h"

#define INDEX_BYTES_MAX (64 << 20)
#define CONVERT_BLOCK 4096 /* elements converted at a time */

struct ifl_safetensors {
    ifl_file_map *files;
    int32_t n_files;
    ifl_safetensors_entry *entries; /* sorted by name once open */
    size_t n_entries, entries_cap;
};

static const char *const dtype_names[] = {
#define DTYPE_NAME(name, bytes) #name,
    IFL_DTYPE_MAP(DTYPE_NAME)
#undef DTYPE_NAME
};
static const uint8_t dtype_sizes[] = {
#define DTYPE_SIZE(name, bytes) bytes,
    IFL_DTYPE_MAP(DTYPE_SIZE)
#undef DTYPE_SIZE
};

const char *ifl_dtype_name(ifl_dtype dtype) {
    IFL_ASSERT((unsigned)dtype < IFL_DTYPE_COUNT);
    return dtype_names[dtype];
}

int64_t ifl_dtype_bytes(ifl_dtype dtype) {
    IFL_ASSERT((unsigned)dtype < IFL_DTYPE_COUNT);
    return dtype_sizes[dtype];
}

/* --- Header --------------------------------------------------------------------------------------
 */

static ifl_status entry_parse_dtype(ifl_safetensors_entry *e, const json_t *info, ifl_error *err) {
    const char *dtype = NULL;
    IFL_TRY(ifl_json_text(info, "dtype", &dtype, err));
    if (!dtype) return ifl_fail(err, IFL_FORMAT, "dtype: missing");
    for (int d = 0; d < IFL_DTYPE_COUNT; d++)
        if (strcmp(dtype, dtype_names[d]) == 0) {
            e->dtype = (ifl_dtype)d;
            return IFL_OK;
        }
    return ifl_fail(err, IFL_UNSUPPORTED, "dtype: \"%.32s\" is not known", dtype);
}

static ifl_status entry_parse_shape(ifl_safetensors_entry *e, const json_t *info, ifl_error *err) {
    const json_t *shape = json_object_get(info, "shape");
    if (!json_is_array(shape)) return ifl_fail(err, IFL_FORMAT, "shape: wanted a list");
    if (json_array_size(shape) > IFL_SAFETENSORS_DIMS_MAX)
        return ifl_fail(err, IFL_LIMIT, "shape: %zu dimensions, limit %d", json_array_size(shape),
                        IFL_SAFETENSORS_DIMS_MAX);
    e->n_dims = (int32_t)json_array_size(shape);
    e->n_elements = 1;
    for (int32_t i = 0; i < e->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return ifl_fail(err, IFL_FORMAT, "shape[%d]: wanted an integer >= 0", (int)i);
        e->dims[i] = json_integer_value(dim);
        if (__builtin_mul_overflow(e->n_elements, e->dims[i], &e->n_elements))
            return ifl_fail(err, IFL_LIMIT, "shape: the product of the dimensions passes 2^63");
    }
    return IFL_OK;
}

/* data_offsets count from the end of the header. */
static ifl_status entry_parse_offsets(ifl_safetensors_entry *e, const json_t *info, uint64_t n_data,
                                      uint64_t data_begin, ifl_error *err) {
    const json_t *range = json_object_get(info, "data_offsets");
    const json_t *first = json_array_get(range, 0), *last = json_array_get(range, 1);
    if (json_array_size(range) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return ifl_fail(err, IFL_FORMAT, "data_offsets: wanted a list of two integers");
    json_int_t begin = json_integer_value(first), end = json_integer_value(last), n_bytes;
    if (begin < 0 || end < begin || (uint64_t)end > n_data)
        return ifl_fail(err, IFL_FORMAT,
                        "data_offsets: [%lld, %lld] is no range of the file's %llu bytes "
                        "of data",
                        (long long)begin, (long long)end, (unsigned long long)n_data);
    if (__builtin_mul_overflow(e->n_elements, (json_int_t)dtype_sizes[e->dtype], &n_bytes) ||
        n_bytes != end - begin)
        return ifl_fail(err, IFL_FORMAT,
                        "data_offsets: %lld bytes, but the shape has %lld elements of %s",
                        (long long)(end - begin), (long long)e->n_elements, dtype_names[e->dtype]);
    e->offset = data_begin + (uint64_t)begin;
    return IFL_OK;
}

static ifl_status safetensors_add(ifl_safetensors *st, const ifl_safetensors_entry *entry,
                                  const char *name, ifl_error *err) {
    void *entries = st->entries;
    ifl_status status =
        ifl_grow(&entries, &st->entries_cap, st->n_entries + 1, sizeof *st->entries, err);
    st->entries = entries;
    IFL_TRY(status);
    ifl_safetensors_entry *e = &st->entries[st->n_entries];
    *e = *entry;
    e->name = strdup(name);
    if (!e->name) return ifl_fail(err, IFL_NOMEM, "out of memory");
    st->n_entries++;
    return IFL_OK;
}

static int entry_by_offset(const void *a, const void *b) {
    const ifl_safetensors_entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    /* Empty tensors share an offset with their successor and come first. */
    return (x->n_elements > 0) - (y->n_elements > 0);
}

static int entry_by_name(const void *a, const void *b) {
    return strcmp(((const ifl_safetensors_entry *)a)->name,
                  ((const ifl_safetensors_entry *)b)->name);
}

static ifl_status safetensors_check_cover(ifl_safetensors *st, size_t first, uint64_t data_begin,
                                          uint64_t data_end, ifl_error *err) {
    size_t n = st->n_entries - first;
    ifl_safetensors_entry *entries = n > 0 ? st->entries + first : NULL;
    if (n > 0) qsort(entries, n, sizeof *entries, entry_by_offset);
    uint64_t at = data_begin;
    for (size_t i = 0; i < n; i++) {
        if (entries[i].offset != at)
            return ifl_fail(err, IFL_FORMAT,
                            "tensor %.200s begins at byte %llu, the one before it ends at "
                            "%llu: %s",
                            entries[i].name, (unsigned long long)entries[i].offset,
                            (unsigned long long)at, entries[i].offset < at ? "overlap" : "gap");
        at += (uint64_t)entries[i].n_elements * dtype_sizes[entries[i].dtype];
    }
    if (at != data_end)
        return ifl_fail(err, IFL_FORMAT, "the tensors end at byte %llu, the file at %llu",
                        (unsigned long long)at, (unsigned long long)data_end);
    return IFL_OK;
}

static ifl_status safetensors_parse_entry(ifl_safetensors *st, const char *name, const json_t *info,
                                          int32_t file, uint64_t data_begin, ifl_error *err) {
    ifl_safetensors_entry e = {.file = file};
    if (strlen(name) > IFL_SAFETENSORS_NAME_MAX)
        return ifl_fail(err, IFL_LIMIT, "a tensor name has %zu bytes, limit %d", strlen(name),
                        IFL_SAFETENSORS_NAME_MAX);
    ifl_status status = IFL_OK;
    if (!json_is_object(info)) status = ifl_fail(err, IFL_FORMAT, "wanted an object");
    if (status == IFL_OK) status = entry_parse_dtype(&e, info, err);
    if (status == IFL_OK) status = entry_parse_shape(&e, info, err);
    if (status == IFL_OK)
        status =
            entry_parse_offsets(&e, info, st->files[file].n_bytes - data_begin, data_begin, err);
    if (status != IFL_OK) {
        ifl_error_wrap(err, "tensor %.200s", name);
        return status;
    }
    return safetensors_add(st, &e, name, err);
}

static ifl_status safetensors_parse_header(ifl_safetensors *st, int32_t file, const json_t *root,
                                           uint64_t data_begin, ifl_error *err) {
    if (json_object_size(root) > IFL_SAFETENSORS_TENSORS_MAX + 1)
        return ifl_fail(err, IFL_LIMIT, "%zu tensors, limit %d", json_object_size(root),
                        IFL_SAFETENSORS_TENSORS_MAX);
    size_t first = st->n_entries;
    const char *name;
    json_t *info;
    json_object_foreach((json_t *)(uintptr_t)root, name, info) {
        if (strcmp(name, "__metadata__") == 0) {
            if (!json_is_object(info))
                return ifl_fail(err, IFL_FORMAT, "__metadata__: wanted an object");
            continue;
        }
        IFL_TRY(safetensors_parse_entry(st, name, info, file, data_begin, err));
    }
    return safetensors_check_cover(st, first, data_begin, st->files[file].n_bytes, err);
}

static ifl_status safetensors_add_file(ifl_safetensors *st, const char *path, ifl_error *err) {
    ifl_file_map *map = &st->files[st->n_files];
    IFL_TRY(ifl_file_map_open(map, path, err));
    int32_t file = st->n_files++;
    const uint8_t *bytes;
    if (map->n_bytes < 8)
        return ifl_fail(err, IFL_FORMAT, "%s: %llu bytes, no safetensors file is that short", path,
                        (unsigned long long)map->n_bytes);
    IFL_TRY(ifl_file_map_range(map, 0, 8, &bytes, err));
    uint64_t n_header = 0;
    for (int i = 7; i >= 0; i--)
        n_header = n_header << 8 | bytes[i];
    if (n_header > IFL_SAFETENSORS_HEADER_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: header of %llu bytes, limit %d", path,
                        (unsigned long long)n_header, IFL_SAFETENSORS_HEADER_MAX);
    IFL_TRY(ifl_file_map_range(map, 8, n_header, &bytes, err));
    if (n_header == 0 || bytes[0] != '{')
        return ifl_fail(err, IFL_FORMAT, "%s: the header does not begin with {", path);
    json_t *root = NULL;
    ifl_status status = ifl_json_parse_object(&root, (const char *)bytes, (size_t)n_header,
                                              IFL_SAFETENSORS_HEADER_MAX, "header", err);
    if (status == IFL_OK) status = safetensors_parse_header(st, file, root, 8 + n_header, err);
    if (status != IFL_OK) ifl_error_wrap(err, "%s", path);
    json_decref(root);
    return status;
}

/* --- Folders -------------------------------------------------------------------------------------
 */

typedef struct name_list {
    char **names; /* owned */
    size_t n, cap;
} name_list;

static void name_list_free(name_list *list) {
    for (size_t i = 0; i < list->n; i++)
        free(list->names[i]);
    free(list->names);
}

static ifl_status name_list_add(name_list *list, const char *name, ifl_error *err) {
    for (size_t i = 0; i < list->n; i++)
        if (strcmp(list->names[i], name) == 0) return IFL_OK;
    if (list->n == IFL_SAFETENSORS_FILES_MAX)
        return ifl_fail(err, IFL_LIMIT, "more than %d safetensors files",
                        IFL_SAFETENSORS_FILES_MAX);
    void *names = list->names;
    ifl_status status = ifl_grow(&names, &list->cap, list->n + 1, sizeof *list->names, err);
    list->names = names;
    IFL_TRY(status);
    list->names[list->n] = strdup(name);
    if (!list->names[list->n]) return ifl_fail(err, IFL_NOMEM, "out of memory");
    list->n++;
    return IFL_OK;
}

static bool name_ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Names from the index are untrusted: a plain file name only, so that nothing outside is opened. */
static ifl_status names_from_index(name_list *list, const json_t *map, ifl_error *err) {
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file) {
        const char *name = json_string_value(file);
        if (!name || strchr(name, '/') || name[0] == '.' || strlen(name) > 255 ||
            !name_ends_with(name, ".safetensors"))
            return ifl_fail(err, IFL_FORMAT,
                            "weight_map: tensor %.200s: wanted the plain name of a "
                            ".safetensors file, got \"%.64s\"",
                            tensor, name ? name : "(no string)");
        IFL_TRY(name_list_add(list, name, err));
    }
    return IFL_OK;
}

static int name_compare(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static ifl_status names_from_folder(name_list *list, const char *folder, ifl_error *err) {
    DIR *dir = opendir(folder);
    if (!dir) return ifl_fail(err, IFL_IO, "%s: cannot list", folder);
    ifl_status status = IFL_OK;
    for (struct dirent *d; status == IFL_OK && (d = readdir(dir));)
        if (name_ends_with(d->d_name, ".safetensors") && d->d_name[0] != '.')
            status = name_list_add(list, d->d_name, err);
    closedir(dir);
    if (list->n > 1) qsort(list->names, list->n, sizeof *list->names, name_compare);
    return status;
}

/* Every tensor of the index must be where the index says. */
static ifl_status index_check(const ifl_safetensors *st, const json_t *map, ifl_error *err) {
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file) {
        int32_t i = ifl_safetensors_find(st, tensor);
        const char *name = json_string_value(file);
        if (i < 0 || !name_ends_with(st->files[st->entries[i].file].path, name))
            return ifl_fail(err, IFL_FORMAT, "weight_map: tensor %.200s is not in %.64s", tensor,
                            name);
    }
    return IFL_OK;
}

static ifl_status safetensors_sort(ifl_safetensors *st, ifl_error *err) {
    if (st->n_entries > 0) qsort(st->entries, st->n_entries, sizeof *st->entries, entry_by_name);
    for (size_t i = 1; i < st->n_entries; i++)
        if (strcmp(st->entries[i].name, st->entries[i - 1].name) == 0)
            return ifl_fail(err, IFL_FORMAT, "tensor %.200s is in %s and in %s",
                            st->entries[i].name, st->files[st->entries[i - 1].file].path,
                            st->files[st->entries[i].file].path);
    return IFL_OK;
}

static ifl_status safetensors_add_names(ifl_safetensors *st, const char *folder,
                                        const name_list *list, ifl_error *err) {
    st->files = calloc(list->n, sizeof *st->files);
    if (!st->files) return ifl_fail(err, IFL_NOMEM, "out of memory");
    for (size_t i = 0; i < list->n; i++) {
        char *path;
        if (asprintf(&path, "%s/%s", folder, list->names[i]) < 0)
            return ifl_fail(err, IFL_NOMEM, "out of memory");
        ifl_status status = safetensors_add_file(st, path, err);
        free(path);
        IFL_TRY(status);
    }
    return safetensors_sort(st, err);
}

static ifl_status safetensors_open_folder(ifl_safetensors *st, const char *folder, ifl_error *err) {
    ifl_status status;
    name_list list = {0};
    char *path = NULL, *text = NULL;
    size_t n_text = 0;
    json_t *index = NULL;
    const json_t *map = NULL;
    if (asprintf(&path, "%s/model.safetensors", folder) < 0) {
        path = NULL;
        status = ifl_fail(err, IFL_NOMEM, "out of memory");
        goto done;
    }
    if (access(path, F_OK) == 0) {
        IFL_TRY_GOTO(status, name_list_add(&list, "model.safetensors", err), done);
    } else {
        free(path);
        if (asprintf(&path, "%s/model.safetensors.index.json", folder) < 0) {
            path = NULL;
            status = ifl_fail(err, IFL_NOMEM, "out of memory");
            goto done;
        }
        status = ifl_file_read_text(path, INDEX_BYTES_MAX, &text, &n_text, err);
        if (status == IFL_OK) {
            IFL_TRY_GOTO(status,
                         ifl_json_parse_object(&index, text, n_text, INDEX_BYTES_MAX, path, err),
                         done);
            IFL_TRY_GOTO(status, ifl_json_child(index, "weight_map", &map, err), done);
            if (map && json_object_size(map) > IFL_SAFETENSORS_TENSORS_MAX) {
                status = ifl_fail(err, IFL_LIMIT, "%s: %zu tensors, limit %d", path,
                                  json_object_size(map), IFL_SAFETENSORS_TENSORS_MAX);
                goto done;
            }
            if (!map || json_object_size(map) == 0) {
                status = ifl_fail(err, IFL_FORMAT, "%s: no weight_map", path);
                goto done;
            }
            IFL_TRY_GOTO(status, names_from_index(&list, map, err), done);
        } else if (status == IFL_NOTFOUND) {
            IFL_TRY_GOTO(status, names_from_folder(&list, folder, err), done);
        } else {
            goto done;
        }
    }
    if (list.n == 0) {
        status = ifl_fail(err, IFL_NOTFOUND, "%s: no .safetensors file in this folder", folder);
        goto done;
    }
    IFL_TRY_GOTO(status, safetensors_add_names(st, folder, &list, err), done);
    if (map) IFL_TRY_GOTO(status, index_check(st, map, err), done);
done:
    name_list_free(&list);
    json_decref(index);
    free(text);
    free(path);
    return status;
}

ifl_status ifl_safetensors_open(ifl_safetensors **out, const char *path, ifl_error *err) {
    *out = NULL;
    ifl_safetensors *st = calloc(1, sizeof *st);
    if (!st) return ifl_fail(err, IFL_NOMEM, "out of memory");
    ifl_status status;
    DIR *dir = opendir(path);
    if (dir) {
        closedir(dir);
        status = safetensors_open_folder(st, path, err);
    } else {
        st->files = calloc(1, sizeof *st->files);
        status = st->files ? safetensors_add_file(st, path, err)
                           : ifl_fail(err, IFL_NOMEM, "out of memory");
        if (status == IFL_OK) status = safetensors_sort(st, err);
    }
    if (status == IFL_OK) {
        *out = st;
        st = NULL;
    }
    ifl_safetensors_close(st);
    return status;
}

void ifl_safetensors_close(ifl_safetensors *st) {
    if (!st) return;
    for (size_t i = 0; i < st->n_entries; i++)
        free((char *)(uintptr_t)st->entries[i].name);
    free(st->entries);
    for (int32_t i = 0; i < st->n_files; i++)
        ifl_file_map_close(&st->files[i]);
    free(st->files);
    free(st);
}

int32_t ifl_safetensors_count(const ifl_safetensors *st) {
    return (int32_t)st->n_entries;
}

const ifl_safetensors_entry *ifl_safetensors_at(const ifl_safetensors *st, int32_t i) {
    IFL_ASSERT(i >= 0 && (size_t)i < st->n_entries);
    return &st->entries[i];
}

int32_t ifl_safetensors_find(const ifl_safetensors *st, const char *name) {
    ifl_safetensors_entry key = {.name = name};
    const ifl_safetensors_entry *e =
        st->n_entries == 0
            ? NULL
            : bsearch(&key, st->entries, st->n_entries, sizeof *st->entries, entry_by_name);
    return e ? (int32_t)(e - st->entries) : -1;
}

const char *ifl_safetensors_path(const ifl_safetensors *st, int32_t file) {
    IFL_ASSERT(file >= 0 && file < st->n_files);
    return st->files[file].path;
}

/* --- Values --------------------------------------------------------------------------------------
 */

/* The bytes of elements [begin, begin + n); they may lie at any address. */
static ifl_status safetensors_range(const ifl_safetensors *st, int32_t i, int64_t begin, int64_t n,
                                    const uint8_t **bytes, ifl_error *err) {
    const ifl_safetensors_entry *e = ifl_safetensors_at(st, i);
    if (begin < 0 || n < 0 || begin > e->n_elements || n > e->n_elements - begin)
        return ifl_fail(err, IFL_LIMIT, "tensor %.200s: wanted %lld elements at %lld, it has %lld",
                        e->name, (long long)n, (long long)begin, (long long)e->n_elements);
    uint64_t size = dtype_sizes[e->dtype];
    return ifl_file_map_range(&st->files[e->file], e->offset + (uint64_t)begin * size,
                              (uint64_t)n * size, bytes, err);
}

static ifl_status safetensors_refuse_dtype(const ifl_safetensors *st, int32_t i, const char *wanted,
                                           ifl_error *err) {
    const ifl_safetensors_entry *e = ifl_safetensors_at(st, i);
    return ifl_fail(err, IFL_UNSUPPORTED, "%s: tensor %.200s has dtype %s, wanted %s",
                    st->files[e->file].path, e->name, dtype_names[e->dtype], wanted);
}

ifl_status ifl_safetensors_read_f32(const ifl_safetensors *st, int32_t i, int64_t begin, int64_t n,
                                    float *out, ifl_error *err) {
    const uint8_t *bytes;
    ifl_dtype dtype = ifl_safetensors_at(st, i)->dtype;
    if (dtype != IFL_DTYPE_F32 && dtype != IFL_DTYPE_BF16 && dtype != IFL_DTYPE_F16)
        return safetensors_refuse_dtype(st, i, "BF16, F16 or F32", err);
    IFL_TRY(safetensors_range(st, i, begin, n, &bytes, err));
    if (dtype == IFL_DTYPE_F32) {
        if (n > 0) memcpy(out, bytes, (size_t)n * 4);
        return IFL_OK;
    }
    for (int64_t k = 0; k < n; k++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * k, 2);
        out[k] = dtype == IFL_DTYPE_BF16 ? ifl_bf16_to_f32(half) : ifl_f16_to_f32(half);
    }
    return IFL_OK;
}

ifl_status ifl_safetensors_read_bf16(const ifl_safetensors *st, int32_t i, int64_t begin, int64_t n,
                                     uint16_t *out, ifl_rounding_stats *stats, ifl_error *err) {
    if (ifl_safetensors_at(st, i)->dtype == IFL_DTYPE_BF16) {
        const uint8_t *bytes;
        IFL_TRY(safetensors_range(st, i, begin, n, &bytes, err));
        if (n > 0) memcpy(out, bytes, (size_t)n * 2);
        if (stats) ifl_rounding_count_bf16(out, n, stats);
        return IFL_OK;
    }
    float block[CONVERT_BLOCK];
    while (n > 0) {
        int64_t m = n < CONVERT_BLOCK ? n : CONVERT_BLOCK;
        IFL_TRY(ifl_safetensors_read_f32(st, i, begin, m, block, err));
        ifl_round_to_bf16(block, m, out, stats);
        begin += m;
        out += m;
        n -= m;
    }
    return ifl_safetensors_read_f32(st, i, begin, 0, block,
                                    err); /* the dtype check, for n = 0 too */
}

ifl_status ifl_safetensors_read_i64(const ifl_safetensors *st, int32_t i, int64_t begin, int64_t n,
                                    int64_t *out, ifl_error *err) {
    const uint8_t *bytes;
    ifl_dtype dtype = ifl_safetensors_at(st, i)->dtype;
    if (dtype != IFL_DTYPE_I32 && dtype != IFL_DTYPE_I64)
        return safetensors_refuse_dtype(st, i, "I32 or I64", err);
    IFL_TRY(safetensors_range(st, i, begin, n, &bytes, err));
    for (int64_t k = 0; k < n; k++) {
        if (dtype == IFL_DTYPE_I64) {
            memcpy(&out[k], bytes + 8 * k, 8);
        } else {
            int32_t value;
            memcpy(&value, bytes + 4 * k, 4);
            out[k] = value;
        }
    }
    return IFL_OK;
}
