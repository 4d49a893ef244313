/* Socket files of one `train`, in a private folder: no port to collide with, and no network. */
#ifndef IFL_CLI_LOCAL_ENDPOINT_H
#define IFL_CLI_LOCAL_ENDPOINT_H

#include "common/status.h"

typedef struct ifl_local_endpoint {
    char folder[96]; /* "" : none */
    char text[128];  /* ipc://<folder>/sock */
    int lock_fd;     /* of the folder, locked while this process lives */
} ifl_local_endpoint;

/* Makes <XDG_RUNTIME_DIR or /tmp>/inflight-sockets-XXXXXX, readable by this user alone, and removes
 * those that processes of this user left behind when they were killed: a folder whose lock is free.
 */
ifl_status ifl_local_endpoint_create(ifl_local_endpoint *out, ifl_error *err);

/* Removes the folder with its sockets. A zeroed one is fine. */
void ifl_local_endpoint_remove(ifl_local_endpoint *endpoint);

#endif
