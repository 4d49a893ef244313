/* CPU pinning by lists such as "0,2-3". */
#ifndef IFL_CLI_AFFINITY_H
#define IFL_CLI_AFFINITY_H

#include <sched.h>

#include "common/status.h"

/* Parses `list`; IFL_USAGE names `key` when it is malformed. An empty list gives the calling
 * thread's own mask. */
ifl_status ifl_cpu_list_parse(cpu_set_t *out, const char *list, const char *key, ifl_error *err);

/* Pins the calling thread, and the threads it starts later; an empty list does nothing. */
ifl_status ifl_cpu_pin(const char *list, const char *key, ifl_error *err);

/* Part i of a ';'-separated list of lists (the last part serves all further i), into out[n_out]. */
void ifl_cpu_list_part(char *out, size_t n_out, const char *lists, int i);

/* A configured number of threads; 0 means one for each CPU the calling thread may use. */
int ifl_cpu_threads(int32_t configured);

#endif
