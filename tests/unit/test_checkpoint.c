/* Checkpoints: the round trip, and every way in which one can be half-written or broken. */
#include <fcntl.h>
#include <signal.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <jansson.h>

#include "common/file_write.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/rng.h"
#include "kernels/random_model.h"
#include "learner/checkpoint.h"

static ifl_error err;

#define assert_ok(expr)                                                                            \
    do {                                                                                           \
        if ((expr) != IFL_OK) fail_msg("%s: %s", #expr, err.text);                                 \
    } while (0)

static ifl_model *model;
static float *gradients;
static char dir[256];
static const char *const tensor_names[3] = {"masters.f32", "moment1.f32", "moment2.f32"};

static int setup(void **state) {
    (void)state;
    ifl_log_setup("test", IFL_LOG_ERROR); /* refused checkpoints are warned about, rightly */
    ifl_model_config config;
    assert_true(ifl_random_model_config("tiny-llama", &config));
    assert_ok(ifl_model_create(&model, &config, 64, IFL_PROFILE_F32, &err));
    gradients = ifl_alloc((size_t)model->n_elements, sizeof *gradients);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    ifl_free(gradients);
    ifl_model_free(model);
    return 0;
}

static int dir_make(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/ifl_checkpoint_XXXXXX");
    assert_non_null(mkdtemp(dir));
    strcat(dir, "/run/checkpoints"); /* made by the first save */
    return 0;
}

static int dir_remove(void **state) {
    (void)state;
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%.*s'", (int)strlen("/tmp/ifl_checkpoint_XXXXXX"),
             dir);
    return system(command);
}

static ifl_optimizer *optimizer_make(void) {
    const ifl_optimizer_options options = {
        .learning_rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_clip = 1};
    ifl_weights *weights;
    ifl_optimizer *o;
    assert_ok(ifl_weights_create(&weights, model, &err));
    assert_ok(ifl_random_weights(weights, 1, &err));
    assert_ok(ifl_optimizer_create(&o, model, &options, NULL, ifl_ops_best(IFL_PROFILE_F32), &err));
    ifl_optimizer_start(o, weights);
    ifl_weights_free(weights);
    return o;
}

static void optimizer_step(ifl_optimizer *o, uint64_t step) {
    ifl_rng_key key = {1, step, IFL_RNG_TEST};
    for (int64_t i = 0; i < model->n_elements; i++)
        gradients[i] = (float)ifl_rng_normal(&key, (uint64_t)i, 0);
    assert_ok(ifl_optimizer_step(o, gradients, NULL, &err));
}

static void assert_same_state(ifl_optimizer *a, ifl_optimizer *b) {
    size_t n = (size_t)model->n_elements;
    assert_memory_equal(ifl_optimizer_masters(a), ifl_optimizer_masters(b), n * 4);
    assert_memory_equal(ifl_optimizer_moment1(a), ifl_optimizer_moment1(b), n * 4);
    assert_memory_equal(ifl_optimizer_moment2(a), ifl_optimizer_moment2(b), n * 4);
    assert_memory_equal(ifl_optimizer_bf16(a), ifl_optimizer_bf16(b), n * 2);
    assert_int_equal(ifl_optimizer_updates(a), ifl_optimizer_updates(b));
}

static void file_path(char out[512], int step, const char *name) {
    snprintf(out, 512, "%s/step_%d/%s", dir, step, name);
}

static int64_t file_size(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? (int64_t)info.st_size : -1;
}

static void file_flip(const char *path, int64_t at) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)at, SEEK_SET), 0);
    int c = fgetc(f);
    assert_true(c != EOF);
    assert_int_equal(fseek(f, (long)at, SEEK_SET), 0);
    fputc(c ^ 1, f);
    fclose(f);
}

static void test_resumed_training_has_the_same_bytes(void **state) {
    (void)state;
    ifl_optimizer *a = optimizer_make(), *b = optimizer_make();
    for (uint64_t s = 1; s <= 3; s++)
        optimizer_step(a, s);
    assert_ok(ifl_checkpoint_save(dir, 3, model, a, "{\"cursor\": 96}", 2, &err));
    int64_t step;
    char *json;
    assert_ok(ifl_checkpoint_load(dir, -1, model, b, &step, &json, &err));
    assert_int_equal(step, 3);
    assert_string_equal(json, "{\"cursor\": 96}");
    free(json);
    assert_same_state(a, b);
    optimizer_step(a, 4);
    optimizer_step(b, 4);
    assert_same_state(a, b);
    ifl_optimizer_free(a);
    ifl_optimizer_free(b);
}

static void test_keeps_the_newest_and_replaces_a_step(void **state) {
    (void)state;
    ifl_optimizer *a = optimizer_make(), *b = optimizer_make();
    for (int s = 9; s <= 12; s++) { /* 9 before 10: numbers, not names */
        optimizer_step(a, (uint64_t)s);
        assert_ok(ifl_checkpoint_save(dir, s, model, a, "{}", 2, &err));
    }
    int64_t steps[8];
    assert_int_equal(ifl_checkpoint_list(dir, steps, 8), 2);
    assert_int_equal(steps[0], 11);
    assert_int_equal(steps[1], 12);
    optimizer_step(a, 13);
    assert_ok(ifl_checkpoint_save(dir, 12, model, a, "{\"again\":1}", 2, &err));
    int64_t step;
    char *json;
    assert_ok(ifl_checkpoint_load(dir, 12, model, b, &step, &json, &err));
    assert_string_equal(json, "{\"again\":1}");
    free(json);
    assert_same_state(a, b);
    assert_int_equal(ifl_checkpoint_list("/nonexistent", steps, 8), 0);
    ifl_optimizer_free(a);
    ifl_optimizer_free(b);
}

static void test_nothing_there_is_not_found(void **state) {
    (void)state;
    ifl_optimizer *a = optimizer_make();
    int64_t step;
    char *json;
    assert_int_equal(ifl_checkpoint_load(dir, -1, model, a, &step, &json, &err), IFL_NOTFOUND);
    assert_int_equal(ifl_checkpoint_load(dir, 5, model, a, &step, &json, &err), IFL_NOTFOUND);
    assert_null(json);
    ifl_optimizer_free(a);
}

/* Two checkpoints, 1 and 2; `break_it` damages step 2. The load must refuse it, name `mention`,
 * fall back to step 1 and have left the optimizer as step 1 holds it. */
static void check_falls_back(void (*break_it)(void), const char *mention) {
    ifl_optimizer *a = optimizer_make(), *b = optimizer_make(), *untouched = optimizer_make();
    optimizer_step(a, 1);
    assert_ok(ifl_checkpoint_save(dir, 1, model, a, "{\"s\":1}", 5, &err));
    ifl_optimizer *second = optimizer_make();
    optimizer_step(second, 1);
    optimizer_step(second, 2);
    assert_ok(ifl_checkpoint_save(dir, 2, model, second, "{\"s\":2}", 5, &err));
    break_it();
    int64_t step = -7;
    char *json;
    ifl_status st = ifl_checkpoint_load(dir, 2, model, b, &step, &json, &err);
    assert_int_not_equal(st, IFL_OK);
    if (!strstr(err.text, mention)) fail_msg("no \"%s\" in: %s", mention, err.text);
    assert_same_state(b, untouched); /* refused before anything was written */
    assert_ok(ifl_checkpoint_load(dir, -1, model, b, &step, &json, &err));
    assert_int_equal(step, 1);
    assert_string_equal(json, "{\"s\":1}");
    free(json);
    assert_same_state(a, b);
    ifl_optimizer_free(a);
    ifl_optimizer_free(b);
    ifl_optimizer_free(second);
    ifl_optimizer_free(untouched);
}

static int tensor_to_break;
static void break_bit(void) {
    char path[512];
    file_path(path, 2, tensor_names[tensor_to_break]);
    file_flip(path, file_size(path) / 2);
}
static void break_truncate(void) {
    char path[512];
    file_path(path, 2, "moment2.f32");
    assert_int_equal(truncate(path, file_size(path) - 4), 0);
}
static void break_missing(void) {
    char path[512];
    file_path(path, 2, "moment1.f32");
    assert_int_equal(unlink(path), 0);
}
static void break_marker_missing(void) {
    char path[512];
    file_path(path, 2, "COMPLETE");
    assert_int_equal(unlink(path), 0);
}
static void break_marker_text(void) {
    char path[512];
    file_path(path, 2, "COMPLETE");
    FILE *f = fopen(path, "w");
    fputs("done\n", f);
    fclose(f);
}
static void break_index(void) {
    char path[512];
    file_path(path, 2, "checkpoint.json");
    file_flip(path, file_size(path) / 2);
}
static void break_state(void) {
    char path[512];
    file_path(path, 2, "state.json");
    file_flip(path, 5);
}
static void break_format(void) {
    char path[512], text[256];
    file_path(path, 2, "COMPLETE");
    FILE *f = fopen(path, "r+");
    assert_non_null(fgets(text, sizeof text, f));
    char *number = strstr(text, " 1 ");
    assert_non_null(number);
    number[1] = '9';
    rewind(f);
    fputs(text, f);
    fclose(f);
}
static void break_other_step(void) { /* somebody renamed a folder */
    char from[512], to[512];
    snprintf(to, sizeof to, "%s/step_2", dir);
    snprintf(from, sizeof from, "%s/step_2_old", dir);
    assert_int_equal(rename(to, from), 0);
    char command[1200];
    snprintf(command, sizeof command, "cp -r '%s/step_1' '%s'", dir, to);
    assert_int_equal(system(command), 0);
}

/* Rewrites the index with `change`, and the marker so that it fits. */
static void index_rewrite(void (*change)(json_t *index)) {
    char path[512], hash[33];
    file_path(path, 2, "checkpoint.json");
    json_t *index = json_load_file(path, 0, NULL);
    assert_non_null(index);
    change(index);
    char *text = json_dumps(index, JSON_COMPACT);
    assert_ok(ifl_file_write_whole(path, text, strlen(text), &err));
    ifl_hash_text(ifl_hash_bytes(text, strlen(text)), hash);
    free(text);
    json_decref(index);
    file_path(path, 2, "COMPLETE");
    FILE *f = fopen(path, "w");
    fprintf(f, "inflight-checkpoint %d step 2 xxh3 %s\n", IFL_CHECKPOINT_FORMAT, hash);
    fclose(f);
}
static void index_forget_profile(json_t *index) {
    assert_int_equal(json_object_del(index, "profile"), 0);
}
static void break_profile(void) {
    index_rewrite(index_forget_profile);
}
static void index_swell_state(json_t *index) {
    json_t *state = json_object_get(json_object_get(index, "files"), "state.json");
    assert_int_equal(
        json_object_set_new(state, "bytes", json_integer(IFL_CHECKPOINT_STATE_BYTES_MAX)), 0);
}
static void break_state_size(void) {
    index_rewrite(index_swell_state);
}

static void test_a_flipped_bit_in_any_tensor_is_found(void **state) {
    (void)state;
    for (tensor_to_break = 0; tensor_to_break < 3; tensor_to_break++) {
        check_falls_back(break_bit, tensor_names[tensor_to_break]);
        ifl_optimizer *o = optimizer_make();
        int64_t step;
        char *json;
        assert_int_equal(ifl_checkpoint_load(dir, 2, model, o, &step, &json, &err), IFL_MISMATCH);
        assert_non_null(strstr(err.text, "at offset"));
        assert_non_null(strstr(err.text, "hash"));
        ifl_optimizer_free(o);
    }
}
static void test_a_truncated_tensor_is_refused(void **state) {
    (void)state;
    check_falls_back(break_truncate, "moment2.f32");
}
static void test_a_missing_tensor_is_refused(void **state) {
    (void)state;
    check_falls_back(break_missing, "moment1.f32");
}
static void test_a_missing_marker_is_a_half_written_one(void **state) {
    (void)state;
    check_falls_back(break_marker_missing, "half-written");
}
static void test_a_foreign_marker_is_refused(void **state) {
    (void)state;
    check_falls_back(break_marker_text, "COMPLETE");
}
static void test_a_changed_index_is_refused(void **state) {
    (void)state;
    check_falls_back(break_index, "checkpoint.json");
}
static void test_a_changed_state_is_refused(void **state) {
    (void)state;
    check_falls_back(break_state, "state.json");
}
static void test_an_index_without_a_profile_is_refused(void **state) {
    (void)state;
    check_falls_back(break_profile, "a profile");
}
/* Before any memory is taken for it. */
static void test_a_state_shorter_than_the_index_says_is_refused(void **state) {
    (void)state;
    check_falls_back(break_state_size, "the index says 67108864");
}
static void test_another_format_is_refused(void **state) {
    (void)state;
    check_falls_back(break_format, "format 9");
}
static void test_a_renamed_folder_is_refused(void **state) {
    (void)state;
    check_falls_back(break_other_step, "holds step 1");
}

static void test_another_model_is_refused(void **state) {
    (void)state;
    ifl_optimizer *a = optimizer_make();
    assert_ok(ifl_checkpoint_save(dir, 1, model, a, "{}", 1, &err));
    ifl_model_config config;
    ifl_model *other;
    ifl_optimizer *b;
    const ifl_optimizer_options options = {.beta1 = 0.9, .beta2 = 0.9, .eps = 1e-8};
    assert_true(ifl_random_model_config("tiny-qwen3", &config));
    assert_ok(ifl_model_create(&other, &config, 64, IFL_PROFILE_F32, &err));
    assert_ok(ifl_optimizer_create(&b, other, &options, NULL, ifl_ops_best(IFL_PROFILE_F32), &err));
    int64_t step;
    char *json;
    assert_int_equal(ifl_checkpoint_load(dir, -1, other, b, &step, &json, &err), IFL_MISMATCH);
    assert_non_null(strstr(err.text, "fingerprint"));
    ifl_optimizer_free(a);
    ifl_optimizer_free(b);
    ifl_model_free(other);
}

static void test_another_arithmetic_is_refused(void **state) {
    (void)state;
    ifl_optimizer *a = optimizer_make();
    assert_ok(ifl_checkpoint_save(dir, 1, model, a, "{}", 1, &err));
    ifl_model_config config;
    ifl_model *other;
    assert_true(ifl_random_model_config("tiny-llama", &config));
    assert_ok(ifl_model_create(&other, &config, 64, IFL_PROFILE_BF16, &err));
    int64_t step;
    char *json;
    assert_int_equal(ifl_checkpoint_load(dir, -1, other, a, &step, &json, &err), IFL_MISMATCH);
    assert_non_null(strstr(err.text, "model.numerics"));
    ifl_optimizer_free(a);
    ifl_model_free(other);
}

static void test_a_writer_killed_anywhere_leaves_the_older_one(void **state) {
    (void)state;
    ifl_optimizer *a = optimizer_make(), *b = optimizer_make();
    optimizer_step(a, 1);
    assert_ok(ifl_checkpoint_save(dir, 1, model, a, "{}", 5, &err));
    int n_second = 0, n_rounds = 12;
    for (int round = 0; round < n_rounds; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (int s = 2;; s++) /* saves until it is killed */
                if (ifl_checkpoint_save(dir, 2 + s % 2, model, a, "{}", 5, NULL) != IFL_OK)
                    _exit(1);
        }
        usleep((useconds_t)(1000 + 31000 * round));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        int64_t step, steps[8];
        char *json;
        assert_ok(ifl_checkpoint_load(dir, -1, model, b, &step, &json, &err));
        free(json);
        assert_same_state(a, b);
        n_second += step > 1;
        /* Whatever has a name is whole. */
        int32_t n = ifl_checkpoint_list(dir, steps, 8);
        for (int32_t i = 0; i < n; i++) {
            assert_ok(ifl_checkpoint_load(dir, steps[i], model, b, &step, &json, &err));
            free(json);
        }
    }
    assert_true(n_second > 0);
    /* The next save clears what the killed ones left. */
    assert_ok(ifl_checkpoint_save(dir, 9, model, a, "{}", 5, &err));
    char command[512];
    snprintf(command, sizeof command, "ls '%s' | grep -q tmp", dir);
    assert_int_not_equal(system(command), 0);
    ifl_optimizer_free(a);
    ifl_optimizer_free(b);
}

static void test_info_and_masters_for_export(void **state) {
    (void)state;
    ifl_optimizer *a = optimizer_make();
    optimizer_step(a, 1);
    assert_ok(ifl_checkpoint_save(dir, 4, model, a, "{\"x\":2}", 1, &err));
    char folder[512];
    snprintf(folder, sizeof folder, "%s/step_4", dir);
    ifl_checkpoint_info info;
    assert_ok(ifl_checkpoint_info_read(&info, folder, &err));
    assert_int_equal(info.step, 4);
    assert_int_equal(info.n_updates, 1);
    assert_int_equal(info.n_elements, model->n_elements);
    assert_string_equal(info.state_json, "{\"x\":2}");
    ifl_model_config config;
    ifl_model *again;
    assert_ok(ifl_model_config_from_json(&config, info.model_json, strlen(info.model_json), &err));
    assert_ok(ifl_model_create(&again, &config, 0, IFL_PROFILE_F32, &err));
    assert_ok(ifl_checkpoint_read_masters(folder, again, gradients, &err));
    assert_memory_equal(gradients, ifl_optimizer_masters(a), (size_t)model->n_elements * 4);
    ifl_model_free(again);
    ifl_checkpoint_info_clear(&info);
    char path[512];
    file_path(path, 4, "masters.f32");
    file_flip(path, 0);
    assert_int_equal(ifl_checkpoint_read_masters(folder, model, gradients, &err), IFL_MISMATCH);
    ifl_optimizer_free(a);
}

#define with_dir(test) cmocka_unit_test_setup_teardown(test, dir_make, dir_remove)

int main(void) {
    const struct CMUnitTest tests[] = {
        with_dir(test_resumed_training_has_the_same_bytes),
        with_dir(test_keeps_the_newest_and_replaces_a_step),
        with_dir(test_nothing_there_is_not_found),
        with_dir(test_a_flipped_bit_in_any_tensor_is_found),
        with_dir(test_a_truncated_tensor_is_refused),
        with_dir(test_a_missing_tensor_is_refused),
        with_dir(test_a_missing_marker_is_a_half_written_one),
        with_dir(test_a_foreign_marker_is_refused),
        with_dir(test_a_changed_index_is_refused),
        with_dir(test_a_changed_state_is_refused),
        with_dir(test_an_index_without_a_profile_is_refused),
        with_dir(test_a_state_shorter_than_the_index_says_is_refused),
        with_dir(test_another_format_is_refused),
        with_dir(test_a_renamed_folder_is_refused),
        with_dir(test_another_model_is_refused),
        with_dir(test_another_arithmetic_is_refused),
        with_dir(test_a_writer_killed_anywhere_leaves_the_older_one),
        with_dir(test_info_and_masters_for_export),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
