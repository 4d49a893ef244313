/* patch: a change to files against the task's gold change. The completion holds a unified diff or
 * search/replace blocks; rewards/patch.h says what is paid. Similarity to the gold is capped below
 * 1, since a change that looks right and isn't must never pay as much as the right one. */
#include "rewards/patch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/json_util.h"

#define OVERSIZE_FACTOR 2.0 /* of the gold's tokens are free */

/* Text with JSON's own length: a file may hold NULs. */
static ifl_slice slice_of(const json_t *text) {
    return (ifl_slice){json_string_value(text), json_string_length(text)};
}

/* {path: text}, null deletes, over what is in `set`; or a diff on base. */
static ifl_status files_read(ifl_edit_files *set, const ifl_edit_files *base, const json_t *from,
                             const char *what, ifl_error *err) {
    if (json_is_string(from) && base) {
        ifl_status st = ifl_edit_apply(set, base, slice_of(from), err);
        if (st == IFL_NOTFOUND) st = err ? err->status = IFL_FORMAT : IFL_FORMAT;
        return st == IFL_OK ? st : (ifl_error_wrap(err, "%s", what), st);
    }
    if (!json_is_object(from))
        return ifl_fail(err, IFL_FORMAT, "%s: wanted an object {path: text}%s", what,
                        base ? " or a diff" : "");
    if (base) IFL_TRY(ifl_edit_files_clone(set, base, err));
    for (void *at = json_object_iter((json_t *)from); at;
         at = json_object_iter_next((json_t *)from, at)) {
        const json_t *text = json_object_iter_value(at);
        const char *path = json_object_iter_key(at);
        if (json_is_null(text) && base) {
            ifl_edit_files_remove(set, path);
            continue;
        }
        if (!json_is_string(text))
            return ifl_fail(err, IFL_FORMAT, "%s: %.80s: wanted a text", what, path);
        ifl_status st = ifl_edit_files_put(set, path, slice_of(text), err);
        if (st != IFL_OK) return ifl_error_wrap(err, "%s", what), st;
    }
    return IFL_OK;
}

/* A list of paths, or of folders that end in "/". */
static bool lists_path(const json_t *list, const char *path) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *entry = json_string_value(json_array_get(list, i));
        size_t n = strlen(entry);
        if (strcmp(entry, path) == 0 || (n && entry[n - 1] == '/' && strncmp(path, entry, n) == 0))
            return true;
    }
    return false;
}

static ifl_status paths_read(const json_t **out, const json_t *meta, const char *key,
                             ifl_error *err) {
    const json_t *list = json_object_get(meta, key);
    if (!list || json_is_null(list)) return IFL_OK;
    bool fine = json_is_array(list) && json_array_size(list) <= 1000;
    for (size_t i = 0; fine && i < json_array_size(list); i++)
        fine = json_is_string(json_array_get(list, i));
    if (!fine) return ifl_fail(err, IFL_FORMAT, "meta.%s: wanted a list of paths", key);
    *out = list;
    return IFL_OK;
}

static bool file_same(const ifl_edit_files *a, const ifl_edit_files *b, const char *path) {
    const ifl_edit_file *x = ifl_edit_files_find(a, path), *y = ifl_edit_files_find(b, path);
    return x && y ? ifl_slice_equal((ifl_slice){x->text, x->n}, (ifl_slice){y->text, y->n})
                  : x == y;
}

static bool path_allowed(const ifl_edit_task *task, const char *path) {
    if (task->allow) return lists_path(task->allow, path);
    return ifl_edit_files_find(&task->base, path) || ifl_edit_files_find(&task->gold, path);
}

/* Puts the tests back as they were; NULL or a path that may not be changed. */
static ifl_status tests_restore(ifl_edit_try *t, const ifl_edit_task *task, const char **refused,
                                ifl_error *err) {
    *refused = NULL;
    for (int i = 0; i < task->base.n; i++) {
        const ifl_edit_file *file = &task->base.files[i];
        if (file_same(&task->base, &t->files, file->path)) continue;
        if (!lists_path(task->tests, file->path)) {
            if (!path_allowed(task, file->path)) *refused = file->path;
            continue;
        }
        if (!file_same(&task->gold, &t->files, file->path)) t->edited_tests = true;
        IFL_TRY(ifl_edit_files_put(&t->files, file->path, (ifl_slice){file->text, file->n}, err));
    }
    for (int i = t->files.n - 1; i >= 0; i--) {
        const char *path = t->files.files[i].path;
        if (ifl_edit_files_find(&task->base, path)) continue;
        if (!lists_path(task->tests, path)) {
            if (!path_allowed(task, path)) *refused = path;
            continue;
        }
        if (!file_same(&task->gold, &t->files, path)) t->edited_tests = true;
        ifl_edit_files_remove(&t->files, path);
    }
    return IFL_OK;
}

/* The gold and a rejected one with the tests as in base: they are no part of the comparison. */
static ifl_status without_tests(ifl_edit_files *out, const ifl_edit_task *task,
                                const ifl_edit_files *set, ifl_error *err) {
    ifl_edit_try t = {.status = IFL_REWARD_OK};
    const char *refused;
    IFL_TRY(ifl_edit_files_clone(&t.files, set, err));
    ifl_status st = tests_restore(&t, task, &refused, err);
    *out = t.files;
    return st;
}

static ifl_status rejected_read(ifl_edit_task *t, ifl_error *err) {
    const json_t *list = json_object_get(t->meta, "rejected");
    size_t n = json_array_size(list);
    if (!list || json_is_null(list)) return IFL_OK;
    if (!json_is_array(list) || n > IFL_EDIT_REJECTED_MAX)
        return ifl_fail(err, IFL_FORMAT, "meta.rejected: wanted a list of at most %d",
                        IFL_EDIT_REJECTED_MAX);
    t->rejected = calloc(n + 1, sizeof *t->rejected);
    if (!t->rejected) return ifl_fail(err, IFL_NOMEM, "no memory for %zu rejected patches", n);
    for (; (size_t)t->n_rejected < n; t->n_rejected++)
        IFL_TRY(files_read(&t->rejected[t->n_rejected], &t->base,
                           json_array_get(list, (size_t)t->n_rejected), "meta.rejected", err));
    return IFL_OK;
}

static ifl_status gold_read(ifl_edit_task *t, const char *answer, ifl_error *err) {
    json_t *gold = json_object_get(t->meta, "gold"), *text = NULL;
    if (!gold) gold = text = json_stringn(answer, strlen(answer));
    if (!gold) return ifl_fail(err, IFL_FORMAT, "the task's answer is not UTF-8");
    ifl_status st = t->noop && (!text || !*answer) && (!json_object_size(gold))
                        ? ifl_edit_files_clone(&t->gold, &t->base, err)
                        : files_read(&t->gold, &t->base, gold, text ? "answer" : "meta.gold", err);
    json_decref(text);
    IFL_TRY(st);
    /* Edits of tests are no part of it: else doing nothing would be right. */
    ifl_edit_files bare = {.n = 0};
    IFL_TRY(without_tests(&bare, t, &t->gold, err));
    bool changes = !ifl_edit_files_equal(&bare, &t->base);
    ifl_edit_files_free(&bare);
    if (changes == t->noop)
        return ifl_fail(err, IFL_FORMAT,
                        t->noop
                            ? "the gold changes files, but meta.noop says it does not"
                            : "the gold changes nothing, and meta.noop doesn't say that it may");
    return IFL_OK;
}

ifl_status ifl_edit_task_read(ifl_edit_task *t, json_t *meta, const char *answer, ifl_error *err) {
    *t = (ifl_edit_task){
        .cap = 0.5, .rejected_penalty = 0.5, .tests_penalty = 0.5, .oversize_penalty = 0.1};
    if (!meta) return ifl_fail(err, IFL_FORMAT, "meta.files: wanted the original files, got none");
    t->meta = json_incref(meta);
    IFL_TRY(ifl_json_double(meta, "cap", 0.0, 0.95, &t->cap, err));
    IFL_TRY(ifl_json_double(meta, "rejected_penalty", 0.0, 1.0, &t->rejected_penalty, err));
    IFL_TRY(ifl_json_double(meta, "tests_penalty", 0.0, 1.0, &t->tests_penalty, err));
    IFL_TRY(ifl_json_double(meta, "format_penalty", 0.0, 1.0, &t->format_penalty, err));
    /* A right answer, however large, pays more than any that only looks like it. */
    if (t->oversize_penalty > (1 - t->cap) / 2) t->oversize_penalty = (1 - t->cap) / 2;
    IFL_TRY(ifl_json_double(meta, "oversize_penalty", 0.0, (1 - t->cap) / 2, &t->oversize_penalty,
                            err));
    IFL_TRY(ifl_json_bool(meta, "noop", &t->noop, err));
    IFL_TRY(paths_read(&t->tests, meta, "tests", err));
    IFL_TRY(paths_read(&t->allow, meta, "allow", err));
    IFL_TRY(files_read(&t->base, NULL, json_object_get(meta, "files"), "meta.files", err));
    IFL_TRY(gold_read(t, answer, err));
    return rejected_read(t, err);
}

void ifl_edit_task_free(ifl_edit_task *t) {
    ifl_edit_files_free(&t->base);
    ifl_edit_files_free(&t->gold);
    for (int i = 0; t->rejected && i < IFL_EDIT_REJECTED_MAX && i <= t->n_rejected; i++)
        ifl_edit_files_free(&t->rejected[i]);
    free(t->rejected);
    json_decref(t->meta);
    *t = (ifl_edit_task){0};
}

ifl_status ifl_edit_try_read(ifl_edit_try *out, const ifl_edit_task *task, ifl_slice completion,
                             ifl_error *err) {
    *out = (ifl_edit_try){.status = IFL_REWARD_OK};
    const char *refused = NULL;
    ifl_status st =
        ifl_edit_apply(&out->files, &task->base, ifl_slice_after_thinking(completion), err);
    if (st == IFL_NOTFOUND) {
        /* Where nothing is to be done, nothing may be said. */
        if (task->noop) return ifl_edit_files_clone(&out->files, &task->base, err);
        out->status = IFL_REWARD_NO_ANSWER;
        return IFL_OK;
    }
    if (st == IFL_FORMAT || st == IFL_LIMIT) {
        out->status = IFL_REWARD_BAD_FORMAT;
        return IFL_OK;
    }
    IFL_TRY(st);
    st = tests_restore(out, task, &refused, err);
    if (st == IFL_FORMAT || st == IFL_LIMIT) {
        out->status = IFL_REWARD_BAD_FORMAT; /* a file where a test's folder was */
        out->edited_tests = true;
        return IFL_OK;
    }
    IFL_TRY(st);
    if (refused) {
        out->status = IFL_REWARD_BAD_FORMAT;
        ifl_fail(err, IFL_FORMAT, "%.80s may not be changed", refused);
    }
    return IFL_OK;
}

void ifl_edit_try_free(ifl_edit_try *t) {
    ifl_edit_files_free(&t->files);
}

static void component_add(ifl_reward *out, const char *name, double value) {
    if (out->n_components == IFL_COMPONENTS_MAX) return;
    int32_t i = out->n_components++;
    strncpy(out->components[i].name, name, sizeof out->components[i].name - 1);
    out->components[i].value = (float)value;
}

typedef struct scores {
    double gold, rejected, oversize; /* similarities; oversize 0 .. 1 */
    bool equal, changes, matched;    /* matched: a rejected one, exactly */
} scores;

static ifl_status scores_of(scores *out, const ifl_edit_task *task, const ifl_edit_try *t,
                            ifl_error *err) {
    ifl_edit_files other = {.n = 0};
    size_t size = 0, size_gold = 0, ignored;
    *out = (scores){.changes = !ifl_edit_files_equal(&t->files, &task->base)};
    ifl_status st = without_tests(&other, task, &task->gold, err);
    if (st == IFL_OK) {
        out->equal = ifl_edit_files_equal(&t->files, &other);
        st =
            ifl_edit_similarity(&task->base, &t->files, &other, &out->gold, &size, &size_gold, err);
    }
    ifl_edit_files_free(&other);
    for (int i = 0; i < task->n_rejected && st == IFL_OK; i++) {
        double similarity = 0;
        st = without_tests(&other, task, &task->rejected[i], err);
        if (st == IFL_OK)
            st = ifl_edit_similarity(&task->base, &t->files, &other, &similarity, &size, &ignored,
                                     err);
        if (similarity > out->rejected) out->rejected = similarity;
        out->matched |= st == IFL_OK && ifl_edit_files_equal(&t->files, &other);
        ifl_edit_files_free(&other);
    }
    double free_size = OVERSIZE_FACTOR * (double)(size_gold ? size_gold : 1);
    out->oversize = fmin(1.0, fmax(0.0, (double)size / free_size - 1.0));
    return st;
}

ifl_status ifl_edit_reward(const ifl_edit_task *task, const ifl_edit_try *t, int32_t tests_passed,
                           int32_t tests_total, ifl_reward *out, ifl_error *err) {
    scores s;
    double reward = 0;
    if (t->status != IFL_REWARD_OK) {
        out->status = t->status;
        out->reward = -(float)(t->edited_tests ? fmax(task->tests_penalty, task->format_penalty)
                                               : task->format_penalty);
        return IFL_OK;
    }
    IFL_TRY(scores_of(&s, task, t, err));
    double penalty = task->oversize_penalty * s.oversize;
    double margin = fmax(0.0, s.rejected - s.gold);
    component_add(out, "similarity", s.gold);
    component_add(out, "rejected", s.rejected);
    component_add(out, "oversize", s.oversize);
    component_add(out, "edited_tests", t->edited_tests);
    out->tests_passed = tests_passed;
    out->tests_total = tests_total;
    if (tests_total > 0)
        reward = tests_passed == tests_total ? 1.0 - penalty : 0.0;
    else if (s.equal)
        reward = 1.0;
    else if (s.changes)
        reward = (s.matched ? 0.0 : task->cap * s.gold) - task->rejected_penalty * margin - penalty;
    if (t->edited_tests) reward = fmin(reward, -task->tests_penalty);
    reward = fmax(-1.0, reward);
    out->status = reward > 0 ? IFL_REWARD_OK : IFL_REWARD_WRONG;
    out->reward = (float)reward;
    if (reward <= 0 && err)
        ifl_fail(err, IFL_FORMAT, "%s",
                 t->edited_tests   ? "the patch edits the tests"
                 : tests_total > 0 ? "tests fail"
                 : s.changes       ? "nothing of the patch is as in the gold, or a rejected one is "
                                     "nearer"
                                   : "the patch changes nothing");
    return IFL_OK;
}

static ifl_status patch_check(const ifl_reward_request *request, ifl_reward *out, ifl_error *err) {
    json_t *meta = NULL;
    IFL_TRY(ifl_checker_meta(request, &meta, out, err));
    if (out->status == IFL_REWARD_BAD_TASK) return IFL_OK;
    ifl_edit_task task;
    ifl_edit_try t = {.status = IFL_REWARD_OK};
    ifl_status st = ifl_edit_task_read(&task, meta, request->answer, err);
    if (st == IFL_OK) {
        st = ifl_edit_try_read(&t, &task, (ifl_slice){request->completion, request->n_completion},
                               err);
        if (st == IFL_OK) st = ifl_edit_reward(&task, &t, 0, 0, out, err);
    } else if (st != IFL_NOMEM) {
        st = ifl_verdict_bad_option(out);
    }
    ifl_edit_try_free(&t);
    ifl_edit_task_free(&task);
    json_decref(meta);
    return st;
}

static const char *const patch_names[] = {"files",
                                          "gold",
                                          "tests",
                                          "allow",
                                          "rejected",
                                          "noop",
                                          "cap",
                                          "rejected_penalty",
                                          "tests_penalty",
                                          "format_penalty",
                                          "oversize_penalty",
                                          NULL};

const ifl_checker ifl_checker_patch = {
    .name = "patch",
    .version = "1",
    .help =
        "answer: the gold diff; meta: \"files\" {path: text}, \"gold\" (instead of the answer), "
        "\"tests\", \"allow\", \"rejected\", \"noop\", \"cap\" and \"*_penalty\" (rewards/patch.h)",
    .check = patch_check,
    .flags = IFL_CHECKER_PURE,
    .options = patch_names,
};
