/* Patches on sets of files, all in memory: nothing is ever written to a disk. Reading a task and
 * trying a completion are apart from the reward, so that a checker with tests can run them on the
 * patched files in between ("tests first"). Inside rewards/ only. */
#ifndef IFL_REWARDS_PATCH_H
#define IFL_REWARDS_PATCH_H

#include "rewards/text.h"

#define IFL_EDIT_FILES_MAX 64
#define IFL_EDIT_PATH_BYTES_MAX 512
#define IFL_EDIT_HUNKS_MAX 512
#define IFL_EDIT_REJECTED_MAX 16

/* Sorted by path; owns its texts, which may hold NULs. */
typedef struct ifl_edit_file {
    char *path, *text;
    size_t n;
} ifl_edit_file;
typedef struct ifl_edit_files {
    ifl_edit_file files[IFL_EDIT_FILES_MAX];
    int n;
} ifl_edit_files;

void ifl_edit_files_free(ifl_edit_files *set); /* empties it */
ifl_status ifl_edit_files_clone(ifl_edit_files *out, const ifl_edit_files *set, ifl_error *err);
ifl_edit_file *ifl_edit_files_find(const ifl_edit_files *set, const char *path);
/* Adds or replaces. IFL_FORMAT: no path inside the tree (absolute, "..", ".git", backslashes,
 * control characters), or one below a file. IFL_LIMIT: too many files. */
ifl_status ifl_edit_files_put(ifl_edit_files *set, const char *path, ifl_slice text,
                              ifl_error *err);
void ifl_edit_files_remove(ifl_edit_files *set, const char *path);
bool ifl_edit_files_equal(const ifl_edit_files *a, const ifl_edit_files *b);

/* Applies what `text` holds, a unified diff or search/replace blocks, to a clone of `base`. No
 * fuzz: all old lines must be there, at the place that the diff says or else in one place alone.
 * Line endings in `text` are "\n" or "\r\n"; a file keeps its own. IFL_NOTFOUND: there is no patch
 * in it. IFL_FORMAT, IFL_LIMIT: it is malformed or does not apply. `out` is empty unless IFL_OK. */
ifl_status ifl_edit_apply(ifl_edit_files *out, const ifl_edit_files *base, ifl_slice text,
                          ifl_error *err);
/* The two forms by themselves; `out` is a clone of base already, and in any state on failure. */
ifl_status ifl_edit_apply_diff(ifl_edit_files *out, const ifl_edit_files *base, ifl_slice text,
                               ifl_error *err);
ifl_status ifl_edit_apply_blocks(ifl_edit_files *out, ifl_slice text, ifl_error *err);

/* One file's text for editing: a "\n", then its lines, each ended by "\n". */
typedef struct ifl_edit_doc {
    char *text;
    size_t n;
    bool crlf;   /* all its line ends were "\r\n", and will be again */
    bool no_eol; /* its last line has none */
} ifl_edit_doc;
ifl_status ifl_edit_doc_open(ifl_edit_doc *doc, ifl_slice text, ifl_error *err);
/* Puts the document's text into the set and frees it. */
ifl_status ifl_edit_doc_close(ifl_edit_doc *doc, ifl_edit_files *set, const char *path,
                              ifl_error *err);
/* How often (0, 1 or 2 for more) `block`, whole lines behind a "\n" of its own, occurs; *at is
 * where its first line begins. */
int ifl_edit_doc_find(const ifl_edit_doc *doc, ifl_slice block, size_t *at);

/* How alike the changes base -> a and base -> b are, 0 .. 1: the mean of lines (Dice over deleted
 * places and the longest common run of inserted lines) and of tokens (Dice over bags). What neither
 * changed counts nothing, so that copying context pays nothing. 0 when one of them changes nothing.
 * Beyond 400 differing lines in a file lines are counted as bags too: the cost stays within
 * n log n + 400^2 a file. `size_a` and `size_b`: tokens in the changes. */
ifl_status ifl_edit_similarity(const ifl_edit_files *base, const ifl_edit_files *a,
                               const ifl_edit_files *b, double *similarity, size_t *size_a,
                               size_t *size_b, ifl_error *err);

/* --- A task. meta: "files" {path: text}; "gold", a diff or {path: text or null} of what changes
 * (absent: the answer is the diff); "tests" and "allow", paths or folders with a "/" at their end;
 * "rejected", a list of such as gold; "noop"; "cap", "rejected_penalty", "tests_penalty",
 * "oversize_penalty", "format_penalty". */
typedef struct ifl_edit_task {
    ifl_edit_files base, gold;
    ifl_edit_files *rejected;
    int n_rejected;
    json_t *meta; /* a reference of its own: tests and allow live in it */
    const json_t *tests, *allow;
    bool noop; /* the gold changes nothing, and that is meant */
    double cap, rejected_penalty, tests_penalty, oversize_penalty, format_penalty;
} ifl_edit_task;

/* IFL_FORMAT or IFL_LIMIT: the task is at fault. Free also after a failure. */
ifl_status ifl_edit_task_read(ifl_edit_task *task, json_t *meta, const char *answer,
                              ifl_error *err);
void ifl_edit_task_free(ifl_edit_task *task);

typedef struct ifl_edit_try {
    ifl_reward_status status; /* OK: it applies; else NO_ANSWER or BAD_FORMAT, reason in err */
    ifl_edit_files files;     /* with the tests as they were in base */
    bool edited_tests;
} ifl_edit_try;

/* Free also after a failure. */
ifl_status ifl_edit_try_read(ifl_edit_try *out, const ifl_edit_task *task, ifl_slice completion,
                             ifl_error *err);
void ifl_edit_try_free(ifl_edit_try *t);

/* The reward of a try. Without tests (tests_total 0): 1 for the gold's files exactly, else
 * cap * similarity, less rejected_penalty * (similarity to the nearest rejected - to the gold,
 * where positive) and the penalty for more than twice the gold's size; a patch that changes nothing
 * pays 0 unless the gold is a no-op, and one that is a rejected one gets nothing for similarity.
 * With tests: 1 less the oversize penalty if all passed, else 0.
 * Edited tests: at most -tests_penalty. A try that doesn't apply: -format_penalty. */
ifl_status ifl_edit_reward(const ifl_edit_task *task, const ifl_edit_try *t, int32_t tests_passed,
                           int32_t tests_total, ifl_reward *out, ifl_error *err);

#endif
