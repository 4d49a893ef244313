/* Runs a fuzz target over the files of its corpus, where there is no libFuzzer: a crash, a failed
 * property or a sanitizer's report ends it. Without sanitizers a leak shows as memory in use that
 * grows whenever an input is run again. */
#include <dirent.h>
#include <malloc.h>

#include "common/file_map.h"
#include "common/log.h"
#include "tests/fuzz/fuzz.h"

#define REPEATS 8

static uint8_t *file_read(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = NULL;
    long size = -1;
    if (f && fseek(f, 0, SEEK_END) == 0) size = ftell(f);
    if (size >= 0 && fseek(f, 0, SEEK_SET) == 0) bytes = malloc(size ? (size_t)size : 1);
    if (!bytes || fread(bytes, 1, (size_t)size, f) != (size_t)size) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(74);
    }
    fclose(f);
    *n = (size_t)size;
    return bytes;
}

static size_t memory_in_use(void) {
    struct mallinfo2 info = mallinfo2(); /* zeros under a sanitizer, which looks for leaks itself */
    return info.uordblks + info.hblkhd;
}

static bool input_leaks(const uint8_t *bytes, size_t n) {
    size_t before = memory_in_use();
    for (int i = 0; i < REPEATS; i++) {
        LLVMFuzzerTestOneInput(bytes, n);
        size_t after = memory_in_use();
        if (after <= before) return false;
        before = after;
    }
    return true;
}

int main(int argc, char **argv) {
    int n_inputs = 0, n_leaks = 0;
    LLVMFuzzerTestOneInput(NULL, 0);
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        struct dirent *entry = NULL;
        for (bool first = true; dir ? (entry = readdir(dir)) != NULL : first; first = false) {
            char path[4096];
            if (dir && entry->d_name[0] == '.') continue;
            snprintf(path, sizeof path, dir ? "%s/%s" : "%s", argv[i], dir ? entry->d_name : "");
            size_t n;
            uint8_t *bytes = file_read(path, &n);
            fprintf(stderr, "%s\n", path); /* the last line names an input that kills us */
            LLVMFuzzerTestOneInput(bytes, n);
            if (input_leaks(bytes, n)) {
                fprintf(stderr, "%s: leaks memory\n", path);
                n_leaks++;
            }
            free(bytes);
            n_inputs++;
        }
        if (dir) closedir(dir);
    }
    printf("%d inputs, %d of them leak\n", n_inputs, n_leaks);
    if (n_inputs == 0) fprintf(stderr, "no inputs: give files or folders of them\n");
    return n_inputs == 0 || n_leaks > 0;
}
