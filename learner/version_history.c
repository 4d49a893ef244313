#include "learner/version_history.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/config.h"
#include "common/memory.h"

typedef struct history_process {
    ifl_version_process process;
    ifl_version_reader *reader; /* NULL: not wanted yet */
} history_process;

struct ifl_version_history {
    char folder[IFL_PATH_MAX];
    const ifl_model *model;
    int32_t n_cached, n;
    history_process processes[];
};

ifl_status ifl_version_history_open(ifl_version_history **out, const char *folder,
                                    const ifl_version_process *processes, int32_t n,
                                    const ifl_model *model, int32_t n_cached, ifl_error *err) {
    ifl_version_history *h = calloc(1, sizeof *h + (size_t)n * sizeof *h->processes);
    *out = h;
    if (!h) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", folder);
    snprintf(h->folder, sizeof h->folder, "%s", folder);
    h->model = model;
    h->n_cached = n_cached;
    h->n = n;
    for (int32_t i = 0; i < n; i++)
        h->processes[i].process = processes[i];
    return IFL_OK;
}

void ifl_version_history_close(ifl_version_history *h) {
    if (!h) return;
    for (int32_t i = 0; i < h->n; i++)
        ifl_version_reader_close(h->processes[i].reader);
    free(h);
}

ifl_status ifl_version_history_get(ifl_version_history *h, int32_t process, int64_t version,
                                   const ifl_weights **out, ifl_error *err) {
    *out = NULL;
    /* Of the process that made the checkpoint: the last one before that had begun by then. */
    int32_t at = process < h->n ? process : h->n - 1;
    while (at > 0 && h->processes[at].process.begin > version)
        at--;
    if (at < 0 || h->processes[at].process.begin > version)
        return ifl_fail(err, IFL_NOTFOUND, "version %lld is of no process of this run",
                        (long long)version);
    history_process *p = &h->processes[at];
    if (!p->reader) {
        char folder[IFL_PATH_MAX + 16];
        snprintf(folder, sizeof folder, "%s/%06d", h->folder, p->process.segment);
        IFL_TRY(ifl_version_reader_open(&p->reader, folder, h->model, h->n_cached, err));
    }
    return ifl_version_reader_get(p->reader, version, out, err);
}
