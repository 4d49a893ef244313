/* The part of `inflight bench swap` that counts CPU time: what a learner pays to make a version
 * (unpacking, comparing, coding, hashing) and an actor to take it in (copying the base, decoding,
 * applying, hashing), with nothing else going on. On the versions of a real run where there is an
 * archive: how many weights change, by how much and where decides what coding costs. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "actor/weight_receiver.h"
#include "deploy/cli/bench.h"
#include "learner/publisher.h"
#include "learner/version_archive.h"

#define VERSIONS_MAX 16 /* of an archive */
#define WAIT_MS 120000

/* The oldest version of an archive, by its files' names. */
static ifl_status archive_first(const char *folder, int64_t *first, ifl_error *err) {
    DIR *dir = opendir(folder);
    *first = INT64_MAX;
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        char *end;
        if (entry->d_name[0] != 'v') continue;
        long long version = strtoll(entry->d_name + 1, &end, 10);
        if (end > entry->d_name + 1 && strcmp(end, ".ifw") == 0 && version >= 0 && version < *first)
            *first = version;
    }
    if (dir) closedir(dir);
    if (*first < INT64_MAX) return IFL_OK;
    return ifl_fail(err, IFL_NOTFOUND, "bench: no versions (v*.ifw) in %s", folder);
}

/* Publishes and takes one; core times in ms. */
static ifl_status coding_turn(ifl_publisher *publisher, ifl_weight_receiver *receiver,
                              const ifl_weights *weights, int64_t version, ifl_weights **current,
                              ifl_weights *spare, double *encode_ms, double *apply_ms,
                              ifl_error *err) {
    ifl_weight_receiver_stats before, after;
    ifl_publisher_stats published;
    ifl_weights *taken;
    ifl_weight_receiver_stats_get(receiver, &before);
    IFL_TRY(ifl_weight_receiver_offer_buffer(receiver, spare, *current, err));
    IFL_TRY(ifl_publisher_publish(publisher, version, version - 1, weights, NULL, NULL, err));
    IFL_TRY(ifl_weight_receiver_wait(receiver, WAIT_MS, &taken, err));
    ifl_publisher_stats_get(publisher, &published);
    ifl_weight_receiver_stats_get(receiver, &after);
    if (taken->version != version)
        return ifl_fail(err, IFL_MISMATCH, "bench: version %lld came, not %lld",
                        (long long)taken->version, (long long)version);
    *current = taken;
    *encode_ms = published.core_s_last * 1e3;
    *apply_ms = (after.core_s - before.core_s) * 1e3;
    return IFL_OK;
}

ifl_status ifl_bench_coding(const ifl_bench_args *a, ifl_publisher *publisher,
                            ifl_weight_receiver *receiver, const ifl_weights *const source[2],
                            ifl_weights *const buffers[2], int64_t *version, ifl_weights **current,
                            ifl_bench_coding_result *out, ifl_error *err) {
    ifl_version_reader *reader = NULL;
    double encode_ms[IFL_BENCH_REPEATS_MAX], apply_ms[IFL_BENCH_REPEATS_MAX],
        percent[IFL_BENCH_REPEATS_MAX];
    int64_t first = 0, n = a->versions ? VERSIONS_MAX : a->repeat;
    int32_t n_done = 0;
    ifl_status st = IFL_OK;
    const ifl_model *model = source[0]->model;
    *current = buffers[0];
    if (a->versions) {
        IFL_TRY(archive_first(a->versions, &first, err));
        IFL_TRY(ifl_version_reader_open(&reader, a->versions, model, 2, err));
    }
    /* The first is the base of the others, and doesn't count. */
    for (int64_t i = 0; i <= n; i++) {
        const ifl_weights *next = source[(i + 1) % 2];
        if (reader) st = ifl_version_reader_get(reader, first + i, &next, err);
        if (st == IFL_NOTFOUND && i > 1) break; /* it has no more */
        if (st != IFL_OK) goto done;
        ifl_weights *spare = *current == buffers[0] ? buffers[1] : buffers[0];
        double encode = 0.0, apply = 0.0;
        IFL_TRY_GOTO(st,
                     coding_turn(publisher, receiver, next, ++*version, current, spare, &encode,
                                 &apply, err),
                     done);
        if (i == 0) continue;
        ifl_publisher_stats s;
        ifl_publisher_stats_get(publisher, &s);
        encode_ms[n_done] = encode;
        apply_ms[n_done] = apply;
        percent[n_done++] = 100.0 * (double)s.patch_bytes / (2.0 * (double)model->n_elements);
    }
    st = IFL_OK;
    *out = (ifl_bench_coding_result){.n_versions = n_done,
                                     .encode_ms = ifl_figures_of(encode_ms, n_done),
                                     .apply_ms = ifl_figures_of(apply_ms, n_done),
                                     .percent = ifl_figures_of(percent, n_done)};
done:
    ifl_version_reader_close(reader);
    return st;
}
