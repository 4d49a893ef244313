#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/config.h"
#include "common/config_table.h"

/* Reads `text` as a file; the configuration is on the heap, it is large. */
static ifl_status load_text(const char *text, ifl_config **out, ifl_error *err) {
    char path[] = "/tmp/ifl_config_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    *out = malloc(sizeof **out);
    assert_non_null(*out);
    ifl_status st = ifl_config_load(*out, path, NULL, 0, err);
    unlink(path);
    return st;
}

/* `text` is refused and the error contains `part`. */
static void refused(const char *text, const char *part) {
    ifl_config *c;
    ifl_error err = {0};
    ifl_status st = load_text(text, &c, &err);
    free(c);
    if (st == IFL_OK) fail_msg("accepted: %s", text);
    if (!strstr(err.text, part)) fail_msg("wanted \"%s\" in: %s", part, err.text);
}

static void accepted(const char *text) {
    ifl_config *c;
    ifl_error err = {0};
    ifl_status st = load_text(text, &c, &err);
    free(c);
    if (st != IFL_OK) fail_msg("refused: %s", err.text);
}

static void test_defaults_pass_their_own_checks(void **state) {
    (void)state;
    ifl_config *c = malloc(sizeof *c);
    ifl_error err = {0};
    assert_non_null(c);
    if (ifl_config_load(c, NULL, NULL, 0, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_int_equal(c->rollout.prompts_per_step, 32);
    assert_string_equal(c->model.characters, "0123456789+*=#\n");
    free(c);
}

static void test_keys_are_read_with_their_types(void **state) {
    (void)state;
    ifl_config *c;
    ifl_error err = {0};
    const char *text = "run: {name: a-1, mode: async:3, seed: 9007199254740992}\n"
                       "actor:\n  kv: recompute\n"
                       "learner: {loss: dapo, learning_rate: 1.0e-5}\n"
                       "rollout:\n  stops: [\"\\n\", \"Q:\"]\n"
                       "data:\n"
                       "  train:\n"
                       "    - {name: x, path: a.jsonl, ratio: 0.5, template: \"Q {prompt}\"}\n"
                       "    - {generator: ladder, steps_max: 7}\n";
    if (load_text(text, &c, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_int_equal(c->run.mode, IFL_MODE_ASYNC);
    assert_int_equal(c->run.async_k, 3);
    assert_true(c->run.seed == 9007199254740992);
    assert_int_equal(c->actor.kv, IFL_KV_MODE_RECOMPUTE);
    assert_int_equal(c->learner.loss, IFL_LOSS_DAPO);
    assert_true(c->learner.learning_rate == 1e-5);
    assert_int_equal(c->rollout.n_stops, 2);
    assert_string_equal(c->rollout.stops[0], "\n");
    assert_int_equal(c->data.n_train, 2);
    assert_true(c->data.train[0].ratio == 0.5);
    assert_string_equal(c->data.train[0].template_text, "Q {prompt}");
    assert_int_equal(c->data.train[1].steps_max, 7);
    assert_true(c->data.train[1].ratio == 1);
    free(c);
}

static void test_errors_name_line_column_key_got_and_wanted(void **state) {
    (void)state;
    refused("run:\n  steps: many\n", ":2:10: key run.steps: got \"many\", wanted an integer");
    refused("run:\n  steps: 0\n", "got \"0\", wanted an integer 1 ..");
    refused("run:\n  steps: 1.5\n", "got \"1.5\"");
    refused("run:\n  steps: 99999999999999999999\n", "got \"99999999999999999999\"");
    refused("rollout:\n  group_size: \"8\"\n", "without quotes");
    refused("learner:\n  learning_rate: nan\n", "got \"nan\"");
    refused("learner:\n  learning_rate: inf\n", "got \"inf\"");
    refused("learner:\n  learning_rate: 0x10\n", "got \"0x10\"");
    refused("eval: {before: yes}\n", "wanted true or false");
    refused("run: {mode: async}\n", "pipeline|sync|async:K");
    refused("run: {mode: \"async:0\"}\n", "K 1 .. 64");
    refused("learner: {loss: ppo}\n", "reinforce|grpo|dr_grpo|dapo");
    refused("run: [1]\n", "key run: got a list");
    refused("run:\n  steps: {a: 1}\n", "key run.steps: got a map");
    refused("data: {train: 3}\n", "got a single value, wanted a list");
    refused("data: {train: [3]}\n", "wanted a map");
    refused("rollout: {stops: [\"\"]}\n", "1 .. 63 bytes");
    refused("run:\n\tsteps: 3\n", "not YAML");
}

static void test_maps_of_any_kind_are_kept_as_json(void **state) {
    (void)state;
    ifl_config *c, *back = malloc(sizeof *back);
    ifl_error err = {0};
    char out[64], *text = NULL;
    size_t n = 0;
    const char *file = "reward:\n"
                       "  checker: exact\n"
                       "  checkers:\n"
                       "    strict: {use: format, options: {regex: \"^\\\\d+\\n\", n: -12, x: "
                       "1.5e-3, t: \"1.5\"}}\n"
                       "    py:\n"
                       "      use: process\n"
                       "      command: [python3, -u, r.py, 'a \"b\" \\c', \xc3\xa9, no, true, "
                       "null, 12345678901234567890]\n"
                       "  route: {gsm8k: strict, \"two words\": py}\n";
    assert_non_null(back);
    if (load_text(file, &c, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_string_equal(
        c->reward.checkers,
        "{\"strict\": {\"use\": \"format\", \"options\": {\"regex\": \"^\\\\d+\\n\", \"n\": -12, "
        "\"x\": 0.0015, \"t\": \"1.5\"}}, \"py\": {\"use\": \"process\", \"command\": "
        "[\"python3\", "
        "\"-u\", \"r.py\", \"a \\\"b\\\" \\\\c\", \"\xc3\xa9\", \"no\", true, null, "
        "1.2345678901234567e19]}}");
    ifl_config_checker(c, NULL, "gsm8k", out);
    assert_string_equal(out, "strict");
    ifl_config_checker(c, "", "two words", out);
    assert_string_equal(out, "py");
    ifl_config_checker(c, "numeric", "gsm8k", out);
    assert_string_equal(out, "numeric");
    ifl_config_checker(c, "", "other", out);
    assert_string_equal(out, "exact");
    for (int comments = 0; comments < 2; comments++) {
        FILE *f = open_memstream(&text, &n);
        assert_non_null(f);
        assert_int_equal(ifl_config_write(c, f, comments, &err), IFL_OK);
        fclose(f);
        ifl_config_defaults(back);
        if (ifl_config_read_text(back, "written", text, n, NULL, &err) != IFL_OK)
            fail_msg("%s\n%s", err.text, text);
        assert_memory_equal(c, back, sizeof *c);
        free(text);
    }
    if (ifl_config_set(c, "reward.checkers", "{a: {use: exact}}", &err) != IFL_OK)
        fail_msg("%s", err.text);
    assert_string_equal(c->reward.checkers, "{\"a\": {\"use\": \"exact\"}}");
    free(c);
    free(back);
    refused("reward: {checkers: 3}\n", "key reward.checkers: got a single value, wanted a map");
    refused("reward: {checkers: [a]}\n", "key reward.checkers: got a list, wanted a map");
    refused("reward: {checkers: {a: 1, a: 2}}\n", "wanted keys that differ");
    refused("reward: {checkers: {a: \"\\x07\"}}\n", "without control characters");
    refused("reward: {checkers: {a: [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}}\n", "at most 16 levels");
    refused("reward: {route: {a: [b]}}\n", "key reward.route.a: wanted the name of a checker");
    char *large = malloc(70000);
    assert_non_null(large);
    int head = snprintf(large, 70000, "reward: {checkers: {a: \"");
    memset(large + head, 'x', 66000);
    memcpy(large + head + 66000, "\"}}\n", 5);
    refused(large, "of at most 65535 bytes as JSON");
    free(large);
}

static void test_unknown_keys_are_refused_with_a_suggestion(void **state) {
    (void)state;
    refused("run:\n  stesp: 3\n",
            ":2:3: key run.stesp: unknown; wanted a known key; did you mean run.steps?");
    refused("steps: 3\n", "did you mean run.steps?");
    refused("learner: {group_size: 3}\n", "did you mean rollout.group_size?");
    refused("qqqqqqqq: 3\n", "--help-config");
    refused("data: {train: [{pth: a}]}\n", "did you mean path?");
}

static void test_duplicates_are_refused(void **state) {
    (void)state;
    refused("run: {steps: 3, steps: 4}\n", "given twice");
    refused("run: {steps: 3}\nrun: {seed: 4}\n", "key run: given twice; first on line 1");
    refused("data: {train: [{path: a, path: b}]}\n", "key data.train.path: given twice");
}

static void test_aliases_and_second_documents_are_refused(void **state) {
    (void)state;
    refused("run: {name: &a x}\nmodel: {path: *a}\n", "aliases");
    refused("run: {steps: 3}\n---\nrun: {steps: 4}\n", "second document");
}

static void test_deep_and_large_files_are_refused(void **state) {
    (void)state;
    char *deep = malloc(200001);
    assert_non_null(deep);
    memset(deep, '[', 200000);
    deep[200000] = 0;
    refused(deep, "wanted a map of sections");
    free(deep);
    size_t n = (1 << 20) + 2;
    char *large = malloc(n);
    assert_non_null(large);
    memset(large, '\n', n);
    large[n - 1] = 0;
    refused(large, "larger than 1 MiB");
    free(large);
}

static void test_empty_files_and_empty_sections_are_defaults(void **state) {
    (void)state;
    accepted("");
    accepted("# nothing\n");
    accepted("run:\nmodel:\n");
}

static void test_rules_between_keys(void **state) {
    (void)state;
    refused("actor: {page_tokens: 24}\n", "power of two");
    refused("model: {n_heads: 4, n_kv_heads: 3}\n", "divisor");
    refused("model: {head_dim: 33}\n", "even");
    refused("run: {resume: true, overwrite: true}\n", "at most one");
    refused("run: {name: ../x}\n", "it names a folder");
    refused("data: {train: [{name: x}]}\n", "got neither");
    refused("data: {train: [{path: x, generator: ladder}]}\n", "got both");
    refused("data: {train: [{path: x, template: hello}]}\n", "{prompt}");
    refused("actor: {cpus: \"1-2-3\"}\n", "CPU numbers");
    accepted("actor: {cpus: \"0,2-3\"}\n");
    accepted("actor: {cpus: \"0,2;3\"}\n");
    refused("actor: {cpus: \"0;;3\"}\n", "CPU numbers");
    refused("learner: {cpus: \"0;3\"}\n", "CPU numbers");
    refused("rollout: {max_new_tokens: 256}\n", "model.max_positions");
}

static void training_refused_all(const char *const *more, int n_more, const char *part) {
    const char *overrides[16] = {"data.train.0.generator=ladder", "data.eval.0.generator=ladder",
                                 "data.eval.0.split=heldout"};
    for (int i = 0; i < n_more; i++)
        overrides[3 + i] = more[i];
    ifl_config *c = malloc(sizeof *c);
    ifl_error err = {0};
    assert_non_null(c);
    if (ifl_config_load(c, NULL, overrides, 3 + n_more, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_status st = ifl_config_check_training(c, &err);
    free(c);
    if (!part && st != IFL_OK) fail_msg("%s", err.text);
    if (part && (st == IFL_OK || !strstr(err.text, part)))
        fail_msg("wanted \"%s\", got %s", part, err.text);
}

static void training_refused(const char *override, const char *part) {
    training_refused_all(&override, override ? 1 : 0, part);
}

static void test_training_refuses_what_it_cannot_train_on(void **state) {
    (void)state;
    training_refused(NULL, NULL);
    training_refused("rollout.top_p=0.9", NULL); /* what was left out is on record */
    training_refused("rollout.top_k=5", NULL);
    static const char *const longest[] = {"rollout.top_p=0.9",        "rollout.max_new_tokens=4097",
                                          "model.max_positions=8192", "actor.kv_tokens=8192",
                                          "learner.pack_tokens=8192", "rollout.top_k=1023"};
    training_refused_all(longest, 5,
                         "key rollout.top_k: got 0 with rollout.top_p 0.9, wanted 1 to 1023");
    training_refused_all(longest, 6, NULL);
    training_refused_all(longest + 1, 4, NULL); /* nothing is left out */
    training_refused("rollout.temperature=0", "greedy");
    training_refused("rollout.group_size=1", "2 or more");
    training_refused("learner.pack_tokens=100", "never split");
    training_refused("learner.groups_in_flight=3", "never fill");
    training_refused("data.train=[]", "needs tasks");
    training_refused("data.eval=[]", "data.eval");
}

static void test_overrides_reach_lists_and_quoted_texts(void **state) {
    (void)state;
    ifl_config *c = malloc(sizeof *c);
    ifl_error err = {0};
    assert_non_null(c);
    ifl_config_defaults(c);
    assert_int_equal(ifl_config_set(c, "data.train.0.path", "a=b.jsonl", &err), IFL_OK);
    assert_int_equal(ifl_config_set(c, "data.train.1.generator", "sums", &err), IFL_OK);
    assert_int_equal(ifl_config_set(c, "data.train.0.ratio", "2", &err), IFL_OK);
    assert_int_equal(c->data.n_train, 2);
    assert_string_equal(c->data.train[0].path, "a=b.jsonl");
    assert_true(c->data.train[0].ratio == 2);
    assert_int_equal(ifl_config_set(c, "rollout.stops", "[\"\\n\", \"x\"]", &err), IFL_OK);
    assert_int_equal(c->rollout.n_stops, 2);
    assert_int_equal(ifl_config_set(c, "model.characters", "\"ab\\n\"", &err), IFL_OK);
    assert_string_equal(c->model.characters, "ab\n");
    assert_int_equal(ifl_config_set(c, "data.train.3.path", "x", &err), IFL_USAGE);
    assert_int_equal(ifl_config_set(c, "data.train.0.digits", "77", &err), IFL_USAGE);
    assert_int_equal(ifl_config_set(c, "data.train.00000.path", "x", &err), IFL_USAGE);
    assert_int_equal(ifl_config_set(c, "run.steps", "x", &err), IFL_USAGE);
    assert_int_equal(ifl_config_set(c, "rollout.stops", "[a", &err), IFL_USAGE);
    assert_int_equal(c->rollout.n_stops, 2); /* a broken list changes nothing */
    free(c);
}

static void test_shipped_configurations_can_train(void **state) {
    (void)state;
    static const char *const names[] = {"quickstart", "arith-gemma-270m", "svamp-gemma-270m",
                                        "gsm8k"};
    ifl_config *c = malloc(sizeof *c);
    assert_non_null(c);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[512];
        ifl_error err = {0};
        snprintf(path, sizeof path, "%s/../../deploy/configs/%s.yaml", IFL_GOLDEN_DIR, names[i]);
        if (ifl_config_load(c, path, NULL, 0, &err) != IFL_OK) fail_msg("%s", err.text);
        if (ifl_config_check_training(c, &err) != IFL_OK) fail_msg("%s: %s", path, err.text);
        assert_string_equal(c->run.name, names[i]);
    }
    free(c);
}

/* --- Round trip ---------------------------------------------------------------------------------
 */

static uint64_t draw(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 11;
}

/* A value that the row takes, as text. */
static void value_drawn(const ifl_config_row *row, uint64_t *rng, char *out, size_t n_out) {
    static const char *const pieces[] = {"a",  "\"", "\\", "\n",   "\t",     "#",
                                         ": ", "é",  "{",  "'",    "\u2028", "\U0001F600",
                                         " ",  "- ", "%",  "\x7f", "*x"};
    double share = (double)(draw(rng) % 1000001) / 1e6;
    switch (row->type) {
    case IFL_CONFIG_INT32:
    case IFL_CONFIG_INT64:
        snprintf(out, n_out, "%.0f", row->min + (double)(int64_t)(share * (row->max - row->min)));
        break;
    case IFL_CONFIG_DOUBLE:
        snprintf(out, n_out, "%.17g", row->min + share * share * (row->max - row->min));
        break;
    case IFL_CONFIG_BOOL:
        snprintf(out, n_out, "%s", draw(rng) & 1 ? "true" : "false");
        break;
    case IFL_CONFIG_TEXT: {
        size_t used = 0;
        out[0] = 0;
        for (int n = (int)(draw(rng) % 12); n > 0; n--) {
            const char *piece = pieces[draw(rng) % (sizeof pieces / sizeof *pieces)];
            if (used + strlen(piece) + 1 > row->size || used + strlen(piece) + 1 > n_out) break;
            used += (size_t)snprintf(out + used, n_out - used, "%s", piece);
        }
        break;
    }
    default:
        out[0] = 0;
        break;
    }
}

static void row_drawn(void *base, const ifl_config_row *row, uint64_t *rng) {
    char value[512];
    const ifl_config_place place = {"test", 0, 0};
    ifl_error err = {0};
    if (row->type == IFL_CONFIG_STOPS || row->type == IFL_CONFIG_SOURCES ||
        row->type == IFL_CONFIG_JSON)
        return;
    if (row->type == IFL_CONFIG_CHOICE || row->type == IFL_CONFIG_ENUM) {
        const char *p = row->choices;
        for (int skip = (int)(draw(rng) % 4); skip > 0 && strchr(p, '|'); skip--)
            p = strchr(p, '|') + 1;
        snprintf(value, sizeof value, "%.*s", (int)strcspn(p, "|"), p);
    } else if (row->type == IFL_CONFIG_MODE) {
        snprintf(value, sizeof value, "async:%d", 1 + (int)(draw(rng) % 64));
    } else {
        value_drawn(row, rng, value, sizeof value);
    }
    if (ifl_config_scalar(base, row, row->key, value, strlen(value), false, &place, &err) != IFL_OK)
        fail_msg("%s", err.text);
}

static void test_written_configurations_read_back_to_the_same_bytes(void **state) {
    (void)state;
    uint64_t rng = 42;
    ifl_config *a = malloc(sizeof *a), *b = malloc(sizeof *b);
    assert_true(a && b);
    for (int trial = 0; trial < 200; trial++) {
        ifl_config_defaults(a);
        for (int i = 0; i < ifl_config_n_rows; i++)
            row_drawn(a, &ifl_config_rows[i], &rng);
        a->data.n_train = (int32_t)(draw(&rng) % 4);
        for (int s = 0; s < a->data.n_train; s++) {
            ifl_source_config_defaults(&a->data.train[s]);
            for (int i = 0; i < ifl_config_n_source_rows; i++)
                row_drawn(&a->data.train[s], &ifl_config_source_rows[i], &rng);
        }
        a->rollout.n_stops = trial % 3;
        for (int s = 0; s < a->rollout.n_stops; s++)
            snprintf(a->rollout.stops[s], sizeof a->rollout.stops[s], "s\n\"%d", trial);
        char *text = NULL;
        size_t n = 0;
        FILE *f = open_memstream(&text, &n);
        assert_non_null(f);
        ifl_error err = {0};
        assert_int_equal(ifl_config_write(a, f, trial & 1, &err), IFL_OK);
        fclose(f);
        ifl_config_defaults(b);
        if (ifl_config_read_text(b, "written", text, n, NULL, &err) != IFL_OK)
            fail_msg("%s\n%s", err.text, text);
        assert_memory_equal(a, b, sizeof *a);
        free(text);
    }
    free(a);
    free(b);
}

/* Any cut and any changed byte of a valid file is read or refused, never worse (run under ASan). */
static void test_damaged_files_never_crash(void **state) {
    (void)state;
    const char *good = "run: {name: a, steps: 3}\nrollout:\n  stops: [\"\\n\"]\ndata:\n  train:\n"
                       "    - name: x\n      path: y\n";
    size_t n = strlen(good);
    ifl_config *c = malloc(sizeof *c);
    assert_non_null(c);
    uint64_t rng = 7;
    for (int trial = 0; trial < 3000; trial++) {
        char text[256];
        memcpy(text, good, n);
        size_t length = n;
        if (trial & 1) length = draw(&rng) % n;
        for (int k = 0; k < 3; k++)
            text[draw(&rng) % n] = (char)draw(&rng);
        ifl_error err = {0};
        ifl_config_defaults(c);
        ifl_status st = ifl_config_read_text(c, "damaged", text, length, NULL, &err);
        if (st != IFL_OK) assert_true(*err.text);
    }
    free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_pass_their_own_checks),
        cmocka_unit_test(test_keys_are_read_with_their_types),
        cmocka_unit_test(test_errors_name_line_column_key_got_and_wanted),
        cmocka_unit_test(test_maps_of_any_kind_are_kept_as_json),
        cmocka_unit_test(test_unknown_keys_are_refused_with_a_suggestion),
        cmocka_unit_test(test_duplicates_are_refused),
        cmocka_unit_test(test_aliases_and_second_documents_are_refused),
        cmocka_unit_test(test_deep_and_large_files_are_refused),
        cmocka_unit_test(test_empty_files_and_empty_sections_are_defaults),
        cmocka_unit_test(test_rules_between_keys),
        cmocka_unit_test(test_training_refuses_what_it_cannot_train_on),
        cmocka_unit_test(test_overrides_reach_lists_and_quoted_texts),
        cmocka_unit_test(test_shipped_configurations_can_train),
        cmocka_unit_test(test_written_configurations_read_back_to_the_same_bytes),
        cmocka_unit_test(test_damaged_files_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
