#include "common/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const status_texts[IFL_STATUS_COUNT] = {
#define IFL_STATUS_TEXT(name, text) [IFL_##name] = text,
    IFL_STATUS_MAP(IFL_STATUS_TEXT)
#undef IFL_STATUS_TEXT
};

const char *ifl_status_text(ifl_status status) {
    return (unsigned)status < IFL_STATUS_COUNT ? status_texts[status] : "unknown status";
}

ifl_status ifl_fail(ifl_error *err, ifl_status status, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return status;
}

ifl_status ifl_error_wrap(ifl_error *err, const char *format, ...) {
    if (!err) return IFL_OK;
    char context[IFL_ERROR_TEXT_MAX / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    char old[IFL_ERROR_TEXT_MAX];
    memcpy(old, err->text, sizeof old);
    size_t n = strlen(context);
    memcpy(err->text, context, n);
    snprintf(err->text + n, sizeof err->text - n, ": %s", old);
    return err->status;
}

int ifl_status_exit_code(ifl_status status) {
    switch (status) {
    case IFL_OK:
        return 0;
    case IFL_USAGE:
        return 64;
    case IFL_FORMAT:
    case IFL_LIMIT:
    case IFL_UNSUPPORTED:
    case IFL_NOTFOUND:
    case IFL_MISMATCH:
    case IFL_PARITY:
        return 65;
    case IFL_PEER:
        return 69;
    case IFL_IO:
    case IFL_FULL:
        return 74;
    case IFL_AGAIN:
    case IFL_TIMEOUT:
    case IFL_STOPPED:
        return 75;
    case IFL_AUTH:
        return 77;
    default:
        return 70;
    }
}

void ifl_assert_failed(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, what);
    abort();
}
