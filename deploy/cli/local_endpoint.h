/* Socket files of one `train`, in a private folder: no port to collide with, and no network. */
#ifndef IFL_CLI_LOCAL_ENDPOINT_H
#define IFL_CLI_LOCAL_ENDPOINT_H

#include "common/keys.h"

typedef struct ifl_local_endpoint {
    char folder[96]; /* "" : none */
    char text[128];  /* ipc://<folder>/sock */
    int lock_fd;     /* of the folder, locked while this process lives */
} ifl_local_endpoint;

/* Makes <XDG_RUNTIME_DIR or /tmp>/inflight-sockets-XXXXXX, readable by this user alone, and removes
 * those that processes of this user left behind when they were killed: a folder whose lock is free.
 */
ifl_status ifl_local_endpoint_create(ifl_local_endpoint *out, ifl_error *err);

/* The same folder with keys in it instead: a pair for actors that this process starts, new each
 * time, and the public key of the learner whose secret is in the folder `keys`. */
ifl_status ifl_local_keys_create(ifl_local_endpoint *out, const char *keys,
                                 char public_key[IFL_KEY_TEXT_MAX], ifl_error *err);

/* Removes the folder with its files. A zeroed one is fine. */
void ifl_local_endpoint_remove(ifl_local_endpoint *endpoint);

#endif
