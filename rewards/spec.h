/* The checkers that a configuration defines (reward.checkers), parsed and checked once. Each has a
 * name and a `use`: a built-in with options, a composition of other checkers, or a plug-in. What
 * the keys mean for a user is in rewards/PLUGINS.md. */
#ifndef IFL_REWARDS_SPEC_H
#define IFL_REWARDS_SPEC_H

#include <jansson.h>

#include "common/config.h"
#include "rewards/reward.h"

#define IFL_SPEC_CHECKERS_MAX 64
#define IFL_SPEC_PARTS_MAX 8
#define IFL_SPEC_DEPTH_MAX 4 /* compositions of compositions */
#define IFL_SPEC_NAME_MAX 32 /* with the NUL; a component's name has room for it */
#define IFL_SPEC_WORDS_MAX 32

typedef enum {
    IFL_SPEC_BUILTIN,
    IFL_SPEC_SUM,
    IFL_SPEC_PRODUCT,
    IFL_SPEC_FIRST,
    IFL_SPEC_LIBRARY,
    IFL_SPEC_PROCESS,
    IFL_SPEC_HTTP,
    IFL_SPEC_ZEROMQ,
} ifl_spec_kind;

#define IFL_SPEC_PASS_UNDECIDED 1u
#define IFL_SPEC_PASS_NO_ANSWER 2u

/* One part of a composition: a checker of the specification or a built-in. */
typedef struct ifl_spec_part {
    char name[IFL_SPEC_NAME_MAX]; /* of its component */
    int32_t entry;                /* in ifl_spec; -1: `builtin` */
    const ifl_checker *builtin;
    double weight; /* sum alone */
} ifl_spec_part;

typedef struct ifl_spec_entry {
    char name[IFL_SPEC_NAME_MAX];
    ifl_spec_kind kind;
    uint64_t config;            /* hash of its canonical JSON and of its parts' hashes; never 0 */
    const ifl_checker *builtin; /* BUILTIN */
    json_t *options;            /* an object or NULL: defaults under a task's meta; borrows */
    int32_t n_parts;
    ifl_spec_part parts[IFL_SPEC_PARTS_MAX];
    double clip[2];
    uint32_t passes; /* FIRST: on which statuses of a part the next one is asked */
    /* Plug-ins. Texts borrow from the specification. */
    const char *path;                            /* LIBRARY */
    const char *command[IFL_SPEC_WORDS_MAX + 1]; /* PROCESS; ends with NULL */
    const json_t *env;                           /* PROCESS: an object of texts, or NULL */
    int32_t start_ms;                            /* PROCESS: until its hello */
    double memory_gib;                           /* PROCESS: address space; 0 = no limit */
    const char *url, *token_file, *ca_file;      /* HTTP; NULL: none */
    const char *endpoint, *keys, *key;           /* ZEROMQ; NULL: none */
    int32_t retries;                             /* HTTP: of one answer, after transport errors */
    bool batch, insecure;
} ifl_spec_entry;

typedef struct ifl_spec {
    json_t *root;
    int32_t n;
    ifl_spec_entry *entries; /* [n] in the order of the configuration */
} ifl_spec;

/* Parses JSON text as ifl_config keeps it; NULL or "" or "{}" is an empty one. Owned. Every mistake
 * is IFL_FORMAT with the key, what was wanted, what was got. Starts and opens nothing. */
ifl_status ifl_spec_parse(ifl_spec **out, const char *json, ifl_error *err);
void ifl_spec_free(ifl_spec *spec); /* NULL is fine */

/* Index; -1 when there is none of that name. */
int32_t ifl_spec_find(const ifl_spec *spec, const char *name);

/* Whether a name is that of a checker, of the specification or built in. */
bool ifl_spec_knows(const ifl_spec *spec, const char *name);

const char *ifl_spec_kind_name(ifl_spec_kind kind);

/* Whether any of them is a plug-in. */
bool ifl_spec_has_plugins(const ifl_spec *spec);

/* The longest time until a worker has its plug-ins up; 0 without any. */
int32_t ifl_spec_start_ms(const ifl_spec *spec);

/* Parses a configuration's checkers and looks up every name that the rest of it uses
 * (reward.checker, reward.route, a source's checker): what is mistyped is said at the start. */
ifl_status ifl_spec_check_config(const ifl_config *config, ifl_error *err);

#endif
