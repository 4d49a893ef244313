/* Runs a fuzz target over the files of its corpus, where there is no libFuzzer: a crash, a failed
 * property or a sanitizer's report ends it. Without sanitizers a leak shows as blocks in use whose
 * number grows whenever an input is run again. */
#include <dirent.h>
#include <errno.h>
#include <malloc.h>

#include "tests/fuzz/fuzz.h"

#define REPEATS 4

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* malloc is theirs */
static long blocks_in_use(void) {
    return 0;
}
#else
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);
void __libc_free(void *p);

static _Atomic long n_blocks;

static long blocks_in_use(void) {
    return n_blocks;
}

void *malloc(size_t n) {
    void *p = __libc_malloc(n);
    n_blocks += p != NULL;
    return p;
}

void *calloc(size_t n, size_t size) {
    void *p = __libc_calloc(n, size);
    n_blocks += p != NULL;
    return p;
}

void free(void *p) {
    n_blocks -= p != NULL;
    __libc_free(p);
}

void *realloc(void *p, size_t n) {
    void *grown = __libc_realloc(p, n);
    if (!p) n_blocks += grown != NULL;
    if (p && n == 0) n_blocks -= grown == NULL;
    return grown;
}

void *memalign(size_t alignment, size_t n) {
    void *p = __libc_memalign(alignment, n);
    n_blocks += p != NULL;
    return p;
}

void *aligned_alloc(size_t alignment, size_t n) {
    return memalign(alignment, n);
}

int posix_memalign(void **out, size_t alignment, size_t n) {
    void *p = memalign(alignment, n);
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}
#endif

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

/* Whether the input leaks. The first run may set up what stays. */
static bool input_run(const char *path) {
    size_t n;
    uint8_t *bytes = file_read(path, &n);
    bool leaks = false;
    fprintf(stderr, "%s\n", path); /* the last line names an input that kills us */
    for (int i = 0; i == 0 || (leaks && i < REPEATS); i++) {
        LLVMFuzzerTestOneInput(bytes, n);
        long before = blocks_in_use();
        LLVMFuzzerTestOneInput(bytes, n);
        leaks = blocks_in_use() > before;
    }
    free(bytes);
    if (leaks) fprintf(stderr, "%s: leaks memory\n", path);
    return leaks;
}

int main(int argc, char **argv) {
    int n_inputs = 0, n_leaks = 0;
    LLVMFuzzerTestOneInput(NULL, 0);
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (!dir) {
            n_leaks += input_run(argv[i]);
            n_inputs++;
            continue;
        }
        for (struct dirent *entry; (entry = readdir(dir));) {
            char path[4096];
            if (entry->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%s", argv[i], entry->d_name);
            n_leaks += input_run(path);
            n_inputs++;
        }
        closedir(dir);
    }
    printf("%d inputs, %d of them leak\n", n_inputs, n_leaks);
    if (n_inputs == 0) fprintf(stderr, "no inputs: give files or folders of them\n");
    return n_inputs == 0 || n_leaks > 0;
}
