#include "deploy/cli/bench_peer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_write.h"
#include "common/gguf.h"
#include "common/json_util.h"
#include "common/model_file.h"
#include "deploy/cli/bench_process.h"
#include "kernels/random_model.h"

#define LLAMA_PROGRAM "llama-batched-bench"
#define SCRIPT_PATH "tests/bench/torch_train.py"
#define MAKE_GGUF                                                                                  \
    "make one from a Hugging Face folder (`inflight export --model FILE --out FOLDER` writes it) " \
    "by llama.cpp's "                                                                              \
    "`convert_hf_to_gguf.py FOLDER --outtype bf16 --outfile FILE.gguf`"

/* --- Looking things up
 * ---------------------------------------------------------------------------- */

static ifl_status path_put(char out[IFL_PEER_PATH_MAX], const char *path, size_t n,
                           ifl_error *err) {
    if (n == 0 || n >= IFL_PEER_PATH_MAX)
        return ifl_fail(err, IFL_USAGE, "--against: a path of %zu bytes, wanted 1 to %d", n,
                        IFL_PEER_PATH_MAX - 1);
    memcpy(out, path, n);
    out[n] = '\0';
    return IFL_OK;
}

/* Every matrix must hold bf16: another type would be another amount of memory to read, and other
 * weights than ours after rounding. */
static ifl_status gguf_check(const char *path, ifl_error *err) {
    ifl_gguf *file = NULL;
    ifl_status st = ifl_gguf_open(&file, path, err);
    if (st != IFL_OK) {
        ifl_error_wrap(err, "--against llama.cpp needs a BF16 GGUF file; %s", MAKE_GGUF);
        return st;
    }
    for (int32_t i = 0; st == IFL_OK && i < ifl_gguf_count(file); i++) {
        const ifl_gguf_tensor *t = ifl_gguf_at(file, i);
        if (t->n_dims >= 2 && t->type != IFL_GGUF_BF16)
            st = ifl_fail(err, IFL_UNSUPPORTED,
                          "%s: tensor %.100s is %s, wanted BF16 for --against llama.cpp; %s", path,
                          t->name, ifl_gguf_type_name(t->type), MAKE_GGUF);
    }
    ifl_gguf_close(file);
    return st;
}

static ifl_status llama_open(ifl_bench_peer *peer, const char *value, const ifl_bench_args *a,
                             ifl_error *err) {
    struct stat info;
    if (!value)
        return ifl_fail(err, IFL_USAGE,
                        "--against llama.cpp: wanted llama.cpp=FOLDER_WITH_" LLAMA_PROGRAM
                        "[,GGUF]");
    size_t n = strcspn(value, ",");
    IFL_TRY(path_put(peer->program, value, n, err));
    if (stat(peer->program, &info) == 0 && S_ISDIR(info.st_mode)) {
        if (n + sizeof "/" LLAMA_PROGRAM > sizeof peer->program)
            return ifl_fail(err, IFL_USAGE,
                            "--against: the path of llama.cpp's folder is too long");
        memcpy(peer->program + n, "/" LLAMA_PROGRAM, sizeof "/" LLAMA_PROGRAM);
    }
    if (access(peer->program, X_OK) != 0)
        return ifl_fail(err, IFL_NOTFOUND,
                        "--against llama.cpp: no program at %s (%s); llama.cpp builds it by `cmake "
                        "--build FOLDER "
                        "--target " LLAMA_PROGRAM "`",
                        peer->program, strerror(errno));
    if (value[n])
        IFL_TRY(path_put(peer->gguf, value + n + 1, strlen(value + n + 1), err));
    else if (a->config->model.path[0] == '\0' || access(a->config->model.path, R_OK) != 0)
        return ifl_fail(err, IFL_USAGE,
                        "--against llama.cpp needs a file that both sides read: --against "
                        "llama.cpp=FOLDER,FILE.gguf "
                        "with a BF16 GGUF; %s",
                        MAKE_GGUF);
    else
        IFL_TRY(path_put(peer->gguf, a->config->model.path, strlen(a->config->model.path), err));
    return gguf_check(peer->gguf, err);
}

/* --script, else beside the build folder that the binary lies in, else where it was compiled. */
static ifl_status script_find(ifl_bench_peer *peer, const ifl_bench_args *a, ifl_error *err) {
    char self[IFL_PEER_PATH_MAX] = "", source[] = __FILE__;
    if (a->script) {
        IFL_TRY(path_put(peer->script, a->script, strlen(a->script), err));
        if (access(peer->script, R_OK) == 0) return IFL_OK;
        return ifl_fail(err, IFL_NOTFOUND, "--script %s: %s", peer->script, strerror(errno));
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) self[n] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) *slash = '\0';
    snprintf(peer->script, sizeof peer->script, "%.900s/../" SCRIPT_PATH, self);
    if (access(peer->script, R_OK) == 0) return IFL_OK;
    char *folder = strstr(source, "deploy/cli/bench_peer.c");
    if (folder) *folder = '\0';
    snprintf(peer->script, sizeof peer->script, "%.900s" SCRIPT_PATH, source);
    if (access(peer->script, R_OK) == 0) return IFL_OK;
    return ifl_fail(err, IFL_NOTFOUND,
                    "--against torch: no %s beside the folder of this program (%.300s) or in its "
                    "source tree; say "
                    "where it is by --script",
                    SCRIPT_PATH, self);
}

static ifl_status model_shape(ifl_model_config *out, const ifl_bench_args *a, ifl_error *err) {
    const char *path = a->config->model.path;
    ifl_model_file *file = NULL;
    if (path[0] == '\0')
        return ifl_fail(err, IFL_USAGE,
                        "--against torch needs model.path: a model or a shape's name");
    if (ifl_random_model_config(path, out)) return IFL_OK;
    IFL_TRY(ifl_model_file_open(&file, path, err));
    *out = *ifl_model_file_config(file);
    ifl_model_file_close(file);
    return IFL_OK;
}

static ifl_status torch_open(ifl_bench_peer *peer, const char *value, const ifl_bench_args *a,
                             ifl_error *err) {
    const char *python = value ? value : "python3";
    ifl_model_config shape;
    char *text = NULL, path[128];
    peer->dtype = a->torch_dtype ? a->torch_dtype : ifl_profile_name(a->numerics);
    peer->head = a->torch_head ? a->torch_head : "all";
    IFL_TRY(path_put(peer->program, python, strlen(python), err));
    IFL_TRY(script_find(peer, a, err));
    IFL_TRY(model_shape(&shape, a, err));
    IFL_TRY(ifl_model_config_to_json(&shape, &text, err));
    snprintf(peer->folder, sizeof peer->folder, "/tmp/inflight-bench-XXXXXX");
    ifl_status st = IFL_OK;
    if (!mkdtemp(peer->folder)) {
        st = ifl_fail(err, IFL_IO, "%s: cannot make a folder: %s", peer->folder, strerror(errno));
        peer->folder[0] = '\0';
    } else {
        snprintf(path, sizeof path, "%s/config.json", peer->folder);
        st = ifl_file_write_whole(path, text, strlen(text), err);
    }
    free(text);
    return st;
}

ifl_status ifl_bench_peer_open(ifl_bench_peer *peer, const char *spec, const ifl_bench_args *a,
                               ifl_error *err) {
    memset(peer, 0, sizeof *peer);
    size_t n = strcspn(spec, "=");
    const char *value = spec[n] ? spec + n + 1 : NULL;
    if (n == strlen("llama.cpp") && strncmp(spec, "llama.cpp", n) == 0) {
        peer->kind = IFL_PEER_LLAMA;
        return llama_open(peer, value, a, err);
    }
    if (n == strlen("torch") && strncmp(spec, "torch", n) == 0) {
        peer->kind = IFL_PEER_TORCH;
        return torch_open(peer, value, a, err);
    }
    return ifl_fail(err, IFL_USAGE,
                    "--against: got \"%.60s\", wanted llama.cpp=PATH[,GGUF] or torch[=PYTHON]",
                    spec);
}

void ifl_bench_peer_close(ifl_bench_peer *peer) {
    char path[128];
    if (peer->folder[0] == '\0') return;
    snprintf(path, sizeof path, "%s/config.json", peer->folder);
    unlink(path);
    rmdir(peer->folder);
    peer->folder[0] = '\0';
}

bool ifl_bench_peer_runs(const ifl_bench_peer *peer, ifl_bench_model_kind kind) {
    return (peer->kind == IFL_PEER_TORCH) == (kind == IFL_BENCH_TRAIN);
}

const char *ifl_bench_peer_name(const ifl_bench_peer *peer) {
    if (peer->kind == IFL_PEER_LLAMA) return "llama.cpp";
    return strcmp(peer->dtype, "bf16") == 0 ? "torch bf16" : "torch f32";
}

#define TORCH_BOTH "Both: as many random tokens, the same loss mask; forward, backward, AdamW"
#define TORCH_SIDES                                                                                \
    " torch: transformers' model, eager, fused AdamW with states in the model's dtype. Ours: f32 " \
    "masters and states"
#define LLAMA_SIDES " llama.cpp: its own defaults (f16 KV cache)."

const char *ifl_bench_peer_conditions(const ifl_bench_peer *peer, const ifl_bench_model_case *c) {
    static const char all[] = TORCH_BOTH "." TORCH_SIDES ", logits of trained positions alone; "
                                         "torch: of all positions, as masked labels have it.";
    static const char trained[] = TORCH_BOTH ", logits of trained positions alone." TORCH_SIDES ".";
    static const char prefill[] = "Both: the same file, logits of each prompt's last token alone. "
                                  "Ours also samples that token." LLAMA_SIDES;
    static const char decode[] =
        "Both: the same file, full-vocabulary logits of every sequence at each step. Ours also "
        "samples each token from the softmax at temperature 1 and computes its "
        "log-prob; " LLAMA_PROGRAM " does not sample." LLAMA_SIDES;
    if (peer->kind == IFL_PEER_TORCH) return strcmp(peer->head, "all") == 0 ? all : trained;
    return c->kind == IFL_BENCH_PREFILL ? prefill : decode;
}

/* --- llama.cpp
 * ------------------------------------------------------------------------------------ */

/* | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s | */
static bool table_row(const char *line, double fields[10]) {
    for (int i = 0; i < 10; i++) {
        char *end;
        while (*line == ' ')
            line++;
        if (*line++ != '|') return false;
        fields[i] = strtod(line, &end);
        if (end == line) return false;
        line = end;
    }
    return true;
}

ifl_status ifl_bench_peer_parse_table(const char *text, const ifl_bench_model_case *c,
                                      int32_t new_tokens, double *tokens_per_s, ifl_error *err) {
    int n_rows = 0;
    *tokens_per_s = 0;
    while (*text) {
        double f[10];
        if (table_row(text, f) && f[0] == c->prompt_tokens && f[1] == new_tokens &&
            f[2] == c->batch) {
            n_rows++;
            *tokens_per_s = c->kind == IFL_BENCH_PREFILL ? f[5] : f[7];
        }
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    if (n_rows < 2 || !(*tokens_per_s > 0 && *tokens_per_s < 1e12))
        return ifl_fail(err, IFL_PEER,
                        "llama.cpp printed %d rows of its table for %d prompt tokens, %d new ones "
                        "and batch %d, wanted "
                        "2 with a rate above 0 (%g): is it another version of " LLAMA_PROGRAM "?",
                        n_rows, c->prompt_tokens, new_tokens, c->batch, *tokens_per_s);
    return IFL_OK;
}

static ifl_status llama_turn(ifl_bench_turn *out, const ifl_bench_peer *peer,
                             const ifl_bench_args *a, const ifl_bench_model_case *c,
                             ifl_error *err) {
    char context[24], prompt[16], new_text[16], batches[32], threads[16];
    int32_t new_tokens = c->kind == IFL_BENCH_PREFILL ? 1 : c->new_tokens;
    /* Its cache is cut into a part for each sequence, in units of 256. */
    int64_t each = ((int64_t)c->prompt_tokens + new_tokens + 255) / 256 * 256;
    snprintf(context, sizeof context, "%lld", (long long)(each * c->batch));
    snprintf(prompt, sizeof prompt, "%d", c->prompt_tokens);
    snprintf(new_text, sizeof new_text, "%d", new_tokens);
    snprintf(batches, sizeof batches, "%d,%d", c->batch, c->batch); /* the first does not count */
    snprintf(threads, sizeof threads, "%d", a->n_threads);
    const char *argv[] = {peer->program, "-m",   peer->gguf, "-c",   context, "-b",
                          "2048",        "-ub",  "512",      "-npp", prompt,  "-ntg",
                          new_text,      "-npl", batches,    "-t",   threads, "-tb",
                          threads,       "-ngl", "0",        NULL};
    ifl_process_result r;
    ifl_process_command(out->command, sizeof out->command, argv);
    ifl_status st = ifl_process_run(&r, argv, NULL, a->peer_timeout_s, err);
    if (st == IFL_OK)
        st = ifl_bench_peer_parse_table(r.out, c, new_tokens, &out->tokens_per_s, err);
    out->peak_memory_bytes = r.rss_peak_bytes;
    snprintf(out->engine, sizeof out->engine, "%s", LLAMA_PROGRAM);
    ifl_process_result_clear(&r);
    return st;
}

/* --- PyTorch
 * -------------------------------------------------------------------------------------- */

static ifl_status torch_parse(const char *text, ifl_bench_turn *out, ifl_error *err) {
    json_t *o = NULL;
    const char *version = NULL, *model = NULL, *start = strrchr(text, '{');
    if (!start)
        return ifl_fail(err, IFL_PEER, "torch: the script printed no line of JSON, but \"%.200s\"",
                        text);
    size_t n = strcspn(start, "\n");
    IFL_TRY(ifl_json_parse_object(&o, start, n, 1 << 16, "the script's line", err));
    ifl_status st = ifl_json_double(o, "tokens_per_s", 0, 1e12, &out->tokens_per_s, err);
    if (st == IFL_OK) st = ifl_json_text(o, "torch", &version, err);
    if (st == IFL_OK) st = ifl_json_text(o, "model", &model, err);
    if (st == IFL_OK && !(out->tokens_per_s > 0))
        st = ifl_fail(err, IFL_PEER, "torch: the script's line has no tokens_per_s above 0: %.200s",
                      start);
    snprintf(out->engine, sizeof out->engine, "torch %.40s, %.80s", version ? version : "?",
             model ? model : "?");
    json_decref(o);
    return st;
}

static ifl_status torch_turn(ifl_bench_turn *out, const ifl_bench_peer *peer,
                             const ifl_bench_args *a, const ifl_bench_model_case *c,
                             ifl_error *err) {
    char threads[16], sequences[16], tokens[16], trained[16];
    snprintf(threads, sizeof threads, "%d", a->n_threads);
    snprintf(sequences, sizeof sequences, "%d", c->batch);
    snprintf(tokens, sizeof tokens, "%d", c->prompt_tokens);
    snprintf(trained, sizeof trained, "%d", c->trained_tokens);
    const char *argv[] = {
        peer->program,    peer->script, "--config",    peer->folder, "--dtype",  peer->dtype,
        "--threads",      threads,      "--sequences", sequences,    "--tokens", tokens,
        "--trained-last", trained,      "--head",      peer->head,   "--steps",  "1",
        "--warmup",       "1",          NULL};
    ifl_process_result r;
    ifl_process_command(out->command, sizeof out->command, argv);
    ifl_status st = ifl_process_run(&r, argv, NULL, a->peer_timeout_s, err);
    if (st == IFL_OK) st = torch_parse(r.out, out, err);
    out->peak_memory_bytes = r.rss_peak_bytes;
    ifl_process_result_clear(&r);
    return st;
}

ifl_status ifl_bench_peer_turn(ifl_bench_turn *out, const ifl_bench_peer *peer,
                               const ifl_bench_args *a, const ifl_bench_model_case *c,
                               ifl_error *err) {
    memset(out, 0, sizeof *out);
    return peer->kind == IFL_PEER_LLAMA ? llama_turn(out, peer, a, c, err)
                                        : torch_turn(out, peer, a, c, err);
}
