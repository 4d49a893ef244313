/* Compiles C and C++, in the sandbox as well: a compiler reads what a policy wrote. */
#include <stdlib.h>
#include <string.h>

#include "common/hash.h"
#include "rewards/code/code.h"

#define COMPILE_WALL_MS 20000
#define COMPILE_MEMORY ((uint64_t)1 << 30)
#define BINARY_BYTES_MAX (8u << 20)

typedef struct binary {
    ifl_hash source;
    ifl_code_language language;
    ifl_code_verdict verdict;
    char *bytes; /* owned; NULL: didn't compile */
    size_t n;
    bool used;
} binary;

static binary cache[IFL_CODE_BINARIES];
static int cache_next;

void code_compile_forget(void) {
    for (int i = 0; i < IFL_CODE_BINARIES; i++) {
        free(cache[i].bytes);
        memset(&cache[i], 0, sizeof cache[i]);
    }
}

/* The compiler writes its output to the result channel: nothing else of its folder is seen. */
static void spec_compile(ifl_sandbox_spec *spec, ifl_slice source, ifl_code_language language) {
    bool cpp = language == IFL_CODE_CPP;
    static const char plain[] = CODE_CPP " -o prog prog.cc && cat prog >&3";
    static const char quick[] = CODE_CPP " -I" IFL_SANDBOX_KEEP " -o prog prog.cc && cat prog >&3";
    *spec = (ifl_sandbox_spec){
        .argv = {"/bin/sh", "-c",
                 cpp ? code_headers_ready(source) ? quick : plain
                     : "gcc -std=gnu17 -O2 -pipe -w -o prog prog.c -lm && cat prog >&3"},
        .limits = ifl_sandbox_limits_default(),
        .n_files = 1,
        .files = {{cpp ? "prog.cc" : "prog.c", source.text, source.n, false}}};
    spec->limits.wall_ms = spec->limits.cpu_ms = COMPILE_WALL_MS;
    spec->limits.memory_bytes = COMPILE_MEMORY;
    spec->limits.output_bytes = BINARY_BYTES_MAX;
}

static ifl_code_verdict compile_judge(const ifl_sandbox_result *run) {
    if (run->end == IFL_RUN_EXITED && run->code == 0 && run->channel.n > 0) return IFL_CODE_OK;
    if (run->end == IFL_RUN_EXITED && run->code == 127) return IFL_CODE_UNAVAILABLE;
    return IFL_CODE_COMPILE_ERROR;
}

ifl_status code_compile(ifl_slice source, ifl_code_language language, ifl_slice *out,
                        ifl_code_verdict *verdict, ifl_error *err) {
    ifl_hash hash = ifl_hash_bytes(source.text, source.n);
    binary *b = NULL;
    for (int i = 0; i < IFL_CODE_BINARIES && !b; i++)
        if (cache[i].used && cache[i].language == language && ifl_hash_equal(cache[i].source, hash))
            b = &cache[i];
    if (!b) {
        ifl_sandbox_spec spec;
        ifl_sandbox_result run;
        spec_compile(&spec, source, language);
        ifl_status st = code_execute(&spec, &run, err);
        ifl_code_verdict v = st == IFL_OK ? compile_judge(&run) : IFL_CODE_CHECKER_ERROR;
        if (st == IFL_OK && v == IFL_CODE_UNAVAILABLE)
            st = ifl_fail(err, IFL_UNSUPPORTED, "code: there is no %s here: %.200s",
                          language == IFL_CODE_CPP ? "g++" : "gcc",
                          run.err.bytes ? run.err.bytes : "");
        if (st == IFL_OK) {
            b = &cache[cache_next++ % IFL_CODE_BINARIES];
            free(b->bytes);
            *b = (binary){hash, language, v, NULL, 0, true};
            if (v == IFL_CODE_OK) {
                b->bytes = run.channel.bytes;
                b->n = run.channel.n;
                run.channel.bytes = NULL;
            }
        }
        ifl_sandbox_result_clear(&run);
        if (st != IFL_OK) return st;
    }
    *verdict = b->verdict;
    *out = (ifl_slice){b->bytes, b->n};
    return IFL_OK;
}
