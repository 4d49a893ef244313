#include <stdlib.h>
#include <string.h>

#include "common/file_write.h"
#include "common/json_util.h"
#include "common/safetensors.h"

struct ifl_safetensors_writer {
    ifl_file_writer *file;
    char *path;
    uint64_t n_wanted, n_written; /* bytes after the header */
};

static ifl_status spec_to_json(const ifl_safetensors_spec *spec, const ifl_safetensors_spec *before,
                               json_t *header, uint64_t *at, ifl_error *err) {
    if (spec->dtype != IFL_DTYPE_BF16 && spec->dtype != IFL_DTYPE_F32 &&
        spec->dtype != IFL_DTYPE_I32 && spec->dtype != IFL_DTYPE_I64)
        return ifl_fail(err, IFL_UNSUPPORTED, "tensor %s: dtype %s is not written", spec->name,
                        ifl_dtype_name(spec->dtype));
    if (before && ifl_dtype_bytes(before->dtype) < ifl_dtype_bytes(spec->dtype))
        return ifl_fail(err, IFL_USAGE, "tensor %s: a wider dtype after a narrower one",
                        spec->name);
    if (spec->n_dims < 0 || spec->n_dims > IFL_SAFETENSORS_DIMS_MAX)
        return ifl_fail(err, IFL_LIMIT, "tensor %s: %d dimensions, limit %d", spec->name,
                        (int)spec->n_dims, IFL_SAFETENSORS_DIMS_MAX);
    if (json_object_get(header, spec->name))
        return ifl_fail(err, IFL_USAGE, "tensor %s: named twice", spec->name);
    int64_t n_bytes = ifl_dtype_bytes(spec->dtype), end;
    json_t *shape = json_array();
    for (int32_t i = 0; i < spec->n_dims; i++) {
        json_array_append_new(shape, json_integer(spec->dims[i]));
        if (spec->dims[i] < 0 || __builtin_mul_overflow(n_bytes, spec->dims[i], &n_bytes)) {
            json_decref(shape);
            return ifl_fail(err, IFL_LIMIT, "tensor %s: dimension %d is %lld", spec->name, (int)i,
                            (long long)spec->dims[i]);
        }
    }
    if (__builtin_add_overflow((int64_t)*at, n_bytes, &end)) {
        json_decref(shape);
        return ifl_fail(err, IFL_LIMIT, "tensor %s: the file passes 2^63 bytes", spec->name);
    }
    json_t *info = json_pack("{s:s, s:o, s:[I, I]}", "dtype", ifl_dtype_name(spec->dtype), "shape",
                             shape, "data_offsets", (json_int_t)*at, (json_int_t)end);
    *at = (uint64_t)end;
    if (json_object_set_new(header, spec->name, info) != 0)
        return ifl_fail(err, IFL_FORMAT, "tensor %s: the name is not UTF-8, or memory is out",
                        spec->name);
    return IFL_OK;
}

static ifl_status writer_put_header(ifl_safetensors_writer *w, const json_t *header,
                                    ifl_error *err) {
    char *text = json_dumps(header, JSON_COMPACT);
    if (!text) return ifl_fail(err, IFL_NOMEM, "out of memory");
    size_t n = strlen(text), n_padded = (n + 7) & ~(size_t)7; /* the data then begins 8-aligned */
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)n_padded >> (8 * i));
    ifl_status st = ifl_file_writer_write(w->file, length, sizeof length, err);
    if (st == IFL_OK) st = ifl_file_writer_write(w->file, text, n, err);
    if (st == IFL_OK) st = ifl_file_writer_write(w->file, "        ", n_padded - n, err);
    free(text);
    return st;
}

ifl_status ifl_safetensors_writer_begin(ifl_safetensors_writer **out, const char *path,
                                        const ifl_safetensors_spec *specs, int32_t n,
                                        ifl_error *err) {
    ifl_status st;
    *out = NULL;
    ifl_safetensors_writer *w = calloc(1, sizeof *w);
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    if (!w || !header || !(w->path = strdup(path))) {
        st = ifl_fail(err, IFL_NOMEM, "%s: out of memory", path);
        goto done;
    }
    for (int32_t i = 0; i < n; i++)
        IFL_TRY_GOTO(
            st, spec_to_json(&specs[i], i > 0 ? &specs[i - 1] : NULL, header, &w->n_wanted, err),
            done);
    IFL_TRY_GOTO(st, ifl_file_writer_begin(&w->file, path, err), done);
    IFL_TRY_GOTO(st, writer_put_header(w, header, err), done);
    *out = w;
    w = NULL;
done:
    json_decref(header);
    ifl_safetensors_writer_abort(w);
    return st;
}

ifl_status ifl_safetensors_writer_write(ifl_safetensors_writer *w, const void *bytes,
                                        size_t n_bytes, ifl_error *err) {
    if (n_bytes > w->n_wanted - w->n_written)
        return ifl_fail(err, IFL_MISMATCH, "%s: more bytes than the %llu of the announced tensors",
                        w->path, (unsigned long long)w->n_wanted);
    w->n_written += n_bytes;
    return ifl_file_writer_write(w->file, bytes, n_bytes, err);
}

ifl_status ifl_safetensors_writer_finish(ifl_safetensors_writer *w, ifl_error *err) {
    ifl_status st;
    if (w->n_written != w->n_wanted) {
        st = ifl_fail(err, IFL_MISMATCH, "%s: %llu bytes written, the announced tensors have %llu",
                      w->path, (unsigned long long)w->n_written, (unsigned long long)w->n_wanted);
    } else {
        st = ifl_file_writer_finish(w->file, err);
        w->file = NULL;
    }
    ifl_safetensors_writer_abort(w);
    return st;
}

void ifl_safetensors_writer_abort(ifl_safetensors_writer *w) {
    if (!w) return;
    ifl_file_writer_abort(w->file);
    free(w->path);
    free(w);
}
