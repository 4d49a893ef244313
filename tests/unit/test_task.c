#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/task.h"
#include "common/task_file.h"

#define LADDER_CHARACTERS "\n0123456789+*=#"

static char folder[] = "/tmp/ifl-test-task-XXXXXX";

static const char *file_make(const char *name, const char *text) {
    static char path[4][128];
    static int n;
    char *p = path[n++ % 4];
    snprintf(p, 128, "%s/%s", folder, name);
    FILE *f = fopen(p, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return p;
}

static ifl_config *config_make(void) {
    ifl_config *c = calloc(1, sizeof *c);
    assert_non_null(c);
    c->run.seed = 1;
    c->data.prompt_tokens_max = 1024;
    strcpy(c->data.sampler, "ratio");
    strcpy(c->data.chat_format, "none");
    return c;
}

static ifl_source_config *source_add(ifl_config *c, const char *list, const char *generator,
                                     const char *split, const char *path) {
    ifl_source_config *s = strcmp(list, "eval") == 0 ? &c->data.eval[c->data.n_eval++]
                                                     : &c->data.train[c->data.n_train++];
    snprintf(s->generator, sizeof s->generator, "%s", generator);
    snprintf(s->split, sizeof s->split, "%s", split);
    snprintf(s->path, sizeof s->path, "%s", path);
    s->ratio = 1.0;
    return s;
}

static ifl_task_set *open_fine(const ifl_config *c, const char *purpose, const ifl_tokenizer *tok) {
    ifl_task_set *set = NULL;
    ifl_error err = {0};
    if (ifl_task_set_open(&set, c, purpose, tok, &err) != IFL_OK) fail_msg("%s", err.text);
    return set;
}

static void expect_open_fails(const ifl_config *c, const char *purpose, ifl_status want,
                              const char *part) {
    ifl_task_set *set = NULL;
    ifl_error err = {0};
    ifl_status st = ifl_task_set_open(&set, c, purpose, NULL, &err);
    if (st != want || !strstr(err.text, part))
        fail_msg("wanted status %d with '%s', got %d: %s", want, part, st, err.text);
    assert_null(set);
}

static ifl_task get_fine(ifl_task_set *set, uint64_t serial) {
    ifl_task task;
    ifl_error err = {0};
    if (ifl_task_set_get(set, serial, &task, &err) != IFL_OK) fail_msg("%s", err.text);
    return task;
}

static ifl_tokenizer *characters(const char *alphabet) {
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    if (ifl_tokenizer_char(&tok, alphabet, strlen(alphabet), NULL, 0, false, &err) != IFL_OK)
        fail_msg("%s", err.text);
    return tok;
}

static const char three_lines[] =
    "{\"id\":\"a\",\"data_source\":\"own\",\"prompt\":\"What?\",\"answer\":\"7\",\"checker\":"
    "\"numeric\",\"meta\":{\"k\":1},\"max_new_tokens\":5,\"weight\":0.5,\"extra\":[1]}\n"
    "\n"
    "{\"prompt\":\"Why?\",\"answer\":12}\r\n"
    "{\"prompt\":\"Who?\",\"completion\":\" me\"}";

static void test_file_lines_become_tasks(void **state) {
    (void)state;
    ifl_task_file *file = NULL;
    ifl_task_line line;
    ifl_error err = {0};
    const char *path = file_make("three.jsonl", three_lines);
    assert_int_equal(ifl_task_file_open(&file, path, "three", 0, &err), IFL_OK);
    assert_int_equal(ifl_task_file_size(file), 3);
    assert_int_equal(ifl_task_file_line(file, 1), 3);
    assert_int_equal(ifl_task_file_read(file, 0, &line, &err), IFL_OK);
    assert_string_equal(line.text, "What?");
    assert_string_equal(line.task.id, "a");
    assert_string_equal(line.task.data_source, "own");
    assert_string_equal(line.task.checker, "numeric");
    assert_string_equal(line.task.answer, "7");
    assert_string_equal(line.task.meta, "{\"k\":1}");
    assert_int_equal(line.task.max_new_tokens, 5);
    assert_true(line.task.weight == 0.5);
    assert_non_null(strstr(line.task.line, "\"extra\":[1]"));
    ifl_task_line_clear(&line);
    assert_int_equal(ifl_task_file_read(file, 1, &line, &err), IFL_OK);
    assert_string_equal(line.task.id, "three:3");
    assert_string_equal(line.task.data_source, "three");
    assert_string_equal(line.task.answer, "12");
    assert_true(line.task.weight == 1.0);
    ifl_task_line_clear(&line);
    assert_int_equal(ifl_task_file_read(file, 2, &line, &err), IFL_OK);
    assert_string_equal(line.completion, " me");
    assert_string_equal(line.task.answer, "");
    ifl_task_line_clear(&line);
    ifl_task_file_close(file);
    assert_int_equal(ifl_task_file_open(&file, path, "three", 2, &err), IFL_OK);
    assert_int_equal(ifl_task_file_size(file), 2);
    ifl_task_file_close(file);
}

static void test_wrong_lines_are_named(void **state) {
    (void)state;
    static const struct {
        const char *line, *part;
        ifl_status status;
    } wrong[] = {
        {"{\"prompt\":\"x\"", "not valid JSON", IFL_FORMAT},
        {"[1]", "wanted a JSON object", IFL_FORMAT},
        {"{}", "prompt: wanted a text", IFL_FORMAT},
        {"{\"prompt\":\"\"}", "an empty text", IFL_FORMAT},
        {"{\"prompt\":[]}", "an empty list", IFL_FORMAT},
        {"{\"prompt\":7}", "something else", IFL_FORMAT},
        {"{\"prompt\":[1,-2]}", "item 1 of the list", IFL_FORMAT},
        {"{\"prompt\":[1,2.5]}", "item 1 of the list", IFL_FORMAT},
        {"{\"prompt\":[4294967296]}", "item 0 of the list", IFL_FORMAT},
        {"{\"prompt\":[{\"role\":\"user\"}]}", "message 0", IFL_FORMAT},
        {"{\"prompt\":[{\"role\":\"user\",\"content\":\"x\"},3]}", "message 1", IFL_FORMAT},
        {"{\"prompt\":\"x\",\"answer\":0.5}", "answer: wanted", IFL_FORMAT},
        {"{\"prompt\":\"x\",\"answer\":[1]}", "answer: wanted", IFL_FORMAT},
        {"{\"prompt\":\"x\",\"id\":5}", "id: wanted a string", IFL_FORMAT},
        {"{\"prompt\":\"x\",\"meta\":\"y\"}", "meta: wanted an object", IFL_FORMAT},
        {"{\"prompt\":\"x\",\"weight\":-1}", "weight: -1", IFL_LIMIT},
        {"{\"prompt\":\"x\",\"max_new_tokens\":0}", "max_new_tokens: 0", IFL_LIMIT},
        {"{\"prompt\":\"x\",\"prompt\":\"y\"}", "not valid JSON", IFL_FORMAT},
        {"{\"prompt\":\"x\\u0000y\"}", "not valid JSON", IFL_FORMAT},
        {"{\"prompt\":\"\xff\"}", "not valid JSON", IFL_FORMAT},
        {"{\"prompt\":\"x\",\"id\":\"a\"}", "the id of line 1 again", IFL_FORMAT},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[512];
        ifl_task_file *file = NULL;
        ifl_error err = {0};
        snprintf(text, sizeof text, "{\"id\":\"a\",\"prompt\":\"fine\"}\n\n%s\n", wrong[i].line);
        const char *path = file_make("wrong.jsonl", text);
        ifl_status st = ifl_task_file_open(&file, path, "w", 0, &err);
        if (st != wrong[i].status || !strstr(err.text, wrong[i].part) ||
            !strstr(err.text, "wrong.jsonl:3"))
            fail_msg("%s: got %d, '%s'", wrong[i].line, st, err.text);
        assert_null(file);
    }
    ifl_task_file *file = NULL;
    ifl_error err = {0};
    assert_int_equal(ifl_task_file_open(&file, file_make("empty.jsonl", "\n \n"), "e", 0, &err),
                     IFL_FORMAT);
    assert_int_equal(ifl_task_file_open(&file, "/no/such.jsonl", "e", 0, &err), IFL_NOTFOUND);
}

static void test_changed_file_is_noticed(void **state) {
    (void)state;
    ifl_task_file *file = NULL;
    ifl_task_line line;
    ifl_error err = {0};
    const char *path = file_make("change.jsonl", "{\"prompt\":\"x\",\"answer\":\"1\"}\n");
    assert_int_equal(ifl_task_file_open(&file, path, "c", 0, &err), IFL_OK);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fputs("{\"prompt\":\"y\"", f);
    fclose(f);
    assert_int_equal(ifl_task_file_read(file, 0, &line, &err), IFL_MISMATCH);
    assert_int_equal(truncate(path, 3), 0);
    assert_true(ifl_task_file_read(file, 0, &line, &err) != IFL_OK);
    ifl_task_file_close(file);
}

static void test_ladder_tasks_and_examples(void **state) {
    (void)state;
    ifl_config *c = config_make();
    source_add(c, "train", "ladder", "train", "");
    ifl_tokenizer *tok = characters(LADDER_CHARACTERS);
    ifl_task_set *set = open_fine(c, "train", tok);
    assert_int_equal(ifl_task_set_size(set), 0);
    ifl_task task = get_fine(set, 0);
    assert_string_equal(task.text, "287+8*04=");
    assert_string_equal(task.answer, "319");
    assert_string_equal(task.id, "ladder:287+8*04=");
    assert_string_equal(task.data_source, "ladder");
    assert_string_equal(task.checker, "exact");
    assert_string_equal(task.meta, "{\"after\":\"#\",\"end\":true}");
    assert_string_equal(
        task.line, "{\"id\":\"ladder:287+8*04=\",\"data_source\":\"ladder\",\"prompt\":"
                   "\"287+8*04=\",\"checker\":\"exact\",\"answer\":\"319\",\"meta\":{\"after\":"
                   "\"#\",\"end\":true}}");
    static const int32_t ids[] = {3, 9, 8, 11, 9, 12, 1, 5, 13};
    assert_int_equal(task.n_prompt, 9);
    assert_memory_equal(task.prompt, ids, sizeof ids);
    ifl_task copy;
    assert_int_equal(ifl_task_copy(&copy, &task, NULL), IFL_OK);
    assert_string_equal(copy.line, task.line);
    assert_memory_equal(copy.prompt, ids, sizeof ids);
    ifl_task_clear(&copy);
    ifl_task_clear(&task);

    int n_worked = 0, n_same = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        char *completion = NULL;
        ifl_task other = get_fine(set, i);
        assert_int_equal(ifl_task_set_example(set, i, 0.4, &task, &completion, NULL), IFL_OK);
        bool worked = completion[0] != '#';
        n_worked += worked;
        n_same += strcmp(task.id, other.id) == 0;
        size_t n = strlen(completion);
        char end[16];
        snprintf(end, sizeof end, "#%s\n", task.answer);
        assert_string_equal(completion + n - strlen(end), end);
        assert_int_equal(worked, n > 5);
        free(completion);
        ifl_task_clear(&task);
        ifl_task_clear(&other);
    }
    assert_in_range(n_worked, 720, 880); /* 800 and 3.6 sigma */
    assert_true(n_same < 20);            /* examples aren't the tasks that RL will see next */
    ifl_task_set_close(set);
    ifl_tokenizer_free(tok);
    free(c);
}

static void test_sums_prompt_is_four_equations_and_a_question(void **state) {
    (void)state;
    ifl_config *c = config_make();
    ifl_source_config *s = source_add(c, "train", "sums", "train", "");
    strcpy(s->name, "one_digit");
    ifl_task_set *set = open_fine(c, "train", NULL);
    ifl_task task = get_fine(set, 0);
    char want[256];
    const char *shots = "2 + 5 = 7\n8 - 3 = 5\n6 + 7 = 13\n9 - 9 = 0\n";
    snprintf(want, sizeof want, "%s%s", shots, task.id + strlen("sums:"));
    assert_string_equal(task.text, want);
    assert_int_equal(task.text[strlen(task.text) - 1], '=');
    assert_string_equal(task.data_source, "one_digit");
    ifl_task_clear(&task);
    ifl_task_set_close(set);
    strcpy(s->few_shot, "1 + 1 = 2\n");
    strcpy(s->template_text, "Q: {prompt} ?\nA ({prompt})");
    strcpy(s->checker, "numeric");
    set = open_fine(c, "train", NULL);
    task = get_fine(set, 0);
    const char *q = task.id + strlen("sums:");
    snprintf(want, sizeof want, "1 + 1 = 2\nQ: %s ?\nA (%s)", q, q);
    assert_string_equal(task.text, want);
    assert_string_equal(task.checker, "numeric");
    ifl_task_clear(&task);
    ifl_task_set_close(set);
    free(c);
}

static void test_tasks_are_a_function_of_seed_and_serial(void **state) {
    (void)state;
    ifl_config *c = config_make();
    source_add(c, "train", "ladder", "train", "");
    source_add(c, "train", "sums", "train", "")->count = 50;
    ifl_task_set *a = open_fine(c, "train", NULL), *b = open_fine(c, "train", NULL);
    c->run.seed = 2;
    ifl_task_set *other = open_fine(c, "train", NULL);
    int n_differ = 0;
    for (int i = 299; i >= 0; i--) { /* another order of calls, the same tasks */
        ifl_task x = get_fine(a, (uint64_t)(299 - i));
        ifl_task_clear(&x);
        x = get_fine(a, (uint64_t)i);
        ifl_task y = get_fine(b, (uint64_t)i), z = get_fine(other, (uint64_t)i);
        assert_string_equal(x.line, y.line);
        n_differ += strcmp(x.line, z.line) != 0;
        ifl_task_clear(&x);
        ifl_task_clear(&y);
        ifl_task_clear(&z);
    }
    assert_true(n_differ > 250);
    ifl_task_set_close(a);
    ifl_task_set_close(b);
    ifl_task_set_close(other);
    free(c);
}

static void test_heldout_tasks_are_the_same_for_every_seed(void **state) {
    (void)state;
    ifl_config *c = config_make();
    source_add(c, "train", "ladder", "train", "");
    source_add(c, "eval", "ladder", "heldout", "")->count = 512;
    ifl_task_set *a = open_fine(c, "eval", NULL);
    c->run.seed = 99;
    ifl_task_set *b = open_fine(c, "eval", NULL);
    assert_int_equal(ifl_task_set_size(a), 512);
    for (uint64_t i = 0; i < 512; i++) {
        ifl_task x = get_fine(a, i), y = get_fine(b, i);
        assert_string_equal(x.id, y.id);
        ifl_task_clear(&x);
        ifl_task_clear(&y);
    }
    ifl_task_set_close(a);
    ifl_task_set_close(b);
    free(c);
}

static void test_epochs_visit_every_task_once(void **state) {
    (void)state;
    static const char *const samplers[] = {"ratio", "uniform"};
    char text[4096] = "";
    for (int i = 0; i < 30; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"id\":\"%d\",\"prompt\":\"p%d\",\"answer\":\"%d\"}\n", i, i, i);
    ifl_config *c = config_make();
    source_add(c, "train", "", "", file_make("thirty.jsonl", text));
    for (int s = 0; s < 2; s++) {
        strcpy(c->data.sampler, samplers[s]);
        ifl_task_set *set = open_fine(c, "train", NULL);
        assert_int_equal(ifl_task_set_size(set), 30);
        int order_differs = 0, first[30];
        for (uint64_t epoch = 0; epoch < 3; epoch++) {
            int seen[30] = {0};
            for (uint64_t i = 0; i < 30; i++) {
                ifl_task task = get_fine(set, epoch * 30 + i);
                int id = atoi(task.id);
                if (epoch == 0) first[i] = id;
                order_differs += first[i] != id;
                seen[id]++;
                ifl_task_clear(&task);
            }
            for (int i = 0; i < 30; i++)
                assert_int_equal(seen[i], 1);
        }
        assert_true(order_differs > 30);
        ifl_task_set_close(set);
    }
    free(c);
}

static void test_ratios_hold_in_every_stretch(void **state) {
    (void)state;
    ifl_config *c = config_make();
    source_add(c, "train", "sums", "train", "")->ratio = 3.0;
    source_add(c, "train", "ladder", "train", "")->ratio = 1.0;
    ifl_task_set *set = open_fine(c, "train", NULL);
    for (uint64_t begin = 0; begin < 5000; begin += 640) {
        int n_sums = 0;
        for (uint64_t i = begin; i < begin + 32; i++) {
            ifl_task task = get_fine(set, i);
            n_sums += strcmp(task.data_source, "sums") == 0;
            ifl_task_clear(&task);
        }
        assert_in_range(n_sums, 23, 25);
    }
    ifl_task_set_close(set);
    c->data.train[1].ratio = 1e-9; /* rare, yet never forgotten */
    set = open_fine(c, "train", NULL);
    int n_ladder = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        ifl_task task = get_fine(set, i);
        n_ladder += strcmp(task.data_source, "ladder") == 0;
        ifl_task_clear(&task);
    }
    assert_int_equal(n_ladder, 1);
    ifl_task_set_close(set);
    free(c);
}

static void test_uniform_goes_by_size(void **state) {
    (void)state;
    ifl_config *c = config_make();
    strcpy(c->data.sampler, "uniform");
    source_add(c, "train", "sums", "train", "")->count = 20;
    source_add(c, "train", "ladder", "train", "")->count = 60;
    ifl_task_set *set = open_fine(c, "train", NULL);
    assert_int_equal(ifl_task_set_size(set), 80);
    int n_sums = 0;
    for (uint64_t i = 0; i < 80; i++) {
        ifl_task task = get_fine(set, i);
        n_sums += strcmp(task.data_source, "sums") == 0;
        ifl_task_clear(&task);
    }
    assert_int_equal(n_sums, 20);
    ifl_task_set_close(set);
    c->data.train[0].count = 0;
    expect_open_fails(c, "train", IFL_USAGE, "data.sampler: uniform");
    free(c);
}

static int count_task(ifl_task_set *set, const char *id, uint64_t n) {
    int count = 0;
    for (uint64_t i = 0; i < n; i++) {
        ifl_task task = get_fine(set, i);
        count += strcmp(task.id, id) == 0;
        ifl_task_clear(&task);
    }
    return count;
}

static void test_pass_rate_band_rests_solved_tasks(void **state) {
    (void)state;
    char text[4096] = "";
    for (int i = 0; i < 10; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"id\":\"t%d\",\"prompt\":\"p%d\",\"answer\":\"%d\"}\n", i, i, i);
    ifl_config *c = config_make();
    strcpy(c->data.sampler, "pass_rate");
    c->data.pass_rate_min = 0.1;
    c->data.pass_rate_max = 0.9;
    source_add(c, "train", "", "", file_make("ten.jsonl", text));
    ifl_task_set *set = open_fine(c, "train", NULL);
    assert_int_equal(count_task(set, "t3", 800), 80); /* nothing is known: every task in turn */
    ifl_task_set_report(set, "t3", 1.0);
    ifl_task_set_report(set, "t4", 0.0);
    ifl_task_set_report(set, "t5", 0.5);
    int rests = count_task(set, "t3", 800);
    assert_in_range(rests, 1, 25); /* only where old rates are measured again: one serial in 8 */
    assert_in_range(count_task(set, "t4", 800), 1, 25);
    assert_true(count_task(set, "t5", 800) >= 80);
    ifl_task_set_report(set, "t3", 0.5); /* back in the band */
    assert_true(count_task(set, "t3", 800) >= 80);
    for (int i = 0; i < 10; i++) { /* all outside: still a task, the nearest ones */
        char id[8];
        snprintf(id, sizeof id, "t%d", i);
        ifl_task_set_report(set, id, i == 7 ? 0.95 : 1.0);
    }
    assert_true(count_task(set, "t7", 800) > 400);
    ifl_task_set_close(set);
    free(c);
}

/* What a checkpoint holds of it: the other set draws the same tasks, serial by serial. */
static void test_rates_come_back_and_with_them_the_draws(void **state) {
    (void)state;
    ifl_config *c = config_make();
    strcpy(c->data.sampler, "pass_rate");
    c->data.pass_rate_min = 0.1;
    c->data.pass_rate_max = 0.9;
    source_add(c, "train", "sums", "train", "");
    ifl_task_set *set = open_fine(c, "train", NULL), *other = open_fine(c, "train", NULL);
    ifl_error err = {0};
    assert_true(ifl_task_set_is_adaptive(set));
    for (uint64_t i = 0; i < 3000; i++) {
        ifl_task task = get_fine(set, i);
        ifl_task_set_report(set, task.id, (double)(i % 5) / 4.0);
        ifl_task_clear(&task);
    }
    char *text = ifl_task_set_rates(set);
    assert_true(strlen(text) % 24 == 0 && strlen(text) > 24);
    int n_differ = 0;
    for (uint64_t i = 3000; i < 4000; i++) {
        ifl_task_pick a = ifl_task_set_draw(set, i), b = ifl_task_set_draw(other, i);
        n_differ += a.item != b.item;
    }
    assert_true(n_differ > 100); /* so that the reports matter */
    assert_int_equal(ifl_task_set_rates_restore(other, text, &err), IFL_OK);
    for (uint64_t i = 3000; i < 4000; i++) {
        ifl_task_pick a = ifl_task_set_draw(set, i), b = ifl_task_set_draw(other, i);
        assert_true(a.source == b.source && a.item == b.item);
    }
    char *again = ifl_task_set_rates(other);
    assert_string_equal(text, again);
    text[0] = 'x';
    assert_int_equal(ifl_task_set_rates_restore(other, text, &err), IFL_FORMAT);
    assert_int_equal(ifl_task_set_rates_restore(other, again + 1, &err), IFL_FORMAT);
    assert_int_equal(ifl_task_set_rates_restore(other, "0000000000000001ffffffff", &err),
                     IFL_FORMAT); /* no rate */
    free(text);
    free(again);
    ifl_task_set_close(set);
    ifl_task_set_close(other);
    free(c);
}

static void test_a_pick_beyond_its_source_is_refused(void **state) {
    (void)state;
    ifl_config *c = config_make();
    source_add(c, "train", "", "",
               file_make("two.jsonl", "{\"id\":\"a\",\"prompt\":\"p\",\"answer\":\"1\"}\n"
                                      "{\"id\":\"b\",\"prompt\":\"q\",\"answer\":\"2\"}\n"));
    ifl_task_set *set = open_fine(c, "train", NULL);
    ifl_error err = {0};
    ifl_task task;
    assert_false(ifl_task_set_is_adaptive(set));
    assert_int_equal(ifl_task_set_get_picked(set, (ifl_task_pick){0, 1}, &task, &err), IFL_OK);
    assert_string_equal(task.id, "b");
    ifl_task_clear(&task);
    const ifl_task_pick wrong[3] = {{0, 2}, {1, 0}, {-1, 0}};
    for (int i = 0; i < 3; i++)
        assert_int_equal(ifl_task_set_get_picked(set, wrong[i], &task, &err), IFL_NOTFOUND);
    ifl_task_set_close(set);
    free(c);
}

static void test_many_reports_are_remembered(void **state) {
    (void)state;
    ifl_config *c = config_make();
    strcpy(c->data.sampler, "pass_rate");
    c->data.pass_rate_min = 0.1;
    c->data.pass_rate_max = 0.9;
    source_add(c, "train", "sums", "train", "");
    ifl_task_set *set = open_fine(c, "train", NULL);
    for (int i = 0; i < 5000; i++) {
        char id[32];
        snprintf(id, sizeof id, "other:%d", i);
        ifl_task_set_report(set, id, 1.0);
    }
    ifl_task_set_report(set, "sums:3 + 4 =", 1.0);
    int n = count_task(set, "sums:3 + 4 =", 4000);
    assert_true(n < 25); /* of about 40 */
    ifl_task_set_close(set);
    free(c);
}

static void test_shared_tasks_are_refused_and_named(void **state) {
    (void)state;
    const char *train = file_make("train.jsonl", "{\"prompt\":\"a\",\"answer\":\"1\"}\n"
                                                 "{\"prompt\":\"b\",\"answer\":\"2\"}\n");
    const char *fine = file_make("fine.jsonl", "{\"prompt\":\"a\",\"answer\":\"2\"}\n"
                                               "{\"prompt\":\"c\",\"answer\":\"2\"}\n");
    const char *shared =
        file_make("shared.jsonl", "{\"prompt\":\"c\",\"answer\":\"2\"}\n"
                                  "{\"id\":\"z\",\"answer\":\"2\",\"prompt\":\"b\"}\n");
    ifl_config *c = config_make();
    source_add(c, "train", "", "", train);
    source_add(c, "eval", "", "", fine);
    ifl_task_set_close(open_fine(c, "eval", NULL));
    snprintf(c->data.eval[0].path, IFL_PATH_MAX, "%s", shared);
    expect_open_fails(c, "eval", IFL_MISMATCH, "shared.jsonl:2) is data.train.0 (");
    expect_open_fails(c, "eval", IFL_MISMATCH, "train.jsonl:2)");
    /* whoever only evaluates may not have the training file */
    strcpy(c->data.train[0].path, "/no/such.jsonl");
    ifl_task_set_close(open_fine(c, "eval", NULL));
    free(c);

    c = config_make();
    source_add(c, "train", "sums", "train", "");
    source_add(c, "eval", "sums", "heldout", "");
    ifl_task_set_close(open_fine(c, "eval", NULL));
    strcpy(c->data.eval[0].split, "train");
    expect_open_fails(c, "eval", IFL_MISMATCH,
                      "data.eval.0 (generator sums, split train, '1 + 1 =')");
    free(c);

    /* a file that holds a generator's task */
    c = config_make();
    source_add(c, "train", "ladder", "train", "");
    source_add(c, "eval", "", "",
               file_make("leak.jsonl", "{\"prompt\":\"287+8*04=\",\"answer\":\"319\"}\n"));
    expect_open_fails(c, "eval", IFL_MISMATCH, "leak.jsonl:1");
    free(c);
}

static void test_tasks_for_evaluation_are_not_trained_on(void **state) {
    (void)state;
    const char *held = file_make("held.jsonl", "{\"prompt\":\"a\",\"answer\":\"1\"}\n\n"
                                               "{\"prompt\":\"b\",\"eval_only\":true}\n");
    const char *open = file_make("open.jsonl", "{\"prompt\":\"a\",\"eval_only\":false}\n");
    ifl_config *c = config_make();
    source_add(c, "train", "", "", held);
    expect_open_fails(c, "train", IFL_MISMATCH, "held.jsonl:3: this task is for evaluation only");
    c->data.train[0].count = 1; /* the first line alone is not */
    ifl_task_set_close(open_fine(c, "train", NULL));
    free(c);
    c = config_make();
    source_add(c, "train", "", "", open);
    source_add(c, "eval", "", "", held);
    ifl_task_set_close(open_fine(c, "train", NULL));
    ifl_task_set_close(open_fine(c, "eval", NULL));
    free(c);
    c = config_make();
    source_add(c, "train", "", "",
               file_make("odd.jsonl", "{\"prompt\":\"a\",\"eval_only\":\"yes\"}\n"));
    expect_open_fails(c, "train", IFL_FORMAT, "eval_only");
    free(c);
}

static void test_long_prompts_are_left_out(void **state) {
    (void)state;
    ifl_tokenizer *tok = characters("abc");
    ifl_config *c = config_make();
    c->data.prompt_tokens_max = 3;
    source_add(c, "train", "", "",
               file_make("long.jsonl", "{\"prompt\":\"abc\"}\n{\"prompt\":\"abca\"}\n"
                                       "{\"prompt\":[0,1,2]}\n{\"prompt\":[0,1,2,0]}\n"));
    ifl_task_set *set = open_fine(c, "train", tok);
    assert_int_equal(ifl_task_set_size(set), 2);
    ifl_task_set_close(set);
    c->data.prompt_tokens_max = 2;
    ifl_error err = {0};
    assert_int_equal(ifl_task_set_open(&set, c, "train", tok, &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "all 4 prompts"));
    /* what can't be encoded at all is an error at open, with its place */
    c->data.prompt_tokens_max = 9;
    strcpy(c->data.train[0].path,
           file_make("odd.jsonl", "{\"prompt\":\"abc\"}\n{\"prompt\":\"x\"}\n"));
    assert_true(ifl_task_set_open(&set, c, "train", tok, &err) != IFL_OK);
    assert_non_null(strstr(err.text, "odd.jsonl:2"));
    strcpy(c->data.train[0].path, file_make("ids.jsonl", "{\"prompt\":[1,3]}\n"));
    assert_int_equal(ifl_task_set_open(&set, c, "train", tok, &err), IFL_FORMAT);
    assert_non_null(strstr(err.text, "token id 3"));
    ifl_tokenizer_free(tok);
    free(c);
}

static void test_messages_become_turns(void **state) {
    (void)state;
    static const char *const specials[] = {"<bos>", "<start_of_turn>", "<end_of_turn>"};
    ifl_tokenizer *tok = NULL;
    ifl_error err = {0};
    const char *alphabet = "\nabcdelmorsu<>_fnt";
    assert_int_equal(ifl_tokenizer_char(&tok, alphabet, strlen(alphabet), specials, 3, true, &err),
                     IFL_OK);
    ifl_config *c = config_make();
    strcpy(c->data.chat_format, "gemma");
    source_add(c, "train", "", "",
               file_make("chat.jsonl",
                         "{\"id\":\"m\",\"prompt\":[{\"role\":\"user\",\"content\":\"abc\"}]}\n"
                         "{\"id\":\"t\",\"prompt\":\"abc\"}\n"));
    ifl_task_set *set = open_fine(c, "train", tok);
    for (uint64_t i = 0; i < 2; i++) { /* a text alone is the user's turn */
        ifl_task task = get_fine(set, i);
        ifl_token_text text = {0};
        assert_int_equal(
            ifl_tokenizer_decode(tok, task.prompt, (size_t)task.n_prompt, 0, &text, &err), IFL_OK);
        const char *want = "<bos><start_of_turn>user\nabc<end_of_turn>\n<start_of_turn>model\n";
        assert_int_equal(text.n, strlen(want));
        assert_memory_equal(text.bytes, want, text.n);
        assert_string_equal(task.text, task.id[0] == 'm' ? want : "abc");
        ifl_token_text_free(&text);
        ifl_task_clear(&task);
    }
    ifl_task_set_close(set);
    strcpy(c->data.train[0].template_text, "x{prompt}");
    assert_int_equal(ifl_task_set_open(&set, c, "train", tok, &err), IFL_FORMAT);
    assert_non_null(strstr(err.text, "no template"));
    strcpy(c->data.chat_format, "morse");
    assert_true(ifl_task_set_open(&set, c, "train", tok, &err) != IFL_OK);
    ifl_tokenizer_free(tok);
    free(c);
}

static void test_file_examples(void **state) {
    (void)state;
    ifl_config *c = config_make();
    source_add(
        c, "train", "", "",
        file_make("sft.jsonl", "{\"prompt\":\"a\",\"answer\":\"1\",\"completion\":\" one\\n\"}\n"));
    ifl_task_set *set = open_fine(c, "train", NULL);
    ifl_task task;
    char *completion = NULL;
    assert_int_equal(ifl_task_set_example(set, 0, 0.0, &task, &completion, NULL), IFL_OK);
    assert_string_equal(completion, " one\n");
    free(completion);
    ifl_task_clear(&task);
    ifl_task_set_close(set);
    strcpy(c->data.train[0].path, file_make("bare.jsonl", "{\"prompt\":\"a\"}\n"));
    set = open_fine(c, "train", NULL);
    ifl_error err = {0};
    assert_int_equal(ifl_task_set_example(set, 0, 0.0, &task, &completion, &err), IFL_FORMAT);
    assert_non_null(strstr(err.text, "bare.jsonl:1"));
    ifl_task_set_close(set);
    free(c);
}

static int folder_make(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_lines_become_tasks),
        cmocka_unit_test(test_wrong_lines_are_named),
        cmocka_unit_test(test_changed_file_is_noticed),
        cmocka_unit_test(test_ladder_tasks_and_examples),
        cmocka_unit_test(test_sums_prompt_is_four_equations_and_a_question),
        cmocka_unit_test(test_tasks_are_a_function_of_seed_and_serial),
        cmocka_unit_test(test_heldout_tasks_are_the_same_for_every_seed),
        cmocka_unit_test(test_epochs_visit_every_task_once),
        cmocka_unit_test(test_ratios_hold_in_every_stretch),
        cmocka_unit_test(test_uniform_goes_by_size),
        cmocka_unit_test(test_pass_rate_band_rests_solved_tasks),
        cmocka_unit_test(test_many_reports_are_remembered),
        cmocka_unit_test(test_rates_come_back_and_with_them_the_draws),
        cmocka_unit_test(test_a_pick_beyond_its_source_is_refused),
        cmocka_unit_test(test_shared_tasks_are_refused_and_named),
        cmocka_unit_test(test_tasks_for_evaluation_are_not_trained_on),
        cmocka_unit_test(test_long_prompts_are_left_out),
        cmocka_unit_test(test_messages_become_turns),
        cmocka_unit_test(test_file_examples),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
