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

/* A name, an address or an interface: what libzmq and the resolver are given. */
static bool endpoint_host_is_sound(const char *host) {
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:%_-";
    return strcmp(host, "*") == 0 || (*host && strspn(host, letters) == strlen(host));
}

static ifl_status endpoint_check_form(const char *endpoint, bool *is_local, ifl_error *err) {
    if (strncmp(endpoint, "ipc://", 6) == 0) {
        size_t n = strlen(endpoint + 6);
        if (n < 1 || n > IPC_PATH_MAX)
            return ifl_fail(err, IFL_USAGE,
                            "%s: a path of %zu bytes, wanted 1 to %d (a socket's name is short)",
                            endpoint, n, IPC_PATH_MAX);
        *is_local = true;
        return IFL_OK;
    }
    if (strncmp(endpoint, "tcp://", 6) != 0)
        return ifl_fail(err, IFL_USAGE, "%s: wanted ipc:///path or tcp://host:port", endpoint);
    char host[IFL_ENDPOINT_MAX];
    int port;
    IFL_TRY(endpoint_split_tcp(endpoint, host, &port, err));
    if (!endpoint_host_is_sound(host))
        return ifl_fail(err, IFL_USAGE, "%s: \"%.100s\" is no host, address or interface", endpoint,
                        host);
    *is_local = endpoint_is_loopback(host);
    return IFL_OK;
}

bool ifl_endpoint_is_local(const char *endpoint) {
    bool is_local = false;
    return endpoint_check_form(endpoint, &is_local, NULL) == IFL_OK && is_local;
}

ifl_status ifl_endpoint_check(const char *endpoint, bool may_leave_host, ifl_error *err) {
    bool is_local;
    IFL_TRY(endpoint_check_form(endpoint, &is_local, err));
    if (is_local || may_leave_host) return IFL_OK;
    return ifl_fail(
        err, IFL_USAGE,
        "%s is not a loopback address, and links between hosts need keys: `inflight keys new "
        "FOLDER` makes them, transport.keys=FOLDER uses them (transport.insecure=true goes "
        "without, where everyone who can reach the port may read and write)",
        endpoint);
}

ifl_status ifl_endpoint_reach(const char *bound, char out[IFL_ENDPOINT_MAX], ifl_error *err) {
    bool is_local;
    IFL_TRY(endpoint_check_form(bound, &is_local, err));
    snprintf(out, IFL_ENDPOINT_MAX, "%s", bound);
    if (strncmp(bound, "tcp://", 6) != 0) return IFL_OK;
    static const char *const any[][2] = {
        {"tcp://*:", "127.0.0.1"}, {"tcp://0.0.0.0:", "127.0.0.1"}, {"tcp://[::]:", "[::1]"}};
    for (size_t i = 0; i < sizeof any / sizeof *any; i++)
        if (strncmp(bound, any[i][0], strlen(any[i][0])) == 0)
            snprintf(out, IFL_ENDPOINT_MAX, "tcp://%s:%s", any[i][1], bound + strlen(any[i][0]));
    return IFL_OK;
}

ifl_status ifl_endpoint_weights(const char *control, char out[IFL_ENDPOINT_MAX], ifl_error *err) {
    bool is_local;
    IFL_TRY(endpoint_check_form(control, &is_local, err));
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
