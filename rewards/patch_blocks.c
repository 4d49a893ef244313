/* Search/replace blocks:
 *
 *   path/of/file
 *   <<<<<<< SEARCH
 *   lines that are there, in one place
 *   =======
 *   lines in their stead
 *   >>>>>>> REPLACE
 *
 * The path is the line before the block, or before a fence around it; without one it is the path of
 * the block before. Blocks apply one after the other. An empty SEARCH makes a new file. */
#include <stdlib.h>
#include <string.h>

#include "rewards/patch.h"

/* 5 to 9 times `mark`, then `word`. */
static bool is_marker(ifl_slice line, char mark, const char *word) {
    size_t n = 0;
    while (n < line.n && line.text[n] == mark)
        n++;
    ifl_slice rest = ifl_slice_trim(ifl_slice_skip(line, n));
    return n >= 5 && n <= 9 && rest.n == strlen(word) && memcmp(rest.text, word, rest.n) == 0;
}

static bool is_fence(ifl_slice line) {
    return ifl_slice_starts(ifl_slice_trim(line), "```");
}

/* A path as people write it: in back quotes, bold, with a colon. */
static ifl_slice path_of_line(ifl_slice line) {
    line = ifl_slice_trim(line);
    while (line.n > 0 && strchr("`*", *line.text) && *line.text)
        line = ifl_slice_skip(line, 1);
    while (line.n > 0 && strchr("`*:", line.text[line.n - 1]) && line.text[line.n - 1])
        line.n--;
    return line;
}

/* From behind a marker to the line that is `mark` `word`; false: it never comes. */
static bool section_read(ifl_slice *rest, char mark, const char *word, ifl_slice *out) {
    const char *begin = rest->text;
    for (ifl_slice line; ifl_slice_line(rest, &line);) {
        if (is_marker(line, '<', "SEARCH")) return false;
        if (!is_marker(line, mark, word)) continue;
        *out = (ifl_slice){begin, (size_t)(line.text - begin)};
        return true;
    }
    return false;
}

static ifl_status block_apply(ifl_edit_files *set, const char *path, ifl_slice old,
                              ifl_slice wanted, ifl_error *err) {
    const ifl_edit_file *file = ifl_edit_files_find(set, path);
    if (old.n == 0) {
        if (file && file->n > 0)
            return ifl_fail(err, IFL_FORMAT, "%.80s: an empty SEARCH, but the file is not", path);
        return ifl_edit_files_put(set, path, wanted, err);
    }
    if (!file) return ifl_fail(err, IFL_FORMAT, "%.80s: there is no such file", path);
    ifl_edit_doc doc = {0};
    char *edited = NULL;
    size_t at = 0;
    ifl_status st = IFL_OK;
    IFL_TRY(ifl_edit_doc_open(&doc, (ifl_slice){file->text, file->n}, err));
    /* Sections end in "\n" and begin behind one: the block with it is whole lines. */
    int found = ifl_edit_doc_find(&doc, (ifl_slice){old.text - 1, old.n + 1}, &at);
    if (found != 1) {
        st = ifl_fail(err, IFL_FORMAT, "%.80s: the SEARCH lines are %s", path,
                      found ? "in several places" : "not there");
    } else if (!(edited = malloc(doc.n + wanted.n))) {
        st = ifl_fail(err, IFL_NOMEM, "no memory for a file of %zu bytes", doc.n);
    } else {
        memcpy(edited, doc.text, at);
        memcpy(edited + at, wanted.text, wanted.n);
        memcpy(edited + at + wanted.n, doc.text + at + old.n, doc.n - at - old.n);
        free(doc.text);
        doc.text = edited;
        doc.n = doc.n - old.n + wanted.n;
        return ifl_edit_doc_close(&doc, set, path, err);
    }
    free(doc.text);
    return st;
}

ifl_status ifl_edit_apply_blocks(ifl_edit_files *out, ifl_slice s, ifl_error *err) {
    char path[IFL_EDIT_PATH_BYTES_MAX + 1] = "";
    ifl_slice line, named = {"", 0}, old, wanted;
    int n = 0;
    while (ifl_slice_line(&s, &line)) {
        if (!is_marker(line, '<', "SEARCH")) {
            if (!is_fence(line)) named = path_of_line(line);
            continue;
        }
        if (++n > IFL_EDIT_HUNKS_MAX)
            return ifl_fail(err, IFL_LIMIT, "more than %d blocks", IFL_EDIT_HUNKS_MAX);
        if (named.n > IFL_EDIT_PATH_BYTES_MAX || memchr(named.text, '\0', named.n))
            return ifl_fail(err, IFL_FORMAT, "block %d: the line before it is no path", n);
        if (named.n > 0) {
            memcpy(path, named.text, named.n);
            path[named.n] = '\0';
        }
        if (!*path) return ifl_fail(err, IFL_FORMAT, "block %d: no path before it", n);
        if (!section_read(&s, '=', "", &old) || !section_read(&s, '>', "REPLACE", &wanted))
            return ifl_fail(err, IFL_FORMAT, "block %d has no end", n);
        named = (ifl_slice){"", 0};
        IFL_TRY(block_apply(out, path, old, wanted, err));
    }
    return n ? IFL_OK : ifl_fail(err, IFL_FORMAT, "no whole search/replace block");
}
