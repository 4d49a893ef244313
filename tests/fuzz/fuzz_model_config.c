/* common/model_config.h: a config.json. What is accepted holds its own rules, and writes a JSON
 * that reads as the same architecture. */
#include "common/model_config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *text = fuzz_copy(fuzz_input_of(data, size));
    ifl_model_config config, again;
    ifl_error err = {0};
    if (ifl_model_config_from_json(&config, (const char *)text, size, &err) == IFL_OK) {
        FUZZ_CHECK(ifl_model_config_check(&config, &err) == IFL_OK);
        int32_t n = ifl_model_config_tensors(&config, NULL);
        ifl_tensor_spec *specs = malloc((size_t)n * sizeof *specs);
        if (!specs) abort();
        FUZZ_CHECK(ifl_model_config_tensors(&config, specs) == n);
        for (int32_t i = 0; i < n; i++)
            FUZZ_CHECK(specs[i].rows >= 1 && specs[i].cols >= 1 && specs[i].name[0]);
        free(specs);
        char *first = NULL, *second = NULL;
        FUZZ_CHECK(ifl_model_config_to_json(&config, &first, &err) == IFL_OK);
        if (ifl_model_config_from_json(&again, first, strlen(first), &err) != IFL_OK) {
            fprintf(stderr, "%s\n%s\n", err.text, first);
            abort();
        }
        FUZZ_CHECK(ifl_model_config_to_json(&again, &second, &err) == IFL_OK);
        FUZZ_CHECK(strcmp(first, second) == 0);
        free(first);
        free(second);
    }
    free(text);
    return 0;
}
