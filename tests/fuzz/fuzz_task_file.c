/* common/task_file.h. */
#include "common/task_file.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ifl_task_file *file = NULL;
    ifl_error err = {0};
    fuzz_file_put("tasks.jsonl", fuzz_input_of(data, size));
    if (ifl_task_file_open(&file, "tasks.jsonl", "own", 0, &err) == IFL_OK) {
        FUZZ_CHECK(ifl_task_file_size(file) > 0);
        for (int64_t i = 0; i < ifl_task_file_size(file); i++) {
            ifl_task_line line;
            ifl_task copy = {0};
            FUZZ_CHECK(ifl_task_file_read(file, i, &line, &err) == IFL_OK);
            FUZZ_CHECK(!!line.text + !!line.messages + !!line.ids == 1 && line.task.id[0]);
            FUZZ_CHECK(ifl_task_copy(&copy, &line.task, &err) == IFL_OK);
            ifl_task_clear(&copy);
            ifl_task_line_clear(&line);
        }
    }
    ifl_task_file_close(file);
    fuzz_files_clear();
    return 0;
}
