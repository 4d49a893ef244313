/* CURVE keys of links between hosts, as files in a folder:
 *
 *   learner.secret        the learner's own, on its host alone; mode 0600
 *   learner.public        on every host: actors know the learner by it
 *   actors/NAME.public    on the learner's host: the keys that may join
 *   NAME.secret           an actor's own, on its host; mode 0600 (NAME.public beside it)
 *
 * Each holds one line: 40 characters of Z85. `inflight keys` writes them; common/transport.h uses
 * them. */
#ifndef IFL_COMMON_KEYS_H
#define IFL_COMMON_KEYS_H

#include "common/status.h"

#define IFL_KEY_TEXT_MAX 41 /* 40 characters and a NUL */
#define IFL_KEY_NAME_MAX 32 /* with the NUL: letters, digits, '.', '_', '-'; no '.' in front */
#define IFL_KEYS_MAX 4096   /* in an allow-list */

/* The learner's pair has this name, and no actor's may. */
#define IFL_KEY_LEARNER "learner"

typedef struct ifl_key_pair {
    char public_key[IFL_KEY_TEXT_MAX], secret_key[IFL_KEY_TEXT_MAX];
} ifl_key_pair;

typedef struct ifl_key_entry {
    char name[IFL_KEY_NAME_MAX];
    char key[IFL_KEY_TEXT_MAX]; /* public */
} ifl_key_entry;

typedef struct ifl_key_list {
    ifl_key_entry *entries; /* by name, ascending */
    int32_t n;
} ifl_key_list;

/* A new random pair. IFL_UNSUPPORTED: this libzmq has no CURVE. */
ifl_status ifl_key_pair_make(ifl_key_pair *out, ifl_error *err);

/* FOLDER/NAME.secret, and the public key that follows from it. IFL_USAGE unless the file is this
 * user's and nobody else may read it. */
ifl_status ifl_key_pair_read(ifl_key_pair *out, const char *folder, const char *name,
                             ifl_error *err);

/* Writes NAME.secret (0600) and NAME.public (0644), and makes the folder (0700) where there is
 * none. IFL_USAGE when one of them is there already: nothing is ever overwritten. */
ifl_status ifl_key_pair_write(const ifl_key_pair *pair, const char *folder, const char *name,
                              ifl_error *err);

/* A file with a public key. */
ifl_status ifl_key_public_read(char out[IFL_KEY_TEXT_MAX], const char *path, ifl_error *err);

/* The learner's public key in an actor's folder. */
ifl_status ifl_key_learner_read(char out[IFL_KEY_TEXT_MAX], const char *folder, ifl_error *err);
ifl_status ifl_key_learner_write(const char *folder, const char *key, ifl_error *err);

/* Another side's public key, FOLDER/NAME.public: a relay's in the folder of an actor. */
ifl_status ifl_key_peer_read(char out[IFL_KEY_TEXT_MAX], const char *folder, const char *name,
                             ifl_error *err);

/* Which of the folder's secrets is an actor's: `wanted` where it isn't empty, else the only one
 * that isn't the learner's, else the one called `or_else` (may be NULL). IFL_USAGE when that leaves
 * none. */
ifl_status ifl_key_actor_name(char out[IFL_KEY_NAME_MAX], const char *folder, const char *wanted,
                              const char *or_else, ifl_error *err);

/* FOLDER/actors: who may join. Fails on the first file that isn't a key, or that others than this
 * user (and root) may change. A folder without actors/ gives an empty list. */
ifl_status ifl_key_list_read(ifl_key_list *out, const char *folder, ifl_error *err);
void ifl_key_list_clear(ifl_key_list *list); /* a zeroed one is fine */
/* NULL: not in the list. */
const ifl_key_entry *ifl_key_list_find(const ifl_key_list *list, const char *key);

/* Puts a key into FOLDER/actors. IFL_USAGE when another key has that name. */
ifl_status ifl_key_allow(const char *folder, const char *name, const char *key, ifl_error *err);
/* Takes it out again. IFL_NOTFOUND. */
ifl_status ifl_key_revoke(const char *folder, const char *name, ifl_error *err);

ifl_status ifl_key_name_check(const char *name, ifl_error *err);

#endif
