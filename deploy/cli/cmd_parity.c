/* inflight parity: the numerics contract, checked on this host. */
#include <string.h>

#include "actor/parity_check.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/load_model.h"
#include "deploy/cli/options.h"
#include "kernels/random_model.h"

typedef struct parity_args {
    const char *model; /* NULL: the tiny shape of every family */
    const char *isa;
    int64_t threads, seed, tokens;
    bool mutate;
} parity_args;

enum {
    KEY_MODEL = 'm',
    KEY_THREADS = 't',
    KEY_ISA = 'i',
    KEY_SEED = 's',
    KEY_TOKENS = 'n',
    KEY_MUTATE = 1
};

static const struct argp_option parity_options[] = {
    {"model", KEY_MODEL, "PATH", 0,
     "Hugging Face folder, GGUF file or a random shape (tiny-llama, ..., gemma-3-270m); default: "
     "all "
     "tiny shapes",
     0},
    {"threads", KEY_THREADS, "N", 0, "most threads (default: one per CPU)", 0},
    {"isa", KEY_ISA, "NAME", 0,
     "what the checks run on: ref, generic, avx2, avx512 (default: the best)", 0},
    {"seed", KEY_SEED, "N", 0, "of tokens and random weights (default 1)", 0},
    {"tokens", KEY_TOKENS, "N", 0, "length of the sequence under test, 8 to 1024 (default 40)", 0},
    {"mutate", KEY_MUTATE, NULL, 0,
     "change a reduction order on purpose: the checks must fail (exit status 65)", 0},
    {0}};

static ifl_status parity_option(int key, const char *arg, void *user, ifl_error *err) {
    parity_args *a = user;
    switch (key) {
    case KEY_MODEL:
        a->model = arg;
        return IFL_OK;
    case KEY_THREADS:
        return ifl_options_int("threads", arg, 1, IFL_THREADS_MAX, &a->threads, err);
    case KEY_ISA:
        a->isa = arg;
        return IFL_OK;
    case KEY_SEED:
        return ifl_options_int("seed", arg, 0, INT64_MAX, &a->seed, err);
    case KEY_TOKENS:
        return ifl_options_int("tokens", arg, 8, 1024, &a->tokens, err);
    case KEY_MUTATE:
        a->mutate = true;
        return IFL_OK;
    default:
        return IFL_USAGE;
    }
}

static ifl_status parity_model(const parity_args *a, const char *name, ifl_parity_report *report,
                               ifl_error *err) {
    ifl_loaded_model loaded;
    ifl_load_options lo = {
        .max_positions = 2048, .seed = (uint64_t)a->seed, .allow_random = true, .notes = stdout};
    IFL_TRY(ifl_load_model(&loaded, name, &lo, err));
    ifl_parity_options po = {.seed = (uint64_t)a->seed,
                             .n_tokens = (int32_t)a->tokens,
                             .threads_max = (int32_t)a->threads,
                             .mutate = a->mutate};
    ifl_status st = ifl_parity_run(loaded.model, loaded.weights, &po, report, err);
    if (st == IFL_OK) {
        ifl_parity_report_print(report, stdout);
        fflush(stdout);
        st = ifl_parity_report_status(report, err);
        if (st != IFL_OK) ifl_error_wrap(err, "%s", name);
    }
    ifl_loaded_model_clear(&loaded);
    return st;
}

/* Goes on after a family with differences, so that the table is whole; the first one decides. */
static ifl_status parity_run(const parity_args *a, ifl_error *err) {
    ifl_parity_report report;
    if (a->isa && !ifl_ops_force(a->isa))
        return ifl_fail(err, IFL_USAGE,
                        "--isa %s: this host cannot run it; see the list that `inflight "
                        "parity` prints",
                        a->isa);
    printf("numerics profile f32, kernels %s%s\n", ifl_ops_best()->name,
           a->mutate ? ", mutated" : "");
    if (a->model) return parity_model(a, a->model, &report, err);
    ifl_status first = IFL_OK;
    const char *name;
    for (int i = 0; (name = ifl_random_model_name(i)); i++) {
        if (strncmp(name, "tiny-", 5) != 0) continue;
        ifl_error this_err = {0};
        ifl_status st = parity_model(a, name, &report, &this_err);
        if (st != IFL_OK && st != IFL_PARITY) {
            *err = this_err;
            return st;
        }
        if (first == IFL_OK && st != IFL_OK) {
            first = st;
            *err = this_err;
        }
    }
    return first;
}

int ifl_cmd_parity(int argc, char **argv) {
    parity_args a = {.seed = 1};
    ifl_error err = {0};
    ifl_options options = {0};
    const ifl_options_spec spec = {
        .doc =
            "Runs one sequence through every path that the numerics contract names (batch sizes 1 "
            "to 64, "
            "prefill splits, page sizes, threads, instruction sets, packed teacher forcing, the "
            "engine "
            "with weight swaps) and compares log-probs bit by bit. Exit status 65 when any differ.",
        .extra = parity_options,
        .on_option = parity_option,
        .user = &a,
        .no_config = true,
    };
    ifl_status st = ifl_options_parse(&options, argc, argv, &spec, &err);
    if (st == IFL_OK) st = parity_run(&a, &err);
    ifl_options_free(&options);
    return ifl_options_exit(st, argv[0], &err);
}
