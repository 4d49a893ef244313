#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/transport.h"

#define IPC_PATH_MAX 105 /* sun_path, less ".w" and a NUL */

static bool endpoint_is_loopback(const char *host) {
    struct in_addr v4;
    struct in6_addr v6;
    if (strcmp(host, "localhost") == 0) return true;
    if (inet_pton(AF_INET, host, &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
    if (inet_pton(AF_INET6, host, &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
    return false;
}

/* Splits tcp://host:port. `port` -1 stands for "*". */
static ifl_status endpoint_split_tcp(const char *endpoint, char host[IFL_ENDPOINT_MAX], int *port,
                                     ifl_error *err) {
    const char *rest = endpoint + strlen("tcp://");
    const char *colon = strrchr(rest, ':');
    if (!colon || colon == rest || strlen(rest) >= IFL_ENDPOINT_MAX)
        return ifl_fail(err, IFL_USAGE, "%s: wanted tcp://host:port", endpoint);
    size_t n = (size_t)(colon - rest);
    memcpy(host, rest, n);
    host[n] = 0;
    if (host[0] == '[' && host[n - 1] == ']') {
        memmove(host, host + 1, n - 2);
        host[n - 2] = 0;
    }
    if (strcmp(colon + 1, "*") == 0) {
        *port = -1;
        return IFL_OK;
    }
    char *end;
    long value = strtol(colon + 1, &end, 10);
    if (!isdigit((unsigned char)colon[1]) || *end || value < 0 || value > 65535)
        return ifl_fail(err, IFL_USAGE, "%s: port is \"%s\", wanted 0 to 65535 or *", endpoint,
                        colon + 1);
    *port = value == 0 ? -1 : (int)value;
    return IFL_OK;
}

ifl_status ifl_endpoint_check(const char *endpoint, ifl_error *err) {
    if (strncmp(endpoint, "ipc://", 6) == 0) {
        size_t n = strlen(endpoint + 6);
        if (n < 1 || n > IPC_PATH_MAX)
            return ifl_fail(err, IFL_USAGE,
                            "%s: a path of %zu bytes, wanted 1 to %d (a socket's name is short)",
                            endpoint, n, IPC_PATH_MAX);
        return IFL_OK;
    }
    if (strncmp(endpoint, "tcp://", 6) != 0)
        return ifl_fail(err, IFL_USAGE, "%s: wanted ipc:///path or tcp://127.0.0.1:port", endpoint);
    char host[IFL_ENDPOINT_MAX];
    int port;
    IFL_TRY(endpoint_split_tcp(endpoint, host, &port, err));
    if (!endpoint_is_loopback(host))
        return ifl_fail(
            err, IFL_USAGE,
            "%s: %s is not a loopback address; links between hosts are refused until they can be "
            "encrypted and authenticated (CURVE). Use tcp://127.0.0.1:port, ipc:///path or a "
            "tunnel",
            endpoint, host);
    return IFL_OK;
}

ifl_status ifl_endpoint_weights(const char *control, char out[IFL_ENDPOINT_MAX], ifl_error *err) {
    IFL_TRY(ifl_endpoint_check(control, err));
    if (strncmp(control, "ipc://", 6) == 0) {
        snprintf(out, IFL_ENDPOINT_MAX, "%s.w", control);
        return IFL_OK;
    }
    char host[IFL_ENDPOINT_MAX];
    int port;
    IFL_TRY(endpoint_split_tcp(control, host, &port, err));
    if (port < 1 || port > 65534)
        return ifl_fail(err, IFL_USAGE,
                        "%s: wanted a port from 1 to 65534 (weights use the next one)", control);
    bool v6 = strchr(host, ':') != NULL;
    snprintf(out, IFL_ENDPOINT_MAX, "tcp://%s%.200s%s:%d", v6 ? "[" : "", host, v6 ? "]" : "",
             port + 1);
    return IFL_OK;
}
