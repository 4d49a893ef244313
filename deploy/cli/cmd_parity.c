/* inflight parity: the numerics contract, checked on this host. */
#include <stdlib.h>
#include <string.h>

#include "actor/parity_check.h"
#include "actor/parity_soak.h"
#include "deploy/cli/commands.h"
#include "deploy/cli/config_model.h"
#include "deploy/cli/options.h"
#include "deploy/cli/signals.h"
#include "kernels/probe_isa.h"
#include "kernels/random_model.h"

typedef struct parity_args {
    const char *isa;
    int64_t tokens;
    bool mutate;
    double soak_minutes; /* 0 = the checks instead */
    int n_soaks;         /* models that share them */
    bool probe;          /* the instructions instead of the checks */
    const atomic_bool *stop;
} parity_args;

enum {
    KEY_MODEL = 'm',
    KEY_THREADS = 't',
    KEY_ISA = 'i',
    KEY_SEED = 's',
    KEY_TOKENS = 'n',
    KEY_MUTATE = 1,
    KEY_SOAK,
    KEY_PROBE
};

static const struct argp_option parity_options[] = {
    {"model", KEY_MODEL, "PATH", 0,
     "model.path: Hugging Face folder, GGUF file or a random shape (tiny-llama, ..., "
     "gemma-3-270m), in the profile model.numerics; default: all tiny shapes in both",
     0},
    {"threads", KEY_THREADS, "N", 0, "actor.threads: most threads (default 0: one per CPU)", 0},
    {"isa", KEY_ISA, "NAME", 0,
     "what the checks run on: ref, generic, avx2, avx512, avx512bf16, amx (default: the best)", 0},
    {"seed", KEY_SEED, "N", 0, "run.seed: of tokens and random weights (default 1)", 0},
    {"tokens", KEY_TOKENS, "N", 0,
     "length of the sequence under test, 8 to 1024 (default 40); not with --soak", 0},
    {"soak", KEY_SOAK, "MINUTES", 0,
     "instead of the checks: random load on the engine (arrivals, preemption, paging, chunking, "
     "swaps, threads, instruction sets), every log-prob computed again",
     0},
    {"probe-isa", KEY_PROBE, NULL, 0,
     "instead of the checks: this CPU's bf16 product instructions (VDPBF16PS, TDPBF16PS) against "
     "their published pseudo-code, and the implementations that can run here",
     0},
    {"mutate", KEY_MUTATE, NULL, 0,
     "runs the checks once for each known way to lose bits, done on purpose: exit status 65 when "
     "every one is noticed, 70 when the checks are blind to one; with --soak, one changed order",
     0},
    {0}};

static const ifl_option_key parity_keys[] = {{KEY_MODEL, "model.path", NULL},
                                             {KEY_THREADS, "actor.threads", NULL},
                                             {KEY_SEED, "run.seed", NULL},
                                             {0}};

static ifl_status parity_option(int key, const char *arg, void *user, ifl_error *err) {
    parity_args *a = user;
    switch (key) {
    case KEY_ISA:
        a->isa = arg;
        return IFL_OK;
    case KEY_TOKENS:
        return ifl_options_int("tokens", arg, 8, 1024, &a->tokens, err);
    case KEY_MUTATE:
        a->mutate = true;
        return IFL_OK;
    case KEY_PROBE:
        a->probe = true;
        return IFL_OK;
    case KEY_SOAK:
        return ifl_options_double("soak", arg, 1e-6, 1e6, &a->soak_minutes, err);
    default:
        return IFL_USAGE;
    }
}

static ifl_status parity_soak(const parity_args *a, const ifl_config *config,
                              const ifl_loaded_model *loaded, ifl_error *err) {
    ifl_soak_result r;
    ifl_soak_options options = {.seed = (uint64_t)config->run.seed,
                                .seconds = a->soak_minutes * 60 / a->n_soaks,
                                .threads_max = config->actor.threads,
                                .ops = a->isa ? ifl_ops_best(loaded->model->numerics) : NULL,
                                .mutate = a->mutate,
                                .stop = a->stop,
                                .progress = stderr};
    IFL_TRY(ifl_parity_soak(loaded->model, loaded->weights, &options, &r, err));
    printf("soak %.0f s: %lld rounds, %lld trajectories; %lld swaps, %lld preemptions, %lld rows "
           "rebuilt, %lld shared\n"
           "%lld log-probs compared, %lld of them after a swap, %lld differing\n",
           r.seconds, (long long)r.rounds, (long long)r.trajectories, (long long)r.swaps,
           (long long)r.preemptions, (long long)r.tokens_rebuilt, (long long)r.tokens_shared,
           (long long)r.tokens, (long long)r.tokens_after_swap, (long long)r.differing);
    fflush(stdout);
    if (r.differing > 0)
        return ifl_fail(err, IFL_PARITY, "%s: %lld of %lld log-probs differ; first in %s",
                        ifl_config_model_name(config), (long long)r.differing, (long long)r.tokens,
                        r.first);
    if (atomic_load(a->stop)) return ifl_fail(err, IFL_STOPPED, "soak stopped on request");
    return IFL_OK;
}

static ifl_status parity_model(const parity_args *a, const ifl_config *config,
                               ifl_parity_report *report, ifl_error *err) {
    ifl_loaded_model loaded;
    IFL_TRY(ifl_config_model_bare(&loaded, config, 2048, stdout, err));
    printf("numerics profile %s\n", ifl_profile_name(loaded.model->numerics));
    if (a->soak_minutes > 0) {
        ifl_status soaked = parity_soak(a, config, &loaded, err);
        ifl_loaded_model_clear(&loaded);
        return soaked;
    }
    ifl_parity_options po = {.seed = (uint64_t)config->run.seed,
                             .n_tokens = (int32_t)a->tokens,
                             .threads_max = config->actor.threads};
    ifl_status st;
    if (a->mutate) {
        ifl_parity_mutation_result r;
        st = ifl_parity_mutate(loaded.model, loaded.weights, &po, stdout, &r, err);
        fflush(stdout);
        if (st == IFL_OK) {
            st = ifl_parity_mutation_status(&r, err);
            ifl_error_wrap(err, "%s", ifl_config_model_name(config));
        }
        ifl_loaded_model_clear(&loaded);
        return st;
    }
    st = ifl_parity_run(loaded.model, loaded.weights, &po, report, err);
    if (st == IFL_OK) {
        ifl_parity_report_print(report, stdout);
        fflush(stdout);
        st = ifl_parity_report_status(report, err);
        if (st != IFL_OK) ifl_error_wrap(err, "%s", ifl_config_model_name(config));
    }
    ifl_loaded_model_clear(&loaded);
    return st;
}

static bool is_tiny(const char *shape) {
    return strncmp(shape, "tiny-", 5) == 0;
}

/* Goes on after a family with differences, so that the table is whole; the first one decides. */
static ifl_status parity_families(const parity_args *a, const ifl_config *config,
                                  ifl_profile profile, ifl_error *err) {
    ifl_parity_report report;
    ifl_status first = IFL_OK;
    const char *name;
    ifl_config *tiny = malloc(sizeof *tiny);
    if (!tiny) return ifl_fail(err, IFL_NOMEM, "parity: out of memory");
    *tiny = *config;
    snprintf(tiny->model.numerics, sizeof tiny->model.numerics, "%s", ifl_profile_name(profile));
    for (int i = 0; (name = ifl_random_model_name(i)); i++) {
        if (!is_tiny(name)) continue;
        ifl_error this_err = {0};
        snprintf(tiny->model.path, sizeof tiny->model.path, "%s", name);
        ifl_status st = parity_model(a, tiny, &report, &this_err);
        if (st == IFL_OK) continue;
        bool says_more = first == IFL_OK || (st != IFL_PARITY && st != IFL_STOPPED);
        if (says_more) *err = this_err, first = st;
        if (st != IFL_PARITY) break;
    }
    free(tiny);
    return first;
}

static ifl_status parity_work(const ifl_options *options, void *user, ifl_error *err) {
    parity_args *a = user;
    ifl_parity_report report;
    if (a->probe) return ifl_probe_isa((uint64_t)options->config->run.seed, stdout, err);
    if (a->isa && !ifl_ops_force(a->isa))
        return ifl_fail(err, IFL_USAGE,
                        "--isa %s: this host cannot run it; see the list that `inflight "
                        "parity` prints",
                        a->isa);
    printf("kernels %s%s\n", ifl_ops_best(IFL_PROFILE_F32)->name, a->mutate ? ", mutated" : "");
    a->n_soaks = 1;
    if (a->soak_minutes > 0) a->stop = ifl_signals_install();
    if (options->config->model.path[0] || options->config_path)
        return parity_model(a, options->config, &report, err);
    const char *name;
    a->n_soaks = 0;
    for (int i = 0; (name = ifl_random_model_name(i)); i++)
        a->n_soaks += is_tiny(name) ? IFL_PROFILE_COUNT : 0;
    ifl_status first = IFL_OK;
    for (int i = 0; i < IFL_PROFILE_COUNT; i++) {
        ifl_error this_err = {0};
        ifl_status st = parity_families(a, options->config, (ifl_profile)i, &this_err);
        if (st == IFL_OK) continue;
        if (first == IFL_OK || st != IFL_PARITY) *err = this_err, first = st;
        if (st != IFL_PARITY) break;
    }
    return first;
}

int ifl_cmd_parity(int argc, char **argv) {
    static const char *const presets[] = {"actor.threads=0", NULL};
    parity_args a = {0};
    const ifl_options_spec spec = {
        .doc =
            "Runs one sequence through every path that the numerics contract names (batch sizes 1 "
            "to 64, "
            "prefill splits, page sizes, threads, instruction sets, packed teacher forcing, the "
            "engine "
            "with weight swaps) and compares log-probs bit by bit, gradients too. Exit status 65 "
            "when any differ.",
        .extra = parity_options,
        .keys = parity_keys,
        .presets = presets,
        .on_option = parity_option,
        .user = &a,
        .work = parity_work,
    };
    return ifl_options_run(argc, argv, &spec);
}
