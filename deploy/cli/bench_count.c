/* Instructions of each op, for machines too noisy to time on. Valgrind's callgrind runs this
 * program twice for each case, with n repetitions and with 2 n; the difference of the two counts is
 * n repetitions and nothing else. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "deploy/cli/bench.h"
#include "deploy/cli/bench_process.h"
#include "kernels/bench_ops.h"

enum { PATH_BYTES = 4096, RUNS_MAX = 2000 };
#define INSTRUCTIONS_WANTED                                                                        \
    3e6 /* of one difference: start-up is not the same to the last instruction */
#define VALGRIND "valgrind"

/* valgrind 3.19 to 3.24 know AVX2 and FMA, not AVX-512: its processor hides what it cannot run. */
static ifl_status isa_choose(const char **out, const ifl_bench_args *a, ifl_error *err) {
    bool known =
        !a->isa || !strcmp(a->isa, "avx2") || !strcmp(a->isa, "generic") || !strcmp(a->isa, "ref");
    if (!known)
        return ifl_fail(
            err, IFL_UNSUPPORTED,
            "--count --isa %s: valgrind runs no AVX-512 and no AMX; wanted avx2, generic or ref",
            a->isa);
    *out = a->isa ? a->isa : ifl_ops_force("avx2") ? "avx2" : "generic";
    return IFL_OK;
}

static ifl_status count_parse(const char *text, int64_t *out, ifl_error *err) {
    const char *at = strstr(text, "Collected : ");
    char *end = NULL;
    if (at) *out = strtoll(at + strlen("Collected : "), &end, 10);
    if (!at || end == at || *out <= 0)
        return ifl_fail(err, IFL_PEER,
                        VALGRIND ": no line \"Collected : N\" of callgrind in \"%.300s\"", text);
    return IFL_OK;
}

static ifl_status count_once(const ifl_bench_args *a, const char *self, const char *isa, int32_t i,
                             int64_t n_runs, int64_t *instructions, ifl_error *err) {
    char index[16], runs[24], numerics[32];
    snprintf(index, sizeof index, "%d", i);
    snprintf(runs, sizeof runs, "%lld", (long long)n_runs);
    snprintf(numerics, sizeof numerics, "model.numerics=%s", ifl_profile_name(a->numerics));
    const char *argv[] = {VALGRIND,
                          "--tool=callgrind",
                          "--callgrind-out-file=/dev/null",
                          self,
                          "bench",
                          "ops",
                          "--count-case",
                          index,
                          "--count-runs",
                          runs,
                          "--isa",
                          isa,
                          numerics,
                          NULL};
    ifl_process_result r;
    ifl_status st = ifl_process_run(&r, argv, NULL, a->peer_timeout_s, err);
    if (st == IFL_NOTFOUND)
        st = ifl_fail(err, IFL_NOTFOUND,
                      "--count needs valgrind in PATH (Debian: apt-get install valgrind), whose "
                      "callgrind counts");
    if (st == IFL_OK) st = count_parse(r.err, instructions, err);
    ifl_process_result_clear(&r);
    return st;
}

static ifl_status case_count(const ifl_bench_args *a, const char *self, const char *isa, int32_t i,
                             ifl_error *err) {
    char name[96];
    double flop, guess;
    int64_t n_elements, once = 0, twice = 0;
    ifl_bench_ops_repeated(i, &flop, &n_elements, name, sizeof name);
    guess = flop > 0 ? flop / 12 : (double)n_elements;
    int64_t n = (int64_t)(INSTRUCTIONS_WANTED / guess) + 1;
    if (n > RUNS_MAX) n = RUNS_MAX;
    IFL_TRY(count_once(a, self, isa, i, n, &once, err));
    IFL_TRY(count_once(a, self, isa, i, 2 * n, &twice, err));
    double each = (double)(twice - once) / (double)n;
    if (!a->json) {
        char per_flop[24] = "-";
        if (flop > 0) snprintf(per_flop, sizeof per_flop, "%.4f", each / flop);
        printf("%-44s %14.0f %10s %12.3f\n", name, each, per_flop, each / (double)n_elements);
        fflush(stdout);
        return IFL_OK;
    }
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:f, s:I, s:f, s:f}", "bench", "count", "case", name,
                  "ops", isa, "numerics", ifl_profile_name(a->numerics), "runs", (json_int_t)n,
                  "flop", flop, "elements", (json_int_t)n_elements, "instructions", each,
                  "instructions_per_element", each / (double)n_elements);
    if (o && flop > 0) json_object_set_new(o, "instructions_per_flop", json_real(each / flop));
    return ifl_bench_json_print(o, err);
}

ifl_status ifl_bench_count(const ifl_bench_args *a, ifl_error *err) {
    char self[PATH_BYTES];
    const char *isa = "generic";
    int32_t n_counted = 0;
    IFL_TRY(isa_choose(&isa, a, err));
    /* Inside valgrind /proc/self/exe is valgrind. */
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0)
        return ifl_fail(err, IFL_IO, "/proc/self/exe cannot be read: where is this program?");
    self[n] = '\0';
    for (int32_t i = 0; i < ifl_bench_ops_count(); i++) {
        char name[96];
        double flop;
        int64_t n_elements;
        ifl_bench_ops_repeated(i, &flop, &n_elements, name, sizeof name);
        if (a->only && !strstr(name, a->only)) continue;
        if (n_counted++ == 0 && !a->json)
            printf("instructions by callgrind: kernels %s (valgrind runs no AVX-512), profile %s, "
                   "one thread\n"
                   "%-44s %14s %10s %12s\n",
                   isa, ifl_profile_name(a->numerics), "", "instructions", "per FLOP",
                   "per element");
        IFL_TRY(case_count(a, self, isa, i, err));
    }
    if (n_counted == 0)
        return ifl_fail(err, IFL_NOTFOUND, "bench: no op case is called like \"%.60s\"", a->only);
    return IFL_OK;
}
