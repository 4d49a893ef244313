/* Peers that a learner must not be harmed by: strangers, actors of another build, liars, replays.
 * They speak the wire through common/wire.h over DEALER sockets, or raw bytes over TCP. Every
 * function plays one, checks what the learner answers, and says in `why` what was not as required
 * (false), or what was seen (true). They block, for some seconds at most. */
#ifndef IFL_TESTS_FAULTS_ODD_PEER_H
#define IFL_TESTS_FAULTS_ODD_PEER_H

#include "common/keys.h"
#include "common/wire.h"

#define ODD_TEXT_MAX 512

/* The learner's hashes, as its refusals name them. */
typedef struct odd_facts {
    int port; /* of the control plane */
    ifl_hash fingerprint, profile, tokenizer;
    char learner_key[IFL_KEY_TEXT_MAX]; /* "" = links without keys */
    ifl_key_pair own;
    bool known;
} odd_facts;

/* Finds the hashes out by being refused three times; each refusal must name both sides' hash. */
bool odd_learn(odd_facts *facts, char why[ODD_TEXT_MAX]);

/* Row 7. which: 0 model, 1 profile, 2 tokenizer. */
bool odd_wrong_hash(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]);
/* Row 8. which: 0 another major, 1 only later minors, 2 also later minors, 3 only earlier ones. */
bool odd_protocol(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]);
/* Row 9: n sessions at once; each fetches a version whole, checks every chunk's hash and says
 * READY. No limit but limit_ms. *said_s: how long it took to say HELLO n times. */
bool odd_crowd(const odd_facts *facts, int n, int64_t limit_ms, double *said_s,
               char why[ODD_TEXT_MAX]);
/* Row 11: a session under the name of another actor, alive for ms. */
bool odd_namesake(const odd_facts *facts, const char *name, int64_t ms, char why[ODD_TEXT_MAX]);
/* Row 27. which: 0 .. ODD_FRAMES - 1 kinds of malformed messages; each is said ten times, and the
 * learner must then refuse to listen. */
#define ODD_FRAMES 10
bool odd_frames(const odd_facts *facts, int which, uint64_t seed, char why[ODD_TEXT_MAX]);
/* Row 29. which: 0 of an old session, 1 a number twice, 2 a trajectory of another run. */
bool odd_replay(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]);
/* Row 30. which: 0 port scan, 1 HTTP, 2 random bytes, 3 half a greeting that goes no further, 4 a
 * ZeroMQ client that is no actor. */
#define ODD_STRANGERS 5
bool odd_stranger(const odd_facts *facts, int which, uint64_t seed, char why[ODD_TEXT_MAX]);
/* The same: an actor in every respect, on a link without keys. Where links have them it gets no
 * answer. */
bool odd_plain(const odd_facts *facts, char why[ODD_TEXT_MAX]);
/* Row 31. which: 0 NaN, 1 a log-prob above 0, 2 a version never published, 3 +inf. */
bool odd_liar(const odd_facts *facts, int which, char why[ODD_TEXT_MAX]);

#endif
