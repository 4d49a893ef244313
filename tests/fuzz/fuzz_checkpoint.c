/* learner/checkpoint.h.
 *
 *   u8 mode         1: files and marker as they are; 2: the masters are one byte short
 *   index, marker, state, model, separated by 0xff; the rest is the masters, filled up with zeros
 *
 * The hash of a file can't be guessed, so in the index #0 #1 #2 stand for those of the tensors, #s
 * of the state, #m of the model, #f and #p for the fingerprint and the profile, #n for a tensor's
 * bytes; in the marker #h for the index's. */
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "learner/checkpoint.h"
#include "tests/fuzz/tiny_model.h"

static ifl_optimizer *optimizer(void) {
    static ifl_optimizer *o;
    if (o) return o;
    const ifl_optimizer_options options = {
        .learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_clip = 1};
    ifl_error err = {0};
    ifl_log_setup("fuzz", IFL_LOG_ERROR); /* a refused checkpoint is worth a warning elsewhere */
    if (ifl_optimizer_create(&o, tiny_model(), &options, NULL, ifl_ops_best(IFL_PROFILE_F32),
                             &err) != IFL_OK)
        abort();
    return o;
}

typedef struct text {
    char *bytes;
    size_t n, cap;
} text;

static void text_add(text *t, const char *bytes, size_t n) {
    if (t->n + n + 1 > t->cap) {
        t->cap = 2 * (t->n + n + 1);
        t->bytes = realloc(t->bytes, t->cap);
        if (!t->bytes) abort();
    }
    if (n) memcpy(t->bytes + t->n, bytes, n);
    t->n += n;
}

/* What #c stands for: names[c's place] -> values. */
static text text_filled(fuzz_input from, const char *names, char values[][33]) {
    text t = {0};
    text_add(&t, "", 0);
    for (; from.at < from.end; from.at++) {
        const char *name = from.at + 1 < from.end && *from.at == '#' && from.at[1]
                               ? strchr(names, from.at[1])
                               : NULL;
        if (name) {
            text_add(&t, values[name - names], strlen(values[name - names]));
            from.at++;
        } else {
            text_add(&t, (const char *)from.at, 1);
        }
    }
    return t;
}

static fuzz_input text_input(const text *t) {
    return fuzz_input_of((const uint8_t *)t->bytes, t->n);
}

static void hash_text(fuzz_input part, char out[33]) {
    size_t n = fuzz_left(&part);
    ifl_hash_text(ifl_hash_bytes(n ? (const void *)part.at : "", n), out);
}

static void checkpoint_write(const char *folder, fuzz_input in) {
    int mode = (int)fuzz_take(&in, 1);
    fuzz_input index = fuzz_take_until(&in, 0xff), marker = fuzz_take_until(&in, 0xff),
               state = fuzz_take_until(&in, 0xff), model = fuzz_take_until(&in, 0xff);
    size_t n = (size_t)tiny_model()->n_elements * 4;
    uint8_t *masters = calloc(n, 1);
    if (!masters) abort();
    if (fuzz_left(&in)) memcpy(masters, in.at, fuzz_left(&in) < n ? fuzz_left(&in) : n);
    fuzz_input tensor = fuzz_input_of(masters, mode & 2 ? n - 1 : n);
    char values[8][33], index_hash[1][33];
    hash_text(tensor, values[0]);
    hash_text(tensor, values[1]);
    hash_text(tensor, values[2]);
    hash_text(state, values[3]);
    hash_text(model, values[4]);
    ifl_hash_text(tiny_model()->fingerprint, values[5]);
    ifl_hash_text(tiny_model()->profile, values[6]);
    snprintf(values[7], sizeof values[7], "%zu", n);
    text index_text = text_filled(index, mode & 1 ? "" : "012smfpn", values);
    hash_text(text_input(&index_text), index_hash[0]);
    text marker_text = text_filled(marker, mode & 1 ? "" : "h", index_hash);
    fuzz_folder_write(folder, "masters.f32", tensor);
    fuzz_folder_write(folder, "moment1.f32", tensor);
    fuzz_folder_write(folder, "moment2.f32", tensor);
    fuzz_folder_write(folder, "state.json", state);
    fuzz_folder_write(folder, "model.json", model);
    fuzz_folder_write(folder, "checkpoint.json", text_input(&index_text));
    fuzz_folder_write(folder, "COMPLETE", text_input(&marker_text));
    free(index_text.bytes);
    free(marker_text.bytes);
    free(masters);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ifl_error err = {0};
    char folder[600];
    snprintf(folder, sizeof folder, "%s/step_7", fuzz_folder());
    (void)mkdir(folder, 0700);
    checkpoint_write(folder, fuzz_input_of(data, size));
    int64_t step = -1, steps[4];
    FUZZ_CHECK(ifl_checkpoint_list(fuzz_folder(), steps, 4) == 1 && steps[0] == 7);
    ifl_checkpoint_info info;
    bool known = ifl_checkpoint_info_read(&info, folder, &err) == IFL_OK;
    char *state = NULL;
    if (ifl_checkpoint_load(fuzz_folder(), -1, tiny_model(), optimizer(), &step, &state, &err) ==
        IFL_OK) {
        FUZZ_CHECK(known && step == 7 && info.step == 7 && strcmp(state, info.state_json) == 0);
        ifl_model_config config;
        (void)ifl_model_config_from_json(&config, info.model_json, strlen(info.model_json), &err);
    }
    free(state);
    if (known) ifl_checkpoint_info_clear(&info);
    float *masters = calloc((size_t)tiny_model()->n_elements, sizeof *masters);
    if (!masters) abort();
    (void)ifl_checkpoint_read_masters(folder, tiny_model(), masters, &err);
    free(masters);
    return 0;
}
