#include "deploy/cli/affinity.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

ifl_status ifl_cpu_list_parse(cpu_set_t *out, const char *list, const char *key, ifl_error *err) {
    CPU_ZERO(out);
    if (list[0] == '\0') {
        if (sched_getaffinity(0, sizeof *out, out) != 0)
            return ifl_fail(err, IFL_IO, "%s: cannot read the CPU mask: %s", key, strerror(errno));
        return IFL_OK;
    }
    for (const char *at = list; *at;) {
        char *end;
        long first = strtol(at, &end, 10), last = first;
        if (end == at) goto malformed;
        if (*end == '-') {
            at = end + 1;
            last = strtol(at, &end, 10);
            if (end == at) goto malformed;
        }
        if (first < 0 || last < first || last >= CPU_SETSIZE || (*end && *end != ','))
            goto malformed;
        for (long cpu = first; cpu <= last; cpu++)
            CPU_SET((size_t)cpu, out);
        at = *end == ',' ? end + 1 : end;
    }
    return IFL_OK;
malformed:
    return ifl_fail(err, IFL_USAGE, "%s: got \"%s\", wanted CPU numbers and ranges such as 0,2-3",
                    key, list);
}

ifl_status ifl_cpu_pin(const char *list, const char *key, ifl_error *err) {
    if (list[0] == '\0') return IFL_OK;
    cpu_set_t set;
    IFL_TRY(ifl_cpu_list_parse(&set, list, key, err));
    if (sched_setaffinity(0, sizeof set, &set) != 0)
        return ifl_fail(err, IFL_USAGE, "%s: cannot pin to CPUs %s: %s", key, list,
                        strerror(errno));
    return IFL_OK;
}

void ifl_cpu_list_part(char *out, size_t n_out, const char *lists, int i) {
    for (; i > 0; i--) {
        const char *next = strchr(lists, ';');
        if (!next) break;
        lists = next + 1;
    }
    size_t n = strcspn(lists, ";");
    if (n >= n_out) n = n_out - 1;
    memcpy(out, lists, n);
    out[n] = '\0';
}

int ifl_cpu_threads(int32_t configured) {
    cpu_set_t set;
    if (configured > 0) return configured;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}
