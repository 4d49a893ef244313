/* common/config.h: a YAML text, then overrides, each behind 0xff. A configuration that is accepted
 * is written as a text that reads as the same one. */
#include "common/config_table.h"
#include "tests/fuzz/fuzz.h"

static char *config_text(const ifl_config *config, bool comments) {
    char *text = NULL;
    size_t n = 0;
    ifl_error err = {0};
    FILE *f = open_memstream(&text, &n);
    if (!f) abort();
    FUZZ_CHECK(ifl_config_write(config, f, comments, &err) == IFL_OK);
    fclose(f);
    return text;
}

static void check_round_trip(const ifl_config *config, bool comments) {
    static ifl_config again;
    ifl_error err = {0};
    char *first = config_text(config, comments);
    ifl_config_defaults(&again);
    if (ifl_config_read_text(&again, "written", first, strlen(first), NULL, &err) != IFL_OK) {
        fprintf(stderr, "%s\n%s\n", err.text, first);
        abort();
    }
    char *second = config_text(&again, comments);
    FUZZ_CHECK(strcmp(first, second) == 0);
    FUZZ_CHECK(ifl_config_check(&again, &err) == IFL_OK);
    free(first);
    free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static ifl_config config;
    fuzz_input in = fuzz_input_of(data, size), text = fuzz_take_until(&in, 0xff);
    uint8_t *yaml = fuzz_copy(text);
    ifl_error err = {0};
    ifl_config_defaults(&config);
    ifl_status st = ifl_config_read_text(&config, "config.yaml", (const char *)yaml,
                                         fuzz_left(&text), NULL, &err);
    free(yaml);
    while (st == IFL_OK && fuzz_left(&in)) {
        char *key = fuzz_text(fuzz_take_until(&in, 0xff)), *value = strchr(key, '=');
        if (value) {
            *value = 0;
            st = ifl_config_set(&config, key, value + 1, &err);
        }
        free(key);
    }
    if (st == IFL_OK && ifl_config_check(&config, &err) == IFL_OK) {
        static FILE *nowhere;
        if (!nowhere) nowhere = fopen("/dev/null", "w");
        if (ifl_config_check_training(&config, &err) == IFL_OK)
            ifl_config_describe(&config, nowhere);
        check_round_trip(&config, size % 8 == 0);
    }
    return 0;
}
