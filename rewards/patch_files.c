#include <stdlib.h>
#include <string.h>

#include "rewards/patch.h"

void ifl_edit_files_free(ifl_edit_files *set) {
    for (int i = 0; i < set->n; i++) {
        free(set->files[i].path);
        free(set->files[i].text);
    }
    set->n = 0;
}

/* Index of the first path not before `path`. */
static int files_place(const ifl_edit_files *set, const char *path) {
    int i = 0;
    while (i < set->n && strcmp(set->files[i].path, path) < 0)
        i++;
    return i;
}

ifl_edit_file *ifl_edit_files_find(const ifl_edit_files *set, const char *path) {
    int i = files_place(set, path);
    return i < set->n && strcmp(set->files[i].path, path) == 0 ? (ifl_edit_file *)&set->files[i]
                                                               : NULL;
}

static bool below(const char *path, const char *folder) {
    size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && path[n] == '/';
}

static const char *path_fault(const char *path) {
    size_t n = strlen(path);
    if (n == 0 || n > IFL_EDIT_PATH_BYTES_MAX) return "is empty or too long";
    if (*path == '/' || *path == '~' || (n > 1 && path[1] == ':')) return "is not relative";
    for (const char *c = path; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f || *c == '\\' || *c == '"')
            return "holds a control character, backslash or quote";
    for (const char *part = path;; part++) {
        size_t length = strcspn(part, "/");
        if (length == 0) return "has an empty part";
        if ((length == 1 && part[0] == '.') || (length == 2 && memcmp(part, "..", 2) == 0))
            return "has a part . or ..";
        if (length == 4 && strncasecmp(part, ".git", 4) == 0) return "lies in .git";
        part += length;
        if (!*part) return NULL;
    }
}

ifl_status ifl_edit_files_put(ifl_edit_files *set, const char *path, ifl_slice text,
                              ifl_error *err) {
    const char *fault = path_fault(path);
    if (fault) return ifl_fail(err, IFL_FORMAT, "path '%.80s' %s", path, fault);
    int at = files_place(set, path);
    bool known = at < set->n && strcmp(set->files[at].path, path) == 0;
    for (int i = 0; i < set->n; i++)
        if (below(path, set->files[i].path) || below(set->files[i].path, path))
            return ifl_fail(err, IFL_FORMAT, "'%.80s' and '%.80s' can't both be files", path,
                            set->files[i].path);
    if (!known && set->n == IFL_EDIT_FILES_MAX)
        return ifl_fail(err, IFL_LIMIT, "more than %d files", IFL_EDIT_FILES_MAX);
    char *copy = malloc(text.n + 1), *name = known ? set->files[at].path : strdup(path);
    if (!copy || !name) {
        free(copy);
        if (!known) free(name);
        return ifl_fail(err, IFL_NOMEM, "no memory for a file of %zu bytes", text.n);
    }
    if (text.n) memcpy(copy, text.text, text.n);
    copy[text.n] = '\0';
    if (known) {
        free(set->files[at].text);
    } else {
        memmove(&set->files[at + 1], &set->files[at], (size_t)(set->n - at) * sizeof set->files[0]);
        set->n++;
    }
    set->files[at] = (ifl_edit_file){name, copy, text.n};
    return IFL_OK;
}

void ifl_edit_files_remove(ifl_edit_files *set, const char *path) {
    ifl_edit_file *file = ifl_edit_files_find(set, path);
    if (!file) return;
    free(file->path);
    free(file->text);
    set->n--;
    memmove(file, file + 1, (size_t)(&set->files[set->n] - file) * sizeof *file);
}

ifl_status ifl_edit_files_clone(ifl_edit_files *out, const ifl_edit_files *set, ifl_error *err) {
    out->n = 0;
    ifl_status st = IFL_OK;
    for (int i = 0; i < set->n && st == IFL_OK; i++)
        st = ifl_edit_files_put(out, set->files[i].path,
                                (ifl_slice){set->files[i].text, set->files[i].n}, err);
    if (st != IFL_OK) ifl_edit_files_free(out);
    return st;
}

bool ifl_edit_files_equal(const ifl_edit_files *a, const ifl_edit_files *b) {
    bool equal = a->n == b->n;
    for (int i = 0; i < a->n && equal; i++)
        equal = strcmp(a->files[i].path, b->files[i].path) == 0 &&
                ifl_slice_equal((ifl_slice){a->files[i].text, a->files[i].n},
                                (ifl_slice){b->files[i].text, b->files[i].n});
    return equal;
}

/* Every "\n" follows a "\r", and there is one. */
static bool is_crlf(ifl_slice s) {
    bool any = false;
    for (size_t i = 0; i < s.n; i++) {
        if (s.text[i] != '\n') continue;
        if (i == 0 || s.text[i - 1] != '\r') return false;
        any = true;
    }
    return any;
}

ifl_status ifl_edit_doc_open(ifl_edit_doc *doc, ifl_slice s, ifl_error *err) {
    *doc = (ifl_edit_doc){.crlf = is_crlf(s), .no_eol = s.n > 0 && s.text[s.n - 1] != '\n'};
    doc->text = malloc(s.n + 2);
    if (!doc->text) return ifl_fail(err, IFL_NOMEM, "no memory for a file of %zu bytes", s.n);
    doc->text[doc->n++] = '\n';
    for (size_t i = 0; i < s.n; i++)
        if (!doc->crlf || s.text[i] != '\r' || i + 1 == s.n || s.text[i + 1] != '\n')
            doc->text[doc->n++] = s.text[i];
    if (doc->no_eol) doc->text[doc->n++] = '\n';
    return IFL_OK;
}

ifl_status ifl_edit_doc_close(ifl_edit_doc *doc, ifl_edit_files *set, const char *path,
                              ifl_error *err) {
    size_t n = 0, n_in = doc->n - (doc->no_eol && doc->n > 1);
    char *text = malloc(2 * doc->n);
    ifl_status st = text ? IFL_OK : ifl_fail(err, IFL_NOMEM, "no memory for %zu bytes", doc->n);
    for (size_t i = 1; i < n_in && text; i++) {
        if (doc->crlf && doc->text[i] == '\n') text[n++] = '\r';
        text[n++] = doc->text[i];
    }
    if (st == IFL_OK) st = ifl_edit_files_put(set, path, (ifl_slice){text, n}, err);
    free(text);
    free(doc->text);
    *doc = (ifl_edit_doc){0};
    return st;
}

int ifl_edit_doc_find(const ifl_edit_doc *doc, ifl_slice block, size_t *at) {
    const char *first = memmem(doc->text, doc->n, block.text, block.n);
    if (!first) return 0;
    *at = (size_t)(first - doc->text) + 1;
    return memmem(doc->text + *at, doc->n - *at, block.text, block.n) ? 2 : 1;
}

/* `text` with "\r\n" as "\n": owned. */
static ifl_status newlines_plain(ifl_slice s, char **out, size_t *n, ifl_error *err) {
    *n = 0;
    *out = malloc(s.n + 1);
    if (!*out) return ifl_fail(err, IFL_NOMEM, "no memory for %zu bytes", s.n);
    for (size_t i = 0; i < s.n; i++)
        if (s.text[i] != '\r' || i + 1 == s.n || s.text[i + 1] != '\n') (*out)[(*n)++] = s.text[i];
    return IFL_OK;
}

/* What kinds of patch begin in the text. */
static void forms_of(ifl_slice s, bool *diff, bool *blocks) {
    ifl_slice line, before = {"", 0};
    *diff = *blocks = false;
    while (ifl_slice_line(&s, &line)) {
        if (ifl_slice_starts(before, "--- ") && ifl_slice_starts(line, "+++ ")) *diff = true;
        if (ifl_slice_starts(line, "diff --git ")) *diff = true;
        if (ifl_slice_starts(line, "<<<<<") && ifl_slice_ends(ifl_slice_trim(line), " SEARCH"))
            *blocks = true;
        before = line;
    }
}

ifl_status ifl_edit_apply(ifl_edit_files *out, const ifl_edit_files *base, ifl_slice text,
                          ifl_error *err) {
    char *plain = NULL;
    size_t n = 0;
    bool diff, blocks;
    out->n = 0;
    IFL_TRY(newlines_plain(text, &plain, &n, err));
    ifl_slice s = {plain, n};
    forms_of(s, &diff, &blocks);
    ifl_status st = IFL_OK;
    if (diff && blocks)
        st = ifl_fail(err, IFL_FORMAT, "a diff and search/replace blocks: wanted one of them");
    else if (!diff && !blocks)
        st = ifl_fail(err, IFL_NOTFOUND, "no diff and no search/replace block in the completion");
    if (st == IFL_OK) st = ifl_edit_files_clone(out, base, err);
    if (st == IFL_OK)
        st = diff ? ifl_edit_apply_diff(out, base, s, err) : ifl_edit_apply_blocks(out, s, err);
    if (st != IFL_OK) ifl_edit_files_free(out);
    free(plain);
    return st;
}
